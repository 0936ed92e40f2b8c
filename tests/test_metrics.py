"""What the metrics promise: the published definitions, known answers on synthetic images, clear faults."""
import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from interflow.core import InterflowError, make_generator
from interflow.metrics import (
    bootstrap_interval,
    luma,
    mtf50,
    noise_by_brightness,
    noise_spectrum,
    noise_std,
    psnr_y,
    ssim_y,
    transfer,
    video_luma,
)


def texture(height=120, width=150, seed=0):
    "A colourful random image with contrast at every frequency, in [0.2, 0.8]."
    return .2 + .6 * torch.rand(3, height, width, generator=make_generator(seed, 'texture'))


def noise(like, level, seed=1):
    "White noise, equal in the three colours, of `level` grey levels."
    return level / 255 * torch.randn(like.shape[-2:], generator=make_generator(seed, 'noise')).expand_as(like)


def box_blur(image):
    "The mean of every pixel and its right neighbour, cyclic: transfer cos^2(pi f) along x, 1 along y."
    return (image + image.roll(1, -1)) / 2


@pytest.mark.parametrize('size', [(120, 150), (37, 61), (15, 15)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_psnr_and_ssim_agree_with_scikit_image(size, dtype):
    truth = texture(*size).to(dtype)
    image = (truth + noise(truth, 9)).clamp(0, 1)
    y, y_truth = (rgb2ycbcr(one.permute(1, 2, 0).double().numpy())[4:-4, 4:-4, 0] for one in (image, truth))
    assert psnr_y(image, truth) == pytest.approx(peak_signal_noise_ratio(y_truth, y, data_range=255), abs=1e-6)
    assert ssim_y(image, truth) == pytest.approx(structural_similarity(y_truth, y, win_size=7, data_range=255), abs=1e-6)


def test_video_luma_spans_16_to_235():
    colours = torch.tensor([[0., 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).T[:, None]
    assert torch.allclose(video_luma(colours)[0], torch.tensor([16, 235, 81.481, 144.553, 40.966]).double(), atol=1e-9)
    assert torch.allclose(luma(colours)[0], torch.tensor([0, 1, .299, .587, .114]).double(), atol=1e-9)


def test_psnr_of_a_known_error():
    truth = torch.full((3, 32, 32), .5)
    assert psnr_y(truth + 1 / 219, truth) == pytest.approx(20 * math.log10(255), abs=1e-4), 'one level of video luma'
    assert psnr_y(truth, truth) == math.inf and ssim_y(truth, truth) == 1


def test_the_border_does_not_count():
    truth = texture()
    image = truth.clone()
    image[:, :4], image[:, -4:], image[..., :4], image[..., -4:] = 0, 1, 0, 1
    assert psnr_y(image, truth) == math.inf and ssim_y(image, truth) == pytest.approx(1)
    image[:, 4, 4] = 0
    assert psnr_y(image, truth) < 100


def test_noise_std_is_in_grey_levels_and_blind_to_a_constant():
    mean = texture()
    assert noise_std(mean + noise(mean, 5), mean) == pytest.approx(5, rel=.02)
    assert noise_std(mean + noise(mean, 5) + .05, mean) == pytest.approx(noise_std(mean + noise(mean, 5), mean), rel=1e-5)
    coloured = torch.zeros(3, 300, 300) + torch.randn(3, 300, 300, generator=make_generator(0)) * 5 / 255
    assert noise_std(coloured, torch.zeros(3, 300, 300)) == pytest.approx(5 * math.sqrt(.299 ** 2 + .587 ** 2 + .114 ** 2), rel=.02)


@pytest.mark.parametrize('size', [(256, 256), (200, 333)])
def test_spectrum_of_white_noise_is_flat_at_its_variance(size):
    mean = torch.full((3, *size), .5)
    frequency, power = noise_spectrum(mean + noise(mean, 3), mean, bins=16)
    assert frequency[0] == 1 / 64 and frequency[-1] == .5 - 1 / 64
    assert power.mean() == pytest.approx(9, rel=.05) and power[2:].max() < 1.3 * 9 and power[2:].min() > .7 * 9


def test_spectrum_places_a_wave_at_its_frequency():
    mean = torch.full((3, 128, 160), .5)
    wave = .1 * torch.sin(2 * math.pi * .3 * torch.arange(160)).expand(3, 128, 160)
    frequency, power = noise_spectrum(mean + wave, mean, bins=25)
    assert frequency[power.argmax()] == pytest.approx(.3, abs=.02)
    assert power[frequency < .2].max() < 1e-4 * power.max(), 'the window keeps a wave in its place'


def test_noise_by_brightness_follows_the_noise():
    level = torch.linspace(0, 1, 400).expand(3, 200, 400)
    brightness, std = noise_by_brightness(level + noise(level, 1) * (2 + 6 * level), level, bins=4)
    assert torch.allclose(brightness, torch.tensor([31.875, 95.625, 159.375, 223.125]).double())
    assert torch.allclose(std, torch.tensor([2.75, 4.25, 5.75, 7.25]).double(), rtol=.05)
    flat = torch.full((3, 64, 64), .5)
    assert torch.isnan(noise_by_brightness(flat, flat, bins=8)[1]).sum() == 7, 'no pixel, no number'


def test_transfer_of_a_known_blur():
    truth = texture(256, 256)
    image = truth
    for _ in range(3):
        image = box_blur(image)
    image = image.transpose(-1, -2)
    for _ in range(3):
        image = box_blur(image)
    frequency, share = transfer(image.transpose(-1, -2).roll((-1, -1), (-2, -1)), truth, bins=16)
    # (cos(pi fx) cos(pi fy))^3 in magnitude; three half-pixel shifts each way, two of them undone: a half-pixel shift is left
    angle = torch.linspace(0, 2 * math.pi, 721).double()[:-1]
    x, y = (math.pi * frequency[:, None] * wave for wave in (angle.cos(), angle.sin()))
    expected = ((x.cos() * y.cos()) ** 3 * (x + y).cos()).mean(1)
    assert torch.allclose(share, expected, atol=.03)


def test_noise_cancels_in_the_transfer_and_in_mtf50():
    truth = texture(256, 256)
    image = box_blur(truth)
    blurred, noisy = mtf50(image, truth), mtf50(image + noise(truth, 10), truth)
    assert .2 < blurred < .5 and noisy == pytest.approx(blurred, rel=.05)
    assert mtf50(.8 * image + .1, truth) == pytest.approx(blurred, rel=1e-4), 'gain and offset count for nothing'
    assert mtf50(truth, truth) == .5


def test_bootstrap_interval():
    values = torch.randn(50, generator=make_generator(3)).tolist()
    low, high = bootstrap_interval(values, make_generator(0))
    mean, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(50)
    assert (low - mean) / error == pytest.approx(-1.96, abs=.2) and (high - mean) / error == pytest.approx(1.96, abs=.2)
    assert (low, high) == bootstrap_interval(values, make_generator(0)) != bootstrap_interval(values, make_generator(1))
    assert bootstrap_interval([2.], make_generator(0)) == (2., 2.)
    for wrong in ([], [1., math.nan], [1., math.inf]):
        with pytest.raises(InterflowError):
            bootstrap_interval(wrong, make_generator(0))


@pytest.mark.parametrize('measure', [psnr_y, ssim_y, noise_std, noise_spectrum, noise_by_brightness, transfer, mtf50])
def test_bad_input_is_refused(measure):
    image = texture(40, 40)
    broken = image.clone()
    broken[1, 3, 3] = math.nan
    for first, second in ((image, image[..., 1:]), (image, image[:1]), (image[None], image[None]), (broken, image), (image, broken),
                          (image[:1], image[:1])):
        with pytest.raises(InterflowError) as fault:
            measure(first, second)
        assert '\n' not in str(fault.value)


@pytest.mark.parametrize('measure', [psnr_y, ssim_y])
def test_images_smaller_than_the_window_are_refused(measure):
    with pytest.raises(InterflowError, match='too small'):
        measure(texture(14, 40), texture(14, 40))
