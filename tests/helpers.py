"""What the tests of several packages need: short trainings, their logs, rasters, and commands as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import rasterio
import yaml
from accelerate.state import AcceleratorState
from packaging.version import Version
from rasterio.transform import from_origin

from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, OptimizerConfig

ROOT = Path(__file__).parent.parent
ACCELERATE = str(Path(sys.executable).parent / "accelerate")
UTM = {"crs": "EPSG:32631", "transform": from_origin(500_000, 4_000_000, 10, 10)}
# the argument of `from_pretrained` that diffusers renamed
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"
DISPLAY = {"units": "display", "range": [0.0, 1.0], "channels": [0]}


# training


def fresh_accelerate() -> None:
    """Forget the first run's precision and device, which accelerate keeps for the rest of the process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def short_run(config_class: type, output: Path, source: Path | str, **changes):
    """Settings of a training of four updates without validation; `changes` replace these settings or add others."""
    settings = {
        "data": DataConfig(source=str(source), crop_size=16, validation_split=None),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        "max_steps": 4,
        "batch_size": 2,
        "ema_decay": 0.9,
        "mixed_precision": "no",
        "log_every": 1,
    }
    return config_class(output_dir=str(output), **settings | changes)


def log_lines(output: Path) -> list[dict]:
    """The log of a run folder, without the speed, in which no two runs agree."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def losses(output: Path, key: str = "loss") -> list[float]:
    """One value of every line of the log that has it."""
    return [line[key] for line in log_lines(output) if key in line]


# rasters and images


def write_raster(path: Path, pixels: np.ndarray, names=None, mask=None, scaling=None, units=None, **options) -> Path:
    """Bands x H x W, or H x W, as a GeoTIFF; returns `path`.

    Args:
        path: where it is written, in a folder that comes into being with it.
        pixels: the values, of the type that the raster is to have.
        names: descriptions of the bands.
        mask: becomes an internal mask band.
        scaling: scale and offset of every band.
        units: one for each band.
        options: of `rasterio.open`, such as `nodata` or `**UTM`; `tags` are written as the raster's tags.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, tags = pixels.reshape(-1, *pixels.shape[-2:]), options.pop("tags", {})
    size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **size | options) as raster:
            raster.write(bands)
            raster.update_tags(**tags)
            if mask is not None:
                raster.write_mask(mask)
            if names:
                raster.descriptions = names
            if units:
                raster.units = units
            if scaling:
                raster.scales, raster.offsets = ([value] * len(bands) for value in scaling)
    return path


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """H x W or H x W x 3 as a PNG, in a folder that comes into being with it; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)
    return path


def write_reflectance(root: Path, count: int, split: str = "train", size: int = 32, **metadata) -> Path:
    """Generated pairs, SAR as PNG and EO as 16-bit GeoTIFF with reflectance x 10 000 up to 3000; returns `root`."""
    write_pairs(root, count, size=size, split=split)
    table = root / split / "metadata.jsonl"
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    for line in lines:
        eo = table.parent / line["eo_file_name"]
        levels = np.moveaxis(np.asarray(PIL.Image.open(eo)), -1, 0)
        line["eo_file_name"] = str(Path(line["eo_file_name"]).with_suffix(".tif"))
        write_raster(table.parent / line["eo_file_name"], (levels / 255 * 3000).round().astype(np.uint16))
        eo.unlink()
    table.write_text("".join(json.dumps(line | metadata) + "\n" for line in lines))
    return root


# commands


def run(*command, **options) -> subprocess.CompletedProcess:
    """Run a command in the root of the repository; `env` adds to the environment, the output is kept as text."""
    options = {"cwd": ROOT, "capture_output": True, "text": True} | options
    options["env"] = os.environ | options.get("env", {})
    return subprocess.run([str(part) for part in command], **options)


def succeed(*command, **options) -> str:
    """`run` a command that has to succeed; returns what it printed."""
    done = run(*command, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_when(condition: Callable[[], bool], *command) -> None:
    """Start a command in a process group of its own, and SIGKILL the group as soon as `condition()` holds."""
    command = [str(part) for part in command]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def training_command(settings: dict, output: Path) -> list[str]:
    """The command of a training into `output`: a distillation where `settings` name a teacher."""
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings | {"output_dir": str(output)}))
    tool = "distill" if "teacher" in settings else "finetune"
    return [sys.executable, f"tools/{tool}.py", "--config", str(config)]
