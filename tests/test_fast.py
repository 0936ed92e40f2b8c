"""The fast form of the flow gives what the plain form gives: latents, images, gradients."""
import pytest
import torch
import torch.nn.functional as F

from interflow.checkpoints import from_published
from interflow.core import InterflowError, make_generator
from interflow.encoder import Encoder
from interflow.fast import FastForm, twice_kernel
from interflow.flow import ConditionalFlow, PlainForm
from interflow.layers.actnorm import ActNorm
from interflow.model import InterFlow, InterFlowConfig

SHAPES = {'plain and conditional steps': dict(), 'no plain step': dict(plain_steps=0),
          'three plain steps': dict(plain_steps=3), 'one step': dict(steps=1)}
SINGLE = torch.float32


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(taps=(0, 1), dtype=torch.float64, steps=3, plain_steps=2):
    "An encoder and a flow with every parameter moved away from its start."
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    encoder = Encoder(channels=8, growth=4, blocks=2, taps=taps)
    flow = ConditionalFlow(encoder.feature_channels, 6, steps, plain_steps, generator)
    with torch.no_grad():
        for p in (*encoder.parameters(), *flow.parameters()):
            p.add_(.05 * torch.randn(p.shape, generator=generator))
    return encoder.to(dtype), flow.to(dtype).eval()


def results(form, encoder, flow, hr, lr, **keywords):
    "z, log_det, image, and the gradient of a function of all three for every parameter."
    encoder.zero_grad(), flow.zero_grad()
    made = form(flow, *encoder(hr), **keywords)
    z, log_det = made.encode(lr)
    image = made.decode(z + .1)
    (z.square().sum() + log_det.sum() + image.sin().sum()).backward()
    parameters = [p for part in (flow, encoder) for p in part.parameters() if p.grad is not None]
    return z, log_det, image, torch.cat([p.grad.flatten() for p in parameters])


@pytest.mark.parametrize('scenes, times', [(1, 1), (1, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize('shape', SHAPES)
def test_forms_agree(shape, scenes, times):
    encoder, flow = build(**SHAPES[shape])
    hr, lr = rand(scenes, 3, 8, 12), rand(scenes * times, 3, 8, 12, seed=1)
    forms = [results(form, encoder, flow, hr, lr) for form in (PlainForm, FastForm)]
    for plain, fast in zip(*forms, strict=True):
        assert torch.allclose(plain, fast, rtol=1e-9, atol=1e-10)


def test_one_tap():
    encoder, flow = build(taps=(1,))
    hr, lr = rand(2, 3, 8, 8), rand(2, 3, 8, 8, seed=1)
    forms = [results(form, encoder, flow, hr, lr) for form in (PlainForm, FastForm)]
    for plain, fast in zip(*forms, strict=True):
        assert torch.allclose(plain, fast, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (4, 3)])
def test_enlarged_convolution(size):
    small, weight = rand(2, 5, *size), rand(4, 5, 3, 3, seed=1)
    expected = F.conv2d(F.interpolate(small, scale_factor=2, mode='nearest'), weight, padding=1)
    found = F.conv_transpose2d(small, twice_kernel(weight), stride=2, padding=1)
    assert torch.allclose(found, expected)


def test_paper_size_with_reference_weights_in_float32(published):
    model = from_published(published).eval()
    hr, lr = rand(1, 3, 32, 40, dtype=SINGLE), rand(2, 3, 32, 40, seed=1, dtype=torch.float32)
    with torch.inference_mode():
        features = model.encoder(hr)
        plain, fast = PlainForm(model.flow, *features), FastForm(model.flow, *features)
        (z, log_det), (fast_z, fast_log_det) = plain.encode(lr), fast.encode(lr)
        assert (z - fast_z).abs().max() < 1e-4 and torch.allclose(log_det, fast_log_det, rtol=1e-5)
        assert (plain.decode(z) - fast.decode(z)).abs().max() < 1e-4


def saved_bytes(form, encoder, flow, hr, lr, **keywords):
    "Bytes that autograd keeps for the backward pass of an encoding and a decoding."
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = form(flow, *encoder(hr), **keywords)
        made.decode(made.encode(lr)[0]).sum()
    return sum(kept.values())


def test_recompute_gives_the_same_gradients_from_less_memory():
    encoder, flow = build()
    hr, lr = rand(2, 3, 32, 32), rand(4, 3, 32, 32, seed=1)
    given = FastForm, encoder, flow, hr, lr
    stored, full = results(*given), saved_bytes(*given)
    encoder.recompute = True
    again, lean = results(*given, recompute=True), saved_bytes(*given, recompute=True)
    for one, other in zip(stored, again, strict=True):
        assert torch.equal(one, other)
    assert lean < .6 * full, (lean, full)


def test_under_autocast_the_flow_stays_exact():
    encoder, flow = build(dtype=torch.float32)
    hr, lr = rand(2, 3, 16, 16, dtype=SINGLE), rand(4, 3, 16, 16, seed=1, dtype=torch.float32)
    with torch.inference_mode():
        z, log_det = FastForm(flow, *encoder(hr)).encode(lr)
        with torch.autocast('cpu', torch.bfloat16):
            form = FastForm(flow, *encoder(hr))
            rough, rough_log_det = form.encode(lr)
            back = form.decode(rough)
    assert rough.dtype == rough_log_det.dtype == back.dtype == torch.float32
    assert (back - lr).abs().max() < 1e-4, 'inverse in full precision'
    error = (rough - z).abs().max() / z.abs().max()
    assert 1e-6 < error < .03, 'the features alone are rounded'
    assert torch.allclose(rough_log_det, log_det, rtol=.02)


def test_the_first_batch_in_training_initialises_through_the_plain_form():
    torch.manual_seed(0)
    model = InterFlow(InterFlowConfig.tiny(), make_generator(0))
    hr, lr = rand(2, 3, 16, 16, dtype=SINGLE), rand(4, 3, 16, 16, seed=1, dtype=torch.float32)
    form = model.eval().condition(hr).form
    assert isinstance(form, FastForm), 'in evaluation a model is what its parameters say'
    cond = model.train().condition(hr)
    assert isinstance(cond.form, PlainForm) and not model.flow.initialised
    z, _ = model.encode(lr, cond)
    assert model.flow.initialised and isinstance(model.condition(hr).form, FastForm)
    again, _ = model.encode(lr, model.condition(hr))
    assert torch.allclose(again, z, atol=1e-4), 'the same batch again'
    norms = [layer for layer in model.flow.modules() if isinstance(layer, ActNorm)]
    assert all(layer.log_scale.abs().sum() > 0 for layer in norms)


def test_batches_that_do_not_fit_the_scenes_are_refused():
    model = InterFlow(InterFlowConfig.tiny()).eval()
    cond = model.condition(rand(2, 3, 8, 8, dtype=torch.float32))
    for wrong in (lambda: model.encode(torch.rand(3, 3, 8, 8), cond),
                  lambda: model.decode(torch.rand(1, 48, 2, 2), cond)):
        with pytest.raises(InterflowError, match='same number of images of each scene'):
            wrong()


@pytest.mark.parametrize('taps', [(), (23,), (-1, 2)])
def test_impossible_taps_are_refused(taps):
    with pytest.raises(InterflowError, match='taps'):
        InterFlowConfig(taps=taps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda_agrees_with_cpu():
    encoder, flow = build(dtype=torch.float32)
    hr, lr = rand(2, 3, 16, 24, dtype=SINGLE), rand(4, 3, 16, 24, seed=1, dtype=torch.float32)
    here = results(FastForm, encoder, flow, hr, lr)[:3]
    there = results(FastForm, encoder.to('cuda'), flow.to('cuda'), hr.to('cuda'), lr.to('cuda'))[:3]
    for one, other in zip(here, there, strict=True):
        assert torch.allclose(one, other.cpu(), rtol=1e-3, atol=1e-3)
