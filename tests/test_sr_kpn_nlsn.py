"""KPN and NLSN: parity with the published code, the same answer by another way, any size, the same at every call, clear faults."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from sr_reference import reference
from torch.nn import functional as F

from interflow.core import InterflowError, make_generator
from interflow.sr import kpn, nlsn
from interflow.sr.kpn import KPN, KPNConfig, collapse, double, filter_pixels, halve, pyramid
from interflow.sr.nlsn import (
    NLSN,
    NLSNConfig,
    bucket_count,
    full_attention,
    hash_codes,
    sparse_attention,
    unit_length,
)

NETS = {'kpn': (kpn, KPN, KPNConfig), 'nlsn': (nlsn, NLSN, NLSNConfig)}
SMALL = {'kpn': KPNConfig(channels=1, stem=5, blocks=2, hidden=6), 'nlsn': NLSNConfig(channels=8, reduction=2, blocks=4, every=2)}
SIZES = [(1, 1), (1, 9), (4, 4), (13, 22), (33, 64), (50, 31)]


def image(*shape, seed=0, dtype=torch.float32):
    "Random pixels (*shape) in [0, 1]."
    return torch.rand(shape, generator=make_generator(seed, 'image'), dtype=dtype)


def tiny(name, **changes):
    "A fresh tiny network."
    torch.manual_seed(0)
    _, network, settings = NETS[name]
    return network(replace(settings.tiny(), **changes)).eval()


def random(*shape, seed=0):
    "Normal numbers, float64."
    return torch.randn(shape, generator=make_generator(seed, 'numbers'), dtype=torch.float64)


# ---------------------------------------------------------------- the published networks

@pytest.mark.parametrize('name', NETS)
def test_published_network_gives_the_published_output(name):
    state, data = reference(name)
    module, _, settings = NETS[name]
    net = module.from_published(state)
    with torch.inference_mode():
        y = net(torch.from_numpy(data['x'])).numpy()
    assert y.shape == data['y'].shape and np.abs(y - data['y']).max() < 1e-4 * data['y'].std()
    assert net.config == settings.paper() and not net.training
    frozen = {'kpn': {entry for entry in state if 'aussian' in entry}, 'nlsn': {'sub_mean.weight', 'add_mean.weight'}}[name]
    assert {module.published_name(entry) for entry in net.state_dict()} == state.keys() - frozen


@pytest.mark.parametrize('name', NETS)
def test_published_weights_of_any_size_come_back(name):
    module, network, _ = NETS[name]
    net = network(SMALL[name]).eval()
    again = module.from_published({module.published_name(entry): value for entry, value in net.state_dict().items()})
    assert again.config == net.config and torch.equal(again(image(1, 3, 60, 61)), net(image(1, 3, 60, 61)))


@pytest.mark.parametrize('name', NETS)
def test_wrong_weights_are_told_in_one_line(name):
    module, network, _ = NETS[name]
    state = {module.published_name(entry): value for entry, value in network(SMALL[name]).state_dict().items()}
    other = {'kpn': 'nlsn', 'nlsn': 'kpn'}[name]
    faults = {'empty': {}, 'missing': {entry: value for entry, value in state.items() if entry != 'head.0.bias'}, 'unknown': {**state, 'extra.weight': torch.zeros(1)},
              'shape': {**state, 'head.0.weight': torch.zeros(7, 3, 5, 5)}, 'not finite': {**state, 'head.0.bias': torch.full_like(state['head.0.bias'], torch.nan)},
              'another network': {NETS[other][0].published_name(entry): value for entry, value in NETS[other][1](SMALL[other]).state_dict().items()},
              'no matrix': {entry: torch.zeros(()) for entry in state},
              'frozen': {**state, **({'laplacian.Gau.gaussian.weight': torch.ones(3, 1, 5, 5)} if name == 'kpn' else {'sub_mean.weight': torch.zeros(3, 3, 1, 1)})}}
    for what, wrong in faults.items():
        with pytest.raises(InterflowError) as fault:
            module.from_published(wrong)
        assert '\n' not in str(fault.value) and f'published {name.upper()} weights' in str(fault.value), what


# ---------------------------------------------------------------- what both promise

@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', NETS)
def test_any_size(name, size):
    for net in (tiny(name), NETS[name][1](SMALL[name]).eval()):
        with torch.inference_mode():
            sr = net(image(2, 3, *size))
        assert sr.shape == (2, 3, *size) and torch.isfinite(sr).all()


@pytest.mark.parametrize('name', NETS)
def test_a_batch_gives_what_single_images_give(name):
    net = tiny(name).double()
    batch = image(3, 3, 45, 66, dtype=torch.float64)
    with torch.inference_mode():
        together, alone = net(batch), torch.cat([net(one[None]) for one in batch])
    assert torch.allclose(together, alone, atol=1e-8)
    assert not torch.allclose(together[:1], net(batch[:1] * .9), atol=1e-3), 'a test of an answer that is there'


@pytest.mark.parametrize('name', NETS)
def test_the_same_at_every_call_and_in_every_copy(name):
    net, lr = tiny(name), image(1, 3, 44, 52)
    torch.manual_seed(1)
    again = NETS[name][1](net.config).eval()
    again.load_state_dict(net.state_dict())
    with torch.inference_mode():
        first = net(lr)
        torch.manual_seed(2)
        assert torch.equal(net(lr), first) and torch.equal(again(lr), first)


@pytest.mark.parametrize('size', [(24, 20), (45, 66)])
@pytest.mark.parametrize('name', NETS)
def test_export(name, size):
    net, lr = tiny(name), image(1, 3, *size)
    with torch.no_grad():
        exported = torch.export.export(net, (lr,)).module()
        assert (exported(lr) - net(lr)).abs().max() < 1e-4


@pytest.mark.parametrize('size', [(24, 20), (45, 66)])
@pytest.mark.parametrize('name', NETS)
def test_gradients_reach_every_parameter(name, size):
    net = tiny(name).train()
    F.l1_loss(net(image(2, 3, *size)), image(2, 3, *size, seed=1)).backward()
    asleep = [entry for entry, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.abs().max() > 0]
    assert not asleep


@pytest.mark.parametrize('name', NETS)
def test_fresh_tiny_begins_near_its_input(name):
    lr = F.interpolate(image(1, 3, 8, 8), (48, 48), mode='bicubic').clamp(0, 1)
    with torch.inference_mode():
        assert (tiny(name)(lr) - lr).abs().mean() < .1


@pytest.mark.parametrize('name', NETS)
def test_half_precision(name):
    net, lr = tiny(name), image(1, 3, 44, 52)
    with torch.inference_mode():
        exact = net(lr)
        with torch.autocast('cpu', torch.bfloat16):
            mixed = net(lr)
        half = net.bfloat16()(lr.bfloat16())
    assert mixed.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert all((other.float() - exact).abs().mean() < .02 for other in (mixed, half))


@pytest.mark.parametrize('name', NETS)
def test_faults(name):
    _, _, settings = NETS[name]
    net = tiny(name)
    wrong = [lambda: net(image(3, 8, 8)), lambda: net(image(1, 1, 8, 8)), lambda: net(image(1, 3, 0, 8)), lambda: settings(blocks=0), lambda: settings(channels=-4)]
    if name == 'nlsn':
        wrong += [lambda: settings(channels=30), lambda: settings(chunk=0), lambda: settings(rounds=0)]
    for call in wrong:
        with pytest.raises(InterflowError) as fault:
            call()
        assert '\n' not in str(fault.value)


# ---------------------------------------------------------------- KPN: filters and pyramid

def test_filtering_is_the_loop_over_pixels():
    pixels, kernels = random(2, 3, 6, 7), random(2, 75, 6, 7, seed=1)
    padded, taps = F.pad(pixels, (2, 2, 2, 2)), kernels.view(2, 5, 5, 3, 6, 7)
    loops = torch.stack([torch.stack([(padded[:, :, y:y + 5, x:x + 5] * taps[..., y, x].permute(0, 3, 1, 2)).sum((2, 3)) for x in range(7)], -1) for y in range(6)], -2)
    assert torch.allclose(filter_pixels(pixels, kernels), loops)


def test_pyramid_is_the_binomial_one_and_loses_nothing():
    pixels = random(2, 3, 20, 28)
    taps = pixels.new_tensor([1, 4, 6, 4, 1]) / 16
    blur = torch.outer(taps, taps).expand(3, 1, 5, 5)
    assert torch.allclose(halve(pixels), F.conv2d(pixels, blur, padding=2, stride=2, groups=3))
    assert torch.allclose(double(pixels), F.conv_transpose2d(pixels, 4 * blur, stride=2, padding=2, output_padding=1, groups=3))
    levels = pyramid(pixels)
    assert [tuple(level.shape[-2:]) for level in levels] == [(20, 28), (10, 14), (5, 7)] and torch.allclose(collapse(levels), pixels)


def test_the_residual_of_kpn_is_one_in_every_middle_tap():
    net = tiny('kpn').double()
    other = tiny('kpn', global_residual=False).double()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        for branch in other.branches:
            branch[-1].bias[36:39] += 1
        assert torch.allclose(net(image(1, 3, 14, 17, dtype=torch.float64)), other(image(1, 3, 14, 17, dtype=torch.float64)))


# ---------------------------------------------------------------- NLSN: sparse attention

def shown(code, chunk):
    "How often each position is shown each in one round, by loops: codes (L,) -> (L, L)."
    length = len(code)
    order = sorted(range(length), key=lambda position: (int(code[position]), position))
    whole = order + order[length - -length % chunk:]
    chunks = [whole[i:i + chunk] for i in range(0, len(whole), chunk)]
    counts = torch.zeros(length, length, dtype=torch.float64)
    for number, position in enumerate(order):
        here = number // chunk
        for there in (here, here - 1, (here + 1) % len(chunks)):
            for other in chunks[there]:
                counts[position, other] += 1
    return counts


@pytest.mark.parametrize('length, chunk', [(60, 10), (61, 10), (69, 10), (11, 10), (20, 10), (10, 10), (37, 36)])
def test_sparse_attention_is_the_full_one_with_counts(length, chunk):
    match, assembly = 2 * random(2, length, 6), random(2, length, 5, seed=1)
    codes = hash_codes(match, random(6, 3, bucket_count(length, chunk) // 2, seed=2))
    counts = torch.stack([sum(shown(code, chunk) for code in each) for each in codes])
    plain = (match @ unit_length(match).mT + counts.log()).softmax(-1) @ assembly
    assert torch.allclose(sparse_attention(match, assembly, codes, chunk), plain, atol=1e-12)
    assert length <= 2 * chunk or not torch.allclose(full_attention(match, assembly), plain, atol=1e-3)


def test_hash_is_that_of_the_directions():
    match, rotations = random(2, 50, 6), random(6, 3, 4, seed=1)
    codes = hash_codes(match, rotations)
    assert codes.shape == (2, 3, 50) and codes.min() >= 0 and codes.max() <= 7 and len(codes.unique()) == 8
    assert torch.equal(hash_codes(7 * match, rotations), codes) and torch.equal(hash_codes(-match, rotations), (codes + 4) % 8)
    by_hand = [max(range(8), key=lambda bucket: (1 if bucket < 4 else -1) * float(match[0, 9] @ rotations[:, r, bucket % 4])) for r in range(3)]
    assert codes[0, :, 9].tolist() == by_hand


def test_buckets_are_those_of_the_paper():
    published = lambda length: min(length // 144 + (length // 144) % 2, 128)
    assert all(bucket_count(length, 144) == published(length) for length in range(144, 40000, 7)) and bucket_count(1, 144) == 2


def test_a_network_smaller_than_a_chunk_is_full_attention():
    "One chunk sees itself three times a round, which is the same as once."
    net = NLSN(SMALL['nlsn']).double().eval()
    attention, x = net.body[0], random(1, 8, 9, 11)
    match, assembly = (layer(x).flatten(2).mT for layer in (attention.match, attention.assembly))
    chunked = sparse_attention(match, assembly, attention.codes(match), match.shape[1])
    assert torch.allclose(x + .1 * chunked.mT.unflatten(-1, (9, 11)), attention(x))


def test_other_seeds_are_other_rotations_of_the_same_network():
    lr, nets = image(1, 3, 60, 60), [tiny('nlsn', seed=seed) for seed in (0, 1)]
    assert not any('rotations' in entry for entry in nets[0].state_dict())
    nets[1].load_state_dict(nets[0].state_dict())
    with torch.inference_mode():
        one, other = (net(lr) for net in nets)
    assert not torch.equal(one, other) and (one - other).abs().mean() < .05
    drawn = [layer.rotations for layer in nets[0].body if hasattr(layer, 'rotations')]
    assert len(drawn) == 3 and not torch.equal(drawn[0], drawn[1]), 'each attention has its own'
