"""The demo: one seed decides all, the same bytes from any number of processes, honest measures, and a page with all of it."""
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_pages import check_page

import interflow.demo
from interflow.core import InterflowError, data_folder, make_generator, read_json, write_json
from interflow.data import Scene
from interflow.demo import (
    DemoConfig,
    Found,
    known,
    run_demo,
    smoke_config,
    story,
    write_report,
)
from interflow.demo.plan import shipped_flow
from interflow.demo.quality import GENERATORS, MEASURES, generation_means, judge_stack
from interflow.demo.report import BOTH, busiest, findings, smooth
from interflow.demo.stages import train_all
from interflow.model import InterFlowConfig
from interflow.sr.scores import read_rows

STORED = data_folder().parent / 'benchmarks' / 'demo'


def test_the_door_has_every_name():
    "What was in one module is still found where callers look for it."
    names = '''GENERATORS MEASURES SHOTS COLOURS STYLES PANELS PAGE DemoConfig smoke_config
        shipped_flow story chosen_photographs make_data known make_sources train_networks
        side_by_side keep_shots make_images judge_generation strip_figure mosaic_figure busiest
        mean_of quality_figure smooth loss_figure save_figure table_html generation_means
        Clock run_demo draw write_report'''
    assert not [name for name in names.split() if not hasattr(interflow.demo, name)]


def test_one_seed_decides_all():
    for config in (DemoConfig(seed=5), replace(smoke_config(), seed=5)):
        assert config.flow.seed == config.tuning.seed == config.sr.seed == 5
    assert DemoConfig(trained=(2.1, 3.75)).model.factors == (2.1, 3.75)


def test_the_flow_to_start_from_must_fit():
    with pytest.raises(InterflowError, match='--from-scratch') as fault:
        shipped_flow(DemoConfig(model=replace(InterFlowConfig.tiny(), hidden=32)))
    assert '\n' not in str(fault.value)
    assert shipped_flow(DemoConfig(from_scratch=True)) is None
    assert 'from nothing' in story(DemoConfig(from_scratch=True))


def test_a_folder_belongs_to_one_demo(tmp_path):
    # settings are compared before anything is done
    run = replace(smoke_config(), from_scratch=True)
    write_json(tmp_path / 'settings.json', {'seed': 1})
    with pytest.raises(InterflowError, match='holds a run with'):
        run_demo(tmp_path, run, 'cpu')
    assert [path.name for path in tmp_path.iterdir()] == ['settings.json']


def test_only_photographed_factors_are_known():
    scene = Scene('a', Path('a.png'), {factor: Path(f'{factor}.png') for factor in (2., 2.5, 4.)})
    (seen,) = known([scene], (2., 4.))
    assert list(seen.lr) == [2., 4.] and len(scene.lr) == 3


def files(out):
    "What a demo made, without what tells of time: logs, states and the page."
    kept = [*out.glob('*.csv'), *out.glob('*.txt'), *out.glob('*.png'), *out.rglob('model/*'), *out.rglob('history.json')]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}


def test_one_process_and_two_make_the_same_bytes(tmp_path, monkeypatch):
    "Sets have their own test of it (test_simulation, test_sets): here they are made by one process."
    for name in ('make_data', 'make_sources'):
        real = getattr(interflow.demo, name)
        monkeypatch.setattr(interflow.demo, name, lambda *rest, real=real: real(*rest[:-1], 1))
    run = smoke_config()
    run = replace(run, generated=(3.0,), judged=(3.0,), tuning=replace(run.tuning, steps=3), sr=replace(run.sr, steps=4))
    made = {}
    for processes, threads in ((1, 2), (2, 1)):
        monkeypatch.setenv('OMP_NUM_THREADS', str(threads))
        torch.set_num_threads(threads)
        run_demo(tmp_path / str(processes), run, 'cpu', processes)
        made[processes] = files(tmp_path / str(processes))
    torch.set_num_threads(1)
    assert sum('safetensors' in name for name in made[1]) >= 7 and 'sr.csv' in made[1] and 'generation.csv' in made[1]
    assert made[1].keys() == made[2].keys()
    assert not [name for name, data in made[1].items() if made[2][name] != data]


def test_a_training_that_fails_ends_all_with_its_line(tmp_path):
    with pytest.raises(InterflowError, match='^no.json: no such file; check the path$'):
        train_all([(read_json, 'no.json'), (os.mkdir, tmp_path / 'later')], 2, tmp_path, 1)
    assert not (tmp_path / 'later').exists()


def test_other_shots_are_perfect_and_faults_are_seen():
    hr = torch.nn.functional.interpolate(torch.rand(1, 3, 24, 24, generator=make_generator(0)),
                                         scale_factor=8, mode='bicubic')[0]
    noise = .03 * torch.randn(10, 3, 192, 192, generator=make_generator(1))
    true, other = (hr + noise).split(5)
    perfect, clean, blurred = (judge_stack(made, true, hr) for made in (
        other, hr + .5 * (other - hr), torch.nn.functional.avg_pool2d(other, 3, 1, 1)))
    assert tuple(perfect) == MEASURES
    assert abs(perfect['ratio'] - 1) < .03
    assert abs(perfect['sharpness'] - 1) < .02
    assert perfect['spectrum'] < .3
    assert abs(clean['ratio'] - .25) < .01
    assert abs(clean['spectrum'] - 6) < .3
    assert clean['mean_psnr'] > perfect['mean_psnr']
    assert blurred['sharpness'] < perfect['sharpness'] - .02 and blurred['spectrum'] > 3


def test_running_means_and_the_busiest_crop():
    assert smooth([1., 3., 5., 7.], 2) == [1., 2., 4., 6.]
    image = torch.full((3, 90, 120), .5)
    image[:, 70:80, 20:30] = torch.rand(3, 10, 10, generator=make_generator(2))
    top, left = busiest(image, 30)
    assert top <= 70
    assert top + 30 >= 80
    assert left <= 20
    assert left + 30 >= 30
    assert top % 15 == left % 15 == 0


def test_the_page_holds_all_and_escapes_what_it_is_told(tmp_path):
    rows = [{'scene': 's', 'factor': factor, 'path': path, **dict.fromkeys(MEASURES, factor)}
            for factor in (2.5, 3.) for path in GENERATORS]
    (tmp_path / 'settings.json').write_text('{"camera": "<b>"}')
    for name in ('strip', 'generation', 'sr', 'sr_crops', 'losses'):
        Image.new('RGB', (90, 40), 'red').save(tmp_path / f'{name}.png')
    found = Found(None, [1, 2], [3], [], [], {}, {}, rows, read_rows(STORED / 'sr.csv'))
    write_report(tmp_path, DemoConfig(), found, {'generate': 7.5})
    read, page = check_page(tmp_path / 'report.html'), (tmp_path / 'report.html').read_text()
    assert '&lt;b&gt;' in page and '<b>' not in page and read.tags.count('img') == 5
    assert all(words in page for words in ('<td>7.5</td>', '2 scenes', '1 other scenes'))
    assert [row['sharpness / true'] for row in generation_means(rows)] == [2.5] * 4 + [3.] * 4


def test_what_the_demo_found_turns_with_its_numbers():
    results = read_rows(STORED / 'sr.csv')
    swap = {BOTH: 'x2+x4', 'x2+x4': BOTH}
    turned = [{**row, 'network': swap.get(row['network'], row['network'])} for row in results]
    rows = [{'scene': 's', 'factor': factor, 'path': path, **dict.fromkeys(MEASURES, value)}
            for factor in (2.5, 3.) for path, value in zip(GENERATORS, (1., .9, .5, .6))]
    said, other = findings(rows, results), findings(rows, turned)
    psnr = {name: np.mean([float(row['psnr_y']) for row in results if row['network'] == name])
            for name in swap}
    gain = f'{psnr[BOTH] - psnr["x2+x4"]:.2f} dB'
    assert f'of “{BOTH}” is {gain} higher than that of “x2+x4”' in said[0]
    assert f'of “{BOTH}” is {gain} lower than that of “x2+x4”' in other[0]
    assert '“sample”) vary 0.90 times as much as true shots' in said[2]
    assert '“linear” 0.50 times, those of “pixels” 0.60 times; other true shots 1.00 times' in said[2]
