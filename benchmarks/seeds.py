"""Are drawn images worth their place beside real pairs? The same small network, five times with other seeds.

    python benchmarks/seeds.py [FLOW] [--work runs/seeds] [--out benchmarks] [--seeds 0,1,2,3,4]

The tiny RCAN, 800 steps, on the embedded photographs: trained on what the simulated camera shows at x2.1 and x3.75, on
what FLOW (by default the shipped flow) draws at four factors between, on both, and on true images; tested at three factors on seven other
scenes. The seed chooses the network's start, its crops, and the draws. About ten minutes on one quiet core; interrupted, the same command
goes on. Results: seeds.json and seeds.txt in --out.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import torch

from interflow.checkpoints import fingerprint, load_model
from interflow.core import (
    data_folder,
    make_generator,
    photographs,
    read_json,
    whole_file,
    write_json,
)
from interflow.data import begin_folder, read_set, simulate
from interflow.metrics import bootstrap_interval
from interflow.sets import SetConfig, generate
from interflow.sr.evaluation import evaluate
from interflow.sr.networks import network_config
from interflow.sr.tables import FEWEST
from interflow.sr.training import SR_PRESETS, Source, train_sr
from interflow.training import plain

PAIRS = (2.1, 3.75)                     # of the rival: RealSR's first and last factor
GENERATED = (2.4, 2.8, 3.2, 3.6)
JUDGED = (2.5, 3., 3.5)
ROWS = {      # name: what the network learns from; the first is the rival
    'x2.1 and x3.75': 'pairs at two factors',
    'sample': 'draws of the flow at four factors, for the HR shots alone',
    'both': 'pairs, and draws: half of each batch each',
    'both, 1 to 3': 'pairs, and draws: three draws for a pair',
    'oracle': 'true images at the four factors',
    'oracle and pairs': 'true images at all six factors',
    'x3 oracle': 'true images at x3 alone',
}


def sources(row: str, scenes: list, drawn: list) -> list:
    "What a network of the row learns from: a list of `Source`."
    pairs, samples = Source(scenes, PAIRS), Source(drawn)
    return {'x2.1 and x3.75': [pairs], 'sample': [samples], 'both': [pairs, samples],
            'both, 1 to 3': [pairs, replace(samples, weight=3.)], 'oracle': [Source(scenes, GENERATED)],
            'oracle and pairs': [Source(scenes, (*PAIRS, *GENERATED))], 'x3 oracle': [Source(scenes, (3.,))]}[row]


def run(row: str, seed: int, scenes: list, drawn: list, test: list, flow: str, work: Path) -> list:
    "Train and test one network: rows of `evaluate`. `flow`: the fingerprint of what drew `drawn`. Done before: read."
    folder = work / 'sr' / f'{row.replace(" ", "_").replace(",", "")}-s{seed}'
    begin_folder(folder, {'row': row, 'seed': seed, 'flow': flow}, 'seeds.json')
    if not (folder / 'scores.json').exists():
        net, _ = train_sr(sources(row, scenes, drawn), folder / 'run', network_config('rcan', 'tiny'),
                          replace(SR_PRESETS['tiny'], seed=seed), 'cpu')
        write_json(folder / 'scores.json', [one for one in evaluate({row: net}, test, JUDGED) if one['network'] == row])
    return read_json(folder / 'scores.json')


def compare(row: str, scores: dict, seeds: list) -> list:
    """One line for each factor: the mean PSNR on Y and its paired difference to the rival.

    The interval is over the scenes, of means over the seeds; `of_seeds` are the differences of each seed.
    """
    rival, lines = next(iter(ROWS)), []
    for factor in JUDGED:
        def table(name, factor=factor):
            return torch.tensor([[one['psnr_y'] for one in scores[name, seed] if one['factor'] == factor] for seed in seeds])
        mine, gains = table(row), table(row) - table(rival)
        low, high = bootstrap_interval(gains.mean(0).tolist(), make_generator(0, 'seeds', row, factor))
        lines.append({'row': row, 'factor': factor, 'psnr_y': mine.mean().item(), 'gain': gains.mean().item(),
                      'low': low, 'high': high, 'images': gains.shape[1], 'of_seeds': gains.mean(1).tolist()})
    return lines


def format_lines(lines: list, seeds: list) -> str:
    "The results as text: a line for each row; the seeds one by one stand in the JSON file."
    rival = next(iter(ROWS))
    text = [f'{"trained on (difference to " + rival + ")":44}' + ''.join(f'x{factor:<19g}' for factor in JUDGED)]
    for row in ROWS:
        cells = []
        for line in (line for line in lines if line['row'] == row):
            decided = line['images'] >= FEWEST and (line['low'] > 0 or line['high'] < 0)
            star = '*' if decided else ''
            gain = '' if row == rival else f' ({line["gain"]:+.2f}{star})'
            cells.append(f'{line["psnr_y"]:.2f}{gain}')
        text.append((f'{row:44}' + ''.join(f'{cell:20}' for cell in cells)).rstrip())
    return '\n'.join(text) + '\n'


def main(arguments=None) -> None:
    "Simulate, draw, train, test, write."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('flow', type=Path, nargs='?', default=data_folder() / 'weights' / 'flow', help='folder of a trained flow')
    parser.add_argument('--work', type=Path, default=Path('runs/seeds'))
    parser.add_argument('--out', type=Path, default=Path(__file__).parent)
    parser.add_argument('--seeds', type=lambda text: [int(part) for part in text.split(',')], default=[0, 1, 2, 3, 4])
    parser.add_argument('--threads', type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    model = load_model(given.flow)
    trained = model.config.factors
    scenes = simulate(photographs('train'), given.work / 'train', tuple(sorted({*PAIRS, *GENERATED, 3., *trained})))
    test = simulate(photographs('test'), given.work / 'test', JUDGED)
    flow, scores = fingerprint(model), {}
    for seed in given.seeds:
        made = given.work / 'sample' / f's{seed}'
        generate(model, scenes, made, SetConfig(GENERATED, 'sample', seed), 'cpu')
        drawn = read_set(made)
        scores |= {(row, seed): run(row, seed, scenes, drawn, test, flow, given.work) for row in ROWS}
    lines = [line for row in ROWS for line in compare(row, scores, given.seeds)]
    settings = {'flow': flow, 'seeds': given.seeds, 'pairs': PAIRS, 'generated': GENERATED, 'judged': JUDGED}
    write_json(given.out / 'seeds.json', plain({'settings': settings, 'lines': lines}))
    with whole_file(given.out / 'seeds.txt') as temporary:
        temporary.write_text(format_lines(lines, given.seeds), encoding='utf-8')
    print(format_lines(lines, given.seeds))


if __name__ == '__main__':
    main()
