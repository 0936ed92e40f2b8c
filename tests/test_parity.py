"""Against what the published code computes with the same weights (tests/reference): latents, images, densities, losses, gradients."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from interflow.checkpoints import from_published, published_name
from interflow.core import InterflowError
from interflow.encoder import level_features
from interflow.losses import LossWeights, consistency, information_bottleneck, mix, reduce4

REFERENCE = Path(__file__).parent / 'reference'


@pytest.fixture(scope='module')
def data():
    with np.load(REFERENCE / 'flow_24_32x32.npz') as file:
        return {name: file[name] for name in file.files}


def tensor(array):
    return torch.from_numpy(np.asarray(array))


@pytest.fixture(scope='module')
def run(published, data):
    "Everything the reference holds, computed by our model, with gradients of the total loss."
    model = from_published(published)
    hr, lr2, lr4 = (tensor(data[name]) for name in ('hr', 'lr2', 'lr4'))
    cond = model.condition(hr)
    (z2, log_det2), (z4, log_det4) = model.encode(lr2, cond), model.encode(lr4, cond)
    pixels = hr.shape[-2] * hr.shape[-1]

    def bits(z, log_det, factor):
        return -(model.prior.log_prob(z, factor) + log_det) / (pixels * math.log(2))
    mixes = {a: model.decode(mix(z2, z4, torch.full((len(hr),), a)), cond) for a in (.25, .5)}
    true = torch.zeros(len(hr), dtype=torch.long)
    terms = [bits(z2, log_det2, 2.1).mean(), consistency(mixes[.5], mix(lr2, lr4, torch.full((len(hr),), .5))),
             information_bottleneck(model.prior.log_posterior(z2), true).mean()]
    weights = LossWeights()
    total = terms[0] + weights.consistency * terms[1] + weights.bottleneck * terms[2]
    total.backward()
    return dict(model=model, features=level_features(*model.encoder(hr)), z2=z2, z4=z4, logdet2=log_det2, logdet4=log_det4, nll2=bits(z2, log_det2, 2.1),
                nll4=bits(z4, log_det4, 3.75), posterior2=model.prior.log_posterior(z2), posterior4=model.prior.log_posterior(z4), mixes=mixes,
                terms=[*terms, total], hr=hr, lr2=lr2, lr4=lr4)


def test_features(run, data):
    fine, coarse = run['features']
    assert np.abs(coarse.mean((2, 3)).detach().numpy() - data['feat_up1_mean']).max() < 1e-4
    assert np.abs(fine.mean((2, 3)).detach().numpy() - data['feat_up2_mean']).max() < 1e-4


@pytest.mark.parametrize('name', ['z2', 'z4'])
def test_latents(run, data, name):
    assert (run[name] - tensor(data[name])).abs().max() < 1e-4


@pytest.mark.parametrize('a', [.25, .5])
def test_mixed_images(run, data, a):
    assert (run['mixes'][a] - tensor(data[f'mix{a:g}'])).abs().max() < 1e-4


def test_reduced_images(run, data):
    assert (reduce4(run['mixes'][.25]) - tensor(data['down_gen'])).abs().max() < 1e-4
    assert (reduce4((run['lr2'] + run['lr4']) / 2) - tensor(data['down_mix'])).abs().max() < 1e-5


@pytest.mark.parametrize('name', ['logdet2', 'logdet4', 'nll2', 'nll4'])
def test_densities(run, data, name):
    assert torch.allclose(run[name], tensor(data[name]), rtol=1e-3)


@pytest.mark.parametrize('label, index', [(2, 0), (4, 1)])
def test_posterior_and_log_probs(run, data, label, index):
    assert torch.allclose(run[f'posterior{label}'][:, index], tensor(data[f'll_ib{label}']), rtol=1e-3, atol=1e-6)
    z, prior = run[f'z{label}'][:1], run['model'].prior
    ours = torch.cat([prior.log_prob(z, factor) for factor in prior.factors]) / (z[0, 0].numel() * math.log(2))
    assert torch.allclose(ours, tensor(data[f'logp{label}']), rtol=1e-3)


def test_loss_terms(run, data):
    nll, consistent, bottleneck, total = (term.item() for term in run['terms'])
    expected = data['loss_terms']
    assert nll == pytest.approx(expected[0], rel=1e-3) and bottleneck == pytest.approx(expected[2], rel=1e-3)
    assert consistent == pytest.approx(expected[1], abs=1e-7) and total == pytest.approx(expected[3], rel=1e-3)


def test_gradient_norms(run, data):
    named = dict(run['model'].named_parameters())
    ours = {published_name(name): p.grad for name, p in named.items() if not name.startswith('prior.')}
    ours |= {'cov_shift_0': named['prior.roots'].grad[0], 'mean_shift_0': named['prior.means'].grad[0]}
    for name, expected in zip(data['grad_names'], data['grad_norms']):
        assert ours[str(name)].norm().item() == pytest.approx(expected, rel=1e-3), name


def test_every_published_entry_is_used_or_known_to_be_unused(published):
    model = from_published(published)
    names = {published_name(name) for name in model.state_dict() if name.startswith(('encoder.', 'flow.')) and not name.endswith('initialised')}
    left = {name for name in published if name not in names and not name.startswith(('mean_shift_', 'cov_shift_'))}
    assert all(name.split('.')[2] in ('upconv2', 'HRconv', 'conv_last') for name in left), sorted(left)[:5]


def test_published_checkpoint_from_a_file_and_its_faults(published, tmp_path):
    torch.save(published, tmp_path / 'weights.pth')
    assert torch.equal(from_published(tmp_path / 'weights.pth').prior.roots[0], published['cov_shift_0'])
    with pytest.raises(InterflowError, match='no such file'):
        from_published(tmp_path / 'absent.pth')
    (tmp_path / 'broken.pth').write_bytes(b'not a checkpoint')
    with pytest.raises(InterflowError, match='broken.pth'):
        from_published(tmp_path / 'broken.pth')
    with pytest.raises(InterflowError, match='labels'):
        from_published(published, labels=(2, 3, 4))
    assert from_published(published, labels=(2, 3)).config.factors == (2.1, 3.0)


@pytest.mark.parametrize('size', [(4, 4), (12, 20)])
def test_any_size_that_is_a_multiple_of_4(run, size):
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cond = run['model'].condition(x)
        z, _ = run['model'].encode(x, cond)
        assert (run['model'].decode(z, cond) - x).abs().max() < 1e-3
