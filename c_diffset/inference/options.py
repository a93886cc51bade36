"""How scenes are read and translated; free of libraries that take seconds to import, since commands show it as help."""

import math
from dataclasses import dataclass

MAX_PIXELS = 2 * 10**9  # about five Sentinel-1 scenes
FARTHEST = 1e9  # of any coordinate on Earth; PROJ takes hours over some numbers beyond


@dataclass(kw_only=True)
class ReadOptions:
    """How a scene is read.

    Attributes:
        units: Units of the pixels: "display", "db", "power" or "amplitude", or "reflectance" of a scene that is
            upscaled. They are detected where that is certain.
        bands: Polarisations, or numbers from 1, of the scene's bands in the model's order. They are chosen by the names
            that the model knows when none are given.
        despeckle: Whether speckle is filtered (refined Lee) before the model sees the scene.
        crs: Coordinate system that the scene is warped to first, such as "EPSG:32631". The scene's own when None.
        resolution: Pixel size after warping, in units of `crs`. That of the scene when None.
        bbox: Left, bottom, right and top of the part that is translated, in `bbox_crs`. Pixels that it touches count.
        bbox_crs: Coordinate system of `bbox`, such as "EPSG:4326" for longitude and latitude. When None that of the
            grid: `crs`, or the scene's own.
        window: Column, row, width and height in pixels, after warping, of the part that is translated.
        max_pixels: Number of pixels above which a scene, or the part of it, is refused, before and after warping.
    """

    units: str | None = None
    bands: list[str] | None = None
    despeckle: bool = False
    crs: str | None = None
    resolution: float | None = None
    bbox: list[float] | None = None
    bbox_crs: str | None = None
    window: list[int] | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def is_warped(self) -> bool:
        """Whether scenes are brought to another grid."""
        return self.crs is not None or self.resolution is not None

    @property
    def is_part(self) -> bool:
        """Whether a part of each scene is asked for."""
        return self.bbox is not None or self.window is not None

    def check(self) -> None:
        """Refuse, before any file is opened, what no scene can be read with.

        Raises:
            ValueError: with the name and the value of the option.
        """
        from c_diffset.sar.gdal import find_crs
        from c_diffset.sar.radiometry import REFLECTANCE, UNITS

        if self.units is not None and self.units not in (*UNITS, REFLECTANCE):
            raise ValueError(f"units is {self.units!r}: expected one of {(*UNITS, REFLECTANCE)}")
        if self.resolution is not None and not 0 < self.resolution < math.inf:
            raise ValueError(f"resolution is {self.resolution}: expected a pixel size above 0, in units of `crs`")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}: expected at least 1")
        for name, text in (("crs", self.crs), ("bbox_crs", self.bbox_crs)):
            if text is not None:
                find_crs(text, name)
        self._check_part()

    def _check_part(self) -> None:
        if self.bbox is not None and self.window is not None:
            raise ValueError("bbox and window are both given: expected one of them")
        if self.bbox_crs is not None and self.bbox is None:
            raise ValueError(f"bbox_crs is {self.bbox_crs!r}, but there is no bbox")
        if self.bbox is not None:
            left, bottom, right, top = self.bbox if len(self.bbox) == 4 else [math.nan] * 4
            if not (-FARTHEST <= left < right <= FARTHEST and -FARTHEST <= bottom < top <= FARTHEST):
                raise ValueError(f"bbox is {self.bbox}: expected LEFT BOTTOM RIGHT TOP, left < right and bottom < top")
        if self.window is not None:
            column, row, width, height = self.window if len(self.window) == 4 else [-1] * 4
            if not (column >= 0 and row >= 0 and width >= 1 and height >= 1):
                raise ValueError(
                    f"window is {self.window}: expected COLUMN ROW WIDTH HEIGHT in pixels, from 0 and 1 on"
                )


@dataclass
class SceneOptions(ReadOptions):
    """How a scene is read and translated: what `ReadOptions` has, all by name, and the following.

    Attributes:
        num_inference_steps: Number of inference steps. The model's own number when None.
        seed: Random seed of the noise field, which depends on this and on the position on the ground alone.
        tile_size: Side in pixels of what the model sees at once. The size it was trained at, or 512, when None.
        overlap: Number of pixels that neighbouring tiles share at least, where they are blended. 64, or less in small
            tiles, when None.
        batch_size: Number of tiles that the model sees together.
        realism: From 0, the best estimate of every pixel, to 1, a plausible sample, of a model of one step that was
            trained for it. The model's own default when None.
    """

    num_inference_steps: int | None = None
    seed: int = 0
    tile_size: int | None = None
    overlap: int | None = None
    batch_size: int = 4
    realism: float | None = None
