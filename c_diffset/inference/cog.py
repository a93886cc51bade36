"""Cloud Optimized GeoTIFFs, written window by window."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio.shutil
from rasterio.enums import Resampling
from rasterio.windows import Window

from c_diffset.inference.tiles import Box
from c_diffset.sar.gdal import gdal, open_raster

BLOCK = 512


class CogWriter:
    """A COG in the making; after its context it is complete in `folder`, and `publish` gives it its name.

    Blocks of 512, deflate, overviews. Images are uint8 RGB with an internal mask; maps are float32, NaN where invalid.

    Args:
        target: the file.
        folder: for what is not finished, on the same disk.
        size: height and width.
        place: `crs`, `transform` or `gcps`, as `SarRaster.place` gives them.
        tags: of the file.
        bands: names of a map's bands; none for an RGB image.
    """

    def __init__(self, target: Path, folder: Path, size: tuple, place: dict, tags: dict, *bands: str):
        self.target, self.bands = target, bands
        self.plain, self.partial = folder / f"{target.name}.plain", folder / f"{target.name}.partial"
        kind = {"count": len(bands), "dtype": "float32", "nodata": np.nan} if bands else {"count": 3, "dtype": "uint8"}
        layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "BIGTIFF": "IF_SAFER", "SPARSE_OK": True}
        colour = {} if bands else {"photometric": "RGB"}
        with gdal():
            self.raster = open_raster(
                self.plain, "w", height=size[0], width=size[1], **kind, **layout, **colour, **place
            )
            self.raster.update_tags(**tags)
            self.raster.descriptions = bands or ("red", "green", "blue")

    def write(self, box: Box, values: np.ndarray, valid: np.ndarray) -> None:
        """A window: uint8 H x W x 3, or float32 bands x H x W; windows without a valid pixel leave a hole in the file.

        Raises:
            OSError: the disk is full.
        """
        window = Window(box.left, box.top, box.size[1], box.size[0])
        with self._writing():
            if valid.any():
                self.raster.write(values if self.bands else np.moveaxis(values, -1, 0), window=window)
            if not self.bands:
                self.raster.write_mask(valid, window=window)

    def __enter__(self) -> "CogWriter":
        return self

    def __exit__(self, error, *_) -> None:
        with self._writing():
            if error is None:
                factors = [2**level for level in range(1, 32) if max(self.raster.shape) > BLOCK * 2 ** (level - 1)]
                self.raster.build_overviews(factors, Resampling.average)  # this is twice as fast as the COG driver
            self.raster.close()
            if error is None:
                self._finish()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with gdal():
                yield
        except OSError as error:
            raise OSError(f"{self.target} cannot be written ({error}): is the disk full?") from error

    def _finish(self) -> None:
        # compression of level 1: files of level 6 are smaller by less than 1 % on such images, and take a third longer
        options = {"compress": "DEFLATE", "level": 1, "blocksize": BLOCK, "predictor": "YES", "num_threads": "ALL_CPUS"}
        options |= {"bigtiff": "IF_SAFER", "sparse_ok": True}
        rasterio.shutil.copy(self.plain, self.partial, driver="COG", **options)
        self.plain.unlink()
        with open(self.partial, "rb") as file:
            os.fsync(file.fileno())

    def publish(self) -> None:
        """Move the finished file to its name."""
        os.replace(self.partial, self.target)
