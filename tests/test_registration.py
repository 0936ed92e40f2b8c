"""Registration: exact to a tenth of a pixel on shots with a known truth, refused where it is doubtful, written whole."""
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from interflow import aligning
from interflow.aligning import align_folder, align_scene, find_scenes, shared_factors
from interflow.aligning.scenes import find_hr, open_shot, register_scene
from interflow.camera import register, sensor_positions
from interflow.core import InterflowError, photographs, read_image, to_pixels, write_image
from interflow.data import PairBatches, read_set
from interflow.registration import (
    Limits,
    Registration,
    align_pixels,
    apply_registration,
    inspect_pair,
    register_pair,
    registration_of,
)
from interflow.registration.truth import Move, error_of, shoot_pair
from interflow.registration.warp import warp_of

HAND = dict(turn=1.3, shift=(6.3, -4.2), tilt=(.012, -.008))
BARN, FIG, FLOWER, RACCOON = (read_image(photographs('test')[i]) for i in (5, 2, 3, 6))


def error_inside(found, truth, factor):
    "Mean true error over the kept region, HR pixels."
    return error_of(found.warp, truth, factor, found.crop)[0]


# ---------------------------------------------------------------- exactness

def test_the_ruler_is_honest():
    "The truth scores 0, a truth that is moved by half a pixel scores half a pixel."
    hr, _, truth = shoot_pair(BARN, 3., Move(**HAND))
    whole = (0, 0, *hr.shape[-2:])
    assert error_of(truth, truth, 3., whole) == (0, 0)
    mean, most = error_of(lambda x, y: truth(x + .3, y + .4), truth, 3., whole)
    assert abs(mean - .5) < .02 and abs(most - .5) < .02


@pytest.mark.parametrize('factor, radial, photo, limit', [
    (1.3, .01, BARN, .1), (2., .01, RACCOON, .05), (2., .01, FIG, .1), (2.1, 0., BARN, .05), (2.1, -.01, BARN, .05),
    (3., .01, BARN, .1), (3., .01, FLOWER, .1), (3.75, .01, BARN, .1), (3.75, .01, FLOWER, .1), (3.75, .01, RACCOON, .1),
    (3., .01, FIG, .12), (3.75, .01, FIG, .13)])     # few edges, all between strong colours: see room registration.refinement
def test_exact_to_a_tenth_of_a_pixel(factor, radial, photo, limit):
    hr, lr, truth = shoot_pair(photo, factor, Move(**HAND, radial=radial))
    found = register_pair(hr, lr)
    assert error_inside(found, truth, factor) < limit
    assert abs(found.factor / factor - 1) < .01 and abs(found.rotation - 1.3) < .1
    top, left, bottom, right = found.crop
    assert (bottom - top) * (right - left) > .8 * hr.shape[-2] * hr.shape[-1]
    assert found.displacement < .3 and found.foreign < .02


@pytest.mark.parametrize('change', [dict(exposure=.8), dict(exposure=1.2), dict(iso=25600.)])
def test_exposure_and_noise_do_not_move_the_shot(change):
    hr, lr, truth = shoot_pair(BARN, 2.1, Move(**HAND, **change))
    found = register_pair(hr, lr)
    assert error_inside(found, truth, 2.1) < .1
    plain = register_pair(hr, shoot_pair(BARN, 2.1, Move(**HAND))[1])
    assert np.sign(round(np.mean(found.gain) - np.mean(plain.gain), 1)) == np.sign(1 - change.get('exposure', 1))


def test_gain_and_offset_are_undone():
    hr, lr, _ = shoot_pair(BARN, 2.1, Move(**HAND))
    change = torch.tensor([.9, .8, .95])[:, None, None]
    found, plain = register_pair(hr, (lr * change + .03).clamp(0, 1)), register_pair(hr, lr)
    assert np.allclose(np.array(found.gain) * change.ravel().numpy(), plain.gain, atol=.02)
    aligned = apply_registration(lr * change + .03, found)
    assert (aligned - apply_registration(lr, plain)).abs().mean() < .01


@pytest.mark.parametrize('factor', [2.1, 3.75])
def test_somebody_small_is_reported_and_does_not_drag_the_warp(factor):
    moving = BARN.clone()
    moving[:, 200:290, 300:360] = BARN[:, 300:390, 500:560]
    hr, _, truth = shoot_pair(BARN, factor, Move(**HAND))
    found = register_pair(hr, shoot_pair(moving, factor, Move(**HAND))[1])
    assert 0 < found.foreign < .15 and error_inside(found, truth, factor) < .1


def test_shifted_shots_of_real_cameras_are_found_back():
    "A warp that is known, of a part of the LR shot: what registration finds is moved by as much."
    hr, lr, truth = shoot_pair(FLOWER, 2.1)
    whole, part = register_pair(hr, lr), register_pair(hr, lr[:, 7:, 12:])
    x, y = np.meshgrid(np.arange(40., 600, 80), np.arange(40., 400, 80))
    moved = np.subtract(whole.warp(x, y), part.warp(x, y)) - np.array([12, 7])[:, None, None]
    assert np.hypot(*moved).max() * 2.1 < .02


# ---------------------------------------------------------------- enlarging

@pytest.mark.parametrize('factor', [2.1, 3.75])
def test_enlarged_as_the_camera_does_it(factor):
    "With nothing but a factor between the shots, the result is the camera's own registration: it lies in the same band."
    size, shot = (130, 174), torch.rand(3, *(len(sensor_positions(n, factor)) for n in (130, 174)))
    first = [sensor_positions(n, factor)[0].item() for n in size[::-1]]
    matrix = np.array([[1, 0, -first[0]], [0, 1, -first[1]], [0, 0, factor]])
    plain = Registration(warp_of(matrix, size), (1., 1., 1.), (0., 0., 0.), factor, 0., .6, 9, 1., 0., 0., 0., (0, 0, *size))
    ours = apply_registration(shot, plain)
    assert torch.allclose(ours, register(shot.double(), size, factor).float().clamp(0, 1), atol=1e-5)
    assert torch.equal(apply_registration(shot, plain, (70, 4, 130, 80)), ours[:, 70:, 4:80])
    pixels = to_pixels(shot)
    seen = apply_registration(torch.from_numpy(pixels).permute(2, 0, 1) / 255, plain)
    assert np.abs(align_pixels(pixels, plain).astype(int) - to_pixels(seen)).max() <= 1


def test_a_record_comes_back_the_same():
    hr, lr, _ = shoot_pair(BARN, 2.1)
    found = register_pair(hr, lr)
    again = registration_of(json.loads(json.dumps(found.record())))
    assert again == found
    assert torch.equal(apply_registration(lr, again), apply_registration(lr, found))
    assert not inspect_pair(hr, lr, again).foreign.any()


# ---------------------------------------------------------------- refusals

def test_doubtful_pairs_are_refused_with_the_reason():
    hr, lr, _ = shoot_pair(BARN, 2.1)
    walked = BARN.clone()
    walked[:, 130:390, 300:560] = BARN[:, 120:380, 260:520]
    for other, words in [(shoot_pair(FLOWER, 2.1)[1], 'same scene'), (torch.full_like(lr, .5), 'only 0 features'),
                         (shoot_pair(BARN, 2.1, Move(turn=20))[1], 'turned by 20'), (lr[..., :110], 'shows only'),
                         (shoot_pair(walked, 2.1)[1], 'too much has moved'), (hr[:, :9, :9], 'features')]:
        with pytest.raises(InterflowError, match=words):
            register_pair(hr, other)
    with pytest.raises(InterflowError, match='longer focal length'):
        register_pair(lr, hr)
    with pytest.raises(InterflowError, match='above 2'):
        register_pair(hr, lr, Limits(factors=(1., 2.)))
    with pytest.raises(InterflowError, match='correlation'):
        register_pair(hr, lr, Limits(likeness=.9999))
    apart = BARN.clone()
    apart[..., 384:] = BARN[..., 380:-4]          # a far half and a near one, from another place
    for displaced in (.5, 9.):
        try:
            register_pair(hr, shoot_pair(apart, 2.1)[1], Limits(displaced=displaced))
            assert displaced == 9.
        except InterflowError as fault:
            assert displaced == .5 and ('still off by' in str(fault) or 'of the HR shot are aligned' in str(fault))


def test_no_more_than_the_middle_is_kept_where_asked():
    hr, lr, _ = shoot_pair(BARN, 2.1)
    assert register_pair(hr, lr, Limits(crop=.8)).crop == (43, 66, 389, 590)


# ---------------------------------------------------------------- shots

def write_shot(path, image, focal=None, film=None, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in ((0x920A, focal), (0xA405, film)):
        if value is not None:
            exif.get_ifd(0x8769)[tag] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_pixels(image)).save(path, exif=exif)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_shots_are_read_upright(tmp_path, orientation):
    write_shot(tmp_path / 'a.png', torch.rand(3, 7, 11), orientation=orientation)
    with Image.open(tmp_path / 'a.png') as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(to_pixels(open_shot(tmp_path / 'a.png').read()), upright)


def test_the_long_shot_is_found(tmp_path):
    hr, lr, _ = shoot_pair(BARN, 2.1)
    far = shoot_pair(BARN, 3.)[1]

    def found(*lengths, films=(None, None, None)):
        for name, image, focal, film in zip('abc', (lr, hr, far), lengths, films):
            write_shot(tmp_path / f'{name}.png', image, focal, film)
        return find_hr([open_shot(tmp_path / f'{name}.png') for name in 'abc']).path.stem

    assert found(50., 105., 35.) == 'b'
    assert found(105., 50., 35.) == 'a', 'EXIF is believed'
    assert found(105., 50., 35., films=(50, 105, 35)) == 'b', 'what is comparable comes first'
    assert found(None, None, None) == found(50., None, 35.) == found(50., 50., 50.) == 'b', 'by features'
    assert found(0., 0., 0.) == 'b'


# ---------------------------------------------------------------- sets

@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    "Two scenes at two factors, and one whose shots are of different scenes."
    folder = tmp_path_factory.mktemp('shots')
    for seed, (name, photo, factors) in enumerate([('barn', BARN, (2.1, 3.)), ('raccoon', read_image(photographs('test')[6]), (2.07, 3.05))]):
        write_image(folder / name / 'long.png', shoot_pair(photo, 2.)[0])
        for i, factor in enumerate(factors):
            write_image(folder / name / f'wide_{i}.png', shoot_pair(photo, factor, Move(turn=1 - i, radial=.01), seed)[1])
    write_image(folder / 'strange' / 'long.png', shoot_pair(BARN, 2.)[0])
    write_image(folder / 'strange' / 'wide.png', shoot_pair(FIG, 2.)[1])
    (folder / 'empty').mkdir()
    return folder


@pytest.fixture(scope='module')
def aligned(shots, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp('out') / 'set', []
    return out, lines, align_folder(shots, out, lines.append)


def test_a_folder_becomes_a_set(shots, aligned):
    out, lines, (names, refused) = aligned
    assert names == ['barn', 'raccoon'] and set(refused) == {'strange', 'empty'}
    assert lines[-1] == '2 scenes aligned, 2 refused' and all('\n' not in line for line in lines)
    assert [line.split(':')[0] for line in lines[:-1]] == ['refused', 'refused', 'x2.08', 'x3.02', lines[-2].split(':')[0]]
    scenes = read_set(out)
    assert [scene.name for scene in scenes] == names and list(scenes[0].lr) == list(scenes[1].lr), 'one folder for a zoom setting'
    batch = PairBatches(scenes, tuple(scenes[0].lr), 64, 2)(0)
    assert batch['lr'].shape == (2, 2, 3, 64, 64)
    record = json.loads((out / 'registration.json').read_text())
    for scene in scenes:
        top, left, bottom, right = record['scenes'][scene.name]['box']
        hr = read_image(scene.hr)
        assert torch.equal(hr, read_image(shots / scene.name / 'long.png')[:, top:bottom, left:right]), 'HR keeps its pixels'
        assert not hr.shape[-1] % 4 and not hr.shape[-2] % 4
        assert (out / 'pictures' / f'{scene.name}.png').exists()
        for one, factor in zip(record['scenes'][scene.name]['lr'], scene.lr):
            assert abs(one['factor'] / factor - 1) < .03 and one['folder'] == f'x{factor:g}'
    assert set(record['refused']) == {'strange', 'empty'}
    assert not list(out.rglob('*.part'))


def test_a_run_that_was_interrupted_goes_on(shots, aligned, tmp_path, monkeypatch):
    out, _, _ = aligned
    write = aligning.write_image
    count = iter(range(100))

    def fails(path, image):
        if next(count) == 5:        # the last image of the second scene
            raise KeyboardInterrupt
        write(path, image)

    monkeypatch.setattr(aligning, 'write_image', fails)
    with pytest.raises(KeyboardInterrupt):
        align_folder(shots, tmp_path / 'set', lambda line: None)
    assert [scene.name for scene in read_set(tmp_path / 'set')] == ['barn'], 'half a scene is none'
    monkeypatch.setattr(aligning, 'write_image', write)
    registered = []
    monkeypatch.setattr(aligning, 'register_scene', lambda paths, *how: registered.append(paths[0].parent.name) or register_scene(paths, *how))
    align_folder(shots, tmp_path / 'set', lambda line: None)
    assert registered == ['strange'], 'the refused one alone is tried again'
    for path in out.rglob('*.png'):
        if path.parent.name != 'pictures':
            assert path.read_bytes() == (tmp_path / 'set' / path.relative_to(out)).read_bytes()


def test_nothing_is_overwritten(shots, aligned, tmp_path):
    out, _, _ = aligned
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob('*.png')}
    align_folder(shots, out, lambda line: None)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob('*.png')} == before
    write_image(tmp_path / 'barn' / 'a.png', BARN)
    write_image(tmp_path / 'barn' / 'b.png', BARN)
    with pytest.raises(InterflowError, match='from other shots'):
        align_scene(list((tmp_path / 'barn').iterdir()), out)
    write_image(tmp_path / 'mine' / 'HR' / 'a.png', BARN)
    with pytest.raises(InterflowError, match='of no run here'):
        align_folder(shots, tmp_path / 'mine', lambda line: None)
    with pytest.raises(InterflowError, match='no scene could be aligned'):
        align_folder(shots / 'strange', tmp_path / 'none', lambda line: None)
    with pytest.raises(InterflowError, match='both of one scene'):
        align_scene(sorted((shots / 'strange').iterdir()), tmp_path / 'none', 'odd')


def test_scenes_of_a_folder(shots, tmp_path):
    assert {name: len(paths) for name, paths in find_scenes(shots).items()} == {'barn': 3, 'empty': 0, 'raccoon': 3, 'strange': 2}
    assert list(find_scenes(shots / 'barn')) == ['barn']
    write_image(tmp_path / 'day' / 'one' / 'a.png', BARN)
    assert list(find_scenes(tmp_path)) == ['day/one'], 'a scene is the folder that holds its shots'
    write_image(tmp_path / 'b.png', BARN)
    with pytest.raises(InterflowError, match='beside the folders'):
        find_scenes(tmp_path)
    (tmp_path / 'nothing').mkdir()
    for folder, words in ((tmp_path / 'none', 'no such folder'), (tmp_path / 'nothing', 'no photograph')):
        with pytest.raises(InterflowError, match=words):
            find_scenes(folder)


def test_factors_share_a_folder_where_they_are_near():
    assert shared_factors([2.08, 2.11, 2.1, 3.]) == {2.08: 2.1, 2.1: 2.1, 2.11: 2.1, 3.: 3.}
    assert shared_factors([2.14, 3.], standing=[2.1]) == {2.14: 2.1, 3.: 3.}, 'a folder keeps its name'
    assert shared_factors([2.1, 2.3]) == {2.1: 2.1, 2.3: 2.3} and shared_factors([]) == {}
