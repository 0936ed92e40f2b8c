"""RCAN: parity with the published network, any size, clear faults."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interflow.core import InterflowError, make_generator
from interflow.sr.rcan import RCAN, RCANConfig, from_published, published_name

REFERENCE = Path(__file__).parent / 'reference'
SMALL = RCANConfig(channels=8, groups=2, blocks=2, reduction=2, global_residual=True)


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
