"""From files to files."""

import re

import numpy as np
import PIL.Image
import pytest
import rasterio
import torch
from diffusers import AutoencoderTiny, UNet2DModel
from rasterio.transform import from_origin

from c_diffset.cli import main
from c_diffset.inference.canvas import translate_windows
from c_diffset.inference.images import image_noise
from c_diffset.inference.inputs import find_inputs
from c_diffset.inference.record import settings_in
from c_diffset.inference.translate import translate
from c_diffset.loading import load_pipeline
from tests.conftest import tiny_taesd
from tests.helpers import UTM, write_raster


@pytest.fixture
def model(make_pipe, tmp_path) -> str:
    transform = {"units": "display", "range": [0.0, 1.0], "channels": [0, 0, 0]}
    make_pipe("pixel", sar_transform=transform).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def images(tmp_path):
    """Two PNG of one size, a JPEG and a georeferenced TIFF of others."""
    folder = tmp_path / "sar"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (16, 16)), ("b.png", (16, 16)), ("c.jpg", (12, 20))):
        PIL.Image.fromarray(rng.integers(1, 255, size, dtype=np.uint8)).save(folder / name)
    place = dict(crs="EPSG:32631", transform=from_origin(500_000, 4_000_000, 10, 10))
    with rasterio.open(folder / "d.tif", "w", height=16, width=24, count=1, dtype="uint8", **place) as raster:
        raster.write(rng.integers(1, 255, (1, 16, 24), dtype=np.uint8))
    return folder


def test_images_come_out_under_the_same_names_and_sizes(model, images, tmp_path):
    out = tmp_path / "out"
    result = translate([str(images)], model, str(out), confidence=True)
    assert not result.failed and len(result.written) == 4
    assert {path.name for path in out.iterdir()} == {
        *("a.png", "b.png", "c.jpg", "d.tif", "d_confidence.tif", "manifest.jsonl"),
        *(f"{name}_confidence.png" for name in "abc"),
    }
    for name in ("a.png", "b.png", "c.jpg"):
        with PIL.Image.open(out / name) as eo, PIL.Image.open(images / name) as sar:
            assert eo.mode == "RGB" and eo.size == sar.size
    with rasterio.open(out / "d.tif") as eo, rasterio.open(images / "d.tif") as sar:
        assert (eo.count, eo.dtypes[0], eo.shape) == (3, "uint8", sar.shape)
        assert eo.crs == sar.crs and eo.transform == sar.transform
    with PIL.Image.open(out / "a_confidence.png") as confidence:
        values = np.asarray(confidence)
    assert values.shape == (16, 16) and 0 < values.min() <= values.max() <= 65535


def test_neither_batch_nor_company_changes_an_image(model, images, tmp_path):
    translate([str(images)], model, str(tmp_path / "all"), batch_size=4)
    translate([str(images / "b.png")], model, str(tmp_path / "one"), batch_size=1)
    together, alone = (np.asarray(PIL.Image.open(tmp_path / name / "b.png")).astype(int) for name in ("all", "one"))
    assert abs(together - alone).max() <= 1


@pytest.fixture
def seen():
    """The height and width of everything that a UNet is shown."""
    sides = []

    def note(module, arguments) -> None:
        if isinstance(module, UNet2DModel):
            sides.append(tuple(arguments[0].shape[-2:]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield sides
    hook.remove()


def test_images_larger_than_a_tile_go_through_the_canvas(model, images, tmp_path, seen, capsys):
    pixels = np.random.default_rng(1).integers(1, 255, (50, 76), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(images / "wide.png")
    options = ["--model", model, "--tile_size", "32", "--overlap", "8", "--seed", "3", "--confidence"]
    assert main(["translate", str(images), "--output", str(tmp_path / "all"), *options]) == 0
    assert max(max(sides) for sides in seen) == 32 and {(16, 16), (32, 32)} <= set(seen)
    assert main(["translate", str(images / "wide.png"), "--output", str(tmp_path / "one"), *options]) == 0
    for name in ("wide.png", "wide_confidence.png"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    settings = {name: settings_in(tmp_path / "all" / name) or {} for name in ("wide.png", "a.png")}
    assert settings["wide.png"]["tile_size"] == 32 and settings["wide.png"]["overlap"] == 8
    assert "tile_size" not in settings["a.png"] and "units" not in settings["wide.png"]

    made = np.asarray(PIL.Image.open(tmp_path / "one" / "wide.png"))
    trust = np.asarray(PIL.Image.open(tmp_path / "one" / "wide_confidence.png"))
    seed = image_noise(3, images / "wide.png").initial_seed()
    for window in translate_windows(pixels, load_pipeline(model), tile_size=32, overlap=8, seed=seed):
        place = window.box.slices()[1:]
        assert (made[place] == window.eo).all() and np.allclose(trust[place] / 65535, window.confidence, atol=1e-5)

    capsys.readouterr()
    other = ["--model", model, "--tile_size", "48", "--overlap", "8", "--seed", "3"]
    assert main(["translate", str(images), "--output", str(tmp_path / "all"), *other]) == 0
    kept = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kept:")]
    assert len(kept) == 2 and all("(tile_size)" in line for line in kept)  # the large image and the scene


def test_the_bar_does_not_count_pixels_without_data(model, tmp_path, capsys):
    pixels = np.zeros((64, 400), np.uint8)
    pixels[:, :50] = 90
    write_raster(tmp_path / "scene.tif", pixels, nodata=0, **UTM)
    options = ["--model", model, "--output", str(tmp_path / "out"), "--tile_size", "32", "--overlap", "8"]
    assert main(["translate", str(tmp_path / "scene.tif"), *options]) == 0
    bars = re.findall(r"([\d.]+)k?/([\d.]+)k \[", capsys.readouterr().err)
    (_, announced), (done, left) = bars[0], bars[-1]
    assert float(announced) == 25.6 and float(done) == float(left) < 0.6 * 25.6


def test_unreadable_files_do_not_stop_the_others(model, images, tmp_path, capsys):
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:80])
    PIL.Image.fromarray(np.zeros((16, 16), np.uint8)).save(images / "black.png")
    status = main(["translate", str(images), "--model", model, "--output", str(tmp_path / "out")])
    assert status == 1
    errors = capsys.readouterr().err
    assert "b.png" in errors and "black.png" in errors and "all-black" in errors
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "c.jpg", "d.tif", "manifest.jsonl"}


def test_finished_images_are_skipped_and_overwritten_on_demand(model, images, tmp_path):
    out = tmp_path / "out"
    first = translate([str(images / "a.png")], model, str(out))
    before = (out / "a.png").read_bytes()
    again = translate([str(images / "*.png")], model, str(out), seed=1)
    assert [path.name for path in again.skipped] == ["a.png"] and [path.name for path in again.written] == ["b.png"]
    assert (out / "a.png").read_bytes() == before and first.written == [out / "a.png"]
    translate([str(images / "a.png")], model, str(out), seed=1, overwrite=True)
    assert (out / "a.png").read_bytes() != before


def test_two_inputs_of_one_name_and_outputs_over_inputs_are_refused(model, images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes((images / "a.png").read_bytes())
    with pytest.raises(ValueError, match=r"a\.png would both become"):
        translate([str(images), str(other)], model, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="would replace an input"):
        translate([str(images)], model, str(images))
    PIL.Image.open(images / "a.png").save(images / "a.jpg")
    with pytest.raises(ValueError, match=r"a_confidence\.png"):
        translate([str(images)], model, str(tmp_path / "out"), confidence=True)


def test_an_input_that_names_nothing_is_an_error(tmp_path, images):
    for name in (str(tmp_path / "absent.png"), str(images / "*.bmp")):
        with pytest.raises(FileNotFoundError, match="no such file"):
            find_inputs([name])
    assert [path.name for path in find_inputs([str(images), str(images / "a.png")])] == [
        *("a.png", "b.png", "c.jpg", "d.tif")
    ]


def test_another_autoencoder_gives_what_a_pipeline_with_it_gives(make_pipe, images, tmp_path):
    pipe = make_pipe("kl")
    pipe.save_pretrained(tmp_path / "model")
    tiny_taesd().save_pretrained(tmp_path / "taesd")
    pipe.register_modules(vae=AutoencoderTiny.from_pretrained(tmp_path / "taesd"))
    pipe.save_pretrained(tmp_path / "by_hand")

    files = {}
    for name, model, options in (
        ("own", "model", []),
        ("by_hand_out", "by_hand", []),
        ("other", "model", ["--vae", str(tmp_path / "taesd")]),
    ):
        out = tmp_path / name
        where = ["--model", str(tmp_path / model), "--output", str(out)]
        assert main(["translate", str(images / "a.png"), *where, *options]) == 0
        with PIL.Image.open(out / "a.png") as image:
            files[name] = image.tobytes()
    assert files["other"] == files["by_hand_out"] != files["own"]


def test_an_autoencoder_that_does_not_fit_is_wrong_usage(model, images, tmp_path, capsys):
    tiny_taesd().save_pretrained(tmp_path / "taesd")
    where = ["--model", model, "--output", str(tmp_path / "out"), "--vae", str(tmp_path / "taesd")]
    assert main(["translate", str(images), *where]) == 2
    assert "pixel space" in capsys.readouterr().err
