"""What the model costs, in a unit that holds on any machine: E, one forward pass of the conditioning encoder without gradients.

    python benchmarks/cost.py [--preset paper|tiny] [--size 160] [--repeats 3] [--json FILE]

Every figure is measured beside E in one run; the machine's noise only ever adds time, so the best of the repeats is taken.
"""
import argparse
import time

import torch

from interflow.core import make_generator, write_json
from interflow.losses import LossWeights, interflow_loss, mix
from interflow.model import InterFlow, InterFlowConfig


def best(function, repeats):
    "Seconds of the fastest of some calls; one more call before warms up."
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(preset, size, repeats):
    "A dict of seconds; see `main` for what each is."
    torch.manual_seed(0)
    model = InterFlow(getattr(InterFlowConfig, preset)(), make_generator(0, 'model')).eval()
    hr, lr2, lr4 = (torch.rand(1, 3, size, size, generator=make_generator(0, name)) for name in ('hr', 'lr2', 'lr4'))

    def nineteen():
        cond = model.condition(hr)
        z2, z4 = model.encode(lr2, cond)[0], model.encode(lr4, cond)[0]
        for k in range(1, 20):
            model.decode(mix(z2, z4, hr.new_tensor([k / 20])), cond)

    def train_step():
        model.zero_grad()
        interflow_loss(model, {'hr': hr, 'lr': torch.stack([lr2, lr4])}, make_generator(0), LossWeights())[0].backward()

    with torch.inference_mode():
        cond = model.condition(hr)
        z = model.encode(lr2, cond)[0]
        seconds = {'encoder, forward (E)': best(lambda: model.encoder(hr), repeats), 'condition': best(lambda: model.condition(hr), repeats),
                   'encode, conditioned': best(lambda: model.encode(lr2, cond), repeats), 'decode, conditioned': best(lambda: model.decode(z, cond), repeats),
                   '19 factors, images to images': best(nineteen, repeats)}
    return {**seconds, 'training step, batch 1': best(train_step, repeats)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preset', default='paper', choices=['paper', 'tiny'])
    parser.add_argument('--size', type=int, default=160, help='height and width, pixels')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--json', help='file for the figures')
    arguments = parser.parse_args()
    seconds = measure(arguments.preset, arguments.size, arguments.repeats)
    unit = seconds['encoder, forward (E)']
    print(f'{arguments.preset}, {arguments.size}x{arguments.size}, {torch.get_num_threads()} threads')
    for name, value in seconds.items():
        print(f'{name:32}{value:8.3f} s {value / unit:8.2f} E')
    if arguments.json:
        write_json(arguments.json, {'settings': vars(arguments), 'threads': torch.get_num_threads(), 'seconds': seconds, 'E': {n: v / unit for n, v in seconds.items()}})


if __name__ == '__main__':
    main()
