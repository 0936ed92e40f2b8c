"""The SR network, its training and its evaluation: parity with the published code, exactness, clear faults."""
import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from interflow.core import InterflowError, make_generator, read_image, read_json, write_csv, write_image, write_json
from interflow.data import Scene, read_set
from interflow.sr.evaluation import (evaluate, format_table, largest_difference, plot_crops, plot_summary, read_rows, summarise,
                                     super_resolve)
from interflow.sr.rcan import RCAN, RCANConfig, from_published, published_name
from interflow.sr.training import SR_PRESETS, Source, SRBatches, load_rcan, save_rcan, train_sr

REFERENCE = Path(__file__).parent / 'reference'
SMALL = RCANConfig(channels=8, groups=2, blocks=2, reduction=2, global_residual=True)
QUICK = replace(SR_PRESETS['tiny'], steps=6, batch_size=2, patch=16, warmup=2, save_every=3)


def fresh(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return RCAN(config)


@pytest.fixture(scope='module')
def published():
    "The published state dict, filled by the rule that the reference was made with."
    sys.path.insert(0, str(REFERENCE))
    from fill import fill
    data = np.load(REFERENCE / 'sr_rcan.npz')
    shapes = json.loads((REFERENCE / 'sr_rcan_state_dict.json').read_text())
    return {name: torch.from_numpy(data[f'frozen/{name}'] if name in data['frozen'] else fill(name, tuple(shape), float(data['gain'])))
            for name, shape in shapes.items()}


@pytest.fixture
def pairs(tmp_path):
    "A set of three scenes in the simulated layout: smooth HR images, LR images that are blurred HR at two factors."
    for i in range(3):
        hr = nn.functional.interpolate(torch.rand(1, 3, 12, 16, generator=make_generator(i, 'scene')), size=(24, 32), mode='bilinear')[0]
        for factor, weight in ((2.1, .3), (3.75, .6)):
            write_image(tmp_path / 'set' / f'x{factor}' / f's{i}.png', (1 - weight) * hr + weight * hr.roll(1, -1))
        write_image(tmp_path / 'set' / 'HR' / f's{i}.png', hr)
    return read_set(tmp_path / 'set')


# ---------------------------------------------------------------- the network

def test_published_network_gives_the_published_output(published):
    data, net = np.load(REFERENCE / 'sr_rcan.npz'), from_published(published)
    with torch.inference_mode():
        error = np.abs(net(torch.from_numpy(data['x'])).numpy() - data['y']).max()
    assert error < 1e-4 * data['y'].std()
    assert net.config == RCANConfig.paper() and not net.training
    assert {published_name(name, net.config) for name in net.state_dict()} | {'sub_mean.weight', 'add_mean.weight'} == set(published)


def test_published_faults(published):
    faults = {'missing': {name: value for name, value in published.items() if name != 'tail.1.bias'},
              'unknown': {**published, 'extra.weight': torch.zeros(1)}, 'shape': {**published, 'head.0.weight': torch.zeros(64, 3, 3, 3)},
              'other': {'conv.weight': torch.zeros(1)}, 'empty': {},
              'range': {**published, 'sub_mean.weight': 255 * published['sub_mean.weight']}}
    for name, state in faults.items():
        with pytest.raises(InterflowError) as fault:
            from_published(state)
        assert '\n' not in str(fault.value), name


@pytest.mark.parametrize('size', [(4, 4), (5, 9), (16, 16), (23, 30), (64, 4)])
@pytest.mark.parametrize('residual', [False, True])
def test_any_size_in_the_same_size_out(size, residual):
    lr = torch.rand(2, 3, *size, generator=make_generator(0))
    net = fresh(replace(SMALL, global_residual=residual)).eval()
    sr = net(lr)
    assert sr.shape == lr.shape and torch.isfinite(sr).all()


def test_padding_mirrors():
    net, lr = fresh().eval(), torch.rand(1, 3, 6, 7, generator=make_generator(0))
    whole = torch.cat([lr, lr[..., [5, 4], :]], -2)
    whole = torch.cat([whole, whole[..., [6]]], -1)
    assert torch.equal(net(lr), net(whole)[..., :6, :7])


def test_global_residual_is_the_only_difference():
    with_it, without = fresh(), fresh(replace(SMALL, global_residual=False))
    lr = torch.rand(1, 3, 8, 8)
    assert torch.allclose(with_it(lr) - without(lr), lr - without.mean_out.shift[:, None, None], atol=1e-6)


@pytest.mark.parametrize('shape', [(1, 3, 3, 8), (1, 3, 8, 3), (1, 1, 8, 8), (3, 8, 8), (1, 4, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InterflowError):
        fresh()(torch.rand(shape))


@pytest.mark.parametrize('settings', [dict(channels=30), dict(groups=0), dict(blocks=-1), dict(reduction=0)])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InterflowError):
        RCANConfig(**settings)


def test_gradients_reach_every_parameter():
    net = fresh(RCANConfig.tiny())
    net(torch.rand(2, 3, 24, 32, generator=make_generator(0))).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_dtype_is_kept():
    lr = torch.rand(1, 3, 9, 10, generator=make_generator(0), dtype=torch.float64)
    net = fresh()
    single, double = net(lr.float()), net.double()(lr)
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-5)


def test_no_sample_of_a_batch_sees_another():
    net, lr = fresh().eval(), torch.rand(3, 3, 12, 12, generator=make_generator(0))
    assert torch.allclose(net(lr)[1], net(lr[1:2])[0], atol=1e-6)


# ---------------------------------------------------------------- on disk

def test_save_and_load_are_exact(tmp_path):
    net = fresh()
    net.mean_out.shift *= 3
    save_rcan(tmp_path / 'net', net)
    again = load_rcan(tmp_path / 'net')
    assert again.config == net.config and not again.training
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    lr = torch.rand(1, 3, 9, 9)
    assert torch.equal(net.eval()(lr), again(lr))
    assert sorted(path.name for path in (tmp_path / 'net').iterdir()) == ['config.json', 'model.safetensors']


@pytest.mark.parametrize('change', [dict(channels=16), dict(blocks=3), dict(kind='InterFlow'), dict(colour=1), dict(channels='8'),
                                    dict(channels=7)])
def test_another_preset_is_refused(tmp_path, change):
    save_rcan(tmp_path / 'net', fresh())
    write_json(tmp_path / 'net' / 'config.json', {**read_json(tmp_path / 'net' / 'config.json'), **change})
    with pytest.raises(InterflowError) as fault:
        load_rcan(tmp_path / 'net')
    assert '\n' not in str(fault.value)


def test_damaged_or_missing_weights_are_refused(tmp_path):
    save_rcan(tmp_path / 'net', fresh())
    weights = tmp_path / 'net' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InterflowError, match='model.safetensors'):
        load_rcan(tmp_path / 'net')
    weights.unlink()
    with pytest.raises(InterflowError, match='model.safetensors'):
        load_rcan(tmp_path / 'net')
    with pytest.raises(InterflowError):
        load_rcan(tmp_path / 'absent')


# ---------------------------------------------------------------- batches and training

def test_batches_are_a_function_of_seed_and_step(pairs):
    first, second = (SRBatches([Source(pairs)], 16, 4, seed=3) for _ in range(2))
    for step in (5, 0, 5):
        assert torch.equal(first(step)['lr'], second(step)['lr']) and torch.equal(first(step)['hr'], second(step)['hr'])
    assert not torch.equal(first(0)['hr'], first(1)['hr'])
    assert not torch.equal(first(0)['hr'], SRBatches([Source(pairs)], 16, 4, seed=4)(0)['hr'])


def test_sets_of_equal_shape_are_cropped_alike(pairs):
    low, high = (SRBatches([Source(pairs, (factor,))], 16, 4) for factor in (2.1, 3.75))
    assert torch.equal(low(9)['hr'], high(9)['hr']) and not torch.equal(low(9)['lr'], high(9)['lr'])


def test_lr_crops_are_taken_where_hr_crops_are(pairs):
    "LR images that equal their HR images give equal crops, through all flips and transpositions."
    same = [Scene(scene.name, scene.hr, {2.1: scene.hr, 3.75: scene.hr}) for scene in pairs]
    batches = SRBatches([Source(same)], 16, 4)
    assert all(torch.equal(batch['lr'], batch['hr']) for batch in map(batches, range(20)))


def test_sources_and_factors_are_drawn_by_weight(pairs, tmp_path):
    flat = {level: Scene('flat', tmp_path / f'{level}.png', {3.: tmp_path / f'{level}.png'}) for level in (0, 1)}
    for level in flat:
        write_image(tmp_path / f'{level}.png', torch.full((3, 24, 24), float(level)))
    batches = SRBatches([Source([flat[0]], weight=1), Source([flat[1]] * 5, weight=4)], 8, 50)
    share = torch.stack([batches(step)['hr'].mean() for step in range(40)]).mean().item()
    assert share == pytest.approx(.8, abs=.03)
    mixed = Scene('mixed', flat[0].hr, {2.1: flat[0].hr, 3.: flat[1].hr})
    share = torch.stack([SRBatches([Source([mixed])], 8, 50)(step)['lr'].mean() for step in range(20)]).mean().item()
    assert share == pytest.approx(.5, abs=.05)


def test_bad_sources_are_refused_before_training(pairs, tmp_path):
    write_image(tmp_path / 'narrow.png', torch.rand(3, 24, 20))
    cut = tmp_path / 'cut.png'
    cut.write_bytes(pairs[0].hr.read_bytes()[:100])
    def train(sources, config=QUICK):
        train_sr(sources, tmp_path / 'run', SMALL, config, 'cpu')
    bad = {'no sources': lambda: train([]), 'no scenes': lambda: Source([]), 'weight': lambda: Source(pairs, weight=0),
           'factor': lambda: train([Source(pairs, (3.,))]), 'patch': lambda: train([Source(pairs)], replace(QUICK, patch=25)),
           'size': lambda: train([Source([replace(pairs[0], lr={2.1: tmp_path / 'narrow.png'})])]),
           'cut': lambda: train([Source([replace(pairs[0], lr={2.1: cut})])])}
    for name, action in bad.items():
        with pytest.raises(InterflowError) as fault:
            action()
        assert '\n' not in str(fault.value), name
    assert not (tmp_path / 'run').exists()


def test_training_is_repeatable_saved_and_resumed_exactly(pairs, tmp_path, monkeypatch):
    before = torch.get_rng_state()
    net, history = train_sr([Source(pairs)], tmp_path / 'whole', SMALL, QUICK, 'cpu')
    assert torch.equal(before, torch.get_rng_state()), "the caller's randomness is left alone"
    assert [row['step'] for row in history] == list(range(6)) and all(math.isfinite(row['loss']) for row in history)
    saved = load_rcan(tmp_path / 'whole' / 'model').state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())

    original = SRBatches.__call__
    def dies(self, step):
        if step == 4: raise KeyboardInterrupt
        return original(self, step)
    monkeypatch.setattr(SRBatches, '__call__', dies)
    with pytest.raises(KeyboardInterrupt):
        train_sr([Source(pairs)], tmp_path / 'killed', SMALL, QUICK, 'cpu')
    assert not (tmp_path / 'killed' / 'model').exists()
    monkeypatch.setattr(SRBatches, '__call__', original)
    resumed, _ = train_sr([Source(pairs)], tmp_path / 'killed', SMALL, QUICK, 'cpu')
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_run_with_other_images_is_not_resumed(pairs, tmp_path):
    train_sr([Source(pairs)], tmp_path / 'run', SMALL, QUICK, 'cpu')
    write_image(pairs[0].lr[2.1], torch.rand(3, 24, 32))        # the same names, other pixels
    with pytest.raises(InterflowError):
        train_sr([Source(pairs)], tmp_path / 'run', SMALL, QUICK, 'cpu')


def test_training_improves_on_the_input(pairs, tmp_path):
    dull = []
    for scene in pairs:
        path = tmp_path / 'dull' / f'{scene.name}.png'
        write_image(path, .6 * read_image(scene.hr) + .1)
        dull.append(replace(scene, lr={3.: path}))
    config = replace(QUICK, steps=150, batch_size=4, learning_rate=3e-3, warmup=5)
    net, _ = train_sr([Source(dull)], tmp_path / 'run', SMALL, config, 'cpu')
    means = {row['network']: row['psnr_y'] for row in summarise(evaluate({'net': net}, dull, (3.,)))}
    assert means['net'] > means['bicubic'] + 3, 'a loss of contrast is learned at once'


# ---------------------------------------------------------------- evaluation

def test_rows_hold_every_network_factor_and_scene(pairs):
    rows = evaluate({'same': lambda lr: lr, 'mean': lambda lr: lr.mean().expand_as(lr)}, pairs, (2.1, 3.75))
    assert [(row['network'], row['factor'], row['scene']) for row in rows] == [
        (name, factor, f's{i}') for name in ('bicubic', 'same', 'mean') for factor in (2.1, 3.75) for i in range(3)]
    values = {(row['network'], row['factor'], row['scene']): (row['psnr_y'], row['ssim_y']) for row in rows}
    assert all(values['same', *key[1:]] == value for key, value in values.items() if key[0] == 'bicubic'), 'the baseline is the input'
    assert values['bicubic', 2.1, 's0'] > values['bicubic', 3.75, 's0'] > values['mean', 3.75, 's0']


def test_super_resolve_clips_rounds_pads_and_crops():
    seen = []
    def network(lr):
        seen.append(lr.shape)
        return lr * 2
    lr = torch.rand(3, 18, 21, generator=make_generator(0))
    sr = super_resolve(network, lr)
    assert seen == [(1, 3, 20, 24)]
    assert torch.equal(sr, ((2 * lr).clamp(0, 1) * 255).round() / 255)
    assert not super_resolve(fresh(), lr).requires_grad


def test_networks_are_evaluated_in_evaluation_mode(pairs):
    net = nn.Sequential(nn.Dropout(.9))
    values = evaluate({'dropout': net}, pairs[:1], (2.1,))
    assert values[0]['psnr_y'] == values[1]['psnr_y']


@pytest.mark.parametrize('network', [lambda lr: lr * math.nan, lambda lr: lr[..., ::2, ::2], lambda lr: lr[:, :1]])
def test_a_broken_network_is_named(pairs, network):
    with pytest.raises(InterflowError, match='broken') as fault:
        evaluate({'broken': network}, pairs, (2.1,))
    assert '\n' not in str(fault.value)


def test_rows_survive_the_file(pairs, tmp_path):
    rows = evaluate({'a, "b"': lambda lr: lr}, pairs, (2.1,))
    write_csv(tmp_path / 'rows.csv', rows)
    assert read_rows(tmp_path / 'rows.csv') == rows
    with open(tmp_path / 'rows.csv', newline='') as file:
        assert next(csv.reader(file)) == ['network', 'factor', 'scene', 'psnr_y', 'ssim_y']
    (tmp_path / 'other.csv').write_text('x,y\n1,2\n')
    for wrong in ('other.csv', 'absent.csv'):
        with pytest.raises(InterflowError, match=wrong):
            read_rows(tmp_path / wrong)


def rows_of(**networks):
    "Rows at factor 3 from lists of PSNR values."
    return [{'network': name, 'factor': 3., 'scene': f's{i}', 'psnr_y': value, 'ssim_y': value / 40}
            for name, values in networks.items() for i, value in enumerate(values)]


def test_differences_are_paired():
    rows = rows_of(bicubic=[20., 25., 30., 35.], net=[20.5, 25.4, 30.6, 35.5])
    net = summarise(rows)[1]
    assert net['psnr_y'] == pytest.approx(28) and net['psnr_y_gain'] == pytest.approx(.5) and net['images'] == 4
    assert net['psnr_y_low'] < 25 and net['psnr_y_high'] > 31, 'the photographs differ much'
    assert .4 <= net['psnr_y_gain_low'] < .5 < net['psnr_y_gain_high'] <= .6, 'the networks by little, but surely'
    assert summarise(rows) == summarise(rows[::-1])[::-1], 'the order of the rows does not matter'
    zero = summarise(rows)[0]
    assert zero['psnr_y_gain'] == zero['psnr_y_gain_low'] == zero['psnr_y_gain_high'] == 0


def test_summaries_of_different_images_are_refused():
    rows = rows_of(bicubic=[20., 25.], net=[21., 26.])
    for wrong in (lambda: summarise(rows, rival='absent'), lambda: summarise(rows[:-1])):
        with pytest.raises(InterflowError):
            wrong()


def test_tables():
    summary = summarise(rows_of(bicubic=[20., 25., 30.], better=[21., 26., 31.], same=[20.1, 24.9, 30.], **{'<b>': [19., 24., 29.]}))
    text, markdown, html = (format_table(summary, style) for style in ('text', 'markdown', 'html'))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert '(+1.00*)' in lines['better'] and '(+0.00)' in lines['same'] and '(-1.00*)' in lines['<b>']
    assert '25.00 / 0.6250' in lines['bicubic']
    assert [line.count('|') for line in markdown.splitlines()] == [3] * 6
    assert '&lt;b&gt;' in html and '<b>' not in html and html.count('<tr>') == 5
    with pytest.raises(InterflowError):
        format_table(summary, 'latex')


def test_figures(pairs):
    import matplotlib
    matplotlib.use('Agg')
    networks = {'same': lambda lr: lr, 'dark': lambda lr: lr * .9}
    summary = summarise(evaluate(networks, pairs, (2.1, 3.75)), rival='same')
    figure = plot_summary(summary, 'ssim_y')
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ['bicubic', 'same', 'dark']
    figure = plot_crops(networks, pairs[0], 2.1, 'same', 'dark', size=16)
    assert [axis.images[0].get_array().shape for axis in figure.axes] == [(16, 16, 3)] * 4


def test_crops_lie_where_images_differ():
    plain = torch.zeros(3, 90, 130)
    marked = plain.clone()
    marked[:, 70:75, 100:106] = 1
    rows, columns = largest_difference(plain, marked, size=32)
    assert rows.start <= 70 and rows.stop >= 75 and columns.start <= 100 and columns.stop >= 106
    assert (rows.stop - rows.start, columns.stop - columns.start) == (32, 32) and rows.stop <= 90 and columns.stop <= 130
    assert largest_difference(plain[..., :20, :10], plain[..., :20, :10]) == (slice(0, 10), slice(0, 10))
