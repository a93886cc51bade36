"""Whether the SAR values of a data set can be in the units of a model."""

from collections.abc import Iterable

import numpy as np

from c_diffset.data.pairs import Pair
from c_diffset.pipelines.pipeline_cdiffset import check_sar_transform
from c_diffset.sar.radiometry import doubt_units

MOST_VALUES = 2**16  # of a band of an image


def check_sar_values(pairs: Iterable[Pair], sar_transform: dict, source: str) -> None:
    """Refuse SAR images whose values, looked at together, cannot be in the units of the transform.

    Args:
        pairs: some of the data, such as `some_pairs` gives.
        sar_transform: of the model.
        source: what the message calls the data.

    Raises:
        ValueError: the message names what the values look like.
    """
    units, found = check_sar_transform(sar_transform)["units"], {}
    for pair in pairs:
        bands = np.moveaxis(np.atleast_3d(pair.sar), -1, 0)
        values = bands.reshape(len(bands), -1) if pair.mask is None else bands[:, pair.sar_mask]
        step = max(1, values.shape[1] // MOST_VALUES)
        found.setdefault((values.dtype, len(values)), []).append(values[:, ::step])
    for alike in found.values():
        if doubt := doubt_units(np.concatenate(alike, axis=1), units, sar_transform):
            raise ValueError(f"{source}: sar_transform['units'] is {units!r}, but {doubt}")
