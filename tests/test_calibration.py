"""Draws vary as photographs do: gains of 1 change nothing inside, known gains are found again, and they travel with the weights."""
import shutil

import pytest
import torch

from interflow.band import to_band
from interflow.calibrating import (
    Looked,
    balance,
    between,
    calibrate,
    grid,
    strength,
    takes_of,
    together,
)
from interflow.calibration import (
    BINS,
    GREYS,
    SHAPES,
    Around,
    Calibration,
    Gains,
    places,
    plane_power,
    read_calibration,
    split_colours,
)
from interflow.checkpoints import load_model, save_model
from interflow.core import InterflowError, data_folder, make_generator, photographs, read_image
from interflow.crops import centres, make_crops
from interflow.data import read_set, simulate
from interflow.generation import generate_scene, smooth_map
from interflow.model import InterFlow, InterFlowConfig

INSIDE = (..., slice(16, -16), slice(16, -16))


def calibration(frequency=1., texture=1., grey=1.):
    gains = {'frequency': frequency, 'texture': texture, 'grey': grey}
    return Calibration((2., 4.), Gains(*(gains[name] * torch.ones((2, *shape), dtype=torch.float64) for name, shape in SHAPES.items())))


@pytest.fixture(scope='module')
def hr():
    return read_image(photographs('test')[0])[:, 100:260, 100:292]


@pytest.fixture(scope='module')
def flow():
    return load_model(data_folder() / 'weights' / 'flow')


def draw(flow, hr, factors=(3.,), seed=0, path='sample', **settings):
    return list(generate_scene(flow, hr, {}, factors, path, [make_generator(seed, k) for k in range(len(factors))], **settings))


def test_gains_of_one_are_the_band_alone(hr):
    centre = to_band(hr, 3.)
    image = centre + .02 * torch.randn(hr.shape, generator=make_generator(1))
    around = Around(centre, places(hr), calibration())
    same, plain = to_band(image, 3., around=around), to_band(image, 3.)
    assert (same - plain)[INSIDE].abs().max() < 2e-3 and (plain - image)[INSIDE].abs().max() > .02
    assert torch.equal(to_band(centre, 1.2, around=around), centre), 'below the least factor nothing changes'


def test_a_gain_doubles_what_it_says_and_no_more(hr):
    noise = torch.randn(hr.shape, generator=make_generator(2))
    centre = to_band(hr, 3.)
    image = centre + .01 * to_band(noise, 3.)
    powers = []
    for name in ('none', 'frequency', 'texture', 'grey'):
        gain = calibration(**{name: 2.} if name != 'none' else {})
        made = to_band(image, 3., around=Around(centre, places(hr), gain))
        powers.append((made - centre)[INSIDE].square().mean())
    assert powers[2] / powers[0] == pytest.approx(4, rel=.02), 'a texture gain is one of amplitude'
    assert powers[1] / powers[0] == pytest.approx(16, rel=.02), 'one along each axis'
    assert powers[3] / powers[0] == pytest.approx(4, rel=.02), 'and so is one of brightness'


def test_parts_and_places_get_their_own_gains(hr):
    "A gain of the rough parts leaves smooth ones, one of the darkest the brightest, one of colour the luma."
    place, centre = places(hr), to_band(hr, 3.)
    image = centre + .01 * to_band(torch.randn(hr.shape, generator=make_generator(2)), 3.)
    rough, smooth = (place.parts(slice(None))[part] > .99 for part in (1, 0))

    def strengths(**gains):
        made = (to_band(image, 3., around=Around(centre, place, calibration(**gains))) - centre)[INSIDE]
        return lambda where, plane=slice(None): split_colours(made)[plane][..., where[INSIDE]].square().mean()
    plain, far = strengths(), torch.nn.functional.max_pool2d((~smooth).float()[None], 31, 1, 15)[0] == 0
    parts = strengths(frequency=torch.tensor([1., 2.])[:, None, None])
    assert parts(rough) > 8 * plain(rough) and (not far.any() or parts(far) == pytest.approx(plain(far).item(), rel=.05))
    dark = strengths(grey=torch.linspace(2, 1, len(GREYS)))
    luma = split_colours(hr)[0]
    assert dark(luma < luma.quantile(.1)) / plain(luma < luma.quantile(.1)) > dark(luma > .9) / plain(luma > .9)
    colour = strengths(texture=torch.tensor([1., 2., 2.])[:, None])
    every = torch.ones_like(luma, dtype=torch.bool)
    assert colour(every, 0) == pytest.approx(plain(every, 0).item(), rel=.01)
    assert colour(every, slice(1, 3)) == pytest.approx(4 * plain(every, slice(1, 3)).item(), rel=.02)


def test_a_calibrated_image_stays_in_the_band(hr):
    shaped = torch.linspace(.6, 1.6, BINS, dtype=torch.float64)
    around = Around(to_band(hr, 3.), places(hr), calibration(shaped, .8, 1.2))
    image = hr + .02 * torch.randn(hr.shape, generator=make_generator(3))
    made = to_band(image, 3., around=around)
    assert (to_band(made, 3.) - made)[INSIDE].abs().max() < 1e-4


@pytest.mark.parametrize('alone', [True, False])
def test_balance_finds_the_gains_that_are_missing(hr, alone):
    "Photographs that are calibrated draws: what is found is what they were calibrated with."
    known, factor = torch.linspace(.8, 1.4, BINS, dtype=torch.float64), 2.
    texture = torch.tensor([.7, .8, .9, 1., 1.1, 1.2, 1.2], dtype=torch.float64)
    ones = calibration().at(2.)
    truth = Calibration((factor,), Gains(known.expand(1, 2, 3, -1), texture.expand(1, 3, -1), ones.grey[None]))
    centre, place, scenes, true = to_band(hr, factor), places(hr), [], []
    for k in range(12):
        noises = [to_band(.03 * torch.randn(hr.shape, generator=make_generator(4, k, which)), factor) for which in range(3)]
        made = to_band(centre + noises[2], factor, around=Around(centre, place, truth)) - centre
        true.append(strength(255 * made[None], place, factor))
        scenes.append(Looked(factor, place, centre + torch.stack(noises[:2]), centre, [(0., 0.)] * 2, alone))
    found = balance(scenes, together(true)).at(factor)
    level = (found.texture[0, 2:6] / texture[2:6]).mean()        # a common factor may lie in either
    assert found.texture[0, 2:6] / level == pytest.approx(texture[2:6].numpy(), rel=.1)
    assert found.frequency[1, 0] * level.sqrt() == pytest.approx(known.numpy(), rel=.1)
    assert found.grey[0, :4] == pytest.approx(1, abs=.1), 'brightness has nothing to add'


def test_takes_are_known_by_their_hr_image(tmp_path):
    "By what it holds, not by its name: a set that was copied has no links."
    simulate(photographs('train')[:2], tmp_path / 'set', (2., 4.), scale=.3, takes=2)
    shutil.copytree(tmp_path / 'set', tmp_path / 'copy')
    for name in ('set', 'copy'):
        found = takes_of(read_set(tmp_path / name))
        assert [[scene.name for scene in takes] for takes in found] == [['aitzgorri', 'aitzgorri_t1'], ['bamboo', 'bamboo_t1']]


def test_between_the_trained_factors_strength_is_on_a_straight_line(hr):
    assert grid((2., 4.)) == (2., 2.5, 3., 3.5, 4.) and grid((2.9,)) == (2.9,)
    assert grid((2.1, 3., 3.75)) == pytest.approx((2.1, 2.55, 3., 3.375, 3.75))
    noise = torch.randn((2, *hr.shape), generator=make_generator(8))
    ends = [strength(level * noise, places(hr), 2.) for level in (1., 2.)]
    for found, low in zip(between(ends, (2., 4.), 3.5), ends[0]):
        assert torch.allclose(found, (1 + .75 * 3) * low)


def test_several_takes_count_together_and_one_from_its_centre(flow, tmp_path):
    "A flow that is calibrated by takes differs as they do, at the trained factors and between."
    scenes = simulate(photographs('train')[:2], tmp_path / 'set', (2., 4.), scale=.5, takes=3)
    model = load_model(data_folder() / 'weights' / 'flow')
    several, alone = calibrate(model, scenes), calibrate(model, [scene for scene in scenes if '_t' not in scene.name])
    assert several.factors == alone.factors == (2., 2.5, 3., 3.5, 4.)
    assert not torch.allclose(several.gains.texture, alone.gains.texture, rtol=.05)


def test_it_travels_with_the_weights(flow, tmp_path):
    assert read_calibration(flow.calibration).factors == grid(flow.prior.factors)
    save_model(tmp_path / 'flow', flow)
    assert load_model(tmp_path / 'flow').calibration == flow.calibration
    (tmp_path / 'flow' / 'calibration.json').unlink()
    assert load_model(tmp_path / 'flow').calibration is None
    (tmp_path / 'flow' / 'calibration.json').write_text('{"version": 7}')
    with pytest.raises(InterflowError, match='version 7'):
        draw(load_model(tmp_path / 'flow'), torch.rand(3, 64, 64))


def test_tiles_batches_and_company_change_nothing(flow, hr):
    whole, pieces = (draw(flow, hr, tile=tile)[0] for tile in (0, 128))
    assert 255 * (whole - pieces).abs().max() < 1
    alone, (_, second) = draw(flow, hr)[0], draw(flow, hr, (2.2, 3.), seed=0)
    assert torch.equal(draw(flow, hr, (3., 2.2))[0], alone) and not torch.equal(second, alone)
    crops = hr[None, None, :, :64, :64]
    batch = make_crops(flow, 'sample', crops, (), [3.], [make_generator(5)])
    (one,) = generate_scene(flow, crops[0, 0], {}, [3.], 'sample', [make_generator(5)])
    assert 255 * (batch[0] - one).abs().max() < .01


def test_centre_is_what_draws_are_spread_around(flow, hr):
    with torch.inference_mode():
        cond = flow.condition(hr[None])
        middle = centres(flow, cond, [3.])[0]
    cold = draw(flow, hr, temperature=0., band=False)[0]
    assert 255 * (middle - cold).abs().max() < .01
    assert 255 * (to_band(cold, 3., None) - draw(flow, hr, temperature=0.)[0])[INSIDE].abs().max() < .5


def test_a_map_is_calibrated_too_and_no_band_is_not(flow, hr):
    ramp = smooth_map(*hr.shape[-2:], 2.2, 3.6, make_generator(6))
    kept, flow.calibration = flow.calibration, None
    try:
        plain, raw = draw(flow, hr, (ramp,))[0], draw(flow, hr, band=False)[0]
    finally:
        flow.calibration = kept
    assert not torch.allclose(draw(flow, hr, (ramp,))[0], plain, atol=1e-3)
    assert torch.equal(draw(flow, hr, band=False)[0], raw)


def test_round_trip_errors_are_those_of_the_draws(flow, hr):
    errors = torch.zeros(2)
    draw(flow, hr, (2.5, 3.), errors=errors)
    assert (errors > 0).all() and (errors < .1).all()


def test_an_untrained_flow_gets_no_wild_gains(tmp_path):
    scenes = simulate(photographs('train')[:2], tmp_path / 'pairs', (2.1, 3.75), scale=.3)
    flow = InterFlow(InterFlowConfig.tiny(), make_generator(0))
    found = calibrate(flow, scenes)
    assert found is None or all(.5 <= gains.min() <= gains.max() <= 2 for gains in found.gains)
    assert found is None or torch.isfinite(draw(flow, torch.rand(3, 64, 64))[0]).all()


def test_power_is_that_of_the_differences():
    noise = torch.randn(8, 3, 128, 128, generator=make_generator(7))
    assert plane_power(2 * noise, 3.) == pytest.approx(4 * plane_power(noise, 3.).numpy())
