"""Large scenes in tiles: no seam that shows, the same noise, memory of one tile alone."""

import inspect
import json
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from interflow import cli
from interflow.checkpoints import save_model
from interflow.core import (
    InterflowError,
    make_generator,
    photographs,
    read_image,
    read_pixels,
    write_image,
)
from interflow.data import read_set, simulate
from interflow.generation import MARGIN, TILE, generate_scene, part, tiles, within
from interflow.losses import LossWeights
from interflow.model import InterFlowConfig
from interflow.sets import SetConfig, _glance, generate, shards
from interflow.training import PRESETS, train_flow

sys.path.append(str(Path(__file__).resolve().parent.parent / 'benchmarks'))
import large  # noqa: E402

FACTORS = (2.1, 3.75)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    "A scene of 128 x 288 pixels, and one whose sides are no multiples of 4."
    folder = tmp_path_factory.mktemp('pairs')
    for path, (height, width) in zip(photographs('val'), ((128, 288), (117, 210))):
        write_image(
            folder / 'photos' / f'{path.stem}.png',
            read_image(path)[:, 200 : 200 + height, 300 : 300 + width],
        )
    simulate(folder / 'photos', folder / 'set', FACTORS, 'canon', 3)
    return folder / 'set'


@pytest.fixture(scope='module')
def models(pairs, tmp_path_factory):
    """A model trained for seconds, and two with random weights (the last far from any that fits a
    photograph, so it is used for sampling alone).
    """
    config = replace(PRESETS['tiny'], steps=20, batch_size=2, patch=48)
    trained, _ = train_flow(
        read_set(pairs),
        tmp_path_factory.mktemp('flow'),
        InterFlowConfig.tiny(FACTORS),
        config,
        LossWeights.tiny(),
        'cpu',
    )
    return {
        'trained': trained.eval(),
        'random': large.filled('tiny'),
        'shaken': large.filled('tiny', 0.01),
    }


def images(scene):
    return read_image(scene.hr), {factor: read_image(path) for factor, path in scene.lr.items()}


def make(model, scene, path, tile, margin=MARGIN, factors=(2.4, 3.3), seed=0):
    generators = [make_generator(seed, factor) for factor in factors]
    return torch.stack(
        list(
            generate_scene(
                model, *images(scene), factors, path, generators, tile=tile, margin=margin
            )
        )
    )


# ---------------------------------------------------------------- where the tiles lie

@pytest.mark.parametrize(
    'height, width, tile, margin',
    [
        (1536, 2048, TILE, MARGIN),
        (52, 40, 32, 8),
        (4, 400, 20, 6),
        (400, 4, 37, 1),
        (40, 44, 4, 0),
        (1200, 300, 128, 48),
    ],
)
def test_cores_cover_the_image_once_and_windows_hold_the_margin(height, width, tile, margin):
    image, covered = torch.rand(height, width), torch.zeros(height, width)
    boxes = tiles(height, width, tile, margin)
    assert len(boxes) > 1
    for core, window in boxes:
        part(covered, core).add_(1)
        assert max(part(image, window).shape) <= tile
        assert torch.equal(part(part(image, window), within(core, window)), part(image, core))
        for inner, outer, length in zip(core, window, (height, width)):
            assert 4 * (inner.start - outer.start) >= margin or outer.start == 0
            assert 4 * (outer.stop - inner.stop) >= margin or 4 * outer.stop == length
    assert (covered == 1).all()


# ---------------------------------------------------------------- what the images are

@pytest.mark.parametrize(
    'name, path',
    [
        ('trained', 'linear'),
        ('trained', 'preserving'),
        ('trained', 'renewing'),
        ('trained', 'sample'),
        ('random', 'linear'),
        ('random', 'sample'),
        ('shaken', 'sample'),
    ],
)
def test_seams_are_below_one_grey_level(models, pairs, name, path):
    scene = read_set(pairs)[0]
    whole = make(models[name], scene, path, 0)
    assert whole.isfinite().all()
    assert 255 * (make(models[name], scene, path, 176) - whole).abs().max() < 1


def test_without_a_margin_they_are_not(models, pairs):
    """Else the test above could pass for the wrong reason. The error falls with the margin: at the
    default it is far below the bound.
    """
    scene = read_set(pairs)[0]
    whole = make(models['trained'], scene, 'sample', 0)
    errors = [
        255 * (make(models['trained'], scene, 'sample', 160, margin) - whole).abs().max()
        for margin in (0, 16, 32)
    ]
    assert errors[0] > 1 and errors[0] > 3 * errors[1] > 9 * errors[2], errors


@pytest.mark.parametrize('path', ['linear', 'sample'])
def test_sizes_that_are_no_multiples_of_4(models, pairs, path):
    scene = read_set(pairs)[1]
    whole, tiled = (
        make(models['trained'], scene, path, 0),
        make(models['trained'], scene, path, 152),
    )
    assert tiled.shape == (2, 3, 117, 210) and 255 * (tiled - whole).abs().max() < 1


@pytest.mark.parametrize('path', ['linear', 'sample', 'pixels'])
def test_a_small_image_is_made_as_a_whole(models, pairs, path):
    "Bit for bit, whatever the tile, as long as it has no fewer pixels than the image."
    whole = make(models['trained'], read_set(pairs)[1], path, 0)
    for tile in (None, 160, TILE, 10 ** 6):      # 117 * 210 < 160 * 160
        assert torch.equal(make(models['trained'], read_set(pairs)[1], path, tile), whole)


def test_the_noise_is_drawn_as_without_tiles(models, pairs):
    """Not only alike: as much is taken from the generator, and another seed gives another image in
    every tile.
    """
    hr, _ = images(read_set(pairs)[1])
    made, states = {}, {}
    for tile, seed in ((0, 0), (152, 0), (152, 1)):
        generator = make_generator(seed)
        (made[tile, seed],) = generate_scene(
            models['trained'], hr, {}, (3.0,), 'sample', [generator], tile=tile
        )
        states[tile, seed] = generator.get_state()
    assert torch.equal(states[0, 0], states[152, 0])
    assert all(
        255 * (part(made[152, 0], core) - part(made[152, 1], core)).abs().mean() > 1
        for core, _ in tiles(116, 208, 152)
    )


# ---------------------------------------------------------------- what it costs

@pytest.mark.skipif(
    not Path('/proc/self/status').exists(), reason='the peak of a child process is read from Linux'
)
def test_memory_depends_on_the_tile_alone():
    """A scene four times as large takes more memory for its images and latents, and not for
    anything else; as a whole it takes far more.
    """
    peaks = {
        (side, tile): large.measure((side, side), 2, tile, 'sample', 'tiny', seams=False)['peak']
        for side, tile in ((192, 192), (384, 192), (384, 0))
    }
    more = 4 * 3 * (384 ** 2 - 192 ** 2)      # bytes of one image
    # two factors, each an image and a latent; HR and LR images, padded, what drawing takes; the
    # allocator's whims
    allowed = 2 * 2 * more + 12 * more + 20_000_000
    assert peaks[384, 192] - peaks[192, 192] < allowed < peaks[384, 0] - peaks[192, 192], (
        peaks,
        allowed,
    )


# ---------------------------------------------------------------- a folder of them

def test_the_tile_is_part_of_the_settings_and_a_resumed_run_ends_alike(
    models, pairs, tmp_path, monkeypatch
):
    exact = []      # rounding to 8 bits would hide small differences
    real = shards.encode_image
    monkeypatch.setattr(
        'interflow.sets.shards.encode_image',
        lambda image, suffix: (exact.append(image.clone()), real(image, suffix))[1],
    )
    # what a flow trained for seconds makes
    content = {'colour': 0.}, None
    monkeypatch.setattr('interflow.sets.shards.judge', lambda image, *others: content)
    scenes, config = read_set(pairs)[1:], SetConfig((2.4, 3.0, 3.3), 'sample', tile=152)
    generate(models['trained'], scenes, tmp_path / 'a', config, 'cpu')
    settings = json.loads((tmp_path / 'a/generated.json').read_text())
    assert (settings['tile'], settings['margin']) == (152, MARGIN)
    before, first = (
        {path: path.read_bytes() for path in (tmp_path / 'a').rglob('*.png')},
        list(exact),
    )
    exact.clear()
    # one of the two that were decoded together
    for gone in (tmp_path / 'a').glob('scale_3/*_LR3.png'):
        gone.unlink()
    generate(models['trained'], scenes, tmp_path / 'a', config, 'cpu')
    assert before == {path: path.read_bytes() for path in (tmp_path / 'a').rglob('*.png')}
    assert len(exact) == 1 and any(torch.equal(exact[0], image) for image in first), (
        'the missing one alone, to the last bit'
    )
    with pytest.raises(InterflowError, match='a run with tile = 152, not 0'):
        generate(models['trained'], scenes, tmp_path / 'a', replace(config, tile=0), 'cpu')


@pytest.mark.parametrize(
    'tile, margin', [(-512, 48), (-1, 0), (64, 48), (96, 48), (3, 0), (512, -4)]
)
def test_a_tile_that_cannot_be(models, pairs, tmp_path, tile, margin):
    for call in (
        lambda: make(models['random'], read_set(pairs)[0], 'sample', tile, margin),
        lambda: generate(
            models['random'],
            read_set(pairs),
            tmp_path / 'out',
            SetConfig((3.0,), 'sample', tile=tile, margin=margin),
            'cpu',
        ),
    ):
        with pytest.raises(InterflowError, match='(tile|margin) -?[0-9]+: .*; give'):
            call()
    assert not (tmp_path / 'out').exists()


def test_at_the_command_line(models, pairs, tmp_path, monkeypatch, capsys):
    assert inspect.signature(cli.generate).parameters['tile'].default == TILE, (
        'the help names another default'
    )
    save_model(tmp_path / 'flow', models['trained'])
    call = [
        'interflow',
        'generate',
        str(tmp_path / 'flow'),
        str(pairs),
        str(tmp_path / 'out'),
        '--factors',
        '3',
        '--device',
        'cpu',
        '--check',
        'none',
        '--tile',
    ]
    monkeypatch.setattr(sys, 'argv', [*call, '50'])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (
        ended.value.code == 2
        and capsys.readouterr().err
        == 'interflow: tile 50: nothing is left of it between margins of 48 pixels; '
        'give at least 100, or 0 for the whole image\n'
    )
    assert not (tmp_path / 'out').exists()
    monkeypatch.setattr(sys, 'argv', [*call, '128'])
    with pytest.raises(SystemExit) as ended:
        cli.main()
        sys.exit(0)
    assert (
        not ended.value.code
        and json.loads((tmp_path / 'out/generated.json').read_text())['tile'] == 128
    )


def test_images_on_another_grid_are_refused(models, pairs):
    "Tiles cut from images of different size would fit each other and mean nothing."
    hr, lr = images(read_set(pairs)[0])
    for wrong in (lr[2.1][:, :-4], torch.cat([lr[2.1], lr[2.1]], 2)):
        with pytest.raises(InterflowError, match='factor 2.1 .*same grid'):
            next(
                generate_scene(models['random'], hr, {**lr, 2.1: wrong}, (3.0,), 'linear', tile=128)
            )


# ---------------------------------------------------------------- what is checked before anything
# is written

def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def deep(path):
    "A PNG with 16 bits a channel, which Pillow can read, but not write."
    rows = zlib.compress(b''.join(b'\0' + bytes(6 * 20) for _ in range(12)))
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 20, 12, 16, 2, 0, 0, 0))
        + chunk(b'IDAT', rows)
        + chunk(b'IEND', b'')
    )


SPOILED = {
    'cut': lambda p: p.write_bytes(p.read_bytes()[:-100]),
    'a byte changed': lambda p: p.write_bytes(
        p.read_bytes()[:-90] + b'changed' + p.read_bytes()[-83:]
    ),
    'grey': lambda p: Image.open(p).convert('L').save(p),
    'transparent': lambda p: Image.open(p).convert('RGBA').save(p),
    'palette': lambda p: Image.open(p).convert('P').save(p),
    '16 bit': deep,
    'empty': lambda p: p.write_bytes(b''),
    'missing': lambda p: p.unlink(),
    'a cut JPEG': lambda p: (
        Image.open(p).save(p, format='JPEG', quality=95),
        p.write_bytes(p.read_bytes()[:-300]),
    ),
}


@pytest.mark.parametrize('spoil', SPOILED.values(), ids=SPOILED)
def test_a_glance_finds_what_reading_finds(tmp_path, spoil):
    path = tmp_path / 'image.png'
    Image.fromarray(np.random.default_rng(0).integers(256, size=(12, 20, 3), dtype=np.uint8)).save(
        path
    )
    assert _glance(path).shape == read_pixels(path).shape == (12, 20, 3)
    spoil(path)
    with pytest.raises(InterflowError) as found:
        read_pixels(path)
    with pytest.raises(InterflowError) as glanced:
        _glance(path)
    assert str(glanced.value) == str(found.value)
