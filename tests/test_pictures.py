"""Pictures of the latent space: each figure holds the numbers that a plain computation gives, and tells right from wrong."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from interflow.band import to_band
from interflow.core import InterflowError, make_generator, photographs
from interflow.latents import factor_grid, log_densities, summarise_posterior
from interflow.metrics import noise_spectrum
from interflow.mixing import carry
from interflow.model import InterFlow, InterFlowConfig
from interflow.paths import PATHS, add_path
from interflow.pictures import (
    along_axes,
    autocorrelation,
    axis_correlations,
    axis_patches,
    between,
    block_moments,
    block_spectra,
    blocks,
    draw_axes,
    draw_correlation,
    draw_embedding,
    draw_gaussians,
    draw_maps,
    draw_posterior,
    draw_residuals,
    draw_shells,
    draw_spectra,
    draw_strips,
    embed,
    factor_map,
    film_frames,
    principal,
    walk,
    write_film,
)
from interflow.pictures.takes import Takes, smoothed
from interflow.prior import GaussianPrior, Moments, normalise, restore
from interflow.style import COLOURS, MARKS, STYLE, factor_colours, style

FACTORS = (2.1, 3.0, 3.75)


def make_prior(factors=FACTORS, channels=6):
    "Gaussians well apart, with distinct axes."
    prior = GaussianPrior(factors, channels).double().requires_grad_(False)
    turned = torch.randn(prior.roots.shape, generator=make_generator(0, 'pictures'), dtype=torch.float64)
    widths = torch.linspace(1, .5, len(factors), dtype=torch.float64)[:, None, None]
    prior.roots.copy_(widths * (torch.diag(torch.linspace(.4, 1.2, channels, dtype=torch.float64)) + .15 * turned / channels ** .5))
    prior.means.copy_(torch.linspace(-.2, .3, len(factors)))
    return prior


@pytest.fixture(scope='module')
def prior():
    return make_prior()


@pytest.fixture(scope='module', params=(0, 2), ids=('published', 'knows the scene'))
def model(request):
    config = replace(InterFlowConfig.tiny(factors=(2.1, 3.75)), moments=request.param)
    model = InterFlow(config, make_generator(0, 'pictures')).requires_grad_(False).eval()
    model.prior.roots.copy_(make_prior((2.1, 3.75), 48).roots)
    if model.moments is not None:
        model.moments.last.weight.normal_(0, .05, generator=make_generator(0, 'moments'))
    return model


@pytest.fixture(autouse=True)
def nothing_left_open():
    "No figure stays open but those of other tests, and no setting of matplotlib is changed."
    before, others = dict(plt.rcParams), plt.get_fignums()
    yield
    assert set(plt.get_fignums()) <= set(others)
    assert dict(plt.rcParams) == before


def draws(prior, factor, size=40, count=3, seed=0):
    return prior.sample((count, prior.roots.shape[-1], size, size), factor, make_generator(seed, 'draws', factor))


def line(axis, number=0):
    "(x, y) of a line as arrays."
    drawn = axis.lines[number]
    return np.asarray(drawn.get_xdata(), dtype=float), np.asarray(drawn.get_ydata(), dtype=float)


def renders(figure, tmp_path):
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / 'figure.png', dpi=50)
    with Image.open(tmp_path / 'figure.png') as image:
        assert len(image.convert('L').getcolors()) > 5, 'an empty picture'
    return figure


# ---------------------------------------------------------------- style

def test_one_style_for_all():
    with style():
        assert plt.rcParams['font.size'] == STYLE['font.size'] and not plt.rcParams['axes.spines.top']
    assert list(MARKS) == ['true', *PATHS] and {*MARKS} <= {*COLOURS}
    assert len({COLOURS[name] for name in MARKS}) == len({*MARKS.values()}) == len(MARKS)
    light = [sum(w * c for w, c in zip((.2126, .7152, .0722), colour)) for colour in factor_colours((3.75, 2.1, 3.0))]
    assert light[1] < light[2] < light[0] < .8, 'by the factor, dark to light, none too light for paper'
    assert len(factor_colours((3.0,))) == 1


def test_one_palette_that_a_new_path_joins():
    "The colours and marks of a path are its record's, whenever it is added, under old names too."
    from interflow import latents
    assert latents.COLOURS is COLOURS and latents.MARKS is MARKS and latents.style is style
    before = dict(COLOURS)
    add_path(replace(PATHS['linear'], name='straight', colour='#882255', marker='P'))
    try:
        assert (COLOURS['straight'], MARKS['straight']) == ('#882255', 'P')
        assert {**COLOURS} == {**before, 'straight': '#882255'} and len(COLOURS) == len(before) + 1
    finally:
        del PATHS['straight']
    assert COLOURS.get('straight', '.4') == '.4' and dict(COLOURS) == before


# ---------------------------------------------------------------- takes

def test_takes(model):
    "Latents of dequantised shots: the same for the same name, others for another take or shot."
    takes = Takes(model, photographs('test')[:2], size=32)
    first, second = takes.hr
    lr = takes.shot(first, 3.0, take=1)
    expected = model.encode(smoothed(lr, first, 3.0, 1)[None], takes.conditions[first])[0]
    assert torch.equal(takes.latent(first, 3.0, 1), expected)
    assert takes.every(3.0, 1).shape == (2, 48, 8, 8)
    assert torch.equal(takes.every(3.0, 1)[:1], expected)
    for other in (dict(take=0), dict(take=1, shot=1)):
        assert not torch.equal(takes.shot(first, 3.0, **other), lr)
    v = takes.normal(takes.every(3.0), 3.0)
    alone = model.normalise(takes.latent(second, 3.0), takes.conditions[second], 3.0)
    assert torch.allclose(v[1:], alone, atol=1e-4)
    bits = 255 * (smoothed(lr, 'any') - lr)
    assert bits.abs().max() <= .501 and .25 < bits.std() < .33


# ---------------------------------------------------------------- Gaussians

def test_spectra_are_eigenvalues(prior, tmp_path):
    figure = renders(draw_gaussians(prior, [2.1, 2.5, 3.75]), tmp_path)
    for number, factor in enumerate((2.1, 2.5, 3.75)):
        mean, root = prior.gaussian(factor)
        plain = np.linalg.eigvalsh((root @ root.T).numpy())[::-1]
        assert np.allclose(line(figure.axes[1], number)[1], plain)
        x, y = figure.axes[0].containers[number][0].get_data()
        assert np.allclose([x[0], y[0]], [factor, mean])
    sigma = [(root @ root.T).numpy() for root in prior.roots]
    stretched = line(figure.axes[2], 0)[1]      # T with T S1 T = S2: its eigenvalues' product is that of the volumes
    assert np.isclose(np.prod(stretched) ** 2, np.linalg.det(sigma[1]) / np.linalg.det(sigma[0])) and (np.diff(stretched) < 0).all()
    assert len(draw_gaussians(make_prior((3.0,))).axes) == 2, 'with one factor nothing is transported'
    with pytest.raises(InterflowError, match='outside the trained range'):
        draw_gaussians(prior, [1.5])


def test_axes_whiten_and_do_not_depend_on_the_root(prior):
    z = draws(prior, 3.0)
    mean, variances, axes = principal(prior, 3.0)
    assert (variances.diff() < 0).all() and torch.allclose(axes.T @ axes, torch.eye(6).double())
    u = along_axes(prior, z, 3.0)
    assert torch.allclose(torch.cov(u.transpose(0, 1).flatten(1)), torch.eye(6).double(), atol=.06) and u.mean().abs() < .01
    back = (axes * variances.sqrt()) @ u.flatten(2) + mean
    assert torch.allclose(back.view_as(z), z)
    turned = make_prior()
    turned.roots[1] = turned.roots[1] @ torch.linalg.qr(torch.randn(6, 6, generator=make_generator(1), dtype=torch.float64))[0]
    assert torch.allclose(along_axes(turned, z, 3.0), u)


def test_patches_are_differences_of_decodings(model, tmp_path):
    hr = torch.rand(3, 32, 40, generator=make_generator(0))
    found = axis_patches(model, hr, 2.1, [0, 47], reach=2., side=16)
    mean, variances, axes = principal(model.prior, 2.1)
    cond, z = model.condition(hr[None]), torch.full((2, 48, 8, 10), mean.item())
    z[1, :, 4, 5] += (2 * variances[47].sqrt() * axes[:, 47]).float()
    still, moved = (model.decode(model.restore(one[None], cond, 2.1), cond)[0] for one in z)
    assert torch.allclose(found[1], (moved - still)[:, 10:26, 14:30], atol=1e-5) and found.shape == (2, 3, 16, 16) and found[0].abs().max() > 1e-3
    assert len(renders(draw_axes(model, hr, (2.1, 3.0), count=3), tmp_path).axes) == 6
    with pytest.raises(InterflowError, match='axis 48: there are axes 0 to 47'):
        axis_patches(model, hr, 2.1, [48])


# ---------------------------------------------------------------- residuals and shells

def test_residuals_of_exact_draws_and_of_a_wrong_prior(prior, tmp_path):
    right, wrong = (renders(draw_residuals(prior, draws(prior, drawn), 3.75), tmp_path) for drawn in (3.75, 2.1))
    (x, y), (_, off) = line(right.axes[0], 1), line(wrong.axes[0], 1)
    assert np.abs(y - x)[20:-20].max() < .1 and np.abs(off - x).max() > 1
    band = right.axes[1].patches[0].get_extents().transformed(right.axes[1].transData.inverted())
    inside = [np.mean((band.y0 <= spread) & (spread <= band.y1)) for spread in (line(f.axes[1])[1] for f in (right, wrong))]
    assert inside[0] == 1 and inside[1] < .5
    around = right.axes[2].images[0].get_array()
    assert np.nanmax(np.abs(around)) < .03 and np.ma.getmaskarray(np.ma.masked_invalid(around))[5, 5]


def test_autocorrelation_finds_the_shift():
    u = torch.randn(2, 5, 30, 31, generator=make_generator(0), dtype=torch.float64)
    assert autocorrelation(u, 3)[3, 3] == 1
    shifted = (u + u.roll((2, 1), (2, 3))) / 2 ** .5      # each position is half its own and half that of 2 rows up, 1 column left
    found = autocorrelation(shifted, 3)
    assert torch.allclose(found, found.flip(0, 1)) and abs(found[5, 4] - .5) < .03 and abs(found[1, 2] - .5) < .03
    found[5, 4] = found[1, 2] = found[3, 3] = 0
    assert found.abs().max() < .06
    with pytest.raises(InterflowError, match='2x31 positions'):
        autocorrelation(u[:, :, :2], 3)


def test_shells(prior, tmp_path):
    z = draws(prior, 3.0)
    figure = renders(draw_shells(prior, {'sample': z, 'linear': z / 2, 'odd one': z * 2}, 3.0), tmp_path)
    whole = [line(figure.axes[1], k)[0] for k in range(3)]
    assert np.allclose(whole[0], along_axes(prior, z, 3.0).square().mean((1, 2, 3)).sqrt()) and np.abs(whole[0] - 1).max() < .03
    assert whole[1].max() < .7 and whole[2].min() > 1.5
    assert figure.axes[1].get_yticklabels()[2].get_text() == 'odd one'


# ---------------------------------------------------------------- correlation

def test_correlation(prior, tmp_path):
    shared = torch.randn(3, 6, 30, 30, generator=make_generator(1), dtype=torch.float64)
    def pair(seed):
        own = {f: torch.randn(3, 6, 30, 30, generator=make_generator(seed, f), dtype=torch.float64) for f in (2.1, 3.0)}
        z = {f: prior.colour(.6 * shared + .8 * own[f], 2.1) for f in own}      # both in the lower Gaussian, correlation 0.36
        return {2.1: z[2.1], 3.0: carry(prior, z[3.0], 0, 1)}
    first, second = pair(2), pair(3)
    figure = renders(draw_correlation(prior, first, second), tmp_path)
    assert abs(float(figure.axes[0].get_title().split()[-1]) - .36) < .03
    assert all(np.abs(line(figure.axes[1], k)[1] - .36).max() < .06 for k in range(3)) and len(draw_correlation(prior, first).axes[1].lines) == 2
    assert np.allclose(axis_correlations(shared, 2 * shared), 1) and np.allclose(axis_correlations(shared, -shared), -1)
    for wrong in ({2.1: first[2.1]}, {2.1: first[2.1], 3.75: first[3.0]}, {2.1: first[2.1], 2.5: first[3.0]}, {}):
        with pytest.raises(InterflowError, match='two neighbours of 2.1, 3, 3.75'):
            draw_correlation(prior, wrong)


# ---------------------------------------------------------------- posterior

def test_posterior_follows_exact_draws(prior, tmp_path):
    grid = factor_grid(prior, count=67)
    ways = {'sample': {f: draws(prior, f, 32) for f in (2.3, 2.8, 3.5)}, 'linear': {f: draws(prior, 2.8, 32) for f in (2.3, 2.8, 3.5)}}
    figure = renders(draw_posterior(prior, ways, 1., grid), tmp_path)
    (asked, told), (_, stuck) = (line(axis) for axis in figure.axes)
    assert np.abs(told - asked).max() < .12 and np.abs(stuck - 2.8).max() < .12
    density = figure.axes[0].collections[0].get_array().reshape(len(grid), 3)
    assert np.allclose(np.trapezoid(density, grid, axis=0) if hasattr(np, 'trapezoid') else np.trapz(density, grid, axis=0), 1)


def make_moments(scenes, size):
    drawn = lambda spread, name: spread * torch.randn(len(FACTORS), scenes, 6, size, size, generator=make_generator(0, name), dtype=torch.float64)
    return Moments(FACTORS, drawn(.5, 'mean'), drawn(.3, 'log scale'))


def test_posterior_and_map_of_a_prior_that_knows_the_scene(prior):
    "With the scenes' moments draws are told as the factor that was asked for; without them the scene is taken for it."
    grid, moments = factor_grid(prior, count=67), make_moments(3, 32)
    way = {f: restore(draws(prior, f, 32), moments.at(prior, f)) for f in (2.3, 2.8, 3.5)}
    found, without = (line(draw_posterior(prior, {'sample': way}, 1., grid, moments=known).axes[0]) for known in (moments, None))
    assert np.abs(found[1] - found[0]).max() < .12 < .3 < np.abs(without[1] - without[0]).max()
    one = moments.of(0)
    z = torch.cat([restore(draws(prior, f, 32, 1), one.at(prior, f))[..., half] for f, half in ((2.1, slice(16)), (3.75, slice(16, 32)))], 3)
    told, blind = (factor_map(prior, z, 1., grid, moments=known) for known in (one, None))
    assert told[:, :11].max() < 2.6 < 3.2 < told[:, 21:].min() and not (blind[:, :11].max() < 2.6 < 3.2 < blind[:, 21:].min())


def test_moments_are_cut_as_latents_are():
    moments = make_moments(2, 9)
    cut = block_moments(moments, 4)
    assert block_moments(None, 4) is None and cut.mean.shape == (3, 8, 6, 4, 4)
    z = torch.randn(4, 6, 9, 9, generator=make_generator(0), dtype=torch.float64)
    prior = make_prior()
    assert torch.equal(blocks(normalise(z, moments.at(prior, 2.5)), 4), normalise(blocks(z, 4), cut.at(prior, 2.5)))


def test_blocks_keep_positions_together():
    z = torch.arange(2 * 3 * 9 * 13.).view(2, 3, 9, 13)
    cut = blocks(z, 4)
    assert cut.shape == (2 * 2 * 3, 3, 4, 4) and torch.equal(cut[4], z[0, :, 4:8, 4:8]) and torch.equal(cut[6], z[1, :, :4, :4])
    with pytest.raises(InterflowError, match='9x13 positions'):
        blocks(z, 10)


def test_map_shows_where_the_factor_changes(prior, tmp_path):
    grid = factor_grid(prior, count=67)
    z = torch.cat([draws(prior, 2.1, 40, 1)[..., :20], draws(prior, 3.75, 40, 1)[..., 20:]], 3)
    found = factor_map(prior, z, 1., grid)
    assert found.shape == (40, 40) and found[:, :14].max() < 2.6 < 3.2 < found[:, 26:].min()
    middle = summarise_posterior(log_densities(prior, z[..., 5:14, 16:25], grid), grid, 1.).factor      # a window inside, asked directly
    assert torch.allclose(found[9, 20], middle[0])
    figure = renders(draw_maps(prior, {'both': torch.rand(3, 160, 160)}, {'both': z}, 1., grid), tmp_path)
    assert np.allclose(figure.axes[1].images[0].get_array(), found)
    for wrong in ((z.expand(2, -1, -1, -1), 9), (z, 8)):
        with pytest.raises(InterflowError, match='one latent'):
            factor_map(prior, wrong[0], 1., grid, wrong[1])


# ---------------------------------------------------------------- embedding

def clusters():
    generator = make_generator(0, 'clusters')
    vectors = torch.randn(80, 12, generator=generator, dtype=torch.float64)
    vectors[40:] += 6 * torch.nn.functional.normalize(torch.randn(12, generator=generator, dtype=torch.float64), dim=0)
    return vectors, [2.1] * 40 + [3.0] * 40, ['a', 'b'] * 40


@pytest.mark.parametrize('method', ('pca', 'tsne'))
def test_embedding_separates_what_is_apart(method):
    if method == 'tsne':
        pytest.importorskip('sklearn', reason='scikit-learn is an extra')
    vectors, factors, _ = clusters()
    flat = embed(vectors, method)
    assert flat.shape == (80, 2) and torch.equal(flat, embed(vectors, method)), 'the same seed, the same picture'
    assert between(flat, factors) > .5
    if method == 'pca':
        low, high = sorted((flat[:40, 0], flat[40:, 0]), key=lambda part: part.mean().item())
        assert low.max() < high.min()
        centred = vectors - vectors.mean(0)
        assert torch.allclose(flat.square().sum(0), torch.linalg.eigvalsh(centred.T @ centred).flip(0)[:2])


def test_embedding_figure(tmp_path):
    vectors, factors, scenes = clusters()
    figure = renders(draw_embedding(vectors, factors, scenes, methods=('pca',)), tmp_path)
    assert len(figure.axes) == 2 and all(np.allclose(axis.collections[0].get_offsets(), embed(vectors)) for axis in figure.axes)
    assert len({tuple(colour) for colour in figure.axes[0].collections[0].get_facecolors()}) == 2


def test_between_is_a_share():
    vectors, factors, scenes = clusters()
    points = torch.tensor([[0., 1.], [0., 1.], [3., 0.]])
    assert between(points, ['a', 'a', 'b']) == pytest.approx(1) and between(vectors, scenes) < .05 < .4 < between(vectors, factors)


@pytest.mark.parametrize('wrong,said', [(lambda v: embed(v, 'umap'), 'method umap'), (lambda v: embed(v[:4]), r'\(4, 12\)'), (lambda v: embed(v * math.nan), 'finite'),
                                        (lambda v: embed(v[0]), r'\(12,\)')])
def test_embedding_refuses(wrong, said):
    with pytest.raises(InterflowError, match=said):
        wrong(clusters()[0])


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'sklearn', None)
    with pytest.raises(InterflowError, match=r"pip install 'interflow-sr\[explorer\]'"):
        embed(clusters()[0], 'tsne')


def test_block_spectra(prior):
    z = draws(prior, 3.0, 32)
    found = block_spectra(prior, z, 3.0)
    assert found.shape == (3 * 16, 6) and found.mean().abs() < .1
    assert torch.allclose(block_spectra(prior, prior.means[1] + 2 * (z - prior.means[1]), 3.0), found + math.log(4))


# ---------------------------------------------------------------- what comes out

@pytest.fixture(scope='module')
def scene(model):
    hr = torch.rand(3, 32, 32, generator=make_generator(7))
    cond = model.condition(hr[None])
    return hr, {f: model.decode(model.prior.sample((1, 48, 8, 8), f, make_generator(8, f)), cond)[0] for f in (2.1, 3.75)}


@pytest.mark.parametrize('path', PATHS)
def test_walk(model, scene, path):
    hr, lr = scene
    z, images = walk(model, hr, lr, [2.1, 2.9, 3.75], path)
    assert z.shape == (3, 48, 8, 8) and images.shape == (3, 3, 32, 32)
    band = (lambda image, factor: image) if path == 'pixels' else (lambda image, factor: to_band(image, factor, None))
    decoded = torch.cat([model.decode(one[None], model.condition(hr[None])) for one in z])
    assert torch.allclose(images, torch.stack([band(image, factor) for image, factor in zip(decoded, (2.1, 2.9, 3.75))]), atol=1e-3)
    assert torch.allclose(images[0], band(lr[2.1], 2.1), atol=1e-3) == (path != 'sample')
    assert torch.allclose(images[2], band(lr[3.75], 3.75), atol=1e-3) == (path not in ('sample', 'transport'))
    if path == 'linear':      # a straight line of what the prior describes, not of the flow's latents
        cond, (low, middle, high) = model.condition(hr[None]), z.split(1)
        a = (2.9 - 2.1) / 1.65
        line = torch.lerp(model.normalise(low, cond, 2.1), model.normalise(high, cond, 3.75), a)
        assert torch.allclose(model.normalise(middle, cond, 2.9), line, atol=1e-4)
        assert torch.allclose(middle, torch.lerp(low, high, a), atol=1e-4) == (model.moments is None)
    if path == 'sample':
        assert torch.equal(z, walk(model, hr, {}, [2.1, 2.9, 3.75], path)[0]) and not torch.allclose(z, walk(model, hr, {}, [2.1, 2.9, 3.75], path, seed=1)[0])


def test_strips(scene, tmp_path):
    images = torch.stack([*scene[1].values()])
    figure = renders(draw_strips({'true': images, 'linear': images / 2}, (2.1, 3.75), part=(4, 8, 16)), tmp_path)
    assert np.allclose(figure.axes[3].images[0].get_array(), (images[1] / 2)[:, 4:20, 8:24].clamp(0, 1).permute(1, 2, 0))
    assert [axis.get_title() for axis in figure.axes] == ['x2.1', 'x3.75', '', ''] and figure.axes[2].get_ylabel() == 'linear'
    with pytest.raises(InterflowError, match='linear: 1 images for 2 factors'):
        draw_strips({'true': images, 'linear': images[:1]}, (2.1, 3.75))


def test_spectra_of_white_noise(tmp_path):
    base, noise = torch.rand(1, 3, 64, 64, generator=make_generator(0)), torch.randn(2, 1, 3, 64, 64, generator=make_generator(1)) / 255
    takes = {'true': tuple(base + 4 * noise), 'linear': tuple(base + 2 * noise)}
    figure = renders(draw_spectra(takes, [3.0]), tmp_path)
    level = (.299 ** 2 + .587 ** 2 + .114 ** 2) * np.array([16, 4])      # white noise has its variance at every frequency
    for axis, right in zip(figure.axes, level):
        assert np.abs(line(axis)[1][2:] / right - 1).mean() < .25
        assert np.allclose(line(axis, 1)[1], line(figure.axes[0])[1]), 'dotted: the truth'
    plain = noise_spectrum(takes['true'][0][0], takes['true'][1][0], 16)[1] / 2
    assert np.allclose(line(figure.axes[0])[1], plain)


# ---------------------------------------------------------------- film

def ramp(count=4, size=(20, 24)):
    return torch.linspace(0, 1, count)[:, None, None, None].expand(-1, 3, *size)


def test_frames_go_there_and_back():
    frames = film_frames({'left': ramp(), 'right': 1 - ramp()}, [2.1, 2.6, 3.2, 3.75], enlarge=2)
    assert len(frames) == 6 and {frame.size for frame in frames} == {(96, 54)}
    left = [np.asarray(frame)[10, 10, 0] for frame in frames]
    assert left == [0, 85, 170, 255, 170, 85] and [np.asarray(frame)[10, 60, 0] for frame in frames] == [255 - value for value in left]
    assert len(film_frames({'one': ramp(1)}, [2.1])) == 1


@pytest.mark.parametrize('mode', ('RGB', 'P'))
def test_film_as_gif(tmp_path, mode):
    frames = [frame.convert(mode) for frame in film_frames({'a': ramp()}, [2.1, 2.6, 3.2, 3.75])]
    write_film(tmp_path / 'film.gif', frames, .2)
    with Image.open(tmp_path / 'film.gif') as film:
        assert (film.n_frames, film.size, film.info['duration'], film.info['loop']) == (6, frames[0].size, 200, 0)
        for k, frame in enumerate(frames):
            film.seek(k)
            assert abs(film.convert('RGB').getpixel((5, 5))[0] - frame.convert('RGB').getpixel((5, 5))[0]) < 4
    assert [path.name for path in tmp_path.iterdir()] == ['film.gif']


@pytest.mark.parametrize('mode', ('RGB', 'P'))
def test_film_as_mp4(tmp_path, mode):
    import cv2
    frames = [frame.convert(mode) for frame in film_frames({'a': ramp()}, [2.1, 2.6, 3.2, 3.75])]
    try:
        write_film(tmp_path / 'film.mp4', frames)
    except InterflowError as fault:
        assert 'write a .gif' in str(fault) and not list(tmp_path.iterdir())
        pytest.skip(str(fault))
    film, seen = cv2.VideoCapture(str(tmp_path / 'film.mp4')), []
    while (read := film.read())[0]:
        seen.append(read[1][5, 5].mean())
    right = [np.mean(frame.convert('RGB').getpixel((5, 5))) for frame in frames]
    assert len(seen) == 6 and np.abs(np.subtract(seen, right)).max() < 8 and [path.name for path in tmp_path.iterdir()] == ['film.mp4']


def test_film_refuses_and_leaves_nothing(tmp_path, monkeypatch):
    frames = film_frames({'a': ramp()}, [2.1, 2.6, 3.2, 3.75])
    for name, given, seconds in (('a.avi', frames, .1), ('a.gif', [], .1), ('a.gif', [frames[0], frames[1].resize((10, 10))], .1), ('a.mp4', frames, 0), ('a.gif', frames, math.nan)):
        with pytest.raises(InterflowError, match='give a .gif or .mp4') as fault:
            write_film(tmp_path / name, given, seconds)
        assert '\n' not in str(fault.value)
    for ways, factors in (({}, []), ({'a': ramp()}, [2.1]), ({'a': ramp(), 'b': ramp(2)}, [2.1, 2.6, 3.2, 3.75])):
        with pytest.raises(InterflowError, match='give one for each factor'):
            film_frames(ways, factors)
    def broken(*arguments, **keywords):
        raise OSError('disk full')
    monkeypatch.setattr(Image.Image, 'save', broken)
    with pytest.raises(OSError):
        write_film(tmp_path / 'a.gif', frames)
    class Deaf:
        "A build of OpenCV without a codec."
        def __init__(self, *arguments): pass
        def write(self, frame): pass
        def release(self): pass
    monkeypatch.setattr('cv2.VideoWriter', Deaf)
    with pytest.raises(InterflowError, match='a.mp4: this build of OpenCV writes no MP4; write a .gif'):
        write_film(tmp_path / 'a.mp4', frames)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('shape', ((3, 6, 8), (1, 5, 8, 8), (48, 8)))
def test_latents_of_another_shape(prior, shape):
    for ask in (lambda z: along_axes(prior, z, 3.0), lambda z: draw_residuals(prior, z, 3.0), lambda z: draw_shells(prior, {'a': z}, 3.0)):
        with pytest.raises(InterflowError, match=r'give finite latents \(B, 6, h, w\)'):
            ask(torch.zeros(shape))
    with pytest.raises(InterflowError, match='finite latents'):
        along_axes(prior, torch.full((1, 6, 8, 8), math.nan), 3.0)
