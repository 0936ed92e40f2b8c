"""A network that is watched on held-out pairs: the same weights, the best state kept, numbers and strips in the logs, also after a resumption."""
from dataclasses import replace

import pytest
import torch
from scenes import write_crops
from typer.testing import CliRunner

from interflow.checkpoints import fingerprint
from interflow.cli import app
from interflow.core import InterflowError, photographs, read_image, write_image
from interflow.data import Scene, simulate
from interflow.metrics import psnr_y
from interflow.sr.liif import LIIFConfig
from interflow.sr.networks import build, load_network
from interflow.sr.scores import evaluate
from interflow.sr.training import Source, sr_preset, train_sr
from interflow.sr.validation import SRValidation, held_pairs
from interflow.sr.vdsr import VDSRConfig
from interflow.training import Watch, loop

SHORT = replace(sr_preset('vdsr', 'tiny'), steps=12, batch_size=2, patch=16, learning_rate=2e-3, save_every=6, clip=10., halve_at=(), warmup=0)
NET = VDSRConfig(channels=8, layers=3)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder, cut = tmp_path_factory.mktemp('watched'), (slice(200, 256), slice(300, 356))
    seen = simulate(write_crops(folder / 'photos', photographs('train')[:2], *cut), folder / 'pairs', (2., 3.))
    held = simulate(write_crops(folder / 'others', photographs('val')[:2], *cut), folder / 'held', (2., 3.))
    return folder, [Source(seen)], held


def run(place, name, config=SHORT, validate=True, network=NET, **settings):
    folder, sources, held = place
    lines = []
    watch = Watch(validate=SRValidation(held) if validate else None, say=lines.append)
    every = replace(config, validate_every=4 if validate else 0, **settings)
    return *train_sr(sources, folder / name, network, every, 'cpu', watch=watch), lines


@pytest.fixture(scope='module')
def watched(place):
    return run(place, 'watched')


def test_what_is_watched_trains_alike(place, watched):
    assert fingerprint(watched[0]) == fingerprint(run(place, 'plain', validate=False)[0])


def test_the_state_with_the_highest_psnr_is_kept(place, watched):
    folder, _, held = place
    net, history, lines = watched
    rows = [row for row in history if 'val_psnr' in row]
    assert [row['step'] for row in rows] == [3, 7, 11]
    assert {'val_ssim', 'val_gain', 'val_psnr_x2', 'val_psnr_x3', 'val_ssim_x2', 'val_ssim_x3'} <= rows[0].keys()
    values = [row['val_psnr'] for row in rows]
    assert len(set(values)) == 3, 'or the choice is none'
    best, check = load_network(folder / 'watched/best'), SRValidation(held)
    assert check(best).numbers['psnr'] == pytest.approx(max(values), abs=1e-4) and best.factors == (2., 3.)
    assert (fingerprint(best) == fingerprint(net)) == (max(values) == values[-1])
    assert f'best: psnr {max(values):.3f} at step {rows[values.index(max(values))]["step"] + 1}' in lines[-1]


def test_with_an_average_it_is_the_average_that_is_looked_at_and_kept(place, watched):
    folder, _, held = place
    net, history, _ = run(place, 'averaged', replace(SHORT, ema=.8))
    values = [row['val_psnr'] for row in history if 'val_psnr' in row]
    assert [row['loss'] for row in history] == [row['loss'] for row in watched[1]], 'the steps are those without an average'
    assert values[-1] == pytest.approx(SRValidation(held)(net).numbers['psnr'], abs=1e-4), 'what is saved is what was measured'
    best = load_network(folder / 'averaged/best')
    assert SRValidation(held)(best).numbers['psnr'] == pytest.approx(max(values), abs=1e-4) and best.factors == (2., 3.)
    assert values != [row['val_psnr'] for row in watched[1] if 'val_psnr' in row]


def test_the_numbers_are_those_of_evaluate(place, watched):
    net, _, held = watched[0], *place[1:]
    rows = evaluate({'net': net}, held, (2., 3.))
    mean = lambda factor: sum(row['psnr_y'] for row in rows if (row['network'], row['factor']) == ('net', factor)) / 2
    numbers = SRValidation(held)(net).numbers
    assert numbers['psnr_x2'] == pytest.approx(mean(2.)) and numbers['psnr'] == pytest.approx((mean(2.) + mean(3.)) / 2)


def test_logs_have_strips_and_numbers(place, watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(next((place[0] / 'watched/logs').rglob('events*')).parent))
    events.Reload()
    tags = events.Tags()
    assert len(events.Images('strip')) == 3 and {'loss', 'val_psnr', 'val_ssim_x3', 'val_gain'} <= set(tags['scalars'])


def test_an_interrupted_run_goes_on_to_the_same_weights_and_the_same_best(place, watched, monkeypatch):
    class Cut(Exception):
        pass

    def cut(training, step, *rest):
        if step == 9:
            raise Cut
        return real(training, step, *rest)
    real = loop.take_step
    monkeypatch.setattr(loop, 'take_step', cut)
    with pytest.raises(Cut):
        run(place, 'cut')
    monkeypatch.setattr(loop, 'take_step', real)
    net, history, _ = run(place, 'cut')
    strip = lambda rows: [{name: value for name, value in row.items() if name.startswith('val_')} for row in rows]
    assert fingerprint(net) == fingerprint(watched[0]) and strip(history) == strip(watched[1])
    assert fingerprint(load_network(place[0] / 'cut/best')) == fingerprint(load_network(place[0] / 'watched/best'))


def test_a_network_of_arbitrary_scale_and_pairs_that_are_stored_small(place):
    folder, sources, held = place
    hr = read_image(photographs('val')[2])[:, :96, :96]
    write_image(folder / 'small/hr.png', hr)
    write_image(folder / 'small/lr.png', torch.nn.functional.avg_pool2d(hr, 2))
    small = Scene('small', folder / 'small/hr.png', {2.: folder / 'small/lr.png'})
    pair, = held_pairs([small], side=64)
    assert pair.hr.shape[-1] == 64 and pair.lr.shape[-1] == 32
    assert psnr_y(torch.nn.functional.avg_pool2d(pair.hr, 2), pair.lr) > 45, 'the same part of both'
    verdict = SRValidation([*held, small])(build(LIIFConfig.tiny(), seed=0))
    assert verdict.strip.shape[0] == 3 and 0 < verdict.numbers['psnr'] < 60


def test_validation_touches_nothing(place, watched):
    validate, before, net = SRValidation(place[2]), torch.get_rng_state(), watched[0]
    mark, first = fingerprint(net), validate(net.train())
    assert net.training and torch.equal(before, torch.get_rng_state()) and fingerprint(net) == mark
    assert validate(net.eval()).numbers == first.numbers and not net.training
    with pytest.raises(InterflowError, match='no pair has one of the factors'):
        SRValidation(place[2], (4.,))


def test_the_command_validates_without_a_number_too(place):
    folder = place[0]
    words = ['train-sr', folder / 'pairs', folder / 'told', '--network', 'vdsr', '--steps', 10, '--batch-size', 1, '--patch', 16, '--device', 'cpu',
             '--validate', folder / 'held']
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert (folder / 'told/best/model.safetensors').exists() and (folder / 'told/model').exists()
    again = CliRunner().invoke(app, ['train', *map(str, (folder / 'pairs', folder / 'flow', '--steps', 2, '--batch-size', 1, '--patch', 32, '--device', 'cpu',
                                                       '--validate', folder / 'held', '--factors', '2,3'))])
    assert again.exit_code == 0 and (folder / 'flow/best/model.safetensors').exists(), (again.output, again.exception)
