"""What the model costs, in a unit that holds on any machine: E, one forward pass of the paper's conditioning encoder, float32, without gradients.

    python benchmarks/cost.py [--full] [--out DIR]        (make bench, make bench-full)

Each figure is measured in turn with E in the same run, the median of the rounds for both: a machine's other work delays both.
Memory is the peak of a process of its own that does nothing else. Results in DIR: cost.json, cost.txt, cost.png; full.json.
"""
import argparse
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import large
import torch

import data as patches  # the two beside this file
from interflow.core import make_generator, write_json
from interflow.encoder import Encoder
from interflow.flow import PlainForm
from interflow.generation import generate_scene
from interflow.losses import LossWeights, interflow_loss, mix
from interflow.model import Condition, InterFlow, InterFlowConfig

TARGETS = {'19 factors': (160., 4.4, 5.5), 'training step': (24., 7.7, 8.5)}      # published, floor, to reach: E
CHANNELS_LAST = {'memory_format': torch.channels_last}


def together(functions, rounds=5, unit='E'):
    "Seconds of each function, {name: seconds}: the median of `rounds`, in each of which all of them run in turn, `unit` before every one."
    seconds = {name: [] for name in functions}

    def clock(name):
        start = time.perf_counter()
        functions[name]()
        seconds[name].append(time.perf_counter() - start)
    for name in functions if rounds > 1 else ():      # warm up, unless a call is so long that it does not matter
        functions[name]()
    for _ in range(rounds):
        for name in functions:
            clock(unit)
            clock(name)
    return {name: median(values) for name, values in seconds.items()}


class PlainModel(InterFlow):
    "The same model with every condition in the plain form, layer by layer."

    def condition(self, hr):
        return Condition((len(hr), 48, hr.shape[2] // 4, hr.shape[3] // 4), PlainForm(self.flow, *self.encoder(hr)))


def make_model(preset, kind=InterFlow):
    "A model with random weights, its ActNorms initialised, nothing the identity."
    torch.manual_seed(0)
    model, generator = kind(getattr(InterFlowConfig, preset)(), make_generator(0, 'model')), make_generator(0, 'shake')
    with torch.no_grad():
        model.train().encode(torch.rand(1, 3, 64, 64, generator=generator), model.condition(torch.rand(1, 3, 64, 64, generator=generator)))
        for name, p in model.named_parameters():
            p.add_((.001 if name == 'prior.roots' else .01) * torch.randn(p.shape, generator=generator))
    return model.eval()


def images(batch, size):
    return [torch.rand(batch, 3, size, size, generator=make_generator(0, name)) for name in ('hr', 'lr2', 'lr4')]


def nineteen(model, hr, lr2, lr4, count=19, band=True):
    "`count` factors of one scene by the library's own call, from images to images; without `band` as the flow decodes them."
    factors = [2.1 + 1.65 * k / (count + 1) for k in range(1, count + 1)]
    return list(generate_scene(model, hr[0], {2.1: lr2[0], 3.75: lr4[0]}, factors, 'linear', tile=0, band=band))


def nineteen_plain(model, hr, lr2, lr4):
    "The same, one by one, in the plain form."
    with torch.inference_mode():
        cond = model.condition(hr)
        z2, z4 = model.encode(lr2, cond)[0], model.encode(lr4, cond)[0]
        return [model.decode(mix(z2, z4, hr.new_tensor([k / 20])), cond)[0] for k in range(1, 20)]


PUBLISHED = LossWeights()


def train_step(model, hr, lr2, lr4, weights=PUBLISHED, autocast=False):
    "Loss and gradients of one batch."
    model.zero_grad()
    with torch.autocast(hr.device.type, torch.bfloat16, enabled=autocast):
        total = interflow_loss(model, {'hr': hr, 'lr': torch.stack([lr2, lr4])}, make_generator(0, device=hr.device), weights)[0]
    total.backward()
    return total.item()


def optimised_step(kind=InterFlow, fused=True):
    "A function that takes one whole training step of the demo, optimiser included."
    model, given = make_model('tiny', kind).train(), images(8, 48)
    optimizer = torch.optim.Adam(model.parameters(), 1e-6, fused=fused)

    def step():
        train_step(model, *given, LossWeights.tiny())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.)
        optimizer.step()
    return step


def no_grad(function, *arguments, **keywords):
    def call():
        with torch.inference_mode():
            return function(*arguments, **keywords)
    return call


def measure_paper(rounds):
    "Seconds and the largest difference between the forms, at the paper's size, one 160x160 scene."
    model, plain = make_model('paper'), make_model('paper', PlainModel)
    given = hr, lr2, lr4 = images(1, 160)
    with torch.inference_mode():
        cond, plain_cond = model.condition(hr), plain.condition(hr)
        z = model.encode(lr2, cond)[0]
        difference = max((a - b).abs().max().item() for a, b in zip(nineteen(model, *given, band=False), nineteen_plain(plain, *given)))
    seconds = together({
        'E': no_grad(model.encoder, hr),
        'encoder, channels last': no_grad(lambda: model.encoder(hr.contiguous(**CHANNELS_LAST))),
        'condition': no_grad(model.condition, hr), 'condition, plain': no_grad(plain.condition, hr),
        'encode': no_grad(model.encode, lr2, cond), 'encode, plain': no_grad(plain.encode, lr2, plain_cond),
        'decode': no_grad(model.decode, z, cond), 'decode, plain': no_grad(plain.decode, z, plain_cond),
        '19 factors': partial(nineteen, model, *given), '19 factors, plain': partial(nineteen_plain, plain, *given)}, rounds)
    return seconds, difference


def measure_training(rounds):
    "Seconds of a training step with one 160x160 scene: plain, fast, and with recomputation."
    model, plain, again = make_model('paper').train(), make_model('paper', PlainModel).train(), make_model('paper').train()
    again.encoder.recompute = True
    given = images(1, 160)
    return together({'E': no_grad(model.encoder, given[0]), 'training step': partial(train_step, model, *given),
                     'training step, recompute': partial(train_step, again, *given), 'training step, plain': partial(train_step, plain, *given)}, rounds)


def measure_tiny(rounds):
    "Seconds of the demo's training step: the fast form with the fused optimiser, the plain form without."
    tiny = make_model('tiny')
    hr = images(8, 48)[0]
    return together({'E': no_grad(tiny.encoder, hr), 'step': optimised_step(), 'step, plain': optimised_step(kind=PlainModel, fused=False)}, rounds)


def measure_precision(rounds):
    "bf16 autocast, where the processor may have instructions for it: seconds, and the largest difference to float32."
    model, given = make_model('paper'), images(1, 160)
    trained = make_model('paper').train()

    def bf16():
        with torch.autocast('cpu', torch.bfloat16):
            return nineteen(model, *given)
    difference = max((a - b).abs().max().item() for a, b in zip(nineteen(model, *given), bf16()))
    seconds = together({'E': no_grad(model.encoder, given[0]), '19 factors, bf16': bf16,
                        'training step, bf16': partial(train_step, trained, *given, autocast=True)}, rounds)
    return seconds, difference


def measure_compile():
    "`torch.compile` of the encoder: seconds to compile, seconds a pass. Needs a C++ compiler."
    if not shutil.which('g++') and not shutil.which('clang++'):
        return {'skipped': 'no C++ compiler'}
    model, hr = make_model('paper'), images(1, 160)[0].contiguous(**CHANNELS_LAST)
    compiled = torch.compile(model.encoder)
    start = time.perf_counter()
    no_grad(compiled, hr)()
    first = time.perf_counter() - start
    return {'to compile, s': first, **together({'E': no_grad(model.encoder, hr.contiguous()), 'compiled': no_grad(compiled, hr), 'channels last': no_grad(model.encoder, hr)}, 3)}


def measure_curves():
    "Cost of nineteen factors over the image's size, and of a 160x160 scene over the number of factors."
    model, E = make_model('paper'), no_grad(Encoder().eval(), images(1, 160)[0])

    def cost(*given, **keywords):
        seconds = together({'E': E, 'made': partial(nineteen, model, *given, **keywords)}, 1)
        return seconds['made'] / seconds['E']
    return {'size': {size: cost(*images(1, size)) for size in (64, 96, 160, 256, 512)},
            'factors': {count: cost(*images(1, 160), count=count) for count in (1, 2, 5, 10, 19, 38)}}


PEAKS = {
    'nothing': lambda: None,
    '19 factors': lambda: nineteen(make_model('paper'), *images(1, 160)),
    'training step': lambda: _steps(recompute=False),
    'training step, recompute': lambda: _steps(recompute=True),
}


def _steps(recompute):
    "Two steps with Adam, whose moments exist from the first on."
    model = make_model('paper').train()
    model.encoder.recompute = recompute
    optimizer = torch.optim.Adam(model.parameters(), 1e-6, fused=True)
    for _ in range(2):
        train_step(model, *images(1, 160))
        optimizer.step()


def peak(name):
    "Peak memory, bytes, of a process that does PEAKS[name] alone."
    done = subprocess.run([sys.executable, __file__, '--peak', name], capture_output=True, text=True, check=True)
    return int(done.stdout)


def measure_import(rounds=3):
    "Seconds that `import` takes in a fresh interpreter, best of some: torch alone, and every module of the package."
    every = 'import importlib, pkgutil, interflow; [importlib.import_module(m.name) for m in pkgutil.walk_packages(interflow.__path__, "interflow.")]'
    seconds = {}
    for name, code in (('torch', 'import torch'), ('interflow', every)):
        script = f'import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)'
        runs = [subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True) for _ in range(rounds)]
        seconds[name] = min(float(run.stdout) for run in runs)
    return seconds


def measure(rounds):
    "Everything that takes less than five minutes together, as one dict of plain numbers."
    started, result = time.perf_counter(), {'torch': torch.__version__, 'threads': torch.get_num_threads(), 'bf16 instructions': torch.cpu._is_avx512_bf16_supported()}

    def note(name, value):
        result[name] = value
        print(f'[{time.perf_counter() - started:4.0f} s] {name}', file=sys.stderr, flush=True)
    seconds, difference = measure_paper(rounds)
    note('paper, 160x160, s', seconds)
    note('largest difference of the forms', difference)
    note('training, 160x160, batch 1, s', measure_training(rounds))
    note('tiny training, 48x48, batch 8, s', measure_tiny(5 * rounds))
    note('peak memory, bytes', {name: peak(name) for name in PEAKS})
    seconds, difference = measure_precision(2)
    note('bf16, s', seconds)
    note('bf16, largest difference', difference)
    note('curves, E', measure_curves())
    note('import, s', measure_import())
    note('data', patches.measure())
    return json.loads(json.dumps(result))


def table(result):
    "The result as lines for people."
    lines = [f'paper preset, one 160x160 scene, float32, {result["threads"]} threads       E  seconds  peak GB  published  floor  goal']
    for group in ('paper, 160x160, s', 'training, 160x160, batch 1, s', 'bf16, s'):
        lines += [_line(name, result[group], result['peak memory, bytes']) for name in result[group] if name != 'E' or group[0] == 'p']
    tiny, imports, data = result['tiny training, 48x48, batch 8, s'], result['import, s'], result['data']
    return '\n'.join([
        *lines, f'fast and plain form differ by {result["largest difference of the forms"]:.1e}, bf16 and float32 by {result["bf16, largest difference"]:.1e}',
        f'training step of the demo (tiny, 48x48, batch 8): {tiny["step"] * 1e3:.0f} ms, layer by layer {tiny["step, plain"] * 1e3:.0f} ms: {tiny["step"] / tiny["step, plain"]:.2f}',
        f'import of every module: {imports["interflow"] - imports["torch"]:.2f} s beyond torch\'s own {imports["torch"]:.2f} s',
        f'batches of 8 x 160x160 from one worker: {data["warm"]["patches_per_s"] / 8:.0f} a second'])


def _line(name, seconds, memory):
    gigabytes = f'{memory[name] / 1e9:9.2f}' if name in memory else ' ' * 9
    targets = ''.join(f'{value:{width}.1f}' for value, width in zip(TARGETS[name], (11, 7, 6))) if name in TARGETS else ''
    return f'{name:46}{seconds[name] / seconds["E"]:8.2f}{seconds[name]:9.3f}{gigabytes}{targets}'.rstrip()


def draw(result, path):
    "The README's figure: what was gained, and how cost grows with size and factors."
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout='constrained')
    _draw_gain(axes[0], result['paper, 160x160, s'], result['training, 160x160, batch 1, s'])
    for axis, curve, label in zip(axes[1:], result['curves, E'].values(), ('height and width, pixels', 'number of factors')):
        axis.plot([int(x) for x in curve], list(curve.values()), 'o-', color='tab:blue')
        axis.set(xlabel=label, ylabel='E', ylim=(0, None))
    sizes = result['curves, E']['size']
    axes[1].plot([int(x) for x in sizes], [sizes['160'] * (int(x) / 160) ** 2 for x in sizes], '--', color='0.6', lw=1, label='in proportion to pixels')
    axes[1].legend(fontsize=7)
    axes[1].set(title='19 factors of one scene')
    axes[2].set(title='one 160x160 scene')
    figure.savefig(path, dpi=96)


def _draw_gain(axis, paper, training):
    forms = {'published code': [TARGETS[name][0] for name in TARGETS],
             'layer by layer': [paper['19 factors, plain'] / paper['E'], training['training step, plain'] / training['E']],
             'fast form': [paper['19 factors'] / paper['E'], training['training step'] / training['E']]}
    for i, ((label, heights), colour) in enumerate(zip(forms.items(), ('0.75', '0.45', 'tab:blue'))):
        axis.bar_label(axis.bar([x + .28 * i for x in range(2)], heights, .26, color=colour, label=label), fmt='%.3g', fontsize=8)
    axis.set(yscale='log', ylim=(1, 1500), ylabel='E (one encoder pass)', title='one 160x160 scene')
    axis.set_xticks([.28, 1.28], TARGETS)
    axis.legend(fontsize=7, loc='upper right')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--full', action='store_true', help='also torch.compile and a 2048x1536 scene (some minutes more)')
    parser.add_argument('--rounds', type=int, default=3, help='of each measurement; the median counts')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder for the results')
    parser.add_argument('--peak', choices=PEAKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        PEAKS[arguments.peak]()
        print(large.peak())
        return
    result = measure(arguments.rounds)
    write_json(arguments.out / 'cost.json', result)
    (arguments.out / 'cost.txt').write_text(table(result) + '\n')
    draw(result, arguments.out / 'cost.png')
    print(table(result))
    if arguments.full:
        more = {'encoder, compiled': measure_compile(), 'large scene': large.measure()}
        write_json(arguments.out / 'full.json', more)
        print(json.dumps(more, indent=2))


if __name__ == '__main__':
    main()
