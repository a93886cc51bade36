"""UNets of guided-diffusion (ADM; Dhariwal and Nichol, 2021) as `UNet2DModel`: those of conditional diffusion.

The names of their weights tell levels, blocks and attention, and the shapes tell channels. What they do not tell is how
many heads the attention has, and in which order its channels lie.
"""

import re

import torch
from diffusers import UNet2DModel
from torch import Tensor

from c_diffset.convert.weights import Shapes, count_blocks, first_size, has
from c_diffset.models.shape import SmallUNetConfig
from c_diffset.models.unet import unet_config

GROUPS = 32  # of every normalisation
RESNET = {
    **{"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"},
    **{"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"},
}
ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
ENDS = {
    **{"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"},
    **{"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"},
}
MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


# ------------------------------------------------------------------------------------------ shapes to architecture


def read_shape(found: Shapes, channels_per_head: int) -> SmallUNetConfig:
    """The architecture that names and shapes show, where any single one of them may be missing.

    Raises:
        ValueError: these are not the names of such a UNet.
    """
    inputs = count_blocks(found, "input_blocks")
    resized = {
        match[1] for name in found if (match := re.match(r"(output_blocks\.\d+)\.[12]\.(conv|in_layers)\.", name))
    }
    levels = len(resized) + 1
    if inputs < 2 * levels or inputs % levels or inputs > 1000:
        raise ValueError(
            f"{inputs} input_blocks in {levels} levels, and {next(iter(found))!r:.100}: expected the names of "
            "guided-diffusion's UNet"
        )
    firsts = [f"input_blocks.{1 + level * (inputs // levels)}" for level in range(levels)]
    channels = [first_size(found, f"{first}.0.out_layers.") for first in firsts]
    return SmallUNetConfig(
        block_out_channels=channels,
        layers_per_block=inputs // levels - 1,
        attention_levels=[level for level, first in enumerate(firsts) if has(found, f"{first}.1.")],
        channels_per_head=channels_per_head,
        norm_groups=GROUPS,
        scale_shift_norm=first_size(found, f"{firsts[0]}.0.emb_layers.1.") == 2 * channels[0],
        resblock_updown=any(re.match(r"output_blocks\.\d+\.[12]\.in_layers\.", name) for name in found),
    )


def empty_unet(found: Shapes, channels_per_head: int, sample_size: int) -> UNet2DModel:
    """A `UNet2DModel` of that architecture without memory for its weights.

    Raises:
        ValueError: it has labels or a learned variance, or is narrower at its finest level than its times are embedded.
    """
    if "label_emb.weight" in found:
        raise ValueError("label_emb.weight: a model of classes (class_cond), which no SAR image tells: not supported")
    reads, writes = (
        (found.get(name) or [0, 0])[axis] for name, axis in (("input_blocks.0.0.weight", 1), ("out.2.weight", 0))
    )
    if writes == 6:
        raise ValueError("out.2 writes 6 channels, a learned variance (learn_sigma): expected 3, as published for SAR")
    shape = read_shape(found, channels_per_head)
    embedded, width = (found.get("time_embed.0.weight") or [0, 0])[::-1][:2]
    if embedded and embedded != shape.block_out_channels[0]:
        raise ValueError(
            f"time_embed.0 reads {embedded} channels, but the finest level has {shape.block_out_channels[0]}, as in "
            "models of 512 pixels: UNet2DModel has no such times, so it cannot be converted"
        )
    with torch.device("meta"):
        return UNet2DModel(
            sample_size=sample_size,
            in_channels=reads or 6,
            out_channels=3,
            time_embedding_dim=width or None,
            **unet_config(shape) | {"add_attention": True},
        )


# ------------------------------------------------------------------------------------------------- names and values


def original_name(name: str, unet: UNet2DModel) -> str:
    """What guided-diffusion calls a tensor of the `UNet2DModel`."""
    module, _, kind = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{kind}"
    match = BLOCK.match(module)
    if match is None:
        block = module.split(".", 1)[1].split(".")
        place, inner = MIDDLE[".".join(block[:2])], ".".join(block[2:])
    else:
        place, inner = original_place(match, unet), module[match.end() + 1 :]
        if inner == "conv":
            return f"{place}.{'op' if match[3] == 'downsamplers' else 'conv'}.{kind}"
    return f"{place}.{(RESNET | ATTENTION)[inner]}.{kind}"


def original_place(match: re.Match, unet: UNet2DModel) -> str:
    """Which input or output block a block of the `UNet2DModel` was, such as input_blocks.4.1."""
    side, level, part, number = match[1], int(match[2]), match[3], int(match[4])
    layers = unet.config.layers_per_block
    if side == "down":
        first = 1 + level * (layers + 1)
        if part == "downsamplers":
            return f"input_blocks.{first + layers}.0"
        return f"input_blocks.{first + number}.{int(part == 'attentions')}"
    first = level * (layers + 1)
    if part == "upsamplers":
        return f"output_blocks.{first + layers}.{1 + unet.config.up_block_types[level].startswith('Attn')}"
    return f"output_blocks.{first + number}.{int(part == 'attentions')}"


def original_shapes(unet: UNet2DModel) -> dict[str, list[int]]:
    """The shape of every tensor as guided-diffusion stores it: attention as convolutions, q, k and v in one."""
    shapes = {}
    for name, weight in unet.state_dict().items():
        original, shape = original_name(name, unet), list(weight.shape)
        if original.split(".")[-2] in ("qkv", "proj_out"):
            shape += [1] * (len(shape) - 1)
        if ".qkv." in original:
            shape[0] *= 3
        shapes[original] = shape
    return shapes


def convert_tensors(tensors: dict[str, Tensor], unet: UNet2DModel, new_attention_order: bool) -> dict[str, Tensor]:
    """The weights by their new names: SAR first in the first layer, and queries, keys and values apart."""
    return {name: convert_tensor(name, tensors, unet, new_attention_order) for name in unet.state_dict()}


def convert_tensor(name: str, tensors: dict[str, Tensor], unet: UNet2DModel, new_attention_order: bool) -> Tensor:
    """One of them."""
    value = tensors[original_name(name, unet)]
    if name == "conv_in.weight":  # the noisy image is read first there, and SAR after it
        return torch.cat([value[:, 3:], value[:, :3]], dim=1)
    if match := re.search(r"\.to_([qkv])\.", name):
        number = "qkv".index(match[1])
        value = value.flatten(1) if value.ndim == 3 else value
        if new_attention_order:
            return value.chunk(3)[number].clone()
        by_head = value.unflatten(0, (-1, 3, unet.config.attention_head_dim))  # heads come before q, k and v
        return by_head[:, number].flatten(0, 1).clone()
    return value.flatten(1) if ".to_out.0.weight" in name else value
