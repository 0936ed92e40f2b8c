"""Judging SR networks: the published protocol, every layout, tiles, intervals, clear faults."""
import csv
import json
import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from interflow import metrics
from interflow.core import InterflowError, make_generator, read_image, write_csv, write_image
from interflow.data import read_set
from interflow.metrics import (
    flip,
    lpips_vgg,
    lr_statistics,
    psnr_rgb,
    psnr_y,
    ssim_rgb,
    ssim_y,
    st_lpips_vgg,
)
from interflow.sr.evaluation import (
    MEASURES,
    evaluate,
    format_table,
    largest_difference,
    largest_gap,
    orientations,
    plot_crops,
    plot_summary,
    read_rows,
    read_test,
    run,
    summarise,
    super_resolve,
)
from interflow.sr.networks import VARIANTS, arbitrary, build, shrink
from interflow.sr.rcan import RCAN, RCANConfig

SMALL = RCANConfig(channels=8, groups=2, blocks=2, reduction=2, global_residual=True)


def fresh(config=SMALL):
    torch.manual_seed(0)
    return RCAN(config)


@pytest.fixture
def pairs(tmp_path):
    "Three scenes in the simulated layout: smooth HR images, LR images blurred at two factors."
    for i in range(3):
        hr = nn.functional.interpolate(torch.rand(1, 3, 12, 16,
                                                  generator=make_generator(i, 'scene')),
                                       size=(24, 32), mode='bilinear')[0]
        for factor, weight in ((2.1, .3), (3.75, .6)):
            write_image(tmp_path / 'set' / f'x{factor}' / f's{i}.png', (1 - weight) * hr
                        + weight * hr.roll(1, -1))
        write_image(tmp_path / 'set' / 'HR' / f's{i}.png', hr)
    return read_set(tmp_path / 'set')


def noise_image(height, width, seed=0):
    return torch.rand(3, height, width, generator=make_generator(seed, 'image'))


# ---------------------------------------------------------------- evaluation

def test_rows_hold_every_network_factor_and_scene(pairs):
    rows = evaluate({'same': lambda lr: lr, 'mean': lambda lr: lr.mean().expand_as(lr)}, pairs,
                    (2.1, 3.75))
    assert [(row['network'], row['factor'], row['scene'])
            for row in rows] == [(name, factor, f's{i}') for name in ('bicubic', 'same', 'mean')
                                 for factor in (2.1, 3.75) for i in range(3)]
    values = {(row['network'], row['factor'], row['scene']): (row['psnr_y'], row['ssim_y'])
              for row in rows}
    assert all(values[('same', *key[1:])] == value for key, value in values.items()
               if key[0] == 'bicubic'), 'the baseline is the input'
    assert values['bicubic', 2.1, 's0'] > values['bicubic', 3.75, 's0'] > values['mean', 3.75, 's0']


def test_super_resolve_clips_and_rounds():
    lr = torch.rand(3, 18, 21, generator=make_generator(0))
    sr = super_resolve(lambda lr: lr * 2, lr)
    assert torch.equal(sr, ((2 * lr).clamp(0, 1) * 255).round() / 255)
    assert not super_resolve(fresh(), lr).requires_grad


def test_networks_are_evaluated_in_evaluation_mode(pairs):
    net = nn.Sequential(nn.Dropout(.9))
    values = evaluate({'dropout': net}, pairs[:1], (2.1,))
    assert values[0]['psnr_y'] == values[1]['psnr_y']


@pytest.mark.parametrize('network',
                         [lambda lr: lr * math.nan, lambda lr: lr[..., ::2, ::2],
                          lambda lr: lr[:, :1]])
def test_a_broken_network_is_named(pairs, network):
    with pytest.raises(InterflowError, match='broken') as fault:
        evaluate({'broken': network}, pairs, (2.1,))
    assert '\n' not in str(fault.value)


def test_rows_survive_the_file(pairs, tmp_path):
    rows = evaluate({'a, "b"': lambda lr: lr}, pairs, (2.1,))
    write_csv(tmp_path / 'rows.csv', rows)
    assert read_rows(tmp_path / 'rows.csv') == rows
    with open(tmp_path / 'rows.csv', newline='') as file:
        assert next(csv.reader(file)) == ['network', 'factor', 'scene', 'psnr_y', 'ssim_y']
    (tmp_path / 'other.csv').write_text('x,y\n1,2\n')
    for wrong in ('other.csv', 'absent.csv'):
        with pytest.raises(InterflowError, match=wrong):
            read_rows(tmp_path / wrong)


def rows_of(**networks):
    "Rows at factor 3 from lists of PSNR values."
    return [{'network': name, 'factor': 3., 'scene': f's{i}', 'psnr_y': value, 'ssim_y': value / 40}
            for name, values in networks.items() for i, value in enumerate(values)]


def test_differences_are_paired():
    rows = rows_of(bicubic=[20., 25., 30., 35.], net=[20.5, 25.4, 30.6, 35.5])
    net = summarise(rows)[1]
    assert net['psnr_y'] == pytest.approx(28)
    assert net['psnr_y_gain'] == pytest.approx(.5)
    assert net['images'] == 4
    assert net['psnr_y_low'] < 25 and net['psnr_y_high'] > 31, 'the photographs differ much'
    assert .4 <= net['psnr_y_gain_low'] < .5 < net['psnr_y_gain_high'] <= .6, 'little, but sure'
    assert summarise(rows) == summarise(rows[::-1])[::-1], 'the order of the rows does not matter'
    zero = summarise(rows)[0]
    assert zero['psnr_y_gain'] == zero['psnr_y_gain_low'] == zero['psnr_y_gain_high'] == 0


def test_summaries_of_different_images_are_refused():
    rows = rows_of(bicubic=[20., 25.], net=[21., 26.])
    for wrong in (lambda: summarise(rows, rival='absent'), lambda: summarise(rows[:-1])):
        with pytest.raises(InterflowError):
            wrong()


def test_tables():
    base = [18., 20., 22., 24., 26., 28., 30., 32.]
    values = dict(bicubic=base, better=[value + 1 for value in base],
                  same=[value + .1 * (-1) ** i for i, value in enumerate(base)],
                  **{'<b>': [value - 1 for value in base]})
    summary = summarise(rows_of(**values))
    text, markdown, html = (format_table(summary, style) for style in ('text', 'markdown', 'html'))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert '(+1.00*)' in lines['better']
    assert '(+0.00)' in lines['same']
    assert '(-1.00*)' in lines['<b>']
    assert '25.00 / 0.6250' in lines['bicubic']
    assert [line.count('|') for line in markdown.splitlines()] == [3] * 6, markdown
    assert '&lt;b&gt;' in html and '<b>' not in html and html.count('<tr>') == 5
    with pytest.raises(InterflowError):
        format_table(summary, 'latex')
    few = summarise(rows_of(**{name: some[:7] for name, some in values.items()}))
    for style in ('text', 'markdown', 'html'):
        told = format_table(few, style)
        assert '*' not in told and told.splitlines()[-1].count('No stars: 7 images') == 1, style
    assert 'No stars' not in text


def test_an_image_that_equals_the_truth_does_not_end_it(tmp_path):
    "Its PSNR is infinite: so are mean and upper end, in the table and in the CSV; two of them differ by nothing."
    inf = math.inf
    rows = rows_of(bicubic=[20., 25., 30.], net=[inf, 26., 31.], same=[inf, 26., 31.], odd=[20., inf, 31.])
    line = {one['network']: one for one in summarise(rows)}
    assert line['net']['psnr_y'] == line['net']['psnr_y_high'] == line['net']['psnr_y_gain'] == inf
    assert line['net']['psnr_y_low'] == pytest.approx(26, abs=2) and line['net']['psnr_y_gain_low'] >= 1
    beside = {one['network']: one for one in summarise(rows, rival='net')}
    assert beside['same']['psnr_y_gain'] == beside['same']['psnr_y_gain_high'] == 0
    assert (beside['odd']['psnr_y_gain_low'], beside['odd']['psnr_y_gain_high']) == (-inf, inf), 'one is better here, one there'
    assert '(?)' in format_table(summarise(rows, rival='net'))
    text = format_table(summarise(rows))
    assert 'inf / ' in text and '(+inf)' in text and 'nan' not in text
    write_csv(tmp_path / 'rows.csv', rows)
    assert ',inf,' in (tmp_path / 'rows.csv').read_text() and read_rows(tmp_path / 'rows.csv') == rows
    assert largest_gap(rows, 'net', 'same') == ('s0', 3.)
    plot_summary(summarise(rows[:9]))


def test_figures(pairs):
    import matplotlib
    matplotlib.use('Agg')
    networks = {'same': lambda lr: lr, 'dark': lambda lr: lr * .9}
    summary = summarise(evaluate(networks, pairs, (2.1, 3.75)), rival='same')
    figure = plot_summary(summary, 'ssim_y')
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ['bicubic', 'same', 'dark']
    figure = plot_crops(networks, pairs[0], 2.1, 'same', 'dark', size=16)
    assert [axis.images[0].get_array().shape for axis in figure.axes] == [(16, 16, 3)] * 4


def test_crops_lie_where_images_differ():
    plain = torch.zeros(3, 90, 130)
    marked = plain.clone()
    marked[:, 70:75, 100:106] = 1
    rows, columns = largest_difference(plain, marked, size=32)
    assert rows.start <= 70 and rows.stop >= 75 and columns.start <= 100 and columns.stop >= 106
    assert (rows.stop - rows.start, columns.stop - columns.start) == (32, 32)
    assert rows.stop <= 90
    assert columns.stop <= 130
    small = plain[..., :20, :10]
    assert largest_difference(small, small) == (slice(0, 10), slice(0, 10))


# ---------------------------------------------------------------- measures

def test_measures_are_scikit_images_to_a_millionth():
    hr, sr = noise_image(40, 50), (noise_image(40, 50) + .1 * noise_image(40, 50, 1)).clamp(0, 1)
    y, t = (16 + (65.481 * one[0] + 128.553 * one[1] + 24.966 * one[2]).double()
            for one in (sr[:, 4:-4, 4:-4], hr[:, 4:-4, 4:-4]))
    y, t = y.numpy(), t.numpy()
    assert psnr_y(sr, hr) == pytest.approx(peak_signal_noise_ratio(t, y, data_range=255), abs=1e-4)
    assert ssim_y(sr, hr) == pytest.approx(structural_similarity(y, t, win_size=7, data_range=255),
                                           abs=1e-6)
    a, b = ((255 * one.double()).permute(1, 2, 0).numpy()[4:-4, 4:-4] for one in (sr, hr))
    assert psnr_rgb(sr, hr) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255),
                                             abs=1e-6)
    expected = structural_similarity(a, b, win_size=7, data_range=255, channel_axis=2)
    assert ssim_rgb(sr, hr) == pytest.approx(expected, abs=1e-6)
    assert psnr_rgb(hr, hr) == math.inf


@pytest.mark.parametrize('measure', [flip, st_lpips_vgg])
def test_perceptual_distances(measure):
    pytest.importorskip('flip_evaluator')
    pytest.importorskip('torchsummary')
    image = nn.functional.interpolate(noise_image(10, 12)[None], size=(64, 72),
                                      mode='bicubic')[0].clamp(0, 1)
    near, far = ((image + strength * noise_image(64, 72, 3)).clamp(0, 1) for strength in (.05, .3))
    assert measure(image, image) < 1e-6 < measure(near, image) < measure(far, image)
    for wrong in (lambda: measure(image, image[:, 1:]), lambda: measure(image * math.nan, image)):
        with pytest.raises(InterflowError):
            wrong()


def test_st_lpips_leaves_no_stand_in_behind():
    "Where torchvision is missing, an empty module serves for one import; nobody else may find it."
    import sys
    pytest.importorskip('torchsummary')
    st_lpips_vgg(noise_image(32, 32), noise_image(32, 32))
    assert getattr(sys.modules.get('torchvision'), '__file__', 'real') is not None


def test_lpips_says_what_it_lacks_or_measures(monkeypatch):
    "With a stand-in for its package: values come in [-1, 1], and a failing download is one line."
    import sys
    import types
    seen = []
    class LPIPS(nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == 'vgg'

        def forward(self, a, b):
            seen.append((a.min().item(), a.max().item()))
            return (a - b).abs().mean()

    metrics._lpips_vgg.cache_clear()
    monkeypatch.setitem(sys.modules, 'lpips', types.SimpleNamespace(LPIPS=LPIPS))
    assert lpips_vgg(torch.ones(3, 8, 8), torch.zeros(3, 8, 8)) == 2 and seen == [(1, 1)]

    def broken(net, verbose):
        raise OSError('no network\nat all')

    metrics._lpips_vgg.cache_clear()
    monkeypatch.setitem(sys.modules, 'lpips', types.SimpleNamespace(LPIPS=broken))
    with pytest.raises(InterflowError,
                       match='lpips_vgg: its weights cannot be loaded.*st_lpips_vgg') as fault:
        evaluate({}, [], (3.,), ('lpips_vgg',))
    assert '\n' not in str(fault.value)
    metrics._lpips_vgg.cache_clear()


def test_a_degraded_image_in_six_numbers():
    truth = nn.functional.interpolate(noise_image(16, 20)[None], size=(192, 240),
                                      mode='bicubic')[0].clamp(.1, .9)
    def take(seed, coarse=False, coloured=False, bright=False):
        noise = torch.randn(1 + 2 * coloured, 192, 240, generator=make_generator(seed))
        noise = 2 * nn.functional.avg_pool2d(noise, 3, 1, 1) * 1.5 if coarse else noise
        return truth + 4 / 255 * noise * (2 * truth.mean(0) if bright else 1)
    plain = lr_statistics(take(0), take(1), truth, truth)
    assert plain['noise'] == pytest.approx(4, rel=.02)
    assert abs(plain['grain']) < .02
    assert plain['chroma'] < 1e-5
    assert plain['by_brightness'] < .05
    assert plain['mean_psnr'] > 45
    coarse = lr_statistics(take(0, coarse=True), take(1, coarse=True), truth, truth)
    assert coarse['grain'] == pytest.approx(2 / 3, abs=.03), 'a box of three'
    coloured = lr_statistics(take(0, coloured=True), take(1, coloured=True), truth, truth)
    luma_noise = math.sqrt(.299 ** 2 + .587 ** 2 + .114 ** 2)
    assert coloured['chroma'] == pytest.approx(math.sqrt(2) / luma_noise, rel=.03)
    bright = lr_statistics(take(0, bright=True), take(1, bright=True), truth, truth)
    assert bright['by_brightness'] > .2
    lighter = lr_statistics(take(0) + .05, take(1) + .05, truth, truth)
    assert lighter['mean_psnr'] == pytest.approx(26.02, abs=.1), 'the mean image has no noise'
    with pytest.raises(InterflowError):
        lr_statistics(take(0), take(1)[:, 1:], truth, truth)


# ------------------------------------------------ networks of both kinds, tiles, orientations

@pytest.mark.parametrize('name', VARIANTS)
def test_every_network_gives_the_hr_size(name):
    net, lr = build(name, 'tiny').eval(), noise_image(37, 50)
    sr = super_resolve(net, lr, 2.3)
    assert sr.shape == lr.shape
    assert not sr.requires_grad
    assert torch.equal(sr, (sr * 255).round() / 255)
    assert super_resolve(net, lr, size=(74, 100)).shape == (3, 74, 100), 'an image smaller than HR'
    if arbitrary(net):
        with torch.inference_mode():
            direct = net(shrink(lr, 2.3)[None], size=(37, 50))[0]
        difference = (sr - direct.clamp(0, 1)).abs().max()
        assert difference < .51 / 255, 'it is given the image reduced by its factor'
        with pytest.raises(InterflowError, match='factor'):
            super_resolve(net, lr)


@pytest.mark.parametrize('name, size',
                         [('vdsr', (150, 186)), ('swinir', (150, 186)),
                          ('liif_edsr_baseline', (301, 250)), ('metasr_edsr_baseline', (199, 331))])
def test_tiles_do_not_show(name, size):
    "Convolutions see all they need within the overlap, and SwinIR's windows lie as in the whole."
    net, lr = build(name, 'tiny').eval(), noise_image(*((91, 118) if arbitrary(name) else size))
    with torch.no_grad():      # a fresh network does next to nothing: let it
        for weight in net.parameters():
            weight.mul_(1.5)
        whole, tiled = (run(net, lr[None], size, tile) for tile in (0, 80))
    assert whole.shape == tiled.shape == (1, 3, *size)
    assert (whole - tiled).abs().max() < (1e-2 if name == 'swinir' else 1e-4) * whole.std()


def test_the_ensemble_is_the_mean_over_eight_orientations():
    image = noise_image(6, 9)
    turned = [there(image) for there, _ in orientations()]
    assert len({one.contiguous().numpy().tobytes() + bytes(one.shape[1:]) for one in turned}) == 8
    assert all(torch.equal(back(one), image) for one, (_, back) in zip(turned, orientations()))
    ramp = torch.linspace(0, 1, 12).expand(3, 12, 12)
    # adds a ramp whichever way the picture lies
    leaning = lambda lr: lr + .1 * torch.linspace(-1, 1, lr.shape[-1])
    assert (super_resolve(leaning, ramp) - ramp).abs().max() > .09 * .9
    inner = slice(2, 10)
    left = (super_resolve(leaning, ramp, ensemble=True) - ramp)[:, inner, inner]
    assert left.abs().max() < 1 / 255, 'the eight ramps cancel'
    net, lr = build('liif_edsr_baseline', 'tiny').eval(), noise_image(20, 33)
    assert super_resolve(net, lr, 2., ensemble=True).shape == lr.shape


# ------------------------------------------------ the layouts of the published test sets

CAMERAS = {'realsr': ('Canon', 'Nikon', 'Nikon'), 'drealsr': ('sony', 'panasonic', 'panasonic')}


def lay_out(scenes, folder, smaller=False):
    "The simulated set as RealSR and as DRealSR, at x4."
    for number, (scene, canon, sony) in enumerate(zip(scenes, *CAMERAS.values()), 1):
        hr, lr = read_image(scene.hr), read_image(scene.lr[3.75])
        write_image(folder / f'RealSR/{canon}/Test/4/{canon}_{number:03d}_HR.png', hr)
        write_image(folder / f'RealSR/{canon}/Test/4/{canon}_{number:03d}_LR4.png', lr)
        write_image(folder / f'DRealSR/Test_x4/test_HR/{sony}_{number}_x1.png', hr)
        write_image(folder / f'DRealSR/Test_x4/test_LR/{sony}_{number}_x4.png', shrink(lr, 4)
                    if smaller else lr)


def test_published_layouts_give_means_of_cameras_means(pairs, tmp_path):
    lay_out(pairs, tmp_path)
    networks = {'net': fresh().eval(), 'liif': build('liif_edsr_baseline', 'tiny')}
    plain = {(row['network'], row['scene']): row['psnr_y']
             for row in evaluate(networks, pairs, (3.75,))}
    for folder, factor in (('RealSR', 3.75), ('DRealSR', 4.)):
        scenes = read_test(tmp_path / folder)
        cameras = [scene.name.split('/')[0] for scene in scenes]
        assert cameras == sorted(CAMERAS[folder.lower()])
        summary = {line['network']: line
                   for line in summarise(evaluate(networks, scenes, (factor,)), 'net')}
        values = [plain['net', f's{i}'] for i in range(3)]
        assert summary['net']['psnr_y'] == pytest.approx((values[0]
                                                          + (values[1] + values[2]) / 2) / 2)
        assert summary['net']['images'] == 3
        low, mean, high = (summary['net'][f'psnr_y{end}'] for end in ('_low', '', '_high'))
        assert low <= mean <= high
        gain = summary['bicubic']['psnr_y'] - mean
        assert summary['bicubic']['psnr_y_gain'] == pytest.approx(gain)
    assert [scene.name for scene in read_test(tmp_path / 'set')] == ['s0', 's1', 's2']


def test_intervals_are_drawn_within_cameras():
    rows = [{'network': 'bicubic', 'factor': 3., 'scene': scene, 'psnr_y': value, 'ssim_y': 0.}
            for scene, value in (('a/1', 20.), ('a/2', 20.), ('a/3', 20.), ('b/1', 30.))]
    (line,) = summarise(rows)
    assert line['psnr_y'] == 25
    assert line['psnr_y_low'] == line['psnr_y_high'] == 25, 'nothing to draw'


def test_drealsr_as_it_may_be_stored(pairs, tmp_path):
    lay_out(pairs, tmp_path, smaller=True)
    networks = {'net': fresh().eval(), 'liif': build('liif_edsr_baseline', 'tiny')}
    rows = evaluate(networks, read_test(tmp_path / 'DRealSR'), (4.,))
    assert len(rows) == 9 and all(row['psnr_y'] > 10 for row in rows)
    (tmp_path / 'DRealSR/cameras.json').write_text(json.dumps({'sony_1': 'olympus'}))
    names = sorted(scene.name for scene in read_test(tmp_path / 'DRealSR'))
    assert names == ['olympus/sony_1', 'panasonic/panasonic_2', 'panasonic/panasonic_3']
    for camera in ('canon', 'nikon'):      # a folder for each camera
        (tmp_path / 'apart' / camera).mkdir(parents=True)
        write_image(tmp_path / f'apart/{camera}/Test_x3/test_HR/DSC_7_x1.png', noise_image(24, 24))
        write_image(tmp_path / f'apart/{camera}/Test_x3/test_LR/DSC_7_x3.png', noise_image(8, 8))
    assert [scene.name for scene in read_test(tmp_path / 'apart')] == ['canon/DSC_7', 'nikon/DSC_7']


def test_broken_test_sets_are_told_in_one_line(pairs, tmp_path):
    lay_out(pairs, tmp_path)
    wrong = {'factor': lambda: evaluate({}, read_test(tmp_path / 'RealSR'), (3.,)),
             'absent': lambda: read_test(tmp_path / 'absent'),
             'measure': lambda: evaluate({}, pairs, (2.1,), ('beauty',)),
             'gap': lambda: largest_gap(rows_of(bicubic=[20.]), 'bicubic', 'net')}
    (tmp_path / 'DRealSR/Test_x4/test_LR/sony_1_x4.png').unlink()
    (tmp_path / 'RealSR/Nikon/Test/4/Nikon_002_LR4.png').unlink()
    wrong |= {name: lambda name=name: read_test(tmp_path / name) for name in ('DRealSR', 'RealSR')}
    write_image(tmp_path / 'odd/Test_x4/test_HR/sony_1_x1.png', noise_image(24, 24))
    write_image(tmp_path / 'odd/Test_x4/test_LR/sony_1_x4.png', noise_image(13, 13))
    wrong['sizes'] = lambda: evaluate({}, read_test(tmp_path / 'odd'), (4.,))
    for name, action in wrong.items():
        with pytest.raises(InterflowError) as fault:
            action()
        assert '\n' not in str(fault.value), name


def test_more_measures_in_rows_tables_and_files(pairs, tmp_path):
    names = ('psnr_y', 'ssim_y', 'psnr_rgb', 'ssim_rgb')
    rows = evaluate({'same': lambda lr: lr, 'dark': lambda lr: lr * .9}, pairs, (2.1,), names)
    write_csv(tmp_path / 'rows.csv', rows)
    assert read_rows(tmp_path / 'rows.csv') == rows
    assert list(rows[0]) == ['network', 'factor', 'scene', *names]
    summary = summarise(rows, 'same')
    assert summary[2]['psnr_rgb_gain'] < 0
    assert '(-' in format_table(summary, measure='psnr_rgb').splitlines()[3]
    assert largest_gap(rows, 'same', 'dark')[1] == 2.1 and set(names) < set(MEASURES)
