"""What every test session needs: one thread a process, no window, no network; the slow items first."""
import os

# Set before anything imports torch. Several test processes share the cores: more threads than cores only slow each other down.
for name, value in {'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg', 'HF_HUB_OFFLINE': '1'}.items():
    os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items):
    "Notebooks first, the later rooms (the heavier ones) before the earlier: the last minute is then shared by short tests."
    notebooks = [item for item in items if item.path.name == 'test_notebooks.py']
    items[:] = notebooks[::-1] + [item for item in items if item not in notebooks]
