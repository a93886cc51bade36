"""A report with everything that one can hold, made without a model; and a disk that is full."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import numpy as np

from c_diffset.evaluation.reliability import PixelSample
from c_diffset.evaluation.report import Estimate, ImageMetrics, Judgement, LeftOut, Report


def full_report(**changes) -> Report:
    """The report on three images of one model, calibrated, with known discrepancies; `changes` replace its fields."""
    return Report(**deepcopy(_fields()) | changes)


@cache
def _fields() -> dict:
    rng, sample = np.random.default_rng(0), PixelSample(16)
    for _ in range(3):
        error, variance = rng.random((2, 4, 4)) * 20
        uncertainties = {"predicted variance": variance, "spread of 2 samples": error}
        discrepancy = np.eye(4, dtype=bool)
        sample.add(error, uncertainties, expected=variance, probability=variance / 20, discrepancy=discrepancy)
    trust = sample.report(threshold=8.5, resamples=10)
    trust.in_sample = True
    names = ("psnr", "ssim", "bias_r", "confidence_spearman")
    rows = [dict(zip(names, rng.normal(size=4).tolist(), strict=True)) for _ in range(3)]
    return dict(
        model="runs/first",
        data="data/pairs",
        split="test",
        split_against_train=["0 of 3 values of region occur in train too"],
        n=3,
        seed=0,
        num_inference_steps=2,
        mean=rows[0],
        conventions={name: "as it is" for name in names},
        floors={"sar_grey": rows[1]},
        ceiling=rows[2],
        mean_colour=[0.1, 0.2, 0.3],
        trust=trust,
        two_sample={"two_sample": Judgement(Estimate(0.8, 0.7, 0.9), [0.75, 0.85], 4, 3)},
        two_sample_places="scene",
        left_out=[LeftOut("fid", "no weights")],
        images=[ImageMetrics(f"image {i}", row) for i, row in enumerate(rows)],
    )


@contextmanager
def full_disk(room: int = 20) -> Iterator[None]:
    """No file gets longer than `room` bytes while the block runs: the system refuses to write more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
