"""Every notebook runs from top to bottom in a process of its own.

Cells marked `#| slow` or `#| cuda` are left out unless INTERFLOW_FLAGS names them (`INTERFLOW_FLAGS="slow cuda" make test`).
The processes are copies of one that has imported what all rooms need and has done nothing else: that spares each the seconds of importing torch.
"""
import faulthandler
import io
import multiprocessing
import os
import signal
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from rooms import ROOT, name_of, notebooks

FLAGS = os.environ.get('INTERFLOW_FLAGS', '')
# A room is meant to take less than 30 s on two cores. The limit is generous: a laptop that does something else must pass too.
SECONDS = int(os.environ.get('INTERFLOW_NOTEBOOK_SECONDS', 3600 if FLAGS else 180))
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['torch', 'numpy', 'PIL.Image', 'nbdev.test', 'matplotlib.pyplot', 'interflow.core'])


def execute(path, flags, said):
    "In a process of its own: run a notebook and write what it says into the file `said`; the exit code is 0 where it ran."
    os.setsid()      # what the notebook starts ends with it
    with open(said, 'w', encoding='utf-8', buffering=1) as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        sys.stdin = io.StringIO()
        os.chdir(ROOT)
        with redirect_stdout(file), redirect_stderr(file):
            from nbdev.config import get_config
            from nbdev.test import test_nb
            good, _ = test_nb(path, get_config().tst_flags.split(), flags.split(), basepath=ROOT)
    os._exit(0 if good else 1)


@pytest.mark.parametrize('path', notebooks(), ids=name_of)
def test_runs(path):
    before = path.read_bytes()
    code, said = run(path, SECONDS)
    if code is None:
        pytest.fail(f'{name_of(path)}: more than {SECONDS} s; a room should take less than 30 s. It was here:\n{said}', pytrace=False)
    if code:
        pytest.fail(f'{name_of(path)} does not run:\n{said}', pytrace=False)
    assert path.read_bytes() == before, f'{name_of(path)} changed its own file while it ran'


def run(path, seconds):
    """(exit code, output) of a notebook; the code is None when it ran out of time.

    A notebook out of time says where it was before it is killed, with all that it started.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / 'said.txt'
        process = SERVER.Process(target=execute, args=(path, FLAGS, said))
        process.start()
        process.join(seconds)
        code = process.exitcode
        if code is None:
            os.kill(process.pid, signal.SIGUSR1)
            process.join(2)
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return code, said.read_text(encoding='utf-8', errors='replace') if said.exists() else ''
