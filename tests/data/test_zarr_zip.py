"""TerraMesh and SSL4EO-S12 in miniature: arrays in zip files, whole and damaged, and what becomes of them."""

import io
import json
import os
import tarfile
import zipfile
from itertools import product

import numpy as np
import pytest

from c_diffset.data.eo import declared_eo_transform
from c_diffset.data.pairs import list_splits, load_pairs, read_pair
from c_diffset.data.prepare import prepare
from c_diffset.data.zarr_zip import ZarrZip

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def zarr_zip(values, sides, compress=None, **changes) -> bytes:
    """A zip file with the array `bands` as zarr 2 writes it."""
    meta = {"zarr_format": 2, "shape": list(values.shape), "chunks": list(sides), "dtype": values.dtype.str}
    meta |= {"order": "C", "filters": None, "fill_value": 0, "compressor": compress and {"id": "blosc"}} | changes
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("bands/.zarray", json.dumps(meta))
        for place in product(*(range(-(-side // step)) for side, step in zip(values.shape, sides, strict=True))):
            chunk = np.zeros(sides, values.dtype)
            part = values[tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, sides, strict=True))]
            chunk[tuple(map(slice, part.shape))] = part
            archive.writestr(f"bands/{'.'.join(map(str, place))}", compress(chunk) if compress else chunk.tobytes())
    return file.getvalue()


def sensors(*first):
    """SAR in dB and the twelve bands of level 2A, of these first axes and 8 x 8 pixels."""
    sar = RNG.normal(-12, 3, (*first, 2, 8, 8)).astype(np.float16)
    return sar, RNG.integers(1000, 4000, (*first, 12, 8, 8)).astype(np.int16)


def make_ssl4eo(source, places=3, seasons=2, **changes):
    kept = {}
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            sides = dict(zip(("S1GRD", "S2L2A"), sensors(places, seasons), strict=True))
            for name, values in sides.items():
                path = source / split / name / f"ssl4eos12_{split}_seasonal_data_{number:06d}.zarr.zip"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(zarr_zip(values, (places, 1, *values.shape[2:]), **changes))
            kept[f"ssl4eos12_{split}_seasonal_data_{number:06d}"] = sides
    return kept


def add_to_tar(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def make_terramesh(source):
    kept = {}
    for split, shard in (("train", 1), ("train", 2), ("val", 1)):
        numbers = range(10 * shard, 10 * shard + 2)
        names = [f"majortom_{split}_{number:07d}" for number in numbers]
        for name in names:
            rgb = RNG.integers(1, 255, (1, 3, 8, 8), dtype=np.uint8)
            kept[name] = {"S1RTC": sensors(1)[0], "S2RGB": rgb}
        for side in ("S1RTC", "S2RGB"):
            path = source / split / side / f"majortom_shard_{shard:06d}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(path, "w") as tar:
                for name in names:
                    add_to_tar(tar, f"{name}.zarr.zip", zarr_zip(kept[name][side], kept[name][side].shape))
    return kept


def prepared(layout, source, out):
    summary = prepare(layout, source, out, fractions=(0.5, 0.5, 0.0), progress=False)
    return summary, {row["id"]: (name, row) for name in list_splits(out) for row in load_pairs(out, name)}


def test_ssl4eo_keeps_places_whole(tmp_path):
    kept = make_ssl4eo(tmp_path / "in")
    summary, rows = prepared("ssl4eo-s12", tmp_path / "in", tmp_path / "out")
    assert summary.splits["test"] == 6 and summary.splits["train"] + summary.splits["validation"] == 12
    scenes = {name: {row["scene"] for split, row in rows.values() if split == name} for name in summary.splits}
    assert not scenes["train"] & scenes["validation"] and not summary.skipped
    for number, (place, season) in ((0, (2, 1)), (1, (0, 0))):
        name = f"ssl4eos12_train_seasonal_data_{number:06d}"
        pair = read_pair(rows[f"{name}_{place}_{season}"][1])
        sar, bands = (kept[name][side][place, season] for side in ("S1GRD", "S2L2A"))
        np.testing.assert_array_equal(pair.sar, np.moveaxis(sar, 0, -1).astype(np.float32))
        np.testing.assert_array_equal(pair.eo, np.moveaxis(bands[[3, 2, 1]], 0, -1))
    found = declared_eo_transform(load_pairs(tmp_path / "out", "train"), "data")
    assert found == {"units": "reflectance", "range": [1000, 4000], "gamma": 1.0}


def test_terramesh_pairs_samples_of_equal_names(tmp_path):
    kept = make_terramesh(tmp_path / "in")
    with tarfile.open(tmp_path / "in/train/S1RTC/majortom_shard_000001.tar", "a") as tar:
        add_to_tar(tar, "majortom_train_0000099.zarr.zip", b"alone")
        add_to_tar(tar, "../../escape.txt", b"no sample")
    summary, rows = prepared("terramesh", tmp_path / "in", tmp_path / "out")
    assert summary.splits == {"train": 2, "validation": 2, "test": 2}
    assert [name for name, _ in summary.skipped] == ["majortom_train_0000099"]
    for name, sides in kept.items():
        pair = read_pair(rows[name][1])
        np.testing.assert_array_equal(pair.eo, np.moveaxis(sides["S2RGB"][0], 0, -1))
        np.testing.assert_array_equal(pair.sar, np.moveaxis(sides["S1RTC"][0], 0, -1).astype(np.float32))
    found = declared_eo_transform(load_pairs(tmp_path / "out", "test"), "data")
    assert found == {"units": "display", "range": [0, 1], "gamma": 1.0}


def test_what_is_not_finite_or_has_no_data_is_masked(tmp_path):
    make_terramesh(tmp_path / "in")
    sar, _ = sensors(1)
    sar[0, 1, 2, 3] = np.nan
    rgb = np.full((1, 3, 8, 8), 9, np.uint8)
    rgb[..., 7] = 0
    for side, values in (("S1RTC", sar), ("S2RGB", rgb)):
        with tarfile.open(tmp_path / f"in/train/{side}/majortom_shard_000001.tar", "a") as tar:
            add_to_tar(tar, "majortom_train_0000050.zarr.zip", zarr_zip(values, values.shape))
    _, rows = prepared("terramesh", tmp_path / "in", tmp_path / "out")
    mask = read_pair(rows["majortom_train_0000050"][1]).mask
    assert mask.sum() == 55 and not mask[2, 3] and not mask[:, 7].any()


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (2, 2, 3, 5), (3, 4, 8, 8), (4, 4, 16, 16)])
def test_an_array_of_any_chunks(chunks, tmp_path):
    values = RNG.normal(0, 1, (3, 4, 8, 8)).astype("<f4")
    (tmp_path / "a.zarr.zip").write_bytes(zarr_zip(values, chunks))
    archive = ZarrZip(tmp_path / "a.zarr.zip")
    for index in ((0,), (2,), (1, 3)):
        np.testing.assert_array_equal(archive.read("bands", *index), values[index])
    with pytest.raises(ValueError, match="has no index"):
        archive.read("bands", 3)


def test_blosc(tmp_path):
    numcodecs = pytest.importorskip("numcodecs")
    values = RNG.integers(0, 9, (3, 4, 8, 8)).astype("<i2")
    codec = numcodecs.Blosc(cname="lz4")
    packed = bytes(codec.encode(values[:2].copy()))
    (tmp_path / "a.zarr.zip").write_bytes(zarr_zip(values, (2, 4, 8, 8), codec.encode))
    np.testing.assert_array_equal(ZarrZip(tmp_path / "a.zarr.zip").read("bands", 2), values[2])
    for content in (
        b"short",
        b"\0" * 40,
        codec.encode(b"x" * 1000),
        packed[:-9],
        packed[:16] + b"\xff" * (len(packed) - 16),
    ):
        (tmp_path / "b.zarr.zip").write_bytes(zarr_zip(values, (2, 4, 8, 8), lambda chunk, content=content: content))
        with pytest.raises(ValueError, match="b.zarr.zip: a chunk"):
            ZarrZip(tmp_path / "b.zarr.zip").read("bands", 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"filters": [{"id": "pickle"}]},
        {"compressor": {"id": "pickle"}},
        {"dtype": "|O"},
        {"shape": [2**60, 4, 8, 8]},
        {"chunks": [2**20, 2**20, 8, 8]},
        {"chunks": [0, 4, 8, 8]},
        {"chunks": [3, 4]},
        {"shape": "3488"},
        {"order": "F"},
        {"zarr_format": 3},
    ],
)
def test_what_a_stranger_asks_for_is_refused_before_any_memory_is_taken(changes, tmp_path):
    values = RNG.normal(0, 1, (3, 4, 8, 8)).astype("<f4")
    (tmp_path / "a.zarr.zip").write_bytes(zarr_zip(values, values.shape, **changes))
    with pytest.raises(ValueError, match="a.zarr.zip, bands: expected a zarr 2 array of numbers"):
        ZarrZip(tmp_path / "a.zarr.zip").read("bands", 0)


def test_damaged_files_are_left_out_and_named(tmp_path):
    make_ssl4eo(tmp_path / "in")
    broken = tmp_path / "in/train/S1GRD/ssl4eos12_train_seasonal_data_000000.zarr.zip"
    broken.write_bytes(broken.read_bytes()[:100])
    (tmp_path / "in/val/S2L2A/ssl4eos12_val_seasonal_data_000000.zarr.zip").unlink()
    summary, _ = prepared("ssl4eo-s12", tmp_path / "in", tmp_path / "out")
    reasons = {os.path.basename(name): reason for name, reason in summary.skipped}
    assert "no zip file" in reasons[broken.name]
    assert reasons["ssl4eos12_val_seasonal_data_000000.zarr.zip"] == "no S2L2A partner"
    assert sum(summary.splits.values()) == 6


def test_a_chunk_that_is_missing_or_cut_is_named(tmp_path):
    values = RNG.normal(0, 1, (3, 4, 8, 8)).astype("<f4")
    whole = zarr_zip(values, (1, 4, 8, 8))
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as target:
        target.writestr("bands/.zarray", source.read("bands/.zarray"))
        target.writestr("bands/1.0.0.0", source.read("bands/1.0.0.0")[:-4])
    archive = ZarrZip(tmp_path / "a.zarr.zip")
    with pytest.raises(ValueError, match=r"bands/0.0.0.0 is missing or damaged"):
        archive.read("bands", 0)
    with pytest.raises(ValueError, match="a chunk has 1020 bytes, expected 1024"):
        archive.read("bands", 1)
