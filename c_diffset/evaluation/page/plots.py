"""The geometry of plots: lines and points over two linear axes from 0, which the page's template draws as SVG.

No line depends on its colour alone: each has dashes and markers of its own, and lines that lie upon each other take
turns, so that all of them can be seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 48  # margins in pixels
DASHES = ("none", "8 3", "3 3", "10 3 3 3")
TURN = 9  # pixels that a line is seen for until the next one of those that lie upon each other
SAME = 1.0  # pixels; lines that are nowhere further apart lie upon each other
COLOURS = 6  # the number of colours that the template has
MARKERS = (  # outlines around 0, 0: circle, square, triangle, diamond, triangle upside down
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4.4l4.2 7.4h-8.4z",
    "M0 -4.6l4.4 4.6l-4.4 4.6l-4.4 -4.6z",
    "M0 4.4l4.2 -7.4h-8.4z",
)
Points = Sequence[tuple[float, float]]


@dataclass
class Line:
    """One line of a plot: `points` in the units of the axes; `style` gives its colour, dashes and markers.

    The legend has its `note` behind the label. With the style None, it is a thin grey line without markers, such as an
    ideal that others are compared with.
    """

    label: str
    points: Points
    style: int | None
    note: str = ""

    @property
    def colour(self) -> str:
        """The class of its colour."""
        return "grey" if self.style is None else f"s{self.style % COLOURS}"

    @property
    def dashes(self) -> str:
        """Its dashes where it lies alone, as SVG has them."""
        return "2 4" if self.style is None else DASHES[self.style % len(DASHES)]

    @property
    def marker(self) -> str | None:
        """The outline of its markers."""
        return None if self.style is None else MARKERS[self.style % len(MARKERS)]


@dataclass
class Drawn:
    """A line as it is drawn: `points` in pixels, `twins` all lines that lie upon each other here, itself included."""

    line: Line
    points: list[tuple[float, float]]
    twins: list["Drawn"] = field(default_factory=list, repr=False)

    def lies_upon(self, other: "Drawn") -> bool:
        """Whether both would look like one line."""
        return len(self.points) == len(other.points) and all(
            math.dist(own, their) <= SAME for own, their in zip(self.points, other.points, strict=True)
        )

    @property
    def turn(self) -> int:
        """Its place among its twins."""
        return next(place for place, each in enumerate(self.twins) if each is self)

    @property
    def dashes(self) -> str:
        """Its dashes: among twins, a piece for itself and gaps for the others."""
        return self.line.dashes if len(self.twins) == 1 else f"{TURN} {TURN * (len(self.twins) - 1)}"

    @property
    def offset(self) -> int:
        """Where its dashes begin, as SVG has it."""
        return -TURN * self.turn if len(self.twins) > 1 else 0

    @property
    def marks(self) -> list[tuple[float, float]]:
        """The points that have a marker: about ten, and never one that a twin has marked."""
        if self.line.marker is None:
            return []
        step = max(len(self.twins), round(len(self.points) / 10))
        return self.points[self.turn if len(self.twins) > 1 else (self.line.style or 0) % step :: step]

    @property
    def same_as(self) -> list[str]:
        """The labels of the lines that lie upon it."""
        return [each.line.label for each in self.twins if each is not self]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    step = (high - low) / count
    power = 10 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass
class Plot:
    """A figure with its legend below; the template reads its attributes. `y_top`: what the axis reaches at least."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    y_top: float = 0.0

    width, height = 400, 300
    left, right, top, bottom = LEFT, width - RIGHT, TOP, height - BOTTOM

    def __post_init__(self):
        points = [point for line in self.lines for point in line.points]
        x_values, y_values = zip(*points, strict=True)
        self.x_high, self.y_high = (max(*values, 1e-6) * 1.04 for values in (x_values, (*y_values, self.y_top)))
        self.x_ticks = [(self._place(x, 0)[0], f"{x:g}") for x in ticks(0, self.x_high)]
        self.y_ticks = [(self._place(0, y)[1], f"{y:g}") for y in ticks(0, self.y_high)]
        self.drawn = [Drawn(line, [self._place(*point) for point in line.points]) for line in self.lines]
        for each in self.drawn:
            each.twins = next((other.twins for other in self.drawn if other.twins and each.lies_upon(other)), [])
            each.twins.append(each)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        across = self.left + (self.right - self.left) * x / self.x_high
        return round(across, 1), round(self.bottom - (self.bottom - self.top) * y / self.y_high, 1)
