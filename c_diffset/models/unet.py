"""UNets that see SAR beside the noisy EO image: pretrained ones widened, and small ones from scratch."""

import copy
from math import gcd
from types import MethodType

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from peft import LoraConfig
from torch import nn

from c_diffset.models.shape import SmallUNetConfig
from c_diffset.pipelines.pipeline_cdiffset import Model, drop_variance_channel

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv_in", "conv_out"]


@torch.no_grad()
def widen_conv_in(unet: UNet2DConditionModel | UNet2DModel) -> None:
    """Double the input channels, C to 2C, in place: weights repeated twice and halved, bias kept (C-DiffSET).

    The widened UNet gives the old output where both halves of its input are equal.
    """
    old = unet.conv_in
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    new.weight.copy_(old.weight.repeat(1, 2, 1, 1) * 0.5)
    new.bias.copy_(old.bias)
    unet.conv_in = new.to(old.weight)
    unet.register_to_config(in_channels=new.in_channels)


@torch.no_grad()
def add_variance_channel(unet: UNet2DConditionModel | UNet2DModel) -> None:
    """Append one output channel, the raw variance, in place: weights and bias zero, so the variance starts at 1."""
    old = unet.conv_out
    new = nn.Conv2d(old.in_channels, old.out_channels + 1, old.kernel_size, old.stride, old.padding)
    new.weight.zero_()
    new.bias.zero_()
    new.weight[: old.out_channels].copy_(old.weight)
    new.bias[: old.out_channels].copy_(old.bias)
    unet.conv_out = new.to(old.weight)
    unet.register_to_config(out_channels=new.out_channels)


def without_variance(unet: Model) -> Model:
    """A UNet without its variance channel: a copy that shares all other weights, in the same precision."""
    bare = copy.copy(unet)
    bare._modules = dict(unet._modules)  # another last layer in the copy alone
    if "forward" in vars(unet):  # accelerate's mixed precision, which is bound to the original
        bare.forward = MethodType(unet.forward.__func__, bare)
    bare.conv_out = copy.deepcopy(unet.conv_out)
    drop_variance_channel(bare)
    return bare


def widen(unet: UNet2DConditionModel | UNet2DModel, eo_channels: int) -> None:
    """Give a pretrained UNet, which reads and writes `eo_channels`, twice the inputs and one output more, in place.

    A UNet that has them already is left as it is.

    Raises:
        ValueError: the UNet has other channel counts than a text-to-image, a stage 1 or a stage 2 UNet has.
    """
    channels = (unet.config.in_channels, unet.config.out_channels)
    expected = [(eo_channels, eo_channels), (2 * eo_channels, eo_channels), (2 * eo_channels, eo_channels + 1)]
    if channels not in expected:
        raise ValueError(f"a UNet with (in, out) channels {channels} cannot be widened: expected one of {expected}")
    if channels[0] == eo_channels:
        widen_conv_in(unet)
    if channels[1] == eo_channels:
        add_variance_channel(unet)


def small_unet(
    sar_channels: int, eo_channels: int, block_out_channels: list[int], sample_size: int | None = None, **shape
) -> UNet2DModel:
    """A UNet from scratch, without text, in the `shape` that `SmallUNetConfig` describes.

    It reads `sar_channels` + `eo_channels` and writes `eo_channels` + 1; the raw variance starts at 0, as in `widen`.

    Raises:
        ValueError: there is no UNet of this shape.
    """
    config = unet_config(SmallUNetConfig(block_out_channels, **shape))
    unet = UNet2DModel(
        sample_size=sample_size, in_channels=sar_channels + eo_channels, out_channels=eo_channels, **config
    )
    add_variance_channel(unet)
    return unet


def unet_config(shape: SmallUNetConfig) -> dict:
    """The shape as arguments of a `UNet2DModel`, without its inputs and outputs; ValueError where there is none."""
    shape.check()
    channels, attention = shape.block_out_channels, shape.has_attention()
    plain = "Resnet{}sampleBlock2D" if shape.resblock_updown else "{}Block2D"
    heads = min([32, *(channels[level] for level, attends in enumerate(attention) if attends)])
    groups = shape.norm_groups or gcd(min(32, channels[0] // 4), *channels)
    return dict(
        block_out_channels=tuple(channels),
        layers_per_block=shape.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if attends else plain.format("Down") for attends in attention),
        up_block_types=tuple("AttnUpBlock2D" if attends else plain.format("Up") for attends in attention[::-1]),
        downsample_type="resnet" if shape.resblock_updown else "conv",
        upsample_type="resnet" if shape.resblock_updown else "conv",
        add_attention=any(attention),
        attention_head_dim=shape.channels_per_head or heads,
        norm_num_groups=groups,
        attn_norm_num_groups=groups if shape.scale_shift_norm else None,  # the middle's would have no norm without it
        resnet_time_scale_shift="scale_shift" if shape.scale_shift_norm else "default",
        dropout=shape.dropout,
    )


def add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    """Freeze the UNet and add a trainable LoRA of this rank to attention, `conv_in` and `conv_out`, in place.

    `unet.save_lora_adapter(folder)` then writes a standard adapter; any UNet widened from the same base takes it with
    `unet.load_lora_adapter(folder, prefix=None, use_safetensors=True)`, and `unet.fuse_lora()` adds it to the weights.

    Raises:
        ValueError: diffusers gives this class of UNet no adapters.
    """
    if not hasattr(unet, "add_adapter"):
        raise ValueError(f"lora_rank is {rank}, but a {type(unet).__name__} takes no LoRA: set it to 0")
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=LORA_TARGETS))
