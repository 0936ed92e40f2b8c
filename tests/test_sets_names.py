"""Names of generated files: those of the scenes, published ones, keys of shards, and names that cannot be; faults while a set is made."""
import json
import os
import sys
from dataclasses import replace

import pytest
import webdataset
from scenes import write_crops

from interflow import files
from interflow.cli import main
from interflow.core import InterflowError, data_folder, photographs, read_image, read_json
from interflow.data import Scene, read_set, simulate
from interflow.sets import (
    SetConfig,
    begin_set,
    check_names,
    generate,
    parse_wanted,
    read_records,
    sample_key,
    shares,
)

NAMES = ['Nikon/bee', 'Canon/bee', 'a.1', 'a.2 [x] (2)', 'a%2E1', '\u871c\u8702/\u043f\u0447\u0435\u043b\u0430 7', '  ', 'Canon_001']
BLEND = SetConfig((2.6,), 'pixels', check='none')
FLOW = data_folder() / 'weights' / 'flow'


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pairs')
    photos = write_crops(folder / 'photos', photographs('test')[:2], slice(200, 248), slice(300, 340))
    simulate(photos, folder / 'set', sorted({2.1, 3.0, 3.75, *read_json(FLOW / 'config.json')['factors']}))
    return folder / 'set'


@pytest.fixture
def scenes(pairs):
    "Scenes of the same pixels and very different names."
    one, two = read_set(pairs)
    return [replace((one, two)[k % 2], name=name, camera=name.split('/')[0] if 'on/' in name else '') for k, name in enumerate(NAMES)]


def content(out, pattern='*'):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob(pattern)) if path.is_file()}


def say(monkeypatch, capsys, *words):
    "Exit code and lines of the command, without its bars."
    monkeypatch.setattr(sys, 'argv', ['interflow', *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    return code or 0, [line for line in capsys.readouterr().err.replace('\r', '\n').splitlines() if line.strip() and 'generate (' not in line]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize('names, file, hr', [('scene', 'scale_2.6/{}_LR3.png', 'scale_2.6/{}_HR.png'), ('factor', 'x2.6/{}.png', 'HR/{}.png')])
def test_a_scene_keeps_its_name_its_folders_and_its_camera(scenes, tmp_path, names, file, hr):
    assert generate(None, scenes, tmp_path / 'out', replace(BLEND, names=names), 'cpu').kept == len(NAMES)
    there = content(tmp_path / 'out', '*.png')
    assert set(there) == {one.format(name) for name in NAMES for one in (file, hr)}
    again = {scene.name: scene for scene in read_set(tmp_path / 'out')}
    assert set(again) == set(NAMES)
    for scene in scenes:
        assert (read_image(again[scene.name].hr) == read_image(scene.hr)).all() and list(again[scene.name].lr) == [2.6]
    lines = [json.loads(line) for line in (tmp_path / 'out/manifest.jsonl').read_text().splitlines()]
    assert [(line['scene'], line.get('camera', '')) for line in lines] == [(scene.name, scene.camera) for scene in scenes]


def test_the_scenes_own_names_are_the_default():
    assert SetConfig((2.5,)).names == 'scene'


def test_published_names_are_numbers_and_the_images_are_the_same(scenes, tmp_path):
    for names in ('scene', 'published'):
        generate(None, scenes, tmp_path / names, replace(BLEND, names=names), 'cpu')
    own, numbered = (content(tmp_path / names / 'scale_2.6') for names in ('scene', 'published'))
    assert set(numbered) == {f'Canon_{k:03d}_{kind}.png' for k in range(1, len(NAMES) + 1) for kind in ('HR', 'LR3')}
    assert read_json(tmp_path / 'published/scenes.json') == {f'Canon_{k:03d}': name for k, name in enumerate(NAMES, 1)}
    for number, name in read_json(tmp_path / 'published/scenes.json').items():
        for kind in ('HR', 'LR3'):
            assert numbered[f'{number}_{kind}.png'] == own[f'{name}_{kind}.png']


def test_the_command_keeps_names_unless_it_plays_the_published_tool(pairs, tmp_path, monkeypatch, capsys):
    (first, *_) = read_set(pairs)
    few = ['--path', 'pixels', '--check', 'none', '--device', 'cpu', '--processes', '1']
    for out, more, found in (('a', ['--factors', '2.6'], f'scale_2.6/{first.name}_LR3.png'), ('b', ['--modes', '2'], 'scale_3.5/Canon_001_LR3.png'),
                             ('c', ['--modes', '2', '--names', 'factor'], f'x3.5/{first.name}.png'), ('d', ['--factors', '2.6', '--names', 'published'], 'scale_2.6/Canon_001_LR3.png')):
        assert say(monkeypatch, capsys, 'generate', FLOW, pairs, tmp_path / out, *few, *more) == (0, [])
        assert (tmp_path / out / found).exists(), out


def test_shards_take_any_name(scenes, tmp_path):
    generate(None, scenes, tmp_path / 'out', replace(BLEND, format='webdataset', shard=3), 'cpu')
    shards = [str(path) for path in sorted((tmp_path / 'out').glob('*.tar'))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode('pil'))
    assert len(samples) == len(NAMES) and len(shards) == 3
    for sample, scene in zip(samples, scenes):
        assert sample['__key__'] == sample_key(scene.name) and not set(sample['__key__']) & set('./\\ :')
        assert sample['json'][0]['scene'] == scene.name and sample['json'][0].get('camera', '') == scene.camera
        assert sample['hr.png'].size == sample['lr_2.6.png'].size == (40, 48)


def test_keys_are_readable_and_never_the_same():
    assert [sample_key(name) for name in ('Canon_001', '\u871c\u8702', 'a.1')] == ['Canon_001', '\u871c\u8702', 'a%2E1']
    odd = ['a.1', 'a%2E1', 'a/1', 'a 1', 'a\t1', 'a\u00a01', 'a:1', 'a\\1', 'a%1', 'a1', os.fsdecode(b'a\xff')]
    assert len({sample_key(name) for name in odd}) == len(odd)


# ---------------------------------------------------------------- names that cannot be


@pytest.mark.parametrize('names', [['bee', 'bee_draw2'], ['bee', 'bee_factor'], ['../bee'], ['/bee'], ['a//b'], [''], ['a/./b'], ['a\0b']])
def test_two_scenes_never_write_one_file_and_nothing_lies_outside(scenes, tmp_path, names):
    config = SetConfig(parse_wanted('map:2.1:3.75'), 'pixels', names='factor')
    config = replace(config, draws=2)
    named = [replace(scene, name=name) for scene, name in zip(scenes, names)]
    with pytest.raises(InterflowError, match='rename.*--names published'):
        generate(None, named, tmp_path / 'out', config, 'cpu')
    assert not (tmp_path / 'out').exists()
    assert generate(None, named, tmp_path / 'out', replace(config, names='published', check='none'), 'cpu').kept == 2 * len(names)


def test_on_a_disk_without_large_and_small_letters(tmp_path, monkeypatch):
    check_names(BLEND, ['sony_1', 'SONY_1'], tmp_path)
    monkeypatch.setattr(files, '_try_folder', lambda folder: True)
    with pytest.raises(InterflowError, match='SONY_1_HR.png.*two results would be this file|two results.*SONY_1'):
        check_names(BLEND, ['sony_1', 'SONY_1'], tmp_path)


def test_a_name_too_long_for_the_disk(scenes, tmp_path):
    longest = 255 - len('_LR3.png')
    fits, long = (replace(scenes[0], name='x/' + 'b' * length) for length in (longest, longest + 1))
    assert generate(None, [fits], tmp_path / 'fits', BLEND, 'cpu').kept == 1
    with pytest.raises(InterflowError, match=f'scene {long.name}: .*above 255 bytes; rename it, or use --names published'):
        generate(None, [long], tmp_path / 'long', BLEND, 'cpu')
    with pytest.raises(InterflowError, match='above 255 bytes'):
        check_names(BLEND, ['\u871c' * 86 + '/bee'], tmp_path)
    assert not (tmp_path / 'long').exists()


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize('spoil, words', [(lambda path: path.unlink(), 'no such file'), (lambda path: path.write_bytes(b'\x89PNG'), 'not a readable image')])
def test_a_photograph_that_vanishes_meanwhile_ends_the_run_in_one_line(scenes, tmp_path, monkeypatch, spoil, words):
    "What was made before stays; with the file back, the same call ends with the same bytes."
    copies = [Scene(f's{k}', *(copy_of(one, tmp_path / f'{k}') for one in (scenes[k].hr, scenes[k].lr))) for k in range(3)]
    generate(None, copies, tmp_path / 'whole', BLEND, 'cpu')
    real, data = shares.read_scene, copies[1].hr.read_bytes()

    def reading(scene, *more):
        if scene.name == 's1':
            spoil(scene.hr)
        return real(scene, *more)
    with monkeypatch.context() as patched, pytest.raises(InterflowError, match=words) as fault:
        patched.setattr(shares, 'read_scene', reading)
        generate(None, copies, tmp_path / 'out', BLEND, 'cpu')
    assert str(copies[1].hr) in str(fault.value) and '\n' not in str(fault.value) and fault.value.exit_code == 2
    assert list(read_records(tmp_path / 'out')) == ['scale_2.6/s0_LR3.png']
    copies[1].hr.write_bytes(data)
    generate(None, copies, tmp_path / 'out', BLEND, 'cpu')
    assert content(tmp_path / 'out') == content(tmp_path / 'whole')


def test_what_a_killed_writer_left_goes_whatever_the_name(scenes, tmp_path):
    (odd,) = [scene for scene in scenes if '[' in scene.name]
    torn = tmp_path / f'out/scale_2.6/.{odd.name}_LR3.png.0123456789ab.part'
    begin_set(None, [odd], tmp_path / 'out', BLEND)
    torn.parent.mkdir()
    torn.write_bytes(b'half')
    generate(None, [odd], tmp_path / 'out', BLEND, 'cpu')
    assert not torn.exists()


def copy_of(what, folder):
    "A file, or the files of a dictionary, in another folder."
    if isinstance(what, dict):
        return {factor: copy_of(path, folder / f'{factor:g}') for factor, path in what.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / what.name).write_bytes(what.read_bytes())
    return folder / what.name


def test_no_permission_and_a_place_among_the_data(pairs, tmp_path, monkeypatch, capsys):
    def refuse(folder):
        raise PermissionError(13, 'Permission denied', str(folder))
    call = ['generate', FLOW, pairs]
    code, lines = say(monkeypatch, capsys, *call, pairs / 'out')
    assert code == 2 and len(lines) == 1 and 'lies in the input folder' in lines[0]
    monkeypatch.setattr(files, '_try_folder', refuse)
    code, lines = say(monkeypatch, capsys, *call, tmp_path / 'out')
    assert code == 2 and len(lines) == 1 and 'out: no permission' in lines[0]
    assert not (pairs / 'out').exists() and not (tmp_path / 'out').exists()
