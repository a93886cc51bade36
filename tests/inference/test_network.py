"""No scene, and no file beside one, makes GDAL ask the network, or read another file than the one that is named."""

import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rasterio

from c_diffset.inference.inputs import find_inputs
from c_diffset.inference.options import ReadOptions, SceneOptions
from c_diffset.inference.raster import SarRaster
from c_diffset.inference.scene import translate_scene
from c_diffset.inference.tiles import Box
from c_diffset.sar.gdal import find_crs, open_raster
from tests.helpers import DISPLAY, UTM, write_raster

SERVER = """
import sys
from http.server import HTTPServer, BaseHTTPRequestHandler
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        with open(sys.argv[1] + "/requests", "a") as file:
            file.write(self.path + chr(10))
        self.send_error(404)
    do_HEAD = do_GET
    def log_message(self, *arguments):
        pass
server = HTTPServer(("127.0.0.1", 0), Handler)
with open(sys.argv[1] + "/port.partial", "w") as file:
    file.write(str(server.server_port))
import os
os.replace(sys.argv[1] + "/port.partial", sys.argv[1] + "/port")
server.serve_forever()
"""
VRT = """<VRTDataset rasterXSize="90" rasterYSize="80"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename>{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""
PAM = '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{}</MDI></Metadata></PAMDataset>'
WMS = '<GDAL_WMS><Service name="TMS"><ServerUrl>{}/</ServerUrl></Service></GDAL_WMS>'
FORMS = ("{}/a.tif", "/vsicurl/{}/b.tif", WMS)


class Web:
    """A web server in a process of its own (GDAL holds the interpreter while it waits), and what it was asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, str(folder)])
        while not (folder / "port").exists():
            assert self.process.poll() is None
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{(folder / 'port').read_text()}"

    def requests(self) -> list[str]:
        return (self.folder / "requests").read_text().split() if (self.folder / "requests").exists() else []


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    server = Web(tmp_path_factory.mktemp("web"))
    yield server
    server.process.kill()
    server.process.wait()


def use(path: Path, **options) -> None:
    """All that a translation does with a scene, and more: masks, overviews, windows, warping."""
    raster = SarRaster(path, DISPLAY, ReadOptions(**options))
    raster.read(Box(0, 0, *raster.size))
    raster.valid(Box(0, 0, 9, 9))


@pytest.mark.parametrize("suffix", [".msk", ".MSK", ".Msk", ".ovr", ".OVR", ".aux.xml", ".AUX.XML", ".aux", ".AUX"])
def test_files_beside_a_scene_lead_nowhere(web, tmp_path, suffix):
    text = PAM if "xml" in suffix.lower() else VRT
    for number, form in enumerate(FORMS[:2]):
        scene = write_raster(tmp_path / f"{number}/scene.tif", np.full((80, 90), 9, np.uint8), **UTM)
        Path(f"{scene}{suffix}").write_text(text.format(form.format(web.url)))
        use(scene)
        use(scene, crs="EPSG:4326")
        use(scene, resolution=20)
        assert web.requests() == []


def test_the_server_would_see_a_request(web, tmp_path):
    scene = write_raster(tmp_path / "scene.tif", np.full((80, 90), 9, np.uint8), **UTM)
    Path(f"{scene}.OVR").write_text(VRT.format(f"{web.url}/seen.tif"))
    with suppress(rasterio.errors.RasterioIOError), rasterio.open(scene) as raster:
        raster.overviews(1)
        raster.read(1, out_shape=(9, 9))
    seen = web.requests()
    (web.folder / "requests").unlink()
    assert "/seen.tif" in seen


@pytest.mark.parametrize("suffix", [".msk", ".MSK"])
def test_a_mask_beside_a_scene_that_is_no_tiff_is_refused(web, make_pipe, tmp_path, suffix):
    scene = write_raster(tmp_path / "scene.tif", np.full((80, 90), 9, np.uint8), **UTM)
    Path(f"{scene}{suffix}").write_text(VRT.format(f"{web.url}/a.tif"))
    with pytest.raises(OSError, match=rf"scene\.tif\{suffix}: not a readable GeoTIFF"):
        translate_scene(scene, make_pipe("tiny"), tmp_path / "out", SceneOptions(1, tile_size=64, overlap=16))
    assert web.requests() == []


@pytest.mark.parametrize("suffix", [".msk", ".MSK"])
@pytest.mark.parametrize("crs", [None, "EPSG:32631"])
def test_a_mask_beside_a_scene_that_is_a_tiff_counts(make_pipe, tmp_path, suffix, crs):
    expected = np.zeros((80, 90), bool)
    expected[10:60, 20:70] = True
    scene = write_raster(tmp_path / "scene.tif", np.full((80, 90), 9, np.uint8), **UTM)
    write_raster(tmp_path / f"scene.tif{suffix}", expected.astype(np.uint8) * 255)
    options = SceneOptions(1, tile_size=64, overlap=16, crs=crs)
    outputs = translate_scene(scene, make_pipe("tiny"), tmp_path / "out", options)
    with rasterio.open(outputs.eo) as raster:
        np.testing.assert_array_equal(raster.dataset_mask() > 0, expected)


@pytest.mark.parametrize("domain", ["OVERVIEWS", "overviews"])
def test_a_scene_whose_own_metadata_lead_elsewhere_is_refused(web, tmp_path, domain):
    for number, form in enumerate(FORMS):
        scene = write_raster(tmp_path / f"{number}.tif", np.full((80, 90), 9, np.uint8), **UTM)
        with rasterio.open(scene, "r+") as raster:
            raster.update_tags(ns=domain, OVERVIEW_FILE=form.format(web.url))
        with pytest.raises(OSError, match=rf"{number}\.tif: not a readable GeoTIFF: its metadata name overviews"):
            use(scene)
        assert web.requests() == []


@pytest.mark.parametrize(
    "name",
    ["{}/a.tif", "/vsicurl/{}/a.tif", "/vsizip//vsicurl/{}/a.zip/a.tif", "zip+{}/a.zip!a.tif", "GTIFF_DIR:1:{}/a.tif"],
)
def test_a_name_is_that_of_a_file_here(web, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    name = name.format(web.url)
    with pytest.raises(FileNotFoundError, match="no such file"):
        find_inputs([name])
    with pytest.raises(OSError, match="is not a file"):
        open_raster(Path(name))
    (tmp_path / "list.txt").write_text(name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        find_inputs(["list.txt"])
    assert web.requests() == []


@pytest.mark.parametrize("name", ["GTIFF_DIR:1:g.tif", "GTIFF_RAW:g.tif", "zip:g.tif", "COG:g.tif", "VRT:g.tif"])
def test_a_file_that_is_called_like_a_prefix_of_gdal_is_itself(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_raster(Path("g.tif"), np.full((80, 90), 200, np.uint8), **UTM)
    Path(name).write_bytes(write_raster(tmp_path / "own.tif", np.full((80, 90), 100, np.uint8), **UTM).read_bytes())
    assert find_inputs([name]) == [Path(name)]
    sar, _ = SarRaster(Path(name), DISPLAY).read(Box(0, 0, 4, 4))
    np.testing.assert_allclose(sar, 100 / 255 * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("crs", ["{}/crs", "HTTP://{}/crs", "/vsicurl/{}/a.prj", "+proj=utm +zone=31 +nadgrids={}/g"])
def test_coordinate_systems_are_not_looked_up(web, crs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            find_crs(crs.format(web.url))
        except ValueError as error:
            assert "crs is" in str(error) and "\n" not in str(error)
    assert web.requests() == []
