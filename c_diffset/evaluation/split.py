"""What is evaluated: the pairs of a split, and how far they are apart from the training split."""

import os
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset

from c_diffset.data.eo import check_eo_of_model, some_pairs
from c_diffset.data.pairs import Pair, Pairs, read_pair
from c_diffset.data.sar_values import check_sar_values
from c_diffset.data.splits import overlapping, places
from c_diffset.evaluation.report import LeftOut
from c_diffset.measurement.measure import crop_pairs, mean_colour_of
from c_diffset.measurement.metrics import LEAST_SIDE

MEAN_COLOUR_PAIRS = 500  # enough for a mean; to read a large training split whole would take hours
ORIGIN_COLUMNS = ("region", "scene", "sar_product", "eo_product")


def check_arguments(split: str, crop_size: int | None, batch_size: int, max_images: int | None, steps: list) -> None:
    """Refuse what leaves no image to measure; numbers that are None are not set.

    Raises:
        ValueError: the name of the split is empty, or a number is below the least one; the message names it.
    """
    if not split:
        raise ValueError("split is empty: name a split of the data, such as test")
    numbers = [("crop_size", crop_size, LEAST_SIDE), ("batch_size", batch_size, 1), ("max_images", max_images, 1)]
    for name, value, least in numbers + [("num_inference_steps", each, 1) for each in steps]:
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}: expected at least {least}")


class SplitPairs:
    """The pairs of a split, read anew in every pass: whole or in crops, the first `max_images` of them.

    `crop` says which crops, as in `crop_pairs`.
    """

    def __init__(self, rows: Pairs, crop_size: int | None, max_images: int | None, crop: str = "grid"):
        self.rows, self.crop_size, self.max_images, self.crop = rows, crop_size, max_images, crop
        self.pixels_read = self.pixels_used = self.pairs_read = 0
        self.first_image = ""  # a checksum of the first pair, once it is read; it identifies the split

    def __iter__(self) -> Iterator[Pair]:
        self.pixels_read = self.pixels_used = self.pairs_read = 0
        whole = self._read()
        crops = crop_pairs(whole, self.crop_size, self.crop) if self.crop_size else whole
        for pair in islice(crops, self.max_images):
            self.pixels_used += pair.eo[..., 0].size
            yield pair

    def _read(self) -> Iterator[Pair]:
        for row in self.rows:
            pair = read_pair(row)
            self.pairs_read += 1
            self.pixels_read += pair.eo[..., 0].size
            self.first_image = self.first_image or sha256(pair.eo.tobytes()).hexdigest()[:16]
            yield pair

    def check_eo(self, eo_transform: dict, data: str | os.PathLike) -> None:
        """Refuse EO images of `data` that are black, or of one colour, under the transform of the model; ValueError."""
        check_eo_of_model(self.rows, eo_transform, str(data))

    def check_sar(self, sar_transforms: list[dict], data: str | os.PathLike) -> None:
        """Refuse SAR images of `data` whose values cannot be in the units that one of the models reads; ValueError."""
        for number, transform in enumerate(sar_transforms):
            if transform not in sar_transforms[:number]:
                check_sar_values(some_pairs(self.rows), transform, str(data))

    def places_of(self, ids: list[str], least: int) -> tuple[list[str], str]:
        """The place of each measured image, and what the places are: the first way of `places` with at least so many.

        All crops of an image are of one place.
        """
        images = [name.rsplit("_", 2)[0] for name in ids] if self.crop_size else ids
        found, what = images, ""
        for groups, by in places(self.rows):
            place_of = dict(zip(map(str, self.rows["id"][:]), groups, strict=True))
            found, what = [place_of[image] for image in images], by
            if len(set(found)) >= least:
                break
        return found, "images, which may be neighbours" if what == "random" else what

    @property
    def enlarges(self) -> bool:
        """Whether these are pairs of super-resolution."""
        return next(some_pairs(self.rows, 1)).upscale > 1

    @property
    def expected_images(self) -> int | None:
        """How many images there will be, where that is known beforehand."""
        return self.max_images if self.crop_size else min(len(self.rows), self.max_images or len(self.rows))

    def describe(self) -> dict:
        """What the last complete pass covered."""
        return {
            "pairs": f"{self.pairs_read} of {len(self.rows)}",
            "crop_size": self.crop_size,
            "max_images": self.max_images,
            "fraction_of_pixels": round(self.pixels_used / self.pixels_read, 4),
        }


def split_against_train(rows: Pairs, train_rows: Pairs | None) -> list[str]:
    """Facts on how far a split is apart from the train split: shared regions or products, and overlapping ground."""
    if train_rows is None or not isinstance(train_rows, Dataset):
        return ["unknown: the train split is absent, or too far away to read"]
    facts = []
    for column in set(ORIGIN_COLUMNS) & set(rows.column_names) & set(train_rows.column_names):
        own, trained = set(rows[column]), set(train_rows[column])
        facts.append(f"{len(own & trained)} of {len(own)} values of {column} occur in train too")
    if {"bounds", "crs"} <= set(rows.column_names) & set(train_rows.column_names):
        places = (
            place for each in (rows, train_rows) for place in (np.array(each["bounds"], float), np.array(each["crs"]))
        )
        facts.append(f"{overlapping(*places).sum()} of {len(rows)} images overlap with the bounds of a train image")
    return sorted(facts) or ["unknown: the metadata name neither origin nor bounds"]


def is_remote(data: str | os.PathLike) -> bool:
    """Whether this is a Hub id, and no folder here."""
    return not Path(data).exists()


def train_colour(rows: Pairs | None, eo_transform: dict, left_out: list[LeftOut]) -> list[float] | None:
    """The mean colour of at most `MEAN_COLOUR_PAIRS` pairs, evenly spread, or the first ones of a remote data set."""
    if rows is None:
        reason = "the data have no train split to take it from: name the colour with --mean_colour"
        left_out.append(LeftOut("floor mean_colour", reason))
        return None
    return mean_colour_of(some_pairs(rows, MEAN_COLOUR_PAIRS), eo_transform)
