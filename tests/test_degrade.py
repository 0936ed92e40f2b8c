"""Pairs for other people's trainings: repeatable by name and epoch, in any company, kind and framework."""
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from interflow.checkpoints import load_model
from interflow.core import (
    InterflowError,
    data_folder,
    in_8_bits,
    make_generator,
    photographs,
    read_image,
)
from interflow.degrade import Degrade, draw_factor, factors_of, key_of, pairs_of
from interflow.feeding import for_basicsr, for_datasets, reduce_lr
from interflow.gate import Limits
from interflow.generation import generate_scene


@pytest.fixture(scope='module')
def model():
    return load_model(data_folder() / 'weights' / 'flow')


@pytest.fixture(scope='module')
def crops():
    "(6, 3, 40, 40) uint8"
    some = [read_image(path)[:, 90:130, 140:180] for path in photographs('train')[:6]]
    return (255 * torch.stack(some)).round().to(torch.uint8)


def gathered(loader):
    "Bytes of HR -> (bytes of LR, factor), of one epoch."
    return {hr.numpy().tobytes(): (lr.numpy().tobytes(), factor.item())
            for batch in loader for hr, lr, factor in zip(batch['hr'], batch['lr'], batch['factor'])}


@pytest.mark.parametrize('workers', [1, 2])
def test_pairs_depend_on_index_and_epoch_alone(model, crops, workers):
    def epochs(count, shuffle, batch):
        degrade = Degrade(model, 'random:2.1:3.9', crops=crops)
        loader = DataLoader(degrade, batch, shuffle=shuffle, num_workers=count, persistent_workers=count > 0)
        found = []
        for epoch in (0, 5):
            degrade.set_epoch(epoch)        # workers that live on must be told, too
            found.append(gathered(loader))
        return found
    first, second = alone = epochs(0, False, 6)
    assert alone == epochs(workers, True, 4)
    assert all(first[hr] != second[hr] for hr in first)


def test_a_crop_is_the_same_alone_and_in_company(model, crops):
    degrade = Degrade(model, [2.5, 3.], crops=crops)
    together = degrade.__getitems__(range(6))
    for i in (0, 4):
        assert torch.equal(degrade[i]['lr'], together[i]['lr']) and degrade[i]['factor'] == together[i]['factor']
    raw = Degrade(model, [2.5, 3.], crops=crops.float() / 255, eight_bits=False)
    assert torch.equal(raw[3]['lr'], raw.__getitems__([5, 3, 1])[1]['lr']), 'not only after rounding'


def test_it_makes_what_generation_makes(model, crops):
    hr = crops[:2].float() / 255
    made = Degrade(model, 3., eight_bits=False)(hr, keys=[7, 8])['lr']
    whole = next(generate_scene(model, hr[0], {}, [3.], 'sample', [make_generator(0, 'noise', 7, 0, 0)]))
    assert torch.allclose(made[0], whole.clamp(0, 1), atol=1e-4)


@pytest.mark.parametrize('kind', [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_kind_and_shape_are_kept(model, crops, kind):
    given = crops if kind == torch.uint8 else (crops / 255).to(kind)
    for some in (given[:2], given[0]):
        pair = Degrade(model, 3.)(some)
        assert pair['lr'].dtype == kind and pair['lr'].shape == some.shape and pair['hr'] is some or some.ndim == 3
        assert pair['factor'].shape == some.shape[:-3]
    levels = 255 * pair['lr'].double() if kind != torch.uint8 else pair['lr'].double()
    assert (levels - levels.round()).abs().max() < .1, '8 bits'
    assert (levels.round() - Degrade(model, 3.)(crops[0])['lr'].double()).abs().max() <= 1, 'all kinds give the same pair'


def test_pairs_can_be_trained_on(model, crops):
    lr = Degrade(model, 3.)(crops[:2] / 255)['lr']
    network = torch.nn.Conv2d(3, 3, 3)
    network(lr).mean().backward()
    assert network.weight.grad is not None and not lr.requires_grad


def test_factors_come_from_list_range_and_map(model, crops):
    factors = [draw_factor(factors_of('random:2.5:3.5'), 1, i, 0, (8, 8)) for i in range(100)]
    assert 2.5 <= min(factors) < 2.6 and 3.4 < max(factors) <= 3.5
    chosen = {Degrade(model, [2.2, 3.3])(crops, keys=range(20, 26))['factor'][i].item() for i in range(6)}
    assert chosen == {2.2, 3.3}
    maps = Degrade(model, 'map:2.5:3.5')(crops[:2])['factor']
    assert maps.shape == (2, 40, 40) and 2.5 <= maps.min() < maps.max() <= 3.5


def test_a_name_is_what_a_crop_shows(crops):
    assert key_of(crops[0]) == key_of(crops[0] / 255) == key_of(crops[0].clone()) != key_of(crops[1])
    assert key_of(crops[0]) != key_of(crops[0].mT)


def test_crops_of_several_sizes(model, crops):
    degrade = Degrade(model, 3.)
    some = [crops[0], crops[1][:, :33, :20], crops[2]]
    pairs = pairs_of(degrade, [(crop, {}) for crop in some], [0, 1, 2])
    assert [pair['lr'].shape for pair in pairs] == [crop.shape for crop in some]
    assert torch.equal(pairs[2]['lr'], degrade(crops[2], [2])['lr'])


def test_a_path_from_lr_crops(model, crops):
    hr = crops[:3] / 255
    ends = {factor: in_8_bits(Degrade(model, factor)(hr)['lr']) for factor in (2., 4.)}
    at_end = Degrade(model, 2., 'linear', band=False)(hr, lr=ends)['lr']
    assert (at_end - ends[2.]).abs().max() < 1.5 / 255, 'at a trained factor a path is where it starts'
    items = [(hr[i], {factor: lr[i] for factor, lr in ends.items()}) for i in range(3)]
    made = Degrade(model, 3., 'linear', crops=items)[1]['lr']
    assert (made - ends[2.][1]).abs().max() > 2 / 255


def test_the_gate_draws_again(model, crops):
    hr = torch.nn.functional.interpolate(crops.float() / 255, scale_factor=2).clamp(0, 1)
    free, wide, narrow = (Degrade(model, 3., gate=gate)(hr) for gate in (None, Limits(), Limits(spreads=.3)))
    assert 'passed' not in free and wide['passed'].dtype == torch.bool
    kept = wide['passed']
    assert kept.any() and not narrow['passed'].all()
    changed = (free['lr'] != narrow['lr']).flatten(1).any(1)
    assert changed[~narrow['passed']].all(), 'refused crops were drawn again'


def test_it_survives_pickling(model, crops):
    degrade = Degrade(model, [3.], crops=crops)
    degrade.set_epoch(2)
    again = pickle.loads(pickle.dumps(degrade))
    assert torch.equal(again[3]['lr'], degrade[3]['lr']) and again.epoch == 2


@pytest.mark.parametrize('call, words', [
    (lambda model, crops: Degrade(model, 9.), 'outside the trained range'),
    (lambda model, crops: Degrade(model, []), '0 factors'),
    (lambda model, crops: Degrade(model, [2.5], 'pixels'), 'choose one of'),
    (lambda model, crops: Degrade(model, 'random:3:2'), 'not a range'),
    (lambda model, crops: Degrade(model, 3.)(crops.float()), 'values from'),
    (lambda model, crops: Degrade(model, 3.)(crops.int()), 'torch.int32'),
    (lambda model, crops: Degrade(model, 3.)(crops, keys=[1]), '1 names'),
    (lambda model, crops: Degrade(model, 3.)[0], 'none given'),
    (lambda model, crops: Degrade(model, 3., crops=[crops.numpy()])[0], 'give a tensor'),
    (lambda model, crops: Degrade(model, 3., 'slerp', crops)[0], 'no latent'),
    (lambda model, crops: reduce_lr(crops / 255, 3., 4), 'scale 4'),
    (lambda model, crops: reduce_lr(crops / 255, 3., 3), 'does not divide'),
    (lambda model, crops: for_datasets(Degrade(model, 3.))({'picture': []}), 'column image'),
])
def test_errors_are_one_line(model, crops, call, words):
    with pytest.raises(InterflowError, match=words) as fault:
        call(model, crops)
    assert '\n' not in str(fault.value)


def test_a_flow_elsewhere_is_no_matter_of_workers(model, crops, monkeypatch):
    monkeypatch.setattr('interflow.degrade.get_worker_info', lambda: object())
    degrade = Degrade(model, 3., crops=crops)
    degrade[0]
    monkeypatch.setattr(degrade, 'model', model.__class__(model.config).to('meta'))
    with pytest.raises(InterflowError, match='num_workers=0'):
        degrade[0]


def test_basicsr_gets_its_dictionary(model, crops):
    class FlowPairs(Degrade):
        def __getitems__(self, indices):
            return [for_basicsr(pair, scale=2) for pair in super().__getitems__(indices)]

    batch = next(iter(DataLoader(FlowPairs(model, 'random:2.1:3.9', crops=crops), 3)))
    assert set(batch) == {'lq', 'gt'} and batch['lq'].shape == (3, 3, 20, 20) and batch['lq'].dtype == torch.float32
    assert torch.equal(batch['gt'], crops[:3].float() / 255)
    same = for_basicsr(Degrade(model, 3.)(crops))
    assert same['lq'].shape == same['gt'].shape, 'scale 1: on the grid of HR'


class Table:
    "What `datasets.Dataset` does with a transform."

    def __init__(self, columns):
        self.columns = columns

    def set_transform(self, transform):
        self.transform = transform

    def __getitem__(self, rows):
        return self.transform({name: [values[row] for row in rows] for name, values in self.columns.items()})


def pictures(crops):
    return [Image.fromarray(crop.permute(1, 2, 0).numpy()) for crop in crops]


def test_tables_get_columns(model, crops):
    table = Table({'image': pictures(crops), 'name': list('abcdef')})
    table.set_transform(for_datasets(Degrade(model, 'random:2.1:3.9')))
    first, second = table[[0, 1, 2]], table[[2, 4]]
    assert set(first) == {'image', 'name', 'hr', 'lr', 'factor'} and first['name'] == ['a', 'b', 'c']
    assert torch.equal(first['lr'][2], second['lr'][0]) and torch.equal(first['hr'][1], crops[1])


def test_the_real_library(model, crops, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    datasets = pytest.importorskip('datasets')
    table = datasets.Dataset.from_dict({'image': pictures(crops)}).cast_column('image', datasets.Image())
    degrade = Degrade(model, 'random:2.1:3.9')
    live = table.with_transform(for_datasets(degrade))
    assert torch.equal(live[2:4]['lr'][0], live[2]['lr'])
    stored = table.map(for_datasets(degrade, pictures=True), batched=True, batch_size=4)
    assert np.array_equal(np.array(stored[5]['lr']), live[5]['lr'].permute(1, 2, 0).numpy())
    assert stored[5]['factor'] == live[5]['factor']
