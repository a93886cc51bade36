"""EO values: to what a model is trained on, what data say about them, and whether both fit.

What they mean is the model's `eo_transform`. Data can say it themselves, by the columns `eo_units`, `eo_range` and
`eo_gamma`, which `prepare` writes where the layout of a published data set settles it.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from c_diffset.data.pairs import Pair, Pairs, read_pair
from c_diffset.pipelines.pipeline_cdiffset import check_eo_transform, describe_eo_transform

COLUMNS = {"eo_units": "units", "eo_range": "range", "eo_gamma": "gamma"}
SOME = 16  # pairs that are looked at before work starts
LEAST_SHARE = 0.1  # of the range from black to white
BLACK, BEYOND_WHITE = 0.01, 30.0  # of that range: a scene all below or above is on another scale, not dark or bright
MOST_VALUES = 100_000  # of an image, for its percentiles
MOST_SIGNS = 1000  # of a range that is written as text


def eo_to_tensor(eo: np.ndarray, eo_transform: dict) -> torch.Tensor:
    """An EO image 3 x H x W, as `read_pair` gives it, to what a model is trained on: float32 in [-1, 1].

    Raises:
        ValueError: floats, which are no display values, or a transform that `check_eo_transform` refuses.
    """
    transform = check_eo_transform(eo_transform)
    share = _share_of_range(eo, transform).clip(0, 1)
    if transform["gamma"] != 1:
        share = share ** (1 / transform["gamma"])
    return torch.from_numpy(share) * 2 - 1


def _share_of_range(eo: np.ndarray, eo_transform: dict) -> np.ndarray:
    """Values 3 x H x W as fractions of the way from black (0) to white (1), float32."""
    values = eo.astype(np.float32)
    if eo_transform["units"] == "display":
        values /= _full_scale(eo)
    low, high = np.broadcast_to(np.float32(eo_transform["range"]), (3, 2)).T.reshape(2, 3, *[1] * (eo.ndim - 1))
    with np.errstate(over="ignore"):  # what is infinitely bright is white
        return (values - low) / (high - low)


def _full_scale(eo: np.ndarray) -> int:
    if eo.dtype == np.float32:
        raise ValueError(
            "the EO image holds floats or signed integers, or declares a scale, but display values are 8- or 16-bit "
            "integers: set eo_transform to {units: reflectance, range: [BLACK, WHITE]}"
        )
    return np.iinfo(eo.dtype).max


# ------------------------------------------------------------------------------------------- what the data say


def declared_eo_transform(rows: Pairs, source: str) -> dict | None:
    """The transform that the data name in their columns; None where they name none.

    All rows of a data set are read for it, and the first `SOME` of a stream.

    Raises:
        ValueError: rows contradict each other, or what they say is no transform; the message names `source`.
    """
    if isinstance(rows, Dataset):
        columns = [name for name in ("id", *COLUMNS) if name in rows.column_names]
        rows = rows.select_columns(columns)
    found: dict[str, dict] = {}
    for row in rows if isinstance(rows, Dataset) else rows.take(SOME):
        found.setdefault(json.dumps([row.get(name) for name in COLUMNS], default=str), row)
        if len(found) > 1:
            pairs = " and ".join(f"{key} of pair {row['id']}"[:200] for key, row in found.items())
            raise ValueError(
                f"{source}: rows contradict each other in {', '.join(COLUMNS)}: {pairs}; separate these data, or set "
                "eo_transform for all of them"
            )
    return eo_transform_of_row(next(iter(found.values()), {}), source)


def eo_transform_of_row(row: Mapping[str, Any], source: str) -> dict | None:
    """The transform that one row names; None where it names none.

    Raises:
        ValueError: what it says is no transform; the message names `source`.
    """
    said = {key: _parsed(row[name]) for name, key in COLUMNS.items() if row.get(name) is not None}
    try:
        return check_eo_transform(said) if said else None
    except ValueError as error:
        raise ValueError(f"{source}, columns {', '.join(COLUMNS)}: {error}") from None


def _parsed(value: Any) -> Any:
    """A value of metadata; lists in a CSV file, and nested ones in Parquet, are text."""
    try:
        return json.loads(value) if isinstance(value, str) and len(value) <= MOST_SIGNS else value
    except (ValueError, RecursionError):
        return value


# --------------------------------------------------------------------------------------------- whether it fits


def some_pairs(rows: Pairs, count: int = SOME) -> Iterator[Pair]:
    """At most `count` pairs, read one at a time: evenly spread over a data set, the first ones of a stream."""
    if isinstance(rows, Dataset):
        some = rows.select(range(0, len(rows), max(1, math.ceil(len(rows) / count))))
    else:
        some = rows.take(count)
    return map(read_pair, some)


def check_eo_of_model(rows: Pairs, eo_transform: dict, source: str) -> None:
    """`check_eo_values` for a model that sees data by its own transform; warns where the data name another one.

    Raises:
        ValueError: the values do not fit, or rows contradict each other.
    """
    declared, transform = declared_eo_transform(rows, source), check_eo_transform(eo_transform)
    if declared is not None and declared != transform:
        found, used = (f"{one['units']} {one['range']}" for one in (declared, transform))
        warnings.warn(f"{source}: its EO values are said to be {found}, but the model sees {used}", stacklevel=2)
    check_eo_values(some_pairs(rows), transform, source, setting=None)


def check_eo_values(
    pairs: Iterable[Pair], eo_transform: dict, source: str, setting: str | None = "model.eo_transform"
) -> None:
    """Refuse EO images that this transform would make black, or of one colour.

    At most `SOME` pairs decide together, by quartiles over the images of where 98 % of the valid values lie: a few dark
    or cloudy images change nothing. Display values of 8 bits are never refused, as what is dark there is meant to be.

    Args:
        source: what the message calls the data.
        setting: the setting of a training that would help; None where a model settles the transform.

    Raises:
        ValueError: the message names the range that was found, and the one that would fit.
    """
    transform, found = check_eo_transform(eo_transform), []
    for pair in islice(pairs, SOME):
        if transform["units"] == "display" and pair.eo.dtype == np.uint8:
            return
        try:
            found.append(_percentiles(pair, transform))
        except ValueError as error:
            raise ValueError(f"{source}, pair {pair.id}: {error}") from None
    if not found:
        return
    dark, _, black, _ = np.percentile(found, 25, axis=0)
    _, bright, _, white = np.percentile(found, 75, axis=0)
    if white - black >= LEAST_SHARE:
        return
    scale = " of 65535" if transform["units"] == "display" else ""
    step = 10.0 ** math.floor(math.log10(max(abs(bright), 1e-6)))
    fitting = f"{{units: reflectance, range: [0, {math.ceil(bright / step) * step:g}]}}"
    remedy = "the model was trained on other EO values: give it such data, or train one on these"
    if setting is not None:
        remedy = f"if they are reflectances, set --{setting} '{fitting}'"
    raise ValueError(
        f"{source}: the EO values reach from {dark:.4g} to {bright:.4g} (looked at: {len(found)}) and use less than a "
        f"tenth of eo_transform {transform['units']} {transform['range']}{scale}, so that images would be of one "
        f"colour: {remedy}"
    )


def doubt_reflectance(values: np.ndarray, eo_transform: dict) -> str | None:
    """What is wrong with the scale of reflectances, 3 x N: all but black, or far beyond white; None without."""
    if not values.any():
        return None
    low, high = np.percentile(_share_of_range(values, check_eo_transform(eo_transform)), (1, 99))
    if high >= BLACK and low <= BEYOND_WHITE:
        return None
    least, most = np.percentile(values, (1, 99))
    return (
        f"the reflectances reach from {least:.4g} to {most:.4g}, but this model was trained on images in which "
        f"{describe_eo_transform(eo_transform)}: scale them likewise, such as by `gdal_translate -unscale` or `-scale`"
    )


def _percentiles(pair: Pair, eo_transform: dict) -> tuple[float, float, float, float]:
    """The 1st and 99th percentile of the valid values, as they are and as fractions from black to white, clipped."""
    eo = np.moveaxis(pair.eo, -1, 0)
    values = eo.reshape(3, -1) if pair.mask is None else eo[:, pair.mask]
    values = values[:, :: max(1, values.shape[1] * 3 // MOST_VALUES)]
    shares = _share_of_range(values, eo_transform).clip(0, 1)
    return (*np.percentile(values, (1, 99)).tolist(), *np.percentile(shares, (1, 99)).tolist())
