"""The recipes for clusters (room recipes): each command exists with each of its options, and shares made by the scripts are the bytes of one process."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from rooms import ROOT
from scenes import write_crops

from interflow.cli import app
from interflow.core import data_folder, photographs
from interflow.data import simulate

CELLS = json.loads((ROOT / 'nbs/6_using/21_recipes.ipynb').read_text(encoding='utf-8'))['cells']
TEXT = '\n'.join(''.join(cell['source']) for cell in CELLS if cell['cell_type'] == 'markdown')
SCRIPTS, FILES = (re.findall(rf'```{kind}\n(.*?)```', TEXT, re.S) for kind in ('bash', 'yaml'))
VALUES = {'network': 'rcan', 'head': 'head', 'SLURM_ARRAY_TASK_ID': '1', 'SLURM_ARRAY_TASK_COUNT': '2', 'JOB_COMPLETION_INDEX': '1', 'SLURM_NNODES': '2', 'SLURM_JOB_ID': '7'}


def container():
    "The container of the Kubernetes job."
    return yaml.safe_load(FILES[0])['spec']['template']['spec']['containers'][0]


def commands(script):
    "The words of each command of a script in which `interflow` is called, what stands before it included; variables have values."
    for line in script.replace('\\\n', ' ').splitlines():
        words = shlex.split(re.sub(r'\$\{?(\w+)\}?', lambda found: VALUES.get(found[1], found[1]), line), comments=True)
        if {'interflow', 'interflow.cli'} & set(words):
            yield words


ALL = [words for script in [*SCRIPTS, *container()['args']] for words in commands(script)]


def test_the_room_has_a_recipe_for_each():
    assert len(SCRIPTS) >= 9 and len(FILES) == 1 and len(ALL) >= 9
    for words in ('--array', 'JOB_COMPLETION_INDEX', '--engine ray', 'torchrun', 'accelerate launch'):
        assert words in TEXT


@pytest.mark.parametrize('script', SCRIPTS, ids=range(len(SCRIPTS)))
def test_scripts_parse(script):
    subprocess.run(['bash', '-n'], input=script, text=True, check=True)
    for line in re.findall(r'^#SBATCH (.*)$', script, re.M):
        assert re.fullmatch(r'--[a-z-]+(=\S+)?', line), 'one option a line'


@pytest.mark.parametrize('words', ALL, ids=lambda words: '-'.join(words[:3]))
def test_each_command_and_each_option_exists(words):
    name, *rest = words[next(i for i, word in enumerate(words) if word in ('interflow', 'interflow.cli')) + 1:]
    typer.main.get_command(app).commands[name].make_context(name, [word for word in rest if word != '&'])


@pytest.mark.parametrize('words', [words for words in ALL if {'torchrun', 'accelerate'} & set(words)], ids=lambda words: words[0])
def test_launchers_understand_their_options(words):
    if 'torchrun' in words:
        from torch.distributed.run import parse_args
        found = parse_args(words[words.index('torchrun') + 1:])
    else:
        from accelerate.commands.launch import launch_command_parser
        found = launch_command_parser().parse_args(words[2:])
    assert found.module and found.training_script == 'interflow.cli' and found.training_script_args[0].startswith('train')


def test_the_yaml_is_an_indexed_job():
    job = yaml.safe_load(FILES[0])
    assert (job['kind'], job['spec']['completionMode']) == ('Job', 'Indexed')
    assert f'--world {job["spec"]["completions"]}' in container()['args'][0]
    volumes = {volume['name'] for volume in job['spec']['template']['spec']['volumes']}
    assert {mount['name'] for mount in container()['volumeMounts']} == volumes


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder in which the recipes find what they name, and `interflow` on the path."
    place = tmp_path_factory.mktemp('recipes')
    simulate(write_crops(place / 'photos', photographs('val')[:3], slice(200, 256), slice(300, 364)), place / 'set', (2., 4.))
    (place / 'runs/flow').mkdir(parents=True)
    (place / 'runs/flow/model').symlink_to(data_folder() / 'weights' / 'flow')
    (place / 'bin').mkdir()
    (place / 'bin/interflow').write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "from interflow.cli import main; main()" "$@"\n')
    (place / 'bin/interflow').chmod(0o755)
    return place


def bash(place, script, out, **variables):
    "Run a recipe in `place`, its folder `made` called `out`."
    env = {**os.environ, 'PATH': f'{place / "bin"}{os.pathsep}{os.environ["PATH"]}', 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': '', **variables}
    done = subprocess.run(['bash', '-e', '-c', script.replace(' made', f' {out}')], cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(Path(folder).rglob('*')) if path.is_file() and not path.relative_to(folder).parts[0].startswith('.')}


def test_two_tasks_make_the_bytes_of_one_process(place):
    array, alone = (next(script for script in SCRIPTS if words in script) for words in ('--array=0-31', 'set made --factors 2.3,2.6,3.0\n'))
    assert '0 missing' in bash(place, alone, 'whole')
    said = [bash(place, array, 'shares', SLURM_ARRAY_TASK_ID=rank, SLURM_ARRAY_TASK_COUNT='2') for rank in '01']
    assert '0 missing' not in said[0] and '0 missing' in said[1]
    whole = everything(place / 'whole')
    assert len(whole) > 9 and whole == everything(place / 'shares')
    bash(place, container()['args'][0].replace('--world 32', '--world 2'), 'pod', JOB_COMPLETION_INDEX='0')
    pod = {path: data for path, data in everything(place / 'pod').items() if path.suffix == '.png'}
    assert pod and pod.items() < whole.items(), 'a part of it'
