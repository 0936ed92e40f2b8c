"""Training SR networks: repeatable batches, images made meanwhile, all ten, exact resumption."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from interflow.core import InterflowError, make_generator, read_image, write_image
from interflow.data import Scene, read_set
from interflow.generation import generate_scene
from interflow.model import InterFlow, InterFlowConfig
from interflow.paths import NEEDS
from interflow.sr.evaluation import evaluate, summarise
from interflow.sr.liif import resample
from interflow.sr.networks import VARIANTS, arbitrary, load_network, network_config
from interflow.sr.rcan import RCANConfig
from interflow.sr.training import (
    ARBITRARY_PRESETS,
    SR_PRESETS,
    FlowSource,
    Source,
    SRBatches,
    read_pairs,
    sr_preset,
    train_sr,
)

SMALL = RCANConfig(channels=8, groups=2, blocks=2, reduction=2, global_residual=True)
QUICK = replace(SR_PRESETS['tiny'], steps=6, batch_size=2, patch=16, warmup=2, save_every=3)


def make_pairs(folder, height=24, width=32, factors=((2.1, .3), (3.75, .6))):
    "Three scenes in the simulated layout: smooth HR images, LR images blurred at two factors."
    for i in range(3):
        hr = nn.functional.interpolate(torch.rand(1, 3, 12, 16,
                                                  generator=make_generator(i, 'scene')),
                                       size=(height, width), mode='bilinear')[0]
        for factor, weight in factors:
            write_image(folder / f'x{factor}' / f's{i}.png', (1 - weight) * hr
                        + weight * hr.roll(1, -1))
        write_image(folder / 'HR' / f's{i}.png', hr)
    return read_set(folder)


@pytest.fixture
def pairs(tmp_path):
    return make_pairs(tmp_path / 'set')


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "The same, large enough for crops of 3.75 times an input patch."
    return make_pairs(tmp_path_factory.mktemp('large'), 58, 70)


@pytest.fixture(scope='module')
def flow():
    "A flow that was not trained but looks at its scene."
    model = InterFlow(InterFlowConfig.tiny(), make_generator(0, 'flow')).eval()
    with torch.no_grad():
        for name, weight in model.flow.named_parameters():
            weight.add_(.03 * torch.randn(weight.shape, generator=make_generator(0, name)))
        model.prior.roots.add_(.03 * torch.randn(model.prior.roots.shape,
                                                 generator=make_generator(0, 'roots')))
    return model


# ---------------------------------------------------------------- batches and training

def test_batches_are_a_function_of_seed_and_step(pairs):
    first, second = (SRBatches([Source(pairs)], 16, 4, seed=3) for _ in range(2))
    for step in (5, 0, 5):
        assert torch.equal(first(step)['lr'], second(step)['lr'])
        assert torch.equal(first(step)['hr'], second(step)['hr'])
    assert not torch.equal(first(0)['hr'], first(1)['hr'])
    assert not torch.equal(first(0)['hr'], SRBatches([Source(pairs)], 16, 4, seed=4)(0)['hr'])


def test_sets_of_equal_shape_are_cropped_alike(pairs):
    low, high = (SRBatches([Source(pairs, (factor,))], 16, 4) for factor in (2.1, 3.75))
    assert torch.equal(low(9)['hr'], high(9)['hr']) and not torch.equal(low(9)['lr'], high(9)['lr'])


def test_lr_crops_are_taken_where_hr_crops_are(pairs):
    "LR images that equal their HR images give equal crops, through all flips and transpositions."
    same = [Scene(scene.name, scene.hr, {2.1: scene.hr, 3.75: scene.hr}) for scene in pairs]
    batches = SRBatches([Source(same)], 16, 4)
    assert all(torch.equal(batch['lr'], batch['hr']) for batch in map(batches, range(20)))


def test_sources_and_factors_are_drawn_by_weight(pairs, tmp_path):
    flat = {level: Scene('flat', tmp_path / f'{level}.png', {3.: tmp_path / f'{level}.png'})
            for level in (0, 1)}
    for level in flat:
        write_image(tmp_path / f'{level}.png', torch.full((3, 24, 24), float(level)))
    batches = SRBatches([Source([flat[0]], weight=1), Source([flat[1]] * 5, weight=4)], 8, 50)
    share = torch.stack([batches(step)['hr'].mean() for step in range(40)]).mean().item()
    assert share == pytest.approx(.8, abs=.03)
    mixed = Scene('mixed', flat[0].hr, {2.1: flat[0].hr, 3.: flat[1].hr})
    share = torch.stack([SRBatches([Source([mixed])], 8, 50)(step)['lr'].mean()
                         for step in range(20)]).mean().item()
    assert share == pytest.approx(.5, abs=.05)


def test_bad_sources_are_refused_before_training(pairs, tmp_path):
    write_image(tmp_path / 'narrow.png', torch.rand(3, 24, 20))
    cut = tmp_path / 'cut.png'
    cut.write_bytes(pairs[0].hr.read_bytes()[:100])
    def train(sources, config=QUICK):
        train_sr(sources, tmp_path / 'run', SMALL, config, 'cpu')
    bad = {'no sources': lambda: train([]), 'no scenes': lambda: Source([]),
           'weight': lambda: Source(pairs, weight=0),
           'factor': lambda: train([Source(pairs, (3.,))]),
           'patch': lambda: train([Source(pairs)], replace(QUICK, patch=25)),
           'size': lambda: train([Source([replace(pairs[0], lr={2.1: tmp_path / 'narrow.png'})])]),
           'cut': lambda: train([Source([replace(pairs[0], lr={2.1: cut})])])}
    for name, action in bad.items():
        with pytest.raises(InterflowError) as fault:
            action()
        assert '\n' not in str(fault.value), name
    assert not (tmp_path / 'run').exists()


def test_training_is_repeatable_saved_and_resumed_exactly(pairs, tmp_path, monkeypatch):
    before = torch.get_rng_state()
    net, history = train_sr([Source(pairs)], tmp_path / 'whole', SMALL, QUICK, 'cpu')
    assert torch.equal(before, torch.get_rng_state()), "the caller's randomness is left alone"
    assert [row['step'] for row in history] == list(range(6))
    assert all(math.isfinite(row['loss']) for row in history)
    saved = load_network(tmp_path / 'whole' / 'model')
    assert saved.factors == (2.1, 3.75)
    saved = saved.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())

    original = SRBatches.__call__
    def dies(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return original(self, step)
    monkeypatch.setattr(SRBatches, '__call__', dies)
    with pytest.raises(KeyboardInterrupt):
        train_sr([Source(pairs)], tmp_path / 'killed', SMALL, QUICK, 'cpu')
    assert not (tmp_path / 'killed' / 'model').exists()
    monkeypatch.setattr(SRBatches, '__call__', original)
    resumed, _ = train_sr([Source(pairs)], tmp_path / 'killed', SMALL, QUICK, 'cpu')
    assert all(torch.equal(value, resumed.state_dict()[name]) for name,
               value in net.state_dict().items())


def test_a_run_with_other_images_is_not_resumed(pairs, tmp_path):
    train_sr([Source(pairs)], tmp_path / 'run', SMALL, QUICK, 'cpu')
    write_image(pairs[0].lr[2.1], torch.rand(3, 24, 32))        # the same names, other pixels
    with pytest.raises(InterflowError):
        train_sr([Source(pairs)], tmp_path / 'run', SMALL, QUICK, 'cpu')


def test_training_improves_on_the_input(pairs, tmp_path):
    dull = []
    for scene in pairs:
        path = tmp_path / 'dull' / f'{scene.name}.png'
        write_image(path, .6 * read_image(scene.hr) + .1)
        dull.append(replace(scene, lr={3.: path}))
    config = replace(QUICK, steps=150, batch_size=4, learning_rate=3e-3, warmup=5)
    net, _ = train_sr([Source(dull)], tmp_path / 'run', SMALL, config, 'cpu')
    means = {row['network']: row['psnr_y']
             for row in summarise(evaluate({'net': net}, dull, (3.,)))}
    assert means['net'] > means['bicubic'] + 3, 'a loss of contrast is learned at once'


# ---------------------------------------------------------------- networks of arbitrary scale

def test_queries_lie_where_the_reduced_image_says(tmp_path):
    "Smooth LR = HR: the reduced image has the colours where the queries are, not beside it."
    for i in range(2):
        values = torch.rand(1, 3, 4, 5, generator=make_generator(i, 'smooth'))
        smooth = nn.functional.interpolate(values, size=(58, 70), mode='bicubic')[0]
        write_image(tmp_path / f'{i}.png', smooth)
    batches = SRBatches([Source([Scene(str(i), tmp_path / f'{i}.png',
                                       dict.fromkeys((2.1, 3.75), tmp_path / f'{i}.png'))
                                 for i in range(2)])], 14, 6, queries=True)
    for step in range(3):
        batch = batches(step)
        assert {name: tuple(value.shape) for name, value in batch.items()} == {
            'lr': (6, 3, 14, 14), 'coord': (6, 196, 2), 'cell': (6, 196, 2), 'colour': (6, 196, 3)}
        places = batch['coord'], batch['coord'] + 1 / 14
        there, beside = ((resample(batch['lr'], place) - batch['colour']).abs().mean()
                         for place in places)
        assert there < .006 and beside > 3 * there
        assert torch.equal(batch['coord'], batches(step)['coord'])
        assert torch.equal(batch['lr'], batches(step)['lr'])
    sides = {round(2 / cell) for step in range(4)
             for cell in batches(step)['cell'][:, 0, 0].tolist()}
    assert sides == {round(14 * 2.1), round(14 * 3.75)}, "each sample's own factor"


def test_presets_are_the_papers():
    fixed, free = SR_PRESETS['paper'], ARBITRARY_PRESETS['paper']
    assert (fixed.steps, fixed.patch, fixed.batch_size) == (70_000, 128, 16)
    assert (free.steps, free.patch ** 2, free.batch_size) == (200_000, 2304, 16)
    assert fixed.learning_rate == free.learning_rate == 1e-4
    rates = [fixed.rate(int(70_000 * part)) for part in (.49, .5, .75, .875)]
    assert rates == [1, .5, .25, .125]
    assert sr_preset('liif_rdn') is ARBITRARY_PRESETS['paper']
    assert sr_preset('kpn', 'tiny') is SR_PRESETS['tiny']
    with pytest.raises(InterflowError):
        sr_preset('kpn', 'huge')


# ---------------------------------------------------------------- images made while training

@pytest.mark.parametrize('path', ['linear', 'transport'])
def test_a_flow_makes_the_crops_that_it_would_have_written(flow, tmp_path, path):
    "Where nothing is random, crops made while training are crops of whole images, to a rounding."
    made = []
    # no multiples of 4, and larger than what the flow sees of it
    large = make_pairs(tmp_path / 'set', 122, 141)
    for scene in large[:2]:
        lr = {factor: read_image(path) for factor, path in scene.lr.items()}
        write_image(tmp_path / f'{scene.name}.png',
                    next(generate_scene(flow, read_image(scene.hr), lr, (2.7,), path, band=False)))
        made.append(replace(scene, lr={2.7: tmp_path / f'{scene.name}.png'}))
    for queries, patch in ((False, 30), (True, 11)):
        live = SRBatches([FlowSource(flow, large[:2], path, (2.7,), margin=24, band=False)], patch,
                         5, seed=1, queries=queries)
        disk = SRBatches([Source(made)], patch, 5, seed=1, queries=queries)
        for step in range(3):
            ours, theirs = live(step), disk(step)
            assert torch.equal(ours['colour' if queries else 'hr'],
                               theirs['colour' if queries else 'hr']), 'the same places'
            assert (ours['lr'] - theirs['lr']).abs().max() < 1.5 / 255


@pytest.mark.parametrize('path', NEEDS)
def test_made_images_are_a_function_of_seed_and_step(large, flow, path):
    def batches(seed=2, **settings):
        return SRBatches([Source(large), FlowSource(flow, large, path, **settings)], 16, 4, seed)
    for step in (3, 0, 3):
        assert torch.equal(batches()(step)['lr'], batches()(step)['lr'])
    assert not torch.equal(batches()(3)['lr'], batches(seed=5)(3)['lr'])
    assert all(torch.isfinite(batches()(step)['lr']).all() for step in range(3))


def test_no_noise_is_made_twice(flow, tmp_path):
    "An image of the patch's size has one crop, in eight orientations: its LR images must differ."
    (scene, *_) = make_pairs(tmp_path, 16, 16)
    batches, seen = SRBatches([FlowSource(flow, [scene], factors=(3.,))], 16, 2), {}
    for step in range(8):
        for hr, lr in zip(*batches(step).values()):
            seen.setdefault(hr.numpy().tobytes(), []).append(lr.numpy().tobytes())
    assert any(len(images) > 1 for images in seen.values())
    assert all(len(set(images)) == len(images) for images in seen.values())


def test_factors_are_drawn_from_a_list_or_a_span(large, flow):
    random = np.random.default_rng(0)
    listed = FlowSource(flow, large, factors=(2.5, 3.))
    spanned = FlowSource(flow, large, span=(2.2, 2.6))
    all_ = FlowSource(flow, large)
    assert {listed.draw(random) for _ in range(50)} == {2.5, 3.} and listed.range() == [2.5, 3.]
    drawn = [spanned.draw(random) for _ in range(500)]
    assert 2.2 <= min(drawn) < 2.21 and 2.59 < max(drawn) <= 2.6 and abs(np.mean(drawn) - 2.4) < .02
    assert all_.span == (2.1, 3.75)
    warm, cold = (SRBatches([FlowSource(flow, large, temperature=t)], 16, 4)(0)['lr']
                  for t in (1., 0.))
    assert warm.std() > cold.std(), 'the temperature is used'


def test_bad_flow_sources_are_refused(large, flow, tmp_path):
    lacking = [replace(large[0], lr={2.1: large[0].lr[2.1]})]
    bare = [replace(large[0], lr={})]
    for wrong in (lambda: FlowSource(flow, large, 'winding'),
                  lambda: FlowSource(flow, [], 'sample'),
                  lambda: FlowSource(flow, large, factors=(4.,)),
                  lambda: FlowSource(flow, large, span=(2., 3.)),
                  lambda: FlowSource(flow, large, factors=(3.,), span=(2.5, 3.)),
                  lambda: FlowSource(flow, large, weight=0),
                  lambda: FlowSource(flow, lacking, 'linear'),
                  lambda: FlowSource(flow, bare, 'transport'), lambda: Source(bare)):
        with pytest.raises(InterflowError) as fault:
            wrong()
        assert '\n' not in str(fault.value)
    FlowSource(flow, lacking, 'transport'), FlowSource(flow, bare, 'sample')


# ---------------------------------------------------------------- all ten

@pytest.mark.parametrize('name', VARIANTS)
def test_every_network_trains_resumes_and_is_evaluated(name, large, flow, tmp_path, monkeypatch):
    config = replace(sr_preset(name, 'tiny'), steps=4, batch_size=2, patch=12 if arbitrary(name)
                     else 32, warmup=2, save_every=2)
    sources = [Source(large), FlowSource(flow, large, 'sample')]
    net, history = train_sr(sources, tmp_path / 'whole', network_config(name, 'tiny'), config,
                            'cpu')
    assert len(history) == 4 and all(math.isfinite(row['loss']) for row in history)

    original = SRBatches.__call__
    def dies(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return original(self, step)
    monkeypatch.setattr(SRBatches, '__call__', dies)
    with pytest.raises(KeyboardInterrupt):
        train_sr(sources, tmp_path / 'killed', network_config(name, 'tiny'), config, 'cpu')
    assert not (tmp_path / 'killed' / 'model').exists()
    monkeypatch.setattr(SRBatches, '__call__', original)
    train_sr(sources, tmp_path / 'killed', network_config(name, 'tiny'), config, 'cpu')
    saved, resumed = (load_network(tmp_path / run / 'model') for run in ('whole', 'killed'))
    assert all(torch.equal(value, saved.state_dict()[key])
               and torch.equal(value, resumed.state_dict()[key]) for key,
               value in net.state_dict().items())
    rows = evaluate({name: resumed}, large[:1], (3.75,))
    assert math.isfinite(rows[1]['psnr_y']) and rows[1]['psnr_y'] > 10
    with torch.no_grad():
        next(flow.parameters()).mul_(1)      # the same flow: resumed; another: refused
    train_sr(sources, tmp_path / 'killed', network_config(name, 'tiny'), config, 'cpu')


def test_a_run_with_another_flow_path_or_network_is_not_resumed(large, flow, tmp_path):
    def train(model=flow, network=SMALL, **settings):
        train_sr([FlowSource(model, large, **settings)], tmp_path / 'run', network, QUICK, 'cpu')
    train()
    other = InterFlow(InterFlowConfig.tiny(), make_generator(1, 'flow')).eval()
    for again in (lambda: train(other), lambda: train(path='linear'), lambda: train(temperature=.5),
                  lambda: train(factors=(3.,)),
                  lambda: train(network=network_config('vdsr', 'tiny'))):
        with pytest.raises(InterflowError, match='holds a run with'):
            again()
    train()


# ---------------------------------------------------------------- folders with images missing

def test_images_without_a_partner_are_told(pairs, tmp_path):
    assert len(read_pairs(tmp_path / 'set')) == 3
    (tmp_path / 'set/x2.1/s1.png').unlink()
    with pytest.raises(InterflowError, match='x2.1/s1.png: missing.*1 such pair'):
        read_pairs(tmp_path / 'set')
    for kind in ('HR', 'LR3'):
        write_image(tmp_path / f'paired/3/Canon_001_{kind}.png', torch.rand(3, 24, 24))
    assert len(read_pairs(tmp_path / 'paired')) == 1
    write_image(tmp_path / 'paired/3/Canon_002_HR.png', torch.rand(3, 24, 24))
    with pytest.raises(InterflowError, match='Canon_002'):
        read_pairs(tmp_path / 'paired')


def test_scenes_of_different_factors_are_used_with_their_own(pairs, tmp_path):
    "As in a set that was generated at random factors."
    each = [replace(scene, lr={2.1 + i: scene.lr[2.1]}) for i, scene in enumerate(pairs)]
    source = Source(each)
    assert source.range() == [2.1, 3.1, 4.1] and source.of(each[1]) == (3.1,)
    assert SRBatches([source], 16, 8)(0)['lr'].shape == (8, 3, 16, 16)
