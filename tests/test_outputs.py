"""Nothing of the user's is ever overwritten: in every command, whatever the output is called, by whatever link; and what cannot be written is told before the work begins."""
import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scenes import write_whole
from test_faults import changes, contents, say

from interflow import files
from interflow.checkpoints import save_model
from interflow.core import InterflowError, make_generator, whole_folder
from interflow.files import guard_folder, guard_outputs
from interflow.model import InterFlow, InterFlowConfig
from interflow.sr.networks import build, save_network


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = write_whole(tmp_path_factory.mktemp('whole'), 'vdsr')
    (folder / 'diary').mkdir()
    (folder / 'diary/monday.txt').write_text('dear diary')
    (folder / 'thesis.txt').write_text('dear reader')
    return folder


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    "A working folder with photographs, pairs made of them, a flow, a network, and files that are nobody's business."
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    photo = sorted((tmp_path / 'photos').iterdir())[0]
    return SimpleNamespace(root=tmp_path, photo=photo, name=photo.name)


SHORT = '--device cpu --steps 1 --batch-size 1 --patch 32'
# command into OUT, the folder that it reads
FOLDERS = {
    'simulate': ('simulate photos OUT --factors 2.1', 'photos'),
    'train': (f'train pairs OUT {SHORT}', 'pairs'),
    'train from a flow': (f'train pairs OUT --init flow {SHORT}', 'flow'),
    'generate from photographs': ('generate flow photos OUT --factors 3 --device cpu --processes 1 --check none', 'photos'),
    'generate from pairs': ('generate flow pairs OUT --factors 3 --device cpu --processes 1 --check none', 'pairs'),
    'generate, the model': ('generate flow photos OUT --factors 3 --device cpu --processes 1 --check none', 'flow'),
    'train-sr': (f'train-sr pairs OUT --network vdsr {SHORT}', 'pairs'),
    'train-sr with a flow': (f'train-sr pairs OUT --network vdsr --flow flow {SHORT}', 'flow'),
}
# how the folder is spelled
WAYS = {
    'its name': lambda p, data: data,
    'with a dot': lambda p, data: f'./{data}/.',
    'through its parent': lambda p, data: f'diary/../{data}',
    'from the root': lambda p, data: str(p.root / data),
    'a link to it': lambda p, data: link(p.root / 'linked', p.root / data),
    'a link to a link': lambda p, data: link(p.root / 'again', link(p.root / 'linked', p.root / data)),
    'inside': lambda p, data: f'{data}/out',
    'deep inside': lambda p, data: f'{data}/a/b/c',
    'inside through a link': lambda p, data: link(p.root / 'linked', p.root / data) + '/out',
}


def link(path, target):
    path.symlink_to(target)
    return str(path)


def refused(place, monkeypatch, capsys, command, *words):
    "The one line with which a command ends at once; nothing has changed, and nothing was left."
    before = contents(place.root)
    code, lines = say(monkeypatch, capsys, command)
    assert code == 2 and len(lines) == 1 and lines[0].startswith('interflow: '), (code, lines)
    assert not [word for word in words if word not in lines[0]], lines[0]
    assert changes(place.root, before) == []
    return lines[0]


@pytest.mark.parametrize('way', WAYS.values(), ids=WAYS)
@pytest.mark.parametrize('command, data', FOLDERS.values(), ids=FOLDERS)
def test_the_folder_of_an_input_is_no_place_for_results(place, monkeypatch, capsys, command, data, way):
    out = way(place, data)
    refused(place, monkeypatch, capsys, command.replace('OUT', out), str(Path(out)), 'choose')


@pytest.mark.parametrize('command', [*dict.fromkeys(command for command, _ in FOLDERS.values()), 'demo OUT --smoke'])
def test_a_folder_of_somebody_else_is_not_taken(place, monkeypatch, capsys, command):
    refused(place, monkeypatch, capsys, command.replace('OUT', 'diary'), 'diary', 'monday.txt', 'choose')


@pytest.mark.parametrize('command', [*dict.fromkeys(command for command, _ in FOLDERS.values()), 'demo OUT --smoke', 'upscale network photos OUT --device cpu',
                                     'judge flow photos --factors 3 --draws 2 --shots 2 --device cpu --out OUT'])
@pytest.mark.parametrize('out', ['thesis.txt', 'thesis.txt/below', 'round', 'round/below'])
def test_a_file_or_a_circle_is_no_folder(place, monkeypatch, capsys, command, out):
    (place.root / 'round').symlink_to('round')
    refused(place, monkeypatch, capsys, command.replace('OUT', out), out.split('/')[0])


# ---------------------------------------------------------------- upscale

UPSCALE = 'upscale network {} {} --device cpu'


@pytest.mark.parametrize('way', ['photos', './photos/', 'diary/../photos', 'linked'])
def test_upscale_into_its_pictures(place, monkeypatch, capsys, way):
    link(place.root / 'linked', 'photos')
    refused(place, monkeypatch, capsys, UPSCALE.format('photos', way), way.rstrip('/').split('/')[-1])


def test_upscale_onto_the_picture_itself(place, monkeypatch, capsys):
    refused(place, monkeypatch, capsys, UPSCALE.format(f'photos/{place.name}', 'photos'), place.name)
    shutil.copy(place.photo, place.root)
    refused(place, monkeypatch, capsys, UPSCALE.format(place.name, '.'), place.name)


def test_upscale_onto_a_second_name_of_a_picture(place, monkeypatch, capsys):
    (place.root / 'large').mkdir()
    os.link(place.photo, place.root / 'large' / place.name)
    refused(place, monkeypatch, capsys, UPSCALE.format('photos', 'large'), f'large/{place.name}', 'input')
    (place.root / 'large' / place.name).unlink()
    link(place.root / 'large' / place.name, place.photo)
    refused(place, monkeypatch, capsys, UPSCALE.format('photos', 'large'), f'large/{place.name}', 'input')


def test_upscale_beside_a_picture_of_the_same_name(place, monkeypatch, capsys):
    Image.open(place.photo).save(place.root / 'a.jpg')
    Image.open(place.photo).save(place.root / 'a.png')
    refused(place, monkeypatch, capsys, UPSCALE.format('a.jpg', '.'), 'a.png', 'not made by this command')


def test_upscale_into_the_parent_of_its_pictures(place, monkeypatch, capsys):
    shutil.copytree(place.root / 'photos', place.root / 'diary/photos')
    shutil.copy(place.photo, place.root / 'diary')      # a picture of another kind by the same name
    refused(place, monkeypatch, capsys, UPSCALE.format('diary/photos', 'diary'), place.name, 'not made by this command')


def test_upscale_two_pictures_of_one_name(place, monkeypatch, capsys):
    Image.open(place.photo).save(place.photo.with_suffix('.jpg'))
    refused(place, monkeypatch, capsys, UPSCALE.format('photos', 'large'), place.photo.stem, 'rename')


def test_upscale_two_pictures_that_differ_in_case_alone(place, monkeypatch, capsys):
    folder = place.root / 'two'
    folder.mkdir()
    for name in ('Bee.png', 'bee.jpg'):
        Image.open(place.photo).crop((0, 0, 20, 20)).save(folder / name)
    if len(list(folder.iterdir())) == 2:
        monkeypatch.setattr(files, '_try_folder', lambda folder: True)      # as Windows and macOS have it
        refused(place, monkeypatch, capsys, UPSCALE.format('two', 'large'), 'rename')
        monkeypatch.undo()
        monkeypatch.chdir(place.root)
        assert say(monkeypatch, capsys, UPSCALE.format('two', 'large'))[0] == 0
        assert len(list((place.root / 'large').glob('[!.]*'))) == 2


def test_upscale_again_makes_its_own_again(place, monkeypatch, capsys):
    assert say(monkeypatch, capsys, UPSCALE.format('photos', 'large'))[0] == 0
    before = contents(place.root / 'large')
    assert say(monkeypatch, capsys, UPSCALE.format('photos', 'large'))[0] == 0
    assert changes(place.root / 'large', before) == []


def test_upscale_from_here_into_a_folder_here(place, monkeypatch, capsys):
    "`upscale . large` is what one types; what lies in large is no picture of the next time."
    monkeypatch.chdir(place.root / 'photos')
    for _ in range(2):
        assert say(monkeypatch, capsys, f'upscale {place.root}/network . large --device cpu')[0] == 0
        assert len(list((place.root / 'photos/large').rglob('*.png'))) == 2
    assert not (place.root / 'photos/large/large').exists()


# ---------------------------------------------------------------- single files

FILES = {'evaluate --csv': 'evaluate network pairs --device cpu --csv OUT', 'evaluate --crops': 'evaluate network pairs --device cpu --crops OUT'}


@pytest.mark.parametrize('command', FILES.values(), ids=FILES)
@pytest.mark.parametrize('out', ['pairs/HR/{name}', 'pairs/x2.1/{name}', 'linked.png', 'second.png', 'network/config.json', 'thesis.txt', 'diary', 'thesis.txt/below'])
def test_evaluate_writes_over_nothing(place, monkeypatch, capsys, command, out):
    link(place.root / 'linked.png', place.root / 'pairs/HR' / place.name)
    os.link(place.root / 'pairs/HR' / place.name, place.root / 'second.png')
    refused(place, monkeypatch, capsys, command.replace('OUT', out.format(name=place.name)))


@pytest.mark.parametrize('option', ['--json OUT', '--out new --json OUT'])
@pytest.mark.parametrize('out', ['pairs/HR/{name}', 'pairs/x2.1/{name}', 'pairs/check.json', 'linked.png', 'second.png', 'thesis.txt', 'diary', 'thesis.txt/below'])
def test_check_writes_over_nothing(place, monkeypatch, capsys, option, out):
    link(place.root / 'linked.png', place.root / 'pairs/HR' / place.name)
    os.link(place.root / 'pairs/HR' / place.name, place.root / 'second.png')
    refused(place, monkeypatch, capsys, f'check pairs --processes 1 {option}'.replace('OUT', out.format(name=place.name)))


@pytest.mark.parametrize('name', ['check.json', 'check.csv', 'check.png', 'check.html'])
def test_check_leaves_reports_of_others(place, monkeypatch, capsys, name):
    (place.root / 'report').mkdir()
    (place.root / 'report' / name).write_text('my own')
    refused(place, monkeypatch, capsys, 'check pairs --processes 1 --out report', name)
    (place.root / 'report' / name).unlink()
    (place.root / 'pairs/x2.1' / place.name).write_text('no picture')       # something to draw
    for _ in range(2):
        assert say(monkeypatch, capsys, 'check pairs --processes 1 --out report --json own.json')[0] == 2
    assert (place.root / 'report' / name).exists()


@pytest.mark.parametrize('out', ['pairs', 'pairs/HR', 'linked/HR', 'thesis.txt'])
def test_check_writes_no_picture_into_a_set(place, monkeypatch, capsys, out):
    link(place.root / 'linked', place.root / 'pairs')
    refused(place, monkeypatch, capsys, f'check pairs --processes 1 --out {out}')


@pytest.mark.parametrize('out', ['kept', './kept', 'linked', 'thesis.txt', 'network/config.json', 'diary'])
def test_images_of_an_evaluation_replace_nothing(place, monkeypatch, capsys, out):
    "Whatever lies there under the name of one: a second name of an HR image, a link to it, a folder, text."
    stem = place.photo.stem
    link(place.root / 'linked', 'kept')
    for folder in ('kept', 'diary'):
        (place.root / folder / stem / 'x2.1').mkdir(parents=True)
    os.link(place.root / 'pairs/HR' / place.name, place.root / 'kept' / stem / 'x2.1/network.png')
    (place.root / 'diary' / stem / 'x2.1/network.png').write_text('dear diary')
    refused(place, monkeypatch, capsys, f'evaluate network pairs --factors 2.1 --device cpu --save-images {out}')


def test_evaluate_twice_and_into_one_file(place, monkeypatch, capsys):
    command = 'evaluate network pairs --device cpu --csv table.csv --crops crops.png'
    for _ in range(2):
        assert say(monkeypatch, capsys, command)[0] == 0
    refused(place, monkeypatch, capsys, 'evaluate network pairs --device cpu --csv new.png --crops ./new.png', 'two results')


@pytest.mark.parametrize('suffix', ['.pt2', '.onnx'])
def test_export_writes_over_its_own_alone(place, monkeypatch, capsys, suffix):
    if suffix == '.onnx':
        pytest.importorskip('onnxruntime')
        pytest.importorskip('onnxscript')
    (place.root / f'mine{suffix}').write_text('the only copy')
    refused(place, monkeypatch, capsys, f'export network mine{suffix}', 'not made by this command')
    for _ in range(2):
        assert say(monkeypatch, capsys, f'export network net{suffix} --height 24 --width 24')[0] == 0


def test_judge_writes_over_its_own_alone(place, monkeypatch, capsys):
    command = 'judge flow photos --factors 3 --draws 2 --shots 2 --no-classifier --device cpu --out found'
    (place.root / 'found').mkdir()
    (place.root / 'found/judge.txt').write_text('my verdict')
    refused(place, monkeypatch, capsys, command, 'judge.txt')
    (place.root / 'found/judge.txt').unlink()
    for _ in range(2):
        assert say(monkeypatch, capsys, command)[0] == 0


# ---------------------------------------------------------------- the functions themselves

def test_models_do_not_replace_a_folder_of_somebody_else(place):
    "`save_model('.')` would have removed all that was there."
    for save in (lambda: save_model(place.root, InterFlow(InterFlowConfig.tiny(), make_generator(0))), lambda: save_network(place.root / 'diary', build('vdsr', 'tiny'))):
        before = contents(place.root)
        with pytest.raises(InterflowError, match='would be lost'):
            save()
        assert changes(place.root, before) == []
    save_network(place.root / 'network', build('vdsr', 'tiny'))     # its own it replaces


def test_a_folder_that_changed_is_known_by_its_mark(tmp_path):
    for names in (('progress.json', 'old.bin'), ('progress.json', 'new.bin')):
        with whole_folder(tmp_path / 'state', 'progress.json') as folder:
            for name in names:
                (folder / name).write_text(name)
    assert sorted(path.name for path in (tmp_path / 'state').iterdir()) == ['new.bin', 'progress.json']


@pytest.mark.parametrize('code, words', [(errno.EACCES, 'no permission'), (errno.EROFS, 'only be read'), (errno.ENOSPC, 'disk is full'), (errno.EDQUOT, 'quota')])
@pytest.mark.parametrize('command', [command for command, _ in FOLDERS.values()] + [UPSCALE.format('photos', 'OUT'), *FILES.values(), 'export network OUT.pt2',
                                     'judge flow photos --factors 3 --draws 2 --shots 2 --device cpu --out OUT'])
def test_a_place_that_cannot_be_written_is_told_before_the_work(place, monkeypatch, capsys, command, code, words):
    def fails(folder):
        raise OSError(code, os.strerror(code), str(folder))
    monkeypatch.setattr(files, '_try_folder', fails)
    refused(place, monkeypatch, capsys, command.replace('OUT', 'large'), words)


def test_a_folder_that_may_not_be_written(tmp_path):
    if not os.geteuid():
        pytest.skip('nothing is forbidden to root; the test above plays the answer of the system')
    tmp_path.chmod(0o500)
    with pytest.raises(InterflowError, match='no permission'):
        guard_folder(tmp_path / 'out', [])


def test_ten_thousand_outputs_are_compared_in_no_time(tmp_path):
    inputs = [tmp_path / f'{k}.png' for k in range(10_000)]
    for path in inputs[::100]:
        path.write_bytes(b'')
    import time
    start = time.process_time()
    guard_outputs([tmp_path / 'out' / path.name for path in inputs], inputs)
    assert time.process_time() - start < 2


def test_an_image_that_is_linked_stays_readable_in_a_set(tmp_path):
    "A hard link to a symbolic link would lead elsewhere."
    from interflow.sets.shards import link_hr
    (tmp_path / 'store').mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'store/a.png')
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/a.png').symlink_to(Path('../store/a.png'))
    link_hr(tmp_path / 'photos/a.png', tmp_path / 'set/deep/HR/a.png', True)
    assert Image.open(tmp_path / 'set/deep/HR/a.png').size == (8, 8)
