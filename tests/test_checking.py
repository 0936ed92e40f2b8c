"""`interflow check`: each planted fault is one clear line that names the file; what is right is never refused."""
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from test_pages import check_page
from typer.testing import CliRunner

from interflow.checking import check, quick_check
from interflow.checking.factor import contradicts, factor_curve, read_curve
from interflow.checking.twins import print_of
from interflow.core import InterflowError, photographs, read_pixels
from interflow.data import Scene, read_scenes, simulate

NAMES = ('brushes', 'fig', 'flower')


@pytest.fixture(scope='session')
def good(tmp_path_factory):
    "A set without a fault: three scenes at x2 and x3, in a folder that is called test."
    folder = tmp_path_factory.mktemp('good')
    photos = folder / 'photos'
    photos.mkdir()
    for path in photographs('test'):
        if path.stem in NAMES:
            Image.open(path).crop((200, 60, 584, 444)).save(photos / f'{path.stem}.png')
    simulate(photos, folder / 'test', (2., 3.))
    return folder / 'test'


@pytest.fixture
def bad(good, tmp_path):
    "A copy of it, to be spoiled."
    return shutil.copytree(good, tmp_path / 'set')


def pixels(folder, name):
    return read_pixels(folder / name)


def write(folder, name, values):
    "Write pixels as a file of the set; floats are clipped."
    Image.fromarray(np.ascontiguousarray(np.asarray(values).clip(0, 255).astype(np.uint8))).save(folder / name)


def moved(image, right):
    "An image moved by a part of a pixel."
    import cv2
    return cv2.warpAffine(image, np.float32([[1, 0, right], [0, 1, 0]]), image.shape[1::-1], flags=cv2.INTER_CUBIC,
                          borderMode=cv2.BORDER_REFLECT)


def exchange(folder):
    hr, lr = pixels(folder, 'HR/fig.png'), pixels(folder, 'x3/fig.png')
    write(folder, 'HR/fig.png', lr)
    write(folder, 'x3/fig.png', hr)
    shutil.rmtree(folder / 'x2')


def noise(image, sigma):
    return image + np.random.default_rng(0).normal(0, sigma, image.shape)


def smaller(image, factor):
    size = [round(side / factor) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


LR = 'x3/fig.png'
FAULTS = {      # what is done to the set -> level, kind, the file that is named, words
    'shifted by (9, 5)': (lambda f: write(f, LR, np.roll(pixels(f, LR), (5, 9), (0, 1))),
                          'error', 'shift', LR, ('right', 'down', 'register')),
    'shifted by 1.5': (lambda f: write(f, LR, moved(pixels(f, LR), 1.5)),
                       'warning', 'shift', LR, ('pixels right', 'register')),
    'exchanged': (exchange, 'error', 'exchanged', LR, ('sharper', 'exchange')),
    'another scene': (lambda f: shutil.copy(f / 'x3/flower.png', f / LR), 'error', 'scene', LR, ('another scene', 'HR/fig.png')),
    'a copy of HR': (lambda f: shutil.copy(f / 'HR/fig.png', f / LR), 'error', 'copy', LR, ('pixel for pixel',)),
    'gain 1.3': (lambda f: write(f, LR, 1.3 * pixels(f, LR).astype(float)), 'warning', 'light', LR, ('times the contrast', 'gain and offset')),
    'grey as RGB': (lambda f: write(f, LR, np.repeat(pixels(f, LR)[..., 1:2], 3, -1)), 'warning', 'grey', LR, ('no colour',)),
    'grey': (lambda f: Image.open(f / LR).convert('L').save(f / LR), 'error', 'file', LR, ('is grey', 'convert')),
    'transparent': (lambda f: Image.open(f / LR).convert('RGBA').save(f / LR), 'error', 'file', LR, ('RGBA', 'convert')),
    '16 bit': (lambda f: Image.fromarray(np.full((384, 384), 40_000, np.uint16)).save(f / LR),
               'error', 'file', LR, ('16-bit', 'convert')),
    'truncated': (lambda f: (f / LR).write_bytes((f / LR).read_bytes()[:20_000]), 'error', 'file', LR, ('cut short', 'replace')),
    'zero bytes': (lambda f: (f / LR).write_bytes(b''), 'error', 'file', LR, ('0 bytes', 'replace')),
    'text': (lambda f: (f / LR).write_text('see you tomorrow'), 'error', 'file', LR, ('it is text', 'replace')),
    'sizes': (lambda f: write(f, LR, pixels(f, LR)[:, :300]), 'error', 'size', LR, ('384x300', '384x384', 'crop')),
    'larger than HR': (lambda f: shutil.rmtree(f / 'x2') or write(f, 'HR/fig.png', smaller(pixels(f, 'HR/fig.png'), 3)), 'error', 'size', LR, ('larger', 'exchange')),
    'smaller by another factor': (lambda f: write(f, 'x2/fig.png', smaller(pixels(f, 'HR/fig.png'), 3)),
                                  'error', 'size', 'x2/fig.png', ('by 3.00, not by 2', 'true factor')),
    'clipped': (lambda f: write(f, LR, 2.2 * pixels(f, LR).astype(float)), 'warning', 'clipped', LR, ('black or white',)),
    'noisy LR': (lambda f: write(f, LR, noise(pixels(f, LR), 25)), 'warning', 'noise', LR, ('grey levels',)),
    'noisy HR': (lambda f: write(f, 'HR/fig.png', noise(pixels(f, 'HR/fig.png'), 25)), 'warning', 'noise', 'HR/fig.png', ('grey levels',)),
    'one missing': (lambda f: (f / LR).unlink(), 'error', 'set', LR, ('missing',)),
    'one left over': (lambda f: write(f, 'x2.5.png', pixels(f, LR)) or (f / 'x2.5.png').rename(f / 'x3' / 'fig_old.webp.png'),
                      'error', 'set', 'HR/fig_old', ('missing',)),
    'x3 claimed as x2': (lambda f: shutil.rmtree(f / 'x2') or (f / 'x3').rename(f / 'x2'), 'error', 'factor', 'x2', ('x2', '3.0', 'true factor')),
}


def test_a_good_set_is_clean(good):
    found = check([good])
    assert found.exit_code == 0 and not found.findings and len(found.rows) == 6
    assert all(abs(group.found / group.factor - 1) < .03 and group.shift[1] < .6 for group in found.groups)


@pytest.mark.parametrize('name', FAULTS)
def test_each_planted_fault_is_one_clear_line(bad, name):
    plant, level, kind, file, words = FAULTS[name]
    plant(bad)
    found = check([bad])
    lines = [one for one in found.findings if (one.level, one.kind) == (level, kind)]
    assert len(lines) == 1, [one.line() for one in found.findings]
    line = lines[0].line()
    assert f'{bad / file}' in line and '\n' not in line and '; ' in line and all(word in line for word in words), line
    assert found.exit_code == (2 if level == 'error' else 1)
    follows = {'clipped': {'light'}, 'light': {'clipped'}, 'noise': {'clipped'}}    # nothing else is blamed for it
    assert {one.kind for one in found.findings if one.level != 'note'} <= {kind} | follows.get(kind, set())


def test_twins_across_splits_are_found_also_saved_anew(good, tmp_path):
    train = shutil.copytree(good, tmp_path / 'train')
    for place in ('HR', 'x2', 'x3'):
        Image.open(train / place / 'fig.png').save(train / place / 'renamed.jpg', quality=60)
        for path in (train / place).glob('*.png'):
            path.unlink()
    lines = [one.line() for one in check([good, train]).findings if one.kind == 'twin']
    assert len(lines) == 1 and str(good / 'HR' / 'fig.png') in lines[0] and str(train / 'HR' / 'renamed.jpg') in lines[0]
    assert 'in train and in test' in lines[0]
    within = check([train]).findings
    assert not [one for one in within if one.kind == 'twin']


def test_prints_know_a_picture_and_no_other():
    from interflow.checking.images import thumbnail
    images = [read_pixels(path) for path in photographs('test')]
    prints = np.stack([print_of(thumbnail(image)) for image in images])
    other = np.stack([print_of(thumbnail((.8 * image[::2, ::2]).astype(np.uint8))) for image in images])
    alike = prints @ other.T
    assert alike.diagonal().min() > .985 and (alike - 2 * np.eye(len(images))).max() < .7


@pytest.mark.parametrize('kind', ['NEAREST', 'BILINEAR', 'BICUBIC', 'LANCZOS'])
def test_a_right_factor_is_not_contradicted_whatever_enlarged_the_image(good, kind):
    for name in NAMES:
        hr = pixels(good, f'HR/{name}.png')
        for factor in (2., 3., 4.):
            image = Image.fromarray(smaller(hr, factor)).resize(hr.shape[1::-1], getattr(Image.Resampling, kind))
            found = read_curve(factor_curve(np.asarray(image)), factor)
            assert not contradicts(found, factor), (name, factor, found)


def test_the_quick_check_passes_what_is_right_and_refuses_what_cannot_be(good, bad, tmp_path):
    quick_check(read_scenes(good))
    Image.fromarray(np.roll(pixels(bad, LR), (5, 9), (0, 1))).save(bad / LR)
    scenes = [scene for scene in read_scenes(bad) if scene.name == 'fig']
    with pytest.raises(InterflowError, match=r'fig.png: lies .* right and .* down.*--no-check'):
        quick_check(scenes)
    quick_check(scenes, [2.])       # the faulty factor is not used
    write(bad, LR, moved(pixels(good, LR), 1.5))
    quick_check(scenes)             # doubtful, and told in the log alone
    hr = pixels(good, 'HR/fig.png')
    for factor in (1.2, 2., 3.):    # LR as from the sensor
        write(tmp_path, f'{factor}.png', smaller(hr, factor))
        quick_check([Scene('fig', good / 'HR' / 'fig.png', {factor: tmp_path / f'{factor}.png'})])


def test_factors_that_spectra_contradict_are_no_reason_to_refuse(good):
    quick_check([Scene(scene.name, scene.hr, {2.: scene.lr[3.]}) for scene in read_scenes(good)])


def test_the_quick_check_is_quick(good):
    scene = read_scenes(good)[0]
    start = time.process_time()
    quick_check([Scene(str(k), scene.hr, {3.: scene.lr[3.]}) for k in range(5000)])
    assert time.process_time() - start < 5      # one, on a quiet machine


def run(*words):
    from interflow.cli import app
    return CliRunner().invoke(app, [*map(str, words)])


def test_the_command_tells_by_exit_code_and_files(good, bad, tmp_path):
    assert run('check', good).exit_code == 0
    write(bad, LR, moved(pixels(bad, LR), 1.5))
    outcome = run('check', bad, '--out', tmp_path / 'report', '--json', tmp_path / 'own.json')
    assert outcome.exit_code == 1 and 'warning: ' in outcome.output and '1 warning' in outcome.output
    assert {path.name for path in (tmp_path / 'report').iterdir()} == {'check.json', 'check.csv', 'check.png', 'check.html'}
    assert check_page(tmp_path / 'report' / 'check.html').tags.count('img') == 1
    report = json.loads((tmp_path / 'own.json').read_text())
    assert report == json.loads((tmp_path / 'report' / 'check.json').read_text())
    assert [one['kind'] for one in report['findings']] == ['shift'] and len(report['pairs']) == 6
    (bad / LR).write_bytes(b'')
    assert run('check', bad).exit_code == run('check', tmp_path / 'nowhere').exit_code == 2
    assert run('check', '--hr', good / 'HR', '--lr', good / 'x3', '--factor', '3').exit_code == 0


@pytest.mark.parametrize('command', ['train', 'train-sr'])
def test_trainings_look_first(bad, tmp_path, command, monkeypatch):
    import interflow.calibrating
    import interflow.sr.training

    def begin(*arguments):
        raise InterflowError('it begins')
    monkeypatch.setattr(interflow.calibrating, 'train_flow', begin)
    monkeypatch.setattr(interflow.sr.training, 'train_sr', begin)
    assert 'it begins' in str(run(command, bad, tmp_path / 'out').exception)
    for name in NAMES:
        write(bad, f'x3/{name}.png', np.roll(pixels(bad, f'x3/{name}.png'), (5, 9), (0, 1)))
    assert '--no-check' in str(run(command, bad, tmp_path / 'out').exception)
    assert 'it begins' in str(run(command, bad, tmp_path / 'out', '--no-check').exception)
