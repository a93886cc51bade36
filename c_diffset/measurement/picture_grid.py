"""Pictures side by side: SAR | generated | EO | confidence."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from torch import Tensor

GRID_LABELS = ("SAR", "generated", "EO", "confidence")
GAP, BAND = 6, 24  # pixels between pictures, and for a line of text
_CONFIDENCE_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis at quarters


def colour_confidence(confidence: np.ndarray) -> np.ndarray:
    """Confidence H x W in [0, 1] to uint8 H x W x 3: one fixed scale from violet (0) over green to yellow (1)."""
    anchors = np.array(_CONFIDENCE_COLOURS, dtype=np.float64).T
    channels = [np.interp(confidence, np.linspace(0, 1, len(channel)), channel) for channel in anchors]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _picture(image: Tensor, cell: int) -> PIL.Image.Image:
    """A picture of at most `cell` pixels a side: larger ones are averaged, smaller ones enlarged by a whole factor."""
    array = image.detach().float().cpu().numpy()
    pixels = colour_confidence(array) if array.ndim == 2 else (array * 255).round().astype(np.uint8).transpose(1, 2, 0)
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((cell, cell), PIL.Image.Resampling.BOX)
    factor = cell // max(picture.size)
    return picture.resize([side * factor for side in picture.size], PIL.Image.Resampling.NEAREST)


def _draw_scale(canvas: PIL.Image.Image, font: PIL.ImageFont.ImageFont) -> None:
    """The scale of the confidence, in the last line of the canvas."""
    draw, top, width = PIL.ImageDraw.Draw(canvas), canvas.height - BAND, min(160, canvas.width - 60)
    left = (canvas.width - width) // 2
    bar = np.repeat(np.linspace(0, 1, width)[None], BAND // 2, axis=0)
    canvas.paste(PIL.Image.fromarray(colour_confidence(bar)), (left, top + BAND // 4))
    draw.text((left - GAP, top + BAND // 2), "0", "black", font, anchor="rm")
    draw.text((left + width + GAP, top + BAND // 2), "1", "black", font, anchor="lm")


def make_grid(rows: Sequence[Sequence[Tensor | None]], labels: Sequence[str], cell: int = 256) -> PIL.Image.Image:
    """Lay images out in labelled columns.

    Args:
        rows: each with one entry a column: an image 3 x H x W in [0, 1], a confidence map H x W in [0, 1] (drawn in
            colours of a fixed scale, which is added below), or None for an empty place.
        labels: the titles of the columns.
        cell: images with a longer side are drawn smaller, at this many pixels; small ones larger, by a whole factor.
    """
    pictures = [[None if image is None else _picture(image, cell) for image in row] for row in rows]
    font = PIL.ImageFont.load_default(size=14)
    titles = [int(font.getlength(label)) for label in labels]
    widths = [
        max([title, *(picture.width for picture in column if picture)])
        for title, column in zip(titles, zip(*pictures, strict=True), strict=True)
    ]
    heights = [max((picture.height for picture in row if picture), default=0) for row in pictures]
    has_confidence = any(image is not None and image.ndim == 2 for row in rows for image in row)
    size = (sum(widths) + GAP * (len(widths) + 1), BAND + sum(heights) + GAP * len(heights) + BAND * has_confidence)
    canvas = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(canvas)
    lefts = [GAP + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    for left, width, label in zip(lefts, widths, labels, strict=True):
        draw.text((left + width // 2, BAND // 2), label, "black", font, anchor="mm")
    top = BAND
    for row, height in zip(pictures, heights, strict=True):
        for left, picture in zip(lefts, row, strict=True):
            if picture:
                canvas.paste(picture, (left, top))
        top += height + GAP
    if has_confidence:
        _draw_scale(canvas, font)
    return canvas
