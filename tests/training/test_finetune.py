"""Fine-tuning in its forms, with real components at tiny size."""

import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from c_diffset.data.pairs import load_pairs
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
from c_diffset.training.finetune import Finetune, build_pipeline, finetune
from c_diffset.training.loop import make_accelerator
from c_diffset.training.task import make_optimizer
from tests.conftest import save_stable_diffusion
from tests.helpers import log_lines, losses

SAR = {"units": "display", "range": [0.0, 1.0], "channels": [0]}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 6), ("validation", 2)):
        write_pairs(folder, count, size=32, split=split)
    return str(folder)


def settings(source: str, output: Path, **changes) -> FinetuneConfig:
    """A pixel-space model of a few thousand weights, four updates, no validation."""
    config = FinetuneConfig(
        output_dir=str(output),
        model=ModelConfig(
            unet=SmallUNetConfig(block_out_channels=[8, 32], layers_per_block=1),
            prediction_type="v_prediction",
            zero_terminal_snr=True,
            sar_transform=SAR,
            default_num_inference_steps=2,
        ),
        data=DataConfig(source=source, crop_size=16, validation_split=None),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=2),
        max_steps=4,
        batch_size=2,
        ema_decay=0.9,
        log_every=1,
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory) -> str:
    return save_stable_diffusion(tmp_path_factory.mktemp("sd"), DDPMScheduler(beta_schedule="scaled_linear"))


def test_the_loss_falls_and_the_run_folder_is_complete(source, tmp_path):
    data = DataConfig(source=source, crop_size=16)
    validation = ValidationConfig(every=30, num_images=2, crop_size=16, num_inference_steps=2)
    config = settings(source, tmp_path / "run", max_steps=60, stage="denoising", data=data, validation=validation)
    folder = finetune(replace(config, batch_size=8))
    values = losses(tmp_path / "run")
    assert sum(values[-10:]) < 0.8 * sum(values[:10])
    assert len(losses(tmp_path / "run", "validation/psnr")) == 2
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"pipeline", "best", "checkpoints", "samples", "config.yaml", "metrics.jsonl", "logs"} <= names
    assert list((tmp_path / "run/logs").rglob("events.out.tfevents*"))
    assert len(list((tmp_path / "run/samples").glob("*.png"))) == 2
    assert not CDiffSETPipeline.from_pretrained(folder).predicts_variance, "stage 1 trains none"


def test_the_input_is_perturbed_by_a_noise_that_is_not_predicted(source, tmp_path):
    """The UNet sees the noise plus a tenth of another one; the loss still asks for the first alone."""
    config = settings(source, tmp_path / "run", stage="denoising", input_perturbation=0.1)
    task, accelerator = Finetune(config, build_pipeline(config.model)), make_accelerator(config)
    task.prepare(accelerator)
    batch = next(iter(task.loader(accelerator, 0)))
    with patch.object(task, "call", wraps=task.call) as unet:
        loss, _ = task.loss(batch, 0)
    abar = task.abar[batch["timestep"]].view(-1, 1, 1, 1)
    noise = batch["noise"] + 0.1 * batch["noise_2"]
    noisy = abar.sqrt() * batch["eo"] + (1 - abar).sqrt() * noise
    torch.testing.assert_close(unet.call_args.args[2], noisy)
    wanted = abar.sqrt() * batch["noise"] - (1 - abar).sqrt() * batch["eo"]
    found, _ = task.call(task.wrapped, batch["sar"], noisy, batch["timestep"])
    torch.testing.assert_close(loss, (found - wanted).square().mean())


def test_stage_2_goes_on_from_a_finished_stage_1_and_trains_the_variance(source, tmp_path):
    first = finetune(settings(source, tmp_path / "first", stage="denoising"))
    model = ModelConfig(base=str(first))
    second = finetune(settings(source, tmp_path / "second", stage="confidence", model=model))
    pipe = CDiffSETPipeline.from_pretrained(second)
    assert pipe.unet.conv_out.weight[-1].abs().max() > 0
    assert pipe.config.sar_transform == SAR
    assert "error" in (tmp_path / "second/metrics.jsonl").read_text()


def test_stable_diffusion_is_widened_and_trained_out_of_the_cache(source, tmp_path, stable_diffusion):
    data = DataConfig(source=source, crop_size=16, validation_split=None, latent_cache=str(tmp_path / "cache"))
    config = settings(source, tmp_path / "run", model=ModelConfig(base=stable_diffusion), data=data)
    pipe = CDiffSETPipeline.from_pretrained(finetune(replace(config, gradient_checkpointing=True)))
    assert (pipe.unet.config.in_channels, pipe.unet.config.out_channels) == (8, 5)
    assert pipe.text_encoder is None and pipe.config.prompt_embeds is not None
    assert pipe.scheduler.config.timestep_spacing == "trailing" and not pipe.scheduler.config.clip_sample
    assert len(losses(tmp_path / "run")) == 4


@pytest.mark.parametrize("stage", ["denoising", "both"])
def test_a_lora_is_saved_fused_and_as_an_adapter(stage, source, tmp_path, stable_diffusion):
    model = ModelConfig(base=stable_diffusion, lora_rank=2)
    folder = finetune(settings(source, tmp_path / "run", model=model, stage=stage))
    fused = CDiffSETPipeline.from_pretrained(folder).unet
    assert not any("lora" in name for name in fused.state_dict())

    base = build_pipeline(ModelConfig(base=stable_diffusion)).unet
    assert not torch.equal(fused.conv_in.weight, base.conv_in.weight)
    assert torch.equal(fused.mid_block.resnets[0].conv1.weight, base.mid_block.resnets[0].conv1.weight)
    base.load_lora_adapter(tmp_path / "run/lora", prefix=None, use_safetensors=True)
    base.fuse_lora()
    base.unload_lora()
    assert fused.config.out_channels == (4 if stage == "denoising" else 5)
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(base.state_dict()[name][: len(value)], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_lora_goes_on_through_both_stages(source, tmp_path, stable_diffusion):
    """In a run that is killed at the change of stages. Stage 2 trains the same adapter on."""
    model = ModelConfig(base=stable_diffusion, lora_rank=2)
    config = settings(source, tmp_path / "run", model=model, stage="both", checkpoint_every=1, keep_checkpoints=4)
    whole = finetune(config).parent.rename(tmp_path / "whole")
    shutil.copytree(whole, tmp_path / "run")
    for later in (3, 4):
        shutil.rmtree(tmp_path / f"run/checkpoints/step_{later:08d}")
    finetune(config)
    assert log_lines(tmp_path / "run") == log_lines(whole)
    files = list(whole.rglob("*.safetensors"))  # of the models, the adapter and all states
    assert {"pipeline", "stage1", "lora", "checkpoints"} == {weights.relative_to(whole).parts[0] for weights in files}
    for weights in files:
        found, expected = load_file(tmp_path / "run" / weights.relative_to(whole)), load_file(weights)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_the_cache_gives_the_loss_of_the_images_themselves(source, tmp_path, stable_diffusion):
    """Without augmentation and with crops of the whole image, both ways show the model the same batch."""
    data = DataConfig(source=source, crop_size=32, validation_split=None, augment=False)
    config = settings(source, tmp_path / "plain", model=ModelConfig(base=stable_diffusion), data=data)
    finetune(config)
    cached = replace(data, latent_cache=str(tmp_path / "cache"))
    finetune(replace(config, output_dir=str(tmp_path / "cached"), data=cached))
    torch.testing.assert_close(losses(tmp_path / "cached")[0], losses(tmp_path / "plain")[0], rtol=1e-3, atol=1e-4)


def test_streaming_trains_on_the_same_kind_of_batches(source, tmp_path):
    data = DataConfig(source=source, crop_size=16, validation_split=None, streaming=True)
    finetune(settings(source, tmp_path / "run", data=data))
    assert len(losses(tmp_path / "run")) == 4


def test_bfloat16_trains(source, tmp_path):
    finetune(settings(source, tmp_path / "run", mixed_precision="bf16"))
    assert all(0 < value < 10 for value in losses(tmp_path / "run", "grad_norm"))


@pytest.mark.parametrize("step", [0, 2])
def test_masked_pixels_have_no_part_in_the_gradient(source, tmp_path, step):
    """Stage 1 and stage 2: with all but one pixel masked, the loss pulls at the prediction of that pixel alone."""
    config = settings(source, tmp_path / "run", stage="both", confidence_start_step=2)
    accelerator = make_accelerator(config)
    task = Finetune(config, build_pipeline(config.model))
    task.prepare(accelerator)
    batch = next(iter(task.loader(accelerator, 0)))
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, 0, 5, 7] = 1
    outputs = []
    task.model.conv_out.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    loss, _ = task.loss(batch | {"mask": mask}, step)
    (gradient,) = torch.autograd.grad(loss, outputs[0])
    touched = gradient.abs().sum(dim=1).nonzero().tolist()
    assert touched == [[0, 5, 7]]


def test_the_validation_split_and_the_data_are_checked_before_training(source, tmp_path):
    config = settings(source, tmp_path / "run", data=DataConfig(source=source, crop_size=16, validation_split="val"))
    with pytest.raises(ValueError, match="no split 'val'"):
        finetune(config)
    assert len(load_pairs(source, "train")) == 6


def test_8bit_adam_says_what_it_needs():
    try:
        import bitsandbytes  # noqa: F401

        pytest.skip("bitsandbytes is installed")
    except ImportError:
        with pytest.raises(ImportError, match="pip install bitsandbytes"):
            make_optimizer([torch.nn.Parameter(torch.zeros(1))], OptimizerConfig(use_8bit_adam=True))


def test_a_model_of_the_residual_is_trained_on_the_difference_to_its_input(source, tmp_path):
    """In both methods that read pairs; a base decides for those that start from it."""
    model = ModelConfig(
        unet=SmallUNetConfig(block_out_channels=[8, 32], layers_per_block=1),
        prediction_type="sample",
        sar_transform=SAR | {"channels": [0, 0, 0]},
        residual=True,
    )
    config = settings(source, tmp_path / "run", model=model, stage="denoising")
    accelerator = make_accelerator(config)
    task = Finetune(config, build_pipeline(model))
    task.prepare(accelerator)
    batch = next(iter(task.loader(accelerator, 0)))
    sar, target = task.latents(batch)
    assert torch.equal(sar, batch["sar"]) and torch.equal(target, batch["eo"] - batch["sar"])
    task.pipe.save_pretrained(tmp_path / "base")
    assert build_pipeline(ModelConfig(base=str(tmp_path / "base"))).config.residual
    with pytest.raises(ValueError, match="model.upscale is 4, but that of the base .* is 1: leave it out"):
        build_pipeline(ModelConfig(base=str(tmp_path / "base"), upscale=4))
