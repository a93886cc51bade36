"""Overlapping tiles over a canvas that is anchored to the ground, and how their values are blended.

A canvas pixel is a latent pixel, or an image pixel in pixel space. Positions on the ground are counted in canvas pixels
from the origin of the coordinate system, so that two scenes of one pixel grid have the same tiles, and the same noise,
wherever they show the same ground.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """A rectangle of rows [top, bottom) and columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def scaled(self, factor: int) -> "Box":
        """The same rectangle on a grid that is `factor` times finer."""
        return Box(*(side * factor for side in self))

    def moved(self, rows: int, columns: int) -> "Box":
        """The rectangle seen from (rows, columns)."""
        return Box(self.top - rows, self.left - columns, self.bottom - rows, self.right - columns)

    def common(self, other: "Box") -> "Box | None":
        """What two rectangles share."""
        shared = Box(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))
        return shared if shared.top < shared.bottom and shared.left < shared.right else None

    def slices(self, rows: int = 0, columns: int = 0) -> tuple:
        """Index of the rectangle in an array ... x H x W whose corner is (rows, columns)."""
        return ..., slice(self.top - rows, self.bottom - rows), slice(self.left - columns, self.right - columns)


def tile_spans(origin: int, size: int, tile: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """First pixel and end of the tiles along one axis of a canvas: every pixel is covered.

    Tiles begin at multiples of `tile - overlap` on the ground; those at the ends are cut off where the canvas ends, but
    to no less than half a tile. A canvas no larger than a tile is one tile.

    Args:
        origin: position of the canvas on the ground.
        size: its length.
        tile, overlap: length of a tile, and the least that neighbours share.
        multiple: all lengths are multiples of this.
    """
    if size <= tile:
        return [(0, size)]
    stride, shortest = tile - overlap, -(-tile // (2 * multiple)) * multiple
    starts = range(-(origin % stride), size - overlap, stride)
    spans = [(start, start + tile) for start in starts if start + stride > 0]
    (_, end), (start, _) = spans[0], spans[-1]
    spans[0] = (0, max(end, shortest))
    spans[-1] = (min(start, size - shortest), size)
    return spans


def blocks_of(box: Box, block: int) -> list[tuple[int, int]]:
    """Row and column numbers of the blocks of `block` x `block` pixels that a rectangle touches."""
    rows = range(box.top // block, -(-box.bottom // block))
    columns = range(box.left // block, -(-box.right // block))
    return [(row, column) for row in rows for column in columns]


@dataclass(frozen=True)
class Tiling:
    """The tiles of a canvas.

    Attributes:
        origin: position (row, column) of the canvas on the ground.
        size: its height and width.
        tile: side of a tile; those at the ends of the canvas may be smaller.
        overlap: the least that neighbours share, on which they are blended.
        multiple: a number that all of these are multiples of.
    """

    origin: tuple[int, int]
    size: tuple[int, int]
    tile: int
    overlap: int
    multiple: int = 1

    def scaled(self, factor: int) -> "Tiling":
        """The same tiles on a grid that is `factor` times finer."""
        top, left, height, width = (value * factor for value in (*self.origin, *self.size))
        sides = (self.tile * factor, self.overlap * factor, self.multiple * factor)
        return Tiling((top, left), (height, width), *sides)

    @cached_property
    def _spans(self) -> list[list[tuple[int, int]]]:
        """The spans of the tiles along the rows, and those along the columns."""
        axes = zip(self.origin, self.size, strict=True)
        return [tile_spans(*axis, self.tile, self.overlap, self.multiple) for axis in axes]

    @cached_property
    def boxes(self) -> list[Box]:
        """The tiles' rectangles on the canvas, row by row."""
        rows, columns = self._spans
        return [Box(top, left, bottom, right) for top, bottom in rows for left, right in columns]

    def touching(self, box: Box) -> list[int]:
        """Numbers of the tiles that share pixels with a rectangle, in order."""
        rows, columns = self._spans
        near_rows = [i for i, (top, bottom) in enumerate(rows) if top < box.bottom and box.top < bottom]
        near_columns = [j for j, (left, right) in enumerate(columns) if left < box.right and box.left < right]
        return [i * len(columns) + j for i in near_rows for j in near_columns]

    def blend(self, box: Box, numbers: Container[int], read: Callable[[int], np.ndarray]) -> np.ndarray:
        """The weighted mean of the tiles over a rectangle, C x H x W float32; 0 where there is none.

        Args:
            box: on the canvas.
            numbers: the tiles that there are.
            read: a tile's values, C x H x W.
        """
        total, norm = None, np.zeros(box.size, np.float32)
        for number in self.touching(box):
            if number not in numbers:
                continue
            tile = self.boxes[number]
            shared = tile.common(box)
            inside = shared.slices(*tile[:2])
            values, weights = read(number)[inside], tile_weights(*tile.size, self.overlap)[inside]
            if total is None:
                total = np.zeros((len(values), *box.size), np.float32)
            total[shared.slices(*box[:2])] += values * weights
            norm[shared.slices(*box[:2])] += weights
        if total is None:
            raise ValueError(f"no tile touches {box}")
        return np.divide(total, norm, out=total, where=norm > 0)


@lru_cache(maxsize=32)
def tile_weights(height: int, width: int, overlap: int) -> np.ndarray:
    """How much each pixel of a tile counts: 1 inside, sin^2 from the border over the overlap; H x W."""
    return np.outer(_ramps(height, overlap), _ramps(width, overlap)).astype(np.float32)


def _ramps(length: int, overlap: int) -> np.ndarray:
    """sin^2 up over `overlap` pixels, 1, and down again: neighbours that share `overlap` pixels sum to 1."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.sin(np.pi / 2 * np.minimum(1, distance / overlap)) ** 2 if overlap else np.ones(length)
