"""Settings that are numbers within limits, and what checks them."""

from dataclasses import field, fields, is_dataclass
from typing import Any, get_args

MOST_STEPS = 99_999_999  # names of checkpoints have eight digits
MOST_WEIGHT = 1e6  # the largest weight of one loss beside the others


def number(default: Any, lowest: float, highest: float, was: str | None = None) -> Any:
    """A setting that is a number, or a few of them, from `lowest` to `highest`.

    `was` is the setting that it was before, in the same group: runs that were started with that one go on.
    """
    return field(default=default, metadata={"limits": (lowest, highest), "was": was})


def check_values(settings: Any, prefix: str = "") -> None:
    """Refuse null where a value has to be, and numbers outside their limits, in settings and the groups within them.

    Raises:
        ValueError: the message names the setting.
    """
    for one in fields(settings):
        value = getattr(settings, one.name)
        if is_dataclass(value):
            check_values(value, f"{prefix}{one.name}.")
        elif value is None and type(None) not in get_args(one.type):
            raise ValueError(f"{prefix}{one.name} is null, expected a value: leave it out, or give one")
        elif "limits" in one.metadata and value is not None:
            lowest, highest = one.metadata["limits"]
            if value == []:
                raise ValueError(f"{prefix}{one.name} is empty, expected {lowest:,} to {highest:,}")
            for entry in value if isinstance(value, list | tuple) else [value]:
                if not isinstance(entry, int | float) or not lowest <= entry <= highest:
                    raise ValueError(f"{prefix}{one.name} is {value}, expected {lowest:,} to {highest:,}")
