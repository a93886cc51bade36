"""What is found out about data before any work, and how pairs are held out for validation."""

import json
import struct

import numpy as np
import PIL.Image
import pytest
import rasterio
import torch
from datasets import Dataset

from c_diffset.cli import main
from c_diffset.data.batches import pair_to_tensors
from c_diffset.data.headers import read_shape
from c_diffset.data.images import MAX_PIXELS, read_image
from c_diffset.data.inspect import EMBEDDED, READ, inspect_source, inspect_split
from c_diffset.data.pairs import load_pairs, read_pair
from c_diffset.data.splits import hold_out
from c_diffset.measurement.preview import draw_preview, notes_on_ranges
from c_diffset.synthetic.generate import write_pairs

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write_tif(path, dtype="float32", count=2, **options):
    with rasterio.open(path, "w", driver="GTiff", height=5, width=7, count=count, dtype=dtype, **options) as raster:
        raster.write(np.ones((count, 5, 7), dtype))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("RGB", "png"), ("P", "png"), ("I;16", "png"), ("RGB", "jpg"), ("1", "png")]
)
def test_the_header_of_a_picture_says_what_reading_it_gives(mode, suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    PIL.Image.new(mode, (7, 5)).save(path)
    expected = np.atleast_3d(read_image(path)).shape
    assert read_shape({"path": str(path), "bytes": None}) == expected
    assert read_shape({"path": "image", "bytes": path.read_bytes()}) == expected


@pytest.mark.parametrize("options", [{}, {"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"}, {"interleave": "band"}])
@pytest.mark.parametrize(("dtype", "count"), [("float32", 2), ("uint16", 13), ("uint8", 3)])
def test_the_header_of_a_tiff_says_what_reading_it_gives(options, dtype, count, tmp_path):
    write_tif(tmp_path / "image.tif", dtype, count, **options)
    assert read_shape({"path": str(tmp_path / "image.tif"), "bytes": None}) == (5, 7, count)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 99,
        b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + b"\xff" * 8 + b"\0" * 999,  # 2**64 tags
    ],
)
def test_what_is_no_header_is_named(content, tmp_path):
    (tmp_path / "image.tif").write_bytes(content)
    with pytest.raises(OSError, match="image.tif: not a readable PNG"):
        read_shape({"path": str(tmp_path / "image.tif"), "bytes": None})


def test_an_image_of_absurd_size_is_refused_by_its_header(tmp_path):
    side = int(MAX_PIXELS**0.5)
    shape = {"height": side, "width": 2 * side, "count": 1, "dtype": "uint8"}
    rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", SPARSE_OK=True, **shape).close()
    with pytest.raises(ValueError, match=r"a\.tif: 16384 x 32768 pixels in 1 bands are more"):
        read_shape({"path": str(tmp_path / "a.tif"), "bytes": None})


def test_the_summary_names_splits_sizes_and_values(tmp_path):
    write_pairs(tmp_path, 8, size=64, split="train")
    write_pairs(tmp_path, 2, size=32, split="validation")
    found = {split.name: split for split in inspect_source(tmp_path).splits}
    assert found["train"].count == found["train"].checked == 8 and found["train"].sizes == {"64 x 64": 8}
    assert found["validation"].sizes == {"32 x 32": 2} and not found["validation"].faults
    assert len(found["train"].pairs) == READ
    stored = [np.array(PIL.Image.open(path)) for path in (tmp_path / "train/eo").glob("*.png")]
    lowest, *_, highest = found["train"].eo.bands[0]
    assert min(image[..., 0].min() for image in stored) <= lowest < highest <= 255
    text = str(inspect_source(tmp_path))
    assert "train: 8 pairs, 64 x 64" in text and "SAR: uint8, 1 band, " in text and "without data: 0.0%" in text


def test_every_fault_is_found_at_once(tmp_path):
    write_pairs(tmp_path, 30, size=32, split="train")
    rows = [json.loads(line) for line in (tmp_path / "train/metadata.jsonl").read_text().splitlines()]
    eo = [tmp_path / "train" / row["eo_file_name"] for row in rows]
    PIL.Image.new("RGB", (32, 31), "white").save(eo[3])
    PIL.Image.new("RGBA", (32, 32), "white").save(eo[7])
    eo[11].write_bytes(b"no image")
    for path in eo[12:]:
        PIL.Image.new("RGB", (16, 16), "white").save(path)
    summary = inspect_source(tmp_path)
    (split,) = summary.splits
    assert len(split.faults) == len(summary.failed) == 21 and split.sizes == {"32 x 32": 9}
    wrong = {fault.split(": ")[0]: fault.split(": ", 1)[1] for fault in split.faults}
    assert wrong[f"pair {rows[3]['id']}"] == "sizes differ: sar 32 x 32, eo 31 x 32, discrepancy 32 x 32"
    assert wrong[f"pair {rows[7]['id']}"] == "its EO image has 4 bands, expected 3 (RGB)"
    assert "not a readable PNG" in wrong[f"pair {rows[11]['id']}"]
    assert "\n  ... 1 more" in str(summary) and str(summary).count("cannot be used") == 20
    with pytest.raises(ValueError, match="21 of the pairs looked at cannot be used, such as train, pair"):
        summary.check()
    assert len(inspect_source(tmp_path, crop_size=64).failed) == 30


def test_pixels_without_data_are_counted(tmp_path):
    for kind in ("sar", "eo", "mask"):
        (tmp_path / kind).mkdir()
    write_tif(tmp_path / "sar/a.tif")
    PIL.Image.new("RGB", (7, 5), "white").save(tmp_path / "eo/a.png")
    mask = np.ones((5, 7), np.uint8)
    mask[0] = 0
    PIL.Image.fromarray(mask).save(tmp_path / "mask/a.png")
    (split,) = inspect_source(tmp_path).splits
    assert split.without_data == pytest.approx(0.2) and split.sar.dtype == "float32"


def test_embedded_and_streamed_images_are_looked_at_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_tif(tmp_path / "a.tif", "uint8", 3)
    image = {"bytes": (tmp_path / "a.tif").read_bytes(), "path": None}
    (tmp_path / "in").mkdir()
    count = EMBEDDED + 500
    Dataset.from_dict({"sar": [image] * count, "eo": [image] * count}).to_parquet(tmp_path / "in/train.parquet")
    (split,) = inspect_source(tmp_path / "in").splits
    assert (split.count, split.checked, split.sizes) == (count, EMBEDDED, {"5 x 7": EMBEDDED})
    assert f"(of {EMBEDDED:,} looked at)" in str(split)
    (split,) = inspect_source(tmp_path / "in", streaming=True).splits
    assert (split.count, split.checked) == (None, READ) and "a stream of pairs, 5 x 7" in str(split)


def test_an_empty_split_is_a_fault(tmp_path):
    write_pairs(tmp_path, 1, size=32, split="train")
    assert inspect_split(load_pairs(tmp_path).select([]), "train").faults == ["there is no pair"]


def tiles(count=100, overlap=0.0, **columns):
    """Rows of a raster of tiles, ten in a row from west to east."""
    corners = [(x, y) for y in range(count // 10) for x in range(10)]
    bounds = [[x - overlap, y - overlap, x + 1 + overlap, y + 1 + overlap] for x, y in corners]
    ids = [f"{i:03d}" for i in range(count)]
    return Dataset.from_dict({"id": ids, "bounds": bounds, "crs": ["EPSG:3395"] * count} | columns)


def test_pairs_are_held_out_by_region():
    rows = tiles(region=[f"r{i // 10}" for i in range(100)])
    both = hold_out(rows, 0.1)
    assert both.rule == "by region" and len(both.validation) == 10 and len(both.train) == 90
    assert not set(both.train["region"][:]) & set(both.validation["region"][:])
    assert (
        both.validation["id"][:]
        == hold_out(rows, 0.1).validation["id"][:]
        != hold_out(rows, 0.1, 1).validation["id"][:]
    )


def test_no_ground_is_held_out_and_trained_on():
    both = hold_out(tiles(overlap=0.1), 0.2, seed=3)
    assert both.rule.startswith("by strips of ground") and "at the border are left out" in both.rule
    assert len(both.validation) == 20 and 40 <= len(both.train) <= 70
    for left, bottom, right, top in both.validation["bounds"][:]:
        for other in both.train["bounds"][:]:
            assert other[0] >= right or other[2] <= left or other[1] >= top or other[3] <= bottom


@pytest.mark.parametrize("rows", [tiles().remove_columns("bounds"), tiles(bounds=["somewhere"] * 100)])
def test_without_places_pairs_are_held_out_at_random_and_it_is_said(rows):
    both = hold_out(rows, 0.1)
    assert both.rule.startswith("random (neighbouring or overlapping patches") and len(both.validation) == 10
    assert sorted(both.train["id"][:] + both.validation["id"][:]) == rows["id"][:]


def test_one_pair_cannot_be_divided():
    with pytest.raises(ValueError, match="fewer than two pairs cannot be divided"):
        hold_out(tiles().select([0]), 0.5)


# the command


def test_the_command_prints_what_there_is_and_draws_it(tmp_path, capsys):
    write_pairs(tmp_path / "data", 8, size=64, split="train")
    write_pairs(tmp_path / "data", 2, size=64, split="test")
    assert main(["inspect", str(tmp_path / "data"), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "train: 8 pairs, 64 x 64" in printed and "test: 2 pairs" in printed and "settings" not in printed
    picture = np.array(PIL.Image.open(tmp_path / "out/preview.png"))
    assert picture.shape[0] > 6 * 256 and 2 * 256 < picture.shape[1] < 3 * 256  # six rows, SAR and EO
    assert main(["inspect", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--crop_size", "128"]) == 1
    assert capsys.readouterr().out.count("cannot be used: pair ") == 10


def test_the_command_names_settings_that_fit_backscatter_and_reflectances(tmp_path, capsys):
    rng = np.random.default_rng(0)
    sar = np.stack([rng.normal(mean, 2, (32, 32)) for mean in (-12, -20)]).astype(np.float32)
    eo = rng.integers(100, 3000, (3, 32, 32), dtype=np.uint16)
    for kind, bands in (("sar", sar), ("eo", eo)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        shape = {"height": 32, "width": 32, "count": len(bands), "dtype": bands.dtype}
        with rasterio.open(tmp_path / "data" / kind / "a.tif", "w", driver="GTiff", **shape) as raster:
            raster.write(bands)
    assert main(["inspect", str(tmp_path / "data"), "--output", str(tmp_path / "out")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("settings")]
    sar_transform, eo_transform = (json.loads(text) for text in line.split("'")[1::2])
    assert sar_transform["units"] == "db" and sar_transform["channels"] == [0, 1, "0-1"]
    assert sar_transform["range"][0] == pytest.approx([-17, -7], abs=1.5)
    assert eo_transform["units"] == "reflectance" and eo_transform["range"] == pytest.approx([0, 3000], rel=0.05)
    seen = pair_to_tensors(read_pair(load_pairs(tmp_path / "data")[0]), sar_transform, eo_transform)
    assert seen["sar"].std() > 0.2 and seen["eo"].std() > 0.2


def test_the_command_refuses_data_that_a_model_does_not_fit(tmp_path, make_pipe, capsys):
    write_pairs(tmp_path / "data", 2, size=32, split="train", sar_format="tif")
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    options = ["--output", str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    assert main(["inspect", str(tmp_path / "data"), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pair train-0000" in error and not (tmp_path / "out").exists()
    write_pairs(tmp_path / "display", 2, size=32, split="train")
    assert main(["inspect", str(tmp_path / "display"), *options]) == 0
    assert main(["inspect", str(tmp_path / "nowhere"), *options]) == 2


def test_what_has_no_data_is_orange_in_the_preview():
    seen = {"sar": -torch.ones(1, 8, 8), "eo": torch.ones(3, 8, 8), "mask": torch.ones(1, 8, 8)}
    seen["mask"][:, :4] = 0
    picture = np.array(draw_preview([seen], {"units": "display", "channels": [0]}))
    colours = {tuple(colour) for colour in picture[24:].reshape(-1, 3)}
    assert {(255, 128, 0), (0, 0, 0), (255, 255, 255)} <= colours
    assert notes_on_ranges([seen], {"channels": [0]}) == [
        "  note: 100% of the values of SAR are black for the model: check its sar_transform",
        "  note: 100% of the values of EO are white for the model: check its eo_transform",
    ]
