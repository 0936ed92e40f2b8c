"""The ordered RealSR: exact to the pixel, nothing doubtful without a word, resumed after any kill."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from interflow import ordering
from interflow.cli import main
from interflow.core import InterflowError, photographs, read_pixels, to_pixels, to_tensor
from interflow.data import FACTOR_OF_LABEL, Scene, read_scene, read_set
from interflow.data.scenes import resize
from interflow.images import encode_pixels
from interflow.ordering import OrderConfig, blocks, cutting, lookalikes, matching, order
from interflow.sets import read_records

SMALL = OrderConfig(patch=64, overlap=32)
LABELS = (2, 3, 4)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_pixels(np.ascontiguousarray(pixels), '.png'))


def content(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def photos():
    return [read_pixels(path) for path in photographs('train')[:5]]


@pytest.fixture(scope='module')
def sources(photos, tmp_path_factory):
    """RealSR of versions 2 and 3: `folder(version)`, and what was cut where.

    (camera, split, photograph) -> label -> (name, top, left, height, width). Numbers are mixed at each label.
    """
    base, random, truth = tmp_path_factory.mktemp('sources'), np.random.default_rng(7), {}
    for camera in ('Canon', 'Nikon'):
        for split, few in (('Train', (0, 1, 2)), ('Test', (3, 4))):
            for label in LABELS:
                for number, k in enumerate(random.permutation(few).tolist(), 1):
                    top, left = random.integers(0, 30, 2).tolist()
                    height, width = random.integers(110, 150, 2).tolist()
                    hr = photos[k][100 + top:100 + top + height, 200 + left:200 + left + width]
                    hr = hr[..., ::-1] if camera == 'Nikon' else hr
                    small = resize(to_tensor(hr.copy()), (height // label, width // label))
                    name = f'{camera}_{number:03d}'
                    for version, lr in ((2, resize(small, (height, width))), (3, small)):
                        place = base / f'V{version}' / camera / split / str(label)
                        write(place / f'{name}_HR.png', hr)
                        write(place / f'{name}_LR{label}.png', to_pixels(lr))
                    truth.setdefault((camera, split, k), {})[label] = name, top, left, height, width
    return base, truth


@pytest.fixture
def realsr(sources, tmp_path):
    "A copy of version 2 to spoil."
    shutil.copytree(sources[0] / 'V2', tmp_path / 'RealSR')
    return tmp_path / 'RealSR'


def place_of(sources, key, label, root, kind='HR'):
    "The file of a photograph at a label."
    camera, split, _ = key
    return root / camera / split / str(label) / f'{sources[1][key][label][0]}_{kind if kind == "HR" else f"LR{label}"}.png'


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize('version', [2, 3])
def test_every_scene_is_found_and_cut_to_the_pixel(sources, photos, tmp_path, version):
    "Both cameras, both splits, numbers and corners that differ from label to label; LR on the HR grid or smaller."
    (base, truth), out = sources, tmp_path / 'out'
    root = base / f'V{version}'
    result = order(root, out, SMALL)
    assert (result.scenes, result.left_out) == (10, [])
    lines = {line['file']: line for line in map(json.loads, (out / 'manifest.jsonl').open())}
    assert result.files == len(lines) == sum(path.suffix == '.png' for path in out.rglob('*'))
    for (camera, split, k), parts in truth.items():
        top, left = (max(part[i] for part in parts.values()) for i in (1, 2))
        height, width = (min(part[i] + part[i + 2] for part in parts.values()) - corner for i, corner in ((1, top), (2, left)))
        (match,) = [line for line in lines.values() if line['kind'] == 'HR' and '_divided' not in line['file'] and
                    line['source'] == f'{camera}/{split}/2/{parts[2][0]}_HR.png']
        name = match['scene'].rpartition('/')[2]
        assert name.startswith('Canon_') and match['scene'] == f'{camera}/{split}/{name}'
        hr = photos[k][100 + top:100 + top + height, 200 + left:200 + left + width][..., ::-1 if camera == 'Nikon' else 1]
        for label, (source, y, x, *_) in parts.items():
            place = out / camera / split / str(label)
            assert np.array_equal(read_pixels(place / f'{name}_HR.png'), hr)
            pair = [root / camera / split / str(label) / f'{source}_{kind}.png' for kind in ('HR', f'LR{label}')]
            factor = FACTOR_OF_LABEL[label]
            _, lr = read_scene(Scene(source, pair[0], {factor: pair[1]}), [factor])
            assert np.array_equal(read_pixels(place / f'{name}_LR{label}.png'), lr[top - y:top - y + height, left - x:left - x + width])
            line = lines[f'{camera}/{split}/{label}/{name}_LR{label}.png']
            assert line['source'] == pair[1].relative_to(root).as_posix() and line['enlarged'] == (version == 3)
            assert [line[key] for key in ('label', 'top', 'left', 'height', 'width')] == [label, top - y, left - x, height, width]
    assert all(hashlib.sha256((out / file).read_bytes()).hexdigest() == line['sha256'] for file, line in lines.items())


def test_the_reader_and_the_published_names(sources, tmp_path):
    order(sources[0] / 'V2', tmp_path / 'out', SMALL)
    scenes = read_set(tmp_path / 'out')
    assert len(scenes) == 10 and all(sorted(scene.lr) == [2.1, 3.0, 3.75] for scene in scenes)
    assert [scene.name for scene in read_set(tmp_path / 'out/Nikon/Train')] == ['Canon_001', 'Canon_002', 'Canon_003']
    assert {scene.camera for scene in scenes} == {'Canon', 'Nikon'}
    for camera, split, count in (('Canon', 'Train', 3), ('Nikon', 'Test', 2)):
        assert {path.name for path in (tmp_path / 'out' / camera / split / '3').iterdir()} == {
            f'Canon_{k:03d}_{kind}.png' for k in range(1, count + 1) for kind in ('HR', 'LR3')}


def test_patches_cover_training_images_and_are_read_alone(sources, tmp_path):
    order(sources[0] / 'V2', tmp_path / 'out', SMALL)
    divided = tmp_path / 'out/Canon/Train_divided'
    assert divided.is_dir() and not (tmp_path / 'out/Canon/Test_divided').exists()
    lines = [json.loads(line) for line in (tmp_path / 'out/manifest.jsonl').open()]
    whole = {(line['scene'], line['label'], line['kind']): line for line in lines if '_divided' not in line['file']}
    for line in (line for line in lines if '_divided' in line['file']):
        image = whole[line['scene'], line['label'], line['kind']]
        top, left = line['top'] - image['top'], line['left'] - image['left']
        pixels = read_pixels(tmp_path / 'out' / image['file'])[top:top + line['height'], left:left + line['width']]
        assert pixels.shape == (64, 64, 3) and np.array_equal(read_pixels(tmp_path / 'out' / line['file']), pixels)
    patches = read_set(divided)
    assert len(patches) > 3 * 4 and all(sorted(scene.lr) == [2.1, 3.0, 3.75] for scene in patches)
    order(sources[0] / 'V2', tmp_path / 'none', OrderConfig(patch=0))
    assert not list((tmp_path / 'none').rglob('*_divided'))


@pytest.mark.parametrize('size, patch, overlap', [((1000, 1900), 480, 160), ((480, 481), 480, 160), ((300, 100), 480, 0), ((97, 64), 64, 63)])
def test_every_crop_of_the_overlap_lies_in_a_patch(size, patch, overlap):
    seen = np.zeros(size, bool)
    for top, left, height, width in cutting.patch_boxes(size, patch, overlap):
        assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width and max(height, width) <= patch
        side = min(max(overlap, 1), *size)
        seen[top:top + height - side + 1, left:left + width - side + 1] = True
    assert seen[:size[0] - side + 1, :size[1] - side + 1].all()


def test_a_part_of_the_set_gives_the_same_part(sources, tmp_path):
    whole = order(sources[0] / 'V2', tmp_path / 'whole', SMALL) and content(tmp_path / 'whole')
    for part in ('Nikon', 'Canon/Train'):
        order(sources[0] / 'V2' / part, tmp_path / part, SMALL)
        images = {name: data for name, data in content(tmp_path / part).items() if name.endswith('.png')}
        assert images == {name: data for name, data in whole.items() if name.startswith((f'{part}/', f'{part}_')) and name.endswith('.png')}
        assert images


# ---------------------------------------------------------------- doubts


def flip_bit(realsr, sources):
    path = place_of(sources, ('Canon', 'Train', 1), 3, realsr)
    pixels = read_pixels(path).copy()
    pixels[60, 60, 0] ^= 1
    write(path, pixels)


def change_most(realsr, sources):
    path = place_of(sources, ('Canon', 'Train', 1), 3, realsr)
    pixels = read_pixels(path).copy()
    pixels[:90] ^= 1
    write(path, pixels)


def save_anew(realsr, sources):
    path = place_of(sources, ('Canon', 'Train', 1), 3, realsr)
    Image.fromarray(read_pixels(path)).save(path.with_suffix('.jpg'), quality=92)
    write(path, read_pixels(path.with_suffix('.jpg')))
    path.with_suffix('.jpg').unlink()


def add_double(realsr, sources):
    for kind in ('HR', 'LR'):
        path = place_of(sources, ('Canon', 'Train', 1), 3, realsr, kind)
        write(path.with_name(path.name.replace(path.name[:9], 'Canon_099')), read_pixels(path)[5:])


def move_split(realsr, sources):
    for kind in ('HR', 'LR'):
        path = place_of(sources, ('Canon', 'Train', 1), 3, realsr, kind)
        path.rename(realsr / 'Canon/Test/3' / path.name.replace(path.name[:9], 'Canon_099'))


def shrink(realsr, sources):
    for kind in ('HR', 'LR'):
        path = place_of(sources, ('Canon', 'Train', 1), 3, realsr, kind)
        write(path, read_pixels(path)[-45:, -45:])
        path = place_of(sources, ('Canon', 'Train', 1), 2, realsr, kind)
        write(path, read_pixels(path)[:-25, :-25])


def break_hr(realsr, sources):
    path = place_of(sources, ('Canon', 'Train', 1), 3, realsr)
    path.write_bytes(path.read_bytes()[:-300])


def break_lr(realsr, sources):
    place_of(sources, ('Canon', 'Train', 1), 3, realsr, 'LR').write_bytes(b'text')


def turn_grey(realsr, sources):
    path = place_of(sources, ('Canon', 'Train', 1), 3, realsr, 'LR')
    Image.open(path).convert('L').save(path)


@pytest.mark.parametrize('spoil, words', [(flip_bit, ('not equal', '1 of', 'pixels')), (change_most, ('not equal', 'blocks')),
                                          (save_anew, ('not equal', 'looks like')), (add_double, ('ambiguous', 'Canon_099')),
                                          (move_split, ('two parts', 'Test/3/Canon_099')), (shrink, ('too small', '25%')), (break_hr, ('not a readable image',)),
                                          (break_lr, ('not a readable image', 'LR3')), (turn_grey, ('grey', 'LR3'))])
def test_a_doubtful_scene_is_said_and_left_out_and_the_others_are_there(sources, realsr, tmp_path, spoil, words):
    spoil(realsr, sources)
    told = []
    result = order(realsr, tmp_path / 'out', SMALL, told.append)
    assert result.scenes == 9 and result.doubtful
    assert any(all(word in line for word in words) for line in told), told
    assert all(line.startswith('left out: ') and '\n' not in line for line in told)
    written = [json.loads(line) for line in (tmp_path / 'out/left_out.jsonl').open()]
    assert [one['reason'] for one in written] == [one.reason for one in result.left_out]
    source = place_of(sources, ('Canon', 'Train', 1), 2, realsr).relative_to(realsr).as_posix()
    assert any(source in one['files'] for one in written)
    assert source not in {json.loads(line)['source'] for line in (tmp_path / 'out/manifest.jsonl').open()}
    assert len(read_set(tmp_path / 'out')) == 9


def test_a_scene_that_is_not_at_all_labels_is_counted_and_no_doubt(sources, realsr, tmp_path):
    for kind in ('HR', 'LR'):
        place_of(sources, ('Nikon', 'Test', 4), 3, realsr, kind).unlink()
    told = []
    result = order(realsr, tmp_path / 'out', SMALL, told.append)
    assert result.scenes == 9 and not result.doubtful and told == []
    (alone,) = result.left_out
    assert 'no equal at label 3' in alone.reason and len(alone.files) == 2
    assert order(realsr, tmp_path / 'two', OrderConfig((2, 4), patch=0)).scenes == 10, 'two labels are enough when asked for'


def test_other_scenes_share_nothing(photos):
    every = [read_pixels(path) for split in ('train', 'val', 'test') for path in photographs(split)]
    assert matching.find_overlaps([blocks.sketch(photo) for photo in every]) == []


def test_flat_images_match_nothing():
    flat = [np.full((90, 90, 3), value, np.uint8) for value in (0, 255, 7, 7)]
    stripes = np.repeat(np.arange(90, dtype=np.uint8)[:, None] % 9, 270, 1).reshape(90, 90, 3)
    assert matching.find_overlaps([blocks.sketch(image) for image in [*flat, stripes, stripes]]) == []


def test_what_an_image_has_twice_is_no_evidence(photos):
    "Two scenes with one poster, which hangs there twice."
    random = np.random.default_rng(0)
    walls = [random.integers(0, 256, (120, 120, 3), np.uint8) for _ in range(2)]
    for wall, places in zip(walls, (((0, 0), (60, 50)), ((9, 70), (70, 3)))):
        for top, left in places:
            wall[top:top + 45, left:left + 45] = photos[0][:45, :45]
    assert matching.find_overlaps([blocks.sketch(wall) for wall in walls]) == []
    walls[1][70:115, 3:48] = 0      # once here, twice there
    assert matching.find_overlaps([blocks.sketch(wall) for wall in walls]) == []


def test_a_likeness_is_told_by_pixels_not_by_names(photos):
    step = 150 / lookalikes.SIDE
    one, other, noisy = photos[0][50:200, 60:210], photos[1][50:200, 60:210], photos[0][62:200, 55:200].astype(int)
    noisy = np.clip(noisy + np.random.default_rng(0).normal(0, 3, noisy.shape), 0, 255).astype(np.uint8)
    small = [lookalikes.reduce(image, step) for image in (one, other, noisy)]

    def alike(i, j):
        return lookalikes.correlation(small[i], small[j], lookalikes._peak(*(lookalikes.spectrum(small[k]) for k in (i, j))))
    assert alike(0, 2) > lookalikes.ALIKE > .45 > abs(alike(0, 1)) and alike(0, 0) == pytest.approx(1)


# ---------------------------------------------------------------- large sets


def test_images_are_decoded_once_to_match_and_once_to_cut(sources, tmp_path, monkeypatch):
    "Whatever their number: no image is compared with all others."
    read = []
    real = ordering.read_pixels
    monkeypatch.setattr(ordering, 'read_pixels', lambda path: (read.append(path), real(path))[1])
    monkeypatch.setattr(lookalikes, 'read_pixels', None)
    order(sources[0] / 'V2', tmp_path / 'out', SMALL)
    assert len(read) == len(set(read)) == 30


def test_memory_does_not_grow_with_the_set(photos, tmp_path, monkeypatch):
    "Eighteen scenes need about what six need, also with a disk that is slower than all else."
    real = ordering.write_group
    monkeypatch.setattr(ordering, 'write_group', lambda *arguments: (time.sleep(.05), real(*arguments)))
    def peak(count):
        for k in range(count):
            for label in (2, 4):
                hr = photos[k % 5][:400, label:400 + label] ^ np.uint8(k)
                for kind in ('HR', f'LR{label}'):
                    write(tmp_path / f'{count}/Canon/Test/{label}/Canon_{k:03d}_{kind}.png', hr)
        tracemalloc.start()
        assert order(tmp_path / str(count), tmp_path / f'out{count}', OrderConfig(patch=0)).scenes == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most
    few, many = peak(6), peak(18)
    assert many < 1.3 * few, (few, many)


# ---------------------------------------------------------------- goes on


def command(*words):
    return [sys.executable, '-c', 'from interflow.cli import main; main()', 'order', *map(str, words), '--patch', '32', '--overlap', '16']


def test_killed_at_any_moment_it_ends_with_the_same_set(sources, tmp_path):
    root, config = sources[0] / 'V3', OrderConfig(patch=32, overlap=16)
    order(root, tmp_path / 'whole', config)
    kills = 0
    for least in (1, 300):      # files on record
        process = subprocess.Popen(command(root, tmp_path / 'out'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        while process.poll() is None and len(read_records(tmp_path / 'out')) < least:
            time.sleep(.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills, 'it ended before it could be killed'
    records = read_records(tmp_path / 'out')
    dates = {file: (tmp_path / 'out' / file).stat().st_mtime_ns for file in records}
    order(root, tmp_path / 'out', config)
    assert all((tmp_path / 'out' / file).stat().st_mtime_ns == date for file, date in dates.items()), 'nothing is made twice'
    assert {name: data for name, data in content(tmp_path / 'out').items() if not name.endswith('.part')} == content(tmp_path / 'whole')


def test_stopped_while_it_matches(sources, tmp_path, monkeypatch):
    root, real, read = sources[0] / 'V2', ordering.sketch, []

    def dying(pixels):
        read.append(1)
        if len(read) > 12:
            raise KeyboardInterrupt
        return real(pixels)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ordering, 'sketch', dying)
        order(root, tmp_path / 'out', SMALL)
    kept = len(list((tmp_path / 'out/.sketches').rglob('*.npz')))
    assert 0 < kept <= 12
    read.clear()
    monkeypatch.setattr(ordering, 'sketch', lambda pixels: (read.append(1), real(pixels))[1])
    assert order(root, tmp_path / 'out', SMALL).scenes == 10 and len(read) == 30 - kept
    assert not (tmp_path / 'out/.sketches').exists()


def test_a_finished_set_stays_as_it_is_and_a_lost_file_comes_back(sources, tmp_path):
    order(sources[0] / 'V2', tmp_path / 'out', SMALL)
    before = content(tmp_path / 'out')
    dates = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.png')}
    lost = tmp_path / 'out/Canon/Train/3/Canon_002_LR3.png'
    lost.unlink()
    assert order(sources[0] / 'V2', tmp_path / 'out', SMALL).scenes == 10
    assert content(tmp_path / 'out') == before
    assert all(path.stat().st_mtime_ns == date for path, date in dates.items() if path != lost)


def test_other_settings_and_a_set_that_changed_are_refused(realsr, sources, tmp_path):
    order(realsr, tmp_path / 'out', SMALL)
    with pytest.raises(InterflowError, match='patch = 64, not 0'):
        order(realsr, tmp_path / 'out', OrderConfig(patch=0, overlap=32))
    flip = place_of(sources, ('Nikon', 'Test', 3), 4, realsr)
    write(flip, read_pixels(flip)[:-1])
    with pytest.raises(InterflowError, match=flip.name):
        order(realsr, tmp_path / 'out', SMALL)


# ---------------------------------------------------------------- the command


def say(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, 'argv', ['interflow', 'order', *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return code, out.splitlines(), [line for line in err.replace('\r', '\n').splitlines() if line.strip() and '%|' not in line]


def test_the_command_and_its_exit_codes(realsr, sources, tmp_path, monkeypatch, capsys, caplog):
    code, out, err = say(monkeypatch, capsys, realsr, tmp_path / 'good', '--patch', '0')
    assert (code, err) == (0, []) and out[-1].startswith('10 scenes, 60 files, 0 doubtful matches')
    flip_bit(realsr, sources)
    code, out, err = say(monkeypatch, capsys, realsr, tmp_path / 'doubt', '--patch', '0')
    assert code == 1 and err[-1].startswith('interflow: ') and '1 doubtful matches' in err[-1] and 'left_out.jsonl' in err[-1]
    assert any('left out: Canon/Train/' in record.getMessage() for record in caplog.records)
    for k, words in enumerate([('nowhere',), (realsr / 'Canon/Train/2',), (realsr, '--labels', '2'), (realsr, '--labels', 'x'), (realsr, '--patch', '8')]):
        code, out, err = say(monkeypatch, capsys, words[0], tmp_path / f'bad{k}', *words[1:])
        assert code == 2 and len(err) == 1 and err[0].startswith('interflow: '), (words, err)
        assert not (tmp_path / f'bad{k}').exists()
    code, out, err = say(monkeypatch, capsys, realsr, realsr / 'Canon/out')
    assert code == 2 and 'lies in the input folder' in err[0]


def test_nothing_in_common_is_an_error(photos, tmp_path):
    for label in LABELS:
        for kind in ('HR', f'LR{label}'):
            write(tmp_path / f'RealSR/Canon/Train/{label}/Canon_001_{kind}.png', photos[label][:120, :120])
    with pytest.raises(InterflowError, match='no scene is the same at all labels; alone: .*left_out.jsonl'):
        order(tmp_path / 'RealSR', tmp_path / 'out', SMALL)
    assert len((tmp_path / 'out/left_out.jsonl').read_text().splitlines()) == 3


def test_half_a_pair_is_refused_by_name(realsr, sources, tmp_path):
    gone = place_of(sources, ('Canon', 'Train', 0), 4, realsr, 'LR')
    gone.unlink()
    with pytest.raises(InterflowError, match='missing'):
        order(realsr, tmp_path / 'out', SMALL)
    assert not (tmp_path / 'out').exists()
