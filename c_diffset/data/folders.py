"""Images that folders hold: pairs in parallel folders, and EO images alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from c_diffset.data.inside import IMAGE_SUFFIXES, ImagePath, Row, find_images, list_images, some
from c_diffset.files import check_id

SPLITS = ("train", "validation", "test")


def folder_splits(root: Path, sar_dir: str, eo_dir: str, mask_dir: str) -> dict[str, Callable[[], list[Row]]]:
    if (root / sar_dir).is_dir():
        parents = {"train": root}
    else:
        children = (child for child in sorted(root.iterdir()) if not child.name.startswith("."))
        parents = {child.name: child for child in children if (child / sar_dir).is_dir()}
    return {
        name: partial(_folder_rows, root, parent / sar_dir, parent / eo_dir, parent / mask_dir)
        for name, parent in parents.items()
    }


def _folder_rows(root: Path, sar_dir: Path, eo_dir: Path, mask_dir: Path) -> list[Row]:
    """Pair up files by their name without suffix; a mask may be absent, a partner may not."""
    sar, eo, masks = (list_images(folder, root) for folder in (sar_dir, eo_dir, mask_dir))
    lonely = [
        f"{names[stem]} has none in {folder.name}"
        for names, others, folder in ((sar, eo, eo_dir), (eo, sar, sar_dir), (masks, sar, sar_dir))
        for stem in sorted(names.keys() - others.keys())
    ]
    if lonely:
        raise ValueError(f"{len(lonely)} images have no partner of the same name: {some(lonely)}.")
    if not sar:
        raise ValueError(f"{sar_dir} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    rows = []
    for stem, path in sar.items():
        images = {"sar": path, "eo": eo[stem]} | ({"mask": masks[stem]} if stem in masks else {})
        name = check_id(stem.replace("/", "_"), str(sar_dir))
        rows.append({key: ImagePath(image) for key, image in images.items()} | {"id": name})
    return rows


def eo_splits(root: Path, eo_dir: str, mask_dir: str) -> dict[str, Callable[[], list[Row]]]:
    """EO images alone: in `eo_dir` (with masks in `mask_dir`) as in `folder_splits`, else in folders named like
    splits, else anywhere."""
    if (root / eo_dir).is_dir():
        parents = {"train": root}
    else:
        parents = {child.name: child for child in sorted(root.glob("[!.]*")) if (child / eo_dir).is_dir()}
    if parents:
        folders = {name: (parent / eo_dir, parent / mask_dir) for name, parent in parents.items()}
    else:
        names = [name for name in SPLITS if (root / name).is_dir()]
        folders = {name: (root / name, None) for name in names} or {"train": (root, None)}
    return {
        name: partial(_eo_rows, root, *places)
        for name, places in folders.items()
        if next(find_images(places[0], root), None) is not None
    }


def _eo_rows(root: Path, eo_dir: Path, mask_dir: Path | None) -> list[Row]:
    masks = {} if mask_dir is None else list_images(mask_dir, root)
    rows = []
    for stem, path in list_images(eo_dir, root).items():
        images = {"eo": path} | ({"mask": masks[stem]} if stem in masks else {})
        name = check_id(stem.replace("/", "_"), str(eo_dir))
        rows.append({key: ImagePath(image) for key, image in images.items()} | {"id": name})
    return rows
