"""Generated pairs: one scene rendered as an EO image and as a SAR image, with known discrepancies between the two.

A pixel stands for about 2.5 m. The sun stands in the south (the lower edge), so shadows point upwards. The radar looks
from the left edge to the right: buildings lean to the left over bright ground, and throw a radar shadow to the right.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import Affine
from tqdm.auto import tqdm

from c_diffset.files import folder_aside
from c_diffset.synthetic.world import (
    CLASSES,
    FOREST,
    HALL,
    HEIGHT_STEPS,
    HOUSE,
    LANDSCAPES,
    SHIP,
    SOIL,
    SURFACES,
    VEHICLE,
    Scene,
    make_scene,
    place_objects,
)

__all__ = ["CLASSES", "LANDSCAPES", "SPLITS", "SyntheticPair", "make_pair", "to_display", "write_pairs"]

DISPLAY_RANGE_DB = (-25.0, 0.0)
SPLITS = ("train", "validation", "test")
SAR_FORMATS = ("png", "tif")
SIZES = (32, 4096)
MAX_DISCREPANCY = 0.5
PIXEL_METRES = 2.5

_TABLE = np.array(list(SURFACES.values()), dtype=np.float32).T.copy()
COLOUR, (SIGMA0_DB, EO_TEXTURE, SAR_TEXTURE_DB, FURROWS) = _TABLE[:3], _TABLE[3:]
SKY_LIGHT = (0.42, 0.47, 0.58)  # the share of its red, green and blue light that the ground keeps in a shadow
LAYOVER_DB, DOUBLE_BOUNCE_DB, RADAR_SHADOW_DB = -3.0, 4.0, -21.0


@dataclass(frozen=True)
class SyntheticPair:
    """A scene seen by both sensors.

    sar: float32 (H, W), linear power sigma0 with speckle. eo: uint8 (H, W, 3). discrepancy: bool (H, W), True where the
    two images show different surfaces. classes: uint8 (H, W), the scene without discrepancies, indices into `CLASSES`.
    region: the landscape, a key of `LANDSCAPES`.
    """

    sar: np.ndarray
    eo: np.ndarray
    discrepancy: np.ndarray
    classes: np.ndarray
    region: str


def make_pair(seed: int | Sequence[int], size: int = 256, looks: float = 4, discrepancy: float = 0.0) -> SyntheticPair:
    """Renders the scene of `seed`: a pure function of its arguments.

    Args:
        seed: Random seed of the scene: a non-negative integer, or several.
        size: The side in pixels, from 32 to 4096. A larger scene shows more ground at the same scale.
        looks: The shape of the gamma speckle, of mean 1 and variance 1 / looks, which is independent between pixels.
        discrepancy: The fraction of pixels, from 0 to 0.5, where the images disagree: ships and vehicles that only one
            of them shows fill at most a third of it, parcels under another crop in one of them the rest. The mask has
            exactly round(discrepancy * size**2) pixels, or fewer where the scene has too few fields and forests.

    Two pairs that differ in `discrepancy` alone are identical outside their masks.

    Raises:
        ValueError: for a value outside these ranges.
    """
    _check(size, looks, discrepancy)
    scene_rng, change_rng, grain_rng, speckle_rng = np.random.default_rng(seed).spawn(4)
    region = tuple(LANDSCAPES)[scene_rng.integers(len(LANDSCAPES))]
    scene = make_scene(scene_rng, size, LANDSCAPES[region])
    shadow, layover = _cast(scene.height, 0, 1), _cast(_walls(scene), 0, -1)
    seen_by_sar, seen_by_eo = _disagree(change_rng, scene, shadow | layover, round(discrepancy * size**2))
    sar = _backscatter(scene, seen_by_sar, shadow, layover)
    sar *= speckle_rng.standard_gamma(looks, sar.shape, dtype=np.float32) * np.float32(1 / looks)
    eo = _reflectance(scene, seen_by_eo, grain_rng.random(sar.shape, dtype=np.float32))
    return SyntheticPair(sar, eo, seen_by_sar != seen_by_eo, scene.classes, region)


def _check(size: int, looks: float, discrepancy: float) -> None:
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size is {size}, expected {SIZES[0]} to {SIZES[1]} pixels")
    if not looks > 0:
        raise ValueError(f"looks is {looks}, expected a positive number")
    if not 0 <= discrepancy <= MAX_DISCREPANCY:
        raise ValueError(f"discrepancy is {discrepancy}, expected a fraction of pixels from 0 to {MAX_DISCREPANCY}")


def to_display(power: np.ndarray) -> np.ndarray:
    """Linear power to uint8 of the same shape: linear in dB from 0 at -25 dB to 255 at 0 dB, and clipped.

    Raises ValueError for NaN and infinity.
    """
    if not np.isfinite(power).all():
        raise ValueError("power holds NaN or infinity, expected finite values")
    low, high = DISPLAY_RANGE_DB
    db = 10 * np.log10(np.clip(power, 10 ** (low / 10), 10 ** (high / 10)))
    return np.rint((db - low) * (255 / (high - low))).astype(np.uint8)


def _disagree(rng: np.random.Generator, scene: Scene, hidden: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Copies of the scene's surfaces for SAR and for EO that differ in `pixels` pixels (see `make_pair`).

    They never differ where `hidden`: the radar does not see the ground there, and the difference would be none.
    """
    maps = scene.classes.copy(), scene.classes.copy()
    if pixels == 0:
        return maps
    for kind, tries in ((SHIP, 8), (VEHICLE, 16)):
        place_objects(rng, maps, kind, pixels // 6, tries)
    for surfaces in maps:
        np.copyto(surfaces, scene.classes, where=hidden)
    covered = int(np.count_nonzero(maps[0] != maps[1]))
    # Whole parcels in a random order, all fields before any forest; the last parcel changes in part.
    parcels = int(scene.parcel.max()) + 1
    places = np.flatnonzero((scene.classes >= SOIL) & (scene.classes <= FOREST) & ~hidden)
    parcel, surface = scene.parcel.ravel()[places], scene.classes.ravel()[places]
    rank = rng.permutation(parcels)[parcel] + parcels * (surface == FOREST)
    changing = np.argsort(rank.astype(np.uint16), kind="stable")[: pixels - covered]
    places, parcel, surface = places[changing], parcel[changing], surface[changing]
    other_crop = SOIL + (surface - SOIL + rng.integers(1, 4, parcels, dtype=np.uint8)[parcel]) % 4
    in_sar = (rng.random(parcels) < 0.5)[parcel]
    for surfaces, here in zip(maps, (in_sar, ~in_sar), strict=True):
        surfaces.ravel()[places[here]] = other_crop[here]
    return maps


def _shifted(height: np.ndarray, down: int, right: int) -> np.ndarray:
    """The map moved by whole pixels; what enters at the edge has height 0."""
    out = np.zeros_like(height)
    rows, columns = height.shape
    source = height[max(-down, 0) : rows - max(down, 0), max(-right, 0) : columns - max(right, 0)]
    out[max(down, 0) : rows - max(-down, 0), max(right, 0) : columns - max(-right, 0)] = source
    return out


def _cast(height: np.ndarray, down: float, right: float) -> np.ndarray:
    """bool (H, W): where heights, projected at 45 degrees along the unit vector (down, right), cover lower pixels."""
    covered = np.zeros(height.shape, bool)
    for step in range(1, int(height.max()) // HEIGHT_STEPS + 1):
        caster = _shifted(height, round(step * down), round(step * right))
        covered |= caster > height + np.int8(step * HEIGHT_STEPS)
    return covered


def _reflectance(scene: Scene, classes: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """The EO image, uint8 (H, W, 3): colour by surface, shading of the relief, shadows. grain: uniform in [0, 1)."""
    down, right = np.float32(np.cos(scene.sun)), np.float32(np.sin(scene.sun))
    index = classes.astype(np.intp)
    light = EO_TEXTURE.take(index) * scene.texture + FURROWS.take(index) * scene.furrows
    light += np.float32(0.08) * scene.tone + np.float32(0.06) * grain + np.float32(0.97)
    light *= np.maximum(1 - np.float32(1.6) * (scene.slope_y * down + scene.slope_x * right), np.float32(0.3))
    shadow = _cast(scene.height, -down, -right)
    eo = np.empty((*classes.shape, 3), np.uint8)
    for channel, sky_light in enumerate(SKY_LIGHT):
        value = COLOUR[channel].take(index) * light
        value *= np.float32(1) - shadow * np.float32(1 - sky_light)
        eo[..., channel] = np.clip(value, 0, 255, out=value)
    return eo


def _walls(scene: Scene) -> np.ndarray:
    """The heights of the buildings alone, int8 (H, W)."""
    return scene.height * ((scene.classes == HOUSE) | (scene.classes == HALL))


def _backscatter(scene: Scene, classes: np.ndarray, shadow: np.ndarray, layover: np.ndarray) -> np.ndarray:
    """The SAR image without speckle, float32 (H, W), linear power: surface, relief, shadow, layover, double bounce."""
    index = classes.astype(np.intp)
    db = SIGMA0_DB.take(index) + SAR_TEXTURE_DB.take(index) * scene.texture
    db += np.float32(0.8) * scene.tone + np.float32(18) * scene.slope_x
    np.putmask(db, shadow, RADAR_SHADOW_DB)
    np.maximum(db, LAYOVER_DB, out=db, where=layover)
    np.putmask(db, layover & (_shifted(_walls(scene), 0, -2) > 0), DOUBLE_BOUNCE_DB)
    return np.exp(db * np.float32(np.log(10) / 10))


def write_pairs(
    out: str | os.PathLike,
    count: int,
    size: int = 256,
    seed: int = 0,
    looks: float = 4,
    discrepancy: float = 0.0,
    split: str = "train",
    sar_format: str = "png",
    progress: bool = False,
) -> Path:
    """Writes `count` pairs in the `imagefolder` layout and returns their folder, `out/split`.

    The folder, which is written whole or not at all, holds `{sar,eo,discrepancy}/NNNN.*` and `metadata.jsonl` with the
    keys `sar_file_name`, `eo_file_name`, `discrepancy_file_name`, `id` and `region` (the landscape). EO and discrepancy
    (255 where the images disagree) are PNG. Splits of one seed share no scene.

    Args:
        out: The data set's folder, in which the folder of the split is made.
        count: The number of pairs.
        size: The side of the images in pixels, from 32 to 4096.
        seed: Random seed of the scenes. Pair i is `make_pair((seed, SPLITS.index(split), i), ...)`.
        looks: The number of looks of the speckle: fewer are noisier.
        discrepancy: The fraction of pixels, from 0 to 0.5, where the two images show different things.
        split: The split to write: train, validation or test.
        sar_format: The format of the SAR images: "png" for 8-bit `to_display` values, or "tif" for float32 dB with a
            made-up georeference.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: a value is outside its range.
        FileExistsError: `out/split` holds something.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected a non-negative integer")
    for name, value, known in (("split", split, SPLITS), ("sar_format", sar_format, SAR_FORMATS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    _check(size, looks, discrepancy)
    folder, lines = Path(out) / split, []
    with folder_aside(folder) as aside:
        for i in tqdm(range(count), desc=f"{split} pairs", disable=not progress):
            pair = make_pair((seed, SPLITS.index(split), i), size, looks, discrepancy)
            row = _write_pair(aside, f"{i:04d}", pair, sar_format) | {"id": f"{split}-{i:04d}", "region": pair.region}
            lines.append(json.dumps(row) + "\n")
        (aside / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def _write_pair(folder: Path, name: str, pair: SyntheticPair, sar_format: str) -> dict[str, str]:
    """Writes the three images and returns their names relative to `folder`, under the keys of the metadata."""
    names = {"sar": f"sar/{name}.{sar_format}", "eo": f"eo/{name}.png", "discrepancy": f"discrepancy/{name}.png"}
    for file_name in names.values():
        (folder / file_name).parent.mkdir(parents=True, exist_ok=True)
    if sar_format == "tif":
        _write_db(folder / names["sar"], pair.sar)
    else:
        Image.fromarray(to_display(pair.sar)).save(folder / names["sar"])
    Image.fromarray(pair.eo).save(folder / names["eo"])
    Image.fromarray(pair.discrepancy.astype(np.uint8) * 255).save(folder / names["discrepancy"])
    return {f"{kind}_file_name": file_name for kind, file_name in names.items()}


def _write_db(path: Path, power: np.ndarray) -> None:
    """Writes one float32 band in dB as GeoTIFF."""
    rows, columns = power.shape
    place = {"crs": "EPSG:32631", "transform": Affine(PIXEL_METRES, 0, 500_000, 0, -PIXEL_METRES, 0)}
    with rasterio.open(path, "w", driver="GTiff", height=rows, width=columns, count=1, dtype="float32", **place) as tif:
        tif.write(10 * np.log10(power), 1)
