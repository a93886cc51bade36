"""The pictures of the worst and the best images of a pass, as the report's page shows them."""

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from c_diffset.evaluation.report import ImageMetrics
from c_diffset.measurement.colours import SCALES, ColourScale
from c_diffset.measurement.picture_grid import to_pixels

if TYPE_CHECKING:
    from c_diffset.measurement.measure import PairResult

SIDE = 320  # pixels; larger pictures are averaged
GIVEN = ("SAR", "bicubic", "EO")  # the pictures that no model has made


def ranking_metric(metrics: dict[str, float]) -> str:
    """The metric that orders the images: LPIPS where it was measured, PSNR otherwise."""
    return next((name for name in metrics if name.startswith("lpips")), "psnr")


class Gallery:
    """Pictures of images by their number in the pass: of the `chosen` ones, or of the `count` worst and best.

    Pictures are encoded when they come, so that no more than twice `count` images are held at a time.
    """

    def __init__(self, count: int = 4, chosen: set[int] | None = None):
        self.count, self.chosen = count, chosen
        self.badness: dict[int, float] = {}
        self.pictures: dict[int, dict[str, str]] = {}

    def add(self, number: int, result: "PairResult") -> None:
        """Look at one image; keep its pictures if it is chosen, or among the worst or the best so far."""
        if self.chosen is not None:
            if number in self.chosen:
                self.pictures[number] = encode_pictures(result)
            return
        metric = ranking_metric(result.metrics)
        self.badness[number] = result.metrics[metric] * (-1 if metric == "psnr" else 1)
        order = self._order([*self.pictures, number])
        dropped = order[self.count : -self.count]
        if number not in dropped:
            self.pictures[number] = encode_pictures(result)
        for other in set(dropped) & set(self.pictures):
            del self.pictures[other]

    def _order(self, numbers) -> list[int]:
        return sorted(numbers, key=lambda number: (self.badness[number], number))

    def ranking(self) -> tuple[list[int], list[int]]:
        """The numbers of the worst images, the worst first, and of the best, the best first: no image in both."""
        order = self._order(self.pictures)
        half = len(order) // 2
        return order[half:][::-1][: self.count], order[:half][: self.count]


def encode_pictures(result: "PairResult") -> dict[str, str]:
    """Pictures by their labels, as data URIs: those of the grid, and the error beside what was expected of it."""
    error, grid = (result.generated - result.eo).abs().mean(0) * 255, result.pictures
    pictures = {label: grid[label] for label in (result.given, "generated", "EO")} | {"error": error} | grid
    return {label: _data_uri(to_pixels(image, label)) for label, image in pictures.items()}


def _data_uri(pixels: np.ndarray) -> str:
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), PIL.Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass
class Group:
    """Pictures of one image by their labels, as data URIs; of one model, with its metrics, or given to all."""

    name: str | None
    metrics: dict[str, float] | None
    pictures: dict[str, str]


@dataclass
class Card:
    """One image of the gallery."""

    id: str
    groups: list[Group]


@dataclass
class GalleryView:
    """The worst and the best images by `metric`, as the page shows them."""

    metric: str
    worst: list[Card]
    best: list[Card]

    @property
    def scales(self) -> list[tuple[list[str], ColourScale]]:
        """Every scale of the maps in the pictures, with the labels of those maps."""
        groups = [group.pictures for card in self.worst + self.best for group in card.groups]
        labels = [label for label in SCALES if any(label in group for group in groups)]
        return [
            ([label for label in labels if SCALES[label] == scale], scale)
            for scale in dict.fromkeys(SCALES[label] for label in labels)
        ]


def gallery_of(galleries: list[Gallery], names: list[str], images: list[list[ImageMetrics]]) -> GalleryView:
    """The images that the first model's gallery chose, with the pictures of all models.

    Args:
        images: for each model the metrics of the images, in the order of the pass.
    """
    worst, best = ([_card(number, galleries, names, images) for number in each] for each in galleries[0].ranking())
    return GalleryView(ranking_metric(images[0][0].metrics), worst, best)


def _card(number: int, galleries: list[Gallery], names: list[str], images: list[list[ImageMetrics]]) -> Card:
    pictures, rows = [gallery.pictures[number] for gallery in galleries], [own[number] for own in images]
    if len(names) == 1:
        return Card(rows[0].id, [Group(None, rows[0].metrics, pictures[0])])
    groups = [Group(None, None, {label: pictures[0][label] for label in GIVEN if label in pictures[0]})]
    for name, row, own in zip(names, rows, pictures, strict=True):
        made = {label: uri for label, uri in own.items() if label not in GIVEN}
        groups.append(Group(name, row.metrics, made))
    return Card(rows[0].id, groups)
