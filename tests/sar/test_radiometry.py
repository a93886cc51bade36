"""What SAR values look like in units that they cannot be in, and that no real image is refused."""

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import rasterio

from c_diffset.sar.radiometry import convert_units, doubt_units, without_fill

DATA = Path(__file__).parents[3] / "shared/data"
DB = {"units": "db", "range": [-30.0, 0.0], "channels": [0]}
GREY = {"units": "display", "range": [0.0, 1.0], "channels": [0]}
BACKSCATTER = ("db", "power", "amplitude")


def backscatter(mean: float, spread: float = 3, looks: float = 4.4) -> np.ndarray:
    """dB of one band, 1 x 4096: reflectivity that varies, under speckle."""
    random = np.random.default_rng(0)
    speckle = 10 * np.log10(random.gamma(looks, 1 / looks, (1, 4096)))
    return (random.normal(mean, spread, (1, 4096)) + speckle).astype(np.float32)


def as_units(decibels: np.ndarray, units: str) -> np.ndarray:
    return convert_units(decibels, "db", units)


@pytest.mark.parametrize("units", BACKSCATTER)
@pytest.mark.parametrize(
    ("mean", "spread", "looks"), [(-12, 3, 4.4), (-18, 3, 4.4), (-35, 2, 4.4), (-2, 6, 1), (3, 6, 4.4), (-8, 12, 1)]
)
def test_land_calm_water_and_bright_cities_are_plausible(units, mean, spread, looks):
    assert doubt_units(as_units(backscatter(mean, spread, looks), units), units, DB) is None


def test_noise_removed_from_water_is_plausible():
    power = as_units(backscatter(-28), "power") - np.float32(10**-2.7)  # most of it is at or below zero
    assert (power < 0).mean() > 0.5
    assert doubt_units(power, "power", DB) is None
    assert doubt_units(np.maximum(power, 0), "power", DB) is None


@pytest.mark.parametrize("fill", [0, -9999, -32768, -3.4e38, np.nan])
@pytest.mark.parametrize("units", BACKSCATTER)
def test_fill_values_do_not_count(units, fill):
    values = as_units(backscatter(-12), units)
    values[:, :4000], values[:, 4000:4010] = fill, -5000.5 + np.arange(10)  # with a rim that resampling made
    assert doubt_units(values, units, DB) is None
    values[:] = fill
    assert doubt_units(values, units, DB) is None and not without_fill(values[0], units).size


WRONG = [
    (backscatter(-12), "power", r"decibels \(dB\): say `units` db"),
    (backscatter(-12), "amplitude", r"decibels \(dB\): say `units` db"),
    (np.rint(backscatter(-12)).astype(np.int16), "power", r"decibels \(dB\)"),
    (np.rint(backscatter(-12) * 100).astype(np.int16), "power", "whose scale is missing"),
    (np.rint(backscatter(-12) * 100).astype(np.int16), "db", "whose scale is missing"),
    (as_units(backscatter(-12), "power"), "db", "say `units` power or amplitude"),
    (as_units(backscatter(-12), "amplitude"), "db", "say `units` power or amplitude"),
    (backscatter(-12), "display", r"decibels \(dB\)"),
    (np.abs(backscatter(-12)), "db", "not calibrated"),
    *((np.arange(256, dtype=dtype)[None], units, "8-bit display") for units in BACKSCATTER for dtype in "Bfd"),
    *((np.arange(20, dtype=np.uint8)[None].repeat(9, 1), units, "8-bit display") for units in BACKSCATTER),
    *((np.arange(40, 900, dtype=np.uint16)[None], units, "not calibrated") for units in (*BACKSCATTER, "display")),
    (np.arange(256, dtype=np.float32)[None], "display", "uint8 or divided by 255"),
    (as_units(backscatter(-70), "power"), "power", "linear power"),
]


@pytest.mark.parametrize(("values", "units", "message"), WRONG)
def test_what_cannot_be_is_named(values, units, message):
    assert re.search(message, doubt_units(values, units, GREY if units == "display" else DB) or "no doubt")


def test_one_band_is_enough():
    angle = np.random.default_rng(0).uniform(30, 45, (1, 4096)).astype(np.float32)
    bands = np.concatenate([backscatter(-12), angle])
    assert "not calibrated" in (doubt_units(bands, "db", DB) or "")


def test_a_model_of_uncalibrated_numbers_reads_them():
    numbers = np.random.default_rng(0).integers(1, 900, (1, 4096), dtype=np.uint16)
    for units, limits in (("amplitude", [20.0, 60.0]), ("amplitude", [0.0, 50.0])):
        assert doubt_units(numbers, units, DB | {"range": limits}) is None
    in_db = 20 * np.log10(numbers)
    two = {"units": "db", "channels": [0, 0, "0-0"], "range": [[10.0, 60.0], [0.0, 70.0], [-5.0, 5.0]]}
    assert doubt_units(in_db, "db", two) is None
    ratios = DB | {"channels": [0, "0-0"], "range": [[-30.0, 0.0], [0.0, 90.0]]}
    assert doubt_units(in_db, "db", ratios)  # the range of a ratio says nothing of a band
    assert doubt_units(numbers, "display", GREY | {"range": [0.0, 0.02]}) is None


def test_a_handful_of_pixels_says_nothing():
    assert doubt_units(np.full((2, 20), 99.0), "db", DB) is None


@pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not at hand")
def test_no_real_image_is_refused_and_no_wrong_unit_accepted():
    for path in (DATA / "scenes").glob("*_db.tif"):
        with rasterio.open(path) as raster:
            bands = raster.read().astype(np.float32)
        for top in range(0, bands.shape[1] - 39, 40):
            part = bands[:, top : top + 40, :40].reshape(len(bands), -1)
            for units in BACKSCATTER:
                assert doubt_units(as_units(part, units), units, DB) is None, (path, units)
            for units in ("power", "amplitude", "display"):
                assert doubt_units(part, units, DB), (path, units)
            for units in ("power", "amplitude"):
                assert doubt_units(as_units(part, units), "db", DB), (path, units)
    for path in (DATA / "sentinel/validation/sar").glob("*.png"):
        grey = np.asarray(PIL.Image.open(path))[None, :256, :256]
        assert doubt_units(grey, "display", GREY) is None
        assert doubt_units(grey.astype(np.uint16) * 257, "display", GREY) is None
        assert all(doubt_units(grey, units, DB) for units in BACKSCATTER)
