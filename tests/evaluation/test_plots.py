"""Plots: every line can be seen, whatever lies upon it."""

import pytest

from c_diffset.evaluation.page.plots import MARKERS, Line, Plot

CURVE = [(x / 10, 20.0 - x) for x in range(10)]


def seen(drawn, length: int = 200) -> set[int]:
    """The pixels along the line at which it is drawn, by the rules of SVG."""
    if drawn.dashes == "none":
        return set(range(length))
    on, off = map(int, drawn.dashes.split())
    return {pixel for pixel in range(length) if (pixel + drawn.offset) % (on + off) < on}


@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_lines_take_turns(count):
    shifted = [(x, y + 0.01) for x, y in CURVE]  # less than a pixel
    plot = Plot("", "", "", [Line(f"m{i}", CURVE if i else shifted, i) for i in range(count)])
    pieces = [seen(each) for each in plot.drawn]
    assert all(len(piece) >= 18 for piece in pieces) and len(set.union(*pieces)) == sum(map(len, pieces))
    marks = [mark for each in plot.drawn for mark in each.marks]
    assert all(each.marks for each in plot.drawn) and len({x for x, _ in marks}) == len(marks)
    assert plot.drawn[0].same_as == [f"m{i}" for i in range(1, count)]


def test_other_lines_differ_without_their_colour():
    lines = [Line(f"m{i}", [(x, y + i) for x, y in CURVE], i) for i in range(5)]
    plot = Plot("", "", "", [Line("ideal", CURVE[:2], None), *lines])
    looks = {(each.dashes, each.line.marker) for each in plot.drawn}
    assert len(looks) == len(plot.drawn) and not any(each.same_as for each in plot.drawn)
    assert [each.line.marker for each in plot.drawn[1:]] == list(MARKERS) and not plot.drawn[0].marks


def test_plots_beside_each_other_share_their_scale():
    low, high = (Plot("", "", "", [Line("", [(0, top), (1, 0)], 0)], y_top=20.0) for top in (5, 20))
    assert low.y_ticks == high.y_ticks
