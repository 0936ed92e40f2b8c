"""What a user can get wrong at the command line: one line that names the file or value and the mend, exit code 2, and nothing written."""
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from scenes import write_crops

from interflow.camera import shoot
from interflow.checkpoints import save_model
from interflow.cli import main
from interflow.core import InterflowError, make_generator, photographs, write_image
from interflow.data import simulate
from interflow.model import InterFlow, InterFlowConfig
from interflow.sr.networks import build, save_network


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A folder with everything in order: photographs, pairs made of them, a flow and an SR network (neither trained)."
    folder = tmp_path_factory.mktemp('whole')
    photos = write_crops(folder / 'photos', photographs('test')[:2], slice(200, 272), slice(300, 380))
    simulate(photos, folder / 'pairs', (2.1, 3.75))
    save_model(folder / 'flow', InterFlow(InterFlowConfig.tiny(), make_generator(0)))
    save_network(folder / 'network', build('rcan', 'tiny'))
    return folder


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    "A copy of it to break, as the working folder; `photo`, `hr` and `lr` are files of one scene."
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    photo = sorted((tmp_path / 'photos').iterdir())[0]
    return SimpleNamespace(root=tmp_path, photo=photo, hr=tmp_path / 'pairs/HR' / photo.name, lr=tmp_path / 'pairs/x2.1' / photo.name)


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def shrink(path):
    Image.open(path).resize((40, 36)).save(path)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def edit(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def diverge(folder):
    model = InterFlow(InterFlowConfig.tiny(), make_generator(0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float('nan'))
    save_model(folder, model)


SIMULATE, TRAIN, GENERATE = 'simulate photos out', 'train pairs out --steps 1 --device cpu', 'generate flow pairs out --device cpu'
TRAIN_SR, EVALUATE = 'train-sr pairs out --steps 1 --device cpu', 'evaluate network pairs --device cpu --csv out'

# command, what is done to the place before, words that the one line must have
FAULTS = {
    'simulate, a cut file': (f'{SIMULATE} --strict', lambda p: cut(p.photo), ['{photo}', 'not a readable image', 'replace']),
    'simulate, no image': (f'{SIMULATE} --strict', lambda p: p.photo.write_text('no image'), ['{photo}', 'not a readable image', 'replace']),
    'simulate, an empty folder': (SIMULATE, lambda p: empty(p.root / 'photos'), ['photos', 'no photograph', 'put']),
    'simulate, no folder': ('simulate nowhere out', None, ['nowhere', 'no such folder', 'check']),
    'simulate, a factor out of range': (f'{SIMULATE} --factors 2,5', None, ['factor 5', '[1, 4]']),
    'simulate, a factor that is none': (f'{SIMULATE} --factors two', None, ['two', 'list of numbers', 'write']),
    'simulate, an unknown camera': (f'{SIMULATE} --camera leica', None, ['leica', 'unknown', 'canon', 'nikon']),
    'train, sizes differ': (TRAIN, lambda p: shrink(p.lr), ['{lr}', '36x40', '72x80', 'register']),
    'train, a cut file': (TRAIN, lambda p: cut(p.lr), ['{lr}', 'not a readable image', 'replace']),
    'train, an unknown factor': (f'{TRAIN} --factors 2.1,3.3', None, ['{hr}', '3.3', '2.1, 3.75']),
    'train, no pairs': ('train photos out', None, ['photos', 'no pair', 'expected']),
    'train, an unknown preset': (f'{TRAIN} --preset huge', None, ['huge', 'unknown', 'tiny', 'paper']),
    'train, a patch too large': (f'{TRAIN} --patch 400', None, ['400', '72x80', 'smaller']),
    'generate, sizes differ': (f'{GENERATE} --path linear', lambda p: shrink(p.lr), ['{lr}', '36x40', '72x80', 'register']),
    'generate, a cut file': (GENERATE, lambda p: cut(p.hr), ['{hr}', 'not a readable image', 'replace']),
    'generate, a factor out of range': (f'{GENERATE} --factors 3.9', None, ['3.9', '2.1 to 3.75']),
    'generate, an unknown path': (f'{GENERATE} --path winding', None, ['winding', 'unknown', 'linear', 'sample']),
    'generate, one photograph missing': (f'{GENERATE} --path linear', lambda p: p.lr.unlink(), ['HR', '2.1', 'path linear needs', 'path transport', 'path sample']),
    'generate, all photographs missing': (f'{GENERATE} --path transport', lambda p: (shutil.rmtree(p.root / 'pairs'), shutil.copytree(p.root / 'photos', p.root / 'pairs')),
                                          ['no LR image', 'path transport', 'path sample']),
    'generate, modes of a factor not trained': (f'{GENERATE} --modes 1', None, ['2.1, 3', '2.1, 3.75', 'choose']),
    'generate, an unknown mode': (f'{GENERATE} --modes 7', None, ['mode 7', 'choose 0']),
    'generate, modes and factors': (f'{GENERATE} --modes 0 --factors 3', None, ['give one']),
    'generate, a range that is none': (f'{GENERATE} --factors random:3:2', None, ['random:3:2', 'write']),
    'generate, draws without noise': (f'{GENERATE} --path linear --draws 2', None, ['same image', 'sample']),
    'generate, an unknown format': (f'{GENERATE} --format tiff', None, ['tiff', 'webdataset']),
    'generate, half a share': (f'{GENERATE} --rank 1', None, ['rank', 'give both']),
    'generate, like what': (f'{GENERATE} --like one.png', None, ['one.png', 'HR,LR,FACTOR']),
    'generate, no model': ('generate nowhere pairs out', None, ['nowhere', 'no such file', 'check']),
    'generate, a cut checkpoint': (GENERATE, lambda p: cut(p.root / 'flow/model.safetensors'), ['model.safetensors', 'not readable', 'copy']),
    'generate, another preset': (GENERATE, lambda p: edit(p.root / 'flow/config.json', hidden=32), ['model.safetensors', 'do not fit', 'preset']),
    'generate, another kind of model': ('generate network pairs out', None, ['config.json', 'InterFlow', 'give']),
    'generate, a diverged model': (GENERATE, lambda p: diverge(p.root / 'flow'), ['NaN']),
    'train-sr, sizes differ': (TRAIN_SR, lambda p: shrink(p.lr), ['{lr}', '36x40', '72x80', 'register']),
    'train-sr, an unknown factor': (f'{TRAIN_SR} --factors 3.3', None, ['{hr}', '3.3', '2.1, 3.75']),
    'evaluate, sizes differ': (EVALUATE, lambda p: shrink(p.lr), ['{lr}', '36x40', '72x80', 'register']),
    'evaluate, another kind of model': ('evaluate flow pairs --csv out', None, ['config.json', 'InterFlow', 'give']),
    'evaluate, an unknown factor': (f'{EVALUATE} --factors 3.3', None, ['{hr}', '3.3', '2.1, 3.75']),
}


@pytest.mark.parametrize('command, spoil, words', FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_in_one_line(place, monkeypatch, capsys, command, spoil, words):
    if spoil:
        spoil(place)
    before = contents(place.root)
    code, lines = say(monkeypatch, capsys, command)
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith('interflow: '), lines
    missing = [word for word in words if word.format(photo=place.photo.name, hr=place.hr.name, lr=f'x2.1/{place.lr.name}') not in lines[0]]
    assert not missing, f'{missing} not in: {lines[0]}'
    assert changes(place.root, before) == []


@pytest.mark.parametrize('command', [SIMULATE + ' --factors 2.1', f'{TRAIN} --patch 32 --batch-size 1', f'{GENERATE} --factors 3 --check none',
                                     f'{TRAIN_SR} --patch 32 --batch-size 1', EVALUATE])
def test_without_the_fault_the_same_command_works(place, monkeypatch, capsys, command):
    "Else the test above could pass for the wrong reason."
    code, lines = say(monkeypatch, capsys, command)
    assert code == 0, lines
    assert (place.root / 'out').exists()
    assert not list(place.root.rglob('*.part')), 'something half-written is left'


def test_a_folder_of_another_run_is_refused(place, monkeypatch, capsys):
    assert say(monkeypatch, capsys, SIMULATE + ' --factors 2.1')[0] == 0
    before = contents(place.root)
    code, lines = say(monkeypatch, capsys, SIMULATE + ' --factors 2.1 --seed 1')
    assert code == 2 and 'out: holds a run with seed = 0, not 1' in lines[-1]
    assert changes(place.root, before) == []


def test_the_installed_command(tmp_path):
    "All of the above ran inside the tests' own process; this once, the command as the user has it."
    done = subprocess.run([Path(sys.executable).with_name('interflow'), 'simulate', 'nowhere', 'out'], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, '', 'interflow: nowhere: no such folder; check the path\n')


def test_nan_in_an_image(tmp_path):
    "8-bit files hold no NaN; images in memory may, and neither the camera nor the writer takes them."
    image = torch.full((3, 16, 16), .5)
    image[1, 8, 8] = float('nan')
    with pytest.raises(InterflowError, match='^scene: holds NaN.*repair or remove'):
        shoot(image, 3., 'canon', scene='scene')
    with pytest.raises(InterflowError, match='NaN.*nothing was written'):
        write_image(tmp_path / 'image.png', image)
    assert not list(tmp_path.iterdir())


def contents(folder):
    "Every file below `folder` with its bytes, and every folder."
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


def changes(folder, before):
    "The paths below `folder` that appeared, went or hold other bytes than in `before`."
    after = contents(folder)
    return sorted(str(path) for path in before.keys() | after.keys() if path not in before or path not in after or before[path] != after[path])


def say(monkeypatch, capsys, command):
    "(exit code, lines on stderr) of `interflow COMMAND`, without its progress bars. A line that a bar has begun does not count as one."
    monkeypatch.setattr(sys, 'argv', ['interflow', *command.split()])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
        sys.exit(0)
    said = capsys.readouterr().err
    lines = [line for line in said.replace('\r', '\n').splitlines() if line.strip('\x1b[A ') and '%|' not in line]
    return ended.value.code, lines
