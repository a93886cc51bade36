"""How far a predicted uncertainty can be trusted: reliability, sparsification, rank statistics, bootstrap intervals.

The statistics take flat arrays, one value for each pixel, and `weights` that say how many pixels each stands for. Equal
values are never ordered by chance: they share their rank, and leave the sparsification curve together. A bootstrap
resamples images, whose pixels are not independent: it multiplies the weights by how often each image was drawn.

`PixelSample` draws a bounded number of pixels from every image, and sums up what they tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from c_diffset.evaluation.report import Curve, Estimate, Reference, Reliability, Trust, Uncertainty
from c_diffset.measurement.ranks import Array, Ranking, correlation

FRACTIONS = np.linspace(0, 0.95, 20)  # the shares of pixels that the sparsification curve removes
PIXELS_PER_IMAGE = 512  # neighbouring pixels say little new: more images narrow an interval, more pixels hardly
RESAMPLES = 200
LEVEL = 95  # percent of the resamples within an interval


def _ones(values: Array, weights: Array | None) -> Array:
    return np.ones(len(values)) if weights is None else weights


# ----------------------------------------------------------------------------------------------------- reliability


@dataclass(frozen=True)
class ReliabilityCurve:
    """By bin, in ascending order: the mean expected value, the mean measured one, and how many pixels these are."""

    expected: Array
    measured: Array
    count: Array

    def to_lists(self) -> Curve:
        """The same, as a report holds it."""
        return Curve(*(column.tolist() for column in vars(self).values()))


def quantile_bins(values: Array, bins: int, weights: Array | None = None) -> Array:
    """The bin of each value, 0 to `bins` - 1 and ascending, of about equal weight; equal values share a bin."""
    weights = _ones(values, weights)
    middle = Ranking(values).ranks(weights) / weights.sum()
    return np.minimum((middle * bins).astype(np.int64), bins - 1)


def bin_sums(bins: Array, *columns: Array) -> list[Array]:
    """The sum of every column in every bin that is not empty."""
    filled = np.bincount(bins) > 0
    return [np.bincount(bins, column)[filled] for column in columns]


def reliability_curve(
    expected: Array, measured: Array, bins: int = 10, weights: Array | None = None
) -> ReliabilityCurve:
    """What was measured where so much was expected, in quantile bins of the expected value.

    For an expected error, `measured` is the error, both in one unit (Levi et al., 2022); for the probability of an
    event, it is 1 where the event came and 0 elsewhere (Niculescu-Mizil and Caruana, 2005). Fewer bins come out where
    values repeat.
    """
    weights = _ones(expected, weights)
    number = quantile_bins(expected, bins, weights)
    count, expected_sum, measured_sum = bin_sums(number, weights, weights * expected, weights * measured)
    return ReliabilityCurve(expected_sum / count, measured_sum / count, count)


def calibration_error(curve: ReliabilityCurve) -> float:
    """Expected calibration error: mean over pixels of |measured - expected| in their bin (Naeini et al., 2015)."""
    return float(np.average(np.abs(curve.measured - curve.expected), weights=curve.count))


# -------------------------------------------------------------------------------------- sparsification, rank, detection


def _remaining(ranking: Ranking, errors: Array, weights: Array) -> Array:
    """The mean error of what remains after each of `FRACTIONS` of the greatest values is removed."""
    kept = np.r_[0.0, ranking.sums(weights).cumsum()]
    error = np.r_[0.0, ranking.sums(weights * errors).cumsum()]
    remaining = (1 - FRACTIONS) * kept[-1]
    return np.interp(remaining, kept, error) / remaining


def _area(curve: Array, oracle: Array) -> float:
    above = curve - oracle
    area = (above[1:] + above[:-1]) @ np.diff(FRACTIONS) / 2  # by the trapezoidal rule
    return float(area / curve[0]) if curve[0] > 0 else 0.0


def sparsification_curve(errors: Array, uncertainty: Array, weights: Array | None = None) -> Array:
    """Mean error of what remains when the most uncertain fraction is removed, for each of `FRACTIONS`.

    The first value is the mean error of all; the oracle's curve is the one with `uncertainty=errors`. Where values are
    equal, the curve is the mean over their orders (Ilg et al., 2018).
    """
    return _remaining(Ranking(uncertainty), errors, _ones(errors, weights))


def ause(errors: Array, uncertainty: Array, weights: Array | None = None) -> float:
    """Area between the sparsification curve and the oracle's, both over the mean error (Ilg et al., 2018).

    Over `FRACTIONS`, by the trapezoidal rule: 0 for the oracle; lower is better. A constant uncertainty gives what
    chance gives. 0 where there is no error at all.
    """
    return _area(sparsification_curve(errors, uncertainty, weights), sparsification_curve(errors, errors, weights))


def _auroc(ranking: Ranking, mask: Array, weights: Array) -> float:
    positive, negative = ranking.sums(weights * mask), ranking.sums(weights * (1 - mask))
    pairs = positive.sum() * negative.sum()
    return float((positive * (negative.cumsum() - negative / 2)).sum() / pairs) if pairs > 0 else np.nan


def _average_precision(ranking: Ranking, mask: Array, weights: Array) -> float:
    positive, total = ranking.sums(weights * mask)[::-1], ranking.sums(weights)[::-1]
    precision = positive.cumsum() / np.maximum(total.cumsum(), np.finfo(float).tiny)
    return float((positive * precision).sum() / positive.sum()) if positive.any() else np.nan


def auroc(score: Array, mask: Array, weights: Array | None = None) -> float:
    """Area under the ROC curve of `score`, higher where `mask` (bool) should be True; 0.5 is chance.

    As `sklearn.metrics.roc_auc_score`; NaN where one of both classes is absent.
    """
    return _auroc(Ranking(score), mask.astype(float), _ones(score, weights))


def average_precision(score: Array, mask: Array, weights: Array | None = None) -> float:
    """Mean precision over the recall of `mask` (bool) by falling `score`; the share of True is chance.

    As `sklearn.metrics.average_precision_score`; NaN where nothing is True.
    """
    return _average_precision(Ranking(score), mask.astype(float), _ones(score, weights))


# -------------------------------------------------------------------------------------------------------- bootstrap


def bootstrap(
    statistic: Callable[[Array], Array | float], images: int, resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """The statistic of resampled images: resamples, or resamples x K (Efron, 1979).

    Args:
        statistic: from how often each image was drawn, (images,), to a number or K numbers.
        images: how many there are.
    """
    rng = np.random.default_rng(seed)
    draws = (rng.integers(images, size=images) for _ in range(resamples))
    return np.array([statistic(np.bincount(draw, minlength=images)) for draw in draws])


def _limits(resampled: Array) -> Array:
    """Low and high percentile; NaN, as of a resample without any True pixel, does not count."""
    if np.isnan(resampled).all():
        return np.array([np.nan, np.nan])
    return np.nanpercentile(resampled, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])


def bootstrap_mean(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of one value for each image, with its percentile interval over resampled images.

    Raises:
        ValueError: fewer than two images.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"{len(values)} images: an interval needs at least 2")
    resampled = bootstrap(lambda counts: counts @ values / len(values), len(values), resamples, seed)
    return Estimate(float(values.mean()), *_limits(resampled).tolist())


def paired_bootstrap(a: Sequence[float], b: Sequence[float], resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of a - b over images, where both hold one value for each of the same images in the same order.

    An interval without 0 shows a difference. Images that are hard for both do not widen it.

    Raises:
        ValueError: unequal lengths, or fewer than two images.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} images against {len(b)}: a paired difference needs the same images on both sides")
    return bootstrap_mean(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), resamples, seed)


# ------------------------------------------------------------------------------------------------------- the report


class PixelSample:
    """At most `pixels_per_image` pixels of every image, drawn by `seed` and the image's number alone.

    What is kept of an image stands for all of its valid pixels, so that large images count as much more as they are
    larger. The memory is 4 bytes for each kept pixel and each quantity, whatever the size of the images.
    """

    def __init__(self, pixels_per_image: int = PIXELS_PER_IMAGE, seed: int = 0):
        self.pixels_per_image, self.seed = pixels_per_image, seed
        self.images: list[dict[str, Array]] = []
        self.weights: list[float] = []

    def add(
        self,
        error: Array,
        uncertainties: dict[str, Array],
        expected: Array | None = None,
        probability: Array | None = None,
        discrepancy: Array | None = None,
        mask: Array | None = None,
    ) -> None:
        """Draw from one image; every array has one shape. A quantity that any image lacks is left out of the report.

        Args:
            error: absolute error, levels.
            uncertainties: by name; higher where the error should be higher (a variance, not a confidence).
            expected: the error that was expected, levels.
            probability: predicted probability of an error above the threshold of `report`.
            discrepancy: bool, True where an uncertainty should be high.
            mask: bool, True = valid; an image without a valid pixel is left out.
        """
        maps = {"error": error, "expected": expected, "probability": probability, "discrepancy": discrepancy}
        maps |= {f"by {name}": values for name, values in uncertainties.items()}
        valid = np.arange(np.size(error)) if mask is None else np.flatnonzero(mask)
        rng = np.random.default_rng([self.seed, len(self.images)])
        if not len(valid):
            return
        chosen = valid
        if len(valid) > self.pixels_per_image:
            chosen = np.sort(rng.choice(valid, self.pixels_per_image, replace=False))
        kept = {key: np.asarray(x).ravel()[chosen].astype(np.float32) for key, x in maps.items() if x is not None}
        self.images.append(kept)
        self.weights.append(len(valid) / len(chosen))

    def report(
        self, threshold: float | None = None, bins: int = 10, resamples: int = RESAMPLES, seed: int = 0
    ) -> Trust:
        """The statistics of the sample with their intervals, but for `Trust.in_sample`, which it cannot know.

        Args:
            threshold: levels; the event that `probability` speaks of is an error above it.
            resamples: of the images, for intervals of 95 %; a single image has none. That of a calibration error, which
                grows by the noise of a resample, is corrected for this bias (Efron and Tibshirani, 1993).

        Raises:
            ValueError: no pixel was added, or probabilities without a threshold.
        """
        if not self.images:
            raise ValueError("no image with a valid pixel was added: there is nothing to report on")
        statistics = _Statistics(self, threshold)
        names, values = zip(*statistics(np.ones(len(self.images))).items(), strict=True)
        resampled = np.full((1, len(names)), np.nan)
        if len(self.images) > 1:
            count = len(self.images)
            resampled = bootstrap(lambda counts: list(statistics(counts).values()), count, resamples, seed)
        columns = dict(zip(names, resampled.T, strict=True))
        return statistics.summary(dict(zip(names, values, strict=True)), columns)


class _Statistics:
    """All statistics of a sample, for any number of times that each image counts."""

    def __init__(self, sample: PixelSample, threshold: float | None):
        known = [key for key in sample.images[0] if all(key in image for image in sample.images)]
        self.data = {key: np.concatenate([x[key] for x in sample.images]).astype(float) for key in known}
        self.image = np.repeat(np.arange(len(sample.images)), [len(x["error"]) for x in sample.images])
        self.weights = np.array(sample.weights)[self.image]
        self.pixels = round(self.weights.sum())
        self.error, self.discrepancy = self.data["error"], self.data.get("discrepancy")
        if self.discrepancy is not None and not self.discrepancy.any():  # pairs known to agree everywhere
            self.discrepancy = None
        self.threshold = threshold
        self.by_error = Ranking(self.error)
        self.rankings = {key: Ranking(x) for key, x in self.data.items() if key.startswith("by ")}
        self.curves = {}
        if "expected" in self.data:
            self.curves["expected_error"] = (self.data["expected"], self.error)
        if "probability" in self.data:
            if threshold is None:
                raise ValueError("probabilities without a threshold: name the error, in levels, that they speak of")
            self.curves["error_probability"] = (self.data["probability"], (self.error > threshold).astype(float))
        self.bins = {key: quantile_bins(expected, 10, self.weights) for key, (expected, _) in self.curves.items()}

    def __call__(self, counts: Array) -> dict[tuple[str, str], float]:
        weights = self.weights * counts[self.image]
        oracle, error_ranks = _remaining(self.by_error, self.error, weights), self.by_error.ranks(weights)
        found = {("", "mean_error"): oracle[0]}
        for name, ranking in self.rankings.items():
            found[name, "ause"] = _area(_remaining(ranking, self.error, weights), oracle)
            found[name, "spearman"] = correlation(ranking.ranks(weights), error_ranks, weights)
            if self.discrepancy is not None:
                found[name, "auroc"] = _auroc(ranking, self.discrepancy, weights)
                found[name, "average_precision"] = _average_precision(ranking, self.discrepancy, weights)
        for name in self.curves:
            found[name, "calibration_error"] = calibration_error(self.curve(name, weights))
        return found

    def curve(self, name: str, weights: Array) -> ReliabilityCurve:
        """The reliability curve in the bins of the whole sample; a bin without weight counts as 0 pixels."""
        count, *sums = bin_sums(self.bins[name], weights, *(weights * column for column in self.curves[name]))
        return ReliabilityCurve(*(x / np.maximum(count, np.finfo(float).tiny) for x in sums), count)

    def summary(self, values: dict, resampled: dict[tuple[str, str], Array]) -> Trust:
        """`PixelSample.report`, from all values and their resampled ones."""
        estimates: dict[str, dict[str, Estimate]] = {name: {} for name, _ in values}
        for (name, statistic), value in values.items():
            drawn = resampled[name, statistic]
            if statistic == "calibration_error":  # the noise of a resample adds to it
                drawn = np.maximum(drawn - (drawn.mean() - value), 0)
            estimates[name][statistic] = _estimate(value, drawn)
        first, *others = self.rankings or [None]
        for name in others:
            pairs = ((x[name, "ause"], x[first, "ause"]) for x in (values, resampled))
            estimates[name]["ause_difference"] = _estimate(*(own - least for own, least in pairs))
        oracle = _remaining(self.by_error, self.error, self.weights)
        chance = np.full_like(oracle, oracle[0])
        share = None if self.discrepancy is None else float(np.average(self.discrepancy, weights=self.weights))
        return Trust(
            images=int(self.image[-1]) + 1,
            pixels=self.pixels,
            mean_error=estimates[""]["mean_error"],
            threshold=self.threshold,
            fractions=FRACTIONS.round(2).tolist(),
            oracle=Reference(oracle.tolist(), 0.0),
            constant=Reference(chance.tolist(), _area(chance, oracle), share),
            uncertainties={
                name.removeprefix("by "): Uncertainty(
                    _remaining(ranking, self.error, self.weights).tolist(), **estimates[name]
                )
                for name, ranking in self.rankings.items()
            },
            **{name: Reliability(self.curve(name, self.weights).to_lists(), **estimates[name]) for name in self.curves},
        )


def _estimate(value: float, resampled: Array) -> Estimate:
    """A statistic with its limits; None in place of NaN, which JSON does not know."""
    return Estimate(*(None if np.isnan(x) else float(x) for x in (value, *_limits(resampled))))
