"""A changed layer is never ignored: the model gives the layers' numbers, or one clear error."""
import copy
import logging

import pytest
import torch
import torch.nn.functional as F

from interflow import encoder, fast
from interflow.core import InterflowError, make_generator
from interflow.encoder import level_features
from interflow.fast import FastForm, differences, exchanged, form_of
from interflow.flow import PlainForm, Unfolded, arrange, conditional_step, flow_step
from interflow.layers import coupling
from interflow.layers.actnorm import ActNorm
from interflow.layers.bijection import Bijection, Chain, Mixing, fold_of
from interflow.layers.coupling import AffineCoupling, AffineInjector, CouplingNet
from interflow.layers.invconv import InvConv
from interflow.layers.squeeze import Squeeze
from interflow.model import InterFlow, InterFlowConfig


class Turn(Bijection):
    "Channel k becomes channel k + 1; nothing is said of folding."

    def forward(self, x, cond=None):
        return x.roll(1, 1), x.new_zeros(len(x))

    def inverse(self, z, cond=None):
        return z.roll(-1, 1), z.new_zeros(len(z))


class FoldedTurn(Turn):
    "The same, and how it is folded; its size is that of level 2."

    @staticmethod
    def fold(turns):
        identity = torch.eye(48, dtype=torch.get_default_dtype())
        weight = identity.roll(1, 0).expand(len(turns), 48, 48)
        zero = weight.new_zeros(len(turns), 48)
        return Mixing(weight, zero, weight.mT, zero), zero.sum()


class Doubled(InvConv):
    "Twice the matrix."

    def forward(self, x, cond=None):
        z, log_det = super().forward(x)
        return 2 * z, log_det + x[0].numel() * torch.tensor(2.).log()

    def inverse(self, z, cond=None):
        x, log_det = super().inverse(z / 2)
        return x, log_det - z[0].numel() * torch.tensor(2.).log()


class OtherScale(AffineCoupling):
    "The scale 1 + h^2."

    def forward(self, x, cond):
        z1, z2 = x.tensor_split([self.net.in_channels], 1)
        shift, scale = squares(self.net(cond, z1))
        return torch.cat([z1, z2 / scale - shift], 1), -scale.log().sum((1, 2, 3))

    def inverse(self, z, cond):
        z1, z2 = z.tensor_split([self.net.in_channels], 1)
        shift, scale = squares(self.net(cond, z1))
        return torch.cat([z1, (z2 + shift) * scale], 1), scale.log().sum((1, 2, 3))


def squares(h):
    return h[:, 0::2], 1 + h[:, 1::2] ** 2


def steps(model, level=1):
    "The entries of a level: the squeeze, then its steps."
    return model.flow.layers[level].layers


def parts(step):
    return step.layers[2].layers


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    "Nothing compared, nothing said yet."
    monkeypatch.setattr(fast, '_verdicts', {})
    monkeypatch.setattr(fast, '_said', set())


@pytest.fixture
def model():
    torch.manual_seed(0)
    generator = make_generator(0)
    model = InterFlow(InterFlowConfig.tiny(), generator).double().eval()
    with torch.no_grad():
        for p in model.flow.parameters():
            p.add_(.03 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def images(seed, count=1):
    return torch.rand(count, 3, 16, 24, generator=make_generator(seed), dtype=torch.float64)


def agree(model, form):
    "What the model computes, against the layers one by one; `form` is the form it has to run in."
    hr, lr = images(1), images(2, 2)
    with torch.no_grad():
        cond = model.condition(hr)
        z, log_det = model.encode(lr, cond)
        layers = model.flow.condition(level_features(*model.encoder(hr)))
        expected, expected_log_det = model.flow(lr, layers)
        assert type(cond.form) is form
        assert torch.allclose(z, expected, atol=1e-8) and torch.allclose(log_det, expected_log_det)
        assert torch.allclose(model.decode(z, cond), lr, atol=1e-8)
        assert torch.allclose(model.decode(z + .1, cond), model.flow.inverse(z + .1, layers)[0])


def test_what_nobody_changed_runs_fast(model, caplog):
    agree(model, FastForm)
    assert not caplog.records and exchanged() == []


# ---------------------------------------------------------------- exchanged functions

def test_another_scale_function_serves_both_forms(model, monkeypatch):
    agree(model, FastForm)      # compared before: the exchange has to be noticed afterwards
    before = model.encode(images(2), model.condition(images(1)))[1]
    monkeypatch.setattr(coupling, 'scale_of', lambda h: torch.exp(torch.tanh(h)))
    agree(model, FastForm)
    assert not torch.allclose(model.encode(images(2), model.condition(images(1)))[1], before)


def test_another_start_of_the_scale_serves_both_forms(model, monkeypatch):
    monkeypatch.setattr(coupling, 'SCALE_START', 1.)
    agree(model, FastForm)


@pytest.mark.parametrize('first', [True, False], ids=['used before', 'at once'])
def test_an_exchanged_function_that_the_fold_does_not_call(model, monkeypatch, caplog, first):
    if first:
        agree(model, FastForm)
    monkeypatch.setattr(coupling, 'affine_parameters', squares)
    agree(model, PlainForm)
    model.condition(images(1))
    (line,) = caplog.messages
    assert 'plain form' in line and 'interflow.layers.coupling.affine_parameters' in line
    monkeypatch.undo()
    agree(model, FastForm)


@pytest.mark.parametrize('name', ['affine', 'affine_inverse'])
def test_an_exchanged_formula_serves_both_forms(model, monkeypatch, name):
    written = getattr(coupling, name)
    monkeypatch.setattr(coupling, name, lambda x, shift, scale: written(x, 2 * shift, scale))
    hr, lr = images(1), images(2)
    cond = model.condition(hr)
    plain = PlainForm(model.flow, *model.encoder(hr))
    for one, other in zip((*cond.form.encode(lr), cond.form.decode(images(3).view(1, 48, 4, 6))),
                          (*plain.encode(lr), plain.decode(images(3).view(1, 48, 4, 6)))):
        assert torch.allclose(one, other)


def test_an_exchanged_method_of_a_layer(model, monkeypatch, caplog):
    agree(model, FastForm)
    written = AffineInjector.condition
    monkeypatch.setattr(AffineInjector, 'condition', lambda self, x: written(self, 2 * x))
    agree(model, PlainForm)
    assert 'AffineInjector' in caplog.text


def test_an_exchanged_method_of_the_network(model, monkeypatch):
    written = CouplingNet.forward
    monkeypatch.setattr(CouplingNet, 'forward', lambda self, *inputs: 2 * written(self, *inputs))
    agree(model, PlainForm)


def test_other_features_of_the_levels(model, monkeypatch, caplog):
    bilinear = lambda x: F.interpolate(x, scale_factor=2, mode='bilinear')
    monkeypatch.setattr(encoder, '_twice', bilinear)
    assert isinstance(form_of(model.flow, *model.encoder(images(1))), PlainForm)
    assert 'encoder._twice' in caplog.text


# ------------------------------------------------- subclasses, added layers, exchanged parts

def change_scale_in_a_subclass(model):
    for step in steps(model)[3:]:
        parts(step)[0].__class__ = OtherScale


def subclass_without_a_change(model):
    steps(model)[1].layers[0].__class__ = type('Mine', (ActNorm,), {})


def change_a_matrix(model):
    steps(model, 0)[2].layers[1].__class__ = Doubled


def add_a_layer_within_a_step(model):
    steps(model)[4].layers.insert(1, Turn())


def add_a_layer_after_the_coupling(model):
    steps(model)[3].layers.append(Turn())


def add_a_step(model):
    steps(model).insert(4, Turn())


def add_a_step_at_the_end(model):
    steps(model).append(Turn())


def add_a_plain_step_at_the_end(model):
    steps(model).append(flow_step(48).double())


def exchange_the_parts_of_a_coupling(model):
    layers = parts(steps(model)[3])
    layers.insert(0, layers.pop(1))


def leave_out_the_injector(model):
    parts(steps(model)[3]).pop(1)


def exchange_the_squeeze(model):
    class Other(Squeeze):
        def forward(self, x, cond=None):
            z, log_det = super().forward(x)
            return z.roll(1, 1), log_det

        def inverse(self, z, cond=None):
            return super().inverse(z.roll(-1, 1))
    steps(model)[0] = Other()


def exchange_an_activation(model):
    net = parts(steps(model)[3])[0].net
    net.middle_norm = torch.nn.Sequential(net.middle_norm)
    net.middle_norm.forward = lambda h: (h, None)


def give_a_layer_its_own_method(model):
    layer = steps(model)[3].layers[1]
    written = layer.forward
    layer.forward = lambda x, cond=None: written(x)


def hook_a_layer(model):
    parts(steps(model)[3])[0].net.first_norm.register_forward_hook(lambda *_: None)


def parametrise_a_layer(model):
    torch.nn.utils.parametrizations.spectral_norm(parts(steps(model)[3])[0].net.middle)


CHANGES = [
    change_scale_in_a_subclass, subclass_without_a_change, change_a_matrix,
    add_a_layer_within_a_step, add_a_layer_after_the_coupling, add_a_step, add_a_step_at_the_end,
    add_a_plain_step_at_the_end, exchange_the_parts_of_a_coupling, leave_out_the_injector,
    exchange_the_squeeze, exchange_an_activation, give_a_layer_its_own_method, hook_a_layer,
    parametrise_a_layer,
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize('used', [True, False], ids=['used before', 'at once'])
def test_what_does_not_say_how_it_is_folded_runs_in_the_plain_form(model, caplog, change, used):
    if used:
        agree(model, FastForm)
    change(model)
    agree(model, PlainForm)
    agree(model, PlainForm)
    (record,) = caplog.records
    assert record.name == 'interflow' and record.levelno == logging.WARNING
    assert 'plain form' in record.message
    with pytest.raises(Unfolded):
        FastForm(model.flow, *model.encoder(images(1)))


def exchange_norm_and_matrix(model):
    "A step has the 1x1 convolution first: known, since both only mix channels."
    steps(model)[4].layers.insert(0, steps(model)[4].layers.pop(1))


def add_a_step_of_a_known_kind(model):
    steps(model).insert(2, conditional_step(48, model.encoder.feature_channels, 24).double().eval())


def add_layers_that_fold(model):
    steps(model)[4].layers.insert(1, FoldedTurn())
    steps(model).insert(3, FoldedTurn())


def leave_out_a_norm(model):
    steps(model)[3].layers.pop(0)


def take_no_plain_steps(model):
    for level in (0, 1):
        del steps(model, level)[1:3]


def nest_a_step(model):
    steps(model)[3] = Chain([Chain([steps(model)[3]])])


KNOWN = [exchange_norm_and_matrix, add_a_step_of_a_known_kind, add_layers_that_fold,
         leave_out_a_norm, take_no_plain_steps, nest_a_step]


@pytest.mark.parametrize('change', KNOWN, ids=lambda change: change.__name__)
def test_arrangements_of_layers_that_fold_run_fast(model, change, monkeypatch):
    monkeypatch.setattr(torch, 'get_default_dtype', lambda: torch.float64)      # for FoldedTurn
    change(model)
    agree(model, FastForm)


# ---------------------------------------------------------------- a text edited, its fold forgotten

class Edited(Doubled):
    "As if the room of InvConv had been edited: its `fold` says what it no longer is."
    fold = staticmethod(InvConv.fold)


def test_a_forgotten_fold_is_refused_with_an_explanation(model, monkeypatch, caplog):
    agree(model, FastForm)
    for step in steps(model)[1:]:
        step.layers[1].__class__ = Edited
    for _ in range(2):      # not only the first time
        words = r'log-determinant .* layer by layer, .* folded.*fold = None'
        with pytest.raises(InterflowError, match=words) as refusal:
            model.condition(images(1))
        assert not isinstance(refusal.value, Unfolded) and '\n' not in str(refusal.value)
    monkeypatch.setattr(Edited, 'fold', None)
    agree(model, PlainForm)


@pytest.mark.filterwarnings('ignore')
def test_a_net_of_other_shape_is_refused_with_an_explanation(model):
    net = parts(steps(model)[3])[0].net
    net.middle = torch.nn.Conv2d(24, 24, 3, padding=1, bias=False).double()
    with pytest.raises(InterflowError, match='fold'):
        model.condition(images(1))


def test_a_fresh_model_is_compared_with_weights_that_are_not_zero():
    "The last convolutions start at zero: what stands before them would not be seen."
    class Sloped(CouplingNet):
        def forward(self, feature_half, z1=None):
            h = feature_half
            if z1 is not None:
                h = h + F.conv2d(z1, self.first.weight[:, :self.in_channels], padding=1)
            h = F.leaky_relu(self.first_norm(h)[0], .3)
            h = F.relu(self.middle_norm(self.middle(h))[0])
            return self.last(h) * torch.exp(3 * self.log_gain)

        fold = staticmethod(CouplingNet.fold)
    model = InterFlow(InterFlowConfig.tiny()).eval()
    for part in model.flow.modules():
        if type(part) is CouplingNet:
            part.__class__ = Sloped
    with pytest.raises(InterflowError, match='folded'):
        model.condition(images(1).float())


def test_training_meets_the_same_rules(model):
    "After the first batch, which initialises layer by layer."
    model = InterFlow(InterFlowConfig.tiny()).train()
    steps(model)[3].layers[1].__class__ = Edited
    hr = images(1).float()
    model.encode(hr, model.condition(hr))
    assert model.flow.initialised
    with pytest.raises(InterflowError, match='fold'):
        model.condition(hr)


# ---------------------------------------------------------------- what the comparison leaves alone

def test_the_comparison_leaves_everything_alone(model, monkeypatch):
    model.train()
    for norm in model.flow.modules():
        if isinstance(norm, ActNorm):
            norm.initialised.fill_(True)
    calls = []
    monkeypatch.setattr(fast, 'differences', lambda *given: calls.append(1) or differences(*given))
    weights, flow = copy.deepcopy(model.state_dict()), repr(model)
    random = torch.get_rng_state()
    hr = images(1).requires_grad_()
    model.log_prob(images(2), model.condition(hr), 2.1).sum().backward()
    gradient = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.log_prob(images(2), model.condition(hr), 2.1).sum().backward()      # without comparison
    assert calls == [1]
    assert all(torch.equal(one, p.grad) for one, p in zip(gradient, model.parameters()))
    assert torch.equal(random, torch.get_rng_state()) and model.training and repr(model) == flow
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights.items())
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


@pytest.mark.parametrize('mode', [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_comparison_works_in_every_mode(mode, monkeypatch):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        monkeypatch.setattr(fast, '_verdicts', {})
        with mode():
            model = InterFlow(InterFlowConfig.tiny()).to(dtype).eval()
            if dtype != torch.bfloat16:
                assert isinstance(model.condition(images(1).to(dtype)).form, FastForm)
            else:      # the folding itself needs a solver that half precision has not
                fast.check_once(model.flow, arrange(model.flow), (48, 96))
            assert list(fast._verdicts.values()) == [([], [])]


def test_under_autocast_and_with_broken_weights_the_comparison_is_the_same(model):
    with torch.no_grad():
        steps(model)[3].layers[1].log_s.fill_(float('nan'))
    with torch.autocast('cpu', torch.bfloat16):
        assert isinstance(model.condition(images(1)).form, FastForm)


def test_each_kind_is_compared_once(model, monkeypatch):
    calls = []
    monkeypatch.setattr(fast, 'differences', lambda *given: calls.append(1) or differences(*given))
    for _ in range(2):
        model.condition(images(1))
        InterFlow(InterFlowConfig.tiny()).eval().condition(images(1).float())
    assert calls == [1]
    InterFlow(InterFlowConfig(blocks=1, taps=(0,), steps=1)).eval().condition(images(1).float())
    assert calls == [1, 1], 'another width of the encoder'


def test_the_plain_form_under_autocast_stays_exact(model):
    model = model.float()
    add_a_layer_within_a_step(model)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        cond = model.condition(images(1).float())
        z, log_det = model.encode(images(2).float(), cond)
        back = model.decode(z, cond)
    assert z.dtype == log_det.dtype == torch.float32
    assert (back - images(2).float()).abs().max() < 1e-4


def test_every_layer_says_how_it_is_folded(model):
    layers = [part for part in model.flow.modules() if isinstance(part, (Bijection, CouplingNet))]
    assert all(fold_of(layer) for layer in layers if type(layer) is not Squeeze)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda():
    model = InterFlow(InterFlowConfig.tiny()).eval().to('cuda')
    hr = images(1).float().to('cuda')
    assert isinstance(model.condition(hr).form, FastForm)
    add_a_layer_within_a_step(model)
    cond = model.condition(hr)
    back = model.decode(model.encode(hr, cond)[0], cond)
    assert isinstance(cond.form, PlainForm) and (back - hr).abs().max() < 1e-3
