"""interflow align: from a photographer's folder to a set of pairs, with a word about everything that was left out."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_pages import check_page
from torch.nn.functional import pad
from typer.testing import CliRunner

from interflow.cli import app
from interflow.core import InterflowError, photographs, read_image, read_pixels, to_pixels
from interflow.data import read_scene, read_set
from interflow.registration.truth import Move, shoot_pair

BARN, FIG, FLOWER = (read_image(photographs('test')[i]) for i in (5, 2, 3))
HAND = Move(turn=.7, shift=(4, -7), tilt=(.006, -.004), radial=.01)
SIDE = 0x0112, 0x8769, 0x920A, 0xA405       # orientation; EXIF: focal length, as of 35 mm film


def write_shot(path, image, focal=None, film=None, orientation=1, **save):
    "As a camera writes it, of one size for all focal lengths; beyond what was simulated a wide shot sees a mirror."
    height, width = ((there - here) // 2 for there, here in zip((432, 656), image.shape[-2:]))
    image = pad(image, (width, width, height, height), 'reflect')
    pixels = Image.fromarray(to_pixels(image))
    if orientation == 6:        # held upright: stored lying
        pixels = pixels.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[SIDE[0]] = orientation
    for tag, value in zip(SIDE[2:], (focal, film)):
        if value is not None:
            exif.get_ifd(SIDE[1])[tag] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels.save(path, exif=exif, **save)


def align(*words):
    "(what the command says, its fault or None)"
    result = CliRunner().invoke(app, ['align', *map(str, words)])
    if result.exception and not isinstance(result.exception, (InterflowError, SystemExit)):
        raise result.exception
    return result.output, result.exception


def record(out):
    return json.loads((out / 'registration.json').read_text())


@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    "Barn at three focal lengths, flower below another folder, one scene of two scenes, one of raw files alone."
    folder = tmp_path_factory.mktemp('shots')
    hr, lr, _ = shoot_pair(BARN, 2.1, HAND)
    write_shot(folder / 'barn' / 'DSC_105.JPG', hr, 105., quality=97)
    write_shot(folder / 'barn' / 'DSC_50.JPG', lr, 50., quality=97)
    write_shot(folder / 'barn' / 'DSC_35.JPG', shoot_pair(BARN, 3., HAND)[1], 35., quality=97)
    hr, lr, _ = shoot_pair(FLOWER, 2.1, HAND, 1)
    write_shot(folder / 'day 2' / 'flower' / 'long.png', hr)
    write_shot(folder / 'day 2' / 'flower' / 'wide.png', lr)
    write_shot(folder / 'odd' / 'long.png', hr, 105.)
    write_shot(folder / 'odd' / 'wide.png', shoot_pair(FIG, 2.1)[1], 50.)
    (folder / 'raw').mkdir()
    for name in ('a.NEF', 'b.nef', 'c.heic'):
        (folder / 'raw' / name).write_bytes(b'raw')
    return folder


@pytest.fixture(scope='module')
def aligned(shots, tmp_path_factory):
    out = tmp_path_factory.mktemp('out') / 'set'
    return out, *align(shots, out, '--processes', 1)


def test_what_can_be_aligned_is_a_set(aligned):
    out, _, _ = aligned
    scenes = {scene.name: scene for scene in read_set(out)}
    assert list(scenes) == ['barn', 'day 2/flower']
    assert list(scenes['barn'].lr) == [2.1, 3.0] and list(scenes['day 2/flower'].lr) == [2.1]
    hr, near, far = read_scene(scenes['barn'], (2.1, 3.))
    assert hr.shape == near.shape == far.shape
    assert 1 < np.abs(hr - near.astype(float)).mean() < 12 and np.abs(hr - far.astype(float)).mean() < 15


def test_what_was_refused_is_said_and_ends_with_code_1(aligned):
    out, said, fault = aligned
    assert fault.exit_code == 1 and '2 of 4 scenes refused' in str(fault)
    assert set(record(out)['refused']) == {'odd', 'raw'}
    assert 'is it the same scene?' in record(out)['refused']['odd'] and 'two are needed' in record(out)['refused']['raw']
    assert f'The report: {out / "report.html"}' in said


def test_all_that_was_measured_is_kept(aligned):
    out, _, _ = aligned
    barn, flower = (record(out)['scenes'][name] for name in ('barn', 'day 2/flower'))
    assert [one['told'] for one in barn['lr']] == [2.1, 3.] and [one['told'] for one in flower['lr']] == [None]
    for one in barn['lr'] + flower['lr']:
        assert abs(one['rotation'] - .7) < .1 and one['displacement'] < .3 and len(one['gain']) == 3
    read = check_page(out / 'report.html')
    assert read.tags.count('img') == 2 and 'day 2/flower' in read.text['figcaption'] and 'same scene' in read.text['li']
    assert '2 of 4 scenes are aligned, 2 refused.' in read.text['p']
    assert (out / 'pictures' / 'day 2' / 'flower.png').exists()


@pytest.mark.parametrize('suffix, words', [('.nef', 'RAW: develop'), ('.heic', 'HEIC: convert')])
def test_raw_files_are_named_with_what_to_do(shots, tmp_path, caplog, suffix, words):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / f'a{suffix}').write_bytes(b'raw')
    _, fault = align(tmp_path, tmp_path.with_name('none'))
    assert fault.exit_code == 2 and 'holds no photograph' in str(fault)
    assert words in caplog.text and 'raw/a' in caplog.text


def test_the_same_command_goes_on_and_overwrites_nothing(shots, aligned):
    out, _, _ = aligned
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob('*.png')}
    lost = out / 'x3' / 'barn.png'
    pixels = read_pixels(lost)
    lost.unlink()
    _, fault = align(shots, out)
    assert fault.exit_code == 1 and np.array_equal(read_pixels(lost), pixels)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob('*.png') if path != lost} \
        == {path: kept for path, kept in before.items() if path != lost}
    for words, told in ((('--crop', .9), 'limits.crop = 1.0, not 0.9'), (('--factors', '2.1'), 'factors = all, not 2.1')):
        _, fault = align(shots, out, *words)
        assert fault.exit_code == 2 and told in str(fault)
    _, fault = align(shots, shots / 'barn' / 'set')
    assert fault.exit_code == 2 and 'lies in the input folder' in str(fault)
    assert not (shots / 'barn' / 'set').exists()


def test_processes_are_not_seen_in_the_bytes(shots, aligned, tmp_path):
    out, _, _ = aligned
    run = subprocess.run([sys.executable, '-c', 'from interflow.cli import main; main()', 'align', shots, tmp_path / 'set', '--processes', '2'],
                         capture_output=True, text=True)
    assert run.returncode == 1 and 'Traceback' not in run.stderr
    assert 'refused: ' in run.stderr and '2 of 4 scenes refused' in run.stderr
    images = [path for path in out.rglob('*.png') if path.parts[-2] != 'pictures' and 'pictures' not in path.parts]
    assert len(images) == 5
    for path in images:
        assert path.read_bytes() == (tmp_path / 'set' / path.relative_to(out)).read_bytes()
    assert record(tmp_path / 'set')['scenes'] == record(out)['scenes']


def test_factors_that_are_asked_for_alone(shots, tmp_path):
    _, fault = align(shots / 'barn', tmp_path / 'set', '--factors', '2.12', '--crop', .8)
    assert fault is None
    scene, = read_set(tmp_path / 'set')
    assert list(scene.lr) == [2.12], 'the folder is called as asked for'
    assert read_pixels(scene.hr).shape[0] <= .8 * 432 and 'not asked for' in str(record(tmp_path / 'set')['scenes']['barn']['notices'])


def test_where_all_are_refused_the_code_is_2(shots, tmp_path):
    said, fault = align(shots / 'odd', tmp_path / 'set')
    assert fault.exit_code == 2 and 'no scene could be aligned' in str(fault)


def test_shots_are_upright_and_in_8_bit_rgb(tmp_path, caplog):
    "One was held upright, as its EXIF tells; others are grey, which is said once and counted."
    hr, lr, _ = shoot_pair(BARN, 2.1, HAND)
    write_shot(tmp_path / 'shots' / 'long.jpg', hr, film=105, orientation=6, quality=98)
    write_shot(tmp_path / 'shots' / 'wide.jpg', lr, film=50, orientation=1, quality=98)
    _, fault = align(tmp_path / 'shots', tmp_path / 'set')
    assert fault is None
    scene, = read_set(tmp_path / 'set')
    top, left, bottom, right = record(tmp_path / 'set')['scenes']['shots']['box']
    assert np.abs(read_pixels(scene.hr) - to_pixels(hr)[top:bottom, left:right].astype(int)).mean() < 3
    grey = Image.open(tmp_path / 'shots' / 'wide.jpg').convert('L')
    (tmp_path / 'grey').mkdir()
    grey.save(tmp_path / 'grey' / 'wide.png')
    Image.fromarray(to_pixels(hr)).convert('L').save(tmp_path / 'grey' / 'long.png')
    _, fault = align(tmp_path / 'grey', tmp_path / 'set of grey')
    assert fault is None and caplog.text.count('grey, read as RGB') == 2, 'one line for the first, and their count'
    assert torch.equal(*(read_image(next((tmp_path / 'set of grey' / 'HR').iterdir()))[i] for i in (0, 2)))


def test_a_zoom_by_computing_is_doubted(tmp_path, caplog):
    hr, lr, _ = shoot_pair(FLOWER, 2.1, HAND)
    write_shot(tmp_path / 'shots' / 'long.jpg', hr, 52.)
    write_shot(tmp_path / 'shots' / 'wide.jpg', lr, 50.)
    _, fault = align(tmp_path / 'shots', tmp_path / 'set')
    assert fault is None and 'factor 1.04 by its focal length, 2.10 as measured' in caplog.text


def test_help_has_an_example_and_loads_no_torch():
    code = ("import sys\nfrom interflow.cli import main\nsys.argv = ['interflow', 'align', '--help']\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'interflow.aligning' not in sys.modules")
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 0 and 'interflow align shots set --factors' in run.stdout
