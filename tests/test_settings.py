"""Settings from presets, files, options and --set: checked key by key, stored as used, and the run is made again from them."""
import json
import math

import pytest
from scenes import write_crops
from typer.testing import CliRunner

from interflow.cli import app
from interflow.core import InterflowError, photographs
from interflow.data import simulate
from interflow.losses import LossWeights
from interflow.model import InterFlowConfig
from interflow.settings import nest, parse_setting, read_toml, with_settings, write_toml
from interflow.training import PRESETS, TrainConfig

SMALL = ('--steps', '2', '--batch-size', '1', '--patch', '16', '--device', 'cpu', '--no-check')


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pairs')
    simulate(write_crops(folder / 'photos', photographs('val')[:2], slice(200, 240), slice(300, 348)), folder / 'set', (2.1, 3.75))
    return folder / 'set'


def interflow(*words):
    "What the command does in this process: its output; errors are raised."
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, InterflowError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize('config', [TrainConfig(), PRESETS['tiny'], InterFlowConfig.tiny(), LossWeights(crps=3.)])
def test_what_was_written_is_read_again(tmp_path, config):
    from dataclasses import asdict
    write_toml(tmp_path / 'a.toml', {'table': asdict(config)})
    assert with_settings(type(config)(), read_toml(tmp_path / 'a.toml')['table']) == config


@pytest.mark.parametrize('changes, words', [
    ({'clp': 1}, 'training.clp: no such setting; did you mean clip?'), ({'steps': 2.5}, 'training.steps = 2.5: .* a whole number'),
    ({'steps': True}, 'a whole number'), ({'halve_at': .5}, 'a list'), ({'halve_at': ['x']}, 'a number'), ({'recompute': 1}, 'true or false'), ({'steps': 0}, 'at least 1')])
def test_a_wrong_setting_is_refused(changes, words):
    with pytest.raises(InterflowError, match=words) as fault:
        with_settings(TrainConfig(), changes, 'my.toml', 'training')
    assert str(fault.value).startswith('my.toml: ') and '\n' not in str(fault.value)


def test_settings_of_the_command_line_are_read_as_toml():
    told = nest(map(parse_setting, ('a.b=.5', 'a.c=[.1, 2]', 'a.d=inf', 'a.e=rdn', 'a.b = 1e-4', 'a.f.g=true')))
    assert told == {'a': {'b': 1e-4, 'c': [.1, 2], 'd': math.inf, 'e': 'rdn', 'f': {'g': True}}}
    for wrong in ('a.b', '=3', '.b=3', 'a.=3'):
        with pytest.raises(InterflowError, match='write a name and a value'):
            parse_setting(wrong)


def test_each_source_overrides_the_one_before_and_one_command_makes_the_run_again(pairs, tmp_path):
    "Preset, file, options, --set; the stored settings give the same weights, with another number of steps as many as asked for."
    (tmp_path / 'my.toml').write_text('seed = 3\n[training]\nclip = 5\nlearning_rate = 2e-4\npatch = 99\n[model]\nhidden = 16\n')
    interflow('train', '--config', tmp_path / 'my.toml', pairs, tmp_path / 'run', *SMALL, '--set', 'training.clip=7', '--set', 'loss.crps=200', '--factors', '2.1,3.75')
    used = json.loads((tmp_path / 'run/training.json').read_text())
    training, model, loss = (used[name] for name in ('training', 'model', 'loss'))
    assert (training['clip'], training['learning_rate'], training['patch'], training['seed'], training['warmup']) == (7, 2e-4, 16, 3, 20)
    assert (model['hidden'], model['factors'], loss['crps']) == (16, [2.1, 3.75], 200)
    interflow('train', '--config', tmp_path / 'run/settings.toml', tmp_path / 'again')
    assert (tmp_path / 'run/model/model.safetensors').read_bytes() == (tmp_path / 'again/model/model.safetensors').read_bytes()
    assert read_toml(tmp_path / 'run/settings.toml') == read_toml(tmp_path / 'again/settings.toml')
    interflow('train', '--config', tmp_path / 'run/settings.toml', tmp_path / 'longer', '--steps', 3)
    assert json.loads((tmp_path / 'longer/training.json').read_text())['training']['steps'] == 3


@pytest.mark.parametrize('text, words', [
    ('stps = 3', 'my.toml: stps: no such setting; did you mean steps?'), ('command = "train-sr"', 'use interflow train-sr'), ('[trainng]\nclip = 3', 'no such table'),
    ('[training]\nclp = 3', 'training.clp: .* did you mean clip?'), ('steps = = 3', 'not TOML'), ('[model]\nfactors = [2.0, 4.0]', 'give --factors')])
def test_a_wrong_file_is_refused_and_claims_no_folder(pairs, tmp_path, text, words):
    (tmp_path / 'my.toml').write_text(text)
    with pytest.raises(InterflowError, match=words):
        interflow('train', pairs, tmp_path / 'out', '--config', tmp_path / 'my.toml', '--device', 'cpu', '--no-check')
    assert not (tmp_path / 'out').exists()
