"""Sentinel-1 products, made here, to sigma nought."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from scipy.interpolate import RegularGridInterpolator

from c_diffset.sar.safe import calibrate_safe, is_safe

PRODUCT = "S1A_IW_GRDH_1SDV_20201104T134909_20201104T134934_035101_041866_2AEA"
GCPS = [
    GroundControlPoint(row=row, col=col, x=10 + col / 1000, y=50 - row / 1000, z=3)
    for row in (0, 20, 39)
    for col in (0, 25, 49)
]


def stem(polarisation: str, number: int = 1, swath: str = "iw", kind: str = "grd") -> str:
    start_to_end = "20201104t134909-20201104t134934"
    return f"s1a-{swath}-{kind}-{polarisation.lower()}-{start_to_end}-035101-041866-{number:03}"


def calibration_xml(lines, pixels, values) -> str:
    vectors = "".join(
        f"<calibrationVector><azimuthTime>2020-11-04T13:49:09.5</azimuthTime><line>{line}</line>"
        f'<pixel count="{len(pixels)}">{" ".join(map(str, pixels))}</pixel>'
        f'<sigmaNought count="{len(row)}">{" ".join(f"{value:.6e}" for value in row)}</sigmaNought>'
        f'<betaNought count="1">237.0</betaNought></calibrationVector>'
        for line, row in zip(lines, values, strict=True)
    )
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<calibration><adsHeader><missionId>S1A</missionId></adsHeader>'
    count = len(lines)
    return f'{head}<calibrationVectorList count="{count}">{vectors}</calibrationVectorList></calibration>'


def write_tiff(path: Path, dn: np.ndarray, gcps=GCPS, **options) -> None:
    size = {"height": dn.shape[0], "width": dn.shape[1], "count": 1, "dtype": dn.dtype}
    place = {"gcps": gcps, "crs": "EPSG:4326"} if gcps else {}
    with rasterio.open(path, "w", driver="GTiff", **size | place | options) as raster:
        raster.write(dn, 1)


def make_dn(seed: int, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    dn = np.random.default_rng(seed).integers(1, 65536, shape, dtype=np.uint16)
    dn[:3], dn[:, -4:] = 0, 0
    return dn


def make_table(seed: int, shape: tuple[int, int] = (40, 50)):
    """Lines from before the image to beyond it; pixels in steps, and the last one of the image."""
    lines = np.array([-7, 6, 13, shape[0] + 5])
    pixels = np.array([*range(0, shape[1] - 1, 20), shape[1] - 1])
    return lines, pixels, np.random.default_rng(seed).uniform(100, 2000, (len(lines), len(pixels))).round(3)


def make_safe(folder: Path, polarisations=("VV", "VH"), shape=(40, 50), **options) -> Path:
    (folder / "measurement").mkdir(parents=True)
    (folder / "annotation/calibration").mkdir(parents=True)
    (folder / "manifest.safe").write_text("<xfdu/>")
    for i, name in enumerate(polarisations):
        write_tiff(folder / f"measurement/{stem(name)}.tiff", make_dn(i, shape), **options)
        xml = calibration_xml(*make_table(i, shape))
        (folder / f"annotation/calibration/calibration-{stem(name)}.xml").write_text(xml)
        (folder / f"annotation/calibration/noise-{stem(name)}.xml").write_text("<noise/>")
    return folder


def expected_sigma0(seed: int, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    lines, pixels, values = make_table(seed, shape)
    rows_columns = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), axis=-1)
    gain = RegularGridInterpolator((lines, pixels), values)(rows_columns.astype(np.float64))
    return make_dn(seed, shape).astype(np.float64) ** 2 / gain**2


@pytest.fixture
def product(tmp_path) -> Path:
    return make_safe(tmp_path / f"{PRODUCT}.SAFE")


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "sigma0.tif"


def calibration_of(product: Path, name: str = "VV") -> Path:
    return product / f"annotation/calibration/calibration-{stem(name)}.xml"


def measurement_of(product: Path, name: str = "VV") -> Path:
    return product / f"measurement/{stem(name)}.tiff"


def test_sigma_nought_places_and_tags(product, target):
    assert is_safe(product) and not is_safe(product / "measurement")
    calibrate_safe(product, target)
    with rasterio.open(target) as raster:
        assert raster.descriptions == ("VV", "VH") and raster.dtypes == ("float32",) * 2
        assert raster.nodatavals == (0, 0) and raster.block_shapes == [(512, 512)] * 2
        for band in (0, 1):
            expected, found = expected_sigma0(band), raster.read(band + 1)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            assert (found == 0).sum() == (make_dn(band) == 0).sum() > 0
        gcps, crs = raster.gcps
        assert crs == "EPSG:4326"
        assert [(g.row, g.col, g.x, g.y, g.z) for g in gcps] == [(g.row, g.col, g.x, g.y, g.z) for g in GCPS]
        assert raster.tags()["PRODUCT"] == PRODUCT
        assert raster.tags()["ACQUISITION_START"] == "2020-11-04T13:49:09Z"
    assert sorted(path.name for path in target.parent.iterdir()) == [product.name, target.name]


@pytest.mark.parametrize(
    ("there", "asked", "bands"),
    [
        (("HV", "HH"), None, ("HH", "HV")),
        (("VV", "VH"), ["VH", "VV"], ("VH", "VV")),
        (("VV", "VH"), ["vh"], ("VH",)),
        (("HH",), None, ("HH",)),
    ],
)
def test_order_of_the_bands(tmp_path, target, there, asked, bands):
    calibrate_safe(make_safe(tmp_path / "a.SAFE", there), target, asked)
    with rasterio.open(target) as raster:
        assert raster.descriptions == bands
        for i, name in enumerate(bands, 1):
            np.testing.assert_allclose(raster.read(i), expected_sigma0(there.index(name)), rtol=1e-6)


def test_an_image_of_several_windows(tmp_path, target):
    shape = (1050, 2100)
    calibrate_safe(make_safe(tmp_path / "a.SAFE", ("VV",), shape), target)
    with rasterio.open(target) as raster:
        np.testing.assert_allclose(raster.read(1), expected_sigma0(0, shape), rtol=2e-6)


def test_a_product_distributed_as_cog(tmp_path, target):
    """Names that end in -cog, tiles, a nodata value: Copernicus Data Space, "Handling Sentinel-1 COG_SAFE products"."""
    product = make_safe(
        *(tmp_path / f"{PRODUCT}_COG.SAFE", ("VV",)),
        tiled=True,
        blockxsize=16,
        blockysize=16,
        compress="zstd",
        nodata=0,
    )
    for path in (measurement_of(product), calibration_of(product)):
        path.rename(path.with_stem(f"{path.stem}-cog"))
    calibrate_safe(product, target)
    with rasterio.open(target) as raster:
        np.testing.assert_allclose(raster.read(1), expected_sigma0(0), rtol=1e-6)
        assert raster.tags()["PRODUCT"] == f"{PRODUCT}_COG"


def test_tables_whose_lines_differ_in_their_pixels_or_stop_within_the_image(product, target):
    """Each line by its own pixels; outside the table, the value of its edge."""
    first = calibration_xml([10], [0, 30], [[100, 400]])
    second = calibration_xml([20], [5, 10, 25], [[200, 300, 900]])
    vectors = [
        text.split("List count=")[1].partition(">")[2].split("</calibrationVectorList")[0] for text in (first, second)
    ]
    calibration_of(product).write_text(first.replace(vectors[0], "".join(vectors)))
    calibrate_safe(product, target, ["VV"])

    dn = make_dn(0).astype(np.float64)
    cases = {
        (4, 15): 250,
        (10, 45): 400,
        (15, 20): (300 + 700) / 2,
        (35, 2): 200,
        (39, 40): 900,
        (18, 10): 0.2 * 200 + 0.8 * 300,
    }
    with rasterio.open(target) as raster:
        sigma0 = raster.read(1)
    for place, gain in cases.items():
        assert sigma0[place] == pytest.approx((dn[place] / gain) ** 2, rel=1e-6)


def test_memory_does_not_grow_with_the_scene(tmp_path, target):
    peaks = []
    for rows in (1024, 4096):
        product = make_safe(tmp_path / f"{rows}.SAFE", ("VV",), (rows, 2048))
        tracemalloc.start()
        calibrate_safe(product, target)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_polarisation_or_calibration_that_is_not_there(product, target):
    with pytest.raises(ValueError, match="no measurement .* of HH; there are: VV, VH"):
        calibrate_safe(product, target, ["VV", "HH"])
    calibration_of(product, "VH").unlink()
    with pytest.raises(ValueError, match="no calibration of VH"):
        calibrate_safe(product, target)
    for name in ("VV", "VH"):
        measurement_of(product, name).unlink()
    with pytest.raises(ValueError, match="of any polarisation; there are: none"):
        calibrate_safe(product, target)
    (product / "manifest.safe").unlink()
    with pytest.raises(ValueError, match=r"no manifest\.safe"):
        calibrate_safe(product, target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (calibration_xml([0], [0, 9, 19], [[5, 5]]), "3 pixels but 2 values"),
        (calibration_xml([0, 9], [0, 9], [[5, 5], [5, 0]]), r"line 9: sigmaNought 0; expected values from 1 to 1e\+06"),
        (calibration_xml([0], [0, 9], [[5, np.nan]]), "without finite numbers in <sigmaNought>"),
        (calibration_xml([0], [0, 9], [[5, 5]]).replace("sigmaNought", "gamma"), "in <sigmaNought>"),
        (calibration_xml([0], [9, 9], [[5, 5]]), "pixels do not ascend"),
        (calibration_xml([5, 0], [0, 9], [[5, 5]] * 2), "lines do not ascend"),
        (calibration_xml(["0 1"], [0, 9], [[5, 5]]), "1 calibrationVector with 2 lines"),
        (calibration_xml(["a"], [0, 9], [[5, 5]]), "could not convert"),
        (calibration_xml([], [], []), "0 calibrationVector"),
        (calibration_xml([0], [0, 9], [[5, 5]])[:-20], "malformed"),
        ('<!DOCTYPE a [<!ENTITY b "5 5">]>' + calibration_xml([0], [0, 9], [[5, 5]]).partition("\n")[2], "a DOCTYPE"),
    ],
)
def test_a_malformed_calibration(product, target, text, problem):
    calibration_of(product).write_text(text)
    with pytest.raises(ValueError, match=problem) as error:
        calibrate_safe(product, target)
    assert str(calibration_of(product)) in str(error.value) and not target.exists()


def test_a_doctype_in_another_encoding(product, target):
    text = '<!DOCTYPE a [<!ENTITY b "5 5">]><calibration/>'
    for encoding in ("utf-16", "utf-16-le"):
        calibration_of(product).write_bytes(text.encode(encoding))
        with pytest.raises(ValueError, match="malformed calibration"):
            calibrate_safe(product, target)


def test_complex_products_are_refused(product, target):
    write_tiff(measurement_of(product), make_dn(0).astype(np.complex64), dtype="complex_int16")
    with pytest.raises(ValueError, match="bands of complex_int16; expected one of uint16, a GRD product"):
        calibrate_safe(product, target)
    for i in (1, 2):
        write_tiff(product / f"measurement/{stem('VV', i, f'iw{i}', 'slc')}.tiff", make_dn(0))
    with pytest.raises(ValueError, match="a second file of VV .* expected a GRD product"):
        calibrate_safe(product, target)
    assert not target.exists()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_measurements_without_points_or_of_another_size(product, target):
    write_tiff(measurement_of(product, "VH"), make_dn(1)[1:])
    with pytest.raises(ValueError, match=r"vh.*\(39, 50\) pixels; expected \(40, 50\)"):
        calibrate_safe(product, target)
    write_tiff(measurement_of(product), make_dn(0), gcps=None)
    with pytest.raises(ValueError, match="no ground control points"):
        calibrate_safe(product, target)


@pytest.mark.parametrize("kept", [0.0, 0.6, 0.999])
def test_a_truncated_measurement(product, target, kept):
    data = measurement_of(product, "VH").read_bytes()
    measurement_of(product, "VH").write_bytes(data[: int(kept * len(data))])
    target.write_bytes(b"of an earlier run")
    with pytest.raises(OSError, match=r"-vh-.*fetch the product again"):
        calibrate_safe(product, target)
    assert target.read_bytes() == b"of an earlier run" and len(list(target.parent.iterdir())) == 2


@pytest.mark.parametrize("file_of", [measurement_of, calibration_of])
def test_links_out_of_the_folder_are_refused(product, target, tmp_path, file_of):
    inside = file_of(product)
    inside.rename(tmp_path / "outside")
    inside.symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=f"{inside.name}: a symbolic link out of"):
        calibrate_safe(product, target)
    inside.unlink()
    inside.parent.rename(tmp_path / "elsewhere")
    (tmp_path / "outside").rename(tmp_path / "elsewhere" / inside.name)
    inside.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="a symbolic link out of"):
        calibrate_safe(product, target)


def test_only_tiff_is_opened_whatever_the_name_says(product, target):
    other = product / "other.tiff"
    write_tiff(other, make_dn(0))
    measurement_of(product).write_text(
        '<VRTDataset rasterXSize="50" rasterYSize="40"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{other}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(OSError, match="not a readable TIFF"):
        calibrate_safe(product, target)


def test_a_linked_folder_is_its_own_root(product, target, tmp_path):
    (tmp_path / "link").symlink_to(product)
    calibrate_safe(tmp_path / "link", target)
    with rasterio.open(target) as raster:
        assert raster.tags()["PRODUCT"] == PRODUCT
    with pytest.raises(OSError, match="missing"):
        calibrate_safe(product, tmp_path / "missing" / "sigma0.tif")
