"""The networks and samplers of the papers, written out from their equations and the names of their weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model whose every weight is random and none is special, at a scale that keeps its outputs near 1."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        fan = weight[0].numel() if weight.ndim > 1 else 100
        weight.copy_(torch.randn(weight.shape, generator=generator) / fan**0.5 + (weight.ndim == 1) * weight)
    return model.eval()


# ----------------------------------------------------------------------------------------- the UNet of ADM in pixels


@dataclass(frozen=True)
class Adm:
    """What distinguishes the models of that code."""

    widths: tuple[int, ...] = (32, 64, 64)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2)
    heads: int = 2
    scale_shift: bool = True
    updown: bool = False
    new_order: bool = False
    reads: int = 6
    writes: int = 3


def embed(times: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of the times at frequencies from 1 down to nearly 1 / 10 000."""
    rates = 10000.0 ** -(torch.arange(width // 2) / (width // 2))
    angles = times.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    """Two convolutions around the time, and a way past them; `resize` comes before the first convolution."""

    def __init__(self, adm: Adm, reads: int, writes: int, resize: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.resize = resize or (lambda x: x)
        self.in_layers = nn.Sequential(nn.GroupNorm(32, reads), nn.SiLU(), nn.Conv2d(reads, writes, 3, padding=1))
        factor = 2 if adm.scale_shift else 1
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * adm.widths[0], factor * writes))
        last = nn.Conv2d(writes, writes, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, writes), nn.SiLU(), nn.Dropout(0), last)
        self.skip_connection = nn.Identity() if reads == writes else nn.Conv2d(reads, writes, 1)
        self.scale_shift = adm.scale_shift

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        norm, *rest = self.out_layers
        h = self.in_layers[2](self.resize(F.silu(self.in_layers[0](x))))
        said = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = said.split(h.shape[1], dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + said)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resize(x)) + h


class Attention(nn.Module):
    """Pixels look at each other; `qkv` holds [head][q, k, v][channel], in the new order [q, k, v][head][channel]."""

    def __init__(self, adm: Adm, width: int):
        super().__init__()
        self.heads, self.new_order = adm.heads, adm.new_order
        self.norm, self.qkv = nn.GroupNorm(32, width), nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        looks = torch.einsum("bhci,bhcj->bhij", q, k) / math.sqrt(q.shape[2])
        seen = torch.einsum("bhij,bhcj->bhci", looks.softmax(-1), v)
        return (flat + self.proj_out(seen.flatten(1, 2))).reshape(x.shape)


class Down(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(double(x))


class First(nn.Conv2d):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x)


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


class AdmUNet(nn.Module):
    """Reads the noisy image, then SAR; the output of every input block is read again by an output block."""

    def __init__(self, adm: Adm):
        super().__init__()
        widths, deepest = adm.widths, len(adm.widths) - 1
        self.adm, time = adm, 4 * widths[0]
        self.time_embed = nn.Sequential(nn.Linear(widths[0], time), nn.SiLU(), nn.Linear(time, time))
        inputs, kept, width = [[First(adm.reads, widths[0], 3, padding=1)]], [widths[0]], widths[0]
        for level, wide in enumerate(widths):
            for _ in range(adm.blocks):
                inputs.append([Residual(adm, width, wide), *self.looks(level, wide)])
                width = wide
                kept.append(width)
            if level < deepest:
                inputs.append([Residual(adm, width, width, halve) if adm.updown else Down(width)])
                kept.append(width)
        self.middle_block = nn.ModuleList(
            [Residual(adm, width, width), Attention(adm, width), Residual(adm, width, width)]
        )
        outputs = []
        for level, wide in reversed(list(enumerate(widths))):
            for block in range(adm.blocks + 1):
                outputs.append([Residual(adm, width + kept.pop(), wide), *self.looks(level, wide)])
                width = wide
                if level and block == adm.blocks:
                    outputs[-1].append(Residual(adm, width, width, double) if adm.updown else Up(width))
        self.input_blocks, self.output_blocks = (nn.ModuleList(map(nn.ModuleList, side)) for side in (inputs, outputs))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, adm.writes, 3, padding=1))

    def looks(self, level: int, width: int) -> list[Attention]:
        return [Attention(self.adm, width)] if level in self.adm.attention else []

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        time, seen = self.time_embed(embed(times, self.adm.widths[0])), []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, time)
            seen.append(x)
        for layer in self.middle_block:
            x = layer(x, time)
        for block in self.output_blocks:
            x = torch.cat([x, seen.pop()], dim=1)
            for layer in block:
                x = layer(x, time)
        return self.out(x)


# ------------------------------------------------------------------------------------------------------- samplers


@torch.no_grad()
def ancestral(model, sar: Tensor, steps: int, generator: torch.Generator, times: int = 2000) -> Tensor:
    """Ho et al. (2020) on `steps` of the times, at the largest variance; what is predicted of the image is clipped.

    The chain of fewer steps is one of its own: its betas follow from the abar that are left.
    """
    abar = np.cumprod(1 - np.linspace(0.1 / times, 20 / times, times))
    left = [round(number * (times - 1) / (steps - 1)) for number in range(steps)]
    abar = abar[left]
    before = np.append(1.0, abar[:-1])
    beta = 1 - abar / before
    x = torch.randn(len(sar), 3, *sar.shape[2:], generator=generator)
    for i in reversed(range(steps)):
        noise = model(torch.cat([x, sar], dim=1), torch.full((len(x),), left[i]))
        clean = (x / abar[i] ** 0.5 - (1 / abar[i] - 1) ** 0.5 * noise).clamp(-1, 1)
        mean = beta[i] * before[i] ** 0.5 / (1 - abar[i]) * clean
        mean = mean + (1 - before[i]) * (1 - beta[i]) ** 0.5 / (1 - abar[i]) * x
        x = mean + beta[i] ** 0.5 * torch.randn(x.shape, generator=generator) if i else mean
    return x.float()


def scaled_linear(times: int = 1000) -> np.ndarray:
    """The abar of Stable Diffusion: betas whose square roots are evenly spread."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, times) ** 2)


@torch.no_grad()
def consistency(model, sar: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Luo et al. (2023): every step predicts the image, which is then noised to the next of 50 times."""
    abar, grid = scaled_linear(), 20 * np.arange(50, 0, -1) - 1
    left = grid[np.floor(np.linspace(0, 50, steps, endpoint=False)).astype(int)]
    x = torch.randn(len(sar), 3, *sar.shape[2:], generator=generator)
    for i, t in enumerate(left):
        noise = model(torch.cat([x, sar], dim=1), torch.tensor(t)).sample
        skip, out = 0.25 / ((10 * t) ** 2 + 0.25), 10 * t / ((10 * t) ** 2 + 0.25) ** 0.5
        x = skip * x + out * (x - (1 - abar[t]) ** 0.5 * noise) / abar[t] ** 0.5
        if i < steps - 1:
            fresh, later = torch.randn(x.shape, generator=generator), abar[left[i + 1]]
            x = later**0.5 * x + (1 - later) ** 0.5 * fresh
    return x.float()


@torch.no_grad()
def deterministic(model, sar: Tensor, prompt: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Song et al. (2021) at times 1, 1 + 1000 / steps, ..., as Stable Diffusion has it; four outputs are the noise."""
    abar, stride = scaled_linear(), 1000 // steps
    x = torch.randn(sar.shape, generator=generator)
    for t in range(1 + (steps - 1) * stride, 0, -stride):
        noise = model(torch.cat([sar, x], dim=1), t, encoder_hidden_states=prompt).sample[:, :4]
        before = abar[max(t - stride, 0)]
        clean = (x - (1 - abar[t]) ** 0.5 * noise) / abar[t] ** 0.5
        x = before**0.5 * clean + (1 - before) ** 0.5 * noise
    return x.float()
