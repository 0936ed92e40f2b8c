"""The gate: what photographs have passes, what a flow of twenty steps makes does not, and the model's own draws are never asked."""
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import write_crops

from interflow.camera import shoot
from interflow.checkpoints import load_model, save_model
from interflow.core import InterflowError, data_folder, make_generator, photographs, read_image
from interflow.data import simulate
from interflow.gate import (
    ANY,
    MEASURES,
    Limits,
    blind_noise,
    deviations,
    judge,
    measure,
    measure_photographs,
    naive_lr,
    photographs_of,
    reference,
    windows,
)
from interflow.generation import generate_scene
from interflow.losses import LossWeights
from interflow.model import InterFlowConfig
from interflow.training import PRESETS, train_flow

FLOW, FACTORS = data_folder() / 'weights' / 'flow', (2.1, 2.5, 3.0, 3.5, 3.75)


@pytest.fixture(scope='module')
def flow():
    return load_model(FLOW)


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    "Twelve training scenes of 192 x 192 pixels."
    folder = tmp_path_factory.mktemp('train')
    photos = write_crops(folder / 'photos', photographs('train')[:12], slice(150, 342), slice(250, 442))
    return simulate(photos, folder / 'set', (2.1, 3.75), 'canon', 0)


@pytest.fixture(scope='module')
def known(train):
    return measure_photographs(train)


@pytest.fixture(scope='module')
def shots():
    "Of the seven test photographs, 192 x 192 pixels: name -> dict of factor (1: HR) -> image."
    crops = {path.stem: read_image(path)[:, 150:342, 250:442] for path in photographs('test')}
    return {name: {factor: shoot(crop, factor, 'canon', 0, name) for factor in (1., *FACTORS)} for name, crop in crops.items()}


def draws(flow, hr, seed=0):
    "One image at each of `FACTORS`."
    generators = [make_generator(seed, factor) for factor in FACTORS]
    return dict(zip(FACTORS, generate_scene(flow, hr, {}, FACTORS, 'sample', generators)))


def verdicts(hr, images, known):
    "The reasons against a dict of images, None where there is none."
    return [judge(image, reference(hr, known), factor)[1] for factor, image in images.items()]


# ---------------------------------------------------------------- what passes and what does not

def test_photographs_pass_at_every_factor_the_trained_and_those_between(shots, known):
    reasons = [reason for shot in shots.values() for reason in verdicts(shot[1.], {f: shot[f] for f in FACTORS}, known)]
    assert reasons == [None] * 35


def test_what_the_shipped_flow_draws_passes(flow, shots, known):
    reasons = [reason for shot in shots.values() for reason in verdicts(shot[1.], draws(flow, shot[1.]), known)]
    assert sum(reason is None for reason in reasons) >= .95 * len(reasons), reasons


def test_a_flow_after_twenty_steps_has_its_images_set_aside(train, shots, known, tmp_path):
    "By photographs of the training, by two scenes of the set, and by HR alone. Blind noise between two draws of its own let nearly all of it pass."
    config = replace(PRESETS['tiny'], steps=20, save_every=100)
    early, _ = train_flow(train, tmp_path / 'run', InterFlowConfig.tiny(), config, LossWeights.tiny(), 'cpu')
    assert early.photographs == known == load_model(tmp_path / 'run/model').photographs, 'measured in the training, kept beside the weights'
    for photographed, most in ((early.photographs, 0), (measure_photographs(train[:2]), 1), (ANY, 3)):
        reasons = [reason for shot in shots.values() for reason in verdicts(shot[1.], draws(early, shot[1.]), photographed)]
        assert sum(reason is None for reason in reasons) <= most, (most, reasons)


def test_clipped_skies_and_blacks_pass_where_the_scene_has_them(flow, known):
    for name, gain, shift in (('bridge', 2.5, -.5), ('snowtrees', 2., .1), ('nuthatch', 2., -.6)):
        path = next(path for path in photographs('val') if path.stem == name)
        photo = (gain * read_image(path)[:, 150:342, 250:442] + shift).clamp(0, 1)
        shot = {factor: shoot(photo, factor, 'canon', 0, name) for factor in (1., *FACTORS)}
        hr = shot[1.]
        assert ((hr < .02) | (hr > .98)).float().mean() > .1, name
        assert verdicts(hr, {f: shot[f] for f in FACTORS}, known) == [None] * 5, name
        assert verdicts(hr, draws(flow, hr), known) == [None] * 5, name
        burnt = judge(2 * shot[3.0] - .5, reference(hr, known), 3.0)[1]
        assert 'clipped' in burnt or 'contrast' in burnt, 'what is clipped beyond that does not'


FAULTS = {'black': lambda x: 0 * x, 'tinted': lambda x: x + torch.tensor([.1, 0., -.1]).view(3, 1, 1), 'brighter': lambda x: x + .08,
          'flat': lambda x: x.mean() + .4 * (x - x.mean()), 'harsh': lambda x: x.mean() + 2.5 * (x - x.mean()), 'mirrored': lambda x: x.flip(2),
          'noisy': lambda x: x + .08 * torch.randn(x.shape, generator=make_generator(0)), 'grainy': lambda x: x + grain(x),
          'smooth': lambda x: torch.nn.functional.avg_pool2d(x[None], 11, 1, 5)[0], 'sharp': lambda x: x + 16 * (x - torch.nn.functional.avg_pool2d(x[None], 3, 1, 1)[0])}


def grain(x):
    "Blocks of four pixels, as a flow has them that misses the lower level."
    small = .1 * torch.randn(3, x.shape[1] // 4, x.shape[2] // 4, generator=make_generator(1))
    return small.repeat_interleave(4, 1).repeat_interleave(4, 2)


@pytest.mark.parametrize('name', FAULTS)
def test_each_fault_is_seen_in_most_scenes(shots, known, name):
    reasons = [judge(FAULTS[name](shot[3.0]), reference(shot[1.], known), 3.0)[1] for shot in shots.values()]
    assert sum(reason is not None for reason in reasons) >= 6, reasons


def test_not_finite_and_round_trips(shots, known):
    shot = shots['flower']
    here = reference(shot[1.], known)
    assert judge(shot[3.0] / 0., here, 3.0) == ({}, 'values: not finite')
    assert judge(shot[3.0], here, 3.0, .019)[1] is None and judge(shot[3.0], here, 3.0, .021)[1].startswith('round trip')
    assert 'round trip' in judge(shot[3.0], here, 3.0, math.nan)[1], 'no number is no round trip'
    assert judge(0 * shot[3.0], here, 3.0, 5., Limits(1e6, 1e6))[1] is None, 'an open gate'


# ---------------------------------------------------------------- what is measured

def test_the_measures_are_what_they_say(shots):
    hr = shots['raccoon'][1.]
    naive = naive_lr(hr, 3.0)
    def mean(image):
        return dict(zip(MEASURES, np.nanmean(measure(image, hr, 3.0).values, 0)))
    itself = mean(naive)
    assert max(abs(itself[name]) for name in ('red', 'green', 'blue')) < 1 and abs(itself['contrast']) < .2 and abs(itself['coarse']) < .2 and itself['clipped'] < .1
    assert mean(naive + 10 / 255)['green'] - itself['green'] == pytest.approx(10, abs=.5)
    half = mean(naive.mean() + .5 * (naive - naive.mean()))
    assert -6.1 < half['contrast'] < -4 and -6.1 < half['coarse'] < -4
    for level in (4., 12.):
        white = torch.randn(1, *hr.shape[1:], generator=make_generator(0)) * level / 255
        assert mean(naive + white)['noise'] == pytest.approx(20 * math.log10(level + .5), abs=1)
    assert mean(naive.where(naive > .4, torch.ones(())))['clipped'] > 5


def test_clipping_counts_only_where_the_scene_is_not_at_its_ends():
    ramp = torch.linspace(0, 1, 192).expand(3, 64, 192)
    found = {shift: measure((ramp + shift).clamp(0, 1), ramp, 2.0).values[:, -1].mean() for shift in (0., .04, .3)}
    assert found[0.] == found[.04] == 0 and 15 < found[.3] < 30


def test_windows_lie_inside_and_are_few():
    for height, width in ((1, 1), (5, 200), (64, 64), (78, 90), (192, 192), (4000, 6000)):
        boxes = windows(height, width)
        assert 1 <= len(boxes) <= 9
        assert all(0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width for rows, columns in boxes)
        assert {rows.stop - rows.start for rows, _ in boxes} == {min(height, 64)} and {columns.stop - columns.start for _, columns in boxes} == {min(width, 64)}
    assert windows(192, 192)[0][0].start == 0 and windows(192, 192)[-1][1].stop == 192, 'from border to border'


@pytest.mark.parametrize('size', [(1, 1), (3, 40), (15, 15), (16, 16), (20, 70)])
def test_small_images_are_judged_as_far_as_they_go(known, size):
    hr = torch.rand(3, *size, generator=make_generator(0)) * .5 + .25
    lr = naive_lr(hr, 3.0) + .012 * torch.randn(3, *size, generator=make_generator(1))
    assert judge(lr, reference(hr, ANY), 3.0)[1] is None
    assert judge(lr + .5, reference(hr, known), 3.0)[1] is not None


def test_a_map_of_factors_is_judged_place_by_place(flow, shots, known):
    "At the wrong end of the range an image would be too sharp or too soft."
    shot = shots['brushes']
    factors = torch.linspace(2.1, 3.75, 192, dtype=torch.float64).expand(192, 192).contiguous()
    image = torch.cat([shot[f][..., k:k + 64] for k, f in zip((0, 64, 128), (2.1, 3.0, 3.75))], 2)
    assert measure(image, shot[1.], factors).factors[:3].tolist() == pytest.approx([2.37, 2.925, 3.48], abs=.02)
    assert judge(image, reference(shot[1.], known), factors)[1] is None
    right, wrong = (np.abs(np.divide(*deviations(measure(image, shot[1.], m), known))).max() for m in (factors, factors.flip(1)))
    assert right < wrong


# ---------------------------------------------------------------- the statistics

def test_statistics_are_plain_versioned_and_travel_with_the_model(flow, known, tmp_path):
    again = load_model(FLOW)
    again.photographs = known
    save_model(tmp_path / 'with', again)
    assert json.loads((tmp_path / 'with/photographs.json').read_text()) == known == load_model(tmp_path / 'with').photographs
    again.photographs = again.calibration = None
    save_model(tmp_path / 'without', again)
    assert sorted(path.name for path in (tmp_path / 'without').iterdir()) == ['config.json', 'model.safetensors'] and load_model(tmp_path / 'without').photographs is None
    again.photographs = {**known, 'version': 1}
    with pytest.raises(InterflowError, match='version 1, not 2'):
        photographs_of(again, [])


def test_the_reference_never_comes_from_the_model(flow, train, known):
    again = load_model(FLOW)
    again.photographs = again.calibration = None
    again.sample = again.decode = again.encode = None      # whoever asks them fails
    bare = [replace(scene, lr={}) for scene in train]
    assert photographs_of(again, train) == (known, 'the LR images of this set')
    assert photographs_of(again, bare)[0] is ANY and photographs_of(None, train)[0] == known
    again.photographs = measure_photographs(train[:3])
    assert photographs_of(again, train) == (again.photographs, None)


def test_any_number_of_scenes_is_enough(train, shots):
    for count in (1, 2, 5):
        photographed = measure_photographs(train[:count])
        reasons = [reason for shot in shots.values() for reason in verdicts(shot[1.], {f: shot[f] for f in FACTORS}, photographed)]
        assert sum(reason is None for reason in reasons) >= 30, (count, reasons)
    with pytest.raises(InterflowError, match='give a set of pairs'):
        measure_photographs([replace(train[0], lr={})])


def test_between_the_trained_factors_the_numbers_go_along_straight_lines(known, shots):
    hr = shots['fig'][1.]
    measured = measure(shots['fig'][3.0], hr, 3.0)
    low, middle, high = (np.stack(deviations(measured._replace(factors=np.full(9, f)), known)) for f in (2.1, 2.925, 3.75))
    assert np.allclose(middle[0], (low[0] + high[0]) / 2)
    levels = np.array([known['measures'][name]['level'] for name in MEASURES])
    slopes = np.array([known['measures'][name]['slope'] for name in MEASURES])
    texture = measured.texture.clip(*np.array(known['texture'])).mean(0)
    assert np.allclose(low[0] - high[0], levels[:, 1] - levels[:, 0] + (slopes[:, 1] - slopes[:, 0]) * texture) and abs(low[0] - high[0]).max() > .5
    beyond = np.stack(deviations(measured._replace(factors=np.full(9, 4.)), known))
    assert np.allclose(beyond, high), 'beyond them they stay'


def test_texture_is_allowed_for(train, known):
    "The noise of busy scenes is larger, so level and slope say more than a level alone."
    noise = list(MEASURES).index('noise')
    assert known['measures']['noise']['slope'][1] > 1
    left, plain = [], []
    for scene in train:
        measured = measure(read_image(scene.lr[3.75]), read_image(scene.hr), 3.75)
        left.append(deviations(measured, known)[0][noise])
        plain.append(measured.values[:, noise].mean())
    assert np.std(left) < .8 * np.std(plain)


def smooth(seed, size=(96, 120)):
    "Smooth colours with fine grain: much power in the lowest frequencies, none in the octaves above."
    colours = torch.rand(1, 3, 6, 8, generator=make_generator(seed))
    grain = torch.randn(3, *size, generator=make_generator(seed, 'grain')) * 6 / 255
    return (torch.nn.functional.interpolate(colours, size, mode='bicubic')[0] + grain).clamp(0, 1)


def test_a_scene_of_smooth_colours_is_no_busy_one(flow):
    "Each measure goes by the texture of its own rings; by the total power, true photographs of such a scene were 3 spreads off, and most draws were set aside."
    off, reasons = [], []
    for seed in range(4):
        hr, *images = (shoot(smooth(seed), f, 'canon', 0, str(seed)) for f in (1., 2.5, 3.6))
        for factor, image in zip((2.5, 3.6), images):
            deviation, spread = deviations(measure(image, hr, factor), flow.photographs)
            off.append(abs(deviation / spread))
        reasons += verdicts(hr, draws(flow, hr, seed), flow.photographs)
    assert np.max(off) < 2.6
    assert sum(reason is None for reason in reasons) >= .8 * len(reasons), reasons


def test_a_scene_has_its_own_photographs_as_a_reference_too(shots, known):
    "A scene that is like no photograph of the training: what its own LR images have may be had."
    shot = shots['raccoon']
    odd = {f: (.7 * shot[f] + .3).clamp(0, 1) for f in (2.1, 3.0, 3.75)}
    assert judge(odd[3.0], reference(shot[1.], known), 3.0)[1] is not None
    own = reference(shot[1.], known, {f: odd[f] for f in (2.1, 3.75)})
    assert judge(odd[3.0], own, 3.0)[1] is None and judge(0 * odd[3.0], own, 3.0)[1] is not None


def test_colder_draws_may_have_less_noise_and_hotter_ones_more(flow, shots, known):
    shot = shots['flower']
    cold = next(generate_scene(flow, shot[1.], {}, (2.1,), 'sample', [make_generator(0)], 0.))
    assert judge(cold, reference(shot[1.], known, None, 0.), 2.1)[1] is None
    noisy = shot[3.0] + .045 * torch.randn(shot[3.0].shape, generator=make_generator(0))
    assert 'fine' in judge(noisy, reference(shot[1.], known), 3.0)[1] and judge(noisy, reference(shot[1.], known, None, 4.), 3.0)[1] is None


def test_the_noise_of_one_image_is_told_from_its_content():
    photo = read_image(photographs('test')[2])
    smooth = torch.nn.functional.avg_pool2d(photo[None], 9, 1, 4)[0]
    for level in (2., 5., 10.):
        grey = torch.randn(photo.shape[1:], generator=make_generator(0, level)) * level / 255
        assert blind_noise(smooth + grey) == pytest.approx(level, rel=.1)
