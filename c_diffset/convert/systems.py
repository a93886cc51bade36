"""The published systems as pipelines: what their weights are, and how each paper's code samples."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor

from c_diffset.convert import adm
from c_diffset.convert.weights import Shapes, check_names, count_blocks, first_size, has, read_weights, shapes_of
from c_diffset.files import is_hub_id
from c_diffset.loading import load_autoencoder, load_prompt
from c_diffset.models.shape import SmallUNetConfig
from c_diffset.models.unet import unet_config
from c_diffset.pipelines.pipeline_cdiffset import SAR_DISPLAY, CDiffSETPipeline, one_line, read_settings


@dataclass(frozen=True)
class Published:
    """What weights do not tell; see `convert`."""

    base: str
    revision: str | None = None
    size: int = 256
    num_train_timesteps: int = 2000
    channels_per_head: int | None = None
    new_attention_order: bool = False

    def __post_init__(self):
        for name, least, most in (
            ("size", 8, 8192),
            ("num_train_timesteps", 2, 100_000),
            ("channels_per_head", 1, 8192),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} is {value}: expected {least} to {most}")


def build(kind: str, path: Path, published: Published) -> CDiffSETPipeline:
    """The pipeline of a file of weights, on the CPU in float32.

    Raises:
        ValueError: the weights are not those of this kind.
        OSError: the file is damaged, or a part of the base is missing.
    """
    tensors = read_weights(path)
    try:
        return SYSTEMS[kind](tensors, path, published)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def fill(unet: Any, tensors: dict[str, Tensor]) -> Any:
    """The UNet, which had no memory yet, with these weights."""
    unet.load_state_dict(tensors, assign=True)
    return unet.eval().requires_grad_(True)


# ------------------------------------------------------------------------------------ conditional diffusion (pixels)


def conditional_diffusion(tensors: dict[str, Tensor], path: Path, published: Published) -> CDiffSETPipeline:
    """Bai, Pu, Xu (IEEE GRSL 2024): linear betas as of 1000 steps, ancestral sampling respaced to 250 of them."""
    found = shapes_of(tensors)
    unet = adm.empty_unet(found, published.channels_per_head or 128, published.size)
    check_names(found, adm.original_shapes(unet), path, "a UNet of guided-diffusion")
    fill(unet, adm.convert_tensors(tensors, unet, published.new_attention_order))
    scale = 1000 / published.num_train_timesteps
    scheduler = DDPMScheduler(
        num_train_timesteps=published.num_train_timesteps,
        beta_start=scale * 0.0001,
        beta_end=scale * 0.02,
        beta_schedule="linear",
        variance_type="fixed_large",
        clip_sample=True,
        timestep_spacing="linspace",
    )
    transform = grey(unet.config.in_channels - 3)
    return CDiffSETPipeline(unet, scheduler, sar_transform=transform, default_num_inference_steps=250)


def grey(channels: int) -> dict:
    """Display values: one band as often as the UNet reads it."""
    return SAR_DISPLAY | {"channels": [0] * channels}


# --------------------------------------------------------------------------- adversarial consistency distillation


def consistency_student(tensors: dict[str, Tensor], path: Path, published: Published) -> CDiffSETPipeline:
    """Bai, Xu (arXiv 2407.06095): a `UNet2DModel` in pixel space, sampled as a latent consistency model in 8 steps."""
    found = shapes_of(tensors)
    unet = empty_student(found, path, published)
    expected = shapes_of(unet.state_dict())
    check_names(found, expected, path, "a UNet2DModel")
    if (reads := found["conv_in.weight"][1]) != 4:
        raise ValueError(f"conv_in reads {reads} channels: expected 4, the noisy image and SAR")
    weight = tensors["conv_in.weight"][:, [3, 0, 1, 2]]  # SAR is the last channel there
    fill(unet, tensors | {"conv_in.weight": weight})
    scheduler = LCMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    return CDiffSETPipeline(unet, scheduler, sar_transform=grey(1), default_num_inference_steps=8)


def empty_student(found: Shapes, path: Path, published: Published) -> UNet2DModel:
    """The UNet without memory: as the config.json beside the weights says, or as their names and shapes show."""
    settings = path.with_name("config.json")
    if settings.is_file():
        config = {key: value for key, value in read_settings(settings).items() if not key.startswith("_")}
    else:
        levels = range(min(64, max(1, count_blocks(found, "down_blocks"))))
        layers = {match[1] for name in found if (match := re.match(r"down_blocks\.0\.resnets\.(\d{1,2})\.", name))}
        shape = SmallUNetConfig(
            block_out_channels=[first_size(found, f"down_blocks.{level}.resnets.0.conv2.") for level in levels],
            layers_per_block=len(layers),
            attention_levels=[level for level in levels if has(found, f"down_blocks.{level}.attentions.")],
            channels_per_head=published.channels_per_head or 8,
            norm_groups=32,
        )
        config = unet_config(shape) | {"add_attention": True, "in_channels": 4, "out_channels": 3}
    return empty(UNet2DModel, config | {"sample_size": published.size}, settings)


def empty(component: type, config: dict, path: Path) -> Any:
    """A model without memory for its weights; ValueError where the configuration describes none."""
    try:
        with torch.device("meta"):
            return component.from_config(config)
    except Exception as error:  # constructors raise anything at settings of the wrong type
        raise ValueError(f"{path} describes no {component.__name__}: {one_line(error)}") from None


# ------------------------------------------------------------------------------------------------------- C-DiffSET


def latent_diffusion(tensors: dict[str, Tensor], path: Path, published: Published) -> CDiffSETPipeline:
    """Do, Lee, Lee, Kim (IEEE TCSVT 2026): Stable Diffusion that reads SAR first, and writes a variance in stage 2."""
    base, where = published.base, {"revision": published.revision}
    found = shapes_of(tensors)
    settings = path.with_name("config.json")
    if settings.is_file():
        config = read_settings(settings)
    elif is_hub_id(base):
        config, settings = UNet2DConditionModel.load_config(base, subfolder="unet", **where), Path(base)
    else:
        settings = Path(base, "unet", "config.json")
        config = read_settings(settings)
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    vae = load_autoencoder(base, published.revision, "vae")
    factor, channels = 2 ** (len(vae.config.block_out_channels) - 1), vae.config.latent_channels
    writes = (found.get("conv_out.weight") or [channels])[0]
    if writes not in (channels, channels + 1):
        raise ValueError(f"conv_out writes {writes} channels: expected {channels}, or {channels + 1} with the variance")
    shape = {"in_channels": 2 * channels, "out_channels": writes, "sample_size": published.size // factor}
    unet = empty(UNet2DConditionModel, config | shape, settings)
    check_names(found, shapes_of(unet.state_dict()), path, "C-DiffSET's UNet")
    fill(unet, tensors)
    scheduler = DDIMScheduler.from_pretrained(
        base, subfolder="scheduler", timestep_spacing="leading", clip_sample=False, **where
    )
    prompt = load_prompt(base, published.revision)
    return CDiffSETPipeline(unet, scheduler, vae, prompt_embeds=prompt, default_num_inference_steps=50)


SYSTEMS = {"c-diffset": latent_diffusion, "acd": consistency_student, "guided-diffusion": conditional_diffusion}
