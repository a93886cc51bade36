"""Faults that make a pair unfit to learn from: flat, clouded, blocked by compression, misregistered.

All measures look at one pair alone, and none depends on units: images of 8 and 16 bits, decibels, power and
reflectances are judged alike. Pixels without data do not count. The limits are cautious: a pair that cannot be judged
has no fault.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.ndimage import gaussian_filter, minimum_filter

from c_diffset.data.eo import eo_to_tensor
from c_diffset.data.pairs import Pair
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY

FLAT = 0.03  # of its brightest values: an image whose values differ by less shows nothing
FLAT_DB = 0.5  # the same in decibels
CLOUD = 0.8  # of white: as bright as this in all three bands are clouds (and snow)
GREY = 0.15  # the largest difference of their bands, as a share of the brightest
MOST_CLOUD = 0.25  # share of the pixels that clouds may hide
BLOCK = 8  # pixels a side, of the blocks of JPEG
BLOCKED = 1.3  # steps at the borders of blocks, as a multiple of those elsewhere
LEAST_STEPS = 2048  # fewer steps at one place of the blocks say nothing
MOST_SHIFT = 8.0  # pixels of the EO image
SIGNIFICANT = 6.0  # standard deviations that a peak stands above the correlation: images of two places reach 5
SMOOTHING, LOW_PASS = 2.0, 0.04  # standard deviations: in pixels, and in cycles a pixel
LEAST_SIDE, MOST_SIDE = 64, 2048  # pixels of the window in which the shift is measured
LIMITS = {"flat": FLAT, "flat_db": FLAT_DB, "clouds": MOST_CLOUD, "blocks": BLOCKED, "significance": SIGNIFICANT}


@dataclass(frozen=True)
class Fault:
    """What is wrong with a pair: its kind (flat, clouded, blocked or misregistered), and what was measured."""

    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


def find_faults(pair: Pair, eo_transform: dict | None = None, max_shift: float = MOST_SHIFT) -> list[Fault]:
    """All faults of a pair.

    Args:
        pair: as `read_pair` gives it.
        eo_transform: what the EO values mean (see `check_eo_transform`); None takes what `guess_eo_transform` says.
        max_shift: the largest shift between the images that is no fault, in pixels of the EO image.
    """
    faults = []
    for name, image, mask in (("SAR", pair.sar, pair.sar_mask), ("EO", pair.eo, pair.mask)):
        if flat := describe_contrast(image, mask, may_be_db=name == "SAR"):
            faults.append(Fault("flat", f"the {name} values differ by {flat}"))
        blocks = measure_blocks(image, mask)
        if blocks > BLOCKED:
            what = f"steps at the borders of blocks of {BLOCK} px in the {name} image are {blocks:.1f} times the others"
            faults.append(Fault("blocked", f"{what}, expected at most {BLOCKED}"))
    clouds = measure_clouds(pair.eo, pair.mask, eo_transform or guess_eo_transform(pair.eo))
    if clouds > MOST_CLOUD:
        faults.append(Fault("clouded", f"{clouds:.0%} of the EO image are clouds, expected at most {MOST_CLOUD:.0%}"))
    (down, right), height = measure_shift(pair)
    shift = float(np.hypot(down, right))
    if height >= SIGNIFICANT and shift > max_shift:
        where = f"{abs(down):g} px {'down' if down > 0 else 'up'}, {abs(right):g} px {'right' if right > 0 else 'left'}"
        what = f"the EO image lies {shift:.1f} px off the SAR image ({where}; peak of {height:.0f} standard deviations)"
        faults.append(Fault("misregistered", f"{what}, expected at most {max_shift:g}"))
    return faults


# ------------------------------------------------------------------------------------------ flat, clouded, blocked


def describe_contrast(image: np.ndarray, mask: np.ndarray | None, may_be_db: bool) -> str | None:
    """How far apart the 1st and the 99th percentile of the valid values lie, where that is too little; else None.

    Negative values of an image that `may_be_db` are decibels; all others count as shares of the 99th percentile.
    """
    values = _grey(image).ravel() if mask is None else _grey(image)[mask]
    low, high = np.percentile(values[:: max(1, values.size // 2**20)], (1, 99))
    if may_be_db and low < 0:
        return f"{high - low:.2g} dB, expected {FLAT_DB:g} dB" if high - low < FLAT_DB else None
    share = (high - low) / max(abs(high), 1e-12)
    return f"{share:.1%} of the brightest, expected {FLAT:.0%}" if share < FLAT else None


def guess_eo_transform(eo: np.ndarray) -> dict:
    """What EO values mean where nobody has said it.

    Values of 16 bits are display values where they use a good part of the range; else, as floats far above 1, they are
    reflectances times 10 000. A reflectance of 0.4 is white: snow, clouds and hardly anything else are as bright.
    """
    bright = float(np.percentile(eo, 99))
    if eo.dtype == np.uint8 or eo.dtype == np.uint16 and bright > 20_000:
        return EO_DISPLAY
    return {"units": "reflectance", "range": [0, 4000 if bright > 10 else 0.4]}


def measure_clouds(eo: np.ndarray, mask: np.ndarray | None, eo_transform: dict) -> float:
    """The share of the valid pixels in blocks of 8 x 8 that are white or light grey, as clouds and snow are."""
    height, width = (side - side % BLOCK for side in eo.shape[:2])
    valid = np.ones((height, width), np.float32) if mask is None else mask[:height, :width].astype(np.float32)
    shares = (eo_to_tensor(np.moveaxis(eo[:height, :width], -1, 0), eo_transform).numpy() + 1) / 2
    counts = _block_sums(valid)
    means = _block_sums(shares * valid) / np.maximum(counts, 1)
    darkest, brightest = means.min(axis=0), means.max(axis=0)
    cloud = (darkest >= CLOUD) & (brightest - darkest <= GREY * brightest)
    return float(counts[cloud].sum() / max(1, counts.sum()))


def _block_sums(image: np.ndarray) -> np.ndarray:
    """The sums of the blocks of an image ... x H x W."""
    *rest, height, width = image.shape
    return image.reshape(*rest, height // BLOCK, BLOCK, width // BLOCK, BLOCK).sum(axis=(-3, -1))


def measure_blocks(image: np.ndarray, mask: np.ndarray | None) -> float:
    """How much larger the steps between pixels are at the borders of 8 x 8 blocks than elsewhere; 1 without blocks.

    The steps between neighbours are averaged for each of the eight places that a border can have, and the largest mean
    is divided by the next one; of the two directions the smaller ratio counts, since blocks have borders in both (after
    Wang, Sheikh and Bovik, "No-reference perceptual quality assessment of JPEG compressed images", 2002).
    """
    grey, ratios = _grey(image), []
    for axis in (0, 1):
        steps = np.abs(np.diff(grey, axis=axis))
        valid = np.ones(steps.shape, bool) if mask is None else ~np.diff(mask, axis=axis) & _without_last(mask, axis)
        counts = _by_place(valid, axis)
        if counts.min() < LEAST_STEPS:
            return 1.0
        second, first = np.sort(_by_place(np.where(valid, steps, 0), axis) / counts)[-2:]
        ratios.append(first / max(second, 1e-12) if first > 0 else 1.0)
    return float(min(ratios))


def _without_last(mask: np.ndarray, axis: int) -> np.ndarray:
    return mask[:-1] if axis == 0 else mask[:, :-1]


def _by_place(steps: np.ndarray, axis: int) -> np.ndarray:
    """The sum of all steps at each of the eight places in the blocks."""
    sums = steps.sum(axis=1 - axis, dtype=np.float64)
    return np.array([sums[place::BLOCK].sum() for place in range(BLOCK)])


def _grey(image: np.ndarray) -> np.ndarray:
    """The mean of the bands, H x W, float32."""
    return image.astype(np.float32) if image.ndim == 2 else image.mean(axis=2, dtype=np.float32)


# --------------------------------------------------------------------------------------------------- misregistered


def measure_shift(pair: Pair) -> tuple[tuple[float, float], float]:
    """How far down and right the EO image lies from the SAR image, in EO pixels, and how significant that is.

    The phase correlation (Kuglin and Hines, 1975) of the gradients of both, in the middle `MOST_SIDE` pixels a side.
    Edges look alike to both sensors, but what is bright to one may be dark to the other, so gradients enter as
    |g| exp(2i angle), which does not know light from dark; and values as ranks, which know no units. Only shifts up to
    a quarter of the sides are looked for. The height of the peak is in standard deviations of the whole correlation.
    """
    upscale = pair.upscale
    sar, eo = _grey(pair.sar), _grey(pair.eo)
    if upscale > 1:
        eo = eo.reshape(sar.shape[0], upscale, sar.shape[1], upscale).mean(axis=(1, 3))
    mask = np.ones(sar.shape, bool) if pair.sar_mask is None else pair.sar_mask
    window = tuple(slice(max(0, (side - MOST_SIDE) // 2), (side + MOST_SIDE) // 2) for side in sar.shape)
    if min(sar.shape) < LEAST_SIDE or not mask[window].any():
        return (0.0, 0.0), 0.0
    first, second = (_edges(image[window], mask[window]) for image in (sar, eo))
    (down, right), height = _peak(_phase_correlation(first, second))
    return (float(down * upscale), float(right * upscale)), height


def _edges(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gradients of the ranks as |g| exp(2i angle), complex64, falling to zero towards borders and gaps."""
    levels = np.linspace(0, 1, 65)
    values = image[mask]
    ranks = np.interp(image, np.percentile(values[:: max(1, values.size // 2**17)], 100 * levels), levels)
    ranks = np.where(mask, ranks, 0.5).astype(np.float32)
    across = gaussian_filter(ranks, SMOOTHING, order=(0, 1))
    down = gaussian_filter(ranks, SMOOTHING, order=(1, 0))
    gradient = across + 1j * down
    edges = gradient**2 / np.maximum(np.abs(gradient), 1e-9)
    inside = minimum_filter(mask, int(8 * SMOOTHING) + 1)
    return (edges * inside * _taper(len(image))[:, None] * _taper(image.shape[1])).astype(np.complex64)


def _taper(side: int) -> np.ndarray:
    """1 inside, and half a cosine down to 0 in the outer eighth at either end."""
    outer = max(1, side // 8)
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(outer) + 0.5) / outer)
    return np.concatenate([rise, np.ones(side - 2 * outer), rise[::-1]]).astype(np.float32)


def _phase_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The phase correlation of two complex images H x W, low frequencies alone; its peak is where `second` lies."""
    cross = np.conj(scipy.fft.fft2(first)) * scipy.fft.fft2(second)
    cross /= np.maximum(np.abs(cross), 1e-12)
    down, across = (scipy.fft.fftfreq(side) for side in first.shape)
    cross *= np.exp(-(down[:, None] ** 2 + across**2) / (2 * LOW_PASS**2))
    return scipy.fft.ifft2(cross).real


def _peak(correlation: np.ndarray) -> tuple[tuple[int, int], float]:
    """Where the highest value is, within a quarter of the sides, and how many standard deviations high."""
    spread = correlation.std()
    if spread == 0:
        return (0, 0), 0.0
    top, left = (side // 4 for side in correlation.shape)
    near = np.roll(correlation, (top, left), axis=(0, 1))[: 2 * top + 1, : 2 * left + 1]
    row, column = np.unravel_index(near.argmax(), near.shape)
    return (int(row) - top, int(column) - left), float(near[row, column] / spread)
