"""The pictures of the worst and the best images of a pass, as the report's page shows them."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import PIL.Image
from torch import Tensor

from c_diffset.evaluation.report import ImageMetrics
from c_diffset.measurement.measure import PairResult
from c_diffset.measurement.picture_grid import colour_confidence

SIDE = 320  # pixels; larger pictures are averaged
ERROR_FULL_SCALE = 64  # 8-bit levels
ERROR_COLOURS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # inferno at quarters
CONFIDENCE_COLOURS = tuple(map(tuple, colour_confidence(np.linspace(0, 1, 5)).tolist()))


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

    def add(self, number: int, result: PairResult) -> None:
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


def encode_pictures(result: PairResult) -> dict[str, str]:
    """Pictures by their labels, as data URIs: SAR, generated, true, error, and confidence and expected error if any."""
    error = (result.generated - result.eo).abs().mean(0) * 255
    pictures = {
        "SAR": _data_uri(_bytes(result.sar)),
        "generated": _data_uri(_bytes(result.generated)),
        "true": _data_uri(_bytes(result.eo)),
        "error": _data_uri(colour_error(error.numpy(force=True))),
    }
    if result.confidence is not None:
        pictures["confidence"] = _data_uri(colour_confidence(result.confidence.numpy(force=True)))
    if result.expected_error is not None:
        pictures["expected error"] = _data_uri(colour_error(result.expected_error.numpy(force=True)))
    return pictures


def colour_error(error: np.ndarray) -> np.ndarray:
    """Error H x W in 8-bit levels to uint8 H x W x 3: a fixed scale from black (0) to yellow (`ERROR_FULL_SCALE`)."""
    knots = np.linspace(0, ERROR_FULL_SCALE, len(ERROR_COLOURS))
    channels = [np.interp(error, knots, channel) for channel in zip(*ERROR_COLOURS, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _bytes(image: Tensor) -> np.ndarray:
    return (image.float().numpy(force=True) * 255).round().astype(np.uint8).transpose(1, 2, 0)


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
    def has_confidence(self) -> bool:
        """Whether any picture is one of the confidence."""
        return any("confidence" in group.pictures for card in self.worst + self.best for group in card.groups)


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
    groups = [Group(None, None, {label: pictures[0][label] for label in ("SAR", "true")})]
    for name, row, own in zip(names, rows, pictures, strict=True):
        made = {label: uri for label, uri in own.items() if label not in ("SAR", "true")}
        groups.append(Group(name, row.metrics, made))
    return Card(rows[0].id, groups)
