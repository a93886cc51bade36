"""Dividing pairs into splits that share no region or scene."""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256


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
