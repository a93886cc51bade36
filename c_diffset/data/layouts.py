"""The published data sets' folder layouts: how each looks, how its pairs are found, converted and kept together."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import rasterio
from datasets import Image

from c_diffset.data.images import read_image
from c_diffset.data.pairs import list_splits, load_pairs
from c_diffset.data.sources import check_inside, find_images, list_images
from c_diffset.data.splits import describe_split

SEN12MS_WHITE = 3000  # reflectance x 10 000 that becomes 255
# https://github.com/schmitt-muc/SEN12MS, splits/SEN12MS_holdOutScenes.txt
SEN12MS_HOLD_OUT = {
    "ROIs1158_spring": (15, 17, 63, 97, 124, 146),
    "ROIs1868_summer": (15, 19, 43, 72, 79, 104, 131),
    "ROIs1970_fall": (30, 35, 39, 47, 61, 120, 141, 144),
    "ROIs2017_winter": (32, 64, 107, 135, 146),
}
SPACENET6_POLARISATIONS = ("HH", "HV", "VH", "VV")
SPACENET6_COLUMN = 1000.0  # metres of easting that stay together in one split

Contents = dict[str, tuple[bytes, str]]  # of one pair: "sar", "eo" and perhaps others to (file content, suffix)


@dataclass
class Item:
    """A pair as found: its images, what must stay together in one split, and the split where it is settled."""

    id: str
    images: dict[str, Path]
    group: str | None = None
    split: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """What a layout's reader found: pairs, how the unsettled are split, and what was left out and why."""

    items: list[Item]
    split_rule: str
    skipped: list[tuple[str, str]] = field(default_factory=list)


# --------------------------------------------------------------------------------------------------- conversion


def copy_files(item: Item) -> Contents:
    """Take the files as they are; pixels of a float SAR raster that are not finite are marked in the mask."""
    contents = {key: (path.read_bytes(), path.suffix.lower()) for key, path in item.images.items()}
    finite = np.isfinite(np.atleast_3d(read_image(item.images["sar"]))).all(axis=2)
    if not finite.all():
        mask = read_image(item.images["mask"]) if "mask" in item.images else finite
        contents["mask"] = _png(finite & (np.atleast_3d(mask) != 0).any(axis=2))
    return contents


def convert_sen12ms(item: Item) -> Contents:
    """SAR as it is (dB: VV, VH); EO to 8-bit RGB: B4, B3, B2, reflectance x 10 000 from 0..3000 to 0..255."""
    bands = read_image(item.images["eo"])
    if bands.ndim != 3 or bands.shape[2] != 13:
        raise ValueError(f"{item.images['eo']}: shape {bands.shape}; expected the 13 bands of Sentinel-2.")
    rgb = bands[..., [3, 2, 1]].astype(np.float32) / SEN12MS_WHITE
    return copy_files(item) | {"eo": _png(np.rint(255 * rgb.clip(0, 1)).astype(np.uint8))}


def convert_spacenet6(item: Item) -> Contents:
    """SAR with its polarisations as band names; where either image is zero in all bands there is no data."""
    path = item.images["sar"]
    sar, eo = read_image(path), read_image(item.images["eo"])
    if sar.ndim != 3 or sar.shape[2] != len(SPACENET6_POLARISATIONS):
        raise ValueError(f"{path}: shape {sar.shape}; expected 4 bands, {', '.join(SPACENET6_POLARISATIONS)}.")
    with _open_tiff(path) as raster, rasterio.MemoryFile() as memory:
        with memory.open(**raster.profile | {"compress": "deflate"}) as named:
            named.write(raster.read())
            named.descriptions = SPACENET6_POLARISATIONS
        contents = copy_files(item) | {"sar": (memory.read(), ".tif")}
    if sar.shape[:2] == eo.shape[:2]:  # read_pair refuses the pair otherwise
        valid = np.isfinite(sar).all(axis=2) & sar.any(axis=2) & eo.any(axis=2)
        if not valid.all():
            contents["mask"] = _png(valid)
    return contents


@contextmanager
def _open_tiff(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A GeoTIFF, without the files beside it that GDAL would open with it."""
    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
        rasterio.open(path.resolve(), driver="GTiff") as raster,
    ):
        yield raster


def _png(image: np.ndarray) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


# ------------------------------------------------------------------------------------------------------ layouts


def find_sen12(source: Path) -> Found:
    """SEN1-2 (Schmitt et al., 2018): 8-bit PNG, SAR VV.

    `ROIs1158_spring/s1_0/ROIs1158_spring_s1_0_p30.png` with `ROIs1158_spring/s2_0/ROIs1158_spring_s2_0_p30.png`.
    Patches of a scene overlap, so the split is by scene: season and number.
    """
    items, skipped = _find_roi_patches(source, "png", {})
    return Found(items, "by scene", skipped)


def find_sen12ms(source: Path) -> Found:
    """SEN12MS (Schmitt et al., 2019): GeoTIFF, SAR VV and VH in dB, EO all 13 bands of Sentinel-2.

    `ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif` with `.../s2_1/ROIs1158_spring_s2_1_p30.tif`; land cover (`lc`)
    is not used. Split by scene; the hold-out scenes that the authors publish are the test split.
    """
    items, skipped = _find_roi_patches(source, "tif", {"sar_units": "db", "sar_bands": ["VV", "VH"]})
    for item in items:
        season, number = item.group.rsplit("_", 1)
        if int(number) in SEN12MS_HOLD_OUT.get(season, ()):
            item.split = "test"
    published = any(item.split for item in items)
    return Found(items, "by scene" + ("; test: the published hold-out scenes" if published else ""), skipped)


def _find_roi_patches(source: Path, suffix: str, metadata: dict) -> tuple[list[Item], list[tuple[str, str]]]:
    pattern = re.compile(rf"(ROIs\d+_[a-z]+)_(s1|s2)_(\d+)_(p\d+)\.{suffix}")
    sides: dict[str, dict[str, Path]] = {"s1": {}, "s2": {}}
    skipped = []
    for path in sorted(path for path in find_images(source, source) if path.suffix == f".{suffix}"):
        name = pattern.fullmatch(path.name)
        if name:
            sides[name[2]][f"{name[1]}_{name[3]}_{name[4]}"] = path
        elif "_lc_" not in path.name:
            skipped.append((str(path), "not named like a patch of s1 or s2"))
    items, lonely = _match(sides["s1"], sides["s2"])
    for item in items:
        item.group = item.id.rsplit("_", 1)[0]
        item.metadata = {"region": item.group, "season": item.group.split("_")[1]} | metadata
    return items, skipped + lonely


def find_qxs_saropt(source: Path) -> Found:
    """QXS-SAROPT (Huang et al., 2021): 8-bit PNG, GaoFen-3 and Google Earth, 256 px.

    `sar_256_oc_0.2/N.png` with `opt_256_oc_0.2/N.png`. The names do not tell which of the three ports a patch shows, so
    the split is random.
    """
    items, skipped = _match(*(_images(source, f"{side}_256_oc_0.2") for side in ("sar", "opt")))
    return Found(items, describe_split("random"), skipped)


def find_sar2opt(source: Path) -> Found:
    """SAR2Opt (Zhao et al., 2022): 8-bit, TerraSAR-X and Google Earth, 600 px.

    `trainA/` and `testA/` hold SAR images, `trainB/` and `testB/` EO images of the same names. The test split is the
    published one; validation is drawn from train at random.
    """
    found = Found([], f"test as published; validation from train, {describe_split('random')}")
    for split in ("train", "test"):
        items, skipped = _match(*(_images(source, split + side) for side in "AB"))
        for item in items:
            item.split = "test" if split == "test" else None
        found.items += items
        found.skipped += skipped
    return found


def find_spacenet6(source: Path) -> Found:
    """SpaceNet 6 (Shermeyer et al., 2020), training part: GeoTIFF, 900 px at 0.5 m; Capella and WorldView-2, Rotterdam.

    `SAR-Intensity/SN6_Train_AOI_11_Rotterdam_SAR-Intensity_START_END_tile_N.tif` (float32, log-scaled; HH, HV, VH, VV;
    0 outside the strip) with `PS-RGB/SN6_Train_AOI_11_Rotterdam_PS-RGB_START_END_tile_N.tif` (8-bit). START and END
    name the strip. Strips overlap, so a split by strip would show the same ground in train and test: the split is by
    columns of 1 km of easting, and only tiles at a border may overlap. Strip and look direction (from
    `SummaryData/SAR_orientations.txt`, where present) go into the metadata.
    """
    sides: dict[str, dict[str, Path]] = {"SAR-Intensity": {}, "PS-RGB": {}}
    skipped = []
    for product, files in sides.items():
        for stem, path in _images(source, product).items():
            name = re.fullmatch(rf"SN6_\w+_{product}_(\d+_\d+_tile_\d+)", stem)
            if name:
                files[name[1]] = path
            else:
                skipped.append((str(path), "not named like a tile"))
    candidates, lonely = _match(*sides.values())
    items, orientations = [], _spacenet6_orientations(source)
    for item in candidates:
        try:
            with _open_tiff(item.images["sar"]) as raster:
                bounds, crs = raster.bounds, raster.crs
        except OSError as error:
            skipped.append((item.id, str(error)))
            continue
        strip = item.id.split("_tile_")[0]
        item.group = f"easting {int((bounds.left + bounds.right) / 2 // SPACENET6_COLUMN)} km"
        item.metadata = {"region": item.group, "strip": strip, "orientation": orientations.get(strip)}
        item.metadata |= {"crs": crs and crs.to_string(), "bounds": list(bounds), "sar_bands": SPACENET6_POLARISATIONS}
        items.append(item)
    return Found(items, "by columns of 1 km of easting", skipped + lonely)


def _spacenet6_orientations(source: Path) -> dict[str, int]:
    """Strip to look direction: lines of `START_END 0` or `1`."""
    found = {}
    for table in source.rglob("SAR_orientations.txt"):
        check_inside(table, source)
        found |= dict(re.findall(r"^(\d+_\d+)\s+([01])\s*$", table.read_text(encoding="utf-8"), re.MULTILINE))
    return {strip: int(side) for strip, side in found.items()}


def find_pairs(source: Path, **folders: str | None) -> Found:
    """Two folders or a CSV, as `load_pairs` reads them. Given splits are kept; other data are divided."""
    names = list_splits(source, **folders)
    items, columns = [], set()
    for name in names:
        rows = load_pairs(source, name, **folders)
        images = [key for key, kind in rows.features.items() if isinstance(kind, Image)]
        for row in rows:
            if row["sar"]["bytes"] is not None:
                raise ValueError(f"{source} holds its images inside, which `load_pairs` reads as they are.")
            paths = {key: Path(row[key]["path"]) for key in images if row[key]}
            metadata = {key: value for key, value in row.items() if key not in (*images, "id", "split")}
            items.append(Item(row["id"], paths, split=name, metadata=metadata))
            columns |= metadata.keys()
    if names != ["train"]:
        return Found(items, "as given")
    by = next((column for column in ("region", "scene") if column in columns), "random")
    for item in items:
        item.split, item.group = None, None if by == "random" else str(item.metadata[by])
    return Found(items, describe_split(by))


def _images(source: Path, name: str) -> dict[str, Path]:
    """The images in the one folder of that name: `source`, or below it."""
    folders = [path for path in (source, *sorted(source.rglob(name))) if path.name == name and path.is_dir()]
    if len(folders) != 1:
        raise ValueError(f"{source}: expected one folder {name}, found {len(folders)}.")
    return list_images(folders[0], source)


def _match(sar: dict[str, Path], eo: dict[str, Path]) -> tuple[list[Item], list[tuple[str, str]]]:
    """The pairs of files that have the same key, and the files without a partner."""
    items = [Item(key.replace("/", "_"), {"sar": sar[key], "eo": eo[key]}) for key in sar if key in eo]
    lonely = [(str(path), "no EO partner") for key, path in sar.items() if key not in eo]
    return items, lonely + [(str(path), "no SAR partner") for key, path in eo.items() if key not in sar]


LAYOUTS: dict[str, tuple[Callable[..., Found], Callable[[Item], Contents]]] = {
    "sen1-2": (find_sen12, copy_files),
    "sen12ms": (find_sen12ms, convert_sen12ms),
    "qxs-saropt": (find_qxs_saropt, copy_files),
    "sar2opt": (find_sar2opt, copy_files),
    "spacenet6": (find_spacenet6, convert_spacenet6),
    "folders": (find_pairs, copy_files),
    "csv": (find_pairs, copy_files),
}
