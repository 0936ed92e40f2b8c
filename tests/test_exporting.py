"""Graphs for other programs: they answer as network and flow do, for any size and batch, say what they are, and load in silence."""
import ast
import json
import logging
import math
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenes import run_command

from interflow import band_numpy, exporting
from interflow.band import to_band
from interflow.checkpoints import save_model
from interflow.core import (
    InterflowError,
    make_generator,
    pad_to_multiple,
    photographs,
    read_image,
)
from interflow.data.scenes import resize
from interflow.exporting.flow import Conditioning, Decoding, flow_files, weights_at
from interflow.exporting.graphs import Recipe, record
from interflow.exporting.networks import Enlarging, enlarge, export_network, smallest_of
from interflow.generation import generate_scene
from interflow.model import InterFlow, InterFlowConfig
from interflow.paths import travel
from interflow.sr.networks import VARIANTS, arbitrary, build, network_config, save_network

onnxruntime = pytest.importorskip('onnxruntime')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')


@pytest.fixture(autouse=True)
def no_trace():
    "PyTorch writes each step of a recording to its log, and pytest keeps it."
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


def small(name):
    "A network of the smallest size that has all of its parts, which does something."
    config = network_config(name, 'tiny')
    less = {'vdsr': {'layers': 3}, 'rcan': {'groups': 1, 'blocks': 1}, 'han': {'groups': 1, 'blocks': 1}, 'kpn': {'blocks': 1},
            'nlsn': {'blocks': 1, 'every': 2, 'rounds': 1}, 'swinir': {'groups': 1}}.get(name, {})
    if arbitrary(build(name, 'tiny')):
        less = {'encoder': replace(config.encoder, blocks=1, convs=1)}
    net = build(replace(config, **less)).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.2)
    return net


def image(*shape, seed=0):
    return torch.rand(shape, generator=make_generator(seed))


def answer(session, lr):
    return torch.as_tensor(session.run(['sr'], {'lr': lr.numpy()})[0])


ELSEWHERE = """import sys, torch
for file in map(str.strip, sys.stdin):
    graph, inputs = torch.export.load(file).module(), torch.load(file + '.in')
    torch.save([graph(lr) for lr in inputs], file + '.out')
    print('interflow' in sys.modules, flush=True)"""


@pytest.fixture(scope='module')
def elsewhere():
    "What a graph answers in a process that has never seen this package: (file, inputs) -> outputs."
    with subprocess.Popen([sys.executable, '-c', ELSEWHERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        def ask(file, inputs):
            torch.save(inputs, f'{file}.in')
            process.stdin.write(f'{file}\n')
            process.stdin.flush()
            assert process.stdout.readline() == 'False\n'
            return torch.load(f'{file}.out')
        yield ask
        process.stdin.close()


def sized(factor, lr):
    return [int(factor * side + .5) for side in lr.shape[-2:]]


def pictures(net, factor=1):
    "Of other sizes than the example of a recording; of NLSN with the fewest buckets and all, a last chunk that is full, lacks 1, has 1."
    least, sizes = math.ceil(smallest_of(net) / factor), [(1, 1, 12), (2, 9, 3), (1, 20, 31)]
    if type(net).__name__ == 'NLSN':
        sizes = [(1, 0, 0), *sizes, (1, 400 // factor, 303 // factor), *((1, 0, 4 * more // factor) for more in range(1, 10))]
    return [image(batch, 3, least + more, least + wider, seed=more) for batch, more, wider in sizes]


@pytest.mark.parametrize('name', VARIANTS)
def test_networks_of_any_size(name, tmp_path, capfd, elsewhere):
    net, files = small(name), [tmp_path / 'net.onnx', tmp_path / 'net.pt2']
    if name in ('han', 'kpn', 'nlsn', 'swinir'):       # slow to load; the graph that enlarges, below, has this one inside
        del files[1]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert export_network(net, files, factor=2.5) <= 1e-4
        session = onnxruntime.InferenceSession(files[0])
    inputs = pictures(net)
    there = [elsewhere(file, inputs) for file in files[1:]]
    for k, lr in enumerate(inputs):
        with torch.no_grad():
            wanted = net(lr, size=sized(2.5, lr)) if arbitrary(net) else net(lr)
        for found in (answer(session, lr), *(answers[k] for answers in there)):
            assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-4
    for file in files[1:]:
        with zipfile.ZipFile(file) as archive:
            assert json.loads(archive.read(next(part for part in archive.namelist() if part.endswith('notes.json'))))['network'] == name
    assert [[*value.shape] for value in session.get_inputs()] == [['batch', 3, 'height', 'width']]
    said = capfd.readouterr()
    assert 'W:onnxruntime' not in said.err and 'warn' not in (said.err + said.out).lower()


@pytest.mark.parametrize('name', [name for name in VARIANTS if not arbitrary(name)])
def test_networks_that_enlarge_by_torch_alone(name, tmp_path, elsewhere):
    net, file = small(name), tmp_path / 'net.pt2'
    export_network(net, file, factor=2., enlarge=True)
    inputs = pictures(net, 2)
    for lr, there in zip(inputs, elsewhere(file, inputs), strict=True):
        with torch.no_grad():
            wanted = net(resize(lr, sized(2., lr)))
        assert there.shape == wanted.shape and (there - wanted).abs().max() < 1e-4


@pytest.mark.parametrize('factor, size', [(2., (20, 31)), (2.1, (17, 9)), (3.75, (8, 12)), (3., (5, 4)), (8., (2, 3))])
def test_the_enlargement_is_ours(factor, size):
    picture = image(2, 3, *size)
    large = enlarge(picture, factor)
    assert list(large.shape[-2:]) == [int(factor * side + .5) for side in size]
    assert (large - resize(picture, large.shape[-2:])).abs().max() < 1e-5


def test_the_enlargement_inside(tmp_path):
    net, file = small('vdsr'), tmp_path / 'net.onnx'
    net.factors = (2., 3.)
    export_network(net, file, factor=2.5, enlarge=True)
    session = onnxruntime.InferenceSession(file)
    for shape in ((1, 3, 11, 26), (2, 3, 32, 7)):
        lr = image(*shape)
        with torch.no_grad():
            wanted = net(resize(lr, [int(2.5 * side + .5) for side in shape[-2:]]))
        assert (answer(session, lr) - wanted).abs().max() < 1e-4
    notes = session.get_modelmeta().custom_metadata_map
    assert notes['network'] == 'vdsr' and float(notes['factor']) == 2.5 and json.loads(notes['trained factors']) == [2., 3.]
    assert set(notes) >= {'interflow', 'range', 'channels', 'layout', 'smallest', 'grid of lr'}
    assert b'.py' not in file.read_bytes(), 'no files of this machine stand in it'


def test_one_size(tmp_path):
    net = small('vdsr')
    export_network(net, tmp_path / 'net.onnx', 24, 32)
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    assert session.get_inputs()[0].shape == [1, 3, 24, 32] and answer(session, image(1, 3, 24, 32)).shape == (1, 3, 24, 32)


class Hiding(torch.nn.Module):
    "Asks a question that PyTorch lets pass while it records."
    def forward(self, lr):
        return 2 * lr if lr.shape[2] * lr.shape[3] // 50 == 1 else lr


class Drifting(torch.nn.Module):
    def forward(self, lr):
        return lr + torch.rand(())


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    rcan, liif = small('rcan'), small('liif_rdn')
    axes = {0: (1, 'batch'), 2: (1, 'height'), 3: (1, 'width')}
    drifting = Recipe(Drifting(), {'lr': image(2, 3, 9, 9)}, {'lr': axes}, ('sr',), {'batch': 1, 'height': 4, 'width': 4}, {})
    asking = drifting._replace(module=torch.nn.Flatten(0))
    hiding, others = drifting._replace(module=Hiding()), [{'lr': image(1, 3, 20, 20)}]
    wrong = {'refuses other sizes': lambda: exporting.write_graph(hiding, tmp_path / 'net.pt2', others),
             '.onnx': lambda: export_network(rcan, tmp_path / 'net.pth'),
             'at least 4': lambda: export_network(rcan, tmp_path / 'net.pt2', 3, 64),
             'both sides': lambda: export_network(rcan, tmp_path / 'net.pt2', 24),
             'keeps the size': lambda: export_network(rcan, tmp_path / 'net.pt2', 24, 24, (48, 48)),
             'by itself': lambda: export_network(liif, tmp_path / 'net.pt2', enlarge=True),
             'above 1': lambda: export_network(rcan, tmp_path / 'net.pt2', factor=.5, enlarge=True),
             'differs': lambda: exporting.write_graph(drifting, tmp_path / 'net.pt2', [drifting.inputs])}
    for words, call in wrong.items():
        with pytest.raises(InterflowError, match=words) as fault:
            call()
        assert '\n' not in str(fault.value)
    assert record(asking)       # any size: flat
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(InterflowError, match=r'onnxruntime: not installed; pip install .*\[export\]'):
        export_network(rcan, tmp_path / 'net.onnx')
    assert not list(tmp_path.iterdir())


def test_old_names_stay_where_they_were():
    from interflow.cli import export_command
    from interflow.sr.use import MAKERS, AtSize
    from interflow.sr.use import export_network as old
    assert old is export_network is exporting.export_network and AtSize is exporting.AtSize and set(MAKERS) == {'.pt2', '.onnx'}
    assert callable(export_command)


# ---------------------------------------------------------------- the flow

def flow(factors=(2., 3., 4.), moments=2):
    "A flow that does something everywhere, with Gaussians of its own."
    config = InterFlowConfig(factors, channels=8, growth=4, blocks=1, taps=(0,), hidden=8, steps=1, moments=moments)
    model = InterFlow(config, make_generator(0)).eval()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(.05 * torch.randn(weight.shape, generator=make_generator(number)))
    return model


def ours(model, hr, factor, noise):
    "What the package makes of noise, one factor for each image."
    cond = model.condition(hr)
    v = torch.cat([travel(model.prior, 'sample', {}, f, (1, *noise.shape[1:]), noise=noise[i:i + 1]) for i, f in enumerate(factor)])
    return model.decode(model.restore(v, cond, list(factor)), cond)


@pytest.mark.parametrize('factors, moments', [((2.1,), 2), ((2., 4.), 0), ((2., 3., 4.), 1), ((2.1, 2.5, 3., 3.75), 2)])
def test_the_decoder_is_path_sample(factors, moments):
    model, hr = flow(factors, moments), image(3, 3, 16, 24)
    factor = [factors[0], sum(factors) / len(factors), factors[-1]]
    noise = torch.randn(3, 48, 4, 6, generator=make_generator(1))
    with torch.no_grad():
        made = Decoding(model)(noise, torch.tensor(factor), *Conditioning(model)(hr))
        assert (made - ours(model, hr, factor, noise)).abs().max() < 1e-4


def test_weights_of_a_factor():
    weights = weights_at(torch.tensor([1., 2., 2.5, 3.9, 9.]), (2., 3., 4.))
    assert torch.allclose(weights, torch.tensor([[1., 0, 0], [1, 0, 0], [.5, .5, 0], [0, .1, .9], [0, 0, 1]]), atol=1e-6)


def test_the_flow_as_two_graphs(tmp_path, monkeypatch, capfd):
    model = flow()
    save_model(tmp_path / 'model', model)
    code, said, error = say(monkeypatch, capfd, tmp_path, 'export model graphs')
    assert code == 0 and 'differ from the flow by' in said and 'calibration and band are left out' in said and 'W:onnxruntime' not in error
    condition, decode = (onnxruntime.InferenceSession(file) for file in flow_files(tmp_path / 'graphs'))
    names = [value.name for value in condition.get_outputs()]
    for batch, height, width in ((1, 37, 42), (2, 16, 21), (3, 12, 40)):
        hr, factor = image(batch, 3, height, width), [2., 3.3, 4.][:batch]
        known = dict(zip(names, condition.run(None, {'hr': hr.numpy()})))
        noise = torch.randn(batch, 48, *known['coarse'].shape[2:], generator=make_generator(2))
        (lr,) = decode.run(None, {'noise': noise.numpy(), 'factor': torch.tensor(factor).numpy(), **known})
        with torch.no_grad():
            wanted = ours(model, pad_to_multiple(hr)[0], factor, noise)
        assert lr.shape == wanted.shape and (torch.as_tensor(lr) - wanted).abs().max() < 1e-4
    hr, noise = read_image(photographs('test')[0])[:, 40:87, 30:101], torch.randn(1, 48, 12, 18, generator=make_generator(7))
    known = dict(zip(names, condition.run(None, {'hr': hr[None].numpy()})))
    (lr,) = decode.run(None, {'noise': noise.numpy(), 'factor': torch.tensor([3.]).numpy(), **known})
    wanted = next(generate_scene(model, hr, {}, [3.], 'sample', [make_generator(7)], band=False))
    assert (torch.as_tensor(lr)[0, :, :47, :71] - wanted).abs().max() < 1e-4, 'an LR image at x3 by ONNX Runtime alone'
    wanted, whole = next(generate_scene(model, hr, {}, [3.], 'sample', [make_generator(7)])), band_numpy.to_band(lr[0, :, :47, :71], 3.)
    far = [(torch.as_tensor(made) - wanted).abs().max() for made in (whole, lr[0, :, :47, :71])]
    assert far[0] < 1e-4 < .1 < far[1], 'the image of generate by ONNX Runtime and NumPy alone'
    notes = decode.get_modelmeta().custom_metadata_map
    assert 'band_numpy.py' in notes['band'] and notes['calibration'] == 'none' and notes['network'] == 'InterFlow' and json.loads(notes['factors']) == [2., 3., 4.] and 'band' in notes['path']
    assert 'W:onnxruntime' not in capfd.readouterr().err


def test_the_flow_by_torch_alone(tmp_path):
    "Small and large, as the condition gives it: how its numbers lie in memory decides nothing."
    model, files = flow(), flow_files(tmp_path, 'pt2')
    assert exporting.export_flow(model, tmp_path, 'pt2') <= 1e-4
    condition, decode = (torch.export.load(file).module() for file in files)
    for shape in ((1, 3, 8, 9), (2, 3, 37, 42), (1, 3, 256, 300)):
        with torch.no_grad():
            known, wanted = condition(hr := image(*shape)), Conditioning(model)(hr)
            noise, factor = torch.randn(shape[0], 48, *known[1].shape[2:], generator=make_generator(2)), torch.full(shape[:1], 2.1)
            assert max((ours - theirs).abs().max() for ours, theirs in zip(known, wanted, strict=True)) < 1e-5
            assert (decode(noise, factor, *known) - Decoding(model)(noise, factor, *wanted)).abs().max() < 1e-4


@pytest.mark.parametrize('factor, size', [(1.2, (40, 40)), (1.3, (300, 61)), (2.1, (129, 700)), (3.75, (530, 127)), (4., (24, 97))])
def test_the_band_by_numpy_is_the_band(factor, size):
    "Images of all kinds of sides: one piece and several, lines that are taken and left out, phases of their own."
    picture = image(3, *size) - .2
    assert abs(band_numpy.to_band(picture.numpy(), factor) - to_band(picture, factor, None).numpy()).max() < 1e-4


def test_the_band_by_numpy_needs_numpy_alone():
    "It may be copied beside a graph."
    tree = ast.parse(Path(band_numpy.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names == {'math', 'numpy'} and not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))


# ---------------------------------------------------------------- the command

def say(monkeypatch, capsys, folder, command):
    "(exit code, output, error) of `interflow COMMAND`."
    monkeypatch.chdir(folder)
    return run_command(monkeypatch, capsys, command)


def test_the_command(tmp_path, monkeypatch, capsys):
    save_network(tmp_path / 'vdsr/model', small('vdsr'))
    save_model(tmp_path / 'flow', flow())
    code, said, _ = say(monkeypatch, capsys, tmp_path, 'export vdsr net.pt2 --enlarge --factor 2')
    assert code == 0 and '(batch, 3, height, width)' in said
    graph, lr = torch.export.load(tmp_path / 'net.pt2').module(), image(1, 3, 9, 13)
    with torch.no_grad():
        assert torch.allclose(graph(lr), Enlarging(small('vdsr'), 2.)(lr), atol=1e-4)
    (tmp_path / 'kept.onnx').write_text('the only copy')
    for command, words in {'export vdsr net.pth': '.onnx', 'export flow flow.onnx': 'two files', 'export vdsr kept.onnx': 'not made by',
                           'export vdsr net.pt2 --height 9': 'both sides'}.items():
        code, _, error = say(monkeypatch, capsys, tmp_path, command)
        assert code == 2 and words in error and error.count('\n') == 1, (command, error)
    assert (tmp_path / 'kept.onnx').read_text() == 'the only copy'
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/decode.onnx').write_text('the only copy')
    code, _, error = say(monkeypatch, capsys, tmp_path, 'export flow out')
    assert code == 2 and 'decode.onnx' in error and not (tmp_path / 'out/condition.onnx').exists()
    helps = say(monkeypatch, capsys, tmp_path, 'export --help')[1]
    assert 'interflow export' in helps and 'band_numpy.py' in helps
