"""How exactly are two shots of one scene registered? Against the known truth of the simulated camera.

    python benchmarks/registration.py [--out DIR] [--seeds 2]        (default: benchmarks, beside this file)

Each test and val photograph is shot twice: at the long focal length, and by a hand that turned, moved and tilted, with a lens of 1 %, at x2, x3 and x3.75.
Then the same with another exposure, more noise, another lens, or something that moved. The error of a pixel is how far its place was found from its true
place, in HR pixels. Told are the mean and the 95th percentile over the region that is kept. The truth itself scores 0, which is asserted.
Results: registration.csv, registration.txt.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from interflow.core import InterflowError, photographs, progress, read_image, whole_file, write_csv
from interflow.registration import register_pair
from interflow.registration.truth import Move, error_of, shoot_pair

FACTORS = (2., 3., 3.75)
HAND = Move(turn=1.3, shift=(6.3, -4.2), tilt=(.012, -.008), radial=.01)
WAYS = {'hand and lens': HAND, 'lens of -1 %': replace(HAND, radial=-.01),
        'a fifth darker': replace(HAND, exposure=.8), 'a fifth brighter': replace(HAND, exposure=1.2),
        'ISO 25600': replace(HAND, iso=25600.), 'something moved': HAND,
        'three colours in each pixel': replace(HAND, bayer=False)}


def with_something_moved(photo):
    "A part of 90 x 60 pixels, 3 % of the HR shot, shows another place of the scene."
    moving = photo.clone()
    moving[:, 200:290, 300:360] = photo[:, 300:390, 500:560]
    return moving


def measure(photo, factor, way, seed):
    "(mean, 95th percentile) of one pair; None where it is refused, and the reason."
    hr, lr, truth = shoot_pair(photo, factor, WAYS[way], seed)
    if way == 'something moved':
        lr = shoot_pair(with_something_moved(photo), factor, WAYS[way], seed)[1]
    try:
        found = register_pair(hr, lr)
    except InterflowError as fault:
        return None, None, str(fault)
    assert error_of(truth, truth, factor, found.crop) == (0, 0)
    return *error_of(found.warp, truth, factor, found.crop), ''


def table(rows):
    "One line for each way and factor; then one for each photograph."
    lines = ['HR pixels; mean over photographs and seeds, and the worst of them', '',
             f'{"":28}{"factor":>7}{"pairs":>7}{"refused":>9}{"mean":>8}{"worst":>8}{"95 %":>8}{"worst":>8}']
    for way in WAYS:
        for factor in FACTORS:
            here = [row for row in rows if row['way'] == way and row['factor'] == factor]
            kept = np.array([[row['mean'], row['p95']] for row in here if not row['refused']])
            lines.append(f'{way:28}{factor:7g}{len(here):7}{len(here) - len(kept):9}'
                         + ''.join(f'{kept[:, i].mean():8.3f}{kept[:, i].max():8.3f}' for i in (0, 1)))
    lines += ['', 'hand and lens, mean error by photograph', f'{"":16}' + ''.join(f'{f"x{factor:g}":>8}' for factor in FACTORS)]
    for name in dict.fromkeys(row['photograph'] for row in rows):
        line = ''
        for factor in FACTORS:
            kept = [row['mean'] for row in rows if row['photograph'] == name and row['factor'] == factor
                    and row['way'] == 'hand and lens' and not row['refused']]
            line += f'{np.mean(kept):8.3f}' if kept else f'{"refused":>8}'
        lines.append(f'{name:16}{line}')
    refused = {(row['photograph'], row['refused']) for row in rows if row['refused']}
    return '\n'.join([*lines, *(f'refused: {name}: {reason}' for name, reason in sorted(refused))]) + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parent)
    parser.add_argument('--seeds', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for path in progress([*photographs('test'), *photographs('val')], description='register', unit='photograph'):
        photo = read_image(path)
        for way in WAYS:
            for factor in FACTORS:
                for seed in range(args.seeds):
                    mean, most, refused = measure(photo, factor, way, seed)
                    rows.append(dict(photograph=path.stem, way=way, factor=factor, seed=seed, mean=mean, p95=most, refused=refused))
    write_csv(args.out / 'registration.csv', rows)
    with whole_file(args.out / 'registration.txt') as temporary:
        temporary.write_text(table(rows))
    print(table(rows))


if __name__ == '__main__':
    main()
