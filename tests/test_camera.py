"The camera's contracts: sharp, noisy, coloured and placed as the formulas say; the same bytes from the same seed."
import math
from dataclasses import replace

import pytest
import torch
from skimage.registration import phase_cross_correlation

from interflow.camera import (
    BLACK_LEVEL,
    CAMERAS,
    LONGEST,
    MARGIN,
    MEASURED,
    WHITE_LEVEL,
    Colour,
    add_noise,
    airy_mtf,
    at_iso,
    box_mtf,
    demosaic,
    develop,
    draw_colour,
    draw_residuals,
    get_camera,
    lateral_sizes,
    measure_mtf,
    mosaic,
    project,
    quantise,
    register,
    shoot,
    slanted_edge,
    unprocess,
    white_balance,
)
from interflow.core import (
    InterflowError,
    make_generator,
    photographs,
    read_image,
    to_pixels,
    to_tensor,
)

PHOTOGRAPHS = [path for split in ('train', 'val', 'test') for path in photographs(split)]
CANON = CAMERAS['canon']


def scene(height=96, width=128):
    "A part of a photograph, (3, height, width)."
    return read_image(photographs('test')[-1])[:, 150:150 + height, 300:300 + width]


@pytest.mark.parametrize('path', PHOTOGRAPHS, ids=lambda path: path.stem)
def test_unprocess_and_process_are_the_identity(path):
    photo, colour = read_image(path), draw_colour(CANON, 0, path.stem)
    light = unprocess(photo, colour)
    back = develop(white_balance(light, colour), colour)
    assert light.min() >= 0 and light.max() < 1 + 1e-9
    assert (back - photo).abs().max() < 1 / 255


def test_white_stays_white():
    colour = draw_colour(CANON, 3, 'any')
    assert torch.allclose(unprocess(torch.ones(3, 2, 2), colour), torch.ones(3, 2, 2, dtype=torch.float64))


def test_every_colour_matrix_is_physical():
    for seed in range(200):
        colour = draw_colour(CANON, seed, 'any')
        assert colour.srgb_to_camera.min() >= 0 and torch.allclose(colour.srgb_to_camera.sum(1), torch.ones(3, dtype=torch.float64))
        assert 0 < colour.gains.min() and colour.gains.max() <= 1


@pytest.mark.parametrize('name', CAMERAS)
@pytest.mark.parametrize('factor', [1., 2.1, 2.5, 3., 3.75])
@pytest.mark.parametrize('upright', [True, False])
def test_sharpness_is_optics_times_pixel(name, factor, upright):
    camera, angle, blur = CAMERAS[name], math.radians(5), .5
    edge = slanted_edge((448, 448), 5., blur)
    plane = project((edge if upright else edge.T).expand(3, 448, 448), camera, factor, (.2, -.4))
    plane = plane if upright else plane.mT
    for channel, wavelength in zip(plane[:, MARGIN + 4:-MARGIN - 4, MARGIN + 4:-MARGIN - 4], camera.wavelengths):
        frequency, measured = measure_mtf(channel)
        pixel = box_mtf(frequency * math.cos(angle)) * box_mtf(frequency * math.sin(angle))
        analytic = airy_mtf(frequency, wavelength, camera.f_number, camera.pitch) * pixel
        own = torch.exp(-2 * (math.pi * blur * frequency / factor) ** 2)
        assert (measured / own - analytic)[frequency <= .45].abs().max() < .03


@pytest.mark.parametrize('name', MEASURED)
@pytest.mark.parametrize('factor', [1.5, 3.75])
@pytest.mark.parametrize('side', [-1, 1])
def test_lateral_colour_moves_red_and_blue_by_the_size_of_their_image(name, factor, side):
    camera, middle, away = MEASURED[name], 511.5, 300
    dot = .1 + .6 * torch.exp(-((torch.arange(64.)[:, None] - 32) ** 2 + (torch.arange(1024.) - middle - side * away) ** 2) / 200)
    plane = project(dot.expand(3, 64, 1024), camera, factor)
    place = torch.arange(plane.shape[-1]) - (plane.shape[-1] - 1) / 2
    near = (place - side * away / factor).abs() < 60 / factor
    weight = (plane - .1).sum(1)[:, near]
    found = (weight * place[near]).sum(1) / weight.sum(1)
    expected = side * away / factor * torch.tensor(lateral_sizes(camera, factor), dtype=torch.float64)
    assert ((found - found[1]) - (expected - expected[1])).abs().max() < .005
    assert (expected - expected[1]).abs().max() > .01


def test_images_of_one_size_are_a_lens_without_lateral_colour():
    light, plain = scene().double(), replace(CANON, lateral=((24, 1., 1.), (105, 1., 1.)))
    assert torch.allclose(project(light, plain, 2.1), project(light, CANON, 2.1), rtol=0, atol=1e-12)
    assert lateral_sizes(MEASURED['canon-5d3'], LONGEST / 26) == pytest.approx(((1.0011673 + 1.0009538) / 2, 1., (1.0001820 + 1.0001947) / 2))


@pytest.mark.parametrize('name', CAMERAS)
def test_noise_at_another_iso_has_the_measured_ratio(name):
    camera = CAMERAS[name]
    rows = {iso: (shot, read) for iso, shot, read in camera.noise}
    for iso, (shot, read) in rows.items():
        there = at_iso(camera, iso)
        assert there.shot / camera.shot == pytest.approx(shot / rows[1600][0]) and there.read / camera.read == pytest.approx(read / rows[1600][1])
    assert at_iso(camera, camera.iso) == camera
    for wrong in (50, 51200, math.nan):
        with pytest.raises(InterflowError, match='ISO'):
            at_iso(camera, wrong)


@pytest.mark.parametrize('name', CAMERAS)
@pytest.mark.parametrize('level', [0., .01, .1, .5])
def test_raw_variance_follows_the_noise_line(name, level):
    camera = CAMERAS[name]
    field = quantise(add_noise(torch.full((700, 700), level, dtype=torch.float64), camera, make_generator(1, name, level)))
    rounding = 1 / (12 * (WHITE_LEVEL - BLACK_LEVEL) ** 2)
    expected = level * camera.shot + camera.read + rounding
    assert abs(field.var().item() / expected - 1) < .03
    assert abs(field.mean().item() - level) < 5 * math.sqrt(expected / field.numel())


@pytest.mark.parametrize('factor', [1., 1.7, 3., 4.])
def test_a_grey_scene_keeps_its_light(factor):
    plane = project(torch.full((3, 45, 62), .3), CANON, factor, (.3, -.7))
    assert plane.shape == (3, math.ceil(45 / factor) + 2 * MARGIN, math.ceil(62 / factor) + 2 * MARGIN)
    assert torch.allclose(plane, torch.full_like(plane, .3))


def test_demosaicing_keeps_colours_in_order_and_in_place():
    y, x = torch.meshgrid(torch.arange(24.), torch.arange(32.), indexing='ij')
    ramps = torch.stack([.1 + .02 * x, .3 + .01 * y, .8 - .01 * x - .01 * y]).double()
    plain = Colour(torch.ones(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    assert (demosaic(mosaic(ramps), plain) - ramps)[:, 5:-5, 5:-5].abs().max() < 2e-4


def test_registration_undoes_the_phase():
    light = scene()[:, 16:80, 16:112].double()
    views = [register(project(light, CANON, 1.5, phase), light.shape[-2:], 1.5, phase) for phase in ((0., 0.), (.5, -.5))]
    assert (views[0] - views[1]).square().mean().sqrt() < .1 * (views[0] - light).square().mean().sqrt() + .02


def test_a_factor_one_shot_lies_on_the_scene():
    path = photographs('test')[0]
    photo = read_image(path)
    shot = shoot(photo, 1., CANON, scene=path.stem)
    planes = (image.mean(0).numpy()[16:-16, 16:-16] for image in (photo, shot))
    assert abs(phase_cross_correlation(*planes, upsample_factor=100, normalization=None)[0]).max() < .05


@pytest.mark.parametrize('factor', [2.1, 3., 3.75])
def test_a_shot_is_displaced_by_its_residual(factor):
    y, x = ((torch.arange(n) - (n - 1) / 2) ** 2 for n in (96, 128))
    dot = (.4 + .2 * torch.exp(-(y[:, None] + x) / 162)).expand(3, 96, 128)
    shot = shoot(dot, factor, replace(CANON, offset=0.), scene='dot', noise=False).double().mean(0)
    weight = shot - shot[0, 0]
    centre = [(weight.sum(1 - axis) * (torch.arange(n) - (n - 1) / 2)).sum() / weight.sum() for axis, n in enumerate((96, 128))]
    shift = draw_residuals(CANON, factor, scene='dot').shift
    assert all(abs(found + drawn) < .05 for found, drawn in zip(centre, shift))


@pytest.mark.parametrize('factor', [1., 2.5, 3])
def test_same_arguments_same_bytes(factor):
    photo, threads = scene(), torch.get_num_threads()
    first = shoot(photo, factor, CANON, seed=5, scene='a')
    torch.manual_seed(0)
    torch.set_num_threads(1 + threads % 2)
    again = shoot(photo, float(factor), 'canon', seed=5, scene='a')
    torch.set_num_threads(threads)
    assert torch.equal(first, again)
    for other in (dict(seed=6), dict(scene='b'), dict(camera='nikon')):
        assert not torch.equal(first, shoot(**{'photo': photo, 'factor': factor, 'camera': 'canon', 'seed': 5, 'scene': 'a'} | other))


def test_a_shot_is_exact_in_eight_bits_and_of_any_size():
    for size in ((37, 5), (64, 48)):
        for camera in (CANON, replace(CANON, jpeg_quality=90)):
            shot = shoot(scene(*size), 3.3, camera)
            assert shot.shape == (3, *size) and shot.dtype == torch.float32
            assert torch.equal(to_tensor(to_pixels(shot)), shot)


@pytest.mark.parametrize('name', CAMERAS)
def test_noise_false_is_the_same_shot_without_noise(name):
    grey = torch.full((3, 120, 160), .5)
    truth = shoot(grey, 3., name, scene='g', noise=False)
    difference = 255 * torch.stack([shoot(grey, 3., name, scene='g', take=take) - truth for take in range(8)])
    assert difference.mean().abs() < .2
    assert 2.5 < difference.std((2, 3)).mean() < 4
    clean = shoot(scene(), 3., name, noise=False)
    assert not torch.equal(to_tensor(to_pixels(clean)), clean), 'not rounded'


def test_takes_differ_in_noise_alone():
    photo = scene()
    first, second = (shoot(photo, 2.5, CANON, scene='a', take=take) for take in (0, 1))
    truth = shoot(photo, 2.5, CANON, scene='a', noise=False)
    assert torch.equal(first, shoot(photo, 2.5, CANON, scene='a')) and not torch.equal(first, second)
    assert torch.equal(truth, shoot(photo, 2.5, CANON, scene='a', noise=False, take=1))
    errors = torch.stack([(first - truth).flatten(), (second - truth).flatten()])
    assert torch.corrcoef(errors)[0, 1].abs() < .5, 'independent but for what processing itself changes'


@pytest.mark.parametrize('wrong', [dict(factor=.99), dict(factor=4.01), dict(factor=math.nan), dict(camera='pentax'),
                                   dict(photo=torch.rand(1, 8, 8)), dict(photo=torch.full((3, 8, 8), math.nan)),
                                   dict(photo=torch.rand(2, 3, 8, 8))])
def test_faults_are_told_in_one_line(wrong):
    with pytest.raises(InterflowError) as fault:
        shoot(**{'photo': torch.rand(3, 8, 8), 'factor': 2., 'camera': 'canon'} | wrong)
    assert '\n' not in str(fault.value)


def test_an_unknown_camera_is_answered_with_the_known_ones():
    with pytest.raises(InterflowError, match='canon, nikon'):
        get_camera('pentax')


def test_an_upright_edge_is_refused():
    with pytest.raises(InterflowError, match='tilt'):
        measure_mtf(slanted_edge((100, 100), angle=0.))
