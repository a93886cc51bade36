"""Pairs as a data set of the Hub."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import rasterio
from datasets import load_dataset
from huggingface_hub import DatasetCard
from rasterio.transform import Affine

from c_diffset import load_pairs, write_pairs
from c_diffset.commands import prepare
from c_diffset.data.pairs import read_pair
from c_diffset.files import make_own
from c_diffset.hub.publish_pairs import check_push, publish_pairs
from tests.hub.conftest import names_below


def write_rasters(folder: Path) -> None:
    """One pair whose SAR image has two bands of floats, and a mask."""
    for part in ("sar", "eo", "mask"):
        (folder / "train" / part).mkdir(parents=True)
    sar = np.random.default_rng(0).normal(-15, 5, (2, 16, 16)).astype(np.float32)
    place = {"crs": "EPSG:32631", "transform": Affine(10, 0, 5e5, 0, -10, 0)}
    options = place | {"driver": "GTiff", "count": 2, "height": 16, "width": 16, "dtype": "float32"}
    with rasterio.open(folder / "train/sar/a.tif", "w", **options) as raster:
        raster.write(sar)
    PIL.Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(folder / "train/eo/a.png")
    PIL.Image.fromarray(np.eye(16, dtype=np.uint8)).save(folder / "train/mask/a.png")
    row = {
        "sar_file_name": "sar/a.tif",
        "eo_file_name": "eo/a.png",
        "mask_file_name": "mask/a.png",
        "id": "a",
        "region": "x",
    }
    (folder / "train/metadata.jsonl").write_text(json.dumps(row) + "\n")


def test_pairs_round_trip(hub, tmp_path):
    write_pairs(tmp_path / "pairs", 3, size=32, split="train")
    write_pairs(tmp_path / "pairs", 2, size=32, split="test")
    publish_pairs(tmp_path / "pairs", "me/pairs", license="cc-by-4.0", dry_run=tmp_path / "out")
    assert not hub.calls
    for split, count in (("train", 3), ("test", 2)):
        rows, again = load_pairs(tmp_path / "pairs", split), load_pairs(tmp_path / "out", split)
        assert len(again) == count and again["id"] == rows["id"] and again["region"] == rows["region"]
        for row, other in zip(rows, again, strict=True):
            np.testing.assert_array_equal(read_pair(row).sar, read_pair(other).sar)
            np.testing.assert_array_equal(read_pair(row).eo, read_pair(other).eo)
    files = {split: str(tmp_path / f"out/data/{split}-*.parquet") for split in ("train", "test")}
    shown = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["test"][0]
    assert shown["eo"].size == (32, 32)  # decoded, as the Hub's viewer shows it
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-4.0" and card.data.task_categories == ["image-to-image"]
    assert [part["split"] for part in card.data.configs[0]["data_files"]] == ["train", "test"]
    card.validate()

    publish_pairs(tmp_path / "pairs", "me/pairs", license="cc-by-4.0")
    repo = hub.repos["datasets", "me/pairs"]
    sent = {name: content for name, content in repo.files.items() if name != ".gitattributes"}
    assert sent == {name: (tmp_path / "out" / name).read_bytes() for name in names_below(tmp_path / "out")}
    publish_pairs(tmp_path / "pairs", "me/pairs", license="cc-by-4.0")
    assert repo.commits == ["initial commit", "Publish the pairs"]


def test_float_rasters_and_masks_stay_what_they_are(tmp_path):
    write_rasters(tmp_path / "pairs")
    publish_pairs(tmp_path / "pairs", "me/pairs", license="mit", dry_run=tmp_path / "out")
    (row,), (again,) = load_pairs(tmp_path / "pairs", "train"), load_pairs(tmp_path / "out", "train")
    assert again["sar"]["bytes"] == Path(row["sar"]["path"]).read_bytes() and again["sar"]["path"] == "a.tif"
    pair, other = read_pair(row), read_pair(again)
    np.testing.assert_array_equal(other.sar, pair.sar)
    np.testing.assert_array_equal(other.mask, np.eye(16) != 0)
    assert again["region"] == "x"


def test_what_is_no_image_is_not_sent(tmp_path):
    write_pairs(tmp_path / "pairs", 1, size=32, split="train")
    (tmp_path / "secret").write_text("secret")
    image = next((tmp_path / "pairs").rglob("eo/*.png"))
    image.write_text("secret")
    with pytest.raises(ValueError, match="is no PNG, JPEG or TIFF"):
        publish_pairs(tmp_path / "pairs", "me/pairs", license="mit", dry_run=tmp_path / "out")
    image.unlink()
    image.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="lies outside"):
        publish_pairs(tmp_path / "pairs", "me/pairs", license="mit", dry_run=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_splits_stay_in_their_folder(tmp_path):
    write_pairs(tmp_path / "pairs", 1, size=32, split="train")
    row = json.loads((tmp_path / "pairs/train/metadata.jsonl").read_text())
    (tmp_path / "pairs/train/metadata.jsonl").rename(tmp_path / "pairs/old.jsonl")
    names = {key: f"train/{value}" for key, value in row.items() if key.endswith("_file_name")}
    for split in ("../../out", "a b", "a\n---\nlicense: mit"):
        (tmp_path / "pairs/metadata.jsonl").write_text(json.dumps(row | names | {"split": split}) + "\n")
        with pytest.raises(ValueError, match=f"{re.escape(repr(split))} cannot be"):
            publish_pairs(tmp_path / "pairs", "me/pairs", license="mit", dry_run=tmp_path / "new")


def test_what_a_killed_publish_leaves_is_cleared_by_the_next(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    write_pairs(tmp_path / "pairs", 1, size=32, split="train")
    left = tmp_path / "home/c_diffset/me--pairs"
    make_own(left)
    (left / "data").mkdir()
    (left / "data/train-00000-of-00001.parquet").write_text("half")
    publish_pairs(tmp_path / "pairs", "me/pairs", license="mit")
    assert list((tmp_path / "home/c_diffset").iterdir()) == []


def test_prepared_pairs_are_pushed_again_after_a_lost_connection(hub, tmp_path, capsys):
    write_pairs(tmp_path / "pairs", 3, size=32, split="train")
    arguments = ["folders", tmp_path / "pairs/train", tmp_path / "out"]
    options = {"push": "me/pairs", "license": "mit", "fractions": (1, 0, 0), "progress": False}
    hub.drop = {"commit": 0}
    with pytest.raises(OSError, match="Nothing was committed: .*is new, and empty. Repeat the command"):
        prepare(*arguments, **options)
    hub.drop = {}
    assert prepare(*arguments, **options).splits == {"train": 3}
    assert "prepared already" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="layout 'folders', not 'sen1-2'"):
        prepare("sen1-2", *arguments[1:], **options)
    write_pairs(tmp_path / "others", 2, size=32, split="train", seed=4)
    arguments = ["folders", tmp_path / "others/train", tmp_path / "out2"]
    with pytest.raises(ValueError, match="holds other pairs.*overwrite"):
        prepare(*arguments, **options)
    prepare(*arguments, **options, overwrite=True)
    assert len(hub.repos["datasets", "me/pairs"].commits) == 3


def test_many_pairs_go_in_shards_and_an_interruption_commits_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("c_diffset.hub.publish_pairs.SHARD_BYTES", 10_000)
    write_pairs(tmp_path / "pairs", 6, size=32, split="train")
    hub.drop = {"lfs": 1}
    with pytest.raises(OSError, match="uploading failed.*Nothing was committed"):
        publish_pairs(tmp_path / "pairs", "me/pairs", license="mit")
    repo = hub.repos["datasets", "me/pairs"]
    assert set(repo.files) == {".gitattributes"}
    hub.drop = {}
    publish_pairs(tmp_path / "pairs", "me/pairs", license="mit")
    shards = sorted(name for name in repo.files if name.endswith(".parquet"))
    assert len(shards) > 1 and shards[0] == f"data/train-00000-of-{len(shards):05d}.parquet"
    for name in shards:
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(repo.files[name])
    assert load_pairs(tmp_path / "back", "train")["id"] == load_pairs(tmp_path / "pairs", "train")["id"]


def test_other_pairs_in_the_repository_and_no_licence(hub, tmp_path):
    write_pairs(tmp_path / "pairs", 1, size=32, split="train")
    write_pairs(tmp_path / "others", 2, size=32, split="train")
    with pytest.raises(ValueError, match="no license"):
        publish_pairs(tmp_path / "pairs", "me/pairs")
    with pytest.raises(ValueError, match="repo 'pairs'"):
        check_push("pairs", "mit")
    assert not hub.calls
    publish_pairs(tmp_path / "pairs", "me/pairs", license="mit")
    with pytest.raises(ValueError, match="holds other pairs .*'train': 1.*overwrite"):
        publish_pairs(tmp_path / "others", "me/pairs", license="mit")
    publish_pairs(tmp_path / "others", "me/pairs", license="mit", overwrite=True)
    manifest = json.loads(hub.repos["datasets", "me/pairs"].files["pairs.json"])
    assert manifest["splits"] == {"train": 2}
