"""Jobs side by side: results in order, one bar for all, the first error ends all with its own line, and nothing is left running."""
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from interflow.clusters import call
from interflow.core import InterflowError, bar_makers, progress, read_json
from interflow.crew import heard, side_by_side

HERE = Path(__file__).parent


def counting(steps, start=0):
    "A job with a bar, that goes on from `start`; returns where it was done, and in how many threads."
    with progress(total=steps, initial=start) as bar:
        for _ in range(start, steps):
            bar.update()
    return [os.getpid(), torch.get_num_threads()]


def test_results_are_in_order_and_the_bar_counts_the_steps_of_all_jobs():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for processes in (1, 2):
            told = []
            with heard(told.append):
                places = side_by_side(counting, [(3,), (5, 2), (4,)], processes, 'here', steps=12)
            assert sum(told) == 12
            assert all(threads == 1 for _, threads in places), 'each job in one thread'
            assert {os.getpid()} == {place for place, _ in places} or processes == 2
            assert (os.getpid() in {place for place, _ in places}) == (processes == 1)
        assert torch.get_num_threads() == 2 and not bar_makers
    finally:
        torch.set_num_threads(threads)
    assert side_by_side(divmod, [(7, 2), (9, 4)], 1, 'here') == [(3, 1), (2, 1)]


def test_jobs_are_counted_where_they_have_no_bars():
    told = []
    with heard(told.append):
        side_by_side(divmod, [(7, 2), (9, 4)], 1, 'here')
    assert sum(told) == 2


def test_the_first_error_ends_all_with_its_own_line():
    begin = time.perf_counter()
    with pytest.raises(InterflowError, match='^no.json: no such file; check the path$'):
        side_by_side(call, [(time.sleep, 600), (read_json, 'no.json')], 2, 'here')
    assert time.perf_counter() - begin < 60 and not multiprocessing.active_children()


def test_a_lost_process_ends_all():
    with pytest.raises(InterflowError, match='^here: a job ended with code 9'):
        side_by_side(call, [(time.sleep, 600), (os._exit, 9)], 2, 'here')
    assert not multiprocessing.active_children()


def note_and_wait(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_kill_leave_nothing_running(tmp_path, number):
    "Ctrl-C goes to all processes of a terminal, a kill to one alone."
    script = f'from test_crew import *\nif __name__ == "__main__": side_by_side(note_and_wait, [({str(tmp_path)!r},)] * 2, 2, "here")'
    (tmp_path / 'script').mkdir()
    (tmp_path / 'script/main.py').write_text(script)
    place = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get('PYTHONPATH', '')])
    parent = subprocess.Popen([sys.executable, tmp_path / 'script/main.py'], start_new_session=True, stderr=subprocess.PIPE,
                              env={**os.environ, 'PYTHONPATH': place})
    try:
        children = wait_for(lambda: [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()], 2)
        (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)
        parent.wait(30)
        assert wait_for(lambda: [pid for pid in children if not is_running(pid)], 2)
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if parent.poll() is None else None
    assert b'KeyboardInterrupt' in parent.stderr.read() or number == signal.SIGKILL


def wait_for(things, count):
    "Wait until there are so many; returns them."
    for _ in range(600):
        if len(found := things()) == count:
            return found
        time.sleep(.05)
    raise AssertionError(f'{count} awaited, {found} found')


def is_running(pid):
    "Whether a process lives, and is no zombie."
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


STUB = '''#!/bin/sh
# in the place of `interflow`: writes what it was asked for, and trains for a moment
echo "$OMP_NUM_THREADS $*" >> "$CALLS"
case "$*" in
    evaluate*) while [ "$1" != --csv ]; do shift; done; echo network > "$2"; echo rows;;
    train-sr*"$FAILS"*) echo 'interflow: no more memory' >&2; exit 2;;
    train-sr*) echo + >> "$CALLS"; sleep .3; echo - >> "$CALLS"; echo 'L1 0.01 at the last step';;
esac
'''


@pytest.fixture
def table(tmp_path, monkeypatch):
    "A copy of sr_table.sh beside a stub of the command; a function that runs it: (process, lines of the calls)."
    for folder in ('benchmarks', '.venv/bin', 'data/weights/flow', 'runs', 'out'):
        (tmp_path / folder).mkdir(parents=True)
    root = HERE.parent
    (tmp_path / 'benchmarks/sr_table.sh').write_text((root / 'benchmarks/sr_table.sh').read_text())
    (tmp_path / 'data/weights/flow/config.json').write_text('{"factors": [2.0, 4.0]}')
    (tmp_path / '.venv/bin/python').symlink_to(sys.executable)
    (tmp_path / '.venv/bin/interflow').write_text(STUB)
    (tmp_path / '.venv/bin/interflow').chmod(0o755)
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))

    def run(fails='none'):
        done = subprocess.run(['bash', tmp_path / 'benchmarks/sr_table.sh', 'runs', 'out'], capture_output=True, text=True,
                              env={**os.environ, 'FAILS': fails})
        return done, (tmp_path / 'calls').read_text().splitlines()
    return run


def test_the_trainings_of_the_table_run_side_by_side(table, tmp_path):
    done, calls = table()
    assert done.returncode == 0, done.stderr
    trained = [line.split()[3].removeprefix('runs/nets/') for line in calls if line.startswith('1 train-sr')]
    assert len(set(trained)) == 12 and 'rcan/x2x4' in trained and 'swinir/sample' in trained
    assert sum(line.startswith('1 train-sr runs/train') and '--factors 2.1,3.75' in line for line in calls) == 3
    at_once, most = 0, 0
    for line in calls:
        at_once += {'+': 1, '-': -1}.get(line, 0)
        most = max(most, at_once)
    assert most == min(12, os.cpu_count()) and at_once == 0
    assert (tmp_path / 'out/sr_table.txt').read_text().count('rows') == 3 and done.stdout.count('trained ') == 12


def test_a_training_that_fails_ends_the_table(table, tmp_path):
    done, calls = table('rcan/pixels')
    assert done.returncode != 0
    assert 'sr_table.sh: rcan on pixels failed, see runs/nets/rcan/pixels.log: interflow: no more memory' in done.stderr
    assert not any('evaluate' in line for line in calls) and not list((tmp_path / 'out').iterdir())
    begun = calls.count('+')
    assert begun < 11 and begun == calls.count('-'), 'those that ran have ended, no others began'
