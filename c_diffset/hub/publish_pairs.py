"""Pairs as a data set of the Hugging Face Hub: Parquet with the images inside, splits kept, and a card."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image
from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData

from c_diffset.data.pairs import list_splits, load_pairs
from c_diffset.files import folder_aside, image_kind, locked, make_own, remove_own
from c_diffset.hub.checks import check_repo_id
from c_diffset.hub.licence import choose_license
from c_diffset.hub.markdown import code, plain
from c_diffset.hub.repository import UNTOUCHED, Repository, check_token

TEMPLATE = Path(__file__).with_name("pairs_card.md.j2")
SHARD_BYTES = 500_000_000
GROUP_ROWS = 100  # pairs in memory at a time, and in one row group
ORDER = ("train", "validation", "test")  # other splits come after these
MANIFEST = "pairs.json"  # which pairs these are: tells another data set from a new state of this one
SHOWN_SUFFIXES = (".png", ".jpg", ".jpeg")  # what the Hub can show; float rasters stay undecoded files
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
        source: The pairs, as `load_pairs` reads them, such as the folder that `prepare` has written.
        repo: The Hub id of the repository, user/name; it is made if it does not exist.
        license: The identifier of the licence of the data, which must allow it.
        private: Make a new repository private.
        dry_run: A new or empty folder that everything is written to, instead of the Hub.
        message: The message of the commit.
        overwrite: Replace what a repository holds, even where that is other pairs.

    Returns:
        The address of the commit, or the dry run's folder.

    Raises:
        ValueError: an unfit id or licence, unusable pairs, or a repository with other data.
        PermissionError: no token.
        OSError: the connection was lost, or the Hub refuses; the message says whether anything was committed.
    """
    _check_named(repo, license)
    if dry_run is None:
        check_token()
    splits = _open(source)
    manifest = describe_pairs(splits)
    texts = {"README.md": pairs_card(repo, license, splits), MANIFEST: json.dumps(manifest, indent=2) + "\n"}
    if dry_run is not None:
        with folder_aside(Path(dry_run)) as aside:
            for _ in write_shards(splits, aside):
                pass
            for name, text in texts.items():
                (aside / name).write_text(text, encoding="utf-8")
        print(f"{dry_run}: complete, nothing was sent")
        return str(dry_run)
    repository = Repository(repo, "dataset")
    if not overwrite:
        check_same_pairs(repository, manifest)
    repository.create(private)
    additions = []
    with _work_folder(repo) as aside:
        for shard in write_shards(splits, aside):
            name = shard.relative_to(aside).as_posix()
            additions.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=shard))
            repository.upload(additions[-1:])
            shard.unlink()  # the commit only needs its checksum
        additions += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=texts[name].encode()) for name in texts]
        kept = {addition.path_in_repo for addition in additions} | set(UNTOUCHED)
        stale = [name for name in repository.files if name not in kept and (overwrite or name.startswith("data/"))]
        url = repository.commit(additions, stale, message)
    print(f"published: {repository.url}")
    return url


@contextmanager
def _work_folder(repo: str) -> Iterator[Path]:
    """A folder for shards; what a killed call for the same repository has left there goes first."""
    folder = Path(huggingface_hub.constants.HF_HOME, "c_diffset", repo.replace("/", "--"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock"), f"another process publishes to {repo}: wait until it ends"):
        if folder.exists():
            remove_own(folder)
        make_own(folder)
        try:
            yield folder
        finally:
            remove_own(folder)


def _open(source: str | os.PathLike) -> dict[str, Dataset]:
    names = list_splits(source)
    for name in names:  # the names of splits become names of files
        if not re.fullmatch(r"\w+([.-]\w+)*", name):
            raise ValueError(f"{source}: the split {plain(repr(name))} cannot be published: expected letters, digits")
    names = sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return {name: load_pairs(source, name) for name in names}


def check_same_pairs(repository: Repository, manifest: dict) -> None:
    """Refuse a repository that holds other data than these pairs; ValueError."""
    found = repository.read_json(MANIFEST)
    others = [name for name in repository.files if name not in ("README.md", MANIFEST, *UNTOUCHED)]
    if others and found != manifest:
        what = f"other pairs ({plain(found.get('splits'))}, not {manifest['splits']})" if found else plain(others[0])
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
    if image_kind(content[:8]) is None:
        raise ValueError(f"{plain(image['path'])} is no PNG, JPEG or TIFF file: remove the pair")
    return {"bytes": content, "path": os.path.basename(image["path"] or "") or None}


def pairs_card(repo: str, license: str, splits: dict[str, Dataset]) -> str:
    """The README.md of a data set repository, metadata included."""
    counts = {split: len(rows) for split, rows in splits.items()}
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    data = DatasetCardData(
        license=license,
        task_categories=["image-to-image"],
        size_categories=[next((name for limit, name in SIZES if sum(counts.values()) < limit), "n>1M")],
        tags=TAGS,
        pretty_name=repo.split("/")[1],
        configs=[{"config_name": "default", "data_files": files}],
    )
    columns = next(iter(splits.values())).column_names
    given = {"code": code, "repo": repo, "counts": counts, "columns": columns, "license": license}
    return str(DatasetCard.from_template(data, template_path=str(TEMPLATE), **given))
