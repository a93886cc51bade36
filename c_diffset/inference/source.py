"""What a scene is read from, window by window."""

from typing import Protocol

import numpy as np
from scipy.ndimage import distance_transform_edt

from c_diffset.inference.tiles import Box
from c_diffset.sar.radiometry import to_model


class Source(Protocol):
    """A SAR scene that can be read by windows."""

    size: tuple[int, int]  # height and width in pixels
    origin: tuple[int, int]  # row and column of its first pixel on the ground

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Channels x H x W in [-1, 1] as the model sees them, and bool H x W, True where valid."""

    def valid(self, box: Box) -> np.ndarray:
        """The second of these alone."""


class ArraySource:
    """A scene that is at hand as an array, H x W or H x W x bands.

    Args:
        image: display values or backscatter, as the model's `sar_transform` says; anything with a shape whose windows
            `numpy.asarray` takes (numpy, memory maps, xarray, zarr): it is read window by window.
        sar_transform: of the model, see `sar_to_tensor`.
        valid: bool H x W; by default where every band is finite, and not 0 in linear units.
        origin: row and column of its first pixel on the ground.
    """

    def __init__(self, image, sar_transform: dict, valid=None, origin: tuple[int, int] = (0, 0)):
        self.image, self.mask, self.sar_transform, self.origin = image, valid, sar_transform, origin
        if len(image.shape) not in (2, 3):
            raise ValueError(f"an image of shape {tuple(image.shape)}, expected H x W or H x W x bands")
        self.size = tuple(image.shape[:2])
        if valid is not None and tuple(valid.shape) != self.size:
            raise ValueError(f"valid has shape {tuple(valid.shape)}, expected that of the image, {self.size}")

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """As `Source.read`."""
        window = box.slices()[1:]
        mask = None if self.mask is None else np.asarray(self.mask[window], bool)
        return to_model(np.asarray(self.image[window]), mask, self.sar_transform)

    def valid(self, box: Box) -> np.ndarray:
        """As `Source.valid`."""
        return self.read(box)[1]


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
