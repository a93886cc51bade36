"""Fixed pairs for super-resolution, made of EO images: what models are compared on.

`degrade` writes `OUT/SPLIT/metadata.jsonl` beside `sar/`, the images of low resolution, `eo/`, and `mask/`
where pixels are not valid. Image number n of a split gets degradation n of the seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from c_diffset.data.degradation import Degradation
from c_diffset.data.eo import COLUMNS, check_eo_values, declared_eo_transform, some_pairs
from c_diffset.data.inside import Row
from c_diffset.data.items import png, tiff
from c_diffset.data.pairs import Pair, list_splits, load_pairs, read_pair
from c_diffset.files import check_id, folder_aside
from c_diffset.pipelines.pipeline_cdiffset import MOST_UPSCALE

KEPT = ("region", "scene", *COLUMNS)  # metadata that stay true of a crop


@dataclass
class DegradedPairs:
    """What `degrade` wrote; `skipped` lists (image, reason)."""

    out: str
    degradation: str
    upscale: int
    seed: int
    splits: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        made = f"{self.degradation} by {self.upscale}, seed {self.seed}"
        lines = [f"{self.out}: {sum(self.splits.values())} pairs ({counts}), {made}", f"left out: {len(self.skipped)}"]
        lines += [f"  {name}: {reason}" for name, reason in self.skipped[:20]]
        return "\n".join(lines + ["  ... (all in summary.json)"] * (len(self.skipped) > 20))


def degrade_images(
    source: str | os.PathLike,
    out: str | os.PathLike,
    degradation: Degradation,
    crop_size: int | None = None,
    split: str | None = None,
    progress: bool = True,
) -> DegradedPairs:
    """Write pairs of the EO images in `source`; the command of this name says more.

    The `eo_transform` of `degradation` is what counts where the data name none.

    Raises:
        ValueError: unfit numbers, no EO images, values that are of one colour, or none fit to use.
        OSError: `out` is in use.
    """
    upscale = degradation.upscale
    if not 2 <= upscale <= MOST_UPSCALE:
        raise ValueError(f"upscale is {upscale}: expected 2 to {MOST_UPSCALE}")
    if crop_size is not None and (crop_size < upscale or crop_size % upscale):
        raise ValueError(f"crop_size is {crop_size}: expected a multiple of the upscale {upscale}")
    summary = DegradedPairs(str(out), degradation.name, upscale, degradation.seed)
    with folder_aside(Path(out)) as aside:
        for name in [split] if split else list_splits(source, eo_alone=True):
            rows = load_pairs(source, name, eo_alone=True)
            transform = declared_eo_transform(rows, str(source)) or degradation.eo_transform
            check_eo_values(some_pairs(rows), transform, str(source), setting=None)
            own = replace(degradation, eo_transform=transform)
            rows = tqdm(rows, desc=f"degrade {name}", unit="image", disable=not progress)
            images = enumerate(_crops(rows, crop_size, summary))
            lines = [_write(own(pair, number), row, aside / name) for number, (pair, row) in images]
            if lines:
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                (aside / name / "metadata.jsonl").write_text(text, encoding="utf-8")
                summary.splits[name] = len(lines)
        if not summary.splits:
            raise ValueError(f"no image of {source} is fit to use: {summary.skipped[:1]}")
        (aside / "summary.json").write_text(json.dumps(asdict(summary), indent=1, ensure_ascii=False), encoding="utf-8")
    return summary


def _crops(rows, crop_size: int | None, summary: DegradedPairs) -> Iterator[tuple[Pair, Row]]:
    """The images that are fit to use, whole or in crops that do not overlap, with their rows."""
    for row in rows:
        try:
            pair = read_pair(row)
            height, width = pair.eo.shape[:2]
            least = crop_size or summary.upscale
            if min(height, width) < least:
                raise ValueError(f"pair {pair.id} is {height} x {width}, expected at least {least} x {least}")
        except (ValueError, OSError) as error:
            summary.skipped.append((row["id"], str(error)))
            continue
        if crop_size is None:
            yield pair, row
            continue
        for top in range(0, height - crop_size + 1, crop_size):
            for left in range(0, width - crop_size + 1, crop_size):
                crop = pair.part(slice(top, top + crop_size), slice(left, left + crop_size))
                if crop.mask is None or crop.mask.any():
                    yield replace(crop, id=f"{pair.id}_{top}_{left}"), row


def _write(pair: Pair, row: Row, folder: Path) -> Row:
    """Write the images of a pair; returns its line of the table."""
    contents = {"sar": _lossless(pair.sar), "eo": _lossless(pair.eo)}
    if pair.mask is not None and not pair.mask.all():
        contents["mask"] = png(pair.mask)
    line: Row = {}
    for key, (content, suffix) in contents.items():
        line[f"{key}_file_name"] = f"{key}/{check_id(pair.id, str(folder))}{suffix}"
        (folder / key).mkdir(parents=True, exist_ok=True)
        (folder / line[f"{key}_file_name"]).write_bytes(content)
    return line | {"id": pair.id} | {key: row[key] for key in KEPT if row.get(key) is not None}


def _lossless(image: np.ndarray) -> tuple[bytes, str]:
    return png(np.ascontiguousarray(image)) if image.dtype == np.uint8 else tiff(image, ("red", "green", "blue"), {})
