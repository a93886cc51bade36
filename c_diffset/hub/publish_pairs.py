"""Pairs as a data set of the Hugging Face Hub: Parquet with the images inside, splits kept, and a card."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image
from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData

from c_diffset.data.pairs import list_splits, load_pairs
from c_diffset.hub.folder import check_repo_id, choose_license
from c_diffset.hub.publish import write_aside
from c_diffset.hub.repository import UNTOUCHED, Repository, check_token

SHARD_BYTES = 500_000_000
GROUP_ROWS = 100  # pairs in memory at a time, and in one row group
ORDER = ("train", "validation", "test")  # others after them
MANIFEST = "pairs.json"  # which pairs these are: tells another data set from a new state of this one
SHOWN_SUFFIXES = (".png", ".jpg", ".jpeg")  # what the Hub can show; float rasters stay undecoded files
IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TAGS = ["sar", "eo", "remote-sensing", "earth-observation", "c_diffset"]


def check_push(repo: str, license: str | None) -> None:
    """Refuse, before any work, what cannot be published.

    Raises:
        ValueError: `repo` is no Hub id, or no licence is named.
        PermissionError: no token.
    """
    _check_named(repo, license)
    check_token()


def _check_named(repo: str, license: str | None) -> None:
    check_repo_id(repo)
    if license is None:
        raise ValueError("no license: a data set is published under that of its source, such as 'cc-by-4.0'; name it")
    choose_license(license, None)


def publish_pairs(
    source: str | os.PathLike,
    repo: str,
    license: str | None = None,
    private: bool = False,
    dry_run: str | os.PathLike | None = None,
    message: str = "Publish the pairs",
    overwrite: bool = False,
) -> str:
    """Publish pairs as a data set repository: Parquet in shards of 500 MB, and a card, in one commit.

    One shard at a time lies on disk. An interrupted publish can be repeated.

    Args:
        source: what `load_pairs` reads, such as the folder that `prepare` has written.
        repo: Hub id, user/name; made if it does not exist.
        license: identifier of the licence of the data, which must allow it.
        private: make a new repository private.
        dry_run: a new or empty folder that everything is written to, instead of the Hub.
        message: of the commit.
        overwrite: replace a repository that holds other data.

    Returns:
        The address of the commit, or the dry run's folder.

    Raises:
        ValueError: an unfit id or licence, unusable pairs, or a repository with other data.
        PermissionError: no token.
        OSError: the connection was lost, or the Hub refuses; the message says whether anything was committed.
    """
    if dry_run is not None:
        _check_named(repo, license)
        write_aside(Path(dry_run), lambda folder: _write_folder(source, repo, license, folder))
        print(f"{dry_run}: complete, nothing was sent")
        return str(dry_run)
    check_push(repo, license)
    splits = _open(source)
    manifest = describe_pairs(splits)
    repository = Repository(repo, "dataset")
    if not overwrite:
        check_same_pairs(repository, manifest)
    repository.create(private)
    additions = []
    with tempfile.TemporaryDirectory(prefix="c_diffset_publish_") as aside:
        for shard in write_shards(splits, Path(aside)):
            name = shard.relative_to(aside).as_posix()
            additions.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=shard))
            repository.upload(additions[-1:])
            shard.unlink()  # the commit only needs its checksum
        for name, text in _texts(repo, license, manifest, splits).items():
            additions.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=text.encode()))
        kept = {addition.path_in_repo for addition in additions} | set(UNTOUCHED)
        stale = [name for name in repository.files if name not in kept and (overwrite or name.startswith("data/"))]
        url = repository.commit(additions, stale, message)
    print(f"published: {repository.url}")
    return url


def _open(source: str | os.PathLike) -> dict[str, Dataset]:
    splits = sorted(
        list_splits(source), key=lambda split: (ORDER.index(split) if split in ORDER else len(ORDER), split)
    )
    return {split: load_pairs(source, split) for split in splits}


def _write_folder(source: str | os.PathLike, repo: str, license: str, folder: Path) -> None:
    splits = _open(source)
    for _ in write_shards(splits, folder):
        pass
    for name, text in _texts(repo, license, describe_pairs(splits), splits).items():
        (folder / name).write_text(text, encoding="utf-8")


def check_same_pairs(repository: Repository, manifest: dict) -> None:
    """Refuse a repository that holds other data than these pairs; ValueError."""
    found = repository.read_json(MANIFEST)
    others = [name for name in repository.files if name not in ("README.md", MANIFEST, *UNTOUCHED)]
    if others and found != manifest:
        what = f"other pairs ({found.get('splits')}, not {manifest['splits']})" if found else f"{others[0]}"
        raise ValueError(
            f"{repository.url} exists and holds {what}: choose another repository, or set overwrite to replace them"
        )


# ------------------------------------------------------------------------------------------------------- contents


def describe_pairs(splits: dict[str, Dataset]) -> dict:
    """How many pairs each split has, and a checksum of their ids."""
    ids = "".join(f"{split} {name}\n" for split, rows in splits.items() for name in sorted(rows["id"]))
    counts = {split: len(rows) for split, rows in splits.items()}
    return {"splits": counts, "ids_sha256": hashlib.sha256(ids.encode()).hexdigest()}


def write_shards(splits: dict[str, Dataset], folder: Path) -> Iterator[Path]:
    """Write `data/SPLIT-00000-of-00001.parquet` and so on, images inside; yields each file when it is complete."""
    (folder / "data").mkdir()
    for split, rows in splits.items():
        images = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
        schema = _features(rows, images).arrow_schema
        total = sum(_size(image) for name in images for image in rows[name] if image)
        count = max(1, math.ceil(total / SHARD_BYTES))
        for number in range(count):
            shard = rows.shard(count, number, contiguous=True)
            path = folder / "data" / f"{split}-{number:05d}-of-{count:05d}.parquet"
            with pq.ParquetWriter(path, schema) as writer:
                for start in range(0, len(shard), GROUP_ROWS):
                    group = shard.select(range(start, min(start + GROUP_ROWS, len(shard))))
                    embedded = [row | {name: _embed(row[name]) for name in images} for row in group]
                    writer.write_table(pa.Table.from_pylist(embedded, schema=schema))
            yield path


def _features(rows: Dataset, images: list[str]) -> Features:
    """The columns' types; images that the Hub can show are marked to be decoded."""
    shown = {
        name: all((image["path"] or "").lower().endswith(SHOWN_SUFFIXES) for image in rows[name] if image)
        for name in images
    }
    return Features(
        {name: Image(decode=shown[name]) if name in shown else kind for name, kind in rows.features.items()}
    )


def _size(image: dict) -> int:
    return len(image["bytes"]) if image["bytes"] is not None else os.path.getsize(image["path"])


def _embed(image: dict | None) -> dict | None:
    """An image with its file's content, and of its path the name alone.

    Raises:
        ValueError: the file is no image, such as a link to something else.
    """
    if image is None:
        return None
    content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    if not content.startswith(IMAGE_MAGIC):
        raise ValueError(f"{image['path']} is no PNG, JPEG or TIFF file: remove the pair")
    return {"bytes": content, "path": os.path.basename(image["path"] or "") or None}


def _texts(repo: str, license: str, manifest: dict, splits: dict[str, Dataset]) -> dict[str, str]:
    """The card and the manifest."""
    return {"README.md": pairs_card(repo, license, splits), MANIFEST: json.dumps(manifest, indent=2) + "\n"}


def pairs_card(repo: str, license: str, splits: dict[str, Dataset]) -> str:
    """The README.md of a data set repository, metadata included."""
    counts = {split: len(rows) for split, rows in splits.items()}
    size = next((name for limit, name in SIZES if sum(counts.values()) < limit), "n>1M")
    data = DatasetCardData(
        license=license,
        task_categories=["image-to-image"],
        size_categories=[size],
        tags=TAGS,
        pretty_name=repo.split("/")[1],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
    )
    first = next(iter(splits.values()))
    meanings = {
        "sar": "the SAR image, a file with the values that it stores",
        "eo": "the EO image of the same pixels, red, green, blue",
        "mask": "where the pair is valid: not 0",
        "discrepancy": "where the two images are known to show different things: not 0",
        "id": "unique within a split",
    }
    columns = [f"| `{name}` | {meanings.get(name, 'metadata')} |" for name in first.column_names]
    rows = [f"| {split} | {count} |" for split, count in counts.items()]
    text = f"""\
# {data.pretty_name}

Pairs of SAR and EO images that show the same ground, for training and testing SAR to EO translation with c_diffset.

```python
from c_diffset import load_pairs

rows = load_pairs("{repo}", "{next(iter(splits))}")
```

`datasets.load_dataset("{repo}")` reads it as well. SAR rasters in floating point stay undecoded files (GeoTIFF).

| split | pairs |
|---|---|
{chr(10).join(rows)}

| column | |
|---|---|
{chr(10).join(columns)}

The licence, `{license}`, is that of the source; cite the source, too.
"""
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n{text}"))
