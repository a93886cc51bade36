"""Pairs with faults that are known: what the filter finds, what it leaves alone, and what `prepare` says of both."""

import io
import json
import shutil

import numpy as np
import PIL.Image
import pytest

from c_diffset.cli import main
from c_diffset.data.faults import find_faults, measure_shift
from c_diffset.data.pairs import Pair, load_pairs
from c_diffset.data.prepare import prepare
from c_diffset.synthetic.generate import make_pair, to_display, write_pairs

SIZE = 192


def scene(seed=0, down=0, right=0):
    """A generated pair of 8 bits whose EO image lies so many pixels off."""
    made, edge = make_pair(seed, SIZE + 64), 32
    window = np.s_[edge - down : edge - down + SIZE, edge - right : edge - right + SIZE]
    return Pair(to_display(made.sar)[edge:-edge, edge:-edge], made.eo[window], None, "one")


def kinds(pair, **options):
    return {fault.kind for fault in find_faults(pair, **options)}


def compressed(image, quality):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(PIL.Image.open(buffer))


def clouded(eo, rows):
    """The upper rows under a cloud that lets a little of the ground through."""
    cloud = eo.copy()
    cloud[:rows] = 235 + eo[:rows] // 16
    return cloud


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(lambda sar, eo: (sar, eo), id="8 bits"),
        pytest.param(lambda sar, eo: (sar.astype(np.uint16) * 257, eo.astype(np.uint16) * 257), id="16 bits"),
        pytest.param(lambda sar, eo: (sar / np.float32(10) - 25, eo.astype("u2") * 11), id="decibels, reflectance"),
        pytest.param(lambda sar, eo: (10 ** (sar / 100 - 2.5), eo / np.float32(600)), id="power, floats"),
        pytest.param(lambda sar, eo: (np.stack([sar, sar // 2], axis=2), eo), id="two polarisations"),
    ],
)
def test_a_sound_pair_has_no_fault_and_a_shifted_one_is_found_in_any_units(values):
    sound, shifted = scene(), scene(down=9, right=-14)
    for pair in (sound, shifted):
        pair.sar, pair.eo = values(pair.sar, pair.eo)
    assert kinds(sound) == set()
    assert kinds(shifted) == {"misregistered"}
    assert np.hypot(*np.subtract(measure_shift(shifted)[0], (9, -14))) <= 2
    assert kinds(shifted, max_shift=20) == set()


def test_images_of_two_places_have_no_shift_that_is_significant():
    assert all("misregistered" not in kinds(Pair(scene(n).sar, scene(n + 1).eo, None, "two")) for n in range(4))


def test_flat_clouded_and_blocked_images_are_found():
    sar, eo = scene().sar, scene().eo
    assert kinds(Pair(np.full_like(sar, 90), eo, None, "flat")) == {"flat"}
    assert kinds(Pair(np.full(sar.shape, -12, np.float32), eo, None, "flat")) == {"flat"}
    assert "flat" in kinds(Pair(sar, np.full_like(eo, 250), None, "flat"))
    assert kinds(Pair(sar, clouded(eo, 100), None, "clouded")) == {"clouded"}
    assert "blocked" in kinds(Pair(sar, compressed(eo, 5), None, "blocked"))
    assert "blocked" in kinds(Pair(compressed(sar, 5), eo, None, "blocked"))
    cut = Pair(compressed(scene().sar, 5)[3:], eo[3:], None, "cut out of a blocked image")
    assert "blocked" in kinds(cut)
    assert "blocked" not in kinds(Pair(sar, compressed(eo, 90), None, "compressed, but well"))
    assert "blocked" not in kinds(Pair(sar.repeat(2, 0).repeat(2, 1), eo.repeat(2, 0).repeat(2, 1), None, "enlarged"))


def test_pixels_without_data_do_not_count():
    pair = scene()
    mask = np.ones((SIZE, SIZE), bool)
    mask[:90] = False
    assert kinds(Pair(pair.sar, clouded(pair.eo, 90), mask, "gap")) == set()


def test_reflectances_are_clouds_by_what_the_data_say_is_white():
    pair = scene()
    pair.eo = clouded(pair.eo, 100).astype(np.uint16) * 8  # up to 2040
    assert kinds(pair) == set()
    assert kinds(pair, eo_transform={"units": "reflectance", "range": [0, 2000]}) == {"clouded"}


@pytest.fixture
def source(tmp_path):
    """In each of two splits a sound pair 0, a pair 1 whose EO image is constant, and a pair 2 with a blocked one."""
    for split in ("train", "test"):
        folder = write_pairs(tmp_path / "in", 3, SIZE, split=split)
        for name, change in (("0001", lambda eo: np.full_like(eo, 60)), ("0002", lambda eo: compressed(eo, 5))):
            eo = np.array(PIL.Image.open(folder / f"eo/{name}.png"))
            PIL.Image.fromarray(change(eo)).save(folder / f"eo/{name}.png")
    return tmp_path / "in"


def test_prepare_drops_training_pairs_and_says_what_and_why(source, tmp_path, capsys):
    arguments = ["prepare", "folders", str(source), str(tmp_path / "out")]
    assert main([*arguments, "--filter", "--progress", "false"]) == 0
    assert [row["id"] for row in load_pairs(tmp_path / "out", "train")] == ["train-0000"]
    assert [row["id"] for row in load_pairs(tmp_path / "out", "test")] == [f"test-000{n}" for n in range(3)]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    for split, listed in (("train", summary["dropped"]), ("test", summary["faulty"])):
        assert [name for name, _ in listed] == [f"{split}-0001", f"{split}-0002"]
        assert "flat: the EO values differ by 0" in listed[0][1] and "blocked: " in listed[1][1]
    assert summary["limits"]["max_shift"] == 8
    printed = capsys.readouterr().out
    assert (
        "training pairs dropped by the filter: 2\n  train-0001: flat" in printed and "with faults, kept: 2" in printed
    )


def test_without_the_filter_nothing_is_dropped_and_limits_without_it_are_refused(source, tmp_path, capsys):
    assert prepare("folders", source, tmp_path / "out", progress=False).splits == {"train": 3, "test": 3}
    arguments = ["prepare", "folders", str(source), str(tmp_path / "new"), "--max_shift", "4"]
    assert main(arguments) == 2 and "together with filter" in capsys.readouterr().err
    shutil.rmtree(source / "test")
    (source / "train/metadata.jsonl").write_text((source / "train/metadata.jsonl").read_text().split("\n", 1)[1])
    with pytest.raises(ValueError, match="all 2 training pairs have faults"):
        prepare("folders", source, tmp_path / "new", (1, 0, 0), progress=False, max_shift=8)
