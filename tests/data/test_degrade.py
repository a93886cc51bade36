"""`c-diffset degrade`: fixed pairs that the rest of the program reads as any others."""

import json

import numpy as np
import PIL.Image
import pytest

from c_diffset.cli import main
from c_diffset.data.batches import pair_to_tensors
from c_diffset.data.degradation import degrade
from c_diffset.data.pairs import list_splits, load_pairs, read_pair
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY
from c_diffset.synthetic.generate import write_pairs
from tests.helpers import write_png, write_reflectance

SAR = {"units": "display", "range": [0.0, 1.0], "channels": [0, 1, 2]}


def test_pairs_are_those_of_the_seed_and_are_read_as_pairs(tmp_path, capsys):
    for split, count in (("train", 3), ("test", 2)):
        write_pairs(tmp_path / "source", count, size=32, split=split)
    assert main(["degrade", str(tmp_path / "source"), str(tmp_path / "out"), "--upscale", "4", "--seed", "5"]) == 0
    assert "5 pairs (test 2, train 3), real_esrgan by 4, seed 5" in capsys.readouterr().out
    assert sorted(list_splits(tmp_path / "out")) == ["test", "train"]
    sources = load_pairs(tmp_path / "source", "train")
    for number, (row, source) in enumerate(zip(load_pairs(tmp_path / "out", "train"), sources, strict=True)):
        pair, eo = read_pair(row), read_pair(source).eo
        assert pair.id == source["id"] and pair.upscale == 4 and np.array_equal(pair.eo, eo)
        assert np.array_equal(pair.sar, degrade(eo, "real_esrgan", 4, 5, number))
    tensors = pair_to_tensors(pair, SAR, EO_DISPLAY, upscale=4)
    assert tensors["sar"].shape == tensors["eo"].shape
    assert main(["inspect", str(tmp_path / "out"), "--output", str(tmp_path / "look")]) == 0
    assert "32 x 32 from 8 x 8" in capsys.readouterr().out


def test_crops_have_degradations_of_their_own_and_keep_what_is_true_of_them(tmp_path):
    write_reflectance(tmp_path / "source", 2, eo_units="reflectance", eo_range=[0, 3000], bounds=[0, 0, 1, 1])
    options = ["--crop_size", "16", "--upscale", "2", "--degradation", "bicubic"]
    assert main(["degrade", str(tmp_path / "source"), str(tmp_path / "out"), *options]) == 0
    rows = load_pairs(tmp_path / "out", "train")
    assert len(rows) == 8 and rows[0]["eo_range"] == [0, 3000] and "bounds" not in rows.column_names
    pair = read_pair(rows[1])
    assert pair.eo.shape == (16, 16, 3) and pair.eo.dtype == pair.sar.dtype == np.uint16
    assert abs(pair.sar.mean() - pair.eo.mean()) < 60


def test_what_cannot_be_used_is_left_out_and_named(tmp_path, capsys):
    write_png(tmp_path / "source/good.png", np.full((9, 9, 3), 7, np.uint8))
    write_png(tmp_path / "source/grey.png", np.full((9, 9), 7, np.uint8))
    write_png(tmp_path / "source/tiny.png", np.full((3, 9, 3), 7, np.uint8))
    assert main(["degrade", str(tmp_path / "source"), str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [name for name, _ in summary["skipped"]] == ["grey", "tiny"] and summary["splits"] == {"train": 1}
    assert np.asarray(PIL.Image.open(tmp_path / "out/train/eo/good.png")).shape == (8, 8, 3)
    assert main(["degrade", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("upscale", "1"), ("upscale", "17"), ("crop_size", "15")])
def test_unfit_numbers_are_refused(option, value, tmp_path, capsys):
    write_png(tmp_path / "source/a.png", np.full((32, 32, 3), 7, np.uint8))
    assert main(["degrade", str(tmp_path / "source"), str(tmp_path / "out"), f"--{option}", value]) == 2
    assert f"{option} is {value}: expected" in capsys.readouterr().err and not (tmp_path / "out").exists()
