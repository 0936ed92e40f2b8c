"""Every notebook runs from top to bottom in a process of its own.

Cells marked `#| slow` or `#| cuda` are left out unless INTERFLOW_FLAGS names them (`INTERFLOW_FLAGS="slow cuda" make test`).
"""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rooms import ROOT, name_of, notebooks

FLAGS = os.environ.get('INTERFLOW_FLAGS', '')
# A room is meant to take less than 30 s on two cores. The limit is generous: a laptop that does something else must pass too.
SECONDS = int(os.environ.get('INTERFLOW_NOTEBOOK_SECONDS', 3600 if FLAGS else 180))


@pytest.mark.parametrize('path', notebooks(), ids=name_of)
def test_runs(path):
    before = path.read_bytes()
    code, said = run([Path(sys.executable).with_name('nbdev_test'), '--path', path, '--flags', FLAGS], SECONDS)
    if code is None:
        pytest.fail(f'{name_of(path)}: more than {SECONDS} s; a room should take less than 30 s. Interrupted here:\n{said}', pytrace=False)
    if code or 'Success.' not in said:
        pytest.fail(f'{name_of(path)} does not run:\n{said}', pytrace=False)
    assert path.read_bytes() == before, f'{name_of(path)} changed its own file while it ran'


def run(command, seconds):
    """(exit code, output) of a command; the code is None when it ran out of time.

    A command out of time is interrupted before it is killed: its traceback then shows the cell that it was in.
    """
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, start_new_session=True) as process:
        for patience, then in (seconds, signal.SIGINT), (10, signal.SIGKILL):
            try:
                said = process.communicate(timeout=patience)[0]
                return (process.returncode if then == signal.SIGINT else None), said
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, then)    # the whole group: what the notebook started ends with it
        return None, process.communicate()[0]
