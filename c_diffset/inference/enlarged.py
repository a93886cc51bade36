"""A scene on the finer grid that a model of super-resolution writes, read window by window."""

import numpy as np
import torch
from rasterio.control import GroundControlPoint

from c_diffset.inference.source import Source, fill_invalid
from c_diffset.inference.tiles import Box
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

# pixels of the scene beyond a window: bicubic weights reach two of them, and what those are filled with, where they are
# missing, lies within the rest
MARGIN = 16


class EnlargedSource:
    """A `Source` whose pixels are those of another, enlarged as the pipeline does it.

    A pixel is valid where that of the scene is which it lies in. Windows agree with the enlarged whole.

    Args:
        source: the scene on its own grid.
        pipe: the model, whose `upscale` says how much finer this grid is.
    """

    def __init__(self, source: Source, pipe: CDiffSETPipeline):
        self.source, self.pipe, self.factor = source, pipe, pipe.config.upscale

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.source.size[0] * self.factor, self.source.size[1] * self.factor

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the first pixel on the ground."""
        return self.source.origin[0] * self.factor, self.source.origin[1] * self.factor

    @property
    def reach(self) -> Box:
        """As `Source.reach`."""
        return self.source.reach.scaled(self.factor)

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """As `Source.read`."""
        coarse = self._under(box)
        wider = Box(coarse.top - MARGIN, coarse.left - MARGIN, coarse.bottom + MARGIN, coarse.right + MARGIN)
        wider = wider.common(self.source.reach)
        assert wider is not None
        sar, valid = self.source.read(wider)
        if not valid.any():
            return np.full((len(sar), *box.size), -1, np.float32), np.zeros(box.size, bool)
        large = self.pipe.enlarge(torch.from_numpy(fill_invalid(sar, valid))[None])[0].numpy()
        inside = box.slices(wider.top * self.factor, wider.left * self.factor)
        return large[inside], self._repeat(valid)[inside]

    def valid(self, box: Box) -> np.ndarray:
        """As `Source.valid`."""
        coarse = self._under(box)
        return self._repeat(self.source.valid(coarse))[box.slices(coarse.top * self.factor, coarse.left * self.factor)]

    def _under(self, box: Box) -> Box:
        """The pixels of the scene that a rectangle of this grid touches."""
        return Box(*(side // self.factor for side in box[:2]), *(-(-side // self.factor) for side in box[2:]))

    def _repeat(self, values: np.ndarray) -> np.ndarray:
        return values.repeat(self.factor, axis=-2).repeat(self.factor, axis=-1)


def on_grid_of_model(source: Source, pipe: CDiffSETPipeline) -> Source:
    """A scene as the canvas reads it: on its own grid, or on the finer one that the model writes."""
    return source if pipe.config.upscale == 1 else EnlargedSource(source, pipe)


def finer_place(place: dict, factor: int) -> dict:
    """Where a scene lies (see `place_of`), for pixels of a `factor`-th of the side: the corner stays where it is."""
    finer = dict(place)
    if "transform" in place:
        finer["transform"] = place["transform"] @ place["transform"].scale(1 / factor)
    if "gcps" in place:
        finer["gcps"] = [
            GroundControlPoint(point.row * factor, point.col * factor, point.x, point.y, point.z, point.id, point.info)
            for point in place["gcps"]
        ]
    return finer
