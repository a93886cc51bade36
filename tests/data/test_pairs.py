"""Reading images and pairs, and loading every form that pairs are stored in."""

import io
import json
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from datasets import Dataset, Features, Image, load_dataset

from c_diffset.data.images import read_image
from c_diffset.data.pairs import list_splits, load_pairs, read_pair
from c_diffset.data.sources import _check_origin
from c_diffset.data.splits import assign_splits

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def grey(size=16, dtype=np.uint8):
    return RNG.integers(1, np.iinfo(dtype).max, (size, size), dtype=dtype)


def rgb(size=16):
    return RNG.integers(1, 255, (size, size, 3), dtype=np.uint8)


def png(image):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(image))
    return path


def write_tif(path, image, **profile):
    bands = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as raster:
        raster.write(bands)
    return path


def write_table(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def standard_form(root, split="train", count=3, **extra):
    """A split in the standard form; returns its SAR images by id."""
    images, rows = {}, []
    for i in range(count):
        images[f"{i:03d}"] = grey()
        write_png(root / split / "sar" / f"{i:03d}.png", images[f"{i:03d}"])
        write_png(root / split / "eo" / f"{i:03d}.png", rgb())
        row = {
            "sar_file_name": f"sar/{i:03d}.png",
            "eo_file_name": f"eo/{i:03d}.png",
            "id": f"{i:03d}",
            "region": f"r{i}",
        }
        rows.append(row | extra)
    write_table(root / split, rows)
    return images


def row_of(sar, eo, mask=None):
    row = {"id": "x", "sar": {"bytes": sar, "path": "x_sar"}, "eo": {"bytes": eo, "path": "x_eo"}}
    return row | ({"mask": {"bytes": mask, "path": "x_mask"}} if mask is not None else {})


def tif(image, tmp_path, **profile):
    return write_tif(tmp_path / "image.tif", image, **profile).read_bytes()


# one image


@pytest.mark.parametrize("image", [grey(), grey(dtype=np.uint16), rgb()], ids=["8-bit", "16-bit", "rgb"])
def test_png_keeps_values(image, tmp_path):
    path = write_png(tmp_path / "image.png", image)
    for source in (path, str(path), path.read_bytes(), {"bytes": None, "path": str(path)}):
        found = read_image(source)
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found, image)


def test_colour_png_keeps_16_bits(tmp_path):
    image = RNG.integers(0, 65535, (3, 8, 9), dtype=np.uint16)
    path = tmp_path / "deep.png"
    with rasterio.open(path, "w", driver="PNG", count=3, height=8, width=9, dtype="uint16") as raster:
        raster.write(image)
    np.testing.assert_array_equal(read_image(path), np.moveaxis(image, 0, -1))


@pytest.mark.parametrize(
    ("dtype", "kept"), [("uint8", "uint8"), ("uint16", "uint16"), ("float32", "float32"), ("float64", "float32")]
)
def test_tiff_keeps_values(dtype, kept, tmp_path):
    image = (RNG.random((5, 7, 2)) * 100).astype(dtype)
    found = read_image(write_tif(tmp_path / "image.tif", image))
    assert found.dtype == kept
    np.testing.assert_array_equal(found, image.astype(kept))


def test_complex_tiff_is_refused(tmp_path):
    path = write_tif(tmp_path / "slc.tif", np.ones((4, 4), np.complex64))
    with pytest.raises(ValueError, match="slc.tif.*complex64"):
        read_image(path)


@pytest.mark.parametrize("content", [png(grey(64))[:-200], b"not an image", b"", b"II*\0broken"])
def test_broken_files_are_named(content, tmp_path):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(OSError, match="broken.png") as caught:
        read_image(tmp_path / "broken.png")
    assert "BytesIO" not in str(caught.value)


def test_raster_that_points_at_another_file_is_refused(tmp_path):
    """GDAL recognises virtual rasters by content, whatever their suffix."""
    secret = write_tif(tmp_path / "secret.tif", grey())
    (tmp_path / "image.tif").write_text(
        '<VRTDataset rasterXSize="16" rasterYSize="16"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(OSError, match="not a readable"):
        read_image(tmp_path / "image.tif")


# one pair


def test_read_pair():
    sar, eo, mask = grey(), rgb(), np.zeros((16, 16), np.uint8)
    mask[:4] = 255
    pair = read_pair(row_of(png(sar), png(eo), png(mask)))
    np.testing.assert_array_equal(pair.sar, sar)
    np.testing.assert_array_equal(pair.eo, eo)
    np.testing.assert_array_equal(pair.mask, mask > 0)
    assert pair.id == "x"
    assert read_pair(row_of(png(sar), png(eo))).mask is None


@pytest.mark.parametrize(
    ("sar", "eo", "mask", "message"),
    [
        (grey(16), rgb(8), None, "sizes differ: sar 16 x 16 .x_sar., eo 8 x 8 .x_eo."),
        (grey(), rgb(), grey(8), "sizes differ.*mask 8 x 8"),
        (grey(), grey(), None, "x_eo.*expected H x W x 3"),
        (np.zeros((16, 16), np.uint8), rgb(), None, "x_sar.*all-black"),
        (grey(), np.zeros((16, 16, 3), np.uint8), None, "x_eo.*all-black"),
        (grey(), rgb(), np.zeros((16, 16), np.uint8), "no pixel is valid"),
    ],
)
def test_bad_pairs_are_refused(sar, eo, mask, message):
    with pytest.raises(ValueError, match=f"pair x.*{message}"):
        read_pair(row_of(png(sar), png(eo), None if mask is None else png(mask)))


def test_nan_needs_a_mask(tmp_path):
    sar = RNG.normal(-12, 3, (16, 16)).astype(np.float32)
    sar[:2] = np.nan
    with pytest.raises(ValueError, match="pair x: x_sar: 32 of 256 valid values are NaN"):
        read_pair(row_of(tif(sar, tmp_path), png(rgb())))
    mask = np.isfinite(sar).astype(np.uint8)
    pair = read_pair(row_of(tif(sar, tmp_path), png(rgb()), png(mask)))
    np.testing.assert_array_equal(pair.mask, mask > 0)
    assert np.isfinite(pair.sar).all() and pair.sar[:2].max() == np.nanmin(sar)


def test_declared_nodata_is_invalid(tmp_path):
    sar = RNG.normal(-12, 3, (16, 16)).astype(np.float32)
    sar[:, :3] = -99
    pair = read_pair(row_of(tif(sar, tmp_path, nodata=-99), png(rgb())))
    np.testing.assert_array_equal(pair.mask, sar != -99)


# standard form


@pytest.mark.parametrize("streaming", [False, True])
def test_standard_form(streaming, tmp_path):
    images = standard_form(tmp_path, "train")
    standard_form(tmp_path, "test", count=1)
    assert list_splits(tmp_path) == ["test", "train"]
    rows = list(load_pairs(tmp_path, "train", streaming=streaming))
    assert [row["id"] for row in rows] == list(images)
    assert [row["region"] for row in rows] == ["r0", "r1", "r2"]
    for row in rows:
        np.testing.assert_array_equal(read_pair(row).sar, images[row["id"]])


def test_standard_form_is_what_imagefolder_reads(tmp_path):
    standard_form(tmp_path / "data")
    theirs = load_dataset(
        "imagefolder", data_dir=str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert set(theirs.column_names) == set(load_pairs(tmp_path / "data").column_names)


def test_split_must_be_known(tmp_path):
    standard_form(tmp_path, "train")
    standard_form(tmp_path, "test")
    with pytest.raises(ValueError, match="several splits: test, train"):
        load_pairs(tmp_path)
    with pytest.raises(ValueError, match="no split 'validation'; found: test, train"):
        load_pairs(tmp_path, "validation")


def test_rows_may_lack_masks_and_metadata(tmp_path):
    standard_form(tmp_path)
    write_png(tmp_path / "train" / "mask" / "001.png", grey())
    table = tmp_path / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rows[1] |= {"mask_file_name": "mask/001.png", "date": "2020-01-01"}
    write_table(tmp_path / "train", rows)
    pairs = load_pairs(tmp_path)
    assert [row["date"] for row in pairs] == [None, "2020-01-01", None]
    assert [read_pair(row).mask is not None for row in pairs] == [False, True, False]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sar_file_name": "sar/absent.png"}, FileNotFoundError, "row 1: 'sar/absent.png'"),
        ({"sar_file_name": "../secret.png"}, ValueError, "'../secret.png' lies outside"),
        ({"eo_file_name": "/etc/hostname"}, ValueError, "'/etc/hostname' lies outside"),
        ({"eo_file_name": None}, ValueError, "row 1 has no eo"),
        ({"id": "../../escape"}, ValueError, "cannot be an id"),
        ({"id": "001"}, ValueError, "'001' occurs more than once"),
    ],
)
def test_bad_tables_are_refused(change, error, message, tmp_path):
    write_png(tmp_path / "secret.png", grey())
    standard_form(tmp_path)
    table = tmp_path / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    write_table(tmp_path / "train", [rows[0] | change, *rows[1:]])
    with pytest.raises(error, match=message):
        load_pairs(tmp_path)


@pytest.mark.parametrize("line", ["[1, 2]", "{broken", ""])
def test_malformed_tables_are_named(line, tmp_path):
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match="metadata.jsonl"):
        load_pairs(tmp_path)


def test_unnamed_images_are_warned_of(tmp_path):
    standard_form(tmp_path)
    write_png(tmp_path / "train" / "sar" / "stray.png", grey())
    with pytest.warns(UserWarning, match="leaves out 1 images, such as .*stray.png"):
        load_pairs(tmp_path)


# other forms


def test_csv_with_splits(tmp_path):
    for i in range(3):
        write_png(tmp_path / "a" / f"{i}.png", grey())
        write_png(tmp_path / "b" / f"{i}.png", rgb())
    table = tmp_path / "pairs.csv"
    lines = [f"a/{i}.png,b/{i}.png,{'test' if i == 2 else 'train'},port" for i in range(3)]
    table.write_text("\n".join(["sar,eo,split,region", *lines]))
    assert list_splits(table) == ["train", "test"]
    assert [row["id"] for row in load_pairs(table, "train")] == ["0", "1"]
    assert [row["region"] for row in load_pairs(table, "test")] == ["port"]
    assert read_pair(load_pairs(table, "test")[0]).eo.shape == (16, 16, 3)


def test_parallel_folders(tmp_path):
    for name in ("a", "sub/b"):
        write_png(tmp_path / "sar" / f"{name}.png", grey())
        write_tif(tmp_path / "eo" / f"{name}.tif", rgb())
    assert [row["id"] for row in load_pairs(tmp_path)] == ["a", "sub_b"]
    (tmp_path / "eo").rename(tmp_path / "optical")
    renamed = load_pairs(tmp_path, eo_dir="optical")
    assert [read_pair(row).id for row in renamed] == ["a", "sub_b"]
    (tmp_path / "optical" / "a.tif").unlink()
    with pytest.raises(ValueError, match="1 images have no partner of the same name: .*a.png has none in optical"):
        load_pairs(tmp_path, eo_dir="optical")


def test_all_that_is_missing_is_named_at_once(tmp_path):
    for i in range(25):
        write_png(tmp_path / "two" / "sar" / f"{i:02d}.png", grey())
    write_png(tmp_path / "two" / "eo" / "99.png", rgb())
    with pytest.raises(ValueError, match="26 images have no partner .*00.png has none in eo.*19.png .* and 6 more"):
        load_pairs(tmp_path / "two")
    standard_form(tmp_path / "table", "train")
    for path in (tmp_path / "table" / "train" / "eo").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="row 1: 'eo/.*', row 2: 'eo/.*', row 3: 'eo/.*' are not files in"):
        load_pairs(tmp_path / "table")


def write_shard(path, examples):
    with tarfile.open(path, "w") as shard:
        for key, files in examples:
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(streaming, tmp_path, cache):
    sar = {f"{split}/{i}": grey() for split in ("train", "test") for i in range(2)}
    for split in ("train", "test"):
        names = [name for name in sar if name.startswith(split)]
        files = [
            (name, {"sar.png": png(sar[name]), "eo.png": png(rgb()), "json": json.dumps({"region": split}).encode()})
            for name in names
        ]
        write_shard(tmp_path / f"{split}-000.tar", files)
    assert set(list_splits(tmp_path)) == {"train", "test"}
    rows = list(load_pairs(tmp_path, "test", streaming=streaming))
    assert [(row["id"], row["region"]) for row in rows] == [("test_0", "test"), ("test_1", "test")]
    np.testing.assert_array_equal(read_pair(rows[1]).sar, sar["test/1"])


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet(streaming, tmp_path, cache):
    images = [grey() for _ in range(3)]
    columns = {
        "sar": [{"bytes": png(i), "path": None} for i in images],
        "eo": [{"bytes": png(rgb()), "path": None}] * 3,
    }
    Dataset.from_dict(columns | {"region": ["a", "b", "c"]}).to_parquet(tmp_path / "train.parquet")
    rows = list(load_pairs(tmp_path / "train.parquet", streaming=streaming))
    assert [(row["id"], row["region"]) for row in rows] == [("000000", "a"), ("000001", "b"), ("000002", "c")]
    np.testing.assert_array_equal(read_pair(rows[2]).sar, images[2])


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_must_not_refer_to_files(streaming, tmp_path, cache):
    secret = write_png(tmp_path / "secret.png", grey())
    columns = {"sar": [{"bytes": None, "path": str(secret)}], "eo": [{"bytes": png(rgb()), "path": None}]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="secret.png.* must be embedded"):
        list(load_pairs(tmp_path / "train.parquet", streaming=streaming))


def test_unknown_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no pairs. Expected metadata.jsonl"):
        load_pairs(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a file or folder nor"):
        load_pairs(tmp_path / "absent")


# splits

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def test_split_keeps_regions_together():
    groups = [f"region {i % 20}" for i in range(400)]
    splits = assign_splits(groups, FRACTIONS)
    regions = {name: {g for g, s in zip(groups, splits, strict=True) if s == name} for name in FRACTIONS}
    assert {name: splits.count(name) for name in FRACTIONS} == {"train": 320, "validation": 40, "test": 40}
    assert not regions["train"] & regions["test"] and not regions["train"] & regions["validation"]
    assert splits[::-1] == assign_splits(groups[::-1], FRACTIONS)
    assert splits != assign_splits(groups, FRACTIONS, seed=1)


def test_no_split_is_empty():
    assert sorted(assign_splits(["a"] * 50 + ["b"] + ["c"], FRACTIONS)[-3:]) == ["test", "train", "validation"]
    with pytest.raises(ValueError, match="2 groups .a, b. cannot fill 3 splits"):
        assign_splits(["a", "b"], FRACTIONS)


# nothing outside of the data folder


def secret_of(tmp_path, name="private.png"):
    """An image outside of the data folder, and the folder."""
    return write_png(tmp_path / "elsewhere" / name, np.full((16, 16), 77, np.uint8)), tmp_path / "data"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        {"sar": "{secret}"},
        {"mask": {"path": "{secret}"}},
        {"discrepancy": {"bytes": None, "path": "file://{secret}"}},
        {"thumb": "{secret}", "thumb_file_name": "sar/000.png"},
        {"../../out_file_name": "sar/000.png"},
        {"id_file_name": "sar/000.png"},
        {"sar_file_name": ["sar/000.png"]},
    ],
)
def test_metadata_cannot_take_the_place_of_images(extra, streaming, tmp_path):
    secret, root = secret_of(tmp_path)
    standard_form(root)
    table = root / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    write_table(root / "train", [*rows[:2], rows[2] | json.loads(json.dumps(extra).replace("{secret}", str(secret)))])
    with pytest.raises((ValueError, OSError), match="metadata.jsonl") as error:
        load_pairs(root, streaming=streaming)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../train", "a/b", "a\nb", ["x/y"]])
def test_splits_are_fit_to_be_folders(name, tmp_path):
    write_table(tmp_path, [{"sar_file_name": "sar/0.png", "eo_file_name": "eo/0.png", "split": name}])
    with pytest.raises(ValueError, match="metadata.jsonl: .* cannot be an id"):
        list_splits(tmp_path)


def test_links_may_lead_about_the_data_folder_but_not_out_of_it(tmp_path):
    secret, root = secret_of(tmp_path)
    standard_form(root)
    folder = root / "train"
    (folder / "sar" / "000.png").rename(folder / "kept.png")
    (folder / "sar" / "000.png").symlink_to("../kept.png")
    assert read_pair(load_pairs(root)[0]).sar.shape == (16, 16)
    (folder / "sar" / "000.png").unlink()
    (folder / "sar" / "000.png").symlink_to(secret)
    with pytest.raises(ValueError, match="000.png' lies outside"):
        load_pairs(root)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="000.png' lies outside"):
        load_pairs(root)
    (folder / "sar" / "000.png").unlink()
    (folder / "sar" / "000.png").symlink_to("../kept.png")
    (folder / "sar" / "sub").symlink_to(secret.parent)
    with pytest.raises(ValueError, match="sub' lies outside"):
        load_pairs(root)


def test_a_table_is_no_link_to_another(tmp_path):
    standard_form(tmp_path / "private")
    standard_form(tmp_path / "data")
    table = tmp_path / "data" / "train" / "metadata.jsonl"
    table.unlink()
    table.symlink_to(tmp_path / "private" / "train" / "metadata.jsonl")
    with pytest.raises(ValueError, match="metadata.jsonl' lies outside"):
        load_pairs(tmp_path / "data")


def test_a_snapshot_of_the_hub_links_to_its_blobs(tmp_path):
    repository = tmp_path / "datasets--user--pairs"
    standard_form(repository / "snapshots" / "0123")
    (repository / "blobs").mkdir()
    image = repository / "snapshots" / "0123" / "train" / "sar" / "000.png"
    image.rename(repository / "blobs" / "abc")
    image.symlink_to(repository / "blobs" / "abc")
    assert read_pair(load_pairs(repository / "snapshots" / "0123")[0]).sar.shape == (16, 16)


@pytest.mark.parametrize("folders", [{"sar_dir": "../elsewhere"}, {"eo_dir": "../elsewhere", "sar_dir": "sar"}])
def test_folders_lie_inside_of_the_source(folders, tmp_path):
    _, root = secret_of(tmp_path, "a.png")
    write_png(root / "sar" / "a.png", grey())
    write_png(root / "eo" / "a.png", rgb())
    with pytest.raises(ValueError, match="elsewhere' lies outside"):
        load_pairs(root, **folders)


def test_links_that_lead_in_a_circle_are_followed_once(tmp_path):
    for side, image in (("sar", grey()), ("eo", rgb())):
        write_png(tmp_path / side / "deep" / "a.png", image)
        (tmp_path / side / "deep" / "up").symlink_to("..")
        (tmp_path / side / "other").mkdir()
        (tmp_path / side / "deep" / "cross").symlink_to("../other")
        (tmp_path / side / "other" / "back").symlink_to("../deep")
    assert [row["id"] for row in load_pairs(tmp_path)] == ["deep_a"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["mask", "discrepancy", "eo", "thumb", "inner"])
@pytest.mark.parametrize("scheme", ["", "file://", "file://{}::hf://datasets/a/b", "hf://datasets/a/b/x.png"])
def test_parquet_must_embed_every_image(scheme, column, streaming, tmp_path, cache):
    secret, root = secret_of(tmp_path)
    path = scheme.format(secret) if "{}" in scheme else scheme + ("" if "hf:" in scheme else str(secret))
    image, elsewhere = {"bytes": png(rgb()), "path": None}, {"bytes": None, "path": path}
    row = {"sar": image, "eo": image} | {column: [elsewhere] if column == "inner" else elsewhere}
    features = {key: [Image()] if key == "inner" else Image() for key in row}
    schema = Features(features).arrow_schema if column in ("thumb", "inner") else None
    root.mkdir()
    pq.write_table(pa.Table.from_pylist([row], schema=schema), root / "train.parquet")
    message = "'inner' holds other media, or images inside" if column == "inner" else "refers to the file .* outside it"
    with pytest.raises(ValueError, match=message):
        list(load_pairs(root, streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("json", {"mask": {"path": "{secret}"}}, "'mask' is no image there"),
        ("json", {"discrepancy": "{secret}"}, "'discrepancy' is no image there"),
        ("mask.json", {"path": "{secret}"}, "refers to the file"),
        ("discrepancy.txt", "{secret}", "refers to the file"),
    ],
)
def test_webdataset_must_embed_every_image(member, content, message, streaming, tmp_path, cache):
    secret, root = secret_of(tmp_path)
    root.mkdir()
    text = (content if isinstance(content, str) else json.dumps(content)).replace("{secret}", str(secret))
    write_shard(root / "train.tar", [("0", {"sar.png": png(grey()), "eo.png": png(rgb()), member: text.encode()})])
    with pytest.raises(ValueError, match=message):
        list(load_pairs(root, streaming=streaming))


def test_a_member_of_an_archive_named_like_a_file_elsewhere_does_not_become_that_file(tmp_path, cache):
    secret, root = secret_of(tmp_path, "0.sar.png")
    root.mkdir()
    write_shard(root / "train.tar", [(str(secret.parent / "0"), {"sar.png": png(grey()), "eo.png": png(rgb())})])
    with pytest.raises(ValueError, match="refers to the file"):
        list(load_pairs(root))


def test_files_of_the_hub_are_those_of_the_data_set_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    secret = write_png(tmp_path / "datasets--a--private" / "x.png", grey())
    own = write_png(tmp_path / "datasets--a--b" / "x.png", grey())
    for path in ("hf://datasets/a/b/x.png", "hf://datasets/a/b@main/sub/x.png", str(own)):
        _check_origin({"bytes": None, "path": path}, "a/b", "a/b")
    for path in (
        f"file://{secret}::hf://datasets/a/b/x.png",
        f"hf://datasets/a/b/x.png::file://{secret}",
        "hf://datasets/a/b/../private/x.png",
        "hf://datasets/a/bc/x.png",
        "https://example.org/x.png",
        str(secret),
        f"{own.parent}/../datasets--a--private/x.png",
        "",
    ):
        with pytest.raises(ValueError, match="outside it"):
            _check_origin({"bytes": None, "path": path}, "a/b", "a/b")


@pytest.mark.parametrize("path", ["file:///{}", "simplecache::file:///{}", "memory://x.png", "hf://datasets/a/b::{}"])
def test_paths_are_no_addresses(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image({"bytes": None, "path": path.format(write_png(tmp_path / "image.png", grey()))})
