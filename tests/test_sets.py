"""Generated sets: a plan that nothing disturbs, shares, kills, a gate that holds bad images back, layouts, shards."""
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from interflow import sets
from interflow.checkpoints import load_model
from interflow.core import InterflowError, data_folder, make_generator, photographs, read_image, write_image
from interflow.data import read_scenes, read_set, simulate
from interflow.generation import generate_scene
from interflow.sets import Pool, SetConfig, Share, Wanted, best_processes, generate, judge, parse_wanted, plan, published_mode, read_records, reference

FLOW = data_folder() / 'weights' / 'flow'
RANDOM, MAP = parse_wanted('random:2.1:3.75') + parse_wanted('map:2.1:3.75')


@pytest.fixture(scope='module')
def model():
    return load_model(FLOW)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    "Three scenes whose sides are no multiples of 4."
    folder = tmp_path_factory.mktemp('pairs')
    for path in photographs('test')[4:7]:
        write_image(folder / 'photos' / f'{path.stem}.png', read_image(path)[:, 200:278, 300:390])
    simulate(folder / 'photos', folder / 'set', (2.1, 3.75), 'canon', 3)
    return folder / 'set'


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob('*')) if path.is_file()}


# ---------------------------------------------------------------- the plan

def test_the_published_modes():
    for mode, (count, first, last) in {0: (19, 2.1825, 3.6675), 1: (9, 2.19, 2.91), 2: (9, 3.075, 3.675)}.items():
        wanted, _ = published_mode(mode)
        assert len(wanted) == count and (wanted[0].low, wanted[-1].low) == (pytest.approx(first), pytest.approx(last))
    assert [wanted.label for wanted in published_mode(1)[0]] == [f'2.{k}' for k in range(1, 10)]


def test_what_is_random_depends_on_the_scene_alone():
    config = SetConfig((RANDOM, MAP), draws=2)
    here, there = (plan(config, names, names.index('b')) for names in (['a', 'b', 'c'], ['b', 'z']))
    for one, other in zip(here, there):
        first, second = (sets.factor_of(job, 5, (40, 60)) for job in (one, other))
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))
        assert not torch.equal(torch.as_tensor(first), torch.as_tensor(sets.factor_of(one, 6, (40, 60))))
    drawn = [sets.factor_of(job, 0, (8, 8)) for i in range(300) for job in plan(replace(config, factors=(RANDOM,)), [str(k) for k in range(300)], i)]
    assert 2.1 < min(drawn) < 2.2 and 3.65 < max(drawn) < 3.75 and abs(np.mean(drawn) - 2.925) < .08, 'uniform'


# ---------------------------------------------------------------- shares and kills

def test_the_same_bytes_whatever_the_sharing(model, pairs, tmp_path):
    scenes, config = read_set(pairs), SetConfig((2.5, RANDOM), seed=1)
    generate(model, scenes, tmp_path / 'one', config, 'cpu')
    for k in (2, 0, 1, 3):      # more shares than scenes
        report = generate(model, scenes, tmp_path / 'four', config, 'cpu', share=Share(k, 4))
    assert report.missing == 0 and content(tmp_path / 'one') == content(tmp_path / 'four')
    generate(model, scenes, tmp_path / 'mixed', config, 'cpu', share=Share(1, 2))
    assert generate(model, scenes, tmp_path / 'mixed', config, 'cpu').missing == 0, 'another sharing goes on'
    assert content(tmp_path / 'one') == content(tmp_path / 'mixed')


def command(pairs, out, *more):
    return [sys.executable, '-c', 'from interflow.cli import main; main()', 'generate', str(FLOW), str(pairs), str(out), '--device', 'cpu', '--seed', '1', *more]


@pytest.mark.parametrize('more', [('--processes', '1'), ('--processes', '2'), ('--processes', '1', '--format', 'webdataset', '--shard', '2')])
def test_killed_at_random_moments_it_ends_with_the_same_set(model, pairs, tmp_path, more):
    """A process that gets SIGKILL, wherever it is; its children end with it. Afterwards nothing is torn, doubled, or made twice that was on record."""
    call = command(pairs, tmp_path / 'killed', '--factors', '2.2:3.7:0.1', *more)
    chance, records, kills = random.Random(repr(more)), {}, 0
    while kills < 2:
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        begun = len(records)
        while process.poll() is None and len(read_records(tmp_path / 'killed')) <= begun:
            time.sleep(.01)
        time.sleep(chance.random() * .4)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        time.sleep(1.)      # for children to see that they are orphans
        found = read_records(tmp_path / 'killed')
        assert records.items() <= found.items() and len(found) > len(records)
        records = found
    assert kills, 'it ended before it could be killed'
    dates = {path: path.stat().st_mtime_ns for path in (tmp_path / 'killed').rglob('*LR3.png')}
    subprocess.run(call, check=True, capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert all(path.stat().st_mtime_ns == date for path, date in dates.items() if path.exists() and str(path.relative_to(tmp_path / 'killed')) in records)
    subprocess.run(command(pairs, tmp_path / 'whole', '--factors', '2.2:3.7:0.1', *more), check=True, capture_output=True)
    assert content(tmp_path / 'killed') == content(tmp_path / 'whole')
    lines = [json.loads(line)['file'] for line in (tmp_path / 'killed/manifest.jsonl').read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 3 * 16


def test_a_torn_line_is_no_line(model, pairs, tmp_path):
    scenes, config = read_set(pairs)[:1], SetConfig((2.5, 3.0, 3.3))
    generate(model, scenes, tmp_path / 'whole', config, 'cpu')
    generate(model, scenes, tmp_path / 'torn', config, 'cpu')
    lines = (tmp_path / 'torn/manifest.jsonl').read_bytes()
    (tmp_path / 'torn/manifest.jsonl').unlink()
    (tmp_path / 'torn/manifest').mkdir()
    (tmp_path / 'torn/manifest/00000-of-00001.jsonl').write_bytes(lines[:-40])
    assert len(read_records(tmp_path / 'torn')) == 2
    generate(model, scenes, tmp_path / 'torn', config, 'cpu')
    assert content(tmp_path / 'whole') == content(tmp_path / 'torn')


def test_the_number_of_threads_does_not_matter(model, pairs, tmp_path):
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        generate(model, read_set(pairs)[:1], tmp_path / str(threads), SetConfig((2.5,)), 'cpu')
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
    assert content(tmp_path / '1') == content(tmp_path / '2')


def test_the_same_noise_with_a_gpu_or_without():
    "Noise and factors are drawn on the CPU whatever the model's device: images differ by rounding alone."
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    hr = read_image(photographs('test')[0])[:, :64, :64]
    there, here = (next(generate_scene(load_model(FLOW).to(device), hr, {}, (3.,), 'sample', [make_generator(0)])) for device in ('cuda', 'cpu'))
    assert (there - here).abs().max() < 1e-2


def test_best_processes_is_no_more_than_there_is_to_do():
    assert best_processes('cpu', [1]) == 1 and 1 <= best_processes('cpu', range(100)) <= 4


# ---------------------------------------------------------------- the gate

def broken(how):
    "`generate_scene` with its second image broken (the last two are references)."
    def scenes(*arguments, **settings):
        for k, image in enumerate(generate_scene(*arguments, **settings)):
            yield how(image) if k == 1 else image
    return scenes


@pytest.mark.parametrize('how, reason', [(lambda x: x * float('nan'), 'not finite'), (lambda x: 0 * x, 'mean colour'), (lambda x: x + .06 * torch.randn_like(x), 'noise'),
                                         (lambda x: 3 * (x - .5) + .5, 'outside the range')])
def test_bad_images_are_counted_set_aside_and_never_kept(model, pairs, tmp_path, monkeypatch, how, reason):
    monkeypatch.setattr(sets, 'generate_scene', broken(how))
    config = SetConfig((2.5, 3.0))
    report = generate(model, read_set(pairs), tmp_path / 'out', config, 'cpu')
    assert report.kept == 3 and report.missing == 0 and len(report.set_aside) == 3 and all(reason in why for _, why in report.set_aside)
    for file, _ in report.set_aside:
        assert not (tmp_path / 'out' / file).exists() and (tmp_path / 'out/set_aside' / file).exists() == (reason != 'not finite')
    assert all(sorted(scene.lr) == [2.5] for scene in read_set(tmp_path / 'out'))
    assert generate(model, read_set(pairs), tmp_path / 'out', config, 'cpu') == report, 'and not made again'


def test_a_flow_that_does_not_find_back_is_seen(model, pairs, tmp_path, monkeypatch):
    real = type(model).encode
    monkeypatch.setattr(type(model), 'encode', lambda self, lr, cond: (real(self, lr, cond)[0] * 1.1, real(self, lr, cond)[1]))
    report = generate(model, read_set(pairs)[:1], tmp_path / 'out', SetConfig((2.5,)), 'cpu')
    assert 'round trip' in report.set_aside[0][1]


def test_a_set_of_which_nothing_is_kept_is_not_read(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, 'judge', lambda *arguments: ({'colour': 99.}, 'too blue'))
    assert generate(model, read_set(pairs)[:1], tmp_path / 'out', SetConfig((2.5,)), 'cpu').kept == 0
    with pytest.raises(InterflowError, match='set aside.*manifest'):
        read_set(tmp_path / 'out')


def test_photographs_pass_the_gate(pairs):
    "Else it would set aside what it should let through: true images, judged by others of the scene."
    for scene in read_set(pairs):
        hr, low, high = read_image(scene.hr), *(read_image(path) for path in scene.lr.values())
        for image in (low, high):
            assert judge(image, reference(hr, [low, high]), 0.)[1] is None


def test_the_noise_of_one_image_is_told_from_its_content():
    photo = read_image(photographs('test')[2])
    smooth = torch.nn.functional.avg_pool2d(photo[None], 9, 1, 4)[0]
    for level in (2., 5., 10.):
        grey = torch.randn(photo.shape[1:], generator=make_generator(0, level)) * level / 255
        assert sets.blind_noise(smooth + grey) == pytest.approx(level, rel=.1)


# ---------------------------------------------------------------- layouts

@pytest.mark.parametrize('path', ['pixels', 'linear', 'slerp', 'preserving', 'transport', 'sample'])
def test_a_set_of_any_path_is_read_as_it_was_made(model, pairs, tmp_path, path):
    wanted, ends = published_mode(0)
    config = SetConfig((*wanted[:2], RANDOM), path, names='published', format='webp', between=ends)
    assert generate(model, read_set(pairs), tmp_path / 'out', config, 'cpu').missing == 0
    for scene, original in zip(read_set(tmp_path / 'out'), read_set(pairs)):
        assert [f for f in sorted(scene.lr) if abs(f - 2.1825) < 1e-6 or abs(f - 2.265) < 1e-6] == [2.1825, 2.265], 'true factors, not labels'
        assert torch.equal(read_image(scene.hr), read_image(original.hr))
        assert scene.lr[2.1825].parent.name == 'scale_2.1' and scene.lr[2.1825].name.endswith('_LR3.webp')
    with pytest.raises(InterflowError, match='--no-resume'):
        generate(model, read_set(pairs), tmp_path / 'out', config, 'cpu', resume=False)
    (tmp_path / 'out/manifest.jsonl').unlink()
    with pytest.raises(InterflowError, match='did not end'):
        read_set(tmp_path / 'out')


def test_a_plain_folder_of_photographs_with_maps(model, pairs, tmp_path):
    config = SetConfig((MAP,), draws=2, names='factor')
    scenes = read_scenes(pairs.parent / 'photos')
    assert generate(model, scenes, tmp_path / 'out', config, 'cpu').missing == 0
    for name in ('raccoon', 'raccoon_draw2'):
        factors = np.asarray(Image.open(tmp_path / f'out/xmap/{name}_factor.png')) / 10_000
        assert factors.shape == (78, 90) and 2.1 <= factors.min() < factors.max() <= 3.75
        assert np.abs(np.diff(factors, axis=0)).max() < .1, 'smooth'
    first, second = ((tmp_path / f'out/xmap/{name}.png').read_bytes() for name in ('raccoon', 'raccoon_draw2'))
    assert first != second
    assert len(read_set(tmp_path / 'out')) == 6


def test_shards_are_streams_of_scenes(model, pairs, tmp_path):
    import webdataset
    config = SetConfig((2.5, MAP), format='webdataset', shard=2, draws=2)
    generate(model, read_set(pairs), tmp_path / 'out', config, 'cpu')
    shards = sorted((tmp_path / 'out').glob('*.tar'))
    assert [path.name for path in shards] == ['shard-000000.tar', 'shard-000001.tar'] and not (tmp_path / 'out/.staging').exists()
    samples = list(webdataset.WebDataset([str(path) for path in shards], shardshuffle=False).decode('pil'))
    assert sorted(sample['__key__'] for sample in samples) == [f'Canon_{k:03d}' for k in range(1, 7)]
    for sample in samples:
        assert {'hr.png', 'lr_2.5.png', 'lr_map.png', 'factor.png', 'json'} <= sample.keys() and sample['lr_2.5.png'].size == (90, 78)
        assert sorted(record['file'] for record in sample['json']) == [f'scale_{label}/{sample["__key__"]}_LR3.png' for label in ('2.5', 'map')]
    with tarfile.open(shards[0]) as tar:
        assert {(member.mtime, member.uname) for member in tar} == {(0, '')}
    with pytest.raises(InterflowError, match='webdataset package'):
        read_set(tmp_path / 'out')


def test_killed_between_the_last_image_and_its_shard(model, pairs, tmp_path, monkeypatch):
    config, scenes = SetConfig((2.5,), format='webdataset', shard=2), read_set(pairs)
    generate(model, scenes, tmp_path / 'whole', config, 'cpu')
    def dies(*arguments):
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(sets, '_pack', dies)
        for k in (0, 1):
            with pytest.raises(KeyboardInterrupt):
                generate(model, scenes, tmp_path / 'killed', config, 'cpu', share=Share(k, 2))
    assert len(read_records(tmp_path / 'killed')) == 3 and sets.join(tmp_path / 'killed', config, scenes).missing == 3
    assert generate(model, scenes, tmp_path / 'killed', config, 'cpu', share=Share(0, 2)).missing == 1, 'the other share packs its own'
    assert generate(model, scenes, tmp_path / 'killed', config, 'cpu', share=Share(1, 2)).missing == 0
    assert content(tmp_path / 'whole') == content(tmp_path / 'killed')


def test_pixels_are_rounded_not_truncated(model, pairs, tmp_path):
    scene = read_set(pairs)[0]
    generate(None, [scene], tmp_path / 'out', SetConfig((2.6,), 'pixels'), 'cpu')
    exact = 255 * torch.lerp(read_image(scene.lr[2.1]), read_image(scene.lr[3.75]), .5 / 1.65)
    made = 255 * read_image(read_set(tmp_path / 'out')[0].lr[2.6])
    assert (made - exact).abs().max() <= .5 + 1e-4 and (made - exact).mean().abs() < .1      # truncated, -.45


# ---------------------------------------------------------------- the pool

def test_the_pool_tells_faults_and_never_holds_more_than_it_may():
    def fail():
        raise OSError('disk full')
    with pytest.raises(OSError, match='disk full'):
        with Pool() as pool:
            pool.submit(fail)
    open_now, most = [0], [0]
    def work():
        open_now[0] += 1
        most[0] = max(most[0], open_now[0])
        time.sleep(.01)
        open_now[0] -= 1
    with Pool(threads=8, waiting=3) as pool:
        for _ in range(20):
            pool.submit(work)
    assert 1 <= most[0] <= 3


def test_writing_is_not_the_brake(model, pairs, tmp_path, monkeypatch):
    "A disk that takes as long for an image as the model does costs nearly nothing: both go on at the same time."
    scenes, config = read_set(pairs), SetConfig(tuple(2.2 + .1 * k for k in range(8)))
    def seconds(out, delay):
        real = sets.encode_image
        monkeypatch.setattr(sets, 'encode_image', lambda image, suffix: (time.sleep(delay), real(image, suffix))[1])
        start = time.perf_counter()
        generate(model, scenes, tmp_path / out, config, 'cpu')
        monkeypatch.setattr(sets, 'encode_image', real)
        return time.perf_counter() - start
    plain = seconds('plain', 0)
    slow = seconds('slow', plain / 24)
    assert slow < 1.7 * plain, (plain, slow)
