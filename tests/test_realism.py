"""The ruler: each measure against a known answer, the judge against truth as generated images."""

import json
import math

import pytest
import torch

from interflow.camera import Residuals, draw_residuals, get_camera, shoot
from interflow.core import (
    InterflowError,
    data_folder,
    make_generator,
    photographs,
    read_image,
    write_image,
)
from interflow.data import read_scenes, simulate
from interflow.enlargement import cubic_mtf, enlargement_misfit, fit_factor, null_of
from interflow.judging import (
    GeneratedSet,
    central_view,
    format_judgement,
    in_8_bits,
    judge,
    judge_images,
    measure,
    open_studio,
    write_judgement,
)
from interflow.metrics import luma
from interflow.realism import (
    akld,
    colour_correlation,
    decibels,
    deviations,
    grain,
    kld,
    kld_common,
    mean_error,
    quantiles,
    spectrum_gap,
    texture,
    variance_ratio,
)
from interflow.two_sample import chance, cut_patches, high_pass, two_sample_test


def stack(count=5, sigma=4., seed=0, size=(96, 128)):
    "Images with white noise of `sigma` grey levels in each colour, around a grey."
    return .5 + sigma / 255 * torch.randn(count, 3, *size, generator=make_generator(seed, 'stack'))


# ---------------------------------------------------------------- shots

def test_shot_0_is_the_shot_that_was_always_taken():
    photo, camera = read_image(photographs('test')[0])[:, :96, :128], get_camera('canon')
    assert torch.equal(shoot(photo, 3., camera, 1, 's'), shoot(photo, 3., camera, 1, 's', shot=0))
    assert draw_residuals(camera, 3., 1, 's') == draw_residuals(camera, 3., 1, 's', 0)
    several = [draw_residuals(camera, 3., 1, 's', k) for k in range(4)]
    assert len({(r.phase, r.shift, r.gain, r.offset) for r in several}) == 4
    assert draw_residuals(camera, 1., 1, 's', 2) == Residuals()


@pytest.mark.parametrize('factor', [1., 2.5])
def test_shots_are_independent(factor):
    photo = torch.full((3, 64, 64), .5)
    images = [
        shoot(photo, factor, 'canon', scene='grey', **which)
        for which in ({}, {'shot': 1}, {'shot': 2}, {'take': 1}, {'shot': 1, 'take': 1})
    ]
    assert all(not torch.equal(a, b) for k, a in enumerate(images) for b in images[:k])
    assert torch.equal(images[1], shoot(photo, factor, 'canon', scene='grey', shot=1))


# ---------------------------------------------------------------- measures

def test_deviations_are_free_of_the_bias_of_few_images():
    squares = [deviations(stack(3, 4., seed)).square().mean().item() for seed in range(30)]
    assert sum(squares) / 30 == pytest.approx(16, rel=.01)
    with pytest.raises(InterflowError, match='at least 2'):
        deviations(stack(1))


@pytest.mark.parametrize('scale, ratio', [(1., 1.), (1.2, 1.44), (.5, .25)])
def test_variance_ratio_of_known_noise(scale, ratio):
    assert variance_ratio(stack(8, 4 * scale, 1), stack(8, 4, 2)).item() == pytest.approx(
        ratio, rel=0.02
    )


def test_variance_ratio_by_groups():
    groups = quantiles(torch.arange(96 * 128.).view(96, 128), 4)
    assert torch.bincount(groups.flatten()).tolist() == [3072] * 4
    generated = stack(8, 4, 1)
    generated = torch.where(
        groups == 2, generated.mean(0) + 2 * (generated - generated.mean(0)), generated
    )
    ratios = variance_ratio(generated, stack(8, 4, 2), groups)
    assert ratios.tolist() == pytest.approx([1, 1, 4, 1], rel=.05)


def test_texture_is_the_deviation_in_a_window():
    image = stack(1, 10, 3)[0]
    assert texture(torch.full((3, 20, 20), .3)).max() < 1e-4
    by_hand = 255 * luma(image)[10:17, 20:27].std(correction=0)
    assert texture(image)[13, 23].item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_spectrum_gap_of_white_noise_is_the_ratio_in_every_ring():
    _, gap = spectrum_gap(stack(8, 8, 1), stack(8, 4, 2))
    assert gap[1:].mean().item() == pytest.approx(20 * math.log10(2), abs=.1) and gap.std() < 1


def test_grain_and_colours_of_known_noise():
    white = stack(6, 4, 1)
    assert grain(white).abs().max() < .02 and colour_correlation(white).abs().max() < .02
    blurred = (white + white.roll(1, -1) + white.roll(1, -2) + white.roll((1, 1), (-2, -1))) / 4
    assert grain(blurred).tolist() == pytest.approx([.5, 0, 0], abs=.03)
    grey = white[:, :1].expand(-1, 3, -1, -1)
    assert colour_correlation(grey).tolist() == pytest.approx([1, 1, 1])


def test_kld_of_gaussians():
    draw = lambda sigma, shift, seed: (
        shift + sigma * torch.randn(400_000, generator=make_generator(seed, 'kld'))
    )
    assert kld(draw(.02, 0, 1), draw(.02, 0, 2)) < 1e-3
    assert kld(draw(.02, .02, 1), draw(.02, 0, 2)).item() == pytest.approx(.5, abs=.02)
    assert kld_common(draw(.02, .02, 1), draw(.02, 0, 2)).item() == pytest.approx(.5, abs=.03)
    expected = math.log(2) + .01 ** 2 / (2 * .02 ** 2) - .5      # true .01 from generated .02
    assert kld(draw(.02, 0, 1), draw(.01, 0, 2)).item() == pytest.approx(expected, abs=.02)
    assert kld(draw(.02, 0, 1).clamp(-.02, .02), draw(.02, 0, 2)) > 1, 'missing tails are seen'


def test_akld_of_known_variances():
    flat = torch.full((2, 3, 40, 40), .01)
    assert akld(flat, flat) == 0
    assert akld(flat * 2 ** .5, flat).item() == pytest.approx(.5 * (2 - 1 - math.log(2)), rel=1e-4)
    assert akld(flat * 100, flat).item() == pytest.approx(
        0.5 * (10 - 1 - math.log(10)), rel=1e-4
    ), 'the ratio is clamped'


def test_the_mean_error_is_free_of_noise():
    raw, corrected = zip(
        *(mean_error(stack(5, 4, 2 * k) + 2 / 255, stack(5, 4, 2 * k + 1)) for k in range(10))
    )
    assert sum(corrected) / 10 == pytest.approx((2 / 255) ** 2, rel=.05)
    assert sum(raw) / 10 == pytest.approx((2 / 255) ** 2 + 2 * (4 / 255) ** 2 / 5, rel=.05)
    assert decibels(-1.) == decibels(0.) == 60 and decibels(.01) == pytest.approx(20)


def test_truth_over_truth_is_one():
    ratios = []
    for file in photographs('test'):
        photo = read_image(file)[:, 160:288, 256:416]
        for factor in (2.2, 3.4):
            shots = torch.stack(
                [shoot(photo, factor, 'canon', scene=file.stem, shot=k) for k in range(1, 25)]
            )
            ratios.append(variance_ratio(shots[:12], shots[12:]).log().item())
    assert math.exp(sum(ratios) / len(ratios)) == pytest.approx(1, abs=.05)


# ---------------------------------------------------------------- the critic

def test_high_pass_keeps_what_is_fine():
    ramp = torch.linspace(0, 1, 96).expand(1, 3, 96, 96)
    assert high_pass(ramp)[..., 12:-12].abs().max() < .01
    stripes = .02 * (torch.arange(64) % 2).expand(1, 3, 64, 64)
    assert high_pass(stripes).abs().mean().item() == pytest.approx(2.55, abs=.01)


def test_the_critic_is_at_chance_where_there_is_nothing_and_finds_what_there_is():
    images = {
        name: [stack(3, sigma, 100 * k + j) for k in range(6)]
        for j, (name, sigma) in enumerate({'true': 4, 'same': 4, 'louder': 5}.items())
    }
    cut = {
        name: torch.cat([cut_patches(s, 4, make_generator(0, k)) for k, s in enumerate(stacks)])
        for name, stacks in images.items()
    }
    scenes = torch.arange(6).repeat_interleave(len(cut['true']) // 6)
    same, louder = (
        two_sample_test(cut[name], cut['true'], scenes, folds=3, steps=150).float().mean().item()
        for name in ('same', 'louder')
    )
    assert abs(same - .5) < 1.6 * chance(2 * len(scenes)) and louder > .9
    with pytest.raises(InterflowError, match='one scene'):
        two_sample_test(cut['same'][:4], cut['true'][:4], torch.zeros(4))
    with pytest.raises(InterflowError, match='smaller than a patch'):
        cut_patches(stack(2, size=(40, 60)), 4, make_generator(0))


def test_true_shots_are_not_told_from_true_shots():
    studios = [open_studio(file, 'canon', 0) for file in photographs('test')[:4]]
    cut = [
        torch.cat(
            [
                cut_patches(s.view.crop(s.shots(3.0, numbers)), 10, make_generator(0, s.name))
                for s in studios
            ]
        )
        for numbers in (range(1, 5), range(5, 9))
    ]
    right = two_sample_test(*cut, torch.arange(4).repeat_interleave(40), folds=2, steps=200)
    assert abs(right.float().mean() - .5) < 1.5 * chance(right.numel())


def test_chance_is_the_normal_interval():
    assert chance(100) == pytest.approx(.098) and chance(400) == pytest.approx(.049)


# ---------------------------------------------------------------- the factor by the spectrum

def test_the_kernel_has_its_nulls():
    assert null_of(-.5) == 1 and null_of(-.75) == pytest.approx(.7689, abs=1e-4)
    assert cubic_mtf(torch.tensor([0., 1., 2.])).tolist() == pytest.approx([1, 0, 0], abs=1e-4)


@pytest.mark.parametrize('factor', [2.1, 2.45, 2.9, 3.5])
def test_a_known_factor_is_found(factor):
    found = []
    for file in photographs('test')[4:]:
        found.append(
            fit_factor(
                shoot(
                    read_image(file)[:, 96:384, 200:520], factor, 'canon', scene=file.stem, shot=5
                )[:, 16:-16, 16:-16]
            )
        )
    assert all(
        fit.a == -0.5 and abs(fit.factor - factor) < 0.06 and fit.misfit < 0.2 for fit in found
    ), found


def test_what_was_not_enlarged_fits_nothing():
    noise = torch.rand(3, 128, 128, generator=make_generator(0, 'noise'))
    assert enlargement_misfit(noise, torch.tensor([2., 3.])).min() > 1
    with pytest.raises(InterflowError, match='too small'):
        fit_factor(noise[:, :40])


# ---------------------------------------------------------------- the judge

def test_the_view_is_the_middle_and_never_large():
    view = central_view(512, 768)
    rows, columns = view.around
    image = torch.arange(512 * 768.).view(1, 512, 768)
    assert torch.equal(view.crop(image[:, rows, columns]), image[:, 128:384, 192:576])
    assert central_view(4000, 3000).crop(torch.zeros(1, 576, 576)).shape == (1, 512, 512)


def test_true_shots_in_the_place_of_generated_ones_score_as_perfect():
    make = lambda studio, factor: studio.view.crop(studio.shots(factor, range(50, 55)))
    found = judge_images(make, photographs('test')[5:], (3.,), classify=False)
    generated, perfect = found.summary
    assert {generated['images'], perfect['images']} == {'generated', 'perfect'}
    for row in (generated, perfect):
        assert (
            0.7 < row['ratio'] < 1.4
            and row['spectrum'] < 1.2
            and row['kld'] < 0.05
            and abs(row['sharpness']) < 0.03
        )
        assert row['accuracy'] is None and row['mean_psnr_corrected'] > 42
        assert abs(row['found_factor'] - 3) < .05
    assert len(found.rows) == 4 and 'perfect' in format_judgement(found.summary)


def test_the_judge_sees_noise_and_blur():
    studio = open_studio(photographs('test')[6], 'canon', 0)
    true, other = (studio.view.crop(studio.shots(2.5, range(k, k + 4))) for k in (1, 11))
    reference = studio.view.crop(studio.shots(2.5, range(21, 25), noise=False)).mean(0)
    hr = studio.view.crop(studio.shots(1., range(1), noise=False)[0])
    noisy = in_8_bits(other.mean(0) + 1.2 * (other - other.mean(0)))
    blurred = in_8_bits((other + other.roll(1, -1) + other.roll(1, -2)) / 3)
    fair, loud, soft = (
        measure(images, true, reference, hr)[0] for images in (other, noisy, blurred)
    )
    assert (
        loud['ratio'] / fair['ratio'] == pytest.approx(1.44, abs=0.03)
        and loud['akld'] > fair['akld']
    )
    assert (
        soft['mtf50'] < 0.97 * fair['mtf50']
        and soft['transfer'] > 2 * fair['transfer']
        and soft['spectrum'] > fair['spectrum']
    )


def test_a_command_judges_photographs_pairs_and_sets(tmp_path):
    from typer.testing import CliRunner

    from interflow.checkpoints import load_model
    from interflow.cli import app
    from interflow.sets import SetConfig, generate
    for file in photographs('test')[5:]:
        write_image(tmp_path / 'photos' / f'{file.stem}.png', read_image(file)[:, 128:352, 192:448])
    flow, scenes = data_folder() / 'weights' / 'flow', read_scenes(tmp_path / 'photos')
    run = lambda *words: CliRunner().invoke(app, ['judge', *map(str, words)], catch_exceptions=True)
    done = run(
        flow,
        tmp_path / 'photos',
        '--factors',
        '3.0',
        '--draws',
        2,
        '--shots',
        2,
        '--out',
        tmp_path / 'out',
        '--device',
        'cpu',
        '--no-classifier',
    )
    assert done.exit_code == 0, done.output
    assert 'generated' in done.output and 'perfect' in done.output
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'judge.csv',
        'judge.json',
        'judge.png',
        'judge.txt',
    ]
    assert json.loads((tmp_path / 'out' / 'judge.json').read_text())['settings']['draws'] == 2

    simulate(tmp_path / 'photos', tmp_path / 'pairs', (3.0,))
    done = run(flow, tmp_path / 'pairs', '--draws', 1, '--no-classifier', '--device', 'cpu')
    assert done.exit_code == 0 and 'several shots' in done.output and 'perfect' not in done.output

    generate(load_model(flow), scenes, tmp_path / 'set', SetConfig((3.0,), draws=2), 'cpu', 1)
    assert GeneratedSet(tmp_path / 'set').factors == (3.0,)
    found = judge(tmp_path / 'set', scenes, shots=2, classify=False)
    assert len(found.rows) == 4
    write_judgement(found, tmp_path / 'second', {}, 'realism')
    assert (tmp_path / 'second' / 'realism.png').exists()
    for words in (
        (tmp_path / 'photos', tmp_path / 'photos'),
        (flow, tmp_path / 'absent'),
        (flow, tmp_path / 'photos', '--draws', 1),
        (flow, tmp_path / 'photos', '--factors', '3.0', '--shots', 1),
        (flow, tmp_path / 'pairs', '--factors', '2.5'),
    ):
        done = run(*words, '--no-classifier', '--device', 'cpu')
        assert isinstance(done.exception, InterflowError) and '\n' not in str(done.exception), (
            words,
            done.output,
            done.exception,
        )
    done = run(flow, tmp_path / 'photos', '--path', 'none', '--device', 'cpu')
    assert done.exit_code == 2 and "'sample'" in done.output, 'the parser refuses it'
