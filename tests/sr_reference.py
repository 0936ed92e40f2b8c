"""Published SR networks as the tests see them: weights made by a rule from their names, and what the published code computed with them."""
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

REFERENCE = Path(__file__).resolve().parent / 'reference'
DERIVED = ('relative_position_index', 'attn_mask')      # computed from the settings, stored all the same


def reference(name):
    """(state dict, arrays) of the network `name`: 'vdsr', 'rcan', 'swinir', 'liif_rdn', ... as in the files' names.

    The state dict has the published names; the arrays are those of the file, `x` and `y` among them. Derived buffers, which a loader must
    ignore or rebuild, are zeros. Tensors are shared between calls: do not change them in place.
    """
    state, arrays = _read(name)
    return dict(state), dict(arrays)


@lru_cache
def _read(name):
    fill = _rule()
    with np.load(REFERENCE / f'sr_{name}.npz') as file:
        arrays = dict(file)
    shapes = json.loads((REFERENCE / f'sr_{name}_state_dict.json').read_text())
    return {entry: torch.from_numpy(_values(fill, entry, tuple(shape), arrays)) for entry, shape in shapes.items()}, arrays


def _values(fill, entry, shape, arrays):
    if entry in arrays['frozen']:
        return arrays[f'frozen/{entry}']
    return np.zeros(shape, np.float32) if entry.endswith(DERIVED) else fill(entry, shape, float(arrays['gain']))


def _rule():
    scope = {}
    exec((REFERENCE / 'fill.py').read_text(), scope)
    return scope['fill']
