"""Degradations that need no flow: bicubic, two published random ones, and a kernel fitted to pairs.

Each is a function `(hr, factor, generator) -> lr` without state: `hr` (3, H, W) float in [0, 1],
`factor` the true factor, `generator` a `torch.Generator` on the CPU; `lr` has the size, dtype and
range of `hr`: the small image is enlarged bicubically onto the HR grid, as registered pairs are.

- `bsrgan`: Zhang, Liang, Van Gool, Timofte, *Designing a Practical Degradation Model for Deep Blind
  Image Super-Resolution*, ICCV 2021. Left out: the camera's pipeline, which the published code too
  applies only where it is given a model of one, and the halving that it does at factor 4 alone.
- `realesrgan`: Wang, Xie, Dong, Shan, *Real-ESRGAN: Training Real-World Blind Super-Resolution with
  Pure Synthetic Data*, ICCVW 2021; numbers of its file train_realesrgan_x4plus.yml. Left out:
  sharpening HR, which changes the target and not the LR image. Poisson noise counts 256 levels, as
  nearly every photograph has; the published code counts the levels that the image has.
- `FittedKernel`: 25x25 least squares on pairs, a kernel for each colour; its noise has the spectrum
  and the colours of the residuals (random phase noise: Galerne, Gousseau, Morel 2011).
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from interflow.camera import jpeg
from interflow.core import InterflowError
from interflow.prior import symmetric_sqrt

RESIZES = ('bilinear', 'bicubic', 'area')      # of both publications


# ---------------------------------------------------------------- chance, sizes, filters

def uniform(generator: torch.Generator, low: float, high: float) -> float:
    "A number between `low` and `high`."
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def integer(generator: torch.Generator, low: int, high: int) -> int:
    "A whole number from `low` to `high`, both included."
    return int(torch.randint(low, high + 1, (), generator=generator))


def choose(generator: torch.Generator, items: tuple, weights: tuple | None = None):
    "One of `items`, with the probabilities `weights`, equal ones by default."
    weights = torch.tensor(weights or [1.] * len(items))
    return items[int(torch.multinomial(weights, 1, generator=generator))]


def small_size(image: Tensor, factor: float) -> tuple[int, int]:
    "Height and width of an image after reduction by `factor`, at least one pixel."
    return tuple(max(1, round(length / factor)) for length in image.shape[-2:])


def resized(image: Tensor, size: tuple[int, int], mode: str = 'bicubic') -> Tensor:
    "`image` (3, h, w) at `size` by one of `RESIZES`, without antialiasing; clipped to [0, 1]."
    corners = {} if mode == 'area' else {'align_corners': False}
    return F.interpolate(image[None], tuple(size), mode=mode, **corners)[0].clamp(0, 1)


def filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """`image` (3, h, w) correlated with `kernel` (k, k) or (3, k, k), k odd; not clipped.

    The border is mirrored; an image smaller than the kernel is repeated at its edge.
    """
    reach = kernel.shape[-1] // 2
    mode = 'reflect' if min(image.shape[-2:]) > reach else 'replicate'
    padded = F.pad(image[None], [reach] * 4, mode=mode)
    weight = kernel.to(image).expand(3, *kernel.shape[-2:])[:, None]
    return F.conv2d(padded, weight, groups=3)[0]


def covariance(first: float, second: float, angle: float) -> Tensor:
    "The (2, 2) matrix of standard deviations `first` and `second`, turned by `angle` (radians)."
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ torch.diag(torch.tensor([first, second]) ** 2) @ turn.T


def bell(size: int, matrix: Tensor, beta: float = 1., plateau: bool = False) -> Tensor:
    "A (size, size) kernel of sum 1: exp(-d^beta / 2), or 1 / (1 + d^beta), d = x^T matrix^-1 x."
    line = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    places = torch.stack(torch.meshgrid(line, line, indexing='ij'), -1)
    distance = ((places @ torch.linalg.inv(matrix.double())) * places).sum(-1).clamp_min(0) ** beta
    kernel = 1 / (1 + distance) if plateau else torch.exp(-.5 * distance)
    return (kernel / kernel.sum()).float()


def sinc(size: int, cutoff: float) -> Tensor:
    "A circular low-pass (size, size) of sum 1 that rings; `cutoff` in radians per pixel, to pi."
    line = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    radius = torch.hypot(line[:, None], line)
    ring = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel = torch.where(radius == 0, cutoff ** 2 / (4 * math.pi), ring)
    return (kernel / kernel.sum()).float()


def enlarged(small: Tensor, like: Tensor) -> Tensor:
    "`small` (3, h, w) on the grid of `like`, bicubically; clipped, with its dtype."
    return resized(small, like.shape[-2:]).to(like)


# ---------------------------------------------------------------- bicubic

def bicubic(hr: Tensor, factor: float, generator: torch.Generator | None = None) -> Tensor:
    "HR reduced with antialiasing and enlarged again; nothing is random."
    small = F.interpolate(hr[None], small_size(hr, factor), mode='bicubic', antialias=True)[0]
    return enlarged(small.clamp(0, 1), hr)


# ---------------------------------------------------------------- BSRGAN

@dataclass(frozen=True)
class BSRGAN:
    "The published numbers; s stands for the factor."
    blur: tuple = (2., .2)          # isotropic: standard deviation up to 2 + 0.2 s
    variance: tuple = (4., 1.)      # anisotropic: variance of each axis up to 4 + s
    sizes: tuple = (7, 25)          # of kernels, odd
    isotropic: float = .5           # its probability
    resize: float = .75             # first reduction: by 1 to 2 s; else Gaussian blur and picking
    picked: tuple = (.1, .6)        # that blur: standard deviation 0.1 to 0.6 s, 25x25
    noise: tuple = (2, 25)          # grey levels, whole
    kinds: tuple = (.4, .4, .2)     # noise of each colour alone, of all alike, correlated
    quality: tuple = (30, 95)       # of JPEG
    jpeg: float = .9                # probability of a JPEG step among the others; one is last


def bsrgan_kernel(factor: float, generator: torch.Generator, numbers: BSRGAN = BSRGAN()) -> Tensor:
    "A Gaussian kernel (k, k): isotropic, or turned with two variances."
    low, high = numbers.sizes
    size = 2 * integer(generator, low // 2, high // 2) + 1
    if uniform(generator, 0, 1) < numbers.isotropic:
        spread = max(.05, uniform(generator, 0, numbers.blur[0] + numbers.blur[1] * factor))
        return bell(size, covariance(spread, spread, 0.))
    most = numbers.variance[0] + numbers.variance[1] * factor
    first, second = (max(.05, math.sqrt(uniform(generator, 0, most))) for _ in range(2))
    return bell(size, covariance(first, second, uniform(generator, 0, math.pi)))


def bsrgan_noise(image: Tensor, generator: torch.Generator, numbers: BSRGAN = BSRGAN()) -> Tensor:
    "`image` with Gaussian noise of one of the three kinds; clipped."
    level = integer(generator, *numbers.noise) / 255
    kind = choose(generator, ('colour', 'grey', 'correlated'), numbers.kinds)
    shape = (1, *image.shape[1:]) if kind == 'grey' else image.shape
    noise = torch.randn(shape, generator=generator)
    if kind != 'correlated':
        return (image + level * noise).clamp(0, 1)
    shares = torch.diag(torch.rand(3, generator=generator))
    turn = torch.linalg.svd(torch.rand(3, 3, generator=generator))[0]
    root = symmetric_sqrt((turn.T @ shares @ turn).abs() * (numbers.noise[1] / 255) ** 2)
    return (image + torch.einsum('cd,dhw->chw', root, noise)).clamp(0, 1)


def bsrgan_quality(generator: torch.Generator, numbers: BSRGAN = BSRGAN()) -> int:
    "A quality of JPEG."
    return integer(generator, *numbers.quality)


def _first_reduction(image, factor, generator, numbers):
    if uniform(generator, 0, 1) < numbers.resize:
        size = small_size(image, uniform(generator, 1, 2 * factor))
        return resized(image, size, choose(generator, RESIZES))
    spread = uniform(generator, numbers.picked[0], numbers.picked[1] * factor)
    blurred = filtered(image, bell(25, covariance(spread, spread, 0.)))
    size = small_size(image, factor)
    return F.interpolate(blurred[None], size, mode='nearest-exact')[0].clamp(0, 1)


def _bsrgan_order(generator):
    "The six steps in random order; the last reduction stands behind the first."
    steps = ['blur', 'blur again', 'first reduction', 'last reduction', 'noise', 'jpeg']
    steps = [steps[i] for i in torch.randperm(len(steps), generator=generator)]
    first, last = steps.index('first reduction'), steps.index('last reduction')
    if first > last:
        steps[first], steps[last] = steps[last], steps[first]
    return steps


def bsrgan(hr: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    "Random blur, reduction, noise and JPEG in random order, JPEG once more at the end."
    numbers, image, size = BSRGAN(), hr.float(), small_size(hr, factor)
    for step in _bsrgan_order(generator):
        if step.startswith('blur'):
            image = filtered(image, bsrgan_kernel(factor, generator)).clamp(0, 1)
        elif step == 'first reduction':
            image = _first_reduction(image, factor, generator, numbers)
        elif step == 'last reduction':
            image = resized(image, size, choose(generator, RESIZES))
        elif step == 'noise':
            image = bsrgan_noise(image, generator)
        elif uniform(generator, 0, 1) < numbers.jpeg:
            image = jpeg(image, bsrgan_quality(generator))
    return enlarged(jpeg(image, bsrgan_quality(generator)), hr)


# ---------------------------------------------------------------- Real-ESRGAN

KERNELS = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso')


@dataclass(frozen=True)
class Round:
    "The published numbers of one of the two rounds."
    blur: float                             # its probability
    sigma: tuple                            # standard deviations of the kernels, pixels
    directions: tuple                       # probabilities of enlarging, reducing, neither
    scales: tuple                           # of both: the least and the largest
    noise: tuple                            # Gaussian: grey levels
    poisson: tuple                          # Poisson: multiples of what photons would have
    kernels: tuple = (.45, .25, .12, .03, .12, .03)     # probabilities of `KERNELS`
    sizes: tuple = (7, 21)                  # of kernels, odd
    sinc: float = .1                        # probability of a low-pass instead of those
    beta: tuple = (.5, 4.)                  # exponent of the generalised Gaussians
    plateau: tuple = (1., 2.)               # exponent of the plateaus
    gaussian: float = .5                    # probability of Gaussian noise; else Poisson
    grey: float = .4                        # probability that all colours have the same noise
    quality: tuple = (30., 95.)             # of JPEG


FIRST = Round(1., (.2, 3.), (.2, .7, .1), (.15, 1.5), (1., 30.), (.05, 3.))
SECOND = Round(.8, (.2, 1.5), (.3, .4, .3), (.3, 1.2), (1., 25.), (.05, 2.5))
FINAL_SINC = .8      # probability of the low-pass at the end


def _halves(generator, low, high):
    "Below 1 and above 1 with equal probability, between `low` and `high`."
    below = uniform(generator, 0, 1) < .5
    return uniform(generator, low, 1) if below else uniform(generator, 1, high)


def realesrgan_kernel(generator: torch.Generator, numbers: Round = FIRST) -> Tensor:
    "A kernel (k, k) of one of the seven kinds: a low-pass, or one of `KERNELS`."
    size = 2 * integer(generator, numbers.sizes[0] // 2, numbers.sizes[1] // 2) + 1
    if uniform(generator, 0, 1) < numbers.sinc:
        return sinc(size, uniform(generator, math.pi / (3 if size < 13 else 5), math.pi))
    kind = choose(generator, KERNELS, numbers.kernels)
    first, second = (uniform(generator, *numbers.sigma) for _ in range(2))
    angle = uniform(generator, -math.pi, math.pi)
    matrix = covariance(first, first if kind.endswith('_iso') or kind == 'iso' else second, angle)
    if kind.startswith('generalized'):
        return bell(size, matrix, _halves(generator, *numbers.beta))
    if kind.startswith('plateau'):
        return bell(size, matrix, _halves(generator, *numbers.plateau), plateau=True)
    return bell(size, matrix)


def realesrgan_noise(image: Tensor, generator: torch.Generator, numbers: Round = FIRST) -> Tensor:
    "`image` with Gaussian or Poisson noise, of each colour alone or of all alike; clipped."
    gaussian = uniform(generator, 0, 1) < numbers.gaussian
    grey = uniform(generator, 0, 1) < numbers.grey
    strength = uniform(generator, *(numbers.noise if gaussian else numbers.poisson))
    if gaussian:
        shape = (1, *image.shape[1:]) if grey else image.shape
        noise = torch.randn(shape, generator=generator)
        return (image + strength / 255 * noise).clamp(0, 1)
    light = image
    if grey:
        light = (image * torch.tensor([.299, .587, .114])[:, None, None]).sum(0, keepdim=True)
    light = (255 * light).round() / 255
    noise = torch.poisson(256 * light, generator=generator) / 256 - light
    return (image + strength * noise).clamp(0, 1)


def _scale(generator, numbers):
    "How many times as large as HR, or as the small image, a round makes its image."
    direction = choose(generator, ('up', 'down', 'keep'), numbers.directions)
    low, high = numbers.scales
    if direction == 'keep':
        return 1.
    return uniform(generator, 1, high) if direction == 'up' else uniform(generator, low, 1)


def _round(image, size, generator, numbers):
    "Blur, a size near `size`, and noise."
    if uniform(generator, 0, 1) < numbers.blur:
        image = filtered(image, realesrgan_kernel(generator, numbers)).clamp(0, 1)
    scale = _scale(generator, numbers)
    size = tuple(max(1, round(length * scale)) for length in size)
    image = resized(image, size, choose(generator, RESIZES))
    return realesrgan_noise(image, generator, numbers)


def _quality(generator, numbers):
    return round(uniform(generator, *numbers.quality))


def _low_pass(image, generator):
    "The published last filter: a low-pass with probability `FINAL_SINC`, else nothing."
    if uniform(generator, 0, 1) >= FINAL_SINC:
        return image
    size = 2 * integer(generator, 3, 10) + 1
    return filtered(image, sinc(size, uniform(generator, math.pi / 3, math.pi))).clamp(0, 1)


def realesrgan(hr: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    "Two rounds of blur, resizing, noise and JPEG; ringing before or after the last JPEG."
    size = small_size(hr, factor)
    image = _round(hr.float(), hr.shape[-2:], generator, FIRST)
    image = jpeg(image, _quality(generator, FIRST))
    image = _round(image, size, generator, SECOND)
    if uniform(generator, 0, 1) < .5:
        image = _low_pass(resized(image, size, choose(generator, RESIZES)), generator)
        return enlarged(jpeg(image, _quality(generator, SECOND)), hr)
    image = resized(jpeg(image, _quality(generator, SECOND)), size, choose(generator, RESIZES))
    return enlarged(_low_pass(image, generator), hr)


# ---------------------------------------------------------------- fitted to pairs

SIDE, SAMPLES, RIDGE = 25, 120_000, 1e-5      # pixels; pixels fitted to, of all pairs; of a pixel


class FittedKernel(NamedTuple):
    "A linear degradation of pairs, on the HR grid, at their factor, whatever is asked for."
    kernel: Tensor          # (3, SIDE, SIDE), one for each colour
    offset: Tensor          # (3,)
    residuals: tuple        # of each pair, (3, H, W): what the kernel does not explain

    def mean(self, hr: Tensor) -> Tensor:
        "HR (3, H, W) through the kernel; not clipped."
        return filtered(hr, self.kernel) + self.offset.to(hr)[:, None, None]

    def __call__(self, hr: Tensor, factor: float, generator: torch.Generator) -> Tensor:
        "The filtered HR with noise like the residuals of one of the pairs; clipped."
        residual = self.residuals[integer(generator, 0, len(self.residuals) - 1)]
        return (self.mean(hr) + noise_like(residual, hr.shape[-2:], generator).to(hr)).clamp(0, 1)


def noise_like(residual: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    "Gaussian noise (3, *size) with the spectrum and the colour covariance of `residual` (3, h, w)."
    residual = residual[:, :size[0], :size[1]]
    residual = residual - residual.mean((1, 2), keepdim=True)
    white = torch.randn(tuple(size), generator=generator)
    product = torch.fft.fft2(residual, s=tuple(size)) * torch.fft.fft2(white)
    return torch.fft.ifft2(product).real / math.sqrt(residual[0].numel())


def _patches(image, rows, columns):
    "The windows of one colour (h, w), padded, at pixels (N,): (N, SIDE^2 + 1), the last column 1."
    offsets = torch.arange(SIDE)
    windows = image[rows[:, None, None] + offsets[:, None], columns[:, None, None] + offsets]
    return torch.cat([windows.flatten(1), torch.ones(len(rows), 1)], 1)


def fit_kernel(pairs: list, generator: torch.Generator) -> FittedKernel:
    """The kernel that takes HR nearest to LR over `pairs`, a list of `(hr, lr)`, (3, H, W) each.

    Pixels whose window leaves the image are left out. Raises `InterflowError` for images that are
    too small for it, and without pairs.
    """
    if not pairs or min(side for hr, _ in pairs for side in hr.shape[-2:]) < 2 * SIDE:
        raise InterflowError(
            f'pairs: none, or one below {2 * SIDE} pixels a side; give larger ones'
        )
    count = SAMPLES // len(pairs)
    gram, target = torch.zeros(3, SIDE ** 2 + 1, SIDE ** 2 + 1), torch.zeros(3, SIDE ** 2 + 1)
    for hr, lr in pairs:
        rows, columns = (torch.randint(length - SIDE + 1, (count,), generator=generator)
                         for length in hr.shape[-2:])
        for colour in range(3):
            patches = _patches(hr[colour], rows, columns)
            gram[colour] += patches.T @ patches
            target[colour] += patches.T @ lr[colour, rows + SIDE // 2, columns + SIDE // 2]
    ridge = RIDGE * count * len(pairs) * torch.eye(SIDE ** 2 + 1, dtype=torch.float64)
    solved = torch.linalg.solve(gram.double() + ridge, target.double()).float()
    fitted = FittedKernel(solved[:, :-1].view(3, SIDE, SIDE), solved[:, -1], ())
    return fitted._replace(residuals=tuple(lr - fitted.mean(hr) for hr, lr in pairs))


RANDOM = {'bicubic': bicubic, 'bsrgan': bsrgan, 'realesrgan': realesrgan}      # that need no pairs
