import json

import numpy as np
import pytest
import rasterio
from datasets import load_dataset
from PIL import Image

from c_diffset.synthetic.generate import CLASSES, LANDSCAPES, SPLITS, _cast, make_pair, to_display, write_pairs
from c_diffset.synthetic.world import HEIGHT_STEPS, _spline_basis, smooth_noise

BUILDINGS = [CLASSES.index("house"), CLASSES.index("hall")]


@pytest.fixture(scope="module")
def pairs():
    return [make_pair(seed) for seed in range(40)]


def test_a_pair_is_a_pure_function_of_its_arguments():
    first, again, other = make_pair(3, 64, 2, 0.1), make_pair(3, 64, 2, 0.1), make_pair(4, 64, 2, 0.1)
    for name in ("sar", "eo", "discrepancy", "classes"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.eo, other.eo)


@pytest.mark.parametrize("size", [32, 97, 300])
def test_shapes_types_and_ranges(size):
    pair = make_pair((5, 1), size, discrepancy=0.05)
    assert pair.sar.shape == pair.discrepancy.shape == pair.classes.shape == (size, size)
    assert pair.eo.shape == (size, size, 3)
    dtypes = [a.dtype for a in (pair.sar, pair.eo, pair.discrepancy, pair.classes)]
    assert dtypes == [np.float32, np.uint8, bool, np.uint8]
    assert np.isfinite(pair.sar).all() and (pair.sar > 0).all()
    assert pair.classes.max() < len(CLASSES)
    assert pair.region in LANDSCAPES


def test_every_landscape_and_every_surface_appear(pairs):
    assert {pair.region for pair in pairs} == set(LANDSCAPES)
    assert set(np.unique([pair.classes for pair in pairs])) == set(range(len(CLASSES)))


def test_the_two_images_agree_unless_asked_otherwise(pairs):
    assert not any(pair.discrepancy.any() for pair in pairs)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2])
def test_discrepancies_cover_the_fraction_asked_for_and_touch_nothing_else(pairs, fraction):
    for seed in range(10):
        plain, changed = pairs[seed], make_pair(seed, discrepancy=fraction)
        mask = changed.discrepancy
        assert mask.sum() == round(fraction * mask.size)
        np.testing.assert_array_equal(plain.classes, changed.classes)
        np.testing.assert_array_equal(plain.sar[~mask], changed.sar[~mask])
        np.testing.assert_array_equal(plain.eo[~mask], changed.eo[~mask])
        in_sar, in_eo = plain.sar != changed.sar, (plain.eo != changed.eo).any(-1)
        assert not (in_sar & in_eo).any(), "a pixel may change in one image only"
        np.testing.assert_array_equal(in_sar | in_eo, mask)


def test_discrepancies_occur_in_either_image_on_water_roads_and_fields():
    in_sar, in_eo, changed = False, False, set()
    for seed in range(12):
        plain, pair = make_pair(seed), make_pair(seed, discrepancy=0.1)
        in_sar |= (plain.sar != pair.sar).any()
        in_eo |= (plain.eo != pair.eo).any()
        changed |= {CLASSES[i] for i in np.unique(pair.classes[pair.discrepancy])}
    assert in_sar and in_eo
    assert {"water", "road", "soil", "wheat", "pasture", "crop"} <= changed


def test_a_scene_with_too_few_fields_falls_short_of_the_fraction_but_never_passes_it():
    fractions = [make_pair(seed, 64, discrepancy=0.5).discrepancy.mean() for seed in range(40)]
    assert max(fractions) == 0.5 and min(fractions) < 0.5


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_speckle_is_gamma_of_the_number_of_looks(looks):
    smooth, speckled = make_pair(0, looks=1e7), make_pair(0, looks=looks)
    speckle = speckled.sar.astype(float) / smooth.sar
    np.testing.assert_array_equal(smooth.eo, speckled.eo)
    assert speckle.mean() == pytest.approx(1, abs=0.02)
    assert speckle.var() == pytest.approx(1 / looks, rel=0.05)
    neighbours = np.corrcoef(speckle[:, 1:].ravel(), speckle[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.02


def test_backscatter_orders_the_surfaces(pairs):
    classes, power = np.stack([p.classes for p in pairs]), np.stack([p.sar for p in pairs])
    order = ("water", "road", "soil", "wheat", "pasture", "crop", "forest", "vehicle", "ship")
    levels = [10 * np.log10(np.median(power[classes == CLASSES.index(name)])) for name in order]
    assert levels == sorted(levels)
    assert np.diff(levels[:7]).min() > 0.8


def _around_buildings(pairs, values, down, right):
    """Mean of `values(pair)` where no building stands but one does at the pixel moved by (-down, -right)."""
    found = []
    for pair in pairs:
        building = np.isin(pair.classes, BUILDINGS)
        beside = np.roll(building, (down, right), (0, 1)) & ~building
        beside[[0, 1, -2, -1]] = beside[:, [0, 1, -2, -1]] = False
        found.append(values(pair)[beside])
    return np.concatenate(found).mean()


def test_buildings_are_bright_towards_the_radar_and_dark_behind(pairs):
    def db(pair):
        return 10 * np.log10(pair.sar)

    left, right = (_around_buildings(pairs, db, 0, side) for side in (-1, 1))
    assert left > 0 and right < -15


def test_buildings_throw_their_shadow_away_from_the_sun(pairs):
    def brightness(pair):
        return pair.eo.mean(-1)

    above, below = (_around_buildings(pairs, brightness, side, 0) for side in (-2, 2))
    assert above < 0.8 * below


def test_a_height_casts_as_far_as_it_is_high():
    height = np.zeros((9, 9), np.int8)
    height[4, 4] = 3 * HEIGHT_STEPS + 1
    covered = np.zeros((9, 9), bool)
    covered[4, 5:8] = True
    np.testing.assert_array_equal(_cast(height, 0, 1), covered)
    np.testing.assert_array_equal(_cast(height, 0, -1), covered[:, ::-1])
    np.testing.assert_array_equal(_cast(height, -1, 0), covered[:, ::-1].T)


def test_noise_has_unit_variance_and_its_splines_the_right_derivative():
    noise = np.stack([smooth_noise(np.random.default_rng(seed), 256, 8) for seed in range(20)])
    assert noise.var() == pytest.approx(1, rel=0.05)
    value, slope = _spline_basis(4000, 1000)
    np.testing.assert_allclose(value.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(np.gradient(value.astype(float), axis=0)[1:-1], slope[1:-1], atol=2e-6)


def test_to_display_has_a_fixed_range():
    power = np.float32(10) ** (np.float32([-40, -25, -12.5, 0, 20]) / 10)
    assert to_display(power).tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_display(np.float32([0.1, np.nan]))


@pytest.mark.parametrize(
    "setting",
    [{"size": 31}, {"size": 5000}, {"looks": 0}, {"looks": float("nan")}, {"discrepancy": -0.1}, {"discrepancy": 0.6}],
)
def test_make_pair_names_the_value_it_refuses(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        make_pair(0, **setting)


def test_written_pairs_are_an_imagefolder_of_the_same_pairs(tmp_path):
    folder = write_pairs(tmp_path, 3, size=64, seed=9, discrepancy=0.1, split="test")
    assert folder == tmp_path / "test"
    rows = load_dataset("imagefolder", data_dir=str(tmp_path), split="test", cache_dir=str(tmp_path / "cache"))
    assert {"sar", "eo", "discrepancy", "id", "region"} == set(rows.column_names)
    assert rows["id"][:] == ["test-0000", "test-0001", "test-0002"]
    for i, row in enumerate(rows):
        pair = make_pair((9, SPLITS.index("test"), i), 64, discrepancy=0.1)
        np.testing.assert_array_equal(np.asarray(row["sar"]), to_display(pair.sar))
        np.testing.assert_array_equal(np.asarray(row["eo"]), pair.eo)
        np.testing.assert_array_equal(np.asarray(row["discrepancy"]) == 255, pair.discrepancy)
        assert row["region"] == pair.region


def test_tif_holds_decibels(tmp_path):
    folder = write_pairs(tmp_path, 1, size=64, seed=2, sar_format="tif")
    (row,) = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    with rasterio.open(folder / row["sar_file_name"]) as tif:
        assert tif.dtypes == ("float32",) and tif.crs.is_projected
        np.testing.assert_allclose(tif.read(1), 10 * np.log10(make_pair((2, 0, 0), 64).sar), atol=1e-5)


def test_splits_of_one_seed_share_no_scene(tmp_path):
    folders = [write_pairs(tmp_path, 2, size=32, split=split) for split in SPLITS]
    images = {Image.open(path).tobytes() for folder in folders for path in (folder / "eo").iterdir()}
    assert len(images) == 6


def test_write_pairs_refuses_a_folder_in_use(tmp_path):
    folder = write_pairs(tmp_path, 1, size=32)
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileExistsError, match=f"{folder} exists and is not an empty folder"):
        write_pairs(tmp_path, 1, size=32)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "setting", [{"count": 0}, {"seed": -1}, {"split": "../train"}, {"sar_format": "jpg"}, {"size": 8}, {"looks": -1}]
)
def test_write_pairs_checks_its_arguments_before_it_writes(tmp_path, setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}, expected"):
        write_pairs(tmp_path / "out", **({"count": 1, "size": 32} | setting))
    assert not (tmp_path / "out").exists()
