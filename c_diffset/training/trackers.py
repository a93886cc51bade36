"""Where a training can be watched: TensorBoard in the run's folder, and Weights & Biases."""

from pathlib import Path

import numpy as np
import PIL.Image
from accelerate import Accelerator

from c_diffset.history import plain_settings, public_settings
from c_diffset.training.config import TRACKERS, RunConfig

PROJECT = "c_diffset"


def start_trackers(accelerator: Accelerator, config: RunConfig) -> None:
    """Open what `config.report_to` names; a run of Weights & Biases is called as the run's folder."""
    folder = Path(config.output_dir)
    names = TRACKERS[config.report_to]
    if "wandb" in names:
        (folder / "logs").mkdir(exist_ok=True)
    about = {"name": folder.resolve().name, "dir": str(folder / "logs")}
    about |= {"config": public_settings(plain_settings(config))}
    accelerator.init_trackers(PROJECT, init_kwargs={"wandb": about} if "wandb" in names else {})


def track_picture(accelerator: Accelerator, picture: Path, step: int) -> None:
    """Show the trackers a picture of samples."""
    with PIL.Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": pixels[None]}, step, dataformats="NHWC")
        else:
            tracker.log_images({"samples": [pixels]}, step)
