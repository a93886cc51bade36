"""SAR to EO translation with conditional (latent) diffusion and a predicted confidence.

This file is self-contained: a copy of it travels in every checkpoint as `pipeline.py`, so that
`DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)` works without `c_diffset`.

Method: C-DiffSET (Do, Lee, Lee, Kim; arXiv 2411.10788); in pixel space: conditional diffusion (Bai, Pu, Xu; GRSL 2024).
"""

import base64
import json
import math
import re
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any, TypeVar, cast

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    LCMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import create_repo
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

Model = TypeVar("Model", bound=nn.Module)
CONVERT = "`c-diffset convert` makes a model of released weights"
PROMPT = "electro-optical image"
SAR_DISPLAY = {"units": "display", "range": [0.0, 1.0], "channels": [0, 0, 0]}
LOW_RESOLUTION = {"units": "display", "range": [0.0, 1.0], "channels": [0, 1, 2], "bands": ["red", "green", "blue"]}
EO_DISPLAY = {"units": "display", "range": [0.0, 1.0], "gamma": 1.0}
DEFAULT_RANGE = {"display": [0.0, 1.0], "db": [-30.0, 0.0], "power": [-30.0, 0.0], "amplitude": [-30.0, 0.0]}
EO_DEFAULT_RANGE = {"display": [0.0, 1.0], "reflectance": [0.0, 3000.0]}
FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "int32": 65535.0}  # PIL opens 16-bit images as 32-bit integers
LARGEST = 1e6  # absolute value of any number in a model's settings; more is an error, or an attack on the memory
VARIANCE_OF = ("latents", "image")
FEW_TIMES = 100  # of a noise schedule: with fewer, DDIM needs a number of steps that divides them
MOST_UPSCALE = 16  # sides of the output for one of the input
LIMITS = {"layers": 64, "block_out": LARGEST, "block": 64, "sample_size": 8192}  # of settings named so
PIL_MODES = ("L", "RGB", "I;16", "I;16L", "I;16B", "I", "F")
LOWEST = {"db": -90, "power": -1, "amplitude": 0}  # nothing measures so little: such values stand for missing ones
# of every SAR image: near -12 over land in VV and -18 in VH, -35 over calm water, 0 in a city
MEDIAN_DB = (-50.0, 10.0)
SHARE_BELOW_0_DB = 0.01  # of the pixels at least, in every SAR image: shadows and speckle are even in a city
FEWEST_PIXELS = 32  # that say something of their units
DECIBELS, SCALED_DECIBELS = "decibels (dB)", "decibels times a factor, whose scale is missing"
LINEAR, EIGHT_BITS = "linear power or amplitude, or fractions of full scale", "8-bit display values"
DIGITAL_NUMBERS = "digital numbers that are not calibrated"
ROWS = ("y", "row", "rows", "lat", "latitude", "northing", "height")  # names of an array's dimensions, as in xarray
COLUMNS = ("x", "col", "cols", "column", "columns", "lon", "longitude", "easting", "width")
MODELS = {
    "unet": {"UNet2DConditionModel": UNet2DConditionModel, "UNet2DModel": UNet2DModel},
    "vae": {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny},
    "text_encoder": {"CLIPTextModel": CLIPTextModel},
}
SCHEDULERS = {"DDIMScheduler": DDIMScheduler, "DDPMScheduler": DDPMScheduler, "LCMScheduler": LCMScheduler}
SOURCE = Path(__file__).read_text(encoding="utf-8")  # the code that runs, also where the file changes later


@dataclass
class CDiffSETPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: list of PIL images; or array B x H x W x 3 or tensor B x 3 x H x W, both in [0, 1]; or latents.
        confidence: B x H x W in (0, 1], comparable between images; None if the UNet predicts no variance.
        variance: B x h x w, predicted variance: of the clean latent, in latent units squared, or of the image's values,
            in units of 32 8-bit levels, squared (`config.variance_of`); None likewise.
        latents: B x C x h x w, the final latents (the EO image in [-1, 1] in pixel space), padding included; of a model
            of the residual, with the latents of the input added.
        expected_error: B x H x W, expected absolute error of a pixel in 8-bit levels, mean over r, g, b; None without
            a calibration for this number of steps (`c-diffset calibrate`), and of an ensemble, whose mean errs less.
        error_probability: B x H x W, that this error exceeds `config.calibration["threshold"]`; None likewise.
        spread: B x H x W, standard deviation over the ensemble in 8-bit levels, mean over r, g, b; None without one.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    confidence: np.ndarray | torch.Tensor | None
    variance: np.ndarray | torch.Tensor | None
    latents: torch.Tensor
    expected_error: np.ndarray | torch.Tensor | None = None
    error_probability: np.ndarray | torch.Tensor | None = None
    spread: np.ndarray | torch.Tensor | None = None


def raw_to_variance(raw: torch.Tensor) -> torch.Tensor:
    """Map the UNet's raw variance channel (any real) to a variance in [1e-6, 10]; raw 0 gives 1 (C-DiffSET)."""
    return (F.softplus(raw + math.log(math.exp(1 - 1e-6) - 1)) + 1e-6).clamp(1e-6, 10.0)


def smooth_border(raw: torch.Tensor, width: int = 3) -> torch.Tensor:
    """Raw variance B x h x w with the values of its next pixels in the outermost `width`, at most an eighth of a side.

    The UNet's convolutions read zeros beyond the border. Raw variances are far from 0, where the training began, by the
    sum of all weights: where some of them read zeros, the last three convolutions are drawn back to it, which frames
    every image with a variance of up to twice what the errors there are.
    """
    for axis in (-2, -1):
        side = raw.shape[axis]
        outermost = min(width, side // 8)
        nearest = torch.arange(side, device=raw.device).clamp(outermost, side - 1 - outermost)
        raw = raw.index_select(axis, nearest)
    return raw


def clean_variance(variance: torch.Tensor, abar: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Variance of the predicted clean latent, from the variance of the model's own target at `abar` in (0, 1]."""
    if prediction_type == "epsilon":
        return variance * (1 - abar) / abar.clamp_min(1e-4)  # a zero terminal SNR would divide by zero
    if prediction_type == "v_prediction":
        return variance * (1 - abar)
    return variance


def variance_to_confidence(variance: torch.Tensor) -> torch.Tensor:
    """One fixed, decreasing map from variance in [0, inf) to confidence in (0, 1]."""
    return 1 / (1 + variance)


def check_realism(realism: dict) -> dict:
    """What `realism` a model was trained for: its `range` [low, high], within 0 to 1, and its `default`.

    Raises:
        ValueError: it has another form, or a default outside of its range.
    """
    expected = "expected {'range': [low, high], 'default': value}, 0 <= low <= value <= high <= 1"
    if isinstance(realism, dict) and set(realism) == {"range", "default"}:
        limits, default = realism["range"], realism["default"]
        pair = isinstance(limits, list | tuple) and len(limits) == 2
        if pair and all(_is_number(x, 0) for x in (*limits, default)) and limits[0] <= default <= limits[1] <= 1:
            return {"range": [float(limit) for limit in limits], "default": float(default)}
    raise ValueError(f"realism is {brief(realism)}: {expected}")


CALIBRATION = ("variance", "expected_error", "probability")


def calibration_key(steps: int, realism: float | None) -> str:
    """The name of a calibration's map: the number of steps and, of a model that has it, the realism."""
    return str(steps) if realism is None else f"{steps} at realism {realism:g}"


def apply_calibration(confidence: torch.Tensor, knots: dict, name: str) -> torch.Tensor:
    """Confidence (any shape) to "expected_error" or "probability", linear between the knots in variance."""
    known, values = (torch.tensor(knots[key], device=confidence.device) for key in ("variance", name))
    variance = (1 / confidence - 1).clamp(known[0], known[-1])
    after = torch.searchsorted(known, variance).clamp(1, len(known) - 1)
    share = (variance - known[after - 1]) / (known[after] - known[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])


def check_calibration(calibration: dict) -> dict:
    """The calibration, as `c-diffset calibrate` writes it: `threshold` (8-bit levels) and in `steps`, for each
    `calibration_key`, the knots of `apply_calibration`.

    Raises:
        ValueError: it has another form, or knots that do not rise, which need a new calibration.
    """
    steps = calibration.get("steps") if isinstance(calibration, dict) else None
    if not isinstance(steps, dict) or not _is_number(calibration.get("threshold"), 0):
        raise ValueError("calibration: expected what `c-diffset calibrate` writes, with `threshold` and `steps`")
    for number, knots in steps.items():
        maps = [knots.get(name) if isinstance(knots, dict) else None for name in CALIBRATION]
        lists = [values for values in maps if isinstance(values, list) and all(_is_number(x, 0) for x in values)]
        lengths = {len(values) for values in lists}
        if len(lists) < 3 or len(lengths) > 1 or min(lengths) < 2:
            raise ValueError(f"calibration of {number!r} steps: expected {CALIBRATION}, each a list of as many numbers")
        known, error, probability = (np.diff(np.array(values, np.float32)) for values in lists)  # as they are used
        if not ((known > 0).all() and (error >= 0).all() and (probability >= 0).all()) or lists[2][-1] > 1:
            raise ValueError(f"calibration of {number!r} steps: expected rising knots, and probabilities up to 1")
    return calibration


def check_sar_transform(sar_transform: dict) -> dict:
    """The transform (see `sar_to_tensor`) with its defaults filled in.

    Raises:
        ValueError: unknown keys or units, malformed `channels` or `bands`, or a `range` that is neither [low, high],
            low < high, nor one such pair for each channel.
    """
    if not isinstance(sar_transform, dict):
        raise ValueError(f"sar_transform is {brief(sar_transform)}: expected a mapping with 'units'")
    unknown = set(sar_transform) - {"units", "range", "channels", "bands"}
    if unknown:
        expected = "'units', 'range', 'channels', 'bands'"
        raise ValueError(f"sar_transform has unknown keys {brief(sorted(map(str, unknown)))}: expected {expected}")
    units = sar_transform.get("units")
    if not isinstance(units, str) or units not in DEFAULT_RANGE:
        raise ValueError(f"sar_transform['units'] is {brief(units)}: expected one of {list(DEFAULT_RANGE)}")
    limits, channels = sar_transform.get("range", DEFAULT_RANGE[units]), sar_transform.get("channels", [0, 0, 0])
    bands = isinstance(channels, list | tuple) and list(map(_is_channel, channels))
    if not bands or not all(bands):
        raise ValueError(
            f"sar_transform['channels'] is {brief(channels)}: expected a list of band indices, or 'i-j' for a ratio"
        )
    limits = _check_limits("sar_transform", limits, len(channels))
    names, count = sar_transform.get("bands"), count_bands(list(channels))
    named = isinstance(names, list | tuple) and len(names) == count and all(isinstance(name, str) for name in names)
    if names is not None and not named:
        raise ValueError(
            f"sar_transform['bands'] is {brief(names)}: expected {count} names such as 'VV', one for each band"
        )
    transform = {"units": units, "range": limits, "channels": list(channels)}
    return transform | ({} if names is None else {"bands": list(names)})


def check_eo_transform(eo_transform: dict) -> dict:
    """What the EO values mean that a model is trained on, with defaults filled in: which become black, which white.

    Training and evaluation apply it to true EO images; nothing inverts it, so the model's images show this range.

    Args:
        eo_transform: `units` ("display": `range` is a fraction of the full scale of the integers, default [0, 1];
            "reflectance": `range` is in the values that the file gives, default [0, 3000]), `range` [low, high], which
            becomes black and white, for all of red, green, blue or a list with one for each, and `gamma` (default 1):
            what lies between is raised to the power of 1 / gamma, so that more than 1 makes it brighter.

    The values of a file are the stored ones, or what its TIFF scale and offset make of them. Sentinel-2 is stored as
    reflectance x 10 000; products since processing baseline 04.00 (January 2022) have 1000 added to that, and where
    it was not taken off, the range is [1000, 4000].

    Raises:
        ValueError: unknown keys or units, a `gamma` outside of 0.1 to 10, or a `range` that is neither [low, high],
            low < high, nor three such pairs.
    """
    if not isinstance(eo_transform, dict):
        raise ValueError(f"eo_transform is {brief(eo_transform)}: expected a mapping with 'units'")
    unknown = set(eo_transform) - {"units", "range", "gamma"}
    if unknown:
        expected = "'units', 'range', 'gamma'"
        raise ValueError(f"eo_transform has unknown keys {brief(sorted(map(str, unknown)))}: expected {expected}")
    units = eo_transform.get("units")
    if not isinstance(units, str) or units not in EO_DEFAULT_RANGE:
        raise ValueError(f"eo_transform['units'] is {brief(units)}: expected one of {list(EO_DEFAULT_RANGE)}")
    gamma = eo_transform.get("gamma", 1.0)
    if not _is_number(gamma, 0.1) or gamma > 10:
        raise ValueError(f"eo_transform['gamma'] is {brief(gamma)}: expected a number from 0.1 to 10")
    limits = _check_limits("eo_transform", eo_transform.get("range", EO_DEFAULT_RANGE[units]), 3)
    return {"units": units, "range": limits, "gamma": float(gamma)}


def describe_eo_transform(eo_transform: dict) -> str:
    """What black and white stand for in EO images, as a part of a sentence."""
    limits, gamma = eo_transform["range"], eo_transform.get("gamma", 1)
    each = [limits] if _is_range(limits) else limits
    black, white = (" / ".join(f"{pair[end]:g}" for pair in each) for end in (0, 1))
    order = "" if len(each) == 1 else " (red / green / blue)"
    if eo_transform["units"] == "display":
        unit = "of the full scale of display values"
    else:
        unit = "in reflectance as the training images store it"
    text = f"black stands for {black} and white for {white}{order} {unit}"
    return text if gamma == 1 else f"{text}, with a gamma of {gamma:g} between them"


def _check_limits(transform: str, limits, channels: int) -> list:
    """The `range` of a transform as lists: one pair for all channels, or one for each; ValueError for anything else."""
    if _is_range(limits):
        return list(limits)
    if isinstance(limits, list | tuple) and len(limits) == channels and all(map(_is_range, limits)):
        return [list(pair) for pair in limits]
    raise ValueError(
        f"{transform}['range'] is {brief(limits)}: expected [low, high], two numbers with low < high, or one such pair "
        f"for each of the {channels} channels"
    )


def count_bands(channels: list) -> int:
    """How many bands an image needs for `sar_transform["channels"]`."""
    return 1 + max(int(band) for channel in channels for band in str(channel).split("-"))


def _is_number(value, least: float = -LARGEST) -> bool:
    """Whether this is a real number of sensible size, no NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= LARGEST


def _is_channel(channel) -> bool:
    """Whether this is the number of a band, or two such numbers, "i-j"."""
    return isinstance(channel, int | str) and re.fullmatch(r"[0-9]{1,4}(-[0-9]{1,4})?", str(channel)[:10]) is not None


def _is_range(limits) -> bool:
    """Whether this is [low, high], numbers with low < high in float32."""
    pair = isinstance(limits, list | tuple) and len(limits) == 2 and all(map(_is_number, limits))
    return bool(pair and np.float32(limits[0]) < np.float32(limits[1]))


def looks_like(values: np.ndarray) -> str:
    """What SAR values, any real numbers, are most likely to be."""
    median = float(np.median(values))
    if median < 0:
        return DECIBELS if median > LOWEST["db"] else SCALED_DECIBELS
    if (values == np.rint(values)).all():
        return EIGHT_BITS if values.max() <= 255 else DIGITAL_NUMBERS
    return LINEAR if median < 1 else DIGITAL_NUMBERS


def doubt_backscatter(values: np.ndarray, units: str, sar_transform: dict) -> str | None:
    """What the values of one band look like where they cannot be backscatter in `units`; None where they can.

    A model that reads numbers beyond `MEDIAN_DB`, such as uncalibrated ones, says so by its range, which widens it.

    Args:
        values: finite, in any shape; zeros count as missing.
        units: "db", "power" or "amplitude".
        sar_transform: of the model, see `check_sar_transform`.
    """
    values = values[values != 0]
    if values.size < FEWEST_PIXELS:
        return None
    transform, decibels = check_sar_transform(sar_transform), values
    limits = np.array(transform["range"]).reshape(-1, 2)
    if len(limits) > 1:
        limits = limits[["-" not in str(channel) for channel in transform["channels"]]]  # no ratios
    if units != "db":
        if 2 * np.count_nonzero(values < LOWEST[units]) > values.size:
            return looks_like(values)
        decibels = (20 if units == "amplitude" else 10) * np.log10(values[values > 0])
        if decibels.size < FEWEST_PIXELS:
            return None
    low, high = limits.min(initial=0), limits.max(initial=0)
    plausible = min(MEDIAN_DB[0], low - 20) <= np.median(decibels) <= max(MEDIAN_DB[1], high + 10)
    dark = low >= 0 or np.count_nonzero(decibels < 0) >= SHARE_BELOW_0_DB * decibels.size
    return None if plausible and dark else looks_like(values)


def image_axes(image) -> list[int]:
    """Which axes of an array are its rows, its columns and, of three, its bands.

    Arrays whose dimensions have names (`dims`, as xarray's) can have them in any order; others are H x W x bands.
    """
    names = [str(name).lower() for name in getattr(image, "dims", ())]
    rows, columns = ([i for i, name in enumerate(names) if name in known] for known in (ROWS, COLUMNS))
    if len(rows) != 1 or len(columns) != 1:
        return list(range(len(image.shape)))
    return [*rows, *columns, *(i for i in range(len(names)) if i not in (*rows, *columns))]


def order_hint(shape: Sequence[int], bands: int) -> str:
    """What may be wrong with an array of three dimensions, in which the last is not the bands."""
    if len(shape) != 3 or shape[0] != bands:
        return ""
    return f"; bands come last in arrays, H x W x {bands}: use np.moveaxis(image, 0, -1), or xarray's names y and x"


def _to_bands(image) -> tuple[torch.Tensor, float | None]:
    """An image in any form to float32 bands C x H x W of native values, and the full scale of integers (else None)."""
    if isinstance(image, PIL.Image.Image) and image.mode not in PIL_MODES:
        raise ValueError(f"an input of PIL mode {image.mode}: expected one of {PIL_MODES}, so convert it first")
    if isinstance(image, np.ma.MaskedArray):
        raise ValueError("a masked array: fill the pixels without data first, such as by `array.filled(value)`")
    values = image if isinstance(image, torch.Tensor) else np.asarray(image)
    dtype = str(values.dtype).removeprefix("torch.") if isinstance(values, torch.Tensor) else values.dtype.name
    if "float" not in dtype and dtype not in FULL_SCALE:
        raise ValueError(f"input pixels of type {dtype}: expected uint8, uint16 or floating point")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(f"an input of shape {tuple(values.shape)}: expected two or three dimensions, none of them 0")
    if isinstance(values, torch.Tensor):
        bands = values.cpu().float()
    else:
        ordered = values.transpose(image_axes(image if hasattr(image, "dims") else values))
        bands = torch.from_numpy(ordered.astype(np.float32))
        bands = bands.permute(2, 0, 1) if bands.ndim == 3 else bands
    return bands.reshape(-1, *bands.shape[-2:]), FULL_SCALE.get(dtype)


def _to_units(bands: torch.Tensor, full_scale: float | None, units: str) -> torch.Tensor:
    """Native pixel values to the units that `range` is given in: a fraction of full scale, or dB."""
    if units == "display":
        values = bands / (full_scale or 1.0)
        low, high = values.min().item(), values.max().item()
        if low < 0 or high > 1:
            raise ValueError(
                f"input pixels from {low:.3g} to {high:.3g} (1 is full scale), but this model reads display values, "
                "in [0, 1]: scale the image, or use a model trained on backscatter"
            )
        return values
    if full_scale is not None:
        raise ValueError(
            f"integer SAR pixels (full scale {full_scale:.0f}), but this model reads backscatter as "
            f"{units} in floating point: give calibrated values, or use a model trained on display values"
        )
    if units == "db":
        return bands
    if 2 * (bands < 0).sum() > bands.numel():  # a few come from noise removal
        raise ValueError(f"most SAR pixels are negative, but this model reads linear {units}: convert them from dB")
    return (20 if units == "amplitude" else 10) * torch.log10(bands.clamp_min(1e-10))


def sar_to_tensor(image, sar_transform: dict) -> torch.Tensor:
    """One SAR image to what the model sees: float32, channels x H x W, in [-1, 1].

    Args:
        image: PIL image, array H x W or H x W x bands (in any order where its dimensions have names, as xarray's y, x
            and band), or tensor H x W or bands x H x W.
        sar_transform: `units` ("display": integers scaled by their full scale, floats in [0, 1]; "db"; "power" and
            "amplitude", linear), `range` [low, high] (fraction of full scale, default [0, 1], or dB, default [-30, 0])
            mapped to [-1, 1] and clipped, for all channels or a list with one for each, and `channels` (default
            [0, 0, 0]): for each model channel a band index, or "i-j" for the difference of two bands (in dB: their
            ratio), and optionally `bands`, the bands' names (polarisations), by which those of a scene are chosen.

    Raises:
        ValueError: NaN or infinite pixels, bands that do not fit `channels`, values that cannot be in `units`, or a
            transform that `check_sar_transform` refuses.
    """
    transform = check_sar_transform(sar_transform)
    bands, full_scale = _to_bands(image)
    count = int((~torch.isfinite(bands)).sum())
    if count:
        raise ValueError(f"the input holds {count} NaN or infinite values: fill or mask them first")
    picks = [[int(band) for band in str(channel).split("-")] for channel in transform["channels"]]
    used = count_bands(transform["channels"])
    grey_as_colour = used == 1 and len(bands) == 3 and bool((bands == bands[:1]).all())
    if len(bands) != used and not grey_as_colour:
        hint = "" if isinstance(image, torch.Tensor | PIL.Image.Image) else order_hint(np.shape(image), used)
        reads = f"this model reads {used} (channels {transform['channels']})"
        raise ValueError(f"the input has {len(bands)} bands, but {reads}{hint}")
    values = _to_units(bands, full_scale, transform["units"])
    picked = torch.stack([values[pick[0]] - values[pick[1]] if len(pick) == 2 else values[pick[0]] for pick in picks])
    low, high = torch.tensor(transform["range"]).expand(len(picks), 2).T.reshape(2, -1, 1, 1)
    return ((picked - low) / (high - low)).clamp(0, 1) * 2 - 1


def check_backscatter(image, sar_transform: dict) -> None:
    """Refuse a SAR image, as `sar_to_tensor` takes it, whose values cannot be in the units of the model.

    Raises:
        ValueError: it says what they look like.
    """
    units = sar_transform["units"]
    if units == "display":  # `sar_to_tensor` does
        return
    bands, full_scale = _to_bands(image)
    for band in bands.numpy() if full_scale is None else ():
        if look := doubt_backscatter(band[np.isfinite(band)], units, sar_transform):
            median = np.median(band[np.isfinite(band)])
            raise ValueError(
                f"SAR pixels with a median of {median:.3g}, but this model reads {units}: they look like {look}"
            )


def enlarge(images: torch.Tensor, upscale: int) -> torch.Tensor:
    """Images B x C x H x W in [-1, 1] to `upscale` times the sides, bicubic, clamped; of an upscale of 1, as is."""
    if upscale == 1:
        return images
    # in float32, positions of thirds and such are rounded, and the more so the farther from the corner
    exact = images if upscale & (upscale - 1) == 0 else images.to("cpu", torch.float64)
    return F.interpolate(exact, scale_factor=upscale, mode="bicubic").clamp(-1, 1).to(images)


@torch.no_grad()
def align(model: Model) -> Model:
    """Copy each weight that starts at no multiple of 64 bytes, as in mapped safetensors; returns the model.

    Matrix kernels of many CPUs add in another order there, so that a loaded model would differ from the one that was
    saved by some 1e-6, and one process from the next.
    """
    for weight in (*model.parameters(), *model.buffers()):
        if weight.data_ptr() % 64:
            weight.data = weight.data.clone()
    return model


@torch.no_grad()
def drop_variance_channel(unet: UNet2DConditionModel | UNet2DModel) -> None:
    """Take the last output channel, the raw variance, from a UNet, in place."""
    last = cast(Any, unet.conv_out)
    last.weight, last.bias = (nn.Parameter(values[:-1].clone()) for values in (last.weight, last.bias))
    last.out_channels -= 1
    unet.register_to_config(out_channels=last.out_channels)


def check_autoencoder(vae) -> None:
    """Refuse an autoencoder of a class whose latents this pipeline cannot read; None and compiled ones pass.

    Raises:
        ValueError: it is neither an `AutoencoderKL` nor an `AutoencoderTiny`.
    """
    classes = tuple(MODELS["vae"].values())
    if vae is not None and not isinstance(getattr(vae, "_orig_mod", vae), classes):
        expected = " or ".join(choice.__name__ for choice in classes)
        raise ValueError(
            f"vae is of the class {type(vae).__name__}, whose latents differ: expected {expected}, or None"
        )


class CDiffSETPipeline(DiffusionPipeline):
    """Translate SAR images to EO images, with a confidence for each pixel.

    Args:
        unet: reads SAR and noisy EO on channels, SAR first; writes the prediction (C channels) and, where it has
            C + 1, the raw variance.
        scheduler: `DDIMScheduler`, `DDPMScheduler` or `LCMScheduler`.
        vae: the frozen autoencoder; None for pixel space.
        text_encoder, tokenizer: only needed once, to embed the constant prompt; optional when `prompt_embeds` is there.
        sar_transform: see `sar_to_tensor`; the default reads display values: of one band, or with an `upscale` of more
            than 1 those of an EO image in red, green and blue.
        default_num_inference_steps: used when the call names none.
        confidence_timestep: the variance is read at the step nearest to this training time; by default, half of them.
        prediction_type: what the UNet was trained to predict; taken from the scheduler when None.
        prompt_embeds: the constant prompt's embedding, as `encode_prompt_embeds` writes it.
        calibration: from variance to expected error, see `check_calibration`.
        eo_transform: which EO values black and white stand for in the images, see `check_eo_transform`; by default,
            display values of full scale.
        upscale: sides of the output for one of the input, 1 to 16. More than 1 is super-resolution: the input, an EO
            image of low resolution instead of a SAR image, is enlarged before it is encoded (see `enlarge`).
        residual: whether what is diffused is the EO latents minus those of the input, which are added in the end;
            needs an input of as many channels as the EO image.
        realism: for a model of one step that was trained for it, the `range` of what a call can ask for, and the
            `default`, see `check_realism`.
        variance_of: what the variance is of: the clean "latents", or the "image" (in units of 32 8-bit levels, squared:
            a confidence of 0.5 then stands for an error of 32 levels).
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents"]
    _interrupt = False

    unet: UNet2DConditionModel | UNet2DModel
    scheduler: DDIMScheduler | DDPMScheduler | LCMScheduler
    vae: AutoencoderKL | AutoencoderTiny | None
    text_encoder: CLIPTextModel | None
    tokenizer: CLIPTokenizer | None
    config: FrozenDict

    def __init__(
        self,
        unet: UNet2DConditionModel | UNet2DModel,
        scheduler: DDIMScheduler | DDPMScheduler | LCMScheduler,
        vae: AutoencoderKL | AutoencoderTiny | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        sar_transform: dict | None = None,
        default_num_inference_steps: int = 50,
        confidence_timestep: int | None = None,
        prediction_type: str | None = None,
        prompt_embeds: dict | None = None,
        calibration: dict | None = None,
        eo_transform: dict | None = None,
        upscale: int = 1,
        residual: bool = False,
        realism: dict | None = None,
        variance_of: str = "latents",
    ):
        super().__init__()
        check_autoencoder(vae)
        if vae is not None:
            # two to four times faster in half precision
            vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)
        if prompt_embeds is None and text_encoder is not None and tokenizer is not None:
            prompt_embeds = encode_prompt_embeds(text_encoder, tokenizer)
        if confidence_timestep is None:
            confidence_timestep = scheduler.config.num_train_timesteps // 2
        limits = {
            "default_num_inference_steps": (default_num_inference_steps, 1, LARGEST),
            "confidence_timestep": (confidence_timestep, 0, LARGEST),
            "upscale": (upscale, 1, MOST_UPSCALE),
        }
        for name, (value, least, most) in limits.items():
            if not isinstance(value, int) or not _is_number(value, least) or value > most:
                raise ValueError(f"{name} is {brief(value)}: expected a whole number, {least} to {most:.0f}")
        if not isinstance(residual, bool):
            raise ValueError(f"residual is {brief(residual)}: expected true or false")
        if variance_of not in VARIANCE_OF:
            raise ValueError(f"variance_of is {brief(variance_of)}: expected one of {VARIANCE_OF}")
        self._prompt = None if prompt_embeds is None else decode_prompt_embeds(prompt_embeds)
        if sar_transform is None:
            sar_transform = SAR_DISPLAY if upscale == 1 else LOW_RESOLUTION
        self.register_to_config(
            sar_transform=check_sar_transform(sar_transform),
            default_num_inference_steps=default_num_inference_steps,
            confidence_timestep=confidence_timestep,
            prediction_type=prediction_type or scheduler.config.prediction_type,
            prompt_embeds=prompt_embeds,
            calibration=None if calibration is None else check_calibration(calibration),
            eo_transform=check_eo_transform(EO_DISPLAY if eo_transform is None else eo_transform),
            upscale=upscale,
            residual=residual,
            realism=None if realism is None else check_realism(realism),
            variance_of=variance_of,
        )

    def register_modules(self, **modules) -> None:
        """Take components in, their weights aligned in memory (see `align`)."""
        for module in modules.values():
            if isinstance(module, nn.Module):
                align(module)
        super().register_modules(**modules)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent pixel, along each axis; 1 in pixel space."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        """Images are padded to a multiple of this many pixels."""
        return self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def trained_size(self) -> int | None:
        """Side in pixels of the EO images that the model was trained on; None where the UNet does not say."""
        latent = self.unet.config.sample_size
        return latent * self.vae_scale_factor if isinstance(latent, int) else None

    @property
    def eo_channels(self) -> int:
        """Channels of the noisy EO image that the UNet sees: the latent's, or 3."""
        return 3 if self.vae is None else self.vae.config.latent_channels

    @property
    def num_timesteps(self) -> int:
        """The number of steps of the present or the last call, which callbacks of diffusers read."""
        return len(self.scheduler.timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `pipe._interrupt = True`: no further step is taken, what is there comes back."""
        return self._interrupt

    @property
    def predicts_variance(self) -> bool:
        """Whether the UNet has the extra channel that confidence comes from."""
        return self.unet.config.out_channels == self.eo_channels + 1

    def enlarge(self, images: torch.Tensor) -> torch.Tensor:
        """`enlarge` by the `upscale` of this model."""
        return enlarge(images, self.config.upscale)

    def to_residual(self, latents: torch.Tensor, sar_latents: torch.Tensor) -> torch.Tensor:
        """EO latents B x C x h x w to what is diffused: themselves, or their difference to those of the input."""
        return latents - sar_latents if self.config.residual else latents

    def from_residual(self, state: torch.Tensor, sar_latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_residual`."""
        return state + sar_latents if self.config.residual else state

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images B x C x H x W in [-1, 1] to latents (posterior mean, scaled); the identity in pixel space."""
        if self.vae is None:
            return images
        encoded = self.vae.encode(images.to(self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents - self._latent_shift()) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to images B x 3 x H x W in [-1, 1]; the inverse of `encode`."""
        return self.decode_with_gradient(latents).clamp(-1, 1)

    def decode_with_gradient(self, latents: torch.Tensor) -> torch.Tensor:
        """As `decode`, for a loss on the images, which may lie beyond [-1, 1] here."""
        if self.vae is None:
            return latents
        latents = latents / self.vae.config.scaling_factor + self._latent_shift()
        return self.vae.decode(latents.to(self.vae.dtype)).sample  # pyright: ignore[reportArgumentType]

    def _latent_shift(self) -> float:
        """What the autoencoder's latents are moved by; older configurations say nothing of it."""
        return (self.vae.config.get("shift_factor") if self.vae is not None else None) or 0.0

    def prompt_kwargs(self, batch_size: int) -> dict:
        """The UNet's text condition: the constant prompt, or nothing for a UNet without cross attention."""
        width = self.unet.config.get("cross_attention_dim")
        if width is None:
            return {}
        if self._prompt is None:
            raise ValueError(
                "this UNet has cross attention, but the pipeline holds neither `prompt_embeds` nor "
                "`text_encoder` and `tokenizer`: pass one of them"
            )
        if self._prompt.shape[-1] != width:
            raise ValueError(f"prompt_embeds has {self._prompt.shape[-1]} channels, but this UNet reads {width}")
        # weights that are offloaded one by one lie on no device; on `meta`, the prompt would be lost
        device = self._execution_device if self.unet.device.type == "meta" else self.unet.device
        self._prompt = self._prompt.to(device)
        return {"encoder_hidden_states": self._prompt.to(self.unet.dtype).expand(batch_size, -1, -1)}

    def check_inputs(self, num_inference_steps: int, output_type: str, callback_tensor_inputs: list[str]) -> None:
        """Refuse, before any work, what cannot give a right result."""
        if not isinstance(self.scheduler, DDIMScheduler | DDPMScheduler | LCMScheduler):
            raise ValueError(
                f"scheduler {type(self.scheduler).__name__}: use DDIMScheduler, DDPMScheduler or LCMScheduler"
            )
        found, expected = self.scheduler.config.prediction_type, self.config.prediction_type
        if found != expected:
            raise ValueError(f"the scheduler's prediction_type is {found}, but this model was trained for {expected}")
        if getattr(self.scheduler.config, "clip_sample", False) and (self.vae is not None or self.config.residual):
            what = "residuals" if self.config.residual else "latents"
            raise ValueError(f"the scheduler has clip_sample=True, which cuts off {what}: set it to False")
        if expected == "epsilon" and getattr(self.scheduler.config, "rescale_betas_zero_snr", False):
            raise ValueError(
                "the scheduler has rescale_betas_zero_snr=True: no image follows from epsilon at pure noise"
            )
        abar = self.scheduler.alphas_cumprod
        if abar.ndim != 1 or not ((abar >= 0) & (abar <= 1)).all():
            raise ValueError("the scheduler's betas are no noise schedule: expected numbers from 0 to 1")
        self.check_channels()
        self.check_steps(num_inference_steps)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}, expected 'pil', 'np', 'pt' or 'latent'")
        unknown = set(callback_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"callback tensors {sorted(unknown)}, expected some of {self._callback_tensor_inputs}")

    def check_steps(self, number: int) -> None:
        """Set the scheduler to a number of steps, or refuse it."""
        count = len(self.scheduler.alphas_cumprod)
        if not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"num_inference_steps is {number}, expected at least 1 (a whole number)")
        # DDIM goes down by a whole number of times: of few, the last step would not reach the image
        if isinstance(self.scheduler, DDIMScheduler) and count < FEW_TIMES and count % number:
            even = ", ".join(str(steps) for steps in range(1, count + 1) if count % steps == 0)
            raise ValueError(f"num_inference_steps is {number}: this model has {count} times, expected one of {even}")
        self.scheduler.set_timesteps(number)
        last = int(self.scheduler.timesteps.max())
        if last >= count:
            raise ValueError(f"the scheduler's steps reach time {last}, of {count}: expected a smaller steps_offset")

    def choose_realism(self, realism: float | None, steps: int) -> float | None:
        """What is asked for, or the model's default; None for a model that was not trained for it.

        Raises:
            ValueError: the model was not trained for it, or not for this value, or for one step only.
        """
        trained = self.config.realism
        if trained is None:
            if realism is not None:
                raise ValueError(f"realism is {brief(realism)}, but this model was not trained for it: leave it out")
            return None
        low, high = trained["range"]
        realism = trained["default"] if realism is None else realism
        if not _is_number(realism) or not low <= realism <= high:
            raise ValueError(f"realism is {brief(realism)}: this model was trained for {low:g} to {high:g}")
        if steps != 1:
            raise ValueError(f"num_inference_steps is {steps}: a model that was trained for `realism` takes 1")
        return float(realism)

    def starting_scale(self, realism: float | None) -> float:
        """What unit noise is multiplied by before the first step."""
        return float(self.scheduler.init_noise_sigma) * (1.0 if realism is None else realism)

    def to_variance(self, raw: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The UNet's raw variance at one time to the `variance` of the output."""
        variance = raw_to_variance(raw)
        if self.config.variance_of == "image":
            return variance
        return clean_variance(variance, self.scheduler.alphas_cumprod[timestep], self.config.prediction_type)

    def check_channels(self) -> None:
        """Refuse components and a `sar_transform` that do not fit together."""
        check_autoencoder(self.vae)
        channels, sar_channels = len(self.config.sar_transform["channels"]), self.eo_channels
        if self.vae is None:
            sar_channels = channels
        elif channels != self.vae.config.in_channels:
            expected = self.vae.config.in_channels
            raise ValueError(f"sar_transform['channels'] has {channels} entries, but the autoencoder reads {expected}")
        if self.config.residual and sar_channels != self.eo_channels:
            found = f"the input has {sar_channels} channels and the EO image {self.eo_channels}"
            raise ValueError(f"residual is True, but {found}: expected as many, or residual False")
        found, expected = self.unet.config.in_channels, sar_channels + self.eo_channels
        if found != expected:
            raise ValueError(f"the UNet reads {found} channels, expected {expected} ({sar_channels} of the input)")
        found, expected = self.unet.config.out_channels, (self.eo_channels, self.eo_channels + 1)
        if found not in expected:
            raise ValueError(
                f"the UNet writes {found} channels, expected {expected[0]}, or {expected[1]} with a variance"
            )

    def prepare_sar(self, sar) -> torch.Tensor:
        """Image, batch (array B x H x W x C, tensor B x C x H x W), or a list, to float32 B x C x H x W, [-1, 1]."""
        images = []
        for each in sar if isinstance(sar, list | tuple) else [sar]:
            images.extend(each if isinstance(each, np.ndarray | torch.Tensor) and each.ndim == 4 else [each])
        for image in images:
            check_backscatter(image, self.config.sar_transform)
        tensors = [sar_to_tensor(image, self.config.sar_transform) for image in images]
        sizes = {tuple(tensor.shape[1:]) for tensor in tensors}
        if len(sizes) != 1:
            raise ValueError(f"the inputs of one batch have sizes {sorted(sizes)} (H, W): expected one size")
        return torch.stack(tensors).to(self._execution_device)

    def pad(self, images: torch.Tensor) -> torch.Tensor:
        """Pad B x C x H x W right and below to `size_multiple`, by reflection where the image is large enough."""
        height, width = images.shape[-2:]
        below, right = -height % self.size_multiple, -width % self.size_multiple
        mode = "reflect" if below < height and right < width else "replicate"
        return F.pad(images, (0, right, 0, below), mode=mode)

    def prepare_latents(self, shape: tuple, generator, latents: torch.Tensor | None) -> torch.Tensor:
        """The starting noise B x C x h x w, float32 whatever the UNet's precision: drawn, or as given."""
        device = self._execution_device
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for {shape[0]} images: expected one, or one for each")
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if tuple(latents.shape) != tuple(shape):
            raise ValueError(f"latents of shape {tuple(latents.shape)}, expected {tuple(shape)}")
        return latents.to(device=device, dtype=torch.float32)

    def predict(self, sar_latents: torch.Tensor, latents: torch.Tensor, timestep, prompt: dict):
        """One UNet call, in its precision: prediction B x C x h x w and raw variance B x h x w or None, float32."""
        latents = self.scheduler.scale_model_input(latents, timestep)
        sample = torch.cat([sar_latents, latents], dim=1).to(self.unet.dtype)
        output = self.unet(sample, timestep, **prompt, return_dict=False)[0].float()
        if not self.predicts_variance:
            return output, None
        return output[:, :-1], smooth_border(output[:, -1])

    @torch.no_grad()
    def __call__(
        self,
        sar,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006, the signature diffusers expects
        return_dict: bool = True,
        ensemble_size: int = 1,
        realism: float | None = None,
    ) -> CDiffSETPipelineOutput | tuple:
        """Translate one SAR image, or a batch of one size; the EO images have `config.upscale` times its sides.

        Args:
            sar: PIL image, array or tensor, a batch of them, or a list; display values or backscatter as
                `config.sar_transform` says. The model takes it whole, and attention grows with the fourth power of the
                side: what is much larger than `trained_size` is a case for `c_diffset.translate_windows`, which goes by
                tiles.
            num_inference_steps: `config.default_num_inference_steps` when None.
            generator: for reproducible noise; one for the batch, or a list with one for each image.
            latents: the starting noise, B x C x h x w of the enlarged and padded size, instead of drawing it.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)`; may return {"latents": changed},
                and set `pipe._interrupt = True`, after which no further step is taken.
            return_dict: False gives the tuple (images, confidence, variance, latents).
            ensemble_size: samples of each image, one after the other: the output holds their mean image, mean variance
                and its confidence, their `spread`, and the latents of the last; not with `latents`.
            realism: of a model of one step that was trained for it (`config.realism`), from 0, the best estimate of
                every pixel, to 1, a plausible sample; the model's default when None. It is the standard deviation of
                the starting noise; from no noise at all, every seed gives the same image.

        Raises:
            ValueError: the input, the scheduler or an argument does not fit the model; the message says what does.
        """
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self.check_inputs(steps, output_type, callback_on_step_end_tensor_inputs)
        if ensemble_size < 1 or (ensemble_size > 1 and (latents is not None or output_type == "latent")):
            raise ValueError(f"ensemble_size is {ensemble_size}: expected 1, or more without `latents` and 'latent'")
        realism = self.choose_realism(realism, steps)
        if ensemble_size > 1 and realism == 0:
            raise ValueError(f"ensemble_size is {ensemble_size}, but with a realism of 0 all samples are the same")

        sar = self.enlarge(self.prepare_sar(sar))
        height, width = sar.shape[-2:]
        sar_latents = self.encode(self.pad(sar)).float()
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        samples, self._interrupt = [], False
        while len(samples) < ensemble_size and not self.interrupt:
            samples.append(self.denoise(sar_latents, steps, generator, latents, *callback, realism))

        knots = self.calibration_knots(steps, realism) if ensemble_size == 1 else None
        output = self.postprocess(samples, height, width, knots, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return output.images, output.confidence, output.variance, output.latents
        return output

    @torch.no_grad()
    def denoise(
        self,
        sar_latents: torch.Tensor,
        steps: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        callback=None,
        tensor_inputs: Sequence[str] = ("latents",),
        realism: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One sample: the final latents B x C x h x w, and the variance B x h x w where the UNet predicts one.

        The callback of a model of the residual sees the residual; what is returned has `sar_latents` added.

        Args:
            sar_latents: B x c x h x w, what `encode` makes of the enlarged SAR images, padded to the model's multiple.
            steps: number of inference steps.
            generator: source of the noise; one for the batch, or a list with one for each image.
            latents: the starting noise, B x C x h x w, instead of drawing it.
            callback, tensor_inputs: as `callback_on_step_end` and its tensors in a call of the pipeline.
            realism: as in a call of the pipeline, after `choose_realism`.
        """
        shape = (len(sar_latents), self.eo_channels, *sar_latents.shape[-2:])
        self.scheduler.set_timesteps(steps)  # on the CPU, where the scheduler's scalar arithmetic never waits for a GPU
        state = self.prepare_latents(shape, generator, latents) * self.starting_scale(realism)
        prompt = self.prompt_kwargs(len(sar_latents))

        timesteps = self.scheduler.timesteps
        on_device = timesteps.to(state.device)
        confidence_step = (timesteps - self.config.confidence_timestep).abs().argmin().item()
        variance, step = None, cast(Any, self.scheduler.step)  # their annotations are older than lists of generators
        with self.progress_bar(total=len(timesteps)) as progress_bar:  # pyright: ignore[reportCallIssue]
            for i, t in enumerate(timesteps):
                prediction, raw = self.predict(sar_latents, state, on_device[i], prompt)
                if raw is not None and i == confidence_step:
                    variance = self.to_variance(raw, t)
                state = step(prediction, t, state, generator=generator, return_dict=False)[0]
                if callback is not None:
                    tensors = {"latents": state} if tensor_inputs else {}
                    state = (callback(self, i, t, tensors) or {}).get("latents", state)
                progress_bar.update()
                if self.interrupt:
                    break
        return self.from_residual(state, sar_latents), variance

    def postprocess(
        self,
        samples: list[tuple[torch.Tensor, torch.Tensor | None]],
        height: int,
        width: int,
        knots: dict | None,
        output_type: str,
    ) -> CDiffSETPipelineOutput:
        """Decode, bring confidence to pixels, crop the padding away, average samples, convert to `output_type`."""
        latents, maps, images = samples[-1][0], {}, samples[-1][0]
        if samples[0][1] is not None:
            variance = torch.stack([variance for _, variance in samples if variance is not None]).mean(dim=0)
            confidence = self.to_pixels(variance_to_confidence(variance))[:, :height, :width]
            maps = {"confidence": confidence, "variance": variance}
            if knots is not None:
                maps["expected_error"] = apply_calibration(confidence, knots, "expected_error")
                maps["error_probability"] = apply_calibration(confidence, knots, "probability")
        if output_type != "latent":
            decoded = [(self.decode(final)[..., :height, :width].float() * 0.5 + 0.5).cpu() for final, _ in samples]
            images = torch.stack(decoded).mean(dim=0)
            if len(decoded) > 1:
                maps["spread"] = (torch.stack(decoded) * 255).std(dim=0).mean(dim=1)
        maps = {name: values.cpu() if output_type == "pt" else values.cpu().numpy() for name, values in maps.items()}
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            if not np.isfinite(images).all():
                raise ValueError("the model's image holds NaN or infinite values: try dtype float32")
            images = [PIL.Image.fromarray(image) for image in (images * 255).round().astype(np.uint8)]
        maps = {"confidence": None, "variance": None} | maps
        return CDiffSETPipelineOutput(images=images, latents=latents, **maps)

    def calibration_knots(self, steps: int, realism: float | None = None) -> dict | None:
        """The knots for `apply_calibration` at this number of steps, and this realism; None where there are none."""
        maps = {} if self.config.calibration is None else self.config.calibration["steps"]
        return maps.get(calibration_key(steps, realism))

    def to_pixels(self, values: torch.Tensor) -> torch.Tensor:
        """Latent pixels B x h x w to image pixels B x H x W, linear between them."""
        if self.vae_scale_factor == 1:
            return values
        size = [side * self.vae_scale_factor for side in values.shape[-2:]]
        return F.interpolate(values[:, None], size=size, mode="bilinear")[:, 0]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "CDiffSETPipeline":
        """Load from a folder or Hub id, safetensors only; arguments as for `DiffusionPipeline.from_pretrained`.

        A variance channel of zeros, which was never trained and would give one confidence everywhere, is left out.

        Raises:
            OSError: a file is missing or damaged, lacks a tensor, or is a pickle, which can run code when it is loaded.
            ValueError: the settings in a file make no sense.
        """
        if Path(pretrained_model_name_or_path).is_file():
            raise ValueError(f"{pretrained_model_name_or_path} is one file: expected the folder of a model. {CONVERT}")
        if Path(pretrained_model_name_or_path).is_dir():
            check_folder(Path(pretrained_model_name_or_path), kwargs, kwargs.get("variant"))
        try:
            pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs | {"use_safetensors": True})
        except (ValueError, OSError):
            raise
        except Exception as error:  # damaged tokenizers end in errors of any kind
            raise OSError(f"{pretrained_model_name_or_path} cannot be loaded: {one_line(error)}") from error
        if "unet" not in kwargs and pipe.predicts_variance:
            last = cast(Any, pipe.unet.conv_out)
            if not last.weight[-1].any() and not last.bias[-1].any():
                drop_variance_channel(pipe.unet)
        return pipe

    @classmethod
    def download(cls, pretrained_model_name, **kwargs) -> str:
        """Bring a Hub id into the cache, as `DiffusionPipeline.download` does, and check what came (`check_folder`)."""
        folder = super().download(pretrained_model_name, **kwargs)
        check_folder(Path(folder), kwargs, kwargs.get("variant"))
        return str(folder)

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs,
    ) -> None:
        """Save a complete folder, `pipeline.py` included, and upload it where `push_to_hub` says so.

        Arguments as for `DiffusionPipeline.save_pretrained`; a README.md in the folder or on the Hub stays as it is.

        Raises:
            ValueError: `safe_serialization` is False.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization is False: weights are only written as safetensors")
        hub = {name: kwargs.pop(name, None) for name in ("private", "token", "commit_message", "create_pr")}
        super().save_pretrained(save_directory, variant=variant, **kwargs)
        Path(save_directory, "pipeline.py").write_text(SOURCE, encoding="utf-8")
        if push_to_hub:
            self._upload(save_directory, repo_id or Path(save_directory).name, **hub)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        variant: str | None = None,
    ) -> str:
        """Save and upload the pipeline, `pipeline.py` included; the repository's README.md stays as it is."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant)
            return self._upload(folder, repo_id, private, token, commit_message, create_pr)

    def _upload(self, folder, repo_id, private=None, token=None, commit_message=None, create_pr=None) -> str:
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        return self._upload_folder(folder, repo_id, token, commit_message, bool(create_pr))


def check_folder(folder: Path, given: Collection[str] = (), variant: str | None = None) -> None:
    """Refuse a pipeline's folder that is damaged or hostile, before memory is taken for anything in it.

    Components that are `given` are not read.

    Raises:
        OSError: a file is missing, damaged or a pickle, or a component's weights are not those that its config needs.
        ValueError: a file is not JSON, names components that this pipeline has not, or numbers beyond any use.
    """
    if not (folder / "model_index.json").is_file() and (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds one part of a model, without model_index.json. {CONVERT}")
    index = read_settings(folder / "model_index.json")
    for name, classes in (MODELS | {"scheduler": SCHEDULERS}).items():
        entry = index.get(name)
        if name in given or (entry in (None, [None, None]) and name in CDiffSETPipeline._optional_components):
            continue
        library = "transformers" if name == "text_encoder" else "diffusers"
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != library or entry[1] not in list(classes):
            expected = " or ".join(f'["{library}", "{choice}"]' for choice in classes)
            raise ValueError(f"{folder}/model_index.json: {name} is {brief(entry)}, expected {expected}")
        if name == "scheduler":
            build_empty(folder / name, classes[entry[1]])
            continue
        message = describe_pickle(folder / name)
        if message is not None:
            raise OSError(message)
        check_weights(folder / name, build_empty(folder / name, classes[entry[1]]), variant)


def read_settings(path: Path) -> dict:
    """A JSON object without absurd numbers: FileNotFoundError without the file, ValueError for any other content."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}: expected a JSON object")
    for key, value in settings.items():
        limit = next((limit for part, limit in LIMITS.items() if part in key), LARGEST)
        entries = value if isinstance(value, list) else [value]
        numbers = [number for entry in entries for number in (entry if isinstance(entry, list) else [entry])]
        if "block" in key and len(entries) > 64:
            raise ValueError(f"{path}: {key} has {len(entries)} entries, expected at most 64")
        if any(isinstance(number, int | float) and not abs(number) <= limit for number in numbers):
            raise ValueError(f"{path}: {key} is {brief(value)}, expected no number above {limit:.0f}")
    return settings


def build_empty(folder: Path, component: type) -> Any:
    """A component as its config describes it, without memory for its weights; ValueError where that is not possible."""
    path = folder / ("scheduler_config.json" if component in SCHEDULERS.values() else "config.json")
    settings = read_settings(path)
    try:
        if component in SCHEDULERS.values():
            scheduler = component.from_config(settings)
            scheduler.set_timesteps(1)
            return scheduler
        with torch.device("meta"):
            text = component is CLIPTextModel
            return CLIPTextModel(CLIPTextConfig.from_dict(settings)) if text else component.from_config(settings)
    except Exception as error:  # constructors raise anything at settings of the wrong type
        raise ValueError(f"{path} describes no {component.__name__}: {one_line(error)}") from error


def check_weights(folder: Path, model: nn.Module, variant: str | None = None) -> None:
    """Refuse safetensors that are cut short, lack one of the model's tensors, or hold it in another shape, by OSError.

    Nothing but the files' headers is read.
    """
    marks = ["", *([] if variant is None else [rf"\.{re.escape(variant)}"])]
    patterns = [re.compile(rf"\w+{mark}(-\d+-of-\d+)?\.safetensors") for mark in marks]
    named = [[file for file in sorted(folder.glob("*")) if pattern.fullmatch(file.name)] for pattern in patterns]
    files = named[-1] or named[0]  # without the variant's own, diffusers takes the plain ones
    shapes = {}
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                shapes |= {_tensor_name(key): weights.get_slice(key).get_shape() for key in weights.keys()}
        except SafetensorError as error:
            raise OSError(f"{file} is damaged ({one_line(error)}): copy or download it again") from None
    for key, weight in model.state_dict().items() if files else ():
        found = shapes.get(_tensor_name(key))
        if found != list(weight.shape):
            what = "lacks the tensor" if found is None else f"holds, in shape {found}, the tensor"
            raise OSError(f"{files[0]} {what} {key} of shape {list(weight.shape)}, which its config.json asks for")


def _tensor_name(key: str) -> str:
    """One name for a tensor in files of all times: older ones name attention and the text model otherwise."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    key = re.sub(r"\.(query|key|value|proj_attn)\.", lambda found: f".{old[found[1]]}.", key)
    return key.removeprefix("text_model.")


def one_line(error: Exception) -> str:
    """The text of an error in one line of bounded length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def describe_pickle(folder: Path) -> str | None:
    """What is wrong with a component's folder that holds its weights as a pickle only; None for any other folder."""
    files = sorted(folder.glob("*"))
    pickles = [file for file in files if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    if not pickles or any(file.suffix == ".safetensors" for file in files):
        return None
    name = "model" if folder.name == "text_encoder" else pickles[0].stem
    return (
        f"{pickles[0]} is a pickle, which can run code when loaded: expected {name}.safetensors. If you trust the "
        f"file, load it with torch.load(..., weights_only=True) and write it beside it with "
        f"safetensors.torch.save_file(..., '{name}.safetensors'). {CONVERT}"
    )


@torch.no_grad()
def encode_prompt_embeds(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> dict:
    """Embed the constant prompt, without padding, into a form that a JSON config can hold."""
    tokens = tokenizer(PROMPT, truncation=True, return_tensors="pt").input_ids
    embeds = text_encoder(tokens.to(text_encoder.device))[0].float().cpu()
    data = base64.b64encode(embeds.numpy().astype("<f4").tobytes()).decode("ascii")
    return {"shape": list(embeds.shape), "float32": data}


def decode_prompt_embeds(stored: dict) -> torch.Tensor:
    """The inverse of `encode_prompt_embeds`: float32, 1 x tokens x channels.

    Raises:
        ValueError: `stored` is not what `encode_prompt_embeds` writes.
    """
    try:
        values = np.frombuffer(base64.b64decode(stored["float32"], validate=True), dtype="<f4")
        embeds = torch.from_numpy(values.astype(np.float32).reshape(stored["shape"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        found = brief(str(error))
        raise ValueError(f"prompt_embeds cannot be read ({found}): write it with `encode_prompt_embeds`") from None
    if embeds.ndim != 3 or len(embeds) != 1 or not embeds.numel() or not torch.isfinite(embeds).all():
        raise ValueError(f"prompt_embeds of shape {tuple(embeds.shape)}: expected finite values, 1 x tokens x channels")
    return embeds
