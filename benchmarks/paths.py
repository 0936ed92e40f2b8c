"""What each path makes of real latents, at factors that the flow never saw, against the camera.

    python benchmarks/paths.py [--model FOLDER] [--out DIR] [--scenes N]

Defaults: data/weights/flow; benchmarks; all. Judges a trained flow, the shipped one by default, on
the test photographs, of which it saw none; some minutes on two cores.
The truth is independent shots of each scene, each with registration residuals and noise of its own,
since the HR image tells neither. Draw number k of a path starts from shot number k at the trained
factors and draws noise of its own. The condition is the HR shot. What a flow decodes is brought
into the band of its factor, as generation does. All images have 8 bits. What repeats from draw to
draw is the mean image; what does not is the noise.
Results: paths.json, paths.txt and paths.png in --out, by default beside this file.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import torch

from interflow.band import to_band
from interflow.camera import shoot
from interflow.checkpoints import load_model
from interflow.core import (
    data_folder,
    make_generator,
    photographs,
    progress,
    read_image,
    read_json,
    to_pixels,
    to_tensor,
    whole_file,
    write_json,
)
from interflow.demo import DemoConfig
from interflow.generation import blend_pixels
from interflow.judging import central_view
from interflow.metrics import luma, mtf50, noise_by_brightness, noise_spectrum, transfer
from interflow.paths import NEEDS, PATHS, bridge, correlation, preserving_weights, source, travel

CONFIG = DemoConfig()
# independent shots of the truth and draws of each path; shots without noise whose mean is the true
# mean image
SHOTS, MEAN_OF = 4, 8


def independent(prior, z, factor, generator):
    "Path preserving, told that the two latents have nothing in common: r = 0."
    _, a = prior.locate(factor)
    low, high = min(z), max(z)
    mixed = bridge(
        prior,
        z[low],
        z[high],
        0,
        torch.tensor(a),
        lambda a, r: preserving_weights(a, torch.zeros_like(r)),
    )
    return travel(prior, 'transport', {low: mixed}, factor)


def transported(prior, z, factor, generator, known=None):
    "Path transport from the LR image at the factor `known`, by default the nearest."
    known = known or source(z, factor)
    return travel(prior, 'transport', {known: z[known]}, factor)


def by_path(path, prior, z, factor, generator, **settings):
    return travel(prior, path, z, factor, generator=generator, **settings)


def ways_between(low, high):
    """What is judged, for a flow trained from `low` to `high`: name -> normalised latent of (prior,
    known latents, normalised, factor, generator).
    """
    return {
        **{path: partial(by_path, path) for path in NEEDS if NEEDS[path] != 1},
        'transport, nearest': transported,
        f'transport of x{low:g}': partial(transported, known=low),
        f'transport of x{high:g}': partial(transported, known=high),
        'sample at half temperature': partial(by_path, 'sample', temperature=0.5),
        'preserving, r = 0': independent,
    }


FITTED = 'renewing, share fitted'      # on the val photographs, see `fit_share`
SHIPPED = data_folder() / 'weights' / 'flow'
LOW, *_, HIGH = read_json(SHIPPED / 'config.json')['factors']
ROWS = ('true', 'pixels', *ways_between(LOW, HIGH), FITTED)      # of the shipped flow's table
# of these ways, this one is drawn
FIGURE = {'renewing': FITTED, 'transport': 'transport, nearest'}
DRAWN = {'true': '#000000', **{FIGURE.get(name, name): path.colour for name, path in PATHS.items()}}


def central(image):
    "The central quarter of an image (..., H, W), sides multiples of 4: enough for statistics."
    return central_view(*image.shape[-2:], border=0).cut(image)


def photograph(path, trained):
    """The central quarter of a scene: `(photo, HR shot, shots, truths)`; shots factor -> (SHOTS, 3,
    H, W), truths factor -> MEAN_OF of them without noise.
    """
    photo = read_image(path)
    def shoot_all(factor, numbers, **keywords):
        return torch.stack(
            [
                central(
                    shoot(photo, factor, CONFIG.camera, CONFIG.seed, path.stem, shot=k, **keywords)
                )
                for k in numbers
            ]
        )

    shots = {
        factor: shoot_all(factor, range(SHOTS)) for factor in sorted({*trained, *CONFIG.judged})
    }
    others = range(SHOTS, SHOTS + MEAN_OF)
    return (
        central(photo),
        shoot_all(1.0, [0])[0],
        shots,
        {factor: shoot_all(factor, others, noise=False) for factor in CONFIG.judged},
    )


def judge(made, truths, photo):
    """All measures of `made` (SHOTS, 3, H, W), draws of one scene by one path, against `truths`
    (MEAN_OF, 3, H, W).
    """
    made = torch.stack([to_tensor(to_pixels(image)) for image in made])
    mean, truth = made.mean(0), truths.mean(0)
    # the noise that is left in both means is no error
    left = made.var(0).mean() / SHOTS + truths.var(0).mean() / MEAN_OF
    bias = (mean - truth).square().mean() - left
    noise = [truth + (image - mean) * math.sqrt(SHOTS / (SHOTS - 1)) for image in made]
    return {
        'mean_psnr': -10 * bias.clamp_min(1e-7).log10().item(),
        'noise': 255 * luma(made).var(0).mean().sqrt().item(),
        'mtf50': mtf50(mean, photo),
        'spectrum': torch.stack([noise_spectrum(one, truth)[1] for one in noise]).mean(0),
        'brightness': torch.stack([noise_by_brightness(one, truth)[1] for one in noise]).mean(0),
        'transfer': transfer(mean, photo)[1],
    }


def judge_scene(model, path, ways):
    """`(measures, correlations)` of one test scene: {(factor, way): measures}, and what repeats in
    its whitened latents.
    """
    prior, measures, (low, *_, high) = model.prior, {}, model.prior.factors
    photo, hr, shots, truths = photograph(path, (low, high))
    cond = model.condition(hr[None])
    latents = {
        factor: torch.cat([model.encode(shot[None], cond)[0] for shot in shots[factor]])
        for factor in (low, high)
    }
    latents = {factor: model.normalise(z, cond, factor) for factor, z in latents.items()}
    for factor, truth in truths.items():
        images = {
            'true': shots[factor],
            'pixels': blend_pixels({known: shots[known] for known in (low, high)}, factor),
        }
        for name, way in ways.items():
            generator = make_generator(CONFIG.seed, 'paths', path.stem, factor, name)
            z = model.restore(way(prior, latents, factor, generator), cond, factor)
            images[name] = torch.cat(
                [to_band(model.decode(one[None], cond), factor, None) for one in z]
            )
        measures.update(
            {(factor, name): judge(made, truth, photo) for name, made in images.items()}
        )
    u1, u2 = (
        prior.whiten(transported(prior, {known: z}, low, None), low) for known, z in latents.items()
    )
    return measures, {
        f'x{low:g} and x{high:g}': correlation(u1, u2).mean().item(),
        f'x{low:g} and x{low:g} again': correlation(u1[1:], u1[:-1]).mean().item(),
    }


def fit_share(model, paths):
    """The share of noise under which path renewing has the true amount on the val photographs: the
    variance of the noise grows with it in a straight line.
    """
    shares = []
    for path in progress(paths, description='fit the share', unit='scene'):
        measures, _ = judge_scene(
            model,
            path,
            {str(share): partial(by_path, 'renewing', share=share) for share in (0.0, 1.0)},
        )
        for factor in CONFIG.judged:
            without, full, true = (
                measures[factor, name]['noise'] ** 2 for name in ('0.0', '1.0', 'true')
            )
            shares.append((true - without) / (full - without))
    return min(max(round(sum(shares) / len(shares), 3), 0.), 1.)


def compare(measures, factor, name):
    "Measures of one scene, relative to the truth's."
    mine, true = measures[factor, name], measures[factor, 'true']
    off = (mine['brightness'] / true['brightness']).log()
    return {
        'mean_psnr': mine['mean_psnr'],
        'noise': mine['noise'],
        'noise_ratio': mine['noise'] / true['noise'],
        'spectrum_db': 10 * (mine['spectrum'] / true['spectrum']).log10().abs().mean().item(),
        'brightness_off': off[off.isfinite()].abs().mean().item(),
        'mtf_error': (mine['transfer'] - true['transfer']).abs().mean().item(),
        'mtf50': mine['mtf50'],
    }


def summarise(scenes):
    "Means over the scenes, a dict for each factor and way; the noise ratio of each scene too."
    rows = []
    for factor in CONFIG.judged:
        for name in dict.fromkeys(name for _, name in scenes[0]):
            values = [compare(measures, factor, name) for measures in scenes]
            means = {
                key: round(sum(value[key] for value in values) / len(values), 4)
                for key in values[0]
            }
            rows.append(
                {
                    'factor': factor,
                    'path': name,
                    **means,
                    'scenes': [round(value['noise_ratio'], 3) for value in values],
                }
            )
    return rows


def verdicts(rows):
    """The two goals, for each way: noise within 5 % at every factor; mean image at most 0.3 dB
    below linear's.
    """
    of = {(row['factor'], row['path']): row for row in rows}
    return {
        name: {
            'noise within 5 %': all(
                abs(of[f, name]['noise_ratio'] - 1) <= 0.05 for f in CONFIG.judged
            ),
            'mean image within 0.3 dB': all(
                of[f, name]['mean_psnr'] >= of[f, 'linear']['mean_psnr'] - 0.3
                for f in CONFIG.judged
            ),
        }
        for name in names(rows)[2:]
    }


def names(rows):
    "The ways in the rows, in their order."
    return list(dict.fromkeys(row['path'] for row in rows))


def table(results):
    "The results as text."
    lines = [
        'path                        factor  mean image  noise   spectrum  over brightness  '
        'MTF     MTF50',
        '                                    dB          /true   dB off    off              '
        'off     c/pixel',
    ]
    for name in names(results['rows']):
        for row in results['rows']:
            if row['path'] == name:
                psnr = 'truth ' if name == 'true' else f'{row["mean_psnr"]:.2f} '
                lines.append(
                    f'{name:28}x{row["factor"]:<7g}{psnr:12}'
                    f'{row["noise_ratio"]:<8.3f}{row["spectrum_db"]:<10.2f}'
                    f'{row["brightness_off"]:<17.3f}{row["mtf_error"]:<8.4f}{row["mtf50"]:.4f}'
                )
    lines += [
        '',
        'share of noise in the whitened latents, fitted on the val photographs: '
        f'{results["share"]:g}',
        'correlation of whitened latents, mean over scenes: '
        + ', '.join(f'{name} {r:.2f}' for name, r in results['correlation'].items()),
    ]
    return '\n'.join(lines) + '\n'


def draw(results, path):
    """Mean image and noise over the factor; noise over frequency and over brightness at the middle
    factor.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.3), layout='constrained')
    for name, colour in DRAWN.items():
        mine = [row for row in results['rows'] if row['path'] == name]
        style = {
            'color': colour,
            'marker': 'o',
            'ms': 4,
            'ls': ':' if name in ('linear', 'slerp') else '-',
            'label': name,
        }
        axes[0].plot(CONFIG.judged, [row['noise_ratio'] for row in mine], **style)
        if name != 'true':
            axes[1].plot(CONFIG.judged, [row['mean_psnr'] for row in mine], **style)
        axes[2].plot(*results['curves'][name]['spectrum'], **{**style, 'marker': None})
        axes[3].plot(*results['curves'][name]['brightness'], **style)
    middle = f'x{CONFIG.judged[1]:g}'
    axes[0].axhspan(.95, 1.05, color='.9')
    axes[0].set(title='noise', xlabel='factor', ylabel='standard deviation / true')
    axes[1].set(title='mean image', xlabel='factor', ylabel='PSNR to the noise-free truth, dB')
    axes[2].set(
        title=f'noise spectrum, {middle}',
        xlabel='cycles/pixel',
        ylabel='power, grey levels squared',
        yscale='log',
    )
    axes[3].set(
        title=f'noise over brightness, {middle}',
        xlabel='brightness, grey levels',
        ylabel='standard deviation, grey levels',
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=80, format='png')


def curves(scenes):
    """Mean curves over the scenes at the middle factor: way -> {'spectrum': (frequency, power),
    'brightness': (level, std)}.
    """
    def mean(name, kind):
        return [
            round(v, 5)
            for v in torch.stack([measures[CONFIG.judged[1], name][kind] for measures in scenes])
            .nanmean(0)
            .tolist()
        ]

    # the rings and steps of room `metrics`
    frequency, level = ((torch.arange(n) + .5) / n for n in (32, 8))
    return {
        name: {
            'spectrum': [(frequency / 2).tolist(), mean(name, 'spectrum')],
            'brightness': [(level * 255).tolist(), mean(name, 'brightness')],
        }
        for _, name in scenes[0]
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', type=Path, default=SHIPPED, help='folder of a trained flow')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent)
    parser.add_argument(
        '--scenes', type=int, help='so many photographs of each split, for a quick look'
    )
    given = parser.parse_args()
    model, val, test = (
        load_model(given.model),
        *(photographs(split)[: given.scenes] for split in ('val', 'test')),
    )
    with torch.inference_mode():
        share, (low, *_, high) = fit_share(model, val), model.prior.factors
        ways = {**ways_between(low, high), FITTED: partial(by_path, 'renewing', share=share)}
        judged = [
            judge_scene(model, path, ways)
            for path in progress(test, description='judge', unit='scene')
        ]
    scenes, found = zip(*judged)
    rows = summarise(scenes)
    results = {
        'takes': SHOTS,
        'share': share,
        'trained': model.prior.factors,
        'scenes': [path.stem for path in test],
        'span': model.prior.span(),
        'rows': rows,
        'goals': verdicts(rows),
        'correlation': {
            name: round(sum(one[name] for one in found) / len(found), 3) for name in found[0]
        },
        'curves': curves(scenes),
    }
    write_json(given.out / 'paths.json', results)
    with whole_file(given.out / 'paths.txt') as temporary:
        temporary.write_text(table(results), encoding='utf-8')
    draw(results, given.out / 'paths.png')
    print(table(results), results['goals'], sep='\n')


if __name__ == '__main__':
    main()
