"""Importing the package is quick: what only some functions need is imported by them."""
import json
import subprocess
import sys

from rooms import ROOT, modules

HEAVY = {'IPython', 'accelerate', 'cv2', 'huggingface_hub', 'ipywidgets', 'matplotlib', 'pandas', 'scipy', 'seaborn', 'skimage', 'tensorboard', 'torchmetrics',
         'torchvision', 'transformers'}
SCRIPT = '''
import importlib, json, sys, time
start = time.perf_counter()
import torch
middle, before = time.perf_counter(), set(sys.modules)
for name in sys.argv[1:]: importlib.import_module(name)
print(json.dumps({'torch': middle - start, 'ours': time.perf_counter() - middle, 'modules': sorted(set(sys.modules) - before)}))
'''


def imported():
    "The seconds that torch takes to import, those that all our modules take after it, and what they bring along."
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__') for path in modules()]
    done = subprocess.run([sys.executable, '-c', SCRIPT, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_heavy_libraries_wait_until_they_are_used():
    found = imported()['modules']
    assert 'interflow.cli' in found and 'interflow.sr.training' in found
    assert not HEAVY & {name.split('.')[0] for name in found}, 'import them inside the functions that use them'


def test_the_package_adds_little_to_importing_torch():
    "About a sixth of what torch itself takes; the bound is generous, and the best of several runs is judged: other processes only add time."
    runs = [imported() for _ in range(3)]
    assert min(run['ours'] / run['torch'] for run in runs) < .7 or min(run['ours'] for run in runs) < .5
