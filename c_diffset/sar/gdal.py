"""GDAL for files that come from strangers: a GeoTIFF is read from its own bytes alone, and errors are OSErrors."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError

CACHE_BYTES = 32  # of GDAL's blocks, so none: with one, a disk that is full when it is flushed can crash the process
OPTIONS = {
    "GDAL_CACHEMAX": CACHE_BYTES,
    "GDAL_TIFF_INTERNAL_MASK": True,
    # without this GDAL opens whatever stands beside a TIFF under its name (.msk, .ovr, .aux.xml, in any case): also a
    # VRT, which may name files elsewhere and addresses in the network
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "GDAL_VRT_WARP_USE_DATASET_RASTERIO": False,  # warping by fixed blocks: no pixel depends on the window
}


@contextmanager
def gdal() -> Iterator[None]:
    """GDAL without a cache, that reads no file but the named one; errors as OSError."""
    with rasterio.Env(**OPTIONS):
        try:
            yield
        except (RasterioError, CPLE_BaseError, SystemError) as error:  # the last where GDAL failed without a word
            raise OSError(" ".join(str(error.__cause__ or error).split())) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """`gdal`, with errors that name the scene."""
    try:
        with gdal():
            yield
    except OSError as error:
        raise OSError(f"{path}: not a readable GeoTIFF: {error}") from error


def open_raster(path: Path, mode: str = "r", **profile):
    """`rasterio.open` for a GeoTIFF that is a file of this machine, quiet where there are no coordinates.

    What GDAL does with it later, such as warping, belongs into `gdal()`, too.

    Raises:
        OSError: not a readable TIFF, or its metadata say that a part of it lies elsewhere.
    """
    path = path.absolute()  # a relative name can be one of GDAL's own, such as GTIFF_DIR:1:scene.tif
    with gdal(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if mode != "w" and not path.is_file():
            raise OSError(f"{path} is not a file")
        raster = rasterio.open(path, mode, driver="GTiff", **profile)
        if mode != "w" and (elsewhere := raster.tags(ns="OVERVIEWS")):
            raster.close()
            raise OSError(f"its metadata name overviews in another place, {elsewhere}: write it anew without them")
        return raster


def sidecar(path: Path, suffix: str) -> Path | None:
    """The file beside a scene that is called like it with a further suffix, in upper or lower case; None without."""
    name = f"{path.name}{suffix}".lower()
    found = sorted(file for file in path.absolute().parent.iterdir() if file.name.lower() == name)
    return found[0] if found else None


def find_crs(text: str, name: str = "crs") -> CRS:
    """The coordinate system that a text names, in an option of this name.

    Raises:
        ValueError: it names none, or none of maps of the Earth.
    """
    try:
        if "://" in str(text):
            raise ValueError("addresses are not looked up")  # GDAL would look them up
        with gdal():
            crs = CRS.from_user_input(text)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} is {text!r}: expected a coordinate system such as EPSG:32631 ({reason})") from None
    if not (crs.is_geographic or crs.is_projected):
        raise ValueError(f"{name} is {text!r}: expected a geographic or projected system, such as EPSG:32631")
    return crs
