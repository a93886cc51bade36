"""Images inside of a data folder: what lies outside, when all links are followed, is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LISTED = 20  # names in one message

Row = dict[str, Any]


class ImagePath(str):
    """The path of an image that has been checked, told apart from other text."""


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:LISTED]) + f" and {len(names) - LISTED} more" * (len(names) > LISTED)


def check_inside(path: str | os.PathLike, folder: str | os.PathLike, where: str = "") -> None:
    """Refuse what lies, when all links are followed, outside of the folder.

    In a snapshot that the Hub's client has downloaded, files are links to the blobs beside it; those may be.

    Raises:
        ValueError: it lies outside; the message starts with `where`.
    """
    real = os.path.realpath(path)
    if not any(real == root or real.startswith(os.path.join(root, "")) for root in _roots(os.path.abspath(folder))):
        raise ValueError(f"{where or path}: {str(path)!r:.500} lies outside {folder}; images must lie inside.")


@lru_cache(maxsize=16)
def _roots(folder: str) -> tuple[str, ...]:
    real = Path(folder).resolve()
    repositories = (part.parent for part in real.parents if part.name == "snapshots")
    return str(real), *(str(part / "blobs") for part in repositories if part.name.startswith("datasets--"))


def find_images(folder: Path, root: Path) -> Iterator[Path]:
    """Images in a folder and below it, in order; links are followed, each folder is visited once.

    Raises:
        ValueError: a link leads out of `root`.
        OSError: a folder cannot be read.
    """

    def fail(error: OSError):
        raise error

    check_inside(folder, root)
    visited = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        new = {os.path.realpath(os.path.join(parent, name)): name for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for real, name in new.items() if real not in visited]
        visited |= new.keys()
        images = sorted(filter(is_image, names))
        for name in (*folders, *images):
            check_inside(os.path.join(parent, name), root)
        yield from (Path(parent, name) for name in images)


def list_images(folder: Path, root: Path) -> dict[str, Path]:
    """The images of `find_images` by their path without suffix, relative and with slashes, sorted."""
    found: dict[str, Path] = {}
    for path in find_images(folder, root) if folder.is_dir() else ():
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(f"{path} and {found[stem]} share their name; partners could not be told apart.")
        found[stem] = path
    return dict(sorted(found.items()))


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
