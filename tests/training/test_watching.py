"""What a training shows of itself: TensorBoard, samples with captions, and last words with the next command."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from c_diffset.cli import command_parser, main
from c_diffset.measurement.picture_grid import make_grid
from c_diffset.synthetic.generate import write_pairs
from tests.helpers import fresh_accelerate, log_lines


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("watching")
    for split, count in (("train", 4), ("validation", 2), ("test", 1)):
        write_pairs(folder / "data", count, size=32, split=split)
    settings = {
        "model": {"unet": {"block_out_channels": [8, 32], "layers_per_block": 1, "attention_levels": 0}},
        "data": {"source": str(folder / "data"), "crop_size": 32},
        "validation": {"every": 2, "num_images": 2, "crop_size": None, "num_inference_steps": 1},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "confidence_start_step": 2,
        "max_steps": 4,
        "batch_size": 1,
        "log_every": 1,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def train(recipe: Path, output: Path, *options: str) -> int:
    fresh_accelerate()
    return main(["finetune", "--config", str(recipe), "--output_dir", str(output), *options])


@pytest.fixture(scope="module")
def finished(recipe) -> Path:
    assert train(recipe, recipe.parent / "run") == 0
    return recipe.parent / "run"


def test_tensorboard_gets_losses_learning_rate_and_samples(finished):
    (events,) = finished.glob("logs/**/events.out.tfevents*")
    log = EventAccumulator(str(events.parent)).Reload()
    rates = [event.value for event in log.Scalars("learning_rate")]
    assert rates == pytest.approx([5e-4, 1e-3, 5e-4, 1e-3], rel=1e-4), "each stage warms up"
    assert [line["learning_rate"] for line in log_lines(finished) if "loss" in line] == pytest.approx(rates)
    assert len(log.Scalars("loss")) == 4 and len(log.Scalars("validation/psnr")) == 2
    samples = log.Images("samples")
    assert [image.step for image in samples] == [2, 4]
    with PIL.Image.open(finished / "samples/step_00000004.png") as picture:
        assert (samples[1].width, samples[1].height) == picture.size


def test_nothing_is_reported_where_nothing_is_wanted(recipe, tmp_path):
    assert train(recipe, tmp_path / "run", "--report_to", "none") == 0
    assert not (tmp_path / "run/logs").exists() and len(log_lines(tmp_path / "run")) == 6


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_missing_wandb_is_one_line_before_any_work(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path / "run", "--report_to", "both") == 2
    said = capsys.readouterr().err.strip()
    assert "report_to is both" in said and "pip install wandb" in said and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_pictures_have_a_title_and_captions():
    """They add a line of text each, and the images stay as they are."""
    row = {"SAR": torch.rand(3, 64, 64), "EO": torch.rand(3, 64, 64)}
    plain, named = make_grid([row, row]), make_grid([row, row], captions=["a" * 500, "b\nc"], title="after 3 updates")
    assert named.width == plain.width and named.height == plain.height + 3 * 24
    plain, named = np.asarray(plain), np.asarray(named)
    assert (named[:24] < 128).any(), "the title"
    assert (named[24 : 24 + 24 + 256] == plain[: 24 + 256]).all()
    below = named[24 + 24 + 256 + 6 :][:18]
    assert (below < 128).any() and (named[:, :6] == 255).all() and (named[:, -6:] == 255).all(), "a caption, cut to fit"


def test_the_last_words_name_models_figures_and_commands_that_run(recipe, finished, capsys):
    """Said again where the run was finished before."""
    assert train(recipe, finished) == 0
    said = capsys.readouterr().out
    values = {line["step"]: line["validation/psnr"] for line in log_lines(finished) if "validation/psnr" in line}
    assert f"stage 1:      {finished}/stage1 (validation after update 2: psnr {values[2]:.4g}" in said
    assert f"newest model: {finished}/pipeline (validation after update 4: psnr {values[4]:.4g}" in said
    assert f"best model:   {finished}/best (validation after update 4: psnr {values[4]:.4g}" in said, (
        "it has a confidence"
    )
    commands = re.findall(r"^  c-diffset (.*?)  #", said, flags=re.M)
    assert [command.split()[0] for command in commands] == ["calibrate", "evaluate", "translate", "distill"]
    calibrate, evaluate, *_ = map(shlex.split, commands)
    assert main(calibrate) == 0
    parser, _ = command_parser("evaluate")
    assert parser.parse_args(evaluate[1:]).data == str(recipe.parent / "data")


def test_the_last_words_on_a_model_without_confidence_and_validation(recipe, tmp_path, capsys):
    options = ["--stage", "denoising", "--data.validation_split", "null", "--max_steps", "1"]
    assert train(recipe, tmp_path / "run", *options) == 0
    said = capsys.readouterr().out
    assert "no best model was chosen" in said and "calibrate" not in said
    assert f"--model.base {tmp_path}/run/pipeline --stage confidence" in said
