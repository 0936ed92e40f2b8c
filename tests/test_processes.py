"""What processes are given: a model of a thousand tensors under the limits of an ordinary machine and of a container."""
import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from interflow import core
from interflow.checkpoints import save_model
from interflow.core import in_processes, make_generator
from interflow.model import InterFlow, InterFlowConfig

MANY = InterFlowConfig(channels=4, growth=2, hidden=4)      # the paper's layers, few channels: 1,690 tensors


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A model of many tensors, two photographs, and what one process makes of them."
    folder = tmp_path_factory.mktemp('work')
    model = InterFlow(MANY, make_generator(0))
    assert len(model.state_dict()) > 1000
    save_model(folder / 'model', model)
    (folder / 'photos').mkdir()
    for name in 'ab':
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'photos/{name}.png')
    generate(folder, 'alone', 1)
    return folder


def words(out, processes):
    call = [sys.executable, '-c', 'from interflow.cli import main; main()', 'generate', 'model', 'photos', out]
    return [*call, '--factors', '3', '--check', 'none', '--device', 'cpu', '--processes', str(processes)]


def generate(folder, out, processes, before=(), **more):
    "Run the command; its temporary files go into a folder that has to be empty afterwards."
    (folder / 'tmp').mkdir(exist_ok=True)
    environment = {**os.environ, 'TMPDIR': str(folder / 'tmp'), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([*before, *words(out, processes)], cwd=folder, env=environment, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr
    assert not [path for path in (folder / 'tmp').iterdir() if path.name.startswith('interflow-')]
    return content(folder / out)


def content(out):
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob('*') if path.is_file()}
    assert len([name for name in found if name.endswith('.png')]) == 4
    return found


def test_a_model_of_many_tensors_needs_few_open_files(work):
    "As the paper's size with the usual 1,024: fewer open files than the model has tensors."
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    assert generate(work, 'few', 2, preexec_fn=few) == content(work / 'alone')


def test_a_model_of_many_tensors_needs_little_shared_memory(work):
    "As in a container with 64 MB of /dev/shm: here it has room for less than one page for each tensor."
    inside = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    before = ['unshare', '-m', 'bash', '-c', inside, '-']
    if not shutil.which('unshare') or subprocess.run([*before, 'true'], capture_output=True).returncode:
        pytest.skip('a /dev/shm of its own needs root and unshare')
    assert generate(work, 'small', 2, before) == content(work / 'alone')


def test_what_jobs_have_in_common_is_written_once(tmp_path, monkeypatch):
    "And is gone where the loop was left in the middle."
    monkeypatch.setattr(core.tempfile, 'tempdir', str(tmp_path))
    common = np.zeros(1000)
    for codes in in_processes(len, [(common,), (common,), (common,)], 1):
        (folder,) = tmp_path.glob('interflow-*')
        assert len(list(folder.iterdir())) == 1
        if codes:
            break
    assert codes == [0] and not list(tmp_path.iterdir())


def test_a_killed_parent_leaves_no_files(tmp_path):
    "Its children see it within a second, and clear up before they end."
    code = 'import time; from interflow.core import in_processes\nfor codes in in_processes(time.sleep, [(600,), (601,)], 2): print("running", flush=True)'
    environment = {**os.environ, 'TMPDIR': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    parent = subprocess.Popen([sys.executable, '-c', code], env=environment, stdout=subprocess.PIPE)
    parent.stdout.readline()
    folder, = tmp_path.glob('interflow-*')
    time.sleep(1)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 60
    while folder.exists() and time.monotonic() < until:
        time.sleep(.2)
    assert not folder.exists()
