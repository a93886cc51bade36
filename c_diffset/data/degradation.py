"""Low-resolution images made of EO images, for super-resolution: every one a pure function of (seed, number).

`real_esrgan` is the second-order chain of Real-ESRGAN (Wang et al., 2021; arXiv 2107.10833) with the settings of TAD-SR
(He et al.; arXiv 2408.07476), which are those of ResShift: blur, resize, noise, JPEG; in half of the images the same
once more; then the resize to the final size with a sinc filter, and JPEG, in either order. `bicubic` only shrinks.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from math import pi
from typing import Literal, get_args

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from scipy.signal import fftconvolve
from scipy.special import j1

from c_diffset.data.eo import eo_to_tensor
from c_diffset.data.pairs import Pair
from c_diffset.pipelines.pipeline_cdiffset import LOW_RESOLUTION, check_eo_transform

Name = Literal["real_esrgan", "bicubic"]
STREAM = 100  # tells the random numbers of a degradation from those of crops and noise
KERNELS = {"gaussian": 0.7, "generalized": 0.15, "plateau": 0.15}  # shapes of blur kernels, and how often each is
ISOTROPIC = {"gaussian": 0.45 / 0.7, "generalized": 0.8, "plateau": 0.8}  # share of kernels that are round
EXPONENTS = {"gaussian": (1.0, 1.0), "generalized": (0.5, 4.0), "plateau": (1.0, 2.0)}
SINC, FINAL_SINC = 0.1, 0.8  # how often a blur kernel, and the last one, is a sinc filter
GAUSSIAN, GREY = 0.5, 0.4  # how often noise is Gaussian (else Poisson), and how often it is grey
SECOND_ORDER, SECOND_BLUR = 0.5, 0.8
LUMA = np.array([0.2989, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Order:
    """One pass of blur, resize, noise and JPEG: ranges are [low, high], drawn from uniformly.

    Attributes:
        kernel_sizes: Sides of blur kernels, in pixels.
        sigma: Standard deviation of blur kernels along either axis, in pixels.
        resize: Probabilities of enlarging, shrinking and keeping the size.
        scale: The factor of the sides where it is shrunk most, and enlarged most.
        noise: Standard deviation of Gaussian noise, in 8-bit levels.
        poisson: Factor of Poisson noise.
        jpeg: Quality of the JPEG compression.
    """

    kernel_sizes: range
    sigma: tuple[float, float]
    resize: tuple[float, float, float]
    scale: tuple[float, float]
    noise: tuple[float, float]
    poisson: tuple[float, float]
    jpeg: tuple[int, int] = (30, 95)


FIRST = Order(range(3, 21, 2), (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0))
SECOND = Order(range(3, 15, 2), (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5))


@dataclass(frozen=True)
class Degradation:
    """What makes a low-resolution image of the EO image of a pair, always the same one for a number.

    Attributes:
        name: "real_esrgan" or "bicubic".
        upscale: The factor between the sides of the two images.
        eo_transform: What the EO values mean (see `check_eo_transform`): what a model sees is degraded.
        seed: Random seed.
    """

    name: Name
    upscale: int
    eo_transform: dict
    seed: int = 0

    def __call__(self, pair: Pair, number: int) -> Pair:
        """The pair with a degraded image in place of `sar`, cut to sides that are multiples of `upscale`.

        Its values are those that 16-bit files have, and otherwise 8-bit levels (see `input_transform`).
        """
        height, width = (side - side % self.upscale for side in pair.eo.shape[:2])
        pair = Pair(pair.eo, pair.eo, pair.mask, pair.id, pair.discrepancy).part(slice(0, height), slice(0, width))
        try:
            image = eo_to_tensor(np.moveaxis(pair.eo, -1, 0), self.eo_transform)
        except ValueError as error:
            raise ValueError(f"pair {pair.id}: {error}") from None
        levels = np.moveaxis(_to_8_bits(image.numpy() * 0.5 + 0.5), 0, -1)
        small = degrade(np.ascontiguousarray(levels), self.name, self.upscale, self.seed, number)
        return replace(pair, sar=self._stored(small) if pair.eo.dtype == np.uint16 else small)

    def _stored(self, levels: np.ndarray) -> np.ndarray:
        """8-bit levels H x W x 3, as a model sees them, to what 16-bit files store."""
        low, high = _stored_range(check_eo_transform(self.eo_transform))
        share = (levels / 255) ** check_eo_transform(self.eo_transform)["gamma"]
        return (low + share * (high - low)).round().clip(0, 65535).astype(np.uint16)


def input_transform(eo: np.ndarray, eo_transform: dict) -> dict:
    """The `sar_transform` by which a model reads low-resolution images like this EO image, in its colours.

    The values of 16-bit files are read as they are, so that such images and scenes can be upscaled; 8-bit levels are
    those that a model sees.
    """
    if eo.dtype != np.uint16:
        return LOW_RESOLUTION
    low, high = (np.round(end / 65535, 9).tolist() for end in _stored_range(check_eo_transform(eo_transform)))
    return LOW_RESOLUTION | {"range": [list(ends) for ends in zip(low, high, strict=True)]}


def _stored_range(eo_transform: dict) -> tuple[np.ndarray, np.ndarray]:
    """What black and white are in 16-bit files, each of 3 channels."""
    low, high = np.broadcast_to(np.asarray(eo_transform["range"], dtype=float), (3, 2)).T
    full = 65535 if eo_transform["units"] == "display" else 1
    return low * full, high * full


def degrade(image: np.ndarray, name: Name, upscale: int, seed: int, number: int) -> np.ndarray:
    """The low-resolution image `number` of this seed, made of an EO image.

    Args:
        image: H x W x 3, uint8; H and W are multiples of `upscale`.
        name: "real_esrgan" or "bicubic", which draws nothing.
        upscale: The factor from the sides of the result to those of `image`.
        seed: Random seed, at least 0.
        number: Number of the image, at least 0.

    Returns:
        H / upscale x W / upscale x 3, uint8.

    Raises:
        ValueError: another form of image, or an unknown name.
    """
    height, width = image.shape[:2]
    if image.dtype != np.uint8 or image.shape[2:] != (3,) or height % upscale or width % upscale:
        found = f"{image.dtype} {' x '.join(map(str, image.shape))}"
        raise ValueError(f"the image is {found}: expected uint8 H x W x 3 of sides that are multiples of {upscale}")
    if name not in get_args(Name):
        raise ValueError(f"degradation is {name!r}: expected one of {', '.join(get_args(Name))}")
    if name == "bicubic":
        size = (width // upscale, height // upscale)
        return np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BICUBIC))
    rng = np.random.default_rng([seed, number, STREAM])
    return _to_8_bits(_real_esrgan(image.astype(np.float32) / 255, (height // upscale, width // upscale), rng))


def _real_esrgan(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """An image H x W x 3 in [0, 1], degraded to `size`."""
    image = _blur(image, _blur_kernel(FIRST, rng))
    image = _noise_and_jpeg(_random_resize(image, image.shape[:2], FIRST, rng), FIRST, rng)
    if rng.random() < SECOND_ORDER:
        if rng.random() < SECOND_BLUR:
            image = _blur(image, _blur_kernel(SECOND, rng))
        image = _noise_and_jpeg(_random_resize(image, size, SECOND, rng), SECOND, rng)
    kernel = None
    if rng.random() < FINAL_SINC:
        kernel = sinc_kernel(rng.choice(SECOND.kernel_sizes), rng.uniform(pi / 3, pi))
    jpeg_first, mode, quality = rng.random() < 0.5, _resize_mode(rng), rng.integers(*SECOND.jpeg, endpoint=True)
    if jpeg_first:
        return _blur(_resize(_jpeg(image, quality), size, mode), kernel)
    return _jpeg(_blur(_resize(image, size, mode), kernel), quality)


# ------------------------------------------------------------------------------------------------------- blur


def _blur_kernel(order: Order, rng: np.random.Generator) -> np.ndarray:
    """A random blur kernel k x k."""
    side = int(rng.choice(order.kernel_sizes))
    if rng.random() < SINC:
        return sinc_kernel(side, rng.uniform(pi / 3 if side < 13 else pi / 5, pi))
    shape = rng.choice(list(KERNELS), p=list(KERNELS.values()))
    sigmas, angle = rng.uniform(*order.sigma, 2), rng.uniform(-pi, pi)
    if rng.random() < ISOTROPIC[shape]:
        sigmas[1] = sigmas[0]
    low, high = EXPONENTS[shape]
    exponent = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return bell_kernel(side, (sigmas[0], sigmas[1]), angle, exponent, plateau=shape == "plateau")


def bell_kernel(
    side: int, sigmas: tuple[float, float], angle: float, exponent: float, plateau: bool = False
) -> np.ndarray:
    """A generalised Gaussian exp(-d^exponent / 2), or with `plateau` 1 / (1 + d^exponent): side x side, of sum 1.

    `d` is the squared distance in units of `sigmas`, on axes turned by `angle`. An exponent of 1 makes a Gaussian.
    """
    steps = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(steps, steps)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = ((along / sigmas[0]) ** 2 + (across / sigmas[1]) ** 2) ** exponent
    kernel = 1 / (1 + distance) if plateau else np.exp(-distance / 2)
    return kernel / kernel.sum()


def sinc_kernel(side: int, cutoff: float) -> np.ndarray:
    """The ideal low-pass filter of circular support, cut off at `cutoff` (radians a pixel): side x side, of sum 1."""
    steps = np.arange(side) - (side - 1) / 2
    radius = np.hypot(*np.meshgrid(steps, steps))
    away = np.where(radius > 0, radius, 1)
    kernel = np.where(radius > 0, cutoff * j1(cutoff * away) / (2 * pi * away), cutoff**2 / (4 * pi))
    return kernel / kernel.sum()


def _blur(image: np.ndarray, kernel: np.ndarray | None) -> np.ndarray:
    """The image filtered by a kernel, its borders mirrored; None leaves it as it is."""
    if kernel is None:
        return image
    half = len(kernel) // 2
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect")
    return fftconvolve(padded, kernel[..., None].astype(np.float32), mode="valid", axes=(0, 1))


# ------------------------------------------------------------------------------------- resize, noise and JPEG


def _random_resize(image: np.ndarray, around: tuple[int, int], order: Order, rng: np.random.Generator) -> np.ndarray:
    """The image at a random factor of the size `around`."""
    smallest, largest = order.scale
    scale = {"up": rng.uniform(1, largest), "down": rng.uniform(smallest, 1), "keep": 1.0}
    factor = scale[rng.choice(list(scale), p=order.resize)]
    height, width = (max(1, int(side * factor)) for side in around)
    return _resize(image, (height, width), _resize_mode(rng))


def _resize_mode(rng: np.random.Generator) -> str:
    return str(rng.choice(["area", "bilinear", "bicubic"]))


def _resize(image: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))[None]
    return np.moveaxis(F.interpolate(tensor, size=size, mode=mode)[0].numpy(), 0, -1)


def _noise_and_jpeg(image: np.ndarray, order: Order, rng: np.random.Generator) -> np.ndarray:
    gaussian, grey = rng.random() < GAUSSIAN, rng.random() < GREY
    if gaussian:
        shape = (*image.shape[:2], 1) if grey else image.shape
        noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(rng.uniform(*order.noise) / 255)
    else:
        noise = _poisson_noise(image, grey, rng) * np.float32(rng.uniform(*order.poisson))
    return _jpeg(image + noise, rng.integers(*order.jpeg, endpoint=True))


def _poisson_noise(image: np.ndarray, grey: bool, rng: np.random.Generator) -> np.ndarray:
    """Shot noise of the image in 8 bits, or of its luminance; the more levels are in use, the weaker it is."""
    image = _to_8_bits(image @ LUMA[:, None] if grey else image).astype(np.float32) / 255
    levels = np.float32(2 ** np.ceil(np.log2(len(np.unique(image)))))
    return rng.poisson(image * levels).astype(np.float32) / levels - image


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """What JPEG leaves of an image, with colours at half the resolution as usual."""
    file = io.BytesIO()
    PIL.Image.fromarray(_to_8_bits(image)).save(file, "JPEG", quality=int(quality))
    with PIL.Image.open(file, formats=("JPEG",)) as read:
        return np.asarray(read, dtype=np.float32) / 255


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    return (image.clip(0, 1) * 255).round().astype(np.uint8)
