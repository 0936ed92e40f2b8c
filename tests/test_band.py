"""The band of a factor: a projection that true images pass unchanged, and draws of a flow not."""

import inspect
import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from interflow import band, cli
from interflow.band import fit_phase, to_band
from interflow.camera import draw_residuals, get_camera, register, sensor_positions, shoot
from interflow.checkpoints import load_model, save_model
from interflow.core import (
    InterflowError,
    data_folder,
    make_generator,
    photographs,
    read_image,
    read_json,
    write_image,
)
from interflow.data import read_set, simulate
from interflow.generation import PATHS, generate_scene
from interflow.metrics import luma
from interflow.sets import SetConfig, generate
from interflow.sr.training import FlowSource

FACTORS = (1.4, 2.1, 2.5, 3., 3.75)
AT = (.3, -.2)
FLOW = data_folder() / 'weights' / 'flow'
LOW, *_, HIGH = read_json(FLOW / 'config.json')['factors']      # trained


@pytest.fixture(scope='module')
def flow():
    "As it draws; how draws are calibrated on the way is tested in test_calibration."
    model = load_model(FLOW)
    model.calibration = None
    return model


@pytest.fixture(scope='module')
def photo():
    return read_image(photographs('test')[6])[:, 100:230, 300:474]      # 130x174


@pytest.fixture(scope='module')
def pairs(photo, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pairs')
    write_image(folder / 'photos' / 'raccoon.png', photo[:, :78, :90])
    write_image(folder / 'photos' / 'other.png', photo[:, 40:118, 80:170])
    simulate(folder / 'photos', folder / 'set', (LOW, HIGH), 'canon')
    return folder / 'set'


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.rand(*shape, generator=make_generator(seed, 'noise'), dtype=dtype)


def sensor_image(size, factor, phase, seed=0):
    "An image of the band: random sensor pixels, enlarged as the camera's registration does it."
    counts = [len(sensor_positions(side, factor)) for side in size]
    return register(noise(3, *counts, seed=seed), size, factor, phase)


def rms(x):
    return 255 * x.double().square().mean().sqrt().item()


# ---------------------------------------------------------------- a projection

@pytest.mark.parametrize('factor', FACTORS)
def test_linear_idempotent_symmetric(factor):
    x, y = noise(3, 61, 290), noise(3, 61, 290, seed=1)
    px, py = to_band(x, factor, AT), to_band(y, factor, AT)
    assert torch.allclose(to_band(2 * x - 3 * y, factor, AT), 2 * px - 3 * py)
    again = 255 * (to_band(px, factor, AT) - px).abs()
    assert again.max() < 0.5 and again[:, 16:-16, 16:-16].max() < 0.01, (
        'at the border what is weakly determined may move'
    )
    assert abs((px * y).sum() - (x * py).sum()) < 1e-4 * (x * y).sum(), (
        'orthogonal: the nearest image'
    )


@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize('size', [(1, 4), (61, 290), (257, 128)])
def test_an_image_of_the_band_comes_through(factor, size):
    "Borders, joints of blocks and corners included."
    x = sensor_image(size, factor, AT)
    assert 255 * (to_band(x, factor, AT) - x).abs().max() < .1
    assert 255 * (to_band(x.float(), factor, AT) - x).abs().max() < .1


def test_blocks_leave_no_joint(monkeypatch):
    x = noise(3, 300, 420)
    for factor in FACTORS:
        tiled = to_band(x, factor, AT)
        with monkeypatch.context() as patched:
            patched.setattr(band, 'BLOCK', 10 ** 6)
            assert 255 * (to_band(x, factor, AT) - tiled).abs().max() < 1e-3
    monkeypatch.setattr(band, 'REACH', 3)
    assert 255 * (to_band(x, 3., AT) - to_band(x, 3., AT).clone()).abs().max() == 0
    assert 255 * (to_band(x, FACTORS[-1], AT) - tiled).abs().max() > 0.1, (
        'else the comparison could not fail'
    )


def test_how_much_is_left_of_noise():
    "White noise keeps one dimension in factor^2, and a little more at the borders."
    x = noise(3, 256, 256) - .5
    for factor in FACTORS:
        left = to_band(x, factor, AT).square().sum() / x.square().sum()
        assert 1 / factor ** 2 < left < (1 + 5 * factor / 256) ** 2 / factor ** 2


@pytest.mark.parametrize('factor', [.5, 1., 1.25, torch.full((40, 50), 1.)])
def test_nothing_changes_at_small_factors(factor):
    x = noise(3, 40, 50)
    assert torch.equal(to_band(x, factor), x) and torch.equal(to_band(x, factor, None), x)


def test_dtype_batch_and_a_given_place():
    x = noise(2, 3, 40, 50)
    for dtype in (torch.float32, torch.float64):
        made = to_band(x.to(dtype), 2.5, AT)
        assert made.dtype == dtype and torch.equal(
            made, torch.stack([to_band(one, 2.5, AT) for one in x.to(dtype)])
        )
    out = torch.empty_like(x)
    assert to_band(x, 2.5, None, out) is out and torch.equal(
        out, torch.stack([to_band(one, 2.5, None) for one in x])
    )
    assert inspect.signature(to_band).parameters['phase'].default == (0., 0.)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu():
    x = sensor_image((200, 300), 3., AT) + .05 * noise(3, 200, 300)
    ramp = torch.linspace(2.1, 3.75, 300, dtype=torch.float64).expand(200, 300)
    for factor in (3., ramp, ramp.cuda()):
        there = to_band(x.cuda(), factor, None)
        assert there.device.type == 'cuda' and torch.allclose(
            there.cpu(), to_band(x, ramp if torch.is_tensor(factor) else factor, None), atol=1e-6
        )


@pytest.mark.parametrize(
    'image, factor, said',
    [
        ((40, 50), 2.0, 'image: has shape'),
        ((1, 40, 50), 2.0, 'image: has shape'),
        ((3, 40, 50), float('nan'), 'factor nan'),
        ((3, 40, 50), -1.0, 'factor -1'),
        ((3, 40, 50), torch.ones(50, 40), 'factor: a map of shape'),
        ((3, 40, 50), float('inf'), 'factor inf'),
    ],
)
def test_hostile_input(image, factor, said):
    with pytest.raises(InterflowError, match=said):
        to_band(torch.zeros(image), factor)


# ---------------------------------------------------------------- the grid's phase

@pytest.mark.parametrize('factor', [1.5, 2., 2.1, 2.5, 3., 3.75])
def test_the_phase_is_found(factor):
    for k, phase in enumerate([(0., 0.), (.2, -.45), (-.1, .7), (.5, .25)]):
        found = fit_phase(sensor_image((96, 150), factor, phase, k), factor)
        assert max(abs((a - b + .5) % 1 - .5) for a, b in zip(found, phase)) < .03


@pytest.mark.parametrize('factor', [1.3, 2.1, 2.5, 3., 3.75])
def test_shots_lose_what_rounding_added(photo, factor):
    """Gain, offset and the shift of registration included; at a wrong phase they lose many times as
    much.
    """
    for number in range(2):
        shot = shoot(photo, factor, 'canon', scene='band', shot=number)
        assert rms(to_band(shot, factor, None) - shot) < .45
        residuals = draw_residuals(get_camera('canon'), factor, scene='band', shot=number)
        wrong = tuple(p - s / factor + .5 for p, s in zip(residuals.phase, residuals.shift))
        assert rms(to_band(shot, factor, wrong) - shot) > 1


def test_shots_without_rounding_lose_nothing(photo):
    shot = shoot(photo, 3., 'canon', scene='band', noise=False)
    residuals = draw_residuals(get_camera('canon'), 3., scene='band')
    own = tuple(p - s / 3 for p, s in zip(residuals.phase, residuals.shift))
    inside = (shot.amin(0) > .02) & (shot.amax(0) < .98)      # where nothing was clipped
    lost = (to_band(shot, 3., own) - shot).abs().amax(0)
    assert 255 * lost[inside].quantile(.99) < .1 and rms(to_band(shot, 3., None) - shot) < .3


@pytest.mark.parametrize('size', [(3, 3), (8, 200), (130, 17)])
def test_images_without_detail_and_small_ones(size):
    for x in (torch.zeros(3, *size), torch.full((3, *size), .4)):
        made = to_band(x, 2.7, None)
        assert all(map(math.isfinite, fit_phase(x, 2.7))) and (made - x).abs().max() < 1e-3
    broken = torch.full((3, *size), float('nan'))
    assert not to_band(broken, 2.7, None).isfinite().any()


# ---------------------------------------------------------------- maps

def test_a_map_is_each_pixels_number():
    """Two halves of one factor each, and a slow ramp between: far from the ramp the image is that
    of the number.
    """
    x = noise(3, 60, 400)
    factors = (2.25 + .25 * ((torch.arange(400) - 150) / 100).clamp(0, 1)).double().expand(60, 400)
    made = to_band(x, factors, AT)
    for half, factor in ((slice(0, 151), 2.25), (slice(250, 400), 2.5)):
        assert torch.allclose(made[..., half], to_band(x, factor, AT)[..., half])
    middle = .5 * (to_band(x, 2.25, AT) + to_band(x, 2.5, AT))[..., 200]
    assert torch.allclose(made[..., 200], middle)
    assert torch.equal(
        to_band(x, torch.full((60, 400), 2.7), AT), to_band(x, torch.tensor(2.7).item(), AT)
    )


def test_each_part_of_a_map_finds_its_phase():
    "Left a shot at x2.25, right one at x2.5, each on its own grid: both come through."
    left, right = (
        sensor_image((90, 400), 2.25, (0.1, 0.3)),
        sensor_image((90, 400), 2.5, (-0.4, -0.1), 1),
    )
    x = torch.cat([left[..., :200], right[..., 200:]], -1)
    factors = torch.cat([torch.full((90, 200), 2.25), torch.full((90, 200), 2.5)], 1).double()
    lost = (to_band(x, factors, None) - x)[..., [*range(170), *range(230, 400)]]
    assert rms(lost) < 3 and rms(lost) < 0.2 * rms(
        (to_band(x, factors, (0.0, 0.0)) - x)[..., [*range(170), *range(230, 400)]]
    )


def test_a_map_has_no_more_above_the_band_than_numbers():
    x = noise(3, 192, 256) - .5
    ramp = torch.linspace(2.1, 3.75, 256, dtype=torch.float64).expand(192, 256)
    def above(image):
        # around 1/3 cycles per pixel, where the map says 3
        return torch.fft.rfft(image.mT).abs().square()[..., 120:136, 58:70].mean()
    assert above(to_band(x, ramp, None)) < 1.5 * above(to_band(x, 3., None)) < .2 * above(x)


# ---------------------------------------------------------------- in generation

def draws(flow, hr, factor, count=3, **settings):
    return torch.cat(
        [
            next(
                generate_scene(flow, hr, {}, (factor,), 'sample', [make_generator(k)], **settings)
            )[None]
            for k in range(count)
        ]
    )


def test_draws_lose_their_power_around_the_null(flow, photo):
    hr = shoot(photo, 1., 'canon', scene='band')
    shots = torch.stack([shoot(photo, 3., 'canon', scene='band', shot=k) for k in range(3)])
    def null(images):
        lines = luma(images.clamp(0, 1).mul(255).round().div(255) - images.mean(0) + .5)
        power = (
            torch.fft.rfft2(
                (lines - 0.5) * torch.hann_window(130)[:, None] * torch.hann_window(174)
            )
            .abs()
            .square()
            .mean(0)
        )
        return 10 * power[:, 53:63].mean().log10().item()

    plain, banded, true = (
        null(draws(flow, hr, 3.0, band=False)),
        null(draws(flow, hr, 3.0)),
        null(shots),
    )
    assert plain > true + 3 and abs(banded - true) < 3


@pytest.mark.parametrize('path', PATHS)
def test_generation_without_the_band_and_the_projection_make_the_rest(flow, pairs, path):
    """No noise is drawn for the band; `pixels` stays a blend; at a trained factor photographs come
    back.
    """
    scene = read_set(pairs)[0]
    hr, lr = read_image(scene.hr), {factor: read_image(file) for factor, file in scene.lr.items()}
    ramp = torch.linspace(2.2, 3.7, hr.shape[-1], dtype=torch.float64).expand(hr.shape[-2:])
    states = []
    def make(**settings):
        generators = [make_generator(0, k) for k in range(3)]
        made = [
            image.clone()
            for image in generate_scene(
                flow, hr, lr, (LOW, 2.7, ramp), path, generators, **settings
            )
        ]
        states.append([generator.get_state() for generator in generators])
        return made
    plain, banded = make(band=False), make()
    assert all(torch.equal(a, b) for a, b in zip(*states))
    for raw, image, factor in zip(plain, banded, (LOW, 2.7, ramp)):
        assert torch.equal(image, raw if path == 'pixels' else to_band(raw, factor, None))
        assert path == 'pixels' or not torch.equal(image, raw)
    if path not in ('pixels', 'sample'):
        assert rms(banded[0] - lr[LOW]) < .5


def test_a_set_with_the_band_and_without(flow, pairs, tmp_path, monkeypatch):
    "A setting of the set; the same bytes on one process or two."
    config = SetConfig((2.5, 3.0), check='none')
    for name, settings, processes in (
        ('one', config, 1),
        ('two', config, 2),
        ('plain', replace(config, band=False), 1),
    ):
        generate(flow, read_set(pairs), tmp_path / name, settings, 'cpu', processes)
        assert json.loads((tmp_path / name / 'generated.json').read_text())['band'] == settings.band
    files = sorted(
        path.relative_to(tmp_path / 'one') for path in (tmp_path / 'one').rglob('*_LR3.png')
    )
    assert len(files) == 4
    for file in files:
        one, two, plain = (
            (tmp_path / name / file).read_bytes() for name in ('one', 'two', 'plain')
        )
        assert one == two != plain
    with pytest.raises(InterflowError, match='band = True'):
        generate(flow, read_set(pairs), tmp_path / 'one', replace(config, band=False), 'cpu')


def test_at_the_command_line(flow, pairs, tmp_path, monkeypatch):
    save_model(tmp_path / 'flow', flow)
    call = [
        'interflow',
        'generate',
        str(tmp_path / 'flow'),
        str(pairs),
        str(tmp_path / 'out'),
        '--factors',
        '3',
        '--device',
        'cpu',
    ]
    monkeypatch.setattr(sys, 'argv', [*call, '--no-band', '--check', 'none', '--processes', '1'])
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code
    assert json.loads((tmp_path / 'out/generated.json').read_text())['band'] is False
    source, = cli.sr_sources([pairs], None, '0,1', tmp_path / 'flow', 'sample', None, False)
    assert source.band is False and source.described()['band'] is False


def test_images_made_while_training(flow, pairs):
    scenes = read_set(pairs)
    images = torch.stack([torch.stack([read_image(scene.hr) for scene in scenes])])
    def make(**settings):
        return FlowSource(flow, scenes, **settings).make(
            images, (), [2.4, 3.3], [make_generator(k) for k in range(2)]
        )

    plain, banded = make(band=False), make()
    assert torch.equal(
        banded, torch.stack([to_band(plain[0], 2.4, None), to_band(plain[1], 3.3, None)])
    )
