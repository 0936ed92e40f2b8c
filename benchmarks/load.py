"""What a training step takes beside other work on two cores: alone, beside one busy process, and beside two.

    python benchmarks/load.py [--out benchmarks]        (under three minutes; leave the machine alone meanwhile)

The commands themselves are run, `interflow train` and `interflow train-sr`, with the threads that they choose and with one for each core; their loop is ended after
some seconds. The promise: with the threads that they choose, a step beside two busy processes takes at most 2.5 times as long as alone. Exit code 1 where it is broken.
On a larger machine all of it is kept on two cores, where the system can do that. Results: load.json and load.txt in OUT.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST = 2.5      # times as slow as alone
CORES = 2
COMMANDS = {'flow, 8 x 48x48': ('train',), 'rcan, 4 x 64x64': ('train-sr', '--network', 'rcan', '--preset', 'tiny')}
BUSY = 0, 1, 2
FIRST = 2       # steps that are not counted


class Enough(Exception):
    "The loop has run long enough."


def step_seconds(command: list[str], seconds: float) -> dict[str, float]:
    "Run a training command here for some seconds: its threads, and the mean time from step to step, data included; of the clock, and of processors."
    import torch

    from interflow.cli import app
    from interflow.training import loop
    real, ends, cpu = loop.take_step, [], []

    def take_step(*arguments):
        row = real(*arguments)
        ends.append(time.perf_counter())
        cpu.append(time.process_time())
        if len(ends) > FIRST + 1 and ends[-1] - ends[FIRST] > seconds:
            raise Enough
        return row
    loop.take_step = take_step
    try:
        app(command, standalone_mode=False)
    except Enough:
        pass
    count = len(ends) - 1 - FIRST
    return {'threads': torch.get_num_threads(), 'seconds': (ends[-1] - ends[FIRST]) / count, 'cpu': (cpu[-1] - cpu[FIRST]) / count}


@contextmanager
def busy(count: int) -> Iterator[None]:
    "So many processes that do nothing, as fast as they can, within the block."
    others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(name: str, pairs: Path, threads: int, seconds: float) -> dict[str, float]:
    "`step_seconds` in a process of its own, which knows nothing of the threads that this one may use."
    free = {key: value for key, value in os.environ.items() if not key.endswith('_NUM_THREADS')}
    with tempfile.TemporaryDirectory() as out:
        first, *rest = COMMANDS[name]
        command = [first, str(pairs), f'{out}/run', *rest, '--device', 'cpu', '--no-check', '--threads', str(threads)]
        call = [sys.executable, __file__, '--seconds', str(seconds), '--command', json.dumps(command)]
        done = subprocess.run(call, capture_output=True, text=True, env={**free, 'INTERFLOW_CACHE': f'{pairs}/cache'})
    if done.returncode:
        sys.exit(f'load.py: {" ".join(command)}: {(done.stderr.splitlines() or ["?"])[-1]}')
    return json.loads(done.stdout.splitlines()[-1])


def make_pairs(folder: Path) -> Path:
    "Three small scenes."
    from interflow.core import photographs, read_image, write_image
    from interflow.data import simulate
    for path in photographs('val')[:3]:
        write_image(folder / 'photos' / path.name, read_image(path)[:, 200:328, 300:428])
    simulate(folder / 'photos', folder / 'set', (2.1, 3.75))
    return folder / 'set'


def measure(seconds: float) -> dict:
    "All rows."
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = make_pairs(Path(folder))
        for name in COMMANDS:
            for threads in (0, CORES):
                row = {'training': name, 'chosen': not threads}
                for count in BUSY:
                    with busy(count):
                        found = measured(name, pairs, threads, seconds)
                    row.update(threads=found['threads'], **{f'beside {count}': round(found['seconds'], 4)})
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    return {'cores': CORES, 'rows': rows}


def worst(row: dict) -> float:
    "How many times as slow as alone."
    return max(row[f'beside {count}'] for count in BUSY) / row['beside 0']


def table(found: dict) -> str:
    "The rows as text."
    title = f'seconds of a step on {found["cores"]} cores'
    lines = [f'{title:<52}  alone  1 busy  2 busy  at worst']
    for row in found['rows']:
        threads = f'{row["threads"]} thread' + 's' * (row['threads'] > 1)
        title = f'{row["training"]}, {threads}' + ', as the command chooses' * row['chosen']
        times = '  '.join(f'{row[f"beside {count}"]:6.3f}' for count in BUSY)
        lines.append(f'{title:<52} {times}  {worst(row):4.1f} times as long')
    return '\n'.join(lines) + '\n'


def main() -> int:
    "Measure, store, and compare with the promise."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parent)
    parser.add_argument('--seconds', type=float, default=4., help='of each measurement')
    parser.add_argument('--command', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.command:
        print(json.dumps(step_seconds(json.loads(given.command), given.seconds)))
        return 0
    found = measure(given.seconds)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / 'load.json').write_text(json.dumps(found, indent=1) + '\n')
    (given.out / 'load.txt').write_text(table(found))
    print(table(found), end='')
    return int(any(worst(row) > MOST for row in found['rows'] if row['chosen']))


if __name__ == '__main__':
    sys.exit(main())
