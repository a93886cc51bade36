"""Dividing pairs into splits that share no region or scene."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from datasets import Dataset

PLACES = ("region", "scene")  # columns that name a place
STRIPS = 20  # from west to east, where only bounds are known
STRIPS_OF_GROUND = "strips of ground from west to east"


def describe_split(by: str) -> str:
    """How a split by `by` was made, in words."""
    return (
        "random (neighbouring or overlapping patches may fall into different splits)" if by == "random" else f"by {by}"
    )


def assign_splits(groups: Sequence[str], fractions: Mapping[str, float], seed: int = 0) -> list[str]:
    """The split of every item, given its group.

    Groups stay whole, no split is empty, and the shares are as near to `fractions` as the groups allow. The result
    depends on the set of groups, their sizes and the seed alone, not on the order of the items.
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


@dataclass
class HeldOut:
    """Pairs to train on, pairs to validate on, and in words how they were divided."""

    train: Dataset
    validation: Dataset
    rule: str


def hold_out(rows: Dataset, fraction: float, seed: int = 0) -> HeldOut:
    """Divide pairs into those that are trained on and a share that is validated on, by place where places are known.

    A place is a value of the column `region` or `scene`, or else one of 20 strips from west to east, by `bounds` (left,
    bottom, right, top, in `crs`). What overlaps with held-out ground at the border of a strip belongs to neither.

    Raises:
        ValueError: there are fewer than two pairs.
    """
    if len(rows) < 2:
        raise ValueError("fewer than two pairs cannot be divided into training and validation")
    for groups, by in places(rows):
        split = np.array(assign_splits(groups, {"train": 1 - fraction, "validation": fraction}, seed))
        trained, held, rule = (
            np.flatnonzero(split == "train"),
            np.flatnonzero(split == "validation"),
            describe_split(by),
        )
        if by == STRIPS_OF_GROUND:
            border = overlapping(*(part for chosen in (trained, held) for part in _bounds(rows.select(chosen))))
            trained = trained[~border]
            rule += f" ({border.sum()} pairs at the border are left out)" * bool(border.any())
        if len(trained):
            break
    return HeldOut(rows.select(trained), rows.select(held), rule)


def places(rows: Dataset) -> Iterator[tuple[list[str], str]]:
    """Ways of grouping the rows by place, the best first, and last none."""
    for column in PLACES:
        values = rows[column][:] if column in rows.column_names else [None]
        if None not in values and len(set(values)) > 1:
            yield list(map(str, values)), column
    bounds, crs = _bounds(rows)
    if len(bounds):
        centres = bounds[:, [0, 2]].mean(axis=1)
        strips = np.searchsorted(np.quantile(centres, np.arange(1, STRIPS) / STRIPS), centres, side="right")
        groups = [f"{system} {strip}" for system, strip in zip(crs, strips, strict=True)]
        if len(set(groups)) > 1:
            yield groups, STRIPS_OF_GROUND
    yield list(map(str, rows["id"][:])), "random"


def _bounds(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The bounds (N x 4) and the names of the coordinate systems of all rows; nothing where not every row has them."""
    try:
        bounds = np.array(rows["bounds"][:], dtype=float)
    except (KeyError, ValueError, TypeError):
        bounds = np.empty(0)
    if bounds.ndim != 2 or bounds.shape[1] != 4 or not np.isfinite(bounds).all():
        return np.empty((0, 4)), np.empty(0, str)
    return bounds, np.array(list(map(str, rows["crs"][:])) if "crs" in rows.column_names else [""] * len(rows))


def overlapping(bounds: np.ndarray, crs: np.ndarray, others: np.ndarray, others_crs: np.ndarray) -> np.ndarray:
    """For each of the bounds (N x 4: left, bottom, right, top) whether it shares ground with one of the others."""
    shared = np.zeros(len(bounds), bool)
    for (left, bottom, right, top), system in zip(others, others_crs, strict=True):
        apart = (bounds[:, 0] >= right) | (bounds[:, 2] <= left) | (bounds[:, 1] >= top) | (bounds[:, 3] <= bottom)
        shared |= ~apart & (crs == system)
    return shared
