"""What a model sees together: neighbours of one size."""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Any, TypeVar

T = TypeVar("T")


def batches_of_one_size(items: Iterable[T], size_of: Callable[[T], Any], batch_size: int) -> Iterator[list[T]]:
    """Batches of neighbouring items that have one size, each of at most `batch_size` items."""
    for _, same_size in groupby(items, key=size_of):
        while batch := list(islice(same_size, batch_size)):
            yield batch
