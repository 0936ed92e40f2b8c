"simulate and its cameras: the same bytes in any number of processes, one photograph in memory, names, takes, broken files, cameras as text files."
import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from interflow import clusters, costs, data
from interflow.camera import CAMERAS, MEASURED, get_camera
from interflow.cameras import KEYS, describe_camera, find_camera, read_camera
from interflow.cli import main
from interflow.core import InterflowError
from interflow.data import Processing, read_set, simulate, simulation
from interflow.photographs import LeftAside, read_photograph


def picture(seed, size=(48, 64)):
    "Smooth colours with fine grain, (H, W, 3) uint8."
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(coarse) + random.normal(0, 6, (*size, 3)), 0, 255).astype(np.uint8)


def save(path, seed=0, size=(48, 64), **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, size)).save(path, **more)
    return path


def content(out):
    "Every image of a set by its name."
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob('*.png'))}


@pytest.fixture
def photos(tmp_path):
    for k in range(4):
        save(tmp_path / f'photos/p{k}.png', k)
    return tmp_path / 'photos'


def run(monkeypatch, capsys, *words):
    "Exit code and what was printed on both streams."
    monkeypatch.setattr(sys, 'argv', ['interflow', *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
        raise SystemExit(0)
    told = capsys.readouterr()
    return end.value.code or 0, told.out, told.err


# ---------------------------------------------------------------- processes and memory

def test_any_number_of_processes_makes_the_same_bytes(photos, tmp_path):
    for processes in (1, 2):
        scenes = simulate(photos, tmp_path / f'set{processes}', (2.1, 3.), takes=2, how=Processing(processes))
        assert len(scenes) == 8
    assert content(tmp_path / 'set1') == content(tmp_path / 'set2') and len(content(tmp_path / 'set1')) == 4 * 2 * 3
    assert (tmp_path / 'set1/set.json').read_bytes() == (tmp_path / 'set2/set.json').read_bytes()


def test_a_shot_depends_on_seed_and_name_alone(photos, tmp_path):
    simulate(photos, tmp_path / 'all', (2.1,))
    simulate([photos / 'p2.png'], tmp_path / 'one', (2.1, 3.))
    assert content(tmp_path / 'one')['x2.1/p2.png'] == content(tmp_path / 'all')['x2.1/p2.png']


def test_one_photograph_is_in_memory(photos, tmp_path, monkeypatch):
    alive = []

    def read(path):
        gc.collect()
        assert sum(one() is not None for one in alive) <= 1, 'the last one may still be named'
        photograph = read_photograph(path)
        alive.append(weakref.ref(photograph.pixels))
        return photograph
    monkeypatch.setattr(simulation, 'read_photograph', read)
    simulate(photos, tmp_path / 'set', (2.1,))
    assert len(alive) == 4


def test_the_doors_shoot_takes_the_shots(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(data, 'shoot', lambda *rest, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simulate(photos, tmp_path / 'set', (2.1,))


def test_what_is_there_is_neither_read_nor_written_again(photos, tmp_path, monkeypatch):
    simulate(photos, tmp_path / 'set', (2.1,))
    before = content(tmp_path / 'set')
    (tmp_path / 'set/x2.1/p1.png').unlink()
    (tmp_path / 'set/x2.1/.p1.png.123.part').write_bytes(b'torn')
    read = []
    monkeypatch.setattr(simulation, 'read_photograph', lambda path: read.append(path.name) or read_photograph(path))
    simulate(photos, tmp_path / 'set', (2.1,))
    assert read == ['p1.png'] and content(tmp_path / 'set') == before
    assert not list((tmp_path / 'set').rglob('.*.part'))


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(tmp_path):
    for k in range(6):
        save(tmp_path / f'photos/p{k}.png', k, (300, 400))
    words = ['simulate', 'photos', 'set', '--factors', '2.1,3.0', '--processes', '2']
    call = [sys.executable, '-c', 'from interflow.cli import main; main()', *words]
    running = subprocess.Popen(call, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    limit = time.monotonic() + 120
    while not list(tmp_path.glob('set/*/*.png')) and time.monotonic() < limit:
        time.sleep(.05)
    os.killpg(running.pid, signal.SIGINT)      # as a terminal does: to all processes
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and 'Traceback' not in told and 'the same command goes on' in told
    assert len(list(tmp_path.glob('set/*/*.png'))) < 18
    simulate(tmp_path / 'photos', tmp_path / 'set', (2.1, 3.))
    simulate(tmp_path / 'photos', tmp_path / 'whole', (2.1, 3.))
    assert content(tmp_path / 'set') == content(tmp_path / 'whole')


def test_a_killed_process_and_a_full_disk_end_it_in_one_line(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, 'in_processes', lambda *rest: iter([[0], [0, -9]]))
    with pytest.raises(InterflowError, match='code -9.*fewer --processes'):
        simulate(photos, tmp_path / 'killed', (2.1,), how=Processing(2))

    def full(path, values):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(InterflowError, match=r'set/HR/p0.png: the disk is full'):
        simulate(photos, tmp_path / 'set', (2.1,))


# ---------------------------------------------------------------- names, takes, factors

def test_sub_folders_stay(tmp_path):
    for k, name in enumerate(('a.png', 'sea/a.png', 'sea/deep/[x] 1.5.tif')):
        save(tmp_path / 'photos' / name, k)
    scenes = simulate(tmp_path / 'photos', tmp_path / 'set', (2.1,))
    assert sorted(scene.name for scene in scenes) == ['a', 'sea/a', 'sea/deep/[x] 1.5']
    assert set(content(tmp_path / 'set')) == {f'{folder}/{name}.png' for folder in ('HR', 'x2.1') for name in ('a', 'sea/a', 'sea/deep/[x] 1.5')}


def test_no_photograph_is_lost_to_its_twin(tmp_path):
    save(tmp_path / 'photos/a.png', 1)
    save(tmp_path / 'photos/a.jpg', 2)
    lines = []
    scenes = simulate(tmp_path / 'photos', tmp_path / 'set', (2.1,), how=Processing(say=lines.append))
    assert [scene.name for scene in scenes] == ['a.jpg', 'a.png'] and 'ending' in lines[0]
    save(tmp_path / 'other/a.png', 3)
    with pytest.raises(InterflowError, match='other/a.png.*same name.*rename'):
        simulate([tmp_path / 'photos/a.png', tmp_path / 'other/a.png'], tmp_path / 'two', (2.1,))
    assert not (tmp_path / 'two').exists()


def test_takes_are_scenes_with_one_hr_image(photos, tmp_path):
    simulate(photos, tmp_path / 'one', (2.1,))
    scenes = {scene.name: scene for scene in simulate(photos, tmp_path / 'three', (2.1,), takes=3)}
    assert sorted(scenes) == sorted(f'p{k}{end}' for k in range(4) for end in ('', '_t1', '_t2'))
    taken = [scenes[name] for name in ('p0', 'p0_t1', 'p0_t2')]
    assert all(scene.hr.samefile(taken[0].hr) for scene in taken)
    assert len({scene.lr[2.1].read_bytes() for scene in taken}) == 3
    assert {name: content(tmp_path / 'three')[name] for name in content(tmp_path / 'one')} == content(tmp_path / 'one'), 'take 0 is the shot itself'
    save(photos / 'p0_t1.png', 9)
    with pytest.raises(InterflowError, match='p0_t1.png: take 1 of p0'):
        simulate(photos, tmp_path / 'clash', (2.1,), takes=2)


def test_a_range_may_contain_hr(photos, tmp_path, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, 'simulate', photos, tmp_path / 'set', '--factors', '1:2:0.25')
    assert code == 0 and '4 scenes at 4 factors' in out
    assert list(read_set(tmp_path / 'set')[0].lr) == [1.25, 1.5, 1.75, 2.]
    code, _, told = run(monkeypatch, capsys, 'simulate', photos, tmp_path / 'hr', '--factors', '1')
    assert code == 2 and 'above 1' in told and not (tmp_path / 'hr').exists()


@pytest.mark.parametrize('words, told', [
    (('--factors', '2,5'), 'factor 5'), (('--factors', '2.1,2.10000001'), 'x2.1'), (('--scale', '2'), 'scale 2'), (('--takes', '0'), 'takes 0'),
    (('--iso', '64'), 'ISO 64'), (('--camera', 'leica'), 'leica'), (('--camera', 'absent.toml'), 'absent.toml')])
def test_settings_that_cannot_be_write_nothing(photos, tmp_path, monkeypatch, capsys, words, told):
    code, _, lines = run(monkeypatch, capsys, 'simulate', photos, tmp_path / 'set', *words)
    assert code == 2 and told in lines and len(lines.strip().splitlines()) == 1 and not (tmp_path / 'set').exists()


def test_a_set_lies_neither_in_its_photographs_nor_in_another_tools_folder(photos, tmp_path):
    with pytest.raises(InterflowError, match='choose a place outside'):
        simulate(photos, photos / 'set', (2.1,))
    save(tmp_path / 'foreign/HR/a.png')
    with pytest.raises(InterflowError, match='foreign'):
        simulate(photos, tmp_path / 'foreign', (2.1,))
    assert not (photos / 'set').exists() and not (tmp_path / 'foreign/set.json').exists()


# ---------------------------------------------------------------- photographs as people have them

@pytest.mark.parametrize('processes', ['1', '2'])
def test_a_broken_photograph_is_left_aside(photos, tmp_path, monkeypatch, capsys, processes):
    whole = (photos / 'p1.png').read_bytes()
    (photos / 'p1.png').write_bytes(whole[:len(whole) // 2])
    Image.fromarray(picture(7)).convert('L').save(photos / 'p2.png')
    Image.fromarray(picture(8)).convert('L').save(photos / 'p3.png')
    words = ('simulate', photos, tmp_path / 'set', '--factors', '2.1', '--processes', processes)
    code, _, told = run(monkeypatch, capsys, *words)
    assert code == 1 and 'p1.png: not a readable image' in told and '1 of 4' in told
    assert told.count('.png: grey') == 1 and '2 photographs: grey' in told, 'each kind of notice once, the others counted'
    assert len(content(tmp_path / 'set')) == 6
    (photos / 'p1.png').write_bytes(whole)
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0 and '4 scenes' in out


def test_strict_ends_it_before_anything_is_written(photos, tmp_path, monkeypatch, capsys):
    (photos / 'p3.png').write_bytes(b'no image')
    code, _, told = run(monkeypatch, capsys, 'simulate', photos, tmp_path / 'set', '--strict')
    assert code == 2 and 'p3.png' in told and len(told.strip().splitlines()) == 1 and not (tmp_path / 'set').exists()
    with pytest.raises(LeftAside):
        simulate(photos, tmp_path / 'set', (2.1,))


def test_photographs_are_upright_and_in_srgb(tmp_path):
    exif = Image.Exif()
    exif[274] = 6       # the camera was held on its side
    save(tmp_path / 'photos/held.jpg', 1, (48, 64), exif=exif)
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile('XYZ')).tobytes()      # any profile that is not sRGB
    save(tmp_path / 'photos/wide.png', 2, icc_profile=wide)
    save(tmp_path / 'plain/wide.png', 2)
    lines = []
    simulate(tmp_path / 'photos', tmp_path / 'set', (2.1,), how=Processing(say=lines.append))
    simulate(tmp_path / 'plain', tmp_path / 'plain_set', (2.1,))
    assert Image.open(tmp_path / 'set/HR/held.png').size == (48, 64)
    assert Image.open(tmp_path / 'set/x2.1/held.png').size == (48, 64)
    assert any('wide.png' in line for line in lines)


# ---------------------------------------------------------------- the camera, stored and written

def test_the_camera_is_stored_whole(photos, tmp_path):
    mine = tmp_path / 'mine.toml'
    mine.write_text(describe_camera(replace(get_camera('canon'), name='mine')))
    simulate(photos, tmp_path / 'set', (2.1,), read_camera(mine))
    stored = json.loads((tmp_path / 'set/set.json').read_text())['camera']
    assert stored['name'] == 'mine' and set(stored) == {*KEYS, 'name'}
    mine.write_text(mine.read_text().replace('f_number = 11.0', 'f_number = 8.0'))
    with pytest.raises(InterflowError, match='camera.f_number = 11.0, not 8.0'):
        simulate(photos, tmp_path / 'set', (2.1,), read_camera(mine))
    with pytest.raises(InterflowError, match='other photographs .1, such as p0'):
        simulate(photos.parent / 'photos' if (photos / 'p0.png').unlink() else photos, tmp_path / 'set', (2.1,), get_camera('canon'))


def test_a_set_of_an_earlier_version_is_resumed(photos, tmp_path):
    simulate(photos, tmp_path / 'set', (2.1,))
    before = content(tmp_path / 'set')
    (tmp_path / 'set/x2.1/p1.png').unlink()
    earlier = {'camera': 'canon', 'seed': 0, 'factors': [2.1], 'photos': ['p0', 'p1', 'p2', 'p3']}
    (tmp_path / 'set/set.json').write_text(json.dumps(earlier))
    simulate(photos, tmp_path / 'set', (2.1,))
    assert content(tmp_path / 'set') == before
    with pytest.raises(InterflowError, match='camera = canon, not nikon'):
        simulate(photos, tmp_path / 'set', (2.1,), 'nikon')


@pytest.mark.parametrize('name', [*CAMERAS, *MEASURED])
def test_a_camera_there_and_back(name, tmp_path):
    camera = replace(get_camera(name), jpeg_quality=90)
    (tmp_path / 'c.toml').write_text(describe_camera(camera))
    assert read_camera(tmp_path / 'c.toml') == camera


BODY = {'pitch': '2.9', 'f_number': '1.8', 'shot': '2e-3', 'read': '4e-6'}
WRONG = [({'pitch': '-1'}, 'pitch = -1', 'micrometres'), ({'pitch': '6250'}, 'pitch = 6250', 'micrometres'), ({'pitch': '"6"'}, 'pitch = 6', 'number'),
         ({'pitch': 'true'}, 'pitch = True', 'number'), ({'pitch': 'nan'}, 'pitch = nan', 'number'), ({'pitch': None}, 'pitch is missing', 'micrometres'),
         ({'picth': '3'}, 'picth', 'did you mean pitch'), ({'zzz': '3'}, 'zzz', 'there are pitch'), ({'wavelengths': '[620, 530, 470]'}, 'wavelengths', 'micrometres'),
         ({'red_gain': '2.0'}, 'red_gain', '2 numbers'), ({'red_gain': '[2.4, 1.9]'}, 'red_gain', 'smaller one first'), ({'name': '3'}, 'name = 3', 'quotes'),
         ({'noise': '[[100, 1e-6, 1e-8]]'}, 'iso = None', 'from 100 to 100'), ({'noise': '3', 'iso': '100'}, 'noise = 3', 'rows'),
         ({'lateral': '[[105, 1, 1], [24, 1, 1]]'}, 'lateral', 'ascend'), ({'lateral': '[[105, 1.2, 1]]'}, 'lateral', '0.9 to 1.1'),
         ({'jpeg_quality': '90.5'}, 'jpeg_quality = 90.5', 'whole number from 1 to 100'), ({'shot': '= 3'}, 'not TOML', 'interflow camera canon')]


@pytest.mark.parametrize('changes, value, words', WRONG, ids=[str(changes) for changes, *_ in WRONG])
def test_a_wrong_value_is_told_with_its_unit(changes, value, words, tmp_path):
    values = {key: value for key, value in {**BODY, **changes}.items() if value is not None}
    (tmp_path / 'mine.toml').write_text('\n'.join(f'{key} = {value}' for key, value in values.items()))
    with pytest.raises(InterflowError) as fault:
        read_camera(tmp_path / 'mine.toml')
    text = str(fault.value)
    assert 'mine.toml: ' in text and '\n' not in text and value in text and words in text, text


def test_another_iso_scales_the_noise_by_what_was_measured(tmp_path):
    canon = get_camera('canon')
    louder = find_camera('canon', 3200)
    assert abs(louder.shot / canon.shot - 5.913e-5 / 3.006e-5) < 1e-9 and abs(louder.read / canon.read - 6.872e-7 / 2.907e-7) < 1e-9
    assert find_camera('canon', 1600) == canon
    between = find_camera('canon', 2263)
    assert canon.shot < between.shot < louder.shot
    (tmp_path / 'mine.toml').write_text('\n'.join(f'{key} = {value}' for key, value in BODY.items()))
    with pytest.raises(InterflowError, match='ISO 800.*not known'):
        find_camera(str(tmp_path / 'mine.toml'), 800)


def test_the_command_prints_a_camera_that_it_reads(tmp_path, monkeypatch, capsys):
    code, text, _ = run(monkeypatch, capsys, 'camera', 'nikon', '--iso', '400')
    (tmp_path / 'mine.toml').write_text(text)
    assert code == 0 and read_camera(tmp_path / 'mine.toml') == find_camera('nikon', 400)
    code, again, _ = run(monkeypatch, capsys, 'camera', tmp_path / 'mine.toml')
    assert code == 0 and again == text


# ---------------------------------------------------------------- cost

def test_the_cost_is_known_before_and_told_when_it_is_large(photos, tmp_path):
    plan = simulation.Simulation(simulation.name_scenes(photos), tmp_path / 'set', (1., 2.1, 3.), get_camera('canon'), scale=.5, takes=2)
    cost = costs.expect(plan)
    pixels = 4 * 48 * 64 / 4
    assert cost.megapixels == pixels / 1e6 and cost.seconds == costs.SECONDS * 5 * pixels / 1e6 and cost.memory == costs.MEMORY * pixels / 4
    assert costs.announce(cost, plan, 1) == ''
    large = cost._replace(seconds=7200., disk=1e18)
    assert '60 minutes' in costs.announce(large, plan, 2) and 'are free' in costs.announce(large, plan, 2)
    assert costs.fitting_processes(cost, plan.photos) == 1 == costs.fitting_processes(large._replace(memory=1e15), plan.photos)
