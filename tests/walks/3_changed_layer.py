"""A researcher changes a layer: the coupling gets another scale. Nothing that was changed is ignored.

    pip install 'interflow-sr[sets,train]'
    python 3_changed_layer.py PAIRS OUT

PAIRS has images at x2 and x4, such as `interflow simulate PHOTOS PAIRS --factors 2,4` makes. STEPS=5 for a look.
In a clone of the repository one changes the room instead: see CONTRIBUTING.md, "How to change a layer".
"""
import logging
import os
import sys
from dataclasses import replace

import torch

from interflow import InterFlowConfig, generate, load, read_image
from interflow.data import read_set
from interflow.layers import coupling
from interflow.training import PRESETS, train_flow

pairs, out = sys.argv[1:]
logging.basicConfig(format='%(message)s')       # the flow says here in which form it runs


# The contract of a layer: forward is data to latent, with log|det| summed per sample; inverse is the way back.
class SoftCoupling(coupling.AffineCoupling):
    "The scale is 1 + h^2 instead of the paper's sigmoid."

    def steered(self, x, cond):
        kept, moved = x.tensor_split([self.net.in_channels], 1)
        h = self.net(cond, kept)
        return kept, moved, h[:, 0::2], 1 + h[:, 1::2] ** 2

    def forward(self, x, cond):
        kept, moved, shift, scale = self.steered(x, cond)
        return torch.cat([kept, moved / scale - shift], 1), -scale.log().sum((1, 2, 3))

    def inverse(self, z, cond):
        kept, moved, shift, scale = self.steered(z, cond)
        return torch.cat([kept, (moved + shift) * scale], 1), scale.log().sum((1, 2, 3))


# Each flow that is built from now on has the new layer.
coupling.AffineCoupling = SoftCoupling
settings = replace(PRESETS['tiny'], steps=int(os.environ.get('STEPS', 4000)))
scenes = read_set(pairs)
flow, history = train_flow(scenes, out, InterFlowConfig.tiny((2., 4.)), settings)
changed = sum(isinstance(layer, SoftCoupling) for layer in flow.modules())
print(f'{changed} changed couplings, {len(history)} steps')

# Is it still a bijection? There and back. `flow.condition` runs the flow as it is written, and not the fast form.
hr, lr = (read_image(path)[None, :, :64, :64] for path in (scenes[0].hr, scenes[0].lr[2.]))
with torch.no_grad():
    cond = flow.condition(hr)
    z, log_det = flow.encode(lr, cond)
    error = (flow.decode(z, cond) - lr).abs().max().item()
print(f'{type(cond.form).__name__}, there and back: {error:.0e}')
assert changed and error < 1e-3

# All else works as with the published layer: draws, folders, the command.
image = generate(load(out), scenes[0].hr, factor=3)
print('an image:', tuple(image.shape))
