"""What several test files need: crops of the embedded photographs, a folder with everything in order, and the command run in this process."""
import sys

import pytest

from interflow.checkpoints import save_model
from interflow.cli import main
from interflow.core import make_generator, photographs, read_image, write_image
from interflow.data import simulate
from interflow.model import InterFlow, InterFlowConfig
from interflow.sr.networks import build, save_network


def write_crops(folder, paths, rows, columns):
    "Write the same part of each photograph, two slices, as PNG files under their own names; returns `folder`."
    for path in paths:
        write_image(folder / f'{path.stem}.png', read_image(path)[:, rows, columns])
    return folder


def write_whole(folder, network, rows=slice(200, 328), columns=slice(300, 428), model='.'):
    "Photographs, pairs made of them, a flow and an SR network (neither trained), each in `model` of its folder; returns `folder`."
    photos = write_crops(folder / 'photos', photographs('test')[:2], rows, columns)
    simulate(photos, folder / 'pairs', (2.1, 3.75))
    save_model(folder / 'flow' / model, InterFlow(InterFlowConfig.tiny(), make_generator(0)))
    save_network(folder / 'network' / model, build(network, 'tiny'))
    return folder


def run_command(monkeypatch, capsys, command):
    "(exit code, output, error) of `interflow COMMAND`."
    monkeypatch.setattr(sys, 'argv', ['interflow', *command.split()])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
        sys.exit(0)
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def without_bars(error):
    "The lines of an error stream without its progress bars. A line that a bar has begun does not count as one."
    return [line for line in error.replace('\r', '\n').splitlines() if line.strip('\x1b[A ') and '%|' not in line]
