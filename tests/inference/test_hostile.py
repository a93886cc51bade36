"""Hostile scenes, sidecars, names, lists, items and options: each ends in a correct result, or an error of one line."""

import json
import math
import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from c_diffset.inference.inputs import find_inputs, plan_outputs
from c_diffset.inference.options import ReadOptions, SceneOptions
from c_diffset.inference.raster import SarRaster
from c_diffset.inference.record import Manifest, settings_in
from c_diffset.inference.scene import translate_scene
from c_diffset.inference.stac import describe_place, read_item
from c_diffset.inference.tiles import Box
from c_diffset.inference.translate import translate
from c_diffset.sar.safe import calibrate_safe, read_calibration
from tests.conftest import copying_pipe
from tests.helpers import DISPLAY, UTM, write_raster
from tests.hostile import outcome
from tests.sar.test_safe import calibration_of, make_safe

EVERY = {"derandomize": True, "suppress_health_check": list(HealthCheck)}
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-320, 1e-9, 1e38, 1e300, -1e300, math.inf, -math.inf, math.nan]),
    st.floats(),
)
WORDS = st.sampled_from(
    ["../../etc/passwd", "/etc/passwd", "http://127.0.0.1:9/a.tif", "/vsicurl/http://127.0.0.1:9/a.tif", "zip:a.tif"]
    + [
        "GTIFF_DIR:1:a.tif",
        "*",
        "**",
        "[",
        "[]",
        "**/*.tif",
        "~",
        "-",
        "a\0b",
        "a\nb.tif",
        "#",
        "\u202e.tif",
        "a" * 300,
    ]
    + [
        ".",
        "..",
        "",
        " ",
        "loop/**/*.tif",
        "loop",
        "**/loop/**",
        "broken.tif",
        "folder.tif",
        "a.tif",
        "list.txt",
        "**.tif",
    ]
)
NAMES = st.one_of(WORDS, st.text(max_size=20))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A folder with links that lead in circles and nowhere, and a scene."""
    root = tmp_path_factory.mktemp("tree")
    write_raster(root / "a.tif", np.full((9, 9), 9, np.uint8), **UTM)
    (root / "deep/er").mkdir(parents=True)
    for link, target in (("loop", root), ("deep/up", root), ("deep/er/up", root), ("self.tif", "self.tif")):
        (root / link).symlink_to(target)
    (root / "broken.tif").symlink_to(root / "absent")
    (root / "folder.tif").mkdir()
    (root / "line\nbreak.tif").write_bytes(b"II*\0")
    return root


def read_whole(path: Path, options: ReadOptions | None = None):
    """A scene from end to end, as far as it is small; what is read has to be what a model can see."""
    raster = SarRaster(path, DISPLAY, options)
    with suppress(ValueError):
        describe_place(path, raster.raster)
    box = Box(0, 0, min(raster.size[0], 300), min(raster.size[1], 300))
    sar, valid = raster.read(box)
    assert sar.shape == (1, *box.size) and valid.shape == box.size
    assert np.isfinite(sar).all() and abs(sar).max() <= 1
    assert all(abs(position) < 2**53 for position in raster.origin)
    return raster.size


@settings(max_examples=220, **EVERY)
@given(data=st.data())
def test_bytes_of_a_scene(folder, data):
    layout = data.draw(
        st.sampled_from([{}, {"compress": "deflate"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
    )
    pixels = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
    (folder / "bytes.tif").unlink(missing_ok=True)
    path = write_raster(folder / "bytes.tif", pixels, nodata=0, **layout, **UTM)
    content = bytearray(path.read_bytes())
    head = st.integers(0, min(600, len(content) - 1))  # where the directory of tags is
    for place in data.draw(st.lists(st.one_of(head, st.integers(0, len(content) - 1)), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    outcome(read_whole, path, ReadOptions(max_pixels=10**6))


@settings(max_examples=120, **EVERY)
@given(
    st.lists(NUMBERS, min_size=6, max_size=6), NUMBERS, st.tuples(NUMBERS, NUMBERS),
    st.sampled_from(["uint8", "int16", "float32", "float64", "complex_int16", "complex64", "int8", "uint32", "uint64"]),
    st.sampled_from([None, "display", "db", "power", "amplitude"]), st.booleans(),
)  # fmt: skip
def test_tags_of_a_scene(folder, transform, nodata, scaling, dtype, units, warped):
    pixels = np.ones((12, 15), np.complex64 if "complex" in dtype else dtype)
    options = {"dtype": dtype, "crs": "EPSG:32631", "transform": Affine(*transform)}
    with suppress(Exception):  # what rasterio does not even write
        path = write_raster(folder / "tags.tif", pixels, scaling=scaling, **options)
        with suppress(Exception), rasterio.open(path, "r+") as raster:
            raster.nodata = nodata
    outcome(read_whole, path, ReadOptions(units=units, crs="EPSG:4326" if warped else None, max_pixels=10**5))


@settings(max_examples=60, **EVERY)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=6), st.booleans())
def test_ground_control_points(folder, points, warped):
    gcps = [GroundControlPoint(*point, 0) for point in points]
    path = write_raster(folder / "points.tif", np.full((12, 15), 7, np.uint8), gcps=gcps, crs="EPSG:4326")
    outcome(read_whole, path, ReadOptions(crs="EPSG:32631" if warped else None, max_pixels=10**5))


@settings(max_examples=80, **EVERY)
@given(
    crs=st.one_of(st.none(), NAMES, st.integers(0, 99999).map("EPSG:{}".format), st.just("+proj=laea +lat_0=1e300")),
    resolution=st.one_of(st.none(), NUMBERS, st.floats(1e-12, 1e12)),
    units=st.sampled_from([None, "display", "db", "banana"]),
    bands=st.sampled_from([None, ["1"], ["VV"], ["0"], ["-1"], ["9" * 99], [], ["1", "1"], ["\n"]]),
    despeckle=st.booleans(),
    part=st.one_of(
        st.just({}),
        st.fixed_dictionaries({"window": st.lists(st.integers(-(2**70), 2**70) | st.integers(0, 30), max_size=5)}),
        st.fixed_dictionaries(
            {
                "bbox": st.lists(
                    NUMBERS | st.floats(499_900, 500_400) | st.floats(3_999_700, 4_000_100), min_size=3, max_size=5
                ),
                "bbox_crs": st.sampled_from([None, "EPSG:4326", "EPSG:3857", "banana"]),
            }
        ),
    ),
)
def test_options_of_reading(folder, crs, resolution, part, **options):
    path = folder / "options.tif"
    if not path.exists():
        write_raster(path, np.full((20, 30), 9, np.uint8), **UTM)
    outcome(read_whole, path, ReadOptions(crs=crs, resolution=resolution, max_pixels=10**5, **part, **options))


@settings(max_examples=12, **EVERY)
@given(
    st.sampled_from([None, 1, 3, 0, -1, 10**9]), st.sampled_from([None, -8, 0, 8, 16, 17, 64, 2**40]),
    st.sampled_from([None, -8, 0, 8, 7, 2**40]), st.sampled_from([1, 4, 0, 10**9]), st.sampled_from([0, 2**80, -1]),
)  # fmt: skip
def test_options_of_translating(folder, steps, tile_size, overlap, batch_size, seed):
    path = folder / "translate.tif"
    if not path.exists():
        write_raster(path, np.full((20, 30), 9, np.uint8), **UTM)
    options = SceneOptions(steps, seed, tile_size, overlap, batch_size)
    outcome(translate_scene, path, copying_pipe(), folder / "out", options, confidence=False)


@settings(max_examples=60, **EVERY)
@given(st.sampled_from([".msk", ".MSK", ".ovr", ".aux.xml", ".AUX.XML", ".tfw"]), st.binary(max_size=80), st.booleans())
def test_files_beside_a_scene(tmp_path_factory, suffix, content, is_tiff):
    folder = tmp_path_factory.mktemp("beside")
    path = write_raster(folder / "scene.tif", np.full((20, 30), 9, np.uint8), **UTM)
    beside = path.with_suffix(suffix) if suffix == ".tfw" else Path(f"{path}{suffix}")
    if not is_tiff:
        beside.write_bytes(content)
    else:
        write_raster(beside, np.full((len(content) or 1, 30), 255, np.uint8))
    assert outcome(read_whole, path) == (20, 30)


@settings(max_examples=150, **EVERY)
@given(st.lists(NAMES, max_size=4), st.sampled_from(["utf-8", "utf-16", "latin-1"]))
def test_lists_and_patterns(tree, names, encoding):
    here = os.getcwd()
    os.chdir(tree)
    try:
        (tree / "list.txt").write_bytes("\n".join(names).encode(encoding, "replace"))
        for inputs in (names, ["list.txt"]):
            found = outcome(find_inputs, inputs, tree / "out")
            if not isinstance(found, str):
                assert all(path.exists() for path in found)
                outcome(plan_outputs, found, tree / "out", True, True)
    finally:
        os.chdir(here)


@settings(max_examples=60, **EVERY)
@given(NAMES, st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, NAMES), lambda x: st.lists(x, max_size=3)))
def test_items(tree, href, odd):
    item = {"type": "Feature", "stac_version": "1.1.0", "assets": {"vv": {"href": f"{href}.tif", "roles": ["data"]}}}
    for content in (item, item | {"assets": {"vv": {"href": odd}}}, item | {"assets": odd}, odd):
        (tree / "item.json").write_text(json.dumps(content))
        found = outcome(read_item, tree / "item.json")
        assert isinstance(found, str) or found.resolve().is_relative_to(tree)


@settings(max_examples=80, **EVERY)
@given(data=st.data())
def test_annotations_of_products(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "product.SAFE"
    product = folder if folder.exists() else make_safe(folder, ("VV",))
    path = calibration_of(product)
    original = path.read_text()
    text = original
    entity = '<!DOCTYPE a [<!ENTITY b "1 2"><!ENTITY c SYSTEM "file:///etc/passwd">]>'
    odd = st.sampled_from(
        ["1e-320", "1e50", "inf", "nan", "-7", "", "9" * 400, "<x/>", "&c;", entity, "\0", "]]>", "0x1p3"]
    )
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        text = text[:place] + data.draw(odd) + text[place + data.draw(st.integers(0, 9)) :]
    try:
        path.write_text(text)
        table = outcome(read_calibration, path)
        if not isinstance(table, str):
            outcome(calibrate_safe, product, folder.parent / "sigma.tif")
            assert all(1 <= values.min() <= values.max() <= 1e6 for _, values in table.vectors)
    finally:
        path.write_text(original)


@settings(max_examples=60, **EVERY)
@given(st.binary(max_size=60), st.recursive(st.one_of(NUMBERS, NAMES), lambda x: st.dictionaries(NAMES, x, max_size=3)))
def test_manifests_and_settings(folder, content, odd):
    path = folder / "manifest.jsonl"
    path.write_bytes(
        content + b"\n" + json.dumps({"input": odd, "outputs": odd, "settings": odd}).encode() + b"\n" + content
    )
    outcome(Manifest, path)
    for name in ("a.png", "a.jpg", "a.tif"):
        (folder / name).write_bytes(content)
        assert settings_in(folder / name) is None


@pytest.mark.parametrize("name", ["inputs", "model", "output", "vae", "units", "crs", "bands", "device", "revision"])
@pytest.mark.parametrize("value", ["", " "])
def test_empty_strings_are_refused(tree, tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tree)
    arguments = {"inputs": ["a.tif"], "model": "model", "output": str(tmp_path / "out")}
    arguments |= {name: [value] if name in ("inputs", "bands") else value}
    with pytest.raises(ValueError, match=f"{name} is, or holds, an empty string"):
        translate(**arguments)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="empty list"):
        translate([], "model", str(tmp_path / "out"))


def test_links_that_lead_in_circles(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert find_inputs(["**/a*.tif"]) == [Path("a.tif")]
    with pytest.raises(FileNotFoundError):
        find_inputs(["deep/**/*.tif"])


@pytest.mark.parametrize("options", [{}, {"resolution": 1e-9}, {"crs": "EPSG:4326", "resolution": 1e-12}])
def test_scenes_without_end_are_refused_before_they_begin(tmp_path, options):
    side = 20 if options else 100_000
    size = {"width": side, "height": side, "count": 1, "dtype": "uint8", "sparse_ok": True, "tiled": True}
    with rasterio.open(tmp_path / "large.tif", "w", driver="GTiff", **size, **UTM):
        pass
    with pytest.raises(ValueError, match=r"large\.tif: .* pixels are more than max_pixels, 2000000000"):
        translate_scene(
            tmp_path / "large.tif", copying_pipe(), tmp_path / "out", SceneOptions(**options), confidence=False
        )
    assert not list((tmp_path / "out").iterdir())


def test_a_resolution_that_leaves_one_pixel(tmp_path):
    path = write_raster(tmp_path / "scene.tif", np.full((20, 30), 9, np.uint8), **UTM)
    with pytest.raises(ValueError, match=r"resolution is 1000000000.0, larger than the whole scene \(300 x 200"):
        SarRaster(path, DISPLAY, ReadOptions(resolution=1e9))


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64", "complex128"])
def test_complex_scenes(tmp_path, dtype):
    path = write_raster(tmp_path / "slc.tif", np.ones((9, 9), np.complex64), **{"dtype": dtype}, **UTM)
    with pytest.raises(ValueError, match=r"slc\.tif: complex pixels; expected detected ones"):
        SarRaster(path, DISPLAY)


@pytest.mark.parametrize("scaling", [(1e-320, 0.0), (0.0, 1.0), (math.inf, 0.0), (1e300, 0.0), (1.0, math.nan)])
def test_scales_that_lose_every_value(tmp_path, scaling):
    path = write_raster(tmp_path / "scene.tif", np.full((9, 9), 0.5, np.float32), scaling=scaling, **UTM)
    with pytest.raises(ValueError, match="scales .* expected finite ones, scales not 0"):
        SarRaster(path, DISPLAY, ReadOptions(units="display")).read(Box(0, 0, 9, 9))


def test_an_item_that_cannot_be_written_is_said_before_the_work(tmp_path):
    flat = {"crs": "EPSG:32631", "transform": Affine(10, 0, math.inf, 0, -10, 4e6)}
    path = write_raster(tmp_path / "scene.tif", np.full((20, 30), 9, np.uint8), **flat)
    with pytest.raises(ValueError, match=r"scene\.tif: no STAC item can name its place"):
        translate_scene(path, copying_pipe(), tmp_path / "out", confidence=False, stac=True)
    assert not list((tmp_path / "out").iterdir())
    assert translate_scene(path, copying_pipe(), tmp_path / "out", confidence=False).eo.exists()


def test_a_lock_that_is_a_link_is_left_alone(tmp_path):
    path = write_raster(tmp_path / "scene.tif", np.full((20, 30), 9, np.uint8), **UTM)
    (tmp_path / "precious").write_text("stays")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.scene.tif.work.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="is a link"):
        translate_scene(path, copying_pipe(), tmp_path / "out", confidence=False)
    assert (tmp_path / "precious").read_text() == "stays"
    (tmp_path / "out/.scene.tif.work.lock").unlink()
    (tmp_path / "out/.scene.tif.work").mkdir()
    (tmp_path / "out/.scene.tif.work/mine").write_text("stays")
    with pytest.raises(OSError, match="was not made by c_diffset"):
        translate_scene(path, copying_pipe(), tmp_path / "out", confidence=False)
    assert (tmp_path / "out/.scene.tif.work/mine").read_text() == "stays"
