"""STAC items: the SAR raster that one names, and one that describes a translated scene.

Specification: https://github.com/radiantearth/stac-spec, version 1.1.0. Items come from strangers: no asset may lie
outside the item's folder.
"""

import json
import os
import re
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pystac
import rasterio
from pystac.utils import datetime_to_str, str_to_datetime
from rasterio.crs import CRS
from rasterio.transform import GCPTransformer, xy
from rasterio.warp import transform, transform_geom
from scipy.spatial import ConvexHull, QhullError

from c_diffset import __version__
from c_diffset.files import read_json, write_json
from c_diffset.pipelines.pipeline_cdiffset import describe_eo_transform
from c_diffset.sar.gdal import gdal, open_raster

UTC = timezone.utc
WGS84 = CRS.from_epsg(4326)
EXTENSIONS = {
    "eo": "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "sar": "https://stac-extensions.github.io/sar/v1.3.2/schema.json",
}
POLARIZATIONS = ("HH", "VV", "HV", "VH", "LH", "LV", "RH", "RV", "CH", "CV")  # those of the SAR extension


def is_item(path: Path) -> bool:
    """Whether a file's name is that of a STAC item; the file is not read."""
    return path.suffix.lower() in (".json", ".geojson")


def read_item(path: Path) -> Path:
    """The SAR raster of a STAC item: its first GeoTIFF asset of the role "data", else its only GeoTIFF asset.

    Raises:
        ValueError: the file is no STAC item, names no GeoTIFF or several without the role "data", or the raster is
            remote or outside the item's folder.
        FileNotFoundError: the raster is not there.
    """
    assets = _read_assets(path)
    rasters = {key: asset for key, asset in assets.items() if asset["href"].lower().endswith((".tif", ".tiff"))}
    data = [key for key, asset in rasters.items() if "data" in asset.get("roles", [])]
    if not rasters:
        raise ValueError(f"{path}: no asset is a GeoTIFF (.tif, .tiff); its assets are {', '.join(assets) or 'none'}")
    if not data and len(rasters) > 1:
        raise ValueError(f'{path}: {", ".join(rasters)} are GeoTIFFs; give the role "data" to the one to translate')
    key = (data or list(rasters))[0]
    return _beside(path, key, rasters[key]["href"])


def _read_assets(path: Path) -> dict[str, dict]:
    """The assets of an item by key, each a dictionary with an `href`."""
    item = read_json(path)
    if not (item.get("type") == "Feature" and "stac_version" in item):
        raise ValueError(f'{path} is not a STAC item: it needs "type": "Feature" and "stac_version"')
    assets = item.get("assets")
    if not (isinstance(assets, dict) and all(_is_asset(asset) for asset in assets.values())):
        raise ValueError(f'{path} is not a STAC item: "assets" has to map keys to objects with "href" and list "roles"')
    return assets


def _is_asset(asset: object) -> bool:
    if not (isinstance(asset, dict) and isinstance(asset.get("href"), str)):
        return False
    return "\0" not in asset["href"] and isinstance(asset.get("roles", []), list)


def _beside(path: Path, key: str, href: str) -> Path:
    """The file of an asset, which must lie in the folder of the item at `path`, symbolic links resolved."""
    remedy = "download it beside the item, and let the href name it relative to the item"
    if re.match(r"[a-z][\w+.-]*:|//|/vsi", href, re.IGNORECASE):
        raise ValueError(f"{path}: asset {key} is remote, {href!r}: {remedy}")
    file = path.parent / href
    inside = Path(os.path.realpath(file)).is_relative_to(os.path.realpath(path.parent))
    if os.path.isabs(href) or not inside:
        raise ValueError(f"{path}: asset {key} lies outside the item's folder, {href!r}: {remedy}")
    if not file.is_file():
        raise FileNotFoundError(f"{path}: asset {key}, {href!r}, is not a file in the item's folder: {remedy}")
    return file


def write_item(
    target: Path,
    eo: Path,
    confidence: Path | None,
    settings: dict,
    sar_bands: list[str],
    eo_transform: dict,
    preview: Path | None = None,
) -> None:
    """Write the STAC item of a synthetic EO image.

    Its place is that of the EO raster, its time the raster's tag `ACQUISITION_START`, else the time of writing,
    as its description then says.

    Args:
        target: the item's file.
        eo: COG, RGB, in the folder of `target`.
        confidence: COG on the same grid in the same folder, where there is one.
        settings: of the translation, JSON values; they become properties under the prefix `c_diffset:`. Where
            `upscale` is among them, the image is one of super-resolution, and its `gsd` that of what was observed.
        sar_bands: names of the SAR bands; those that are polarisations become `sar:polarizations`.
        eo_transform: of the model; says what a black and a white pixel stand for.
        preview: PNG in the same folder, where there is one.
    """
    now = datetime.now(UTC)
    with open_raster(eo) as raster:
        acquired = _acquisition(raster.tags())
        geometry, bbox, projection = describe_place(eo, raster)
        pixel = None if (upscale := settings.get("upscale", 1)) == 1 else _pixel_metres(raster)
    properties = _description(eo.stem, acquired, now, sar_bands, describe_eo_transform(eo_transform), upscale)
    properties |= projection | ({} if pixel is None else {"gsd": round(pixel * upscale, 6)})
    properties |= {f"c_diffset:{key}": value for key, value in (settings | {"eo_transform": eo_transform}).items()}
    item = pystac.Item(eo.stem, geometry, bbox, acquired or now, properties)
    colours = [{"name": colour, "eo:common_name": colour} for colour in ("red", "green", "blue")]
    item.add_asset("eo", _asset(eo, "Synthetic EO image, not an observation", ["data", "visual"], colours))
    if pixel is not None:
        item.assets["eo"].extra_fields["raster:spatial_resolution"] = pixel
    if confidence is not None:
        title = "Confidence of the synthetic EO image"
        item.add_asset("confidence", _asset(confidence, title, ["confidence"], [{"name": "confidence"}]))
    if preview is not None:
        title = "EO image and how far it can be trusted, to look at"
        item.add_asset("preview", pystac.Asset(f"./{preview.name}", title, None, pystac.MediaType.PNG, ["overview"]))
    item.stac_extensions = _extensions(item)
    write_json(target, item.to_dict())


def describe_place(path: Path, raster: rasterio.DatasetReader) -> tuple[dict | None, list[float] | None, dict]:
    """Outline and bounds of a raster in longitude and latitude, and the fields of the projection extension.

    Raises:
        ValueError: they hold NaN or infinite values, which an item cannot.
    """
    try:
        with gdal():
            geometry = _footprint(raster)
            place = geometry, _bbox(geometry) if geometry else None, _projection(raster)
        json.dumps(place, allow_nan=False)
    except (ValueError, OverflowError, QhullError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: no STAC item can name its place ({reason}): leave the item out") from None
    return place


def _pixel_metres(raster: rasterio.DatasetReader) -> float | None:
    """The side of a raster's pixels in metres; None where they are degrees, or not on a map's grid."""
    if raster.crs is None or not raster.crs.is_projected:
        return None
    return round(float(abs(raster.transform.determinant) ** 0.5 * raster.crs.linear_units_factor[1]), 6)


def _description(
    name: str, acquired: datetime | None, now: datetime, sar_bands: list[str], eo_values: str, upscale: int
) -> dict:
    """What the image is and how it was made."""
    time = "" if acquired else " The time of acquisition is unknown: `datetime` is that of processing."
    source, made = "SAR", f"translated SAR ({', '.join(sar_bands)}) to EO"
    if upscale > 1:
        source, made = f"an EO image of {upscale} times larger pixels", f"made the pixels {upscale} times as fine"
    lineage = f"A generative model {made}: plausible, not observed."
    polarizations = list(dict.fromkeys(band.upper() for band in sar_bands if band.upper() in POLARIZATIONS))
    return {
        "title": f"{name}: synthetic EO image, not an observation",
        "description": f"A synthetic EO image, made from {source} by c_diffset; not an observation: {eo_values}.{time}",
        "created": datetime_to_str(now),
        "processing:software": {"c_diffset": __version__},
        "processing:lineage": lineage,
        "processing:datetime": datetime_to_str(now),
    } | ({"sar:polarizations": polarizations} if polarizations else {})


def _acquisition(tags: dict[str, str]) -> datetime | None:
    """The time that the tags of a raster give, in UTC."""
    with suppress(ValueError, OverflowError):
        time = str_to_datetime(tags.get("ACQUISITION_START", "").strip())
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    return None


def _footprint(raster: rasterio.DatasetReader) -> dict | None:
    """The outline of a raster as GeoJSON in WGS 84, cut at the antimeridian; None for one without a place on Earth.

    Straight lines of a map bend in longitude and latitude, so the sides carry points between the corners.
    """
    points, crs = raster.gcps
    side, zero, one = np.linspace(0, 1, 8, endpoint=False), np.zeros(8), np.ones(8)
    columns = np.concatenate([zero, side, one, 1 - side]) * raster.width
    rows = np.concatenate([side, one, 1 - side, zero]) * raster.height
    if _on_earth(raster.crs):
        outline = list(zip(*xy(raster.transform, rows, columns, offset="ul"), strict=True))
        crs = raster.crs
    elif points and _on_earth(crs):
        try:
            if all(0 <= p.row <= raster.height + 1 and 0 <= p.col <= raster.width + 1 for p in points):
                places = [(point.x, point.y) for point in points]
            else:  # those of a whole scene, of which this is a part
                with GCPTransformer(points, tps=True) as to_map:
                    places = list(zip(*to_map.xy(rows, columns, offset="ul"), strict=True))
            outline, crs = _hull(places, crs)
        except QhullError:  # there are fewer than three points, or all lie on a line
            return None
    else:
        return None
    polygon = {"type": "Polygon", "coordinates": [[*outline, outline[0]]]}
    return transform_geom(crs, WGS84, polygon, precision=8)


def _on_earth(crs: CRS | None) -> bool:
    """Whether a coordinate system places a raster on the Earth; a local one, or none at all, does not."""
    return crs is not None and (crs.is_geographic or crs.is_projected)


def _hull(points: list[tuple[float, float]], crs: CRS) -> tuple[list[tuple[float, float]], CRS]:
    """The convex hull of points in a plane about the first of them, which the antimeridian does not tear apart."""
    (longitude, *_), (latitude, *_) = transform(crs, WGS84, *zip(*points[:1], strict=True))
    plane = CRS.from_proj4(f"+proj=laea +lat_0={latitude} +lon_0={longitude} +datum=WGS84 +units=m")
    planar = np.transpose(transform(crs, plane, *zip(*points, strict=True)))
    return [tuple(point) for point in planar[ConvexHull(planar).vertices].tolist()], plane


def _bbox(geometry: dict) -> list[float]:
    """West, south, east, north; west exceeds east where the antimeridian cuts the geometry (RFC 7946, 5.2)."""
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    longitudes, latitudes = np.concatenate([ring for part in parts for ring in part]).T
    west, east = longitudes.min(), longitudes.max()
    if geometry["type"] == "MultiPolygon":
        west, east = longitudes[longitudes > 0].min(), longitudes[longitudes < 0].max()
    return [float(value) for value in (west, latitudes.min(), east, latitudes.max())]


def _projection(raster: rasterio.DatasetReader) -> dict:
    """Fields of the projection extension; code null for a raster that is not on a map's grid."""
    code = raster.crs.to_authority() if raster.crs else None
    fields = {"proj:code": ":".join(code) if code else None, "proj:shape": list(raster.shape)}
    if raster.crs:
        fields["proj:transform"] = list(raster.transform)[:6]
        if not code:
            fields["proj:wkt2"] = raster.crs.to_wkt(version="WKT2_2019")
    return fields


def _asset(path: Path, title: str, roles: list[str], bands: list[dict]) -> pystac.Asset:
    """A COG beside the item, with the form of its values; scale and offset where they change a value."""
    with open_raster(path) as raster:
        values = {"bands": bands, "data_type": raster.dtypes[0]}
        if raster.nodata is not None:
            values["nodata"] = raster.nodata if np.isfinite(raster.nodata) else str(raster.nodata)
        if (raster.scales[0], raster.offsets[0]) != (1, 0):
            values |= {"raster:scale": raster.scales[0], "raster:offset": raster.offsets[0]}
    return pystac.Asset(f"./{path.name}", title, media_type=pystac.MediaType.COG, roles=roles, extra_fields=values)


def _extensions(item: pystac.Item) -> list[str]:
    """Schemas of the extensions that the item has fields of; each of them asks for one field at least."""
    extras = [asset.extra_fields for asset in item.assets.values()]
    objects = [item.properties, *extras, *(band for extra in extras for band in extra.get("bands", []))]
    prefixes = {field.split(":")[0] for fields in objects for field in fields}
    return [schema for name, schema in EXTENSIONS.items() if name in prefixes]
