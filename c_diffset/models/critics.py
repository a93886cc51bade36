"""The critics of adversarial distillation; both are built on the encoder half of the teacher's UNet."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn


def encoder_half(unet: UNet2DConditionModel | UNet2DModel) -> UNet2DConditionModel | UNet2DModel:
    """The UNet without its decoder: returns the middle block's features. It shares its weights with `unet`."""
    half = copy.copy(unet)
    half._modules = dict(unet._modules)
    half.up_blocks, half.conv_norm_out, half.conv_out = nn.ModuleList(), nn.Identity(), nn.Identity()
    return half


@contextmanager
def encoder_features(unet: UNet2DConditionModel | UNet2DModel) -> Iterator[list[torch.Tensor]]:
    """Collects the features of one forward pass: each down block's, the middle block's; last, the time embedding."""
    features: list[torch.Tensor] = []
    embeddings: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *args: features.append(args[2][0])) for block in unet.down_blocks]
    hooks.append(unet.mid_block.register_forward_hook(lambda *args: features.append(args[2])))
    hooks.append(unet.time_embedding.register_forward_hook(lambda *args: embeddings.append(args[2])))
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()
        features += embeddings


class ConsistencyCritic(nn.Module):
    """Judges a clean prediction beside the noisy image it came from (Bai, Xu; arXiv 2407.06095).

    The trunk is a trained copy of the teacher's encoder half. It reads (noisy image, t_n) and (candidate, t_{n-1}),
    each with the SAR condition; a convolutional head reduces the two feature maps to one logit.
    """

    def __init__(self, teacher: UNet2DConditionModel | UNet2DModel):
        super().__init__()
        self.trunk = copy.deepcopy(encoder_half(teacher)).requires_grad_(True).train()
        channels = teacher.config.block_out_channels[-1]
        self.head = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.GroupNorm(teacher.config.norm_num_groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, 1, 3, padding=1),
        )

    def forward(
        self, sar, noisy, timestep, candidates: list[torch.Tensor], earlier, prompt: dict
    ) -> list[torch.Tensor]:
        """Logits, B for each list entry of `candidates` (B x C x h x w at time `earlier`).

        One pass of the trunk: the noisy image's features are computed once for all candidates. `prompt` is the UNet's
        text condition for a batch of B.
        """
        count = 1 + len(candidates)
        images = torch.cat([noisy, *candidates])
        times = torch.cat([timestep] + [earlier] * len(candidates))
        repeated = {name: value.repeat(count, 1, 1) for name, value in prompt.items()}
        features = self.trunk(
            torch.cat([sar.repeat(count, 1, 1, 1), images], dim=1), times, **repeated, return_dict=False
        )
        noisy_features, *candidate_features = features[0].chunk(count)
        joined = torch.cat([torch.cat([noisy_features, other], dim=1) for other in candidate_features])
        return list(self.head(joined).float().mean(dim=(1, 2, 3)).chunk(len(candidates)))


class _LevelHead(nn.Module):
    """Logits of one level's features, modulated by the time embedding."""

    def __init__(self, channels: int, embedding: int, hidden: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, hidden, 3, padding=1)
        self.norm = nn.GroupNorm(min(8, hidden), hidden, affine=False)
        self.modulation = nn.Linear(embedding, 2 * hidden)
        self.conv_out = nn.Conv2d(hidden, 1, 1)

    def forward(self, features: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        return self.conv_out(F.silu(self.norm(self.conv_in(features)) * (1 + scale) + shift)).flatten(1)


class TimeAwareCritic(nn.Module):
    """Judges noised images by the frozen teacher's features at every level (He et al., arXiv 2408.07476)."""

    def __init__(self, teacher: UNet2DConditionModel | UNet2DModel, hidden: int = 64):
        super().__init__()
        widths = list(teacher.config.block_out_channels)
        embedding = teacher.time_embedding.linear_2.out_features
        self.heads = nn.ModuleList(_LevelHead(width, embedding, hidden) for width in [*widths, widths[-1]])

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Logits B x (positions of all levels), of what `encoder_features` collected."""
        *levels, embedding = features
        return torch.cat(
            [head(level, embedding).float() for head, level in zip(self.heads, levels, strict=True)], dim=1
        )
