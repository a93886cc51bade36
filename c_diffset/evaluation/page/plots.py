"""Plots as inline SVG: lines and points over two linear axes, readable in light, dark and print."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from c_diffset.evaluation.page.markup import Html, element, join

WIDTH, HEIGHT = 400, 300
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 48  # margins
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
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


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    step = (high - low) / count
    power = 10 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def plot(lines: list[Line], x_label: str, y_label: str, title: str) -> Html:
    """A figure with both axes from 0, its legend below."""
    points = [point for line in lines for point in line.points]
    x_high, y_high = (max(max(values), 1e-6) * 1.04 for values in zip(*points, strict=True))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / x_high
        return round(across, 1), round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / y_high, 1)

    parts = [*_axes(x_high, y_high, place), *_titles(x_label, y_label)]
    for line in lines:
        parts += _draw(line, place)
    svg = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return element("figure", element("figcaption", title), svg, _legend(lines), class_="plot")


def _axes(x_high: float, y_high: float, place) -> list[Html]:
    parts = []
    for x in ticks(0, x_high):
        left, bottom = place(x, 0)
        parts.append(element("line", x1=left, x2=left, y1=TOP, y2=bottom, class_="rule"))
        parts.append(element("text", f"{x:g}", x=left, y=bottom + 16, text_anchor="middle"))
    for y in ticks(0, y_high):
        left, bottom = place(0, y)
        parts.append(element("line", x1=left, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="rule"))
        parts.append(element("text", f"{y:g}", x=left - 6, y=bottom + 4, text_anchor="end"))
    return parts


def _titles(x_label: str, y_label: str) -> list[Html]:
    across, down = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return [
        element("text", x_label, x=across, y=HEIGHT - 8, text_anchor="middle"),
        element("text", y_label, transform=f"translate(13 {down}) rotate(-90)", text_anchor="middle"),
    ]


def _draw(line: Line, place) -> list[Html]:
    placed = [place(*point) for point in line.points]
    path = " ".join(f"{x},{y}" for x, y in placed)
    parts = [element("polyline", points=path, **_look(line))]
    if line.markers:
        parts += [element("circle", cx=x, cy=y, r=3, class_=f"dot s{line.style % 6}") for x, y in placed]
    return parts


def _look(line: Line) -> dict[str, str]:
    if line.style is None:
        return {"class_": "line grey", "stroke_dasharray": "4 4"}
    dash = DASHES[(line.style if line.dash is None else line.dash) % len(DASHES)]
    return {"class_": f"line s{line.style % 6}", "stroke_dasharray": dash}


def _legend(lines: list[Line]) -> Html:
    entries = []
    for line in lines:
        sample = element("line", x1=0, x2=28, y1=6, y2=6, **_look(line))
        svg = element("svg", sample, viewBox="0 0 28 12", width=28, height=12, aria_hidden="true")
        entries.append(element("li", svg, join([" ", line.label])))
    return element("ul", *entries, class_="legend")
