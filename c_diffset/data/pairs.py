"""Raw access to SAR-EO pairs: one loader for every way of storing them, and one reader that checks what it reads.

`load_pairs` gives a `datasets` data set whose image columns hold undecoded files; `read_pair` turns one row into
arrays. Pixel values are the file's own: scaling is the work of the model's `sar_transform` and `eo_transform`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from c_diffset.data.images import read_image_and_mask
from c_diffset.data.sources import Pairs, open_splits

# ----------------------------------------------------------------------------------------------------- one pair


@dataclass
class Pair:
    """One checked pair: `sar` H x W or H x W x C, `eo` H x W x 3, values as `read_image` gives them.

    For super-resolution, `sar` is an image of low resolution, whose sides are those of `eo` divided by a whole number.
    `mask`: bool H x W, True = valid, or None; `discrepancy`: bool H x W, True where the images are known to show
    different things, or None.
    """

    sar: np.ndarray
    eo: np.ndarray
    mask: np.ndarray | None
    id: str
    discrepancy: np.ndarray | None = None

    @property
    def upscale(self) -> int:
        """The sides of `eo` for one of `sar`."""
        return self.eo.shape[0] // self.sar.shape[0]

    @property
    def sar_mask(self) -> np.ndarray | None:
        """The mask on the grid of `sar`, where a pixel is valid if any below it is."""
        return None if self.mask is None else _any_of_blocks(self.mask, self.upscale)

    def part(self, rows: slice, columns: slice) -> Pair:
        """What lies in a window of `eo`, whose starts and stops are multiples of `upscale`."""
        fine, coarse = (rows, columns), (self._coarse(rows), self._coarse(columns))
        mask, known = (None if x is None else x[fine] for x in (self.mask, self.discrepancy))
        return Pair(self.sar[coarse], self.eo[fine], mask, self.id, known)

    def _coarse(self, window: slice) -> slice:
        return slice(window.start // self.upscale, window.stop // self.upscale)


def read_pair(row: Mapping[str, Any]) -> Pair:
    """Read and check one row of `load_pairs`.

    The mask joins the row's `mask` image (nonzero = valid) with the nodata that the rasters themselves declare. Under
    the mask, SAR values that are not finite are set to the smallest valid value, so that they cannot spread. A
    `discrepancy` image (nonzero = the images show different things) is for evaluation alone. In a row without a column
    `sar`, as `load_pairs` gives them of EO images alone, the EO image takes its place, until it is degraded.

    Raises:
        OSError, ValueError: unreadable image, unequal sizes (see `size_ratio`), EO without 3 channels, NaN or infinity
            in valid pixels, an all-black image, an empty mask. The message names the pair and the file.
    """
    optional = [key for key in ("mask", "discrepancy") if isinstance(row.get(key), Mapping)]
    images = {key: _read_column(row, key) for key in ("sar", "eo", *optional) if key in row or key == "eo"}
    eo, eo_valid = images["eo"]
    sar, sar_valid = images.get("sar", images["eo"])
    sizes = {key: image.shape[:2] for key, (image, _) in images.items()}
    upscale = size_ratio(sizes)
    if upscale is None:
        found = ", ".join(f"{key} {h} x {w} ({_name(row, key)})" for key, (h, w) in sizes.items())
        raise ValueError(
            f"pair {row['id']}: sizes differ: {found}. Images of a pair must share one pixel grid, or for "
            "super-resolution the first one must have a whole fraction of the sides."
        )
    if eo.ndim != 3 or eo.shape[2] != 3:
        raise ValueError(f"pair {row['id']}: {_name(row, 'eo')} has shape {eo.shape}; expected H x W x 3 (RGB).")
    masks = [] if sar_valid is None else [repeat(sar_valid, upscale)]
    masks += [] if eo_valid is None else [eo_valid]
    if "mask" in images:
        masks.append(_nonzero(images["mask"][0]))
    mask = np.logical_and.reduce(masks) if masks else None
    if mask is not None and not mask.any():
        raise ValueError(
            f"pair {row['id']}: no pixel is valid ({_name(row, next(iter(images)))}): remove the pair or its mask."
        )
    coarse = None if mask is None else _any_of_blocks(mask, upscale)
    eo = _check_values(eo, mask, f"pair {row['id']}: {_name(row, 'eo')}")
    sar = _check_values(sar, coarse, f"pair {row['id']}: {_name(row, 'sar')}") if "sar" in row else eo
    return Pair(sar, eo, mask, row["id"], _nonzero(images["discrepancy"][0]) if "discrepancy" in images else None)


def size_ratio(sizes: Mapping[str, tuple[int, int]]) -> int | None:
    """How many times the sides of `sar` (height, width), where there is one, go into those of `eo`.

    None where that is no whole number, or another image has not the size of `eo`.
    """
    height, width = sizes["eo"]
    sar_height, sar_width = sizes.get("sar", sizes["eo"])
    ratio = height // sar_height
    others = {size for key, size in sizes.items() if key != "sar"}
    return ratio if (sar_height * ratio, sar_width * ratio) == (height, width) and len(others) == 1 else None


def repeat(image: np.ndarray, times: int) -> np.ndarray:
    """An image H x W (x C) with every pixel so many times in either direction."""
    return image if times == 1 else image.repeat(times, axis=0).repeat(times, axis=1)


def _any_of_blocks(mask: np.ndarray, side: int) -> np.ndarray:
    """Whether any pixel of each block of `side` x `side` is True."""
    height, width = mask.shape
    return mask.reshape(height // side, side, width // side, side).any(axis=(1, 3))


def _nonzero(image: np.ndarray) -> np.ndarray:
    return (image if image.ndim == 2 else image.max(axis=2)) != 0


def _read_column(row: Mapping[str, Any], key: str) -> tuple[np.ndarray, np.ndarray | None]:
    if not row.get(key):
        raise ValueError(f"pair {row['id']}: no {key} image.")
    return read_image_and_mask(row[key], f"pair {row['id']}: {_name(row, key)}")


def _name(row: Mapping[str, Any], key: str) -> str:
    return " ".join((row[key].get("path") or key).split())[-300:]


def _check_values(image: np.ndarray, mask: np.ndarray | None, name: str) -> np.ndarray:
    """Refuse images without content or with NaN among the valid pixels; fill NaN elsewhere."""
    valid = image if mask is None else image[mask]
    finite = np.isfinite(valid)
    if not finite.all():
        raise ValueError(
            f"{name}: {finite.size - finite.sum()} of {finite.size} valid values are NaN or infinite. Mark them in a "
            "mask image (`mask_file_name`, 0 = invalid) or declare them as the raster's nodata value."
        )
    if not valid.any():
        raise ValueError(f"{name}: every valid pixel is zero (an all-black image): remove the pair.")
    return image if np.isfinite(image).all() else np.where(np.isfinite(image), image, valid.min())


# ---------------------------------------------------------------------------------------------------- all pairs


def load_pairs(
    source: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    *,
    sar_dir: str | None = None,
    eo_dir: str | None = None,
    mask_dir: str | None = None,
    columns: Mapping[str, str] | None = None,
    eo_alone: bool = False,
) -> Pairs:
    """Load pairs from whatever holds them.

    `source` is one of:
    - a folder with `metadata.jsonl` (or `.csv`), at its root or one per split folder: the `imagefolder` form of
      `datasets`, with `sar_file_name`, `eo_file_name`, optional `mask_file_name`, `id` and metadata;
    - a folder with `sar/` and `eo/` (and `mask/`), at its root or per split folder; partners share their name up to the
      suffix. The parameters `sar_dir`, `eo_dir`, `mask_dir` allow other names;
    - a `.csv` file with columns `sar`, `eo`, optional `mask`, `discrepancy`, `id`, `split` and metadata; paths relative
      to the file;
    - Parquet (`.parquet`, image columns `sar`, `eo`, bytes embedded) or WebDataset (`.tar`, `NAME.sar.png`,
      `NAME.eo.png`, `NAME.mask.png`, `NAME.json`), one file or a folder. A file belongs to the split whose name is in
      its path;
    - otherwise the id `owner/name` of a data set on the Hugging Face Hub, with columns `sar` and `eo`.

    Images are bytes inside a row, files inside of the data folder (wherever links lead), or files of the Hub's data set
    itself: anything else is refused. So is metadata that has the name of an image (`sar`, `eo`, `mask`, `discrepancy`).

    Args:
        source: The folder, file or Hub id that holds the pairs.
        split: The split to load; it may be left out where there is only one. Data without splits is `train`.
        streaming: Load an `IterableDataset`, for data that does not fit the disk.
        sar_dir, eo_dir, mask_dir: The folders of the two-folder form, relative to `source` or to its split folders.
        columns: The names that columns of a table, of Parquet or of the Hub have in the data, by those expected here,
            such as `{"sar": "s1", "eo": "s2"}`.
        eo_alone: Load the EO images alone, for super-resolution: rows have no `sar`. Beside the forms above, `source`
            may then be a folder of images, at its root or in folders `train`, `validation` and `test`; a table with
            `file_name`; or Parquet, WebDataset and data sets of the Hub with one column of images.

    Returns:
        Columns `sar`, `eo`, optional `mask` and others (each `Image(decode=False)`), `id` and the metadata. Nested
        metadata, and a column that mixes types, become text.

    Raises:
        ValueError, OSError: unknown form or split, a missing partner or file, a path that leaves its folder, a damaged
            file, repeated ids. The message names it.
    """
    splits = open_splits(source, streaming, sar_dir, eo_dir, mask_dir, columns, eo_alone)
    if split is None and len(splits) > 1:
        raise ValueError(f"{source} has several splits: {', '.join(splits)}. Name one with `split`.")
    split = split or next(iter(splits))
    if split not in splits:
        raise ValueError(f"{source} has no split {split!r}; found: {', '.join(splits)}.")
    return splits[split]()


def list_splits(source: str | os.PathLike, **options: Any) -> list[str]:
    """The names of the splits that `load_pairs` finds; `options` are its `sar_dir`, `eo_dir`, `mask_dir`, `columns`,
    `eo_alone`."""
    return list(open_splits(source, True, **options))
