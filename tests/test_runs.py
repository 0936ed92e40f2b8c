"""Runs that are killed, resumed, repeated: they end as if nothing had happened."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from scenes import write_crops

from interflow.checkpoints import fingerprint, load_model, save_model
from interflow.core import InterflowError, make_generator, photographs, read_image, write_image
from interflow.data import FACTOR_OF_LABEL, PairBatches, read_set, simulate
from interflow.generation import blend_pixels, generate_scene
from interflow.model import InterFlow, InterFlowConfig
from interflow.sets import SetConfig, generate

TRAIN = ['--steps', '14', '--save-every', '2', '--patch', '32', '--batch-size', '2', '--device', 'cpu']


def command(*arguments):
    "The command as a process of its own, with one thread, so that sums are rounded alike."
    return [sys.executable, '-c', 'from interflow.cli import main; main()', *map(str, arguments)]


def environment():
    return {**os.environ, 'OMP_NUM_THREADS': '1'}


def run(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pairs')
    photos = write_crops(folder / 'photos', photographs('val')[:2], slice(200, 250), slice(300, 366))      # no multiples of 4
    simulate(photos, folder / 'set', (2.1, 3.0, 3.75), 'nikon', 3)
    return folder / 'set'


def kill_after(process, file, step):
    "Kill `process` without warning as soon as `file` says that `step` was saved."
    for _ in range(6000):
        if process.poll() is not None or (file.exists() and json.loads(file.read_text())['step'] >= step):
            break
        time.sleep(.01)
    assert process.poll() is None, 'it ended before it could be killed'
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize('what', ['train', 'train-sr'])
def test_a_killed_training_ends_like_one_that_was_left_alone(pairs, tmp_path, what):
    run(what, pairs, tmp_path / 'whole', *TRAIN)
    process = subprocess.Popen(command(what, pairs, tmp_path / 'killed', *TRAIN), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill_after(process, tmp_path / 'killed/state/progress.json', 2)
    assert not (tmp_path / 'killed/model').exists()
    run(what, pairs, tmp_path / 'killed', *TRAIN, *(['--recompute'] if what == 'train' else []))      # which changes nothing but memory and time
    for name in ('model.safetensors', 'config.json', *(['photographs.json'] if what == 'train' else [])):
        assert (tmp_path / 'whole/model' / name).read_bytes() == (tmp_path / 'killed/model' / name).read_bytes()
    before = (tmp_path / 'killed/model/model.safetensors').read_bytes()
    run(what, pairs, tmp_path / 'killed', *TRAIN)      # a finished run is not trained on
    assert (tmp_path / 'killed/model/model.safetensors').read_bytes() == before
    assert json.loads((tmp_path / 'killed/state/progress.json').read_text())['step'] == 14


def test_several_sets_train_one_flow(pairs, tmp_path):
    out = run('train', pairs, pairs, tmp_path / 'both', '--steps', '2', '--patch', '32', '--batch-size', '2', '--device', 'cpu')
    assert 'bits per dimension' in out and (tmp_path / 'both/model/photographs.json').exists()
    assert len(json.loads((tmp_path / 'both/training.json').read_text())['scenes']) == 4


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = InterFlow(InterFlowConfig.tiny(), make_generator(0, 'model'))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(.02 * torch.randn(p.shape, generator=make_generator(0, *p.shape)))
    return model.eval()


@pytest.mark.parametrize('path', ['pixels', 'linear', 'sample'])
def test_generation_resumes_to_the_same_bytes(model, pairs, tmp_path, path):
    scenes, config = read_set(pairs), SetConfig((2.5, 3.0), path, seed=4, names='published', check='none')      # the model is none that would pass
    generate(model, scenes, tmp_path / 'a', config, 'cpu')
    made = {p.relative_to(tmp_path / 'a'): p.read_bytes() for p in (tmp_path / 'a').rglob('*.*') if p.is_file()}
    assert sum('_LR3' in p.name for p in made) == 4
    for gone in [p for p in made if '_LR3' in p.name][::2]:
        (tmp_path / 'a' / gone).unlink()
    generate(model, scenes, tmp_path / 'a', config, 'cpu')
    assert made == {p.relative_to(tmp_path / 'a'): p.read_bytes() for p in (tmp_path / 'a').rglob('*.*') if p.is_file()}
    generate(model, scenes[::-1], tmp_path / 'b', config, 'cpu')
    for first, second in (('Canon_001', 'Canon_002'), ('Canon_002', 'Canon_001')):
        assert scene_names(tmp_path / 'a')[first] == scene_names(tmp_path / 'b')[second]
        images = [next((tmp_path / folder).rglob(f'scale_2.5/{number}_LR3.png')).read_bytes() for folder, number in (('a', first), ('b', second))]
        assert images[0] == images[1], 'the order of scenes does not matter'


def scene_names(folder):
    return json.loads((folder / 'scenes.json').read_text())


def test_at_a_trained_factor_the_mixture_is_the_photograph(model, pairs):
    scene = read_set(pairs)[0]
    lr = {factor: read_image(scene.lr[factor]) for factor in (2.1, 3.75)}
    for factor, image in zip(lr, generate_scene(model, read_image(scene.hr), lr, tuple(lr), 'linear', band=False)):
        assert (image - lr[factor]).abs().max() < 2e-3


def test_weights_follow_from_true_factors():
    lr = {factor: torch.full((3, 2, 2), value) for factor, value in ((2.1, 0.), (3.0, 1.), (3.75, 3.))}
    assert blend_pixels({f: lr[f] for f in (2.1, 3.75)}, 3.0).mean().item() == pytest.approx(3 * .9 / 1.65)
    assert blend_pixels(lr, 3.3).mean().item() == pytest.approx(1 + 2 * .4)
    ramp = torch.tensor([[2.1, 2.55], [3.3, 3.75]], dtype=torch.float64)
    assert torch.allclose(blend_pixels(lr, ramp)[0], torch.tensor([[0., .5], [1.8, 3.]]))
    assert sorted(FACTOR_OF_LABEL.values()) == [2.1, 3.0, 3.75]
    for outside in (2.0, 3.8, float('nan'), ramp + 1):
        with pytest.raises(InterflowError, match='outside'):
            blend_pixels({f: lr[f] for f in (2.1, 3.75)}, outside)


def test_published_labels_are_read_as_true_factors(pairs, tmp_path):
    scene = read_set(pairs)[0]
    for label, factor in FACTOR_OF_LABEL.items():
        write_image(tmp_path / f'Canon/Train/{label}/Canon_001_HR.png', read_image(scene.hr))
        write_image(tmp_path / f'Canon/Train/{label}/Canon_001_LR{label}.png', read_image(scene.lr[factor]))
    (again,) = read_set(tmp_path / 'Canon/Train')
    assert sorted(again.lr) == [2.1, 3.0, 3.75]
    assert torch.equal(read_image(again.lr[3.75]), read_image(scene.lr[3.75]))


def test_batches_are_functions_of_seed_and_step(pairs):
    def batches(seed=0):
        return PairBatches(read_set(pairs), (2.1, 3.75), 24, 3, seed)
    for name, value in batches()(5).items():
        assert torch.equal(value, batches()(5)[name])
        assert not torch.equal(value, batches()(6)[name]) and not torch.equal(value, batches(1)(5)[name])


def test_a_saved_model_in_use_gives_the_same_images(model, pairs, tmp_path):
    save_model(tmp_path / 'model', model)
    hr = read_image(read_set(pairs)[0].hr)
    first, second = (next(generate_scene(m, hr, {}, (2.7,), 'sample', [make_generator(1)])) for m in (model, load_model(tmp_path / 'model')))
    assert torch.equal(first, second)


@pytest.mark.parametrize('steps', [(4, 2), (2, 4)])
def test_a_start_from_a_model_of_other_size_is_one_line(steps):
    "Whichever of the two has the weights that the other lacks; nothing is changed."
    from interflow.training import start_from
    model, init = (InterFlow(replace(InterFlowConfig.tiny(), steps=count)) for count in steps)
    before = fingerprint(model)
    with pytest.raises(InterflowError, match='init: its weights do not fit at flow') as fault:
        start_from(model, init)
    assert '\n' not in str(fault.value) and fingerprint(model) == before


def test_a_layout_is_one_record(tmp_path, monkeypatch):
    "A set that no reader knows is refused, with the layouts there are; one record more, and it is read."
    from interflow.data import LAYOUTS, Layout, Scene, read_scenes
    write_image(tmp_path / 'sharp/bee.png', torch.rand(3, 8, 8))
    def read(folder):
        return [Scene('bee', folder / 'sharp/bee.png', {3.: folder / 'soft/bee.png'})]
    with pytest.raises(InterflowError, match='HR/ and x2.1/ ..., or 2/, 3/, 4/'):
        read_set(tmp_path)
    new = Layout('new', lambda folder: (folder / 'sharp').is_dir(), read, 'sharp/ and soft/')
    monkeypatch.setattr('interflow.data.layouts.LAYOUTS', [*LAYOUTS, new])
    assert read_set(tmp_path) == read_scenes(tmp_path) == read(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InterflowError, match='or sharp/ and soft/'):
        read_set(tmp_path / 'empty')
