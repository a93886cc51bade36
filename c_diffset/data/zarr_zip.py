"""Published data sets of Sentinel-1 and Sentinel-2 that come as zarr 2 in zip files: TerraMesh and SSL4EO-S12 v1.1.

Of zarr, what these two use is read here: numbers in chunks, plain or compressed by Blosc (`numcodecs`). What else the
files may ask for, such as codecs that run code, is refused.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from c_diffset.data.inside import check_inside
from c_diffset.data.items import Contents, Found, Item, mask_out, tiff
from c_diffset.data.sentinel import EO_BANDS, SAR_BANDS, SAR_DB

MAX_BYTES = 2**29  # of a chunk, or of a zip file inside of a tar file
MAX_VALUES = 2**28  # of an image
# x 10 000, with the offset of baseline 04.00, which the authors' means of the bands show
OFFSET_REFLECTANCE: dict[str, Any] = {"eo_units": "reflectance", "eo_range": [1000, 4000]}
SAMPLE = re.compile(r"(\w{1,100})\.zarr\.zip")


# ------------------------------------------------------------------------------------------------------ zarr 2


class ZarrZip:
    """One zip file with zarr arrays, on disk, or `size` bytes from `offset` on in a tar file.

    Raises:
        ValueError: it is no such file, or not of a kind that these data sets use; the message names it.
    """

    def __init__(self, path: Path, offset: int = 0, size: int | None = None):
        self.name, self.chunks = str(path), {}  # of each array the chunk that was read last: pairs often share one
        try:
            self.zip = zipfile.ZipFile(path if size is None else _part(path, offset, size))
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ValueError(f"{path}: no zip file: {str(error)[:200]}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array."""
        return tuple(self._meta(name)["shape"])

    def read(self, name: str, *index: int) -> np.ndarray:
        """The part of an array at this index of its first axes."""
        meta, count = self._meta(name), len(index)
        shape, chunk_shape = meta["shape"][count:], meta["chunks"][count:]
        if not shape or any(i >= side for i, side in zip(index, meta["shape"], strict=False)):
            raise ValueError(f"{self.name}, {name}: shape {meta['shape']} has no index {index}")
        if math.prod(shape) > MAX_VALUES:
            raise ValueError(f"{self.name}, {name}: shape {shape} is more than an image may have")
        numbers, rests = zip(*map(divmod, index, meta["chunks"]), strict=True)
        result = np.empty(shape, meta["dtype"])
        grid = (range(math.ceil(all_ / side)) for all_, side in zip(shape, chunk_shape, strict=True))
        for place in product(*grid):
            starts = [number * side for number, side in zip(place, chunk_shape, strict=True)]
            target = result[tuple(slice(start, start + side) for start, side in zip(starts, chunk_shape, strict=True))]
            target[...] = self._chunk(name, (*numbers, *place))[rests][tuple(map(slice, target.shape))]
        return result

    def _meta(self, name: str) -> dict:
        """What describes an array."""
        try:
            meta = json.loads(self._bytes(f"{name}/.zarray", 2**20))
            shape, chunks, compressor = meta["shape"], meta["chunks"], meta["compressor"]
            sound = (
                (meta["zarr_format"], meta["order"], meta["filters"]) in ((2, "C", None), (2, "C", []))
                and (compressor is None or compressor["id"] == "blosc")
                and re.fullmatch(r"[<>|][iuf][1248]", meta["dtype"]) is not None
                and 0 < len(shape) == len(chunks) <= 8
                and all(type(number) is int and 0 < number <= 2**20 for number in [*shape, *chunks])
                and math.prod(chunks) * np.dtype(meta["dtype"]).itemsize <= MAX_BYTES
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            sound, meta = False, {}
        if not sound:
            raise ValueError(f"{self.name}, {name}: expected a zarr 2 array of numbers, plain or compressed by Blosc")
        return meta

    def _bytes(self, member: str, most: int) -> bytes:
        """The content of a file in the zip file."""
        try:
            info = self.zip.getinfo(member)
            if info.file_size > most:
                raise ValueError(f"{self.name}: {member} has {info.file_size} bytes, expected at most {most}")
            return self.zip.read(info)
        except (KeyError, zipfile.BadZipFile, OSError, RuntimeError, EOFError, zlib.error) as error:
            raise ValueError(f"{self.name}: {member} is missing or damaged: {str(error)[:200]}") from None

    def _chunk(self, name: str, key: tuple[int, ...]) -> np.ndarray:
        if self.chunks.get(name, (None,))[0] == key:
            return self.chunks[name][1]
        meta = self._meta(name)
        size = math.prod(meta["chunks"]) * np.dtype(meta["dtype"]).itemsize
        separator = "/" if meta.get("dimension_separator") == "/" else "."
        data = self._bytes(f"{name}/{separator.join(map(str, key))}", size + 2**16)
        if meta["compressor"] is not None:
            data = _unpack(data, size, self.name)
        if len(data) != size:
            raise ValueError(f"{self.name}, {name}: a chunk has {len(data)} bytes, expected {size}")
        chunk = np.frombuffer(data, meta["dtype"]).reshape(meta["chunks"])
        self.chunks[name] = (key, chunk)
        return chunk


open_zarr = lru_cache(maxsize=2)(ZarrZip)  # SAR and EO of pairs that follow each other are often in the same files


def _part(path: Path, offset: int, size: int) -> IO[bytes]:
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, expected at most {MAX_BYTES}")
    with open(path, "rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))


def _unpack(data: bytes, size: int, name: str) -> bytes:
    """Blosc's content of `size` bytes; its header says how long it is, packed and unpacked."""
    try:
        from numcodecs.blosc import Blosc
    except ImportError:
        raise ValueError("the data are compressed by Blosc, which needs numcodecs: pip install numcodecs") from None
    if [int.from_bytes(data[start : start + 4], "little") for start in (4, 12)] != [size, len(data)]:
        raise ValueError(f"{name}: a chunk is no Blosc data of {size} bytes")
    try:
        return bytes(Blosc().decode(data))
    except RuntimeError as error:
        raise ValueError(f"{name}: a chunk cannot be unpacked: {str(error)[:200]}") from None


# ------------------------------------------------------------------------------------------------------- layouts


def find_ssl4eo(source: Path) -> Found:
    """SSL4EO-S12 v1.1 (Blumenstiel et al., 2025): 64 places in four seasons a file, 264 px; SAR in dB, EO level 2A.

    `train/S1GRD/ssl4eos12_train_seasonal_data_000001.zarr.zip` with the same name in `train/S2L2A/`; `val/` likewise.
    The published validation places are the test split, and validation is drawn from train. A place stays whole.
    """
    found = Found([], "by place; test: the published validation places")
    for split, sar, eo in _matching(source, ["S1GRD"], "S2L2A", "*.zarr.zip", found):
        try:
            places, seasons = ZarrZip(sar).shape("bands")[:2]
        except ValueError as error:
            found.skipped.append((str(sar), str(error)))
            continue
        for season, place in product(range(seasons), range(places)):
            group = f"{sar.name.split('.')[0]}_{place}"
            item = Item(f"{group}_{season}", {"sar": sar, "eo": eo}, group, split, {"scene": group})
            item.metadata |= {"season": str(season)} | SAR_DB | OFFSET_REFLECTANCE
            item.part = [(0, None), (0, None), (place, season)]
            found.items.append(item)
    return found


def find_terramesh(source: Path) -> Found:
    """TerraMesh (Blumenstiel et al., 2025): tar files of samples of 264 px, each a zarr.zip; SAR in dB, EO 8-bit RGB.

    `train/S1RTC/majortom_shard_000001.tar` (or `S1GRD/ssl4eos12_shard_000794.tar`) with that name in `train/S2RGB/`;
    samples in both have equal names, such as `majortom_train_0000001.zarr.zip`. `val/` likewise: it is the test split,
    and validation is drawn from train, by tar files. The pictures S2RGB are read and not S2L2A, whose offset is that of
    baseline 04.00 in some samples and not in others, without a mark.
    """
    found = Found([], "by tar file; test: the published validation samples")
    for split, sar, eo in _matching(source, ["S1RTC", "S1GRD"], "S2RGB", "*.tar", found):
        try:
            radar, optical = _members(sar), _members(eo)
        except ValueError as error:
            found.skipped.append((str(sar), str(error)))
            continue
        for sample in sorted(radar.keys() & optical.keys()):
            item = Item(sample, {"sar": sar, "eo": eo}, sar.name, split, {"scene": sar.name} | SAR_DB)
            item.metadata |= {"eo_units": "display", "eo_range": [0, 1]}
            item.part = [radar[sample], optical[sample], (0,)]
            found.items.append(item)
        alone = sorted(radar.keys() ^ optical.keys())
        found.skipped += [(sample, f"it is in one of {sar} and {eo} alone") for sample in alone]
    return found


def _matching(
    source: Path, sar_folders: list[str], eo_folder: str, pattern: str, found: Found
) -> Iterator[tuple[str | None, Path, Path]]:
    """The split, and the files of equal names of either sensor; SAR files without a partner are left out."""
    for folder, split in (("train", None), ("val", "test")):
        for sar in sorted(path for name in sar_folders for path in (source / folder / name).glob(pattern)):
            eo = source / folder / eo_folder / sar.name
            if not eo.is_file():
                found.skipped.append((str(sar), f"no {eo_folder} partner"))
                continue
            for path in (sar, eo):
                check_inside(path, source)
            yield split, sar, eo


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Where in a tar file the samples lie: their names to offset and size."""
    try:
        with tarfile.open(path, "r:") as tar:
            files = [(SAMPLE.fullmatch(PurePosixPath(member.name).name), member) for member in tar if member.isreg()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{path}: no tar file: {str(error)[:200]}") from None
    return {name[1]: (member.offset_data, member.size) for name, member in files if name}


def convert_zarr(item: Item) -> Contents:
    """VV and VH; and B04, B03, B02 of level 2A, or the picture. Masked where SAR is not finite, or EO is 0."""
    *parts, index = item.part
    sar, eo = (
        open_zarr(item.images[key], *part).read("bands", *index) for key, part in zip(("sar", "eo"), parts, strict=True)
    )
    if sar.ndim != 3 or len(sar) != 2 or eo.ndim != 3 or len(eo) not in (3, 12) or sar.shape[1:] != eo.shape[1:]:
        found = f"SAR {sar.shape} and EO {eo.shape}"
        raise ValueError(f"{item.images['eo']}: {found}; expected 2 bands, and 12 or 3, of one size.")
    image = np.moveaxis(sar, 0, -1).astype(np.float32)
    rgb = np.moveaxis(eo[[3, 2, 1]] if len(eo) == 12 else eo, 0, -1)
    rgb = rgb if rgb.dtype == np.uint8 else rgb.clip(0, 65535).astype(np.uint16)
    names = EO_BANDS if len(eo) == 12 else ("red", "green", "blue")
    contents = {"sar": tiff(image, SAR_BANDS, {}), "eo": tiff(rgb, names, {})}
    return mask_out(contents, np.isfinite(image).all(axis=2) & rgb.any(axis=2))
