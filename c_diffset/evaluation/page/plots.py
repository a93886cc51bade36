"""The geometry of plots: lines and points over two linear axes from 0, which the page's template draws as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 48  # margins in pixels
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
COLOURS = 6  # the number of colours that the template has
Points = Sequence[tuple[float, float]]


@dataclass
class Line:
    """One line of a plot: `points` in the units of the axes, `style` the number of its colour, None for grey.

    `dash` is the number of its dashes; where None, they go with the colour, so that no line depends on colour alone.
    """

    label: str
    points: Points
    style: int | None
    markers: bool = False
    dash: int | None = None

    @property
    def colour(self) -> str:
        """The class of its colour."""
        return "grey" if self.style is None else f"s{self.style % COLOURS}"

    @property
    def dashes(self) -> str:
        """Its dashes, as SVG has them."""
        if self.style is None:
            return "4 4"
        return DASHES[(self.style if self.dash is None else self.dash) % len(DASHES)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    step = (high - low) / count
    power = 10 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass
class Plot:
    """A figure with its legend below; the template reads its attributes."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]

    width, height = 400, 300
    left, right, top, bottom = LEFT, width - RIGHT, TOP, height - BOTTOM

    def __post_init__(self):
        points = [point for line in self.lines for point in line.points]
        self.x_high, self.y_high = (max(max(values), 1e-6) * 1.04 for values in zip(*points, strict=True))
        self.x_ticks = [(self._place(x, 0)[0], f"{x:g}") for x in ticks(0, self.x_high)]
        self.y_ticks = [(self._place(0, y)[1], f"{y:g}") for y in ticks(0, self.y_high)]
        self.placed = [(line, [self._place(*point) for point in line.points]) for line in self.lines]

    def _place(self, x: float, y: float) -> tuple[float, float]:
        across = self.left + (self.right - self.left) * x / self.x_high
        return round(across, 1), round(self.bottom - (self.bottom - self.top) * y / self.y_high, 1)
