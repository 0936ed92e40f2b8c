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
