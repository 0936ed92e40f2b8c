"""What each part of the flow is worth: one table, measured on scenes that no variant saw.

    python benchmarks/ablation.py [--work runs/ablation] [--out benchmarks] [--steps 1000] [--variants published,mean,...]

About five minutes for each variant on one quiet core; interrupted, the same command goes on. Every
variant learns from the simulated sets of train_weights.py, starts from nothing and has the same number of steps. The judge
compares five draws with five independent shots of the seven test photographs. Results: ablation.json, .txt in --out.
"""
import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from train_weights import FACTORS, sets

from interflow.checkpoints import load_model
from interflow.core import in_8_bits, make_generator, photographs, read_json, whole_file, write_json
from interflow.data import PairBatches, begin_folder, simulate
from interflow.generation import generate_scene
from interflow.judging import judge_model, open_studio
from interflow.losses import LossWeights, interflow_loss
from interflow.model import InterFlow, InterFlowConfig
from interflow.realism import luma_of
from interflow.rooms import best_time
from interflow.training import PRESETS, plain, train_flow

JUDGED = (2.1, 3., 3.75)
TINY = InterFlowConfig.tiny(FACTORS)
CENTRE, DRAWS = LossWeights(pixel=30.), LossWeights(crps=100.)


class Variant(NamedTuple):
    "A model, the weights of its loss, how many of the simulated sets it sees, and what it is in words."
    config: InterFlowConfig
    loss: LossWeights
    sets: int
    words: str


VARIANTS = {
    'published': Variant(replace(TINY, moments=0), CENTRE, 8, 'the published prior: one number per factor'),
    'mean': Variant(replace(TINY, moments=1), CENTRE, 8, 'a mean that knows the scene'),
    'mean and scale': Variant(TINY, CENTRE, 8, 'and a scale'),
    'draws': Variant(TINY, DRAWS, 8, 'and draws judged by the CRPS instead of the centre by L1'),
    'one set': Variant(TINY, DRAWS, 1, 'the same from one shot of each scene, at full size'),
    'wide encoder': Variant(replace(TINY, channels=64, growth=32, blocks=3, taps=(0, 2)), DRAWS, 8,
                            'the same with an encoder of three wider blocks'),
}


def folder_of(name: str, work: Path) -> Path:
    "Where a variant's run lies."
    return work / name.replace(' ', '_')


def train(name: str, scenes: list, work: Path, steps: int) -> Path:
    "The folder of a trained variant."
    variant, folder = VARIANTS[name], folder_of(name, work) / 'run'
    config = replace(PRESETS['tiny'], steps=steps, save_every=250)
    seen = scenes[:len(scenes) * variant.sets // 8]
    train_flow(seen, folder, variant.config, config, variant.loss, 'cpu')
    return folder / 'model'


def centre_error(model: InterFlow, files: list, factor: float, shots: int = 5) -> float:
    "Squared error of the decoded centre of the Gaussian against the mean of shots, over the variance between shots; luma."
    error, variance = 0., 0.
    for file in files:
        studio = open_studio(file, 'canon', 0)
        true = luma_of(studio.view.crop(studio.shots(factor, range(1, 1 + shots))).double())
        hr = studio.shots(1., range(1))[0]
        (made,) = generate_scene(model, hr, {}, (factor,), 'sample', [make_generator(0)], temperature=0.)
        made = luma_of(studio.view.crop(in_8_bits(made[None])).double())[0]
        between = true.var(0).mean()
        error += (made - true.mean(0)).square().mean() - between / shots      # the mean of few shots is noisy itself
        variance += between
    return (error / variance).item()


@torch.no_grad()
def bits(model: InterFlow, scenes: list) -> float:
    "True bits per dimension of unseen pairs at the trained factors, mean over 8 batches."
    batches = PairBatches(scenes, FACTORS, 48, 8, seed=1)
    found = [interflow_loss(model, batches(step), make_generator(step))[1]['bits_per_dim'] for step in range(8)]
    return (sum(found) / len(found)).item()


def step_cost(name: str, scenes: list) -> float:
    "Seconds of a training step's forward and backward pass, the best of five."
    variant = VARIANTS[name]
    torch.manual_seed(0)
    model = InterFlow(variant.config, make_generator(0)).train()
    batch = PairBatches(scenes, FACTORS, 48, 8)(0)
    return best_time(lambda: interflow_loss(model, batch, make_generator(0), variant.loss)[0].backward(), 5)


def measure(name: str, folder: Path, test: list) -> dict:
    "All numbers of a trained variant."
    model, files = load_model(folder), photographs('test')
    judged = judge_model(model, files, JUDGED)
    lines = [{**row, 'centre': centre_error(model, files, row['factor'])}
             for row in judged.summary if row['images'] == 'generated']
    perfect = [row for row in judged.summary if row['images'] == 'perfect']
    parameters = sum(p.numel() for p in model.parameters())
    return {'words': VARIANTS[name].words, 'bits': bits(model, test), 'parameters': parameters,
            'lines': lines, 'perfect': perfect}


COLUMNS = {'centre': ('centre error', '.2f'), 'ratio': ('variance', '.2f'), **{f'texture_{k}': (f'fifth {k}', '.2f') for k in range(1, 6)},
           'spectrum': ('spectrum, dB', '.2f'), 'sharpness': ('MTF50', '+.1%'), 'mean_psnr': ('mean, dB', '.1f'), 'accuracy': ('told apart', '.3f')}


def table(results: dict) -> str:
    "The results as text."
    head = f'{"":8}' + ''.join(f'{title:>14}' for title, _ in COLUMNS.values())
    text = [f'{results["steps"]} steps each, from nothing, seed 0; unseen scenes; fifths of the pixels by texture, the last has most.']
    for name, found in results['variants'].items():
        cost = found['step'] / results['variants'][next(iter(results['variants']))]['step']
        text += ['', f'{name}: {found["words"]}', f'  {found["parameters"]:,} parameters, {found["bits"]:.3f} bits per dimension, '
                     f'a step costs {cost:.2f} times the first variant\'s', head]
        text += [f'x{line["factor"]:<7g}' + ''.join(f'{format(line[key], how):>14}' for key, (_, how) in COLUMNS.items())
                 for line in found['lines']]
    text += ['', 'other shots (a perfect answer)', head]
    text += [f'x{line["factor"]:<7g}' + ''.join(f'{format(line[key], how) if key in line else "-":>14}' for key, (_, how) in COLUMNS.items())
             for line in found['perfect']]
    return '\n'.join(text) + '\n'


def run(name: str, scenes: list, test: list, work: Path, steps: int) -> dict:
    "Train and measure one variant, or read what was found."
    variant, folder = VARIANTS[name], folder_of(name, work)
    told = {'steps': steps, 'model': asdict(variant.config), 'loss': asdict(variant.loss), 'sets': variant.sets}
    begin_folder(folder, plain(told), 'ablation.json')
    if not (folder / 'found.json').exists():
        model = train(name, scenes, work, steps)
        write_json(folder / 'found.json', plain(measure(name, model, test)))
    return read_json(folder / 'found.json')


def main(arguments=None) -> None:
    "Train, measure, write."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, default=Path('runs/ablation'), help='folder for sets, checkpoints and models')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the results')
    parser.add_argument('--steps', type=int, default=1000, help='of each training')
    parser.add_argument('--variants', default=','.join(VARIANTS), help=', '.join(VARIANTS))
    parser.add_argument('--threads', type=int, default=1, help='of the CPU')
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    names = given.variants.split(',')
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f'{unknown[0]}: unknown; choose of {", ".join(VARIANTS)}')
    scenes = sets(given.work)
    test = simulate(photographs('test'), given.work / 'test', FACTORS, 'canon', 0)
    found = {name: run(name, scenes, test, given.work, given.steps) for name in names}
    for name in names:
        found[name]['step'] = step_cost(name, scenes)
    results = {'steps': given.steps, 'judged': JUDGED, 'variants': found}
    write_json(given.out / 'ablation.json', plain(results))
    with whole_file(given.out / 'ablation.txt') as temporary:
        temporary.write_text(table(results), encoding='utf-8')
    print(table(results))


if __name__ == '__main__':
    main()
