"""SAR scenes in GeoTIFF: their bands, units, valid pixels and place on the ground."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rasterio import DatasetReader
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from c_diffset.inference.grid import check_size, find_part, place_of, warped
from c_diffset.inference.options import ReadOptions
from c_diffset.inference.source import fill_invalid, sample
from c_diffset.inference.tiles import Box
from c_diffset.pipelines.pipeline_cdiffset import FULL_SCALE, LOWEST, count_bands
from c_diffset.sar.gdal import open_raster, reading
from c_diffset.sar.radiometry import (
    DARKEST,
    REFLECTANCE,
    UNITS,
    apply_scaling,
    convert_units,
    doubt_units,
    measured,
    polarisation,
    to_model,
)
from c_diffset.sar.speckle import HALO, refined_lee

SENTINEL_2 = {"B04": "red", "B03": "green", "B02": "blue"}  # and the harmonised Landsat of NASA
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
FILL_MARGIN = 13  # pixels around a window that missing pixels are filled from before speckle is filtered


class SarRaster:
    """A GeoTIFF that a model can read window by window: a `Source` with a place on the ground.

    Args:
        path: a GeoTIFF, tiled or not, of any size. Files beside it are not read.
        sar_transform: of the model, see `sar_to_tensor`.
        options: how it is read; warping starts from its coordinate system, or from its ground control points.
        file: what is read in its place; errors speak of `path`.
        eo_transform: of a model that upscales EO scenes: those that hold reflectance are read as the images were that
            it was trained on, where these came from reflectance, too.

    Raises:
        ValueError: units or bands are not certain, or do not fit the model; complex pixels; nothing to warp from.
        OSError: not a readable GeoTIFF.
    """

    def __init__(
        self,
        path: Path,
        sar_transform: dict,
        options: ReadOptions | None = None,
        file: Path | None = None,
        eo_transform: dict | None = None,
    ):
        options = options or ReadOptions()
        options.check()
        colours = count_bands(sar_transform["channels"]) == 3
        self.eo_transform = eo_transform if colours and (eo_transform or {}).get("units") == REFLECTANCE else None
        self.path, self.sar_transform, self.despeckle, self.units = path, sar_transform, options.despeckle, None
        self.units_are = ""  # given, declared (by the file), detected, or assumed (where no pixel is valid)
        with reading(self.path):
            self.raster = raster = open_raster(file or path)
            self.part = Box(0, 0, *raster.shape) if options.is_warped else find_part(path, raster, options)
            check_size(path, *self.part.size, options.max_pixels)
            if raster.dtypes[0].startswith("complex"):  # GDAL has complex integers, which numpy has not
                raise ValueError(f"{path}: complex pixels; expected detected ones (GRD, or the squared magnitude)")
            self.dtype = np.dtype(raster.dtypes[0])
            count = sum(colour != ColorInterp.alpha for colour in raster.colorinterp)
            names = names_of_bands(raster)
            self.bands = choose_bands(path, count, names[:count], sar_transform, options.bands)
            self.tags = raster.tags()  # which a warped raster does not have
            self.names = [names[band - 1] for band in self.bands]
            self.scales = tuple(raster.scales[band - 1] for band in self.bands)
            self.offsets = tuple(raster.offsets[band - 1] for band in self.bands)
            self.scaled = set(self.scales) != {1.0} or set(self.offsets) != {0.0}
            self.units, self.units_are = self._find_units(options.units, raster.units[self.bands[0] - 1])
            self._check_units()
            if options.is_warped:
                zero_is_missing = self.units != "display" and not any(self.offsets)
                self.raster = warped(raster, options, path, zero_is_missing)
                self.part = find_part(path, self.raster, options)
                check_size(path, *self.part.size, options.max_pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the part that is read, in pixels."""
        return self.part.size

    @property
    def reach(self) -> Box:
        """The whole raster, seen from the part that is read."""
        return Box(0, 0, *self.raster.shape).moved(*self.part[:2])

    @property
    def place(self) -> dict:
        """What a raster on the same pixels needs: `crs` with `transform` or `gcps`, as far as there are any."""
        return place_of(self.raster, self.part)

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the first pixel, from the origin of the coordinate system; from the scene's if rotated."""
        row, column = self._origin_of_whole()
        return row + self.part.top, column + self.part.left

    def _origin_of_whole(self) -> tuple[int, int]:
        a, b, left, d, e, top = self.raster.transform[:6]
        if b or d or not (a and e and all(map(math.isfinite, (a, e, left, top)))) or self.raster.gcps[0]:
            return 0, 0
        position = top / e + 0.5 + 1e-4, left / a + 0.5 + 1e-4
        return tuple(map(math.floor, position)) if max(map(abs, position)) < 2**52 else (0, 0)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Of the bands that are read: polarisations, else what the file calls them, else their numbers."""
        named = zip(self.names, self.bands, strict=True)
        return tuple(polarisation(name) or name or str(band) for name, band in named)

    @property
    def polarisations(self) -> list[str]:
        """Of the bands that are read, as far as their descriptions name them."""
        return [found for name in self.names if (found := polarisation(name))]

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Channels x H x W in [-1, 1] as the model sees them, and bool H x W, True where valid.

        Raises:
            OSError: the file is truncated or damaged there.
            ValueError: the values cannot be in the units.
        """
        box = box.moved(-self.part.top, -self.part.left)
        with reading(self.path):
            around = box if not self.despeckle else self._around(box)
            values, valid = self._read(around)
            if self.despeckle:
                inside = box.slices(*around[:2])
                values, valid = (self._filter(values, valid) if valid.any() else values)[inside], valid[inside]
            try:
                return to_model(np.moveaxis(self._to_model_units(values), 0, -1), valid, self.sar_transform)
            except ValueError as error:
                raise ValueError(f"{self.path}, rows {box.top} to {box.bottom}: {error}") from None

    def valid(self, box: Box) -> np.ndarray:
        """Bool H x W, True where `read` finds valid pixels.

        Raises:
            OSError: as `read`.
        """
        with reading(self.path):
            return self._read(box.moved(-self.part.top, -self.part.left))[1]

    def _around(self, box: Box) -> Box:
        margin = HALO + FILL_MARGIN
        wider = Box(box.top - margin, box.left - margin, box.bottom + margin, box.right + margin)
        return wider.common(Box(0, 0, *self.raster.shape))

    def _read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Bands x H x W in the scene's units, unscaled, and which pixels hold something; a box of the whole raster."""
        window = Window(box.left, box.top, box.size[1], box.size[0])
        values = self.raster.read(self.bands, window=window)
        valid, declared = np.ones(box.size, bool), False
        if any(MaskFlags.all_valid not in self.raster.mask_flag_enums[band - 1] for band in self.bands):
            valid, declared = (self.raster.read_masks(self.bands, window=window) > 0).all(axis=0), True
        if ColorInterp.alpha in self.raster.colorinterp:  # which GDAL's masks heed in some files only
            alpha = 1 + self.raster.colorinterp.index(ColorInterp.alpha)
            valid, declared = valid & (self.raster.read(alpha, window=window) > 0), True
        values = apply_scaling(values, self.scales, self.offsets)
        if self.units not in (None, "display"):
            values = values.astype(np.float32, copy=False)
        return values, valid & measured(values, self.units, declared)

    def _filter(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Refined Lee on power, whatever the units."""
        power = convert_units(fill_invalid(values, valid), self.units, "power")
        return convert_units(refined_lee(power), "power", self.units)

    def _to_model_units(self, values: np.ndarray) -> np.ndarray:
        wanted = self.sar_transform["units"]
        if self.units == REFLECTANCE:
            from c_diffset.data.eo import eo_to_tensor  # which takes a second, and most scenes need it not

            if not self._reads_8_bits:
                return np.clip(values / np.float32(FULL_SCALE["uint16"]), 0, 1)
            assert self.eo_transform is not None
            return eo_to_tensor(values, self.eo_transform).numpy() * 0.5 + 0.5
        values = convert_units(values, self.units, wanted)
        return np.maximum(values, np.float32(DARKEST)) if wanted == "power" else values

    @property
    def _reads_8_bits(self) -> bool:
        """Whether the model reads 8-bit levels, and not what 16-bit files of reflectance store."""
        return bool(np.all(np.broadcast_to(self.sar_transform.get("range", [0, 1]), (3, 2)) == [0, 1]))

    def _find_units(self, units: str | None, declared: str | None) -> tuple[str, str]:
        """As told, or where only one answer is possible: declared dB, 8 bits, floats mostly below what power can be.

        Raises:
            ValueError: more than one answer is possible, or the values cannot be in these units.
        """
        how = "given"
        if units is None and (declared or "").strip().lower() in ("db", "decibel", "decibels"):
            units, how = "db", "declared"
        if self.dtype == np.uint8 and self.eo_transform is not None and not self._reads_8_bits:
            reads = "this model reads reflectance as files of 16 bits store it"
            raise ValueError(f"{self.path}: 8-bit pixels, but {reads}")
        if units in (None, "display") and self.dtype == np.uint8 and not self.scaled:
            return "display", how if units else "detected"
        if units is None and self.eo_transform is not None and self.dtype.kind in "ui":
            units, how = REFLECTANCE, "detected"
        if units == REFLECTANCE:
            self._check_reflectance()
            return units, how
        values = sample(self._read, self.part)
        if units is None:
            units, how = self._detect_units(values)
        if doubt := doubt_units(values, units, self.sar_transform):
            raise ValueError(f"{self.path}: units is {units!r} ({how}), but {doubt}")
        return units, how

    def _detect_units(self, values: np.ndarray) -> tuple[str, str]:
        """Units that can be no other, by a sample of the values, bands x N; fill values are left out."""
        real, floats = values[0][(values[0] != 0) & (values[0] > LOWEST["db"])], self.dtype.kind == "f" or self.scaled
        if not values.any() or (floats and not real.size):
            return self.sar_transform["units"], "assumed"  # no valid pixel: nothing to convert
        if floats and 2 * np.count_nonzero(real < LOWEST["power"]) > real.size:
            return "db", "detected"
        found = f"{self.dtype} pixels" + ("" if self.dtype.kind != "f" else ", not mostly negative")
        raise ValueError(
            f"{self.path}: the units of its pixels ({found}) are not certain: say `units`, one of {', '.join(UNITS)} "
            f"(this model reads {self.sar_transform['units']})"
        )

    def _check_reflectance(self) -> None:
        """Refuse reflectance that the model does not read, or that is on another scale."""
        from c_diffset.data.eo import doubt_reflectance

        if self.eo_transform is None:
            raise ValueError(
                f"{self.path}: units is 'reflectance', which this model was not trained on: stretch the scene to 8 "
                "bits, as the images that it upscales are"
            )
        if doubt := doubt_reflectance(sample(self._read, self.part), self.eo_transform):
            raise ValueError(f"{self.path}: {doubt}")

    def _check_units(self) -> None:
        """Refuse display values for a model that reads backscatter, and the other way round."""
        wanted = self.sar_transform["units"]
        picture = self.units in ("display", REFLECTANCE)
        if picture != (wanted == "display"):
            raise ValueError(
                f"{self.path}: pixels are {self.units}, but this model reads {wanted}: display values are not "
                "calibrated, so neither follows from the other; use a model trained on such scenes"
            )
        if picture and self.despeckle:
            found = f"{self.units} values have no speckle statistics"
            raise ValueError(f"{self.path}: {found}: leave the speckle filter out")
        if self.units == "display" and self.dtype.kind != "f" and self.dtype.name not in FULL_SCALE:
            raise ValueError(f"{self.path}: display values of type {self.dtype}: expected uint8, uint16 or float")


def names_of_bands(raster: DatasetReader) -> list[str | None]:
    """What a file calls each of its bands: its description, else red, green or blue where it is so coloured."""
    named = zip(raster.descriptions, raster.colorinterp, strict=True)
    return [text or (colour.name if colour in COLOURS else None) for text, colour in named]


def choose_bands(
    path: Path, count: int, descriptions: Sequence[str | None], sar_transform: dict, asked: list[str] | None
) -> list[int]:
    """Numbers, from 1, of the bands that the model reads, in its order.

    Raises:
        ValueError: asked bands that the scene does not have, or no certain choice.
    """
    expected = count_bands(sar_transform["channels"])
    names = [polarisation(text) or SENTINEL_2.get((text or "").upper(), text) for text in descriptions]
    has = f"{path} has {count} band{'s' * (count > 1)} ({', '.join(map(str, names))})"
    wanted = asked or sar_transform.get("bands")
    if asked is not None and len(asked) != expected:
        raise ValueError(f"{has}; this model reads {expected}, but `bands` names {len(asked)}: {asked}")
    if asked is None and (wanted is None or not any(names)):
        if count == expected and (expected == 1 or wanted is None):
            return list(range(1, count + 1))
        reads = f"{expected}" + ("" if wanted is None else f": {', '.join(wanted)}")
        raise ValueError(f"{has}; this model reads {reads}: say which with `bands`, by name or number from 1")
    chosen = []
    for name in wanted:
        same = [i for i, text in enumerate(descriptions, 1) if (text or "").upper() == name.upper()]
        found = same or [i for i, text in enumerate(names, 1) if (text or "").upper() == name.upper()]
        if not found and asked is not None and name.isdecimal() and 1 <= int(name) <= count:
            found = [int(name)]
        if len(found) > 1:
            raise ValueError(f"{has}, and {len(found)} of them are {name}: say which with `bands`, by number from 1")
        if not found:
            hint = "" if asked is not None else ", which this model was trained on; `bands` chooses another"
            raise ValueError(f"{has}, but no band {name}{hint}")
        chosen += found
    order, reads = [str(names[band - 1]) for band in chosen], sar_transform.get("bands") or [str(expected)]
    mistake = "one of them twice" if len(set(chosen)) < len(chosen) else None
    if order != list(reads) and sorted(order) == sorted(reads):
        mistake = "them in another order"
    if mistake:
        raise ValueError(f"{has}; this model reads {', '.join(reads)}, but `bands` names {mistake}: {asked}")
    return chosen
