"""The published data sets' folder layouts: how each looks, how its pairs are found, converted and kept together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import rasterio

from c_diffset.data.images import read_image
from c_diffset.data.inside import check_inside
from c_diffset.data.items import Contents, Found, Item, copy_files, images_in, mask_out, match
from c_diffset.data.own import OWN, find_pairs
from c_diffset.data.sentinel import (
    convert_bigearthnet,
    convert_major_tom,
    convert_sen12ms,
    find_bigearthnet,
    find_major_tom,
    find_sen12,
    find_sen12ms,
)
from c_diffset.data.splits import describe_split
from c_diffset.data.zarr_zip import convert_zarr, find_ssl4eo, find_terramesh
from c_diffset.sar.gdal import gdal, open_raster

SPACENET6_POLARISATIONS = ("HH", "HV", "VH", "VV")
SPACENET6_COLUMN = 1000.0  # metres of easting that stay together in one split

# --------------------------------------------------------------------------------------------------- conversion


def convert_spacenet6(item: Item) -> Contents:
    """SAR with its polarisations as band names; where either image is zero in all bands there is no data."""
    path = item.images["sar"]
    sar, eo = read_image(path), read_image(item.images["eo"])
    if sar.ndim != 3 or sar.shape[2] != len(SPACENET6_POLARISATIONS):
        raise ValueError(f"{path}: shape {sar.shape}; expected 4 bands, {', '.join(SPACENET6_POLARISATIONS)}.")
    with gdal(), open_raster(path) as raster, rasterio.MemoryFile() as memory:
        with memory.open(**raster.profile | {"compress": "deflate"}) as named:
            named.write(raster.read())
            named.descriptions = SPACENET6_POLARISATIONS
        contents = copy_files(item) | {"sar": (memory.read(), ".tif")}
    if sar.shape[:2] == eo.shape[:2]:  # read_pair refuses the pair otherwise
        contents = mask_out(contents, sar.any(axis=2) & eo.any(axis=2))
    return contents


# ------------------------------------------------------------------------------------------------------ layouts


def find_qxs_saropt(source: Path) -> Found:
    """QXS-SAROPT (Huang et al., 2021): 8-bit PNG, GaoFen-3 and Google Earth, 256 px.

    `sar_256_oc_0.2/N.png` with `opt_256_oc_0.2/N.png`. The names do not tell which of the three ports a patch shows, so
    the split is random.
    """
    items, skipped = match(*(images_in(source, f"{side}_256_oc_0.2") for side in ("sar", "opt")))
    return Found(items, describe_split("random"), skipped)


def find_sar2opt(source: Path) -> Found:
    """SAR2Opt (Zhao et al., 2022): 8-bit, TerraSAR-X and Google Earth, 600 px.

    `trainA/` and `testA/` hold SAR images, `trainB/` and `testB/` EO images of the same names. The test split is the
    published one; validation is drawn from train at random.
    """
    found = Found([], f"test as published; validation from train, {describe_split('random')}")
    for split in ("train", "test"):
        items, skipped = match(*(images_in(source, split + side) for side in "AB"))
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
        for stem, path in images_in(source, product).items():
            name = re.fullmatch(rf"SN6_\w+_{product}_(\d+_\d+_tile_\d+)", stem)
            if name:
                files[name[1]] = path
            else:
                skipped.append((str(path), "not named like a tile"))
    candidates, lonely = match(*sides.values())
    items, orientations = [], _spacenet6_orientations(source)
    for item in candidates:
        try:
            with gdal(), open_raster(item.images["sar"]) as raster:
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


LAYOUTS: dict[str, tuple[Callable[..., Found], Callable[[Item], Contents]]] = {
    "sen1-2": (find_sen12, copy_files),
    "sen12ms": (find_sen12ms, convert_sen12ms),
    "bigearthnet": (find_bigearthnet, convert_bigearthnet),
    "major-tom": (find_major_tom, convert_major_tom),
    "terramesh": (find_terramesh, convert_zarr),
    "ssl4eo-s12": (find_ssl4eo, convert_zarr),
    "qxs-saropt": (find_qxs_saropt, copy_files),
    "sar2opt": (find_sar2opt, copy_files),
    "spacenet6": (find_spacenet6, convert_spacenet6),
    **{form: (find_pairs, copy_files) for form in OWN},
}
