"""A confidence is there from the moment on that it is trained, and not before."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from c_diffset.cli import main
from c_diffset.models.unet import without_variance
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    SmallUNetConfig,
    ValidationConfig,
)
from c_diffset.training.distill import distill
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.finetune import finetune
from tests.helpers import fresh_accelerate, losses, short_run

TINY = ModelConfig(
    unet=SmallUNetConfig(block_out_channels=[8, 32], layers_per_block=1, attention_levels=0),
    prediction_type="v_prediction",
    default_num_inference_steps=1,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for split in ("train", "validation"):
        write_pairs(folder, 2, size=32, split=split)
    return folder


def settings(source: Path, output: Path, **changes) -> FinetuneConfig:
    data = DataConfig(source=str(source), crop_size=16)
    validation = ValidationConfig(every=2, num_images=1, crop_size=32, num_inference_steps=1)
    return short_run(
        FinetuneConfig, output, source, **{"model": TINY, "data": data, "validation": validation} | changes
    )


@pytest.fixture(scope="module")
def image_only(source, tmp_path_factory) -> Path:
    """A model of stage 1 alone, in mixed precision."""
    fresh_accelerate()
    output = tmp_path_factory.mktemp("runs") / "stage1"
    return finetune(settings(source, output, stage="denoising", mixed_precision="bf16"))


def test_a_run_that_trains_no_confidence_leaves_a_model_without_one(image_only):
    for folder in (image_only, image_only.with_name("best")):
        pipe = CDiffSETPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        output = pipe(np.zeros((32, 32), np.uint8))
        assert not pipe.predicts_variance and output.confidence is None and len(output.images) == 1


def test_pictures_of_such_a_model_have_no_column_of_confidence(source, image_only, tmp_path):
    folder = finetune(settings(source, tmp_path / "run", confidence_start_step=3))
    # of updates 2 and 3, which are those of stage 1, and 4
    image, finished, both = (PIL.Image.open(path) for path in sorted(folder.parent.glob("samples/*.png")))
    assert image.width == finished.width and both.width > image.width + 200


@pytest.mark.parametrize("command", ["translate", "calibrate"])
def test_commands_that_need_a_confidence_refuse_such_a_model(command, source, image_only, tmp_path, capsys):
    arguments = {
        "translate": [f"{source}/validation/sar", "--output", str(tmp_path / "eo"), "--model", str(image_only)],
        "calibrate": ["--model", str(image_only), "--data", str(source)],
    }
    assert main([command, *arguments[command], *(["--confidence"] if command == "translate" else [])]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "predicts no" in said[-1] and not list(tmp_path.rglob("*.png"))


def test_the_next_stage_goes_on_from_such_a_model(source, image_only, tmp_path):
    model = ModelConfig(base=str(image_only))
    folder = finetune(settings(source, tmp_path / "run", model=model, stage="confidence"))
    assert CDiffSETPipeline.from_pretrained(folder).unet.conv_out.weight[-1].any()
    again = finetune(settings(source, tmp_path / "more", model=ModelConfig(base=str(folder)), stage="denoising"))
    assert CDiffSETPipeline.from_pretrained(again).predicts_variance, "the base has learnt it"


def test_the_best_model_of_both_stages_has_a_confidence(source, tmp_path):
    """Steps so long that the model only gets worse: the best image is that of stage 1."""
    validation = ValidationConfig(every=1, num_images=1, crop_size=32, num_inference_steps=1)
    long_steps = OptimizerConfig(learning_rate=0.3, warmup_steps=1)
    config = settings(source, tmp_path / "run", confidence_start_step=2, validation=validation, optimizer=long_steps)
    best = finetune(config).with_name("best")
    found = losses(tmp_path / "run", "validation/psnr")
    assert max(found[:2]) > max(found[2:]), "else this test shows nothing"
    assert CDiffSETPipeline.from_pretrained(best).predicts_variance


def test_a_student_whose_confidence_is_not_trained_has_none(source, make_pipe, tmp_path):
    make_pipe("pixel").save_pretrained(tmp_path / "teacher")
    config = short_run(DistillConfig, tmp_path / "run", source, teacher=str(tmp_path / "teacher"))
    assert CDiffSETPipeline.from_pretrained(distill(config)).predicts_variance
    without = replace(config, output_dir=str(tmp_path / "without"), confidence_weight=0.0)
    assert not CDiffSETPipeline.from_pretrained(distill(without)).predicts_variance


def test_a_channel_of_zeros_is_no_confidence(make_pipe, tmp_path):
    """As earlier versions saved it."""
    pipe = make_pipe("tiny")
    with torch.no_grad():
        pipe.unet.conv_out.weight[-1], pipe.unet.conv_out.bias[-1] = 0, 0
    pipe.save_pretrained(tmp_path / "model")
    loaded = CDiffSETPipeline.from_pretrained(tmp_path / "model")
    assert not loaded.predicts_variance and loaded.unet.conv_out.weight.shape[0] == 4
    assert CDiffSETPipeline.from_pretrained(tmp_path / "model", unet=pipe.unet).predicts_variance, "a given one stays"


def test_a_unet_without_its_variance_shares_all_other_weights(make_pipe):
    unet = make_pipe("tiny").unet
    bare = without_variance(unet)
    sample = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(bare(sample, 3).sample, unet(sample, 3).sample[:, :4])
    shared = dict(unet.named_parameters())
    assert all(shared[name] is weight for name, weight in bare.named_parameters() if "conv_out" not in name)
    assert unet.config.out_channels == 5 and bare.config.out_channels == 4
