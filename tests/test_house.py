"""The house rules that hold for every room, whatever it teaches. Each test lists all faults at once, with the place."""
import ast
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import house
import pytest
from PIL import Image
from rooms import (
    NBS,
    ROOT,
    cells,
    exported,
    exports,
    imported,
    modules,
    name_of,
    notebooks,
    number_of,
    parse,
    source,
    stale,
)

from interflow.sr.evaluation import format_table, read_rows, summarise

LARGE = {'data/weights/flow/model.safetensors': 'the shipped flow'}    # tracked files that may be over 1 MB: path -> why
PHOTOS = ROOT / 'data' / 'photos'


def none(faults, mend=''):
    "Fail with the list of faults, one a line, and what to do about them."
    faults = list(faults)
    if faults:
        pytest.fail('\n'.join([*faults, mend]), pytrace=False)


# ---------------------------------------------------------------- rooms and modules

def test_one_number_one_room():
    rooms = [path for path in notebooks() if number_of(path) is not None]
    numbers = [number_of(path) for path in rooms]
    makers = {}
    for path in notebooks():
        for module in exports(path):
            makers.setdefault(module, []).append(name_of(path))
    none([f'{name_of(path)}: the number is taken twice' for path in rooms if numbers.count(number_of(path)) > 1]
         + [f'{module}: made by {" and ".join(paths)}' for module, paths in makers.items() if len(paths) > 1]
         + [f'{name_of(path)}: exports, but has no number' for path in notebooks() if exports(path) and number_of(path) is None])


def test_a_room_imports_only_lower_rooms():
    made = {module: number_of(path) for path in notebooks() for module in exports(path)}
    faults = []
    for path in notebooks():
        for i, cell in cells(path):
            tree = parse(source(cell))
            for module in sorted(imported(tree, made)) if tree else []:
                place = f'{name_of(path)} cell {i}: imports {module}'
                if module.startswith('.'):
                    faults.append(f'{place}; write the absolute name')
                elif module not in made and module != 'interflow':
                    faults.append(f'{place}, which no room makes')
                elif number_of(path) and (made.get(module, (0, 0)) > number_of(path) or made.get(module) == number_of(path) and exported(cell)):
                    part, number = made[module]
                    faults.append(f'{place} of part {part}, room {number}; a room imports only rooms that come before it')
    none(faults)


def test_each_room_leads_to_the_next():
    rooms = [path for path in notebooks() if number_of(path)]
    faults = []
    for path, following in zip(rooms, [*rooms[1:], NBS / 'index.ipynb']):
        text = '\n'.join(source(cell) for _, cell in cells(path, 'markdown'))
        links = re.findall(r'^\*\*Next room:\*\* \[[^\]]+\]\(([^)]+)\)', text, re.M)
        if [(path.parent / link).resolve() for link in links] != [following]:
            faults.append(f'{name_of(path)}: its next room is {name_of(following)}, the text leads to {links}')
    none(faults, 'End the room with a line: **Next room:** [name](path), and why')


@pytest.fixture(scope='module')
def again(tmp_path_factory):
    "A folder into which the notebooks were exported, and in which they were cleaned, once more."
    folder = tmp_path_factory.mktemp('again')
    shutil.copytree(NBS, folder / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    shutil.copy(ROOT / 'settings.ini', folder)
    (folder / 'interflow').mkdir()
    shutil.copy(ROOT / 'interflow' / '__init__.py', folder / 'interflow')
    quiet = {name: value for name, value in os.environ.items() if name != 'IN_TEST'}    # nbdev exports nothing where this is set
    for tool in 'nbdev_export', 'nbdev_clean':
        done = subprocess.run([Path(sys.executable).with_name(tool)], cwd=folder, env=quiet, capture_output=True, text=True)
        assert done.returncode == 0, f'{tool}:\n{done.stdout}{done.stderr}'
    return folder


def test_modules_are_what_the_notebooks_export(again):
    ours = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in modules()}
    theirs = {path.relative_to(again).as_posix(): path.read_bytes() for path in modules(again)}
    none([f'{name}: not exported from any notebook' for name in sorted(ours.keys() - theirs.keys())]
         + [f'{name}: exported, but missing' for name in sorted(theirs.keys() - ours.keys())]
         + [f'{name}: differs from its notebook' for name in sorted(ours.keys() & theirs.keys()) if ours[name] != theirs[name]],
         'Edit the notebooks, never the modules, and export them: .venv/bin/nbdev_export')


def test_notebooks_are_clean(again):
    none([f'{name_of(path)}: holds execution counts or metadata, or was written by another tool' for path in notebooks()
          if path.read_bytes() != (again / name_of(path)).read_bytes()], 'Clean them: .venv/bin/nbdev_clean')


def test_package_imports_alone():
    "A user of the package has neither the notebook tools nor, until a figure is drawn, the plotting libraries."
    script = '''
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {absent}: raise ModuleNotFoundError(f'No module named {name!r} (it is blocked here)', name=name)
sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    try: importlib.import_module(name)
    except ImportError as fault: print(f'{name}: {fault}')
'''.replace('{absent}', str({'nbdev', 'execnb', 'fastcore', 'ghapi', 'ipywidgets', 'IPython', 'jupyterlab', 'matplotlib', 'seaborn', 'pytest'}))
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in modules()]
    done = subprocess.run([sys.executable, '-c', script, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    none(done.stdout.splitlines())


def test_benchmarks_import_what_there_is():
    "Nothing else in the suite starts them all; a name that moved must not break a command that takes an hour."
    script = '''
import ast, sys
from pathlib import Path
sys.path.insert(0, 'benchmarks')
for path in sorted(Path('benchmarks').glob('*.py')):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            try: exec(compile(ast.Module([node], []), str(path), 'exec'), {})
            except ImportError as fault: print(f'{path.as_posix()}:{node.lineno}: {fault}')
'''
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    none(done.stdout.splitlines())


def test_modules_leave_devices_and_pickles_alone():
    faults = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            place = f'{name_of(path)}:{node.lineno}'
            if node.func.attr == 'cuda':
                faults.append(f'{place}: .cuda(); take the device of a tensor that is there')
            if ast.unparse(node.func) == 'torch.load' and not any(k.arg == 'weights_only' and ast.unparse(k.value) == 'True' for k in node.keywords):
                faults.append(f'{place}: torch.load without weights_only=True runs whatever the file holds')
    none(faults)


def test_public_names_have_docstrings():
    faults = []
    for path in modules():
        tree = ast.parse(path.read_text(encoding='utf-8'))
        methods = [node for owner in tree.body if isinstance(owner, ast.ClassDef) and owner.name[0] != '_' for node in owner.body
                   if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 5]    # a short method is read, not looked up
        public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
        faults += [f'{name_of(path)}:{node.lineno}: {node.name} has no docstring' for node in public + methods
                   if node.name[0] != '_' and not ast.get_docstring(node) and 'overload' not in map(ast.unparse, node.decorator_list)]
    none(faults)


def test_the_package_does_without_the_helpers_of_rooms():
    helper = re.compile(r'^\s*(?:from (?:interflow|\.)[\w.]*\b|import interflow[\w.]*\.)(?:rooms|trial)\b', re.M)
    none([f'{name_of(path)}: imports {found[0].split()[1]}, which serves notebooks, tests and benchmarks' for path in modules()
          for found in [helper.search(path.read_text(encoding='utf-8'))] if found and path.name != '_modidx.py'])


def test_limits_only_shrink():
    "Lines, cells, signatures: what is over a limit stands in limits.json, and no more than stands there."
    allowed, found = json.loads(house.LIMITS.read_text()), house.over_limits()
    counts = {(kind, name) for side in (allowed, found) for kind, files in side.items() for name in files}
    worse, better = [], []
    for kind, name in sorted(counts):
        before, now = allowed.get(kind, {}).get(name, 0), found[kind].get(name, 0)
        if now != before:
            (worse if now > before else better).append(f'{name}: {now} {kind}, {before} are allowed')
    none(worse, f'At most {house.COLUMNS} columns, {house.CELL} lines and {house.NAMES} public names in an exported cell, {house.PARAMETERS} parameters; '
                'types and a word on each public parameter')
    none(better, 'Better than the limits say; lower them: .venv/bin/python tests/house.py limits')


def test_ruff_finds_nothing():
    done = subprocess.run([Path(sys.executable).with_name('ruff'), 'check', '--output-format', 'concise', '.'], cwd=ROOT, capture_output=True, text=True)
    none(done.stdout.splitlines() if done.returncode else [], 'Many of these mend themselves: .venv/bin/ruff check --fix')


def test_types_fit(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'mypy', '--cache-dir', tmp_path, 'interflow'], cwd=ROOT, capture_output=True, text=True)
    none(done.stdout.splitlines() + done.stderr.splitlines() if done.returncode else [])


# ---------------------------------------------------------------- what a notebook stores

def test_outputs_are_of_todays_code():
    none([f'{name_of(path)}: its code, or a module that it uses, changed since its outputs were stored' for path in notebooks() if stale(path)],
         'Run it again and store what it shows: make prepare')



def test_notebooks_hold_their_outputs():
    none([f'{name_of(path)}: stored without outputs; a reader on the web sees no figure' for path in notebooks()
          if not any(cell['outputs'] for _, cell in cells(path))], 'Run them and store what they show: make prepare')


def test_notebooks_are_small():
    none([f'{name_of(path)}: {path.stat().st_size // 1024} KB; at most 500 (figures of 96 dpi or less, one per idea)' for path in notebooks()
          if path.stat().st_size > 500 * 1024])


def test_notebooks_store_no_errors():
    none([f'{name_of(path)} cell {i}: a stored error ({output["ename"]}); catch it and print what the user is told' for path in notebooks()
          for i, cell in cells(path) for output in cell['outputs'] if output['output_type'] == 'error'])


def texts(cell):
    "What a reader sees of a code cell as text: its source and its outputs, pictures left out."
    yield source(cell)
    for output in cell['outputs']:
        shown = {'text': output.get('text', ''), **output.get('data', {})}
        yield from (''.join(value) if isinstance(value, list) else json.dumps(value) for kind, value in shown.items() if 'image' not in kind)


def test_notebooks_name_no_place_of_this_machine():
    here = '|'.join(re.escape(str(place)) for place in {ROOT, Path.home(), Path(tempfile.gettempdir())} if len(place.parts) > 1)
    local = re.compile(rf'(?<![\w.:/])/(?:home|root|tmp|work|Users|mnt|content|private|var/folders)/[^\s"\']*|\b[A-Z]:\\\\?[\w]+|(?:{here})\b')
    none([f'{name_of(path)} cell {i}: {found[0]}' for path in notebooks() for i, cell in cells(path) for text in texts(cell)
          for found in [local.search(text)] if found], 'Print names relative to a folder, never absolute paths')


# ---------------------------------------------------------------- the map, the words beside it, the photographs, the sizes

def test_the_map_has_every_room():
    index = NBS / 'index.ipynb'
    said = '\n'.join(source(cell) for _, cell in cells(index, 'markdown'))
    none([f'{name_of(path)}: not on the map' for path in notebooks() if path != index and f']({path.relative_to(NBS).as_posix()})' not in said],
         'Add the room to nbs/index.ipynb')


def test_the_map_has_short_walks_and_says_what_one_may_change():
    said = '\n'.join(source(cell) for _, cell in cells(NBS / 'index.ipynb', 'markdown'))
    walks = re.search(r'## Two short walks\n(.*?)\n## ', said, re.S)[1].strip().split('\n\n')
    assert len(walks) == 2 and all(8 <= walk.count('](') <= 14 for walk in walks), 'README promises them'
    changes = re.search(r'## I want to change\n(.*?)\n## |$', said, re.S)[1]
    tests = re.findall(r'`(tests/\w+\.py)`', changes)
    assert all(word in changes for word in ('layer', 'path', 'network', 'camera', 'layout')) and all((ROOT / test).exists() for test in tests)


def test_links_lead_somewhere():
    prose = [(path, path.read_text(encoding='utf-8')) for path in [*ROOT.glob('*.md'), *PHOTOS.glob('*.md'), ROOT / 'benchmarks' / 'README.md', ROOT / 'data' / 'weights' / 'README.md']]
    prose += [(path, source(cell)) for path in notebooks() for _, cell in cells(path, 'markdown')]
    links = [(path, link) for path, text in prose for link in re.findall(r'\]\(([^()\s#]+)[^()\s]*\)', re.sub(r'`[^`]*`|\$[^$]*\$', '', text))]
    none([f'{name_of(path)}: the link to {link} leads nowhere' for path, link in links
          if not re.match(r'\w+:', link) and not (path.parent / link).exists()])


def test_readme_example_runs_and_prints_what_it_says(tmp_path):
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    examples = re.findall(r'^```python\n(.*?)^```\n\n```\n(.*?)^```', text, re.M | re.S)
    assert len(examples) == text.count('```python'), 'README.md: each example is followed by what it prints'
    for example, printed in examples:
        done = subprocess.run([sys.executable, '-c', example], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.sub(r'\d\d? grey', 'N grey', done.stdout) == re.sub(r'\d\d? grey', 'N grey', printed)      # the last digits are the machine's


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').split()) <= 900


def licence_rows():
    "The rows of the licence table, as dictionaries of their columns."
    lines = [line for line in (PHOTOS / 'LICENCES.md').read_text(encoding='utf-8').splitlines() if line.startswith('|')]
    head, _, *rows = [[field.strip() for field in line.strip('|').split('|')] for line in lines]
    return [dict(zip(head, row)) for row in rows]


def photos():
    "Everything in the splits' folders."
    return sorted(path for path in PHOTOS.rglob('*') if path.is_file() and path.parent != PHOTOS)


def test_every_photograph_has_its_licence():
    listed = [row['file'] for row in licence_rows()]
    there = [path.relative_to(PHOTOS).as_posix() for path in photos()]
    none([f'{name}: listed in LICENCES.md, but missing' for name in sorted(set(listed) - set(there))]
         + [f'{name}: not listed in LICENCES.md' for name in sorted(set(there) - set(listed))]
         + [f'{name}: listed twice' for name in sorted(set(listed)) if listed.count(name) > 1]
         + [f'{row["file"]}: no {field}' for row in licence_rows() for field in ('licence', 'author', 'source package', 'original') if not row.get(field)])
    assert there, 'no photographs at all'


def test_no_scene_is_in_two_splits():
    places = {}
    for path in photos():
        with Image.open(path) as image:
            marks = path.stem, hashlib.sha256(image.convert('RGB').tobytes()).hexdigest()
        for mark in marks:
            places.setdefault(mark, []).append(path.relative_to(PHOTOS).as_posix())
    for row in licence_rows():
        places.setdefault((row['source package'], row['original']), []).append(row['file'])
    assert {path.parent.name for path in photos()} == {'train', 'val', 'test'}
    none([f'the same scene twice: {" and ".join(names)}' for names in places.values() if len(names) > 1])


def test_no_large_file_is_tracked():
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout: what is tracked cannot be told')
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True, text=True).stdout.split('\0')
    sizes = {name: (ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file()}
    assert sizes
    none([f'{name}: {size / 1e6:.1f} MB' for name, size in sizes.items() if size > 1_000_000 and name not in LARGE],
         'Keep it out of the repository, or list it with its reason in LARGE')


# ---------------------------------------------------------------- numbers in prose

def test_the_pages_show_the_stored_tables():
    "The page of results as a whole; of the demo's table the lines that README has."
    done = subprocess.run([sys.executable, ROOT / 'benchmarks' / 'results.py', '--check'])
    assert done.returncode == 0, 'benchmarks/README.md: renew it with python benchmarks/results.py'
    page = (ROOT / 'benchmarks' / 'README.md').read_text(encoding='utf-8')
    tables = re.findall(r'<!-- (\S+) -->', page)
    assert {'realism.txt', 'demo/sr.txt', 'seeds.txt', 'city100_grid.txt', 'sr_table.txt', 'cost.txt'} <= set(tables), tables
    stored = ROOT / 'benchmarks' / 'demo'
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    shown = readme.partition('```\nnetwork')[2].partition('```')[0].splitlines()
    assert len(shown) == 4 and all(line in (stored / 'sr.txt').read_text() for line in shown), 'README.md: its table is not that of benchmarks/demo/sr.txt'
    rows, summary = read_rows(stored / 'sr.csv'), json.loads((stored / 'settings.json').read_text())
    assert format_table(summarise(rows, 'x2+x4', summary['seed'])) == (stored / 'sr.txt').read_text().rstrip('\n'), 'sr.txt does not follow from sr.csv'


def test_the_table_of_three_networks_follows_from_its_values():
    "The stored table from the stored values."
    lines = (ROOT / 'benchmarks' / 'sr_table.txt').read_text().splitlines()
    assert len(lines) == 1 + 3 * 8, 'of each network a table of six lines, and why it has no stars'
    with open(ROOT / 'benchmarks' / 'sr_table.csv', newline='') as file:
        rows = [{**row, 'factor': float(row['factor']), 'psnr_y': float(row['psnr_y'])} for row in csv.DictReader(file)]
    for name in {row['network'] for row in rows} - {'bicubic'}:
        means = [sum(values) / len(values) for f in (2.5, 3.0, 3.5) for values in [[row['psnr_y'] for row in rows if (row['network'], row['factor']) == (name, f)]]]
        (line,) = [line for line in lines if line.startswith(name + ' ')]
        assert all(f'{mean:.2f} /' in line for mean in means), name
