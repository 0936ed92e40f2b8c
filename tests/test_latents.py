"""The factor of an image: densities from sums, intervals that hold what they promise, what is refused."""
import json
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from rooms import ROOT

from interflow.core import InterflowError, make_generator
from interflow.latents import (
    FactorEstimate,
    estimate_factor,
    factor_grid,
    fit_temperature,
    gaussians,
    log_densities,
    log_posterior,
    summarise_posterior,
)
from interflow.model import InterFlow, InterFlowConfig
from interflow.prior import GaussianPrior, Moments, normalise, restore

CHANNELS = 6


def make_prior(factors=(2.1, 3.0, 3.75), channels=CHANNELS):
    "Gaussians well apart."
    generator = make_generator(0, 'test latents')
    prior = GaussianPrior(factors, channels).double().requires_grad_(False)
    prior.means.add_(.2 * torch.randn(len(factors), generator=generator, dtype=torch.float64))
    shapes = torch.eye(channels) + .1 * torch.randn(prior.roots.shape, generator=generator, dtype=torch.float64)
    prior.roots.copy_(torch.linspace(1, .6, len(factors))[:, None, None] * shapes)
    return prior


def draws(prior, count, name, repeat=1, size=5):
    "Latents at factors drawn evenly over the trained range, each vector `repeat` times side by side."
    generator, (low, *_, high) = make_generator(0, name), prior.factors
    factors = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.cat([prior.sample((1, CHANNELS, size, size), f, generator) for f in factors.tolist()]).repeat_interleave(repeat, 3), factors


def share_held(found, factors):
    return ((found.low <= factors) & (factors <= found.high)).double().mean().item()


@pytest.mark.parametrize('factors', [(2.1, 3.75), (2.1, 3.0, 3.75), (1.5, 2.0, 2.2, 4.0)])
def test_sums_give_the_densities_of_the_prior(factors):
    prior = make_prior(factors)
    z = 2 * torch.randn(3, CHANNELS, 7, 9, generator=make_generator(1), dtype=torch.float64) + .5
    asked = torch.cat([torch.linspace(factors[0], factors[-1], 12, dtype=torch.float64), torch.tensor(factors[1:-1], dtype=torch.float64)])
    expected = torch.stack([prior.log_prob(z, f) for f in asked.tolist()], 1)
    assert torch.allclose(log_densities(prior, z, asked), expected, rtol=1e-9, atol=0)
    assert log_densities(prior.float(), z.float(), asked).dtype == torch.float64


def make_moments(factors, scenes, size, channels=CHANNELS):
    drawn = lambda spread, name: spread * torch.randn(len(factors), scenes, channels, *size, generator=make_generator(0, name), dtype=torch.float64)
    return Moments(tuple(factors), drawn(.5, 'mean'), drawn(.3, 'log scale'))


@pytest.mark.parametrize('factors', [(2.1, 3.75), (1.5, 2.0, 2.2, 4.0)])
@pytest.mark.parametrize('scenes', [1, 2])
def test_densities_of_a_prior_that_knows_the_scene(factors, scenes):
    prior, moments = make_prior(factors), make_moments(factors, scenes, (7, 9))
    z = 2 * torch.randn(4, CHANNELS, 7, 9, generator=make_generator(1), dtype=torch.float64) + .5
    asked = torch.tensor([factors[0], .4 * factors[0] + .6 * factors[1], factors[1], factors[-1]], dtype=torch.float64)
    found, spans = log_densities(prior, z, asked, moments=moments), []
    for k, factor in enumerate(asked.tolist()):
        here = moments.at(prior, factor)
        expected = prior.log_prob(normalise(z, here), factor) - here[1].sum((1, 2, 3)).repeat(4 // scenes)
        assert torch.allclose(found[:, k], expected, rtol=1e-9)
        spans.append((found[:, k] - log_densities(prior, z, asked)[:, k]).abs().min().item())
    assert min(spans) > .1, 'the scene has a part in it'
    even = moments._replace(mean=0 * moments.mean, log_scale=0 * moments.mean)
    assert torch.allclose(log_densities(prior, z, asked, moments=even), log_densities(prior, z, asked), rtol=1e-9), 'no moments, as published'


def test_a_draw_with_moments_is_found_at_its_factor():
    "Through restore at its factor: the latent of a scene far from the prior's own mean, told only by its moments."
    prior, factors = make_prior(), (2.2, 2.9, 3.6)
    moments, grid = make_moments(prior.factors, 3, (24, 24)), factor_grid(prior)
    v = torch.cat([prior.sample((1, CHANNELS, 24, 24), f, make_generator(4, f)) for f in factors])
    z = restore(v, moments.at(prior, list(factors)))
    peak = grid[log_densities(prior, z, grid, moments=moments).argmax(1)]
    assert (peak - torch.tensor(factors)).abs().max() < .03
    assert (grid[log_densities(prior, z, grid).argmax(1)] - torch.tensor(factors)).abs().max() > .1, 'without them it is not'


def test_gaussians_beyond_the_trained_range():
    prior = make_prior()
    low, high = prior.span()
    asked = torch.tensor([max(low, 1.) + .5, 2.1, 2.6, 3.75, min(high, 5.) - .3], dtype=torch.float64)
    means, roots = gaussians(prior, asked, extrapolate=True)
    for k, factor in enumerate(asked.tolist()):
        mean, root = prior.gaussian(factor, extrapolate=True)
        assert torch.allclose(means[k], mean) and torch.allclose(roots[k] @ roots[k].T, root @ root.T)
    with pytest.raises(InterflowError, match='outside the trained range'):
        gaussians(prior, asked)


@pytest.mark.parametrize('factors', [(2.1, 3.75), (2.1, 3.0, 3.75)])
@pytest.mark.parametrize('repeat', [1, 9])
def test_intervals_hold_the_truth_as_often_as_they_say(factors, repeat):
    "Temperature from 200 draws, coverage on 200 others. What is repeated must count once; 4 standard deviations of a binomial, and of the fit's own error."
    prior = make_prior(factors)
    grid = factor_grid(prior)
    known, unseen = draws(prior, 200, 'known', repeat), draws(prior, 200, 'unseen', repeat)
    temperature = fit_temperature(log_densities(prior, known[0], grid), grid, known[1])
    assert .7 < temperature / repeat < 1.4
    log_probs = log_densities(prior, unseen[0], grid)
    for level in (.5, .68, .95):
        found = summarise_posterior(log_probs, grid, repeat, level)
        assert abs(share_held(found, unseen[1]) - level) < 4 * math.sqrt(level * (1 - level) / 200)
        assert abs(share_held(summarise_posterior(log_probs, grid, temperature, level), unseen[1]) - level) < 4 * math.sqrt(2 * level * (1 - level) / 200)
        assert ((found.low <= found.factor) & (found.factor <= found.high)).all() or level <= .5
    assert (found.factor - unseen[1]).abs().mean() < .2, 'always the middle would be off by .41'
    if repeat > 1:
        assert share_held(summarise_posterior(log_probs, grid, 1., .95), unseen[1]) < .7, 'without a temperature: overconfident'


def test_a_prior_that_tells_nothing_gives_an_even_posterior():
    "Densities that have nothing to do with the factor, sharp as they are: the temperature must take all confidence away."
    grid = torch.linspace(2, 4, 201, dtype=torch.float64)
    generator = make_generator(3)
    peaks, factors = (2 + 2 * torch.rand(400, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    log_probs = -1e4 * (grid - peaks) ** 2
    found = summarise_posterior(log_probs, grid, fit_temperature(log_probs, grid, factors[:, 0]), .95)
    assert (found.high - found.low).mean() > 1.8 and share_held(found, factors[:, 0]) > .9


def test_the_posterior_is_a_density_and_its_interval_the_shortest():
    grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    log_probs = torch.stack([-.5 * grid ** 2 - 1e6, -grid.clamp_min(0) + torch.where(grid < 0, -math.inf, 0.).nan_to_num(neginf=-1e9)])
    found = summarise_posterior(log_probs, grid, 1., .95)
    assert torch.allclose(torch.trapezoid(found.posterior, grid), torch.ones(2).double())
    assert torch.allclose(torch.stack([found.factor, found.low, found.high], 1)[0], torch.tensor([0, -1.96, 1.96]).double(), atol=.02)
    assert abs(found.low[1]) < .03 and abs(found.high[1] - 2.95) < .06, 'an exponential: from its peak on, not between quantiles'
    assert torch.allclose(log_posterior(log_probs + 7, grid, 2.), log_posterior(log_probs, grid, 2.))


@pytest.fixture(scope='module', params=(0, 2), ids=('published', 'knows the scene'))
def model(request):
    config = replace(InterFlowConfig.tiny(factors=(2.1, 3.0, 3.75)), moments=request.param)
    model = InterFlow(config, make_generator(0, 'latents')).requires_grad_(False).eval()
    model.prior.roots.copy_(make_prior(channels=48).roots)
    if model.moments is not None:
        model.moments.last.weight.normal_(0, .05, generator=make_generator(0, 'moments'))
    return model


def shots(model, factors):
    hr = torch.rand(len(factors), 3, 24, 32, generator=make_generator(5))
    return torch.cat([model.sample(model.condition(one[None]), f, make_generator(6, f)) for one, f in zip(hr, factors)]), hr


def test_through_a_model_in_any_order(model):
    truth = torch.tensor([2.1, 2.6, 3.3, 3.75])
    lr, hr = shots(model, truth.tolist())
    found, turned = (estimate_factor(model, *images, 1., level=.999, generator=make_generator(0)) for images in ((lr, hr), (lr.flip(0), hr.flip(0))))
    assert isinstance(found, FactorEstimate) and found.posterior.shape == (4, len(found.grid))
    assert (found.low <= truth + .005).all() and (truth <= found.high + .005).all() and (found.high - found.low).max() < .4
    for name in ('factor', 'low', 'high', 'posterior'):
        assert torch.allclose(getattr(found, name), getattr(turned, name).flip(0), atol=1e-3), name
    alone = estimate_factor(model, lr[1:2], hr[1:2], 1., generator=make_generator(0))
    assert torch.allclose(alone.factor, found.factor[1:2], atol=1e-3)
    wider = estimate_factor(model, lr, hr, 30.)
    assert (wider.high - wider.low > found.high - found.low).all()


def test_a_factor_beyond_the_trained_range(model):
    beyond = min(.3, .9 * (model.prior.span()[1] - 3.75))
    z = torch.stack([torch.randn(48, 6, 8, generator=make_generator(7))])
    mean, root = model.prior.gaussian(3.75 + .5 * beyond, extrapolate=True)
    hr = torch.rand(1, 3, 24, 32, generator=make_generator(5))
    cond = model.condition(hr)
    lr = model.decode(model.restore(mean + (root @ z.flatten(2)).view_as(z), cond, 3.75 + .5 * beyond), cond)
    found, held = estimate_factor(model, lr, hr, 1., level=.999, beyond=beyond), estimate_factor(model, lr, hr, 1.)
    assert found.low < 3.75 + .5 * beyond < found.high and held.grid[-1] == 3.75 and held.factor < 3.75


@pytest.mark.parametrize('change,said', [
    (lambda lr, hr: {'lr': lr[..., :28]}, 'lr has shape'), (lambda lr, hr: {'hr': hr[:1]}, 'hr'), (lambda lr, hr: {'lr': lr[0], 'hr': hr[0]}, r'\(B, 3, H, W\)'),
    (lambda lr, hr: {'lr': lr * math.nan}, 'lr: holds NaN'), (lambda lr, hr: {'lr': lr[..., :22], 'hr': hr[..., :22]}, '4'),
    (lambda lr, hr: {'temperature': 0.}, 'temperature 0'), (lambda lr, hr: {'temperature': math.nan}, 'temperature nan'), (lambda lr, hr: {'level': 95}, 'level 95'),
    (lambda lr, hr: {'beyond': -1.}, 'beyond is -1'), (lambda lr, hr: {'beyond': math.nan}, 'beyond is nan'), (lambda lr, hr: {'beyond': 99.}, 'factor')])
def test_hostile_input(model, change, said):
    lr, hr = shots(model, (2.5, 3.5))
    with pytest.raises(InterflowError, match=said) as fault:
        estimate_factor(**{'model': model, 'lr': lr, 'hr': hr, 'temperature': 1., **change(lr, hr)})
    assert '\n' not in str(fault.value)


def test_one_trained_factor_is_refused():
    alone, hr = InterFlow(InterFlowConfig.tiny(factors=(3.0,))), torch.rand(1, 3, 16, 16)
    with pytest.raises(InterflowError, match='at factor 3 alone'):
        estimate_factor(alone, hr, hr, 1.)


@torch.no_grad()
def test_densities_are_the_models_own(model):
    "At trained factors and between them, for several images of each scene."
    hr, factors = torch.rand(2, 3, 24, 32, generator=make_generator(8)), [2.1, 2.5, 3.0, 3.3, 3.75]
    cond = model.condition(hr)
    z, _ = model.encode(torch.rand(4, 3, 24, 32, generator=make_generator(9)), cond)
    found = log_densities(model.prior, z, torch.tensor(factors, dtype=torch.float64), moments=cond.moments)
    assert torch.allclose(found.float(), torch.stack([model.log_density(z, cond, f) for f in factors], 1), rtol=1e-5)


def test_the_stored_table_follows_from_the_stored_results(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'benchmarks'), *sys.path])
    import factor
    stored = json.loads((ROOT / 'benchmarks' / 'factor.json').read_text())
    text = (ROOT / 'benchmarks' / 'factor.txt').read_text()
    assert factor.table(stored) == text and not re.search(r'nan|inf', text)
    factors = [row['factor'] for row in stored['rows']]
    assert len(factors) == factor.COUNT and factors == sorted({*factors})
