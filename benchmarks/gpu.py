"""What a graphics card gives: training steps a second, nineteen factors, a run that is resumed, and how far its results are from a CPU's.

    python benchmarks/gpu.py [--out DIR] [--minutes 10]           on a machine with CUDA
    python benchmarks/gpu.py --device cpu --tiny --out DIR        the same lines with tiny sizes, on any machine

Under ten minutes on an H100. The checks come first; measurements that would begin after the time is up are left out, and said.
Results in DIR: gpu.json (a new one after each line) and gpu.txt. Exit code 1 where a check fails.
"""
import argparse
import json
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from cost import images, make_model, nineteen, train_step

from interflow.core import InterflowError, photographs, read_image, write_image, write_json
from interflow.data import simulate
from interflow.model import InterFlowConfig
from interflow.training import TrainConfig, train_flow

NEAR = 1e-3             # the largest difference of an image in [0, 1] between this device and a CPU
GOAL = 50.              # training steps a second at batch 8 in bf16, on an H100
SIZES = {False: dict(preset='paper', side=160, batches=(8, 16), sides=(160, 1024), rounds=10, steps=6),
         True: dict(preset='tiny', side=32, batches=(2,), sides=(32,), rounds=1, steps=4)}
MODES = ('float32', 'TF32', 'bf16', 'bf16, compiled')


@contextmanager
def in_mode(mode, device):
    "Float32 as it is, with TF32 in its products, or 16 bits where the model allows them."
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode != 'float32'
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=mode.startswith('bf16')):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def seconds_of(function, device, rounds):
    "The shortest time of a call, after one to warm up."
    wait = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    function()
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def training_step(mode, batch, device, sizes):
    "A function that takes one whole step, optimiser included."
    model = make_model(sizes['preset']).to(device).train()
    if 'compiled' in mode:
        model.encoder.compile()
    given = [image.to(device) for image in images(batch, sizes['side'])]
    optimizer = torch.optim.Adam(model.parameters(), 1e-6, fused=True)

    def step():
        train_step(model, *given, autocast=mode.startswith('bf16'))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.)
        optimizer.step()
    return step


def steps_per_second(mode, batch, device, sizes):
    with in_mode(mode, device):
        return 1 / seconds_of(training_step(mode, batch, device, sizes), device, sizes['rounds'])


def seconds_of_nineteen(mode, side, device, sizes):
    model, given = make_model(sizes['preset']).to(device), [image.to(device) for image in images(1, side)]
    with in_mode(mode, device):
        return seconds_of(partial(nineteen, model, *given), device, sizes['rounds'])


def difference_to_cpu(mode, device, sizes):
    "The largest difference of nineteen images, values in [0, 1], to those of a CPU in float32."
    given = images(1, sizes['side'])
    here = nineteen(make_model(sizes['preset']), *given)
    with in_mode(mode, device):
        there = nineteen(make_model(sizes['preset']).to(device), *(image.to(device) for image in given))
    return max((one - other.float().cpu()).abs().max().item() for one, other in zip(here, there))


def resumed_run(device, sizes):
    "The largest difference of the losses of a run that was cut off in its midst and resumed, in parts of the loss."
    class Stop(Exception):
        pass

    def run(out, stop=None):
        import interflow.training.flow as room
        real = room.interflow_loss
        calls = []

        def loss(*arguments):
            calls.append(1)
            if len(calls) == stop:
                raise Stop
            return real(*arguments)
        room.interflow_loss = loss
        try:
            return train_flow(scenes, out, InterFlowConfig.tiny((2.1, 3.75)), config, device=str(device))[1]
        finally:
            room.interflow_loss = real
    with tempfile.TemporaryDirectory() as folder:
        photo = read_image(photographs('val')[0])[:, 200:264, 300:364]
        write_image(Path(folder) / 'photos/one.png', photo)
        scenes = simulate(Path(folder) / 'photos', Path(folder) / 'set', (2.1, 3.75))
        config = TrainConfig(steps=sizes['steps'], batch_size=2, patch=32, save_every=2)
        whole = run(Path(folder) / 'whole')
        try:
            run(Path(folder) / 'cut', stop=sizes['steps'])
            raise InterflowError('the run was not cut off')
        except Stop:
            resumed = run(Path(folder) / 'cut')
    return max(abs(one['loss'] - other['loss']) / abs(one['loss']) for one, other in zip(whole, resumed, strict=True))


def plan(device, sizes):
    "(name, function) of everything that is measured, the checks first."
    modes = MODES if device.type == 'cuda' else ('float32', 'bf16')
    yield 'difference to the CPU, float32', partial(difference_to_cpu, 'float32', device, sizes)
    yield 'difference of a resumed run', partial(resumed_run, device, sizes)
    for batch in sizes['batches']:
        for mode in modes:
            yield f'steps/s, batch {batch}, {mode}', partial(steps_per_second, mode, batch, device, sizes)
    for side in sizes['sides']:
        for mode in [mode for mode in modes if 'compiled' not in mode]:
            yield f's, 19 factors, {side}x{side}, {mode}', partial(seconds_of_nineteen, mode, side, device, sizes)
    for mode in modes[1:2]:
        yield f'difference to the CPU, {mode}', partial(difference_to_cpu, mode, device, sizes)


def checks(rows):
    "What does not hold, in words."
    for name, value in rows.items():
        if name.startswith('difference') and not name.endswith(('TF32', 'bf16')) and not value <= NEAR:
            yield f'{name} is {value:.1e}, above {NEAR:g}'


def table(result):
    lines = [f'{result["device"]}, torch {result["torch"]}, preset {result["preset"]}, {result["seconds"]:.0f} s']
    lines += [f'{name:44}{value:12.4g}' for name, value in result['rows'].items()]
    lines += [f'{name:44}{reason:>12}' for name, reason in result['left out'].items()]
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--tiny', action='store_true', help='sizes that any machine can do')
    parser.add_argument('--minutes', type=float, default=10., help='nothing is begun after that')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder for the results')
    arguments = parser.parse_args()
    device, sizes, start = torch.device(arguments.device), SIZES[arguments.tiny], time.perf_counter()
    if device.type == 'cuda' and not torch.cuda.is_available():
        sys.exit('gpu: no CUDA device here; give --device cpu --tiny to see whether the lines work')
    name = torch.cuda.get_device_name() if device.type == 'cuda' else device.type
    result = {'device': name, 'torch': torch.__version__, 'preset': sizes['preset'], 'rows': {}, 'left out': {}}
    for row, function in plan(device, sizes):
        if time.perf_counter() - start > 60 * arguments.minutes:
            result['left out'][row] = 'no time'
            continue
        try:
            result['rows'][row] = function()
        except torch.cuda.OutOfMemoryError:
            result['left out'][row] = 'no memory'
        result['seconds'] = time.perf_counter() - start
        print(f'[{result["seconds"]:4.0f} s] {row}: {result["rows"].get(row, "no memory")}', file=sys.stderr, flush=True)
        write_json(arguments.out / 'gpu.json', json.loads(json.dumps(result)))
    (arguments.out / 'gpu.txt').write_text(table(result) + '\n')
    print(table(result))
    if wrong := list(checks(result['rows'])):
        sys.exit('gpu: ' + '; '.join(wrong))


if __name__ == '__main__':
    main()
