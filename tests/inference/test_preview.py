"""Pictures of translations: what they show, and that their colours are those of the numbers."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from c_diffset.cli import main
from c_diffset.inference.preview import GAP, LINE, LONGEST, NODATA, Maps, image_preview, plan_layout, trust_panel
from c_diffset.inference.record import settings_in
from c_diffset.measurement.colours import CONFIDENCE, ERROR
from tests.helpers import UTM, write_png, write_raster

KNOTS = {"variance": [0.01, 1.0, 9.0], "expected_error": [2.0, 30.0, 80.0], "probability": [0.0, 0.4, 1.0]}
HEIGHT, WIDTH = 40, 60


@pytest.fixture
def sar(tmp_path) -> Path:
    """A scene whose first columns hold no data, and an image."""
    pixels = np.random.default_rng(0).integers(1, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    pixels[:, :10] = 0
    write_raster(tmp_path / "sar" / "scene.tif", pixels, nodata=0, **UTM)
    write_png(tmp_path / "sar" / "image.png", pixels[:, 10:30])
    return tmp_path / "sar"


def panel_of(path: Path, number: int, panels: int = 2, size=(HEIGHT, WIDTH)) -> np.ndarray:
    """One of the pictures of a preview, a pixel for every pixel of the scene."""
    picture, layout = np.asarray(PIL.Image.open(path)), plan_layout(*size, panels)
    assert max(picture.shape[:2]) <= LONGEST
    (height, width), column = layout.size, (picture.shape[1] - GAP) // layout.columns - GAP
    left = GAP + number % layout.columns * (column + GAP) + (column - width) // 2
    top = LINE + GAP + number // layout.columns * (height + 2 * LINE + GAP)
    factor = height // size[0]
    return picture[top : top + height, left : left + width][factor // 2 :: factor, factor // 2 :: factor]


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_preview_stands_beside_each_output(make_pipe, sar, tmp_path, calibrated):
    calibration = {"threshold": 32.0, "steps": {"2": KNOTS}} if calibrated else None
    make_pipe("pixel", calibration=calibration).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    options = ["--model", str(tmp_path / "model"), "--output", str(out), "--confidence", "--preview", "--stac"]
    assert main(["translate", str(sar), *options]) == 0
    for name in ("scene.tif", "image.png"):
        assert settings_in(out / f"{Path(name).stem}_preview.png") == settings_in(out / name)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert all(f"{Path(line['input']).stem}_preview.png" in line["outputs"] for line in lines)
    item = json.loads((out / "scene.json").read_text())
    assert item["assets"]["preview"]["href"] == "./scene_preview.png"

    with rasterio.open(out / "scene.tif") as eo, rasterio.open(out / "scene_confidence.tif") as trust:
        image, maps = np.moveaxis(eo.read(), 0, -1), Maps(*trust.read())
    shown = panel_of(out / "scene_preview.png", 0)
    assert (shown[:, :10] == NODATA).all() and (shown[:, 10:] == image[:, 10:]).all()
    shown = panel_of(out / "scene_preview.png", 1)
    values, scale = (maps.expected_error, ERROR) if calibrated else trust_panel(maps)[::2]
    assert (shown[:, :10] == NODATA).all() and (shown[:, 10:] == scale.paint(values[:, 10:])).all()

    size = (HEIGHT, 20)
    with PIL.Image.open(out / "image.png") as image:
        assert (panel_of(out / "image_preview.png", 0, size=size) == np.asarray(image)).all()


def test_previews_and_items_are_added_to_scenes_that_are_translated_already(make_pipe, sar, tmp_path, capsys):
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    scene, out, at_once = str(sar / "scene.tif"), tmp_path / "out", tmp_path / "at_once"
    command = ["translate", scene, "--model", str(tmp_path / "model"), "--confidence", "--output"]
    assert main([*command, str(at_once), "--preview", "--stac"]) == 0
    assert main([*command, str(out)]) == 0
    before = (out / "scene.tif").stat()
    assert main([*command, str(out), "--preview", "--stac"]) == 0
    assert "1 written" in capsys.readouterr().out and (out / "scene.tif").stat() == before
    assert (out / "scene_preview.png").read_bytes() == (at_once / "scene_preview.png").read_bytes()
    items = [json.loads((folder / "scene.json").read_text()) for folder in (out, at_once)]
    assert items[0]["assets"] == items[1]["assets"]
    last = json.loads((out / "manifest.jsonl").read_text().splitlines()[-1])
    assert {"scene.tif", "scene_confidence.tif", "scene_preview.png", "scene.json"} == last["outputs"].keys()

    (out / "scene_preview.png").unlink()
    assert main([*command, str(out), "--preview", "--seed", "1"]) == 1  # of other settings: nothing is added
    assert not (out / "scene_preview.png").exists()
    assert main([*command, str(out), "--preview", "--overwrite"]) == 0
    assert (out / "scene.tif").stat().st_mtime_ns > before.st_mtime_ns


def test_a_preview_needs_no_file_of_the_confidence(make_pipe, sar, tmp_path):
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    command = ["translate", str(sar), "--model", str(tmp_path / "model"), "--output", str(out), "--preview"]
    assert main(command) == 0
    assert {path.name for path in out.iterdir()} == {
        *("scene.tif", "image.png", "scene_preview.png", "image_preview.png", "manifest.jsonl")
    }
    assert len(np.unique(panel_of(out / "scene_preview.png", 1).reshape(-1, 3), axis=0)) > 20


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(1, 2))
def test_no_shape_makes_a_picture_too_large(height, width, panels):
    layout = plan_layout(height, width, panels)
    assert min(layout.size) >= 1 and layout.rows * layout.columns == panels
    assert LINE + GAP + layout.rows * (layout.size[0] + 2 * LINE + GAP) <= LONGEST
    assert GAP + layout.columns * (layout.size[1] + GAP) <= LONGEST


def test_large_images_are_averaged_and_long_names_cut():
    eo = np.zeros((1500, 2200, 3), np.uint8)
    eo[::2] = 200
    picture = np.asarray(image_preview(eo, Maps(np.full(eo.shape[:2], 0.7, np.float32)), "n" * 300 + ".png"))
    assert max(picture.shape[:2]) <= LONGEST
    inside = picture[LINE + GAP + 100 : LINE + GAP + 200, 100:200]
    assert abs(inside.astype(int) - 100).max() < 45  # stripes of 0 and 200
    assert (picture[:, -GAP:] == 255).all()  # no letter reaches the edge


def test_without_a_confidence_the_image_stands_alone():
    eo = np.full((20, 30, 3), (10, 90, 40), np.uint8)
    picture = np.asarray(image_preview(eo, Maps(), "a.png"))
    height, width = plan_layout(20, 30, 1).size
    assert (picture == (10, 90, 40)).all(axis=2).sum() == height * width >= 600


def test_a_stretch_has_round_ends_and_says_them():
    confidence = np.linspace(0.612, 0.791, 1000, dtype=np.float32).reshape(20, 50)
    values, title, scale = trust_panel(Maps(confidence))
    assert values is confidence and "stretched" in title
    assert (round(scale.low, 6), round(scale.full, 6), scale.open) == (0.6, 0.8, True)
    assert scale.paint(np.array([[0.6, 0.8]]))[0].tolist() == [
        list(CONFIDENCE.colours[0]),
        list(CONFIDENCE.colours[-1]),
    ]
    even = trust_panel(Maps(np.full((2, 2), 1.0, np.float32)))[2]
    assert even.low < even.full <= 1
    nothing = trust_panel(Maps(np.full((2, 2), np.nan, np.float32)))[2]
    assert nothing.low < nothing.full
