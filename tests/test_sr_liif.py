"""LIIF and MetaSR: parity with the published code, the same answer by another way, any size, clear faults."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from sr_reference import reference
from torch import nn
from torch.nn import functional as F

from interflow.core import InterflowError, make_generator
from interflow.sr import liif, metasr
from interflow.sr.encoders import EncoderConfig, build_encoder
from interflow.sr.liif import LIIF, LIIFConfig, neighbours, sample_queries
from interflow.sr.metasr import MetaSR, MetaSRConfig
from interflow.sr.parts import pixel_centres

KINDS = ('edsr_baseline', 'rdn')
NETS = {'liif': (liif, LIIF, LIIFConfig), 'metasr': (metasr, MetaSR, MetaSRConfig)}
EACH = [(name, kind) for name in NETS for kind in KINDS]


def image(*shape, seed=0):
    "Random pixels (*shape) in [0, 1]."
    return torch.rand(shape, generator=make_generator(seed, 'image'))


def lively(name, kind='edsr_baseline', size='tiny', residual=None):
    "A network of random weights, its last layer as large as the others, so that no mistake hides behind a small one."
    torch.manual_seed(0)
    _, network, settings = NETS[name]
    config = getattr(settings, size)(kind)
    net = network(config if residual is None else replace(config, global_residual=residual)).eval()
    last = net.rest[-1] if name == 'liif' else net.second
    nn.init.normal_(last.weight, std=.3)
    return net


# ---------------------------------------------------------------- the published networks

@pytest.mark.parametrize('name, kind', EACH)
def test_published_network_gives_the_published_output(name, kind):
    state, data = reference(f'{name}_{kind}')
    module, _, settings = NETS[name]
    net = module.from_published(state)
    with torch.inference_mode():
        y = net(torch.from_numpy(data['x']), size=tuple(data['target'].tolist()))
    assert np.abs(y.numpy() - data['y']).max() < 1e-4 * data['y'].std()
    assert net.config == settings.paper(kind) and not net.training
    used = set(module.published_names(net).values())
    assert used == {entry for entry in state if '_mean.' not in entry} and set(module.published_names(net)) == set(net.state_dict())


@pytest.mark.parametrize('name', NETS)
def test_published_weights_of_any_size_come_back(name):
    module, network, settings = NETS[name]
    for kind in KINDS:
        small = EncoderConfig(kind, channels=6, blocks=2, convs=3, growth=4)
        net = network(settings(small, hidden=10) if name == 'metasr' else settings(small, hidden=10, layers=3))
        state = {theirs: net.state_dict()[ours] for ours, theirs in module.published_names(net).items()}
        again = module.from_published(state)
        assert again.config.encoder.kind == kind and again.config.hidden == 10
        assert torch.equal(again(image(1, 3, 5, 7), (9, 9)), net(image(1, 3, 5, 7), (9, 9)))


@pytest.mark.parametrize('name, kind', EACH)
def test_published_faults(name, kind):
    state, _ = reference(f'{name}_{kind}')
    other, _ = reference('vdsr')
    module, first = NETS[name][0], next(entry for entry in state if entry.endswith('.weight') and 'mean' not in entry)
    faults = {'missing': {entry: value for entry, value in state.items() if entry != 'imnet.layers.2.bias'}, 'unknown': {**state, 'extra.weight': torch.zeros(1)},
              'shape': {**state, first: torch.zeros(64, 3, 5, 5)}, 'not finite': {**state, 'imnet.layers.0.bias': torch.full((256,), torch.nan)},
              'another network': other, 'encoder alone': {entry: value for entry, value in state.items() if entry.startswith('encoder')}, 'empty': {},
              'the other kind': reference(f'{"metasr" if name == "liif" else "liif"}_{kind}')[0], 'no matrix': {**state, 'imnet.layers.0.weight': torch.zeros(3)}}
    for what, wrong in faults.items():
        with pytest.raises(InterflowError) as fault:
            module.from_published(wrong)
        assert '\n' not in str(fault.value) and 'weights' in str(fault.value), what


# ---------------------------------------------------------------- the same answer by another way

def naive_liif(net, lr, coord, cell):
    "LIIF as it is written down: unfolded features are gathered at four neighbours, and the whole network runs on each. float64."
    net, lr, coord, cell = net.double(), lr.double(), coord.double(), cell.double()
    h, w = lr.shape[-2:]
    feature = F.unfold(net.encoder(liif.centred(lr) if net.config.global_residual else lr), 3, padding=1).unflatten(2, (h, w))
    y, x = ((2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1 for count in (h, w))
    colours, areas = [], []
    for up in (-1, 1):
        for left in (-1, 1):
            there = (coord + torch.tensor([up / h, left / w]) + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
            pick = F.grid_sample(feature, there.flip(-1)[:, None], mode='nearest', align_corners=False)[:, :, 0].transpose(1, 2)
            centre = torch.stack([y[((there[..., 0] + 1) * h / 2).long()], x[((there[..., 1] + 1) * w / 2).long()]], -1)
            offset = (coord - centre) * torch.tensor([h, w])
            hidden = net.first(torch.cat([pick, offset, cell * torch.tensor([h, w])], -1))
            colours.append(net.rest(hidden))
            areas.append(offset.prod(-1).abs() + 1e-9)
    shares = [area / sum(areas) for area in areas[::-1]]      # of the opposite rectangle
    out = sum(colour * share[..., None] for colour, share in zip(colours, shares))
    return out + (liif.resample(lr, coord) if net.config.global_residual else 0)


def naive_metasr(net, lr, coord, cell):
    "MetaSR as it is written down: a matrix of 9C x 3 weights is predicted for each query. float64."
    net, lr, coord, cell = net.double(), lr.double(), coord.double(), cell.double()
    size = torch.tensor(lr.shape[-2:])
    feature = F.unfold(net.encoder(liif.centred(lr) if net.config.global_residual else lr), 3, padding=1).unflatten(2, tuple(size))
    corner = coord - cell / 2
    there = (corner + 1e-6).clamp(-1 + 1e-6, 1 - 1e-6)
    pick = F.grid_sample(feature, there.flip(-1)[:, None], mode='nearest', align_corners=False)[:, :, 0].transpose(1, 2)
    upper_left = 2 * ((there + 1) * size / 2).floor() / size - 1
    place = torch.cat([(corner - upper_left) * size / 2, cell[..., :1] * size[0] / 2], -1)
    weights = net.second(F.relu(net.first(place))).unflatten(-1, (-1, 3))
    out = (pick[..., None, :] @ weights)[..., 0, :]
    return out + (liif.resample(lr, coord) if net.config.global_residual else 0)


NAIVE = {'liif': naive_liif, 'metasr': naive_metasr}


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('name, kind', EACH)
def test_a_query_is_the_naive_form(name, kind, residual):
    net, lr, random = lively(name, kind, residual=residual), image(2, 3, 7, 9), make_generator(1)
    scattered = torch.rand(2, 300, 2, generator=random) * 2 - 1
    tall = torch.rand(2, 300, 2, generator=random) * .3 + .01
    grids = [pixel_centres(*size, lr).reshape(1, -1, 2).expand(2, -1, -1) for size in ((14, 28), (9, 11), (3, 4))]
    cells = [tall, *[grid.new_tensor((2 / height, 2 / width)).expand_as(grid) for grid, (height, width) in zip(grids, ((14, 28), (9, 11), (3, 4)))]]
    with torch.inference_mode():
        ours = [net.query(net.encode(lr), coord, cell) for coord, cell in zip((scattered, *grids), cells)]
        naive = [NAIVE[name](net, lr, coord, cell) for coord, cell in zip((scattered, *grids), cells)]
    for i, (one, other) in enumerate(zip(ours, naive)):
        assert (one - other).abs().max() < 1e-4 * other.std(), i
        assert other.std() > .03, 'a test of an answer that is there'


@pytest.mark.parametrize('name', NETS)
def test_chunks_change_nothing(name):
    net, lr = lively(name), image(2, 3, 6, 5)
    with torch.inference_mode():
        whole, parts, ones = (net(lr, (13, 11), chunk) for chunk in (10 ** 6, 34, 1))
    assert torch.allclose(whole, parts, atol=1e-5) and torch.allclose(whole, ones, atol=1e-5)


@pytest.mark.parametrize('name', NETS)
def test_one_encoding_serves_all_sizes_and_images_do_not_mix(name):
    net, lr = lively(name), image(3, 3, 6, 8)
    with torch.inference_mode():
        feature = net.encode(lr)
        for size in ((6, 8), (15, 10)):
            assert torch.equal(liif.render(net.query, feature, size), net(lr, size))
            alone = torch.cat([net(one[None], size) for one in lr])
            assert torch.allclose(net(lr, size), alone, atol=1e-5)
            assert torch.equal(net(lr, size), liif.render(net.query, net.encode(lr), torch.Size(size)))
        assert torch.equal(net(lr), net(lr, (6, 8)))


def test_the_ensemble_is_continuous_where_the_nearest_is_not():
    net, lr = lively('liif', residual=False), image(1, 3, 6, 6)
    lines = torch.linspace(-.9, .9, 4001)
    coord = torch.stack([torch.full_like(lines, .123), lines], -1)[None]
    with torch.inference_mode():
        feature = net.encode(lr)
        steps = net.query(feature, coord, torch.full_like(coord, .1)).diff(dim=1).abs()
        meta = lively('metasr', residual=False)
        jumps = meta.query(meta.encode(lr), coord, torch.full_like(coord, .1)).diff(dim=1).abs()
    assert steps.max() < 30 * steps.median() and jumps.max() > 100 * jumps.median()


def test_the_border_has_no_seam_of_its_own():
    """At odd factors a row and a column of pixels lie on the centres of the last cells, where the published areas are all zero up to rounding.
    Ours are what they are next to it."""
    net, lr = lively('liif', residual=False), image(1, 3, 7, 9)
    coord = pixel_centres(21, 27, lr).reshape(1, -1, 2)
    cell = coord.new_tensor((2 / 21, 2 / 27)).expand_as(coord)
    with torch.inference_mode():
        ours = net.query(net.encode(lr), coord, cell)
        beside = naive_liif(net, lr, coord.double() * (1 - 1e-5), cell)
    assert (ours - beside).abs().max() < 1e-3 * beside.std()


def test_shares_of_the_neighbours():
    size = torch.tensor((5., 8.))
    coord = torch.rand(1, 500, 2, generator=make_generator(0)) * 2 - 1
    index, offset, weight = neighbours(coord, size)
    assert torch.allclose(weight.sum(1), torch.ones(1, 500), atol=1e-5) and weight.min() >= 0
    assert ((index >= 0) & (index < size.long())).all() and offset.abs().max() <= 2 + 1e-4
    centres = pixel_centres(5, 8, coord).reshape(1, -1, 2)
    index, _, weight = neighbours(centres, size)
    own = (index == torch.stack(torch.meshgrid(torch.arange(5), torch.arange(8), indexing='ij'), -1).reshape(1, 1, -1, 2)).all(-1)
    assert (weight * own).sum(1).min() > .999, 'at a cell centre that cell alone answers'


# ---------------------------------------------------------------- sizes, devices' habits, training

@pytest.mark.parametrize('size', [(1, 1), (1, 7), (5, 3), (16, 33)])
@pytest.mark.parametrize('name, kind', EACH)
def test_any_size_to_any_size(name, kind, size):
    net = lively(name, kind)
    for target in ((1, 1), (3, 2), (7, 50), size):
        with torch.inference_mode():
            sr = net(image(1, 3, *size), target)
        assert sr.shape == (1, 3, *target) and torch.isfinite(sr).all() and sr.is_contiguous()


def test_fresh_tiny_begins_near_its_input():
    lr = F.interpolate(image(1, 3, 6, 6), (24, 24), mode='bicubic').clamp(0, 1)
    for name, kind in EACH:
        torch.manual_seed(0)
        net = NETS[name][1](NETS[name][2].tiny(kind)).eval()
        with torch.inference_mode():
            assert (net(lr) - lr).abs().mean() < .1, (name, kind)


@pytest.mark.parametrize('name', NETS)
def test_faults(name):
    module, network, settings = NETS[name]
    net = lively(name)
    wrong = [lambda: net(image(3, 8, 8), (9, 9)), lambda: net(image(1, 1, 8, 8), (9, 9)), lambda: settings(hidden=0), lambda: settings.paper('vgg'),
             lambda: EncoderConfig(channels=0), *[lambda size=size: net(image(1, 3, 4, 4), size) for size in ((0, 4), (4,), 'no', 7, (2.5, 3), (-1, 2))],
             lambda: sample_queries(image(3, 4, 4), 17, make_generator(0)), lambda: sample_queries(image(3, 4, 4), 0, make_generator(0))]
    for call in wrong:
        with pytest.raises(InterflowError) as fault:
            call()
        assert '\n' not in str(fault.value)


@pytest.mark.parametrize('name, kind', EACH)
def test_gradients_reach_every_parameter(name, kind):
    torch.manual_seed(0)
    net = NETS[name][1](NETS[name][2].tiny(kind))
    coord, cell, rgb = sample_queries(image(2, 3, 20, 20), 200, make_generator(0))
    F.l1_loss(net.query(net.encode(image(2, 3, 10, 10, seed=1)), coord, cell), rgb).backward()
    asleep = [entry for entry, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.abs().max() > 0]
    assert not asleep


@pytest.mark.parametrize('name, kind', EACH)
def test_export(name, kind):
    net, lr = lively(name, kind), image(1, 3, 9, 12)
    with torch.no_grad():
        exported = torch.export.export(net, (lr, (20, 31))).module()
        assert (exported(lr, (20, 31)) - net(lr, (20, 31))).abs().max() < 1e-4


@pytest.mark.parametrize('name', NETS)
def test_half_precision_still_finds_its_pixels(name):
    net, lr = lively(name), image(1, 3, 12, 12)
    with torch.inference_mode():
        exact = net(lr, (300, 31))
        with torch.autocast('cpu', torch.bfloat16):
            mixed = net(lr, (300, 31))
        half = net.bfloat16()(lr.bfloat16(), (300, 31))
    assert mixed.dtype == torch.float32 and half.dtype == torch.bfloat16
    for other in (mixed, half):
        assert (other.float() - exact).abs().mean() < .05 * exact.std()


def test_settings_survive_a_file():
    for _, _, settings in NETS.values():
        config = settings.tiny('rdn')
        assert type(config)(**{**config.__dict__, 'encoder': dict(config.encoder.__dict__)}) == config


def test_encoders_do_not_know_where_they_are():
    "What a feature holds depends on its surroundings alone: the crop of the features is the feature of the crop, up to the convolutions' reach."
    for kind, reach in (('edsr_baseline', 10), ('rdn', 12)):
        torch.manual_seed(0)
        encoder, lr = build_encoder(EncoderConfig.tiny(kind)), image(1, 3, 40, 40)
        with torch.inference_mode():
            whole, cut = encoder(lr)[..., 3:, 3:], encoder(lr[..., 3:, 3:])
        assert whole.shape[1] == 32
        assert torch.allclose(whole[..., reach:, reach:], cut[..., reach:, reach:], atol=1e-6) and not torch.allclose(whole, cut, atol=1e-6), kind


@pytest.mark.parametrize('residual', [False, True])
def test_what_both_share_is_asked_for_once(residual):
    "A table and its colours make a network; the residual and the dtype come from `AnySize`."
    class Constant(liif.AnySize):
        def table(self, feature):
            return feature

        def colours(self, encoded, coord, cell):
            assert encoded.table.shape == (1, 5, 7, 32) and cell.shape == coord.shape
            return coord.new_full((*coord.shape[:2], 3), .25)

    net, lr = Constant(replace(LIIFConfig.tiny(), global_residual=residual)), image(1, 3, 5, 7)
    with torch.inference_mode():
        sr, half = net(lr, (9, 8)), net.bfloat16()(lr.bfloat16(), (9, 8))
    coord = pixel_centres(9, 8, lr).reshape(1, -1, 2)
    wanted = .25 + residual * liif.resample(lr, coord).transpose(1, 2).unflatten(2, (9, 8))
    assert torch.allclose(sr, wanted, atol=1e-6) and half.dtype == torch.bfloat16
    with pytest.raises(NotImplementedError):
        liif.AnySize(LIIFConfig.tiny())(lr)


# ---------------------------------------------------------------- samples to train on

def test_sampled_queries_are_pixels():
    hr = image(2, 3, 11, 13)
    coord, cell, rgb = sample_queries(hr, 100, make_generator(3))
    assert coord.shape == cell.shape == (2, 100, 2) and rgb.shape == (2, 100, 3)
    assert torch.allclose(F.grid_sample(hr, coord.flip(-1)[:, None], mode='nearest', align_corners=False)[:, :, 0].transpose(1, 2), rgb)
    assert torch.allclose(cell, torch.tensor((2 / 11, 2 / 13)).expand_as(cell))
    assert all(len({tuple(row) for row in one.tolist()}) == 100 for one in coord), 'no pixel twice'
    assert not torch.equal(coord[0], coord[1]), 'others in each image'
    again = sample_queries(hr, 100, make_generator(3))
    assert all(torch.equal(one, other) for one, other in zip((coord, cell, rgb), again))
    single = sample_queries(hr[0], 143, make_generator(3))
    assert [tuple(each.shape) for each in single] == [(143, 2), (143, 2), (143, 3)]
    assert torch.allclose(single[2].mean(0), hr[0].mean((1, 2)), atol=1e-6), 'all pixels asked for: each once'
