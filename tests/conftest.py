"""What every test session needs: one thread a process, no window, no network, a cache of its own; the slow items first."""
import atexit
import os
import shutil
import tempfile

# Set before anything imports torch. Several test processes share the cores: more threads than cores only slow each other down.
for name, value in {'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', 'HF_HUB_OFFLINE': '1'}.items():
    os.environ.setdefault(name, value)

# Decoded images go to a folder that ends with the session, never to the user's; xdist's workers and all subprocesses inherit it.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    os.environ['INTERFLOW_CACHE'] = tempfile.mkdtemp(prefix='interflow-cache-')
    atexit.register(shutil.rmtree, os.environ['INTERFLOW_CACHE'], ignore_errors=True)


def pytest_collection_modifyitems(items):
    "Notebooks first, the later rooms (the heavier ones) before the earlier: the last minute is then shared by short tests."
    notebooks = [item for item in items if item.path.name == 'test_notebooks.py']
    items[:] = notebooks[::-1] + [item for item in items if item not in notebooks]
