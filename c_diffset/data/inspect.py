"""What a data set holds, found out before any work: pairs, sizes by their headers, values of a few pairs, faults."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
from datasets import Dataset

from c_diffset.data.eo import LEAST_SHARE
from c_diffset.data.headers import read_shape
from c_diffset.data.images import ON_HUB
from c_diffset.data.pairs import Pair, list_splits, load_pairs, read_pair, size_ratio
from c_diffset.data.sources import IMAGES, Pairs
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY, SAR_DISPLAY

READ = 6  # pairs of a split that are read whole, spread evenly
HEADERS = 10_000  # pairs of a split whose headers are read, which takes a few seconds
EMBEDDED = 1_000  # the same where images lie inside of rows, which are read whole
LISTED = 20  # faults that are printed
NO_PAIR = "there is no pair"
RATIO = [0.0, 20.0]  # decibels
MUCH = 0.2  # share of SAR pixels that are 0, beyond which it is worth a note


@dataclass
class Values:
    """The values of some images: their type, and by band the lowest, the 1st and 99th percentile, and the highest."""

    dtype: str
    bands: list[tuple[float, float, float, float]]

    def __str__(self) -> str:
        ends = f"{min(band[0] for band in self.bands):.4g} to {max(band[3] for band in self.bands):.4g}"
        most = dict.fromkeys(f"{low:.4g} to {high:.4g}" for _, low, high, _ in self.bands)
        bands = f"{len(self.bands)} band" + "s" * (len(self.bands) > 1)
        return f"{self.dtype}, {bands}, {ends} (98 % within {', '.join(most)})"


@dataclass
class SplitSummary:
    """One split: how many pairs, the sizes that the headers of `checked` pairs say, and the values of a few.

    `count` is None for a stream; `without_data` is the share of pixels in those few; `faults` name what cannot be used.
    """

    name: str
    count: int | None
    checked: int
    sizes: dict[str, int]
    sar: Values | None
    eo: Values | None
    without_data: float
    faults: list[str]
    notes: list[str]
    pairs: list[Pair] = field(repr=False)

    def __str__(self) -> str:
        some = self.count is None or self.checked < self.count
        sizes = ", ".join(f"{size}" + f" ({count})" * (len(self.sizes) > 1) for size, count in self.sizes.items())
        count = "a stream of" if self.count is None else f"{self.count:,}"
        lines = [f"{self.name}: {count} pairs, {sizes or 'of no size'}" + f" (of {self.checked:,} looked at)" * some]
        first = "low resolution" if any(" from " in size for size in self.sizes) else "SAR"
        for name, values in ((first, self.sar), ("EO", self.eo)):
            lines += [f"  {name}: {values}"] if values else []
        if self.pairs:
            lines += [f"  without data: {self.without_data:.1%} (of the {len(self.pairs)} pairs that were read)"]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  cannot be used: {fault}" for fault in self.faults[:LISTED]]
        return "\n".join(lines + [f"  ... {len(self.faults) - LISTED} more"] * (len(self.faults) > LISTED))


@dataclass
class DataSummary:
    """The splits of a data source, and how they were made where they were made just now."""

    source: str
    splits: list[SplitSummary]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([self.source, *map(str, self.splits), *(f"note: {note}" for note in self.notes)])

    @property
    def failed(self) -> list[str]:
        """What cannot be used, split by split."""
        return [f"{split.name}, {fault}" for split in self.splits for fault in split.faults]

    def check(self) -> None:
        """Refuse data with faults; ValueError names how many, and the first."""
        if self.failed:
            raise ValueError(
                f"{self.source}: {len(self.failed)} of the pairs looked at cannot be used, such as "
                f"{self.failed[0].rstrip('.')}. `c-diffset inspect` lists them, `c-diffset prepare` leaves out what "
                "cannot be read"
            )


def inspect_source(
    source: str | os.PathLike, split: str | None = None, crop_size: int | None = None, streaming: bool = False
) -> DataSummary:
    """Look at all splits of a source, or at one.

    Raises:
        ValueError, OSError: there is no such source or split, or it cannot be read as pairs.
    """
    names = [split] if split else list_splits(source)
    return DataSummary(
        str(source), [inspect_split(load_pairs(source, name, streaming), name, crop_size) for name in names]
    )


def inspect_split(rows: Pairs, name: str, crop_size: int | None = None, setting: str = "crop_size") -> SplitSummary:
    """Look at one split: the sizes of its images by their headers, and the values of a few pairs.

    Images smaller than `crop_size` are faults, in which it is called `setting`.
    """
    some, few = _chosen(rows)
    checked, sizes, bands, faults = _look_at_headers(some, crop_size, setting)
    pairs = []
    for row in few:
        try:
            pairs.append(read_pair(row))
        except (ValueError, OSError) as error:
            faults.setdefault(row["id"], str(error))
    return SplitSummary(
        name,
        len(rows) if isinstance(rows, Dataset) else None,
        checked,
        dict(sizes.most_common()),
        values_of([(pair.sar, pair.sar_mask) for pair in pairs if pair.sar is not pair.eo]),
        values_of([(pair.eo, pair.mask) for pair in pairs]),
        float(np.mean([0.0 if pair.mask is None else 1 - pair.mask.mean() for pair in pairs] or [0.0])),
        [f"pair {key}: {text.removeprefix(f'pair {key}: ')}" for key, text in faults.items()] if checked else [NO_PAIR],
        _notes(pairs, bands),
        pairs,
    )


def _look_at_headers(
    rows: Iterable[Mapping], crop_size: int | None, setting: str
) -> tuple[int, Counter, set[int], dict[str, str]]:
    """How many rows there were, their sizes, the numbers of SAR bands, and by id what cannot be used."""
    checked, sizes, bands, faults = 0, Counter(), set(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # nothing is decompressed
        for checked, row in enumerate(rows, 1):  # noqa: B007
            try:
                shapes = _shapes(row)
            except (ValueError, OSError) as error:
                faults[row["id"]] = str(error)
                continue
            if shapes:
                height, width = shapes["eo"][:2]
                sar_height, sar_width, count = shapes.get("sar", shapes["eo"])
                smaller = f" from {sar_height} x {sar_width}" if sar_height < height else ""
                sizes[f"{height} x {width}{smaller}"] += 1
                bands.add(count)
                if crop_size and min(height, width) < crop_size:
                    faults[row["id"]] = f"{height} x {width} is smaller than {setting} {crop_size}: lower it"
    return checked, sizes, bands, faults


def _chosen(rows: Pairs) -> tuple[Iterator[Mapping], Iterator[Mapping]]:
    """The rows whose headers are looked at, and those that are read: of a stream the first ones."""
    if not isinstance(rows, Dataset):
        first = list(rows.take(READ))
        return iter(first), iter(first)
    images = [name for name in rows.column_names if name in (*IMAGES, "id")]
    embedded = bool(len(rows)) and rows[0]["eo"]["bytes"] is not None
    rows = rows.select_columns(images)
    return iter(_spread(rows, EMBEDDED if embedded else HEADERS)), iter(_spread(rows, READ))


def _spread(rows: Dataset, count: int) -> Dataset:
    """At most so many rows, spread evenly."""
    return rows if len(rows) <= count else rows.select(np.linspace(0, len(rows) - 1, count).astype(int))


def _shapes(row: Mapping) -> dict[str, tuple[int, int, int]]:
    """Height, width and bands of each image of a pair; of images on the Hub nothing is known before they are read.

    Raises:
        ValueError, OSError: the images cannot be a pair.
    """
    needed = [key for key in ("sar", "eo") if key in row or key == "eo"]
    for key in needed:
        if not row.get(key):
            raise ValueError(f"no {key} image")
    if any(ON_HUB.match(row[key]["path"] or "") for key in needed):
        return {}
    found = {key: read_shape(row[key]) for key in IMAGES if row.get(key)}
    if size_ratio({key: shape[:2] for key, shape in found.items()}) is None:
        raise ValueError("sizes differ: " + ", ".join(f"{key} {h} x {w}" for key, (h, w, _) in found.items()))
    if found["eo"][2] != 3:
        raise ValueError(f"its EO image has {found['eo'][2]} bands, expected 3 (RGB)")
    return found


def values_of(images: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> Values | None:
    """The valid values of images H x W (x bands) with their masks; None without any, or of unequal bands."""
    images = [(image.reshape(*image.shape[:2], -1), mask) for image, mask in images]
    if not images or len({image.shape[2] for image, _ in images}) > 1:
        return None
    pixels = [image.reshape(-1, image.shape[2]) if mask is None else image[mask] for image, mask in images]
    ends = [(part.min(axis=0), part.max(axis=0)) for part in pixels]
    sample = np.concatenate([part[:: max(1, len(part) // 2**16)] for part in pixels])
    some, most = np.percentile(sample, (1, 99), axis=0)
    lowest, highest = np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0)
    bands = [tuple(map(float, band)) for band in zip(lowest, some, most, highest, strict=True)]
    return Values("/".join(sorted({str(image.dtype) for image, _ in images})), bands)


def fitting_transforms(split: SplitSummary) -> tuple[dict, dict]:
    """A `sar_transform` and an `eo_transform` that show the values of a split, where no model says what they mean."""
    sar, eo = split.sar, split.eo
    if sar is None or eo is None:
        raise ValueError(f"{split.name}: its images have different numbers of bands, which no model reads")
    channels: list = [0, 0, 0] if len({*sar.bands}) == 1 else list(range(len(sar.bands)))
    sar_transform: dict = SAR_DISPLAY | {"channels": channels}
    if "float" in sar.dtype:
        units = "db" if min(lowest for lowest, *_ in sar.bands) < 0 else "power"
        ends = np.array([(low, high) for _, low, high, _ in sar.bands])
        ends = ends if units == "db" else 10 * np.log10(ends.clip(1e-10))
        limits = [[float(np.floor(low)), float(np.ceil(high + 1e-3))] for low, high in ends]
        if len(limits) == 2:  # the usual third channel of two polarisations is their ratio
            sar_transform, limits = sar_transform | {"channels": [0, 1, "0-1"]}, [*limits, RATIO]
        sar_transform |= {"units": units, "range": limits[0] if len({*sar.bands}) == 1 else limits}
    black, white = min(low for _, low, _, _ in eo.bands), max(high for _, _, high, _ in eo.bands)
    if eo.dtype == "uint8" or eo.dtype == "uint16" and white - black > LEAST_SHARE * 65_535:
        return sar_transform, dict(EO_DISPLAY)
    return sar_transform, {"units": "reflectance", "range": [min(0.0, black), float(f"{max(white, black + 1):.3g}")]}


def _notes(pairs: list[Pair], bands: set[int]) -> list[str]:
    """What is allowed, but seldom meant."""
    notes = []
    if len(bands) > 1:
        notes.append(f"SAR images have different numbers of bands: {', '.join(map(str, sorted(bands)))}")
    dark = [(np.atleast_3d(pair.sar) == 0).all(axis=2) for pair in pairs]
    dark = [zero if pair.mask is None else zero[pair.sar_mask] for zero, pair in zip(dark, pairs, strict=True)]
    share = np.mean([zero.mean() for zero in dark]) if dark else 0
    if share > MUCH:
        notes.append(f"{share:.0%} of the SAR pixels are 0, and not marked as without data: give masks if they are")
    return notes
