"""How fast pairs are read: patches a second, with an empty cache and a full one, by one process and by several at once.

    python benchmarks/data.py [--scenes 30] [--workers 2] [--json FILE]

A patch is one crop of 160x160 of an HR image and of its LR images at two factors. Scenes of 1000x700 are made of the embedded photographs
in a temporary folder; every measurement is made by processes of their own, so that nothing is in their memory yet.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from interflow.core import photographs, write_json
from interflow.data import PairBatches, factor_folder, read_set

FACTORS, SIZE, PATCH, BATCH = (2.1, 3.75), (1000, 700), 160, 8


def make_scenes(folder, count):
    "`count` scenes as PNG files: photographs enlarged, mirrored for variety; the LR images only blurred, which costs as much to read."
    paths = [path for split in ('train', 'val', 'test') for path in photographs(split)]
    for i in range(count):
        with Image.open(paths[i % len(paths)]) as photo:
            hr = photo.resize(SIZE, Image.Resampling.BICUBIC)
        if i // len(paths) % 2:
            hr = hr.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for factor in (1, *FACTORS):
            image = hr if factor == 1 else hr.resize([round(side / factor) for side in SIZE]).resize(SIZE)
            target = folder / ('HR' if factor == 1 else factor_folder(factor)) / f'{i:04}.png'
            target.parent.mkdir(exist_ok=True)
            image.save(target, compress_level=1)


def work(folder, seconds=1.):
    "One worker's figures: how long it took to begin, and how fast it then made batches for some `seconds`."
    start = time.perf_counter()
    batches = PairBatches(read_set(folder), FACTORS, PATCH, BATCH)
    begun = time.perf_counter()
    times = []
    while time.perf_counter() - begun < seconds:
        step = time.perf_counter()
        batches(len(times))
        times.append(time.perf_counter() - step)
    return {'start_s': begun - start, 'batches': len(times), 'ms_per_batch': 1e3 * sum(times) / len(times), 'ms_best': 1e3 * min(times)}


def workers(folder, count):
    "The figures of `count` workers that run at the same time."
    command = [sys.executable, __file__, '--work', str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, 'INTERFLOW_CACHE': str(folder / 'cache')}) for _ in range(count)]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError('a worker failed; see above')
    return [json.loads(output) for output in outputs]


def summary(figures):
    "Of workers at the same time: seconds to begin, ms a batch, patches a second in sum and for each, bytes of pixels a second."
    rates = [BATCH * 1e3 / figure['ms_per_batch'] for figure in figures]
    return {'workers': len(figures), 'start_s': max(figure['start_s'] for figure in figures),
            'ms_per_batch': sum(figure['ms_per_batch'] for figure in figures) / len(figures), 'ms_best': min(figure['ms_best'] for figure in figures),
            'patches_per_s': sum(rates), 'patches_per_s_per_worker': sum(rates) / len(rates),
            'bytes_per_s': sum(rates) * (1 + len(FACTORS)) * PATCH * PATCH * 3}


def measure(scenes=30, count=2):
    """All figures as a dict: `cold` (one worker, empty cache), `warm` (one, full cache), `together` (`count` workers, full cache).

    Each as `summary` has it; `start_s` is what passes before the first batch: reading, checking and, when cold, decoding every image.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_scenes(folder, scenes)
        figures = {name: summary(workers(folder, number)) for name, number in (('cold', 1), ('warm', 1), ('together', count))}
        stored = sum(path.stat().st_size for path in folder.rglob('*.png'))
    images = scenes * (1 + len(FACTORS))
    return {'images': images, 'file_bytes': stored, 'pixel_bytes': images * 3 * SIZE[0] * SIZE[1], 'patch': PATCH, 'batch': BATCH, **figures}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--scenes', type=int, default=30)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--json', help='file for the figures')
    parser.add_argument('--work', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(arguments.work)))
        return
    result = measure(arguments.scenes, arguments.workers)
    print(f'{result["images"]} images of {SIZE[0]}x{SIZE[1]}, {result["file_bytes"] / 1e6:.0f} MB of files, {result["pixel_bytes"] / 1e6:.0f} MB of pixels')
    print(f'{"":10}{"workers":>9}{"start s":>9}{"ms/batch":>10}{"best":>8}{"patches/s":>11}{"each":>8}{"MB/s":>7}')
    for name in ('cold', 'warm', 'together'):
        row = result[name]
        print(f'{name:10}{row["workers"]:9}{row["start_s"]:9.2f}{row["ms_per_batch"]:10.2f}{row["ms_best"]:8.2f}{row["patches_per_s"]:11.0f}'
              f'{row["patches_per_s_per_worker"]:8.0f}{row["bytes_per_s"] / 1e6:7.0f}')
    if arguments.json:
        write_json(arguments.json, result)


if __name__ == '__main__':
    main()
