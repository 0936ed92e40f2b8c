"""What every test session needs: one thread a process, no window, no network, a cache of its own; the slow items first."""
import atexit
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# Set before anything imports torch. Several test processes share the cores: more threads than cores only slow each other down.
for name, value in {'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', 'HF_HUB_OFFLINE': '1'}.items():
    os.environ.setdefault(name, value)

# A shell lets what it starts in the background ignore Ctrl-C, and that is inherited; the tests of Ctrl-C need it heard.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Decoded images go to a folder that ends with the session, never to the user's; xdist's workers and all subprocesses inherit it.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    os.environ['INTERFLOW_CACHE'] = tempfile.mkdtemp(prefix='interflow-cache-')
    atexit.register(shutil.rmtree, os.environ['INTERFLOW_CACHE'], ignore_errors=True)


@pytest.fixture(scope='session')
def published():
    "A state dict with the published names and shapes, its weights by the rule of tests/reference: what the flow uses of it."
    import torch  # not before the lines above
    reference, scope = Path(__file__).parent / 'reference', {}
    exec((reference / 'fill.py').read_text(), scope)
    shapes = json.loads((reference / 'interflow_state_dict.json').read_text())
    used = [n for n in shapes if n.startswith(('arch.RRDB.', 'arch.flowUpsamplerNet.layers.', 'mean_shift_', 'cov_shift_'))]
    return {name: torch.from_numpy(scope['fill'](name, tuple(shapes[name]))) for name in used}


def pytest_collection_modifyitems(items):
    "Notebooks first, the later rooms (the heavier ones) before the earlier: the last minute is then shared by short tests."
    notebooks = [item for item in items if item.path.name == 'test_notebooks.py']
    items[:] = notebooks[::-1] + [item for item in items if item not in notebooks]
