"""Pictures side by side in labelled columns, and below them the scales of the maps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from c_diffset.measurement.colours import SCALES

if TYPE_CHECKING:
    from torch import Tensor

GAP, BAND = 6, 24  # pixels between pictures, and for a line of text
LEAST_BAR = 40  # pixels


def to_pixels(image: "Tensor", label: str) -> np.ndarray:
    """An image 3 x H x W in [0, 1], or a map H x W in the colours of its label's scale, as uint8 H x W x 3."""
    array = image.detach().float().cpu().numpy()
    if array.ndim == 2:
        return SCALES[label].paint(array)
    return (array * 255).round().astype(np.uint8).transpose(1, 2, 0)


def _picture(pixels: np.ndarray, cell: int) -> PIL.Image.Image:
    """A picture of at most `cell` pixels a side: larger ones are averaged, smaller ones enlarged by a whole factor."""
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((cell, cell), PIL.Image.Resampling.BOX)
    factor = cell // max(picture.size)
    return picture.resize([side * factor for side in picture.size], PIL.Image.Resampling.NEAREST)


def _draw_scales(
    canvas: PIL.Image.Image, labels: Iterable[str], font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont
) -> None:
    """The scale of every map, each in a line of its own at the bottom of the canvas."""
    draw = PIL.ImageDraw.Draw(canvas)
    for number, label in enumerate(reversed(list(labels))):
        scale, middle = SCALES[label], canvas.height - BAND * number - BAND // 2
        before, after = f"{label}  0", scale.top
        words = [int(font.getlength(text)) for text in (before, after)]
        width = max(LEAST_BAR, min(160, canvas.width - sum(words) - 4 * GAP))
        left = max(0, (canvas.width - sum(words) - width) // 2 + words[0])
        bar = np.repeat(np.linspace(0, scale.full, width)[None], BAND // 2, axis=0)
        canvas.paste(PIL.Image.fromarray(scale.paint(bar)), (left, middle - BAND // 4))
        draw.text((left - GAP, middle), before, "black", font, anchor="rm")
        draw.text((left + width + GAP, middle), after, "black", font, anchor="lm")


def _fitting(text: str, width: int, font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont) -> str:
    """The end of a text, in one line, as far as it fits."""
    text = " ".join(text[-200:].split())
    while text and font.getlength(text) > width:
        text = text[1:]
    return text


def make_grid(
    rows: Sequence[Mapping[str, "Tensor"]],
    cell: int = 256,
    captions: Sequence[str] | None = None,
    title: str | None = None,
) -> PIL.Image.Image:
    """Lay images out in columns, titled by their labels, in the order of the labels' first row.

    Args:
        rows: by label an image 3 x H x W in [0, 1], or a map H x W in the unit of `SCALES`, whose scale is added below
            the rows. A label that a row lacks leaves an empty place.
        cell: images with a longer side are drawn smaller, at this many pixels; small ones larger, by a whole factor.
        captions: a line of text below each row.
        title: a line of text above everything.
    """
    columns = list(dict.fromkeys(label for row in rows for label in row))
    maps = [label for label in columns if any(label in row and row[label].ndim == 2 for row in rows)]
    pictures = [{label: _picture(to_pixels(image, label), cell) for label, image in row.items()} for row in rows]
    font = PIL.ImageFont.load_default(size=14)
    widths = [
        max([int(font.getlength(label)), *(row[label].width for row in pictures if label in row)]) for label in columns
    ]
    heights = [max((picture.height for picture in row.values()), default=0) for row in pictures]
    lines = 1 + len(maps) + bool(title) + len(captions or ())
    size = (sum(widths) + GAP * (len(widths) + 1), BAND * lines + sum(heights) + GAP * len(heights))
    canvas = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(canvas)
    lefts = [GAP + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    top = BAND * bool(title)
    if title:
        draw.text((GAP, BAND // 2), _fitting(title, canvas.width - 2 * GAP, font), "black", font, anchor="lm")
    for left, width, label in zip(lefts, widths, columns, strict=True):
        draw.text((left + width // 2, top + BAND // 2), label, "black", font, anchor="mm")
    top += BAND
    for number, (row, height) in enumerate(zip(pictures, heights, strict=True)):
        for left, label in zip(lefts, columns, strict=True):
            if label in row:
                canvas.paste(row[label], (left, top))
        top += height + GAP
        if captions:
            text = _fitting(captions[number], canvas.width - 2 * GAP, font)
            draw.text((GAP, top + BAND // 2 - GAP), text, "black", font, anchor="lm")
            top += BAND
    _draw_scales(canvas, maps, font)
    return canvas
