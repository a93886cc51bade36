"""The pairs of a training: which are trained on, which validate, and a look at both before any model is loaded."""

import sys
from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from c_diffset.data.inspect import DataSummary, inspect_split
from c_diffset.data.pairs import Pair, list_splits, load_pairs
from c_diffset.data.sources import Pairs
from c_diffset.data.splits import HeldOut, hold_out
from c_diffset.training.config import DecoderConfig, RunConfig


def training_pairs(config: RunConfig) -> Pairs:
    """The pairs that are trained on.

    Raises:
        ValueError, OSError: the source or its split is missing, or cannot be read or divided.
    """
    data = config.data
    if data.validation_fraction:
        return _divided(config).train
    return load_pairs(data.source, split=data.split, streaming=data.streaming, eo_alone=eo_alone(config))


def validation_pairs(config: RunConfig) -> Dataset | None:
    """The pairs that are validated on; None without a validation.

    Raises:
        ValueError, OSError: the source or its split is missing, or cannot be read or divided.
    """
    data = config.data
    if data.validation_fraction:
        return _divided(config).validation
    if data.validation_split is None:
        return None
    splits = list_splits(data.source, eo_alone=eo_alone(config))
    if data.validation_split not in splits:
        raise ValueError(
            f"{data.source} has no split {data.validation_split!r} to validate on; found: {', '.join(splits)}. Hold "
            "out a part of the pairs by --data.validation_fraction 0.1, name another split by --data.validation_split, "
            "or train without validation by --data.validation_split null"
        )
    return load_pairs(data.source, split=data.validation_split, eo_alone=eo_alone(config))


def _divided(config: RunConfig) -> HeldOut:
    data = config.data
    rows = load_pairs(data.source, split=data.split, eo_alone=eo_alone(config))
    return hold_out(rows, data.validation_fraction, config.seed)


def eo_alone(config: RunConfig) -> bool:
    """Whether only the EO images of the data are read, as for super-resolution and for decoders."""
    return config.data.degradation is not None or isinstance(config, DecoderConfig)


def look_at_pairs(config: RunConfig) -> DataSummary:
    """What a training will read.

    Raises:
        ValueError, OSError: the source or a split is missing, or cannot be read or divided.
    """
    notes = []
    if config.data.validation_fraction:
        both = _divided(config)
        trained, validated = both.train, both.validation
        notes.append(f"validation: {len(validated)} of the pairs are held out, {both.rule}")
    else:
        validated, trained = validation_pairs(config), training_pairs(config)
    splits = [inspect_split(trained, config.data.split or "pairs", config.data.crop_size, "data.crop_size")]
    if validated is not None:
        name = "validation" if config.data.validation_fraction else config.data.validation_split
        splits.append(inspect_split(validated, name, config.validation.crop_size, "validation.crop_size"))
    return DataSummary(config.data.source, splits, notes)


def check_pairs(config: RunConfig, accelerator: Accelerator) -> Sequence[Pair]:
    """Look at the data before any other work, and say what they are; returns a few pairs to show.

    The main process alone looks and prints; where it finds faults, the others end without a word.

    Raises:
        ValueError, OSError: the data cannot be trained on.
    """
    pairs, error = [], None
    if accelerator.is_main_process:
        try:
            summary = look_at_pairs(config)
            print(summary, flush=True)
            summary.check()
            pairs = summary.splits[0].pairs
        except (ValueError, OSError) as found:
            error = found
    if not broadcast_object_list([error is None])[0]:
        if error is not None:
            raise error
        sys.exit(2)
    return pairs
