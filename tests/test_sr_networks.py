"""Ten SR networks by name: built, saved, loaded, published files read without running them."""
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from sr_reference import reference

from interflow.core import InterflowError, make_generator, read_json, write_json
from interflow.sr.networks import (
    VARIANTS,
    arbitrary,
    build,
    load_network,
    name_of,
    network_config,
    open_network,
    resize,
    save_network,
    shrink,
)
from interflow.sr.rcan import RCANConfig

SMALL = RCANConfig(channels=8, groups=2, blocks=2, reduction=2, global_residual=True)


def answer(net, lr, size=(30, 34)):
    with torch.inference_mode():
        return net(lr, size=size) if arbitrary(net) else net(lr)


@pytest.mark.parametrize('name', VARIANTS)
def test_built_from_the_seed_alone_saved_and_loaded_exactly(name, tmp_path):
    before = torch.get_rng_state()
    net, again, other = build(name, 'tiny', seed=3).eval(), build(network_config(name, 'tiny'), seed=3).eval(), build(name, 'tiny', seed=4)
    assert torch.equal(before, torch.get_rng_state()), "the caller's randomness is left alone"
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    assert name_of(net) == name_of(net.config) == name and arbitrary(net) == arbitrary(name)
    save_network(tmp_path / 'net', net, (3., 2.1))
    loaded = load_network(tmp_path / 'net')
    lr = torch.rand(1, 3, 24, 28, generator=make_generator(0))
    torch.manual_seed(0)
    first = answer(net, lr)
    torch.manual_seed(0)
    assert torch.equal(first, answer(loaded, lr)) and loaded.config == net.config and loaded.factors == (3., 2.1) and not loaded.training
    assert sorted(path.name for path in (tmp_path / 'net').iterdir()) == ['config.json', 'model.safetensors', 'trained.json']


def test_only_what_is_asked_for_is_imported():
    script = '''
import sys, interflow.sr.vdsr
assert 'interflow.sr.networks' not in sys.modules
import interflow.sr
assert callable(interflow.sr.from_published) and callable(interflow.sr.load_network)
assert not [name for name in ('rcan', 'swinir', 'nlsn', 'liif') if f'interflow.sr.{name}' in sys.modules], 'the table imports no network'
try: interflow.sr.nothing
except AttributeError: pass
else: raise AssertionError
'''
    subprocess.run([sys.executable, '-c', script], check=True)


def test_published_files_of_every_kind(tmp_path):
    from interflow.sr import from_published
    state, data = reference('vdsr')
    torch.save(state, tmp_path / 'plain.pth')
    torch.save({'epoch': 3, 'state_dict': {f'module.{name}': value for name, value in state.items()}}, tmp_path / 'wrapped.pth')
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / 'plain.safetensors')
    for given in (state, *sorted(tmp_path.iterdir())):
        net = from_published('vdsr', given)
        with torch.inference_mode():
            error = (net(torch.from_numpy(data['x'])) - torch.from_numpy(data['y'])).abs().max()
        assert error < 1e-4 * data['y'].std() and not net.training
    assert name_of(open_network(f'vdsr:{tmp_path / "plain.pth"}')) == 'vdsr'


class Worm:
    def __reduce__(self):
        return os.mkdir, ('bitten',)


def test_weights_that_are_none_or_of_another_network(tmp_path, monkeypatch):
    from interflow.sr import from_published
    monkeypatch.chdir(tmp_path)
    torch.save(Worm(), 'worm.pth')
    (tmp_path / 'cut.safetensors').write_bytes(b'\x08\0\0\0')
    vdsr, liif = reference('vdsr')[0], reference('liif_edsr_baseline')[0]
    faults = {'worm': lambda: from_published('rcan', 'worm.pth'), 'cut': lambda: from_published('rcan', 'cut.safetensors'), 'absent': lambda: from_published('rcan', 'absent.pth'),
              'another': lambda: from_published('rcan', vdsr), 'nothing': lambda: from_published('rcan', {}), 'numbers': lambda: from_published('rcan', {'epoch': 3}),
              'name': lambda: from_published('srcnn', vdsr), 'encoder': lambda: from_published('liif_rdn', liif), 'metasr': lambda: from_published('metasr_edsr_baseline', liif),
              'build': lambda: build('srcnn'), 'size': lambda: build('rcan', 'huge'), 'config': lambda: build(3), 'module': lambda: save_network('net', torch.nn.Identity())}
    for name, wrong in faults.items():
        with pytest.raises(InterflowError) as fault:
            wrong()
        assert '\n' not in str(fault.value) and str(fault.value), name
    assert not (tmp_path / 'bitten').exists() and not (tmp_path / 'net').exists(), 'nothing was run, nothing written'


@pytest.mark.parametrize('change', [dict(channels=16), dict(blocks=3), dict(kind='InterFlow'), dict(kind='HAN'), dict(colour=1), dict(channels='8'), dict(channels=7)])
def test_another_preset_is_refused(tmp_path, change):
    save_network(tmp_path / 'net', build(SMALL))
    write_json(tmp_path / 'net' / 'config.json', {**read_json(tmp_path / 'net' / 'config.json'), **change})
    with pytest.raises(InterflowError) as fault:
        load_network(tmp_path / 'net')
    assert '\n' not in str(fault.value)


def test_damaged_or_missing_weights_are_refused(tmp_path):
    save_network(tmp_path / 'net', build(SMALL))
    weights = tmp_path / 'net' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(InterflowError, match='model.safetensors'):
        load_network(tmp_path / 'net')
    weights.unlink()
    with pytest.raises(InterflowError, match='model.safetensors'):
        load_network(tmp_path / 'net')
    with pytest.raises(InterflowError):
        load_network(tmp_path / 'absent')


def test_networks_of_before_without_their_factors_load(tmp_path):
    save_network(tmp_path / 'net', build(replace(SMALL, blocks=1)), (3.,))
    (tmp_path / 'net' / 'trained.json').unlink()
    assert load_network(tmp_path / 'net').factors == ()


def test_resizing_is_pillows_bicubic():
    import numpy as np
    from PIL import Image
    grey = torch.nn.functional.interpolate(torch.rand(1, 1, 9, 11, generator=make_generator(1)), size=(60, 75), mode='bilinear')[0, 0]
    image = grey.expand(3, -1, -1)
    for size in ((20, 25), (31, 40), (90, 100)):
        pillow = np.asarray(Image.fromarray(grey.numpy(), mode='F').resize(size[::-1], Image.Resampling.BICUBIC))
        assert np.abs(resize(image, size)[0].numpy() - pillow.clip(0, 1)).max() < 1e-5
    assert shrink(image, 2.5).shape == (3, 24, 30) and resize(image, (60, 75)) is image
    assert resize(image[None].expand(2, -1, -1, -1), (30, 30)).shape == (2, 3, 30, 30)
    with pytest.raises(InterflowError):
        shrink(image[:, :1, :1], 4.)
