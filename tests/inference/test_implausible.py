"""Scenes and arrays whose values cannot be what they are said to be, scenes without a pixel, and what was used."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray

from c_diffset.cli import main
from c_diffset.inference.canvas import translate_windows
from c_diffset.inference.job import Translation
from c_diffset.inference.record import settings_in
from c_diffset.inference.translate import translate
from tests.helpers import UTM, write_raster

TWO = {"units": "db", "range": [[-30.0, 0.0], [-35.0, -5.0], [0.0, 20.0]], "channels": [0, 1, "0-1"]}


def decibels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(-12, 3, shape).astype(np.float32)


@pytest.fixture
def pipe(make_pipe):
    """A model of VV and VH in dB."""
    return make_pipe("pixel", sar_transform=TWO | {"bands": ["VV", "VH"]}, default_num_inference_steps=1)


@pytest.fixture
def model(pipe, tmp_path) -> str:
    pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def command(model, tmp_path, capsys):
    """`command(scene, *options)`: what `c-diffset translate` answers: its status, output and errors."""

    def run(*arguments) -> tuple[int, str, str]:
        status = main(["translate", *map(str, arguments), "--model", model, "--output", str(tmp_path / "out")])
        return status, *capsys.readouterr()

    return run


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


# values that cannot be

UNFIT = {
    "negative int16 as power": (np.rint(decibels(2, 40, 50) * 100).astype(np.int16), "power", "whose scale is missing"),
    "grey as dB": (np.random.default_rng(0).integers(0, 256, (2, 40, 50), np.uint8), "db", "8-bit display values"),
    "grey as power": (np.random.default_rng(0).integers(0, 256, (2, 40, 50), np.uint8), "power", "8-bit display"),
    "numbers as power": (np.random.default_rng(0).integers(20, 900, (2, 40, 50), np.uint16), "power", "not calibrated"),
    "dB as power": (decibels(2, 40, 50), "power", "say `units` db"),
    "power as dB": (10 ** (decibels(2, 40, 50) / 10), "db", "say `units` power or amplitude"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_scene_that_cannot_be_in_its_units_is_refused(command, tmp_path, case):
    pixels, units, message = UNFIT[case]
    scene = write_raster(tmp_path / "scene.tif", pixels, ("VV", "VH"), **UTM)
    status, output, errors = command(scene, "--units", units)
    assert status == 1 and "0 written, 0 there already, 1 failed" in output
    (failed,) = [line for line in errors.splitlines() if line.startswith("failed")]
    assert f"{scene}: units is '{units}' (given), but the pixels" in failed and message in failed
    assert not (tmp_path / "out/scene.tif").exists()


@pytest.mark.parametrize("bands", [["VH", "VH"], ["2", "2"], ["VH", "2"], ["VH", "VV"]])
def test_a_band_twice_or_in_the_wrong_place_is_refused(command, tmp_path, bands):
    scene = write_raster(tmp_path / "scene.tif", decibels(2, 40, 50), ("VV", "VH"), **UTM)
    status, _, errors = command(scene, "--bands", *bands)
    assert status == 1 and "this model reads" in errors and "VV, VH" in errors


def test_arrays_that_cannot_be_in_the_units_of_the_model_are_refused(pipe):
    power = 10 ** (decibels(90, 100, 2) / 10)
    for make in (lambda x: next(translate_windows(x, pipe, num_inference_steps=1)), pipe):
        with pytest.raises(ValueError, match="this model reads db.* look like linear power"):
            make(power)
        with pytest.raises(ValueError, match="look like 8-bit display values"):
            make(np.random.default_rng(0).integers(0, 256, (90, 100, 2)).astype(np.float32))


# scenes without a pixel


def test_a_scene_without_a_valid_pixel_is_listed_as_empty(command, tmp_path):
    full = write_raster(tmp_path / "sar/full.tif", decibels(2, 40, 50), ("VV", "VH"), **UTM)
    write_raster(tmp_path / "sar/empty.tif", np.full((2, 40, 50), np.nan, np.float32), ("VV", "VH"), **UTM)
    status, output, errors = command(tmp_path / "sar")
    assert status == 0 and "1 written, 1 empty, 0 there already, 0 failed" in output
    assert f"empty: {tmp_path / 'out/empty.tif'} is all masked: its scene has no valid pixel" in errors
    with rasterio.open(tmp_path / "out/empty.tif") as eo:
        assert eo.shape == (40, 50) and not eo.dataset_mask().any()
    assert {Path(line["input"]).name: line.get("empty", False) for line in lines(tmp_path / "out")} == {
        "full.tif": False,
        "empty.tif": True,
    }
    before = (tmp_path / "out/manifest.jsonl").read_text()
    status, output, errors = command(tmp_path / "sar")
    assert status == 0 and "0 written, 2 there already" in output and "kept" not in errors
    assert (tmp_path / "out/manifest.jsonl").read_text() == before
    assert full.exists()


def test_empty_scenes_are_told_apart_in_python(model, tmp_path):
    scene = write_raster(tmp_path / "empty.tif", np.zeros((2, 40, 50), np.float32), ("VV", "VH"), **UTM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = translate([str(scene)], model, str(tmp_path / "out"))
    assert result == Translation(empty=[tmp_path / "out/empty.tif"])


# what was used


def test_what_was_found_is_recorded_and_said_once(command, tmp_path):
    for name in ("a", "b", "c"):
        write_raster(tmp_path / f"sar/{name}.tif", decibels(2, 40, 50)[::-1], ("VH", "VV"), **UTM)
    status, _, errors = command(tmp_path / "sar", "--stac")
    assert status == 0 and errors.count("units: dB, detected; bands: 2 (VV), 1 (VH)") == 1
    used = {"units": "db", "units_are": "detected", "bands": ["VV", "VH"], "band_numbers": [2, 1]}
    records = [line["settings"] for line in lines(tmp_path / "out")] + [settings_in(tmp_path / "out/a.tif")]
    for record in records:
        assert record.items() >= used.items() and record["asked"] == {"units": None, "bands": None}
    properties = json.loads((tmp_path / "out/a.json").read_text())["properties"]
    assert {name: properties[f"c_diffset:{name}"] for name in used} == used and "c_diffset:asked" not in properties


def test_what_was_found_makes_no_other_settings(command, tmp_path):
    scene = write_raster(tmp_path / "scene.tif", decibels(2, 40, 50), ("VV", "VH"), **UTM)
    command(scene)
    status, output, errors = command(scene)
    assert status == 0 and "1 there already" in output and "kept" not in errors
    (tmp_path / "out/manifest.jsonl").unlink()  # as where a kill came before the line
    command(scene)
    assert lines(tmp_path / "out")[0]["settings"]["units"] == "db" and len(lines(tmp_path / "out")) == 1
    _, _, errors = command(scene, "--units", "db")
    assert "was made with other settings (units)" in errors
    assert command(scene, "--confidence")[0] == 0  # completed, as the settings are the same


# arrays whose dimensions have names


@pytest.mark.parametrize(
    "dims", [("y", "x", "band"), ("band", "y", "x"), ("x", "y", "band"), ("channel", "latitude", "longitude")]
)
def test_named_dimensions_can_have_any_order(pipe, dims):
    sar, valid = decibels(70, 90, 2), np.ones((70, 90), bool)
    valid[:9] = False
    places = [("y", "latitude"), ("x", "longitude"), ("band", "channel")]
    axes = [next(i for i, names in enumerate(places) if name in names) for name in dims]
    array = xarray.DataArray(sar.transpose(axes), dims=dims)
    mask = xarray.DataArray(valid.T, dims=("x", "y"))
    (expected,) = translate_windows(sar, pipe, valid=valid)
    (window,) = translate_windows(array, pipe, valid=mask)
    np.testing.assert_array_equal(window.eo, expected.eo)
    np.testing.assert_array_equal(window.valid, valid)
    latents = pipe.prepare_latents((1, 3, 70, 90), None, None)
    named, plain = (pipe(image, latents=latents, output_type="np").images for image in (array, sar))
    np.testing.assert_array_equal(named, plain)


def test_two_named_dimensions(make_pipe):
    pipe = make_pipe("pixel", sar_transform=TWO | {"range": [-30.0, 0.0], "channels": [0, 0, 0]})
    sar = decibels(40, 60)
    (expected,) = translate_windows(sar, pipe)
    (window,) = translate_windows(xarray.DataArray(sar.T, dims=("x", "y")), pipe)
    np.testing.assert_array_equal(window.eo, expected.eo)


def test_bands_in_the_wrong_place_are_named(pipe):
    sar = decibels(2, 70, 90)
    for make in (lambda x: next(translate_windows(x, pipe)), pipe):
        for array in (sar, xarray.DataArray(sar)):
            with pytest.raises(ValueError, match=r"bands come last in arrays, H x W x 2: use np\.moveaxis"):
                make(array)
        with pytest.raises(ValueError, match="this model reads 2") as error:
            make(decibels(70, 90, 3))
        assert "moveaxis" not in str(error.value)
