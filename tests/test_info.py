"""`c-diffset info`: facts of a model, and of scenes, as the console prints them."""

import numpy as np
import pytest

from c_diffset.cli import main
from tests.helpers import write_raster

PLACE = {"crs": "EPSG:32631"}


@pytest.fixture
def model(make_pipe, tmp_path) -> str:
    transform = {"units": "display", "range": [0.0, 1.0], "channels": [0, 0, 0]}
    make_pipe("pixel", sar_transform=transform).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def scene(tmp_path):
    """A display scene of which the right half holds no data."""
    pixels = np.random.default_rng(0).integers(1, 255, (1, 64, 96), dtype=np.uint8)
    mask = np.zeros((64, 96), bool)
    mask[:, :48] = True
    return write_raster(tmp_path / "scene.tif", pixels, mask=mask, **PLACE)


def lines_of(text: str) -> dict[str, str]:
    """The text of each line by its first word."""
    return dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) > 1)


def test_a_model_says_what_it_reads_and_writes(model, capsys):
    assert main(["info", model]) == 0
    facts = lines_of(capsys.readouterr().out)
    assert facts["model"].startswith(f"{model}, sha256:")
    assert "display values" in facts["reads"] and "8 bits" in facts["writes"] and "a confidence" in facts["writes"]
    assert "pixel space" in facts["sampling"] and "in tiles of" in facts["tiles"]


def test_a_scene_says_what_translating_it_would_take(model, scene, tmp_path, capsys):
    assert main(["info", model, str(scene), "--tile_size", "32", "--num_inference_steps", "2"]) == 0
    facts = lines_of(capsys.readouterr().out)
    assert facts["size"] == "96 x 64 pixels, 0.0 megapixels" and facts["units"] == "display, detected"
    assert facts["data"] == "about 50% of its pixels" and "2 steps each" in facts["work"]
    assert "second" in facts["time"] and "here" in facts["time"] and "GiB" in facts["memory"]
    assert {path.name for path in tmp_path.iterdir()} >= {"model", "scene.tif"}


def test_a_part_of_a_scene(model, scene, capsys):
    assert main(["info", model, str(scene), "--tile_size", "32", "--window", "0", "0", "48", "64"]) == 0
    facts = lines_of(capsys.readouterr().out)
    assert facts["size"].startswith("48 x 64 pixels") and facts["data"] == "about 100% of its pixels"


def test_a_scene_that_does_not_fit_says_why(model, tmp_path, capsys):
    decibels = np.random.default_rng(0).normal(-12, 3, (1, 32, 32)).astype(np.float32)
    scene = write_raster(tmp_path / "decibels.tif", decibels, **PLACE)
    assert main(["info", model, str(scene)]) == 1
    shown = capsys.readouterr().out
    assert "cannot be translated: pixels are db, but this model reads display" in shown and "time" not in shown


def test_what_is_not_there_is_one_line(model, tmp_path, capsys):
    assert main(["info", model, str(tmp_path / "absent.tif")]) == 2
    assert "absent.tif: no such file" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "nothing")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
