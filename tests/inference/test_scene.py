"""Scenes in, Cloud Optimized GeoTIFF out: place, masks, tags, and what goes wrong."""

import json
import resource
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import MaskFlags
from rasterio.transform import from_origin
from rio_cogeo import cog_validate

from c_diffset.cli import main
from c_diffset.inference.options import SceneOptions
from c_diffset.inference.scene import translate_scene, work_folder
from c_diffset.inference.translate import translate
from tests.conftest import copying_pipe
from tests.helpers import write_raster
from tests.sar.test_safe import make_safe

SCENES = Path(__file__).parents[3] / "shared/data/scenes"
UTM = {"crs": "EPSG:32631", "transform": from_origin(500_000, 4_000_005, 10, 10)}
DECIBEL = {"units": "db", "range": [-30.0, 0.0], "channels": [0, 0, 0], "bands": ["VV"]}
SMALL = SceneOptions(num_inference_steps=1, tile_size=64, overlap=16)


def display(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 120, (height, width), dtype=np.uint8)


@pytest.fixture
def scene(tmp_path) -> Path:
    """A display scene of 150 x 700 px in UTM, nodata 0 in a corner."""
    pixels = display(150, 700)
    pixels[:80, :600] = 0
    return write_raster(tmp_path / "scene.tif", pixels, ("VV",), nodata=0, **UTM)


def read(path: Path) -> tuple[np.ndarray, dict]:
    """Pixels and all that says where they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as raster:
            gcps, gcps_crs = raster.gcps
            place = {"crs": raster.crs, "transform": raster.transform, "shape": raster.shape, "bounds": raster.bounds}
            place |= {"gcps": [(g.row, g.col, g.x, g.y, g.z) for g in gcps], "gcps_crs": gcps_crs}
            return raster.read(), place


def test_images_and_maps_are_cogs_on_the_pixels_of_the_scene(make_pipe, scene, tmp_path):
    outputs = translate_scene(scene, make_pipe("tiny"), tmp_path / "out", SMALL)
    (sar, place), (eo, eo_place), (confidence, confidence_place) = map(read, (scene, outputs.eo, outputs.confidence))
    assert eo_place == confidence_place == place
    assert outputs.eo.name == "scene.tif" and outputs.confidence.name == "scene_confidence.tif"
    for path in outputs.files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            valid, errors, remarks = cog_validate(path, strict=True)
        assert valid and not errors and not remarks, (errors, remarks)
    with rasterio.open(outputs.eo) as raster:
        assert (raster.count, raster.dtypes[0], raster.compression.name) == (3, "uint8", "deflate")
        assert raster.block_shapes == [(512, 512)] * 3 and raster.overviews(1) == [2]
        assert raster.mask_flag_enums[0] == [MaskFlags.per_dataset]
        np.testing.assert_array_equal(raster.dataset_mask() > 0, sar[0] != 0)
        tags = raster.tags()
    assert "ynthetic" in tags["TIFFTAG_IMAGEDESCRIPTION"] and tags["SYNTHETIC"] == "yes"
    assert (tags["SEED"], tags["NUM_INFERENCE_STEPS"], tags["SAR_UNITS"], tags["SAR_BANDS"]) == (
        "0",
        "1",
        "display",
        "VV",
    )
    settings = json.loads(tags["SETTINGS"])
    assert settings["tile_size"] == 64 and settings["scheduler"] == "DDIMScheduler" and settings["dtype"] == "float32"
    with rasterio.open(outputs.confidence) as raster:
        assert raster.dtypes == ("float32",) and raster.descriptions == ("confidence",) and np.isnan(raster.nodata)
    np.testing.assert_array_equal(np.isnan(confidence[0]), sar[0] == 0)
    assert not eo[:, sar[0] == 0].any() and eo[:, sar[0] != 0].any(axis=0).mean() > 0.99
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scene.tif", "scene_confidence.tif"]


def test_a_calibrated_model_writes_the_expected_error(make_pipe, scene, tmp_path):
    knots = {"variance": [0.0, 10.0], "expected_error": [1.0, 101.0], "probability": [0.0, 1.0]}
    pipe = make_pipe("tiny", calibration={"threshold": 32, "steps": {"1": knots}})
    outputs = translate_scene(scene, pipe, tmp_path / "out", SMALL)
    with rasterio.open(outputs.confidence) as raster:
        assert raster.descriptions == ("confidence", "expected_error")
        confidence, error = raster.read()
    np.testing.assert_array_equal(np.isnan(error), np.isnan(confidence))
    valid = ~np.isnan(error)
    np.testing.assert_allclose(error[valid], 1 + 10 * (1 / confidence[valid] - 1), rtol=1e-4)
    other = translate_scene(scene, pipe, tmp_path / "other", SceneOptions(2, tile_size=64, overlap=16))
    assert read(other.confidence)[0].shape[0] == 1


def test_a_target_ends_where_it_stands(tmp_path):
    pixels = display(230, 300) // 2 + 20
    places = [(7, 11), (64, 200), (111, 111), (229, 299), (150, 63)]
    for row, column in places:
        pixels[row, column] = 255
    scene = write_raster(tmp_path / "scene.tif", pixels, **UTM)
    outputs = translate_scene(scene, copying_pipe(), tmp_path / "out", SMALL)
    with rasterio.open(outputs.eo) as eo, rasterio.open(scene) as sar:
        image = eo.read().astype(int).sum(axis=0)
        for row, column in places:
            x, y = sar.xy(row, column)
            found = eo.index(x, y)
            near = tuple(slice(max(0, side - 5), side + 6) for side in found)
            assert image[found] == image[near].max() and (image[near] == image[found]).sum() == 1


def test_a_scene_cut_by_eight_pixels_shows_the_same(make_pipe, tmp_path):
    pixels, pipe = display(260, 240), make_pipe("tiny")
    whole = translate_scene(write_raster(tmp_path / "whole.tif", pixels, **UTM), pipe, tmp_path / "out", SMALL)
    place = {"crs": UTM["crs"], "transform": UTM["transform"] @ UTM["transform"].translation(8, 8)}
    cut = translate_scene(write_raster(tmp_path / "cut.tif", pixels[8:, 8:], **place), pipe, tmp_path / "out", SMALL)
    (whole_eo, _), (cut_eo, _) = read(whole.eo), read(cut.eo)
    difference = np.abs(whole_eo[:, 8:, 8:].astype(int) - cut_eo)
    assert difference[:, 112:, 112:].max() <= 1  # two tiles from the cut
    assert (difference[:, :64] > 1).any()  # at the cut itself the model sees less
    alike = place | {"transform": UTM["transform"]}  # the same pixels, said to lie elsewhere: other noise
    other = translate_scene(
        write_raster(tmp_path / "other.tif", pixels[8:, 8:], **alike), pipe, tmp_path / "out", SMALL
    )
    assert np.abs(read(other.eo)[0].astype(int) - cut_eo).mean() > 1


def test_ground_control_points_are_kept_or_warped(make_pipe, tmp_path):
    corners = [(0, 0, 3.0, 36.1), (0, 300, 3.03, 36.1), (200, 0, 3.0, 36.08), (200, 300, 3.03, 36.08)]
    gcps = [GroundControlPoint(row, column, x, y) for row, column, x, y in corners]
    scene = write_raster(tmp_path / "scene.tif", display(200, 300), gcps=gcps, crs="EPSG:4326")
    pipe = make_pipe("tiny")
    kept = translate_scene(scene, pipe, tmp_path / "kept", SMALL, stac=True)
    assert read(kept.eo)[1] == read(scene)[1] and read(kept.confidence)[1] == read(scene)[1]
    options = SceneOptions(1, tile_size=64, overlap=16, crs="EPSG:32630", resolution=20)
    warped = translate_scene(scene, pipe, tmp_path / "warped", options)
    with rasterio.open(warped.eo) as raster:
        assert raster.crs == "EPSG:32630" and raster.res == (20, 20) and not raster.gcps[0]
        west, south, east, north = rasterio.warp.transform_bounds(raster.crs, "EPSG:4326", *raster.bounds)
        np.testing.assert_allclose((west, south, east, north), (3, 36.08, 3.03, 36.1), atol=2e-3)
        assert 0.85 < (raster.dataset_mask() > 0).mean() < 1


def test_a_sentinel_1_product(make_pipe, tmp_path):
    name = "S1A_IW_GRDH_1SDV_20201104T134909_20201104T134934_035096_04189C_0B4C"
    safe = make_safe(tmp_path / f"{name}.SAFE", shape=(90, 110))
    pipe = make_pipe("tiny", sar_transform={"units": "db", "range": [-40.0, 40.0], "channels": [0, 1, "0-1"]})
    outputs = translate_scene(safe, pipe, tmp_path / "out", SMALL, stac=True)
    assert outputs.eo.name == f"{name}.tif"
    with rasterio.open(outputs.eo) as raster:
        assert raster.tags()["ACQUISITION_START"].startswith("2020-11-04T13:49:09") and len(raster.gcps[0]) >= 4
        assert raster.tags()["SAR_BANDS"] == "VV,VH"
        mask = raster.dataset_mask() > 0
    assert not mask[:3].any() and not mask[:, -4:].any() and mask[3:, :-4].all()
    item = pystac.Item.from_file(outputs.item)
    assert item.datetime.isoformat().startswith("2020-11-04T13:49:09") and "ynthetic" in json.dumps(item.to_dict())
    with pytest.raises(ValueError, match="HH"):
        translate_scene(safe, pipe, tmp_path / "out2", SceneOptions(1, tile_size=64, overlap=16, bands=["HH", "HV"]))


def test_without_coordinates_or_without_data_there_is_a_warning(make_pipe, tmp_path):
    pipe = make_pipe("tiny")
    bare = write_raster(tmp_path / "bare.tif", display(70, 70))
    with pytest.warns(UserWarning, match="no coordinate system"):
        outputs = translate_scene(bare, pipe, tmp_path / "out", SMALL)
    assert read(outputs.eo)[1]["crs"] is None and read(outputs.eo)[0].any()
    empty = write_raster(tmp_path / "empty.tif", np.zeros((600, 700), np.uint8), nodata=0, **UTM)
    with pytest.warns(UserWarning, match="no valid pixel"):
        outputs = translate_scene(empty, pipe, tmp_path / "out", SMALL)
    with rasterio.open(outputs.eo) as raster:
        assert not raster.read().any() and not raster.dataset_mask().any()
    assert np.isnan(read(outputs.confidence)[0]).all()


def test_wrong_scenes_do_not_stop_the_others_and_leave_nothing(make_pipe, tmp_path, scene, capsys):
    make_pipe("tiny", sar_transform=DECIBEL).save_pretrained(tmp_path / "model")
    decibel = np.random.default_rng(0).uniform(-25, -5, (3, 90, 100)).astype(np.float32)
    folder = tmp_path / "sar"
    folder.mkdir()
    write_raster(folder / "a.tif", decibel[:2], ("VV", "VH"), **UTM)
    write_raster(folder / "bands.tif", decibel, **UTM)
    write_raster(folder / "units.tif", 10 ** (decibel[:1] / 10), ("VV",), **UTM)
    write_raster(
        folder / "cut.tif", np.random.default_rng(0).normal(-12, 3, (1, 900, 900)).astype(np.float32), ("VV",), **UTM
    )
    (folder / "cut.tif").write_bytes((folder / "cut.tif").read_bytes()[:2_000_000])
    (folder / "display.tif").write_bytes(scene.read_bytes())
    out = tmp_path / "out"
    where = ["--model", str(tmp_path / "model"), "--output", str(out), "--num_inference_steps", "1"]
    assert main(["translate", str(folder), *where]) == 1
    assert sorted(path.name for path in out.iterdir()) == ["a.tif", "manifest.jsonl"]
    errors = capsys.readouterr().err
    for name, reason in (
        ("bands", "3 bands"),
        ("units", "not certain"),
        ("cut", "not a readable"),
        ("display", "display"),
    ):
        line = next(line for line in errors.splitlines() if line.startswith("failed") and f"{name}.tif" in line)
        assert reason in line
    files = folder / "file"
    files.write_text("")
    assert main(["translate", str(folder / "a.tif"), "--model", str(tmp_path / "model"), "--output", str(files)]) == 2
    assert "file" in capsys.readouterr().err


def test_the_manifest_and_what_is_kept(make_pipe, tmp_path, scene, capsys):
    make_pipe("tiny").save_pretrained(tmp_path / "model")
    model, out = str(tmp_path / "model"), tmp_path / "out"
    options = {"num_inference_steps": 1, "tile_size": 64, "overlap": 16, "confidence": True, "stac": True}
    assert len(translate([str(scene)], model, str(out), **options).written) == 1
    line = json.loads((out / "manifest.jsonl").read_text())
    assert line["input"] == str(scene) and line["seconds"] > 0 and line["settings"]["seed"] == 0
    assert set(line["outputs"]) == {"scene.tif", "scene_confidence.tif", "scene.json"}
    for name, digest in line["outputs"].items():
        assert digest == "sha256:" + sha256((out / name).read_bytes()).hexdigest()
    before = (out / "scene.tif").read_bytes()
    capsys.readouterr()
    assert len(translate([str(scene)], model, str(out), **options, seed=3).skipped) == 1
    assert "other settings (seed): --overwrite" in capsys.readouterr().err
    assert (out / "scene.tif").read_bytes() == before
    assert len(translate([str(scene)], model, str(out), **options, seed=3, overwrite=True).written) == 1
    assert (out / "scene.tif").read_bytes() != before
    assert len((out / "manifest.jsonl").read_text().splitlines()) == 2
    item = tmp_path / "item.json"
    item.write_text(json.dumps({
        "type": "Feature", "stac_version": "1.1.0", "id": "x", "properties": {}, "links": [], "geometry": None,
        "assets": {"vv": {"href": "./scene.tif", "roles": ["data"]}},
    }))  # fmt: skip
    assert translate([str(item)], model, str(tmp_path / "from_item"), **options).written


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_nothing(make_pipe, tmp_path):
    make_pipe("tiny").save_pretrained(tmp_path / "model")
    scene = write_raster(tmp_path / "scene.tif", display(700, 700), **UTM)
    for limit in (200_000, 1_000_000):  # the canvas, then the image
        out = tmp_path / f"out{limit}"
        command = [sys.executable, "-m", "c_diffset", "translate", str(scene), "--model", str(tmp_path / "model")]
        done = subprocess.run(
            [*command, "--output", str(out), "--num_inference_steps", "1", "--tile_size", "512"],
            capture_output=True,
            text=True,
            preexec_fn=lambda limit=limit: limit_file_size(limit),
        )
        assert done.returncode == 1, done.stderr
        assert "failed" in done.stderr and "scene.tif" in done.stderr and "disk full" in done.stderr
        assert [path.name for path in out.iterdir()] == []


def limit_file_size(limit: int) -> None:
    """What a full disk does to a process: writing fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_warped_scene_through_the_command(make_pipe, scene, tmp_path, capsys):
    make_pipe("tiny").save_pretrained(tmp_path / "model")
    where = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--num_inference_steps", "1"]
    tiles = ["--tile_size", "64", "--overlap", "16", "--crs", "EPSG:32630", "--resolution", "6"]
    assert main(["translate", str(scene), *where, *tiles]) == 0  # more pixels than were announced
    with rasterio.open(tmp_path / "out/scene.tif") as raster:
        assert raster.res == (6, 6) and raster.transform.c % 6 == raster.transform.f % 6 == 0


def test_wide_strips_are_read_once(make_pipe, tmp_path):
    pixels = display(70, 1100)
    for name, layout in (("strips", {"blockysize": 1}), ("tiles", {"tiled": True, "blockxsize": 64, "blockysize": 64})):
        write_raster(tmp_path / f"{name}.tif", pixels, ("VV",), nodata=0, compress="deflate", **layout, **UTM)
        translate_scene(tmp_path / f"{name}.tif", make_pipe("tiny"), tmp_path / "out", SMALL)
    (strips, place), (tiles, tiles_place) = (read(tmp_path / f"out/{name}.tif") for name in ("strips", "tiles"))
    np.testing.assert_array_equal(strips, tiles)
    assert place == tiles_place


def test_only_one_process_works_on_a_scene(make_pipe, scene, tmp_path):
    folder = tmp_path / "out" / ".scene.tif.work"
    folder.parent.mkdir()
    with work_folder(folder):
        with pytest.raises(OSError, match="another process is translating"):
            translate_scene(scene, make_pipe("tiny"), tmp_path / "out", SMALL)
        assert folder.is_dir()
    assert not list(folder.parent.iterdir())


def test_what_is_there_is_not_replaced_unasked(make_pipe, scene, tmp_path, capsys):
    make_pipe("tiny").save_pretrained(tmp_path / "model")
    model, out = str(tmp_path / "model"), tmp_path / "out"
    options = {"num_inference_steps": 1, "tile_size": 64, "overlap": 16}
    translate([str(scene)], model, str(out), **options)
    before = (out / "scene.tif").read_bytes()
    assert translate([str(scene)], model, str(out), **options, seed=1, confidence=True).failed
    assert (out / "scene.tif").read_bytes() == before and "--overwrite" in capsys.readouterr().err
    assert translate([str(scene)], model, str(out), **options, confidence=True).written
    assert (out / "scene.tif").read_bytes() == before and (out / "scene_confidence.tif").exists()
    item = tmp_path / "scene.json"  # the user's own, which a STAC item of the output would replace
    item.write_text('{"type": "Feature", "stac_version": "1.1.0", "assets": {"vv": {"href": "scene.tif"}}}')
    with pytest.raises(ValueError, match="would replace an input"):
        translate([str(item)], model, str(tmp_path), **options, stac=True)
    (out / "scene_confidence.tif").unlink()
    (out / "scene.tif").unlink()
    (out / "scene.json").write_text("{}")
    assert translate([str(scene)], model, str(out), **options, stac=True).failed
    assert (out / "scene.json").read_text() == "{}"


def test_a_failure_of_any_kind_does_not_end_the_others(make_pipe, scene, tmp_path, capsys):
    make_pipe("tiny").save_pretrained(tmp_path / "model")
    flat = {"crs": "EPSG:32631", "transform": rasterio.Affine(0, 0, 5e5, 0, 0, 4e6)}
    write_raster(tmp_path / "flat.tif", display(40, 40), **flat)
    points = [GroundControlPoint(0, 0, 3.0, 36.1), GroundControlPoint(40, 40, 3.1, 36.0)]
    write_raster(tmp_path / "points.tif", display(40, 40), gcps=points, crs="EPSG:4326")
    options = {"num_inference_steps": 1, "tile_size": 64, "overlap": 16, "stac": True}
    paths = [str(tmp_path / "flat.tif"), str(tmp_path / "points.tif"), str(scene)]
    result = translate(paths, str(tmp_path / "model"), str(tmp_path / "out"), **options)
    assert tmp_path / "out/scene.tif" in result.written and tmp_path / "out/points.tif" in result.written
    for name, value in (("batch_size", 0), ("seed", -1)):
        with pytest.raises(ValueError, match="batch_size is .* and seed"):
            translate([str(scene)], str(tmp_path / "model"), str(tmp_path / "x"), **{name: value})


@pytest.mark.skipif(not SCENES.is_dir(), reason="the real scenes are not at hand")
def test_real_scenes(make_pipe, tmp_path):
    pipe = make_pipe("tiny", sar_transform=DECIBEL)
    found = sorted([*SCENES.glob("*_db.tif")])
    assert found
    for path in found:
        outputs = translate_scene(path, pipe, tmp_path, SMALL)
        with rasterio.open(path) as sar, rasterio.open(outputs.eo) as eo:
            assert (eo.crs, eo.transform, eo.shape) == (sar.crs, sar.transform, sar.shape)
            np.testing.assert_array_equal(eo.dataset_mask() > 0, (sar.read_masks(1) > 0) & np.isfinite(sar.read(1)))


def test_a_scene_says_its_realism(make_pipe, scene, tmp_path):
    """The best estimate has no seed; tags and item say which picture a file is."""
    pipe = make_pipe("tiny", realism={"range": [0.0, 1.0], "default": 0.0}, variance_of="image")
    pixels = {}
    for name, options in (("a", {}), ("b", {"seed": 1}), ("c", {"realism": 1.0})):
        outputs = translate_scene(scene, pipe, tmp_path / name, replace(SMALL, **options), stac=True)
        with rasterio.open(outputs.eo) as made:
            pixels[name], realism = made.read(), made.tags()["REALISM"]
        item = json.loads(outputs.item.read_text())
        assert float(realism) == item["properties"]["c_diffset:realism"] == (1.0 if name == "c" else 0.0)
    assert np.array_equal(pixels["a"], pixels["b"]) and not np.array_equal(pixels["a"], pixels["c"])
    with pytest.raises(ValueError, match="realism is 2"):
        translate_scene(scene, pipe, tmp_path / "d", replace(SMALL, realism=2))
