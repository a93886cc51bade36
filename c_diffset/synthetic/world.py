"""The ground truth behind `synthetic`: random maps of surfaces, heights and slopes.

Everything on the ground hangs on one turned and gently bent grid of square lots: a parcel is a rectangle of lots, roads
and hedges follow the edges of parcels, and a lot of the town carries at most one building.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LOT = 16  # pixels along the side of a lot
STREET, HEDGE = 0.25, 0.16  # widths in lots
HEIGHT_STEPS = 4  # heights are int8, in quarters of a pixel

# Red, green, blue; sigma0 in dB; the share of brightness that is texture; texture in dB; the share that is furrows.
SURFACES = {
    "water": (30, 60, 86, -22.5, 0.02, 0.5, 0.0),
    "sand": (214, 196, 156, -17.0, 0.02, 0.3, 0.0),
    "soil": (150, 114, 84, -15.0, 0.03, 0.3, 0.05),
    "wheat": (200, 178, 114, -12.5, 0.03, 0.3, 0.04),
    "pasture": (134, 156, 92, -10.5, 0.05, 0.4, 0.0),
    "crop": (84, 128, 70, -8.5, 0.04, 0.3, 0.05),
    "forest": (46, 74, 48, -6.0, 0.2, 1.5, 0.0),
    "road": (122, 120, 122, -19.0, 0.02, 0.2, 0.0),
    "yard": (146, 148, 122, -12.0, 0.08, 1.0, 0.0),
    "house": (168, 92, 72, -7.5, 0.02, 0.5, 0.0),
    "hall": (204, 204, 208, -5.0, 0.02, 0.5, 0.0),
    "vehicle": (246, 246, 240, 2.0, 0.0, 0.0, 0.0),
    "ship": (226, 216, 206, 5.0, 0.03, 0.0, 0.0),
}
CLASSES = tuple(SURFACES)
WATER, SAND, SOIL, WHEAT, PASTURE, CROP, FOREST, ROAD, YARD, HOUSE, HALL, VEHICLE, SHIP = range(len(CLASSES))
# For each kind of object: the surface it stands on; its half-lengths in pixels; its width divided by its length.
OBJECTS = {SHIP: (WATER, (5, 7, 9, 11, 13), 0.25), VEHICLE: (ROAD, (2.2, 2.6, 3.4), 0.5)}


@dataclass(frozen=True)
class Landscape:
    """What a kind of scene is made of.

    relief: standard deviation of the slope. town: least and greatest radius of the town, in fractions of the scene's
    side. fields: probabilities that a parcel outside the town is soil, wheat, pasture, crop or forest. forest: how far
    unit Gaussian noise must rise for wild forest. water: the kinds to draw from.
    """

    relief: float
    town: tuple[float, float]
    fields: tuple[float, float, float, float, float]
    forest: float
    water: tuple[str, ...]


LANDSCAPES = {
    "farmland": Landscape(0.04, (0.0, 0.15), (0.25, 0.25, 0.2, 0.22, 0.08), 1.6, ("none", "river", "lake")),
    "town": Landscape(0.03, (0.25, 0.4), (0.15, 0.2, 0.3, 0.2, 0.15), 1.7, ("none", "river")),
    "coast": Landscape(0.06, (0.1, 0.3), (0.2, 0.2, 0.25, 0.2, 0.15), 1.3, ("coast",)),
    "hills": Landscape(0.16, (0.0, 0.1), (0.1, 0.15, 0.4, 0.2, 0.15), 0.5, ("none", "lake")),
}


@dataclass(frozen=True)
class Scene:
    """Maps of (H, W), and the sun's direction in radians from south.

    classes: uint8, indices into `CLASSES`. height: int8, in `HEIGHT_STEPS` to the pixel. parcel: uint16. The others are
    float32: tone of parcels and roofs, -2 to 2; texture, unit Gaussian; furrows, -1 to 1; slopes to the right and down.
    """

    classes: np.ndarray
    height: np.ndarray
    parcel: np.ndarray
    tone: np.ndarray
    texture: np.ndarray
    furrows: np.ndarray
    slope_x: np.ndarray
    slope_y: np.ndarray
    sun: float


def make_scene(rng: np.random.Generator, size: int, land: Landscape) -> Scene:
    """Draws the ground, on it forest, roads, buildings and water, on those ships and vehicles."""
    lots = _draw_lots(rng, size, land)
    wild, bend, texture = (smooth_noise(rng, size, cell) for cell in (40, 80, 2.5))
    lot, u, v, furrows = _place_in_lots(rng, len(lots.ground), wild, bend)
    classes = lots.ground.take(lot)
    trees = (wild > land.forest) & (classes != YARD) | (texture > 1.2) & (classes == YARD)
    left, top = lots.left.take(lot), lots.top.take(lot)
    road = (u < left) | (v < top)
    distance, highway = _water_and_highway(rng, bend, wild, land)
    building = (np.abs(u - np.float32(0.6)) < lots.half_width.take(lot)) & ~(road | highway)
    building &= (np.abs(v - np.float32(0.6)) < lots.half_depth.take(lot)) & (distance > 4)
    np.putmask(classes, trees | (u < -left) | (v < -top), FOREST)
    np.putmask(classes, road, ROAD)
    np.copyto(classes, lots.roof.take(lot), where=building)
    np.putmask(classes, distance < 4, SAND)
    np.putmask(classes, distance < 0, WATER)
    np.putmask(classes, highway, ROAD)

    height = building * lots.height.take(lot)
    height += (classes == FOREST) * (np.float32(3.5 * HEIGHT_STEPS) + np.float32(1.5) * texture).astype(np.int8)
    tone = lots.tone.take(lot) * (distance > 0) + building * np.sign(v - np.float32(0.6))
    slopes = (slope * (distance > 0) for slope in _slopes(rng, size, land.relief))
    place_objects(rng, (classes,), SHIP, size**2 // 50, tries=rng.integers(2, 6))
    place_objects(rng, (classes,), VEHICLE, size**2 // 50, tries=rng.integers(4, 12))
    return Scene(classes, height, lots.parcel.take(lot), tone, texture, furrows, *slopes, sun=rng.uniform(-0.8, 0.8))


@lru_cache(maxsize=32)
def _spline_basis(size: int, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Cubic B-splines with a knot every `cell` pixels, and their derivatives per pixel: float32 (size, knots) each."""
    distance = np.arange(size)[:, None] / cell + 1 - np.arange(int(size / cell) + 4)
    a = np.abs(distance)
    value = np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.clip(2 - a, 0, None) ** 3 / 6)
    slope = np.where(a < 1, 1.5 * a**2 - 2 * a, -(np.clip(2 - a, 0, None) ** 2) / 2) * np.sign(distance) / cell
    return value.astype(np.float32), slope.astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, cell: float) -> np.ndarray:
    """Gaussian noise of unit variance that changes over `cell` pixels: float32 (size, size)."""
    basis, _ = _spline_basis(size, cell)
    knots = rng.standard_normal((basis.shape[1],) * 2, dtype=np.float32)
    return basis @ (knots * np.float32(315 / 151)) @ basis.T  # the squared splines sum up to 151 / 315 on average


def _slopes(rng: np.random.Generator, size: int, relief: float) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of a random relief to the right and down, of standard deviation `relief`: float32 (size, size) each."""
    slope_x = slope_y = np.float32(0)
    for cell, share in ((56, 0.8), (22, 0.6)):
        basis, derivative = _spline_basis(size, cell)
        # 0.565 is the standard deviation of the slope for unit knots one pixel apart.
        knots = rng.standard_normal((basis.shape[1],) * 2, dtype=np.float32) * np.float32(share * relief * cell / 0.565)
        slope_x = slope_x + basis @ knots @ derivative.T
        slope_y = slope_y + derivative @ knots @ basis.T
    return slope_x, slope_y


@dataclass(frozen=True)
class _Lots:
    """Maps of one value for each lot. `left`, `top`: width in lots of the road (positive) or hedge (negative) there."""

    parcel: np.ndarray
    ground: np.ndarray
    left: np.ndarray
    top: np.ndarray
    half_width: np.ndarray
    half_depth: np.ndarray
    roof: np.ndarray
    height: np.ndarray
    tone: np.ndarray


def _draw_lots(rng: np.random.Generator, size: int, land: Landscape) -> _Lots:
    """Divides the ground into rows of parcels and those into lots, and builds on the lots of the town."""
    count = int(1.5 * size / LOT) + 8
    row = np.repeat(np.arange(count), rng.integers(2, 6, count))[:count, None]
    column = (np.arange(count) + rng.integers(0, 8, count)[row]) // rng.integers(2, 7, count)[row]
    parcel = np.unique(row * count + column, return_inverse=True)[1].reshape(count, count)
    shape, parcels = parcel.shape, parcel.max() + 1
    town = _in_town(rng, parcel, size, land)
    fields = rng.choice((SOIL, WHEAT, PASTURE, CROP, FOREST), parcels, p=land.fields)[parcel]
    hall = (rng.random(parcels) < 0.3)[parcel]
    built = town & (rng.random(shape) < 0.9)
    half_width = built * np.where(hall, 0.5, rng.uniform(0.2, 0.34, shape))
    half_depth = built * np.where(hall, 0.36, rng.uniform(0.2, 0.32, shape))
    height = built * HEIGHT_STEPS * np.where(hall, rng.uniform(5, 9, parcels)[parcel], rng.uniform(3, 6, shape))
    tone = np.where(built & ~hall, rng.uniform(-1, 1, shape), rng.uniform(-1, 1, parcels)[parcel])

    def border(axis: int, country_road: bool | np.ndarray) -> np.ndarray:
        paved = town | np.roll(town, 1, axis) | country_road
        hedge = (rng.random(parcels) < 0.3)[parcel]
        return (parcel != np.roll(parcel, 1, axis)) * np.where(paved, STREET, np.where(hedge, -HEDGE, 0))

    return _Lots(
        parcel=parcel.astype(np.uint16),
        ground=np.where(town, YARD, fields).astype(np.uint8),
        left=border(1, False).astype(np.float32),
        top=border(0, (rng.random(count) < 0.3)[row]).astype(np.float32),
        half_width=half_width.astype(np.float32),
        half_depth=half_depth.astype(np.float32),
        roof=np.where(hall, HALL, HOUSE).astype(np.uint8),
        height=height.astype(np.int8),
        tone=tone.astype(np.float32),
    )


def _in_town(rng: np.random.Generator, parcel: np.ndarray, size: int, land: Landscape) -> np.ndarray:
    """bool, a value per lot: whether the middle of its parcel lies within the town's radius."""
    lots = np.bincount(parcel.ravel())
    middles = [np.bincount(parcel.ravel(), index.ravel()) / lots for index in np.indices(parcel.shape)]
    y, x = len(parcel) / 2 + rng.uniform(-0.25, 0.25, 2) * size / LOT
    return (np.hypot(middles[0] - y, middles[1] - x) < rng.uniform(*land.town) * size / LOT)[parcel]


def _place_in_lots(
    rng: np.random.Generator, count: int, wild: np.ndarray, bend: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel the flat index of its lot, its place (u, v) from 0 to 1 inside it, and the furrows along u."""
    axis = (np.arange(len(wild), dtype=np.float32) - np.float32(len(wild) / 2)) / LOT
    angle = rng.uniform(-0.5, 0.5)
    cos, sin, middle = np.float32(np.cos(angle)), np.float32(np.sin(angle)), np.float32(count / 2)
    u = (cos * axis + middle) + (sin * axis)[:, None] + bend * np.float32(0.3)
    v = (cos * axis + middle)[:, None] - sin * axis + wild * np.float32(0.1)
    column, row = np.floor(u), np.floor(v)
    lot = (row * np.float32(count) + column).astype(np.intp)
    return lot, u - column, v - row, np.sin(v * np.float32(22))


def _water_and_highway(
    rng: np.random.Generator, bend: np.ndarray, wild: np.ndarray, land: Landscape
) -> tuple[np.ndarray, np.ndarray]:
    """The distance to the water's edge in pixels, negative in the water, and the mask of a road that bridges rivers."""
    size = len(bend)
    x = np.arange(size, dtype=np.float32) - np.float32(size / 2)
    y = x[:, None]
    kind = rng.choice(land.water)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shift, width = np.float32(rng.uniform(-0.2, 0.2) * size), np.float32(rng.uniform(6, 14))
    wander = bend * np.float32(16) + wild * np.float32(5)
    if kind == "coast":
        distance = cos * x + sin * y + wander + shift
    elif kind == "river":
        distance = np.abs(cos * x + sin * y + wander + shift) - width
    elif kind == "lake":
        centre, radius = np.float32(size / 3), np.float32(0.1 * size) + width
        distance = np.sqrt((x - cos * centre) ** 2 + (y - sin * centre) ** 2) + wander - radius
    else:
        distance = np.full_like(bend, size)
    offset = np.float32(rng.uniform(-0.3, 0.3) * size)
    highway = np.abs(cos * y - sin * x + bend * np.float32(12) + offset) < 3.2
    return distance, highway & (kind in ("river", "none"))


@lru_cache(maxsize=1024)
def _outline(half: float, slenderness: float, direction: int) -> np.ndarray:
    """An object of half-length `half` pixels, turned by `direction` times pi / 16: bool, square, of odd side."""
    angle, reach = direction * np.pi / 16, int(half) + 1
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    return (along / half) ** 4 + (across / (half * slenderness)) ** 2 < 1


def place_objects(rng: np.random.Generator, maps: Sequence[np.ndarray], kind: int, limit: int, tries: int) -> int:
    """Writes ships on water or vehicles on roads, in place, each into one of `maps` drawn at random.

    Returns the pixels covered, at most `limit`. Of an object only the part over water or road in every map is kept, and
    nothing if that is less than two thirds of it, if it reaches the edge of the image or would pass the limit.
    """
    medium, lengths, slenderness = OBJECTS[kind]
    size, covered = len(maps[0]), 0
    places = np.flatnonzero(maps[0] == medium)
    if len(places) == 0:
        return 0
    centres = places[rng.integers(len(places), size=tries)].tolist()
    halves, directions = rng.choice(lengths, tries).tolist(), rng.integers(16, size=tries).tolist()
    chosen = rng.integers(len(maps), size=tries).tolist()
    for centre, half, direction, which in zip(centres, halves, directions, chosen, strict=True):
        outline = _outline(half, slenderness, direction)
        side = len(outline)
        top, left = centre // size - side // 2, centre % size - side // 2
        if min(top, left) < 0 or max(top, left) + side > size:
            continue
        window = slice(top, top + side), slice(left, left + side)
        free = np.logical_and.reduce([outline, *(surfaces[window] == medium for surfaces in maps)])
        pixels = int(np.count_nonzero(free))
        if 3 * pixels >= 2 * np.count_nonzero(outline) and covered + pixels <= limit:
            maps[which][window][free] = kind
            covered += pixels
    return covered
