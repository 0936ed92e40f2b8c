"""Weights in files: the hub's calls on folders, published weights in every usual wrapping, and files that mean harm."""
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from interflow.cards import run_record
from interflow.checkpoints import (
    fingerprint,
    from_published,
    load_model,
    published_name,
    save_model,
)
from interflow.core import InterflowError, make_generator
from interflow.model import InterFlow, InterFlowConfig
from interflow.sr.networks import VARIANTS, build, load_network, save_network
from interflow.sr.networks import from_published as network_from_published
from interflow.weights import read_published, save_module, unwrap


@pytest.fixture
def flow():
    return InterFlow(InterFlowConfig.tiny((2., 4.)), make_generator(0)).eval()


@pytest.fixture(scope='module')
def published():
    "A flow of the paper's size, without its training, under its published names."
    model = InterFlow(InterFlowConfig.paper(), make_generator(0))
    state = {published_name(name): value for name, value in model.state_dict().items() if not name.startswith('prior.') and not name.endswith('initialised')}
    for i in range(2):
        state |= {f'mean_shift_{i}': model.prior.means[i:i + 1].detach(), f'cov_shift_{i}': model.prior.roots[i].detach()}
    return state


def refused(call, *words):
    with pytest.raises(InterflowError) as fault:
        call()
    assert '\n' not in str(fault.value) and all(word in str(fault.value) for word in words), str(fault.value)


def test_a_flow_is_saved_and_opened_as_the_hub_does_it_beside_what_is_there(flow, tmp_path):
    flow.photographs, flow.run = {'version': 1}, run_record(['a', 'b'], {'steps': 2}, [{'step': 0, 'loss': 3.}, {'step': 1, 'loss': 1.}])
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/notes.txt').write_text('mine')
    flow.save_pretrained(tmp_path / 'mine')
    again = InterFlow.from_pretrained(tmp_path / 'mine')
    assert (tmp_path / 'mine/notes.txt').read_text() == 'mine'
    assert fingerprint(again) == fingerprint(flow) and again.photographs == {'version': 1} and again.run == flow.run and not again.training
    card = (tmp_path / 'mine/README.md').read_text()
    assert card.startswith('---\n') and '2 scenes (a, b' in card and '- loss: 2' in card and 'library_name: interflow' in card and 'torch' in card
    assert fingerprint(load_model(tmp_path / 'mine')) == fingerprint(flow), 'one way of writing, two names for reading it'


@pytest.mark.parametrize('name', ['rcan', 'vdsr', 'kpn', 'swinir', 'liif_edsr_baseline', 'metasr_rdn'])
def test_networks_too(name, tmp_path):
    net = build(name, 'tiny')
    net.factors = (2.5,)
    net.save_pretrained(tmp_path / 'net')
    again = type(net).from_pretrained(str(tmp_path / 'net'))
    assert again.factors == (2.5,) and fingerprint(again) == fingerprint(net) == fingerprint(load_network(tmp_path / 'net'))
    assert name in VARIANTS and json.loads((tmp_path / 'net/trained.json').read_text())['network'] == name


def test_what_is_sent_to_the_hub_is_what_is_saved(flow, tmp_path, monkeypatch):
    sent = {}
    class Hub:
        def __init__(self, token=None):
            pass
        def create_repo(self, repo_id, **rest):
            sent['repo'] = repo_id
            return type('Repo', (), {'repo_id': repo_id})
        def upload_folder(self, folder_path, **rest):
            sent['model'] = fingerprint(load_model(folder_path))
            sent['files'] = sorted(os.listdir(folder_path))
            return 'https://hub/commit'
    monkeypatch.setattr('huggingface_hub.hub_mixin.HfApi', Hub)
    assert flow.push_to_hub('somebody/flow') == 'https://hub/commit'
    assert sent == {'repo': 'somebody/flow', 'model': fingerprint(flow), 'files': ['README.md', 'config.json', 'model.safetensors']}


def test_a_place_that_is_no_model_is_one_line(tmp_path):
    refused(lambda: InterFlow.from_pretrained('somebody/nothing', local_files_only=True), 'somebody/nothing', 'no such folder')
    refused(lambda: InterFlow.from_pretrained(tmp_path), 'config.json')
    save_network(tmp_path / 'net', build('vdsr', 'tiny'))
    refused(lambda: InterFlow.from_pretrained(tmp_path / 'net'), 'InterFlow')


@pytest.mark.skipif(os.name == 'nt', reason='rights are those of POSIX')
def test_files_have_the_rights_that_the_umask_leaves(flow, tmp_path):
    code = 'import os, sys; os.umask(0o027)\nfrom interflow.checkpoints import load_model, save_model\nsave_model(sys.argv[2], load_model(sys.argv[1]))'
    save_model(tmp_path / 'a', flow)
    subprocess.run([sys.executable, '-c', code, tmp_path / 'a', tmp_path / 'b'], check=True)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / 'b').iterdir()} == {'0o640'}


@pytest.mark.parametrize('wrap', [lambda s: {'state_dict': s}, lambda s: {'params': s}, lambda s: {'params': {}, 'params_ema': s}, lambda s: {'model': {'state_dict': s}, 'epoch': 4},
                                  lambda s: {f'module.{k}': v for k, v in s.items()}, lambda s: {f'_orig_mod.module.{k}': v for k, v in s.items()},
                                  lambda s: {'state_dict': {f'model.{k}': v for k, v in s.items()}}])
def test_every_usual_wrapping_of_flow_and_network_is_taken_off(wrap, published):
    assert unwrap(wrap(published), 'x').keys() == published.keys()
    state = {f'layers.{k}.weight': torch.ones(1) for k in range(3)}
    assert unwrap(wrap(state), 'x').keys() == state.keys()


def test_a_wrapped_flow_is_the_flow(published, tmp_path):
    torch.save({'params_ema': {f'module.{name}': value for name, value in published.items()}, 'iter': 9}, tmp_path / 'w.pth')
    save_file({name: value.contiguous() for name, value in published.items()}, tmp_path / 'w.safetensors')
    plain = fingerprint(from_published(published))
    assert fingerprint(from_published(tmp_path / 'w.pth')) == fingerprint(from_published(tmp_path / 'w.safetensors')) == plain


def test_published_flows_that_are_none_are_refused_by_name(published):
    some = 'arch.flowUpsamplerNet.layers.3.actnorm.bias'
    assert some in published
    refused(lambda: from_published({name: value for name, value in published.items() if name != some}), 'missing', some)
    refused(lambda: from_published({**published, 'arch.flowUpsamplerNet.layers.99.actnorm.bias': torch.ones(1)}), 'unknown', 'layers.99')
    refused(lambda: from_published({**published, some: published[some].flatten()[:-1]}), some, 'shape')
    refused(lambda: from_published({**published, some: published[some] * torch.nan}), some, 'NaN')
    turned = next(name for name, value in published.items() if value.ndim == 4 and value.shape[0] != value.shape[1] and value.shape[0] > 1 and value.shape[1] > 1)
    refused(lambda: from_published({**published, turned: published[turned].transpose(0, 1)}), turned, 'shape')


def test_weights_for_another_range_are_refused():
    from sr_reference import reference
    state = reference('rcan')[0]
    large = {key: value * 255 if key in ('sub_mean.bias', 'add_mean.bias') else value for key, value in state.items()}
    network_from_published('rcan', state)
    refused(lambda: network_from_published('rcan', large), '[0, 255]')


class Worm:
    "What an evil checkpoint may hold."
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f'touch {self.file}',)


@pytest.mark.parametrize('hold', [lambda worm: worm, lambda worm: {'state_dict': {'a': torch.ones(1), 'b': worm}}, lambda worm: [worm]])
def test_a_hostile_pickle_runs_nothing(hold, tmp_path):
    torch.save(hold(Worm(tmp_path / 'bitten')), tmp_path / 'worm.pth')
    for read in (read_published, from_published, lambda path: network_from_published('rcan', path)):
        refused(lambda read=read: read(tmp_path / 'worm.pth'), 'worm.pth', 'nothing in it was run')
    assert not (tmp_path / 'bitten').exists()


def test_a_module_that_cannot_be_written_leaves_the_old_one(tmp_path):
    class Config:
        pass
    net = build('vdsr', 'tiny')
    save_network(tmp_path / 'net', net)
    with pytest.raises(TypeError):
        save_module(tmp_path / 'net', nn.Linear(1, 1), Config())
    assert fingerprint(load_network(tmp_path / 'net')) == fingerprint(net) and not list(tmp_path.glob('.*'))


def test_a_training_leaves_its_record_and_its_card(tmp_path):
    from scenes import write_crops

    from interflow.core import photographs
    from interflow.data import simulate
    from interflow.sr.sources import Source
    from interflow.sr.training import SR_PRESETS, train_sr
    from interflow.training import PRESETS, train_flow
    photos = write_crops(tmp_path / 'photos', photographs('test')[:2], slice(200, 248), slice(300, 348))
    scenes = simulate(photos, tmp_path / 'pairs', (2.1, 3.75))
    short = dict(steps=2, batch_size=1, patch=32)
    from dataclasses import replace
    train_flow(scenes, tmp_path / 'flow', InterFlowConfig.tiny(), replace(PRESETS['tiny'], **short))
    net, _ = train_sr([Source(scenes)], tmp_path / 'sr', 'vdsr', replace(SR_PRESETS['tiny'], **short))
    for model in (load_model(tmp_path / 'flow/model'), load_network(tmp_path / 'sr/model')):
        assert model.run['scenes'] == 2 and model.run['steps'] == 2 and model.run['settings']['training']['patch'] == 32 and 'loss' in model.run['results']
        assert 'scenes' not in str(model.run['settings'])
    card = (tmp_path / 'flow/model/README.md').read_text()
    assert '2 steps' in card and 'loss' in card and 'patch: 32' in card
