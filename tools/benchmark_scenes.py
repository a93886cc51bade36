"""Whole scenes: memory, seams, what tiles, batches and cuts change, and speed.

Part of `tools/benchmark.py`, on random weights; by itself on any model of display values in one band:
python tools/benchmark_scenes.py MODEL [--steps [1,50]] [--ground IMAGE.tif] [--scenes [SCENE.tif, ...]]
"""

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window
from timing import alternate, seconds, table

from c_diffset.arguments import run
from c_diffset.inference.canvas import Sampling, SceneCanvas, Work, scene_tiling, translate_windows
from c_diffset.inference.options import SceneOptions
from c_diffset.inference.raster import SarRaster
from c_diffset.inference.scene import translate_scene
from c_diffset.inference.source import ArraySource
from c_diffset.loading import load_pipeline
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.precision import Precision
from c_diffset.synthetic.generate import make_pair, to_display

TILE, OVERLAP = 512, 64
# a small process in between: one that is started by a large one counts the other's memory as its own
WAIT = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(bool(status))
"""


def write_scene(path: Path, ground: np.ndarray, side: int) -> Path:
    """A display scene of side x side px, the ground repeated."""
    place = {"crs": "EPSG:32611", "transform": from_origin(400_000, 3_800_000, 10, 10)}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=1, dtype="uint8", **place, **layout
    ) as raster:
        for top in range(0, side, len(ground)):
            for left in range(0, side, len(ground)):
                part = ground[: side - top, : side - left]
                raster.write(part, 1, window=Window(left, top, part.shape[1], part.shape[0]))
    return path


def generated_ground(side: int) -> np.ndarray:
    """Generated SAR of side x side px in scenes of 256 px, uint8 display values."""
    rows = [[make_pair(i * 100 + j, 256).sar for j in range(side // 256)] for i in range(side // 256)]
    return np.maximum(to_display(np.block(rows)), 1)


def peak_memory(model: str, scene: Path, output: Path, dtype: str) -> float:
    """Peak resident memory of a whole `c-diffset translate` of a scene, in MB."""
    arguments = [str(scene), "--model", model, "--output", str(output), "--dtype", dtype, "--num_inference_steps", "1"]
    command = [sys.executable, "-c", WAIT, sys.executable, "-m", "c_diffset", "translate", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"translating {scene} failed")
    return int(done.stdout) / 1024


def translated(ground: np.ndarray, pipe: CDiffSETPipeline, steps: int, **options) -> np.ndarray:
    """EO of a scene in memory, int H x W x 3."""
    eo = np.empty((*ground.shape[:2], 3), int)
    for window in translate_windows(ground, pipe, num_inference_steps=steps, **options):
        eo[window.box.slices()[1:]] = window.eo
    return eo


def independent_tiles(ground: np.ndarray, pipe: CDiffSETPipeline, steps: int, tile: int) -> np.ndarray:
    """The naive way: every tile on its own, with noise of its own."""
    eo = np.empty((*ground.shape[:2], 3), int)
    for top in range(0, len(ground), tile):
        for left in range(0, ground.shape[1], tile):
            image = pipe(ground[top : top + tile, left : left + tile], steps, output_type="np").images[0]
            eo[top : top + tile, left : left + tile] = (image * 255).round()
    return eo


def jump_ratio(eo: np.ndarray, borders: list[list[int]]) -> float:
    """Mean jump across tile borders (rows and columns that tiles begin or end at) over the mean jump elsewhere."""
    at, away = [], []
    for axis, places in enumerate(borders):
        jumps = np.abs(np.diff(eo, axis=axis)).mean(axis=(1 - axis, 2))
        border = np.isin(np.arange(1, eo.shape[axis]), places)
        at, away = [*at, *jumps[border]], [*away, *jumps[~border]]
    return float(np.mean(at) / np.mean(away))


def seams(ground: np.ndarray, pipe: CDiffSETPipeline, steps: int) -> dict:
    """Jumps at tile borders of a blended scene, and of independent tiles."""
    grid = scene_tiling(pipe, ArraySource(ground, pipe.config.sar_transform), TILE, OVERLAP).scaled(
        pipe.vae_scale_factor
    )
    ends = [{side for box in grid.boxes for side in (box[axis], box[axis + 2])} for axis in (0, 1)]
    naive = [list(range(TILE, side, TILE)) for side in ground.shape]
    return {
        f"seam_jump_ratio_{steps}_steps": jump_ratio(translated(ground, pipe, steps), [list(end) for end in ends]),
        f"seam_jump_ratio_{steps}_steps_naive": jump_ratio(independent_tiles(ground, pipe, steps, TILE), naive),
    }


def differences(ground: np.ndarray, pipe: CDiffSETPipeline, steps: int) -> dict:
    """8-bit levels, mean over the picture, that other tiles, batches and a cut of 8 px change; and another seed."""
    whole, inner = translated(ground, pipe, steps), slice(TILE, -TILE)
    apart = {
        "batch_1": translated(ground, pipe, steps, batch_size=1),
        "tile_384": translated(ground, pipe, steps, tile_size=384),
        "overlap_128": translated(ground, pipe, steps, overlap=128),
        "seed": translated(ground, pipe, steps, seed=1),
    }
    cut = np.abs(translated(ground[8:, 8:], pipe, steps, origin=(8, 8)) - whole[8:, 8:])
    figures = {f"levels_changed_by_{name}_{steps}_steps": float(np.abs(x - whole).mean()) for name, x in apart.items()}
    return figures | {
        f"levels_changed_by_cut_{steps}_steps": float(cut.mean()),
        f"levels_changed_by_cut_inside_{steps}_steps": float(cut[inner, inner].max()),
    }


def scene_speed(scene: Path, folder: Path, pipe: CDiffSETPipeline, rounds: int, confidence: bool) -> dict:
    """Pixels a second of a whole translation, files included, over those of the bare model on the same tiles."""
    source = SarRaster(scene, pipe.config.sar_transform)
    grid = scene_tiling(pipe, source, TILE, OVERLAP)
    boxes = grid.scaled(pipe.vae_scale_factor).boxes
    seen = sum(height * width for height, width in (box.size for box in boxes))  # pixels of all tiles
    canvas = SceneCanvas(source, pipe, grid, Sampling(1), Work())
    batches = [(len(batch), boxes[batch[0]].size) for batch in canvas.batches(range(len(boxes)))]
    channels = pipe.vae.config.in_channels if pipe.vae else 1

    @torch.no_grad()
    def bare() -> None:
        for count, (height, width) in batches:
            images = torch.rand(count, 1, channels, height, width) * 2 - 1
            latents = torch.cat([pipe.encode(image).float() for image in images])
            noise = torch.randn(count, pipe.eo_channels, *latents.shape[2:])
            prediction = pipe.predict(latents, noise, torch.tensor(999), pipe.prompt_kwargs(count))[0]
            for result in prediction[:, None]:
                pipe.decode(result)

    def whole() -> None:
        translate_scene(scene, pipe, folder, SceneOptions(1, tile_size=TILE, overlap=OVERLAP), confidence=confidence)

    whole_time, bare_time = alternate(whole, bare, rounds)
    pixels = source.size[0] * source.size[1]
    return {
        "scene_mpix_per_second": pixels / 1e6 / whole_time,
        "scene_share_of_bare_model": bare_time / whole_time,
        "scene_tile_pixels_over_pixels": seen / pixels,
    }


def scene_parts(
    model: str,
    folder: Path,
    steps: list[int],
    dtype: Precision = "float32",
    ground: str | None = None,
    scenes: list[str] | None = None,
    quick: bool = False,
    limit: float = math.inf,
) -> Iterator[tuple[str, Callable[[], dict]]]:
    """What to measure, and how, for `table`.

    Arguments as for `benchmark_scenes`, a folder for scenes and outputs, and a limit in seconds: scenes are no larger
    than the machine translates in a part of it, and what it would need more time for is left out.
    """
    pipe = load_pipeline(model, dtype=dtype)
    if ground is None:
        image = generated_ground(1024)
    else:
        with rasterio.open(ground) as raster:
            image = np.maximum(raster.read(1), 1)
    trial = write_scene(folder / "trial.tif", image, 256 if quick else 1024)
    once = SceneOptions(1, tile_size=TILE, overlap=OVERLAP)
    pixels_per_second = (256 if quick else 1024) ** 2 / seconds(
        lambda: translate_scene(trial, pipe, folder / "out", once)
    )

    def scene(side: float) -> Path:
        return write_scene(folder / f"{int(side)}.tif", image, int(side))

    def affordable(side: int, share: float) -> float:
        """At most that side, and no more than the machine translates within a share of the limit."""
        return max(512, min(side, (share * limit * pixels_per_second) ** 0.5))

    large = affordable(512 if quick else 10_000, 0.3)
    for path in [scene(large / 5), scene(large), *map(Path, scenes or [])]:
        found = lambda path=path: {  # noqa: E731
            f"scene_peak_memory_mb_{path.stem}": peak_memory(model, path, folder / "memory", dtype)
        }
        yield f"the peak memory of the scene {path.stem}", found
    speed = scene(affordable(512 if quick else 4000, 0.05))
    rounds = 1 if quick else 5
    yield f"the speed on the scene {speed.stem}", lambda: scene_speed(speed, folder / "speed", pipe, rounds, False)
    picture = np.tile(image, (2, 2))[:1536, :1536]
    for count in steps:
        if 8 * count * picture.size / pixels_per_second > limit:  # eight translations
            print(f"left out, too slow on this machine: seams at {count} steps", file=sys.stderr)
            continue
        yield f"seams, {count} steps", lambda count=count: seams(picture, pipe, count)
        yield f"what changes the picture, {count} steps", lambda count=count: differences(picture, pipe, count)


def benchmark_scenes(
    model: str,
    steps: list[int] = [1],  # noqa: B006, what the command line shows
    dtype: Precision = "float32",
    ground: str | None = None,
    scenes: list[str] | None = None,
    quick: bool = False,
) -> None:
    """Print each row of the table as it is ready.

    Args:
        model: folder or Hub id of a model of display values in one band.
        steps: numbers of steps for seams and differences; memory and speed are those of one step.
        dtype: precision.
        ground: a display image that the scenes are made of, instead of generated ones.
        scenes: further scenes whose peak memory is measured.
        quick: small scenes, a smoke test.
    """
    with tempfile.TemporaryDirectory() as name:
        table(scene_parts(model, Path(name), steps, dtype, ground, scenes, quick))


if __name__ == "__main__":
    run(benchmark_scenes)
