"""Super-resolution of images and scenes: the finer grid, and where it lies."""

import json
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pystac
import pytest
import rasterio
import torch
from rasterio.control import GroundControlPoint
from rio_cogeo import cog_validate

from c_diffset.cli import main
from c_diffset.data.degradation import input_transform
from c_diffset.inference.canvas import translate_windows
from c_diffset.inference.enlarged import EnlargedSource
from c_diffset.inference.options import ReadOptions
from c_diffset.inference.raster import SarRaster
from c_diffset.inference.scene import SceneOptions, scene_raster, translate_scene
from c_diffset.inference.source import ArraySource
from c_diffset.inference.tiles import Box
from c_diffset.noise import noise_generator
from c_diffset.pipelines.pipeline_cdiffset import sar_to_tensor
from tests.helpers import UTM, write_png, write_raster

RGB = {"units": "display", "range": [0.0, 1.0], "channels": [0, 1, 2], "bands": ["red", "green", "blue"]}
SMALL = {"num_inference_steps": 1, "tile_size": 64, "overlap": 16}


def picture(height: int, width: int) -> np.ndarray:
    """uint8 H x W x 3, all but black."""
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def pipe(make_pipe):
    return make_pipe("tiny", sar_transform=RGB, upscale=4)


@pytest.fixture
def scene(tmp_path) -> Path:
    """An EO scene of 40 x 60 px of 10 m in UTM, without data in a corner."""
    pixels = np.moveaxis(picture(40, 60), -1, 0).copy()
    pixels[:, :20, :30] = 0
    return write_raster(tmp_path / "eo/scene.tif", pixels, nodata=0, photometric="RGB", **UTM)


def read(path: Path) -> tuple[np.ndarray, rasterio.DatasetReader]:
    with rasterio.open(path) as raster:
        return raster.read(), raster


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_windows_agree_with_the_enlarged_whole(make_pipe, upscale):
    pipe, image = make_pipe("pixel", sar_transform=RGB, upscale=upscale), picture(37, 51)
    source = EnlargedSource(ArraySource(image, RGB, origin=(5, 7)), pipe)
    assert source.size == (37 * upscale, 51 * upscale) and source.origin == (5 * upscale, 7 * upscale)
    whole = pipe.enlarge(pipe.prepare_sar(image))[0].numpy()
    for box in (Box(0, 0, *source.size), Box(0, 0, 7, 5), Box(31, 17, 62, 80), Box(70, 100, 74, 102)):
        sar, valid = source.read(box)
        np.testing.assert_allclose(sar, whole[box.slices()], rtol=0, atol=1e-6)
        assert valid.all() and np.array_equal(source.valid(box), valid)


def test_what_is_missing_spreads_into_no_pixel_and_depends_on_no_window(make_pipe):
    pipe, image = make_pipe("pixel", sar_transform=RGB, upscale=4), picture(60, 60) // 4
    known = np.random.default_rng(1).random((60, 60)) > 0.2
    known[20:34, 10:50] = False
    image[~known] = 255
    source = EnlargedSource(ArraySource(image, RGB, known), pipe)
    whole, valid = source.read(Box(0, 0, 240, 240))
    assert np.array_equal(valid, known.repeat(4, 0).repeat(4, 1))
    assert whole[:, valid].max() < 0.0, "white stands where nothing is known"
    for box in (Box(64, 64, 128, 128), Box(101, 3, 150, 90), Box(136, 40, 140, 44)):
        sar, there = source.read(box)
        assert np.array_equal(there, valid[box.slices()[1:]]) and np.array_equal(source.valid(box), there)
        np.testing.assert_allclose(sar[:, there], whole[box.slices()][:, there], rtol=0, atol=1e-6)
    empty, there = source.read(Box(84, 60, 100, 100))
    assert empty.shape == (3, 16, 40) and not there.any()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("space", ["kl", "pixel"])
def test_an_image_of_one_tile_is_what_the_pipeline_gives(make_pipe, space, residual):
    pipe, image = make_pipe(space, sar_transform=RGB, upscale=4, residual=residual), picture(16, 16)
    side = 64 // pipe.vae_scale_factor
    noise = torch.randn((1, pipe.eo_channels, 128, 128), generator=noise_generator(3, 0, 0, 0))[..., :side, :side]
    whole = pipe(image, 2, latents=noise, output_type="np")
    (window,) = translate_windows(image, pipe, num_inference_steps=2, seed=3, tile_size=64, overlap=0)
    assert window.eo.shape == (64, 64, 3)
    assert np.abs(window.eo - whole.images[0] * 255).max() <= 0.51
    np.testing.assert_allclose(window.confidence, whole.confidence[0], rtol=0, atol=1e-4)


def test_a_scene_becomes_a_finer_one_of_the_same_place(pipe, scene, tmp_path):
    outputs = translate_scene(scene, pipe, tmp_path / "out", SceneOptions(**SMALL), stac=True, preview=True)
    (pixels, before), (eo, after), (confidence, _) = map(read, (scene, outputs.eo, outputs.confidence))
    assert after.shape == (160, 240) and after.bounds == before.bounds and after.crs == before.crs
    assert after.transform.a == 2.5 and after.transform.e == -2.5
    known = (pixels != 0).all(axis=0).repeat(4, 0).repeat(4, 1)
    assert np.array_equal(np.isfinite(confidence[0]), known) and not eo[:, ~known].any()
    with warnings.catch_warnings(), rasterio.open(outputs.eo) as raster:
        warnings.simplefilter("ignore")
        assert np.array_equal(raster.dataset_mask() > 0, known)
        assert cog_validate(outputs.eo, strict=True)[0]
        tags = raster.tags()
    assert tags["UPSCALE"] == "4" and tags["INPUT_BANDS"] == "red,green,blue" and "SAR_UNITS" not in tags
    assert "4 times as fine" in tags["TIFFTAG_IMAGEDESCRIPTION"] and "SAR" not in tags["TIFFTAG_IMAGEDESCRIPTION"]
    assert json.loads(tags["SETTINGS"])["upscale"] == 4
    assert outputs.preview.exists()


def test_its_item_says_what_was_observed(pipe, scene, tmp_path):
    outputs = translate_scene(scene, pipe, tmp_path / "out", SceneOptions(**SMALL), stac=True)
    item = pystac.Item.from_file(outputs.item)
    assert item.properties["gsd"] == 10, "what is finer was not observed"
    assert item.properties["proj:shape"] == [160, 240] and item.properties["proj:transform"][0] == 2.5
    assert item.assets["eo"].extra_fields["raster:spatial_resolution"] == 2.5
    assert item.properties["c_diffset:upscale"] == 4 and "sar:polarizations" not in item.properties
    for text in (item.properties["description"], item.properties["processing:lineage"]):
        assert "SAR" not in text and "4 times" in text


def test_a_part_is_asked_for_in_the_pixels_of_the_scene(pipe, scene, tmp_path):
    """Whatever part is translated, a model sees the same there: what lies around it has its part in the enlarging."""
    window = SceneOptions(window=[24, 8, 20, 16], **SMALL)
    bbox = SceneOptions(bbox=[500_240, 3_999_760, 500_440, 3_999_920], **SMALL)
    for name, options in (("window", window), ("bbox", bbox)):
        outputs = translate_scene(scene, pipe, tmp_path / name, options)
        eo, raster = read(outputs.eo)
        assert raster.shape == (64, 80) and raster.bounds == (500_240, 3_999_760, 500_440, 3_999_920), name
    whole, part = (EnlargedSource(SarRaster(scene, RGB, options), pipe) for options in (None, window))
    assert part.origin == (whole.origin[0] + 32, whole.origin[1] + 96)
    for seen, expected in zip(part.read(Box(0, 0, 64, 80)), whole.read(Box(32, 96, 96, 176)), strict=True):
        np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-6)


def test_ground_control_points_move_with_the_pixels(pipe, tmp_path):
    corners = [(0, 0, 10.0, 50.0), (0, 24, 10.1, 50.0), (16, 0, 10.0, 49.9), (16, 24, 10.1, 49.9)]
    gcps = [GroundControlPoint(*corner) for corner in corners]
    scene = write_raster(tmp_path / "eo/scene.tif", np.moveaxis(picture(16, 24), -1, 0), gcps=gcps, crs="EPSG:4326")
    outputs = translate_scene(scene, pipe, tmp_path / "out", SceneOptions(**SMALL))
    with rasterio.open(outputs.eo) as raster:
        found = [(point.row, point.col, point.x, point.y) for point in raster.gcps[0]]
    assert found == [(4 * row, 4 * column, x, y) for row, column, x, y in corners]


def test_info_says_what_a_scene_becomes(pipe, scene, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "model")
    window = ["--window", "30", "20", "30", "20"]
    assert main(["info", str(tmp_path / "model"), str(scene), "--tile_size", "64", *window]) == 0
    shown = capsys.readouterr().out
    assert "display, detected" in shown and "bands     red, green, blue" in shown
    assert "EPSG:32631, pixels of 10 x 10" in shown and "becomes   120 x 80 pixels, pixels of 2.5 x 2.5" in shown
    assert "enlarged 4 times" in shown and "100%" in shown and "about 6 tiles" in shown


def test_bands_are_chosen_by_their_colours(pipe, tmp_path):
    """Blue, green, red and near infrared, as many products store them; alpha is a mask; without names, numbers do."""
    pixels = np.moveaxis(picture(16, 16), -1, 0)
    names = ("Blue", "Green", "Red", "NIR")
    stored = np.concatenate([pixels[::-1], pixels[:1] // 2])
    plain, reordered = write_raster(tmp_path / "rgb.tif", pixels, photometric="RGB"), tmp_path / "bgrn.tif"
    expected = SarRaster(plain, RGB).read(Box(0, 0, 16, 16))[0]
    write_raster(reordered, stored, names, photometric="MINISBLACK")
    assert np.array_equal(SarRaster(reordered, RGB).read(Box(0, 0, 16, 16))[0], expected)
    opaque = np.concatenate([pixels, np.where(np.arange(16) < 8, 0, 255)[None, None].repeat(16, 1).astype(np.uint8)])
    sar, valid = SarRaster(write_raster(tmp_path / "rgba.tif", opaque, photometric="RGB", alpha="YES"), RGB).read(
        Box(0, 0, 16, 16)
    )
    assert np.array_equal(sar[:, :, 8:], expected[:, :, 8:]) and not valid[:, :8].any() and valid[:, 8:].all()
    nameless = write_raster(tmp_path / "nameless.tif", stored, photometric="MINISBLACK")
    with pytest.raises(ValueError, match=r"has 4 bands \(None, .*this model reads 3: red, green, blue: say which"):
        SarRaster(nameless, RGB)
    chosen = SarRaster(nameless, RGB, ReadOptions(bands=["3", "2", "1"]))
    assert np.array_equal(chosen.read(Box(0, 0, 16, 16))[0], expected)


def test_reflectance_is_brought_to_what_the_model_was_trained_on(make_pipe, pipe, tmp_path):
    """16 bits, in the bands of Sentinel-2 and in their order; what is 0 in all of them holds no data."""
    reflectance = {"units": "reflectance", "range": [1000.0, 4000.0], "gamma": 2.0}
    model = make_pipe("tiny", upscale=4, eo_transform=reflectance)
    assert model.config.sar_transform == RGB
    values = np.random.default_rng(0).integers(0, 6000, (3, 16, 16)).astype(np.uint16)
    values[:, :2] = 0
    scene = write_raster(tmp_path / "scene.tif", values[::-1], ("B02", "B03", "B04"), **UTM)
    raster = scene_raster(scene, model, ReadOptions())
    sar, valid = raster.read(Box(0, 0, 16, 16))
    assert (raster.units, raster.units_are, raster.band_names) == ("reflectance", "detected", ("B04", "B03", "B02"))
    assert valid[2:].all() and not valid[:2].any()
    expected = ((values[:, 2:] - 1000.0) / 3000).clip(0, 1) ** 0.5 * 2 - 1
    np.testing.assert_allclose(sar[:, 2:], expected, rtol=0, atol=1e-6)
    outputs = translate_scene(scene, model, tmp_path / "out", SceneOptions(**SMALL))
    with rasterio.open(outputs.eo) as raster:
        assert raster.shape == (64, 64) and raster.tags()["INPUT_UNITS"] == "reflectance"
        assert np.array_equal(raster.dataset_mask() > 0, valid.repeat(4, 0).repeat(4, 1))
    for other in (pipe, make_pipe("tiny", sar_transform=RGB, eo_transform=reflectance)):  # 8 bits; no super-resolution
        with pytest.raises(ValueError, match="units is 'reflectance', which this model was not trained on: stretch"):
            scene_raster(scene, other, ReadOptions(units="reflectance"))
    scaled = write_raster(tmp_path / "scaled.tif", values, ("red", "green", "blue"), scaling=(0.0001, 0.0))
    with pytest.raises(ValueError, match="reflectances reach from .* to 0.5.*black stands for 1000 and white for 4000"):
        scene_raster(scaled, model, ReadOptions())
    with pytest.raises(ValueError, match="64 x 64 pixels after upscaling by 4 are more than max_pixels, 4000"):
        translate_scene(scene, model, tmp_path / "out", SceneOptions(max_pixels=4000))
    with pytest.raises(ValueError, match="reflectance values have no speckle statistics"):
        scene_raster(scene, model, ReadOptions(despeckle=True))


def test_a_model_of_16_bits_reads_reflectance_by_its_own_range(make_pipe, tmp_path):
    """What training makes of 16-bit EO images is what a scene of them becomes; 8 bits are none of it."""
    values = np.random.default_rng(0).integers(1, 6000, (3, 16, 16)).astype(np.uint16)
    reflectance = {"units": "reflectance", "range": [1000.0, 4000.0]}
    transform = input_transform(np.moveaxis(values, 0, -1), reflectance)
    model = make_pipe("tiny", upscale=4, eo_transform=reflectance, sar_transform=transform)
    scene = write_raster(tmp_path / "scene.tif", values, ("red", "green", "blue"), **UTM)
    raster = scene_raster(scene, model, ReadOptions())
    sar, _ = raster.read(Box(0, 0, 16, 16))
    assert raster.units == "reflectance"
    np.testing.assert_allclose(sar, ((values - 1000.0) / 3000).clip(0, 1) * 2 - 1, rtol=0, atol=1e-4)
    np.testing.assert_allclose(sar, sar_to_tensor(np.moveaxis(values, 0, -1), transform), rtol=0, atol=1e-4)
    eight = write_raster(tmp_path / "eight.tif", (values // 25).astype(np.uint8), photometric="RGB")
    with pytest.raises(ValueError, match="8-bit pixels, but this model reads reflectance as files of 16 bits store it"):
        scene_raster(eight, model, ReadOptions())


def test_images_of_every_size_by_the_command(pipe, tmp_path, capsys):
    """Small ones whole, larger ones by tiles; a second command finds them finished."""
    pipe.save_pretrained(tmp_path / "model")
    for name, sides in (("small", (9, 7)), ("large", (20, 50))):
        write_png(tmp_path / f"low/{name}.png", picture(*sides))
    opaque = np.dstack([picture(9, 7), np.full((9, 7), 255, np.uint8)])
    write_png(tmp_path / "low/opaque.png", opaque)
    write_png(tmp_path / "low/grey.png", picture(9, 7)[..., 0])
    write_png(tmp_path / "other/clear.png", np.where(np.arange(4) < 3, opaque, 9).astype(np.uint8))
    where = ["--model", tmp_path / "model", "--output", tmp_path / "out", "--tile_size", 64, "--overlap", 16]
    command = ["translate", tmp_path / "low", *where, "--confidence", "--preview"]
    assert main(list(map(str, command))) == 0
    with PIL.Image.open(tmp_path / "out/small.png") as small, PIL.Image.open(tmp_path / "out/large.png") as large:
        assert small.size == (28, 36) and large.size == (200, 80)
    with PIL.Image.open(tmp_path / "out/large_confidence.png") as confidence:
        assert confidence.size == (200, 80)
    capsys.readouterr()
    assert main(list(map(str, command))) == 0 and "4 there already" in capsys.readouterr().out
    assert main(["translate", str(tmp_path / "other"), *map(str, where)]) == 1
    assert "pixels are transparent: fill them" in capsys.readouterr().err
