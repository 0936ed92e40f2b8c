"""The one command that trains the shipped flow, on a CPU or a GPU; what it did is told in data/weights/README.md.

    python benchmarks/train_weights.py [--work runs/weights] [--device auto] [--threads 1]

About an hour on one quiet core; interrupted, the same command goes on. The flow: WORK/longer/model.
Eight simulated sets of the 18 training photographs, each with other noise, residuals and colour: four of whole photographs, two at .7 and two at .5 of their size.
Three stages, each from where the one before ended: the mean image first (L1 of the centre), then draws judged by the CRPS, then the same longer and with more weight. At the end the draws are calibrated by five takes of each training photograph and of those that are held out.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import torch

from interflow.calibrating import calibrate
from interflow.checkpoints import save_model
from interflow.core import photographs, pick_device
from interflow.data import simulate
from interflow.losses import LossWeights
from interflow.model import InterFlowConfig
from interflow.training import PRESETS, train_flow

FACTORS = (2., 4.)
SCALES = (1., 1., 1., 1., .7, .7, .5, .5)      # of the photographs, one for each seed
STAGES = {      # name: steps, learning rate, weights of the loss
    'centre': (3000, 1e-3, LossWeights(pixel=30.)),
    'draws': (3000, 5e-4, LossWeights(crps=100.)),
    'longer': (9500, 6e-4, LossWeights(crps=200.)),
}


def sets(work):
    "The scenes of all eight sets."
    made = [simulate(photographs('train'), work / f'pairs{seed}', FACTORS, 'canon', seed, scale) for seed, scale in enumerate(SCALES)]
    return [scene for scenes in made for scene in scenes]


def train(work, device):
    "All stages; returns the folder of the model."
    scenes, model = sets(work), None
    for name, (steps, rate, weights) in STAGES.items():
        config = replace(PRESETS['tiny'], steps=steps, learning_rate=rate, save_every=500)
        model, _ = train_flow(scenes, work / name, InterFlowConfig.tiny(FACTORS), config, weights, device, init=model)
    calibrate(model, simulate(photographs('train') + photographs('val'), work / 'takes', FACTORS, 'canon', len(SCALES), takes=5))
    save_model(work / name / 'model', model)
    return work / name / 'model'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, default=Path('runs/weights'), help='folder for sets, checkpoints and models')
    parser.add_argument('--device', default='auto', help="'auto', 'cpu', 'cuda'")
    parser.add_argument('--threads', type=int, default=1, help='of the CPU; one leaves the other cores to others')
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(train(arguments.work, pick_device(arguments.device)))
