"""The model, its prior and its files."""
import json
import math
from dataclasses import replace

import pytest
import torch

from interflow.checkpoints import load_model, save_model
from interflow.core import InterflowError, make_generator, pad_to_multiple
from interflow.layers.bijection import autograd_log_det
from interflow.losses import crps, interflow_loss
from interflow.model import InterFlow, InterFlowConfig
from interflow.prior import GaussianPrior, transport_map

FACTORS = [2.1, 2.4, 3.0, 3.3, 3.75]


def shaken(config=None, dtype=torch.float64, size=.03):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    model = InterFlow(config or InterFlowConfig.tiny(), generator).to(dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            # the prior's matrices, small at the start, less: they must stay well conditioned
            amount = size / 10 if name == 'prior.roots' else size
            p.add_(amount * torch.randn(p.shape, generator=generator, dtype=dtype))
    return model


@pytest.fixture(params=(0, 1, 2), ids=('published', 'mean', 'mean and scale'))
def model(request):
    return shaken(replace(InterFlowConfig.tiny((2.1, 3.0, 3.75)), moments=request.param))


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize('factor', FACTORS)
def test_prior_agrees_with_torch_distributions(model, factor):
    z = rand(2, 48, 2, 3) - .5
    mean, root = model.prior.gaussian(factor)
    reference = torch.distributions.MultivariateNormal(mean.expand(48), root @ root.T)
    expected = reference.log_prob(z.permute(0, 2, 3, 1)).sum((1, 2))
    assert torch.allclose(model.prior.log_prob(z, factor), expected, rtol=1e-9)


@pytest.mark.parametrize('factor', FACTORS)
def test_samples_have_the_priors_moments(model, factor):
    draws = model.prior.sample((1, 48, 300, 400), factor, make_generator(0, factor))[0].flatten(1)
    mean, root = model.prior.gaussian(factor)
    sigma = root @ root.T
    tolerance = 5 * sigma.diagonal().max() / math.sqrt(draws.shape[1])
    error = sigma.diagonal().max().sqrt() / math.sqrt(draws.shape[1])
    assert (draws.mean(1) - mean).abs().max() < 5 * error
    assert (torch.cov(draws) - sigma).abs().max() < 2 * tolerance
    cold = model.prior.sample((1, 48, 30, 40), factor, make_generator(0, factor), temperature=0.)
    assert torch.allclose(cold, mean.expand_as(cold))


def test_geodesic_is_the_shortest_way():
    "Along the geodesic Wasserstein distances add up; along mixtures of covariances they do not."
    prior = GaussianPrior((2.1, 3.75), 6).double()
    with torch.no_grad():
        prior.roots.add_(.3 * (rand(2, 6, 6) - .5))

    def distance(first, second):
        (m1, a1), (m2, a2) = first, second
        transport = transport_map(a1, a2)
        sigma1 = a1 @ a1.T
        move = torch.eye(6) - transport
        return ((m1 - m2) ** 2 * 6 + (move @ sigma1 @ move).trace()).sqrt()
    ends = prior.gaussian(2.1), prior.gaussian(3.75)
    for factor in (2.4, 3.0, 3.5):
        middle = prior.gaussian(factor)
        whole, parts = distance(*ends), distance(ends[0], middle) + distance(middle, ends[1])
        assert torch.allclose(whole, parts, rtol=1e-6)
        assert torch.allclose(distance(ends[0], middle), whole * (factor - 2.1) / 1.65, rtol=1e-6)


@pytest.mark.parametrize('factor', [1., 2.0, 3.8, float('nan')])
def test_unknown_factors_are_refused(model, factor):
    with pytest.raises(InterflowError, match='factor'):
        model.prior.gaussian(factor)


@pytest.mark.parametrize('size', [(4, 8), (8, 8), (20, 12)])
def test_encode_and_decode_are_inverse(model, size):
    hr, lr = rand(2, 3, *size), rand(2, 3, *size, seed=1)
    cond = model.condition(hr)
    z, _ = model.encode(lr, cond)
    assert z.shape == (2, 48, size[0] // 4, size[1] // 4)
    assert torch.allclose(model.decode(z, cond), lr, atol=1e-9)


def test_whole_model_log_det(model):
    hr, lr = rand(1, 3, 4, 8), rand(1, 3, 4, 8, seed=1)
    cond = model.condition(hr)
    z, log_det = model.encode(lr, cond)
    forward = autograd_log_det(lambda x: model.encode(x, cond)[0], lr)
    inverse = autograd_log_det(lambda x: model.decode(x, cond), z.detach())
    assert torch.allclose(log_det, forward, atol=1e-7)
    assert torch.allclose(-log_det, inverse, atol=1e-7)


def test_log_prob_is_the_priors_density_times_the_volume(model):
    "By hand: the Gaussian of z, moved and stretched for the scene, times the full |det dz/dx|."
    cond, x = model.condition(rand(1, 3, 4, 4)), rand(1, 3, 4, 4, seed=1)
    z, _ = model.encode(x, cond)
    mean, root = model.prior.gaussian(3.3)
    mean = mean.expand(48)
    if cond.moments is not None:      # 3.3 lies at .4 of the way from 3.0 to 3.75
        move, scale = (.6 * values[1, 0, :, 0, 0] + .4 * values[2, 0, :, 0, 0]
                       for values in (cond.moments.mean, cond.moments.log_scale.exp()))
        mean, root = move + scale * mean, scale[:, None] * root
    density = torch.distributions.MultivariateNormal(mean, root @ root.T).log_prob(z[0, :, 0, 0])
    volume = autograd_log_det(lambda lr: model.encode(lr, cond)[0], x)
    assert torch.allclose(model.log_prob(x, cond, 3.3), density + volume, rtol=1e-9)


def test_gradients_reach_every_parameter():
    model = shaken()
    cond = model.condition(rand(2, 3, 8, 12))
    lr = rand(2, 3, 8, 12, seed=1)
    sum(model.log_prob(lr, cond, factor).sum() for factor in model.config.factors).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None or not grad.abs().sum() > 0]


@pytest.mark.parametrize('size', [(6, 8), (8, 10), (5, 5)])
def test_sizes_that_are_no_multiples_of_4(model, size):
    with pytest.raises(InterflowError, match='multiple of 4'):
        model.condition(rand(1, 3, *size))
    padded, (height, width) = pad_to_multiple(rand(1, 3, *size))
    cond = model.condition(padded)
    lr = pad_to_multiple(rand(1, 3, *size, seed=1))[0]
    back = model.decode(model.encode(lr, cond)[0], cond)[..., :height, :width]
    assert torch.allclose(back, rand(1, 3, *size, seed=1), atol=1e-9)


def test_pair_on_different_grids_is_refused(model):
    with pytest.raises(InterflowError, match='same grid'):
        model.encode(rand(1, 3, 8, 8), model.condition(rand(1, 3, 8, 12)))


def test_samples_depend_on_the_generator_alone(model):
    cond = model.condition(rand(1, 3, 8, 8))
    first, again, other = (model.sample(cond, 3.0, make_generator(seed, 'sample'))
                           for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_save_and_load_are_exact(tmp_path, dtype):
    model = shaken(dtype=torch.float32)
    save_model(tmp_path / 'model', model)
    again = load_model(tmp_path / 'model')
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    hr, lr = rand(1, 3, 8, 8).to(dtype), rand(1, 3, 8, 8, seed=1).to(dtype)
    model, again = model.to(dtype), again.to(dtype)
    one, other = (each.log_prob(lr, each.condition(hr), 2.5) for each in (model, again))
    assert torch.equal(one, other)


def test_checkpoint_of_another_preset(tmp_path):
    save_model(tmp_path / 'model', shaken(dtype=torch.float32))
    path = tmp_path / 'model' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'hidden': 32}))
    with pytest.raises(InterflowError, match='model.safetensors.*another preset'):
        load_model(tmp_path / 'model')


def test_training_under_autocast_stays_near_full_precision():
    model = shaken(dtype=torch.float32)
    batch = {'hr': rand(2, 3, 16, 16).float(), 'lr': rand(2, 2, 3, 16, 16, seed=1).float()}
    full, terms = interflow_loss(model, batch, make_generator(0))
    with torch.autocast('cpu', torch.bfloat16):
        rough, rough_terms = interflow_loss(model, batch, make_generator(0))
    rough.backward()
    assert rough.dtype == torch.float32 and torch.allclose(full, rough, rtol=.02)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda_agrees_with_cpu():
    model = shaken(dtype=torch.float32)
    hr, lr = rand(1, 3, 32, 48).float(), rand(1, 3, 32, 48, seed=1).float()
    here = model.log_prob(lr, model.condition(hr), 2.5)
    model, hr, lr = model.to('cuda'), hr.to('cuda'), lr.to('cuda')
    cond = model.condition(hr)
    assert torch.allclose(model.log_prob(lr, cond, 2.5).cpu(), here, rtol=1e-3)
    assert model.sample(cond, 2.5, make_generator(0, 'cuda', device='cuda')).device.type == 'cuda'


def test_a_model_saved_before_there_were_moments_is_the_published_one(tmp_path):
    model = shaken(replace(InterFlowConfig.tiny(), moments=0), torch.float32)
    save_model(tmp_path / 'old', model)
    stored = json.loads((tmp_path / 'old' / 'config.json').read_text())
    del stored['moments']
    (tmp_path / 'old' / 'config.json').write_text(json.dumps(stored))
    assert load_model(tmp_path / 'old').config == model.config


def test_fresh_moments_are_the_published_prior():
    "Before training the network of the moments says nothing: one density, one image."
    torch.manual_seed(0)
    knowing = InterFlow(InterFlowConfig.tiny(), make_generator(0)).eval()
    plain = InterFlow(replace(InterFlowConfig.tiny(), moments=0), make_generator(0)).eval()
    plain.load_state_dict({name: value for name, value in knowing.state_dict().items()
                           if not name.startswith('moments.')})
    hr, lr = (torch.rand(1, 3, 16, 16, generator=make_generator(seed)) for seed in (0, 1))
    conditions = [(model, model.condition(hr)) for model in (knowing, plain)]
    assert torch.equal(*(model.log_prob(lr, cond, 2.9) for model, cond in conditions))
    assert torch.equal(*(model.sample(cond, 2.9, make_generator(2)) for model, cond in conditions))


@pytest.mark.parametrize('spread, better', [(.5, 1.), (2., 1.)])
def test_the_crps_prefers_draws_that_vary_as_the_truth(spread, better):
    truth, *draws = torch.randn(3, 3000, 3, 4, 4, generator=make_generator(0))
    assert crps(*(better * x for x in draws), truth) < crps(*(spread * x for x in draws), truth)


def test_the_crps_asks_for_the_grain_too():
    "Noise of the right strength, but the same in blocks of four, scores worse than white noise."
    truth, first, second = torch.randn(3, 3000, 3, 4, 4, generator=make_generator(1))
    coarse = [x[..., :1, :1].expand_as(x) for x in (first, second)]
    assert crps(first, second, truth) < .9 * crps(*coarse, truth)
