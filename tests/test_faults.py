"""What a user can get wrong at the command line: one line that names the file or value and the mend, exit code 2, and nothing written."""
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import run_command, without_bars, write_crops, write_whole

from interflow.camera import shoot
from interflow.checkpoints import save_model
from interflow.core import InterflowError, make_generator, photographs, write_image
from interflow.model import InterFlow, InterFlowConfig


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A folder with everything in order: photographs, pairs made of them, a flow and an SR network (neither trained)."
    return write_whole(tmp_path_factory.mktemp('whole'), 'rcan', slice(200, 272), slice(300, 380))


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    "A copy of it to break, as the working folder; `photo`, `hr` and `lr` are files of one scene."
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    photo = sorted((tmp_path / 'photos').iterdir())[0]
    return SimpleNamespace(root=tmp_path, photo=photo, hr=tmp_path / 'pairs/HR' / photo.name, lr=tmp_path / 'pairs/x2.1' / photo.name)


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def convert(path, mode):
    Image.open(path).convert(mode).save(path)


def deepen(path):
    Image.fromarray(np.asarray(Image.open(path).convert('L')).astype(np.uint16) * 257).save(path)


def shrink(path):
    Image.open(path).resize((40, 30)).save(path)


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
TRAIN_SR, EVALUATE = 'train-sr pairs out --steps 1 --device cpu', 'evaluate network pairs --device cpu --csv out --strict'

# command, what is done to the place before, words that the one line must have
FAULTS = {
    'simulate, a cut file': (f'{SIMULATE} --strict', lambda p: cut(p.photo), ['{photo}', 'not a readable image', 'replace']),
    'simulate, no image': (f'{SIMULATE} --strict', lambda p: p.photo.write_text('no image'), ['{photo}', 'not a readable image', 'replace']),
    'simulate, an empty folder': (SIMULATE, lambda p: empty(p.root / 'photos'), ['photos', 'no photograph', 'put']),
    'simulate, no folder': ('simulate nowhere out', None, ['nowhere', 'no such folder', 'check']),
    'simulate, a file for a folder': ('simulate flow/config.json out', None, ['a file, where a folder is needed']),
    'simulate, a factor out of range': (f'{SIMULATE} --factors 2,5', None, ['factor 5', '[1, 4]']),
    'simulate, a factor that is none': (f'{SIMULATE} --factors two', None, ['two', 'list of numbers', 'write']),
    'simulate, an unknown camera': (f'{SIMULATE} --camera leica', None, ['leica', 'unknown', 'canon', 'nikon']),
    'train, sizes differ': (TRAIN, lambda p: shrink(p.lr), ['{lr}', '30x40', '72x80', 'crop both']),
    'train, a cut file': (TRAIN, lambda p: cut(p.lr), ['{lr}', 'not a readable image', 'replace']),
    'train, an unknown factor': (f'{TRAIN} --factors 2.1,3.3', None, ['{hr}', '3.3', '2.1, 3.75']),
    'train, no pairs': ('train photos out', None, ['photos', 'no pair', 'nearest is']),
    'train, an unknown preset': (f'{TRAIN} --preset huge', None, ['huge', 'tiny', 'paper']),
    'train, a patch too large': (f'{TRAIN} --patch 400', None, ['400', '72x80', 'smaller']),
    'generate, sizes differ': (f'{GENERATE} --path linear', lambda p: shrink(p.lr), ['{lr}', '30x40', '72x80', 'register']),
    'generate, a cut file': (GENERATE, lambda p: cut(p.hr), ['{hr}', 'not a readable image', 'replace']),
    'generate, a factor out of range': (f'{GENERATE} --factors 3.9', None, ['3.9', '2.1 to 3.75']),
    'generate, an unknown path': (f'{GENERATE} --path winding', None, ['winding', 'linear', 'sample']),
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
    'train-sr, sizes differ': (TRAIN_SR, lambda p: shrink(p.lr), ['{lr}', '30x40', '72x80', 'crop both']),
    'train-sr, an unknown factor': (f'{TRAIN_SR} --factors 3.3', None, ['{hr}', '3.3', '2.1, 3.75']),
    'evaluate, sizes differ': (EVALUATE, lambda p: shrink(p.lr), ['{lr}', '30x40', '72x80', 'register']),
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
    lines = [line for line in lines if line.startswith('interflow: ')]      # a check may have said other things before
    assert len(lines) == 1, lines
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


# ---------------------------------------------------------------- photographs: left aside, or converted

UPSCALE = 'upscale network photos out --device cpu'
JUDGE = 'judge flow photos --factors 3 --draws 2 --shots 2 --no-classifier --device cpu'
BATCHES = {'simulate': f'{SIMULATE} --factors 2.1', 'generate': 'generate flow photos out --factors 3 --check none --processes 1 --device cpu', 'upscale': UPSCALE, 'judge': JUDGE}


def link_to(path, target):
    path.unlink()
    path.symlink_to(target)


# what a photograph may be instead, and words of its line
BROKEN = {
    'truncated': (cut, 'cut short or damaged'),
    'zero bytes': (lambda path: path.write_bytes(b''), '0 bytes'),
    'text': (lambda path: path.write_text('see the other folder'), 'it is text'),
    'a link to nowhere': (lambda path: link_to(path, 'nowhere.png'), 'a link to a file that does not exist'),
    'a link to itself': (lambda path: link_to(path, path.name), 'circle'),
    'float': (lambda path: Image.fromarray(np.ones((8, 8), np.float32)).save(path, 'TIFF'), 'float'),
}


@pytest.fixture
def three(place):
    "Three photographs, large enough to be judged."
    shutil.rmtree(place.root / 'photos')
    folder = write_crops(place.root / 'photos', photographs('train')[:3], slice(200, 328), slice(300, 428))
    photo = sorted(folder.iterdir())[1]
    return SimpleNamespace(root=place.root, photo=photo, name=photo.name)


@pytest.mark.parametrize('spoil, words', BROKEN.values(), ids=BROKEN)
def test_one_broken_photograph_does_not_end_the_batch(three, monkeypatch, capsys, spoil, words):
    spoil(three.photo)
    code, lines = say(monkeypatch, capsys, UPSCALE)
    told = lines[:-1]
    assert code == 1 and len(told) == 1 and three.name in told[0] and words in told[0]
    assert lines[-1].startswith('interflow: 1 of 3 files left aside') and len(list((three.root / 'out').glob('[!.]*'))) == 2


@pytest.mark.parametrize('command', BATCHES.values(), ids=BATCHES)
def test_every_command_goes_on_or_is_strict(three, monkeypatch, capsys, command):
    three.photo.write_text('no image')
    convert(three.photo.with_name(sorted(path.name for path in three.photo.parent.iterdir())[0]), 'L')
    before = contents(three.root)
    code, lines = say(monkeypatch, capsys, f'{command} --strict')
    assert code == 2 and three.name in lines[-1] and changes(three.root, before) == []
    code, lines = say(monkeypatch, capsys, command)
    told = lines[:-1]
    assert code == 1 and '1 of 3 files left aside' in lines[-1], lines
    assert sum(three.name in line for line in told) == 1 and sum('grey, read as RGB' in line for line in told) == 1, told


@pytest.mark.parametrize('command', BATCHES.values(), ids=BATCHES)
def test_no_photograph_that_can_be_read_is_no_success(three, monkeypatch, capsys, command):
    for path in (three.root / 'photos').iterdir():
        path.write_bytes(b'')
    code, lines = say(monkeypatch, capsys, command)
    assert code == 2 and 'left aside' in lines[-1] and not list(three.root.rglob('out/**/*.png'))


def test_a_set_made_of_photographs_agrees_with_itself(three, monkeypatch, capsys):
    "Held on its side, in wide colours, grey: HR is written as it was read; what needs nothing is linked."
    from test_photographs import P3
    plain, held, wide = sorted((three.root / 'photos').iterdir())
    tag = Image.Exif()
    tag[274] = 6
    image = Image.open(held).crop((0, 0, 128, 96))
    image.save(held, exif=tag)
    Image.open(wide).save(wide, icc_profile=P3)
    raw = np.asarray(Image.open(wide))
    assert say(monkeypatch, capsys, BATCHES['generate'] + ' --names factor')[0] == 0
    made = {path.stem: np.asarray(Image.open(path)) for path in (three.root / 'out/HR').iterdir()}
    assert made[held.stem].shape == (128, 96, 3) and np.array_equal(made[held.stem], np.rot90(np.asarray(image), -1))
    assert abs(made[wide.stem].astype(int) - raw).max() > 10
    assert (three.root / 'out/HR' / plain.name).samefile(plain)
    for path in (three.root / 'out/HR').iterdir():
        with Image.open(path) as hr, Image.open(three.root / 'out/x3' / path.name) as lr:
            assert hr.size == lr.size and not hr.getexif() and not hr.info.get('icc_profile')


def test_what_belongs_to_a_picture_is_kept_when_it_is_enlarged(three, monkeypatch, capsys):
    from test_photographs import P3
    image = Image.open(three.photo)
    image.putalpha(Image.linear_gradient('L').resize(image.size))
    image.save(three.photo, icc_profile=P3)
    assert say(monkeypatch, capsys, f'upscale network {three.photo} out --device cpu')[0] == 0
    with Image.open(three.root / 'out' / three.name) as large:
        assert large.info['icc_profile'] == P3 and large.mode == 'RGBA' and large.size == (384, 384)
        alpha = np.asarray(large)[..., 3].astype(int)
    assert abs(alpha - np.asarray(image.getchannel('A').resize(large.size, Image.Resampling.BICUBIC))).max() == 0


# ---------------------------------------------------------------- pairs: one broken file ends it

PAIRS = {'train': TRAIN, 'train-sr': TRAIN_SR, 'generate': f'{GENERATE} --path linear', 'evaluate': EVALUATE}


@pytest.mark.parametrize('command', PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize('spoil, words', [*BROKEN.values(), (lambda path: convert(path, 'L'), 'grey'), (lambda path: convert(path, 'RGBA'), 'transparency'), (deepen, '16-bit')],
                         ids=[*BROKEN, 'grey', 'RGBA', '16 bits'])
def test_a_broken_image_of_a_pair_ends_it(place, monkeypatch, capsys, command, spoil, words):
    spoil(place.lr)
    before = contents(place.root)
    code, lines = say(monkeypatch, capsys, command)
    assert code == 2 and len(lines) == 1 and f'x2.1/{place.lr.name}' in lines[0] and words in lines[0], lines
    assert changes(place.root, before) == []


@pytest.mark.parametrize('command', PAIRS.values(), ids=PAIRS)
def test_a_folder_is_no_image_of_a_pair(place, monkeypatch, capsys, command):
    place.lr.unlink()
    place.lr.mkdir()
    code, lines = say(monkeypatch, capsys, command)
    assert code == 2 and len(lines) == 1 and '2.1' in lines[0] and place.lr.stem in lines[0], lines


def vanish_at(monkeypatch, path, when):
    "The file `path` is gone when batch `when` is made, and nothing was kept of it in the cache."
    from interflow.data import PairBatches
    from interflow.data.cache import _open
    make = PairBatches.__call__

    def batches(self, step, *rest, **more):
        if step == when and path.exists():
            path.rename(path.with_suffix('.gone'))
            _open.cache_clear()
        return make(self, step, *rest, **more)
    monkeypatch.setattr(PairBatches, '__call__', batches)


def test_a_file_that_vanishes_while_training_is_named_and_the_run_goes_on_later(place, monkeypatch, capsys):
    command = 'train pairs {} --steps 8 --save-every 2 --patch 32 --batch-size 2 --device cpu'
    monkeypatch.setenv('INTERFLOW_CACHE', str(place.photo / 'no folder'))       # each image is decoded again and again
    assert say(monkeypatch, capsys, command.format('whole'))[0] == 0
    with monkeypatch.context() as patched:
        vanish_at(patched, place.lr, 6)
        code, lines = say(monkeypatch, capsys, command.format('out'))
    assert code == 2 and f'x2.1/{place.lr.name}: no such file' in lines[-1]
    assert (place.root / 'out/state').exists() and not (place.root / 'out/model').exists()
    code, lines = say(monkeypatch, capsys, command.format('out'))
    assert code == 2 and place.lr.name in lines[-1], 'still gone, and told at once'
    place.lr.with_suffix('.gone').rename(place.lr)
    assert say(monkeypatch, capsys, command.format('out'))[0] == 0
    first, second = ((place.root / run / 'model/model.safetensors').read_bytes() for run in ('whole', 'out'))
    assert first == second, 'as if nothing had happened'


# ---------------------------------------------------------------- the system

def test_a_disk_that_is_full_in_the_midst_is_one_line(place, monkeypatch, capsys):
    "What was finished stays, nothing half-written does; with room the same command goes on."
    import errno
    write, count = Path.write_bytes, [0]

    def full(path, data):
        count[0] += path.suffix == '.part' and path.name.startswith('.') and b'PNG' in data[:4]
        if count[0] == 2:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(path, data)
    for command in (f'{SIMULATE} --factors 2.1', UPSCALE.replace('out', 'large'), f'{GENERATE} --factors 3 --check none --processes 1'.replace('out', 'set')):
        count[0] = 0
        with monkeypatch.context() as patched:
            patched.setattr(Path, 'write_bytes', full)
            code, lines = say(monkeypatch, capsys, command)
        assert code == 2 and 'the disk is full; make room' in lines[-1] and '.png' in lines[-1], lines
        assert not list(place.root.rglob('*.part'))
        assert say(monkeypatch, capsys, command)[0] == 0


def test_a_name_that_is_no_utf_8(place, monkeypatch, capsys):
    import os
    strange = os.fsencode(place.root / 'photos') + b'/caf\xe9.png'
    try:
        shutil.copy(place.photo, os.fsdecode(strange))
    except OSError:
        pytest.skip('this disk knows UTF-8 alone')
    assert say(monkeypatch, capsys, UPSCALE)[0] == 0
    assert os.path.exists(os.fsencode(place.root / 'out') + b'/caf\xe9.png')
    for command in (f'{SIMULATE} --factors 2.1'.replace('out', 'set'), BATCHES['generate'].replace('out', 'more')):
        code, lines = say(monkeypatch, capsys, command)
        assert code in (0, 2) and (code == 0 or len(lines) == 1), lines


def test_a_user_without_a_home(place, monkeypatch, capsys, tmp_path_factory):
    import tempfile

    def homeless():
        raise RuntimeError('Could not determine home directory.')
    monkeypatch.setattr(Path, 'home', homeless)
    for name in ('INTERFLOW_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path_factory.mktemp('temporary')))
    assert say(monkeypatch, capsys, f'{TRAIN} --patch 32 --batch-size 1')[0] == 0


# ---------------------------------------------------------------- large photographs

@pytest.mark.parametrize('size', [(3000, 4000), (10_000, 10_000)], ids=['12 megapixels', '100 megapixels'])
def test_large_photographs_are_read_without_a_word(tmp_path, size):
    "In a process of its own: Pillow warns of 100 megapixels, and that would be seen."
    Image.new('RGB', size[::-1], (9, 99, 199)).save(tmp_path / 'large.png', compress_level=1)
    script = """
from interflow.photographs import glance, read_photograph
photograph = read_photograph('large.png')
assert photograph.pixels.shape == glance('large.png').pixels.shape and photograph.notices == ()
print(*photograph.pixels.shape, *photograph.pixels[-1, -1])
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [*map(str, size), '3', '9', '99', '199'] and done.stderr == ''


def contents(folder):
    "Every file below `folder` with its bytes, and every folder."
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


def changes(folder, before):
    "The paths below `folder` that appeared, went or hold other bytes than in `before`."
    after = contents(folder)
    return sorted(str(path) for path in before.keys() | after.keys() if path not in before or path not in after or before[path] != after[path])


def say(monkeypatch, capsys, command):
    "(exit code, lines on stderr) of `interflow COMMAND`, without its progress bars."
    code, _, error = run_command(monkeypatch, capsys, command)
    return code, without_bars(error)
