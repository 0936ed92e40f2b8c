"""How well each SR network uses the machine: multiplications a second, over those of a plain convolution.

    python benchmarks/sr_speed.py [--rounds 5] [--threads N] [--only NAME ...] [--out DIR]

For each network: the paper's size makes an image of 256x256 (without gradients), and the tiny size takes one training step (batch 4,
patch 64, Adam). The unit is the plain convolution of this machine, 3x3, 64 -> 64 channels, 256x256, run before and after each measured
call; for a training step its forward and backward pass. Multiplications are those that our code computes in convolutions and matrix
products, attention included; additions, gathers, norms and pixel-wise products count as none, so a network that lives on them has a low
rate. Networks of arbitrary scale see 85x85 pixels, a third, for 256x256; in training 64x64 pixels and 4096 queries. float32; one thread
unless told otherwise, and then seconds are those of the processor.

"rate" is the median of the rounds. "best" sets the fastest run against the fastest unit of the whole run: other work on the machine slows
the unit, whose maps are large, more than most networks, and flatters them. Results in DIR: sr_speed.json, sr_speed.txt, sr_speed.png.
"""
import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault('KINETO_LOG_LEVEL', '5')      # the profiler is silent
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from interflow.core import InterflowError, make_generator, whole_file, write_json
from interflow.sr.liif import sample_queries
from interflow.sr.networks import VARIANTS, arbitrary, build
from interflow.sr.parts import conv
from interflow.sr.training import l1_loss, query_loss

SIZE, SHRUNK, BATCH, PATCH = 256, 85, 4, 64
LIMIT = .5                          # a rate below this wants a reason
CALLS = ('forward', 'step')
SHOWN = 5                           # operations named for each call


def image(*shape):
    return torch.rand(shape, generator=make_generator(0, 'sr_speed'))


def forward_call(name):
    "The paper's network makes an image of SIZE x SIZE: (call, parameters)."
    net = build(name, 'paper').eval()
    lr, asked = (image(1, 3, SHRUNK, SHRUNK), ((SIZE, SIZE),)) if arbitrary(name) else (image(1, 3, SIZE, SIZE), ())

    def call():
        with torch.inference_mode():
            assert net(lr, *asked).shape == (1, 3, SIZE, SIZE)
    return call, _parameters(net)


def step_call(name):
    "A training step of the tiny network, its update included: (call, parameters)."
    net = build(name, 'tiny').train()
    batch = {'lr': image(BATCH, 3, PATCH, PATCH), 'hr': image(BATCH, 3, PATCH, PATCH)}
    if arbitrary(name):
        larger = image(BATCH, 3, 3 * PATCH, 3 * PATCH)
        batch.update(zip(('coord', 'cell', 'colour'), sample_queries(larger, PATCH ** 2, make_generator(0, 'queries'))))
    loss, optimizer = query_loss if arbitrary(name) else l1_loss, torch.optim.Adam(net.parameters(), 1e-5)

    def call():
        optimizer.zero_grad(set_to_none=True)
        loss(net, batch, None)[0].backward()
        optimizer.step()
    return call, _parameters(net)


def plain_call(backward):
    "The unit: one convolution, 3x3, 64 -> 64 channels, of SIZE x SIZE pixels; with `backward` both of its gradients as well."
    layer, x = conv(64, 64), image(1, 64, SIZE, SIZE).requires_grad_(backward)

    def call():
        with torch.inference_mode(not backward):
            out = layer(x)
        if backward:
            x.grad = layer.weight.grad = layer.bias.grad = None
            out.backward(out.detach())
    return call


def _parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def count(call):
    "Multiplications of a call. The counter knows no fused attention, which therefore runs as two products meanwhile."
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops() // 2


def clock(call, times=1):
    "Seconds of a call, a mean: of the processor where one thread works, which a busy machine disturbs little; else of the wall."
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = now()
    for _ in range(times):
        call()
    return (now() - start) / times


def measure(call, unit, rounds):
    "Seconds of a call and of the unit, and the call in units: lists by round. The unit runs before and after, for about as long."
    unit(), call()
    ratio = clock(call) / clock(unit)
    times, unit_times, rows = max(1, round(1 / ratio)), min(max(1, round(ratio / 2)), 10), []
    for _ in range(rounds):
        before, own, after = clock(unit, unit_times), clock(call, times), clock(unit, unit_times)
        rows.append((own, min(before, after), 2 * own / (before + after)))
    return zip(*rows)


def operations(call):
    "What a call's time goes to: {operation: share}, the largest few."
    with profile(acc_events=True) as seen:
        call()
    times = {event.key.removeprefix('aten::'): event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(times.values())
    return {name: round(times[name] / total, 3) for name in sorted(times, key=times.get, reverse=True)[:SHOWN]}


def row(name, kind, unit, unit_macs, rounds):
    "All that is known of one network's call."
    call, parameters = {'forward': forward_call, 'step': step_call}[kind](name)
    macs = count(call)
    seconds, unit_seconds, units = measure(call, unit, rounds)
    return {'network': name, 'call': kind, 'parameters': parameters, 'macs': macs, 'seconds': median(seconds), 'units': median(units),
            'rate': macs / unit_macs / median(units), 'rates': [macs / unit_macs / value for value in units],
            'fastest': min(seconds), 'fastest unit': min(unit_seconds), 'operations': operations(call)}


def run(names, rounds):
    "The result of all networks as one dict; a network that is not there is named and left out."
    units = {kind: plain_call(kind == 'step') for kind in CALLS}
    unit_macs = {kind: count(call) for kind, call in units.items()}
    rows, missing = [], {}
    for name in names:
        for kind in CALLS:
            try:
                rows.append(row(name, kind, units[kind], unit_macs[kind], rounds))
            except ImportError as fault:
                missing[name] = str(fault)
                continue
            print(name, kind, file=sys.stderr, flush=True)
    fastest = {kind: min(row['fastest unit'] for row in rows if row['call'] == kind) for kind in CALLS}
    for one in rows:
        one['best'] = one['macs'] / unit_macs[one['call']] * fastest[one['call']] / one['fastest']
    unit = {kind: {'macs': unit_macs[kind], 'fastest': fastest[kind]} for kind in CALLS}
    return _rounded({'torch': torch.__version__, 'threads': torch.get_num_threads(), 'rounds': rounds, 'unit': unit, 'rows': rows,
                     'missing': missing})


def _rounded(value):
    "The same with floats of four digits."
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else float(f'{value:.4g}') if isinstance(value, float) else value


def line(row):
    "One call as a line for people; a low rate is marked."
    low, where = min(row['rate'], row['best']) < LIMIT, ', '.join(f'{name} {share:.0%}' for name, share in row['operations'].items())
    return (f'{row["network"]:22}{row["call"]:9}{row["parameters"]:>11,}{row["macs"] / 1e9:>9.2f}{row["fastest"]:>9.3f}{row["units"]:>8.2f}'
            f'{row["rate"]:>7.0%}{row["best"]:>7.0%} {"<" if low else " "} {where}')


def table(result):
    "The result as lines for people."
    unit = {kind: f'{unit["macs"] / 1e9:.2f} G mult. in {unit["fastest"]:.3f} s' for kind, unit in result['unit'].items()}
    return '\n'.join([
        f'{"network":22}{"call":9}{"parameters":>11}{"G mult.":>9}{"seconds":>9}{"units":>8}{"rate":>7}{"best":>7}   time by operation',
        *(line(row) for row in result['rows']),
        *(f'{name}: not measured, {why}' for name, why in result['missing'].items()),
        f'unit: 3x3 convolution, 64 -> 64 channels, {SIZE}x{SIZE}: {unit["forward"]}; with both gradients {unit["step"]}',
        f'{result["threads"]} thread(s), torch {result["torch"]}, {result["rounds"]} rounds; seconds: of the fastest; units, rate: medians; '
        f'<: below {LIMIT:.0%}',
        f'forward: paper, an image of {SIZE}x{SIZE} (arbitrary scale: from {SHRUNK}x{SHRUNK}); step: tiny, batch {BATCH}, patch {PATCH}'])


def draw(result, path):
    "Rates as bars, the paper's pass and the tiny step side by side."
    import matplotlib.pyplot as plt
    figure, axis = plt.subplots(figsize=(9, 3.2), layout='constrained')
    names = list(dict.fromkeys(row['network'] for row in result['rows']))
    for i, (kind, label, colour) in enumerate(zip(CALLS, (f'paper, {SIZE}x{SIZE}', 'tiny, a training step'), ('tab:blue', '0.6'))):
        rows = [row for row in result['rows'] if row['call'] == kind]
        places = [names.index(row['network']) + .4 * i - .2 for row in rows]
        axis.bar(places, [row['best'] for row in rows], .38, color=colour, label=label)
        axis.plot(places, [row['rate'] for row in rows], 'k_', ms=7, label='median of the rounds' if i else None)
    axis.axhline(1, color='k', lw=.8)
    axis.axhline(LIMIT, color='tab:red', lw=.8, ls='--')
    axis.set_xticks(range(len(names)), [name.replace('_', '\n', 1) for name in names], fontsize=8)
    axis.set(ylabel='rate, of a plain convolution', title='multiplications a second, best run')
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=96, format='png')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='of each measurement; the median counts')
    parser.add_argument('--threads', type=int, default=1, help='of PyTorch')
    parser.add_argument('--only', nargs='+', choices=VARIANTS, metavar='NAME', help='these networks alone; nothing is written')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder for the results')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = run(arguments.only or VARIANTS, arguments.rounds)
    print(table(result))
    if not arguments.only:
        write_json(arguments.out / 'sr_speed.json', result)
        with whole_file(arguments.out / 'sr_speed.txt') as temporary:
            temporary.write_text(table(result) + '\n')
        with whole_file(arguments.out / 'sr_speed.png') as temporary:
            draw(result, temporary)


if __name__ == '__main__':
    try:
        main()
    except InterflowError as fault:
        sys.exit(str(fault))
