"""Images as their files store them: PNG, JPEG and TIFF to arrays, nothing scaled or converted to 8 bits."""

import io
import os
import warnings
from collections.abc import Mapping

import fsspec
import numpy as np
import PIL.Image
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning

from c_diffset.files import image_kind


def read_image(source: str | os.PathLike | bytes | Mapping, name: str | None = None) -> np.ndarray:
    """Read a PNG, JPEG or TIFF file with the values it stores: nothing is scaled, rotated or converted to 8 bits.

    Args:
        source: a path, the bytes of a file, or the `{"bytes", "path"}` that `datasets.Image(decode=False)` gives.
        name: what errors call the image; the path by default.

    Returns:
        H x W (one band) or H x W x C; uint8, uint16 or float32 (int16 and float64 become float32).

    Raises:
        OSError: the file is absent, truncated or not an image of a supported format.
        ValueError: the pixel type is unsupported (complex, 32-bit integers).
    """
    return read_image_and_mask(source, name)[0]


def read_image_and_mask(
    source: str | os.PathLike | bytes | Mapping, name: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """`read_image`, and where the file declares nodata also what is valid: bool H x W."""
    if isinstance(source, Mapping):
        name = name or source.get("path")
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if isinstance(source, bytes):
        name, data = name or "image", source
    else:
        name = name or str(source)
        opener = fsspec.open if "://" in name else open  # streaming from the Hub gives hf:// paths
        with opener(os.fspath(source), "rb") as file:
            data = file.read()
    try:
        if image_kind(data[:8]) == "tiff":
            image, valid = _read_raster(data, "GTiff")
        elif _is_deep_colour_png(data):
            image, valid = _read_raster(data, "PNG")  # PIL would keep only 8 of the 16 bits
        else:
            image, valid = _read_pil(data), None
    except Exception as error:  # the decoders raise a dozen unrelated types for broken files
        raise OSError(f"{name}: not a readable PNG, JPEG or TIFF image ({len(data)} bytes): {error}") from error
    if image.dtype in (np.int16, np.float64):
        image = image.astype(np.float32)
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"{name}: pixels are {image.dtype}; expected 8- or 16-bit integers or real floats.")
    return image, valid


def _read_raster(data: bytes, driver: str) -> tuple[np.ndarray, np.ndarray | None]:
    with warnings.catch_warnings(), rasterio.MemoryFile(data) as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver=driver) as raster:  # a fixed driver: no VRT that points at other files
            image = raster.read()
            declared = any(MaskFlags.all_valid not in flags for flags in raster.mask_flag_enums)
            valid = raster.dataset_mask() > 0 if declared else None
    return (image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)), valid


def _read_pil(data: bytes) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        image.load()
        if image.mode == "P":
            image = image.convert("RGB")
        array = np.array(image)
        if array.dtype == bool:
            return array.astype(np.uint8) * 255
        return array.astype(np.uint16) if image.mode.startswith("I") else array


def _is_deep_colour_png(data: bytes) -> bool:
    """Whether the header says 16 bits a sample and more than one sample a pixel."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10" and data[25:26] != b"\0"
