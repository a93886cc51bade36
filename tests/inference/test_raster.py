"""SAR GeoTIFF as models read them: units, valid pixels, bands, place, warping, and what is refused."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform as to_crs

from c_diffset.inference.options import ReadOptions
from c_diffset.inference.raster import SarRaster, choose_bands
from c_diffset.inference.source import sample_boxes
from c_diffset.inference.tiles import Box
from c_diffset.sar.radiometry import convert_units, polarisation
from c_diffset.sar.speckle import refined_lee
from tests.helpers import DISPLAY, UTM, write_raster

SCENES = Path(__file__).parents[3] / "shared/data/scenes"
DB, POWER, AMPLITUDE = (
    {"units": units, "range": [-30.0, 0.0], "channels": [0]} for units in ("db", "power", "amplitude")
)
TWO = {"channels": [0, 1, "0-1"], "range": [[-25.0, 0.0], [-32.5, 0.0], [0.0, 20.0]]}


def write(path: Path, pixels: np.ndarray, **options) -> Path:
    """A GeoTIFF in UTM."""
    return write_raster(path, pixels, **UTM | options)


def opened(path: Path, sar_transform: dict, units: str | None = None, **options) -> SarRaster:
    """The scene as a model reads it that takes `sar_transform`."""
    return SarRaster(path, sar_transform, ReadOptions(units=units, **options))


def decibel(*shape: int, seed: int = 0) -> np.ndarray:
    """Backscatter in dB as it occurs on land."""
    return np.random.default_rng(seed).normal(-12, 4, shape).clip(-28, -1).astype(np.float32)


def whole(raster: SarRaster) -> tuple[np.ndarray, np.ndarray]:
    return raster.read(Box(0, 0, *raster.size))


# units


@pytest.mark.parametrize("model", ["db", "power", "amplitude"])
@pytest.mark.parametrize("bands", [1, 2])
def test_the_same_ground_gives_the_same_input_in_all_units(tmp_path, model, bands):
    values = decibel(bands, 20, 30)
    sar_transform = {"units": model} | (TWO if bands == 2 else {"channels": [0]})
    picked = np.stack([values[0], values[1], values[0] - values[1]]) if bands == 2 else values
    low, high = np.array(TWO["range"] if bands == 2 else [[-30, 0]], np.float64).T[:, :, None, None]
    expected = ((picked - low) / (high - low)).clip(0, 1) * 2 - 1
    centi = np.round(values * 100).astype(np.int16)
    scenes = {
        "db": opened(write(tmp_path / "db.tif", values), sar_transform),  # found
        "power": opened(write(tmp_path / "p.tif", 10 ** (values / 10)), sar_transform, "power"),
        "amplitude": opened(write(tmp_path / "a.tif", 10 ** (values / 20)), sar_transform, "amplitude"),
        "double": opened(write(tmp_path / "d.tif", values.astype(np.float64)), sar_transform),
        "scaled": opened(write(tmp_path / "i.tif", centi, scaling=(0.01, 0.0)), sar_transform),
        "offset": opened(write(tmp_path / "o.tif", centi + 4000, scaling=(0.01, -40.0)), sar_transform),
    }
    for name, scene in scenes.items():
        sar, valid = whole(scene)
        assert sar.dtype == np.float32 and valid.all(), name
        np.testing.assert_allclose(sar, expected, atol=2e-3 if name in ("scaled", "offset") else 1e-5, err_msg=name)
    assert [scene.units for scene in scenes.values()] == ["db", "power", "amplitude", "db", "db", "db"]


def test_display_scenes(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    eight = opened(write(tmp_path / "8.tif", pixels), DISPLAY)
    sixteen = opened(write(tmp_path / "16.tif", pixels.astype(np.uint16) * 257), DISPLAY, "display")
    floats = opened(write(tmp_path / "f.tif", (pixels / 255).astype(np.float32)), DISPLAY, "display")
    for scene in (eight, sixteen, floats):
        sar, valid = whole(scene)
        assert scene.units == "display" and valid.all()  # black is a display value
        np.testing.assert_allclose(sar[0], pixels / 255 * 2.0 - 1, atol=1e-6)
    with pytest.raises(ValueError, match="int16"):
        opened(write(tmp_path / "i.tif", pixels.astype(np.int16)), DISPLAY, "display")


@pytest.mark.parametrize("source", ["db", "power", "amplitude"])
@pytest.mark.parametrize("target", ["db", "power", "amplitude"])
def test_units_convert_there_and_back(source, target):
    power = np.array([1e-4, 0.01, 0.5, 1, 3])
    forms = {"db": 10 * np.log10(power), "power": power, "amplitude": np.sqrt(power)}
    values = forms[source].astype(np.float32)
    converted = convert_units(values, source, target)
    assert converted.dtype == np.float32
    np.testing.assert_allclose(converted, forms[target], rtol=1e-5, atol=1e-5)


def test_declared_units(tmp_path):
    positive = decibel(8, 8) + 14  # nothing else says that these are dB
    assert opened(write(tmp_path / "a.tif", positive, units=("dB",)), DB).units == "db"
    with pytest.raises(ValueError, match="not certain"):
        opened(write(tmp_path / "b.tif", positive, units=("DN",)), DB)


@pytest.mark.parametrize(
    "pixels",
    [
        10 ** (decibel(8, 8) / 10),
        -np.random.default_rng(0).random((8, 8), np.float32),  # normalised to [-1, 0], not dB
        np.full((8, 8), 900, np.uint16),
        np.full((8, 8), -1200, np.int16),
        np.full((8, 8), 7, np.int32),
        np.full((8, 8), 7, np.uint32),
    ],
    ids=lambda pixels: pixels.dtype.name,
)
def test_uncertain_units_are_asked_for(tmp_path, pixels):
    with pytest.raises(ValueError, match=r"scene\.tif.*say `units`, one of display, db, power, amplitude"):
        opened(write(tmp_path / "scene.tif", pixels), DB)


def test_units_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="'banana'.*display.*amplitude"):
        opened(tmp_path / "none.tif", DB, "banana")
    scene = write(tmp_path / "scene.tif", decibel(8, 8))
    for units in ("power", "amplitude"):  # read as power, dB would be one black image
        with pytest.raises(ValueError, match=rf"scene\.tif.*'{units}'.*dB"):
            opened(scene, DB, units)
    with pytest.raises(ValueError, match=r"scene\.tif.*db.*display"):
        opened(scene, DISPLAY)
    with pytest.raises(ValueError, match=r"8\.tif.*display.*power"):
        opened(write(tmp_path / "8.tif", np.ones((8, 8), np.uint8)), POWER)
    with pytest.raises(ValueError, match="complex"):
        opened(write(tmp_path / "c.tif", np.ones((8, 8), np.complex64)), POWER, "power")
    pixels = np.full((700, 700), 0.5, np.float32)
    pixels[150, 150] = 1.5  # between the sampled windows
    with pytest.raises(ValueError, match=r"f\.tif, rows 0 to 700"):
        whole(opened(write(tmp_path / "f.tif", pixels), DISPLAY, "display"))


def test_integers_and_half_precision_are_read_as_they_are(tmp_path):
    amplitude = np.random.default_rng(0).integers(1, 200, (8, 8))
    sar_transform = AMPLITUDE | {"range": [0.0, 50.0]}
    expected = (20 * np.log10(amplitude) / 50).clip(0, 1) * 2 - 1
    for dtype, options in (("uint16", {}), ("int32", {}), ("uint32", {}), ("float64", {}), ("float32", {"nbits": 16})):
        scene = opened(write(tmp_path / f"{dtype}.tif", amplitude.astype(dtype), **options), sar_transform, "amplitude")
        np.testing.assert_allclose(whole(scene)[0][0], expected, atol=1e-5, err_msg=dtype)


# valid pixels


@pytest.mark.parametrize("fill", [-9999, -32768, -3.4e38, np.nan, 0, -np.inf])
def test_undeclared_fill_values_are_not_valid(tmp_path, fill):
    values, hole = decibel(2, 100, 120), np.ones((100, 120), bool)
    hole[70:, 100:] = False  # most of the scene is missing
    for units, measured in (("db", values), ("power", 10 ** (values / 10)), ("amplitude", 10 ** (values / 20))):
        pixels = np.where(hole, np.float32(fill), measured)
        told = None if units == "db" else units
        raster = opened(write(tmp_path / f"{units}.tif", pixels), {"units": "db"} | TWO, told)
        sar, valid = whole(raster)
        assert raster.units == units
        np.testing.assert_array_equal(valid, ~hole)
        full = whole(opened(write(tmp_path / "full.tif", values), {"units": "db"} | TWO))[0]
        np.testing.assert_allclose(sar[:, ~hole], full[:, ~hole], atol=1e-5)


def test_fill_values_of_scaled_integers_are_not_valid(tmp_path):
    centi = np.full((10, 10), -1200, np.int16)
    centi[0], centi[1], centi[2] = -9999, -32768, 0
    _, valid = whole(opened(write(tmp_path / "scene.tif", centi, scaling=(0.01, 0.0)), DB))
    assert not valid[:3].any() and valid[3:].all()


def test_zero_decibel_is_valid_where_missing_pixels_are_declared(tmp_path):
    values = decibel(6, 6)
    values[0], values[1] = 0, -99
    _, valid = whole(opened(write(tmp_path / "scene.tif", values, nodata=-99), DB))
    assert valid[0].all() and not valid[1].any() and valid[2:].all()


@pytest.mark.parametrize("kind", ["nan", "declared", "one band", "mask", "alpha", "alpha of floats", "zero"])
def test_valid_is_exact(tmp_path, kind):
    random = np.random.default_rng(1)
    expected = random.random((40, 50)) < 0.7
    if kind == "alpha":
        pixels = np.stack([random.integers(0, 256, (40, 50)), expected * 255]).astype(np.uint8)
        raster = opened(write(tmp_path / "scene.tif", pixels, alpha="YES"), DISPLAY)
    elif kind == "alpha of floats":
        pixels = np.stack([*decibel(2, 40, 50), expected]).astype(np.float32)
        scene = write(tmp_path / "scene.tif", pixels, photometric="minisblack")
        with rasterio.open(scene, "r+") as file:
            file.colorinterp = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]
        raster = opened(scene, {"units": "db"} | TWO)
    elif kind == "mask":
        pixels = random.integers(0, 256, (40, 50), dtype=np.uint8)
        raster = opened(write(tmp_path / "scene.tif", pixels, mask=expected), DISPLAY)
    else:
        pixels = 10 ** (decibel(2, 40, 50) / 10)
        fill = {"nan": np.nan, "declared": 7.5, "one band": 7.5, "zero": 0}[kind]
        pixels[0 if kind == "one band" else slice(None), ~expected] = fill
        nodata = {"nodata": 7.5} if fill == 7.5 else {}
        raster = opened(write(tmp_path / "scene.tif", pixels, **nodata), {"units": "db"} | TWO, "power")
    sar, valid = whole(raster)
    np.testing.assert_array_equal(valid, expected)
    assert np.isfinite(sar).all() and sar.shape[1:] == valid.shape


@pytest.mark.parametrize("sar_transform", [DB, POWER, AMPLITUDE, DISPLAY], ids=lambda it: it["units"])
@pytest.mark.parametrize("fill", [np.nan, -9999.0, 0.0])
def test_a_scene_without_a_valid_pixel_opens_as_all_masked(tmp_path, sar_transform, fill):
    scene = write(tmp_path / "scene.tif", np.full((90, 80), fill, np.float32), nodata=fill)
    for units in (None, sar_transform["units"]):
        raster = opened(scene, sar_transform, units)
        sar, valid = raster.read(Box(10, 20, 50, 80))
        assert raster.units == sar_transform["units"] and not valid.any()
        assert sar.shape == (1, 40, 60) and (sar == -1).all()


@pytest.mark.parametrize("fill", [np.nan, 0, -9999])
def test_units_are_found_in_pixels_between_the_sampled_windows(tmp_path, fill):
    pixels = np.full((1100, 1500), fill, np.float32)
    pixels[650:656, 710:720] = decibel(6, 10)
    raster = opened(write(tmp_path / "scene.tif", pixels), DB)
    first = sample_boxes(Box(0, 0, *raster.size))[0]
    assert all(box.common(Box(650, 710, 656, 720)) is None for box in first) and len(first) == 64
    assert raster.units == "db" and raster.read(Box(640, 690, 670, 730))[1].sum() == 60


def test_power_that_noise_removal_left_negative_is_dark_and_valid(tmp_path):
    power = np.full((10, 10), 0.1, np.float32)
    power[:3] = -0.001  # over water a window can hold nothing else
    scene = write(tmp_path / "scene.tif", power)
    for sar_transform in (DB, POWER, AMPLITUDE):
        raster = opened(scene, sar_transform, "power")
        sar, valid = raster.read(Box(0, 0, 3, 10))
        assert valid.all() and (sar == -1).all()
        np.testing.assert_allclose(raster.read(Box(3, 0, 10, 10))[0], 1 / 3, atol=1e-6)


# bands


def test_bands_are_found_by_description():
    choose = lambda names, wanted, asked=None: choose_bands(  # noqa: E731
        Path("scene.tif"), len(names), names, {"channels": [0, 1], "bands": wanted}, asked
    )
    assert choose(("VH", "VV"), ["VV", "VH"]) == [2, 1]
    assert choose(("Sigma0_VH_db", "Sigma0_VV_db", "angle"), ["VV", "VH"]) == [2, 1]
    assert choose(("vv", "vh"), ["VV", "VH"]) == [1, 2]
    assert choose(("VV", "VH", "VV/VH"), ["VV", "VH"]) == [1, 2]
    assert choose(("a", "b", "c"), ["VV", "VH"], ["C", "a"]) == [3, 1]
    assert choose(("VV", "VH", None), ["VV", "VH"], ["3", "vv"]) == [3, 1]
    assert choose(("Sigma0_VV", "Gamma0_VV", "Sigma0_VH"), None, ["gamma0_vv", "VH"]) == [2, 3]
    assert choose((None, None), None) == [1, 2]
    for names, wanted, asked, found in (
        (("VV", "HV"), ["VV", "VH"], None, "no band VH, which this model was trained on"),
        (("VV_spring", "VV_autumn", "VH"), ["VV", "VH"], None, "2 of them are VV"),
        (("VV", "VV"), None, ["VV", "VV"], "2 of them are VV"),
        ((None, None), ["VV", "VH"], None, "say which"),
        ((None, None, None), None, None, "has 3 bands"),
        ((None,), None, None, r"has 1 band \("),
        (("VV", "VH"), None, ["VV"], "names 1"),
        (("VV", "VH"), None, ["VV", "HH"], "no band HH"),
        (("VV", "VH"), None, ["0", "1"], "no band 0"),
        (("VV", "VH"), None, ["1", "3"], "no band 3"),
        (("VV", "VH"), None, ["1", "-1"], "no band -1"),
    ):
        with pytest.raises(ValueError, match=rf"scene\.tif.*{found}"):
            choose(names, wanted, asked)


def test_polarisations_in_descriptions():
    expected = {"VV": "VV", "Sigma0_VH_db": "VH", "hh": "HH", "S1_hv-2020": "HV", "VV/VH": None, "ratio_VV_VH": None}
    expected |= {"": None, "NAVVY": None, "VV mean of VV": "VV"}
    assert {text: polarisation(text) for text in expected} == expected and polarisation(None) is None


def test_chosen_bands_are_read_in_the_order_of_the_model(tmp_path):
    values = decibel(3, 9, 9)
    scene = write(tmp_path / "scene.tif", values, names=("VH", "Sigma0_VV", "angle"))
    straight = whole(opened(write(tmp_path / "two.tif", values[[1, 0]]), {"units": "db"} | TWO))[0]
    by_model = opened(scene, {"units": "db", "bands": ["VV", "VH"]} | TWO)
    np.testing.assert_array_equal(whole(by_model)[0], straight)
    assert by_model.polarisations == ["VV", "VH"]
    for bands in (["VV", "VH"], ["2", "1"], ["sigma0_vv", "1"]):
        np.testing.assert_array_equal(whole(opened(scene, {"units": "db"} | TWO, bands=bands))[0], straight)
    for bands in (["VH", "VH"], ["1", "1"], ["1", "VH"]):
        with pytest.raises(ValueError, match=r"scene\.tif has 3 bands .* names one of them twice"):
            opened(scene, {"units": "db"} | TWO, bands=bands)
    with pytest.raises(ValueError, match="this model reads VV, VH, but `bands` names them in another order"):
        opened(scene, {"units": "db", "bands": ["VV", "VH"]} | TWO, bands=["1", "2"])


# the ground


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (from_origin(500_000, 4_000_000, 10, 10), (-400_000, 50_000)),
        (from_origin(500_005, 4_000_005, 10, 10), (-400_000, 50_001)),  # half a pixel, rounded one way everywhere
        (from_origin(-30, -70, 10, 10), (7, -3)),
        (from_origin(620048.241204, 4830114.70107, 20, 20), (-241506, 31002)),
        (from_origin(2_000_000 / 0.3048, 900_000 / 0.3048, 32.80839895013123, 32.80839895013123), (-90_000, 200_000)),
        (from_origin(-3, 36, 1e-4, 1e-4), (-360_000, -30_000)),
        (Affine(10, 0, 500_000, 0, 10, 3_000_000), (300_000, 50_000)),  # south up
        (Affine(8, 6, 500_000, 6, -8, 4_000_000), (0, 0)),  # rotated
        (Affine.identity(), (0, 0)),
    ],
)
def test_origin_counts_pixels_and_moves_with_a_crop(tmp_path, grid, expected):
    pixels = np.ones((6, 8), np.uint8)
    raster = opened(write(tmp_path / "scene.tif", pixels, transform=grid), DISPLAY)
    assert raster.origin == expected and raster.size == (6, 8)
    if not grid.is_identity:
        assert raster.place == {"crs": rasterio.CRS.from_epsg(32631), "transform": grid}
    if grid.b or grid.is_identity:
        return
    for row, column in ((1, 1), (7, 3), (12345, 54321), (-90, -1000)):
        crop = write(tmp_path / "crop.tif", pixels, transform=grid @ Affine.translation(column, row))
        assert opened(crop, DISPLAY).origin == (expected[0] + row, expected[1] + column)


def test_places_without_a_transform(tmp_path):
    pixels, none = np.ones((6, 8), np.uint8), {"crs": None, "transform": None}
    bare = opened(write(tmp_path / "bare.tif", pixels, **none), DISPLAY)
    assert bare.place == {} and bare.origin == (0, 0)
    corners = [GroundControlPoint(r, c, 3 + c / 1e4, 36 - r / 1e4) for r in (0, 6) for c in (0, 8)]
    points = write(tmp_path / "gcps.tif", pixels, **none | {"gcps": corners, "crs": "EPSG:4326"})
    raster = opened(points, DISPLAY)
    assert raster.origin == (0, 0) and raster.place["crs"] == "EPSG:4326" and "transform" not in raster.place
    assert [(g.row, g.col, g.x, g.y) for g in raster.place["gcps"]] == [(g.row, g.col, g.x, g.y) for g in corners]
    no_crs = opened(write(tmp_path / "no_crs.tif", pixels, crs=None), DISPLAY)
    assert no_crs.place == {"crs": None, "transform": UTM["transform"]} and no_crs.origin == (-400_000, 50_000)


# warping


def lon_lat(row: float, column: float) -> tuple[float, float]:
    """A swath that is bent, as an orbit makes it: no affine transform reaches all of it."""
    return 3 + 1e-4 * column + 2e-6 * row + 1e-8 * column**2, 36.1 - 1e-4 * row - 2e-5 * column + 2e-8 * column * row


TARGETS = [(30, 40), (100, 150), (190, 280), (45, 250)]


@pytest.mark.parametrize("resolution", [None, 10, 7.5, 20])
@pytest.mark.parametrize("kind", ["gcps", "transform"])
@pytest.mark.parametrize("units", ["db", "display"])
def test_a_target_ends_where_it_stands_after_warping(tmp_path, resolution, kind, units):
    pixels = np.full((220, 300), -20, np.float32) if units == "db" else np.full((220, 300), 40, np.uint8)
    for row, column in TARGETS:
        pixels[row - 1 : row + 2, column - 1 : column + 2] = 0.5 if units == "db" else 255
    if kind == "gcps":
        gcps = [GroundControlPoint(r, c, *lon_lat(r, c)) for r in range(0, 221, 20) for c in range(0, 301, 20)]
        scene = write(tmp_path / "scene.tif", pixels, gcps=gcps, crs="EPSG:4326", transform=None)
        places = [lon_lat(row + 0.5, column + 0.5) for row, column in TARGETS]
        x, y = to_crs("EPSG:4326", "EPSG:32630", *zip(*places, strict=True))
    else:
        scene = write(tmp_path / "scene.tif", pixels)
        places = [UTM["transform"] @ (column + 0.5, row + 0.5) for row, column in TARGETS]
        x, y = to_crs("EPSG:32631", "EPSG:32630", *zip(*places, strict=True))
    sar_transform = (DISPLAY if units == "display" else DB) | {"bands": ["VV"]}
    raster = opened(scene, sar_transform, crs="EPSG:32630", resolution=resolution)
    sar, valid = whole(raster)
    place = raster.place
    assert set(place) == {"crs", "transform"} and place["crs"] == "EPSG:32630" and raster.units == units
    if resolution:
        assert (place["transform"].a, place["transform"].e) == (resolution, -resolution)
    assert not valid[[0, 0, -1, -1], [0, -1, 0, -1]].all() and 0.5 < valid.mean() < 0.999
    background = (-20 + 30) / 15 - 1 if units == "db" else 40 / 255 * 2 - 1
    side = 6 if resolution == 20 else 10
    for column, row in (~place["transform"] @ point for point in zip(x, y, strict=True)):
        top, left = int(row) - side, int(column) - side
        near = np.clip(sar[0, top : top + 2 * side + 1, left : left + 2 * side + 1] - background, 0, None)
        near[near < 0.02] = 0
        rows, columns = np.indices(near.shape) + 0.5
        found = top + (rows * near).sum() / near.sum(), left + (columns * near).sum() / near.sum()
        np.testing.assert_allclose(found, (row, column), atol=0.5)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [("float32", {}), ("float32", {"nodata": -99}), ("float32", {"nodata": np.nan}), ("int16", {}), ("uint8", {}),
     ("float32", {"mask": True}), ("uint8", {"mask": True}), ("uint8", {"nodata": 255}), ("uint16", {"mask": True})],
)  # fmt: skip
@pytest.mark.parametrize("resolution", [None, 15])
def test_missing_pixels_stay_missing_and_leave_no_rim(tmp_path, dtype, options, resolution):
    options = dict(options)
    pixels, hole = np.full((2, 120, 160), -12.0), np.zeros((120, 160), bool)
    hole[40:70, 50:90] = hole[:, 140:] = True
    scaling = (0.01, 0.0) if dtype == "int16" else None
    if dtype == "int16":
        pixels = pixels * 100
    elif dtype != "float32":
        pixels = np.full((2, 120, 160), 100 if dtype == "uint8" else 25700)
    if options.pop("mask", False):
        options["mask"] = ~hole
    elif dtype == "uint8" and not options:
        hole[:] = False
    pixels[0, hole] = options.get("nodata", 0)
    pixels[1, hole] = options.get("nodata", 0)
    units = "db" if dtype in ("float32", "int16") else "display"
    scene = write(tmp_path / "scene.tif", pixels.astype(dtype), names=("VH", "VV"), scaling=scaling, **options)
    sar_transform = {"units": units, "channels": [0, 1], "bands": ["VV", "VH"]}
    raster = opened(scene, sar_transform, units, crs="EPSG:32630", resolution=resolution)
    sar, valid = whole(raster)
    assert raster.polarisations == ["VV", "VH"]
    expected = {"uint8": 100 / 255 * 2 - 1, "uint16": 100 / 255 * 2 - 1}.get(dtype, (-12 + 30) / 15 - 1)
    rim = valid & (np.abs(sar - expected) > 0.01).any(axis=0)
    if dtype == "int16":  # undeclared zeros of scaled integers are interpolated before they are known
        assert rim.mean() < 0.03
    else:
        assert not rim.any()
    grid = raster.place["transform"]
    rows, columns = np.indices(valid.shape) + 0.5
    x, y = grid @ (columns.ravel(), rows.ravel())
    x, y = to_crs("EPSG:32630", "EPSG:32631", x, y)
    columns, rows = np.floor(~UTM["transform"] @ (np.array(x), np.array(y))).astype(int)
    inside = (rows >= 0) & (rows < 120) & (columns >= 0) & (columns < 160)
    expected = np.zeros(rows.shape, bool)
    expected[inside] = ~hole[rows[inside], columns[inside]]
    border = (expected.reshape(valid.shape) != valid).mean()
    assert border < 0.03 and not valid[0, 0]


def test_warping_that_cannot_be(tmp_path):
    scene = write(tmp_path / "scene.tif", np.ones((8, 8), np.uint8))
    bare = write(tmp_path / "bare.tif", np.ones((8, 8), np.uint8), crs=None, transform=None)
    for crs in ("banana", "EPSG:99999"):
        with pytest.raises(ValueError, match=rf"crs is '{crs}'"):
            opened(scene, DISPLAY, crs=crs)
    for resolution in (0, -10, float("nan")):
        with pytest.raises(ValueError, match=f"resolution is {resolution}"):
            opened(scene, DISPLAY, resolution=resolution)
    with pytest.raises(ValueError, match=r"bare\.tif: neither a coordinate system"):
        opened(bare, DISPLAY, crs="EPSG:32631")


def test_resolution_alone_keeps_the_coordinate_system_and_tags(tmp_path):
    scene = write(tmp_path / "scene.tif", np.full((40, 60), 9, np.uint8))
    with rasterio.open(scene, "r+") as file:
        file.update_tags(PRODUCT="S1A")
    raster = opened(scene, DISPLAY, resolution=20)
    assert raster.tags["PRODUCT"] == "S1A"
    assert raster.size == (20, 30) and raster.place == {"crs": "EPSG:32631", "transform": from_origin(5e5, 4e6, 20, 20)}
    assert whole(raster)[1].all() and raster.origin == (-200_000, 25_000)


# files


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}])
@pytest.mark.parametrize("kept", [0, 3, 100, 0.3, 0.7, 0.99])
def test_truncated_files_are_named(tmp_path, layout, kept):
    path = write(tmp_path / "cut.tif", decibel(300, 200), **layout)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: kept if isinstance(kept, int) else int(kept * size)])
    with pytest.raises(OSError, match=r"cut\.tif: not a readable GeoTIFF"):
        whole(opened(path, DB, "db"))


def test_other_formats_are_refused(tmp_path):
    scene = write(tmp_path / "scene.tif", np.ones((8, 8), np.uint8))
    PIL.Image.new("L", (8, 8)).save(tmp_path / "png.tif", "PNG")
    with rasterio.open(scene) as raster, rasterio.vrt.WarpedVRT(raster) as vrt:
        (tmp_path / "vrt.tif").write_text(vrt.tags(ns="xml:VRT")["xml:VRT"])
    (tmp_path / "folder.tif").mkdir()
    for name in ("png", "vrt", "folder", "absent"):
        with pytest.raises(OSError, match=rf"{name}\.tif: not a readable GeoTIFF"):
            opened(tmp_path / f"{name}.tif", DISPLAY)


# windows


@pytest.fixture(scope="module")
def rasters(tmp_path_factory) -> dict:
    """A scene with holes, read as it is, filtered, and warped; with all of it in one piece."""
    values = decibel(2, 150, 170)
    values[:, 60:75, 20:60] = np.nan
    values[0, 100, 100] = np.nan
    folder = tmp_path_factory.mktemp("scenes")
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    scene = write(folder / "scene.tif", 10 ** (values / 10), **layout)
    model = {"units": "db"} | TWO
    made = {
        "plain": opened(scene, model, "power"),
        "despeckled": opened(scene, model, "power", despeckle=True),
        "warped": opened(scene, model, "power", crs="EPSG:32630", resolution=12),
    }
    return {name: (raster, *whole(raster)) for name, raster in made.items()}


@settings(max_examples=25)
@given(st.sampled_from(["plain", "despeckled", "warped"]), st.tuples(*[st.floats(0, 1)] * 2), st.integers(1, 150))
def test_windows_equal_the_whole(rasters, name, corner, side):
    raster, sar, valid = rasters[name]
    top, left = (int(part * (length - 1)) for part, length in zip(corner, raster.size, strict=True))
    box = Box(top, left, min(top + side, raster.size[0]), min(left + side, raster.size[1]))
    part, good = raster.read(box)
    assert part.shape == (3, *box.size) and good.shape == box.size
    np.testing.assert_array_equal(good, valid[box.slices()])
    sure = good
    if name == "despeckled":  # near a hole, what it is filled with depends on the window
        rows, columns = np.nonzero(~valid)
        near = np.zeros(valid.shape, bool)
        for row, column in zip(rows, columns, strict=True):
            near[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4] = True
        sure = good & ~near[box.slices()]
    np.testing.assert_allclose(part[:, sure], sar[box.slices()][:, sure], rtol=0, atol=1e-6)


def test_speckle_is_filtered_in_power_whatever_the_units(tmp_path):
    power = np.random.default_rng(0).gamma(4.4, 0.1 / 4.4, (2, 60, 70)).astype(np.float32)
    filtered = 10 * np.log10(refined_lee(power.astype(np.float64)))
    picked = np.stack([filtered[0], filtered[1], filtered[0] - filtered[1]])
    low, high = np.array(TWO["range"]).T[:, :, None, None]
    expected = ((picked - low) / (high - low)).clip(0, 1) * 2 - 1
    forms = {"power": power, "amplitude": np.sqrt(power), "db": 10 * np.log10(power)}
    for units, values in forms.items():
        scene = write(tmp_path / f"{units}.tif", values)
        for model in ("db", "power", "amplitude"):
            sar, _ = whole(opened(scene, {"units": model} | TWO, units, despeckle=True))
            np.testing.assert_allclose(sar, expected, atol=1e-4)
    with pytest.raises(ValueError, match="speckle"):
        opened(write(tmp_path / "8.tif", np.ones((8, 8), np.uint8)), DISPLAY, despeckle=True)


def test_a_filtered_window_of_missing_pixels_has_its_size(tmp_path):
    values = decibel(50, 50)
    values[:, 20:] = np.nan
    raster = opened(write(tmp_path / "scene.tif", values), DB, despeckle=True)
    for box in (Box(10, 30, 40, 45), Box(10, 21, 40, 45)):  # the second's surroundings hold valid pixels
        sar, valid = raster.read(box)
        assert sar.shape == (1, *box.size) and valid.shape == box.size and not valid.any()


# real scenes

real = pytest.mark.skipif(not SCENES.is_dir(), reason="the real scenes are not at hand")


@real
def test_real_scenes_are_found_to_be_decibel_and_valid():
    found = sorted(SCENES.glob("*_db.tif"))
    assert found
    for path in found:
        raster = opened(path, DB | {"bands": ["VV"]})
        sar, valid = whole(raster)
        with rasterio.open(path) as file:
            values, mask = file.read(1), file.read_masks(1) > 0
            assert file.transform == raster.place["transform"] and raster.polarisations == ["VV"]
        assert raster.units == "db"
        np.testing.assert_array_equal(valid, mask & np.isfinite(values))
        np.testing.assert_allclose(sar[0, valid], (values[valid] / 15 + 1).clip(-1, 1), atol=1e-5)


@real
def test_real_scenes_that_no_backscatter_model_reads():
    for path in sorted(SCENES.glob("*_eo.tif")):
        with pytest.raises(ValueError, match=path.name):
            opened(path, DB)
        with pytest.raises(ValueError, match="display|not certain"):
            opened(path, DB, bands=["1"])


@real
def test_real_scene_warped_and_back():
    path = SCENES / "s1_grd_gamma0_vv_db_utm31n.tif"
    raster = opened(path, DB, crs="EPSG:4326")
    sar, valid = whole(raster)
    plain, mask = whole(opened(path, DB))
    with rasterio.open(path) as file:
        points = [(60, 80), (110, 130), (150, 200)]
        lon, lat = to_crs(file.crs, "EPSG:4326", *zip(*(file.xy(*point) for point in points), strict=True))
    for point, x, y in zip(points, lon, lat, strict=True):
        column, row = map(int, ~raster.place["transform"] @ (x, y))
        near = plain[0, point[0] - 1 : point[0] + 2, point[1] - 1 : point[1] + 2]
        assert near.min() - 1e-3 <= sar[0, row, column] <= near.max() + 1e-3
    assert abs(valid.mean() - mask.mean()) < 0.1
