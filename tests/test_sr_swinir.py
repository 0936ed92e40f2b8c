"""SwinIR: the published output, windows that keep to themselves, any size, clear faults, export."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from sr_reference import DERIVED, reference
from torch import nn
from torch.nn import functional as F

from interflow.core import InterflowError, make_generator
from interflow.sr import swinir, windows
from interflow.sr.swinir import (
    SwinBlock,
    SwinIR,
    SwinIRConfig,
    WindowAttention,
    from_published,
    from_windows,
    reflect_to_multiple,
    to_windows,
    window_mask,
)

LABEL = 'published SwinIR weights: '


def image(*shape, seed=0):
    "Random pixels (*shape) in [0, 1]."
    return torch.rand(shape, generator=make_generator(seed, 'image'))


def lively(module, std=.3):
    "A module with weights so large that no mistake hides behind small ones."
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def tiny(**changes):
    "A tiny network, in evaluation mode."
    torch.manual_seed(0)
    return SwinIR(replace(SwinIRConfig.tiny(), **changes)).eval()


# ---------------------------------------------------------------- the published network

def test_published_network_gives_the_published_output():
    state, data = reference('swinir')
    net = from_published(state)
    with torch.inference_mode():
        y = net(torch.from_numpy(data['x'])).numpy()
    assert np.abs(y - data['y']).max() < 1e-4 * data['y'].std()
    assert net.config == SwinIRConfig.paper() and not net.training
    names = {swinir.published_name(name) for name in net.state_dict()}
    assert names == {entry for entry in state if not entry.endswith(DERIVED)} and len(names) == len(net.state_dict())


@pytest.mark.parametrize('changes', [{}, {'channels': 24, 'groups': 1, 'blocks': 3, 'heads': 3, 'window': 4, 'ratio': 3, 'tail': 8}])
def test_published_weights_of_any_size_come_back(changes):
    net = tiny(drop_path=.1, global_residual=False, **changes)
    state = {swinir.published_name(name): value for name, value in net.state_dict().items()}
    again = from_published({**state, 'layers.0.residual_group.blocks.1.attn_mask': torch.zeros(3)})
    assert again.config == net.config and torch.equal(again(image(1, 3, 9, 40)), net(image(1, 3, 9, 40)))


@pytest.mark.parametrize('what, change, said', [
    ('missing', {'norm.bias': None}, '1 entry is missing (norm.bias)'),
    ('unknown', {'extra.weight': torch.zeros(1)}, 'extra.weight'),
    ('shape', {'conv_first.weight': torch.zeros(48, 3, 3, 3)}, 'conv_first.weight'),
    ('infinite', {'norm.bias': torch.full((48,), torch.inf)}, 'norm.bias'),
    ('empty', None, 'no attention in windows'),
])
def test_wrong_weights_are_one_clear_line(what, change, said):
    state = {swinir.published_name(name): value for name, value in tiny().state_dict().items()}
    state = {} if change is None else {name: value for name, value in {**state, **change}.items() if value is not None}
    with pytest.raises(InterflowError) as fault:
        from_published(state)
    assert str(fault.value).startswith(LABEL) and said in str(fault.value) and '\n' not in str(fault.value)


def test_weights_of_another_network_are_one_clear_line():
    with pytest.raises(InterflowError, match=LABEL):
        from_published(reference('vdsr')[0])


# ---------------------------------------------------------------- windows

@pytest.mark.parametrize('shift', [0, 1, 3])
def test_windows_go_there_and_back(shift):
    x = image(2, 9, 15, 4)
    windows = to_windows(x, 3, shift)
    assert windows.shape == (2 * 15, 9, 4) and torch.equal(from_windows(windows, 9, 15, 3, shift), x)
    assert torch.equal(windows[0], x[0, shift:shift + 3, shift:shift + 3].reshape(9, 4))


def by_pairs(layer, x, window, shift):
    "Attention of (H, W, C) token by token over those that share a window of the plane, no window reaching round the map."
    height, width, channels = x.shape
    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.heads, -1)).unbind(2)
    table, out = layer.table.view(2 * window - 1, 2 * window - 1, layer.heads), torch.empty_like(x)
    cell = lambda y, x: ((y - shift) // window, (x - shift) // window)
    places = [(y, x) for y in range(height) for x in range(width)]
    for here in places:
        seen = [there for there in places if cell(*there) == cell(*here)]
        rows, columns = (torch.tensor([there[axis] for there in seen]) for axis in (0, 1))
        scores = torch.einsum('hd,nhd->nh', q[here], k[rows, columns]) * q.shape[-1] ** -.5
        weights = (scores + table[here[0] - rows + window - 1, here[1] - columns + window - 1]).softmax(0)
        out[here] = torch.einsum('nh,nhd->hd', weights, v[rows, columns]).flatten()
    return layer.out(out)


@pytest.mark.parametrize('height, width', [(4, 4), (8, 12), (4, 8)])
@pytest.mark.parametrize('shift', [0, 2])
def test_attention_is_that_of_the_plane_cut_into_windows(height, width, shift):
    layer = lively(WindowAttention(6, heads=2, window=4), std=1.).double()
    x = torch.randn(3, height, width, 6, dtype=torch.float64, generator=make_generator(0, 'x'))
    mask = window_mask(height, width, 4, shift, like=x) if shift else None
    with torch.no_grad():
        ours = from_windows(layer(to_windows(x, 4, shift), mask), height, width, 4, shift)
        wanted = torch.stack([by_pairs(layer, each, 4, shift) for each in x])
    assert (ours - wanted).abs().max() < 1e-12


def test_nothing_crosses_the_border_and_shifting_reaches_four_windows():
    config = replace(SwinIRConfig.tiny(), channels=8, heads=2, window=4)
    blocks = [lively(SwinBlock(config, shifted, rate=0.)).double() for shifted in (False, True)]
    x = torch.randn(1, 12, 12, 8, dtype=torch.float64, generator=make_generator(0, 'x'), requires_grad=True)
    out = blocks[1](blocks[0](x, None), window_mask(12, 12, 4, 2, like=x))
    for (row, column), rows, columns in (((0, 0), range(4), range(4)), ((0, 11), range(4), range(8, 12)), ((3, 5), range(8), range(8))):
        gradient = torch.autograd.grad(out[0, row, column].sum(), x, retain_graph=True)[0][0].abs().sum(-1) > 0
        wanted = torch.zeros(12, 12, dtype=torch.bool)
        wanted[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] = True
        assert torch.equal(gradient, wanted), (row, column)


def test_what_follows_from_the_size_is_computed_once():
    windows._apart.cache_clear()
    net = tiny()
    with torch.inference_mode():
        net(image(1, 3, 32, 64))
    before = windows._apart.cache_info()
    net(image(2, 3, 32, 64)).mean().backward()        # made in inference mode, then used in training
    after = windows._apart.cache_info()
    assert before.misses == after.misses == 1 and after.hits == before.hits + 1


# ---------------------------------------------------------------- the network

@pytest.mark.parametrize('size', [*((side, side) for side in range(1, 8)), (1, 65), (31, 33), (40, 7)])
def test_any_size(size):
    net, lr = tiny(), image(2, 3, *size)
    with torch.inference_mode():
        sr = net(lr)
        padded = net(reflect_to_multiple(lr, 32))
    assert sr.shape == lr.shape and torch.isfinite(sr).all() and torch.equal(sr, padded[..., :size[0], :size[1]])


def test_reflection_is_that_of_torch_where_torch_can():
    for size in ((20, 31), (17, 32), (64, 32)):
        lr = image(1, 3, *size)
        assert torch.equal(reflect_to_multiple(lr, 32), F.pad(lr, (0, -size[1] % 32, 0, -size[0] % 32), mode='reflect'))
    assert reflect_to_multiple(torch.arange(3.).view(1, 3), 8)[0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert torch.equal(reflect_to_multiple(torch.ones(3, 1, 1), 4), torch.ones(3, 4, 4))


@pytest.mark.parametrize('make', [lambda: tiny()(image(3, 8, 8)), lambda: tiny()(image(1, 1, 8, 8)),
                                  lambda: tiny()(torch.ones(1, 3, 8, 8).byte()), lambda: tiny(heads=5),
                                  lambda: tiny(window=1), lambda: tiny(drop_path=1.), lambda: tiny(groups=0)])
def test_faults(make):
    with pytest.raises(InterflowError) as fault:
        make()
    assert '\n' not in str(fault.value)


def test_it_starts_near_its_input_and_every_parameter_learns():
    net, lr = tiny().train(), image(2, 3, 64, 32)
    assert (net(lr) - lr).abs().mean() < .05
    F.l1_loss(net(lr), lr.flip(-1)).backward()
    assert not [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.abs().max() > 0]


def test_same_seed_same_network_same_output():
    first, second, lr = tiny(), tiny(), image(1, 3, 40, 33)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert torch.equal(first(lr), second(lr))


def test_drop_path_in_training_alone_and_from_the_generator_of_torch():
    net, lr = tiny(drop_path=.5), image(4, 3, 32, 32)
    assert torch.equal(net(lr), net(lr))
    net.train()
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(net(lr))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    torch.manual_seed(0)
    kept = swinir.drop_path(torch.ones(4000, 2, 2), .25)
    assert sorted(kept.unique().tolist()) == pytest.approx([0, 4 / 3]) and kept.mean() == pytest.approx(1, abs=.05)
    assert torch.equal(kept, kept[:, :1, :1].expand(-1, 2, 2))                 # a sample as a whole


def test_drop_path_leaves_out_both_branches():
    block = lively(SwinBlock(SwinIRConfig.tiny(), False, rate=.9)).train()
    torch.manual_seed(0)
    x = image(200, 8, 8, 48)
    alone = [torch.equal(before, after) for before, after in zip(x, block(x, None))]
    assert sum(alone) == pytest.approx(.81 * 200, abs=25)


def test_a_batch_is_its_images():
    net, lr = tiny(), image(3, 3, 64, 40)
    with torch.inference_mode():
        assert (net(lr) - torch.cat([net(each[None]) for each in lr])).abs().max() < 1e-5


def test_float64_and_autocast():
    net, lr = tiny(), image(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = net(lr)
        with torch.autocast('cpu', torch.bfloat16):
            assert (net(lr) - wanted).abs().max() < .02
        assert (net.double()(lr.double()) - wanted).abs().max() < 1e-5


def test_export_gives_the_same():
    windows._apart.cache_clear()                                                # what is kept must not be of the tracer's kind
    net, lr = tiny(), image(1, 3, 64, 40)
    exported = torch.export.export(net, (lr,)).module()
    with torch.inference_mode():
        assert (exported(lr) - net(lr)).abs().max() < 1e-4
