"""A part of a scene: the same ground, the same noise, and what cannot be a part."""

import json
import re
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine
from rasterio.warp import transform_bounds

from c_diffset.cli import main
from c_diffset.inference.options import ReadOptions
from c_diffset.inference.raster import SarRaster
from c_diffset.inference.scene import SceneOptions, translate_scene
from c_diffset.inference.tiles import Box
from tests.helpers import DISPLAY, UTM, write_png, write_raster
from tests.sar.test_safe import make_safe

SMALL = {"num_inference_steps": 1, "tile_size": 64, "overlap": 16}
WINDOW = [72, 40, 130, 96]  # column, row, width, height
BBOX = [500_720, 3_998_640, 502_020, 3_999_600]  # the same pixels
ROWS, COLUMNS = slice(40, 136), slice(72, 202)


def display(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 120, (height, width), dtype=np.uint8)


def read(path: Path) -> tuple[np.ndarray, dict]:
    with rasterio.open(path) as raster:
        return raster.read().astype(int), {"crs": raster.crs, "transform": raster.transform}


@pytest.fixture
def scene(tmp_path) -> Path:
    return write_raster(tmp_path / "sar/scene.tif", display(220, 300), **UTM)


@pytest.fixture
def pipe(make_pipe):
    return make_pipe("tiny", sar_transform=DISPLAY | {"channels": [0, 0, 0]})


@pytest.fixture
def command(pipe, tmp_path, capsys):
    """`command(input, *options)`: status, output and errors of `c-diffset translate` into `out`."""
    pipe.save_pretrained(tmp_path / "model")
    capsys.readouterr()

    def run(*arguments) -> tuple[int, str, str]:
        where = ["--model", tmp_path / "model", "--output", tmp_path / "out", "--tile_size", 64, "--overlap", 16]
        status = main(["translate", *map(str, [*arguments, *where])])
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("asked", ["bbox", "window", "bbox_crs"])
def test_a_part_shows_what_the_whole_scene_shows_there(pipe, scene, tmp_path, asked):
    inside = [500_721, 3_998_641, 502_019, 3_999_599]  # touches the same pixels
    lon_lat = transform_bounds("EPSG:32631", "EPSG:4326", *inside)
    part = {"bbox": {"bbox": BBOX}, "window": {"window": WINDOW}, "bbox_crs": {"bbox": lon_lat}}[asked]
    if asked == "bbox_crs":
        part["bbox_crs"] = "EPSG:4326"
    whole = translate_scene(scene, pipe, tmp_path / "whole", SceneOptions(**SMALL), confidence=False)
    cut = translate_scene(scene, pipe, tmp_path / "part", SceneOptions(**SMALL, **part), stac=True)
    (expected, _), (eo, place) = read(whole.eo), read(cut.eo)
    if asked == "bbox_crs":  # the box in degrees is a little wider
        assert eo.shape[1] - 96 in range(9) and eo.shape[2] - 130 in range(9)
        return
    assert eo.shape == (3, 96, 130) and read(cut.confidence)[0].shape == (1, 96, 130)
    assert place == {"crs": UTM["crs"], "transform": UTM["transform"] @ Affine.translation(72, 40)}
    difference = np.abs(expected[:, ROWS, COLUMNS] - eo)
    assert (difference[:, 32:-32, 32:-32] <= 1).mean() > 0.9  # at the border the model sees less
    elsewhere = np.abs(expected[:, 48:144, 80:210] - eo)  # the same scene, a few pixels away
    assert elsewhere[:, 32:-32, 32:-32].mean() > 20 * difference[:, 32:-32, 32:-32].mean()
    item = pystac.Item.from_file(cut.item)
    np.testing.assert_allclose(item.bbox, transform_bounds("EPSG:32631", "EPSG:4326", *BBOX), atol=1e-5)
    name, value = next(iter(part.items()))
    with rasterio.open(cut.eo) as raster:
        assert json.loads(raster.tags()["SETTINGS"])[name] == value


@pytest.mark.parametrize("grid", [UTM["transform"], Affine.identity(), Affine(8, 6, 5e5, 6, -8, 4e6)])
def test_a_part_lies_on_the_noise_field_of_the_whole(tmp_path, grid):
    scene = write_raster(tmp_path / "scene.tif", display(220, 300), **UTM | {"transform": grid})
    whole, part = SarRaster(scene, DISPLAY), SarRaster(scene, DISPLAY, ReadOptions(window=WINDOW))
    assert part.origin == (whole.origin[0] + 40, whole.origin[1] + 72) and part.size == (96, 130)
    sar, valid = part.read(Box(0, 0, *part.size))
    np.testing.assert_array_equal(sar, whole.read(Box(40, 72, 136, 202))[0])
    np.testing.assert_array_equal(part.valid(Box(3, 4, 9, 7)), valid[3:9, 4:7])


def test_speckle_at_the_border_of_a_part_is_filtered_as_inside(tmp_path):
    power = np.random.default_rng(0).gamma(4.4, 0.1 / 4.4, (150, 170)).astype(np.float32)
    scene = write_raster(tmp_path / "scene.tif", power, **UTM)
    model = {"units": "db", "range": [-30.0, 0.0], "channels": [0]}
    whole, part = (
        SarRaster(scene, model, ReadOptions(units="power", despeckle=True, window=window))
        for window in (None, [40, 30, 50, 60])
    )
    expected = whole.read(Box(30, 40, 90, 90))[0]
    np.testing.assert_allclose(part.read(Box(0, 0, 60, 50))[0], expected, atol=1e-6)


def test_scenes_outside_of_the_box_are_listed(command, scene, tmp_path):
    far = UTM | {"transform": UTM["transform"] @ Affine.translation(9000, 0)}
    write_raster(tmp_path / "sar/far.tif", display(50, 60), **far)
    status, output, errors = command(tmp_path / "sar", "--bbox", *BBOX)
    assert status == 0 and "1 written, 1 outside, 0 there already, 0 failed" in output
    assert f"outside: {tmp_path / 'sar/far.tif'} has nothing in the bbox" in errors
    assert "1 input of 0.0 megapixels" in errors and not (tmp_path / "out/far.tif").exists()
    assert command(tmp_path / "sar", "--bbox", *BBOX)[2].count("kept") == 0
    assert "other settings (bbox, window)" in command(scene, "--window", *WINDOW)[2]
    elsewhere = ["--bbox", -118.5, -3.25, -118, -3, "--bbox_crs", "EPSG:4326", "--overwrite"]
    status, _, errors = command(tmp_path / "sar", *elsewhere)
    assert status == 2 and "none of the inputs has anything in bbox [-118.5, -3.25, -118.0, -3.0]" in errors


def test_a_box_over_the_border_is_cut_there(scene):
    raster = SarRaster(scene, DISPLAY, ReadOptions(bbox=[0, 3_999_000, 500_105, 5_000_000]))
    assert raster.part == Box(0, 0, 100, 11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", 0, 0, 301, 10], r"scene\.tif: window \[0, 0, 301, 10\] is not inside of the scene, 300 x 220"),
        (["--window", 300, 0, 1, 1], r"scene\.tif: window"),
    ],
)
def test_a_window_that_leaves_the_scene_fails(command, scene, options, message):
    status, output, errors = command(scene, *options)
    assert status == 1 and "1 failed" in output
    assert re.search(message, errors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", -1, 0, 9, 9], "window is [-1, 0, 9, 9]: expected COLUMN ROW WIDTH HEIGHT"),
        (["--window", 0, 0, 0, 9], "window is"),
        (["--bbox", 5, 0, 4, 9], "bbox is [5.0, 0.0, 4.0, 9.0]: expected LEFT BOTTOM RIGHT TOP"),
        (["--bbox", 0, 9, 5, 4], "bbox is"),
        (["--bbox", 0, 0, "1e300", 9, "--bbox_crs", "EPSG:3857"], "bbox is"),  # which PROJ takes hours over
        (["--bbox", 0, 0, 9, 9, "--window", 0, 0, 9, 9], "bbox and window are both given"),
        (["--bbox_crs", "EPSG:4326"], "there is no bbox"),
        (["--bbox", 0, 0, 9, 9, "--bbox_crs", "banana"], "bbox_crs is 'banana'"),
    ],
)
def test_parts_that_cannot_be_are_wrong_usage(command, scene, tmp_path, options, message):
    status, _, errors = command(scene, *options)
    assert status == 2 and message in errors and not (tmp_path / "out").exists()


def test_images_have_no_parts(command, scene):
    write_png(scene.parent / "image.png", display(20, 30))
    status, _, errors = command(scene.parent, "--window", *WINDOW)
    assert status == 2 and "image.png: bbox and window are of scenes" in errors


def test_places_that_no_box_can_be_found_in(tmp_path):
    bare = write_raster(tmp_path / "bare.tif", display(20, 30))
    with pytest.raises(ValueError, match=r"bare\.tif: bbox cannot be found in a scene that has no coordinates"):
        SarRaster(bare, DISPLAY, ReadOptions(bbox=[0, 0, 9, 9]))
    assert SarRaster(bare, DISPLAY, ReadOptions(window=[3, 4, 5, 6])).place == {}
    gcps = [GroundControlPoint(r, c, 3 + c / 1e4, 36 - r / 1e4) for r in (0, 20) for c in (0, 30)]
    points = write_raster(tmp_path / "points.tif", display(20, 30), gcps=gcps, crs="EPSG:4326")
    with pytest.raises(ValueError, match="ground control points alone: say `crs` too"):
        SarRaster(points, DISPLAY, ReadOptions(bbox=[0, 0, 9, 9]))
    place = SarRaster(points, DISPLAY, ReadOptions(window=[3, 4, 5, 6])).place
    assert [(g.row, g.col, g.x) for g in place["gcps"]] == [(g.row - 4, g.col - 3, g.x) for g in gcps]


def test_the_limit_of_pixels_is_that_of_the_part(tmp_path):
    size = {"width": 100_000, "height": 100_000, "count": 1, "dtype": "uint8", "sparse_ok": True, "tiled": True}
    with rasterio.open(tmp_path / "large.tif", "w", driver="GTiff", **size, **UTM):
        pass
    options = ReadOptions(window=[70_000, 80_000, 40, 30], max_pixels=1200)
    assert SarRaster(tmp_path / "large.tif", DISPLAY, options).size == (30, 40)
    with pytest.raises(ValueError, match=r"30 x 40 pixels are more than max_pixels, 1199"):
        SarRaster(tmp_path / "large.tif", DISPLAY, ReadOptions(window=options.window, max_pixels=1199))
    warped = ReadOptions(bbox=[501_000, 3_999_000, 501_100, 3_999_100], resolution=0.5, max_pixels=4 * 10**10)
    assert SarRaster(tmp_path / "large.tif", DISPLAY, warped).size == (200, 200)


def test_a_part_after_warping(scene):
    options = ReadOptions(crs="EPSG:32630", resolution=20)
    whole = SarRaster(scene, DISPLAY, options)
    left, top = whole.place["transform"] @ (30, 20)
    options = ReadOptions(crs="EPSG:32630", resolution=20, bbox=[left, top - 800, left + 1000, top])
    part = SarRaster(scene, DISPLAY, options)
    assert part.part == Box(20, 30, 60, 80) and part.origin == (whole.origin[0] + 20, whole.origin[1] + 30)
    np.testing.assert_array_equal(part.read(Box(0, 0, 40, 50))[0], whole.read(Box(20, 30, 60, 80))[0])


def test_parts_of_products(make_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("c_diffset.sar.safe.WINDOW", (16, 16))
    monkeypatch.setattr("c_diffset.inference.grid.AROUND", 4)
    safe = make_safe(tmp_path / "a.SAFE", shape=(90, 110))
    pipe = make_pipe("tiny", sar_transform={"units": "db", "range": [-40.0, 40.0], "channels": [0, 1, "0-1"]})
    options = SceneOptions(**SMALL, window=[40, 10, 50, 30])
    part = translate_scene(safe, pipe, tmp_path / "part", options, stac=True)
    whole = translate_scene(safe, pipe, tmp_path / "whole", SceneOptions(**SMALL), stac=True)
    assert read(part.eo)[0].shape == (3, 30, 50)
    assert np.abs(read(part.eo)[0] - read(whole.eo)[0][:, 10:40, 40:90]).mean() < 60
    assert pystac.Item.from_file(part.item).bbox == pytest.approx([10.04, 49.96, 10.09, 49.99], abs=2e-3)
    place = {"crs": "EPSG:4326", "resolution": 0.001}
    boxed = SceneOptions(**SMALL, **place, bbox=[10.02, 49.965, 10.06, 49.985])
    warped = translate_scene(safe, pipe, tmp_path / "boxed", boxed)
    all_of_it = translate_scene(safe, pipe, tmp_path / "warped", SceneOptions(**SMALL, **place))
    with rasterio.open(warped.eo) as cut, rasterio.open(all_of_it.eo) as eo:
        window = eo.window(*cut.bounds)
        np.testing.assert_array_equal(cut.dataset_mask(), eo.dataset_mask(window=window))
        assert cut.dataset_mask().any() and cut.shape == (20, 40)
