"""Images as their files store them: PNG, JPEG and TIFF to arrays, nothing converted to 8 bits."""

import io
import os
import re
import warnings
from collections.abc import Mapping

import fsspec
import numpy as np
import PIL.Image
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning

from c_diffset.files import image_kind
from c_diffset.sar.radiometry import apply_scaling

MAX_PIXELS = 2**28  # of all bands together, such as 16 384 x 16 384 in one band
MAX_BYTES = 8 * MAX_PIXELS  # size of an image file
ON_HUB = re.compile(r"hf://(?!.*(::|://|/\.\.?(/|$)))")  # without a second address behind it, and without `..`


def read_image(source: str | os.PathLike | bytes | Mapping, name: str | None = None) -> np.ndarray:
    """Read a PNG, JPEG or TIFF file with the values it stores: nothing is rotated or converted to 8 bits.

    Where a TIFF declares a scale or an offset, the values are what they say, as float32.

    Args:
        source: a path, the bytes of a file, or the `{"bytes", "path"}` that `datasets.Image(decode=False)` gives.
        name: what errors call the image; the path by default.

    Returns:
        H x W (one band) or H x W x C; uint8, uint16 or float32 (int16 and float64 become float32).

    Raises:
        OSError: the file is absent, truncated or not an image of a supported format.
        ValueError: the pixel type is unsupported (complex, 32-bit integers), or there are more than `MAX_PIXELS`.
    """
    return read_image_and_mask(source, name)[0]


def read_image_and_mask(
    source: str | os.PathLike | bytes | Mapping, name: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """`read_image`, and where the file declares nodata also what is valid: bool H x W."""
    path, data = (None, source) if isinstance(source, bytes) else (source, None)
    if isinstance(source, Mapping):
        path, data = source.get("path"), source.get("bytes")
    name = " ".join((name or str(path or "image")).split())[-500:]  # a row of a stranger may say anything
    if data is None:
        data = _read_file(os.fspath(path or ""), name)
    try:
        if image_kind(data[:8]) == "tiff":
            image, valid = _read_raster(data, "GTiff")
        elif _is_deep_colour_png(data):
            image, valid = _read_raster(data, "PNG")  # PIL would keep only 8 of the 16 bits
        else:
            image, valid = _read_pil(data), None
    except _Unfit as error:
        raise ValueError(f"{name}: {error}") from None
    except Exception as error:  # the decoders raise a dozen unrelated types for broken files
        known = not isinstance(error, PIL.UnidentifiedImageError)  # whose text is an address in memory
        reason = f": {' '.join(str(error).split())[:300]}" if known else ""
        raise OSError(f"{name}: not a readable PNG, JPEG or TIFF image ({len(data)} bytes){reason}") from error
    if image.dtype in (np.int16, np.float64):
        with np.errstate(over="ignore"):
            image = image.astype(np.float32)
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"{name}: pixels are {image.dtype}; expected 8- or 16-bit integers or real floats.")
    return image, valid


class _Unfit(Exception):
    """An image that could be read, but is refused."""


def _read_file(path: str, name: str) -> bytes:
    """The content of a file, on this machine or (in rows of streamed data sets) on the Hub."""
    on_hub = ON_HUB.match(path)
    if not on_hub and not os.path.isfile(path):
        raise FileNotFoundError(f"{name}: no such file")
    with (fsspec.open if on_hub else open)(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size > MAX_BYTES:
            raise ValueError(f"{name} holds {size} bytes; expected an image of at most {MAX_BYTES}.")
        file.seek(0)
        return file.read()


def _check_size(height: int, width: int, bands: int) -> None:
    if height * width * bands > MAX_PIXELS:
        raise _Unfit(
            f"{height} x {width} pixels in {bands} bands are more than an image may have ({MAX_PIXELS} in all): cut it "
            "into smaller ones; `translate` reads a GeoTIFF of any size as a scene."
        )


def _read_raster(data: bytes, driver: str) -> tuple[np.ndarray, np.ndarray | None]:
    with warnings.catch_warnings(), rasterio.MemoryFile(data) as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver=driver) as raster:  # a fixed driver: no VRT that points at other files
            if any(dtype.startswith("complex") for dtype in raster.dtypes):
                found = f"complex pixels ({raster.dtypes[0]})"
                raise _Unfit(f"{found}; expected detected ones (GRD, or the squared magnitude)")
            _check_size(raster.height, raster.width, raster.count)
            _check_size(*map(max, zip(*raster.block_shapes, strict=True)), raster.count)
            image = apply_scaling(raster.read(), raster.scales, raster.offsets)
            declared = any(MaskFlags.all_valid not in flags for flags in raster.mask_flag_enums)
            valid = raster.dataset_mask() > 0 if declared else None
    return (image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)), valid


def _read_pil(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # `_check_size` decides
        with PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            _check_size(image.height, image.width, len(image.getbands()))
            image.load()
            if image.mode == "P":
                image = image.convert("RGB")
            array = np.array(image)
            if array.dtype == bool:
                return array.astype(np.uint8) * 255
            return array.astype(np.uint16) if image.mode.startswith("I") else array


def _is_deep_colour_png(data: bytes) -> bool:
    """Whether the header says 16 bits a sample and more than one sample a pixel."""
    return image_kind(data[:8]) == "png" and data[24:25] == b"\x10" and data[25:26] != b"\0"
