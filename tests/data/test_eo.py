"""What EO values mean: how a model sees them, what data say about them, and data that do not fit."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from datasets import Dataset

from c_diffset.data.eo import SOME, check_eo_values, declared_eo_transform, eo_to_tensor, some_pairs
from c_diffset.data.pairs import Pair, load_pairs
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY, check_eo_transform, describe_eo_transform
from tests.helpers import write_reflectance

REFLECTANCE = {"units": "reflectance", "range": [0, 3000]}
RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_defaults_of_the_transform():
    assert check_eo_transform({"units": "display"}) == EO_DISPLAY
    assert check_eo_transform({"units": "reflectance"}) == {"units": "reflectance", "range": [0.0, 3000.0], "gamma": 1}
    each = ((0, 2000), (0, 2500), (100, 3000))
    found = check_eo_transform({"units": "reflectance", "range": each, "gamma": 2})
    assert found == {"units": "reflectance", "range": [[0, 2000], [0, 2500], [100, 3000]], "gamma": 2.0}
    assert check_eo_transform(found) == found


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (None, "eo_transform is None: expected a mapping with 'units'"),
        ({}, "eo_transform['units'] is None: expected one of ['display', 'reflectance']"),
        ({"units": "db"}, "eo_transform['units'] is 'db'"),
        ({"units": ["display"]}, "eo_transform['units'] is ['display']"),
        ({"units": "display", "white": 1}, "eo_transform has unknown keys ['white']"),
        ({"units": "display", "range": [1, 0]}, "eo_transform['range'] is [1, 0]: expected [low, high], two numbers"),
        ({"units": "display", "range": None}, "eo_transform['range'] is None"),
        ({"units": "display", "range": "0,1"}, "eo_transform['range'] is '0,1'"),
        ({"units": "display", "range": [[0, 1], [0, 1]]}, "eo_transform['range'] is [[0, 1], [0, 1]]"),
        ({"units": "display", "range": [0, float("inf")]}, "eo_transform['range'] is [0, inf]"),
        ({"units": "display", "gamma": 0}, "eo_transform['gamma'] is 0: expected a number from 0.1 to 10"),
        ({"units": "display", "gamma": "2"}, "eo_transform['gamma'] is '2'"),
        ({"units": "display", "gamma": float("nan")}, "eo_transform['gamma'] is nan"),
        ({"units": "display", "gamma": True}, "eo_transform['gamma'] is True"),
    ],
)
def test_a_malformed_transform_is_refused(transform, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_eo_transform(transform)


def test_black_and_white_of_display_values_and_of_reflectance():
    values = np.uint16([0, 1500, 3000, 9000]).reshape(1, 4)
    eo = np.stack([values] * 3)
    reflectance = eo_to_tensor(eo, REFLECTANCE)
    assert reflectance.dtype == torch.float32
    np.testing.assert_allclose(reflectance[1], [[-1, 0, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(eo_to_tensor(eo, EO_DISPLAY)[2], values / 65535 * 2 - 1, atol=1e-6)
    part = {"units": "display", "range": [0, 3000 / 65535]}
    np.testing.assert_allclose(eo_to_tensor(eo, part), reflectance, atol=1e-6)
    levels = RNG.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    assert torch.equal(eo_to_tensor(levels, EO_DISPLAY), torch.from_numpy(levels.astype(np.float32)) / 255 * 2 - 1)


def test_a_range_for_each_colour_and_a_gamma():
    eo = np.full((3, 2, 2), 1000, np.uint16)
    found = eo_to_tensor(eo, {"units": "reflectance", "range": [[0, 1000], [0, 2000], [1000, 3000]], "gamma": 2})
    np.testing.assert_allclose(found[:, 0, 0] * 0.5 + 0.5, [1, 0.5**0.5, 0], atol=1e-6)


def test_floats_are_reflectances_and_no_display_values():
    eo = np.float32([[[0.0, 0.15, 0.3]]] * 3)
    found = eo_to_tensor(eo, {"units": "reflectance", "range": [0, 0.3]})
    np.testing.assert_allclose(found[0], [[-1, 0, 1]], atol=1e-6)
    with pytest.raises(ValueError, match=r"floats .* set eo_transform to \{units: reflectance"):
        eo_to_tensor(eo, EO_DISPLAY)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (EO_DISPLAY, "black stands for 0 and white for 1 of the full scale of display values"),
        (REFLECTANCE, "black stands for 0 and white for 3000 in reflectance as the training images store it"),
        (
            {"units": "reflectance", "range": [[0, 2000], [0, 2500], [9, 3000]], "gamma": 2.2},
            "black stands for 0 / 0 / 9 and white for 2000 / 2500 / 3000 (red / green / blue) in reflectance as the "
            "training images store it, with a gamma of 2.2 between them",
        ),
    ],
)
def test_a_transform_in_words(transform, expected):
    assert describe_eo_transform(transform) == expected


# what the data say


def said(source, **columns) -> dict | None:
    count = len(next(iter(columns.values()), [0]))
    return declared_eo_transform(Dataset.from_dict({"id": [str(i) for i in range(count)]} | columns), source)


def test_columns_of_the_data_name_their_transform():
    assert said("data") is None and said("data", region=["a"]) is None
    assert said("data", eo_units=[None], eo_range=[None]) is None
    expected = check_eo_transform(REFLECTANCE)
    assert said("data", eo_units=["reflectance"] * 2, eo_range=[[0, 3000]] * 2) == expected
    assert said("data", eo_units=["reflectance"], eo_range=["[0, 3000]"], eo_gamma=["1"]) == expected, "as in CSV files"


def test_rows_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"data: rows contradict each other.*3000.*pair 0 and .*4000.*pair 2"):
        said("data", eo_units=["reflectance"] * 3, eo_range=[[0, 3000], [0, 3000], [0, 4000]])
    with pytest.raises(ValueError, match="contradict each other"):
        said("data", eo_units=["reflectance", None])


@pytest.mark.parametrize("text", ["[" * 999, "[0, 3000", "9" * 2000, '{"a": 1}', ""])
def test_a_range_of_a_stranger_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"data, columns .*eo_transform\['range'\] is") as error:
        said("data", eo_units=["reflectance"], eo_range=[text])
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["table", "csv", "parquet"])
def test_the_columns_survive_every_form_of_data(form, streaming, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    each = [[0, 2000], [0, 2500], [0, 3000]]
    write_reflectance(tmp_path / "pairs", 3, eo_units="reflectance", eo_range=each)
    source = tmp_path / "pairs"
    rows = load_pairs(source, "train")
    if form == "csv":
        lines = [["id", "sar", "eo", "eo_units", "eo_range"]]
        lines += [[row["id"], row["sar"]["path"], row["eo"]["path"], "reflectance", f'"{each}"'] for row in rows]
        source = source / "train" / "pairs.csv"
        text = "\n".join(",".join(line) for line in lines)
        source.write_text(text.replace(f"{source.parent}/", ""))
    elif form == "parquet":
        from c_diffset.hub.publish_pairs import publish_pairs

        publish_pairs(source, "me/pairs", license="mit", dry_run=tmp_path / "parquet")
        source = tmp_path / "parquet"
    found = declared_eo_transform(load_pairs(source, "train", streaming=streaming), str(source))
    assert found == check_eo_transform({"units": "reflectance", "range": each})


# whether it fits


def pair_of(low: float, high: float, dtype="uint16", mask=None) -> Pair:
    eo = RNG.uniform(low, high, (16, 16, 3)).astype(dtype)
    return Pair(np.ones((16, 16), np.uint8), eo, mask, "a")


def test_reflectance_taken_for_display_values_is_refused_with_the_range_it_has():
    pairs = [pair_of(40, 2950) for _ in range(4)]
    with pytest.raises(ValueError, match="less than a tenth") as error:
        check_eo_values(pairs, EO_DISPLAY, "data/own")
    message = str(error.value)
    assert message.startswith("data/own: the EO values reach from 6") and " to 29" in message
    assert "eo_transform display [0.0, 1.0] of 65535" in message
    assert "--model.eo_transform '{units: reflectance, range: [0, 3000]}'" in message
    check_eo_values(pairs, REFLECTANCE, "data/own")


def test_a_range_that_makes_all_pixels_white_or_black_is_refused():
    with pytest.raises(ValueError, match="use less than a tenth of eo_transform reflectance .0, 0.3., so"):
        check_eo_values([pair_of(40, 3000)], {"units": "reflectance", "range": [0, 0.3]}, "data")
    with pytest.raises(ValueError, match="less than a tenth"):
        check_eo_values([pair_of(0, 0.3, "float32")], REFLECTANCE, "data")
    with pytest.raises(ValueError, match="data, pair a: .*floats"):
        check_eo_values([pair_of(0, 0.3, "float32")], EO_DISPLAY, "data")


def test_some_dark_images_of_a_proper_set_change_nothing():
    bright, dark = (pair_of(500, 60_000) for _ in range(5)), (pair_of(1, 900) for _ in range(9))
    check_eo_values([*dark, *bright], EO_DISPLAY, "data")


def test_some_clouds_do_not_hide_reflectance():
    clear, cloudy = (pair_of(40, 2950) for _ in range(13)), (pair_of(3000, 16_000) for _ in range(3))
    with pytest.raises(ValueError, match="less than a tenth"):
        check_eo_values([*cloudy, *clear], EO_DISPLAY, "data")


def test_dark_8_bit_images_are_meant_to_be_dark():
    check_eo_values([pair_of(1, 9, "uint8")], EO_DISPLAY, "data")


def test_pixels_without_data_do_not_count():
    mask = np.zeros((16, 16), bool)
    mask[:4] = True
    pair = pair_of(40, 2950, mask=mask)
    pair.eo[~mask] = 65535
    with pytest.raises(ValueError, match="less than a tenth"):
        check_eo_values([pair], EO_DISPLAY, "data")


def test_pairs_are_looked_at_all_over_the_data(tmp_path):
    write_reflectance(tmp_path, 20)
    ids = [pair.id for pair in some_pairs(load_pairs(tmp_path))]
    assert len(ids) <= SOME and ids[-1] == "train-0018"
    assert len(list(some_pairs(load_pairs(tmp_path, streaming=True)))) == SOME


def test_a_raster_with_a_scale_or_floats_is_read_as_what_it_says(tmp_path):
    write_reflectance(tmp_path, 1)
    path = Path(load_pairs(tmp_path)[0]["eo"]["path"])
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = [1e-4] * 3, [-0.1] * 3
    (pair,) = some_pairs(load_pairs(tmp_path))
    assert pair.eo.dtype == np.float32 and pair.eo.max() < 0.3
    with rasterio.open(path) as raster:
        stored = raster.read()
    found = eo_to_tensor(np.moveaxis(pair.eo, -1, 0), {"units": "reflectance", "range": [-0.1, 0.2]})
    expected = eo_to_tensor(stored, REFLECTANCE)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_metadata_of_a_table_are_json(tmp_path):
    write_reflectance(tmp_path, 1, eo_units="reflectance", eo_range=[0, 3000])
    line = json.loads((tmp_path / "train/metadata.jsonl").read_text())
    assert (line["eo_units"], line["eo_range"]) == ("reflectance", [0, 3000])
