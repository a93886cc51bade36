"""What a scene is read from, window by window."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy.ndimage import distance_transform_edt

from c_diffset.inference.tiles import Box
from c_diffset.pipelines.pipeline_cdiffset import LOWEST, count_bands, image_axes, order_hint
from c_diffset.sar.radiometry import doubt_units, to_model

SAMPLES = 8  # windows along each axis that tell what the values of a scene are
ENOUGH = 2**16  # pixels that do
FEW = 256  # pixels that are kept of a window without a measurement


class Source(Protocol):
    """A SAR scene that can be read by windows."""

    size: tuple[int, int]  # height and width in pixels
    origin: tuple[int, int]  # row and column of its first pixel on the ground
    reach: Box  # what can be read: more than `size` of a part of a scene

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Channels x H x W in [-1, 1] as the model sees them, and bool H x W, True where valid."""

    def valid(self, box: Box) -> np.ndarray:
        """The second of these alone."""


class ArraySource:
    """A scene that is at hand as an array, H x W or H x W x bands.

    Args:
        image: display values or backscatter, as the model's `sar_transform` says; anything with a shape and a dtype
            whose windows `numpy.asarray` takes (numpy, memory maps, xarray, zarr): it is read window by window. Where
            its dimensions have names (`dims`), as in xarray, they can have any order.
        sar_transform: of the model, see `sar_to_tensor`.
        valid: bool H x W; by default where every band is finite, and not 0 in linear units.
        origin: row and column of its first pixel on the ground.

    Raises:
        ValueError: shapes that do not fit, or values that cannot be in the units of the model.
    """

    def __init__(self, image, sar_transform: dict, valid=None, origin: tuple[int, int] = (0, 0)):
        self.image, self.mask, self.sar_transform, self.origin = image, valid, sar_transform, origin
        if len(image.shape) not in (2, 3):
            raise ValueError(f"an image of shape {tuple(image.shape)}, expected H x W or H x W x bands")
        rows, columns, *bands = (image.shape[axis] for axis in image_axes(image))
        self.size, reads = (rows, columns), count_bands(sar_transform["channels"])
        self.reach = Box(0, 0, *self.size)
        if (bands or [1]) != [reads] and not (reads == 1 and bands == [3]):  # which can be grey as colour
            hint = order_hint(image.shape, reads)
            raise ValueError(f"an image of shape {tuple(image.shape)}, but this model reads {reads} band(s){hint}")
        if valid is not None and tuple(valid.shape[axis] for axis in image_axes(valid)) != self.size:
            raise ValueError(f"valid has shape {tuple(valid.shape)}, expected that of the image, {self.size}")
        self._check_values(sar_transform["units"])

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """As `Source.read`."""
        mask = None if self.mask is None else _window(self.mask, box).astype(bool)
        return to_model(_window(self.image, box), mask, self.sar_transform)

    def valid(self, box: Box) -> np.ndarray:
        """As `Source.valid`."""
        return self.read(box)[1]

    def _check_values(self, units: str) -> None:
        """Refuse values that cannot be in the units of the model."""
        if units == "display" and self.image.dtype == np.uint8:
            return  # which all are
        if doubt := doubt_units(sample(self._sampled, Box(0, 0, *self.size)), units, self.sar_transform):
            raise ValueError(f"this model reads {units}, but {doubt}")

    def _sampled(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Bands x H x W as they are, and where they are finite and not masked."""
        values = np.moveaxis(np.atleast_3d(_window(self.image, box)), -1, 0)
        valid = np.isfinite(values).all(axis=0)
        return values, valid if self.mask is None else valid & _window(self.mask, box).astype(bool)


def _window(array, box: Box) -> np.ndarray:
    """A rectangle of an array, H x W or H x W x bands whatever the order of its axes."""
    axes = image_axes(array)
    spans = dict(zip(axes, box.slices()[1:], strict=False))
    window = np.asarray(array[tuple(spans.get(axis, slice(None)) for axis in range(len(axes)))])
    return window.transpose(axes)


def sample(read: Callable[[Box], tuple[np.ndarray, np.ndarray]], part: Box) -> np.ndarray:
    """Valid values, bands x N, out of windows that are spread over a scene; out of all of it where those hold none.

    Args:
        read: the values of a window, bands x H x W, and which of its pixels are valid, bool H x W.
        part: the rectangle that is looked at.
    """
    spread, everywhere = sample_boxes(part)
    kept, found = [], 0
    for boxes, enough in ((spread, math.inf), (everywhere, ENOUGH)):
        for box in boxes:
            values, valid = read(box)
            values = values[:, valid]
            real = ((values != 0) & (values > LOWEST["db"])).any(axis=0)  # neither missing nor a number that says so
            kept.append(values[:, real] if real.any() else values[:, :: 1 + values.shape[1] // FEW])
            found += np.count_nonzero(real)
            if found >= enough:
                break
        if found:
            break
    return np.concatenate(kept, axis=1)


def sample_boxes(part: Box) -> tuple[list[Box], list[Box]]:
    """Windows spread over a rectangle; and those of all of it, for where the others hold nothing."""
    (height, width), (top, left) = part.size, part[:2]
    few = [sorted({i * (side - 1) // (SAMPLES - 1) // 64 * 64 for i in range(SAMPLES)}) for side in part.size]
    first, every = (
        [Box(i, j, min(i + side, height), min(j + side, width)).moved(-top, -left) for i in rows for j in columns]
        for side, rows, columns in ((64, *few), (512, range(0, height, 512), range(0, width, 512)))
    )
    return first, every


def fill_invalid(sar: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Channels x H x W with the valid part mirrored at its border into the rest: streaks would be taken for roads."""
    if valid.all():
        return sar
    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    streaks = sar[:, nearest[0], nearest[1]]
    rows, columns = (
        np.clip(2 * near - here, 0, side - 1)
        for near, here, side in zip(nearest, np.indices(valid.shape, np.int32), valid.shape, strict=True)
    )
    return streaks[:, rows, columns]
