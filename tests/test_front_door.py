"""The front door: `import interflow` costs nothing and offers a few names; any place becomes a model; images give images and folders give files."""
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from rooms import ROOT
from scenes import write_crops

import interflow
from interflow.core import InterflowError, data_folder, photographs, read_image
from interflow.data import read_set
from interflow.loading import load
from interflow.model import InterFlow
from interflow.sr.networks import build, save_network
from interflow.sr.rcan import RCAN

WEIGHTS = data_folder() / 'weights'
NAMES = {'Degrade', 'InterFlow', 'InterFlowConfig', 'InterflowError', 'generate', 'load', 'read_image', 'simulate', 'upscale'}


def run(code, *arguments, **environment):
    done = subprocess.run([sys.executable, '-c', code, *map(str, arguments)], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- the door

def test_the_door_costs_nothing_until_a_name_is_used():
    code = 'import sys, interflow; print([n for n in ("torch", "numpy", "PIL", "typer") if n in sys.modules]); interflow.InterFlow; print("torch" in sys.modules)'
    assert run(code) == '[]\nTrue\n'


def test_the_door_offers_what_it_says_and_every_name_is_there():
    offered = set(interflow.__all__)
    assert offered == NAMES, 'a few names, and little else'
    assert offered | {'__version__'} <= set(dir(interflow))
    for name in offered:
        assert getattr(interflow, name).__name__ == name
    with pytest.raises(AttributeError, match="'interflow' has no attribute 'Interflow'"):
        _ = interflow.Interflow


def test_editors_see_the_same_names(tmp_path):
    "What stands under TYPE_CHECKING: a type checker knows each name, and what a call returns."
    names = sorted(interflow.__all__)
    calls = ['generate("a", "b")', 'upscale("a", "b", "c")']
    (tmp_path / 'user.py').write_text('\n'.join(['import interflow', *(f'reveal_type(interflow.{one})' for one in names + calls)]) + '\n')
    done = subprocess.run([sys.executable, '-m', 'mypy', '--ignore-missing-imports', '--follow-imports=silent', '--cache-dir', tmp_path, tmp_path / 'user.py'],
                          cwd=ROOT, capture_output=True, text=True)
    found = [line.partition('type is ')[2] for line in done.stdout.splitlines() if 'Revealed' in line]
    assert len(found) == len(names + calls) and '"Any"' not in found, done.stdout
    assert 'Tensor' in found[-2] and 'list[pathlib.Path]' in found[-1]


def test_the_version_has_one_source():
    settings = (ROOT / 'settings.ini').read_text()
    assert f'version = {interflow.__version__}\n' in settings


# ---------------------------------------------------------------- any place

@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
    "What a run leaves: its model, and the best one so far."
    out = tmp_path_factory.mktemp('runs') / 'rcan'
    save_network(out / 'model', build('rcan', 'tiny', 1), [3.])
    save_network(out / 'best', build('rcan', 'tiny', 2), [2.])
    return out


def test_a_folder_a_run_and_a_file_are_understood(run_folder, tmp_path):
    assert isinstance(load(WEIGHTS / 'flow'), InterFlow) and isinstance(load(str(WEIGHTS / 'rcan')), RCAN)
    assert isinstance(load('shipped:flow'), InterFlow)
    with pytest.raises(InterflowError, match='no such model comes along; choose of shipped:'):
        load('shipped:vdsr')
    assert load(run_folder).factors == load(run_folder / 'model').factors == (3.,), 'the model comes before the best so far'
    assert load(run_folder / 'best').factors == load(run_folder / 'best/model.safetensors').factors == (2.,)
    torch.save({'params': build('vdsr', 'tiny').state_dict()}, tmp_path / 'own.pth')
    for place in ('own.pth', 'vdsr:own.pth'):
        with pytest.raises(InterflowError, match='own.pth|entries are missing|published'):
            load(tmp_path / place if place[0] == 'o' else f'vdsr:{tmp_path / "own.pth"}')


def test_what_was_looked_for_is_said(tmp_path):
    with pytest.raises(InterflowError, match='looked for config.json, model/config.json, best/config.json'):
        load(tmp_path)
    with pytest.raises(InterflowError, match='looked for a folder, a file'):
        load(tmp_path / 'nowhere')
    with pytest.raises(InterflowError, match='nobody/nothing: no such folder, and the Hugging Face hub does not give it'):
        load('nobody/nothing')


class Hub(http.server.BaseHTTPRequestHandler):
    "As much of the hub's protocol as a download asks for; one repository, somebody/rcan."
    files, sha = {}, 'a' * 40

    def answer(self, body, **headers):
        self.send_response(200)
        for name, value in {'Content-Length': len(body), **headers}.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition('?')[0]
        if path.startswith('/api/models/somebody/rcan/tree/'):
            rows = [{'type': 'file', 'path': name, 'size': len(data), 'oid': 'b' * 40} for name, data in self.files.items()]
            self.answer(json.dumps(rows).encode(), Content_Type='application/json')
        elif path.startswith('/api/models/somebody/rcan'):
            siblings = [{'rfilename': name} for name in self.files]
            self.answer(json.dumps({'id': 'somebody/rcan', 'sha': self.sha, 'siblings': siblings}).encode(), Content_Type='application/json')
        elif path.startswith('/somebody/rcan/resolve/') and path.rpartition('/')[2] in self.files:
            name = path.rpartition('/')[2]
            self.answer(self.files[name], ETag=f'"{name}"', X_Repo_Commit=self.sha)
        else:
            self.send_error(404)
    do_HEAD = do_GET

    def log_message(self, *words):
        pass


def test_a_name_on_the_hub_is_loaded(run_folder, tmp_path, monkeypatch):
    "By huggingface_hub's own client, from a server that speaks the hub's protocol; the second time nothing is asked for."
    monkeypatch.setattr(Hub, 'files', {path.name: path.read_bytes() for path in (run_folder / 'model').iterdir()})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = 'import sys, interflow; net = interflow.load("somebody/rcan"); print(type(net).__name__, net.factors)'
    here = {'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}', 'HF_HOME': str(tmp_path), 'HF_HUB_DISABLE_XET': '1'}
    try:
        assert run(code, HF_HUB_OFFLINE='0', **here) == 'RCAN (3.0,)\n'
    finally:
        server.shutdown()
    assert run(code, HF_HUB_OFFLINE='1', **here) == 'RCAN (3.0,)\n'


# ---------------------------------------------------------------- the verbs

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    write_crops(folder, photographs('test')[:1], slice(100, 164), slice(100, 164))
    return folder


def test_an_image_gives_an_image_and_a_folder_gives_files(photos, tmp_path):
    (photo,) = photos.iterdir()
    hr, flow = read_image(photo), interflow.load(WEIGHTS / 'flow')
    for verb in (interflow.simulate, lambda *rest, **more: interflow.generate(flow, *rest, **more)):
        image, of_file = verb(hr, factor=3), verb(photo, factor=3)
        assert image.shape == hr.shape and torch.equal(image, of_file) and verb(hr, factor=(2.5, 3)).shape == (2, *hr.shape)
        assert torch.equal(image, (image * 255).round() / 255) and not torch.equal(image, verb(hr, factor=3, seed=1))
        with pytest.raises(InterflowError, match='a tensor has no name'):
            verb(hr, tmp_path / 'no')
    interflow.simulate(photos, tmp_path / 'pairs', factor=(2, 4))
    (scene,) = read_set(tmp_path / 'pairs')
    assert sorted(scene.lr) == [2., 4.]
    assert interflow.generate(WEIGHTS / 'flow', tmp_path / 'pairs', tmp_path / 'set', factor=3, path='linear').kept == 1
    both = {factor: path for factor, path in scene.lr.items()}
    assert interflow.generate(flow, scene.hr, factor=3, path='linear', lr=both).shape == hr.shape
    assert interflow.upscale(WEIGHTS / 'rcan', hr, factor=2).shape == (3, 128, 128)
    assert [path.name for path in interflow.upscale(WEIGHTS / 'rcan', photos, tmp_path / 'large', factor=2)] == [f'{photo.stem}.png']
    assert not (tmp_path / 'no').exists()
