"""How scenes are read and translated; free of libraries that take seconds to import, since commands show it as help."""

import math
from dataclasses import dataclass

MAX_PIXELS = 2 * 10**9  # about five Sentinel-1 scenes


@dataclass(kw_only=True)
class ReadOptions:
    """How a scene is read.

    Attributes:
        units: Units of the pixels: "display", "db", "power" or "amplitude". They are detected where that is certain.
        bands: Polarisations, or numbers from 1, of the scene's bands in the model's order. They are chosen by the names
            that the model knows when none are given.
        despeckle: Whether speckle is filtered (refined Lee) before the model sees the scene.
        crs: Coordinate system that the scene is warped to first, such as "EPSG:32631". The scene's own when None.
        resolution: Pixel size after warping, in units of `crs`. That of the scene when None.
        max_pixels: Number of pixels above which a scene is refused, before and after warping.
    """

    units: str | None = None
    bands: list[str] | None = None
    despeckle: bool = False
    crs: str | None = None
    resolution: float | None = None
    max_pixels: int = MAX_PIXELS

    def check(self) -> None:
        """Refuse, before any file is opened, what no scene can be read with.

        Raises:
            ValueError: with the name and the value of the option.
        """
        from c_diffset.sar.gdal import find_crs
        from c_diffset.sar.radiometry import UNITS

        if self.units is not None and self.units not in UNITS:
            raise ValueError(f"units is {self.units!r}: expected one of {UNITS}")
        if self.resolution is not None and not 0 < self.resolution < math.inf:
            raise ValueError(f"resolution is {self.resolution}: expected a pixel size above 0, in units of `crs`")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}: expected at least 1")
        if self.crs is not None:
            find_crs(self.crs)


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
    """

    num_inference_steps: int | None = None
    seed: int = 0
    tile_size: int | None = None
    overlap: int | None = None
    batch_size: int = 4
