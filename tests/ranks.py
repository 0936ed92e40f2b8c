"""What tests/test_distributed.py starts in each of two processes: `torchrun ... ranks.py FOLDER`. Trains, and keeps what happened."""
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from interflow.checkpoints import load_model
from interflow.core import data_folder
from interflow.data import read_set
from interflow.losses import LossWeights
from interflow.model import InterFlowConfig
from interflow.sr.liif import LIIFConfig
from interflow.sr.training import FlowSource, Source, train_sr
from interflow.sr.vdsr import VDSRConfig
from interflow.training import TrainConfig, fit, loop, train_flow, writes

CONFIG = TrainConfig(steps=4, batch_size=4, patch=32, learning_rate=1e-4, clip=100., save_every=2, halve_at=())
NETWORKS = {'vdsr': VDSRConfig(channels=8, layers=3), 'liif': LIIFConfig.tiny()}
JOBS = 'flow', 'vdsr', 'liif', 'broken'


def broken(out):
    "A line whose loss is no number at step 1, and only for the last of four samples."
    def batches(step, share):
        x = torch.arange(4.).view(4, 1)
        y = 3 * x
        y[3] = float('nan') if step == 1 else 9.
        return {'x': share.of(x), 'y': share.of(y)}

    def loss(model, batch, generator):
        return (model(batch['x']) - batch['y']).square().mean(), {}
    torch.manual_seed(0)
    line = torch.nn.Linear(1, 1)
    return line, fit(line, loss, batches, TrainConfig(steps=4, batch_size=4, save_every=4), out, device='cpu')


def train(job, pairs, out, config=CONFIG):
    "One of `JOBS`; (model, history)."
    if job == 'broken':
        return broken(out)
    scenes = read_set(pairs)
    if job == 'flow':
        return train_flow(scenes, out, InterFlowConfig.tiny((2.1, 3.75)), config, LossWeights(pixel=1., crps=1.), 'cpu')
    config = replace(config, patch=14 if job == 'liif' else 32)
    made = FlowSource(load_model(data_folder() / 'weights/flow'), scenes, factors=(3.,), margin=4)
    return train_sr([Source(scenes, (2.1, 3.75)), made], out, NETWORKS[job], config, 'cpu')


def main(folder):
    told, real, saved = {}, loop.save_state, []
    loop.save_state = lambda *arguments: saved.append(1) or real(*arguments)
    for job in JOBS:
        model, history = train(job, folder / 'pairs', folder / 'two' / job)
        told[job] = {'history': history, 'weights': [value.double().sum().item() for value in model.state_dict().values()]}
    told['saved'], longer = len(saved), replace(CONFIG, steps=6)
    told['longer'] = train('flow', folder / 'pairs', folder / 'two/flow', longer)[1]
    (folder / f'rank{os.environ["RANK"]}.json').write_text(json.dumps(told))
    assert writes() == (os.environ['RANK'] == '0')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
