"""Which factor is this shot? The trained flow's estimate and its confidence against the simulated camera's truth.

    python benchmarks/factor.py [--model FOLDER] [--out DIR] [--scenes N]        (defaults: data/weights/flow; benchmarks; all)

Takes a trained flow, the shipped one by default, and shots at factors spread over its trained range; the condition is the HR shot. The temperature is
fitted on the val photographs and judged on the test photographs; the flow saw none of them. Results: factor.json, factor.txt and factor.png in --out, by
default beside this file.
"""
import argparse
from pathlib import Path

import torch
from paths import CONFIG, central

from interflow.camera import shoot
from interflow.checkpoints import load_model
from interflow.core import (
    data_folder,
    make_generator,
    photographs,
    progress,
    read_image,
    whole_file,
    write_json,
)
from interflow.latents import (
    factor_grid,
    fit_temperature,
    log_densities,
    log_posterior,
    summarise_posterior,
)
from interflow.losses import dequantise

COUNT = 9      # factors, spread evenly over the trained range
LEVELS = (.1, .2, .3, .4, .5, .6, .68, .8, .9, .95)
SHOWN = (1, 4, 7)      # numbers of the factors whose posteriors are in the figure, of the first test scene


def spread(prior):
    "COUNT factors over the trained range, rounded to hundredths inside."
    low, *_, high = prior.factors
    return [low, *(round(low + (high - low) * k / (COUNT - 1), 2) for k in range(1, COUNT - 1)), high]


def scene_densities(model, path, grid):
    "log densities (COUNT, G) of the central quarter of a scene, shot at each factor; and its number of latent positions."
    photo = read_image(path)
    shots = [central(shoot(photo, factor, CONFIG.camera, CONFIG.seed, path.stem)) for factor in (1., *spread(model.prior))]
    cond = model.condition(shots.pop(0)[None])
    dequantised = (dequantise(shot[None], make_generator(CONFIG.seed, 'bits', path.stem, k)) for k, shot in enumerate(shots))
    found = [log_densities(model.prior, model.encode(shot, cond)[0], grid, moments=cond.moments) for shot in dequantised]
    return torch.cat(found), cond.shape[-2] * cond.shape[-1]


def covered(log_probs, grid, temperature, truth):
    "The share of intervals that hold the truth, for each of LEVELS."
    found = [summarise_posterior(log_probs, grid, temperature, level) for level in LEVELS]
    return [round(((one.low - 1e-9 <= truth) & (truth <= one.high + 1e-9)).double().mean().item(), 3) for one in found]


def evaluate(val, test, grid, positions, factors):
    "All results of log densities (scenes, COUNT, G) of the val and the test scenes at `factors`."
    truth = {name: torch.tensor(factors, dtype=torch.float64).repeat(len(values)) for name, values in (('val', val), ('test', test))}
    flat = {'val': val.flatten(0, 1), 'test': test.flatten(0, 1)}
    temperature = fit_temperature(flat['val'], grid, truth['val'])
    found, wide = (summarise_posterior(flat['test'], grid, temperature, level) for level in (.68, .95))
    peak = grid[flat['test'].argmax(1)]
    rms = lambda error: round(error.square().mean().sqrt().item(), 3)
    rows = []
    for k, factor in enumerate(factors):
        mine, mine_wide = (tuple(values[k::len(factors)] for values in (one.factor, one.low, one.high)) for one in (found, wide))
        rows.append({'factor': factor, 'peak': round(peak[k::len(factors)].mean().item(), 3), 'estimate': round(mine[0].mean().item(), 3), 'rms': rms(mine[0] - factor),
                     'width68': round((mine[2] - mine[1]).mean().item(), 3), 'width95': round((mine_wide[2] - mine_wide[1]).mean().item(), 3),
                     'scenes': [[round(v.item(), 3) for v in values] for values in zip(*mine)], 'peaks': [round(v.item(), 3) for v in peak[k::len(factors)]]})
    curves = {name: [[round(v, 4) for v in one] for one in log_posterior(test[0, SHOWN], grid, t).exp().tolist()] for name, t in (('naive', 1), ('fitted', temperature))}
    return {'temperature': round(temperature, 1), 'positions': positions, 'observations': round(positions / temperature, 2), 'levels': LEVELS,
            'coverage': {f'{name}, {kind}': covered(flat[name], grid, t, truth[name]) for name in flat for kind, t in (('naive', 1), ('fitted', temperature))},
            'rms': {'estimate': rms(found.factor - truth['test']), 'peak': rms(peak - truth['test']), 'always the middle': rms(grid.mean() - truth['test'])},
            'rows': rows, 'curves': {'grid': [round(v, 4) for v in grid.tolist()], **curves}}


def table(results):
    "The results as text."
    lines = ['true    peak of the   estimate,  error,  width of the interval', 'factor  likelihood    mean       rms     68 %    95 %']
    lines += [f'x{row["factor"]:<7g}{row["peak"]:<14.2f}{row["estimate"]:<11.2f}{row["rms"]:<8.2f}{row["width68"]:<8.2f}{row["width95"]:.2f}' for row in results['rows']]
    lines += ['', f'temperature {results["temperature"]:g}: {results["positions"]} positions count as {results["observations"]:g} independent observations',
              'rms error in factors: ' + ', '.join(f'{name} {value:.2f}' for name, value in results['rms'].items())]
    for name, shares in results['coverage'].items():
        of = dict(zip(results['levels'], shares))
        lines.append(f'{name + ":":15} 68 % intervals hold the true factor in {of[.68]:.0%} of the shots, 95 % intervals in {of[.95]:.0%}')
    return '\n'.join(lines) + '\n'


def draw(results, path):
    "Posteriors of one scene, estimates against the truth, coverage against level."
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout='constrained')
    factors = [row['factor'] for row in results['rows']]
    for k, (number, colour) in enumerate(zip(SHOWN, ('#0072B2', '#D55E00', '#009E73'))):
        factor = factors[number]
        axes[0].plot(results['curves']['grid'], results['curves']['fitted'][k], color=colour, label=f'shot at x{factor:g}')
        axes[0].axvline(factor, color=colour, lw=.8, ls=':')
        peak = max(range(len(results['curves']['grid'])), key=results['curves']['naive'][k].__getitem__)
        axes[0].plot(results['curves']['grid'][peak], 0, '^', color=colour, clip_on=False, label='the naive posterior, narrower than this mark' if k == 0 else None)
    highest = max(map(max, results['curves']['fitted']))
    axes[0].set(title='posterior of one scene (dotted: true)', xlabel='factor', ylabel='density', ylim=(0, 1.2 * highest))
    axes[0].legend(fontsize=7)
    for row in results['rows']:
        for number, (estimate, low, high) in enumerate(row['scenes']):
            x = row['factor'] + .016 * (number - (len(row['scenes']) - 1) / 2)
            axes[1].errorbar(x, estimate, [[max(estimate - low, 0)], [max(high - estimate, 0)]], fmt='o', ms=3, lw=.8, color='#0072B2')
            axes[1].plot(x, row['peaks'][number], 'x', ms=3, color='#D55E00')
    axes[1].plot([], [], 'o', ms=3, color='#0072B2', label='estimate, 68 % interval')
    axes[1].plot([], [], 'x', ms=3, color='#D55E00', label='peak of the likelihood')
    axes[1].plot(*[[factors[0], factors[-1]]] * 2, color='.7', lw=.8, zorder=0)
    axes[1].set(title='test scenes', xlabel='true factor', ylabel='estimated', ylim=(factors[0] - .05, factors[-1] + .55))
    axes[1].legend(fontsize=7)
    for name, shares in results['coverage'].items():
        axes[2].plot(results['levels'], shares, 'o' + ('-' if 'fitted' in name else '--'), ms=3, color='#0072B2' if 'test' in name else '#E69F00', label=name)
    axes[2].plot([0, 1], [0, 1], color='.7', lw=.8, zorder=0)
    axes[2].set(title='coverage', xlabel='level of the interval', ylabel='share that holds the true factor')
    axes[2].legend(fontsize=7)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=80, format='png')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', type=Path, default=data_folder() / 'weights' / 'flow', help='folder of a trained flow')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent)
    parser.add_argument('--scenes', type=int, help='so many photographs of each split, for a quick look')
    given = parser.parse_args()
    model = load_model(given.model)
    grid, measured = factor_grid(model.prior), {}
    with torch.inference_mode():
        for split in ('val', 'test'):
            scenes = progress(photographs(split)[:given.scenes], description=split, unit='scene')
            measured[split], positions = zip(*[scene_densities(model, path, grid) for path in scenes])
    results = evaluate(*(torch.stack(measured[split]) for split in ('val', 'test')), grid, round(sum(positions) / len(positions)),
                       spread(model.prior))
    write_json(given.out / 'factor.json', results)
    with whole_file(given.out / 'factor.txt') as temporary:
        temporary.write_text(table(results), encoding='utf-8')
    draw(results, given.out / 'factor.png')
    print(table(results))


if __name__ == '__main__':
    main()
