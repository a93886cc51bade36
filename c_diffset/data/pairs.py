"""Raw access to SAR-EO pairs: one loader for every way of storing them, and one reader that checks what it reads.

`load_pairs` gives a `datasets` data set whose image columns hold undecoded files; `read_pair` turns one row into
arrays. Pixel values are the file's own: scaling is the work of the model's `sar_transform`.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import fsspec
import numpy as np
import PIL.Image
import rasterio
from datasets import Dataset
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning

from c_diffset.data.sources import Pairs, open_splits

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# ---------------------------------------------------------------------------------------------------- one image


def read_image(source: str | os.PathLike | bytes | Mapping, name: str | None = None) -> np.ndarray:
    """Read a PNG, JPEG or TIFF file with the values it stores: nothing is scaled, rotated or converted to 8 bits.

    Args:
        source: a path, the bytes of a file, or the `{"bytes", "path"}` that `datasets.Image(decode=False)` gives.
        name: what errors call the image; the path by default.

    Returns:
        H x W (one band) or H x W x C; uint8, uint16 or float32 (int16 and float64 become float32).

    Raises:
        OSError: the file is absent, truncated or not an image of a supported format.
        ValueError: the pixel type is unsupported (complex, 32-bit integers).
    """
    return _read(source, name)[0]


def _read(source: str | os.PathLike | bytes | Mapping, name: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """`read_image`, and where the file declares nodata also what is valid: bool H x W."""
    if isinstance(source, Mapping):
        name = name or source.get("path")
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if isinstance(source, bytes):
        name, data = name or "image", source
    else:
        name = name or str(source)
        opener = fsspec.open if "://" in name else open  # streaming from the Hub gives hf:// paths
        with opener(os.fspath(source), "rb") as file:
            data = file.read()
    try:
        if data[:4] in _TIFF_MAGIC:
            image, valid = _read_raster(data, "GTiff")
        elif _is_deep_colour_png(data):
            image, valid = _read_raster(data, "PNG")  # PIL would keep only 8 of the 16 bits
        else:
            image, valid = _read_pil(data), None
    except Exception as error:  # the decoders raise a dozen unrelated types for broken files
        raise OSError(f"{name}: not a readable PNG, JPEG or TIFF image ({len(data)} bytes): {error}") from error
    if image.dtype in (np.int16, np.float64):
        image = image.astype(np.float32)
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"{name}: pixels are {image.dtype}; expected 8- or 16-bit integers or real floats.")
    return image, valid


def _read_raster(data: bytes, driver: str) -> tuple[np.ndarray, np.ndarray | None]:
    with warnings.catch_warnings(), rasterio.MemoryFile(data) as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver=driver) as raster:  # a fixed driver: no VRT that points at other files
            image = raster.read()
            declared = any(MaskFlags.all_valid not in flags for flags in raster.mask_flag_enums)
            valid = raster.dataset_mask() > 0 if declared else None
    return (image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)), valid


def _read_pil(data: bytes) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        image.load()
        if image.mode == "P":
            image = image.convert("RGB")
        array = np.array(image)
        if array.dtype == bool:
            return array.astype(np.uint8) * 255
        return array.astype(np.uint16) if image.mode.startswith("I") else array


def _is_deep_colour_png(data: bytes) -> bool:
    """Whether the header says 16 bits a sample and more than one sample a pixel."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10" and data[25:26] != b"\0"


# ----------------------------------------------------------------------------------------------------- one pair


@dataclass
class Pair:
    """One checked pair: `sar` H x W or H x W x C as stored, `eo` uint8 or uint16 H x W x 3.

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
    if eo.dtype == np.float32:
        raise ValueError(f"pair {row['id']}: {_name(row, 'eo')} holds floats; expected 8- or 16-bit RGB.")
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
    return _read(row[key], f"pair {row['id']}: {_name(row, key)}")


def _name(row: Mapping[str, Any], key: str) -> str:
    return row[key].get("path") or key


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
) -> Pairs:
    """Load pairs from whatever holds them.

    `source` is one of:
    - a folder with `metadata.jsonl` (or `.csv`), at its root or one per split folder: the `imagefolder` form of
      `datasets`, with `sar_file_name`, `eo_file_name`, optional `mask_file_name`, `id` and metadata;
    - a folder with `sar/` and `eo/` (and `mask/`), at its root or per split folder; partners share their name up to the
      suffix. The parameters `sar_dir`, `eo_dir`, `mask_dir` allow other names;
    - a `.csv` file with columns `sar`, `eo`, optional `mask`, `id`, `split` and metadata; paths relative to the file;
    - Parquet (`.parquet`, image columns `sar`, `eo`, bytes embedded) or WebDataset (`.tar`, `NAME.sar.png`,
      `NAME.eo.png`, `NAME.mask.png`, `NAME.json`), one file or a folder. A file belongs to the split whose name is in
      its path;
    - otherwise the id `owner/name` of a data set on the Hugging Face Hub, with columns `sar` and `eo`.

    Args:
        split: which split; may be left out where there is only one. Data without splits is `train`.
        streaming: an `IterableDataset`, for what does not fit the disk.
        sar_dir, eo_dir, mask_dir: folders of the two-folder form, relative to `source` or to its split folders.

    Returns:
        Columns `sar`, `eo`, optional `mask` (each `Image(decode=False)`), `id` and the metadata.

    Raises:
        ValueError, OSError: unknown form or split, a missing partner or file, a path that leaves its folder, repeated
            ids. The message names it.
    """
    splits = open_splits(source, streaming, sar_dir, eo_dir, mask_dir)
    if split is None and len(splits) > 1:
        raise ValueError(f"{source} has several splits: {', '.join(splits)}. Name one with `split`.")
    split = split or next(iter(splits))
    if split not in splits:
        raise ValueError(f"{source} has no split {split!r}; found: {', '.join(splits)}.")
    return splits[split]()


def list_splits(source: str | os.PathLike, **folders: str | None) -> list[str]:
    """The names of the splits that `load_pairs` finds; `folders` are its `sar_dir`, `eo_dir` and `mask_dir`."""
    return list(open_splits(source, True, **folders))


# ------------------------------------------------------------------------------------------------------- splits


def split_pairs(
    dataset: Dataset, fractions: Mapping[str, float], by: str | None = None, seed: int = 0
) -> tuple[dict[str, Dataset], str]:
    """Divide a data set into splits that share no region or scene.

    Args:
        fractions: share of every split, such as `{"train": 0.8, "validation": 0.1, "test": 0.1}`.
        by: the metadata column whose values must not be torn apart, or "random". By default `region`, else `scene`,
            else random.

    Returns:
        The splits, and a sentence that says how they were made, for the report.

    Raises:
        ValueError: the column is absent, or has fewer values than there are splits.
    """
    by = by or next((column for column in ("region", "scene") if column in dataset.column_names), "random")
    if by != "random" and by not in dataset.column_names:
        raise ValueError(f"no column {by!r} to split by; found {', '.join(dataset.column_names)}.")
    groups = [str(value) for value in dataset["id" if by == "random" else by]]
    chosen = assign_splits(groups, fractions, seed)
    splits = {name: dataset.select([i for i, split in enumerate(chosen) if split == name]) for name in fractions}
    return splits, describe_split(by)


def describe_split(by: str) -> str:
    """How a split by `by` was made, in words."""
    return (
        "random (neighbouring or overlapping patches may fall into different splits)" if by == "random" else f"by {by}"
    )


def assign_splits(groups: Sequence[str], fractions: Mapping[str, float], seed: int = 0) -> list[str]:
    """The split of every item, given its group: whole groups, no split empty, shares as near as groups allow.

    Depends on the set of groups, their sizes and the seed alone, not on the order of the items.
    """
    if not fractions or min(fractions.values()) <= 0:
        raise ValueError(f"fractions must be positive; found {dict(fractions)}.")
    sizes = Counter(groups)
    if len(sizes) < len(fractions):
        raise ValueError(f"{len(sizes)} groups ({', '.join(list(sizes)[:5])}) cannot fill {len(fractions)} splits.")
    total = sum(fractions.values())
    wanting = {name: len(groups) * fraction / total for name, fraction in fractions.items()}
    empty = set(fractions)
    split_of = {}
    order = sorted(sizes, key=lambda group: (-sizes[group], sha256(f"{seed} {group}".encode()).digest()))
    for place, group in enumerate(order):
        open_to = empty if len(order) - place <= len(empty) else fractions
        split_of[group] = max(open_to, key=lambda name: (wanting[name], name))
        wanting[split_of[group]] -= sizes[group]
        empty.discard(split_of[group])
    return [split_of[group] for group in groups]
