"""Published data sets of Sentinel-1 and Sentinel-2: SEN1-2, SEN12MS, BigEarthNet and Major TOM.

Reflectances stay as they are stored, in the bands B04, B03, B02 (red, green, blue), 16 bits; `eo_units` and `eo_range`
in the metadata say what they are. Sentinel-2 stores 0 where it has no data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rasterio.enums import Resampling
from rasterio.warp import reproject

from c_diffset.data.images import read_image, read_image_and_mask
from c_diffset.data.inside import check_inside, find_images
from c_diffset.data.items import Contents, Found, Item, copy_files, mask_out, match, place_of, tiff

SAR_BANDS, EO_BANDS = ("VV", "VH"), ("B04", "B03", "B02")
SAR_DB: dict[str, Any] = {"sar_units": "db", "sar_bands": SAR_BANDS}
REFLECTANCE: dict[str, Any] = {"eo_units": "reflectance", "eo_range": [0, 3000]}  # x 10 000, without an offset
# https://github.com/schmitt-muc/SEN12MS, splits/SEN12MS_holdOutScenes.txt
SEN12MS_HOLD_OUT = {
    "ROIs1158_spring": (15, 17, 63, 97, 124, 146),
    "ROIs1868_summer": (15, 19, 43, 72, 79, 104, 131),
    "ROIs1970_fall": (30, 35, 39, 47, 61, 120, 141, 144),
    "ROIs2017_winter": (32, 64, 107, 135, 146),
}
PATCH = re.compile(r"(?P<product>S2[A-D]_MSIL2A_\w{1,80})_\d{1,3}_\d{1,3}")
SAR_PATCH = re.compile(r"(?P<product>S1[A-D]_IW_GRDH_1SDV_\d{8}T\d{6})_\w{5}_\d{1,3}_\d{1,3}")
MAJOR_TOM = {"Core-S1RTC": "vv.tif", "Core-S2L2A": "B04.tif"}
CELL, TIME = re.compile(r"\d{1,4}[UD]_\d{1,4}[LR]"), re.compile(r"(?<!\d)\d{8}T\d{6}(?!\d)")
BASELINE = re.compile(r"_N(\d{4})_")


# ---------------------------------------------------------------------------------------------- SEN1-2 and SEN12MS


def find_sen12(source: Path) -> Found:
    """SEN1-2 (Schmitt et al., 2018): 8-bit PNG, SAR VV.

    `ROIs1158_spring/s1_0/ROIs1158_spring_s1_0_p30.png` with `ROIs1158_spring/s2_0/ROIs1158_spring_s2_0_p30.png`.
    Patches of a scene overlap, so the split is by scene: season and number.
    """
    items, skipped = _find_roi_patches(source, "png", {})
    return Found(items, "by scene", skipped)


def find_sen12ms(source: Path) -> Found:
    """SEN12MS (Schmitt et al., 2019): GeoTIFF, SAR VV and VH in dB, EO all 13 bands of Sentinel-2, level 1C.

    `ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif` with `.../s2_1/ROIs1158_spring_s2_1_p30.tif`; land cover (`lc`)
    is not used. Split by scene; the hold-out scenes that the authors publish are the test split.
    """
    items, skipped = _find_roi_patches(source, "tif", SAR_DB | REFLECTANCE)
    for item in items:
        season, number = str(item.group).rsplit("_", 1)
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
    items, lonely = match(sides["s1"], sides["s2"])
    for item in items:
        item.group = item.id.rsplit("_", 1)[0]
        item.metadata = {"region": item.group, "season": item.group.split("_")[1]} | metadata
    return items, skipped + lonely


def convert_sen12ms(item: Item) -> Contents:
    """SAR as it is; of EO the bands B4, B3, B2."""
    path = item.images["eo"]
    bands = read_image(path)
    if bands.ndim != 3 or bands.shape[2] != 13 or bands.dtype != np.uint16:
        found = f"shape {bands.shape}, {bands.dtype}"
        raise ValueError(f"{path}: {found}; expected the 13 bands of Sentinel-2, 16-bit integers.")
    return _with_reflectance(copy_files(item), bands[..., [3, 2, 1]], place_of(path))


def _with_reflectance(contents: Contents, rgb: np.ndarray, place: dict[str, Any]) -> Contents:
    """The contents with an EO image H x W x 3, masked where it has no data."""
    contents = contents | {"eo": tiff(rgb, EO_BANDS, place)}
    same_size = read_image(contents["sar"][0]).shape[:2] == rgb.shape[:2]  # read_pair refuses the pair otherwise
    return mask_out(contents, rgb.any(axis=2)) if same_size else contents


# --------------------------------------------------------------------------------------------------- BigEarthNet


def find_bigearthnet(source: Path) -> Found:
    """BigEarthNet v2.0, also called reBEN (Clasen et al., 2024): one GeoTIFF a band, 120 px; SAR in dB, level 2A.

    `BigEarthNet-S1/SCENE/NAME/NAME_VV.tif` (and `_VH`) with `BigEarthNet-S2/TILE/PATCH/PATCH_B04.tif` (and `_B03`,
    `_B02`); `metadata.parquet` says which NAME belongs to which PATCH, and has the published splits, which keep ground
    apart. It leaves out what shows snow, clouds or shadows; so do we.
    """
    roots = {name: _one(source, name) for name in ("BigEarthNet-S1", "BigEarthNet-S2", "metadata.parquet")}
    columns = ["patch_id", "s1_name", "split", "country"]
    try:
        rows = pq.read_table(roots["metadata.parquet"], columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{roots['metadata.parquet']}: expected the columns {', '.join(columns)}: {reason}") from None
    found, absent = Found([], "as published, by region"), 0
    for row in rows:
        name, sar_name = PATCH.fullmatch(str(row["patch_id"])), SAR_PATCH.fullmatch(str(row["s1_name"]))
        if not name or not sar_name or row["split"] not in ("train", "validation", "test"):
            found.skipped.append((f"{row['patch_id']!r:.200}", "not named like a patch of BigEarthNet, or of no split"))
            continue
        sar = roots["BigEarthNet-S1"] / sar_name["product"] / sar_name[0] / sar_name[0]
        eo = roots["BigEarthNet-S2"] / name["product"] / name[0] / name[0]
        files = [*_files(sar, SAR_BANDS), *_files(eo, EO_BANDS)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            absent += len(missing) == len(files)
            found.skipped += [(eo.name, f"{missing[0].name} is missing")] if len(missing) < len(files) else []
            continue
        for file in files:
            check_inside(file, source)
        products = {"sar_product": sar_name["product"], "eo_product": name["product"]}
        metadata = {"region": row["country"]} | products | SAR_DB | REFLECTANCE
        found.items.append(Item(eo.name, {"sar": files[0], "eo": files[2]}, None, row["split"], metadata))
    if absent:
        found.skipped.append(("metadata.parquet", f"{absent} of its {len(rows)} pairs are not in {source}"))
    return found


def convert_bigearthnet(item: Item) -> Contents:
    """The bands of either sensor in one GeoTIFF."""
    sar, eo = (item.images[key] for key in ("sar", "eo"))
    image, measured = _read_bands(_files(sar.with_name(sar.name.removesuffix("_VV.tif")), SAR_BANDS))
    rgb, valid = _read_bands(_files(eo.with_name(eo.name.removesuffix("_B04.tif")), EO_BANDS))
    contents = mask_out({"sar": tiff(image, SAR_BANDS, place_of(sar))}, measured & np.isfinite(image).all(axis=2))
    return _with_reflectance(contents, np.where(valid[..., None], rgb, 0), place_of(eo))


def _one(source: Path, name: str) -> Path:
    """The one file or folder of that name: `source`, in it, or in one of its folders."""
    found = [source] if source.name == name else [*source.glob(name), *source.glob(f"*/{name}")]
    if len(found) != 1:
        raise ValueError(f"{source}: expected one {name}, found {len(found)}.")
    check_inside(found[0], source)
    return found[0]


def _files(stem: Path, bands: Sequence[str]) -> list[Path]:
    return [stem.with_name(f"{stem.name}_{band}.tif") for band in bands]


# ----------------------------------------------------------------------------------------------------- Major TOM


def find_major_tom(source: Path) -> Found:
    """Major TOM Core (Francis and Czerkawski, 2024): S1RTC with S2L2A, one GeoTIFF a band, 1 068 px; linear power.

    `Core-S1RTC/ROW/CELL/PRODUCT/vv.tif` (and `vh`) with `Core-S2L2A/ROW/CELL/PRODUCT/B04.tif` (and `B03`, `B02`), as
    `filter_download` of the authors' package unpacks them from the published Parquet files, with these names of the
    sources. Every S2 product is paired with that S1 product of its grid cell that is nearest in time. Split by rows of
    the grid, 10 km from south to north.
    """
    sides = {name: _products(_one(source, name), first) for name, first in MAJOR_TOM.items()}
    found = Found([], "by rows of the grid, 10 km wide")
    sar_of: dict[str, list[Path]] = {}
    for sar in sides["Core-S1RTC"]:
        sar_of.setdefault(sar.parent.parent.name, []).append(sar)
    for eo in sides["Core-S2L2A"]:
        cell, product = eo.parent.parent.name, eo.parent.name
        if cell not in sar_of or not TIME.search(product):
            found.skipped.append((str(eo.parent), "no S1RTC product of this grid cell, or no time in its name"))
            continue
        apart, sar = min((abs(_time(path) - _time(eo)), path) for path in sar_of[cell])
        files = [sar, sar.with_name("vh.tif"), eo, *(eo.with_name(f"{band}.tif") for band in EO_BANDS[1:])]
        for file in files:
            check_inside(file, source)
        metadata = {"region": cell.split("_")[0], "scene": cell, "sar_product": sar.parent.name, "eo_product": product}
        metadata |= {"days_apart": round(apart.total_seconds() / 86400, 2), "sar_units": "power"}
        metadata |= {"sar_bands": SAR_BANDS} | REFLECTANCE
        found.items.append(Item(f"{cell}_{product}", {"sar": sar, "eo": eo}, metadata["region"], None, metadata))
    return found


def _products(root: Path, first: str) -> list[Path]:
    return sorted(path for path in root.glob(f"*/*/*/{first}") if CELL.fullmatch(path.parent.parent.name))


def _time(file: Path) -> datetime:
    """The time in the name of the product that a file belongs to; one without is as far away as can be."""
    found = TIME.search(file.parent.name)
    try:
        return datetime.strptime(found[0], "%Y%m%dT%H%M%S") if found else datetime.min
    except ValueError:  # such as a month 13
        return datetime.min


def convert_major_tom(item: Item) -> Contents:
    """SAR on the pixel grid of EO, bilinear in linear power; EO without the offset of processing baseline 04.00."""
    sar, eo = (item.images[key] for key in ("sar", "eo"))
    rgb, valid = _read_bands([eo.with_name(f"{band}.tif") for band in EO_BANDS])
    power, measured = _read_bands([sar, sar.with_name("vh.tif")])
    power = np.where(measured[..., None], power.astype(np.float32), np.nan)
    place = place_of(eo)
    if place != (own := place_of(sar)) or power.shape[:2] != rgb.shape[:2]:
        if not own["crs"] or not place["crs"]:
            raise ValueError(f"{sar}: it has another pixel grid than its EO image, and no coordinate system to go by.")
        power = _warped(power, own, rgb.shape[:2], place)
    baseline = BASELINE.search(item.metadata["eo_product"])
    offset = 1000 if baseline and 400 <= int(baseline[1]) < 9999 else 0
    rgb = np.where(valid[..., None], rgb.astype(np.float32) - offset, 0).clip(0, 65535).astype(np.uint16)
    contents = mask_out({"sar": tiff(power, SAR_BANDS, place)}, np.isfinite(power).all(axis=2))
    return _with_reflectance(contents, rgb, place)


def _read_bands(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Files of one band each as one image H x W x bands, and where all of them declare data."""
    read = [read_image_and_mask(file, str(file)) for file in files]
    shapes = [band.shape for band, _ in read]
    if any(shape != shapes[0] or len(shape) != 2 for shape in shapes):
        raise ValueError(f"{files[0]}: shapes {shapes}; expected bands of one size.")
    masks = [mask for _, mask in read if mask is not None]
    return np.stack([band for band, _ in read], axis=-1), np.logical_and.reduce([np.ones(shapes[0], bool), *masks])


def _warped(image: np.ndarray, own: dict[str, Any], size: tuple[int, int], place: dict[str, Any]) -> np.ndarray:
    """An image H x W x bands brought to another pixel grid; NaN where it has nothing."""
    target = np.full((image.shape[2], *size), np.nan, np.float32)
    grids = {"src_crs": own["crs"], "src_transform": own["transform"], "dst_crs": place["crs"]}
    grids |= {"dst_transform": place["transform"], "src_nodata": np.nan, "dst_nodata": np.nan}
    reproject(np.moveaxis(image, -1, 0).copy(), target, **grids, resampling=Resampling.bilinear)
    return np.moveaxis(target, 0, -1)
