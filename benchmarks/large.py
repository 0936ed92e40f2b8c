"""Images of a large scene in tiles: time, peak memory, seams.

    python benchmarks/large.py [--preset paper|small|tiny] [--size 1536x2048] [--factors 19] [--tile 768] [--path sample] [--json FILE]

A process of its own makes all the images of one scene on the CPU in float32, so that its peak memory is that of the work. The seams are measured
on a smaller scene of two tiles against the same scene made as a whole, with the margin in use and without one. The weights are random, with
normalisations set from data as a training does; trained weights see no farther (nbs/3_degradation/03_generation.ipynb).
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from interflow.core import make_generator, photographs, read_image, write_json
from interflow.generation import MARGIN, TILE, generate_scene
from interflow.model import InterFlow, InterFlowConfig

FACTORS = (2.1, 3.75)


def filled(preset, shake=.003):
    "A model of `preset` with random weights that does something: ActNorms set from an image, then every parameter moved a little."
    torch.manual_seed(0)
    generator = make_generator(0, 'model')
    model = InterFlow(getattr(InterFlowConfig, preset)(FACTORS), generator).train()
    images = scene(128, 128)
    with torch.no_grad():
        model.encode(images[1:2], model.condition(images[:1]))
        for parameter in model.parameters():
            parameter.add_(shake * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def scene(height, width):
    "HR image and LR images at both factors, (3, 3, H, W): a photograph that comes with the repository, repeated, and blurred as the factor asks."
    photo = read_image(photographs('test')[0])
    hr = photo.repeat(1, -(-height // photo.shape[1]), -(-width // photo.shape[2]))[:, :height, :width]
    blurred = [torch.nn.functional.avg_pool2d(hr, size, 1, size // 2) for size in (3, 5)]
    return torch.stack([hr, *blurred])


def make(model, size, factors, path, tile, margin=MARGIN):
    "The images of `scene(*size)` at `factors` factors inside the trained range, as a generator."
    hr, *lr = scene(*size)
    steps = [FACTORS[0] + (FACTORS[1] - FACTORS[0]) * (k + 1) / (factors + 1) for k in range(factors)]
    generators = [make_generator(0, k) for k in range(factors)]
    return generate_scene(model, hr, dict(zip(FACTORS, lr)), steps, path, generators, tile=tile, margin=margin)


def peak():
    "Peak resident memory of this process, bytes."
    status = Path('/proc/self/status')      # getrusage also counts the parent's memory at the time of the fork
    if status.exists():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith('VmHWM'))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def work(preset, size, factors, path, tile):
    "In this process: seconds for all images, peak memory before and after, bytes."
    model = filled(preset)
    before, start = peak(), time.perf_counter()
    count = sum(1 for _ in make(model, size, factors, path, tile))
    return {'seconds': time.perf_counter() - start, 'peak': peak(), 'peak before': before, 'images': count}


def seam(preset, path, tile, margin):
    "Largest difference, in units of 1/255, between a scene of two tiles and the same scene as a whole."
    model, size = filled(preset), (128, 2 * tile)
    (whole,), (tiled,) = (list(make(model, size, 1, path, t, margin)) for t in (0, tile))
    return 255 * (whole - tiled).abs().max().item()


def measure(size=(1536, 2048), factors=19, tile=TILE, path='sample', preset='paper', seams=True):
    """Make `factors` images of a scene of `size` (H, W) in a process of its own; a dict.

    `seconds`; `peak` of the process, `peak before` the work (libraries and weights) and `outputs` (all images in float32), bytes; `seam`, `seam without margin` in units of 1/255.
    """
    call = [sys.executable, __file__, '--work', json.dumps([preset, size, factors, path, tile])]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parent.parent)})
    if done.returncode:
        raise RuntimeError(done.stderr)
    figures = {**json.loads(done.stdout), 'outputs': 4 * 3 * size[0] * size[1] * factors}
    if seams:
        figures |= {name: seam(preset, path, 192, margin) for name, margin in (('seam', MARGIN), ('seam without margin', 0))}
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', default='paper', choices=['paper', 'small', 'tiny'])
    parser.add_argument('--size', default='1536x2048', help='height x width, pixels')
    parser.add_argument('--factors', type=int, default=19)
    parser.add_argument('--tile', type=int, default=TILE, help='pixels, 0 for the whole image')
    parser.add_argument('--path', default='sample', choices=['sample', 'linear'])
    parser.add_argument('--json', help='file for the figures')
    parser.add_argument('--work', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(*json.loads(arguments.work))))
        return
    size = tuple(int(part) for part in arguments.size.split('x'))
    figures = measure(size, arguments.factors, arguments.tile, arguments.path, arguments.preset)
    print(f'{arguments.preset}, {arguments.size}, {arguments.factors} factors, path {arguments.path}, tile {arguments.tile}, margin {MARGIN}, {torch.get_num_threads()} threads')
    for name, value in figures.items():
        unit = {'seconds': 's', 'images': '', 'seam': '/255', 'seam without margin': '/255'}.get(name, 'GB')
        print(f'{name:20} {value / 1e9 if unit == "GB" else value:10.4g} {unit}')
    if arguments.json:
        write_json(arguments.json, {'settings': vars(arguments), 'figures': figures})


if __name__ == '__main__':
    main()
