"""Dividing pairs into splits that share no region or scene."""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256

from datasets import Dataset


def split_pairs(
    dataset: Dataset, fractions: Mapping[str, float], by: str | None = None, seed: int = 0
) -> tuple[dict[str, Dataset], str]:
    """Divide a data set into splits that share no region or scene.

    Args:
        fractions: The share of every split, such as `{"train": 0.8, "validation": 0.1, "test": 0.1}`.
        by: The metadata column whose values must each stay within one split, or "random". By default `region`, else
            `scene`, else random.

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
