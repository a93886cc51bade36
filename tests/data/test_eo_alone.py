"""EO images alone, in whatever holds them: what super-resolution trains on."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value

from c_diffset.data.inspect import inspect_split
from c_diffset.data.pairs import list_splits, load_pairs, read_pair
from c_diffset.synthetic.generate import write_pairs
from tests.helpers import write_png


def write_images(folder: Path, *names: str) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        write_png(folder / name, rng.integers(1, 255, (16, 24, 3), dtype=np.uint8))
    return folder


def load(source: Path, split: str | None = None, **options):
    return load_pairs(source, split, eo_alone=True, **options)


def as_folder(root: Path) -> None:
    write_images(root, "b.png", "a/c.png")


def as_split_folders(root: Path) -> None:
    write_images(root, "train/b.png", "train/a/c.png", "validation/d.png")


def as_eo_folder(root: Path) -> None:
    write_images(root, "eo/b.png", "eo/a/c.png", "quicklooks/e.png")


def as_imagefolder(root: Path) -> None:
    write_images(root, "b.png", "c.png")
    lines = [{"file_name": "b.png", "id": "b"}, {"file_name": "c.png", "id": "a_c"}]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def as_csv(root: Path) -> None:
    write_images(root, "b.png", "c.png")
    (root / "metadata.csv").write_text("eo_file_name,sar_file_name,id\nb.png,absent.png,b\nc.png,absent.png,a_c\n")


def as_parquet(root: Path) -> None:
    write_images(root / "images", "b.png", "c.png")
    rows = [
        {"picture": {"bytes": (root / f"images/{n}.png").read_bytes(), "path": None}, "id": i}
        for n, i in ("bb", ("c", "a_c"))
    ]
    features = Features({"picture": Image(decode=False), "id": Value("string")})
    (root / "data").mkdir()
    Dataset.from_list(rows, features).to_parquet(root / "data" / "train.parquet")


FORMS = [as_folder, as_split_folders, as_eo_folder, as_imagefolder, as_csv, as_parquet]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", FORMS)
def test_every_form_gives_the_images_and_their_ids(write, streaming, tmp_path):
    write(tmp_path)
    source = tmp_path / "data" if write is as_parquet else tmp_path
    rows = list(load(source, "train", streaming=streaming))
    assert sorted(row["id"] for row in rows) == ["a_c", "b"] and all("sar" not in row for row in rows)
    pair = read_pair(rows[0])
    assert pair.eo.shape == (16, 24, 3) and pair.sar is pair.eo
    expected = ["train", "validation"] if write is as_split_folders else ["train"]
    assert list_splits(source, eo_alone=True) == expected


def test_of_pairs_the_eo_images_are_read_and_the_others_may_be_gone(tmp_path):
    write_pairs(tmp_path, 3, size=32)
    for path in (tmp_path / "sar").glob("*"):
        path.unlink()
    rows = load(tmp_path)
    assert len(rows) == 3 and "sar" not in rows.column_names
    summary = inspect_split(rows, "train", crop_size=16)
    assert not summary.faults and summary.sar is None and summary.eo is not None and summary.sizes == {"32 x 32": 3}
    assert inspect_split(rows, "train", crop_size=64).faults


def test_a_folder_without_images_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match="holds no EO images"):
        load(tmp_path)


def test_a_data_set_of_several_images_must_say_which_one(tmp_path):
    (image,) = write_images(tmp_path / "images", "b.png").glob("*")
    row = {name: {"bytes": image.read_bytes(), "path": None} for name in ("before", "after")}
    features = Features({name: Image(decode=False) for name in row})
    Dataset.from_list([row], features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="expected one column each for eo, or one column of images"):
        load(tmp_path / "train.parquet")
    assert len(load(tmp_path / "train.parquet", columns={"eo": "after"})) == 1
