"""Translate pairs and measure every image, beside floors and a ceiling: what validation and the report are made of."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from c_diffset.batching import batches_of_one_size
from c_diffset.data.batches import pair_to_tensors
from c_diffset.data.eo import eo_to_tensor
from c_diffset.data.pairs import Pair
from c_diffset.measurement.metrics import PLAIN, Instruments, measure
from c_diffset.noise import noise_generator
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

GIVEN = ("SAR", "bicubic")  # what the input is called in pictures: of SAR images, and of super-resolution
MIN_VALID = 0.5  # crops with a smaller valid fraction are left out


@dataclass
class PairResult:
    """One evaluated image: its metrics, and float tensors on the CPU.

    `sar`, `generated`, `eo`: 3 x H x W in [0, 1], SAR in grey, nodata black; of super-resolution, `sar` is the input in
    its colours, enlarged, which `given` says; `confidence`: H x W in (0, 1] or None;
    `mask`: H x W, bool, True = valid, or None where every pixel is; `expected_error` (levels) and `error_probability`:
    H x W, or None without a calibration; `spread`: H x W, levels, of further samples, or None; `discrepancy`: H x W,
    bool, or None.
    """

    id: str
    metrics: dict[str, float]
    sar: Tensor
    generated: Tensor
    eo: Tensor
    confidence: Tensor | None
    mask: Tensor | None = None
    expected_error: Tensor | None = None
    error_probability: Tensor | None = None
    spread: Tensor | None = None
    discrepancy: Tensor | None = None
    given: str = "SAR"

    @property
    def pictures(self) -> dict[str, Tensor]:
        """The row of `make_grid`: images and maps by their labels, the expected error before the confidence."""
        found = {self.given: self.sar, "generated": self.generated, "EO": self.eo}
        found |= {"expected error": self.expected_error, "confidence": self.confidence}
        return {label: image for label, image in found.items() if image is not None}


def evaluate_pairs(
    pipe: CDiffSETPipeline,
    pairs: Iterable[Pair],
    num_inference_steps: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    instruments: Instruments = PLAIN,
    spread_samples: int = 0,
    realism: float | None = None,
) -> Iterator[PairResult]:
    """Translate and measure pairs, one result at a time.

    The noise of an image depends on `seed` and on its place in `pairs` alone: not on the batch size. Generated images
    are rounded to 8 bits, as they would be in a file, also before they are measured, unless the protocol says
    otherwise. Neighbours of one size share a batch. `realism` is that of a call of the pipeline. `spread` is that of
    `spread_samples` further samples, which the image itself is not one of.

    Raises:
        ValueError: a pair that does not fit the model, or NaN out of the model; the message names the pair.
    """
    device, number, least = pipe.device, 0, instruments.least_side
    for batch in batches_of_one_size(pairs, lambda pair: pair.eo.shape[:2], batch_size):
        if min(batch[0].eo.shape[:2]) < least:
            height, width = batch[0].eo.shape[:2]
            raise ValueError(f"pair {batch[0].id} is {height} x {width}: the metrics need at least {least} x {least}")
        _warn_of_size(pipe, *batch[0].eo.shape[:2])
        tensors = [to_tensors(pair, pipe) for pair in batch]
        generators = [noise_generator(seed, number + i) for i in range(len(batch))]
        options = {"num_inference_steps": num_inference_steps, "generator": generators, "output_type": "pt"}
        options |= {"realism": realism}
        output = pipe([pair.sar for pair in batch], **options)
        for pair, image in zip(batch, output.images, strict=True):
            if not torch.isfinite(image).all():
                raise ValueError(f"pair {pair.id}: the model's image holds NaN or infinite values")
        generated = (output.images * 255).round() / 255
        eo = torch.stack([item["eo"] for item in tensors]) * 0.5 + 0.5
        sar = torch.stack([_shown(item["sar"], pipe) for item in tensors])
        mask = _stack_masks(tensors)
        if mask is not None:  # nodata is black in pictures and features too
            generated, eo, sar = generated * mask, eo * mask, sar * mask
        measured = generated if instruments.protocol.rounded else output.images
        on_device = [None if x is None else x.to(device) for x in (measured, eo, sar, output.confidence, mask)]
        maps = {"confidence": output.confidence, "mask": None if mask is None else mask[:, 0].bool()}
        maps |= {"expected_error": output.expected_error, "error_probability": output.error_probability}
        if spread_samples:
            maps["spread"] = pipe([pair.sar for pair in batch], **options, ensemble_size=spread_samples).spread
        for i, metrics in enumerate(measure(*on_device, instruments, pipe.config.upscale > 1)):
            own = {name: None if x is None else x[i] for name, x in maps.items()}
            known = batch[i].discrepancy
            own["given"] = GIVEN[pipe.config.upscale > 1]
            own["discrepancy"] = None if known is None else torch.from_numpy(known)
            yield PairResult(batch[i].id, metrics, sar[i], generated[i], eo[i], **own)
        number += len(batch)


def to_tensors(pair: Pair, pipe: CDiffSETPipeline) -> dict[str, Tensor]:
    """`pair_to_tensors` with the settings of a pipeline."""
    return pair_to_tensors(pair, pipe.config.sar_transform, pipe.config.eo_transform, pipe.config.upscale)


def _warn_of_size(pipe: CDiffSETPipeline, height: int, width: int) -> None:
    """Images are measured whole; say so where that takes far more time and memory than what the model was made for."""
    trained = pipe.trained_size
    if trained is not None and max(height, width) > 2 * trained:
        warnings.warn(
            f"images of {height} x {width} pixels go whole through a model that was trained at {trained}: time and "
            f"memory of its attention grow with the fourth power of the side; crop_size {trained} measures crops",
            stacklevel=3,
        )


def _shown(sar: Tensor, pipe: CDiffSETPipeline) -> Tensor:
    """The input as an image 3 x H x W in [0, 1]: the model's first SAR channel in grey, or the enlarged colours."""
    bands = sar if pipe.config.upscale > 1 and len(sar) == 3 else sar[:1]
    return (bands * 0.5 + 0.5).expand(3, -1, -1)


def _stack_masks(tensors: list[dict[str, Tensor]]) -> Tensor | None:
    """B x 1 x H x W, or None where no image has a mask."""
    if not any("mask" in item for item in tensors):
        return None
    return torch.stack([item.get("mask", torch.ones_like(item["eo"][:1])) for item in tensors])


def crop_pairs(pairs: Iterable[Pair], size: int, crop: str = "grid") -> Iterator[Pair]:
    """Cut pairs into crops of `size` x `size` that do not overlap, from the top left; or take the "centre" of each.

    What remains is not used, nor are crops of which less than half is valid. Ids become `ID_ROW_COLUMN`, the position
    in pixels.

    Raises:
        ValueError: an image is smaller than `size`.
    """
    for pair in pairs:
        height, width = pair.eo.shape[:2]
        if min(height, width) < size:
            raise ValueError(f"pair {pair.id} is {height} x {width}, smaller than crop_size {size}: lower crop_size")
        if size % pair.upscale:
            raise ValueError(
                f"crop_size is {size}: expected a multiple of {pair.upscale}, the factor of pair {pair.id}"
            )
        for top in _starts(height, size, crop, pair.upscale):
            for left in _starts(width, size, crop, pair.upscale):
                part = pair.part(slice(top, top + size), slice(left, left + size))
                if part.mask is None or part.mask.mean() >= MIN_VALID:
                    yield replace(part, id=f"{pair.id}_{top}_{left}")


def _starts(length: int, size: int, crop: str, multiple: int) -> Iterable[int]:
    """Where crops begin along a side: at a multiple of so many pixels."""
    centre = (length - size) // 2 // multiple * multiple
    return [centre] if crop == "centre" else range(0, length - size + 1, size)


def mean_metrics(rows: list[dict]) -> dict[str, float]:
    """The mean over images of every metric; `rows` may hold an `id` beside them."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "id"}


def mean_colour_of(pairs: Iterable[Pair], eo_transform: dict) -> list[float]:
    """The mean EO colour (r, g, b in [0, 1]) of valid pixels, then of pairs, as a model with this transform sees it.

    Take it from the training split.
    """
    colours = []
    for pair in pairs:
        valid = np.ones(pair.eo.shape[:2], bool) if pair.mask is None else pair.mask
        eo = eo_to_tensor(np.moveaxis(pair.eo, -1, 0), eo_transform).numpy() * 0.5 + 0.5
        colours.append(eo[:, valid].mean(1, dtype=np.float64))
    return np.mean(colours, axis=0).tolist()


def floors_and_ceiling(
    pairs: Iterable[Pair],
    pipe: CDiffSETPipeline,
    mean_colour: list[float] | None,
    instruments: Instruments = PLAIN,
) -> tuple[dict[str, dict[str, float]], dict[str, float] | None]:
    """What no model should fall below, and what none can rise above in this latent space, in one pass over the pairs.

    Args:
        mean_colour: r, g, b in [0, 1], known without looking at `pairs`; None leaves this floor out.

    Returns:
        Mean metrics of the SAR image copied to grey (`sar_grey`), or of the enlarged input of super-resolution
        (`bicubic`), and of one colour everywhere (`mean_colour`); and those of the true EO image, encoded and decoded;
        None in pixel space.
    """
    rows: dict[str, list[dict[str, float]]] = {}
    for pair in pairs:
        tensors = to_tensors(pair, pipe)
        true, sar = tensors["eo"][None].to(pipe.device), _shown(tensors["sar"], pipe)[None].to(pipe.device)
        eo, mask = true * 0.5 + 0.5, tensors["mask"][None].to(pipe.device) if "mask" in tensors else None
        enlarged = pipe.config.upscale > 1
        predictions = {"bicubic": (sar * 255).round() / 255} if enlarged else {"sar_grey": sar}
        if mean_colour is not None:
            predictions["mean_colour"] = eo.new_tensor(mean_colour).view(1, 3, 1, 1).expand_as(eo)
        if pipe.vae is not None:
            predictions["autoencoder"] = round_trip(pipe, true)
        for name, prediction in predictions.items():
            rows.setdefault(name, []).extend(measure(prediction, eo, sar, None, mask, instruments, enlarged))
    means = {name: mean_metrics(measured) for name, measured in rows.items()}
    ceiling = means.pop("autoencoder", None)
    return means, ceiling


def round_trip(pipe: CDiffSETPipeline, images: Tensor) -> Tensor:
    """Images B x 3 x H x W in [-1, 1], encoded and decoded as the pipeline does, to [0, 1], rounded to 8 bits."""
    height, width = images.shape[-2:]
    decoded = pipe.decode(pipe.encode(pipe.pad(images)).float())[..., :height, :width].float()
    return ((decoded * 0.5 + 0.5) * 255).round() / 255
