"""Every published layout, in miniature, through `prepare` and back through `load_pairs`."""

import json
import shlex
import shutil
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from datasets import Dataset, load_dataset

from c_diffset.cli import main
from c_diffset.data.eo import declared_eo_transform
from c_diffset.data.images import read_image
from c_diffset.data.layouts import LAYOUTS
from c_diffset.data.pairs import list_splits, load_pairs, read_pair
from c_diffset.data.prepare import prepare
from c_diffset.data.sentinel import SEN12MS_HOLD_OUT, find_major_tom
from c_diffset.files import locked
from c_diffset.sar.gdal import open_raster
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import FinetuneConfig
from c_diffset.training.parser import parse_config
from tests.data.test_zarr_zip import make_ssl4eo, make_terramesh

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write_png(path, channels=1, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size, size) if channels == 1 else (size, size, channels)
    PIL.Image.fromarray(RNG.integers(1, 255, shape, dtype=np.uint8)).save(path)


def write_tif(path, bands, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as raster:
        raster.write(bands)


def backscatter(bands=2, size=8):
    return RNG.normal(-12, 3, (bands, size, size)).astype(np.float32)


def loaded(out):
    """Split to rows of a prepared data set, every one of them read and checked."""
    splits = {name: list(load_pairs(out, name)) for name in list_splits(out)}
    for rows in splits.values():
        for row in rows:
            read_pair(row)
    return splits


def says_reflectance(out):
    """Whether training takes prepared data for reflectance of Sentinel-2."""
    found = [declared_eo_transform(load_pairs(out, name), "data") for name in list_splits(out)]
    return found == [{"units": "reflectance", "range": [0, 3000], "gamma": 1.0}] * len(found)


def regions(rows):
    return {row["region"] for row in rows}


def make_sen12(source, scenes=10, patches=3):
    for scene in range(scenes):
        for patch in range(patches):
            for side, channels in (("s1", 1), ("s2", 3)):
                name = f"ROIs1158_spring_{side}_{scene}_p{patch}.png"
                write_png(source / "ROIs1158_spring" / f"{side}_{scene}" / name, channels)


def test_sen12_by_scene(tmp_path):
    make_sen12(tmp_path / "in")
    summary = prepare("sen1-2", tmp_path / "in", tmp_path / "out", progress=False)
    assert summary.split_rule == "by scene" and not summary.skipped
    assert summary.splits == {"train": 24, "validation": 3, "test": 3} and summary.sizes == {"8 x 8": 30}
    splits = loaded(tmp_path / "out")
    assert not regions(splits["train"]) & (regions(splits["test"]) | regions(splits["validation"]))
    row = splits["test"][0]
    season, scene, patch = row["id"].rsplit("_", 2)
    original = tmp_path / "in" / season / f"s1_{scene}" / f"{season}_s1_{scene}_{patch}.png"
    with open(row["sar"]["path"], "rb") as copy:
        assert copy.read() == original.read_bytes()


def test_sen12ms_holds_out_the_published_scenes(tmp_path):
    dn = np.broadcast_to(np.arange(13, dtype=np.uint16)[:, None, None] * 500, (13, 8, 8)).copy()
    for season, scenes in (
        ("ROIs1158_spring", (1, 2, 3)),
        ("ROIs1868_summer", SEN12MS_HOLD_OUT["ROIs1868_summer"][:2]),
    ):
        for scene in scenes:
            for side, bands in (("s1", backscatter()), ("s2", dn), ("lc", np.ones((4, 8, 8), np.uint16))):
                write_tif(tmp_path / "in" / season / f"{side}_{scene}" / f"{season}_{side}_{scene}_p30.tif", bands)
    summary = prepare("sen12ms", tmp_path / "in", tmp_path / "out", progress=False)
    splits = loaded(tmp_path / "out")
    assert regions(splits["test"]) == {"ROIs1868_summer_15", "ROIs1868_summer_19"}
    assert summary.splits == {"train": 2, "validation": 1, "test": 2} and not summary.skipped
    pair = read_pair(splits["train"][0])
    assert pair.sar.dtype == np.float32 and pair.sar.shape == (8, 8, 2)
    assert pair.eo.dtype == np.uint16
    np.testing.assert_array_equal(pair.eo[0, 0], [1500, 1000, 500])
    assert says_reflectance(tmp_path / "out")


def test_sen12ms_marks_nan(tmp_path):
    for scene in (1, 2, 3):
        sar = backscatter()
        if scene == 1:
            sar[0, 2, 3] = np.nan
        eo = RNG.integers(1, 3000, (13, 8, 8), dtype=np.uint16)
        for side, bands in (("s1", sar), ("s2", eo)):
            write_tif(tmp_path / "in" / f"ROIs1970_fall_{side}_{scene}_p1.tif", bands)
    assert prepare("sen12ms", tmp_path / "in", tmp_path / "out", progress=False).masks == 1
    rows = {row["id"]: row for rows in loaded(tmp_path / "out").values() for row in rows}
    mask = read_pair(rows["ROIs1970_fall_1_p1"]).mask
    assert np.argwhere(~mask).tolist() == [[2, 3]]


def make_bigearthnet(source, **changes):
    """Four patches of one tile; returns their VV files. `changes` replace columns of the table."""
    grid = {"transform": rasterio.Affine(10, 0, 600_000, 0, -10, 5_700_000), "crs": "EPSG:32629"}
    scene, tile = "S1A_IW_GRDH_1SDV_20170613T165043", "S2A_MSIL2A_20170613T101031_N9999_R022_T29UPU"
    rows, vv = [], []
    for number, split in enumerate(("train", "train", "validation", "test")):
        sar, eo = f"{scene}_29UPU_4_{number}", f"{tile}_4_{number}"
        rows.append({"patch_id": eo, "s1_name": sar, "split": split, "country": "Ireland"})
        for band in ("VV", "VH"):
            path = source / "BigEarthNet-S1" / scene / sar / f"{sar}_{band}.tif"
            write_tif(path, backscatter(1), **grid)
            vv += [path] if band == "VV" else []
        for band in ("B02", "B03", "B04"):
            values = np.full((1, 8, 8), 100 * int(band[1:]), np.uint16)
            write_tif(source / "BigEarthNet-S2" / tile / eo / f"{eo}_{band}.tif", values, **grid)
    table = {key: [row[key] for row in rows] for key in rows[0]} | changes
    pq.write_table(pa.table(table), source / "metadata.parquet")
    return vv


def test_bigearthnet_pairs_patches_by_the_published_table(tmp_path):
    vv = make_bigearthnet(tmp_path / "in")
    with rasterio.open(vv[1], "r+") as raster:
        values = raster.read()
        values[0, 2, 3] = np.nan
        raster.write(values)
    for path in (tmp_path / "in/BigEarthNet-S2").rglob("*_4_1_B0?.tif"):
        with rasterio.open(path, "r+") as raster:
            raster.write(np.where(np.arange(8) < 7, raster.read(), 0).astype(np.uint16))
    summary = prepare("bigearthnet", tmp_path / "in", tmp_path / "out", progress=False)
    assert summary.splits == {"train": 2, "validation": 1, "test": 1} and not summary.skipped
    assert summary.split_rule == "as published, by region" and summary.masks == 1
    rows = loaded(tmp_path / "out")["train"]
    pair = read_pair(rows[1])
    assert pair.sar.shape == (8, 8, 2) and pair.eo.dtype == np.uint16
    assert pair.eo[0, 0].tolist() == [400, 300, 200], "red, green, blue"
    assert not pair.mask[2, 3] and not pair.mask[:, 7].any() and pair.mask.sum() == 55
    np.testing.assert_array_equal(read_pair(rows[0]).sar[..., 0], read_image(vv[0]))
    assert says_reflectance(tmp_path / "out")
    assert rows[0]["region"] == "Ireland" and rows[0]["sar_bands"] == ["VV", "VH"]
    with rasterio.open(rows[0]["eo"]["path"]) as raster:
        assert raster.crs == "EPSG:32629" and raster.descriptions == ("B04", "B03", "B02")


def test_a_part_of_bigearthnet_and_what_is_wrong_with_it(tmp_path):
    vv = make_bigearthnet(tmp_path / "in", split=["train", "train", "validation", "../../x"])
    vv[0].unlink()
    shutil.rmtree(vv[1].parent)
    shutil.rmtree(next((tmp_path / "in/BigEarthNet-S2").rglob("*_4_1_B04.tif")).parent)
    summary = prepare("bigearthnet", tmp_path / "in", tmp_path / "out", progress=False)
    reasons = dict(summary.skipped)
    assert summary.splits == {"validation": 1} and len(reasons) == 3
    assert any("of no split" in reason for reason in reasons.values())
    assert f"{vv[0].name} is missing" in reasons.values()
    assert reasons["metadata.parquet"].startswith("1 of its 4 pairs are not in")


@pytest.mark.parametrize("table", [b"PAR1 damaged", {"patch_id": ["x"], "labels": ["y"]}])
def test_a_table_that_is_none_of_bigearthnet_is_refused_in_one_line(table, tmp_path):
    make_bigearthnet(tmp_path / "in")
    path = tmp_path / "in/metadata.parquet"
    path.write_bytes(table) if isinstance(table, bytes) else pq.write_table(pa.table(table), path)
    with pytest.raises(ValueError, match="metadata.parquet: expected the columns patch_id, s1_name") as error:
        prepare("bigearthnet", tmp_path / "in", tmp_path / "out", progress=False)
    assert "\n" not in str(error.value)


def make_major_tom(source, shift=0.0, baseline="0214", crs="EPSG:32649"):
    """Three cells in three rows, SAR shifted by so many pixels; returns a VV file."""
    for row in (15, 16, 17):
        left, top = 600_000, 5_700_000 + 10_680 * row
        products = (
            ("Core-S1RTC", f"S1A_IW_GRDH_1SDV_20200301T104813_{row}_rtc", ("vv", "vh"), shift),
            ("Core-S1RTC", f"S1A_IW_GRDH_1SDV_20200620T104813_{row}_rtc", ("vv", "vh"), shift),
            ("Core-S2L2A", f"S2B_MSIL2A_20200223T033739_N{baseline}_R061_T49UCQ_2023", ("B04", "B03", "B02"), 0.0),
        )
        for core, product, bands, moved in products:
            folder = source / core / f"{row}U" / f"{row}U_3L" / product
            grid = {"transform": rasterio.Affine(10, 0, left + 10 * moved, 0, -10, top), "crs": crs}
            for number, band in enumerate(bands):
                if core == "Core-S1RTC":
                    values = np.tile(np.linspace(0.01, 0.08, 8, dtype=np.float32), (1, 8, 1)) * (number + 1)
                    values[0, 0, 0] = -32768
                    write_tif(folder / f"{band}.tif", values, nodata=-32768, **grid)
                else:
                    values = RNG.integers(1100, 3000, (1, 8, 8)).astype(np.int16)
                    write_tif(folder / f"{band}.tif", values, nodata=-32768, **grid)
    return next(source.rglob("*20200301*/vv.tif"))


def test_major_tom_pairs_the_nearest_product_of_a_cell(tmp_path):
    make_major_tom(tmp_path / "in")
    summary = prepare("major-tom", tmp_path / "in", tmp_path / "out", progress=False)
    assert summary.splits == {"train": 1, "validation": 1, "test": 1} and not summary.skipped and summary.masks == 3
    (row,) = loaded(tmp_path / "out")["train"]
    assert "20200301" in row["sar_product"] and 7 < row["days_apart"] < 8 and row["sar_units"] == "power"
    pair = read_pair(row)
    assert np.argwhere(~pair.mask).tolist() == [[0, 0]] and pair.sar[1, 7].tolist() == pytest.approx([0.08, 0.16])
    red = next((tmp_path / "in").rglob(f"{row['scene']}/{row['eo_product']}/B04.tif"))
    np.testing.assert_array_equal(pair.eo[..., 0], read_image(red))
    assert says_reflectance(tmp_path / "out")


def test_major_tom_is_brought_to_one_grid_and_one_offset(tmp_path):
    make_major_tom(tmp_path / "in", shift=0.5, baseline="0500")
    prepare("major-tom", tmp_path / "in", tmp_path / "out", progress=False)
    (row,) = loaded(tmp_path / "out")["train"]
    pair = read_pair(row)
    red = next((tmp_path / "in").rglob(f"{row['scene']}/{row['eo_product']}/B04.tif"))
    np.testing.assert_array_equal(pair.eo[..., 0], read_image(red) - 1000)
    assert pair.sar[4, 3, 0] == pytest.approx(0.035, abs=1e-4), "half a pixel lies between 0.03 and 0.04"
    assert says_reflectance(tmp_path / "out")


def test_products_of_major_tom_without_a_place_are_left_out(tmp_path):
    make_major_tom(tmp_path / "in", shift=0.5, crs=None)
    with pytest.raises(ValueError, match="no pair is fit to use.*another pixel grid"):
        prepare("major-tom", tmp_path / "in", tmp_path / "out", progress=False)
    shutil.rmtree(tmp_path / "in/Core-S1RTC/15U")
    found = find_major_tom(tmp_path / "in")
    assert len(found.items) == 2 and "no S1RTC product" in found.skipped[0][1]


def test_qxs_saropt_says_that_its_split_is_random(tmp_path):
    for i in range(1, 21):
        write_png(tmp_path / "in" / "QXSLAB_SAROPT" / "sar_256_oc_0.2" / f"{i}.png")
        write_png(tmp_path / "in" / "QXSLAB_SAROPT" / "opt_256_oc_0.2" / f"{i}.png", 3)
    summary = prepare("qxs-saropt", tmp_path / "in", tmp_path / "out", fractions=(0.8, 0, 0.2), progress=False)
    assert summary.split_rule.startswith("random (") and summary.splits == {"train": 16, "test": 4}
    again = prepare("qxs-saropt", tmp_path / "in", tmp_path / "again", fractions=(0.8, 0, 0.2), progress=False)
    assert again.splits == summary.splits
    ids = [[row["id"] for row in loaded(tmp_path / out)["test"]] for out in ("out", "again")]
    assert ids[0] == ids[1]


def test_sar2opt_keeps_the_published_test_split(tmp_path):
    for split, count in (("train", 10), ("test", 4)):
        for i in range(count):
            write_png(tmp_path / "in" / f"{split}A" / f"{i}.png")
            write_png(tmp_path / "in" / f"{split}B" / f"{i}.png", 3)
    summary = prepare("sar2opt", tmp_path / "in", tmp_path / "out", progress=False)
    assert summary.splits == {"train": 9, "validation": 1, "test": 4}
    assert "test as published" in summary.split_rule and "random" in summary.split_rule


def test_spacenet6_masks_what_lies_outside_the_strip(tmp_path):
    root, strips = (
        tmp_path / "in" / "AOI_11_Rotterdam",
        ("20190804111224_20190804111453", "20190822065725_20190822065959"),
    )
    (root / "SummaryData").mkdir(parents=True)
    (root / "SummaryData" / "SAR_orientations.txt").write_text(f"{strips[0]} 1\n{strips[1]} 0\n")
    for strip in strips:
        for tile in range(6):
            grid = {
                "transform": rasterio.Affine(0.5, 0, 590_100 + 1000 * tile, 0, -0.5, 5_750_000),
                "crs": "EPSG:32631",
            }
            sar, eo = RNG.uniform(10, 40, (4, 8, 8)).astype(np.float32), RNG.integers(1, 255, (3, 8, 8), dtype=np.uint8)
            sar[:, :, :2] = 0
            eo[:, 7] = 0
            for product, bands in (("SAR-Intensity", sar), ("PS-RGB", eo)):
                write_tif(
                    root / product / f"SN6_Train_AOI_11_Rotterdam_{product}_{strip}_tile_{tile}.tif", bands, **grid
                )
    broken = root / "SAR-Intensity" / f"SN6_Train_AOI_11_Rotterdam_SAR-Intensity_{strips[0]}_tile_0.tif"
    broken.write_bytes(b"broken")
    summary = prepare("spacenet6", tmp_path / "in", tmp_path / "out", progress=False)
    assert summary.masks == 11 and [name for name, _ in summary.skipped] == [f"{strips[0]}_tile_0"]
    splits = loaded(tmp_path / "out")
    assert not regions(splits["train"]) & regions(splits["test"])
    assert {row["strip"]: row["orientation"] for row in splits["train"]} == {strips[0]: 1, strips[1]: 0}
    expected = np.ones((8, 8), bool)
    expected[:, :2] = expected[7] = False
    np.testing.assert_array_equal(read_pair(splits["test"][0]).mask, expected)
    with rasterio.open(splits["test"][0]["sar"]["path"]) as raster:
        assert raster.descriptions == ("HH", "HV", "VH", "VV") and raster.dtypes[0] == "float32"
        assert raster.crs == "EPSG:32631" and raster.bounds.left == splits["test"][0]["bounds"][0]
        source = root / "SAR-Intensity" / f"SN6_Train_AOI_11_Rotterdam_SAR-Intensity_{splits['test'][0]['id']}.tif"
        np.testing.assert_array_equal(np.moveaxis(raster.read(), 0, -1), read_image(source))


def test_folders_and_csv(tmp_path):
    for i in range(10):
        write_png(tmp_path / "in" / "radar" / f"{i}.png")
        write_png(tmp_path / "in" / "optical" / f"{i}.png", 3)
    folders = {"sar_dir": "radar", "eo_dir": "optical"}
    summary = prepare("folders", tmp_path / "in", tmp_path / "out", options=folders, progress=False)
    assert summary.split_rule.startswith("random") and summary.splits == {"train": 8, "validation": 1, "test": 1}
    table = tmp_path / "in" / "pairs.csv"
    table.write_text("\n".join(["sar,eo,region", *(f"radar/{i}.png,optical/{i}.png,{i // 2}" for i in range(10))]))
    summary = prepare("csv", table, tmp_path / "by_region", fractions=(0.6, 0.2, 0.2), progress=False)
    assert summary.split_rule == "by region" and summary.splits == {"train": 6, "validation": 2, "test": 2}
    table.write_text("sar,eo,split\nradar/1.png,optical/1.png,train\nradar/2.png,optical/2.png,test")
    with pytest.warns(UserWarning, match="leaves out 8 images"):
        summary = prepare("csv", table, tmp_path / "as_given", progress=False)
    assert summary.split_rule.startswith("as given") and summary.splits == {"train": 1, "test": 1}


def test_what_is_left_out_is_named(tmp_path):
    make_sen12(tmp_path / "in", scenes=4)
    spring = tmp_path / "in" / "ROIs1158_spring"
    (spring / "s2_0" / "ROIs1158_spring_s2_0_p0.png").unlink()
    (spring / "s1_1" / "ROIs1158_spring_s1_1_p1.png").write_bytes(b"broken")
    write_png(spring / "s1_2" / "ROIs1158_spring_s1_2_p2.png", size=4)
    write_png(spring / "thumbnail.png")
    summary = prepare("sen1-2", tmp_path / "in", tmp_path / "out", progress=False)
    reasons = dict(summary.skipped)
    assert sum(summary.splits.values()) == 9 and len(reasons) == 4
    assert reasons[str(spring / "s1_0" / "ROIs1158_spring_s1_0_p0.png")] == "no EO partner"
    assert reasons[str(spring / "thumbnail.png")] == "not named like a patch of s1 or s2"
    assert "not a readable" in reasons["ROIs1158_spring_1_p1"]
    assert "sizes differ" in reasons["ROIs1158_spring_2_p2"]
    assert "left out: 4" in str(summary)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["splits"] == summary.splits


def test_imagefolder_reads_what_prepare_writes(tmp_path):
    make_sen12(tmp_path / "in", scenes=3, patches=1)
    prepare("sen1-2", tmp_path / "in", tmp_path / "out", progress=False)
    splits = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1, "validation": 1, "test": 1}
    assert splits["train"][0]["sar"].size == (8, 8)


def test_out_is_never_overwritten(tmp_path):
    make_sen12(tmp_path / "in", scenes=3, patches=1)
    (tmp_path / "out").mkdir()
    prepare("sen1-2", tmp_path / "in", tmp_path / "out", progress=False)
    with pytest.raises(FileExistsError, match="out exists and is not an empty folder"):
        prepare("sen1-2", tmp_path / "in", tmp_path / "out", progress=False)
    with (
        locked(tmp_path / ".new.partial.lock", "held"),
        pytest.raises(OSError, match="another process is writing .*new"),
    ):
        prepare("sen1-2", tmp_path / "in", tmp_path / "new", progress=False)
    (tmp_path / ".new.partial").mkdir()
    with pytest.raises(FileExistsError, match="new.partial was not made by c_diffset"):
        prepare("sen1-2", tmp_path / "in", tmp_path / "new", progress=False)


def test_failure_leaves_nothing_behind(tmp_path):
    make_sen12(tmp_path / "in", scenes=3, patches=1)
    for path in (tmp_path / "in").rglob("*_s1_*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="no pair is fit to use.*not a readable"):
        prepare("sen1-2", tmp_path / "in", tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrong_source_is_refused(layout, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="holds no pairs|expected one"):
        prepare(layout, tmp_path / "in", tmp_path / "out", progress=False)


def test_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown layout 'sen2'; known: sen1-2, sen12ms"):
        prepare("sen2", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("layout", ["folders", "csv"])
def test_every_image_of_a_pair_is_copied(layout, tmp_path):
    write_pairs(tmp_path / "in", 4, size=32, discrepancy=0.1)
    source = tmp_path / "in" / "train"
    if layout == "csv":
        rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
        lines = [
            ",".join([row["id"], *(row[f"{key}_file_name"] for key in ("sar", "eo", "discrepancy"))]) for row in rows
        ]
        (source / "metadata.jsonl").unlink()
        source = source / "pairs.csv"
        source.write_text("\n".join(["id,sar,eo,discrepancy", *lines]))
    prepare(layout, source, tmp_path / "out", fractions=(1, 0, 0), progress=False)
    shutil.rmtree(tmp_path / "in")
    pairs = [read_pair(row) for row in load_pairs(tmp_path / "out")]
    assert len(pairs) == 4 and all(pair.discrepancy.any() for pair in pairs)
    assert str(tmp_path) not in (tmp_path / "out" / "train" / "metadata.jsonl").read_text()


@pytest.mark.parametrize("layout", ["parquet", "folders"])
def test_parquet_becomes_files(layout, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sar, eo = backscatter(1), [tmp_path / f"{i}.png" for i in range(5)]
    write_tif(tmp_path / "sar.tif", sar)
    for path in eo:
        write_png(path, 3)
    images = {"s1": [{"bytes": (tmp_path / "sar.tif").read_bytes(), "path": None}] * 5}
    images |= {"s2": [{"bytes": path.read_bytes(), "path": None} for path in eo]}
    images |= {"mask": [None] * 4 + [{"bytes": eo[0].read_bytes(), "path": None}]}
    (tmp_path / "in").mkdir()
    rest = {"city": ["a", "b", "b", "c", "c"], "name": list("vwxyz")}
    Dataset.from_dict(images | rest).to_parquet(tmp_path / "in" / "all.parquet")
    options = {"columns": {"sar": "s1", "eo": "s2", "region": "city", "id": "name"}}
    summary = prepare(layout, tmp_path / "in", tmp_path / "out", options=options, progress=False)
    assert sum(summary.splits.values()) == 5 and summary.split_rule == "by region" and summary.masks == 1
    rows = {row["id"]: row for rows in loaded(tmp_path / "out").values() for row in rows}
    assert sorted(rows) == list("vwxyz") and rows["w"]["region"] == "b"
    assert rows["z"]["mask"] and not rows["v"].get("mask")
    assert rows["w"]["sar"]["path"].endswith("sar/w.tif") and Path(rows["w"]["eo"]["path"]).read_bytes() == (
        eo[1].read_bytes()
    )


def test_webdataset_becomes_files(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, channels in (("s1", 1), ("s2", 3)):
        write_png(tmp_path / f"{name}.png", channels)
    for split, count in (("train", 2), ("test", 1)):
        (tmp_path / "in").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "in" / f"{split}-000.tar", "w") as shard:
            for i in range(count):
                for name in ("s1", "s2"):
                    shard.add(tmp_path / f"{name}.png", f"{i}.{name}.png")
    options = {"columns": {"sar": "s1", "eo": "s2"}}
    summary = prepare("webdataset", tmp_path / "in", tmp_path / "out", options=options, progress=False)
    assert summary.splits == {"train": 2, "test": 1} and summary.split_rule.startswith("as given")
    assert sorted(row["id"] for row in loaded(tmp_path / "out")["train"]) == ["0", "1"]


def test_files_are_paired_by_a_pattern(tmp_path):
    for i in range(10):
        write_png(tmp_path / "in" / "a" / f"s1_{i}.png")
        write_png(tmp_path / "in" / "b" / f"s2_{i}_rgb.png", 3)
    write_png(tmp_path / "in" / "a" / "s1_10.png")
    write_png(tmp_path / "in" / "b" / "overview.png", 3)
    write_png(tmp_path / "in" / "m" / "3.png")
    options = {"match": "a/s1_*.png:b/s2_*_rgb.png:m/*.png"}
    summary = prepare("folders", tmp_path / "in", tmp_path / "out", options=options, progress=False)
    assert sum(summary.splits.values()) == 10 and summary.masks == 1 and summary.split_rule.startswith("random")
    assert sorted((Path(name).name, reason) for name, reason in summary.skipped) == [
        ("overview.png", "matches no pattern"),
        ("s1_10.png", "no EO partner"),
    ]
    assert {row["id"] for rows in loaded(tmp_path / "out").values() for row in rows} == set("0123456789")


def test_folders_of_splits_stay_splits_where_files_are_paired_by_a_pattern(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            write_png(tmp_path / "in" / split / "place" / f"{i}_sar.png")
            write_png(tmp_path / "in" / split / "place" / f"{i}_eo.png", 3)
    options = {"match": "place/*_sar.png:place/*_eo.png"}
    summary = prepare("folders", tmp_path / "in", tmp_path / "out", options=options, progress=False)
    assert summary.splits == {"train": 3, "test": 2} and summary.split_rule.startswith("as given")
    options = {"match": "*_sar.png:*_eo.png"}  # the text may hold folders
    summary = prepare("folders", tmp_path / "in", tmp_path / "flat", options=options, progress=False)
    assert sum(summary.splits.values()) == 5
    assert "train_place_0" in {row["id"] for rows in loaded(tmp_path / "flat").values() for row in rows}


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("folders", {"match": "s1_*.png"}, "expected two patterns .* with one [*] each"),
        ("folders", {"match": "s1_*_*.png:s2_*.png"}, "expected two patterns"),
        ("folders", {"match": "x_*.png:y_*.png"}, "no two files match 'x_[*].png:y_[*].png'; found .*png"),
        ("folders", {"match": "sar/*.png:eo/*.png", "sar_dir": "sar"}, "match needs no other names"),
        ("sen1-2", {"match": "sar/*.png:eo/*.png"}, "match cannot be used with the layout 'sen1-2'"),
        ("csv", {"sar_dir": "sar"}, "sar_dir cannot be used with the layout 'csv'"),
    ],
)
def test_options_that_do_not_fit_are_refused(layout, options, message, tmp_path):
    for i in range(2):
        write_png(tmp_path / "in" / "sar" / f"{i}.png")
        write_png(tmp_path / "in" / "eo" / f"{i}.png", 3)
    with pytest.raises(ValueError, match=message):
        prepare(layout, tmp_path / "in", tmp_path / "out", options=options, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_pattern_does_not_leave_the_folder(tmp_path):
    write_png(tmp_path / "secret.png")
    write_png(tmp_path / "in" / "eo" / "secret.png", 3)
    (tmp_path / "in" / "sar").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="lies outside"):
        prepare("folders", tmp_path / "in", tmp_path / "out", options={"match": "sar/*.png:eo/*.png"}, progress=False)


def test_columns_of_tables_are_renamed(tmp_path):
    for i in range(4):
        write_png(tmp_path / "in" / f"r{i}.png")
        write_png(tmp_path / "in" / f"o{i}.png", 3)
    lines = [f"r{i}.png,o{i}.png,n{i}" for i in range(4)]
    (tmp_path / "in" / "pairs.csv").write_text("\n".join(["radar,optical,name", *lines]))
    options = {"columns": {"sar": "radar", "eo": "optical", "id": "name"}}
    summary = prepare("csv", tmp_path / "in" / "pairs.csv", tmp_path / "out", options=options, progress=False)
    assert sum(summary.splits.values()) == 4
    assert {row["id"] for rows in loaded(tmp_path / "out").values() for row in rows} == {"n0", "n1", "n2", "n3"}
    for wrong in ({"sar": "lidar", "eo": "optical"}, {"sar": "radar", "eo": "optical", "name": "radar"}):
        with pytest.raises(ValueError, match="no column '(lidar|radar)'"):
            load_pairs(tmp_path / "in" / "pairs.csv", columns=wrong)


def test_the_command_says_what_it_did_and_what_comes_next(tmp_path, capsys):
    for i in range(10):
        write_png(tmp_path / "in" / f"{i}_sar.png", size=40)
        write_png(tmp_path / "in" / f"{i}_eo.png", 3, size=40)
    arguments = ["prepare", "folders", tmp_path / "in", tmp_path / "own data", "--match", "*_sar.png:*_eo.png"]
    assert main([*map(str, arguments), "--fractions", "[0.8, 0, 0.2]", "--progress", "false"]) == 0
    printed = capsys.readouterr().out
    assert "10 pairs (train 8, test 2)" in printed and "split: random" in printed and "risk: where patches" in printed
    (command,) = [line.removeprefix("then: ") for line in printed.splitlines() if line.startswith("then: ")]
    words = shlex.split(command)
    assert words[:2] == ["c-diffset", "finetune"] and str(tmp_path / "own data") in words
    config = parse_config(FinetuneConfig, "", words[2:])
    assert config.data.validation_fraction == 0.1 and config.data.crop_size == config.validation.crop_size == 40
    assert main(["prepare", "csv", str(tmp_path), str(tmp_path / "x"), "--columns", "sar=s1"]) == 2
    assert "such as sar:s1,eo:s2" in capsys.readouterr().err


def make_layout(layout, source):
    """A tiny data set of a layout, and one of its SAR images."""
    if layout == "sen1-2":
        make_sen12(source, scenes=3, patches=1)
        return source / "ROIs1158_spring" / "s1_0" / "ROIs1158_spring_s1_0_p0.png"
    if layout == "sen12ms":
        for scene in (1, 2, 3):
            for side, bands in (("s1", backscatter()), ("s2", RNG.integers(1, 3000, (13, 8, 8), dtype=np.uint16))):
                write_tif(source / f"ROIs1970_fall_{side}_{scene}_p1.tif", bands)
        return source / "ROIs1970_fall_s1_1_p1.tif"
    if layout == "terramesh":
        make_terramesh(source)
        return next(source.rglob("S1RTC/*.tar"))
    if layout == "ssl4eo-s12":
        make_ssl4eo(source)
        return next(source.rglob("S1GRD/*.zip"))
    if layout == "major-tom":
        return make_major_tom(source)
    if layout == "bigearthnet":
        return make_bigearthnet(source)[0]
    if layout == "spacenet6":
        for product, bands in (("SAR-Intensity", backscatter(4)), ("PS-RGB", np.ones((3, 8, 8), np.uint8))):
            for tile in range(3):
                grid = {"transform": rasterio.Affine(0.5, 0, 590_100 + 1000 * tile, 0, -0.5, 0), "crs": "EPSG:32631"}
                write_tif(source / product / f"SN6_Train_AOI_11_Rotterdam_{product}_1_2_tile_{tile}.tif", bands, **grid)
        return source / "SAR-Intensity" / "SN6_Train_AOI_11_Rotterdam_SAR-Intensity_1_2_tile_0.tif"
    folders = {"qxs-saropt": ["sar_256_oc_0.2", "opt_256_oc_0.2"], "sar2opt": ["trainA", "trainB", "testA", "testB"]}
    for folder in folders.get(layout, ["sar", "eo"]):
        for i in range(3):
            write_png(source / folder / f"{i}.png", 1 if folder in ("sar_256_oc_0.2", "trainA", "testA", "sar") else 3)
    return source / folders.get(layout, ["sar"])[0] / "0.png"


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "csv"])
def test_no_layout_copies_what_a_link_names_outside(layout, tmp_path):
    image = make_layout(layout, tmp_path / "in")
    prepare(layout, tmp_path / "in", tmp_path / "out", progress=False)
    image.rename(tmp_path / f"private{image.suffix}")
    image.symlink_to(tmp_path / f"private{image.suffix}")
    with pytest.raises(ValueError, match=f"{image.name}' lies outside"):
        prepare(layout, tmp_path / "in", tmp_path / "again", progress=False)
    assert not (tmp_path / "again").exists()


def test_files_beside_a_tiff_are_not_opened(tmp_path):
    """A mask beside a TIFF may be a virtual raster, which reads any file and any address."""
    image = make_layout("spacenet6", tmp_path / "in")
    Path(f"{image}.msk").write_text("<VRTDataset rasterXSize='8' rasterYSize='8'></VRTDataset>")
    with open_raster(image) as raster:
        assert raster.files == [str(image)]


@pytest.mark.parametrize("text", ["1_2\n", "1_2 7\nodd\n", "\0", ""])
def test_odd_orientations_are_left_out(text, tmp_path):
    make_layout("spacenet6", tmp_path / "in")
    (tmp_path / "in" / "SAR_orientations.txt").write_text(text)
    prepare("spacenet6", tmp_path / "in", tmp_path / "out", progress=False)
    assert all(row["orientation"] is None for rows in loaded(tmp_path / "out").values() for row in rows)
