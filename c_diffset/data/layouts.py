"""The published data sets' folder layouts, turned into the standard form of `load_pairs`.

`prepare` copies files whose format is right already, converts what is not, marks nodata in mask files, checks every
pair with `read_pair`, and writes `OUT/{train,validation,test}/metadata.jsonl` beside `sar/`, `eo/` and `mask/`, and
`OUT/summary.json`. What each layout looks like, and how it is split, stands at its function below.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import rasterio
from tqdm.auto import tqdm

from c_diffset.data.images import read_image
from c_diffset.data.pairs import list_splits, load_pairs, read_pair
from c_diffset.data.sources import list_images
from c_diffset.data.splits import assign_splits, describe_split
from c_diffset.files import check_id

SPLITS = ("train", "validation", "test")

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

Contents = dict[str, tuple[bytes, str]]  # of one pair: "sar", "eo" and perhaps "mask" to (file content, suffix)


@dataclass
class Item:
    """A pair as found: its files, what must stay together in one split, and the split where it is settled."""

    id: str
    sar: Path
    eo: Path
    mask: Path | None = None
    group: str | None = None
    split: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """What a layout's reader found: pairs, how the unsettled are split, and what was left out and why."""

    items: list[Item]
    split_rule: str
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Summary:
    """What `prepare` wrote; `skipped` lists (file or pair, reason)."""

    layout: str
    out: str
    split_rule: str
    splits: dict[str, int]
    sizes: dict[str, int]
    masks: int
    skipped: list[tuple[str, str]]

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        sizes = ", ".join(f"{size} px ({count})" for size, count in self.sizes.items())
        lines = [f"{self.out}: {sum(self.splits.values())} pairs ({counts})", f"split: {self.split_rule}"]
        lines += [f"sizes: {sizes}", f"pairs with invalid pixels (mask files): {self.masks}"]
        lines += [f"left out: {len(self.skipped)}"] + [f"  {name}: {reason}" for name, reason in self.skipped[:20]]
        return "\n".join(lines + ["  ... (all in summary.json)"] * (len(self.skipped) > 20))


def prepare(
    layout: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    sar_dir: str | None = None,
    eo_dir: str | None = None,
    mask_dir: str | None = None,
    progress: bool = True,
) -> Summary:
    """Write a data set of a known layout in the standard form.

    The result is written aside, as `OUT.partial`, and renamed when complete. Pairs that `read_pair` refuses are left
    out and listed in the summary.

    Args:
        layout: one of `LAYOUTS`.
        source: the data set's folder (a CSV file for `csv`).
        out: a folder that is absent or empty.
        fractions: shares of train, validation and test, as far as the layout does not settle them; 0 for no such split.
        sar_dir, eo_dir, mask_dir: for `folders`, as in `load_pairs`.
        progress: show a progress bar.

    Raises:
        ValueError: unknown layout, no pairs found, or none fit to use.
        OSError: `out` is in use.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}.")
    folders = {"sar_dir": sar_dir, "eo_dir": eo_dir, "mask_dir": mask_dir}
    source, out = Path(source), Path(out)
    aside = out.with_name(out.name + ".partial")
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder: name another one.")
    if aside.exists():
        raise FileExistsError(f"{aside} exists: another run is writing it, or was interrupted; then remove it.")
    find, convert = LAYOUTS[layout]
    found = find(source, **folders) if layout == "folders" else find(source)
    if not found.items:
        raise ValueError(f"{source} holds no pairs of layout {layout!r}; left out: {found.skipped[:3]}.")
    _settle_splits(found.items, dict(zip(SPLITS, fractions, strict=True)), seed)
    try:
        summary = _write(layout, found, convert, aside, out, progress)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return summary


def _settle_splits(items: list[Item], fractions: dict[str, float], seed: int) -> None:
    """Give every item without a split one of those that the layout has not settled; groups stay together."""
    settled = {item.split for item in items} - {"train"}
    shares = {name: share for name, share in fractions.items() if share > 0 and name not in settled}
    rest = [item for item in items if item.split is None]
    chosen = assign_splits([item.group or item.id for item in rest], shares, seed) if rest else []
    for item, split in zip(rest, chosen, strict=True):
        item.split = split


def _write(layout: str, found: Found, convert: Callable, aside: Path, out: Path, progress: bool) -> Summary:
    summary = Summary(layout, str(out), found.split_rule, {}, {}, 0, list(found.skipped))
    rows: dict[str, list[dict]] = {}
    sizes: Counter[str] = Counter()
    repeated = [key for key, count in Counter((item.split, item.id) for item in found.items).items() if count > 1]
    if repeated:
        raise ValueError(f"id {repeated[0][1]!r} occurs more than once in split {repeated[0][0]}.")
    for item in tqdm(found.items, desc=f"prepare {layout}", unit="pair", disable=not progress):
        try:
            contents = convert(item)
            files = {key: {"bytes": content, "path": str(getattr(item, key))} for key, (content, _) in contents.items()}
            pair = read_pair(files | {"id": check_id(item.id, str(item.sar))})
        except (ValueError, OSError) as error:
            summary.skipped.append((item.id, str(error)))
            continue
        row = _write_pair(item, contents, aside / item.split)
        rows.setdefault(item.split, []).append(row)
        sizes["{} x {}".format(*pair.eo.shape[:2])] += 1
        summary.masks += "mask" in contents
    if not rows:
        raise ValueError(f"no pair is fit to use; the first: {summary.skipped[0]}.")
    for split, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (aside / split / "metadata.jsonl").write_text(text, encoding="utf-8")
    summary.splits = {name: len(lines) for name, lines in rows.items()}
    summary.sizes = dict(sizes)
    (aside / "summary.json").write_text(json.dumps(asdict(summary), indent=1, ensure_ascii=False), encoding="utf-8")
    return summary


def _write_pair(item: Item, contents: Contents, folder: Path) -> dict:
    row: dict[str, Any] = {}
    for key, (content, suffix) in contents.items():
        name = f"{key}/{item.id}{suffix}"
        (folder / key).mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        row[f"{key}_file_name"] = name
    return row | {"id": item.id} | item.metadata


# --------------------------------------------------------------------------------------------------- conversion


def copy_files(item: Item) -> Contents:
    """The files as they are; pixels of a float SAR raster that are not finite go into the mask."""
    contents = {"sar": _file(item.sar), "eo": _file(item.eo)}
    contents |= {"mask": _file(item.mask)} if item.mask else {}
    finite = np.isfinite(np.atleast_3d(read_image(item.sar))).all(axis=2)
    if not finite.all():
        contents["mask"] = _png(finite & (read_image(item.mask) != 0 if item.mask else True))
    return contents


def convert_sen12ms(item: Item) -> Contents:
    """SAR as it is (dB: VV, VH); EO to 8-bit RGB: B4, B3, B2, reflectance x 10 000 from 0..3000 to 0..255."""
    bands = read_image(item.eo)
    if bands.ndim != 3 or bands.shape[2] != 13:
        raise ValueError(f"{item.eo}: shape {bands.shape}; expected the 13 bands of Sentinel-2.")
    rgb = bands[..., [3, 2, 1]].astype(np.float32) / SEN12MS_WHITE
    return copy_files(item) | {"eo": _png(np.rint(255 * rgb.clip(0, 1)).astype(np.uint8))}


def convert_spacenet6(item: Item) -> Contents:
    """SAR with its polarisations as band names; where either image is zero in all bands there is no data."""
    sar, eo = read_image(item.sar), read_image(item.eo)
    if sar.ndim != 3 or sar.shape[2] != len(SPACENET6_POLARISATIONS):
        raise ValueError(f"{item.sar}: shape {sar.shape}; expected 4 bands, {', '.join(SPACENET6_POLARISATIONS)}.")
    with rasterio.open(item.sar, driver="GTiff") as raster, rasterio.MemoryFile() as memory:
        profile = raster.profile | {"compress": "deflate"}
        with memory.open(**profile) as named:
            named.write(raster.read())
            named.descriptions = SPACENET6_POLARISATIONS
        content = memory.read()
    contents = {"sar": (content, ".tif"), "eo": _file(item.eo)}
    if sar.shape[:2] == eo.shape[:2]:  # read_pair refuses the pair otherwise
        valid = np.isfinite(sar).all(axis=2) & sar.any(axis=2) & eo.any(axis=2)
        if not valid.all():
            contents["mask"] = _png(valid)
    return contents


def _file(path: Path) -> tuple[bytes, str]:
    return path.read_bytes(), path.suffix.lower()


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
    for path in sorted(source.rglob(f"*.{suffix}")):
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
    items, skipped = _match(*(list_images(_folder(source, f"{side}_256_oc_0.2")) for side in ("sar", "opt")))
    return Found(items, describe_split("random"), skipped)


def find_sar2opt(source: Path) -> Found:
    """SAR2Opt (Zhao et al., 2022): 8-bit, TerraSAR-X and Google Earth, 600 px.

    `trainA/` and `testA/` hold SAR images, `trainB/` and `testB/` EO images of the same names. The test split is the
    published one; validation is drawn from train at random.
    """
    found = Found([], f"test as published; validation from train, {describe_split('random')}")
    for split in ("train", "test"):
        items, skipped = _match(*(list_images(_folder(source, split + side)) for side in "AB"))
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
        for stem, path in list_images(_folder(source, product)).items():
            name = re.fullmatch(rf"SN6_\w+_{product}_(\d+_\d+_tile_\d+)", stem)
            if name:
                files[name[1]] = path
            else:
                skipped.append((str(path), "not named like a tile"))
    candidates, lonely = _match(*sides.values())
    items, orientations = [], _spacenet6_orientations(source)
    for item in candidates:
        try:
            with rasterio.open(item.sar, driver="GTiff") as raster:
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
    lines = [line.split() for table in source.rglob("SAR_orientations.txt") for line in table.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in lines if line}


def find_pairs(source: Path, **folders: str | None) -> Found:
    """Two folders or a CSV, as `load_pairs` reads them. Given splits are kept; one without splits is divided."""
    names = list_splits(source, **folders)
    items, columns = [], set()
    for name in names:
        for row in load_pairs(source, name, **folders):
            paths = {key: Path(row[key]["path"]) for key in ("sar", "eo", "mask") if row.get(key)}
            metadata = {key: value for key, value in row.items() if key not in (*paths, "mask", "id", "split")}
            items.append(Item(row["id"], **paths, split=name, metadata=metadata))
            columns |= metadata.keys()
    if names != ["train"]:
        return Found(items, "as given")
    by = next((column for column in ("region", "scene") if column in columns), "random")
    for item in items:
        item.split, item.group = None, None if by == "random" else str(item.metadata[by])
    return Found(items, describe_split(by))


def _folder(source: Path, name: str) -> Path:
    """The one folder of that name: `source`, or below it."""
    folders = [path for path in (source, *sorted(source.rglob(name))) if path.name == name and path.is_dir()]
    if len(folders) != 1:
        raise ValueError(f"{source}: expected one folder {name}, found {len(folders)}.")
    return folders[0]


def _match(sar: dict[str, Path], eo: dict[str, Path]) -> tuple[list[Item], list[tuple[str, str]]]:
    """Pairs by key, and what has no partner."""
    items = [Item(key.replace("/", "_"), sar[key], eo[key]) for key in sar if key in eo]
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
