"""SAR radiometry: units, stored values to units, what counts as measured, polarisations."""

import re

import numpy as np

from c_diffset.pipelines.pipeline_cdiffset import (
    DECIBELS,
    DIGITAL_NUMBERS,
    EIGHT_BITS,
    FEWEST_PIXELS,
    FULL_SCALE,
    LINEAR,
    LOWEST,
    SCALED_DECIBELS,
    check_sar_transform,
    doubt_backscatter,
    looks_like,
    sar_to_tensor,
)

UNITS = ("display", "db", "power", "amplitude")
REFLECTANCE = "reflectance"  # what EO scenes hold, beside display values
POLARISATIONS = ("VV", "VH", "HH", "HV")
DARKEST = 1e-10  # power that noise removal left at or below zero
FILL_VALUES = 4  # numbers that stand for missing pixels in one raster, at most
FILL_SHARE = 0.01  # of the pixels that such a number has, at least
DARK_16_BITS = 1 / 32  # of the model's range: where 99 % of 16-bit pixels are below, they use only their lowest bits
REMEDIES = {
    DECIBELS: "say `units` db",
    SCALED_DECIBELS: "declare the scale in the file, such as by `gdal_edit.py -scale 0.01`",
    LINEAR: "say `units` power or amplitude",
    EIGHT_BITS: "use a model that reads display values, as uint8 or divided by 255",
    DIGITAL_NUMBERS: "calibrate them first, or stretch them to all of the range for a model that reads display values",
}
_POLARISATION = re.compile(rf"(?<![A-Z])({'|'.join(POLARISATIONS)})(?![A-Z])")


def polarisation(description: str | None) -> str | None:
    """VV, VH, HH or HV where a band's description names just one ("VV", "Sigma0_VH_db"; not "VV/VH")."""
    found = set(_POLARISATION.findall((description or "").upper()))
    return found.pop() if len(found) == 1 else None


def apply_scaling(values: np.ndarray, scales: tuple[float, ...], offsets: tuple[float, ...]) -> np.ndarray:
    """Stored values, bands x H x W, to what a TIFF's scale and offset say they stand for.

    Values of a band with scale 1 and offset 0 in every band come back as they are, others as float32.

    Raises:
        ValueError: a scale of 0, or a scale or offset that is no finite number of float32.
    """
    if set(scales) == {1.0} and set(offsets) == {0.0}:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        scale, offset = np.array([scales, offsets], np.float32)[:, :, None, None]
        if not (np.isfinite(scale).all() and np.isfinite(offset).all() and scale.all()):
            raise ValueError(f"a TIFF's scales {scales} and offsets {offsets}: expected finite ones, scales not 0")
        return (values * scale + offset).astype(np.float32, copy=False)


def measured(values: np.ndarray, units: str | None, nodata_declared: bool) -> np.ndarray:
    """Bool H x W: where values, bands x H x W in `units`, can be measurements in every band.

    NaN, infinity and what lies below `LOWEST` cannot; nor can zero power. Pixels of 0 dB or of no reflectance in all
    bands stand for missing ones unless the file declares by itself what is missing.
    """
    valid = np.asarray(np.isfinite(values).all(axis=0))
    if units in LOWEST:
        valid = valid & (values > LOWEST[units]).all(axis=0)
    if units == "power":
        valid = valid & (values != 0).all(axis=0)
    if units in ("db", REFLECTANCE) and not nodata_declared:
        valid = valid & (values != 0).any(axis=0)
    return valid


def without_fill(values: np.ndarray, units: str) -> np.ndarray:
    """The values of one band, without zeros, what is not finite, and the few numbers that stand for missing pixels."""
    values = values[np.isfinite(values) & (values != 0)]
    if units not in LOWEST:
        return values
    numbers, counts = np.unique(values[values <= LOWEST[units]], return_counts=True)
    frequent = np.argsort(-counts)[:FILL_VALUES]
    return values[~np.isin(values, numbers[frequent[counts[frequent] > 1 + FILL_SHARE * values.size]])]


def doubt_units(values: np.ndarray, units: str, sar_transform: dict) -> str | None:
    """What SAR values look like where they cannot be in `units`, with what to do about it; None where they can.

    Args:
        values: bands x ..., as the file or array holds them (scales applied): a sample of them is enough.
        units: one of `UNITS`.
        sar_transform: of the model, whose range widens what is plausible.
    """
    for band in values:
        if units == "display":
            look = _doubt_display(band, sar_transform)
        else:
            look = doubt_backscatter(without_fill(band, units), units, sar_transform)
        if look is not None:
            real = without_fill(band, units)
            return f"the pixels (median {np.median(real):.4g}) look like {look}: {REMEDIES[look]}"
    return None


def _doubt_display(values: np.ndarray, sar_transform: dict) -> str | None:
    """What values of one band look like that are no fractions of full scale, or 16 bits that use the lowest alone."""
    real = without_fill(values, "display")
    if real.size < FEWEST_PIXELS:
        return None
    if "float" in values.dtype.name:
        return looks_like(real) if real.min() < 0 or real.max() > 1 else None
    full_scale = FULL_SCALE.get(values.dtype.name, 255)
    highest = np.max(check_sar_transform(sar_transform)["range"])
    dark = np.percentile(real, 99) < DARK_16_BITS * highest * full_scale
    return DIGITAL_NUMBERS if full_scale > 255 and dark else None


def convert_units(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """Backscatter from one of "db", "power", "amplitude" to another, float32; the same units come back as they are."""
    if source == target:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        power = {"db": lambda: 10 ** (values / 10), "amplitude": lambda: values**2, "power": lambda: values}[source]()
        if target == "db":
            return 10 * np.log10(np.maximum(power, DARKEST))
    return power if target == "power" else np.sqrt(np.maximum(power, DARKEST))


def to_model(image: np.ndarray, valid: np.ndarray | None, sar_transform: dict) -> tuple[np.ndarray, np.ndarray]:
    """Values H x W (x bands) in the model's units, to channels x H x W in [-1, 1] and bool H x W, True where valid.

    Pixels that are not finite in every band, or 0 in linear units, are not valid; nor are those that `valid` rules out.
    """
    bands = image.reshape(*image.shape[:2], -1)
    good = np.asarray(np.isfinite(bands).all(axis=2))
    if sar_transform["units"] in ("power", "amplitude"):
        good = good & (bands != 0).all(axis=2)
    if valid is not None:
        good = good & valid
    if not good.any():
        return np.full((len(sar_transform["channels"]), *good.shape), -1, np.float32), good
    if not good.all():
        image = image.copy()
        image[~good] = image[good].min(axis=0)
    return sar_to_tensor(image, sar_transform).numpy(), good
