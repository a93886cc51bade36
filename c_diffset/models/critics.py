"""The critics of adversarial training: of pixels, and two that are built on the encoder half of the teacher's UNet."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def encoder_half(unet: UNet2DConditionModel | UNet2DModel) -> UNet2DConditionModel | UNet2DModel:
    """The UNet without its decoder: returns the middle block's features. It shares its weights with `unet`."""
    half = copy.copy(unet)
    half._modules = dict(unet._modules)
    half.up_blocks, half.conv_norm_out, half.conv_out = nn.ModuleList(), nn.Identity(), nn.Identity()
    return half


@contextmanager
def encoder_features(
    unet: UNet2DConditionModel | UNet2DModel, before_halving: bool = False
) -> Iterator[list[torch.Tensor]]:
    """Collects the features of one forward pass: each down block's, the middle block's; last, the time embedding.

    With `before_halving`, it is each level's last features at its own size, and last the sines and cosines of the time.
    """
    features: list[torch.Tensor] = []
    times: list[torch.Tensor] = []

    def of_block(block: nn.Module, args: tuple, output: tuple) -> None:
        sample, passed_on = output
        features.append(passed_on[len(block.resnets) - 1] if before_halving else sample)

    hooks = [block.register_forward_hook(of_block) for block in unet.down_blocks]
    if not before_halving:
        hooks.append(unet.mid_block.register_forward_hook(lambda *args: features.append(args[2])))
    of_time = lambda _, args, output: times.append(args[0] if before_halving else output)  # noqa: E731
    hooks.append(unet.time_embedding.register_forward_hook(of_time))
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()
        features += times


class _AtLeastTwo(nn.Module):
    """Repeats the one row or column of images that have no more: a strided convolution needs two."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        return images if min(height, width) > 1 else F.pad(images, (0, width == 1, 0, height == 1), "replicate")


def _pooling_head(channels: int, groups: int) -> nn.Sequential:
    """The head of Bai and Xu's published code: B x channels x h x w to B x 1."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.GroupNorm(groups, channels),
        nn.SiLU(),
        _AtLeastTwo(),
        nn.Conv2d(channels, channels, 4, stride=2, padding=1),
        nn.GroupNorm(groups, channels),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 1),
    )


class PatchCritic(nn.Module):
    """Judges the patches of an image beside the SAR image (Isola et al., 2017), both in [-1, 1].

    Logits B x positions; each of them sees 70 pixels. Group norm, in place of batch norm, keeps the images of
    a batch apart.
    """

    def __init__(self, sar_channels: int, widths: tuple[int, ...] = (64, 128, 256, 512)):
        super().__init__()
        first, *others = widths
        layers = [nn.Conv2d(sar_channels + 3, first, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, width in zip(widths, others, strict=False):
            stride = 1 if width == widths[-1] else 2
            layers += [nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(32, width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, sar: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([sar, images], dim=1)).float().flatten(1)


class ConsistencyCritic(nn.Module):
    """Judges a clean prediction beside the noisy image it came from (Bai, Xu; arXiv 2407.06095).

    The trunk is a trained copy of the teacher's encoder half. It reads (noisy image, t_n) and (candidate, t_{n-1}),
    each with the SAR condition; a convolutional head reduces the two feature maps to one logit. The `light` head judges
    every position and takes the mean of the verdicts. The `published` one, of the authors' code, halves the maps, takes
    their mean and judges that; its convolutions keep all channels (26.2 million weights where the UNet has 512).
    """

    def __init__(self, teacher: UNet2DConditionModel | UNet2DModel, head: str = "light"):
        super().__init__()
        self.trunk = copy.deepcopy(encoder_half(teacher)).requires_grad_(True).train()
        channels, groups = teacher.config.block_out_channels[-1], teacher.config.norm_num_groups
        if head == "published":
            self.trunk.conv_act = nn.Identity()
            self.head = _pooling_head(2 * channels, groups)
        else:
            self.head = nn.Sequential(
                nn.Conv2d(2 * channels, channels, 3, padding=1),
                nn.GroupNorm(groups, channels),
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
        return list(self.head(joined).float().flatten(1).mean(1).chunk(len(candidates)))


class _LightLevel(nn.Module):
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


class _SpectralConv1d(nn.Conv1d):
    """A circular convolution of any length, whose weights have a spectral norm of 1 (Miyato et al., 2018)."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int):
        super().__init__(channels, out_channels, kernel_size)
        spectral_norm(self)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        with torch.autocast(sequence.device.type, enabled=False):  # the power iteration is one of float32
            weight = self.weight
        length, reach = sequence.shape[2], self.kernel_size[0] // 2
        around = torch.arange(-reach, length + reach, device=sequence.device) % length
        return F.conv1d(sequence[:, :, around], weight, self.bias)


def _mixing(channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(_SpectralConv1d(channels, channels, kernel_size), nn.GroupNorm(4, channels), nn.LeakyReLU(0.2))


class _PublishedLevel(nn.Module):
    """Logits of one level's features as in the published code of He et al.: `verdicts` of them for each position.

    The features are modulated by the time and then read as a sequence, row after row.
    """

    def __init__(self, channels: int, embedding: int, groups: int, verdicts: int):
        super().__init__()
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.norm = nn.GroupNorm(groups, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight), nn.init.zeros_(self.conv.bias)
        self.single, self.neighbours = _mixing(channels, 1), _mixing(channels, 9)
        self.verdict = _SpectralConv1d(channels, verdicts, 1)

    def forward(self, features: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        normal = self.norm(features.contiguous())  # torch 2.6 ends at a gradient in another order of memory
        sequence = self.single(self.conv(F.silu(normal * (1 + scale) + shift)).flatten(2))
        return self.verdict((sequence + self.neighbours(sequence)) / 2**0.5).flatten(1)


class TimeAwareCritic(nn.Module):
    """Judges noised images by the frozen teacher's features at every level (He et al., arXiv 2408.07476).

    Of the `light` head, each level is a small network of `hidden` channels. Of the `published` one, that of the
    authors' Stable Diffusion variant, each keeps all channels: 75.4 million weights at the widths of SD 2.1.
    """

    def __init__(self, teacher: UNet2DConditionModel | UNet2DModel, head: str = "light", hidden: int = 64):
        super().__init__()
        self.published, widths = head == "published", list(teacher.config.block_out_channels)
        if self.published:
            embedding, groups = teacher.time_embedding.linear_1.in_features, teacher.config.norm_num_groups
            levels = [_PublishedLevel(width, embedding, groups, widths[0]) for width in widths]
        else:
            embedding = teacher.time_embedding.linear_2.out_features
            levels = [_LightLevel(width, embedding, hidden) for width in [*widths, widths[-1]]]
        self.heads = nn.ModuleList(levels)

    def features(self, teacher: UNet2DConditionModel | UNet2DModel) -> AbstractContextManager[list[torch.Tensor]]:
        """Collects what this critic reads of one forward pass of the teacher, or of its encoder half."""
        return encoder_features(teacher, before_halving=self.published)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Logits B x (positions of all levels, times the verdicts for each), of what `features` collected."""
        *levels, embedding = features
        return torch.cat(
            [head(level, embedding).float() for head, level in zip(self.heads, levels, strict=True)], dim=1
        )
