"""What error a predicted variance stands for: fitted to the pixels of a split, and stored beside the model."""

import re
from pathlib import Path

import numpy as np
from sklearn.isotonic import IsotonicRegression

from c_diffset.evaluation.reliability import ReliabilityCurve, bin_sums, quantile_bins
from c_diffset.evaluation.report import shown
from c_diffset.files import check_writable, read_json, write_json
from c_diffset.measurement.measure import PairResult
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, check_calibration

SHIFT = 13  # of the 23 bits of a float32 mantissa: fine bins of variance are 0.1 % wide
FINE_BINS = 1 << (31 - SHIFT)
KEY = re.compile(r"(\d{1,9})(?: at realism ([\d.e-]{1,20}))?")  # what `calibration_key` makes


def calibrated_on(pipe: CDiffSETPipeline, num_inference_steps: int | None, realism: float | None = None) -> str | None:
    """What the expected error was fitted on; None where the model gives none at this number of steps and realism."""
    steps = num_inference_steps or pipe.config.default_num_inference_steps
    if pipe.calibration_knots(steps, pipe.choose_realism(realism, steps)) is None:
        return None
    data, split, n = (pipe.config.calibration.get(key, "unknown") for key in ("data", "split", "n"))
    return f"{data}, split {split}: {n} images"


def is_in_sample(calibration: dict, data_name: str, split: str, first_image: str) -> bool:
    """Whether a calibration was fitted on the split that begins with this image, whatever the data are called now."""
    return (data_name, split) == (calibration.get("data"), calibration.get("split")) or (
        first_image == calibration.get("first_image")
    )


def check_model(index: Path, threshold: float, knots: int) -> None:
    """Find before any work what would keep the result from being stored."""
    if not index.is_file():
        raise FileNotFoundError(
            f"{index} does not exist: calibrate writes into a local folder, so download a model of the Hub first "
            f"(`hf download REPO --local-dir FOLDER`) and name that folder"
        )
    _read_calibration(index)
    check_writable(index.parent)
    open(index, "r+b").close()  # a file that is marked as read-only stays as it is
    if not 0 <= threshold < 255:
        raise ValueError(f"threshold is {threshold}, expected levels from 0 to below 255")
    if knots < 2:
        raise ValueError(f"knots is {knots}, expected at least 2")


def _read_calibration(index: Path) -> dict:
    """The calibration that the file holds; without steps where there is none."""
    calibration = read_json(index).get("calibration")
    if calibration is None:
        return {"steps": {}}
    try:
        if check_calibration(calibration) and not all(map(KEY.fullmatch, calibration["steps"])):
            raise ValueError(f"its steps are {shown(list(calibration['steps']))}, expected whole numbers")
        return calibration
    except ValueError as error:
        raise ValueError(f"{index}: {error}: remove the key `calibration` from it") from None


def pixel_variance(result: PairResult) -> np.ndarray:
    """The variance at pixel resolution that a calibration reads, H x W, float64, at least 0: 1 / confidence - 1."""
    return np.maximum(1 / result.confidence.double().numpy() - 1, 0)


def absolute_error(result: PairResult) -> np.ndarray:
    """H x W, float64: mean over r, g, b of |generated - true| in 8-bit levels, without the noise of float32."""
    return ((result.generated.double() - result.eo.double()).abs().mean(0).numpy() * 255).round(3)


class VariancePool:
    """Running sums over all pixels, in fine bins of variance; the memory does not depend on how many there are.

    A bin holds the float32 variances that share their exponent and the first 10 bits after it, 0.1 % in width; its
    centre stands for all of them.
    """

    def __init__(self, threshold: float):
        self.threshold, self.images = threshold, 0
        self.sums = np.zeros((3, FINE_BINS))  # the pixels, their errors, and how many errors exceed the threshold
        self.correlations: list[float] = []

    def add(self, result: PairResult) -> None:
        """Add the valid pixels of one image."""
        valid = ... if result.mask is None else result.mask.numpy()
        variance, error = pixel_variance(result)[valid].ravel(), absolute_error(result)[valid].ravel()
        number = variance.astype(np.float32).view(np.uint32) >> SHIFT
        for sums, column in zip(self.sums, (None, error, (error > self.threshold).astype(float)), strict=True):
            sums += np.bincount(number, column, FINE_BINS)
        self.images += 1
        self.correlations.append(-result.metrics["confidence_spearman"])

    def fine(self) -> tuple[np.ndarray, ...]:
        """Of every fine bin that holds pixels, ascending: variance, count, sums of error and of error > threshold."""
        filled = np.flatnonzero(self.sums[0])
        centre = (filled.astype(np.uint32) << SHIFT) + (1 << (SHIFT - 1))
        return centre.view(np.float32).astype(np.float64), *self.sums[:, filled]

    def fit(self, knots: int) -> dict[str, list[float]]:
        """Both maps, at the mean variance of at most `knots` quantile bins; linear between, and constant outside.

        Raises:
            ValueError: there is one variance only.
        """
        variance, count, error, exceeds = self.fine()
        if len(variance) < 2:
            raise ValueError(
                f"the model predicts the variance {variance[0]:.3g} everywhere, so there is nothing to calibrate: "
                "train its variance (stage 2) first"
            )
        number = quantile_bins(variance, knots, count)
        weights, *sums = bin_sums(number, count, count * variance, error, exceeds)
        variance, *measured = (column / weights for column in sums)
        error, exceeds = (IsotonicRegression().fit(variance, y, weights).predict(variance) for y in measured)
        return {"variance": variance.tolist(), "expected_error": error.tolist(), "probability": exceeds.tolist()}

    def deciles(self, calibration: dict[str, list[float]]) -> ReliabilityCurve:
        """Expected and measured error of all pixels, in ten quantile bins of the variance."""
        variance, count, error, _ = self.fine()
        expected = np.interp(variance, calibration["variance"], calibration["expected_error"])
        pixels, *sums = bin_sums(quantile_bins(variance, 10, count), count, count * expected, error)
        return ReliabilityCurve(*(column / pixels for column in sums), pixels)


def _order(key: str) -> tuple[int, str]:
    """By the number of steps, then by realism."""
    steps, _, rest = key.partition(" ")
    return int(steps), rest


def describe(key: str, calibration: dict[str, list[float]], pool: VariancePool) -> str:
    """The rank correlation, and expected against measured error by decile of the variance, as text."""
    curve = pool.deciles(calibration)
    rows = [("expected", curve.expected), ("measured", curve.measured)]
    steps, _, rest = key.partition(" ")
    lines = [
        f"{steps} steps {rest}".rstrip() + f", {pool.images} images: rank correlation of variance and error "
        f"{np.mean(pool.correlations):.3f} (mean over images)",
        "error in levels by decile of the variance, on the images of the fit",
    ]
    return "\n".join(lines + [f"  {name}" + "".join(f"{x:7.2f}" for x in values) for name, values in rows])


def store_calibration(index: Path, facts: dict, maps: dict[str, dict]) -> dict:
    """Put maps by number of steps into `model_index.json`: written aside, then renamed.

    Args:
        index: the file.
        facts: `threshold`, `data`, `split`, `n` and `first_image`. Where the file's calibration has others, a message
            says that its maps are dropped.

    Returns:
        The calibration that the file now holds.
    """
    config, old = read_json(index), _read_calibration(index)
    kept = {steps: old_map for steps, old_map in old["steps"].items() if steps not in maps}
    if kept and facts != {key: old.get(key) for key in facts}:
        found = ", ".join(f"{key} {old.get(key)}" for key in facts)
        print(f"{index}: the calibration for {', '.join(kept)} steps is dropped: it was made with {found}")
        kept = {}
    config["calibration"] = facts | {"steps": {key: (kept | maps)[key] for key in sorted(kept | maps, key=_order)}}
    write_json(index, config)
    return config["calibration"]
