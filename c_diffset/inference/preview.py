"""A picture of a translation: the EO image, and beside it how far it can be trusted, in colours with numbers."""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from rasterio.enums import Resampling

from c_diffset.measurement.colours import CONFIDENCE, ERROR, ColourScale
from c_diffset.sar.gdal import gdal, open_raster

LONGEST = 1024  # pixels of the picture's longer side
GAP, LINE, COLUMN = 8, 22, 330  # pixels between parts, of a line of text, and of the narrowest column
NODATA = (128, 128, 128)
STEP, OUTER = 0.05, 2  # ends of a stretch are multiples of this, and leave out so many per cent of the pixels


class Maps(NamedTuple):
    """What a model says of its image, H x W each, NaN where not valid; None where it does not say it."""

    confidence: np.ndarray | None = None
    expected_error: np.ndarray | None = None


class Panel(NamedTuple):
    """One of the pictures: uint8 H x W x 3, what it shows, and the scale of its colours."""

    pixels: np.ndarray
    title: str
    scale: ColourScale | None


class Layout(NamedTuple):
    """Where the panels are: `size` is the height and width of each."""

    rows: int
    columns: int
    size: tuple[int, int]


def plan_layout(height: int, width: int, panels: int) -> Layout:
    """Panels side by side or one below the other, whichever leaves them larger; small images grow by a whole factor."""

    def scale(rows: int, columns: int) -> float:
        high = (LONGEST - LINE - GAP) // rows - 2 * LINE - GAP
        return min(high / height, ((LONGEST - GAP) // columns - GAP) / width)

    rows, columns = max([(1, panels), (panels, 1)], key=lambda shape: scale(*shape))
    factor = scale(rows, columns)
    factor = math.floor(factor) if factor >= 1 else factor
    return Layout(rows, columns, (max(1, int(height * factor)), max(1, int(width * factor))))


def scene_preview(eo: Path, trust: Path | None, name: str) -> PIL.Image.Image:
    """The preview of a scene's COGs, read from their overviews; `trust`: confidence, and perhaps expected error."""
    with open_raster(eo) as raster, gdal():
        layout = plan_layout(*raster.shape, 1 if trust is None else 2)
        pixels = raster.read(out_shape=(3, *layout.size), resampling=Resampling.average)
        valid = raster.dataset_mask(out_shape=layout.size) > 0
    maps = Maps()
    if trust is not None:
        with open_raster(trust) as raster, gdal():
            bands = raster.read(
                out_shape=(raster.count, *layout.size), resampling=Resampling.average, masked=True
            ).filled(np.nan)
        maps = Maps(*bands)
        valid &= np.isfinite(bands[0])
    return draw(np.moveaxis(pixels, 0, -1), valid, maps, layout, name)


def image_preview(eo: np.ndarray, maps: Maps, name: str) -> PIL.Image.Image:
    """The preview of an image, uint8 H x W x 3, that is valid everywhere."""
    layout = plan_layout(*eo.shape[:2], 1 if maps.confidence is None else 2)

    def fit(values: np.ndarray) -> np.ndarray:
        kind = PIL.Image.Resampling.BOX  # an average where pixels are many, and copies where they are few
        return np.asarray(PIL.Image.fromarray(values).resize(layout.size[::-1], kind))

    fitted = Maps(*(None if values is None else fit(values.astype(np.float32)) for values in maps))
    return draw(fit(eo), np.ones(layout.size, bool), fitted, layout, name)


def trust_panel(maps: Maps) -> tuple[np.ndarray, str, ColourScale]:
    """What is shown of the maps: the expected error on its fixed scale, else the confidence, stretched to the image."""
    if maps.expected_error is not None:
        return maps.expected_error, "expected error in 8-bit levels", ERROR
    assert maps.confidence is not None
    known = maps.confidence[np.isfinite(maps.confidence)]
    low, high = np.percentile(known, (OUTER, 100 - OUTER)) if known.size else (0, 1)
    low = min(math.floor(low / STEP) * STEP, 1 - STEP)
    high = max(math.ceil(high / STEP) * STEP, low + STEP)
    return maps.confidence, "confidence, stretched to this image", replace(CONFIDENCE, low=low, full=high)


def draw(eo: np.ndarray, valid: np.ndarray, maps: Maps, layout: Layout, name: str) -> PIL.Image.Image:
    """Panels under a title, each over its legend; what is not valid is grey in all of them.

    Args:
        eo: uint8 H x W x 3, of the layout's size, as all others.
        valid: bool H x W.
        maps: float32 H x W each.
        layout: from `plan_layout`.
        name: of the image.
    """
    panels = [Panel(np.where(valid[..., None], eo, NODATA).astype(np.uint8), "EO image", None)]
    if maps.confidence is not None:
        values, title, scale = trust_panel(maps)
        colours = np.where(valid[..., None], scale.paint(np.nan_to_num(values)), NODATA).astype(np.uint8)
        panels.append(Panel(colours, title, scale))
    height, width = layout.size
    column, row = max(width, COLUMN), height + 2 * LINE + GAP
    size = (GAP + (column + GAP) * layout.columns, LINE + GAP + row * layout.rows)
    picture = PIL.Image.new("RGB", size, "white")
    pen = PIL.ImageDraw.Draw(picture)
    font = PIL.ImageFont.load_default(size=14)
    said = " - synthetic, not an observation"
    while name and font.getlength(name + said) > picture.width - 2 * GAP:
        name = name.removesuffix("...")[:-1] + "..." if len(name) > 4 else ""
    pen.text((GAP, LINE // 2 + GAP // 2), name + said, "black", font, anchor="lm")
    for number, panel in enumerate(panels):
        across, down = number % layout.columns, number // layout.columns
        left, top = GAP + across * (column + GAP), LINE + GAP + down * row
        picture.paste(PIL.Image.fromarray(panel.pixels), (left + (column - width) // 2, top))
        draw_legend(picture, panel, (left, top + height), column, nodata=not valid.all())
    return picture


def draw_legend(picture: PIL.Image.Image, panel: Panel, corner: tuple[int, int], width: int, nodata: bool) -> None:
    """A panel's title, the colours of its scale with their numbers, and what grey stands for; in two lines."""
    pen, (left, top) = PIL.ImageDraw.Draw(picture), corner
    font, small = PIL.ImageFont.load_default(size=14), PIL.ImageFont.load_default(size=12)
    pen.text((left + width // 2, top + LINE // 2), panel.title, "black", font, anchor="mm")
    middle, high = top + LINE + LINE // 2, LINE // 2
    if nodata:
        pen.rectangle((left + width - 66, middle - high // 2, left + width - 66 + high, middle + high // 2), NODATA)
        pen.text((left + width - 66 + 2 * high, middle), "no data", "black", small, anchor="lm")
    if panel.scale is None:
        return
    scale, bar = panel.scale, 110
    before, after = f"{scale.low:.4g}" + " or less" * (scale.low > 0), f"{scale.full:.4g}" + " or more" * scale.open
    start = left + GAP + int(small.getlength(before))
    values = np.linspace(scale.low, scale.full, bar)[None].repeat(high, axis=0)
    picture.paste(PIL.Image.fromarray(scale.paint(values)), (start, middle - high // 2))
    pen.text((start - GAP // 2, middle), before, "black", small, anchor="rm")
    pen.text((start + bar + GAP // 2, middle), after, "black", small, anchor="lm")
