"""What translating a scene would take: whether it fits the model, how much of it holds data, time and memory here."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from c_diffset.inference.canvas import scene_tiling
from c_diffset.inference.enlarged import on_grid_of_model
from c_diffset.inference.raster import SarRaster
from c_diffset.inference.scene import Translator, scene_raster, size_of
from c_diffset.inference.tiles import Box
from c_diffset.sar.safe import is_safe

WINDOW = 128  # side of the windows that the share of data is measured in
TILES = 64  # of a scene, at most, that are looked into for data
PATIENCE = 5.0  # seconds: what takes longer is timed once, with what it needs to warm up


@dataclass
class Cost:
    """What one tile takes on this machine.

    Attributes:
        ends: Seconds to encode the SAR image and to decode the EO image.
        step: Seconds of one step of denoising.
        memory: Highest number of bytes in use so far: on a GPU of the device, else of the process.
    """

    ends: float
    step: float
    memory: int | None

    def seconds(self, tiles: int, steps: int) -> float:
        """Of so many tiles, at so many steps."""
        return tiles * (self.ends + steps * self.step)


@dataclass
class Forecast:
    """A scene, as far as it can be known without translating it.

    Attributes:
        path: The scene.
        size: Height and width in pixels.
        units: Its units, and how they are known.
        bands: The bands that the model reads of it.
        place: Coordinate system and pixel size.
        valid: The share of its pixels that hold data, by a sample of tiles; None where that is not known.
        tiles: The number of tiles that hold data, by the same sample.
        becomes: Size and pixels of the image that it becomes, where they are not those of the scene.
        problem: Why the model cannot translate it; None where it can.
    """

    path: Path
    size: tuple[int, int]
    units: str = ""
    bands: str = ""
    place: str = ""
    valid: float | None = None
    tiles: int = 0
    becomes: str = ""
    problem: str | None = None


def forecast(path: Path, translator: Translator) -> Forecast:
    """What a scene is, and whether the model can translate it; nothing is written, and products are not calibrated."""
    if is_safe(path):
        height, width = size_of(path, translator.options)
        stride = translator.settings["tile_size"] - translator.settings["overlap"]
        tiles = -(-height // stride) * -(-width // stride)
        return Forecast(path, (height, width), "power, after calibration by the product's own tables", tiles=tiles)
    try:
        raster = scene_raster(path, translator.pipe, translator.options)
        return _describe(raster, translator)
    except (ValueError, OSError) as error:
        problem = " ".join(str(error).removeprefix(f"{path}: ").split())
        return Forecast(path, size_of(path, translator.options), problem=problem)


def _describe(raster: SarRaster, translator: Translator) -> Forecast:
    source, upscale = on_grid_of_model(raster, translator.pipe), translator.pipe.config.upscale
    tiling = scene_tiling(
        translator.pipe, source, translator.settings["tile_size"], translator.settings["overlap"]
    ).scaled(translator.pipe.vae_scale_factor)
    offset = tuple(place - corner for place, corner in zip(source.origin, tiling.origin, strict=True))
    boxes = tiling.boxes[:: -(-len(tiling.boxes) // TILES)]
    inside = [box.moved(*offset).common(Box(0, 0, *source.size)) for box in boxes]
    filled = [source.valid(box).any() for box in inside if box is not None]
    crs, (height, width) = raster.raster.crs, source.size
    pixels = [f"pixels of {x:g} x {y:g}" if crs else "" for x, y in _pixel_sides(raster, upscale)]
    return Forecast(
        path=raster.path,
        size=raster.size,
        units=f"{raster.units}, {raster.units_are}",
        bands=", ".join(raster.band_names),
        place=f"{crs}, {pixels[0]}" if crs else "",
        valid=float(np.mean([raster.valid(box).mean() for box in _spread(raster.size)])),
        tiles=round(len(tiling.boxes) * float(np.mean(filled))),
        becomes="" if upscale == 1 else ", ".join(filter(None, (f"{width} x {height} pixels", pixels[1]))),
    )


def _pixel_sides(raster: SarRaster, upscale: int) -> list[tuple[float, float]]:
    """Width and height of the pixels of a scene, and of what it becomes, in units of its coordinate system."""
    transform = raster.raster.transform
    return [(abs(transform.a) / factor, abs(transform.e) / factor) for factor in (1, upscale)]


def _spread(size: tuple[int, int]) -> list[Box]:
    """Windows at the corners of eight times eight equal parts of a scene."""
    axes = []
    for side in size:
        ends = np.linspace(0, side, min(8, side) + 1).astype(int)
        axes.append([(start, min(end, start + WINDOW)) for start, end in pairwise(ends)])
    return [Box(top, left, bottom, right) for top, bottom in axes[0] for left, right in axes[1]]


@torch.no_grad()
def measure_cost(translator: Translator) -> Cost:
    """Translate a batch of empty tiles, part by part, against the clock."""
    pipe, side, batch = translator.pipe, translator.settings["tile_size"], translator.options.batch_size
    device, channels = pipe.unet.device, len(pipe.config.sar_transform["channels"])
    sar = pipe.encode(torch.zeros(1, channels, side, side, device=device)).float()
    latents = torch.zeros(batch, pipe.eo_channels, *sar.shape[-2:], device=device)
    image, prompt = torch.zeros(1, channels, side, side, device=device), pipe.prompt_kwargs(batch)
    time_of_noise = torch.tensor(pipe.scheduler.config.num_train_timesteps - 1, device=device)
    ends = _seconds(lambda: pipe.encode(image)) + _seconds(lambda: pipe.decode(latents[:1]))
    step = _seconds(lambda: pipe.predict(sar.expand(batch, -1, -1, -1), latents, time_of_noise, prompt)) / batch
    return Cost(ends, step, _memory(device))


def _seconds(work: Callable[[], object]) -> float:
    """The time of some work, without what only its first call takes, where that is no long wait."""
    seconds = 2 * PATIENCE
    for _ in range(2):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if seconds > PATIENCE:
            break
    return seconds


def _memory(device: torch.device) -> int | None:
    """The highest number of bytes in use so far; None where the system does not say it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
