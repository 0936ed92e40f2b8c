"""The rooms as the tests see them: which notebooks there are, what each holds, exports and imports."""
import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'


def notebooks(folder=NBS):
    "Every notebook below `folder` in the order of the walk, without JupyterLab's checkpoints."
    return sorted(path for path in folder.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)


def modules(root=ROOT):
    "Every Python file of the package."
    return sorted((root / 'interflow').rglob('*.py'))


def name_of(path):
    "A path as the repository's readers write it: from its root, with forward slashes."
    return path.relative_to(ROOT).as_posix()


def number_of(path):
    "The place of a room in the walk, (part, number) by its folder and file name; None for the map and the experiments."
    part, room = re.match(r'(\d+)_', path.parent.name), re.match(r'(\d+)_', path.name)
    return (int(part[1]), int(room[1])) if part and room else None


def cells(path, kind='code'):
    "(position, cell) of each cell of one kind."
    return [(i, cell) for i, cell in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells']) if cell['cell_type'] == kind]


def source(cell):
    "A cell's text; notebooks may store it as a string or as lines."
    return ''.join(cell['source'])


def exports(path):
    "The dotted names of the modules that a notebook makes, `interflow.` included."
    names = re.findall(r'^#\|\s*(?:default_exp|exporti?|exports)[ \t]+([\w.]+)', '\n'.join(source(cell) for _, cell in cells(path)), re.M)
    return sorted({f'interflow.{name}' for name in names})


def parse(text):
    "The syntax tree of a code cell, its IPython magics and shell lines left out; None for a `%%` cell in another language."
    if text.lstrip().startswith('%%'):
        first, _, rest = text.lstrip().partition('\n')
        if first.split()[0] not in ('%%time', '%%timeit', '%%capture'):
            return None
        text = rest
    return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', text, flags=re.M))


def imported(tree, known):
    """The `interflow` modules that a syntax tree imports; `known` are the dotted names that exist.

    `from interflow.layers import squeeze` gives the module `interflow.layers.squeeze` where there is one, else `interflow.layers`.
    A relative import is given as it is written, with its dots.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.' * node.level + (node.module or '')
            joined = [f'{base}.{alias.name}' for alias in node.names]
            found |= {name if name in known else base for name in joined}
    return {name for name in found if name.startswith('.') or name.split('.')[0] == 'interflow'}
