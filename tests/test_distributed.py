"""Two processes train as one does, however they are started, and what else may be asked of the loop: 16 bits, parts of a batch, a moving average, compiled code."""
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import torch
from scenes import write_crops
from test_recipes import SCRIPTS

from interflow.clusters import Share
from interflow.core import InterflowError, photographs, read_image
from interflow.data import read_set, simulate
from interflow.training import TrainConfig
from interflow.training.parallel import deal_shares

HERE = Path(__file__).parent


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Two scenes, and what `torchrun` with two processes made of them."
    folder = tmp_path_factory.mktemp('two')
    simulate(write_crops(folder / 'photos', photographs('val')[:2], slice(200, 256), slice(300, 364)), folder / 'pairs', (2.1, 3.0, 3.75))
    call = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(HERE / 'ranks.py'), str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope='module')
def told(folder):
    return [json.loads((folder / f'rank{rank}.json').read_text()) for rank in (0, 1)]


def losses(rows):
    return [row['loss'] for row in rows]


@pytest.mark.parametrize('job', ['flow', 'vdsr', 'liif'])
def test_two_processes_have_the_losses_of_one_with_the_whole_batch(folder, told, job):
    model, history = ranks.train(job, folder / 'pairs', folder / 'one' / job)
    for rank in (0, 1):
        for mine, row in zip(told[rank][job]['history'], history, strict=True):
            assert mine.keys() == row.keys()
            for name, value in row.items():
                near = 1e-4 if name == 'gradient' else 1e-5
                assert mine[name] == pytest.approx(value, rel=near, abs=near), (name, row['step'])
    weights = [value.double().sum().item() for value in model.state_dict().values()]
    assert told[0][job]['weights'] == told[1][job]['weights'], 'both take the same steps'
    assert told[0][job]['weights'] == pytest.approx(weights, rel=1e-3, abs=1e-2)


def test_one_process_writes_and_any_number_goes_on(folder, told):
    "Four steps by two processes, then two more by two, then two more by one."
    assert told[0]['saved'] > 0 == told[1]['saved']
    out = folder / 'two/flow'
    assert sorted(path.name for path in out.iterdir()) == ['good', 'logs', 'model', 'state', 'training.json']
    whole = losses(ranks.train('flow', folder / 'pairs', folder / 'longer', replace(ranks.CONFIG, steps=8))[1])
    later = losses(ranks.train('flow', folder / 'pairs', out, replace(ranks.CONFIG, steps=8))[1])
    assert losses(told[1]['longer']) == pytest.approx(whole[:6], rel=1e-4) and later == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize('script', [next(script for script in SCRIPTS if script.startswith(words)) for words in ('torchrun', 'accelerate')], ids=['torchrun', 'accelerate'])
def test_the_recipe_trains_with_two_processes(folder, tmp_path, script):
    "The lines of room recipes by bash, with two processes and few steps. On CPU, by gloo. A port of its own, and for Accelerate the wish for no GPU, come from the environment."
    (tmp_path / 'sitecustomize.py').write_text('import os, pathlib\nif "RANK" in os.environ: pathlib.Path(__file__).with_name("rank" + os.environ["RANK"]).touch()')
    own = {'PYTHONPATH': os.pathsep.join([str(tmp_path), str(HERE.parent), os.environ.get('PYTHONPATH', '')]), 'PET_STANDALONE': '1', 'ACCELERATE_USE_CPU': 'true', 'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])}
    few = '--preset tiny --steps 2 --batch-size 2 --patch 32 --no-check --device cpu'
    for old, new in (('4 \\\n', '2 \\\n'), (' set runs/', f' {folder}/pairs {tmp_path}/run_'), ('--preset paper', few)):
        assert script.count(old) == 1
        script = script.replace(old, new)
    done = subprocess.run(['bash', '-e', '-c', script], capture_output=True, text=True, timeout=300, env={**os.environ, **own})
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.glob('rank*')) == ['rank0', 'rank1']
    assert done.stdout.count('at the last step') == done.stdout.count('The report:') == 1, 'of two that know of each other one writes and speaks'
    out = next(tmp_path.glob('run_*'))
    assert (out / 'model/model.safetensors').exists() and 'precision = "bf16"' in (out / 'settings.toml').read_text()


def test_a_loss_that_is_bad_in_one_process_is_bad_in_both(told):
    for rank in (0, 1):
        rows = told[rank]['broken']['history']
        assert [row['step'] for row in rows if 'skipped' in row] == [1] and math.isnan(rows[1]['loss'])
        assert told[rank]['broken']['weights'] == told[0]['broken']['weights']


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(InterflowError, match='batch_size 4: 3 processes and accumulate 1 need a multiple of 3'):
        deal_shares(4, 1, Share(0, 3))


@pytest.mark.parametrize('job', ['flow', 'liif'])
def test_a_batch_in_parts_is_the_batch(folder, job):
    whole = ranks.train(job, folder / 'pairs', folder / 'one' / job)[1]
    parts = ranks.train(job, folder / 'pairs', folder / 'parts' / job, replace(ranks.CONFIG, accumulate=4))[1]
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_sixteen_bits_learn_alike_and_the_flow_stays_exact(folder, precision):
    config = replace(ranks.CONFIG, precision=precision)
    whole = ranks.train('flow', folder / 'pairs', folder / 'one/flow')[1]
    model, rows = ranks.train('flow', folder / 'pairs', folder / precision, config)
    assert losses(rows)[1:] == pytest.approx(losses(whole)[1:], rel=.03) and losses(rows) != losses(whole)
    assert not any('skipped' in row for row in rows)
    scene = read_set(folder / 'pairs')[0]
    hr, lr = (read_image(path)[None, :, :32, :32] for path in (scene.hr, scene.lr[2.1]))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        cond = model.condition(hr)
        z, log_det = model.encode(lr, cond)
        assert z.dtype == log_det.dtype == torch.float32
        assert (model.decode(z, cond) - lr).abs().max() < 1e-4


def test_the_average_is_saved_and_resumes_bit_for_bit(folder):
    config = replace(ranks.CONFIG, ema=.5, steps=4)
    plain = ranks.train('vdsr', folder / 'pairs', folder / 'one/vdsr')
    whole, rows = ranks.train('vdsr', folder / 'pairs', folder / 'ema/whole', config)
    assert losses(rows) == losses(plain[1]), 'the steps are those without an average'
    ranks.train('vdsr', folder / 'pairs', folder / 'ema/cut', replace(config, steps=2))
    cut, _ = ranks.train('vdsr', folder / 'pairs', folder / 'ema/cut', config)
    again, _ = ranks.train('vdsr', folder / 'pairs', folder / 'ema/cut', config)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, cut.state_dict()[name]) and torch.equal(value, again.state_dict()[name]), name
    assert any(not torch.equal(value, plain[0].state_dict()[name]) for name, value in whole.state_dict().items())


def test_compiled_it_learns_the_same(folder):
    "The backend `eager` traces and changes nothing; `inductor` wants a C++ compiler and half a minute."
    plain = ranks.train('vdsr', folder / 'pairs', folder / 'one/vdsr')
    model, rows = ranks.train('vdsr', folder / 'pairs', folder / 'compiled', replace(ranks.CONFIG, compile='eager'))
    assert losses(rows) == pytest.approx(losses(plain[1]), rel=1e-6)
    assert list(model.state_dict()) == list(plain[0].state_dict())


@pytest.mark.parametrize('wrong', [{'precision': 'half'}, {'accumulate': 0}, {'ema': 1.}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(InterflowError, match='precision must be one of no, bf16, fp16'):
        TrainConfig(**wrong)
