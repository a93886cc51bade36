"""Conditional diffusion in pixel space as published: the recipe, and what follows from 2000 times and DDPM."""

import re
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from c_diffset.evaluation.evaluate import evaluate
from c_diffset.inference.canvas import translate_windows
from c_diffset.models.unet import unet_config
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import FinetuneConfig, ModelConfig, SmallUNetConfig
from c_diffset.training.distill import distill
from c_diffset.training.distill_config import ConsistencyConfig, DistillConfig, TimeAwareConfig
from c_diffset.training.finetune import finetune, new_scheduler
from c_diffset.training.parser import parse_config
from tests.helpers import ROOT, short_run


@pytest.fixture(scope="module")
def published() -> FinetuneConfig:
    return parse_config(FinetuneConfig, "", ["--config", str(ROOT / "train_configs/pixel.yaml")])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 4), ("test", 2)):
        write_pairs(folder, count, size=32, split=split)
    return str(folder)


@pytest.fixture(scope="module")
def trained(published, source, tmp_path_factory) -> str:
    """The recipe's model at tiny width, after stage 2, so that it has a confidence."""
    shape = replace(published.model.unet, block_out_channels=[8, 16], attention_levels=[1])
    shape = replace(shape, channels_per_head=8, norm_groups=4, layers_per_block=1)
    model = replace(published.model, unet=shape, default_num_inference_steps=3)
    run = short_run(FinetuneConfig, tmp_path_factory.mktemp("run") / "run", source, model=model, stage="confidence")
    return str(finetune(run))


def test_the_recipe_is_the_published_model(published):
    with torch.device("meta"):
        unet = UNet2DModel(in_channels=6, out_channels=3, **unet_config(published.model.unet))
    assert round(sum(weight.numel() for weight in unet.parameters()), -5) == 164_300_000, "as the model zoo counts"
    scheduler = new_scheduler(published.model)
    assert isinstance(scheduler, DDPMScheduler) and len(scheduler.betas) == 2000
    assert scheduler.betas[[0, -1]].tolist() == pytest.approx([5e-5, 0.01])
    assert (scheduler.config.variance_type, scheduler.config.clip_sample) == ("fixed_large", True)
    scheduler.set_timesteps(250)
    assert scheduler.timesteps[[0, 1, -2, -1]].tolist() == [1999, 1991, 8, 0], "spread from the first to the last"
    assert (published.stage, published.optimizer.schedule, published.optimizer.weight_decay) == (
        "denoising",
        "constant",
        0,
    )


def test_the_command_that_adds_a_confidence_is_one():
    """The recipe names it in its comment."""
    text = (ROOT / "train_configs/pixel.yaml").read_text()
    command = re.search(r"#   c-diffset finetune (.*?[^\\])\n", text, re.DOTALL)[1]
    config = parse_config(FinetuneConfig, "", command.replace("\\\n#", "").split())
    assert (config.stage, config.model.base, config.model.unet) == ("confidence", "runs/pixel/pipeline", None)


def test_confidence_is_read_half_way_down(trained):
    pipe = CDiffSETPipeline.from_pretrained(trained)
    assert pipe.config.confidence_timestep == 1000 and pipe.predicts_variance
    assert CDiffSETPipeline(pipe.unet, DDIMScheduler()).config.confidence_timestep == 500


def test_scenes_and_evaluation_take_it(trained, source, tmp_path):
    pipe = CDiffSETPipeline.from_pretrained(trained)
    report = evaluate(pipe, source, output=tmp_path / "evaluation", lpips_net=None, download=False)
    assert report.num_inference_steps == 3 and report.n == 2
    scene = torch.rand(48, 40, generator=torch.Generator().manual_seed(0)).numpy()
    whole, again = ([window.eo for window in translate_windows(scene, pipe, tile_size=32, overlap=8)] for _ in range(2))
    assert (whole[0] == again[0]).all() and whole[0].std() > 0


@pytest.mark.parametrize("method", ["consistency", "time_aware"])
def test_it_teaches_students(method, trained, source, tmp_path):
    times = TimeAwareConfig(results=str(tmp_path / "results"), num_results=2)
    settings = {"teacher": trained, "method": method, "time_aware": times, "consistency": ConsistencyConfig(grid=20)}
    student = CDiffSETPipeline.from_pretrained(distill(short_run(DistillConfig, tmp_path / "run", source, **settings)))
    assert torch.equal(student.scheduler.betas, CDiffSETPipeline.from_pretrained(trained).scheduler.betas)
    assert student.config.confidence_timestep == 1999
    image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(student(image, output_type="pt").images).all()


def test_scheduler_settings_mean_what_they_say():
    old = new_scheduler(ModelConfig(unet=SmallUNetConfig([8]), beta_schedule="linear"))
    assert isinstance(old, DDIMScheduler) and old.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    new = new_scheduler(ModelConfig(unet=SmallUNetConfig([8]), vae="v", sampler="ddpm", beta_range=(1e-3, 2e-3)))
    assert not new.config.clip_sample and new.betas[[0, -1]].tolist() == pytest.approx([1e-3, 2e-3])
