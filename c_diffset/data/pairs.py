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

    `mask`: bool H x W, True = valid, or None; `discrepancy`: bool H x W, True where the images are known to show
    different things, or None.
    """

    sar: np.ndarray
    eo: np.ndarray
    mask: np.ndarray | None
    id: str
    discrepancy: np.ndarray | None = None


def read_pair(row: Mapping[str, Any]) -> Pair:
    """Read and check one row of `load_pairs`.

    The mask joins the row's `mask` image (nonzero = valid) with the nodata that the rasters themselves declare. Under
    the mask, SAR values that are not finite are set to the smallest valid value, so that they cannot spread. A
    `discrepancy` image (nonzero = the images show different things) is for evaluation alone.

    Raises:
        OSError, ValueError: unreadable image, unequal sizes, EO without 3 channels, NaN or infinity in valid pixels, an
            all-black image, an empty mask. The message names the pair and the file.
    """
    optional = [key for key in ("mask", "discrepancy") if isinstance(row.get(key), Mapping)]
    images = {key: _read_column(row, key) for key in ("sar", "eo", *optional)}
    (sar, sar_valid), (eo, eo_valid) = images["sar"], images["eo"]
    sizes = {key: image.shape[:2] for key, (image, _) in images.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{key} {h} x {w} ({_name(row, key)})" for key, (h, w) in sizes.items())
        raise ValueError(f"pair {row['id']}: sizes differ: {found}. Images of a pair must share one pixel grid.")
    if eo.ndim != 3 or eo.shape[2] != 3:
        raise ValueError(f"pair {row['id']}: {_name(row, 'eo')} has shape {eo.shape}; expected H x W x 3 (RGB).")
    masks = [valid for valid in (sar_valid, eo_valid) if valid is not None]
    if "mask" in images:
        masks.append(_nonzero(images["mask"][0]))
    mask = np.logical_and.reduce(masks) if masks else None
    if mask is not None and not mask.any():
        raise ValueError(f"pair {row['id']}: no pixel is valid ({_name(row, 'sar')}): remove the pair or its mask.")
    sar = _check_values(sar, mask, f"pair {row['id']}: {_name(row, 'sar')}")
    eo = _check_values(eo, mask, f"pair {row['id']}: {_name(row, 'eo')}")
    return Pair(sar, eo, mask, row["id"], _nonzero(images["discrepancy"][0]) if "discrepancy" in images else None)


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

    Returns:
        Columns `sar`, `eo`, optional `mask` and others (each `Image(decode=False)`), `id` and the metadata. Nested
        metadata, and a column that mixes types, become text.

    Raises:
        ValueError, OSError: unknown form or split, a missing partner or file, a path that leaves its folder, a damaged
            file, repeated ids. The message names it.
    """
    splits = open_splits(source, streaming, sar_dir, eo_dir, mask_dir, columns)
    if split is None and len(splits) > 1:
        raise ValueError(f"{source} has several splits: {', '.join(splits)}. Name one with `split`.")
    split = split or next(iter(splits))
    if split not in splits:
        raise ValueError(f"{source} has no split {split!r}; found: {', '.join(splits)}.")
    return splits[split]()


def list_splits(source: str | os.PathLike, **options: Any) -> list[str]:
    """The names of the splits that `load_pairs` finds; `options` are its `sar_dir`, `eo_dir`, `mask_dir`, `columns`."""
    return list(open_splits(source, True, **options))
