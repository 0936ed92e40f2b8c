"""Pixels are decoded once, into a cache that is never wrong and never in the way; batches are the same to the last bit, and made ahead."""
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from interflow.core import InterflowError, read_pixels, to_tensor
from interflow.data import (
    PairBatches,
    PixelCache,
    Scene,
    cache_file,
    cache_folder,
    crop_alike,
    prefetch,
    read_first,
    read_scene,
)
from interflow.sr.training import Source, SRBatches


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "An empty cache for each test."
    monkeypatch.setenv('INTERFLOW_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def noise(path, size=(40, 52), seed=0):
    "Write an image that no other seed gives; returns its path."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def scenes(tmp_path):
    "Three scenes of different sizes, with two factors each."
    return [Scene(f'{i}', noise(tmp_path / f'HR/{i}.png', (30 + i, 50 - i), 3 * i),
                  {factor: noise(tmp_path / f'x{factor}/{i}.png', (30 + i, 50 - i), 3 * i + k) for k, factor in enumerate((2.1, 3.75), 1)}) for i in range(3)]


def begin(script, *arguments, **environment):
    "Start a Python process of its own."
    return subprocess.Popen([sys.executable, '-c', script, *map(str, arguments)], env={**os.environ, **environment}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(process):
    "What it wrote to stderr; it must end well."
    _, said = process.communicate()
    assert process.returncode == 0, said
    return said


READ = '''
import sys
from interflow.core import read_pixels
from interflow.data import PixelCache
read = PixelCache()
for path in sys.argv[1:]: assert (read(path) == read_pixels(path)).all()
'''


# ---------------------------------------------------------------- the cache

def test_the_cache_gives_what_decoding_gives(tmp_path, cache):
    path = noise(tmp_path / 'image.png', (7, 5))
    pixels = PixelCache()(path)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, read_pixels(path)) and not pixels.flags.writeable
    assert cache_file(path).is_file() and cache in cache_file(path).parents


def test_what_is_in_the_cache_is_not_decoded(tmp_path):
    "The pixels of another image under this one's name: whoever decodes does not see them."
    path, other = noise(tmp_path / 'image.png'), noise(tmp_path / 'other.png', seed=1)
    PixelCache()(other)
    shutil.copy(cache_file(other), cache_file(path))
    assert np.array_equal(PixelCache()(path), read_pixels(other))


STORED = {'cut off': lambda data: data[:-100], 'longer': lambda data: data + b'\0', 'a byte changed': lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
          'header changed': lambda data: data.replace(b'(40, 52, 3)', b'(52, 40, 3)'), 'zeros': lambda data: bytes(len(data)), 'empty': lambda data: b'',
          'four zeros': lambda data: bytes(4), 'something else': lambda data: b'PK\3\4' + data}


@pytest.mark.parametrize('damage', STORED)
def test_a_damaged_cache_file_is_made_again(tmp_path, damage, caplog):
    path = noise(tmp_path / 'image.png')
    PixelCache()(path)
    stored = cache_file(path).read_bytes()
    os.utime(path)      # now its cache file has another name, which this process has not opened
    cache_file(path).write_bytes(STORED[damage](stored))
    assert np.array_equal(PixelCache()(path), read_pixels(path))
    assert cache_file(path).read_bytes() == stored and not caplog.records


def test_a_changed_image_is_decoded_anew(tmp_path):
    "Even if it has the size and the mtime of the old one, as files from an archive may."
    path = noise(tmp_path / 'image.bmp')
    old, stat = np.array(PixelCache()(path)), path.stat()
    time.sleep(.05)     # a tick of the file system's clock
    noise(path, seed=1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    new = PixelCache()(path)
    assert np.array_equal(new, read_pixels(path)) and not np.array_equal(new, old)


def test_links_share_one_cache_file(tmp_path):
    path = noise(tmp_path / 'image.png')
    (tmp_path / 'link.png').symlink_to(path)
    (tmp_path / 'folder').symlink_to(tmp_path, target_is_directory=True)
    assert cache_file(path) == cache_file(tmp_path / 'link.png') == cache_file(tmp_path / 'folder/image.png') == cache_file(os.path.relpath(path))


@pytest.mark.parametrize('content', [None, b'', b'no image'])
def test_faults_are_those_of_the_decoder(tmp_path, content, cache):
    path = tmp_path / 'image.png'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InterflowError) as plain:
        read_pixels(path)
    with pytest.raises(InterflowError) as cached:
        PixelCache()(path)
    assert str(cached.value) == str(plain.value) and not cache.exists()


def test_a_folder_that_cannot_be_costs_one_line(tmp_path):
    paths = [noise(tmp_path / f'{i}.png', seed=i) for i in range(3)]
    (tmp_path / 'file').touch()
    said = end(begin(READ, *paths, INTERFLOW_CACHE=str(tmp_path / 'file')))
    assert said.count('\n') == 1 and str(tmp_path / 'file') in said and 'INTERFLOW_CACHE' in said


def test_a_write_that_fails_costs_one_line_and_leaves_nothing(tmp_path, cache):
    "A limit on the size of files stands for the full disk: the write fails in its midst."
    paths = [noise(tmp_path / f'{i}.png', seed=i) for i in range(3)]
    said = end(begin(f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n{READ}', *paths))
    assert said.count('\n') == 1 and str(cache) in said
    assert [path for path in cache.rglob('*') if path.is_file()] == []


def test_thousands_of_images_need_few_open_files(tmp_path):
    paths = [noise(tmp_path / f'{i}.png', (2, 3), i) for i in range(300)]
    said = end(begin(f'import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n{READ}', *paths, *paths))
    assert not said


def test_writers_at_the_same_moment_do_no_harm(tmp_path, cache):
    paths = [noise(tmp_path / f'{i}.png', (300, 400), i) for i in range(6)]
    script = READ.replace('for path in', 'from concurrent.futures import ThreadPoolExecutor\ndef same(path): return (PixelCache()(path) == read_pixels(path)).all()\n'
                          'assert all(ThreadPoolExecutor(6).map(same, [path for path in sys.argv[1:] for _ in range(6)]))\nfor path in')
    assert [end(process) for process in [begin(script, *paths) for _ in range(2)]] == [''] * 2
    assert sorted(cache.rglob('*.*')) == sorted(cache_file(path) for path in paths)


def test_what_nobody_uses_is_removed(tmp_path, cache):
    path, month = noise(tmp_path / 'image.png'), time.time() - 31 * 86400
    PixelCache()(path)
    used, fresh = cache_file(path), cache / 'pixels/fresh.npy'
    fresh.touch()
    for name in ('old.npy', '.old.npy.0.part', 'notes.txt', used.name):
        (cache / 'pixels' / name).touch()
        os.utime(cache / 'pixels' / name, (month, month))
    end(begin(READ, path, noise(tmp_path / 'new.png', seed=1)))
    assert {file.name for file in (cache / 'pixels').iterdir()} == {used.name, fresh.name, 'notes.txt', cache_file(tmp_path / 'new.png').name}
    assert used.stat().st_mtime > month + 86400


def test_where_the_cache_lies(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / 'cache'
    monkeypatch.delenv('INTERFLOW_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert cache_folder() == tmp_path / 'xdg/interflow'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert cache_folder() == tmp_path / 'home/.cache/interflow'


def test_a_cache_that_is_emptied_in_use_is_filled_again(tmp_path, cache):
    paths, read = [noise(tmp_path / f'{i}.png', (2, 3), i) for i in range(140)], PixelCache()      # more than stay open
    files, before = [cache_file(path) for path in paths], [np.array(read(path)) for path in paths]
    shutil.rmtree(cache)
    noise(paths[0], (3, 2), seed=999)
    assert all(np.array_equal(read(path), pixels) for path, pixels in zip(paths[1:], before[1:])) and files[1].exists()
    assert np.array_equal(read(paths[0]), read_pixels(paths[0])) and not files[0].exists(), 'new pixels never get the name of the old'


# ---------------------------------------------------------------- batches

def plain_pairs(scenes, factors, patch, size, seed, step):
    "The batch of `PairBatches`, put together image by image."
    random = np.random.default_rng([seed, step])
    chosen = random.integers(len(scenes), size=size)
    crops = [crop_alike(read_scene(scenes[i], factors), patch, random) for i in chosen]
    hr, *lr = (torch.stack([to_tensor(image) for image in images]) for images in zip(*crops))
    return {'hr': hr, 'lr': torch.stack(lr)}


def plain_sr(sources, patch, size, seed, step):
    "The batch of `SRBatches`, put together image by image."
    random, weights = np.random.default_rng([seed, step]), np.array([source.weight for source in sources])
    pairs = []
    for _ in range(size):
        source = sources[random.choice(len(sources), p=weights / weights.sum())]
        hr, *lr = read_scene(source.scenes[random.integers(len(source.scenes))], source.factors)
        pairs.append(crop_alike([hr, lr[random.integers(len(lr))]], patch, random))
    hr, lr = (torch.stack([to_tensor(image) for image in images]) for images in zip(*pairs))
    return {'hr': hr, 'lr': lr}


def same(batch, plain):
    return batch.keys() == plain.keys() and all(torch.equal(batch[name], value) and batch[name].dtype == torch.float32
                                                and batch[name].stride() == value.stride() for name, value in plain.items())


def test_batches_are_those_of_the_plain_form(scenes):
    batches = PairBatches(scenes, (3.75, 2.1), 24, 5, seed=3)
    sources = [Source(scenes[:2], (3.75, 2.1), 2), Source(scenes[2:], (2.1,))]
    sr_batches = SRBatches(sources, 24, 5, seed=3)
    for step in range(20):
        assert same(batches(step), plain_pairs(scenes, (3.75, 2.1), 24, 5, 3, step))
        assert same(sr_batches(step), plain_sr(sources, 24, 5, 3, step))


def test_batches_keep_to_the_images_they_began_with(scenes):
    "Another process that goes on with the same batches sees what this one saw, even if the images are gone."
    both = [PairBatches(scenes, (2.1,), 24, 4), SRBatches([Source(scenes)], 24, 4)]
    before = [batches(7) for batches in both]
    for path in (path for scene in scenes for path in (scene.hr, *scene.lr.values())):
        path.unlink()
    assert all(same(batches(7), batch) and same(pickle.loads(pickle.dumps(batches))(7), batch) for batches, batch in zip(both, before))


@pytest.mark.parametrize('warm', [False, True])
def test_bad_pairs_are_found_before_the_first_batch(scenes, tmp_path, warm):
    cut = tmp_path / 'cut.png'
    cut.write_bytes(scenes[0].hr.read_bytes()[:-500])
    if warm:
        PairBatches(scenes, (2.1,), 24, 4), SRBatches([Source(scenes)], 24, 4)
    bad = {'factor 3': lambda: PairBatches(scenes, (3.,), 24, 4), 'smaller than the patch': lambda: PairBatches(scenes, (2.1,), 31, 4),
           'its HR image': lambda: PairBatches([*scenes, Scene('x', scenes[0].hr, {2.1: scenes[1].hr})], (2.1,), 24, 4),
           'cut.png': lambda: PairBatches([*scenes, Scene('x', scenes[0].hr, {2.1: cut})], (2.1,), 24, 4)}
    for cause, action in bad.items():
        with pytest.raises(InterflowError, match=cause):
            action()


# ---------------------------------------------------------------- batches made ahead

def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith('prefetch')]


def test_prefetched_batches_come_in_order(scenes):
    batches, steps = PairBatches(scenes, (2.1,), 24, 4), [3, 4, 9, 0]
    seen = list(prefetch(batches, steps))
    assert [step for step, _ in seen] == steps and all(same(batch, batches(step)) for step, batch in seen)
    assert list(prefetch(batches, [])) == [] and [step for step, _ in prefetch(batches, range(2), ahead=5)] == [0, 1] and not threads()


@pytest.mark.parametrize('ahead', [1, 3])
def test_batches_are_made_while_the_caller_works_but_not_too_many(ahead):
    made = []
    for step, _ in prefetch(made.append, range(8), ahead):
        patience = time.monotonic() + 10
        while len(made) < min(step + 1 + ahead, 8) and time.monotonic() < patience:
            time.sleep(.001)        # the caller's own work; nobody asks for a batch meanwhile
        time.sleep(.02)
        assert made == list(range(min(step + 1 + ahead, 8)))


def test_a_fault_is_raised_at_its_step():
    def batches(step):
        if step == 3:
            raise InterflowError('no such image')
        return -step
    seen, loop = [], prefetch(batches, range(10), ahead=4)
    with pytest.raises(InterflowError, match='no such image'):
        for item in loop:
            time.sleep(.01)         # the thread has met the fault long before
            seen.append(item)
    assert seen == [(0, 0), (1, -1), (2, -2)] and not threads()
    with pytest.raises(InterflowError, match='ahead'):
        list(prefetch(batches, range(3), ahead=0))


def test_the_thread_ends_with_the_loop():
    made = []
    for step, _ in prefetch(made.append, range(10 ** 9)):
        if step == 5:
            break
    assert not threads() and len(made) <= 8
    with pytest.raises(ZeroDivisionError):
        for step, _ in prefetch(made.append, range(10 ** 9)):
            1 / (5 - step)
    assert not threads()


def test_the_first_reading_uses_threads_and_keeps_the_order(monkeypatch):
    "Two at least are read at the same time, no more than a few wait, and the error of one comes at its turn."
    monkeypatch.setattr('interflow.data.crops.usable_cores', lambda: 4)
    both, begun = threading.Barrier(2, timeout=30), []

    def read(number):
        begun.append(number)
        if number < 2:
            both.wait()     # each waits for the other
        if number == 7:
            raise InterflowError('scene 7: broken')
        return number ** 2
    seen = []
    with pytest.raises(InterflowError, match='scene 7'):
        for number, square in read_first(read, range(1000)):
            seen.append((number, square))
            assert len(begun) <= len(seen) + 9
    assert seen == [(number, number ** 2) for number in range(7)] and not threads()
