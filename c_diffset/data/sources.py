"""The forms that pairs are stored in: tables of files, parallel folders, Parquet, WebDataset and the Hub.

`open_splits` recognises the form. Files come from strangers, so one rule holds: the images of a row are embedded
bytes, real files inside of the data folder (links are followed first), or `hf://` files of the data set itself. Ids,
splits and names of image columns become file names: they are fit to be such.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
from datasets import Dataset, Image, IterableDataset, concatenate_datasets, load_dataset

from c_diffset.data.folders import eo_splits, folder_splits
from c_diffset.data.images import ON_HUB
from c_diffset.data.inside import ImagePath, Row, check_inside, is_image, some
from c_diffset.files import HUB_ID, check_id

IMAGES = ("sar", "eo", "mask", "discrepancy")  # what `read_pair` reads
TABLE_NAMES = ("metadata.jsonl", "metadata.csv")
IMAGE_KEY = "_file_name"  # `sar_file_name` in a table becomes the image column `sar`, as `imagefolder` has it

Pairs = Dataset | IterableDataset


def open_splits(
    source: str | os.PathLike,
    streaming: bool,
    sar_dir: str | None = None,
    eo_dir: str | None = None,
    mask_dir: str | None = None,
    columns: Mapping[str, str] | None = None,
    eo_alone: bool = False,
) -> dict[str, Callable[[], Pairs]]:
    """Recognise the form of `source`; return for every split the function that loads it.

    With `eo_alone`, rows have no `sar`, and need none: folders, tables and data sets of one image are recognised too.
    """
    path, readers, names = Path(source), {}, {old: new for new, old in (columns or {}).items()}
    if path.suffix == ".csv" and path.is_file():
        readers = _table_splits([path], path.parent, names, eo_alone)
    elif path.is_dir():
        tables = [] if sar_dir or eo_dir else _find_tables(path)
        readers = _table_splits(tables, path, names, eo_alone)
        if not readers and not names:
            dirs = (sar_dir or "sar", eo_dir or "eo", mask_dir or "mask")
            readers = eo_splits(path, *dirs[1:]) if eo_alone else folder_splits(path, *dirs)
    if readers:
        return {name: partial(_from_rows, str(source), read, streaming) for name, read in readers.items()}
    return _packed_splits(path, str(source), streaming, names, eo_alone)


def _from_rows(source: str, read: Callable[[], list[Row]], streaming: bool) -> Pairs:
    """A data set of rows with `sar`, `eo` and other images as `ImagePath`."""
    rows = read()
    repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"{source}: id {repeated[0]!r} occurs more than once; ids must be unique within a split.")
    dataset = _to_dataset(rows, source)
    for key in {key for row in rows for key, value in row.items() if isinstance(value, ImagePath)}:
        dataset = dataset.cast_column(key, Image(decode=False))
    return dataset.to_iterable_dataset(num_shards=min(64, len(dataset))) if streaming else dataset


def _to_dataset(rows: list[Row], source: str) -> Dataset:
    """Rows as a data set; columns that mix types, or hold what is too large for any, become text."""
    columns = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        columns[key] = [row.get(key) for row in rows]
        try:
            pa.array(columns[key])
        except (pa.ArrowException, OverflowError):
            columns[key] = [_text(value) for value in columns[key]]
        except ValueError as error:
            raise ValueError(f"{source}: the values of {key!r:.200} are no data: {error}") from None
    return Dataset.from_dict(columns)


def _flat(value: Any) -> Any:
    """A value of metadata: numbers, text and lists of them stay as they are, nested values become JSON text."""
    nested = isinstance(value, dict) or isinstance(value, list) and any(isinstance(x, (dict, list)) for x in value)
    return _text(value) if nested else value


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def _check_key(key: Any, images: Iterable[str], where: str) -> None:
    """Raise ValueError for metadata that has the name of an image column."""
    if key in IMAGES or key in images:
        raise ValueError(f"{where}: {key!r:.200} is no image there, but the name is kept for images: rename it.")


# ------------------------------------------------------------------------------------ tables: metadata and CSV


def _find_tables(root: Path) -> list[Path]:
    found = [file for pattern in ("", "[!.]*/") for name in TABLE_NAMES for file in sorted(root.glob(pattern + name))]
    for file in found:
        check_inside(file, root)
    return [file for file in found if file.is_file()]


def _table_splits(
    tables: list[Path], root: Path, new: Mapping[str, str], eo_alone: bool
) -> dict[str, Callable[[], list[Row]]]:
    """A table in a split folder is one split, a table at the root is divided by its column `split`."""
    splits = {}
    for table in tables:
        if table.parent == root:
            names = dict.fromkeys(check_id(_split_of(entry), str(table)) for entry in _read_table(table, new))
            splits |= {name: partial(_table_rows, table, root, new, eo_alone, name) for name in names}
        else:
            splits[table.parent.name] = partial(_table_rows, table, root, new, eo_alone)
    return splits


def _split_of(entry: Row) -> str:
    return str(entry.get("split") or "train")


def _read_table(table: Path, new: Mapping[str, str]) -> list[Row]:
    """The rows of a table, its columns under their new names; ValueError for a file that is no table."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            if table.suffix == ".csv":
                entries = list(csv.DictReader(file, strict=True))
            else:  # NaN and infinity, which JSON does not know, are missing values
                entries = [json.loads(line, parse_constant=lambda _: None) for line in file if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        kind = "a CSV file" if table.suffix == ".csv" else "a table of one JSON object a line"
        raise ValueError(f"{table}: not {kind}: {error}") from error
    if not entries:
        raise ValueError(f"{table} names no pairs.")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or None in entry:  # DictReader puts surplus fields under the key None
            raise ValueError(f"{table}, row {number}: expected one named value for each column; found {entry!r:.200}.")
    return [_renamed(entry, new, f"{table}, row {number}") for number, entry in enumerate(entries, 1)]


def _renamed(entry: Row, new: Mapping[str, str], where: str) -> Row:
    """A row of a table whose columns have their new names; those of images get the ending that marks them."""
    if not new:
        return entry
    for old, name in new.items():
        taken = {name, f"{name}{IMAGE_KEY}"} & entry.keys() - new.keys()
        if old not in entry or taken:
            found = f"found {', '.join(map(str, entry))!r:.300}"
            raise ValueError(f"{where}: no column {old!r:.200} that could become {name!r:.200}; {found}.")
    names = {old: f"{name}{IMAGE_KEY}" if name in IMAGES else name for old, name in new.items()}
    return {names.get(key, key): value for key, value in entry.items()}


def _image_columns(table: Path, keys: Iterable[str], eo_alone: bool) -> dict[str, str]:
    """The columns of a table that name images: their keys to the names of the images.

    Of EO images alone it is also `file_name`, as `imagefolder` has it.
    """
    columns = {}
    for key in keys:
        if key.endswith(IMAGE_KEY) or (table.suffix == ".csv" and key in IMAGES):
            columns[key] = check_id(key.removesuffix(IMAGE_KEY), f"{table}, {key!r:.200}")
            if columns[key] in ("id", "split"):
                raise ValueError(f"{table}: {key!r} cannot be an image: rename it.")
    return columns if not eo_alone or "eo" in columns.values() else columns | {"file_name": "eo"}


def _table_rows(table: Path, root: Path, new: Mapping[str, str], eo_alone: bool, split: str | None = None) -> list[Row]:
    """The rows of one split; warns of images beside the first images of rows that the table does not name."""
    rows, named, entries = [], set(), _read_table(table, new)
    columns = _image_columns(table, dict.fromkeys(key for entry in entries for key in entry), eo_alone)
    needed = ["eo"] if eo_alone else ["sar", "eo"]
    absent = []
    for number, entry in enumerate(entries, 1):
        row, where = {}, f"{table}, row {number}"
        for key, value in entry.items():
            if eo_alone and columns.get(key) == "sar":
                continue
            if key not in columns:
                _check_key(key, columns.values(), where)
                row[key] = _flat(value)
            elif value and columns[key] in row:
                raise ValueError(f"{where}: {columns[key]!r:.200} is named twice.")
            elif value:
                row[columns[key]] = _inside(table.parent, value, root, where)
                if not os.path.isfile(row[columns[key]]):
                    absent.append(f"row {number}: {value!r:.500}")
        named.update(value for value in row.values() if isinstance(value, ImagePath))
        missing = [key for key in needed if key not in row]
        if missing:
            raise ValueError(f"{where} has no {' or '.join(missing)}; found {', '.join(entry)!r:.200}.")
        row["id"] = check_id(str(row.get("id") or Path(row[needed[0]]).stem), where)
        if split is None or _split_of(row) == split:
            rows.append(row)
    if absent:
        what = "is not a file" if len(absent) == 1 else "are not files"
        raise FileNotFoundError(f"{table}, {some(absent)} {what} in {os.path.abspath(table.parent)}.")
    folders = {os.path.dirname(row[needed[0]]) for row in rows}
    stray = {file.path for folder in folders for file in os.scandir(folder) if is_image(file.name)} - named
    if stray:
        warnings.warn(f"{table} leaves out {len(stray)} images, such as {min(stray)}.", stacklevel=2)
    return rows


def _inside(folder: Path, name: Any, root: Path, where: str) -> ImagePath:
    """The path of a file that a table names, which must lie inside the table's folder and its data folder."""
    start = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(start, str(name)))
    if not path.startswith(os.path.join(start, "")):
        raise ValueError(
            f"{where}: {name!r:.500} lies outside {start}, the folder of the table; paths must stay inside."
        )
    check_inside(path, root, where)
    return ImagePath(path)


# ----------------------------------------------------------------------------- Parquet, WebDataset, Hugging Face Hub


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Turn the many types of errors that `datasets` raises, each of many lines, into one type of one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())[:500]
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{source} cannot be read as a data set: {reason}") from error


def _packed_splits(
    path: Path, source: str, streaming: bool, new: Mapping[str, str], eo_alone: bool
) -> dict[str, Callable[[], Pairs]]:
    """Splits of what `datasets` reads itself. Local files belong to the split that their path names, else to train."""
    hub = None
    if not path.exists():
        if not HUB_ID.fullmatch(source):
            raise FileNotFoundError(f"{source} is neither a file or folder nor the id of a data set on the Hub.")
        form, data_files, hub = source, None, source
    else:
        form, files = _packed_files(path, eo_alone)
        data_files = {}
        for file in files:
            name = file.relative_to(path if path.is_dir() else path.parent).as_posix()
            word = re.search(r"(?<![a-z])(train|validation|test)(?![a-z])", name)
            data_files.setdefault(word[1] if word else "train", []).append(glob.escape(os.path.abspath(file)))
    with _reading(source):
        loaded = load_dataset(form, data_files=data_files, streaming=streaming)
    return {
        str(name): partial(_standard_columns, dataset, source, hub, new, eo_alone) for name, dataset in loaded.items()
    }


def _packed_files(path: Path, eo_alone: bool) -> tuple[str, list[Path]]:
    for builder, suffix in (("parquet", ".parquet"), ("webdataset", ".tar")):
        files = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path] * (path.suffix == suffix)
        for file in files:
            if "::" in str(file):
                raise ValueError(f"{str(file)!r}: rename it, since '::' stands between addresses")
            if path.is_dir():
                check_inside(file, path)
        if files:
            return builder, files
    if eo_alone:
        raise ValueError(
            f"{path} holds no EO images. Expected images (in folders train, validation and test, or anywhere), or what "
            "pairs are stored in."
        )
    raise ValueError(
        f"{path} holds no pairs. Expected metadata.jsonl (at its root or in split folders), folders sar/ and eo/, "
        "or Parquet or WebDataset (.tar) files, or a CSV file with columns sar and eo."
    )


def _standard_columns(dataset: Pairs, source: str, hub: str | None, new: Mapping[str, str], eo_alone: bool) -> Pairs:
    """Columns of undecoded images, `id`, and metadata, out of what a builder has loaded."""
    columns = dataset.column_names or []
    bare = {column: new.get(column, new.get(column.split(".")[0], column.split(".")[0])) for column in columns}
    absent = new.keys() - {name for column in columns for name in (column, column.split(".")[0])}
    if absent:
        raise ValueError(f"{source}: no column {min(absent)!r:.200}; found {', '.join(columns)!r:.500}.")
    if eo_alone:
        dataset = dataset.remove_columns([column for column, name in bare.items() if name == "sar"])
        columns = dataset.column_names or []
        bare = {column: bare[column] for column in columns}
        pictures = [column for column in columns if isinstance(dataset.features[column], Image)]
        if "eo" not in bare.values() and len(pictures) == 1:
            bare[pictures[0]] = "eo"
    names = {column: name for column, name in bare.items() if name in IMAGES}
    needed = {"eo"} if eo_alone else {"sar", "eo"}
    if not needed <= set(names.values()) or len(set(names.values())) < len(names):
        expected = "eo, or one column of images" if eo_alone else "sar, eo"
        raise ValueError(
            f"{source}: expected one column each for {expected} and perhaps mask and discrepancy; "
            f"found {', '.join(columns)!r:.500}."
        )
    found = [column for column in columns if column in names or isinstance(dataset.features[column], Image)]
    rest = [column for column in columns if column not in found]
    for column in rest:
        if _opens_files(dataset.features[column]):
            raise ValueError(f"{source}: the column {column!r:.200} holds other media, or images inside: remove it.")
    with _reading(source):
        for column in found:  # comes first, because a streamed data set decodes its images when columns are renamed
            dataset = dataset.cast_column(column, Image(decode=False))
        others = {column: bare[column] for column in rest if column in new}
        dataset = dataset.rename_columns({old: name for old, name in (names | others).items() if old != name})
        rest = [others.get(column, column) for column in rest]
    images = [names.get(column, column) for column in found]
    tidy = partial(_tidy_row, source=source, images=images, hub=hub)
    if isinstance(dataset, IterableDataset):
        return dataset.map(tidy, with_indices=True, remove_columns=rest)
    for column in images:
        for chunk in dataset.data.column(column).chunks:
            if chunk.field("bytes").null_count:
                for image in chunk.to_pylist():
                    _check_origin(image, source, hub)
    metadata = dataset.select_columns(rest) if rest else ({} for _ in range(len(dataset)))
    rows = [tidy(row, index) for index, row in enumerate(metadata)]
    return concatenate_datasets([dataset.select_columns(images), _to_dataset(rows, source)], axis=1)


def _opens_files(kind: Any) -> bool:
    """Whether a type of column reads the files that its values name: images, sound and films, at any depth."""
    if isinstance(kind, (dict, list)):
        return any(map(_opens_files, kind.values() if isinstance(kind, dict) else kind))
    inner = getattr(kind, "feature", None)
    media = hasattr(kind, "decode_example") and type(kind).__name__ != "Json"
    return media or (inner is not None and _opens_files(inner))


def _tidy_row(row: Row, index: int, source: str, images: list[str], hub: str | None) -> Row:
    """The id and metadata of a row; WebDataset keeps the former in `__key__` and the latter in `json`."""
    where = f"{source}, row {index}"
    for column in images:
        _check_origin(row.get(column), source, hub)
    inner = row["json"] if isinstance(row.get("json"), dict) else {}
    hidden = {"__key__", "__url__", "id", *images, *(["json"] if inner else [])}
    for key in inner:
        _check_key(key, images, where)
    metadata = {key: _flat(value) for key, value in (inner | row).items() if key not in hidden}
    named = (row.get("id"), inner.get("id"), row.get("__key__"))
    name = next((str(value).removeprefix("./").replace("/", "_") for value in named if value is not None), None)
    return metadata | {"id": check_id(f"{index:06d}" if name is None else name, where)}


def _check_origin(image: Mapping | None, source: str, hub: str | None) -> None:
    """An image must be embedded or, in a data set of the Hub, a file of its own: there, or where `datasets` puts it."""
    if image is None or isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes):
        return
    path = isinstance(image, Mapping) and image.get("path") or ""
    if hub is not None:
        if ON_HUB.match(path) and path.startswith((f"hf://datasets/{hub}/", f"hf://datasets/{hub}@")):
            return
        own = os.path.join(huggingface_hub.constants.HF_HUB_CACHE, f"datasets--{hub.replace('/', '--')}")
        extracted = datasets.config.EXTRACTED_DATASETS_PATH  # whose folders have hashes for names
        real = os.path.realpath(path)
        if any(real.startswith(os.path.join(os.path.realpath(root), "")) for root in (own, extracted)):
            return
    raise ValueError(f"{source} refers to the file {path!r:.500} outside it; images must be embedded as bytes.")
