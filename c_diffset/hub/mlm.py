"""`mlm.json`: a pipeline as a STAC item of the Machine Learning Model extension, its bands and transforms included.

Specification: https://github.com/stac-extensions/mlm, version 1.4.0, and STAC 1.1.0.
"""

import re

import torch

from c_diffset.hub.markdown import plain
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, count_bands, describe_eo_transform

EXTENSIONS = [
    "https://stac-extensions.github.io/mlm/v1.4.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
]
SHA256_MULTIHASH = "1220"  # the prefix that tells SHA-256 of 32 bytes
TO_DB = {
    "power": "10 * log10(max(band, 1e-10))",
    "amplitude": "20 * log10(max(band, 1e-10))",
}
UNITS = {
    "display": "display values: integers of 8 or 16 bits (divided by their full scale), or floating point in [0, 1]",
    "db": "calibrated backscatter in dB, floating point",
    "power": "calibrated backscatter as linear power, floating point, which the pipeline converts to dB",
    "amplitude": "calibrated backscatter as linear amplitude, floating point, which the pipeline converts to dB",
}
SCALING = "Each channel is clipped to its range, which is mapped to [-1, 1] (min-max to [0, 1], times 2, minus 1)."
FINITE = "No NaN or infinite values: fill or mask them first."


def band_names(transform: dict) -> list[str]:
    """The names of the bands that the input must have: the model's own, or `band N` from 0 on."""
    named = transform.get("bands") or [f"band {number}" for number in range(count_bands(transform["channels"]))]
    return [plain(name) for name in named]


def what_it_does(pipe: CDiffSETPipeline) -> str:
    """What a model does, as the name of a task."""
    upscale = pipe.config.upscale
    return "SAR to EO image translation" if upscale == 1 else f"Super-resolution of EO images (x{upscale})"


def channel_bands(transform: dict) -> list[list[int]]:
    """For each channel of the model the band that it reads, or the two bands of which it is the difference."""
    return [[int(band) for band in str(channel).split("-")] for channel in transform["channels"]]


def channel_names(transform: dict) -> list[str]:
    """The names of the channels: that of the band, or those of the two."""
    names = band_names(transform)
    return [" - ".join(names[band] for band in bands) for bands in channel_bands(transform)]


def channel_ranges(transform: dict) -> list[tuple[float, float]]:
    """The fixed range of each channel."""
    limits = transform["range"]
    each = limits if isinstance(limits[0], list | tuple) else [limits] * len(transform["channels"])
    return [(float(low), float(high)) for low, high in each]


def mlm_item(
    pipe: CDiffSETPipeline,
    repo: str,
    license: str,
    weights: dict,
    origin: str | None = None,
    from_scratch: bool = False,
) -> dict:
    """The STAC item.

    Args:
        repo: Hub id.
        weights: name of each safetensors file to (bytes, SHA-256 in hex).
        origin: what the weights come from, where that is known.
        from_scratch: they are known to come from nothing.
    """
    transform = pipe.config.sar_transform
    parameters = sum(sum(p.numel() for p in part.parameters()) for part in _models(pipe).values())
    bands = [{"name": name, "description": transform["units"]} for name in band_names(transform)]
    origin = origin and plain(origin)
    predicts = ["generative", "regression"] if pipe.predicts_variance else ["generative"]
    properties = {
        "datetime": None,  # it works on images of any time
        "start_datetime": "1900-01-01T00:00:00Z",
        "end_datetime": "9999-12-31T23:59:59Z",
        "title": repo,
        "description": f"{what_it_does(pipe)} by conditional diffusion. The EO images are synthetic.",
        "license": "other" if license == "unknown" else license,
        "bands": bands,
        "mlm:name": re.sub(r"[^A-Za-z0-9]+$", "", f"c_diffset {repo.split('/')[1]}"),
        "mlm:architecture": "Latent diffusion" if pipe.vae is not None else "Diffusion in pixel space",
        "mlm:tasks": predicts,
        **({"c_diffset:upscale": pipe.config.upscale} if pipe.config.upscale > 1 else {}),
        "mlm:framework": "PyTorch",
        "mlm:framework_version": re.match(r"\d+\.\d+\.\d+", torch.__version__)[0],
        "mlm:total_parameters": parameters,
        **({"mlm:pretrained": not from_scratch, "mlm:pretrained_source": origin} if origin or from_scratch else {}),
        "mlm:accelerator": "cuda",
        "mlm:accelerator_constrained": False,
        "mlm:input": [_input(pipe)],
        "mlm:output": _outputs(pipe),
        "c_diffset:eo_transform": pipe.config.eo_transform,
        "mlm:hyperparameters": {
            "num_inference_steps": pipe.config.default_num_inference_steps,
            "scheduler": type(pipe.scheduler).__name__,
            "prediction_type": plain(pipe.config.prediction_type),
            **({} if pipe.config.realism is None else {"realism": pipe.config.realism}),
            "size_multiple": pipe.size_multiple,
        },
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": repo.replace("/", "--"),
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {name.replace("/", "-"): _asset(name, *facts, bands) for name, facts in weights.items()},
    }


def _models(pipe: CDiffSETPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _input(pipe: CDiffSETPipeline) -> dict:
    """The channels that the model reads, as bands or the difference of two, and how they are scaled."""
    transform, upscale = pipe.config.sar_transform, pipe.config.upscale
    enlarged = "" if upscale == 1 else f" Then it is enlarged {upscale} times, bicubic; outputs are on this finer grid."
    bands: list[dict] = [{"name": name} for name in channel_names(transform)]
    for band, read in zip(bands, channel_bands(transform), strict=True):
        if len(read) == 2:  # by number: a name might be anything, and an expression is code
            band |= {"format": "python", "expression": f"bands[{read[0]}] - bands[{read[1]}]"}
    ranges = channel_ranges(transform)
    ranges = ranges[:1] if len(set(ranges)) == 1 else ranges  # one stands for all
    before = TO_DB.get(transform["units"])
    return {
        "name": "sar",
        "description": f"{UNITS[transform['units']].capitalize()}. {SCALING} {FINITE}{enlarged}",
        "bands": bands,
        "input": {
            "shape": [-1, len(bands), -1, -1],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [{"type": "min-max", "minimum": low, "maximum": high} for low, high in ranges],
        "resize_type": "pad",
        "pre_processing_function": None if before is None else {"format": "python", "expression": before},
    }


def _outputs(pipe: CDiffSETPipeline) -> list[dict]:
    place = {"dim_order": ["batch", "height", "width"], "shape": [-1, -1, -1], "data_type": "float32"}
    image = {"dim_order": ["batch", "channel", "height", "width"], "shape": [-1, 3, -1, -1], "data_type": "float32"}
    values = describe_eo_transform(pipe.config.eo_transform)
    outputs = [("eo", ["generative"], image, f"Synthetic EO image: red, green, blue in [0, 1]; {values}.")]
    if pipe.predicts_variance:
        outputs.append(("confidence", ["regression"], place, "Confidence of each pixel, in (0, 1]."))
    if pipe.config.calibration is not None:
        text = "Expected absolute error of each pixel in 8-bit levels, mean over red, green, blue."
        outputs.append(("expected_error", ["regression"], place, text))
    return [
        {"name": name, "tasks": tasks, "result": result, "description": text} for name, tasks, result, text in outputs
    ]


def _asset(name: str, size: int, sha256: str, bands: list[dict]) -> dict:
    """A file of weights; that of the UNet is the model, which reads `bands`, and the others belong to it."""
    is_model = name.startswith("unet/")
    asset = {
        "href": f"./{name}",
        "type": "application/octet-stream",
        "title": name,
        "roles": ["mlm:model" if is_model else "mlm:weights"],
        "file:size": size,
        "file:checksum": SHA256_MULTIHASH + sha256,
    }
    return asset | ({"mlm:artifact_type": "safetensors", "bands": bands} if is_model else {})
