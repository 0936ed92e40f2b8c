"""Long work is told in tiles: the bar knows how many there are, moves within one large picture, and stands at the end whatever was left aside."""
import re
import subprocess
import sys
import threading
import time

import pytest
import torch
from PIL import Image

from interflow import tiles
from interflow.checkpoints import save_model
from interflow.core import make_generator, to_pixels
from interflow.data import Scene
from interflow.model import InterFlow, InterFlowConfig
from interflow.photographs import Attempts
from interflow.sets import SetConfig, generate
from interflow.sets.manifest import Watch
from interflow.sr import scores, use
from interflow.sr.networks import build, save_network

MAIN = 'from interflow.cli import main; main()'


class Bar:
    "What `progress` gives, and what it was told."
    def __init__(self, items=None, total=None, unit='', initial=0, **rest):
        self.total, self.unit, self.n, self.seen = total, unit, initial, []
        bars.append(self)

    def update(self, n=1):
        self.n += n
        self.seen.append(n)

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        pass


bars: list[Bar] = []


@pytest.fixture(autouse=True)
def no_bars():
    bars.clear()


def picture(path, height, width, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_pixels(torch.rand(3, height, width, generator=make_generator(seed, 'picture')))).save(path)
    return path


@pytest.mark.parametrize('name, ensemble', [('vdsr', False), ('vdsr', True), ('liif_edsr_baseline', False)])
def test_upscale_counts_tiles_within_a_picture(tmp_path, monkeypatch, name, ensemble):
    monkeypatch.setattr(use, 'progress', Bar)
    for i, size in enumerate(((90, 120), (30, 40))):
        picture(tmp_path / f'in/{i}.png', *size)
    (tmp_path / 'in/broken.png').write_text('no picture')
    attempts = Attempts(say=lambda line: None)
    use.upscale(build(name, 'tiny'), tmp_path / 'in', tmp_path / 'out', 2., 128 if name == 'vdsr' else 84, ensemble, 'cpu', attempts)
    bar, = bars
    assert bar.unit == 'tile' and bar.n == bar.total == sum(bar.seen) and bar.total > 4 and max(bar.seen) == 1, (bar.total, bar.seen)
    assert len(attempts.aside) == 1


def test_results_lie_there_one_by_one(tmp_path, monkeypatch):
    "When a tile of the second picture is done, the first one can be looked at."
    seen = []

    class Looking(Bar):
        def update(self, n=1):
            super().update(n)
            seen.append(len(list((tmp_path / 'out').glob('*.png'))) if (tmp_path / 'out').exists() else 0)
    monkeypatch.setattr(use, 'progress', Looking)
    for i in range(3):
        picture(tmp_path / f'in/{i}.png', 60, 80, i)
    use.upscale(build('vdsr', 'tiny'), tmp_path / 'in', tmp_path / 'out', 2., 128, False, 'cpu')
    assert seen[0] == 0 and {1, 2} <= {*seen}, seen


def test_evaluate_counts_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, 'progress', Bar)
    scenes = [Scene(f's{i}', picture(tmp_path / f'hr{i}.png', 150, 160, i), {2.: picture(tmp_path / f'lr{i}.png', 150, 160, i)}) for i in range(2)]
    scenes[1].lr[2.].write_text('no picture')
    rows = scores.evaluate({'a': build('vdsr', 'tiny'), 'b': build('liif_edsr_baseline', 'tiny')}, scenes, (2.,), tile=128, attempts=Attempts(say=lambda line: None))
    bar, = bars
    assert bar.unit == 'tile' and bar.n == bar.total > 4 and len(rows) == 3


@pytest.mark.parametrize('path', ['sample', 'pixels'])
def test_generate_counts_tiles_and_those_that_were_there(tmp_path, monkeypatch, path):
    from interflow.sets import shares
    monkeypatch.setattr(shares, 'progress', Bar)
    flow = InterFlow(InterFlowConfig.tiny(), make_generator(0)).eval()
    hr = picture(tmp_path / 'hr.png', 130, 170)
    lr = {factor: picture(tmp_path / f'lr{factor}.png', 130, 170, 3) for factor in flow.prior.factors}
    config = SetConfig((3.0, 3.3, 3.5), path, tile=112, check='none')
    for _ in range(2):
        generate(flow, [Scene('a', hr, lr)], tmp_path / 'out', config, 'cpu')
    expected = 3 * len(tiles.tiles(132, 172, 112))
    assert bars[0].unit == 'tile' and bars[0].n == bars[0].total == expected > 6
    assert path == 'pixels' or max(bars[0].seen) == 1
    assert len(bars) == 1, 'nothing was left to do'


def test_processes_tell_their_tiles_while_they_work(tmp_path, monkeypatch):
    "The bar of several processes moves before the first image is there."
    from interflow.sets import shares
    from interflow.sets.manifest import Dots
    monkeypatch.setattr(shares, 'progress', Bar)
    flow = InterFlow(InterFlowConfig.tiny(), make_generator(0)).eval()
    scenes = [Scene(f's{i}', picture(tmp_path / f'{i}.png', 100, 120, i), {}) for i in range(2)]

    def engine(function, jobs, at_once):
        for job in jobs:
            function(*job)
            yield [0]
    watch = Watch(tmp_path / 'out', [(0, 2), (1, 2)])
    work = shares.Work(flow, scenes, tmp_path / 'out', SetConfig((3.0,), tile=112, check='none'), 'cpu', None, {})
    monkeypatch.setattr(shares, 'ask_photographs', lambda *rest: {})
    shares.make_shares(work, shares.Share(), 2, engine)
    bar = bars[0]       # those of the jobs are not shown
    assert bar.unit == 'tile' and bar.n == bar.total and len(bar.seen) == 2 and bar.seen[0] == bar.total // 2
    assert watch.count() == bar.total
    Dots(tmp_path / 'out', 1, 2).update(2)
    assert watch.count() == bar.total + 2


def test_a_batch_of_photographs_goes_on_in_generate(tmp_path, monkeypatch, capsys):
    from test_faults import say
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / 'flow', InterFlow(InterFlowConfig.tiny(), make_generator(0)))
    picture(tmp_path / 'photos/a.png', 64, 64)
    (tmp_path / 'photos/b.png').write_bytes((tmp_path / 'photos/a.png').read_bytes()[:200])
    code, lines = say(monkeypatch, capsys, 'generate flow photos made --factors 3 --check none --processes 1 --device cpu')
    assert code == 1 and '1 of 2 files left aside' in lines[-1] and [line for line in lines if line.startswith('left aside: photos/b.png')], lines
    assert len(list((tmp_path / 'made').rglob('*LR3.png'))) == 1


def test_the_bar_of_one_large_picture_moves_and_says_what_is_left(tmp_path):
    "In a terminal, while the command runs: after the first tile there is a time left, long before the picture is done."
    pty, fcntl, termios = map(pytest.importorskip, ('pty', 'fcntl', 'termios'))
    import os
    import struct
    save_network(tmp_path / 'net', build('vdsr', 'tiny'))
    picture(tmp_path / 'large.png', 300, 400)
    main, other = pty.openpty()
    process = subprocess.Popen([sys.executable, '-c', MAIN, 'upscale', 'net', 'large.png', 'out', '--factor', '2', '--tile', '128', '--device', 'cpu'],
                               cwd=tmp_path, stderr=other, stdout=subprocess.DEVNULL, env={**os.environ, 'TERM': 'xterm', 'COLUMNS': '100'})
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack('4H', 30, 120, 0, 0))
    os.close(other)
    text = []

    def read():
        try:
            while data := os.read(main, 4096):
                text.append(data.decode(errors='replace'))
        except OSError:
            pass        # the other end is closed
    reader = threading.Thread(target=read)
    reader.start()
    start = time.monotonic()
    assert process.wait(120) == 0, text
    reader.join(10)
    said = ''.join(text)
    counts = [int(number) for number in re.findall(r'(\d+)/\d+ \[', said)]
    total = int(re.findall(r'\d+/(\d+) \[', said)[-1])
    assert total > 100 and max(counts) == total, said[-300:]
    assert 'tile/s' in said and re.search(r'\[\d\d:\d\d<\d\d:\d\d', said), 'the time that is left'
    assert len({*counts}) > 2 or time.monotonic() - start < 3, 'it moved'
