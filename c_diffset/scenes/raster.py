"""SAR scenes in GeoTIFF: their bands, units, valid pixels and place on the ground."""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform
from rasterio.windows import Window

from c_diffset.pipelines.pipeline_cdiffset import FULL_SCALE, count_bands
from c_diffset.scenes.canvas import fill_invalid, to_model
from c_diffset.scenes.grid import Box
from c_diffset.scenes.speckle import HALO, refined_lee

UNITS = ("display", "db", "power", "amplitude")
POLARISATION = re.compile(r"(?<![A-Z])(VV|VH|HH|HV)(?![A-Z])")
CACHE_MB = 64  # of GDAL's blocks: the default is a twentieth of the machine's memory
LOWEST_DB = -100  # no sensor measures less: such values stand for missing ones
SAMPLES = 8  # windows along each axis that units are detected in


@contextmanager
def gdal() -> Iterator[None]:
    """GDAL with a small cache; its errors as OSError."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB, GDAL_TIFF_INTERNAL_MASK=True):
        try:
            yield
        except (RasterioError, CPLE_BaseError) as error:
            raise OSError(str(error.__cause__ or error)) from error


def open_raster(path: Path, mode: str = "r", **profile):
    """`rasterio.open` for GeoTIFF alone (no VRT that points at other files), quiet where there are no coordinates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, driver="GTiff", **profile)


class SarRaster:
    """A GeoTIFF that a model can read window by window: a `Source` with a place on the ground.

    Args:
        path: a GeoTIFF, tiled or not, of any size.
        sar_transform: of the model, see `sar_to_tensor`.
        units: "display", "db", "power" or "amplitude"; detected where certain when None.
        bands: names (polarisations, as the band descriptions have them) or numbers from 1, in the order of the model;
            found by `sar_transform["bands"]` when None.
        despeckle: filter speckle (refined Lee) before the model.
        crs: warp to this coordinate system ("EPSG:32631"), from the scene's own or its ground control points.
        resolution: pixel size after warping, in units of `crs`; that of the scene when None.

    Raises:
        ValueError: units or bands are not certain, or do not fit the model; complex pixels; nothing to warp from.
        OSError: not a readable GeoTIFF.
    """

    def __init__(
        self,
        path: Path,
        sar_transform: dict,
        units: str | None = None,
        bands: list[str] | None = None,
        despeckle: bool = False,
        crs: str | None = None,
        resolution: float | None = None,
    ):
        if units is not None and units not in UNITS:
            raise ValueError(f"units is {units!r}: expected one of {UNITS}")
        self.path, self.sar_transform, self.despeckle, self.units = path, sar_transform, despeckle, units
        with self._reading():
            raster = open_raster(path)
            self.raster = raster if crs is None and resolution is None else _warped(raster, crs, resolution, path)
            self.dtype = np.dtype(raster.dtypes[0])
            if self.dtype.kind == "c":
                raise ValueError(f"{path}: complex pixels; expected detected ones (GRD, or the squared magnitude)")
            self.bands = choose_bands(path, raster.count, raster.descriptions, sar_transform, bands)
            self.names = [raster.descriptions[band - 1] for band in self.bands]
            self.scaling = [(raster.scales[band - 1], raster.offsets[band - 1]) for band in self.bands]
            self.units = units or self._detect_units(raster.units[self.bands[0] - 1])
        self._check_units()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.raster.height, self.raster.width

    @property
    def place(self) -> dict:
        """What a raster on the same pixels needs: `crs` with `transform` or `gcps`, as far as there are any."""
        gcps, gcps_crs = self.raster.gcps
        if gcps:
            return {"gcps": gcps, "crs": gcps_crs}
        if self.raster.crs is None and self.raster.transform.is_identity:
            return {}
        return {"crs": self.raster.crs, "transform": self.raster.transform}

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the first pixel, counted from the origin of the coordinate system; (0, 0) if rotated."""
        a, b, left, d, e, top = self.raster.transform[:6]
        if b or d or self.raster.gcps[0]:
            return 0, 0
        return math.floor(top / e + 0.5 + 1e-4), math.floor(left / a + 0.5 + 1e-4)

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
        with self._reading():
            around = box if not self.despeckle else self._around(box)
            values, valid = self._read(around)
            if self.despeckle and valid.any():
                values, inside = self._filter(values, valid), box.slices(*around[:2])
                values, valid = values[inside], valid[inside]
            try:
                return to_model(np.moveaxis(self._to_model_units(values), 0, -1), valid, self.sar_transform)
            except ValueError as error:
                raise ValueError(f"{self.path}, rows {box.top} to {box.bottom}: {error}") from None

    def _around(self, box: Box) -> Box:
        wider = Box(box.top - HALO, box.left - HALO, box.bottom + HALO, box.right + HALO)
        return wider.common(Box(0, 0, *self.size))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with gdal():
                yield
        except OSError as error:
            raise OSError(f"{self.path}: not a readable GeoTIFF: {error}") from error

    def _read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Bands x H x W in the scene's units, unscaled, and which pixels hold something."""
        window = Window(box.left, box.top, box.size[1], box.size[0])
        values = self.raster.read(self.bands, window=window)
        valid = np.isfinite(values).all(axis=0)
        if any(MaskFlags.all_valid not in self.raster.mask_flag_enums[band - 1] for band in self.bands):
            valid &= (self.raster.read_masks(self.bands, window=window) > 0).all(axis=0)
        if any(scaling != (1.0, 0.0) for scaling in self.scaling):
            scale, offset = np.array(self.scaling, np.float32).T[:, :, None, None]
            values = values * scale + offset
        elif self.units != "display":
            values = values.astype(np.float32, copy=False)
        if self.units in ("power", "amplitude"):
            valid &= (values != 0).all(axis=0)
        if self.units == "db":
            valid &= (values > LOWEST_DB).all(axis=0)
        return values, valid

    def _filter(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Refined Lee on power, whatever the units."""
        power = convert_units(fill_invalid(values, valid), self.units, "power")
        return convert_units(refined_lee(power), "power", self.units)

    def _to_model_units(self, values: np.ndarray) -> np.ndarray:
        return convert_units(values, self.units, self.sar_transform["units"])

    def _detect_units(self, declared: str | None) -> str:
        """Where only one answer is possible: declared dB, 8 bits, or floats that are mostly negative."""
        if (declared or "").strip().lower() in ("db", "decibel", "decibels"):
            return "db"
        scaled = any(scaling != (1.0, 0.0) for scaling in self.scaling)
        if self.dtype == np.uint8 and not scaled:
            return "display"
        if (self.dtype.kind == "f" or scaled) and self._mostly_negative():
            return "db"
        found = f"{self.dtype} pixels" + ("" if self.dtype.kind != "f" else ", not mostly negative")
        raise ValueError(
            f"{self.path}: the units of its pixels ({found}) are not certain: say `units`, one of {', '.join(UNITS)} "
            f"(this model reads {self.sar_transform['units']})"
        )

    def _mostly_negative(self) -> bool:
        """Whether most valid pixels of some windows are below zero, and not fill values."""
        negative = valid = 0
        for box in self._samples():
            values, good = self._read(box)
            good &= (values != 0).all(axis=0)
            likely = (values[0] < 0) & (values[0] > LOWEST_DB)
            negative, valid = negative + np.count_nonzero(likely & good), valid + np.count_nonzero(good)
        return 2 * negative > valid

    def _samples(self) -> list[Box]:
        """Windows spread over the scene; where those hold nothing, all of it."""
        height, width = self.size
        few = [{i * (side - 1) // (SAMPLES - 1) // 64 * 64 for i in range(SAMPLES)} for side in self.size]
        boxes = [Box(i, j, min(i + 64, height), min(j + 64, width)) for i in sorted(few[0]) for j in sorted(few[1])]
        if any(self._read(box)[1].any() for box in boxes):
            return boxes
        rows, columns = range(0, height, 512), range(0, width, 512)
        return [Box(i, j, min(i + 512, height), min(j + 512, width)) for i in rows for j in columns]

    def _check_units(self) -> None:
        """Refuse display values for a model that reads backscatter, and the other way round."""
        wanted = self.sar_transform["units"]
        if (self.units == "display") != (wanted == "display"):
            raise ValueError(
                f"{self.path}: pixels are {self.units}, but this model reads {wanted}: display values are not "
                "calibrated, so neither follows from the other; use a model trained on such scenes"
            )
        if self.units == "display" and self.despeckle:
            raise ValueError(f"{self.path}: display values have no speckle statistics: leave the speckle filter out")
        if self.units == "display" and self.dtype.kind != "f" and self.dtype.name not in FULL_SCALE:
            raise ValueError(f"{self.path}: display values of type {self.dtype}: expected uint8, uint16 or float")


def convert_units(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """Backscatter from one of "db", "power", "amplitude" to another, float32; the same units come back as they are."""
    if source == target:
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        power = {"db": lambda: 10 ** (values / 10), "amplitude": lambda: values**2, "power": lambda: values}[source]()
        if target == "db":
            return 10 * np.log10(np.maximum(power, 1e-10))
    return power if target == "power" else np.sqrt(np.maximum(power, 0))


def polarisation(description: str | None) -> str | None:
    """VV, VH, HH or HV where a band's description names one ("VV", "Sigma0_VH_db")."""
    match = POLARISATION.search((description or "").upper())
    return match and match.group()


def choose_bands(
    path: Path, count: int, descriptions: tuple, sar_transform: dict, asked: list[str] | None
) -> list[int]:
    """Numbers, from 1, of the bands that the model reads, in its order.

    Raises:
        ValueError: asked bands that the scene does not have, or no certain choice.
    """
    expected = count_bands(sar_transform["channels"])
    names = [polarisation(text) or text for text in descriptions]
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
        upper = [str(found).upper() for found in names]
        if name.upper() in upper:
            chosen.append(1 + upper.index(name.upper()))
        elif asked is not None and name.isdecimal() and 1 <= int(name) <= count:
            chosen.append(int(name))
        else:
            hint = "" if asked is not None else ", which this model was trained on; `bands` chooses another"
            raise ValueError(f"{has}, but no band {name}{hint}")
    return chosen


def _warped(raster: rasterio.DatasetReader, crs: str | None, resolution: float | None, path: Path) -> WarpedVRT:
    """The raster on another grid, read through GDAL's warper, bilinear."""
    gcps, gcps_crs = raster.gcps
    source = gcps_crs if gcps else raster.crs
    if source is None:
        raise ValueError(f"{path}: neither a coordinate system nor ground control points to warp it from")
    target = CRS.from_user_input(crs or source)
    place = {"gcps": gcps} if gcps else dict(zip(("left", "bottom", "right", "top"), raster.bounds, strict=True))
    grid = calculate_default_transform(source, target, raster.width, raster.height, resolution=resolution, **place)
    nodata = {"nodata": raster.nodata} if raster.nodata is not None else {"add_alpha": True}
    options = dict(zip(("transform", "width", "height"), grid, strict=True)) | nodata
    return WarpedVRT(raster, crs=target, resampling=Resampling.bilinear, **options)
