"""The rooms as the tests see them: which notebooks there are, what each holds, exports and imports, and whether its outputs are of today's code.

    python tests/rooms.py stale          the rooms whose code, or a module that they use, changed since they were run
    python tests/rooms.py mark ROOM...   note in each room that its outputs are of today's code (make prepare does it)
"""
import ast
import hashlib
import json
import re
import sys
from functools import cache
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
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [(i, cell) for i, cell in enumerate(found) if cell['cell_type'] == kind]


def source(cell):
    "A cell's text; notebooks may store it as a string or as lines."
    return ''.join(cell['source'])


def exported(cell):
    "Whether a code cell goes into the package."
    return re.match(r'#\|\s*exporti?\b', source(cell)) is not None


def exports(path):
    "The dotted names of the modules that a notebook makes, `interflow.` included."
    text = '\n'.join(source(cell) for _, cell in cells(path))
    names = re.findall(r'^#\|\s*(?:default_exp|exporti?|exports)[ \t]+([\w.]+)', text, re.M)
    return sorted({f'interflow.{name}'.removesuffix('.__init__') for name in names})      # a package's door


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
    A relative import is given as it is written, with its dots; `import interflow` is none of a room's.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} - {'interflow'}      # the package alone: every import of a module runs it
        elif isinstance(node, ast.ImportFrom):
            base = '.' * node.level + (node.module or '')
            joined = [f'{base}.{alias.name}' for alias in node.names]
            found |= {name if name in known else base for name in joined}
    return {name for name in found if name.startswith('.') or name.split('.')[0] == 'interflow'}


# ---------------------------------------------------------------- are the outputs of today's code?

MARK = 'interflow'      # the notebook's metadata key that holds the digest


def skeleton(node):
    "A syntax tree as text, the same in all versions of Python: without docstrings, comments, places and empty fields."
    if isinstance(node, ast.AST):
        body = getattr(node, 'body', None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(getattr(body[0], 'value', None), ast.Constant):
            node.body = body[1:]
        fields = [(name, skeleton(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f'{type(node).__name__}({",".join(f"{name}={value}" for name, value in fields)})'
    return f'[{",".join(map(skeleton, node))}]' if isinstance(node, list) else repr(node)


@cache
def made():
    "Dotted module name -> the room that makes it."
    return {module: path for path in notebooks() for module in exports(path)}


@cache
def code(path):
    "The code of a room: `(text of its exported cells, text of the others, modules that each of the two imports)`."
    sides, used = {True: [], False: []}, {True: set(), False: set()}
    for _, cell in cells(path):
        tree = parse(source(cell))
        sides[exported(cell)].append(skeleton(tree) if tree else source(cell))
        used[exported(cell)] |= imported(tree, made()) if tree else set()
    return '\n'.join(sides[True]), '\n'.join(sides[False]), used[True], used[False]


def behind(path):
    "All rooms whose exported code a room runs, itself included."
    found, waiting = {path}, [made()[name] for name in code(path)[2] | code(path)[3] if name in made()]
    while waiting:
        room = waiting.pop()
        if room not in found:
            found.add(room)
            waiting += [made()[name] for name in code(room)[2] if name in made()]
    return sorted(found)


def digest(path):
    "A hash of all code of the package and of the room that its outputs came from."
    parts = [code(room)[0] for room in behind(path)] + [code(path)[1]]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def stale(path):
    "Whether a room's outputs are of other code than today's."
    return json.loads(path.read_text(encoding='utf-8'))['metadata'].get(MARK) != digest(path)


def mark(path):
    "Note in a room that its outputs are of today's code."
    room = json.loads(path.read_text(encoding='utf-8'))
    room['metadata'][MARK] = digest(path)
    path.write_text(json.dumps(room, sort_keys=True, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


if __name__ == '__main__':
    match sys.argv[1:]:
        case ['stale']:
            print('\n'.join(name_of(path) for path in notebooks() if stale(path)))
        case ['mark', *names] if names:
            for name in names:
                mark(Path(name).resolve())
        case _:
            sys.exit(__doc__)
