"""Statistics of uncertainty against error models with closed forms, and against scikit-learn and scipy."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erfc
from scipy.stats import norm, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from c_diffset.evaluation.reliability import (
    FRACTIONS,
    PixelSample,
    ReliabilityCurve,
    auroc,
    ause,
    average_precision,
    bootstrap_mean,
    calibration_error,
    paired_bootstrap,
    quantile_bins,
    reliability_curve,
    sparsification_curve,
)
from c_diffset.evaluation.report import Estimate
from c_diffset.measurement.ranks import spearman

N = 200_000
THRESHOLD = 32.0


@pytest.fixture(scope="module")
def gaussian() -> tuple[np.ndarray, np.ndarray]:
    """Heteroscedastic Gaussian errors: the standard deviation s, uniform from 4 to 40 levels, and |e|, e ~ N(0, s)."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(4, 40, N)
    return scale, np.abs(rng.normal(0, scale))


def images_of(errors: np.ndarray, count: int) -> list[np.ndarray]:
    return [part.reshape(4, -1) for part in np.split(errors, count)]


def sample_of(errors: list, uncertainties: dict[str, list] | None = None, pixels_per_image: int = 512, **maps: list):
    """The sample of images, whose `errors`, `uncertainties` and other maps are lists with one array for each image."""
    sample = PixelSample(pixels_per_image)
    for i, error in enumerate(errors):
        own = {name: values[i] for name, values in (uncertainties or {}).items()}
        sample.add(error, own, **{name: values[i] for name, values in maps.items()})
    return sample


# ----------------------------------------------------------------------------------------------------- reliability


def test_gaussian_errors_lie_on_the_diagonal(gaussian):
    scale, error = gaussian
    curve = reliability_curve(scale * np.sqrt(2 / np.pi), error)  # E|e|
    np.testing.assert_array_equal(curve.count, N / 10)
    np.testing.assert_allclose(curve.measured, curve.expected, rtol=0.03)
    assert calibration_error(curve) < 0.2


def test_exceedance_of_gaussian_errors_lies_on_the_diagonal(gaussian):
    scale, error = gaussian
    curve = reliability_curve(erfc(THRESHOLD / scale / np.sqrt(2)), error > THRESHOLD)  # P(|e| > t)
    np.testing.assert_allclose(curve.measured, curve.expected, atol=0.015)
    assert calibration_error(curve) < 0.005


def test_calibration_error_of_a_constant_offset_is_that_offset(gaussian):
    scale, error = gaussian
    expected = scale * np.sqrt(2 / np.pi)
    assert calibration_error(reliability_curve(expected + 5, error)) == pytest.approx(5, abs=0.1)
    curve = ReliabilityCurve(np.array([1.0, 2.0]), np.array([2.0, 2.5]), np.array([1, 3]))
    assert calibration_error(curve) == pytest.approx((1 * 1.0 + 3 * 0.5) / 4)


def test_quantile_bins_keep_equal_values_together():
    values = np.array([3.0, 1, 1, 1, 2, 4, 4, 5])
    assert quantile_bins(values, 4).tolist() == [2, 0, 0, 0, 1, 3, 3, 3]
    assert set(quantile_bins(np.ones(10), 4)) == {2}


def test_bins_have_equal_weight_not_equal_numbers():
    values, weights = np.arange(100.0), np.r_[np.full(50, 3.0), np.ones(50)]
    curve = reliability_curve(values, values, bins=4, weights=weights)
    np.testing.assert_allclose(curve.count, 50, atol=2)


# -------------------------------------------------------------------------------------------------- sparsification


def test_sparsification_of_uniform_errors():
    """Errors uniform in (0, 1): the oracle leaves those below 1 - f, with mean (1 - f) / 2. Chance leaves 1/2.

    So over the mean error the oracle's curve is 1 - f, chance's is 1, and the area between them up to F is F^2 / 2.
    """
    error = (np.arange(N) + 0.5) / N
    np.testing.assert_allclose(sparsification_curve(error, error), (1 - FRACTIONS) / 2, rtol=1e-9)
    np.testing.assert_allclose(sparsification_curve(error, np.zeros(N)), 0.5, rtol=1e-9)
    assert ause(error, np.zeros(N)) == pytest.approx(0.95**2 / 2)
    assert ause(error, np.random.default_rng(0).permutation(N)) == pytest.approx(0.95**2 / 2, abs=0.005)
    assert ause(error, -error) > ause(error, np.zeros(N)) > ause(error, error**3) == 0


def test_sparsification_of_gaussian_errors(gaussian):
    """Removing by s leaves s uniform from 4 to 40 - 36 f, so the curve is (4 + 40 - 36 f) / 2 sqrt(2 / pi)."""
    scale, error = gaussian
    expected = (44 - 36 * FRACTIONS) / 2 * np.sqrt(2 / np.pi)
    np.testing.assert_allclose(sparsification_curve(error, scale), expected, rtol=0.02)
    assert 0 < ause(error, scale) < ause(error, np.ones(N))


def test_ause_of_exponential_errors_by_chance():
    """For errors of density exp(-e), the oracle's curve is 1 + f ln f / (1 - f): the area is its distance from 1."""
    error = -np.log((np.arange(N) + 0.5) / N)
    area = quad(lambda f: -f * np.log(f) / (1 - f), 0, 0.95)[0]
    assert ause(error, np.ones(N)) == pytest.approx(area, abs=2e-3)  # the trapezoidal rule in steps of 0.05


def test_equal_uncertainties_leave_together_whatever_their_order():
    error, uncertainty = np.array([1.0, 2, 3, 10]), np.array([0.0, 1, 1, 1])
    half = np.flatnonzero(np.isclose(FRACTIONS, 0.5))
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        curve = sparsification_curve(error[order], uncertainty[order])
        assert curve[half] == pytest.approx((1 + 5) / 2)  # the certain pixel, and one of three whose mean is 5


# ------------------------------------------------------------------------------------------ rank statistics, weights


@pytest.fixture
def tied() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two correlated rows of values with many ties, and whole weights from 0 to 3."""
    rng = np.random.default_rng(1)
    a = rng.integers(0, 8, 500).astype(float)
    return a, (a + rng.normal(0, 3, 500)).round(), rng.integers(0, 4, 500)


def test_spearman_is_scipys(tied):
    a, b, _ = tied
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(a, -b) == pytest.approx(-spearman(a, b))
    assert spearman(a, np.ones(500)) == 0


def test_detection_is_scikit_learns(tied):
    score, b, weights = tied
    mask = b > 4
    assert auroc(score, mask) == pytest.approx(roc_auc_score(mask, score))
    assert average_precision(score, mask) == pytest.approx(average_precision_score(mask, score))
    assert auroc(score, mask, weights) == pytest.approx(roc_auc_score(mask, score, sample_weight=weights))
    weighted = average_precision_score(mask, score, sample_weight=weights)
    assert average_precision(score, mask, weights) == pytest.approx(weighted)


def test_auroc_of_two_gaussians():
    """Unit Gaussians at a distance d: P(positive > negative) = Phi(d / sqrt 2)."""
    rng = np.random.default_rng(0)
    mask = np.arange(N) < N // 10
    assert auroc(rng.normal(1.3 * mask), mask) == pytest.approx(norm.cdf(1.3 / np.sqrt(2)), abs=0.005)


def test_detection_without_both_classes_is_undefined():
    assert np.isnan(auroc(np.arange(3.0), np.zeros(3, bool))) and np.isnan(auroc(np.arange(3.0), np.ones(3, bool)))
    assert np.isnan(average_precision(np.arange(3.0), np.zeros(3, bool)))


@pytest.mark.parametrize("statistic", [ause, spearman, lambda a, b, w=None: auroc(a, b > 4, w)])
def test_a_weight_is_a_repetition(statistic, tied):
    a, b, weights = tied
    b = b - b.min()
    assert statistic(a, b, weights) == pytest.approx(statistic(np.repeat(a, weights), np.repeat(b, weights)))


# -------------------------------------------------------------------------------------------------------- bootstrap


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(10, 3, 400)
    found = bootstrap_mean(values)
    mean, low, high = found.value, found.low, found.high
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    assert bootstrap_mean(values) == bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_paired_bootstrap_sees_a_difference_that_the_images_hide():
    rng = np.random.default_rng(0)
    images = rng.normal(20, 5, 100)
    better = images + 0.5 + rng.normal(0, 0.5, 100)
    difference = paired_bootstrap(better, images)
    assert difference.value == pytest.approx((better - images).mean())
    assert 0 < difference.low < difference.value < difference.high < 1
    assert bootstrap_mean(better).low < bootstrap_mean(images).high  # unpaired intervals overlap


def test_bootstrap_refuses_unequal_or_single_images():
    with pytest.raises(ValueError, match="3 images against 2"):
        paired_bootstrap([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="at least 2"):
        paired_bootstrap([1], [2])


def test_the_interval_is_over_images_not_pixels():
    """100 images, each of one error everywhere: the pixels within one add nothing to its width."""
    rng = np.random.default_rng(0)
    errors = [np.full((16, 16), value) for value in rng.normal(20, 4, 100)]
    found = sample_of(errors).report().mean_error
    assert found.high - found.low == pytest.approx(2 * 1.96 * 4 / 10, rel=0.25)


# ------------------------------------------------------------------------------------------------------- the report


def test_report_on_gaussian_errors(gaussian):
    scale, error = gaussian
    rng = np.random.default_rng(2)
    parts = {
        "expected": images_of(scale * np.sqrt(2 / np.pi), 50),
        "probability": images_of(erfc(THRESHOLD / scale / np.sqrt(2)), 50),
        "discrepancy": images_of(scale > 30, 50),
    }
    uncertainties = {"variance": images_of(scale**2, 50), "chance": images_of(rng.random(N), 50)}
    sample = sample_of(images_of(error, 50), uncertainties, pixels_per_image=2000, **parts)
    report = sample.report(THRESHOLD, resamples=40)
    assert (report.images, report.pixels) == (50, N)
    by_variance, by_chance = report.uncertainties["variance"], report.uncertainties["chance"]
    assert by_variance.ause.value == pytest.approx(ause(error, scale), abs=0.01)
    assert by_variance.spearman.value == pytest.approx(spearman(error, scale), abs=0.01)
    assert by_variance.auroc.value == by_variance.average_precision.value == 1
    assert by_chance.ause.value == pytest.approx(report.constant.ause, abs=0.01)
    for statistic in (by_variance.ause, by_chance.spearman, report.mean_error):
        assert statistic.low <= statistic.value <= statistic.high
    difference = by_chance.ause_difference
    assert difference.value == pytest.approx(by_chance.ause.value - by_variance.ause.value)
    assert 0 < difference.low < difference.high
    found = report.expected_error.calibration_error
    assert 0 <= found.low <= found.value <= found.high and found.value < 0.4
    assert report.error_probability.calibration_error.value < 0.01
    assert sum(report.expected_error.curve.count) == pytest.approx(N)


def test_a_large_image_counts_by_its_pixels():
    report = sample_of([np.full((10, 10), 1.0), np.full((30, 10), 5.0)], pixels_per_image=10).report()
    assert report.mean_error.value == pytest.approx((1 * 100 + 5 * 300) / 400)
    assert report.pixels == 400


def test_masked_pixels_do_not_enter():
    error, mask = np.zeros((20, 20)), np.ones((20, 20), bool)
    error[:10], mask[:10] = 1e6, False
    error[10:] = np.arange(200).reshape(10, 20)
    report = sample_of([error, error], {"variance": [error, error]}, mask=[mask, ~mask & False]).report()
    assert (report.images, report.pixels) == (1, 200)
    assert report.mean_error == Estimate(pytest.approx(99.5), None, None)


def test_the_sample_depends_on_the_image_and_the_seed_alone():
    error = np.arange(10_000.0).reshape(100, 100)

    def drawn(seed: int, **maps) -> np.ndarray:
        sample = PixelSample(100, seed)
        sample.add(error, {}, **maps)
        return sample.images[0]["error"]

    np.testing.assert_array_equal(drawn(0), drawn(0, expected=error))
    assert (drawn(0) != drawn(1)).any()


def test_report_refuses_what_it_cannot_tell():
    error = [np.ones((4, 4))] * 2
    with pytest.raises(ValueError, match="nothing to report"):
        sample_of(error, mask=[np.zeros((4, 4), bool)] * 2).report()
    with pytest.raises(ValueError, match="threshold"):
        sample_of(error, probability=error).report()
