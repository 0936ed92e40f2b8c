"""Every layer and the flow against the contract: inverse, Jacobian, device, condition once."""
import pytest
import torch

from interflow.core import InterflowError
from interflow.flow import (
    ConditionalFlow,
    conditional_step,
    flow_level,
    flow_step,
    repeat_condition,
)
from interflow.layers.actnorm import ActNorm
from interflow.layers.bijection import Bijection, Chain, bijection_errors
from interflow.layers.coupling import AffineCoupling, AffineInjector, conditional_coupling
from interflow.layers.invconv import InvConv
from interflow.layers.squeeze import Squeeze

FEATURES = 5


class Level2Too(Bijection):
    "The whole flow behind the interface of one layer: its second feature is the first, reduced."

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def condition(self, feature):
        return self.flow.condition((feature, feature[..., ::2, ::2]))

    def forward(self, x, cond=None):
        return self.flow(x, cond)

    def inverse(self, z, cond=None):
        return self.flow.inverse(z, cond)


# name: (layer from a seed's generator, input channels, None or by what its feature is smaller)
LAYERS = {
    'squeeze': (lambda g: Squeeze(), 3, None),
    'actnorm': (lambda g: ActNorm(6), 6, None),
    'invconv': (lambda g: InvConv(6, g), 6, None),
    'coupling': (lambda g: AffineCoupling(6, FEATURES, 7), 6, 1),
    'coupling, odd channels': (lambda g: AffineCoupling(5, FEATURES, 7), 5, 1),
    'injector': (lambda g: AffineInjector(6, FEATURES, 7), 6, 1),
    'conditional coupling': (lambda g: conditional_coupling(6, FEATURES, 7), 6, 1),
    'plain step': (lambda g: flow_step(6, g), 6, None),
    'conditional step': (lambda g: conditional_step(6, FEATURES, 7, g), 6, 1),
    'chain': (lambda g: Chain([flow_step(6, g), conditional_step(6, FEATURES, 7, g)]), 6, 1),
    'level': (lambda g: flow_level(12, FEATURES, 7, 2, 1, g), 3, 2),
    'flow': (lambda g: Level2Too(ConditionalFlow(FEATURES, 7, 2, 2, g)), 3, 2),
}
SIZES = [(4, 4), (8, 4), (4, 12)]


def make(name, dtype=torch.float64, size=(4, 4), batch=2):
    "A layer with all parameters moved away from their start, an input and a feature."
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    build, channels, divisor = LAYERS[name]
    layer = build(generator).to(dtype).eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(.05 * torch.randn(p.shape, generator=generator, dtype=dtype))
    x = torch.randn(batch, channels, *size, generator=generator, dtype=dtype)
    feature = divisor and torch.randn(batch, FEATURES, *(n // divisor for n in size),
                                      generator=generator, dtype=dtype)
    return layer, x, feature


def devices():
    return ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', LAYERS)
def test_inverse_and_jacobian(name, size):
    layer, x, feature = make(name, size=size, batch=1 if name == 'flow' else 2)
    errors = bijection_errors(layer, x, feature)
    assert max(errors.values()) < 1e-8, errors


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', LAYERS)
def test_device_and_dtype_are_kept(name, dtype, device):
    layer, x, feature = make(name, dtype)
    layer, x = layer.to(device), x.to(device)
    cond = None if feature is None else layer.condition(feature.to(device))
    z, log_det = layer(x, cond)
    back, inverse_log_det = layer.inverse(z, cond)
    for tensor in (z, log_det, back, inverse_log_det):
        assert tensor.dtype == dtype and tensor.device.type == device
    assert log_det.shape == inverse_log_det.shape == (len(x),)
    assert torch.allclose(back, x, atol=1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize('name', [name for name in LAYERS if name != 'squeeze'])
def test_gradients_reach_every_parameter_both_ways(name):
    layer, x, feature = make(name)
    for use in (layer.forward, layer.inverse):
        layer.zero_grad()
        cond = None if feature is None else layer.condition(feature)
        inputs = x if use == layer.forward else layer(x, cond)[0].detach()
        out, log_det = use(inputs, cond)
        (out.square().sum() + log_det.sum()).backward()
        grads = {name: p.grad for name, p in layer.named_parameters()}
        assert not [name for name, grad in grads.items()
                    if grad is None or not grad.abs().sum() > 0]


@pytest.mark.parametrize('name', [name for name, row in LAYERS.items() if row[2]])
def test_condition_of_one_scene_serves_many(name):
    layer, x, feature = make(name)
    one = layer.condition(feature[:1])
    together, log_det = layer(x, one)
    again, log_det_again = layer(x, repeat_condition(one, 2))
    alone, log_det_alone = layer(x[1:], one)
    assert torch.allclose(together, again) and torch.allclose(together[1:], alone)
    assert torch.allclose(log_det, log_det_again) and torch.allclose(log_det[1:], log_det_alone)


def test_a_condition_that_is_missing_is_noticed():
    layer, x, _ = make('conditional step')
    with pytest.raises((TypeError, AttributeError)):
        layer(x)
    chain, x, feature = make('chain')
    with pytest.raises(ValueError):
        chain(x, chain.condition(feature)[:1])


@pytest.mark.parametrize('size', [(5, 4), (4, 7)])
def test_odd_sizes_are_refused(size):
    with pytest.raises(InterflowError, match='pad'):
        Squeeze()(torch.zeros(1, 3, *size))


def test_actnorm_initialises_once_in_training_only():
    x = 3 + 2 * torch.randn(8, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    layer = ActNorm(6).eval()
    assert torch.equal(layer(x)[0], x)
    z, _ = layer.train()(x)
    assert z.mean((0, 2, 3)).abs().max() < 1e-5 and (z.std((0, 2, 3)) - 1).abs().max() < 1e-2
    kept = layer.bias.clone()
    layer(x + 10)
    assert torch.equal(kept, layer.bias)


def test_invconv_ignores_what_lies_outside_its_triangles():
    layer = InvConv(6, torch.Generator().manual_seed(0))
    before = layer.weight()
    with torch.no_grad():
        layer.lower.add_(torch.ones(6, 6).triu())
        layer.upper.add_(torch.ones(6, 6).tril())
    assert torch.equal(before, layer.weight())
