"""Trainings that are killed, stopped, lost, given longer, given a damaged disk: what they leave, and how they go on."""
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenes import write_crops
from torch import nn

from interflow.core import InterflowError, make_generator, photographs
from interflow.data import simulate
from interflow.files import settle_folder, whole_folder
from interflow.training import TrainConfig, Watch, fit
from interflow.training.guard import Guard, is_good, why_lost

# Processes are forked from one that has imported the package: each starts in milliseconds.
FRESH = multiprocessing.get_context('forkserver')
FRESH.set_forkserver_preload(['interflow.cli', 'interflow.training', 'interflow.sr.training', 'accelerate', 'torch.utils.tensorboard'])
LINE = TrainConfig(steps=12, learning_rate=.1, save_every=3, halve_at=(.5,))


def line_batches(step):
    x = torch.rand(8, 1, generator=make_generator(0, 'line', step))
    return {'x': x, 'y': 3 * x - 1}


def line_loss(model, batch, generator):
    noise = .01 * torch.randn(8, 1, generator=generator)
    return (model(batch['x']) - batch['y'] + noise).square().mean(), {}


def train_line(out, config=LINE, batches=line_batches, loss=line_loss, **more):
    "The weights of a line, and its history."
    torch.set_num_threads(1)
    torch.manual_seed(0)
    line = nn.Linear(1, 1)
    history = fit(line, loss, batches, config, out, device='cpu', **more)
    return torch.cat([line.weight.detach()[0], line.bias.detach()]), history


def step_of(out, name='state'):
    return json.loads((out / name / 'progress.json').read_text())['step']


# ---------------------------------------------------------------- killed

def dying(out, last):
    "Train a line; the process is killed at file operation number `last` in the run's folder."
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in ('open', 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'shutil.rmtree') and 'run' in str(arguments[0]):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    train_line(out)
    print(count)


def killed_at(out, last):
    process = FRESH.Process(target=dying, args=(out, last))
    process.start()
    process.join()
    return process.exitcode


def test_killed_at_any_file_operation_a_run_ends_as_if_left_alone(tmp_path):
    "Eight moments spread over the whole run; several of them lie within the writing and renaming of a state."
    expected, _ = train_line(tmp_path / 'whole')
    seen = set()
    for last in range(20, 130, 15):
        out = tmp_path / str(last) / 'run'
        assert killed_at(out, last) == -signal.SIGKILL
        seen |= {name for path in out.glob('.*') for name in ('.part', '.old') if path.name.endswith(name)}
        weights, history = train_line(out)
        assert torch.equal(weights, expected) and len(history) == 12, last
        assert not [path.name for path in out.iterdir() if path.name[0] == '.'], 'what the killed one left is swept up'
    assert '.part' in seen, 'none was killed while it wrote'


def test_killed_at_random_moments_weights_are_the_same_bit_for_bit(tmp_path):
    "The short form of `make soak`."
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, root / 'benchmarks/soak.py', '--kills', '3', '--steps', '8', '--only', 'rcan', '--work', tmp_path],
                          capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)})
    assert done.returncode == 0 and 'kills 3' in done.stdout and 'weights the same' in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize('when', ['first', 'second'])
def test_a_folder_is_reachable_at_every_moment(tmp_path, monkeypatch, when):
    "The process ends right before or after the new folder takes the place of the old one."
    place, rename = tmp_path / 'state', os.rename
    for text in 'ab':
        with whole_folder(place) as temporary:
            (temporary / 'file').write_text(text)
    calls = []

    def dies(old, new):
        calls.append(1)
        if len(calls) == (2 if when == 'first' else 3):
            raise KeyboardInterrupt     # no handler but `finally` runs: as good as a kill for files that are only renamed
        rename(old, new)
    monkeypatch.setattr(os, 'rename', dies)
    with pytest.raises(KeyboardInterrupt), whole_folder(place) as temporary:
        (temporary / 'file').write_text('c')
    monkeypatch.undo()
    assert place.exists() is (when == 'second')
    assert (settle_folder(place) / 'file').read_text() == ('b' if when == 'first' else 'c')


# ---------------------------------------------------------------- a disk that fails

@pytest.fixture
def stopped(tmp_path):
    "A run that ended at step 9 of 12, with its states of step 6 and 9."
    out = tmp_path / 'run'

    def dies(step):
        if step == 10:
            raise MemoryError
        return line_batches(step)
    with pytest.raises(MemoryError):
        train_line(out, batches=dies)
    assert (step_of(out), step_of(out, 'good')) == (9, 6)
    return out


@pytest.mark.parametrize('name', ['model.safetensors', 'optimizer.bin', 'history.json', 'progress.json', 'random_states_0.pkl'])
@pytest.mark.parametrize('cut', [True, False])
def test_a_state_that_lost_a_byte_is_passed_over(stopped, tmp_path, caplog, name, cut):
    file = stopped / 'state' / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data[:-2] if cut else data)
    if name == 'progress.json' and not cut:
        file.write_bytes(data.replace(b'"step"', b'"stxp"', 1)[:-9])
    weights, _ = train_line(stopped)
    assert torch.equal(weights, train_line(tmp_path / 'whole')[0])
    told = [line for line in caplog.messages if 'goes on at step 6' in line]
    assert len(told) == 1 and name in told[0]


def test_without_a_whole_state_a_run_is_not_begun_anew(stopped):
    for name in ('state', 'good'):
        file = stopped / name / 'model.safetensors'
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InterflowError, match='damaged') as fault:
        train_line(stopped)
    assert '\n' not in str(fault.value)


def out_of_room(out):
    "Train on a disk whose files cannot grow beyond 2,000 bytes."
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        train_line(out)
    except InterflowError as fault:
        (out.parent / 'said').write_text(str(fault))    # shorter than that
        os._exit(fault.exit_code)


def test_a_full_disk_is_one_line_and_the_state_before_is_kept(stopped):
    process = FRESH.Process(target=out_of_room, args=(stopped,))
    process.start()
    process.join()
    said = (stopped.parent / 'said').read_text()
    assert process.exitcode == 2 and said.count('\n') == 0 and 'run/' in said
    assert step_of(stopped) == 9 and not list(stopped.glob('.*'))
    assert len(train_line(stopped)[1]) == 12


def test_a_read_only_folder_is_one_line(stopped, monkeypatch):
    import tempfile
    monkeypatch.setattr(tempfile, 'mkdtemp', lambda **_: os.mkdir('/proc/none'))
    with pytest.raises(InterflowError, match='run/state: .*; ') as fault:
        train_line(stopped)
    assert '\n' not in str(fault.value) and step_of(stopped) == 9


# ---------------------------------------------------------------- stopped by the user, or by a cluster

@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pairs')
    photos = write_crops(folder / 'photos', photographs('val')[:2], slice(200, 250), slice(300, 366))
    simulate(photos, folder / 'set', (2.1, 3.75), 'nikon', 3)
    return folder / 'set'


def command(folder, words):
    "The command in a fresh process; what it says goes to files."
    from interflow.cli import main
    for number, name in ((1, 'out'), (2, 'err')):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ['interflow', *map(str, words)]
    main()


def interflow(folder, *words, sent=None, after=''):
    "Exit code, stdout and last line of stderr; a signal is sent when the file `after` has come."
    folder.mkdir(exist_ok=True)
    process = FRESH.Process(target=command, args=(folder, words))
    process.start()
    if sent:
        deadline = time.monotonic() + 120
        while not Path(after).exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(.005)
        os.kill(process.pid, sent)
    process.join()
    lines = [line for line in (folder / 'err').read_text().replace('\r', '\n').splitlines() if line.strip() and '|' not in line]
    return process.exitcode, (folder / 'out').read_text(), (lines or [''])[-1]


SMALL = ('--network', 'vdsr', '--steps', 24, '--save-every', 4, '--patch', 16, '--batch-size', 1, '--device', 'cpu', '--no-check')


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(pairs, tmp_path, sent):
    code, _, _ = interflow(tmp_path / 'a', 'train-sr', pairs, tmp_path / 'whole', *SMALL)
    assert code == 0
    code, _, said = interflow(tmp_path / 'b', 'train-sr', pairs, tmp_path / 'run', *SMALL, sent=sent, after=tmp_path / 'run/state')
    assert code == 128 + sent and 'the same command goes on' in said, said
    reached = step_of(tmp_path / 'run')
    assert f'ended at step {reached} of 24' in said and not (tmp_path / 'run/model').exists()
    code, _, _ = interflow(tmp_path / 'c', 'train-sr', pairs, tmp_path / 'run', *SMALL[:4], '--save-every', 5, *SMALL[6:])
    assert code == 0
    files = [(tmp_path / run / 'model/model.safetensors').read_bytes() for run in ('whole', 'run')]
    assert files[0] == files[1]


# ---------------------------------------------------------------- lost

def run_of(losses, **settings):
    guard = Guard(TrainConfig(steps=len(losses), **settings))
    for step, loss in enumerate(losses):
        guard.note({'step': step, 'loss': loss, **({} if guard.accepts(step, loss) else {'skipped': True})})
    return guard


@pytest.mark.parametrize('steps', [5, 60, 600, 800, 100_000])
def test_the_guard_is_in_proportion_to_the_run(steps):
    "Whatever its length: a run whose last steps are all bad is lost; one with a bad step in ten is not."
    assert why_lost(run_of([1.] * steps + [math.nan] * TrainConfig(steps=2 * steps).window))
    assert why_lost(run_of([math.nan if step % 10 == 5 else 1. for step in range(steps)])) is None
    net = nn.Linear(1, 1)
    assert is_good(run_of([1.] * steps), net)
    net.bias.data[0] = math.nan
    assert not is_good(run_of([1.] * steps), net) and 'bias' in why_lost(run_of([1.] * steps), net)


def test_infinite_gradients_are_no_step(tmp_path):
    "The loss is finite, its gradient is not: the weights stay."
    def loss(model, batch, generator):
        return model(batch['x']).sum() * 0 + (model.weight * 0).sqrt().sum(), {}
    line, config = nn.Linear(1, 1), replace(LINE, max_bad=1.)
    before = line.weight.item()
    history = fit(line, loss, lambda step: {'x': torch.ones(1, 1)}, config, tmp_path / 'run', device='cpu')
    assert line.weight.item() == before and all('skipped' in row for row in history)


def test_a_lost_run_goes_on_from_its_good_state_with_a_lower_rate(tmp_path):
    "It says which images, keeps no newer state as good, and stays lost for the same settings."
    config, out = replace(LINE, steps=40, save_every=10), tmp_path / 'run'

    def spoiled(step):
        return {name: value * math.nan for name, value in line_batches(step).items()} if step >= 24 else line_batches(step)
    watch = Watch(names=lambda step: ['wall', f'scene{step}'])
    for batches in (spoiled, line_batches):
        with pytest.raises(InterflowError, match=r'run: the run is lost, .*step 24 \(wall, scene24\).*last good state.*learning_rate \(such as 0.01\), clip .*, warmup') as fault:
            train_line(out, config, batches, watch=watch)
        assert fault.value.exit_code == 2 and '\n' not in str(fault.value)
    assert step_of(out, 'good') == 20 and json.loads((out / 'state/progress.json').read_text())['failed']
    with pytest.raises(InterflowError, match='seed = 0, not 5'):
        train_line(out, replace(config, seed=5, learning_rate=.01))
    _, history = train_line(out, replace(config, learning_rate=.01))
    assert len(history) == 40 and [history[step]['learning_rate'] for step in (19, 20)] == [.1, .005]
    assert json.loads((out / 'training.json').read_text())['training']['learning_rate'] == .01


def test_a_run_that_diverges_at_the_command_line(pairs, tmp_path):
    code, out, said = interflow(tmp_path / 'a', 'train-sr', pairs, tmp_path / 'run', '--network', 'rcan', '--steps', 60, '--patch', 16, '--batch-size', 1,
                                '--learning-rate', 50, '--device', 'cpu', '--no-check')
    assert code == 2 and 'the run is lost' in said and 'step' in said and out == ''
    assert (tmp_path / 'run/state').exists() and not (tmp_path / 'run/model').exists()


# ---------------------------------------------------------------- given longer

def _train_twice(out, ready, end):
    "Hold the folder in the middle of a training until told: in a loss, where nothing is being written (batches are made ahead, beside a save)."
    calls = itertools.count()

    def waiting(model, batch, generator):
        if next(calls) == 5:
            ready.set()
            end.wait(120)
        return line_loss(model, batch, generator)
    train_line(out, loss=waiting)


def test_a_second_run_in_the_same_folder_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    undisturbed, _ = train_line(tmp_path / 'alone')
    for killed in (False, True):
        out, ready, end = tmp_path / f'run{killed}', FRESH.Event(), FRESH.Event()
        first = FRESH.Process(target=_train_twice, args=(out, ready, end))
        first.start()
        assert ready.wait(120)
        before = sorted(path.name for path in out.rglob('*'))
        with pytest.raises(InterflowError, match='another run trains here'):
            train_line(out)
        assert sorted(path.name for path in out.rglob('*')) == before, 'nothing was swept away'
        first.kill() if killed else end.set()
        first.join(120)
        assert torch.equal(train_line(out)[0], undisturbed), 'the folder is free again'


def test_steps_may_grow_and_nothing_else(tmp_path, caplog):
    out = tmp_path / 'run'
    _, short = train_line(out)
    _, long = train_line(out, replace(LINE, steps=20, save_every=7))
    assert long[:12] == short and len(long) == 20 and [row['learning_rate'] for row in long[11:13]] == [.05, .05]
    told = [line for line in caplog.messages if 'become' in line]
    assert len(told) == 1 and '12 steps become 20' in told[0] and '0.05' in told[0]
    with pytest.raises(InterflowError, match='nothing to do') as fault:
        train_line(out)
    assert fault.value.exit_code == 0
    for other, words in ((replace(LINE, steps=20, learning_rate=.2), r'training.learning_rate = 0.1, not 0.2'), (replace(LINE, seed=1), 'training.seed = 0, not 1'),
                         (replace(LINE, steps=20, halve_at=(.5, .9)), r'training.halve_at.1 = None, not 0.9')):
        with pytest.raises(InterflowError, match=words):
            train_line(out, other)


def test_a_failed_command_claims_no_folder(pairs, tmp_path):
    small = ('--steps', 2, '--patch', 16, '--batch-size', 1, '--device', 'cpu', '--no-check')
    (tmp_path / 'broken').mkdir()
    shutil.copytree(pairs, tmp_path / 'broken/set')
    next((tmp_path / 'broken/set/x2.1').glob('*.png')).write_bytes(b'none')
    for i, words in enumerate((('train', pairs, '--learning-rate', -1), ('train', pairs, '--patch', 999), ('train', pairs, '--set', 'training.clp=3'),
                               ('train', pairs, '--init', tmp_path), ('train', tmp_path / 'broken/set'), ('train', pairs, '--device', 'cuda:99'),
                               ('train-sr', pairs, '--network', 'unet'), ('train-sr', tmp_path / 'broken/set'), ('train-sr', pairs, '--init', tmp_path))):
        name, data, *more = words
        code, _, said = interflow(tmp_path / 'say', name, data, tmp_path / f'out{i}', *small, *more)
        assert code == 2 and said.startswith('interflow: '), (words, said)
        assert not (tmp_path / f'out{i}').exists(), words
