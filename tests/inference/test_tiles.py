"""Tiles that cover, and blend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c_diffset.inference.tiles import Box, Tiling, blocks_of, tile_spans, tile_weights


@st.composite
def grids(draw):
    multiple = draw(st.integers(1, 3))
    tile = draw(st.integers(2, 24))
    values = [
        draw(st.integers(1, 70)),
        draw(st.integers(1, 70)),
        draw(st.integers(-999, 999)),
        draw(st.integers(-999, 999)),
    ]
    height, width, top, left = (value * multiple for value in values)
    overlap = draw(st.integers(0, tile // 2))
    return Tiling((top, left), (height, width), tile * multiple, overlap * multiple, multiple)


@given(grids())
def test_tiles_cover_the_canvas_and_share_at_least_the_overlap(grid):
    for origin, size in zip(grid.origin, grid.size, strict=True):
        spans = tile_spans(origin, size, grid.tile, grid.overlap, grid.multiple)
        assert spans[0][0] == 0 and spans[-1][1] == size
        for (start, end), (following, _) in zip(spans, spans[1:], strict=False):
            assert start < following and end - following >= grid.overlap
        lengths = [end - start for start, end in spans]
        assert all(length % grid.multiple == 0 for length in lengths)
        if len(spans) > 1:
            assert grid.tile / 2 <= min(lengths) <= max(lengths) <= grid.tile
            assert sum(lengths) <= size + (len(spans) - 1) * grid.overlap + grid.tile
    covered = np.zeros(grid.size, int)
    for box in grid.boxes:
        covered[box.slices()] += 1
    assert covered.min() >= 1


@given(grids(), st.integers(0, 50), st.integers(0, 50))
def test_a_part_of_a_scene_has_the_same_tiles_inside(grid, top, left):
    top, left = (
        min(cut * grid.multiple, side - grid.multiple) for cut, side in zip((top, left), grid.size, strict=True)
    )
    part = Tiling(
        (grid.origin[0] + top, grid.origin[1] + left),
        (grid.size[0] - top, grid.size[1] - left),
        grid.tile,
        grid.overlap,
        grid.multiple,
    )
    inner = {box for box in part.boxes if 0 < box.top and 0 < box.left}
    inner = {box for box in inner if box.bottom < part.size[0] and box.right < part.size[1]}
    assert {box.moved(-top, -left) for box in inner} <= set(grid.boxes)


@given(grids(), st.data())
def test_blending_is_the_weighted_mean_of_the_tiles_that_there_are(grid, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    tiles = [rng.normal(size=(2, *box.size)).astype(np.float32) for box in grid.boxes]
    there = data.draw(st.sets(st.integers(0, len(tiles) - 1), min_size=1))
    total, norm = np.zeros((2, *grid.size)), np.zeros(grid.size)
    for number in there:  # the whole canvas at once, in double precision
        total[grid.boxes[number].slices()] += tiles[number].astype(float) * weights_of(grid, number)
        norm[grid.boxes[number].slices()] += weights_of(grid, number)
    expected = total / np.where(norm, norm, 1)
    top, left = data.draw(st.integers(0, grid.size[0] - 1)), data.draw(st.integers(0, grid.size[1] - 1))
    box = Box(top, left, grid.size[0], grid.size[1])
    if there & set(grid.touching(box)):
        np.testing.assert_allclose(grid.blend(box, there, tiles.__getitem__), expected[box.slices()], atol=1e-5)
    else:
        with pytest.raises(ValueError, match="no tile"):
            grid.blend(box, there, tiles.__getitem__)


def weights_of(grid: Tiling, number: int) -> np.ndarray:
    return tile_weights(*grid.boxes[number].size, grid.overlap)


@pytest.mark.parametrize("overlap", [1, 4, 7])
def test_weights_of_neighbours_sum_to_one(overlap):
    weights = tile_weights(16, 16, overlap)[8]
    np.testing.assert_allclose(weights[16 - overlap :] + weights[:overlap], 1, atol=1e-6)
    assert weights.min() > 0 and weights[overlap : 16 - overlap].min() == 1


@given(grids())
def test_blocks_cover_a_rectangle_on_the_ground_wherever_it_is(grid):
    box = Box(0, 0, *grid.size).moved(*(-side for side in grid.origin))
    pixels = sum(
        np.prod(box.common(Box(row * 7, column * 7, row * 7 + 7, column * 7 + 7)).size)
        for row, column in blocks_of(box, 7)
    )
    assert pixels == np.prod(grid.size)


def test_a_finer_grid_has_the_same_tiles():
    grid = Tiling((-5, 3), (30, 21), 8, 2)
    assert grid.scaled(4).boxes == [box.scaled(4) for box in grid.boxes]
