"""Sets as their owners have them: every layout is found by looking, read alike by all commands, and what is wrong is told in one line.

Each tree is written with crops of the embedded photographs, LR smaller or on the HR grid as its published model has it.
"""
import json
import os
import time
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest

from interflow.cli import main
from interflow.cli.evaluate import part_places
from interflow.cli.flow import training_scenes
from interflow.cli.options import find_places
from interflow.cli.sr import sr_sources
from interflow.core import InterflowError, make_generator, photographs, read_image, write_image
from interflow.data import (
    LAYOUTS,
    PairBatches,
    Pairs,
    Scene,
    all_factors,
    crop_stored,
    find_sets,
    known_factors,
    read_scene,
    read_scenes,
    read_set,
    read_stored,
    scenes_with,
    usual_factors,
)
from interflow.data.files import find_images, same_image
from interflow.data.scenes import resize
from interflow.model import InterFlow, InterFlowConfig
from interflow.sets import SetConfig, generate
from interflow.sr.batches import SRBatches
from interflow.sr.evaluation import evaluate
from interflow.sr.networks import build, save_network
from interflow.sr.sources import Source

SIZE = (72, 96)


@pytest.fixture(scope='session')
def photos():
    "Crops of photographs, (3, 72, 96)."
    return [read_image(path)[:, 150:150 + SIZE[0], 200:200 + SIZE[1]] for path in photographs('train')[:4]]


@pytest.fixture
def write(tmp_path, photos):
    "`write(file, which photograph, smaller by, still on the HR grid)`."
    def write(file, number=0, factor=1., grid=False):
        small = resize(photos[number], [round(side / factor) for side in SIZE])
        write_image(tmp_path / file, resize(small, SIZE) if grid else small)
    return write


# ---------------------------------------------------------------- the trees

def simulated(write, root='ours'):
    for number, name in enumerate(('bee', 'trip/fig')):
        write(f'{root}/HR/{name}.png', number)
        write(f'{root}/x2.1/{name}.webp', number, 2.1, True)
        write(f'{root}/x3.0/{name}.BMP', number, 3., True)


def generated(write, root='made'):
    rows = []
    for number, name in enumerate(('bee', 'fig')):
        write(f'{root}/HR/{name}.png', number)
        for factor in (2.5, 3.):
            write(f'{root}/x{factor:g}/{name}.png', number, factor, True)
            rows.append({'scene': name, 'name': name, 'hr': f'HR/{name}.png', 'file': f'x{factor:g}/{name}.png', 'factor': factor, 'kept': True})
    return {f'{root}/generated.json': '{}', f'{root}/manifest.jsonl': ''.join(json.dumps(row) + '\n' for row in rows)}


def realsr(write, root, grid, cameras=('Canon', 'Nikon'), ordered=False):
    for camera in cameras:
        for split, numbers in (('Train', (0, 1)), ('Test', (2,))):
            for label, factor in ((2, 2.1), (3, 3.), (4, 3.75)):
                for number in numbers:
                    stem = f'{root}/{camera}/{split}/{label}/{"Canon" if ordered else camera}_{number:03d}'
                    write(f'{stem}_HR.png', number)
                    write(f'{stem}_LR{label}.png', number, factor if grid else label, grid)


def drealsr(write, root='DRealSR'):
    for split, number in (('train', 0), ('test', 2)):
        for label in (2, 3, 4):
            for name in ('sony_1', 'DSC_7', 'dsc_7'):       # case matters; other scenes at each factor
                number = (number + 1) % 4
                write(f'{root}/{split.title()}_x{label}/{split}_HR/{name}_x1.png', number)
                write(f'{root}/{split.title()}_x{label}/{split}_LR/{name}_x{label}.png', number, label)


def realarbisr(write, root='RealArbiSR'):
    for split, factors in (('Train', ('1dot5', '2', '3')), ('Test', ('1dot5', '2'))):
        for factor in factors:
            for number in (0, 1):
                write(f'{root}/{split}/HR{factor}/{number:04d}.png', number)
                write(f'{root}/{split}/LR{factor}/{number:04d}.png', number, float(factor.replace('dot', '.')))


def crops(write, root='crops'):
    for number in (0, 1):
        write(f'{root}/test_HR/Canon_{number:03d}.png', number)
        write(f'{root}/test_LR/Canon_{number:03d}.png', number, 4)


def city100(write, root='CameraSR/City100'):
    for camera, factor in (('NikonD5500', 2.9), ('iPhoneX', 2.45)):
        for name, number in (('001', 0), ('002', 1), ('091', 2)):
            write(f'{root}/City100_{camera}/{name}H.PNG', number)
            write(f'{root}/City100_{camera}/{name}L.PNG', number, factor, True)
    write('CameraSR/imgs/teaser.png')


def city100_parts(write, root='city100'):
    for camera, factor in (('NikonD5500', 2.9), ('iPhoneX', 2.45)):
        for split, name, number in (('train', '001', 0), ('test', '091', 2)):
            write(f'{root}/{camera}/{split}/HR/{name}.webp', number)
            write(f'{root}/{camera}/{split}/x{factor}/{name}.webp', number, factor, True)


def listed(write, root='own', lines=False):
    rows = [{'hr': 'a/1.png', 'lr': 'b/1.png', 'factor': 2.9, 'scene': 'bee', 'camera': 'D90'},
            {'hr': 'a/1.png', 'lr': 'b/1_small.png', 'factor': 2, 'scene': 'bee', 'camera': 'D90'},
            {'hr': 'a/2 [x].png', 'lr': 'b/花.png', 'factor': 2, 'scene': 'fig', 'camera': ''}]
    write(f'{root}/a/1.png', 0)
    write(f'{root}/b/1.png', 0, 2.9, True)
    write(f'{root}/b/1_small.png', 0, 2)
    write(f'{root}/a/2 [x].png', 1)
    write(f'{root}/b/花.png', 1, 2)
    table = 'hr,lr,factor,scene,camera\n' + ''.join(','.join(map(str, row.values())) + '\n' for row in rows)
    return {f'{root}/pairs.jsonl': ''.join(json.dumps(row) + '\n' for row in rows)} if lines else {f'{root}/pairs.csv': table}


def two_folders(write):
    for number, name in enumerate(('bee', 'day 1/fig')):
        write(f'sharp/{name}.png', number)
        write(f'soft/{name}.bmp', number, 3)


def patterns(write):
    for label in (2, 4):
        write(f'shots/{label}/a[1].v2_LR{label}.png', 0, label)
    write('shots/a[1].v2_HR.PNG', 0)


# name -> (writes it, place, layouts in it, names of the training part, factors of each)
TREES = {
    'simulated': (simulated, 'ours', ['simulated'], ['bee', 'trip/fig'], [(2.1, 3.)] * 2),
    'generated': (generated, 'made', ['generated'], ['bee', 'fig'], [(2.5, 3.)] * 2),
    'RealSR 2': (lambda write: realsr(write, 'V2', True), 'V2', ['RealSR'] * 12,
                 ['Canon/Canon_000', 'Canon/Canon_001', 'Nikon/Nikon_000', 'Nikon/Nikon_001'], [(2.1, 3., 3.75)] * 4),
    'RealSR 3': (lambda write: realsr(write, 'V3', False), 'V3', ['RealSR version 3'] * 12,
                 ['Canon/Canon_000', 'Canon/Canon_001', 'Nikon/Nikon_000', 'Nikon/Nikon_001'], [(2.1, 3., 3.75)] * 4),
    'RealSR 3, a camera': (lambda write: realsr(write, 'V3', False), 'V3/Canon', ['RealSR version 3'] * 6, ['Canon_000', 'Canon_001'], [(2.1, 3., 3.75)] * 2),
    'RealSR 3, a split': (lambda write: realsr(write, 'V3', False), 'V3/Canon/Train', ['RealSR version 3'] * 3, ['Canon_000', 'Canon_001'], [(2.1, 3., 3.75)] * 2),
    'RealSR 3, a label': (lambda write: realsr(write, 'V3', False), 'V3/Canon/Train/4', ['RealSR version 3'], ['Canon_000', 'Canon_001'], [(3.75,)] * 2),
    'ordered': (lambda write: realsr(write, 'V2', True, ordered=True), 'V2', ['RealSR'] * 12,
                ['Canon/Canon_000', 'Canon/Canon_001', 'Nikon/Canon_000', 'Nikon/Canon_001'], [(2.1, 3., 3.75)] * 4),
    'DRealSR': (drealsr, 'DRealSR', ['DRealSR'] * 6, ['DSC/DSC_7', 'DSC/DSC_7 (2)', 'DSC/DSC_7 (3)', 'dsc/dsc_7', 'dsc/dsc_7 (2)', 'dsc/dsc_7 (3)',
                                                      'sony/sony_1', 'sony/sony_1 (2)', 'sony/sony_1 (3)'], [(2.,), (3.,), (4.,)] * 3),
    'DRealSR, a part': (drealsr, 'DRealSR/Train_x4', ['DRealSR'], ['DSC/DSC_7', 'dsc/dsc_7', 'sony/sony_1'], [(4.,)] * 3),
    'RealArbiSR': (realarbisr, 'RealArbiSR', ['RealArbiSR'] * 2, ['0000', '0001'], [(1.5, 2., 3.)] * 2),
    'test crops': (crops, 'crops', ['pair of folders'], ['Canon/Canon_000', 'Canon/Canon_001'], [(4.,)] * 2),
    'City100, its repository': (city100, 'CameraSR', ['City100'] * 2, ['NikonD5500/001', 'NikonD5500/002', 'iPhoneX/001', 'iPhoneX/002'],
                                [(2.9,), (2.9,), (2.45,), (2.45,)]),
    'City100, a camera': (city100, 'CameraSR/City100/City100_iPhoneX', ['City100'], ['001', '002'], [(2.45,)] * 2),
    'City100, in parts': (city100_parts, 'city100', ['simulated'] * 4, ['NikonD5500/001', 'iPhoneX/001'], [(2.9,), (2.45,)]),
    'CSV': (listed, 'own/pairs.csv', ['list'], ['bee', 'fig'], [(2., 2.9), (2.,)]),
    'JSON lines': (lambda write: listed(write, lines=True), 'own/pairs.jsonl', ['list'], ['bee', 'fig'], [(2., 2.9), (2.,)]),
    'two folders': (two_folders, Pairs('sharp', 'soft', 2.9), None, ['bee', 'day 1/fig'], [(2.9,)] * 2),
    'patterns': (patterns, Pairs('shots/{name}_HR.png', 'shots/{label}/{name}_LR{label}.png'), None, ['a[1].v2'], [(2.1, 3.75)]),
}


@pytest.fixture
def tree(request, write, tmp_path, monkeypatch):
    "(place, layouts, names, factors) of a tree, which lies in the working folder."
    lay, *expected = TREES[request.param]
    for name, text in (lay(write) or {}).items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return expected


every_tree = pytest.mark.parametrize('tree', TREES, indirect=True)


@pytest.fixture
def said():
    "What a reader says: `say` of its call."
    return []


def said_of(call):
    "The line that a call refuses with."
    with pytest.raises(InterflowError) as fault:
        call()
    assert '\n' not in str(fault.value)
    return str(fault.value)


# ---------------------------------------------------------------- read alike

@every_tree
def test_a_layout_is_found_and_read(tree, said):
    place, layouts, names, factors = tree
    scenes = read_set(place, 'train', said.append)
    assert [scene.name for scene in scenes] == names
    assert [tuple(sorted(scene.lr)) for scene in scenes] == factors
    if layouts:
        assert [layout.name for _, layout in find_sets(place)] == layouts
    assert read_scenes(place, 'train', said.append) == scenes, 'one reader'
    for scene in scenes:
        images = read_scene(scene, sorted(scene.lr))
        assert {image.shape for image in images} == {(*SIZE, 3)}, 'all on the HR grid'
    every = read_set(place, '', said.append)
    assert len({scene.name for scene in every}) == len(every) >= len(scenes)


@every_tree
def test_a_layout_trains_and_is_evaluated(tree, caplog):
    "A batch of a flow, batches of an SR network of constant size and of one of arbitrary scale, and an evaluation."
    place, _, names, _ = tree
    scenes, factors = training_scenes([place], None)
    batch = PairBatches(scenes, factors, 24, 2)(0)
    assert batch['hr'].shape == (2, 3, 24, 24) and batch['lr'].shape == (len(factors), 2, 3, 24, 24)
    assert (batch['lr'] - batch['hr']).abs().mean() < .1, 'crops show the same part'
    source, = sr_sources([place], None, None, None, 'sample', None)
    assert SRBatches([source], 16, 2)(0)['lr'].shape == (2, 3, 16, 16)
    asked = SRBatches([source], 8, 2, queries=True)(0)
    assert asked['lr'].shape == (2, 3, 8, 8)
    tested = read_set(place, 'test')
    rows = evaluate({'same': lambda lr: lr}, tested, all_factors(tested), ('psnr_y', 'ssim_y'))
    assert {(row['scene'], row['factor']) for row in rows} == {(scene.name, f) for scene in tested for f in scene.lr}
    assert min(row['psnr_y'] for row in rows) > 18, 'LR is compared with its own HR image'


@pytest.mark.parametrize('tree', ['RealSR 3', 'RealArbiSR', 'City100, its repository', 'CSV'], indirect=True)
def test_a_flow_makes_sets_of_any_layout(tree, tmp_path):
    scenes, factors = training_scenes([tree[0]], None)
    model = InterFlow(InterFlowConfig.tiny(factors), make_generator(0)).eval()
    path = 'linear' if len(factors) == 2 else 'sample'
    report = generate(model, scenes, tmp_path / 'out', SetConfig((factors[0],), path, names='factor', check='none'), 'cpu')
    assert report.kept == len(scenes)
    assert {scene.name for scene in read_set(tmp_path / 'out')} == {scene.name for scene in scenes}


def run(monkeypatch, capsys, *words):
    "(exit code, lines on stdout, lines on stderr without progress) of the command."
    monkeypatch.setattr('sys.argv', ['interflow', *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out.splitlines(), [line for line in err.splitlines() if line.strip() and '%|' not in line]


def test_commands_take_several_places_lists_and_own_pairs(write, tmp_path, monkeypatch, capsys, caplog):
    realsr(write, 'V3', False, ('Canon',))
    two_folders(write)
    for name, text in listed(write).items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    save_network(tmp_path / 'net', build('rcan', 'tiny'))
    flow = ['--steps', 1, '--patch', 24, '--batch-size', 1, '--device', 'cpu', '--no-check']
    code, out, _ = run(monkeypatch, capsys, 'train', 'V3', 'flow', '--factors', '2,4', *flow)
    assert code == 0 and json.loads(Path('flow/model/config.json').read_text())['factors'] == [2.1, 3.75]
    assert [record.message for record in caplog.records if 'labels' in record.message] == [
        'factors: labels of RealSR are understood as true factors: 2 is 2.1, 4 is 3.75']
    assert run(monkeypatch, capsys, 'train', 'one', '--hr', 'sharp', '--lr', 'soft', '--factor', 2.9, '--factors', '1,2.9', *flow)[0] == 0
    assert json.loads(Path('one/model/config.json').read_text())['factors'] == [1., 2.9]
    assert run(monkeypatch, capsys, 'train-sr', 'V3/Canon/Train', 'own/pairs.csv', 'sr', '--network', 'liif_edsr_baseline', '--steps', 1, '--patch', 8,
               '--batch-size', 2, '--device', 'cpu', '--no-check')[0] == 0
    for words in (['V3'], ['own/pairs.csv'], ['--hr', 'sharp', '--lr', 'soft', '--factor', 2.9], ['V3/Canon', 'own/pairs.csv']):
        code, out, _ = run(monkeypatch, capsys, 'evaluate', 'net', *words, '--device', 'cpu')
        assert code == 0 and any(line.startswith('net ') for line in out), words
    code, out, _ = run(monkeypatch, capsys, 'generate', 'one/model', 'made', '--hr', 'sharp', '--lr', 'soft', '--factor', 2.9, '--factors', '2', '--check',
                       'none', '--device', 'cpu')
    assert code == 0 and {scene.name for scene in read_set('made')} == {'bee', 'day 1/fig'}


@every_tree
def test_the_command_says_what_a_place_is_taken_for(tree, monkeypatch, capsys):
    place, layouts, names, factors = tree
    words = [place] if layouts else ['--hr', place.hr, '--lr', place.lr] + (['--factor', place.factor] if place.factor else [])
    code, out, _ = run(monkeypatch, capsys, 'layouts', *words)
    assert code == 0 and (layouts[0] if layouts else 'own pairs') in out[0]
    told = '\n'.join(out)
    assert all(f'x{factor:g} ' in told for own in factors for factor in own) and 'a flow by default' in told


def test_the_command_shows_every_layout_and_the_nearest(write, tmp_path, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, 'layouts')
    assert code == 0 and all(any(line.startswith(f'{layout.name}: ') for line in out) for layout in LAYOUTS)
    write('odd/hr_pictures/bee.png')
    write('odd/x3/bee.png')
    code, out, _ = run(monkeypatch, capsys, 'layouts', tmp_path / 'odd')
    assert code == 0 and 'nearest is simulated' in out[-1]
    code, _, err = run(monkeypatch, capsys, 'layouts', tmp_path / 'nowhere')
    assert code == 2 and len(err) == 1


# ---------------------------------------------------------------- cameras, splits, several places

def test_cameras_and_splits_come_from_folders(write, tmp_path, said):
    realsr(write, 'V2', True, ordered=True)
    scenes = read_set(tmp_path / 'V2', '', said.append)
    assert {(scene.camera, scene.split) for scene in scenes} == {(camera, split) for camera in ('Canon', 'Nikon') for split in ('train', 'test')}
    assert sorted(scene.name for scene in scenes)[:2] == ['test/Canon/Canon_002', 'test/Nikon/Canon_002']
    alone = read_set(tmp_path / 'V2/Nikon/Train')
    assert {scene.camera for scene in alone} == {'Nikon'}, 'their files are called Canon'
    assert [scene.name for scene in read_set(tmp_path / 'V2', 'test', said.append)] == ['Canon/Canon_002', 'Nikon/Canon_002']
    assert [line.replace(f'{tmp_path}/', '') for line in said] == ['V2: its part test is read, 2 of 6 scenes']
    read_set(tmp_path / 'V2/Canon/Test', 'train', said.append)
    assert len(said) == 1, 'a folder of a split is itself'


def test_the_only_part_is_read_and_said(write, tmp_path, said):
    write('set/Test_x4/test_HR/sony_1_x1.png')
    write('set/Test_x4/test_LR/sony_1_x4.png', 0, 4)
    (tmp_path / 'set/cameras.json').write_text('{"sony_1": "olympus"}')
    scene, = read_set(tmp_path / 'set', 'train', said.append)
    assert (scene.name, scene.camera) == ('olympus/sony_1', 'olympus')
    assert len(said) == 1 and 'its part test is read' in said[0]


def test_names_of_several_places_stay_apart(write, tmp_path):
    for root in ('one', 'two'):
        simulated(write, f'{root}/set')
    realsr(write, 'V2', True, ordered=True)
    assert [scene.name for scene in read_set([tmp_path / 'one/set', tmp_path / 'V2/Canon/Train'])] == ['bee', 'trip/fig', 'Canon_000', 'Canon_001']
    assert [scene.name for scene in read_set([tmp_path / 'one/set', tmp_path / 'two/set'])] == ['one/bee', 'one/trip/fig', 'two/bee', 'two/trip/fig']
    cameras = read_set([tmp_path / f'V2/{camera}/Train' for camera in ('Canon', 'Nikon')])
    assert [scene.name for scene in cameras] == ['Canon/Canon_000', 'Canon/Canon_001', 'Nikon/Canon_000', 'Nikon/Canon_001']
    labels = read_set([tmp_path / f'V2/Canon/Train/{label}' for label in (4, 2)])
    assert [sorted(scene.lr) for scene in labels] == [[2.1, 3.75]] * 2, 'label folders of one split are one set'
    twice = read_set([tmp_path / 'one/set'] * 2)
    assert len({scene.name for scene in twice}) == len(twice) == 4


def test_images_outside_of_the_sets_are_told(write, tmp_path, said):
    city100(write)
    read_set(tmp_path / 'CameraSR', 'train', said.append)
    assert any('1 images lie outside of its sets' in line and 'teaser.png' in line for line in said)


# ---------------------------------------------------------------- one scene or several

def test_labels_with_other_hr_images_are_other_scenes(write, tmp_path, said):
    for label, number in ((2, 0), (3, 0), (4, 1)):
        write(f'set/{label}/Canon_001_HR.png', number)
        write(f'set/{label}/Canon_001_LR{label}.png', number, label, True)
    scenes = read_set(tmp_path / 'set', '', said.append)
    assert [(scene.name, list(scene.lr)) for scene in scenes] == [('Canon_001', [2.1, 3.]), ('Canon_001 (2)', [3.75])]
    assert scenes[1].hr.parent.name == '4' and len(said) == 1 and '4/Canon_001_HR.png' in said[0] and '2/Canon_001_HR.png' in said[0]
    rows = evaluate({}, scenes, (2.1, 3., 3.75))
    assert min(row['psnr_y'] for row in rows) > 18 and len(rows) == 3, 'none is measured against the other scene'
    assert 'interflow order' in said_of(lambda: training_scenes([tmp_path / 'set'], None))
    assert [scene.name for scene in training_scenes([tmp_path / 'set'], '2,3')[0]] == ['Canon_001']


def test_two_files_of_one_image(write, tmp_path, photos, monkeypatch):
    write('a.png')
    write('other/a.png')
    write('b.png', 1)
    write_image(tmp_path / 'a.bmp', photos[0])
    (tmp_path / 'link.png').symlink_to(tmp_path / 'a.png')
    decoded = []
    monkeypatch.setattr('interflow.data.files.read_pixels', lambda path: decoded.append(path) or np.zeros(1))
    assert same_image(tmp_path / 'a.png', tmp_path / 'other/a.png') and same_image(tmp_path / 'a.png', tmp_path / 'link.png')
    assert not decoded, 'bytes are enough'
    monkeypatch.undo()
    assert same_image(tmp_path / 'a.png', tmp_path / 'a.bmp') and not same_image(tmp_path / 'a.png', tmp_path / 'b.png')
    (tmp_path / 'torn.png').write_bytes((tmp_path / 'a.png').read_bytes()[:60])
    assert not same_image(tmp_path / 'a.png', tmp_path / 'torn.png'), 'what cannot be read is like no other'


# ---------------------------------------------------------------- factors

def stand(name, *factors):
    return Scene(name, Path(f'{name}.png'), {factor: Path(f'x{factor:g}/{name}.png') for factor in factors})


def test_factors_are_asked_for_and_chosen(said):
    three, two, real = stand('a', 2.1, 3., 3.75), stand('b', 2.1, 3.75), stand('c', 2., 4.)
    assert usual_factors([three, two]) == (2.1, 3.75) and usual_factors([stand('a', 2.9)]) == (2.9,) and usual_factors([real]) == (2., 4.)
    assert usual_factors([three, two, stand('d', 2.1)], said.append) == (2.1, 3.75) and not said
    assert usual_factors([stand('a', 2.), stand('b', 3.), stand('d', 3.)], said.append) == (3.,) and len(said) == 1
    assert known_factors([three], (2, 4), said.append) == (2.1, 3.75) and 'labels' in said[-1]
    assert known_factors([real], (2, 4)) == (2., 4.) and known_factors([three], (1, 2.1)) == (1., 2.1)
    assert '2.1, 3, 3.75' in said_of(lambda: known_factors([three], (2.5,)))
    assert scenes_with([three, two], (3.,), say=said.append) == [three] and '1 of 2 scenes are left out' in said[-1]
    assert scenes_with([three, two], (3., 3.75), every=False) == [three, two]
    assert Source([three, two], (3., 3.75)).of(two) == (3.75,) and Source([three, two]).of(three) == (2.1, 3., 3.75)


def test_hr_is_the_image_at_factor_1(write, tmp_path):
    simulated(write)
    scene = read_set(tmp_path / 'ours')[0]
    hr, one, lr = read_scene(scene, (1., 2.1))
    assert np.array_equal(hr, one) and not np.array_equal(hr, lr)
    assert PairBatches([scene], (1., 2.1), 24, 1)(0)['lr'].shape == (2, 1, 3, 24, 24)


def test_lr_is_stored_smaller_by_factor_or_label(write, tmp_path):
    for name, factor, good in (('2/a_LR2.png', 2., True), ('own/a.png', 2.1, True), ('own/b.png', 2., True), ('x2.1/b.png', 2., False), ('own/c.png', 3., False)):
        write(name, 0, factor)
        write('hr.png')
        scene = Scene('a', tmp_path / 'hr.png', {2.1: tmp_path / name})
        if good:
            hr, lr = read_stored(scene, 2.1)
            assert lr.shape[0] == round(SIZE[0] / factor) and read_scene(scene, (2.1,))[1].shape == hr.shape
        else:
            assert 'register' in said_of(lambda scene=scene: read_scene(scene, (2.1,)))


def test_crops_of_stored_lr_lie_on_both_grids():
    "A ramp along each side: the means of both crops agree only where they show the same part."
    lr = 1.5 * np.stack([*np.meshgrid(np.arange(60), np.arange(40)), np.zeros((40, 60))], -1) + [.25, .25, 0]
    hr = np.stack([*np.meshgrid(np.arange(90), np.arange(60)), np.zeros((60, 90))], -1)
    random = np.random.default_rng(0)
    for _ in range(30):
        large, small = crop_stored(hr, lr, 8, random)
        assert large.shape == (12, 12, 3) and small.shape == (8, 8, 3)
        assert np.allclose(large.mean((0, 1)), small.mean((0, 1)))
        assert np.allclose(np.sign(large[-1, -1] - large[0, 0]), np.sign(small[-1, -1] - small[0, 0])), 'turned alike'
    assert crop_stored(hr, lr, 7, random) is None and crop_stored(hr, lr[:, :59], 8, random) is None


# ---------------------------------------------------------------- names and faults

@pytest.mark.parametrize('name', ['scene [1]', 'a.b.v2', 'with space', '花と蜂', 'Füße', "it's 100%", '-dash', 'x*y?'])
def test_names_of_any_kind_are_read_by_all(name, write, tmp_path):
    for label in (2, 4):
        write(f'real/{label}/{name}_HR.png')
        write(f'real/{label}/{name}_LR{label}.png', 0, label)
        (tmp_path / f'real/{label}/._{name}_HR.png').write_bytes(b'resource fork')
    for factor in (2., 3.):
        write(f'ours/HR/{name}.png')
        write(f'ours/x{factor}/{name}.png', 0, factor)
    write(f'twins/test_HR/{name}.png')
    write(f'twins/test_LR/{name}.png', 0, 3)
    for place, factors in (('real', [2.1, 3.75]), ('ours', [2., 3.]), ('twins', [3.])):
        scene, = read_set(tmp_path / place)
        assert scene.name.endswith(name) and list(scene.lr) == factors
        assert read_scene(scene, factors)[0].shape == (*SIZE, 3)
    own, = read_set(Pairs(tmp_path / 'real/{label}/{name}_HR.png', tmp_path / 'real/{label}/{name}_LR{label}.png'))
    assert own.name == name
    assert [scene.name for scene in read_scenes(tmp_path / 'ours/HR')] == [name]


def test_one_name_in_two_spellings_of_unicode(write, tmp_path):
    write(f'set/HR/{normalize("NFC", "Füße")}.png')
    write(f'set/x2/{normalize("NFD", "Füße")}.png', 0, 2.)
    assert [scene.name for scene in read_set(tmp_path / 'set')] == [normalize('NFC', 'Füße')]


FAULTS = {
    'two files of one name': (lambda write, root: write('ours/HR/bee.bmp'), 'ours', ['bee.png', 'bee.bmp', 'same name', 'rename']),
    'two folders of one factor': (lambda write, root: write('ours/x3/bee.png'), 'ours', ['x3.0', 'x3', 'keep one']),
    'LR missing': (lambda write, root: (root / 'ours/x2.1/bee.webp').unlink(), 'ours', ['x2.1/bee', 'missing', '1 such pair']),
    'HR missing': (lambda write, root: (root / 'ours/HR/bee.png').unlink(), 'ours', ['HR/bee', 'missing']),
    'LR missing, RealSR': (lambda write, root: (root / 'V3/Canon/Train/2/Canon_001_LR2.png').unlink(), 'V3', ['Train/2/Canon_001_LR', 'missing']),
    'HR missing, RealSR': (lambda write, root: (root / 'V3/Canon/Test/4/Canon_002_HR.png').unlink(), 'V3', ['Test/4/Canon_002_HR', 'missing']),
    'LR missing, DRealSR': (lambda write, root: (root / 'DRealSR/Train_x4/train_LR/sony_1_x4.png').unlink(), 'DRealSR', ['train_LR/sony_1_x4', 'missing']),
    'LR missing, City100': (lambda write, root: (root / 'CameraSR/City100/City100_iPhoneX/002L.PNG').unlink(), 'CameraSR', ['002L', 'missing']),
    'no folder': (lambda write, root: None, 'nowhere', ['nowhere', 'no such folder']),
    'a file': (lambda write, root: None, 'ours/HR/bee.png', ['bee.png', 'neither a folder nor a list of pairs']),
    'no layout': (lambda write, root: write('odd/hr_pictures/bee.png'), 'odd', ['odd', 'no pair of images', 'hr_pictures/', 'nearest', 'expected HR/ and x2.1/']),
    'LR as large as HR': (lambda write, root: write('crops/test_LR/Canon_001.png'), 'crops', ['test_LR/Canon_001', 'nothing tells its factor', '--factor']),
}


@pytest.mark.parametrize('spoil, place, words', FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_in_one_line(spoil, place, words, write, tmp_path):
    for lay in (simulated, drealsr, city100, crops):
        lay(write)
    realsr(write, 'V3', False, ('Canon',))
    spoil(write, tmp_path)
    line = said_of(lambda: read_set(tmp_path / place, 'train', lambda line: None))
    assert not [word for word in words if word not in line], line


def test_a_file_that_vanishes_is_named(write, tmp_path):
    simulated(write)
    scenes = read_set(tmp_path / 'ours')
    scenes[0].lr[2.1].unlink()
    assert 'x2.1/bee.webp: no such file' in said_of(lambda: PairBatches(scenes, (2.1,), 24, 1))


def test_lists_name_the_line(write, tmp_path):
    listed(write)
    file = tmp_path / 'own/bad.csv'
    for row, words in (('a/1.png,b/none.png,2', ['line 3', 'b/none.png', 'no such file']), ('a/1.png,b/1.png,two', ['line 3', 'factor two']),
                       ('a/1.png,,2', ['line 3', 'has no lr']), ('a/1.png,b/1.png,', ['b/1.png', 'nothing tells its factor'])):
        file.write_text(f'hr;lr;factor\na/1.png;b/1.png;2.9\n{row}\n'.replace(',', ';'))
        line = said_of(lambda: read_set(file))
        assert not [word for word in words if word not in line], line
    file.write_text('')
    assert 'has no row' in said_of(lambda: read_set(file))
    file.with_suffix('.jsonl').write_text('{"hr": 1')
    assert 'not a list of pairs' in said_of(lambda: read_set(file.with_suffix('.jsonl')))


def test_places_of_a_command():
    assert find_places([Path('a'), Path('b.csv')], None, None) == [Path('a'), Path('b.csv')]
    assert find_places([Path('shots')], '{name}_HR.png', '{name}_LR.png', 3.) == [Pairs(Path('shots/{name}_HR.png'), Path('shots/{name}_LR.png'), 3.)]
    assert '--hr DIR' in said_of(lambda: find_places([], None, None))
    assert 'give both' in said_of(lambda: find_places([], 'a', None)) and 'number above 1' in said_of(lambda: find_places([], 'a', 'b', .5))
    assert 'two patterns' in said_of(lambda: find_places([], '{name}.png', 'b'))
    assert part_places([Path('rcan:a.pth'), Path('set')], False) == ([Path('rcan:a.pth')], [Path('set')])


def test_no_permission_and_links_in_a_circle(write, tmp_path, monkeypatch):
    simulated(write)
    (tmp_path / 'ours/HR/again').symlink_to(tmp_path / 'ours')
    write('circle/a/bee.png')
    (tmp_path / 'circle/b').mkdir()
    for one, other in (('a', 'b'), ('b', 'a')):
        (tmp_path / 'circle' / one / other).symlink_to(tmp_path / 'circle' / other)
    assert list(find_images(tmp_path / 'circle', deep=True)) == ['a/bee'], 'once, however it is linked'
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root/set').symlink_to(tmp_path / 'ours')
    (tmp_path / 'root/loop').symlink_to(tmp_path / 'root')
    (tmp_path / 'root/self').symlink_to(tmp_path / 'root/self')
    assert [scene.name for scene in read_set(tmp_path / 'root')] == ['set/bee', 'set/trip/fig']
    scan = os.scandir

    def refuse(folder):
        if 'trip' in str(folder):
            raise PermissionError(13, 'Permission denied', str(folder))
        return scan(folder)
    monkeypatch.setattr('os.scandir', refuse)
    assert 'no permission' in said_of(lambda: read_set(tmp_path / 'ours'))


def test_what_a_manifest_leaves_out_may_be_missing(write, tmp_path):
    simulated(write)
    (tmp_path / 'ours/x3.0/bee.BMP').unlink()
    (tmp_path / 'ours/HR/trip/fig.png').unlink()
    (tmp_path / 'ours/registration.json').write_text('{}')
    assert [(scene.name, list(scene.lr)) for scene in read_set(tmp_path / 'ours')] == [('bee', [2.1])]


def test_ten_thousand_scenes_are_listed_at_once(tmp_path):
    for folder in ('HR', 'x2', 'x4'):
        (tmp_path / folder).mkdir()
        for number in range(10_000):
            (tmp_path / folder / f'scene_{number}.png').touch()
    start = time.process_time()
    assert len(read_set(tmp_path)) == 10_000
    assert time.process_time() - start < 2


def test_every_layout_says_how_it_looks():
    for layout in LAYOUTS:
        assert layout.tree and layout.about, layout.name
