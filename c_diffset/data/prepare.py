"""Pairs of any layout, written in the standard form of `load_pairs`.

`prepare` copies files whose format is right already, converts what is not, marks nodata in mask files, checks every
pair with `read_pair`, and writes `OUT/{train,validation,test}/metadata.jsonl` beside a folder for each kind of image
(`sar/`, `eo/`, `mask/`), and `OUT/summary.json`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from c_diffset.data.eo import eo_transform_of_row
from c_diffset.data.faults import LIMITS, Fault, find_faults
from c_diffset.data.folders import SPLITS
from c_diffset.data.items import Contents, Found, Item
from c_diffset.data.layouts import LAYOUTS
from c_diffset.data.own import OWN, find_matches
from c_diffset.data.pairs import Pair, read_pair
from c_diffset.data.splits import assign_splits
from c_diffset.files import check_id, folder_aside

CROP = 256  # pixels a side, in the recipes that most runs start from
LISTED = 20  # pairs that are printed


@dataclass
class Summary:
    """What `prepare` wrote; `skipped` lists (file or pair, reason).

    Where pairs were filtered, `limits` are those of the filter, `dropped` lists the training pairs with faults, and
    `faulty` the pairs of other splits with faults, which are kept: each as (pair, faults).
    """

    layout: str
    out: str
    split_rule: str
    splits: dict[str, int]
    sizes: dict[str, int]
    masks: int
    skipped: list[tuple[str, str]]
    limits: dict[str, float] | None = None
    dropped: list[tuple[str, str]] = field(default_factory=list)
    faulty: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        sizes = ", ".join(f"{size} px ({count})" for size, count in self.sizes.items())
        lines = [f"{self.out}: {sum(self.splits.values())} pairs ({counts})", f"split: {self.split_rule}"]
        lines += [f"sizes: {sizes}", f"pairs with invalid pixels (mask files): {self.masks}"]
        if "random" in self.split_rule:
            lines.append("risk: where patches overlap, figures on validation and test are better than on new ground")
        lines += _listed("left out", self.skipped)
        if self.limits is not None:
            lines += _listed("training pairs dropped by the filter", self.dropped)
            lines += _listed("pairs of other splits with faults, kept", self.faulty)
        return "\n".join(lines)

    def next_commands(self) -> str:
        """What to type next."""
        place, run = shlex.quote(self.out), shlex.quote(f"runs/{Path(self.out).name}")
        options = [] if "validation" in self.splits else ["--data.validation_fraction 0.1"]
        side = min(int(number) for size in self.sizes for number in size.split(" x "))
        if side < CROP:
            options += [f"--{group}.crop_size {max(8, side - side % 8)}" for group in ("data", "validation")]
        train = ["c-diffset finetune --config sd21", f"--data.source {place}", *options, f"--output_dir {run}"]
        return f"next: c-diffset inspect {place}\nthen: {' '.join(train)}"


def _listed(title: str, pairs: list[tuple[str, str]]) -> list[str]:
    """Lines of (pair, reason) below their number."""
    lines = [f"{title}: {len(pairs)}"] + [f"  {name}: {reason}" for name, reason in pairs[:LISTED]]
    return lines + ["  ... (all in summary.json)"] * (len(pairs) > LISTED)


def prepare(
    layout: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    options: dict[str, Any] | None = None,
    progress: bool = True,
    max_shift: float | None = None,
) -> Summary:
    """Write a data set of a known layout in the standard form; the command of this name says more.

    The result is written aside and renamed when complete. Pairs that `read_pair` refuses are left out and listed in the
    summary. `options` are for your own pairs: `match` as of `find_matches`, or `sar_dir`, `eo_dir`, `mask_dir` and
    `columns` as of `load_pairs`. With `max_shift`, training pairs in which `find_faults` finds some are dropped;
    validation and test keep theirs, so that figures stay those of all pairs, and both are listed.

    Raises:
        ValueError: unknown layout, no pairs found, or none fit to use.
        OSError: `out` is in use.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}.")
    source, out = Path(source), Path(out)
    if not source.exists() and layout != "hub":
        raise FileNotFoundError(f"{source} does not exist.")
    find, convert = _reader(layout, {key: value for key, value in (options or {}).items() if value is not None})
    with folder_aside(out) as aside:
        found = find(source)
        if not found.items:
            raise ValueError(f"{source} holds no pairs of layout {layout!r}; left out: {found.skipped[:3]}.")
        _settle_splits(found.items, dict(zip(SPLITS, fractions, strict=True)), seed)
        summary = Summary(layout, str(out), found.split_rule, {}, {}, 0, found.skipped)
        summary.limits = None if max_shift is None else LIMITS | {"max_shift": max_shift}
        rows: dict[str, list[dict]] = {}
        for item in tqdm(found.items, desc=f"prepare {layout}", unit="pair", disable=not progress):
            contents = _take(item, convert, summary)
            if contents is not None:
                rows.setdefault(item.split, []).append(_write_pair(item, contents, aside / item.split))
        _check_rest(rows, summary)
        for split, lines in rows.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (aside / split / "metadata.jsonl").write_text(text, encoding="utf-8")
        order = sorted(rows, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
        summary.splits = {name: len(rows[name]) for name in order}
        (aside / "summary.json").write_text(json.dumps(asdict(summary), indent=1, ensure_ascii=False), encoding="utf-8")
    return summary


def _reader(layout: str, options: dict[str, Any]) -> tuple[Callable[[Path], Found], Callable[[Item], Contents]]:
    """What finds the pairs of a layout, and what converts one; ValueError for options that the layout does not know."""
    find, convert = LAYOUTS[layout]
    known = {"columns"} if layout in OWN else set()
    unknown = options.keys() - (known | {"sar_dir", "eo_dir", "mask_dir", "match"} if layout == "folders" else known)
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be used with the layout {layout!r}: leave it out.")
    if "match" in options:
        if len(options) > 1:
            raise ValueError("match needs no other names: write the folders into the patterns, and leave out columns.")
        return partial(find_matches, patterns=options["match"]), convert
    return partial(find, **options), convert


def _settle_splits(items: list[Item], fractions: dict[str, float], seed: int) -> None:
    """Assign the items that have no split yet to the splits that the layout leaves open; groups stay together."""
    settled = {item.split for item in items} - {"train"}
    shares = {name: share for name, share in fractions.items() if share > 0 and name not in settled}
    rest = [item for item in items if item.split is None]
    chosen = assign_splits([item.group or item.id for item in rest], shares, seed) if rest else []
    for item, split in zip(rest, chosen, strict=True):
        item.split = split
    repeated = [key for key, count in Counter((item.split, item.id) for item in items).items() if count > 1]
    if repeated:
        raise ValueError(f"id {repeated[0][1]!r} occurs more than once in split {repeated[0][0]}.")


def _take(item: Item, convert: Callable[[Item], Contents], summary: Summary) -> Contents | None:
    """The files of a pair that is fit to use; None without, which `summary` lists with the reason."""
    try:
        contents = convert(item)
        pair = _check(item, contents, one_grid=summary.layout not in OWN)
        faults = [] if summary.limits is None else _faults(item, pair, summary.limits["max_shift"])
    except (ValueError, OSError) as error:
        summary.skipped.append((item.id, str(error)))
        return None
    if faults:
        listed = summary.dropped if item.split == "train" else summary.faulty
        listed.append((item.id, "; ".join(map(str, faults))))
        if item.split == "train":
            return None
    size = "{} x {}".format(*pair.eo.shape[:2])
    summary.sizes[size] = summary.sizes.get(size, 0) + 1
    summary.masks += "mask" in contents
    return contents


def _check_rest(rows: dict[str, list[dict]], summary: Summary) -> None:
    """ValueError where no pair is left, or none to train on after filtering."""
    if summary.dropped and "train" not in rows:
        found = f"all {len(summary.dropped)} training pairs have faults, the first: {summary.dropped[0]}"
        raise ValueError(f"{found}; prepare them without the filter.")
    if not rows:
        raise ValueError(f"no pair is fit to use; the first: {summary.skipped[0]}.")


def _check(item: Item, contents: Contents, one_grid: bool) -> Pair:
    """A pair, as `read_pair` reads it; ValueError or OSError for one that is not fit to use.

    Published pairs of SAR and EO lie on `one_grid`; own ones may be for super-resolution.
    """
    files = {key: {"bytes": content, "path": str(item.images.get(key))} for key, (content, _) in contents.items()}
    pair = read_pair(files | {"id": check_id(item.id, str(item.images["sar"]))})
    if one_grid and pair.upscale > 1:
        found = ", ".join("{} {} x {}".format(key, *getattr(pair, key).shape[:2]) for key in ("sar", "eo"))
        raise ValueError(f"pair {item.id}: sizes differ: {found}. Images of a pair must share one pixel grid.")
    return pair


def _faults(item: Item, pair: Pair, max_shift: float) -> list[Fault]:
    return find_faults(pair, eo_transform_of_row(item.metadata, item.id), max_shift)


def _write_pair(item: Item, contents: Contents, folder: Path) -> dict:
    row: dict[str, Any] = {}
    for key, (content, suffix) in contents.items():
        name = f"{key}/{item.id}{suffix}"
        (folder / key).mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        row[f"{key}_file_name"] = name
    return row | {"id": item.id} | item.metadata
