"""The rivals of the flow in benchmarks: deterministic, of HR's size and range, with the published numbers."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interflow.core import InterflowError, make_generator, photographs, read_image
from interflow.data import simulate
from interflow.model import InterFlow, InterFlowConfig

sys.path.insert(0, str(Path(__file__).parent.parent / 'benchmarks'))
import ablation  # noqa: E402
import city100  # noqa: E402
import degradations as D  # noqa: E402
import seeds  # noqa: E402

sys.path.pop(0)

FACTOR = 2.9


@pytest.fixture(scope='module')
def hr():
    "An odd part of a photograph: neither side is a multiple of the factor."
    return read_image(photographs('val')[0])[:, 40:173, 60:211]


@pytest.fixture(scope='module')
def fitted(hr):
    "A kernel fitted to a pair whose LR image is a known blur with a known noise."
    blurred = D.filtered(hr, D.bell(9, D.covariance(1.5, 1.5, 0.))) * .9 + .02
    noise = .01 * torch.randn(hr.shape, generator=make_generator(1))
    return D.fit_kernel([(hr, blurred + noise)], make_generator(0))


@pytest.fixture(scope='module', params=[*D.RANDOM, 'kernel'])
def degrade(request, fitted):
    return fitted if request.param == 'kernel' else D.RANDOM[request.param]


def test_the_same_generator_gives_the_same_image(degrade, hr):
    first, again, other = (degrade(hr, FACTOR, make_generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (degrade is D.bicubic)


@pytest.mark.parametrize('factor', [1.7, 2.9, 4.])
def test_size_range_and_dtype_are_those_of_hr(degrade, hr, factor):
    before = hr.clone()
    for seed in range(6):
        lr = degrade(hr, factor, make_generator(seed))
        assert lr.shape == hr.shape and lr.dtype == hr.dtype
        assert torch.isfinite(lr).all() and 0 <= lr.min() <= lr.max() <= 1
    assert torch.equal(hr, before)


def test_global_randomness_is_left_alone(degrade, hr):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    degrade(hr, FACTOR, make_generator(0))
    assert torch.equal(state, torch.get_rng_state())


def test_no_two_are_the_same(hr, fitted):
    images = [one(hr, FACTOR, make_generator(3)) for one in (*D.RANDOM.values(), fitted)]
    distances = [(a - b).abs().mean() for i, a in enumerate(images) for b in images[:i]]
    assert min(distances) > 1 / 255


@pytest.mark.parametrize('name', D.RANDOM)
def test_the_image_stays_where_it_is(name, hr):
    "The mean over draws fits HR best without a shift: no step moves the image by half a pixel."
    mean = torch.stack([D.RANDOM[name](hr, FACTOR, make_generator(s)) for s in range(24)]).mean(0)
    inner = slice(8, -8)
    def error(dy, dx):
        moved = mean.roll((dy, dx), (1, 2))
        return (moved - hr)[:, inner, inner].square().mean().item()
    for left, right in ((error(0, 1), error(0, -1)), (error(1, 0), error(-1, 0))):
        assert error(0, 0) < min(left, right)
        # the vertex of the parabola through the three errors: the shift in pixels
        assert abs((left - right) / (2 * (left + right - 2 * error(0, 0)))) < .25


@pytest.mark.parametrize('level', [.3, .6])
def test_a_flat_image_stays_flat_but_for_noise(degrade, level):
    "Means keep the level; what varies is noise, no larger than the published steps add up to."
    if isinstance(degrade, D.FittedKernel):
        return      # a kernel changes the level as its pairs do: tested below
    flat = torch.full((3, 64, 72), level)
    images = torch.stack([degrade(flat, FACTOR, make_generator(seed)) for seed in range(12)])
    assert (images.mean((2, 3)) - level).abs().max() < .03
    assert images.std((2, 3)).max() < .3
    if degrade is D.bicubic:
        assert torch.allclose(images, torch.full_like(images, level), atol=1e-5)
    else:
        assert images.std((2, 3)).max() > 1 / 255


def test_kernels_sum_to_one_and_have_the_published_sizes():
    generator = make_generator(0)
    found = {'bsrgan': (D.bsrgan_kernel(FACTOR, generator) for _ in range(300)),
             'realesrgan': (D.realesrgan_kernel(generator) for _ in range(300))}
    for name, sizes in (('bsrgan', D.BSRGAN().sizes), ('realesrgan', D.FIRST.sizes)):
        kernels = list(found[name])
        sides = {len(kernel) for kernel in kernels}
        assert sides == set(range(sizes[0], sizes[1] + 1, 2))
        assert all(abs(kernel.sum() - 1) < 1e-4 for kernel in kernels)
        negative = sum(kernel.min() < -1e-4 for kernel in kernels) / 300      # only the low-pass is
        assert negative == 0 if name == 'bsrgan' else .03 < negative < .2


def spread(kernel):
    "Standard deviations of a kernel along its two axes, smaller first."
    line = torch.arange(len(kernel), dtype=torch.float64) - (len(kernel) - 1) / 2
    y, x, k = line[:, None], line, kernel.double()
    xy = (k * x * y).sum()
    matrix = torch.stack([(k * y * y).sum(), xy, xy, (k * x * x).sum()]).view(2, 2)
    return torch.linalg.eigvalsh(matrix).clamp_min(0).sqrt()


def test_gaussians_have_the_standard_deviations_they_were_given():
    found = spread(D.bell(25, D.covariance(1.2, 2.5, .7)))
    assert torch.allclose(found, torch.tensor([1.2, 2.5], dtype=torch.float64), atol=.02)
    widest = max(spread(D.bsrgan_kernel(4., make_generator(s)))[1].item() for s in range(400))
    assert 2.5 < widest < 8 ** .5 + .01      # variance up to 8 at factor 4
    for numbers in (D.FIRST, D.SECOND):
        plain = replace(numbers, kernels=(.5, .5, 0, 0, 0, 0), sinc=0.)
        widest = max(spread(D.realesrgan_kernel(make_generator(s), plain))[1] for s in range(200))
        assert .9 * numbers.sigma[1] < widest < numbers.sigma[1] + .01


def test_noise_has_the_published_levels_and_kinds():
    grey = torch.full((3, 48, 48), .5)
    for noise, high in ((D.bsrgan_noise, 25), (D.realesrgan_noise, 30)):
        drawn = [255 * (noise(grey, make_generator(s)) - grey) for s in range(300)]
        alike = [one.std(0).max() < .1 for one in drawn]      # all colours have the same noise
        assert .3 < sum(alike) / 300 < .5
        stds = torch.stack([one.std() for one in drawn])
        most = max(high, 3 * 255 * (.5 / 256) ** .5)      # Gaussian; Poisson at this level
        assert .7 * high < stds.max() < 1.05 * most and stds.min() < 3
    # Poisson noise follows brightness: sqrt(.8 / .1), less what is clipped at black
    dark, bright = (torch.full((3, 48, 48), level) for level in (.1, .8))
    ratio = max((D.realesrgan_noise(bright, make_generator(s)) - bright).std()
                / (D.realesrgan_noise(dark, make_generator(s)) - dark).std() for s in range(12))
    assert 2 < ratio < 4


def test_published_numbers():
    "Written down once more, from the papers' own files."
    b, first, second = D.BSRGAN(), D.FIRST, D.SECOND
    assert (b.noise, b.quality, b.jpeg, b.resize, b.sizes) == ((2, 25), (30, 95), .9, .75, (7, 25))
    assert [b.blur[0] + b.blur[1] * s for s in (2, 4)] == [2.4, 2.8]
    assert [b.variance[0] + b.variance[1] * s for s in (2, 4)] == [6, 8]
    assert {D.bsrgan_quality(make_generator(s)) for s in range(900)} == set(range(30, 96))
    assert (first.sigma, second.sigma) == ((.2, 3.), (.2, 1.5))
    assert (first.noise, second.noise) == ((1., 30.), (1., 25.))
    assert (first.scales, second.scales) == ((.15, 1.5), (.3, 1.2))
    assert (first.directions, second.directions) == ((.2, .7, .1), (.3, .4, .3))
    assert (first.poisson, second.poisson) == ((.05, 3.), (.05, 2.5))
    assert (first.blur, second.blur, D.FINAL_SINC) == (1., .8, .8)
    for one in (first, second):
        assert one.quality == (30., 95.) and one.kernels == (.45, .25, .12, .03, .12, .03)
        assert (one.sinc, one.grey, one.gaussian, one.sizes) == (.1, .4, .5, (7, 21))


def test_the_last_reduction_of_bsrgan_stands_behind_the_first():
    orders = [D._bsrgan_order(make_generator(seed)) for seed in range(50)]
    assert all(one.index('first reduction') < one.index('last reduction') for one in orders)
    assert len({tuple(one) for one in orders}) > 30 and {len(one) for one in orders} == {6}


def test_a_fitted_kernel_finds_blur_gain_offset_and_noise(fitted, hr):
    true = .9 * D.filtered(hr, D.bell(9, D.covariance(1.5, 1.5, 0.))) + .02
    inner = (slice(None), slice(14, -14), slice(14, -14))
    assert (fitted.mean(hr) - true)[inner].std() < .005
    flat = torch.full((3, 64, 64), .5)
    assert (fitted.mean(flat) - .47).abs().max() < .01
    noise = (fitted(flat, FACTOR, make_generator(0)) - fitted.mean(flat)).std()
    assert .006 < noise < .014
    with pytest.raises(InterflowError, match='pairs: none'):
        D.fit_kernel([], make_generator(0))


def test_noise_is_like_the_residual():
    "Variance, colours and neighbours of a residual, on another size."
    white = torch.randn(3, 130, 140, generator=make_generator(0))
    residual = torch.stack([white[0], .5 * white[0] + white[1], .3 * white[2]])
    residual = .05 * (residual + residual.roll(1, 2))
    noise = D.noise_like(residual, (200, 220), make_generator(1))
    for image in (residual, noise):
        image -= image.mean((1, 2), keepdim=True)
    colours = [torch.cov(image.flatten(1)) for image in (residual, noise)]
    assert torch.allclose(*colours, atol=.15 * colours[0].max().item())
    neighbours = [(image[:, :, 1:] * image[:, :, :-1]).mean((1, 2)) for image in (residual, noise)]
    assert torch.allclose(*neighbours, rtol=.2)


@pytest.mark.parametrize('moments', [0, 1, 2])
def test_a_flow_at_one_factor_is_the_flow_there(moments):
    "City100's fine-tuning starts from the shipped flow at the camera's factor, which was not trained."
    torch.manual_seed(0)
    config = replace(InterFlowConfig.tiny((2., 3., 4.)), steps=1, moments=moments)
    model = InterFlow(config, make_generator(0)).eval()
    for name, value in model.named_parameters():
        if name.startswith(('prior.', 'moments.last')):
            value.data += .05 * torch.randn(value.shape, generator=make_generator(1, name))
    single = city100.at_factor(model, 2.6)
    hr = torch.rand(2, 3, 16, 20, generator=make_generator(2))
    with torch.inference_mode():
        images = []
        for one in (model, single):
            cond = one.condition(hr)
            images.append(one.sample(cond, 2.6, make_generator(4)))
    assert single.config == replace(config, factors=(2.6,))
    assert torch.allclose(*images, atol=1e-4 if moments < 2 else .02)
    with pytest.raises(InterflowError, match='outside the trained range'):
        city100.at_factor(model, 4.5)


def test_the_pairs_of_a_seed_grow_and_the_rest_is_disjoint():
    scenes = list(range(9))
    camera = city100.Camera('NikonD5500', 2.9, scenes, [])
    few, many = (city100.choose_pairs(camera, count, 1) for count in (2, 6))
    assert few[0] == many[0][:2] and sorted(many[0] + many[1]) == scenes
    assert few[0] != city100.choose_pairs(camera, 2, 0)[0]


def test_a_benchmark_trains_beside_its_own_record_and_is_read_when_it_comes_again(tmp_path, monkeypatch):
    "The folder of a training belongs to it alone: a record of the benchmark in it was refused."
    scenes = simulate(photographs('train')[:2], tmp_path / 'set', (2., 2.1, 2.9, 3.75, 4.), scale=.3)
    short = dict(steps=1, save_every=1, batch_size=1, patch=16)
    for benchmark in (city100, seeds):
        monkeypatch.setattr(benchmark, 'SR_PRESETS', {'tiny': replace(city100.SR_PRESETS['tiny'], **short)})
    for benchmark in (city100, ablation):
        monkeypatch.setattr(benchmark, 'PRESETS', {'tiny': replace(ablation.PRESETS['tiny'], **short)})
    camera = city100.Camera('NikonD5500', 2.9, scenes, scenes[:1])
    settings = replace(city100.QUICK, train=2, test=1, draws=1, flow_steps=1, tune_steps=1, flow_patch=16, sr_patch=16)
    job = city100.Job('rcan', 1, 1, 0, 'pairs+tuned')
    monkeypatch.setattr(seeds, 'JUDGED', (2.9,))
    monkeypatch.setattr(ablation, 'measure', lambda name, model, test: {'model': model.exists()})

    def found():
        return (city100.run_job(job, camera, None, tmp_path / 'city100', settings, 'cpu'),
                seeds.run('x2.1 and x3.75', 0, scenes, scenes, scenes[:1], '', tmp_path / 'seeds'),
                ablation.run('published', [replace(scene, lr={f: scene.lr[f] for f in ablation.TINY.factors}) for scene in scenes * 4], [], tmp_path / 'ablation', 1))
    first = found()
    assert first[0][0]['camera'] == 'NikonD5500' and first[1][0]['network'] == 'x2.1 and x3.75' and first[2] == {'model': True}
    monkeypatch.setattr(city100, 'train_sr', None)
    monkeypatch.setattr(seeds, 'train_sr', None)
    monkeypatch.setattr(ablation, 'train_flow', None)
    assert found() == first, 'read, not trained again'


def test_the_stored_table_follows_from_the_stored_results():
    "Where the benchmark was run."
    folder = Path(city100.__file__).parent
    if not (folder / 'city100.json').exists():
        pytest.skip('benchmarks/city100.json: not there yet')
    results = json.loads((folder / 'city100.json').read_text())
    assert city100.table(results) == (folder / 'city100.txt').read_text()
    assert city100.grid(results) == (folder / 'city100_grid.txt').read_text()
