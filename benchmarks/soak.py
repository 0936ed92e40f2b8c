"""Kill trainings at random moments, also while they save, and resume them: the weights are those of a run left alone.

    python benchmarks/soak.py [--kills 20] [--work runs/soak] [--out benchmarks]        (make soak)

Each training runs in a process that is killed with SIGKILL after a random time, and is started again, until it was killed so many times; then it may end. Its model
is compared with that of an undisturbed run byte by byte. A few minutes on one core. Results: soak.txt in OUT.
"""
import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from interflow.core import photographs, read_image, read_json, write_image
from interflow.data import Scene, simulate
from interflow.losses import LossWeights
from interflow.model import InterFlowConfig
from interflow.sr.networks import network_config
from interflow.sr.training import SR_PRESETS, Source, train_sr
from interflow.training import PRESETS, train_flow

FACTORS = (2.1, 3.75)


def make_scenes(work: Path) -> list[Scene]:
    "Three small scenes at two factors."
    for path in photographs('val')[:3]:
        write_image(work / 'photos' / path.name, read_image(path)[:, 200:264, 300:396])
    return simulate(work / 'photos', work / 'set', FACTORS)


def trainings(scenes: list[Scene], steps: int) -> dict[str, Callable[[Path], object]]:
    "What is killed: name -> a function of the run's folder. Every second step is saved."
    small = {'steps': steps, 'batch_size': 2, 'patch': 32, 'save_every': 2}
    return {
        'flow': lambda out: train_flow(scenes, out, InterFlowConfig.tiny(FACTORS), replace(PRESETS['tiny'], **small), LossWeights.tiny(), 'cpu'),
        'rcan': lambda out: train_sr([Source(scenes)], out, network_config('rcan', 'tiny'), replace(SR_PRESETS['tiny'], **small), 'cpu'),
    }


def begin(train: Callable[[Path], object], out: Path) -> int:
    "Start a training in a process of its own; returns the number of the process."
    number = os.fork()
    if number == 0:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            train(out)
            code = 0
        finally:
            os._exit(code)
    return number


def reached(out: Path) -> int:
    "The step of the newest state, 0 without one."
    file = out / 'state' / 'progress.json'
    return read_json(file)['step'] if file.exists() else 0


def wait(out: Path, random: np.random.Generator, longest: float) -> None:
    "A random time; every second time until a state is written, and some milliseconds more."
    saving, deadline = random.random() < .5, time.perf_counter() + random.uniform(0, longest)
    while time.perf_counter() < deadline + (longest if saving else 0):
        if saving and time.perf_counter() > deadline and list(out.glob('.*.part')):
            time.sleep(random.uniform(0, .02))
            return
        time.sleep(.001)


def soak(train: Callable[[Path], object], out: Path, kills: int, longest: float, random: np.random.Generator) -> dict[str, int]:
    "Kill a training so many times, then let it end; what was seen meanwhile."
    seen = {'kills': 0, 'while saving': 0, 'between the renamings': 0, 'starts': 0, 'ended too early': 0}
    while seen['kills'] < kills:
        seen['starts'] += 1
        number = begin(train, out)
        wait(out, random, longest)
        os.kill(number, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(number, 0)[1])
        if not killed:      # it was faster
            seen['ended too early'] += 1
            shutil.rmtree(out)
            longest *= .8
            continue
        seen['kills'] += 1
        seen['while saving'] += bool(list(out.glob('.*.part')))
        seen['between the renamings'] += bool(list(out.glob('.*.old')))
    code = os.waitstatus_to_exitcode(os.waitpid(begin(train, out), 0)[1])
    if code:
        sys.exit(f'{out}: the last start ended with code {code}')
    return seen


def same_files(first: Path, second: Path) -> bool:
    "Whether two folders hold the same files."
    names = [sorted(path.name for path in folder.iterdir()) for folder in (first, second)]
    return names[0] == names[1] and all((first / name).read_bytes() == (second / name).read_bytes() for name in names[0])


def run(given: argparse.Namespace) -> str:
    "All trainings; the lines of the result. Ends with an error where weights differ."
    torch.set_num_threads(1)
    random, lines, work = np.random.default_rng(given.seed), [], Path(given.work)
    shutil.rmtree(work, ignore_errors=True)
    for name, train in trainings(make_scenes(work), given.steps).items():
        if given.only not in (None, name):
            continue
        start = time.perf_counter()
        os.waitpid(begin(train, work / name / 'whole'), 0)
        seconds = time.perf_counter() - start
        seen = soak(train, work / name / 'killed', given.kills, seconds / 2, random)
        same = same_files(work / name / 'whole/model', work / name / 'killed/model')
        left = [path.name for path in (work / name / 'killed').iterdir() if path.name[0] == '.']
        told = ', '.join(f'{what} {count}' for what, count in seen.items())
        lines.append(f'{name}: {given.steps} steps, alone {seconds:.1f} s; {told}; left behind: {left or "nothing"}; weights {"the same" if same else "DIFFER"}')
        print(lines[-1], flush=True)
        if not same:
            sys.exit(1)
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--only', choices=('flow', 'rcan'))
    parser.add_argument('--work', default='runs/soak')
    parser.add_argument('--out', help='folder for soak.txt')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    result = run(arguments)
    if arguments.out:
        (Path(arguments.out) / 'soak.txt').write_text(result, encoding='utf-8')
