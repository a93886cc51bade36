"""The forms that pairs are stored in: tables of files, parallel folders, Parquet, WebDataset and the Hub.

`open_splits` recognises the form. Files come from strangers: no path in a table or archive may leave its folder, and
no id may, since ids become file names.
"""

from __future__ import annotations

import csv
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from datasets import Dataset, Image, IterableDataset, concatenate_datasets, load_dataset

from c_diffset.files import HUB_ID, check_id

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
TABLE_NAMES = ("metadata.jsonl", "metadata.csv")
IMAGE_KEY = "_file_name"  # `sar_file_name` in a table becomes the image column `sar`, as `imagefolder` has it

Row = dict[str, Any]
Pairs = Dataset | IterableDataset


def open_splits(
    source: str | os.PathLike,
    streaming: bool,
    sar_dir: str | None = None,
    eo_dir: str | None = None,
    mask_dir: str | None = None,
) -> dict[str, Callable[[], Pairs]]:
    """Recognise the form of `source`; return for every split the function that loads it."""
    path = Path(source)
    if path.suffix == ".csv" and path.is_file():
        readers = _table_splits([path], path.parent)
    elif path.is_dir() and (sar_dir or eo_dir):
        readers = _folder_splits(path, sar_dir or "sar", eo_dir or "eo", mask_dir or "mask")
    elif path.is_dir():
        tables = [file for pattern in ("", "*/") for name in TABLE_NAMES for file in sorted(path.glob(pattern + name))]
        readers = _table_splits(tables, path) or _folder_splits(path, "sar", "eo", mask_dir or "mask")
    else:
        readers = {}
    if readers:
        return {name: partial(_from_rows, source, read, streaming) for name, read in readers.items()}
    return _packed_splits(path, str(source), streaming)


def _from_rows(source: str | os.PathLike, read: Callable[[], list[Row]], streaming: bool) -> Pairs:
    """A data set of rows with `sar`, `eo` and other images as `_ImagePath`."""
    rows = read()
    repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"{source}: id {repeated[0]!r} occurs more than once; ids must be unique within a split.")
    keys = dict.fromkeys(key for row in rows for key in row)
    dataset = Dataset.from_dict({key: [row.get(key) for row in rows] for key in keys})
    for key in keys:
        if any(isinstance(row.get(key), _ImagePath) for row in rows):
            dataset = dataset.cast_column(key, Image(decode=False))
    return dataset.to_iterable_dataset(num_shards=min(64, len(dataset))) if streaming else dataset


class _ImagePath(str):
    """The path of an image, told apart from other text."""


# ------------------------------------------------------------------------------------ tables: metadata and CSV


def _table_splits(tables: list[Path], root: Path) -> dict[str, Callable[[], list[Row]]]:
    """A table in a split folder is one split, a table at the root is divided by its column `split`."""
    splits = {}
    for table in tables:
        if table.parent == root:
            names = dict.fromkeys(entry.get("split") or "train" for entry in _read_table(table))
            splits |= {name: partial(_table_rows, table, name) for name in names}
        else:
            splits[table.parent.name] = partial(_table_rows, table)
    return splits


def _read_table(table: Path) -> list[Row]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        if table.suffix == ".csv":
            entries = list(csv.DictReader(file))
        else:
            try:
                entries = [json.loads(line) for line in file if line.strip()]
            except json.JSONDecodeError as error:
                raise ValueError(f"{table}: not a table of one JSON object a line: {error}") from error
    if not entries:
        raise ValueError(f"{table} names no pairs.")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or None in entry:  # DictReader files surplus fields under None
            raise ValueError(f"{table}, row {number}: expected one named value for each column; found {entry}.")
    return entries


def _table_rows(table: Path, split: str | None = None) -> list[Row]:
    """The rows of one split; warns of images beside the SAR images that the table does not name."""
    rows, named = [], set()
    for number, entry in enumerate(_read_table(table), 1):
        row = {}
        for key, value in entry.items():
            column = key.removesuffix(IMAGE_KEY)
            is_image = column != key or (table.suffix == ".csv" and key in ("sar", "eo", "mask"))
            if is_image and value:
                row[column] = _inside(table.parent, str(value), f"{table}, row {number}")
                named.add(row[column])
            elif not is_image:
                row[key] = value
        missing = [key for key in ("sar", "eo") if key not in row]
        if missing:
            raise ValueError(f"{table}, row {number} has no {' or '.join(missing)}; found {', '.join(entry)}.")
        row["id"] = check_id(str(row.get("id") or Path(row["sar"]).stem), f"{table}, row {number}")
        if split is None or (row.get("split") or "train") == split:
            rows.append(row)
    folders = {os.path.dirname(row["sar"]) for row in rows}
    stray = {file.path for folder in folders for file in os.scandir(folder) if _is_image(file.name)} - named
    if stray:
        warnings.warn(f"{table} leaves out {len(stray)} images, such as {min(stray)}.", stacklevel=2)
    return rows


def _inside(folder: Path, name: str, where: str) -> _ImagePath:
    """The path of a file that a table names, which must exist and lie inside the table's folder."""
    root = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(root, name))
    if not path.startswith(os.path.join(root, "")):
        raise ValueError(f"{where}: {name!r} lies outside {root}; paths must stay inside the folder of their table.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{where}: {name!r} is not a file in {root}.")
    return _ImagePath(path)


# ---------------------------------------------------------------------------------------------- parallel folders


def _folder_splits(root: Path, sar_dir: str, eo_dir: str, mask_dir: str) -> dict[str, Callable[[], list[Row]]]:
    if (root / sar_dir).is_dir():
        parents = {"train": root}
    else:
        parents = {child.name: child for child in sorted(root.iterdir()) if (child / sar_dir).is_dir()}
    return {
        name: partial(_folder_rows, parent / sar_dir, parent / eo_dir, parent / mask_dir)
        for name, parent in parents.items()
    }


def _folder_rows(sar_dir: Path, eo_dir: Path, mask_dir: Path) -> list[Row]:
    """Pair up files by their name without suffix; a mask may be absent, a partner may not."""
    sar, eo, masks = list_images(sar_dir), list_images(eo_dir), list_images(mask_dir)
    for names, others, folder in ((sar, eo, eo_dir), (eo, sar, sar_dir), (masks, sar, sar_dir)):
        lonely = sorted(names.keys() - others.keys())
        if lonely:
            raise ValueError(f"{len(lonely)} images have no partner in {folder}, such as {names[lonely[0]]}.")
    if not sar:
        raise ValueError(f"{sar_dir} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    rows = []
    for stem, path in sar.items():
        row = {"sar": _ImagePath(path), "eo": _ImagePath(eo[stem]), "id": stem.replace("/", "_")}
        rows.append(row | {"mask": _ImagePath(masks[stem])} if stem in masks else row)
    return rows


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def list_images(folder: Path) -> dict[str, Path]:
    """Images in a folder and below: path without suffix, relative and with slashes, to path, sorted."""
    found: dict[str, Path] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(parent, name)
            if _is_image(name):
                stem = path.relative_to(folder).with_suffix("").as_posix()
                if stem in found:
                    raise ValueError(f"{path} and {found[stem]} share their name; partners could not be told apart.")
                found[stem] = path
    return dict(sorted(found.items()))


# ----------------------------------------------------------------------------- Parquet, WebDataset, Hugging Face Hub


def _packed_splits(path: Path, source: str, streaming: bool) -> dict[str, Callable[[], Pairs]]:
    """Splits of what `datasets` reads itself. Local files belong to the split that their path names, else to train."""
    cache = [datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    if not path.exists():
        if not HUB_ID.fullmatch(source):
            raise FileNotFoundError(f"{source} is neither a file or folder nor the id of a data set on the Hub.")
        loaded, roots = load_dataset(source, streaming=streaming), [str(root) for root in cache]
    else:
        builder, files = _packed_files(path)
        data_files: dict[str, list[str]] = {}
        for file in files:
            name = file.relative_to(path if path.is_dir() else path.parent).as_posix()
            word = re.search(r"(?<![a-z])(train|validation|test)(?![a-z])", name)
            data_files.setdefault(word[1] if word else "train", []).append(str(file))
        loaded, roots = load_dataset(builder, data_files=data_files, streaming=streaming), []
    return {str(name): partial(_standard_columns, dataset, source, roots) for name, dataset in loaded.items()}


def _packed_files(path: Path) -> tuple[str, list[Path]]:
    for builder, suffix in (("parquet", ".parquet"), ("webdataset", ".tar")):
        files = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path] * (path.suffix == suffix)
        if files:
            return builder, files
    raise ValueError(
        f"{path} holds no pairs. Expected metadata.jsonl (at its root or in split folders), folders sar/ and eo/, "
        "or Parquet or WebDataset (.tar) files, or a CSV file with columns sar and eo."
    )


def _standard_columns(dataset: Pairs, source: str, roots: list[str]) -> Pairs:
    """Columns `sar`, `eo` and `mask` as undecoded images, `id`, and metadata, out of what a builder has loaded."""
    columns = dataset.column_names or []
    names = {column: column.split(".")[0] for column in columns if column.split(".")[0] in ("sar", "eo", "mask")}
    if sorted(names.values()) not in (["eo", "sar"], ["eo", "mask", "sar"]):
        raise ValueError(
            f"{source}: expected one column each for sar, eo and perhaps mask; found {', '.join(columns)}."
        )
    dataset = dataset.rename_columns({old: new for old, new in names.items() if old != new})
    others = [column for column, kind in dataset.features.items() if isinstance(kind, Image)]
    images = list(dict.fromkeys([*names.values(), *others]))
    for column in images:
        dataset = dataset.cast_column(column, Image(decode=False))
    rest = [column for column in dataset.column_names if column not in images]
    tidy = partial(_tidy_row, source=source, images=images, roots=roots)
    if isinstance(dataset, IterableDataset):
        return dataset.map(tidy, with_indices=True, remove_columns=rest)
    for column in images:
        for chunk in dataset.data.column(column).chunks:
            if chunk.field("bytes").null_count:
                for image in chunk.to_pylist():
                    _check_origin(image, source, roots)
    metadata = dataset.select_columns(rest) if rest else ({} for _ in range(len(dataset)))
    rows = [tidy(row, index) for index, row in enumerate(metadata)]
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = Dataset.from_dict({key: [row.get(key) for row in rows] for key in keys})
    return concatenate_datasets([dataset.select_columns(images), columns], axis=1)


def _tidy_row(row: Row, index: int, source: str, images: list[str], roots: list[str]) -> Row:
    """The id and metadata of a row; WebDataset keeps the former in `__key__` and the latter in `json`."""
    for column in images:
        _check_origin(row.get(column), source, roots)
    hidden = {"__key__", "__url__", "json", "id", *images}
    metadata = (row.get("json") or {}) | {key: value for key, value in row.items() if key not in hidden}
    name = next((value for value in (row.get("id"), metadata.get("id"), row.get("__key__")) if value is not None), None)
    name = f"{index:06d}" if name is None else str(name).removeprefix("./").replace("/", "_")
    return metadata | {"id": check_id(name, f"{source}, row {index}")}


def _check_origin(image: Mapping | None, source: str, roots: list[str]) -> None:
    """An image must be embedded, or be a file that `datasets` itself has fetched: below `roots` or on the Hub."""
    if image is None or image.get("bytes") is not None:
        return
    path = os.path.normpath(image["path"] or "")
    on_hub = image["path"].rsplit("::", 1)[-1].startswith("hf://") if image["path"] else False
    if not on_hub and not any(path.startswith(os.path.join(os.path.abspath(root), "")) for root in roots):
        raise ValueError(f"{source} refers to the file {image['path']!r} outside it; images must be embedded as bytes.")
