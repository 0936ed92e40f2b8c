"""A device that is not here is one line and leaves nothing behind; threads are chosen by what is trained on."""
import subprocess
import sys

import pytest
import torch

from interflow.core import (
    SMALL,
    InterflowError,
    best_processes,
    pick_device,
    usable_cores,
    use_threads,
)


@pytest.fixture
def threads():
    "The number of threads is given back."
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('name', ['gpu', 'cuda:99', 'mps:7', 'xpu:9', 'cpu:1', 'meta', 'cuda:-1', ''])
def test_a_device_that_is_not_here_is_refused_in_one_line(name):
    for ask in (pick_device, lambda name: best_processes(name, [1])):
        with pytest.raises(InterflowError, match='^device ') as fault:
            ask(name)
        assert '\n' not in str(fault.value) and '; choose' in str(fault.value)


def test_what_is_here_is_taken(monkeypatch):
    assert pick_device('cpu') == pick_device('cpu:0') == pick_device(torch.device('cpu')) == torch.device('cpu')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert pick_device() == torch.device('cuda') and pick_device('cuda:1') == torch.device('cuda', 1)
    with pytest.raises(InterflowError, match='cuda:7: not here, .* sees cpu, cuda:0, cuda:1; choose'):
        pick_device('cuda:7')


def test_small_crops_have_one_thread_and_large_ones_leave_half_of_the_cores(threads, monkeypatch):
    monkeypatch.setattr('interflow.core.usable_cores', lambda: 8)
    assert use_threads(SMALL - 1) == 1 and use_threads(SMALL) == torch.get_num_threads() == 4
    assert use_threads(SMALL, threads=3) == torch.get_num_threads() == 3
    monkeypatch.setattr('interflow.core.usable_cores', lambda: 2)
    assert use_threads(10 * SMALL) == 1, 'on two cores one is left to other work'


def test_the_library_sets_no_threads_when_it_is_imported():
    script = 'import torch; torch.set_num_threads(3); import interflow.cli, interflow.demo; print(torch.get_num_threads())'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.stdout.split() == ['3'], done.stderr
    assert usable_cores() >= 1
