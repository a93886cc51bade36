"""STAC items: the raster that one names, and the item of a translated scene."""

import json
from datetime import datetime, timedelta, timezone

import numpy as np
import pystac
import pytest
import rasterio
from pystac.extensions.projection import ProjectionExtension
from pystac.validation import validate_dict
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform, transform_bounds

from c_diffset import __version__
from c_diffset.inference.stac import is_item, read_item, write_item

REFLECTANCE = {"units": "reflectance", "range": [0.0, 3000.0], "gamma": 1.0}
UTM = dict(crs="EPSG:32631", transform=from_origin(500_000, 4_000_000, 10, 10))


def write_raster(path, count=3, dtype="uint8", tags=None, gcps=None, scale=None, **place):
    """A raster of 20 rows and 30 columns."""
    with rasterio.open(path, "w", "GTiff", 30, 20, count, dtype=dtype, **place) as raster:
        raster.write(np.ones((count, 20, 30), dtype))
        raster.update_tags(**tags or {})
        if gcps:
            raster.gcps = gcps, "EPSG:4326"
        if scale:
            raster.scales = [scale]
    return path


@pytest.fixture
def described(tmp_path):
    """`described(confidence=None, bands=["VV"], **raster)`: the item of a raster, read and validated by pystac."""

    def describe(confidence=None, bands=("VV",), **raster) -> pystac.Item:
        eo = write_raster(tmp_path / "scene.tif", **raster)
        write_item(
            tmp_path / "scene.json", eo, confidence, {"steps": 4, "range": [-25.0, 5.0]}, list(bands), REFLECTANCE
        )
        validate_dict(json.loads((tmp_path / "scene.json").read_text()), extensions=[])  # the core; no network
        assert not list(tmp_path.glob(".*"))
        return pystac.Item.from_file(tmp_path / "scene.json")

    return describe


def test_an_item_says_what_the_image_is(described, tmp_path):
    confidence = write_raster(tmp_path / "scene_confidence.tif", 1, "uint16", scale=1 / 65535, nodata=0, **UTM)
    before = datetime.now(timezone.utc)  # noqa: UP017
    item = described(confidence, bands=["vv", "VH", "VV", "angle"], tags={"ACQUISITION_START": "2021-05-04"}, **UTM)
    assert item.id == "scene"
    for text in (item.properties["title"], item.properties["description"]):
        assert "synthetic" in text and "not an observation" in text
    assert item.properties["processing:software"] == {"c_diffset": __version__}
    assert item.properties["c_diffset:steps"] == 4 and item.properties["c_diffset:range"] == [-25.0, 5.0]
    assert item.properties["sar:polarizations"] == ["VV", "VH"]
    assert item.properties["c_diffset:eo_transform"] == REFLECTANCE
    assert "black stands for 0 and white for 3000 in reflectance" in item.properties["description"]
    for when in (item.common_metadata.created, pystac.utils.str_to_datetime(item.properties["processing:datetime"])):
        assert before - timedelta(seconds=1) <= when <= before + timedelta(minutes=5)

    projection = ProjectionExtension.ext(item)
    assert projection.code == "EPSG:32631" and projection.shape == [20, 30]
    assert projection.transform == [10, 0, 500_000, 0, -10, 4_000_000]

    eo, sure = item.assets["eo"], item.assets["confidence"]
    assert (eo.href, sure.href) == ("./scene.tif", "./scene_confidence.tif")
    assert eo.media_type == sure.media_type == pystac.MediaType.COG
    assert [band["eo:common_name"] for band in eo.extra_fields["bands"]] == ["red", "green", "blue"]
    assert eo.extra_fields["data_type"] == "uint8" and sure.extra_fields["data_type"] == "uint16"
    assert sure.extra_fields["raster:scale"] == pytest.approx(1 / 65535) and sure.extra_fields["nodata"] == 0
    with rasterio.open(eo.get_absolute_href()) as raster:
        assert raster.shape == (20, 30)


def test_only_the_extensions_that_have_fields_are_declared(described, tmp_path):
    def names(item):
        return {schema.split("/")[3] for schema in item.stac_extensions}

    assert names(described(**UTM)) == {"eo", "processing", "projection", "sar"}
    assert names(described(bands=["intensity"], **UTM)) == {"eo", "processing", "projection"}
    confidence = write_raster(tmp_path / "confidence.tif", 1, "uint16", scale=0.5, **UTM)
    assert names(described(confidence, bands=[], **UTM)) == {"eo", "processing", "projection", "raster"}


def test_geometry_and_bbox_are_those_of_the_raster(described):
    item = described(crs="EPSG:4326", transform=from_origin(10, 50, 0.1, 0.05))
    assert item.bbox == pytest.approx([10, 49, 13, 50])
    ring = {tuple(np.round(point, 6)) for point in item.geometry["coordinates"][0]}
    assert {(10, 50), (10, 49), (13, 49), (13, 50)} <= ring

    item = described(crs="EPSG:32631", transform=from_origin(400_000, 7_800_000, 5000, 5000))  # 150 x 100 km, far north
    assert item.bbox == pytest.approx(transform_bounds("EPSG:32631", "EPSG:4326", 4e5, 7.7e6, 5.5e5, 7.8e6), abs=1e-3)
    longitudes, latitudes = transform("EPSG:32631", "EPSG:4326", [4e5, 5.5e5], [7.7e6, 7.8e6])
    ring = {tuple(np.round(point, 6)) for point in item.geometry["coordinates"][0]}
    assert {tuple(np.round(point, 6)) for point in zip(longitudes, latitudes, strict=True)} <= ring


def test_the_box_of_a_turned_raster_is_not_that_of_its_grid(described):
    root = 0.5**0.5
    turned = Affine.from_gdal(10, 0.1 * root, -0.1 * root, 50, -0.1 * root, -0.1 * root)
    assert described(crs="EPSG:4326", transform=turned).bbox == pytest.approx(
        [10 - 2 * root, 50 - 5 * root, 10 + 3 * root, 50], abs=1e-6
    )


def test_a_scene_across_the_antimeridian_is_cut_there(described):
    item = described(crs="EPSG:32601", transform=from_origin(100_000, 1_200_000, 5000, 5000))
    west, south, east, north = item.bbox
    assert 179 < west < 180 and -180 < east < -179 and south < north
    assert item.geometry["type"] == "MultiPolygon"

    corners = [(0, 0, 179.5, 10), (0, 30, -179.0, 10), (20, 0, 179.5, 9), (20, 30, -179.0, 9)]
    item = described(gcps=[GroundControlPoint(*corner) for corner in corners])
    assert item.geometry["type"] == "MultiPolygon"
    assert item.bbox == pytest.approx([179.5, 9, -179, 10], abs=1e-3)


def test_ground_control_points_give_their_hull(described):
    hull = [(5.0, 52.0), (7.5, 52.4), (7.2, 50.9), (4.8, 50.5)]
    points = [(0, 0, *hull[0]), (0, 30, *hull[1]), (20, 30, *hull[2]), (20, 0, *hull[3]), (10, 15, 6.1, 51.4)]
    item = described(gcps=[GroundControlPoint(*point) for point in points])
    ring = item.geometry["coordinates"][0]
    assert ring[0] == ring[-1] and {tuple(np.round(point, 5)) for point in ring} == set(hull)
    assert item.bbox == pytest.approx([4.8, 50.5, 7.5, 52.4], abs=1e-5)
    assert item.properties["proj:code"] is None and "proj:transform" not in item.properties


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("place", [{}, {"crs": 'LOCAL_CS["a bench",UNIT["metre",1]]', "transform": UTM["transform"]}])
def test_a_raster_without_a_place_on_earth_has_no_geometry(described, place):
    item = described(**place)
    assert item.geometry is None and item.bbox is None
    assert item.properties["proj:shape"] == [20, 30] and item.properties["proj:code"] is None


def test_a_system_without_a_code_is_written_out(described):
    item = described(crs="+proj=laea +lat_0=47 +lon_0=11.3 +ellps=sphere", transform=from_origin(0, 0, 10, 10))
    assert item.properties["proj:code"] is None
    assert rasterio.CRS.from_wkt(item.properties["proj:wkt2"]).to_dict()["lat_0"] == 47
    assert item.bbox[0] == pytest.approx(11.3)


def test_the_time_is_that_of_the_acquisition(described):
    def when(**tags):
        return described(tags=tags, **UTM).datetime.replace(tzinfo=None)

    assert when(ACQUISITION_START="2020-03-01T05:34:12.5Z") == datetime(2020, 3, 1, 5, 34, 12, 500_000)
    assert when(ACQUISITION_START="2020-03-01T05:34:12+02:00") == datetime(2020, 3, 1, 3, 34, 12)
    assert when(ACQUISITION_START="2020-03-01") == datetime(2020, 3, 1)


@pytest.mark.parametrize("tags", [{}, {"ACQUISITION_START": "12:30"}, {"TIFFTAG_DATETIME": "2019:12:31 23:59:58"}])
def test_without_a_time_of_acquisition_it_is_that_of_processing_and_says_so(described, tags):
    item = described(tags=tags, **UTM)
    assert item.properties["datetime"] == item.properties["processing:datetime"]
    assert "time of acquisition is unknown" in item.properties["description"]


@pytest.fixture
def named(tmp_path):
    """`named(assets)`: an item file with those assets, in a folder where a.tif, b.TIFF and sub/c.tif lie."""
    folder = tmp_path / "item"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.tif", "b.TIFF", "sub/c.tif", "../outside.tif"):
        (folder / name).touch()

    def write(assets):
        item = {"type": "Feature", "stac_version": "1.0.0", "id": "x", "assets": assets}
        (folder / "item.json").write_text(json.dumps(item))
        return folder / "item.json"

    return write


def test_the_raster_of_an_item(named):
    folder = named({}).parent
    assert read_item(named({"vv": {"href": "./a.tif"}, "quick": {"href": "q.png", "roles": ["data"]}})).samefile(
        folder / "a.tif"
    )
    data = {"mask": {"href": "a.tif"}, "vv": {"href": "b.TIFF", "roles": ["data"]}}
    assert read_item(named(data)).samefile(folder / "b.TIFF")
    data["vh"] = {"href": "sub/c.tif", "roles": ["cloud-optimized", "data"]}
    assert read_item(named(data)).samefile(folder / "b.TIFF")
    assert read_item(named(dict(reversed(data.items())))).samefile(folder / "sub/c.tif")


def test_an_item_of_pystac_is_read(named, tmp_path):
    item = pystac.Item("x", None, None, datetime(2020, 1, 1), {})
    item.add_asset("vv", pystac.Asset("./a.tif", roles=["data"], media_type=pystac.MediaType.COG))
    path = named({})
    item.save_object(dest_href=str(path), include_self_link=False)
    assert read_item(path).samefile(path.parent / "a.tif")


def test_an_item_without_a_clear_raster_is_refused(named):
    with pytest.raises(ValueError, match='vv, vh are GeoTIFFs; give the role "data"'):
        read_item(named({"vv": {"href": "a.tif"}, "vh": {"href": "b.TIFF", "roles": ["metadata"]}}))
    with pytest.raises(ValueError, match="no asset is a GeoTIFF .* its assets are quick"):
        read_item(named({"quick": {"href": "q.png"}}))


@pytest.mark.parametrize(
    "href",
    [
        *("https://example.org/a.tif", "s3://bucket/a.tif", "file:///a.tif", "//example.org/a.tif"),
        *("/vsicurl/https://example.org/a.tif", "/vsizip/a.zip/a.tif", "GTIFF_DIR:1:a.tif", r"C:\a.tif"),
    ],
)
def test_a_remote_raster_is_refused(named, href):
    with pytest.raises(ValueError, match="item.json: asset vv is remote.*download it beside the item"):
        read_item(named({"vv": {"href": href}}))


def test_a_raster_outside_the_folder_is_refused(named):
    folder = named({}).parent
    (folder / "link.tif").symlink_to(folder / "../outside.tif")
    (folder / "away").symlink_to(folder / "..")
    (folder / "near.tif").symlink_to(folder / "a.tif")
    for href in ("../outside.tif", "sub/../../outside.tif", str(folder / "a.tif"), "link.tif", "away/outside.tif"):
        with pytest.raises(ValueError, match="asset vv lies outside the item's folder.*download it beside the item"):
            read_item(named({"vv": {"href": href}}))
    assert read_item(named({"vv": {"href": "near.tif"}})).samefile(folder / "a.tif")
    with pytest.raises(FileNotFoundError, match=r"item.json: asset vv, 'absent.tif', is not a file"):
        read_item(named({"vv": {"href": "absent.tif"}}))


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"type": "Feature", "features": []}'),
        b'{"type": "Catalog", "stac_version": "1.0.0", "links": []}',
        *(b'{"type": "Feature", "stac_version": "1.0.0", "assets": %s}' % assets for assets in (b"[]", b'{"a": 1}')),
        b'{"type": "Feature", "stac_version": "1.0.0", "assets": {"a": {"href": 1}}}',
        b'{"type": "Feature", "stac_version": "1.0.0", "assets": {"a": {"href": "a.tif", "roles": 1}}}',
        b'{"type": "Feature", "stac_version": "1.0.0", "assets": {"a": {"href": "\\u0000.tif"}}}',
    ],
)
def test_a_file_that_is_no_item_is_named(tmp_path, content):
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.json (is not (JSON|a STAC item)|holds a list: expected a JSON object)"):
        read_item(tmp_path / "odd.json")


def test_items_are_known_by_their_names(tmp_path):
    assert is_item(tmp_path / "a.json") and is_item(tmp_path / "a.GeoJSON")
    assert not is_item(tmp_path / "a.tif") and not is_item(tmp_path / "json")
