"""The sizes of images by the headers of their files: no pixel is read."""

import io
from collections.abc import Mapping
from struct import calcsize, unpack, unpack_from
from typing import BinaryIO

import PIL.Image

from c_diffset.data.images import MAX_PIXELS
from c_diffset.files import image_kind

WIDTH, HEIGHT, BANDS = 256, 257, 277  # tags of TIFF
TAGS = 4096  # more than any file has


def read_shape(image: Mapping) -> tuple[int, int, int]:
    """Height, width and bands of a `{"bytes", "path"}`, by its header.

    Raises:
        OSError: there is no such file, or its header is none of PNG, JPEG or TIFF.
        ValueError: it has more than `MAX_PIXELS`.
    """
    name = " ".join(str(image.get("path") or "image").split())[-300:]
    try:
        with open(image["path"], "rb") if image.get("bytes") is None else io.BytesIO(image["bytes"]) as file:
            start = file.read(16)
            shape = _tiff_shape(file, start) if image_kind(start[:8]) == "tiff" else _picture_shape(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except Exception as error:  # the decoders raise a dozen unrelated types for broken files
        raise OSError(f"{name}: not a readable PNG, JPEG or TIFF image") from error
    if shape[0] * shape[1] * shape[2] > MAX_PIXELS:
        raise ValueError(f"{name}: {shape[0]} x {shape[1]} pixels in {shape[2]} bands are more than an image may have")
    return shape


def _picture_shape(file: BinaryIO) -> tuple[int, int, int]:
    file.seek(0)
    with PIL.Image.open(file, formats=("PNG", "JPEG")) as image:
        return image.height, image.width, 3 if image.mode == "P" else len(image.getbands())


def _tiff_shape(file: BinaryIO, start: bytes) -> tuple[int, int, int]:
    """Three numbers of a TIFF's first directory; libraries read all that it names, which may be gigabytes."""
    order, big = "<" if start[:2] == b"II" else ">", 43 in start[2:4]
    file.seek(unpack_from(order + ("Q" if big else "I"), start, 8 if big else 4)[0])
    (count,) = unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    entry, values = order + ("HHQ8s" if big else "HHI4s"), {}
    for _ in range(min(count, TAGS)):
        tag, kind, _, value = unpack(entry, file.read(calcsize(entry)))
        if tag in (HEIGHT, WIDTH, BANDS):
            values[tag] = unpack_from(order + {3: "H", 4: "I", 16: "Q"}[kind], value)[0]
    return values[HEIGHT], values[WIDTH], values.get(BANDS, 1)
