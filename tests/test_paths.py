"""The ways between latents: the distribution of each, its ends, maps of factors, the table."""

import json
import math
import re
import sys

import pytest
import torch
from rooms import ROOT

from interflow.checkpoints import load_model
from interflow.core import (
    InterflowError,
    data_folder,
    make_generator,
    photographs,
    read_image,
    write_image,
)
from interflow.data import read_scenes, simulate
from interflow.explorer import Part, Settings, Studio
from interflow.generation import LR_IMAGES, check_path, generate_scene
from interflow.mixing import bridge, carry_between, preserving_weights, slerp_weights
from interflow.paths import (
    DRAWING,
    NEEDS,
    PATHS,
    Path,
    add_path,
    among,
    carry,
    correlation,
    find_path,
    reduce_map,
    source,
    travel,
)
from interflow.prior import GaussianPrior, transport_map
from interflow.sets import SetConfig, generate

FACTORS, BETWEEN, CHANNELS = (2.1, 3.0, 3.75), (2.3, 2.9, 3.3, 3.7), 6
MANY = (2, CHANNELS, 300, 300)
# these stay in the Gaussian of the factor
INSIDE = [path for path in NEEDS if path != 'linear']


def make_prior(dtype=torch.float64, factors=FACTORS):
    generator = make_generator(0, 'paths')
    prior = GaussianPrior(factors, CHANNELS).double().requires_grad_(False)
    prior.means.add_(torch.randn(len(factors), generator=generator, dtype=torch.float64))
    shapes = (
        torch.eye(CHANNELS)
        + 0.6
        * torch.randn(prior.roots.shape, generator=generator, dtype=torch.float64)
        / CHANNELS**0.5
    )
    prior.roots.copy_(torch.tensor((.35, .6, .45, .5))[:len(factors), None, None] * shapes)
    return prior.to(dtype)


def draw(prior, shape, share=0., seed=0):
    """Latents of one scene at all factors, exact draws, that have a share of their whitened selves
    in common: their correlation.
    """
    common = torch.randn(shape, generator=make_generator(seed, 'common'), dtype=prior.means.dtype)
    latents = {}
    for k, factor in enumerate(prior.factors):
        own = torch.randn(shape, generator=make_generator(seed, factor), dtype=prior.means.dtype)
        latents[factor] = carry(
            prior,
            prior.colour(share**0.5 * common + (1 - share) ** 0.5 * own, prior.factors[0]),
            0,
            k,
        )
    return latents


def go(prior, path, latents, factor, **keywords):
    shape = next(iter(latents.values())).shape
    return travel(
        prior,
        path,
        latents if NEEDS[path] else {},
        factor,
        shape,
        make_generator(9, path),
        **keywords,
    )


def moments(z):
    vectors = z.transpose(0, 1).flatten(1)
    return vectors.mean(1), torch.cov(vectors)


@pytest.fixture(scope='module')
def prior():
    return make_prior()


@pytest.fixture(scope='module')
def many(prior):
    return {share: draw(prior, MANY, share) for share in (0., .5)}


# ---------------------------------------------------------------- distributions

@pytest.mark.parametrize('share', [0., .5])
@pytest.mark.parametrize('path', INSIDE)
def test_a_path_inside_has_the_moments_of_the_geodesic(prior, many, path, share):
    for factor in BETWEEN:
        mean, root = prior.gaussian(factor)
        found, covariance = moments(go(prior, path, many[share], factor))
        assert (found - mean).abs().max() < .01
        assert (covariance - root @ root.T).abs().max() < .01 * (root @ root.T).diagonal().max()


@pytest.mark.parametrize('share', [0., .5])
def test_linear_has_the_covariance_that_theory_says(prior, many, share):
    "And that is less than it should be."
    roots = [prior.roots[0]]
    for k in (0, 1):
        roots.append(transport_map(prior.roots[k], prior.roots[k + 1]) @ roots[k])
    for factor in BETWEEN:
        i, a = prior.locate(factor)
        low, high = (1 - a) * roots[i], a * roots[i + 1]
        theory = low @ low.T + high @ high.T + share * (low @ high.T + high @ low.T)
        mean, covariance = moments(go(prior, 'linear', many[share], factor))
        assert (mean - prior.gaussian(factor)[0]).abs().max() < .01
        assert (covariance - theory).abs().max() < .01 * theory.diagonal().max()
        assert covariance.trace() < .99 * prior.gaussian(factor)[1].square().sum()


def test_norms_along_the_paths(prior):
    """In many dimensions all that a Gaussian has lies on a shell; linear leaves it, by the root of
    1 - 2a(1-a)(1-r) where both ends are alike.
    """
    alike = GaussianPrior((2., 4.), CHANNELS).double().requires_grad_(False)
    for share in (0., .3):
        latents = draw(alike, (20, CHANNELS, 40, 40), share)
        for a in (.25, .5, .8):
            factor = 2 + 2 * a
            mean, _ = alike.gaussian(factor)
            for path in NEEDS:
                norms = (go(alike, path, latents, factor) - mean).flatten(1).norm(dim=1) / (
                    0.1 * math.sqrt(CHANNELS * 1600)
                )
                expected = math.sqrt(1 - 2 * a * (1 - a) * (1 - share)) if path == 'linear' else 1.
                assert (norms - expected).abs().max() < 0.05 and abs(
                    norms.mean() - expected
                ) < 0.01, path


def test_temperature_scales_the_spread(prior, many):
    for path in NEEDS:
        warm, cool, cold = (go(prior, path, many[0.], 2.9, temperature=t) for t in (1., .5, 0.))
        mean, _ = prior.gaussian(2.9)
        assert torch.allclose(cool - mean, .5 * (warm - mean)) and (cold - mean).abs().max() < 1e-12


def test_how_the_roots_are_turned_does_not_matter(prior, many):
    """A density fixes root root^T; a rotation behind a root changes nothing that a path may depend
    on.
    """
    other = make_prior()
    for k in range(3):
        other.roots[k] = (
            other.roots[k]
            @ torch.linalg.qr(
                torch.randn(
                    CHANNELS, CHANNELS, generator=make_generator(k, 'turn'), dtype=torch.float64
                )
            )[0]
        )
    for path in ('slerp', 'preserving', 'transport'):
        assert torch.allclose(
            go(prior, path, many[0.5], 2.6), go(other, path, many[0.5], 2.6), atol=1e-9
        ), path


# ---------------------------------------------------------------- ends and middles

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('path', [path for path in NEEDS if NEEDS[path]])
def test_at_a_trained_factor_the_latent_of_the_scene(path, dtype):
    prior = make_prior(dtype)
    latents = draw(prior, (2, CHANNELS, 5, 7))
    for factor, z in latents.items():
        assert torch.equal(go(prior, path, latents, factor), z)
        assert torch.equal(travel(prior, path, {factor: z}, factor), z), (
            'nothing else is needed there'
        )
        assert torch.equal(travel(prior, path, {factor: z}, torch.full((5, 7), factor)), z), (
            'a float32 map has rounded the factor'
        )


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize('path', NEEDS)
def test_trained_factors_are_approached_from_both_sides(path, dtype, tolerance):
    prior = make_prior(dtype)
    latents = draw(prior, (2, CHANNELS, 5, 7), .3)
    for factor in FACTORS:
        there = go(prior, path, latents, factor)
        for near in (factor - 1e-4, factor + 1e-4):
            if FACTORS[0] <= near <= FACTORS[-1]:
                # what renewing adds grows with the root of the distance
                reach = .05 if path == 'renewing' else 2e-3
                assert (go(prior, path, latents, near) - there).abs().max() < tolerance + reach


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_dtype_device_and_shape_are_kept_without_gradients(dtype):
    prior = make_prior(dtype).requires_grad_(True)
    latents = {
        factor: z.detach().requires_grad_(True)
        for factor, z in draw(prior, (2, CHANNELS, 5, 7)).items()
    }
    for path in NEEDS:
        for factor in (2.6, torch.linspace(2.2, 3.6, 35).view(5, 7)):
            z = go(prior, path, latents, factor)
            assert (z.dtype, z.device, z.shape, z.requires_grad) == (
                dtype,
                prior.means.device,
                (2, CHANNELS, 5, 7),
                False,
            )


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu(prior):
    latents = draw(prior, (2, CHANNELS, 5, 7))
    there, ramp = make_prior().to('cuda'), torch.linspace(2.2, 3.6, 35).view(5, 7)
    for path in [path for path in NEEDS if NEEDS[path]]:
        for factor in (2.6, ramp, ramp.to('cuda')):
            z = travel(
                there, path, {f: z.to('cuda') for f, z in latents.items()}, factor, temperature=0.9
            )
            assert z.device.type == 'cuda' and torch.allclose(
                z.cpu(), travel(prior, path, latents, factor, temperature=0.9)
            )
    assert (
        travel(
            there, 'sample', {}, 2.6, (1, CHANNELS, 2, 2), make_generator(0, device='cuda')
        ).device.type
        == 'cuda'
    )


def test_transport_composes_over_trained_factors(prior, many):
    z = {2.1: many[0.][2.1]}
    middle = travel(prior, 'transport', z, 3.0)
    assert torch.allclose(
        travel(prior, 'transport', z, 3.3), travel(prior, 'transport', {3.0: middle}, 3.3)
    )
    assert torch.allclose(
        travel(prior, 'transport', {3.75: travel(prior, 'transport', z, 3.75)}, 2.1), z[2.1]
    )
    two = make_prior()
    two.factors, two.means, two.roots = (
        FACTORS[:2],
        torch.nn.Parameter(two.means[:2]),
        torch.nn.Parameter(two.roots[:2]),
    )
    for path in NEEDS:  # what lies beyond the neighbours has no say
        assert torch.allclose(
            go(two, path, {f: many[0.5][f] for f in FACTORS[:2]}, 2.6),
            go(prior, path, {f: many[0.5][f] for f in FACTORS[:2]}, 2.6),
        )


def test_transport_starts_from_the_nearest(prior, many):
    assert [source(FACTORS, f) for f in (2.2, 2.54, 2.55, 2.56, 3.7, torch.tensor([2.1, 3.7]))] == [
        2.1,
        2.1,
        2.1,
        3.0,
        3.75,
        3.0,
    ]
    near = travel(prior, 'transport', {3.0: many[0.][3.0]}, 2.7)
    assert torch.equal(travel(prior, 'transport', many[0.], 2.7), near)
    assert not torch.allclose(travel(prior, 'transport', {2.1: many[0.][2.1]}, 2.7), near)


def test_weights_at_the_limits():
    a = torch.linspace(-.5, 1.5, 41, dtype=torch.float64)[:, None]
    r = torch.tensor([-1., -.9, 0., .5, 1.], dtype=torch.float64)
    for weights in (preserving_weights, slerp_weights):
        w1, w2 = weights(a, r)
        assert w1.isfinite().all() and w2.isfinite().all()
        energy = w1 ** 2 + w2 ** 2 + 2 * r * w1 * w2
        assert torch.allclose(energy[:, 1:-1], torch.ones_like(energy[:, 1:-1])), (
            'on the shell, beyond the ends too'
        )
        ends = weights(torch.tensor([[0.], [1.]], dtype=torch.float64), r)
        assert torch.allclose(
            torch.stack(ends),
            torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]], dtype=torch.float64).expand(2, 2, 5),
        )


def test_equal_latents_stay_as_they_are():
    prior = make_prior()
    z = draw(prior, (1, CHANNELS, 1, 1))[2.1]
    both = {2.1: z, 3.0: carry(prior, z, 0, 1)}
    for path in ('slerp', 'preserving'):  # correlation 1, one position
        assert torch.allclose(
            travel(prior, path, both, 2.6), travel(prior, 'transport', {2.1: z}, 2.6), atol=1e-5
        )
    assert (
        bridge(prior, both[2.1], both[3.0], 0, torch.tensor(0.5).double(), preserving_weights)
        .isfinite()
        .all()
    )


# ---------------------------------------------------------------- maps

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('path', NEEDS)
def test_a_constant_map_is_the_number(path, dtype):
    prior = make_prior(dtype)
    latents = draw(prior, (2, CHANNELS, 9, 11), .3)
    for factor in (*FACTORS, *BETWEEN):
        assert torch.equal(
            go(prior, path, latents, torch.full((9, 11), factor, dtype=torch.float64)),
            go(prior, path, latents, factor),
        )
    factor = torch.tensor(2.7)  # rounded once, then the same
    assert torch.equal(
        go(prior, path, latents, torch.full((9, 11), 2.7)), go(prior, path, latents, factor.item())
    )


@pytest.mark.parametrize('path', NEEDS)
def test_a_map_is_each_positions_number(prior, path):
    latents = draw(prior, (2, CHANNELS, 4, 5), .3)
    factors = torch.tensor([2.1, 2.6, 3.0, 3.3, 3.75], dtype=torch.float64).expand(4, 5)
    given = {2.1: latents[2.1]} if path == 'transport' else latents      # all from one start
    z = go(prior, path, given, factors)
    for column, factor in enumerate(factors[0].tolist()):
        assert torch.allclose(
            z[..., column], go(prior, path, given, factor)[..., column], atol=1e-12
        )


@pytest.mark.parametrize('path', NEEDS)
def test_a_smooth_map_leaves_no_seam(prior, path):
    """The same latent vectors at all columns, factors in fine steps: no step across a trained
    factor is larger than the others.
    """
    latents = {
        f: z.expand(2, CHANNELS, 3, 801) for f, z in draw(prior, (2, CHANNELS, 3, 1), 0.3).items()
    }
    ramp = torch.linspace(2.1, 3.75, 801, dtype=torch.float64).expand(3, 801)
    if path == 'sample':      # one noise for all columns: what sample draws, drawn here
        z = travel(prior, 'transport', {2.1: latents[2.1]}, ramp)
    else:
        z = go(prior, path, latents, ramp)
    steps = (z[..., 1:] - z[..., :-1]).abs().amax((0, 1, 2))
    border = int((3.0 - 2.1) / 1.65 * 800)
    assert steps[border - 3 : border + 4].max() <= 1.01 * max(
        steps[border - 20 : border - 3].max(), steps[border + 4 : border + 20].max()
    )


def test_sample_is_one_draw_that_travels(prior):
    drawn = prior.sample((2, CHANNELS, 4, 5), 2.1, make_generator(3))
    for factor in (2.1, 3.0, 3.3, torch.linspace(2.1, 3.75, 20, dtype=torch.float64).view(4, 5)):
        assert torch.allclose(
            travel(prior, 'sample', {}, factor, (2, CHANNELS, 4, 5), make_generator(3)),
            travel(prior, 'transport', {2.1: drawn}, factor),
        )


def test_reduce_map():
    assert torch.equal(reduce_map(torch.full((10, 7), 2.3)), torch.full((3, 2), 2.3))
    ramp = torch.arange(64, dtype=torch.float64).view(8, 8)
    assert torch.allclose(
        reduce_map(ramp),
        torch.stack(
            [
                torch.stack([ramp[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for j in range(2)])
                for i in range(2)
            ]
        ),
    )
    assert reduce_map(torch.rand(9, 12)).shape == (3, 3)


# ---------------------------------------------------------------- beyond the trained range

def test_the_span_is_where_the_gaussians_end(prior):
    low, high = prior.span()
    assert low < 2.1 and 3.75 < high < math.inf
    narrowest = {
        f: torch.linalg.svdvals(prior.gaussian(f, extrapolate=True)[1])[-1]
        for f in (low + 1e-6, 2.1, 3.75, high - 1e-6)
    }
    assert (
        narrowest[low + 1e-6] < 1e-4 * narrowest[2.1]
        and narrowest[high - 1e-6] < 1e-4 * narrowest[3.75]
    )
    for factor in (low, high, low - 1, high + 1, float('inf'), float('nan')):
        with pytest.raises(InterflowError, match='factor'):
            prior.gaussian(factor, extrapolate=True)
    for factor in (2.09, 3.76):
        with pytest.raises(InterflowError, match='outside the trained range'):
            prior.gaussian(factor)


def test_spans_without_an_end():
    "A Gaussian that only grows can be continued upwards for ever; one factor alone leads nowhere."
    growing = GaussianPrior((2., 4.), CHANNELS).double().requires_grad_(False)
    growing.roots[1] *= 2
    assert growing.span()[1] == math.inf and abs(growing.span()[0] - 0.) < 1e-9
    assert torch.allclose(
        growing.gaussian(100.0, extrapolate=True)[1].diagonal(),
        torch.tensor(0.1 * 50, dtype=torch.float64),
    )
    alone = make_prior(factors=(3.,))
    assert alone.span() == (3., 3.)
    for path in NEEDS:
        latents = draw(alone, (1, CHANNELS, 2, 3))
        assert go(alone, path, latents, 3.).shape == (1, CHANNELS, 2, 3)
        with pytest.raises(InterflowError, match='factor 2.9'):
            go(alone, path, latents, 2.9, extrapolate=True)


# beyond, mixing loses nothing that could be renewed
@pytest.mark.parametrize('path', [path for path in INSIDE if path != 'renewing'])
def test_moments_beyond_the_trained_range(prior, many, path):
    low, high = prior.span()
    for factor in ((low + 2.1) / 2, (3.75 + high) / 2):
        mean, root = prior.gaussian(factor, extrapolate=True)
        found, covariance = moments(go(prior, path, many[0.], factor, extrapolate=True))
        assert (found - mean).abs().max() < .02
        assert (covariance - root @ root.T).abs().max() < .015 * (root @ root.T).diagonal().max()
        with pytest.raises(InterflowError, match='outside the trained range'):
            go(prior, path, many[0.], factor)


@pytest.mark.parametrize('path', NEEDS)
def test_a_map_beyond_the_span_is_refused(prior, path):
    latents, (low, high) = draw(prior, (1, CHANNELS, 2, 3)), prior.span()
    for wrong in (low - .01, high + .01, float('nan')):
        factors = torch.full((2, 3), 2.5, dtype=torch.float64)
        factors[1, 2] = wrong
        with pytest.raises(InterflowError, match='factor'):
            go(prior, path, latents, factors, extrapolate=True)


# ---------------------------------------------------------------- what is refused

Z = torch.zeros(1, CHANNELS, 2, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    'arguments,said',
    [
        (('spiral', {2.1: Z}, 2.5), 'path spiral: unknown; choose one of linear, slerp'),
        (('linear', {2.1: Z}, 2.5), 'path linear: the latent at factor 3 is missing.*transport'),
        (
            ('preserving', {3.75: Z}, 2.5),
            'path preserving: the latent at factor 2.1 and 3 is missing.*transport',
        ),
        (
            ('slerp', {2.1: Z, 3.0: Z}, torch.full((2, 3), 3.4)),
            'path slerp: the latent at factor 3.75 is missing',
        ),
        (('linear', {}, 2.5), 'path linear: no latent.*sample'),
        (('transport', {}, 2.5), 'path transport: no latent.*sample'),
        (('sample', {}, 2.5), 'shape: missing'),
        (('sample', {}, 2.5, (1, 5, 2, 3)), r'shape: \(1, 5, 2, 3\); give \(B, 6, h, w\)'),
        (('sample', {}, 2.5, (CHANNELS, 2, 3)), 'shape: '),
        (('linear', {2.1: Z, 3.0: Z[..., :2]}, 2.5), r'\(1, 6, 2, 2\) and \(1, 6, 2, 3\)'),
        (
            ('linear', {2.1: Z, 2.9: Z}, 2.5),
            'factor 2.9, which was not trained; give latents at 2.1, 3, 3.75',
        ),
        (('transport', {2.1: Z}, torch.full((3, 2), 2.5)), r'map of shape \(3, 2\).*\(2, 3\)'),
        (('transport', {2.1: Z}, torch.full((1, 2, 3), 2.5)), 'map of shape'),
        (('transport', {2.1: Z}, 1.9), 'factor 1.9'),
        (('transport', {2.1: Z}, float('nan')), 'factor nan'),
        (('transport', {2.1: Z}, 2.5, None, None, -1.0), 'temperature -1'),
        (('transport', {2.1: Z}, 2.5, None, None, float('nan')), 'temperature nan'),
    ],
)
def test_hostile_input(prior, arguments, said):
    with pytest.raises(InterflowError, match=said) as fault:
        travel(prior, *arguments)
    assert '\n' not in str(fault.value)


# ---------------------------------------------------------------- what is stored

def test_the_stored_table_follows_from_the_stored_results(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'benchmarks'), *sys.path])
    import paths
    stored = json.loads((ROOT / 'benchmarks' / 'paths.json').read_text())
    assert paths.table(stored) == (ROOT / 'benchmarks' / 'paths.txt').read_text()
    assert paths.verdicts(stored['rows']) == stored['goals']
    assert {row['path'] for row in stored['rows']} == set(paths.ROWS) and not re.search(
        r'nan|inf', (ROOT / 'benchmarks' / 'paths.txt').read_text()
    )


# ---------------------------------------------------------------- renewing, and fewer factors

def test_renewing_keeps_what_two_latents_have_in_common_and_replaces_lost_noise(prior):
    """Half of the variance is one content in both: the mixture stays as it is, noise alone is
    added, as much as the share says.
    """
    shape = (4, CHANNELS, 60, 60)
    latents = draw(prior, shape, .5)
    i, a = prior.locate(2.6)
    mixture = travel(prior, 'renewing', latents, 2.6, noise=torch.zeros(shape, dtype=torch.float64))
    for share, kept in ((0., 1 - 2 * a * (1 - a) * .5), (.5, 1.), (1., 1 + 2 * a * (1 - a) * .5)):
        takes = torch.stack(
            [
                travel(
                    prior, 'renewing', latents, 2.6, shape, make_generator(k, 'take'), share=share
                )
                for k in range(8)
            ]
        )
        assert (takes.mean(0) - mixture).abs().mean() < 0.4 * (
            takes[0] - mixture
        ).abs().mean() + 1e-9
        assert prior.whiten(takes[0], 2.6).square().mean().item() == pytest.approx(kept, rel=.03)
    given = torch.randn(shape, generator=make_generator(0, 'take'), dtype=torch.float64)
    assert torch.equal(
        travel(prior, 'renewing', latents, 2.6, noise=given, share=0.5),
        travel(prior, 'renewing', latents, 2.6, shape, make_generator(0, 'take'), share=0.5),
    )
    for share in (-.1, 1.1, float('nan')):
        with pytest.raises(InterflowError, match='share'):
            go(prior, 'renewing', latents, 2.6, share=share)


def test_a_correlation_that_is_handed_in_is_used(prior):
    "Tiles take that of the whole image."
    latents = draw(prior, (1, CHANNELS, 8, 40), .5)
    part = {f: z[..., :10] for f, z in latents.items()}
    for path in ('slerp', 'preserving', 'renewing'):
        noise = (
            torch.randn(1, CHANNELS, 8, 40, generator=make_generator(1), dtype=torch.float64)
            if path in DRAWING
            else None
        )
        u1, u2 = (
            prior.whiten(latents[2.1], 2.1),
            prior.whiten(carry(prior, latents[3.0], 1, 0), 2.1),
        )
        whole = travel(prior, path, latents, 2.6, noise=noise)
        cut = travel(
            prior,
            path,
            part,
            2.6,
            noise=None if noise is None else noise[..., :10],
            r={0: correlation(u1, u2)},
        )
        assert torch.allclose(whole[..., :10], cut)
        assert not torch.allclose(
            whole[..., :10],
            travel(prior, path, part, 2.6, noise=None if noise is None else noise[..., :10]),
        )


def test_fewer_factors_are_passed_straight(prior):
    latents = draw(prior, (2, CHANNELS, 5, 7))
    two, ends = among(prior, (3.75, 2.1)), {f: latents[f] for f in (2.1, 3.75)}
    assert torch.allclose(
        travel(two, 'linear', ends, 3.0), torch.lerp(latents[2.1], latents[3.75], 0.9 / 1.65)
    )
    assert all(torch.equal(a, b) for f in ends for a, b in zip(two.gaussian(f), prior.gaussian(f)))
    for wrong in ((2.1, 2.5), (), (2.1, 2.1 + 1e-9, 9.)):
        with pytest.raises(InterflowError, match='trained'):
            among(prior, wrong)


# ---------------------------------------------------------------- the table

def centre(s):
    "The mean of the Gaussian: no photograph, no noise."
    low, high = s.prior.means[s.i], s.prior.means[s.i + 1]
    return torch.lerp(low, high, s.a.to(low)).expand(s.shape)


def pick(s):
    "Of two latents one, position by position; `s.noise` decides."
    z1, z2 = (carry(s.prior, z, k, s.i) for k, z in sorted(s.z.items()))
    second = torch.special.ndtr(s.noise[:, :1]) < s.a
    return carry_between(s.prior, torch.where(second, z2, z1), s.i, s.i, s.a)


SEVENTH = [Path('centre', 0, False, False, centre, 'the mean of the Gaussian', '#8C564B', 'p'),
           Path('picking', 2, True, False, pick, 'one of two, at each position', '#7F7F7F', 'h')]


@pytest.fixture(params=SEVENTH, ids=lambda path: path.name)
def seventh(request):
    add_path(request.param)
    yield request.param
    del PATHS[request.param.name]


def test_the_table_is_told_once():
    assert list(PATHS) == ['pixels', *NEEDS] == list(LR_IMAGES), 'the order of figures'
    assert all(name == path.name and path.sentence for name, path in PATHS.items())
    for field in ('colour', 'marker'):
        assert len({getattr(path, field) for path in PATHS.values()}) == len(PATHS), field
    assert dict(NEEDS) == {'linear': 2, 'slerp': 2, 'preserving': 2, 'renewing': 2,
                           'transport': 1, 'sample': 0}
    assert list(DRAWING) == ['renewing', 'sample'] and 'linear' not in DRAWING
    assert find_path('pixels').latent is None and check_path('sample') is PATHS['sample']
    for call in (lambda: find_path('spiral'), lambda: find_path('pixels', NEEDS)):
        with pytest.raises(InterflowError, match='unknown; choose one of .*linear'):
            call()
    with pytest.raises(KeyError):
        NEEDS['pixels']


def test_a_path_that_cannot_be_is_not_added():
    before = dict(PATHS)
    for name, latent, words in (('linear', centre, 'taken'), ('spiral', None, 'no latent')):
        with pytest.raises(InterflowError, match=words):
            add_path(Path(name, 0, False, False, latent, '', 'k', 'o'))
    with pytest.raises(InterflowError, match='3 images'):
        Path('spiral', 3, False, False, centre, '', 'k', 'o')
    assert PATHS == before


def test_a_seventh_path_is_known_by_every_old_name(seventh):
    name = seventh.name
    assert name in PATHS and list(NEEDS)[-1] == name and NEEDS[name] == LR_IMAGES[name]
    assert (name in DRAWING) == seventh.draws and check_path(name) is seventh


def test_a_seventh_path_travels(prior, many, seventh):
    ramp = torch.linspace(2.1, 3.75, 300, dtype=torch.float64).expand(300, 300)
    for factor in (*BETWEEN, ramp):
        found = go(prior, seventh.name, many[0.], factor)
        assert found.shape == MANY
    mean, covariance = moments(go(prior, seventh.name, many[0.], 2.55))
    expected, root = prior.gaussian(2.55)
    sigma = root @ root.T if seventh.draws else torch.zeros_like(root)
    assert (mean - expected).abs().max() < .01
    assert (covariance - sigma).abs().max() < .01 * (root @ root.T).diagonal().max()


def test_a_seventh_path_generates_sets_and_is_explored(seventh, tmp_path):
    "Without another change: a scene, as a whole and in tiles, a set, a picture of the explorer."
    flow, name = data_folder() / 'weights' / 'flow', seventh.name
    model, middle = load_model(flow), read_image(photographs('val')[0])[:, 200:328, 300:460]
    write_image(tmp_path / 'photos' / 'scene.png', middle)
    simulate(tmp_path / 'photos', tmp_path / 'pairs', model.prior.factors)
    (scene,) = read_scenes(tmp_path / 'pairs')
    lr = {factor: read_image(path) for factor, path in scene.lr.items()}
    whole, tiled = (next(generate_scene(model, read_image(scene.hr), lr, (3.,), name,
                                        [make_generator(0)], tile=tile)) for tile in (0, 120))
    assert 255 * (whole - tiled).abs().max() < 1 and abs(whole.mean() - middle.mean()) < .05
    generate(model, [scene], tmp_path / 'set', SetConfig((3.,), name, check='none'), 'cpu', 1)
    (made,) = (tmp_path / 'set').rglob('*_LR3.png')
    assert read_image(made).shape == middle.shape
    studio, settings = Studio(), Settings(Part('flower', 64), str(flow), path=name)
    pictures = [studio.picture(settings), studio.draw(settings, 1)]
    assert torch.equal(*pictures) == (not seventh.draws and not seventh.images)
