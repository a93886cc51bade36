"""The grid that a scene is read on: its own or one that it is warped to, and which part of it."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.transform import GCPTransformer, from_origin
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

from c_diffset.inference.options import ReadOptions
from c_diffset.inference.tiles import Box
from c_diffset.sar.gdal import find_crs, gdal

SNAP = 1e-4  # of a pixel: bounds that are so near to a pixel's border are meant to be it
AROUND = 64  # pixels that a warped part may need beyond its outline


class OutsideError(ValueError):
    """A scene that has nothing in `bbox`."""


def find_part(path: Path, raster: rasterio.DatasetReader, options: ReadOptions) -> Box:
    """The rectangle of a raster, on the grid that is read, that `window` or `bbox` ask for; all of it without them.

    Raises:
        OutsideError: the raster has nothing in `bbox`.
        ValueError: the window leaves the raster, or the raster has no coordinates that `bbox` could be in.
    """
    whole = Box(0, 0, *raster.shape)
    if options.window is not None:
        column, row, width, height = options.window
        part = Box(row, column, row + height, column + width)
        if part.common(whole) != part:
            found = f"{raster.width} x {raster.height} pixels (width x height)"
            raise ValueError(f"{path}: window {options.window} is not inside of the scene, {found}")
        return part
    if options.bbox is None:
        return whole
    if raster.gcps[0] or (raster.crs is None and raster.transform.is_identity):
        has = "ground control points alone: say `crs` too" if raster.gcps[0] else "no coordinates"
        raise ValueError(f"{path}: bbox cannot be found in a scene that has {has}, or give `window`, in pixels")
    left, bottom, right, top = _bounds(options, raster.crs)
    corners = [~raster.transform @ (x, y) for x in (left, right) for y in (bottom, top)]
    columns, rows = np.clip(np.transpose(corners), -1, [[raster.width + 1], [raster.height + 1]])
    first, end = (math.floor(side.min() + SNAP) for side in (rows, columns)), (rows.max(), columns.max())
    part = Box(*first, *(math.ceil(side - SNAP) for side in end)).common(whole)
    if part is None:
        raise OutsideError(f"{path}: nothing of the scene lies in bbox {options.bbox}")
    return part


def part_size(path: Path, raster: rasterio.DatasetReader, options: ReadOptions) -> tuple[int, int]:
    """Height and width of what is read of a raster, as far as its headers tell: where it is warped, of a part alone.

    Raises:
        ValueError: as `find_part`.
    """
    if not options.is_part:
        return raster.shape
    return find_part(path, warped(raster, options, path, False) if options.is_warped else raster, options).size


def part_of_source(raster: rasterio.DatasetReader, options: ReadOptions) -> Box | None:
    """What a part needs of a raster with ground control points that may be warped; None for all, or where unknown."""
    gcps, crs = raster.gcps
    if not options.is_warped:
        return None if options.window is None else find_part(Path(raster.name), raster, options)
    if options.bbox is None or not gcps:
        return None
    bounds = _bounds(options, find_crs(options.crs) if options.crs else crs)
    side = np.linspace(0, 1, 9)
    x, y = (grid.ravel() for grid in np.meshgrid(*(bounds[i] + side * (bounds[i + 2] - bounds[i]) for i in (0, 1))))
    x, y = transform_points(find_crs(options.crs) if options.crs else crs, crs, x, y)
    with GCPTransformer(gcps, tps=True) as to_pixels:
        rows, columns = to_pixels.rowcol(x, y, op=float)
    if not np.isfinite([*rows, *columns]).all():
        return None
    around = Box(int(min(rows)), int(min(columns)), int(max(rows)), int(max(columns)))
    wider = Box(around.top - AROUND, around.left - AROUND, around.bottom + AROUND, around.right + AROUND)
    return wider.common(Box(0, 0, *raster.shape))


def place_of(raster: rasterio.DatasetReader, part: Box) -> dict:
    """What a raster on the pixels of a part needs: `crs` with `transform` or `gcps`, as far as there are any."""
    gcps, gcps_crs = raster.gcps
    if gcps:
        moved = [GroundControlPoint(g.row - part.top, g.col - part.left, g.x, g.y, g.z, g.id, g.info) for g in gcps]
        return {"gcps": moved, "crs": gcps_crs}
    if raster.crs is None and raster.transform.is_identity:
        return {}
    return {"crs": raster.crs, "transform": raster.transform @ raster.transform.translation(part.left, part.top)}


def _bounds(options: ReadOptions, crs: CRS | None) -> tuple[float, ...]:
    """`bbox` in the coordinate system of the grid: left, bottom, right, top."""
    if options.bbox_crs is None or crs is None:
        return tuple(options.bbox)
    try:
        with gdal():
            bounds = transform_bounds(find_crs(options.bbox_crs), crs, *options.bbox)
    except OSError:  # PROJ knows no such place
        bounds = (math.inf,)
    if not all(map(math.isfinite, bounds)):
        raise OutsideError(f"bbox {options.bbox} in {options.bbox_crs} has no place in {crs.to_string()[:99]}")
    return bounds


def check_size(path: Path, height: float, width: float, limit: float, pixels: str = "pixels") -> None:
    """Refuse a scene that would keep the others of its list waiting for days; `pixels` is what the message counts.

    Raises:
        ValueError: it has more than `limit` pixels.
    """
    if not height * width <= limit:
        size = f"{height:.6g} x {width:.6g} {pixels}"
        raise ValueError(f"{path}: {size} are more than max_pixels, {limit}: cut it, or raise max_pixels")


def warped(
    raster: rasterio.DatasetReader, options: ReadOptions, path: Path, zero_is_missing: bool
) -> rasterio.DatasetReader:
    """The raster on another grid, read through GDAL's warper: bilinear, and exact at ground control points."""
    gcps, gcps_crs = raster.gcps
    source = gcps_crs if gcps else raster.crs
    if source is None:
        raise ValueError(f"{path}: neither a coordinate system nor ground control points to warp it from")
    target = source if options.crs is None else find_crs(options.crs)
    missing = _missing(raster, zero_is_missing) | ({"SRC_METHOD": "GCP_TPS"} if gcps else {})
    vrt = WarpedVRT(raster, crs=target, resampling=Resampling.bilinear, **missing)
    limit = math.inf if options.is_part else options.max_pixels
    if options.resolution is not None:
        return _resized(vrt, options.resolution, path, limit)
    check_size(path, *vrt.shape, limit)
    return vrt


def _resized(warped: WarpedVRT, resolution: float, path: Path, max_pixels: float) -> rasterio.DatasetReader:
    """A warped raster with another pixel size, in its XML: where a `WarpedVRT` is told its grid, it drops the GCPs."""
    left, bottom, right, top = warped.bounds
    if not resolution <= max(right - left, top - bottom):
        raise ValueError(
            f"{path}: resolution is {resolution}, larger than the whole scene ({right - left:.6g} x {top - bottom:.6g} "
            "in units of `crs`): give a smaller one"
        )
    check_size(path, (top - bottom) / resolution, (right - left) / resolution, max_pixels)
    root = ElementTree.fromstring(warped.tags(ns="xml:VRT")["xml:VRT"])
    left, top = math.floor(left / resolution) * resolution, math.ceil(top / resolution) * resolution  # one grid for all
    transform = from_origin(left, top, resolution, resolution)
    root.set("rasterXSize", str(max(1, math.ceil((right - left) / resolution))))
    root.set("rasterYSize", str(max(1, math.ceil((top - bottom) / resolution))))
    for name, grid in (("GeoTransform", transform), ("DstGeoTransform", transform), ("DstInvGeoTransform", ~transform)):
        next(root.iter(name)).text = ", ".join(map(repr, grid.to_gdal()))
    file = next(root.iter("SourceDataset"))
    file.text = str(Path(warped.src_dataset.name).absolute())
    file.set("relativeToVRT", "0")
    return rasterio.open(ElementTree.tostring(root, encoding="unicode"))


def _missing(raster: rasterio.DatasetReader, zero_is_missing: bool) -> dict:
    """How warped pixels say that they hold nothing."""
    if raster.nodata is not None or ColorInterp.alpha in raster.colorinterp:
        return {}
    if zero_is_missing and MaskFlags.all_valid in raster.mask_flag_enums[0]:
        return {"src_nodata": 0, "nodata": 0}
    return {"add_alpha": True}
