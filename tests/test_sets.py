"""Generated sets: an undisturbed plan, shares, kills, a gate, layouts, shards, processes."""

import json
import multiprocessing
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
from scenes import write_crops

from interflow import sets
from interflow.checkpoints import load_model
from interflow.core import (
    InterflowError,
    data_folder,
    make_generator,
    photographs,
    read_image,
    read_json,
)
from interflow.data import read_scenes, read_set, simulate
from interflow.gate import measure_photographs
from interflow.generation import generate_scene
from interflow.sets import (
    Pool,
    SetConfig,
    Share,
    begin_set,
    best_processes,
    generate,
    in_processes,
    parse_wanted,
    plan,
    published_mode,
    read_records,
    shards,
    shares,
)

FLOW = data_folder() / 'weights' / 'flow'
LOW, *_, HIGH = read_json(FLOW / 'config.json')['factors']  # trained
RANDOM, MAP = parse_wanted('random:2.1:3.75') + parse_wanted('map:2.1:3.75')


@pytest.fixture(scope='module')
def model():
    return load_model(FLOW)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    "Three scenes whose sides are no multiples of 4."
    folder = tmp_path_factory.mktemp('pairs')
    photos = write_crops(
        folder / 'photos', photographs('test')[4:7], slice(200, 278), slice(300, 390)
    )
    simulate(photos, folder / 'set', (LOW, HIGH), 'canon', 3)
    return folder / 'set'


def content(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob('*'))
        if path.is_file()
    }


# ---------------------------------------------------------------- the plan


def test_the_published_modes():
    for mode, (count, first, last) in {
        0: (19, 2.1825, 3.6675),
        1: (9, 2.19, 2.91),
        2: (9, 3.075, 3.675),
    }.items():
        wanted, _ = published_mode(mode)
        assert len(wanted) == count and (wanted[0].low, wanted[-1].low) == (
            pytest.approx(first),
            pytest.approx(last),
        )
    assert [wanted.label for wanted in published_mode(1)[0]] == [f'2.{k}' for k in range(1, 10)]


def test_what_is_random_depends_on_the_scene_alone():
    config = SetConfig((RANDOM, MAP), draws=2)
    here, there = (plan(config, names, names.index('b')) for names in (['a', 'b', 'c'], ['b', 'z']))
    for one, other in zip(here, there):
        first, second = (sets.factor_of(job, 5, (40, 60)) for job in (one, other))
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))
        assert not torch.equal(
            torch.as_tensor(first), torch.as_tensor(sets.factor_of(one, 6, (40, 60)))
        )
    drawn = [
        sets.factor_of(job, 0, (8, 8))
        for i in range(300)
        for job in plan(replace(config, factors=(RANDOM,)), [str(k) for k in range(300)], i)
    ]
    assert (
        2.1 < min(drawn) < 2.2 and 3.65 < max(drawn) < 3.75 and abs(np.mean(drawn) - 2.925) < 0.08
    ), 'uniform'


# ---------------------------------------------------------------- shares and kills


def test_the_same_bytes_whatever_the_sharing(model, pairs, tmp_path):
    scenes, config = read_set(pairs), SetConfig((2.5, RANDOM), seed=1)
    generate(model, scenes, tmp_path / 'one', config, 'cpu')
    for k in (2, 0, 1, 3):  # more shares than scenes
        report = generate(model, scenes, tmp_path / 'four', config, 'cpu', share=Share(k, 4))
    assert report.missing == 0 and content(tmp_path / 'one') == content(tmp_path / 'four')
    generate(model, scenes, tmp_path / 'mixed', config, 'cpu', share=Share(1, 2))
    assert generate(model, scenes, tmp_path / 'mixed', config, 'cpu').missing == 0, (
        'another sharing goes on'
    )
    assert content(tmp_path / 'one') == content(tmp_path / 'mixed')


def command(pairs, out, *more):
    return [
        sys.executable,
        '-c',
        'from interflow.cli import main; main()',
        'generate',
        str(FLOW),
        str(pairs),
        str(out),
        '--device',
        'cpu',
        '--seed',
        '1',
        *more,
    ]


@pytest.mark.parametrize(
    'more',
    [
        ('--processes', '1'),
        ('--processes', '2'),
        ('--processes', '1', '--format', 'webdataset', '--shard', '2'),
    ],
)
def test_killed_at_random_moments_it_ends_with_the_same_set(model, pairs, tmp_path, more):
    """A process gets SIGKILL, wherever it is; its children end with it.

    Afterwards nothing is torn, doubled, or made twice that was on record.
    """
    call = command(pairs, tmp_path / 'killed', '--factors', '2.2:3.7:0.1', *more)
    chance, records, kills = random.Random(repr(more)), {}, 0
    while kills < 2:
        process = subprocess.Popen(
            call,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        begun = len(records)
        while process.poll() is None and len(read_records(tmp_path / 'killed')) <= begun:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.4)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        time.sleep(1.0)  # for children to see that they are orphans
        found = read_records(tmp_path / 'killed')
        assert records.items() <= found.items() and len(found) > len(records)
        records = found
    assert kills, 'it ended before it could be killed'
    dates = {path: path.stat().st_mtime_ns for path in (tmp_path / 'killed').rglob('*LR3.png')}
    subprocess.run(
        call, check=True, capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    assert all(
        path.stat().st_mtime_ns == date
        for path, date in dates.items()
        if path.exists() and str(path.relative_to(tmp_path / 'killed')) in records
    )
    subprocess.run(
        command(pairs, tmp_path / 'whole', '--factors', '2.2:3.7:0.1', *more),
        check=True,
        capture_output=True,
    )
    assert content(tmp_path / 'killed') == content(tmp_path / 'whole')
    lines = [
        json.loads(line)['file']
        for line in (tmp_path / 'killed/manifest.jsonl').read_text().splitlines()
    ]
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
    "Noise and factors are drawn on the CPU: on another device images differ by rounding."
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    hr = read_image(photographs('test')[0])[:, :64, :64]
    there, here = (
        next(
            generate_scene(
                load_model(FLOW).to(device), hr, {}, (3.0,), 'sample', [make_generator(0)]
            )
        )
        for device in ('cuda', 'cpu')
    )
    assert (there - here).abs().max() < 1e-2


def test_best_processes_is_no_more_than_there_is_to_do():
    assert best_processes('cpu', [1]) == 1 and 1 <= best_processes('cpu', range(100)) <= 4


# ---------------------------------------------------------------- the gate


def broken(how):
    "`generate_scene` with its second image broken."

    def scenes(*arguments, **settings):
        for k, image in enumerate(generate_scene(*arguments, **settings)):
            yield how(image) if k == 1 else image

    return scenes


@pytest.mark.parametrize(
    'how, reason',
    [
        (lambda x: x * float('nan'), 'not finite'),
        (lambda x: 0 * x, 'green'),
        (lambda x: x + 0.15 * torch.randn_like(x), 'fine'),
        (lambda x: 3 * (x - 0.5) + 0.5, 'clipped'),
    ],
)
def test_bad_images_are_counted_set_aside_and_never_kept(
    model, pairs, tmp_path, monkeypatch, how, reason
):
    monkeypatch.setattr(shares, 'generate_scene', broken(how))
    config = SetConfig((2.5, 3.0))
    report = generate(model, read_set(pairs), tmp_path / 'out', config, 'cpu')
    assert (
        report.kept == 3
        and report.missing == 0
        and len(report.set_aside) == 3
        and all(reason in why for _, why in report.set_aside)
    )
    for file, _ in report.set_aside:
        assert not (tmp_path / 'out' / file).exists() and (
            tmp_path / 'out/set_aside' / file
        ).exists() == (reason != 'not finite')
    assert all(sorted(scene.lr) == [2.5] for scene in read_set(tmp_path / 'out'))
    assert generate(model, read_set(pairs), tmp_path / 'out', config, 'cpu') == report, (
        'and not made again'
    )


def test_a_flow_that_does_not_find_back_is_seen(model, pairs, tmp_path, monkeypatch):
    real = type(model).encode
    monkeypatch.setattr(
        type(model),
        'encode',
        lambda self, lr, cond: (real(self, lr, cond)[0] * 1.1, real(self, lr, cond)[1]),
    )
    with pytest.raises(
        InterflowError, match='1 images were set aside, 1 of them for their round trip'
    ):
        generate(model, read_set(pairs)[:1], tmp_path / 'out', SetConfig((2.5,)), 'cpu')


def test_a_set_of_which_nothing_is_kept_is_an_error(model, pairs, tmp_path, monkeypatch):
    reasons = iter(['blue: +99 grey levels; noise: +9 dB', 'noise: +8 dB'])
    monkeypatch.setattr(shards, 'judge', lambda *arguments: ({'blue': 99.0}, next(reasons)))
    config = SetConfig((2.5, 3.0))
    with pytest.raises(
        InterflowError,
        match=r'2 images were set aside, 2 of them for their noise \(noise: \+[98] dB\)',
    ):
        generate(model, read_set(pairs)[:1], tmp_path / 'out', config, 'cpu')
    assert (
        len((tmp_path / 'out/manifest.jsonl').read_text().splitlines())
        == len(list((tmp_path / 'out/set_aside').rglob('*.png')))
        == 2
    )
    with pytest.raises(InterflowError, match='were set aside'):
        generate(
            model, read_set(pairs)[:1], tmp_path / 'out', config, 'cpu'
        )  # asked again, nothing is made and the answer is the same
    with pytest.raises(InterflowError, match='set aside.*manifest'):
        read_set(tmp_path / 'out')


def test_one_kept_image_is_a_set_and_a_share_alone_is_no_verdict(
    model, pairs, tmp_path, monkeypatch
):
    judged = []
    monkeypatch.setattr(
        shards,
        'judge',
        lambda *arguments: (
            {},
            judged.append(1) or (None if len(judged) == 3 else 'noise: too much'),
        ),
    )
    scenes, config = read_set(pairs), SetConfig((2.5,))
    assert generate(model, scenes, tmp_path / 'out', config, 'cpu', share=Share(0, 3)).kept == 0
    generate(model, scenes, tmp_path / 'out', config, 'cpu', share=Share(1, 3))
    report = generate(model, scenes, tmp_path / 'out', config, 'cpu', share=Share(2, 3))
    assert (report.kept, report.missing) == (1, 0)


def test_the_command_ends_with_code_2_where_nothing_is_kept(pairs, tmp_path):
    from interflow.checkpoints import save_model

    early = load_model(FLOW)
    with torch.no_grad():
        early.prior.roots.mul_(20)
    save_model(tmp_path / 'early', early)
    call = [
        sys.executable,
        '-c',
        'from interflow.cli import main; main()',
        'generate',
        str(tmp_path / 'early'),
        str(pairs),
        str(tmp_path / 'out'),
        '--device',
        'cpu',
        '--factors',
        '2.5',
    ]
    done = subprocess.run(
        [*call, '--processes', '1'],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert (
        done.returncode == 2
        and 'were set aside' in done.stderr.splitlines()[-1]
        and (tmp_path / 'out/manifest.jsonl').exists()
    )
    again = subprocess.run(
        [*call[:-2], '--factors', '2.4', '--check', 'none'],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert again.returncode == 2 and 'choose another folder' in again.stderr, (
        'the check is a setting of the set'
    )


@pytest.mark.parametrize(
    'check, trips, judged', [('full', 12, 12), ('sample', 2, 12), ('none', 0, 0)]
)
def test_what_each_check_looks_at(model, pairs, tmp_path, monkeypatch, check, trips, judged):
    "Twelve scenes of one image, all encoded again, or scenes 0 and 10, or none."
    scenes = [
        replace(scene, name=f'{scene.name}{k}') for k in range(4) for scene in read_set(pairs)
    ]
    calls = []
    real = shards.judge
    monkeypatch.setattr(
        shards, 'judge', lambda *arguments: (calls.append(arguments[3]), real(*arguments))[1]
    )
    generate(model, scenes, tmp_path / 'out', SetConfig((2.5,), check=check), 'cpu')
    records = read_records(tmp_path / 'out').values()
    tripped = [record['name'] for record in records if 'round_trip' in record]
    assert (
        len(calls) == judged
        and len(tripped) == len([call for call in calls if call is not None]) == trips
    )
    assert check != 'sample' or tripped == [scenes[0].name, scenes[10].name]


def test_without_checks_values_that_are_not_finite_are_refused_still(
    model, pairs, tmp_path, monkeypatch
):
    monkeypatch.setattr(shares, 'generate_scene', broken(lambda x: x / 0.0))
    report = generate(
        model, read_set(pairs)[:1], tmp_path / 'out', SetConfig((2.5, 3.0), check='none'), 'cpu'
    )
    assert report.kept == 1 and 'not finite' in report.set_aside[0][1]
    with pytest.raises(
        InterflowError, match='check some: unknown; choose one of full, sample, none'
    ):
        SetConfig((2.5,), check='some')


def test_the_reference_is_what_was_measured_in_the_training_or_one_line_says_so(
    model, pairs, tmp_path, monkeypatch, caplog
):
    seen = []
    real = shares.reference
    monkeypatch.setattr(
        shares,
        'reference',
        lambda hr, photographs, *more: (seen.append(photographs), real(hr, photographs, *more))[1],
    )
    flow, scenes = load_model(FLOW), read_set(pairs)
    trained = measure_photographs(scenes[:2])
    for measured, of, words in (
        (trained, scenes, None),
        (None, scenes, 'LR images of this set'),
        (None, read_scenes(pairs.parent / 'photos'), 'HR allows'),
    ):
        caplog.clear()
        flow.photographs = measured
        generate(flow, of[:1], tmp_path / f'{len(seen)}', SetConfig((2.5,)), 'cpu')
        lines = [record.getMessage() for record in caplog.records if record.name == 'interflow']
        assert lines == [] if words is None else len(lines) == 1 and words in lines[0]
    assert seen[0] == trained and seen[1] == measure_photographs(scenes[:1]) and seen[2] == sets.ANY


def test_other_photographs_are_another_set(pairs, tmp_path):
    flow, scenes = load_model(FLOW), read_set(pairs)
    flow.photographs = measure_photographs(scenes)
    generate(flow, scenes[:1], tmp_path / 'out', SetConfig((2.5,)), 'cpu')
    flow.photographs = measure_photographs(scenes[:1])
    with pytest.raises(InterflowError, match='photographs'):
        generate(flow, scenes[:1], tmp_path / 'out', SetConfig((2.5,)), 'cpu')


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize('path', ['pixels', 'linear', 'slerp', 'preserving', 'transport', 'sample'])
def test_a_set_of_any_path_is_read_as_it_was_made(model, pairs, tmp_path, path):
    wanted, _ = published_mode(0)
    config = SetConfig(
        (*wanted[:2], RANDOM), path, names='published', format='webp', between=(LOW, HIGH)
    )
    assert generate(model, read_set(pairs), tmp_path / 'out', config, 'cpu').missing == 0
    for scene, original in zip(read_set(tmp_path / 'out'), read_set(pairs)):
        assert [f for f in sorted(scene.lr) if abs(f - 2.1825) < 1e-6 or abs(f - 2.265) < 1e-6] == [
            2.1825,
            2.265,
        ], 'true factors, not labels'
        assert torch.equal(read_image(scene.hr), read_image(original.hr))
        assert scene.lr[2.1825].parent.name == 'scale_2.1' and scene.lr[2.1825].name.endswith(
            '_LR3.webp'
        )
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
        assert np.abs(np.diff(factors, axis=0)).max() < 0.1, 'smooth'
    first, second = (
        (tmp_path / f'out/xmap/{name}.png').read_bytes() for name in ('raccoon', 'raccoon_draw2')
    )
    assert first != second
    assert len(read_set(tmp_path / 'out')) == 6


def test_shards_are_streams_of_scenes(model, pairs, tmp_path):
    import webdataset

    config = SetConfig((2.5, MAP), format='webdataset', shard=2, draws=2)
    generate(model, read_set(pairs), tmp_path / 'out', config, 'cpu')
    shards = sorted((tmp_path / 'out').glob('*.tar'))
    assert [path.name for path in shards] == ['shard-000000.tar', 'shard-000001.tar'] and not (
        tmp_path / 'out/.staging'
    ).exists()
    samples = list(
        webdataset.WebDataset([str(path) for path in shards], shardshuffle=False).decode('pil')
    )
    assert sorted(sample['__key__'] for sample in samples) == sorted(
        scene.name + draw for scene in read_set(pairs) for draw in ('', '_draw2')
    )
    for sample in samples:
        assert {
            'hr.png',
            'lr_2.5.png',
            'lr_map.png',
            'factor.png',
            'json',
        } <= sample.keys() and sample['lr_2.5.png'].size == (90, 78)
        assert sorted(record['file'] for record in sample['json']) == [
            f'scale_{label}/{sample["__key__"]}_LR3.png' for label in ('2.5', 'map')
        ]
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
        patched.setattr(shares, 'pack', dies)
        for k in (0, 1):
            with pytest.raises(KeyboardInterrupt):
                generate(model, scenes, tmp_path / 'killed', config, 'cpu', share=Share(k, 2))
    assert (
        len(read_records(tmp_path / 'killed')) == 3
        and sets.join(tmp_path / 'killed', config, scenes).missing == 3
    )
    assert (
        generate(model, scenes, tmp_path / 'killed', config, 'cpu', share=Share(0, 2)).missing == 1
    ), 'the other share packs its own'
    assert (
        generate(model, scenes, tmp_path / 'killed', config, 'cpu', share=Share(1, 2)).missing == 0
    )
    assert content(tmp_path / 'whole') == content(tmp_path / 'killed')


def test_pixels_are_rounded_not_truncated(model, pairs, tmp_path):
    scene = read_set(pairs)[0]
    generate(None, [scene], tmp_path / 'out', SetConfig((2.6,), 'pixels'), 'cpu')
    exact = 255 * torch.lerp(
        read_image(scene.lr[LOW]), read_image(scene.lr[HIGH]), (2.6 - LOW) / (HIGH - LOW)
    )
    made = 255 * read_image(read_set(tmp_path / 'out')[0].lr[2.6])
    assert (made - exact).abs().max() <= 0.5 + 1e-4 and (
        made - exact
    ).mean().abs() < 0.1  # truncated, -.45


# ---------------------------------------------------------------- processes and the pool


def test_processes_run_so_many_at_once_and_tell_their_codes():
    running = []
    for _ in in_processes(time.sleep, [(1.,)] * 3, 2):
        running.append(len(multiprocessing.active_children()))
    assert max(running) == 2
    *_, codes = in_processes(sys.exit, [(k,) for k in (0, 3, 0)], 2)
    assert sorted(codes) == [0, 0, 3]


def test_processes_end_where_nobody_listens():
    start = time.monotonic()
    for codes in in_processes(time.sleep, [(600,), (0.1,), (600,)], 2):
        if codes:
            break
    assert codes == [0] and not multiprocessing.active_children() and time.monotonic() - start < 120


def test_a_process_that_fails_ends_the_run_with_one_line(model, pairs, tmp_path):
    scenes, config = read_set(pairs), SetConfig((2.5,))
    (job,) = plan(config, [scene.name for scene in scenes], 2)
    begin_set(model, scenes, tmp_path / 'out', config)
    (tmp_path / 'out' / job.file).mkdir(parents=True)  # in the way of the image
    with pytest.raises(InterflowError, match='out: a job of the generation ended with code 2'):
        generate(model, scenes, tmp_path / 'out', config, 'cpu', 2)
    (tmp_path / 'out' / job.file).rmdir()
    assert generate(model, scenes, tmp_path / 'out', config, 'cpu', 2).kept == 3


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
        time.sleep(0.01)
        open_now[0] -= 1

    with Pool(threads=8, waiting=3) as pool:
        for _ in range(20):
            pool.submit(work)
    assert 1 <= most[0] <= 3


def test_writing_is_not_the_brake(model, pairs, tmp_path, monkeypatch):
    "A disk that is as slow as the model costs nearly nothing: both work at the same time."
    scenes, config = read_set(pairs), SetConfig(tuple(2.2 + 0.1 * k for k in range(8)))

    def seconds(out, delay):
        real = shards.encode_image
        monkeypatch.setattr(
            shards,
            'encode_image',
            lambda image, suffix: (time.sleep(delay), real(image, suffix))[1],
        )
        start = time.perf_counter()
        generate(model, scenes, tmp_path / out, config, 'cpu')
        monkeypatch.setattr(shards, 'encode_image', real)
        return time.perf_counter() - start

    plain = seconds('plain', 0)
    slow = seconds('slow', plain / 24)
    assert slow < 1.7 * plain, (plain, slow)
