"""On real photographs: does generated data help where few pairs were photographed?

    python benchmarks/city100.py FOLDER [--out DIR] [--work DIR] [--quick] [--plan]
        [--cameras NikonD5500] [--networks rcan,swinir] [--steps 1000,2000,3000] [--pairs 1,3,6,40]
        [--seeds 0,1,2] [--rows pairs,pairs+sample,...] [--threads 1]

FOLDER holds NikonD5500/{train,test}/{HR,x2.9} and iPhoneX/{train,test}/{HR,x2.45}, or is a clone of
https://github.com/ngchc/CameraSR (City100; Chen et al., *Camera Lens Super-Resolution*, CVPR 2019; MIT
licence). Of a clone, scenes 001 to 080 are for training, 081 to 100 for testing; the central 480x360
pixels of each are used (`--crop 0`: whole images).

A few real pairs; for the HR photographs of the other training scenes, LR images are made in one of these ways:

    bicubic       reduced and enlarged
    bsrgan        the random degradation of BSRGAN        \\ benchmarks/degradations.py
    realesrgan    the random degradation of Real-ESRGAN   /
    kernel        25x25 least squares on the pairs, and noise like its residuals
    sample        draws of a flow that was trained on the pairs
    tuned         draws of the shipped flow, fine-tuned on the pairs

The rows: `pairs`, the real pairs alone; `pairs+NAME`, both, each half of the samples of a batch; `NAME-alone`, generated
images alone; `oracle`, all real pairs of the training scenes. A network that learned from the Nikon (x2.9) is
tested on the iPhone (x2.45) too. The seed chooses the pairs, the weights at the start and the crops.

Everything goes on where it was: flows, images and networks lie in the work folder, by default runs/city100.
Results in --out, by default beside this file, renewed after every number of pairs: city100.json, city100.txt with every
row, and city100_grid.txt, a line for each network, number of steps and number of pairs.
"""
import argparse
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from degradations import RANDOM, fit_kernel

from interflow.checkpoints import fingerprint, load_model
from interflow.core import (
    InterflowError,
    data_folder,
    make_generator,
    pick_device,
    progress,
    read_image,
    read_json,
    whole_file,
    write_image,
    write_json,
)
from interflow.data import Scene, begin_folder, factor_folder, read_set
from interflow.data.published import CITY100
from interflow.generation import generate_scene
from interflow.losses import LossWeights, interflow_loss
from interflow.model import InterFlow, InterFlowConfig
from interflow.sr.evaluation import BASELINE, evaluate, read_pair, summarise, super_resolve
from interflow.sr.networks import VARIANTS, arbitrary, build, network_config
from interflow.sr.training import SR_PRESETS, Source, l1_loss, train_sr
from interflow.training import PRESETS, plain, train_flow

CAMERAS = CITY100                                   # name -> true factor
ABROAD = {'NikonD5500': 'iPhoneX'}                  # where its networks are tested too
MADE = (*RANDOM, 'kernel', 'sample', 'tuned')       # ways to LR images of HR photographs
FITTED = ('kernel', 'sample', 'tuned')              # those that learn from the pairs
ROWS = ('pairs', *(f'pairs+{name}' for name in MADE), *(f'{name}-alone' for name in MADE), 'oracle')
ITSELF = 'LR image'                                 # the row without any network
NETWORKS = tuple(name for name in VARIANTS if not arbitrary(name))
SHIPPED = data_folder() / 'weights' / 'flow'


@dataclass(frozen=True)
class Settings:
    "What decides the numbers, but for which of them are asked for."
    crop: tuple = (360, 480)      # of each photograph of a clone, its centre; () for whole images
    train: int = 0                # scenes of each camera to train on, 0 for all
    test: int = 0                 # scenes of each camera to test on, 0 for all
    draws: int = 4                # LR images of each HR photograph, where they are random
    flow_steps: int = 3000        # of a flow that starts anew
    tune_steps: int = 1000        # of the shipped one
    tune_rate: float = 3e-4       # its learning rate
    flow_patch: int = 48
    sr_patch: int = 64


QUICK = Settings(train=4, test=2, draws=2, flow_steps=6, tune_steps=3)


class Camera(NamedTuple):
    "The scenes of a camera, at its one factor."
    name: str
    factor: float
    train: list
    test: list


class Job(NamedTuple):
    "One training of an SR network."
    network: str
    steps: int
    pairs: int      # how many real ones
    seed: int
    row: str

    @property
    def folder(self) -> str:
        "Where it lies in the camera's work folder."
        return f'sr/{self.network}-{self.steps}/{self.row}-{self.pairs}-s{self.seed}'

    @property
    def way(self) -> str:
        "The way of `MADE` to its generated images, '' where it has none."
        return self.row.removeprefix('pairs').removeprefix('+').removesuffix('-alone')


# ---------------------------------------------------------------- the photographs

def _crop(path, size, target):
    "The centre of an image as the file `target`, or the image itself where there is no `size`."
    if not size:
        return path
    if not target.exists():
        image = read_image(path)
        top, left = ((have - want) // 2 for have, want in zip(image.shape[1:], size))
        write_image(target, image[:, top:top + size[0], left:left + size[1]])
    return target


def _cropped(scene, folder, size):
    "A scene with the centres of its images, written below `folder`."
    (factor, lr), = scene.lr.items()
    file = f'{scene.name}.png'
    return replace(scene, hr=_crop(scene.hr, size, folder / 'HR' / file),
                   lr={factor: _crop(lr, size, folder / factor_folder(factor) / file)})


def read_camera(folder: Path, name: str, work: Path, settings: Settings) -> Camera:
    "The scenes of one camera of City100, parts of it or a clone; `InterflowError` for anything else."
    places = (folder / 'City100' / f'City100_{name}', folder / f'City100_{name}', folder / name)
    place = next((place for place in places if place.is_dir()), places[-1])
    train, test = ([scene for scene in read_set(place, part, lambda line: None) if scene.split == part] for part in ('train', 'test'))
    if not train or not test:
        raise InterflowError(f'{folder}: no scenes of {name} to train or to test on; give City100 or a clone of CameraSR')
    if place.name != name:      # a clone
        train, test = ([_cropped(scene, work / 'photographs' / name, settings.crop) for scene in scenes] for scenes in (train, test))
    return Camera(name, CAMERAS[name], train[:settings.train or None], test[:settings.test or None])


def choose_pairs(camera: Camera, count: int, seed: int) -> tuple[list, list]:
    "`(pairs, others)`: the training scenes whose LR image is known, and those with HR alone. More pairs hold the fewer."
    order = torch.randperm(len(camera.train), generator=make_generator(seed, 'pairs', camera.name)).tolist()
    return [camera.train[i] for i in order[:count]], [camera.train[i] for i in order[count:]]


# ---------------------------------------------------------------- flows

def at_factor(model: InterFlow, factor: float) -> InterFlow:
    """A flow that knows `factor` alone: what `model` is there.

    The Gaussian is the point of the geodesic; the scene's moments are mixed before their last, linear layer, which is
    exact for the mean. `InterflowError` for a factor outside the trained range.
    """
    i, a = model.prior.locate(factor)
    both = [i, min(i + 1, len(model.config.factors) - 1)]
    single = InterFlow(replace(model.config, factors=(factor,)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    mean, root = (value.detach()[None].clone() for value in model.prior.gaussian(factor))
    state |= {'prior.means': mean, 'prior.roots': root}
    for name in ('moments.last.weight', 'moments.last.bias'):
        if name in state:
            parts = state[name].unflatten(0, (len(model.config.factors), -1))
            state[name] = torch.lerp(parts[both[0]], parts[both[1]], a)
    single.load_state_dict(state)
    return single.eval()


def flow_setup(name: str, factor: float, seed: int, settings: Settings):
    """`(init, config, training)` of the flow `name`, 'sample' or 'tuned', for one factor.

    One factor and not (1, factor): the LR image at factor 1 is HR itself, a density without width, which a flow would
    spend itself on. With one factor the consistency term mixes an image with itself and the bottleneck has nothing to
    tell apart: both have no gradient, and weigh nothing here.
    """
    init = at_factor(load_model(SHIPPED), factor) if name == 'tuned' else None
    config = init.config if init else InterFlowConfig.tiny((factor,))
    training = replace(PRESETS['tiny'], steps=settings.flow_steps, patch=settings.flow_patch, seed=seed, save_every=250)
    if name == 'tuned':
        training = replace(training, steps=settings.tune_steps, learning_rate=settings.tune_rate)
    return init, config, training


FLOW_LOSS = replace(LossWeights.tiny(), consistency=0., bottleneck=0.)


def flow_on(name: str, camera: Camera, pairs: list, seed: int, work: Path, settings: Settings, device: str) -> InterFlow:
    "The flow of the row `name`, trained on the pairs, or loaded where that was done."
    folder = work / 'flows' / f'{name}-{len(pairs)}-s{seed}'
    init, config, training = flow_setup(name, camera.factor, seed, settings)
    told = {'pairs': [scene.name for scene in pairs], 'init': init and fingerprint(init), 'loss': asdict(FLOW_LOSS),
            'model': asdict(config), 'training': asdict(training)}
    begin_folder(folder, plain(told), 'city100.json')
    if not (folder / 'run' / 'model').exists():
        train_flow(pairs, folder / 'run', config, training, FLOW_LOSS, device, init=init)
    return load_model(folder / 'run' / 'model').to(pick_device(device))


# ---------------------------------------------------------------- made images

def _sampler(model):
    "Draws of a flow as a degradation."
    def degrade(hr, factor, generator):
        return next(generate_scene(model, hr, {}, (factor,), 'sample', [generator])).cpu()
    return degrade


def degradation(name: str, camera: Camera, pairs: list, seed: int, work: Path, settings: Settings, device: str):
    "The function (hr, factor, generator) -> lr of the row `name`."
    if name in RANDOM:
        return RANDOM[name]
    if name == 'kernel':
        return fit_kernel([read_pair(scene, camera.factor) for scene in pairs], make_generator(seed, 'kernel'))
    return _sampler(flow_on(name, camera, pairs, seed, work, settings, device))


def images_folder(name: str, pairs: int, seed: int) -> str:
    "Where the LR images of a way lie in the camera's work folder."
    return f'made/{name}-{pairs}-s{seed}' if name in FITTED else f'made/{name}'


def make_images(name: str, camera: Camera, count: int, seed: int, work: Path, settings: Settings, device: str) -> list:
    "LR images of the HR photographs without partner: a list of `Scene`, `draws` for each photograph where they are random."
    pairs, others = choose_pairs(camera, count, seed)
    folder, draws = work / images_folder(name, count, seed), 1 if name == 'bicubic' else settings.draws
    told = {'factor': camera.factor, 'draws': draws, 'crop': settings.crop}
    if name in FITTED:
        told['pairs'] = [scene.name for scene in pairs]
    if name in ('sample', 'tuned'):
        init, config, training = flow_setup(name, camera.factor, seed, settings)
        told['flow'] = {'init': init and fingerprint(init), 'model': asdict(config), 'training': asdict(training)}
    begin_folder(folder, plain(told), 'city100.json')
    names = [(scene, k, folder / f'{scene.name}-{k}.png') for scene in others for k in range(draws)]
    missing = [one for one in names if not one[2].exists()]
    if missing:
        degrade = degradation(name, camera, pairs, seed, work, settings, device)
        for scene, k, path in progress(missing, description=f'make {folder.name}', unit='image'):
            generator = make_generator(0, 'city100', camera.name, name, scene.name, k)
            write_image(path, degrade(read_image(scene.hr), camera.factor, generator))
    return [Scene(path.stem, scene.hr, {camera.factor: path}) for scene, _, path in names]


# ---------------------------------------------------------------- SR networks

def sources_of(job: Job, camera: Camera, work: Path, settings: Settings, device: str) -> list:
    "What a network of the row learns from: a list of `Source`."
    pairs, _ = choose_pairs(camera, job.pairs, job.seed)
    sources = [Source(pairs)] if job.row.startswith('pairs') else []
    if job.way:
        sources.append(Source(make_images(job.way, camera, job.pairs, job.seed, work, settings, device)))
    return sources


def sr_training(job: Job, settings: Settings):
    "The `TrainConfig` of a job."
    return replace(SR_PRESETS['tiny'], steps=job.steps, patch=settings.sr_patch, seed=job.seed)


def told_of(job: Job, camera: Camera, abroad: Camera | None, settings: Settings) -> dict:
    "All that decides the scores of a job."
    told = {**job._asdict(), 'settings': asdict(settings), 'train': [s.name for s in choose_pairs(camera, job.pairs, job.seed)[0]],
            'test': [[one.name, [scene.name for scene in one.test]] for one in (camera, abroad) if one]}
    if job.way == 'tuned':
        told['init'] = fingerprint(load_model(SHIPPED))
    return plain(told)


def run_job(job: Job, camera: Camera, abroad: Camera | None, work: Path, settings: Settings, device: str) -> list:
    "Train and test one network: rows of `evaluate`, each with the name of the camera that was tested. Done before: read."
    folder = work / job.folder
    begin_folder(folder, told_of(job, camera, abroad, settings), 'city100.json')
    if not (folder / 'scores.json').exists():
        net, _ = train_sr(sources_of(job, camera, work, settings, device), folder / 'run', network_config(job.network, 'tiny'),
                          sr_training(job, settings), device)
        scores = [{'camera': one.name, **row} for one in (camera, abroad) if one
                  for row in evaluate({job.row: net}, one.test, (one.factor,))]
        write_json(folder / 'scores.json', scores)
    return read_json(folder / 'scores.json')


def jobs_of(camera: Camera, given: argparse.Namespace) -> list[Job]:
    "All trainings that the options ask for, those that are needed first in front; a training that two rows share once."
    jobs, scenes = {}, len(camera.train)
    for network, steps, count, seed, row in product(given.networks, given.steps, given.pairs, given.seeds, given.rows):
        if count > scenes or (count == scenes and row not in ('pairs', 'oracle')):
            continue      # no such number of pairs, or no photograph left to make an LR image of
        jobs[Job(network, steps, scenes, seed, 'pairs') if row == 'oracle' else Job(network, steps, count, seed, row)] = None
    return list(jobs)


# ---------------------------------------------------------------- how long it takes

def seconds_of(call, times: int = 2) -> float:
    "Seconds of CPU of a call, the best of `times`, after one that does not count; what others compute does not count either."
    call()
    best = float('inf')
    for _ in range(times):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def _step(module, loss, batch):
    "A function that does what a training step does, but for Adam."
    def step():
        loss(module, batch, make_generator(0))[0].backward()
        module.zero_grad()
    return step


def probe(camera: Camera, networks: list, names: list, settings: Settings) -> dict:
    "Seconds on the CPU: a step and a tested image of each network, a step of each flow, an image of each way."
    hr, lr = read_pair(camera.test[0], camera.factor)
    costs, side = {}, settings.sr_patch
    for network in networks:
        net = build(network, 'tiny')
        batch = {key: torch.rand(SR_PRESETS['tiny'].batch_size, 3, side, side) for key in ('hr', 'lr')}
        costs[network] = {'step': seconds_of(_step(net, l1_loss, batch)), 'test': seconds_of(lambda net=net: super_resolve(net.eval(), lr), 1)}
    for name in names:
        if name in ('sample', 'tuned'):
            init, config, training = flow_setup(name, camera.factor, 0, settings)
            flow = (init or InterFlow(config, make_generator(0))).train()
            shape = (training.batch_size, 3, training.patch, training.patch)
            batch = {'hr': torch.rand(shape), 'lr': torch.rand(1, *shape)}
            loss = lambda model, batch, generator: interflow_loss(model, batch, generator, FLOW_LOSS)
            costs[name] = {'step': seconds_of(_step(flow, loss, batch)) * training.steps}
            make = _sampler(flow.eval())
        else:
            make = RANDOM.get(name, RANDOM['bicubic'])      # a kernel costs little
        costs.setdefault(name, {'step': 0.})['image'] = seconds_of(lambda make=make: make(hr, camera.factor, make_generator(0)), 1)
    return costs


class Todo(NamedTuple):
    "What a plan has still to do."
    jobs: list
    flows: list       # (name, pairs, seed)
    images: list      # (name, how many)
    costs: dict       # as `probe` gives them
    seconds: float


def plan(camera: Camera, jobs: list, work: Path, settings: Settings, tested: int) -> Todo:
    "What is left of `jobs`, and about how many seconds of CPU that takes; `tested` images for each network."
    left = [job for job in jobs if not (work / job.folder / 'scores.json').exists()]
    wanted = {(job.way, job.pairs, job.seed) for job in left if job.way}
    flows = sorted(one for one in wanted if one[0] in ('sample', 'tuned')
                   and not (work / 'flows' / '{}-{}-s{}'.format(*one) / 'run' / 'model').exists())
    paths = {name: {(images_folder(name, count, seed), scene.name) for kind, count, seed in wanted if kind == name
                    for scene in choose_pairs(camera, count, seed)[1]} for name in MADE}
    images = [(name, sum(not (work / folder / f'{scene}-{k}.png').exists() for folder, scene in places
                         for k in range(1 if name == 'bicubic' else settings.draws))) for name, places in paths.items() if places]
    costs = probe(camera, sorted({job.network for job in left}), [name for name, _ in images], settings) if left else {}
    seconds = sum(job.steps * costs[job.network]['step'] + tested * (costs[job.network]['test'] + .1) for job in left)
    seconds += sum(costs[name]['step'] for name, _, _ in flows) + sum(costs[name]['image'] * count for name, count in images)
    return Todo(left, flows, images, costs, seconds)


def describe(camera: Camera, todo: Todo, jobs: list) -> str:
    "The plan in words."
    images = ', '.join(f'{count} {name}' for name, count in todo.images) or 'none'
    costs = ', '.join(f'{name} {cost["step"] * 1e3:.0f} ms a step' if 'test' in cost
                      else f'{name} {cost["step"]:.0f} s a flow, {cost["image"]:.1f} s an image'
                      for name, cost in todo.costs.items() if 'test' in cost or cost['step'])
    hours, rest = divmod(round(todo.seconds), 3600)
    return (f'{camera.name} x{camera.factor:g}: {len(camera.train)} training scenes, {len(camera.test)} test scenes\n'
            f'  SR trainings   {len(todo.jobs)} of {len(jobs)} are to be done, {sum(job.steps for job in todo.jobs)} steps\n'
            f'  flows          {len(todo.flows)} are to be trained\n'
            f'  LR images      to be made: {images}\n'
            f'  measured       {costs or "nothing"}\n'
            f'  about {hours} h {rest // 60} min {rest % 60} s of CPU')


# ---------------------------------------------------------------- results

def mean_over_seeds(scores: list, network: str) -> list:
    "Rows of `evaluate` with the means over the seeds: `scores` a list of lists of rows, one for each seed."
    return [{'network': network, 'factor': same[0]['factor'], 'scene': same[0]['scene'],
             **{measure: sum(row[measure] for row in same) / len(same) for measure in ('psnr_y', 'ssim_y')}}
            for same in zip(*(sorted(rows, key=lambda row: row['scene']) for rows in scores), strict=True)]


def _of(scores, network, tested):
    return [row for row in scores if row['network'] == network and row['camera'] == tested]


def compare(row: str, mine: dict, rivals: dict, tested: str) -> dict:
    """One line of the table: means of a row and its paired difference to `pairs`, with 95 % intervals over the test scenes.

    `mine`, `rivals` dict of seed -> rows of `run_job`; the seeds that both have. `psnr_y_gain_of_seeds`: the difference for each.
    """
    name, seeds = BASELINE if row == ITSELF else 'pairs' if row == 'oracle' else row, sorted(mine.keys() & rivals.keys())
    own, others = ([_of(scores[seed], network, tested) for seed in seeds] for scores, network in ((mine, name), (rivals, 'pairs')))
    table = mean_over_seeds(others, 'pairs') + (mean_over_seeds(own, row) if row != 'pairs' else [])
    line = next(line for line in summarise(table, 'pairs') if line['network'] == row)
    def mean(rows):
        return sum(one['psnr_y'] for one in rows) / len(rows)
    return {**line, 'seeds': seeds, 'psnr_y_gain_of_seeds': [mean(a) - mean(b) for a, b in zip(own, others)]}


def collect(camera: Camera, scores: dict, rows: list, counts: list) -> list:
    "The lines of all that is done: `scores` dict of `Job` -> rows of `run_job`; `counts` of pairs."
    lines, whole = [], len(camera.train)
    groups = dict.fromkeys((job.network, job.steps, job.pairs) for job in scores if job.pairs in counts)
    for network, steps, count in groups:
        def of(row, count=count, network=network, steps=steps):
            return {job.seed: found for job, found in scores.items() if job[:3] == (network, steps, count) and job.row == row}
        rivals = of('pairs')
        for tested in dict.fromkeys(row['camera'] for found in rivals.values() for row in found):
            for row in (ITSELF, *rows):
                mine = rivals if row in (ITSELF, 'pairs') else of('pairs', whole) if row == 'oracle' else of(row)
                if mine.keys() & rivals.keys() and not (row == 'oracle' and count == whole):
                    lines.append({'trained': camera.name, 'tested': tested, 'network_kind': network, 'steps': steps, 'pairs': count,
                                  'row': row, **compare(row, mine, rivals, tested)})
    return lines


def _star(line, measure):
    "'*' where the interval of the difference does not hold 0."
    return '*' if line[f'{measure}_gain_low'] > 0 or line[f'{measure}_gain_high'] < 0 else ' '


def table(results: dict) -> str:
    "The results as text."
    head = f'{"":18}{"PSNR-Y":>8}{"SSIM-Y":>8}   {"difference to pairs, dB":26}{"of each seed":24}SSIM-Y'
    text, last = ['A star: the 95 % interval of the difference does not hold 0. Intervals are over the test scenes,',
                  'of means over the seeds; what the choice of pairs and the start change, the column of the seeds shows.'], None
    for line in results['lines']:
        group = tuple(line[key] for key in ('trained', 'tested', 'network_kind', 'steps', 'pairs'))
        if group != last:
            trained, tested, network, steps, count = last = group
            text += ['', f'{network}, {steps} steps, {count} real pair{"s" * (count > 1)} of {trained}, '
                         f'tested on {line["images"]} scenes of {tested} (x{line["factor"]:g})', head]
        star = {key: _star(line, key) for key in ('psnr_y', 'ssim_y')}
        gain = f'{line["psnr_y_gain"]:+.3f}{star["psnr_y"]} [{line["psnr_y_gain_low"]:+.3f}, {line["psnr_y_gain_high"]:+.3f}]'
        seeds = ' '.join(f'{value:+.2f}' for value in line['psnr_y_gain_of_seeds'])
        gains = f'{gain:26}{seeds:24}{line["ssim_y_gain"]:+.4f}{star["ssim_y"]}' if line['row'] != 'pairs' else ''
        text.append(f'{line["row"]:18}{line["psnr_y"]:8.2f}{line["ssim_y"]:8.4f}   {gains}'.rstrip())
    return '\n'.join(text) + '\n'


SHORT = ('pairs+kernel', 'pairs+tuned', 'oracle')       # the rows of the grid


def grid(results: dict) -> str:
    "The rows that decide, for every network, number of steps and number of pairs."
    text, last, cells = [], None, {}
    for line in results['lines']:
        cells.setdefault(tuple(line[key] for key in ('trained', 'tested', 'network_kind', 'steps', 'pairs')), {})[line['row']] = line
    for (trained, tested, *names), rows in sorted(cells.items(), key=lambda cell: (cell[0][1] != cell[0][0], cell[0])):
        if (trained, tested) != last:
            last = trained, tested
            text += ['', f'trained on {trained}, tested on {tested} (x{rows["pairs"]["factor"]:g}): PSNR-Y of the pairs alone, dB; differences to it',
                     f'{"":8}{"steps":>6}{"pairs":>7}{"alone":>8}' + ''.join(f'{row:>14}' for row in SHORT)]
        gains = [f'{rows[row]["psnr_y_gain"]:+.3f}{_star(rows[row], "psnr_y")}' if row in rows else '' for row in SHORT]
        text.append(f'{names[0]:8}{names[1]:6}{names[2]:7}{rows["pairs"]["psnr_y"]:8.2f}' + ''.join(f'{gain:>14}' for gain in gains))
    return '\n'.join(line.rstrip() for line in text[1:]) + '\n'


def write_results(out: Path, folder: Path, lines: list, settings: Settings, cameras: list) -> None:
    "city100.json, city100.txt and city100_grid.txt in `out`, each whole or not at all."
    described = [{'name': one.name, 'factor': one.factor, 'train': [scene.name for scene in one.train],
                  'test': [scene.name for scene in one.test]} for one in cameras]
    results = {'settings': {**asdict(settings), 'data': folder.name, 'shipped': fingerprint(load_model(SHIPPED)),
                            'sr': asdict(SR_PRESETS['tiny']), 'flow': asdict(PRESETS['tiny']), 'flow_loss': asdict(FLOW_LOSS)},
               'cameras': described, 'lines': lines}
    write_json(out / 'city100.json', plain(results))
    for name, form in (('city100', table), ('city100_grid', grid)):
        with whole_file(out / f'{name}.txt') as temporary:
            temporary.write_text(form(results), encoding='utf-8')


# ---------------------------------------------------------------- command line

def _list(kind):
    def parse(text):
        return [kind(part) for part in text.split(',') if part]
    return parse


def _one_of(names):
    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f'{text}: unknown; choose of {", ".join(names)}')
        return text
    return parse


def parse(arguments=None) -> argparse.Namespace:
    "The options; `pairs` is always among the rows, since all others are compared with it."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument('folder', type=Path)
    parser.add_argument('--out', type=Path, help='folder of the results: benchmarks; with --quick the work folder')
    parser.add_argument('--work', type=Path, help='folder of the runs: runs/city100, with --quick runs/city100-quick')
    parser.add_argument('--quick', action='store_true', help='a few steps of everything, to see that it runs; the numbers mean nothing')
    parser.add_argument('--plan', action='store_true', help='print the plan and end')
    parser.add_argument('--cameras', type=_list(_one_of(CAMERAS)), default=['NikonD5500'])
    parser.add_argument('--networks', type=_list(_one_of(NETWORKS)), help='rcan,swinir')
    parser.add_argument('--steps', type=_list(int), help='1000,2000,3000')
    parser.add_argument('--pairs', type=_list(int), help='1,3,6,40')
    parser.add_argument('--seeds', type=_list(int), help='0,1,2')
    parser.add_argument('--rows', type=_list(_one_of(ROWS)), default=list(ROWS), help=', '.join(ROWS))
    parser.add_argument('--draws', type=int, help='LR images of each HR photograph')
    parser.add_argument('--flow-steps', type=int, help='of a flow that starts anew; a third of them for the shipped one')
    parser.add_argument('--crop', type=int, choices=[0], help='0: whole images of a clone')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    given = parser.parse_args(arguments)
    usual = (['rcan'], [4], [1], [0]) if given.quick else (['rcan', 'swinir'], [1000, 2000, 3000], [1, 3, 6, 40], [0, 1, 2])
    for name, value in zip(('networks', 'steps', 'pairs', 'seeds'), usual):
        setattr(given, name, getattr(given, name) or value)
    given.work = given.work or here.parent / 'runs' / ('city100-quick' if given.quick else 'city100')
    given.out = given.out or (given.work if given.quick else here)
    given.rows = [row for row in ROWS if row == 'pairs' or row in given.rows]
    return given


def settings_of(given: argparse.Namespace) -> Settings:
    "The `Settings` that the options ask for."
    settings = QUICK if given.quick else Settings()
    if given.draws:
        settings = replace(settings, draws=given.draws)
    if given.flow_steps:
        settings = replace(settings, flow_steps=given.flow_steps, tune_steps=max(1, given.flow_steps // 3))
    return replace(settings, crop=()) if given.crop == 0 else settings


def main(arguments=None) -> None:
    "Plan, train, test, write."
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    settings, lines = settings_of(given), []
    names = dict.fromkeys([*given.cameras, *(ABROAD[name] for name in given.cameras if name in ABROAD)])
    cameras = {name: read_camera(given.folder, name, given.work, settings) for name in names}
    for name in given.cameras:
        camera, abroad, work = cameras[name], cameras.get(ABROAD.get(name)), given.work / name
        jobs, scores = jobs_of(camera, given), {}
        tested = len(camera.test) + (len(abroad.test) if abroad else 0)
        print(describe(camera, plan(camera, jobs, work, settings, tested), jobs), flush=True)
        if given.plan:
            continue
        for number, job in enumerate(jobs):
            print(f'{number + 1} of {len(jobs)}: {job.folder}', flush=True)
            scores[job] = run_job(job, camera, abroad, work, settings, given.device)
            if number + 1 == len(jobs) or job[:3] != jobs[number + 1][:3]:
                found = lines + collect(camera, scores, given.rows, given.pairs)
                write_results(given.out, given.folder, found, settings, list(cameras.values()))
        lines += collect(camera, scores, given.rows, given.pairs)
    if lines:
        print((given.out / 'city100.txt').read_text())


if __name__ == '__main__':
    main()
