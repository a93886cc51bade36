"""Tiles that cover, and blend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c_diffset.scenes.grid import Box, TileGrid, blocks_of, tile_starts


@st.composite
def grids(draw):
    tile = draw(st.integers(2, 24))
    sides = st.tuples(st.integers(1, 70), st.integers(1, 70))
    places = st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000))
    return TileGrid(draw(places), draw(sides), tile, draw(st.integers(0, tile // 2)))


@given(grids())
def test_tiles_cover_the_canvas_and_share_at_least_the_overlap(grid):
    for origin, size in zip(grid.origin, grid.size, strict=True):
        starts = tile_starts(origin, size, grid.tile, grid.overlap)
        assert starts[0] == 0 and starts[-1] == max(0, size - grid.tile)
        steps = np.diff(starts)
        assert (steps > 0).all() and (steps <= grid.tile - grid.overlap).all()
        # as few as there can be, and one more where the ground's grid asks for it
        assert len(starts) <= max(1, -(-(size - grid.overlap) // (grid.tile - grid.overlap))) + 1
    covered = np.zeros(grid.size, int)
    for box in grid.boxes:
        covered[box.slices()] += 1
    assert covered.min() >= 1


@given(grids(), st.integers(0, 50), st.integers(0, 50))
def test_a_part_of_a_scene_has_the_same_tiles_inside(grid, top, left):
    part = TileGrid(
        (grid.origin[0] + top, grid.origin[1] + left),
        (max(1, grid.size[0] - top), max(1, grid.size[1] - left)),
        grid.tile,
        grid.overlap,
    )
    inner = {box for box in part.boxes if 0 < box.top and 0 < box.left}
    inner = {box for box in inner if box.bottom < part.size[0] and box.right < part.size[1]}
    assert {box.moved(-top, -left) for box in inner} <= set(grid.boxes)


@given(grids(), st.data())
def test_blending_is_the_weighted_mean_of_the_tiles_that_there_are(grid, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    height, width = grid.boxes[0].size
    tiles = rng.normal(size=(len(grid.boxes), 2, height, width)).astype(np.float32)
    there = data.draw(st.sets(st.integers(0, len(tiles) - 1), min_size=1))
    total, norm = np.zeros((2, *grid.size)), np.zeros(grid.size)
    for number in there:  # the whole canvas at once, in double precision
        total[grid.boxes[number].slices()] += tiles[number].astype(float) * grid.weights
        norm[grid.boxes[number].slices()] += grid.weights
    expected = total / np.where(norm, norm, 1)
    top, left = data.draw(st.integers(0, grid.size[0] - 1)), data.draw(st.integers(0, grid.size[1] - 1))
    box = Box(top, left, grid.size[0], grid.size[1])
    if there & set(grid.touching(box)):
        np.testing.assert_allclose(grid.blend(box, there, tiles.__getitem__), expected[box.slices()], atol=1e-5)
    else:
        with pytest.raises(ValueError, match="no tile"):
            grid.blend(box, there, tiles.__getitem__)


@pytest.mark.parametrize("overlap", [1, 4, 7])
def test_weights_of_neighbours_sum_to_one(overlap):
    weights = TileGrid((0, 0), (16, 40), 16, overlap).weights[8]
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
    grid = TileGrid((-5, 3), (30, 21), 8, 2)
    assert grid.scaled(4).boxes == [box.scaled(4) for box in grid.boxes]
