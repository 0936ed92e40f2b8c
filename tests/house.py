"""How well the house keeps its own rules, counted. `python tests/house.py` prints the table; tests/test_house.py holds the limits.

The limits that are not reached yet stand in tests/limits.json, file by file; they may only shrink: `python tests/house.py limits` writes today's.
"""
import ast
import builtins
import json
import re
import statistics
import sys
from pathlib import Path

from rooms import ROOT, cells, exported, modules, name_of, notebooks, number_of, source

COLUMNS, CELL, NAMES, PARAMETERS, MODULE = 100, 40, 3, 8, 300
LIMITS = Path(__file__).with_name('limits.json')
OBVIOUS = {'self', 'cls', 'generator', 'device', 'seed', 'dtype'}      # names that say what they are
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def lines(cell):
    "How many lines of code a cell has: directives and empty lines left out."
    return sum(bool(line.strip()) and not line.startswith('#|') for line in source(cell).splitlines())


def rooms():
    "The notebooks that are part of the walk."
    return [path for path in notebooks() if number_of(path)]


def is_import(cell):
    "Whether a cell holds imports alone."
    text = re.sub(r'^#\|.*$', '', source(cell), flags=re.M)
    try:
        return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(text).body)
    except SyntaxError:
        return False


def exported_cells(path):
    "(position, cell) of the cells that a room exports, those of imports left out."
    return [(i, cell) for i, cell in cells(path) if exported(cell) and not is_import(cell)]


def demonstrations(path):
    "(position, cell) of the code cells that a room does not export."
    return [(i, cell) for i, cell in cells(path) if not source(cell).startswith('#|') and not is_import(cell)]


def demonstrated(path):
    "For each exported cell whether code that is not exported stands between it and the next one."
    code = [cell for _, cell in cells(path) if not is_import(cell)]
    return [i + 1 < len(code) and not source(code[i + 1]).startswith('#|') for i, cell in enumerate(code) if exported(cell)]


def public_names(cell):
    "The public functions, classes and constants that a cell defines."
    found = []
    for node in ast.parse(source(cell)).body:
        if isinstance(node, (*Function, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return [name for name in found if not name.startswith('_')]


# ---------------------------------------------------------------- signatures

def public_functions(path):
    "(node, its docstring or its class's) of the public functions of a module and the public methods of its public classes."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node in tree.body:
        if isinstance(node, Function) and any(ast.unparse(one) == 'overload' for one in node.decorator_list):
            continue        # one more way to call what follows, which tells of all
        if isinstance(node, Function) and not node.name.startswith('_'):
            yield node, ast.get_docstring(node) or ''
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            for method in node.body:
                if isinstance(method, Function) and (method.name == '__init__' or not method.name.startswith('_')):
                    yield method, f'{ast.get_docstring(node) or ""} {ast.get_docstring(method) or ""}'


def parameters(node):
    "All parameters of a function but `self` and `cls`."
    given = node.args
    every = [*given.posonlyargs, *given.args, *filter(None, [given.vararg]), *given.kwonlyargs, *filter(None, [given.kwarg])]
    return [one for one in every if one.arg not in ('self', 'cls')]


def untyped(path):
    "`function(parameter)` of every public parameter without a type, `function ->` of every return without one."
    found = []
    for node, _ in public_functions(path):
        found += [f'{node.name}({one.arg})' for one in parameters(node) if one.annotation is None]
        found += [f'{node.name} ->'] if node.returns is None and node.name != '__init__' else []
    return found


def untold(path):
    "`function(parameter)` of every public parameter that neither a comment beside it nor the docstring tells of."
    text, found = path.read_text(encoding='utf-8').splitlines(), []
    for node, words in public_functions(path):
        for one in parameters(node):
            beside = '#' in text[one.lineno - 1].partition(one.arg)[2]
            named = re.search(rf'\b{re.escape(one.arg)}\b', words)
            told = one.annotation is not None and type_tells(one)
            if not (beside or named or told or one.arg in OBVIOUS):
                found.append(f'{node.name}({one.arg})')
    return found


def type_tells(parameter):
    "Whether name and type say the same: `model: InterFlow`, `camera: Camera`, `config: SetConfig`."
    last = re.findall(r'\w+', ast.unparse(parameter.annotation))[-1]
    return not hasattr(builtins, last) and last[:1].isupper() and last not in ('Tensor', 'Path', 'Callable', 'Any', 'None', 'Module')


def crowded(path):
    "`function: count` of public functions with more parameters than they should have."
    return [f'{node.name}: {len(parameters(node))}' for node, _ in public_functions(path) if len(parameters(node)) > PARAMETERS]


# ---------------------------------------------------------------- what is over a limit

def wide_lines(text):
    "Numbers of the lines that have too many columns; nbdev's own lines left out."
    return [i for i, line in enumerate(text.splitlines(), 1)
            if len(line) > COLUMNS and not line.startswith(('# AUTOGENERATED', '# %%'))]


def over_limits():
    "Kind of fault -> file -> how many: what limits.json allows to stay."
    found = {kind: {} for kind in ('wide lines', 'long cells', 'many names', 'untyped', 'untold', 'many parameters', 'long modules')}
    for path in rooms():
        code = [cell for _, cell in cells(path)]
        found['wide lines'][name_of(path)] = sum(len(wide_lines(source(cell))) for cell in code)
        found['long cells'][name_of(path)] = sum(lines(cell) > CELL for _, cell in exported_cells(path))
        found['many names'][name_of(path)] = sum(len(public_names(cell)) > NAMES for _, cell in exported_cells(path))
    for path in modules():
        if path.name == '_modidx.py':
            continue
        found['untyped'][name_of(path)] = len(untyped(path))
        found['untold'][name_of(path)] = len(untold(path))
        found['many parameters'][name_of(path)] = len(crowded(path))
        found['long modules'][name_of(path)] = int(len(path.read_text(encoding='utf-8').splitlines()) > MODULE)
    return {kind: {name: count for name, count in sorted(files.items()) if count} for kind, files in found.items()}


def describe(values):
    "Median, 90th percentile and maximum, as text."
    values = sorted(values)
    return f'{statistics.median(values):.0f} / {values[int(.9 * (len(values) - 1))]} / {values[-1]}'


def table():
    "(what, today, goal) of the house's table."
    cells_out = [lines(cell) for path in rooms() for _, cell in exported_cells(path)]
    shown = [lines(cell) for path in rooms() for _, cell in demonstrations(path)]
    followed = [one for path in rooms() for one in demonstrated(path)]
    files = [path for path in modules() if path.name != '_modidx.py']
    trees = [ast.parse(path.read_text(encoding='utf-8')) for path in files]
    lengths = [node.end_lineno - node.lineno + 1 for tree in trees for node in ast.walk(tree) if isinstance(node, Function)]
    text = [path.read_text(encoding='utf-8') for path in files]
    total = sum(len(one.splitlines()) for one in text)
    count = sum(len(parameters(node)) for path in files for node, _ in public_functions(path))
    lacking = sum(not one.endswith('->') for path in files for one in untyped(path))
    return [('exported cell, median / p90 / longest lines', describe(cells_out), '12 / 30 / 40'),
            ('demonstration cell, median / p90 / longest lines', describe(shown), '4 / 10'),
            ('export followed at once by a demonstration', f'{sum(followed) / len(followed):.0%}', '90%'),
            ('function, median / p90 / longest lines', describe(lengths), '6 / - / 38'),
            (f'lines over {COLUMNS} columns', f'{sum(len(wide_lines(one)) for one in text):,} of {total:,}', '0'),
            ('public parameters with a type', f'{1 - lacking / count:.0%}', '100%'),
            ('public parameters that nothing tells of', f'{sum(len(untold(path)) for path in files) / count:.0%}', '0%'),
            ('module, median / p90 / longest lines', describe([len(one.splitlines()) for one in text]), '120 / - / 300')]


if __name__ == '__main__':
    if sys.argv[1:] == ['limits']:
        LIMITS.write_text(json.dumps(over_limits(), indent=1) + '\n')
        print(f'written: {LIMITS.relative_to(ROOT)}')
    else:
        for what, today, goal in table():
            print(f'{what:52}{today:>20}{goal:>16}')
