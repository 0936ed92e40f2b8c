"""VDSR, RCAN and HAN, and the pieces that all SR networks share: the published outputs, any size, clear faults, export."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sr_reference import reference
from torch import nn
from torch.nn import functional as F

from interflow.core import InterflowError, make_generator
from interflow.sr import han, parts, rcan, vdsr
from interflow.sr.han import HAN, HANConfig
from interflow.sr.rcan import RCAN, RCANConfig
from interflow.sr.vdsr import VDSR, VDSRConfig

NETS = {'vdsr': (VDSR, VDSRConfig, vdsr.from_published, 1), 'rcan': (RCAN, RCANConfig, rcan.from_published, 4),
        'han': (HAN, HANConfig, han.from_published, 4)}      # the last: the smallest side
every_network = pytest.mark.parametrize('name', NETS)


def tiny(name, seed=0, **changes):
    "A fresh tiny network, in evaluation mode."
    make, config, *_ = NETS[name]
    torch.manual_seed(seed)
    return make(replace(config.tiny(), **changes)).eval()


def image(height, width, batch=2):
    return torch.rand(batch, 3, height, width, generator=make_generator(0))


def fault_of(call, *arguments):
    "The one line with which `call` refuses its arguments."
    with pytest.raises(InterflowError) as fault:
        call(*arguments)
    assert '\n' not in str(fault.value) and len(str(fault.value)) > 20
    return str(fault.value)


# ---------------------------------------------------------------- published weights

@every_network
def test_published_weights_give_the_published_output(name):
    _, config, from_published, _ = NETS[name]
    state, arrays = reference(name)
    net = from_published(state)
    with torch.inference_mode():
        error = np.abs(net(torch.from_numpy(arrays['x'])).numpy() - arrays['y']).max()
    assert error < 1e-4 * arrays['y'].std()
    assert net.config == config.paper() and not net.training


@every_network
def test_other_weights_are_refused_in_one_line(name):
    from_published, state = NETS[name][2], reference(name)[0]
    last = {'vdsr': 'output.weight', 'rcan': 'tail.1.bias', 'han': 'la.gamma'}[name]
    assert last in fault_of(from_published, {key: value for key, value in state.items() if key != last})
    assert 'extra' in fault_of(from_published, {**state, 'extra': torch.zeros(1)})
    assert last in fault_of(from_published, {**state, last: torch.zeros(2, 7)})
    assert last in fault_of(from_published, {**state, last: torch.full_like(state[last], math.nan)})
    fault_of(from_published, {})
    for other in set(NETS) - {name}:
        fault_of(from_published, reference(other)[0])


@pytest.mark.parametrize('name', ['rcan', 'han'])
def test_weights_for_images_in_another_range_are_refused(name):
    state = reference(name)[0]
    assert '[0, 1]' in fault_of(NETS[name][2], {**state, 'sub_mean.weight': state['sub_mean.weight'] / 255})


# ---------------------------------------------------------------- what each network promises

@every_network
@pytest.mark.parametrize('size', [(4, 4), (5, 9), (16, 12), (23, 30), (64, 4)])
def test_any_size_in_the_same_size_out(name, size):
    net, lr = tiny(name), image(*size)
    with torch.inference_mode():
        sr = net(lr)
        assert sr.shape == lr.shape and torch.isfinite(sr).all()
        assert torch.allclose(net(lr[1:]), sr[1:], atol=1e-5), 'no sample sees another'


@every_network
def test_the_smallest_size_is_checked(name):
    smallest, net = NETS[name][3], tiny(name)
    with torch.inference_mode():
        assert net(image(smallest, smallest)).shape[-2:] == (smallest, smallest)
        for wrong in ((1, 3, smallest - 1, 8), (1, 3, 8, smallest - 1), (1, 1, 8, 8), (1, 4, 8, 8), (3, 8, 8), (1, 1, 3, 8, 8)):
            assert str(tuple(wrong)) in fault_of(net, torch.zeros(wrong))
        assert 'uint8' in fault_of(net, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@every_network
def test_weights_depend_on_the_seed_alone(name):
    first, again, other = (tiny(name, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    lr = image(9, 14)
    with torch.inference_mode():
        assert torch.equal(first(lr), again(lr)) and torch.equal(first(lr), first(lr))


@every_network
def test_gradients_reach_every_parameter_and_the_input(name):
    net, lr = tiny(name).train(), image(24, 32).requires_grad_()
    F.l1_loss(net(lr), lr.detach().flip(-1)).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert (lr.grad.abs() > 0).float().mean() > .9


@every_network
def test_a_tiny_network_starts_near_its_input(name):
    lr = image(32, 40)
    with torch.inference_mode():
        assert (tiny(name)(lr) - lr).std() < .5 * lr.std()


@every_network
def test_dtype_is_kept_and_autocast_is_near(name):
    net, lr = tiny(name), image(9, 10)
    with torch.inference_mode():
        single = net(lr)
        with torch.autocast('cpu', torch.bfloat16):
            half = net(lr).float()
        double = net.double()(lr.double())
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-5) and torch.allclose(single, half, atol=.05) and not torch.equal(single, half)


@every_network
def test_export_gives_the_same(name):
    net, lr = tiny(name), image(16, 20, batch=1)
    exported = torch.export.export(net, (lr,)).module()
    with torch.inference_mode():
        assert torch.allclose(exported(lr), net(lr), atol=1e-4)
        assert torch.allclose(exported(lr.flip(-1)), net(lr.flip(-1)), atol=1e-4)


@every_network
def test_inference_leaves_training_possible(name):
    "Nothing made in inference mode is kept and handed to a training."
    net, lr = tiny(name), image(8, 8)
    with torch.inference_mode():
        net(lr)
    net(lr).sum().backward()


@pytest.mark.parametrize('settings', [(VDSRConfig, dict(channels=0)), (VDSRConfig, dict(layers=1)), (VDSRConfig, dict(start=0.)),
                                      (HANConfig, dict(groups=0)), (HANConfig, dict(channels=30)), (HANConfig, dict(gamma=math.inf)), (RCANConfig, dict(reduction=0))])
def test_impossible_settings_are_refused(settings):
    config, changes = settings
    assert config.__name__.removesuffix('Config') in fault_of(lambda: config(**changes))


# ---------------------------------------------------------------- each one's own

def test_vdsr_knows_no_brightness_and_sees_41_pixels():
    net, lr = tiny('vdsr'), image(20, 30)
    with torch.inference_mode():
        assert torch.equal(net(.5 * lr), .5 * net(lr))
    torch.manual_seed(0)
    paper, lr = VDSR(), image(60, 60, batch=1).requires_grad_()
    (paper(lr) - lr)[0, :, 30, 30].sum().backward()
    rows, columns = lr.grad[0].abs().sum(0).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 50, 10, 50)


def test_vdsr_starts_with_the_published_spread():
    torch.manual_seed(0)
    for layer in VDSR(VDSRConfig(layers=4)).layers:
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * layer.out_channels)), rel=.06)


def test_layer_attention_prefers_what_differs():
    attention = han.LayerAttention(gamma=1.)
    rows = torch.tensor([[1., 0.], [1., 0.], [0., 1.]])[None, :, :, None, None] * 9
    weights = attention.weights(rows)[0]
    assert weights[0, 2] > .99 and weights[2, 0] == pytest.approx(.5, abs=1e-4) and torch.allclose(weights.sum(-1), torch.ones(3))
    assert torch.allclose(attention(rows)[0, 0, :, 0, 0], torch.tensor([9., 9.]), atol=1e-3)


def test_layer_attention_survives_half_precision():
    rows = 1 + torch.randn(1, 3, 64, 40, 40, generator=make_generator(0)).half()
    assert (rows.flatten(2)[0] @ rows.flatten(2)[0].T).isinf().any(), 'the sums do overflow'
    assert torch.isfinite(han.LayerAttention(gamma=1.).half()(rows)).all()


def test_han_without_gamma_uses_both_its_branches_plainly():
    net, features = tiny('han', gamma=0.), torch.rand(1, 3, 32, 6, 7, generator=make_generator(0))
    assert torch.equal(net.layer_attention(features), features) and torch.equal(net.channel_spatial(features[:, 0]), features[:, 0])
    outputs = net.trunk(features[:, 0])
    assert torch.equal(outputs[:, 0], net.last(outputs[:, 1])), 'the newest first'
    assert torch.equal(outputs[:, 2], net.groups[0](features[:, 0]))


# ---------------------------------------------------------------- the ends that RCAN, HAN and NLSN share

def test_fresh_weights_are_drawn_from_the_input_to_the_output():
    "The order of the draws decides a fresh network: head, trunk, up-sampler, tail."
    config = replace(RCANConfig.tiny(), groups=1, blocks=1)
    torch.manual_seed(0)
    net = RCAN(config)
    torch.manual_seed(0)
    alone = [parts.conv(48, 32), rcan.Group(32, 4, 1), parts.conv(32, 32), parts.Upsampler(32), parts.conv(32, 3)]
    together = [net.head, net.groups[0], net.last, net.up, net.tail]
    for one, other in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_ends_are_the_same_whatever_the_trunk():
    class Scaled(rcan.FoldedNetwork):
        def deep(self, shallow):
            return 2 * shallow

    torch.manual_seed(0)
    net, lr = Scaled(replace(RCANConfig.tiny(), global_residual=False)), image(9, 14)
    padded = torch.cat([lr, lr[..., [8, 7, 6], :]], -2)
    padded = torch.cat([padded, padded[..., [13, 12]]], -1) - net.mean_in.shift.abs()[:, None, None]
    out = net.tail(net.up(3 * net.head(F.pixel_unshuffle(padded, 4)))) + net.mean_out.shift[:, None, None]
    assert torch.allclose(net(lr), out[..., :9, :14], atol=1e-6)
    assert '(3, 8, 8)' in fault_of(net, torch.zeros(3, 8, 8))
    with pytest.raises(NotImplementedError):
        rcan.FoldedNetwork(RCANConfig.tiny())(lr)


# ---------------------------------------------------------------- the pieces

def test_pieces_keep_or_enlarge_the_size():
    x = torch.rand(2, 8, 5, 7, generator=make_generator(0))
    for layer in (parts.conv(8, 8), parts.conv(8, 8, 1), parts.conv(8, 8, 5), parts.ResidualBlock(8), parts.ChannelAttention(8, 4)):
        assert layer(x).shape == x.shape
    assert parts.Upsampler(8)(x).shape == (2, 8, 20, 28)
    assert parts.conv(3, 8, bias=False).bias is None


def test_a_residual_block_is_its_formula():
    torch.manual_seed(0)
    block, x = parts.ResidualBlock(8, scale=.3), torch.randn(2, 8, 5, 7)
    kept = x.clone()
    assert torch.allclose(block(x), x + .3 * block.second(block.first(x).relu()), atol=1e-6)
    assert torch.equal(x, kept), 'the input is left alone'


def test_an_upsampler_lays_channels_out_as_squares():
    up = parts.Upsampler(1)
    with torch.no_grad():
        for layer in (up[0], up[2]):
            layer.weight.zero_(), layer.bias.copy_(torch.arange(4.))
            layer.weight[:, 0, 1, 1] = 10
    assert up(torch.zeros(1, 1, 1, 1))[0, 0].tolist() == [[0, 1, 10, 11], [2, 3, 12, 13], [20, 21, 30, 31], [22, 23, 32, 33]]


def test_mean_shifts_undo_each_other_and_are_not_trained():
    lr = image(5, 6)
    assert torch.allclose(parts.MeanShift(-1)(lr)[0, :, 0, 0], lr[0, :, 0, 0] - torch.tensor(parts.RGB_MEAN))
    assert torch.allclose(parts.MeanShift(1)(parts.MeanShift(-1)(lr)), lr, atol=1e-6)
    assert not list(parts.MeanShift(1).parameters()) and list(parts.MeanShift(1).state_dict()) == ['shift']


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_pixel_centres(dtype):
    grid = parts.pixel_centres(3, 4, torch.zeros((), dtype=dtype))
    assert grid.shape == (3, 4, 2) and grid.dtype == dtype
    assert torch.allclose(grid[:, 0, 0], torch.tensor([-2 / 3, 0, 2 / 3], dtype=dtype)) and grid[0, :, 1].tolist() == [-.75, -.25, .25, .75]
    coarse, fine = (parts.pixel_centres(size, size, grid) for size in (5, 15))
    assert torch.allclose(fine.view(5, 3, 5, 3, 2).mean((1, 3)), coarse, atol=1e-6), 'a coarse pixel lies in the middle of those it covers'


def test_pixel_centres_made_in_inference_mode_do_not_reach_a_training():
    with torch.inference_mode():
        parts.pixel_centres(4, 4, torch.zeros(()))
    weight = torch.ones(2, requires_grad=True)
    (parts.pixel_centres(4, 4, torch.zeros(())) * weight).square().sum().backward()


def test_loading_is_all_or_nothing():
    net = nn.Sequential(parts.conv(3, 4), nn.BatchNorm2d(4)).train()
    names = {name: f'theirs.{name}' for name in net.state_dict()}
    state = {theirs: torch.full_like(net.state_dict()[ours], 2) for ours, theirs in names.items()}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for change in ({'theirs.1.bias': torch.zeros(5)}, {'theirs.1.running_var': torch.full((4,), math.inf)}, {'more': torch.zeros(1)}, None):
        wrong = {} if change is None else {**state, **change}
        assert fault_of(parts.load_published, net, wrong, names, 'published X').startswith('published X: ')
        assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert parts.load_published(net, {**state, 'more': torch.zeros(1)}, names, 'published X', ignore=('more', 'absent')) is net
    assert not net.training and all((value == 2).all() for value in net.state_dict().values()), 'buffers too'


def test_costs_are_counted():
    x = torch.rand(1, 4, 10, 12)
    layer = parts.conv(4, 6)
    assert parts.macs(lambda: layer(x)) == 9 * 4 * 6 * 120
    assert parts.macs(lambda: layer(x.requires_grad_()).sum().backward()) == 3 * 9 * 4 * 6 * 120
    plain = parts.conv(64, 64)
    assert .2 < parts.efficiency(lambda: plain(torch.rand(1, 64, 128, 128)), x) < 3
    assert parts.efficiency(lambda: x * 2, x) == 0
