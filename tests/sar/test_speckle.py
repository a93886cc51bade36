"""The refined Lee filter."""

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from c_diffset.sar.speckle import HALO, refined_lee


def speckled(power, looks=4.4, seed=0):
    """Power times speckle of mean 1 and variance 1 / looks."""
    return (power * np.random.default_rng(seed).gamma(looks, 1 / looks, np.shape(power))).astype(np.float32)


def enl(power):
    """Equivalent number of looks of a homogeneous area."""
    return power.mean() ** 2 / power.var()


def reference(power, looks):
    """The equations of the filter, pixel by pixel."""
    padded = np.pad(power.astype(np.float64), 3, mode="symmetric")
    out = np.empty(power.shape)
    for row, column in np.ndindex(power.shape):
        window = padded[row : row + 7, column : column + 7]
        mean = {(y, x): window[y : y + 3, x : x + 3].mean() for y in (0, 2, 4) for x in (0, 2, 4)}
        # two opposite sub-windows, and whether a pixel (y, x) of the window is in the half of each
        edges = [
            ((2, 0), (2, 4), lambda y, x: x <= 3, lambda y, x: x >= 3),
            ((0, 4), (4, 0), lambda y, x: x >= y, lambda y, x: x <= y),
            ((0, 2), (4, 2), lambda y, x: y <= 3, lambda y, x: y >= 3),
            ((0, 0), (4, 4), lambda y, x: x + y <= 6, lambda y, x: x + y >= 6),
        ]
        first, second, in_first, in_second = max(edges, key=lambda edge: abs(mean[edge[0]] - mean[edge[1]]))
        centre = mean[2, 2]
        inside = in_first if abs(mean[first] - centre) < abs(mean[second] - centre) else in_second
        pixels = np.array([window[y, x] for y in range(7) for x in range(7) if inside(y, x)])
        assert len(pixels) == 28
        local, variance = pixels.mean(), pixels.var(ddof=1)
        signal = max((variance - local**2 / looks) / (1 + 1 / looks), 0)
        out[row, column] = local + signal / variance * (window[3, 3] - local)
    return out


@pytest.mark.parametrize("looks", [1.0, 4.4, 50.0])
def test_it_is_the_equations_pixel_by_pixel(looks):
    scene = np.ones((25, 31))
    scene[:, 12:] = 6
    scene[18:, :20] = 0.2
    scene[5, 5] = 40
    power = speckled(scene)
    filtered = refined_lee(power, looks)
    assert filtered.dtype == np.float32
    np.testing.assert_allclose(filtered, reference(power, looks), rtol=1e-6)


def test_a_constant_image_stays_as_it_is():
    for value in (0.0, 0.1, 3e-9, 7e8):
        power = np.full((9, 130), value, np.float32)
        np.testing.assert_array_equal(refined_lee(power), power)


def test_homogeneous_speckle_is_reduced_and_the_mean_kept():
    power = speckled(np.full((256, 256), 0.05))
    filtered = refined_lee(power)
    assert enl(power) == pytest.approx(4.4, rel=0.05)
    assert enl(filtered) > 10 * enl(power)
    assert filtered.mean() == pytest.approx(power.mean(), rel=0.02)


@pytest.mark.parametrize("turned", [False, True])
def test_an_edge_keeps_more_contrast_than_in_a_box_filter(turned):
    row, column = np.indices((160, 160))
    right = row + column > 160 if turned else column >= 80
    near = abs(row + column - 160.5) < 2 if turned else abs(column - 79.5) < 2
    power = speckled(np.where(right, 4.0, 1.0))

    def contrast(image):
        inner = np.s_[10:-10, 10:-10]
        return image[inner][(right & near)[inner]].mean() / image[inner][(~right & near)[inner]].mean()

    assert contrast(uniform_filter(power, 7)) < 2 < 3 < contrast(refined_lee(power)) < 5


def test_windows_with_a_halo_give_the_whole_exactly():
    power = speckled(np.random.default_rng(1).uniform(0.01, 3, (150, 90)))
    whole = refined_lee(power)
    for top, bottom, left, right in ((0, 70, 0, 40), (70, 150, 33, 90), (61, 62, 10, 11), (5, 149, 1, 89)):
        y, x = max(top - HALO, 0), max(left - HALO, 0)
        window = refined_lee(power[y : bottom + HALO, x : right + HALO])
        inner = window[top - y : bottom - y, left - x : right - x]
        np.testing.assert_array_equal(inner, whole[top:bottom, left:right])


def test_the_halo_is_not_larger_than_needed():
    power = speckled(np.ones((15, 15)))
    changed = power.copy()
    changed[7, 7] = 100
    rows, columns = np.nonzero(refined_lee(power) != refined_lee(changed))
    assert max(abs(rows - 7).max(), abs(columns - 7).max()) == HALO


def test_bands_are_filtered_apart():
    bands = speckled(np.ones((2, 20, 17)) * [[[1.0]], [[9.0]]])
    filtered = refined_lee(bands, 3.0)
    assert filtered.shape == bands.shape
    for band, expected in zip(filtered, bands, strict=True):
        np.testing.assert_array_equal(band, refined_lee(expected, 3.0))


def test_looks_of_zero_are_refused():
    with pytest.raises(ValueError, match="looks is 0"):
        refined_lee(np.ones((8, 8), np.float32), looks=0)
