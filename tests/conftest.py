"""Tiny pipelines of real components for every test: `make_pipe("kl" | "tiny" | "pixel")`, random, no downloads."""

import json
import os
import string
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch counts the cores; commands that a test starts inherit the share
    number, workers = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::workers] or cores)
    else:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

# on every machine, `auto` then means float32 in tests: those of the precision name what they are about
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import settings
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from c_diffset.models.unet import small_unet
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

settings.register_profile("c_diffset", deadline=None)  # how busy the machine is decides no test
settings.load_profile("c_diffset")
SPACES = ("kl", "tiny", "pixel")


def tiny_scheduler(**options) -> DDIMScheduler:
    """A DDIM scheduler with trailing spacing; v prediction, which keeps the images of a random UNet within bounds."""
    defaults = {"timestep_spacing": "trailing", "clip_sample": False, "prediction_type": "v_prediction"}
    return DDIMScheduler(**defaults | options)


def tiny_conditional_unet(in_channels: int = 8, out_channels: int = 5) -> UNet2DConditionModel:
    """A stock text-to-image UNet of the reference shape, two levels, 8 text channels."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def tiny_vae(**options) -> AutoencoderKL:
    """An `AutoencoderKL` that halves the size, 4 latent channels."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        **{"latent_channels": 4} | options,
    )


def tiny_taesd() -> AutoencoderTiny:
    """An `AutoencoderTiny` that halves the size, 4 latent channels."""
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


def tiny_text(folder: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A CLIP text encoder with 8 channels and a tokenizer of single letters, its files written to `folder`."""
    folder.mkdir()
    letters = [*string.ascii_lowercase, "-"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    return CLIPTextModel(config).eval(), tokenizer


def save_stable_diffusion(folder: Path, scheduler) -> str:
    """A folder of the form of Stable Diffusion, at tiny size; returns its path."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    text_encoder, tokenizer = tiny_text(folder / "text")
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=tiny_conditional_unet(4, 4),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "sd")
    return str(folder / "sd")


@torch.no_grad()
def perturb(unet) -> None:
    """Let the variance channel, which starts at zero, depend on the input."""
    unet.conv_out.weight.normal_(std=0.3)


@torch.no_grad()
def copying_pipe(**options) -> CDiffSETPipeline:
    """A pipeline in pixel space whose EO image is its SAR image, normalised over what the UNet sees at once."""
    unet = small_unet(1, 3, [8, 32], layers_per_block=1, attention_levels=0)
    for parameter in unet.parameters():
        parameter.zero_()
    unet.conv_in.weight[:, 0, 1, 1] = 1
    last = unet.up_blocks[-1].resnets[-1].conv_shortcut.weight  # reads what comes from below, then the first level
    last[range(8), range(last.shape[1] - 8, last.shape[1])] = 1
    unet.conv_norm_out.weight.fill_(1)
    unet.conv_out.weight[:3, :, 1, 1] = 1 / 16
    transform = {"units": "display", "range": [0.0, 1.0], "channels": [0]}
    scheduler = tiny_scheduler(prediction_type="sample")
    defaults = {"sar_transform": transform, "default_num_inference_steps": 1}
    pipe = CDiffSETPipeline(unet, scheduler, **defaults | options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_components(space: str, folder: Path) -> dict:
    """Random components of a pipeline in the latent space of "kl" or "tiny" (TAESD), or in "pixel" space."""
    torch.manual_seed(0)
    components = {"scheduler": tiny_scheduler()}
    if space == "kl":
        text_encoder, tokenizer = tiny_text(folder)
        components |= {"unet": tiny_conditional_unet(), "vae": tiny_vae(), "text_encoder": text_encoder}
        components |= {"tokenizer": tokenizer}
    elif space == "tiny":
        components |= {"unet": small_unet(4, 4, [8, 32], layers_per_block=1), "vae": tiny_taesd()}
    else:
        components |= {"unet": small_unet(3, 3, [8, 32], layers_per_block=1)}
    perturb(components["unet"])
    return components


@pytest.fixture
def make_pipe(tmp_path):
    """`make_pipe(space, **options)`: a pipeline of tiny components, `options` replacing arguments."""
    count = iter(range(1000))

    def make(space: str = "kl", **options) -> CDiffSETPipeline:
        components = tiny_components(space, tmp_path / f"text{next(count)}")
        pipe = CDiffSETPipeline(**components | {"default_num_inference_steps": 2} | options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def sar() -> np.ndarray:
    """A SAR image of display values, uint8, 16 x 16."""
    return np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
