"""What one expects of any command: quick help with an example, a version, completion, words in any case, exit codes, the nearest name for a mistyped one."""
import os
import re
import subprocess
import sys
from typing import get_args

import pytest
from PIL import Image
from scenes import write_whole
from test_faults import say

from interflow.cli.words import ORDER

MAIN = 'from interflow.cli import main; main()'


def interflow(*words, environment=(), code=MAIN):
    "The command in a process of its own: what it returned, and the CPU seconds that it took."
    before = os.times()
    done = subprocess.run([sys.executable, '-c', code, *map(str, words)], capture_output=True, text=True, env={**os.environ, **dict(environment)})
    after = os.times()
    return done, after.children_user - before.children_user


def group():
    import typer.main

    from interflow.cli import app
    return typer.main.get_command(app)


def commands():
    return {name: command for name, command in group().commands.items() if not command.hidden}


# ---------------------------------------------------------------- help

def test_the_commands_stand_in_the_order_of_the_work():
    assert group().list_commands(None) == list(ORDER), 'each command has its place'


@pytest.mark.parametrize('name', ['', *commands()])
def test_help_has_an_example_and_waits_for_nothing(name):
    code = f"import sys\ntry:\n    {MAIN.replace('; ', chr(10) + '    ')}\nfinally:\n    print('loaded:', *(sorted({{'torch', 'numpy', 'PIL', 'tqdm'}} & {{*sys.modules}})))"
    done, _ = interflow(*filter(None, [name]), '--help', code=code)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert done.stdout.rstrip().endswith('loaded:'), done.stdout[-60:]
    assert 'Usage: interflow' in done.stdout
    if name:
        example, = re.findall(r'\n +Examples?:\n((?: +interflow .*\n)+)', done.stdout)
        assert all(line.split()[:2] == ['interflow', name] for line in example.splitlines()), example
    else:
        assert all(f'  {code} ' in done.stdout for code in (0, 1, 2, 130)), 'exit codes'


def test_help_costs_little_beside_the_library_it_is_made_with():
    "Under 0.3 seconds of a processor, or on a slow machine a few times what `import typer.main` takes."
    best = min(interflow('generate', '--help')[1] for _ in range(3))
    typer = min(interflow(code='import typer.main, typer.core, typing, pathlib')[1] for _ in range(3))
    assert best < max(.3, 4 * typer), (best, typer)


def test_version_and_completion():
    import interflow as package
    done, _ = interflow('--version')
    assert done.stdout == f'interflow {package.__version__}\n' and done.returncode == 0
    shown, _ = interflow('--show-completion', 'bash', environment={'_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION': '1'}.items())
    assert '_INTERFLOW_COMPLETE' in shown.stdout, shown.stdout + shown.stderr
    asked = {'_INTERFLOW_COMPLETE': 'complete_bash', 'COMP_WORDS': 'interflow train-sr --network s', 'COMP_CWORD': '3'}
    completed, _ = interflow(environment=asked.items())
    assert completed.stdout.split() == ['swinir'], completed.stdout + completed.stderr


def test_install_completion_writes_for_the_shell(tmp_path):
    done, _ = interflow('--install-completion', 'bash', environment={'HOME': str(tmp_path), '_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION': '1'}.items())
    assert done.returncode == 0, done.stderr
    assert any('interflow' in path.name for path in tmp_path.rglob('*') if path.is_file())


# ---------------------------------------------------------------- words

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return write_whole(tmp_path_factory.mktemp('conventions'), 'vdsr', model='model')


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    for path in whole.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_choices_are_listed_and_taken_in_any_case(place, monkeypatch, capsys):
    from interflow.cli.words import LatentPath, NetworkName, PathName
    wide = {'COLUMNS': '400'}.items()
    for name, lists in {'train-sr': [NetworkName, LatentPath], 'generate': [PathName], 'judge': [PathName], 'import': [NetworkName]}.items():
        text = interflow(name, '--help', environment=wide)[0].stdout
        assert all('|'.join(get_args(one)) in text for one in lists), name
    assert 'png|jpg|webp|tiff' in interflow('upscale', '--help', environment=wide)[0].stdout
    short = '--steps 1 --batch-size 1 --patch 32 --device CPU --no-check'
    assert say(monkeypatch, capsys, f'train-sr pairs sr --network VDSR --preset Tiny {short}')[0] == 0
    assert say(monkeypatch, capsys, 'generate flow photos made --path SAMPLE --format WebP --check None --factors 3 --processes 1 --device Cpu')[0] == 0
    assert say(monkeypatch, capsys, 'upscale network photos large --format JPG --device cpu')[0] == 0
    assert say(monkeypatch, capsys, 'evaluate network pairs --measures PSNR_RGB --device cpu')[0] == 0
    assert say(monkeypatch, capsys, 'camera Canon')[0] == 0
    code, lines = say(monkeypatch, capsys, 'upscale RCAN:nowhere.pth photos out --device cpu')
    assert code == 2 and lines[0].startswith('interflow: nowhere.pth: no such file'), lines


MISTYPED = {'a command': ('trian pairs out', "'train'"), 'an option': ('train pairs out --stpes 3', '--steps'), 'a choice': ('train pairs out --preset huge', "'tiny'"),
            'an argument too many': ('camera canon nikon', 'nikon'), 'a number': ('train pairs out --steps many', '--steps'), 'a value that is missing': ('train pairs out --steps', '--steps')}


@pytest.mark.parametrize('command, word', MISTYPED.values(), ids=MISTYPED)
def test_what_is_mistyped_is_one_line_with_the_nearest_name(place, monkeypatch, capsys, command, word):
    code, lines = say(monkeypatch, capsys, command)
    assert code == 2 and len(lines) == 1 and lines[0].startswith('interflow: ') and word in lines[0] and '--help' in lines[0], lines
    assert 'Value error' not in lines[0]


def test_without_words_the_help_is_shown():
    done, _ = interflow()
    assert done.returncode == 2 and 'Usage: interflow' in done.stdout + done.stderr


# ---------------------------------------------------------------- how much is said

def test_quiet_says_errors_and_the_result(place, monkeypatch, capsys):
    "A bar, a notice and a line about what is left aside, with and without -q, which may stand anywhere."
    (place / 'mixed').mkdir()
    Image.open(sorted((place / 'photos').iterdir())[0]).convert('L').save(place / 'mixed/grey.png')
    (place / 'mixed/broken.png').write_text('no picture')

    def run(*flags):
        done = subprocess.run([sys.executable, '-c', MAIN, *flags[:1], 'upscale', 'network', 'mixed', 'large', '--device', 'cpu', *flags[1:]], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr
    code, out, loud = run('-v')
    assert code == 1 and 'grey.png: grey' in loud and 'tile' in loud and 'broken.png' in loud and '1 picture' in out
    for flags in (('-q',), ('--quiet',)):
        code, out, quiet = run(*flags)
        lines = quiet.strip().splitlines()
        assert code == 1 and '1 picture' in out and len(lines) == 2, quiet
        assert lines[0].startswith('left aside: mixed/broken.png') and lines[1].startswith('interflow: 1 of 2 files left aside')
    assert say(monkeypatch, capsys, 'upscale network mixed large --device cpu -q')[1] == lines, 'behind the command as well'


def test_verbose_shows_where_an_error_came_from():
    done, _ = interflow('simulate', 'nowhere', 'out', '-v')
    assert done.returncode == 2 and 'Traceback' in done.stderr and done.stderr.strip().splitlines()[-1].startswith('interflow: nowhere')
    done, _ = interflow('simulate', 'nowhere', 'out')
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


# ---------------------------------------------------------------- RUN means RUN/model

RUNS = {'generate': 'generate flow photos made --factors 3 --check none --processes 1', 'generate into the run': 'generate flow photos flow_made --factors 3 --check none --processes 1',
        'judge': 'judge flow photos --factors 3 --draws 2 --shots 2 --no-classifier', 'train --init': 'train pairs again --init flow --steps 1 --batch-size 1 --patch 32 --no-check',
        'train-sr --init, --flow': 'train-sr pairs sr --network vdsr --init network --flow flow --flow-factors 3 --steps 1 --batch-size 1 --patch 32 --no-check',
        'upscale': 'upscale network photos large', 'evaluate': 'evaluate network pairs --rival network --save-images images', 'check --flow': 'check pairs --flow flow --processes 1',
        'export': 'export network net.pt2'}


@pytest.mark.parametrize('command', RUNS.values(), ids=RUNS)
def test_the_folder_of_a_run_stands_for_its_model(place, monkeypatch, capsys, command):
    device = '' if command.startswith(('check', 'export')) else ' --device cpu'
    code, lines = say(monkeypatch, capsys, command + device)
    assert code in ((0, 1, 2) if command.startswith('check') else (0,)), lines
    assert not [line for line in lines if 'no such file' in line or 'config.json' in line], lines


def test_another_kind_of_model_in_a_run_is_refused(place, monkeypatch, capsys):
    for command in ('generate network photos made', 'upscale flow photos large'):
        code, lines = say(monkeypatch, capsys, f'{command} --device cpu')
        assert code == 2 and len(lines) == 1 and 'model/config.json' in lines[0], lines


# ---------------------------------------------------------------- where the words go

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='a device of Linux')
@pytest.mark.parametrize('words', [['--help'], ['--version'], ['camera', 'canon'], ['upscale', 'network', 'photos', 'large', '--device', 'cpu']], ids=str)
def test_a_full_disk_below_the_output_is_one_line(place, words):
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', MAIN, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    lines = [line for line in done.stderr.replace('\r', '\n').splitlines() if line.strip() and '%|' not in line]
    assert done.returncode == 2 and len(lines) == 1 and 'disk is full' in lines[0], (done.returncode, lines)


@pytest.mark.skipif(os.name != 'posix', reason='a shell of Unix')
@pytest.mark.parametrize('closed', ['>&-', '2>&-', '>&- 2>&-'])
def test_a_closed_stream_keeps_nothing_from_being_done(place, closed):
    words = ['upscale', 'network', 'photos', 'large', '--device', 'cpu']
    done = subprocess.run(['sh', '-c', f'exec "$@" {closed}', '-', sys.executable, '-c', MAIN, *words], capture_output=True, text=True)
    assert done.returncode == 0 and len(list((place / 'large').glob('[!.]*'))) == 2, done.stderr


@pytest.mark.skipif(os.name != 'posix', reason='a shell of Unix')
def test_nobody_reads_on():
    done = subprocess.run(['bash', '-c', 'set -o pipefail; "$@" | head -1', '-', sys.executable, '-c', MAIN, 'layouts'], capture_output=True, text=True)
    assert 'Traceback' not in done.stderr and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize('missing', ['HOME', 'TMPDIR'])
def test_without_a_home_or_a_place_for_temporary_files(place, missing):
    import stat
    if missing == 'HOME' and not os.geteuid():
        pytest.skip('root may write anywhere')
    nowhere = place / 'nowhere'
    nowhere.mkdir()
    nowhere.chmod(stat.S_IRUSR)
    done = subprocess.run([sys.executable, '-c', MAIN, 'upscale', 'network', 'photos', 'large', '--device', 'cpu'], capture_output=True, text=True,
                          env={**os.environ, missing: str(nowhere / 'below')})
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
