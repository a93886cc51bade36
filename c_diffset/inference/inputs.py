"""Which files a translation reads, and which it writes."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from c_diffset.inference.stac import is_item, read_item
from c_diffset.sar.safe import is_safe

IMAGES = (".png", ".jpg", ".jpeg")
RASTERS = (".tif", ".tiff")


class Outputs(NamedTuple):
    """The files that one input becomes."""

    eo: Path
    confidence: Path | None
    item: Path | None
    preview: Path | None = None

    @property
    def files(self) -> list[Path]:
        """The files that are wanted."""
        return [path for path in self if path is not None]


def is_raster(path: Path) -> bool:
    """Whether a file's name is that of a TIFF."""
    return path.suffix.lower() in RASTERS


def is_scene(path: Path) -> bool:
    """Whether this is translated window by window: a TIFF, or a SAFE folder."""
    return is_raster(path) or is_safe(path)


def find_inputs(inputs: list[str], output: Path | None = None, in_list: bool = False) -> list[Path]:
    """What files, folders, glob patterns, lists and STAC items name: images, GeoTIFF and SAFE folders, each once.

    A folder stands for the images and SAFE folders in it, in order of name; a list is a .txt file with one input a
    line, relative to it; a STAC item is a .json or .geojson file.

    Args:
        inputs: their names.
        output: a folder that recursive patterns do not look into.
        in_list: they come from a list, which names no further list.

    Raises:
        FileNotFoundError: an input that names nothing.
        ValueError: a STAC item, list or pattern that cannot be used, or a line break in a name.
    """
    found: dict[str, Path] = {}
    for name in inputs:
        if "\n" in name or "\r" in name:
            raise ValueError(f"the input {name!r} holds a line break: rename it, or give the folder that it is in")
        path = Path(name)
        if in_list and _is_list(path):
            raise ValueError(f"a list names {name}, another list: expected images, GeoTIFF, folders, patterns or items")
        if path.is_file() or path.is_dir():
            matches = _expand(path)
        else:
            names = [match for match in matching(name, output) if match.is_file() or is_safe(match)]
            matches = [file for match in names if not in_list or not _is_list(match) for file in _expand(match)]
        if not matches:
            raise FileNotFoundError(f"{name}: no such file, no image in that folder, and no match as a pattern")
        for match in matches:
            found.setdefault(os.path.abspath(match), match)
    return list(found.values())


def matching(pattern: str, output: Path | None = None) -> list[Path]:
    """What a glob pattern names, in order; `**` follows no links, which can lead in circles, and leaves `output` out.

    Raises:
        ValueError: no valid pattern.
    """
    if "**" not in pattern:
        return [Path(match) for match in sorted(glob.glob(pattern))]
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:first])
    found = []
    for match in sorted(base.glob(str(Path(*parts[first:])))):
        hidden = any(part.startswith(".") for part in match.relative_to(base).parts)
        inside = output is not None and Path(os.path.realpath(match)).is_relative_to(os.path.realpath(output))
        found += [] if hidden or inside else [match]
    return found


def _is_list(path: Path) -> bool:
    return path.suffix.lower() == ".txt"


def _expand(path: Path) -> list[Path]:
    if is_safe(path):
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        return [file for file in files if is_safe(file) or file.is_file() and file.suffix.lower() in IMAGES + RASTERS]
    if is_item(path):
        return [read_item(path)]
    if _is_list(path):
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no list of inputs in UTF-8: {error}") from None
        names = [str(path.parent / line) for line in lines if line and not line.startswith("#")]
        return find_inputs(names, in_list=True)
    return [path]


def plan_outputs(
    sources: list[Path], output: Path, confidence: bool, stac: bool, named: Iterable[Path] = (), preview: bool = False
) -> dict[Path, Outputs]:
    """The output files of every input, under its name; `named` are further files that must stay (items, lists).

    Raises:
        ValueError: two inputs would share an output, or an output would replace an input.
    """
    inputs = {os.path.realpath(source) for source in [*sources, *named]}
    plan: dict[Path, Outputs] = {}
    owner: dict[Path, Path] = {}
    for source in sources:
        scene = is_scene(source)
        stem = Path(os.path.abspath(source)).name.removesuffix(".SAFE") if source.is_dir() else source.stem
        plan[source] = Outputs(
            output / (f"{stem}.tif" if source.is_dir() else source.name),
            output / f"{stem}_confidence.{'tif' if scene else 'png'}" if confidence else None,
            output / f"{stem}.json" if stac and scene else None,
            output / f"{stem}_preview.png" if preview else None,
        )
        for target in plan[source].files:
            if target in owner:
                raise ValueError(f"{owner[target]} and {source} would both become {target}: translate them apart")
            if os.path.realpath(target) in inputs:
                raise ValueError(f"{target} would replace an input: choose another output folder")
            owner[target] = source
    return plan
