"""A pair as a layout's reader finds it, and what the readers of all layouts share."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from c_diffset.data.images import read_image
from c_diffset.data.inside import list_images
from c_diffset.sar.gdal import gdal, open_raster

Contents = dict[str, tuple[bytes, str]]  # of one pair: "sar", "eo" and perhaps others to (file content, suffix)


@dataclass
class Item:
    """A pair as found: its images, what must stay together in one split, and the split where it is settled.

    `part` says where in the files of its images the pair lies, in layouts that have many in a file.
    """

    id: str
    images: dict[str, Path]
    group: str | None = None
    split: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    part: Any = None


@dataclass
class Found:
    """What a layout's reader found: pairs, how the unsettled are split, and what was left out and why."""

    items: list[Item]
    split_rule: str
    skipped: list[tuple[str, str]] = field(default_factory=list)


def copy_files(item: Item) -> Contents:
    """Take the files as they are; pixels of a float SAR raster that are not finite are marked in the mask."""
    contents = {key: (path.read_bytes(), path.suffix.lower()) for key, path in item.images.items()}
    finite = np.isfinite(np.atleast_3d(read_image(contents["sar"][0], str(item.images["sar"])))).all(axis=2)
    if not finite.all():
        mask = read_image(contents["mask"][0], str(item.images["mask"])) if "mask" in item.images else finite
        contents["mask"] = png(finite & (np.atleast_3d(mask) != 0).any(axis=2))
    return contents


def mask_out(contents: Contents, valid: np.ndarray) -> Contents:
    """The contents with a mask that also rules out what is not `valid`, bool H x W."""
    if "mask" in contents:
        valid = valid & (read_image(contents["mask"][0]) != 0)
    return contents if valid.all() else contents | {"mask": png(valid)}


def tiff(image: np.ndarray, names: Sequence[str], place: dict[str, Any]) -> tuple[bytes, str]:
    """H x W x bands as a GeoTIFF with these names of bands; `place` has its `crs` and `transform`."""
    height, width, count = image.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": image.dtype}
    with warnings.catch_warnings(), rasterio.MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(**profile | place, compress="deflate") as raster:
            raster.write(np.moveaxis(image, -1, 0))
            raster.descriptions = tuple(names)
        return memory.read(), ".tif"


def place_of(path: Path) -> dict[str, Any]:
    """The `crs` and the `transform` of a GeoTIFF."""
    with gdal(), open_raster(path) as raster:
        return {"crs": raster.crs, "transform": raster.transform}


def png(image: np.ndarray) -> tuple[bytes, str]:
    """An image of 8 bits, or bool, as a PNG."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def images_in(source: Path, name: str) -> dict[str, Path]:
    """The images in the one folder of that name: `source`, or below it."""
    folders = [path for path in (source, *sorted(source.rglob(name))) if path.name == name and path.is_dir()]
    if len(folders) != 1:
        raise ValueError(f"{source}: expected one folder {name}, found {len(folders)}.")
    return list_images(folders[0], source)


def match(sar: dict[str, Path], eo: dict[str, Path]) -> tuple[list[Item], list[tuple[str, str]]]:
    """The pairs of files that have the same key, and the files without a partner."""
    items = [Item(key.replace("/", "_"), {"sar": sar[key], "eo": eo[key]}) for key in sar if key in eo]
    lonely = [(str(path), "no EO partner") for key, path in sar.items() if key not in eo]
    return items, lonely + [(str(path), "no SAR partner") for key, path in eo.items() if key not in sar]
