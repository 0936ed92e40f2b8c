"""The package as its users get it: a wheel made from an sdist, in an environment that knows nothing of the repository; and every extra absent in turn."""
import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from rooms import ROOT, cells, notebooks, source
from scenes import write_crops

import interflow
from interflow.core import data_folder, install, photographs
from interflow.data import simulate

SETTINGS = ConfigParser(delimiters=['='])
SETTINGS.read(ROOT / 'settings.ini', encoding='utf-8')
CFG = SETTINGS['DEFAULT']
SOURCES = ('interflow', 'settings.ini', 'README.md', 'LICENSE', 'setup.py', 'MANIFEST.in')
# what each extra brings, by the names that are imported
MODULES = {'sets': 'cv2 scipy webdataset', 'train': 'accelerate tensorboard', 'plots': 'matplotlib seaborn', 'metrics': 'skimage',
           'perceptual': 'flip_evaluator stlpips_pytorch torchsummary', 'export': 'onnx onnxscript onnxruntime', 'cluster': 'ray',
           'explorer': 'ipykernel ipywidgets voila sklearn', 'hub': 'huggingface_hub'}


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "(sdist, wheel), the wheel made from the unpacked sdist, as `pip install` would, without a network."
    folder = tmp_path_factory.mktemp('build')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / 'data' / 'weights', folder / 'data' / 'weights')
    quiet = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', 'made', '.'], cwd=folder, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return next((folder / 'made').glob('*.tar.gz')), next((folder / 'made').glob('*.whl'))


@pytest.fixture(scope='module')
def user(built, tmp_path_factory):
    "A call of a program in an environment with the wheel; its requirements are those of this environment, the repository is not seen."
    folder = tmp_path_factory.mktemp('user')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'venv'], check=True)
    subprocess.run([sys.executable, '-m', 'pip', '--python', folder / 'venv/bin/python', 'install', '-q', '--no-deps', '--no-index', built[1]], check=True)
    site = next((folder / 'venv/lib').glob('python*')) / 'site-packages'
    (site / 'requirements.pth').write_text(sysconfig.get_path('purelib') + '\n')      # its own .pth files are not read: no editable interflow
    environment = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'INTERFLOW_DATA', 'VIRTUAL_ENV')}
    environment |= {'PATH': f'{folder / "venv/bin"}{os.pathsep}{os.environ["PATH"]}', 'OMP_NUM_THREADS': '1', 'INTERFLOW_CACHE': str(folder / 'cache')}

    def call(*words, cwd=folder, code=0):
        done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == code, f'{words}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
        return done.stdout if code == 0 else done.stderr
    place = call('python', '-c', 'import interflow; print(interflow.__file__)').strip()
    assert Path(place).is_relative_to(folder / 'venv')
    call.folder = folder
    return call


# ---------------------------------------------------------------- what is in it

def test_the_wheel_has_all_that_is_no_python_and_nothing_large(built):
    with tarfile.open(built[0]) as sdist:
        inside = {name.partition('/')[2] for name in sdist.getnames()}
    assert {'settings.ini', 'README.md', 'LICENSE', 'data/weights/flow/model.safetensors'} <= inside
    wheel = zipfile.ZipFile(built[1])
    names = set(wheel.namelist())
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'interflow').rglob('*') if path.is_file() and '__pycache__' not in path.parts}
    assert ours <= names, sorted(ours - names)
    weights = {f'interflow/_data/{path.relative_to(ROOT / "data").as_posix()}' for path in (ROOT / 'data/weights').rglob('*')
               if path.suffix in ('.json', '.safetensors')}
    assert len(weights) >= 8 and weights <= names
    assert {name for name in names if not name.startswith('interflow/')} == {name for name in names if '.dist-info/' in name}
    assert built[1].stat().st_size < 8e6, 'photographs and notebooks stay outside'


def test_the_index_shows_what_it_needs(built):
    wheel = zipfile.ZipFile(built[1])
    meta = email.message_from_bytes(wheel.read(next(name for name in wheel.namelist() if name.endswith('/METADATA'))))
    assert (meta['Name'], meta['Version'], meta['Requires-Python']) == (CFG['dist_name'], interflow.__version__, f'>={CFG["min_python"]}')
    assert meta['Description-Content-Type'] == 'text/markdown' and len(meta.get_all('Classifier')) >= 8
    assert {'Source', 'Issues'} <= {one.partition(',')[0] for one in meta.get_all('Project-URL')}
    assert set(meta.get_all('Provides-Extra')) == {*MODULES, 'all', 'dev'}
    core = {re.match(r'[\w-]+', one)[0].lower() for one in meta.get_all('Requires-Dist') if 'extra ==' not in one}
    assert core == {'torch', 'numpy', 'pillow', 'safetensors', 'typer', 'tqdm', 'tomli'}
    page = meta.get_payload()
    assert not re.findall(r'\]\((?!\w+:|#)[^)]+\)', page), 'every link and picture is absolute: the page stands elsewhere'
    renderer = pytest.importorskip('readme_renderer.markdown', reason='readme_renderer is not installed')
    shown = renderer.render(page)
    assert shown and shown.count('<img') == page.count('![') and '<table' in shown


def test_every_advice_has_the_name_on_the_index():
    "The name `interflow` belongs to another project there."
    assert install('all') == f"pip install '{CFG['dist_name']}[all]'"
    texts = [(path, path.read_text(encoding='utf-8')) for path in [*(ROOT / 'interflow').rglob('*.py'), *(ROOT / 'tests').glob('*.py'), *ROOT.glob('*.md')]]
    texts += [(path, source(cell)) for path in notebooks() for kind in ('code', 'markdown') for _, cell in cells(path, kind)]
    wrong = [f'{path.relative_to(ROOT)}: {found[0]}' for path, text in texts if path != Path(__file__)
             for found in [re.search(r'interflow\[\w+\]|pip install\W+interflow\b(?!-sr)', text)] if found]
    assert not wrong, wrong
    known = {*MODULES, 'all'}
    for path in (ROOT / 'interflow').rglob('*.py'):
        text = path.read_text(encoding='utf-8')
        named = re.findall(r"need\('(\w+)'|install\(['\"](\w+)['\"]\)|interflow-sr\[(\w+)\]", text)
        assert {one for names in named for one in names if one} <= known, path


# ---------------------------------------------------------------- the wheel alone

def test_the_wheel_alone_opens_its_models_and_uses_them(user):
    assert user('interflow', '--version') == f'interflow {interflow.__version__}\n'
    code = '''
import torch
from interflow import generate, load, upscale
from interflow.core import data_folder
flow, net = load(data_folder() / 'weights/flow'), load(data_folder() / 'weights/rcan')
hr = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
print(tuple(generate(flow, hr).shape), tuple(upscale(net, hr).shape))
'''
    assert user('python', '-c', code) == '(3, 64, 64) (3, 192, 192)\n'


def test_what_does_not_come_along_is_one_line(user, tmp_path):
    for words in (['demo', tmp_path / 'demo'], ['demo', tmp_path / 'demo', '--smoke']):
        said = user('interflow', *words, code=2)
        assert len(said.splitlines()) == 1 and CFG['git_url'] in said and 'INTERFLOW_DATA' in said, said
    assert not (tmp_path / 'demo').exists()


def test_the_explorer_starts_with_ones_own_picture(user, tmp_path):
    "Without the repository's photographs it shows those of the folder where it is called; the first picture is made of them."
    pytest.importorskip('ipywidgets', reason='the explorer is an extra')
    if not shutil.which('voila') and not Path(sys.executable).with_name('voila').exists():
        pytest.skip('voila is not installed')
    said = user('interflow', 'explore', '--no-browser', cwd=tmp_path, code=2)
    assert said == 'interflow: the explorer: it shows pictures of your own, and none is here; call it in a folder that holds some\n'
    write_crops(tmp_path, photographs('test')[:1], slice(100, 300), slice(100, 300))
    (own,) = tmp_path.iterdir()
    code = """
from interflow.explorer import Explorer
panel = Explorer()
print(panel.controls.scene.value, sum(len(image.value) > 10_000 for image in panel.images.values()) >= 3)
"""
    assert user('python', '-c', code, cwd=tmp_path) == f'{own.stem} True\n'


# ---------------------------------------------------------------- the walks of three users, in the wheel's environment

WALKS = ROOT / 'tests' / 'walks'


def test_the_walks_of_three_users(user, tmp_path):
    "Own photographs to a network; a library in a program; a changed layer. As they are written, with few steps."
    for name, split in (('photos', 'train'), ('others', 'test')):
        write_crops(tmp_path / name, photographs(split)[:2 if name == 'photos' else 1], slice(100, 196), slice(100, 196))
    steps = ('env', 'STEPS=2', 'SR_STEPS=2')
    said = user(*steps, 'sh', WALKS / '1_own_photographs.sh', 'photos', 'others', 'runs', cwd=tmp_path)
    for line in ('2 scenes at 2 factors: runs/pairs', '4 images of 2 scenes, 0 set aside', 'runs/net', '1 picture, 3 times as large: runs/large'):
        assert line in said, said
    assert (tmp_path / 'runs/values.csv').is_file() and len(list((tmp_path / 'runs/large').iterdir())) == 1
    said = user(*steps, 'python', WALKS / '3_changed_layer.py', 'runs/pairs', 'runs/changed', cwd=tmp_path)
    assert '8 changed couplings, 2 steps' in said and 'PlainForm, there and back' in said and 'an image: (3, 96, 96)' in said
    (photo,) = (tmp_path / 'others').iterdir()
    said = user('python', WALKS / '2_library.py', photo, 'api', cwd=tmp_path)
    assert 'one image: (3, 96, 96) -> (3, 96, 96) -> (3, 96, 96)' in said and 'the graph: rcan.onnx' in said and 'an error: factor 9' in said


# ---------------------------------------------------------------- extras that are absent

ABSENT = '''
import io, json, os, sys, contextlib
import torch
import interflow.cli, interflow.loading, interflow.verbs, interflow.sets, interflow.sr.use
def core():
    from interflow import generate, load, upscale
    from interflow.core import data_folder
    hr = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
    weights = data_folder() / 'weights'
    return [*generate(load(weights / 'flow'), hr).shape, *upscale(load(weights / 'rcan'), hr).shape] == [3, 48, 48, 3, 144, 144]
def command(words):
    sys.argv, error, code = ['interflow', *words], io.StringIO(), 0
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try: interflow.cli.main()
        except SystemExit as end: code = end.code
    return code, error.getvalue()
for extra, names, calls in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if os.fork() == 0:
        for name in [name for name in sys.modules if name.split('.')[0] in names]: del sys.modules[name]
        sys.modules.update(dict.fromkeys(names))      # None: Python's own mark of a module that cannot be imported
        works = core()
        print(json.dumps([extra, works, [command(words) for words in calls]]), flush=True)
        os._exit(0)
    os.wait()
'''


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pairs')
    write_crops(folder / 'photos', photographs('train')[:1], slice(200, 280), slice(300, 380))
    simulate(folder / 'photos', folder / 'pairs', (2., 4.))
    return folder


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the processes of this test are forks')
def test_without_an_extra_the_core_works_and_its_commands_say_what_to_install(pairs, tmp_path):
    "One line, exit code 2, and nothing is written."
    photos, made, out = str(pairs / 'photos'), str(pairs / 'pairs'), str(tmp_path / 'out')
    flow, net = (str(data_folder() / 'weights' / name) for name in ('flow', 'rcan'))
    calls = {
        'sets': [['simulate', photos, out], ['check', made], ['align', photos, out], ['order', photos, out], ['judge', flow, photos], ['train', made, out],
                 ['generate', flow, photos, out, '--format', 'webdataset']],
        'train': [['train', made, out, '--no-check'], ['train-sr', made, out, '--no-check']],
        'plots': [['judge', flow, photos, '--out', out], ['check', made, '--out', out], ['evaluate', net, made, '--crops', f'{out}.png'], ['align', photos, out]],
        'metrics': [['evaluate', net, made]],
        'perceptual': [['evaluate', net, made, '--measures', 'flip'], ['evaluate', net, made, '--measures', 'st_lpips_vgg']],
        'export': [['export', net, f'{out}.onnx']],
        'cluster': [['generate', flow, photos, out, '--engine', 'ray']],
        'explorer': [['explore', '--no-browser']],
        'hub': [],
    }
    assert set(calls) == set(MODULES) == set(CFG['extras'].split())
    told = json.dumps([[extra, names.split(), calls[extra]] for extra, names in MODULES.items()])
    done = subprocess.run([sys.executable, '-c', ABSENT, told], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [extra for extra, *_ in answers] == list(MODULES), done.stderr[-2000:]
    faults = []
    for extra, works, said in answers:
        faults += [] if works else [f'without {extra} the core does not work']
        for words, (code, lines) in zip(calls[extra], said, strict=True):
            lines = [line for line in lines.splitlines() if 'scene/s' not in line and '|' not in line]
            if code != 2 or len(lines) != 1 or f"pip install 'interflow-sr[{extra}]'" not in lines[0]:
                faults.append(f'without {extra}: interflow {" ".join(words)}: code {code}: {lines}')
    assert not faults, '\n'.join(faults)
    assert not list(tmp_path.iterdir()), 'nothing is left behind'


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the processes of this test are forks')
def test_without_any_extra_the_flow_makes_sets_and_a_network_large_pictures(pairs, tmp_path):
    calls = [['generate', 'shipped:flow', str(pairs / 'photos'), 'set', '--factors', '2.5', '--processes', '1'], ['upscale', 'shipped:rcan', str(pairs / 'photos'), 'large']]
    told = json.dumps([['all', ' '.join(MODULES.values()).split(), calls]])
    done = subprocess.run([sys.executable, '-c', ABSENT, told], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    (_, works, said), = [json.loads(line) for line in done.stdout.splitlines()]
    assert works and [code for code, _ in said] == [0, 0], said
    assert len(list((tmp_path / 'set').rglob('*LR*.png'))) == 1 and len(list((tmp_path / 'large').iterdir())) == 1


def test_without_the_hub_a_name_on_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(interflow.InterflowError, match=r"pip install 'interflow-sr\[hub\]'"):
        interflow.load('somebody/flow')
