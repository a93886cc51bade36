"""Your own pairs, in whatever form: what `load_pairs` reads, and files that are paired by a pattern of their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Image

from c_diffset.data.folders import SPLITS
from c_diffset.data.inside import find_images
from c_diffset.data.items import Found, Item, match
from c_diffset.data.pairs import list_splits, load_pairs
from c_diffset.data.splits import STRIPS_OF_GROUND, describe_split, places
from c_diffset.files import image_kind

OWN = ("folders", "csv", "parquet", "webdataset", "hub")  # what `load_pairs` reads
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "tiff": ".tif", None: ""}
SIDES = ("sar", "eo", "mask")
AS_GIVEN = "as given (whether the splits share ground is not known)"


@dataclass
class Embedded:
    """An image inside of a data set, which is read when it is asked for: in use like the path of a file."""

    rows: Dataset  # of one column
    row: int
    name: str

    def read_bytes(self) -> bytes:
        """The content of the image."""
        (image,) = self.rows[self.row].values()
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()

    @property
    def suffix(self) -> str:
        """The suffix that the content asks for."""
        return SUFFIXES[image_kind(self.read_bytes()[:8])]

    def __str__(self) -> str:
        return self.name


def find_pairs(source: Path, **options) -> Found:
    """Pairs as `load_pairs` reads them, with its options. Given splits are kept; other data are divided."""
    names = list_splits(source, **options)
    found = Found([], AS_GIVEN)
    for name in names:
        rows = load_pairs(source, name, **options)
        found.items += _items(rows, name, str(source))
    if names == ["train"]:
        groups, by = next(way for way in places(rows) if len(set(way[0])) >= len(SPLITS) or way[1] == "random")
        for item, group in zip(found.items, groups, strict=True):
            item.split, item.group = None, None if by == "random" else group
        border = " (at the border of two, pairs may overlap)" * (by == STRIPS_OF_GROUND)
        found.split_rule = describe_split(by) + border
    return found


def _items(rows: Dataset, split: str, source: str) -> list[Item]:
    """The pairs of a split, without the content of images that lie inside of the rows."""
    images = [key for key, kind in rows.features.items() if isinstance(kind, Image)]
    inside = bool(len(rows)) and rows[0]["sar"]["bytes"] is not None
    columns = {key: rows.select_columns([key]) for key in images if inside}
    filled = {key: column.data.column(key).is_valid().to_pylist() for key, column in columns.items()}
    items = []
    for number, row in enumerate(rows.remove_columns(images) if inside else rows):
        name = f"{source}, {split}, row {number}"
        found = {key: Embedded(column, number, name) for key, column in columns.items() if filled[key][number]}
        if not inside:
            found = {key: Path(row[key]["path"]) for key in images if row[key]}
        metadata = {key: value for key, value in row.items() if key not in (*images, "id", "split")}
        items.append(Item(row["id"], found, split=split, metadata=metadata))
    return items


def find_matches(source: Path, patterns: str) -> Found:
    """Files whose paths in `source` match a pattern each for SAR, EO and perhaps masks, such as `s1_*.png:s2_*.png`.

    The `*` of each stands for the same text, which becomes the id of the pair; it may hold folders. Where nothing
    matches in `source` itself, its folders `train`, `validation` and `test` are looked through, and are the splits.

    Raises:
        ValueError: these are no such patterns, or no file matches.
    """
    regular = _regular(patterns)
    at_random, given = Found([], describe_split("random")), Found([], AS_GIVEN)
    others = _match_files(source, source, regular, at_random)
    if at_random.items or at_random.skipped:
        at_random.skipped += others
        return at_random
    for split in SPLITS:
        if (source / split).is_dir():
            given.skipped += _match_files(source / split, source, regular, given, split)
    if not given.items:
        some = ", ".join(name for name, _ in others[:3]) or "no image"
        raise ValueError(f"{source}: no two files match {patterns!r}; found {some}.")
    return given


def _regular(patterns: str) -> dict[str, re.Pattern]:
    """A regular expression for each side."""
    parts = patterns.split(":")
    if len(parts) not in (2, 3) or any(part.count("*") != 1 for part in parts):
        raise ValueError(f"match is {patterns!r}: expected two patterns (or three, with masks) with one * each, SAR:EO")
    return {side: re.compile(re.escape(part).replace(r"\*", "(.+)")) for side, part in zip(SIDES, parts, strict=False)}


def _match_files(folder: Path, root: Path, regular: Mapping[str, re.Pattern], found: Found, split: str | None = None):
    """Add the pairs of a folder, and files without a partner; returns the images that match no pattern."""
    sides: dict[str, dict[str, Path]] = {side: {} for side in SIDES}
    others = []
    for path in find_images(folder, root):
        name = path.relative_to(folder).as_posix()
        side, text = next(((side, hit[1]) for side, one in regular.items() if (hit := one.fullmatch(name))), (None, ""))
        if side is None:
            others.append((str(path), "matches no pattern"))
        else:
            sides[side][text] = path
    items, lonely = match(sides["sar"], sides["eo"])
    masks = {text.replace("/", "_"): path for text, path in sides["mask"].items()}
    for item in items:
        item.split = split
        item.images |= {"mask": masks[item.id]} if item.id in masks else {}
    found.items += items
    found.skipped += lonely
    return others
