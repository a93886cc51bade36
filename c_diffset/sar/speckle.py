"""Speckle of SAR intensities, reduced by the refined Lee filter."""

from functools import reduce
from itertools import accumulate

import numpy as np

SIZE = 7
HALO = SIZE // 2
"""Pixels on each side that a pixel's value depends on. A window cut out with this much context, its context cropped
after filtering, equals the same place of the whole image exactly; at the image's own border it needs none."""

_STRIP = 64  # rows at a time: their float64 sums stay in the processor's cache, and memory stays small


def refined_lee(power: np.ndarray, looks: float = 4.4) -> np.ndarray:
    """Reduce speckle and keep edges: Lee's local statistics filter over the half of a window on one side of an edge.

    In each 7 x 7 window, the means of nine 3 x 3 sub-windows give the edge's direction, the largest of four gradients,
    and its side, the sub-window that is nearer to the central one. With m and s^2 the mean and variance of the 28
    pixels of that half of the window and v = 1 / looks the variance of the speckle, the pixel p becomes

        m + b (p - m),  b = max(0, s^2 - m^2 v) / ((1 + v) s^2)

    The image is mirrored at its border. Lee, "Refined filtering of image noise using local statistics", Computer
    Graphics and Image Processing 15 (1981), with the sub-windows and gradients that ESA's SNAP takes.

    Args:
        power: H x W or bands x H x W, linear intensity (not amplitude, not dB), finite; bands are filtered apart.
            Fill missing pixels first: each reaches as far as `HALO`.
        looks: equivalent number of looks of the image; 4.4 is that of Sentinel-1 IW GRD at high resolution.

    Returns:
        The filtered power, of the shape and dtype of `power`.

    Raises:
        ValueError: `looks` is not above 0.
    """
    if looks <= 0:
        raise ValueError(f"looks is {looks}, and has to be above 0: the equivalent number of looks of the image")
    if power.ndim == 3:
        return np.stack([refined_lee(band, looks) for band in power])
    padded = np.pad(power, HALO, mode="symmetric")
    filtered = np.empty_like(power)
    for top in range(0, len(power), _STRIP):
        strip = padded[top : top + _STRIP + 2 * HALO].astype(np.float64)
        filtered[top : top + _STRIP] = _filter(strip, 1 / looks)
    return filtered


def _filter(power: np.ndarray, noise: float) -> np.ndarray:
    """The inner pixels of `power`, filtered; `noise` is the variance of the speckle at mean 1."""
    direction = _direction(_sub_window_means(power))
    pixels = SIZE * (SIZE + 1) // 2
    mean = np.choose(direction, _half_window_sums(power)) / pixels
    squares = np.choose(direction, _half_window_sums(power**2))
    variance = np.maximum((squares - pixels * mean**2) / (pixels - 1), 0)
    signal = np.maximum(variance - mean**2 * noise, 0) / (1 + noise)
    weight = np.divide(signal, variance, out=np.zeros_like(mean), where=variance > 0)
    return mean + weight * (power[HALO:-HALO, HALO:-HALO] - mean)


def _sub_window_means(power: np.ndarray) -> list[list[np.ndarray]]:
    """Means of the 3 x 3 sub-windows, [row][column], two pixels apart; each array covers the inner pixels."""
    rows = power[:-2] + power[1:-1] + power[2:]
    means = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    height, width = (size - 2 * HALO for size in power.shape)
    return [[means[y : y + height, x : x + width] for x in (0, 2, 4)] for y in (0, 2, 4)]


def _direction(means: list[list[np.ndarray]]) -> np.ndarray:
    """Which half of the window is on the pixel's side of the edge, as an index into `_half_window_sums`."""
    (northwest, north, northeast), (west, centre, east), (southwest, south, southeast) = means
    pairs = [(west, east), (northeast, southwest), (north, south), (northwest, southeast)]
    gradient = np.argmax([abs(first - second) for first, second in pairs], axis=0)
    on_second = [abs(first - centre) >= abs(second - centre) for first, second in pairs]
    return 2 * gradient + np.choose(gradient, on_second)


def _half_window_sums(values: np.ndarray) -> list[np.ndarray]:
    """Sums over the halves of the window of each inner pixel: W, E, NE, SW, N, S, NW, SE, with the line between them.

    Sums of shifted images, never running sums: a pixel's value must not depend on where a window begins.
    """
    height, width = (size - 2 * HALO for size in values.shape)
    columns = [values[:, x : x + width] for x in range(SIZE)]
    left = list(accumulate(columns))  # left[n]: the first n + 1 columns of the window
    right = list(accumulate(reversed(columns)))

    def total(runs: list[np.ndarray], first: int = 0) -> np.ndarray:
        return reduce(np.add, (run[y : y + height] for y, run in enumerate(runs, first)))

    half, growing = HALO + 1, range(SIZE)
    return [
        total([left[HALO]] * SIZE),
        total([right[HALO]] * SIZE),
        total([right[SIZE - 1 - y] for y in growing]),
        total([left[y] for y in growing]),
        total([left[-1]] * half),
        total([left[-1]] * half, first=HALO),
        total([left[SIZE - 1 - y] for y in growing]),
        total([right[y] for y in growing]),
    ]
