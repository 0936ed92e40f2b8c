"""`interflow evaluate` on a set as it is: images that are kept, a pair that is broken, an image that equals the truth, the SSIM of other tables."""
import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from test_faults import changes, contents, cut, say

from interflow.core import InterflowError, make_generator, read_image, write_image
from interflow.metrics import ssim_y, ssim_y_gaussian, video_luma
from interflow.sr.networks import build, load_network, save_network
from interflow.sr.tiles import super_resolve

COMMAND = 'evaluate net other pairs --device cpu'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Three smooth scenes at two factors, two networks of which the second is in a run."
    folder = tmp_path_factory.mktemp('evaluate')
    for i in range(3):
        hr = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16, generator=make_generator(i, 'scene')), size=(48, 64), mode='bilinear')[0]
        for factor, weight in ((2.1, .3), (3.75, .6)):
            write_image(folder / 'pairs' / f'x{factor}' / f's{i}.png', (1 - weight) * hr + weight * hr.roll(1, -1))
        write_image(folder / 'pairs/HR' / f's{i}.png', hr)
    save_network(folder / 'net', build('vdsr', 'tiny'))
    save_network(folder / 'other/model', build('vdsr', 'tiny', seed=1))
    return folder


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- images

def test_images_are_kept_under_scene_factor_and_network(place, monkeypatch, capsys):
    code, lines = say(monkeypatch, capsys, f'{COMMAND} --save-images images')
    assert code == 0, lines
    found = sorted(path.relative_to(place / 'images').as_posix() for path in (place / 'images').rglob('*') if path.is_file())
    assert found == sorted(f's{i}/x{factor}/{name}.png' for i in range(3) for factor in (2.1, 3.75) for name in ('net', 'other'))
    wanted = super_resolve(load_network(place / 'net'), read_image(place / 'pairs/x3.75/s1.png'))
    assert torch.equal(read_image(place / 'images/s1/x3.75/net.png'), wanted), 'what was measured'


def test_images_replace_nothing_but_themselves(place, monkeypatch, capsys):
    for _ in range(2):
        assert say(monkeypatch, capsys, f'{COMMAND} --save-images images --factors 2.1')[0] == 0
    shutil.copy(place / 'pairs/HR/s0.png', place / 'images/s0/x2.1/net.png')
    for out in ('images', 'pairs', 'pairs/HR', 'net', 'net/config.json'):
        before = contents(place)
        code, lines = say(monkeypatch, capsys, f'{COMMAND} --save-images {out}')
        if out in ('images', 'net/config.json'):
            assert code == 2 and len(lines) == 1, (out, lines)
            assert changes(place, before) == [], out
    code, lines = say(monkeypatch, capsys, 'evaluate ./net net/. net pairs --save-images two --device cpu')
    assert code in (0, 2), lines


def test_networks_whose_images_would_have_one_name_are_refused(place, monkeypatch, capsys):
    for name in ('a/b', 'a_b'):
        save_network(place / name, build('vdsr', 'tiny'))
    code, lines = say(monkeypatch, capsys, 'evaluate a/b a_b pairs --save-images images --device cpu')
    assert code == 2 and len(lines) == 1 and 'two results' in lines[0] and not (place / 'images').exists()


# ---------------------------------------------------------------- a broken pair

def test_a_broken_pair_is_left_aside_for_all_networks(place, monkeypatch, capsys):
    cut(place / 'pairs/x2.1/s1.png')
    code, lines = say(monkeypatch, capsys, f'{COMMAND} --csv rows.csv --save-images images')
    assert code == 1 and len(lines) == 2, lines
    assert lines[0].startswith('left aside: pairs/x2.1/s1.png') and '1 of 6 files left aside' in lines[1]
    found = {(row['network'], row['factor'], row['scene']) for row in rows('rows.csv')}
    assert len(found) == 3 * 5 and not [key for key in found if key[1:] == ('2.1', 's1')]
    assert not (place / 'images/s1/x2.1').exists()


def test_strictly_it_ends_with_the_first(place, monkeypatch, capsys):
    cut(place / 'pairs/x2.1/s1.png')
    code, lines = say(monkeypatch, capsys, f'{COMMAND} --csv rows.csv --strict')
    assert code == 2 and len(lines) == 1 and 's1.png' in lines[0] and not (place / 'rows.csv').exists()


def test_where_all_are_broken_it_ends_with_2(place, monkeypatch, capsys):
    for path in place.glob('pairs/x*/*.png'):
        path.write_bytes(path.read_bytes()[:-300])
    code, lines = say(monkeypatch, capsys, f'{COMMAND} --csv rows.csv')
    assert code == 2 and 'files, all left aside' in lines[-1] and not (place / 'rows.csv').exists()


# ---------------------------------------------------------------- equal images

def test_images_that_equal_the_truth_do_not_end_it(place, monkeypatch, capsys):
    "All of one factor, and one of the other: infinite PSNR, printed as inf, in the table and in the CSV."
    for path in [*place.glob('pairs/x2.1/*.png'), place / 'pairs/x3.75/s0.png']:
        shutil.copy(place / 'pairs/HR' / path.name, path)
    for rival in ('bicubic', 'net'):
        monkeypatch.setattr('sys.argv', ['interflow'])
        code, lines = say(monkeypatch, capsys, f'{COMMAND} --rival {rival} --csv rows.csv --crops crops.png')
        assert code == 0, lines
    values = [float(row['psnr_y']) for row in rows('rows.csv') if row['network'] == 'bicubic']
    assert sum(map(np.isinf, values)) == 4 and 'inf' in (place / 'rows.csv').read_text() and 'nan' not in (place / 'rows.csv').read_text()


def test_the_table_names_both_ssim_and_has_no_star_of_three_images(place, monkeypatch, capsys):
    import sys

    from interflow.cli import main
    monkeypatch.setattr(sys, 'argv', ['interflow', *COMMAND.split(), '--csv', 'rows.csv'])
    main()
    text = capsys.readouterr().out
    assert 'PSNR / SSIM' in text and 'SSIM on Y, Gaussian window' in text and '*' not in text
    assert text.rstrip().splitlines()[-1].startswith('No stars: 3 images')
    head = (place / 'rows.csv').read_text().splitlines()[0]
    assert head == 'network,factor,scene,psnr_y,ssim_y,ssim_y_gaussian'


# ---------------------------------------------------------------- the SSIM of other tables

def textured(seed=0, size=(64, 80)):
    return torch.rand(3, *size, generator=make_generator(seed, 'texture'))


def test_ssim_with_a_gaussian_window_is_that_of_scikit_image():
    "With `gaussian_weights` and population covariances, which takes the mean over windows that lie inside."
    for seed in range(3):
        hr = textured(seed)
        image = (hr + .2 * textured(seed + 10)).clamp(0, 1)
        y, truth = (video_luma(one)[4:-4, 4:-4].numpy() for one in (image, hr))
        theirs = structural_similarity(y, truth, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
        assert ssim_y_gaussian(image, hr) == pytest.approx(theirs, abs=1e-9)
        assert abs(ssim_y_gaussian(image, hr) - ssim_y(image, hr)) > 1e-4, 'another measure than ours'


def test_ssim_with_a_gaussian_window_written_out():
    "The formula, one window after the other, for an image of one window: nothing is borrowed."
    hr, image = textured(1, (19, 19)), textured(2, (19, 19))
    a, b = (video_luma(one)[4:-4, 4:-4].numpy() for one in (image, hr))
    k = np.arange(11) - 5
    window = np.exp(-(k[:, None] ** 2 + k ** 2) / (2 * 1.5 ** 2))
    window /= window.sum()
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b, cov = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum(), (window * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = 6.5025, 58.5225
    wanted = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a ** 2 + mean_b ** 2 + c1) * (var_a + var_b + c2))
    assert ssim_y_gaussian(image, hr) == pytest.approx(wanted, abs=1e-9)


def test_ssim_of_constant_images_is_known():
    "No contrast is left: only the means count, of Y = 16 + 219 * grey."
    one, other = torch.full((3, 32, 32), .2), torch.full((3, 32, 32), .6)
    a, b, c1 = 16 + 219 * .2, 16 + 219 * .6, (.01 * 255) ** 2
    assert ssim_y_gaussian(one, other) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-6), 'float32 knows .2 to 1e-8'
    assert ssim_y_gaussian(one, one) == pytest.approx(1, abs=1e-12)
    for wrong in (torch.rand(3, 18, 40), torch.full((3, 32, 32), float('nan'))):
        with pytest.raises(InterflowError):
            ssim_y_gaussian(wrong, wrong)


def test_a_saved_image_knows_who_made_it(place, monkeypatch, capsys):
    assert say(monkeypatch, capsys, 'evaluate net pairs --save-images images --factors 2.1 --device cpu')[0] == 0
    with Image.open(place / 'images/s0/x2.1/net.png') as image:
        assert image.info['Software'] == 'interflow' and image.mode == 'RGB'
