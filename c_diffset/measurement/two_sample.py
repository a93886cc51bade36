"""A judge that no loss contains: a classifier two-sample test between generated and true images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from c_diffset.noise import noise_generator

WINDOW = 64  # pixels a side of what the classifier sees at once, in training and in judgement
LEAST_WINDOW = 16
LEAST_PLACES = 4  # of which two are learnt from and two judged
SEEDS = range(5)
UPDATES = 200  # of the classifier, for every model and every number of images
PAIRS = 16  # windows of either kind in a batch
LEARNING_RATE = 2e-3
NOISE = 2.0  # levels, standard deviation, on both kinds of images
RESAMPLES = 2000
JUDGED_AT_ONCE = 256  # windows


@dataclass(frozen=True)
class TwoSample:
    """The accuracy of telling generated from true windows at places that the classifier has not seen.

    Attributes:
        accuracy: From 0 to 1; 0.5 where it cannot tell them apart.
        low, high: The limits of a 95 % interval over places and seeds.
        by_seed: The accuracy of each seed.
        places: How many places there are, of which each seed judges about half.
        images: How many images of either kind.
    """

    accuracy: float
    low: float
    high: float
    by_seed: list[float]
    places: int
    images: int


def two_sample(
    generated: Tensor,
    true: Tensor,
    groups: Sequence[str],
    sar: Tensor | None = None,
    seeds: Iterable[int] = SEEDS,
    device: torch.device | str = "cpu",
) -> TwoSample:
    """Classifier two-sample test (Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", ICLR 2017).

    For every seed, a small convolutional network is trained from scratch to tell windows of generated images from those
    of true ones, on half of the places; the share of windows of the other places that it names rightly is the accuracy.
    Budget, windows, and treatment are the same for all models. Both kinds of images are rounded to 8 bits and get
    Gaussian noise of `NOISE` levels, which hides traces of compression and rounding that nobody sees.

    Equal on equal hardware for equal seeds.

    Args:
        generated, true: N x 3 x H x W in [0, 1] (float) or in [0, 255] (uint8); image i of both shows one place.
        groups: The place of each image: what shares one is learnt from or judged as a whole.
        sar: N x C x H x W in [0, 1] or uint8, shown beside either kind; None judges the images alone.
        seeds: Each gives other halves, another start and another order.
        device: Where the classifier computes.

    Raises:
        ValueError: unequal shapes, images smaller than `LEAST_WINDOW`, or fewer than `LEAST_PLACES` places.
    """
    check_images(generated, true, groups, sar)
    names, number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sides = [to_bytes(generated), to_bytes(true)]
    given = None if sar is None else to_bytes(sar)
    counts = []
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for seed in seeds:
            learnt, count = choose_half(number, seed), np.zeros((2, len(names)))
            judge = train_judge(sides, given, np.flatnonzero(learnt), seed, device)
            for image in np.flatnonzero(~learnt).tolist():
                verdicts = judge_image(judge, sides, given, image, seed, device)
                count[:, number[image]] += float(verdicts.sum()), len(verdicts)
            counts.append(count)
    right, seen = np.stack(counts, axis=1)
    by_seed = right.sum(1) / seen.sum(1)
    low, high = limits(right, seen)
    return TwoSample(float(right.sum() / seen.sum()), low, high, by_seed.tolist(), len(names), len(true))


def check_images(generated: Tensor, true: Tensor, groups: Sequence[str], sar: Tensor | None) -> None:
    """Refuse what cannot be compared; a ValueError says why."""
    if generated.shape != true.shape or true.ndim != 4:
        found = f"{tuple(generated.shape)} and {tuple(true.shape)}"
        raise ValueError(f"generated and true images have shapes {found}: expected N x 3 x H x W of both")
    others = [] if sar is None else [("sar", len(sar), sar.shape[2:])]
    for name, count, size in [("groups", len(groups), true.shape[2:]), *others]:
        if count != len(true) or size != true.shape[2:]:
            raise ValueError(f"{name} has {count} entries of {tuple(size)}: expected {len(true)} of {true.shape[2:]}")
    if min(true.shape[2:]) < LEAST_WINDOW:
        raise ValueError(f"images are {true.shape[2]} x {true.shape[3]}: expected sides of {LEAST_WINDOW} and more")
    if len(set(groups)) < LEAST_PLACES:
        raise ValueError(
            f"the images are of {len(set(groups))} places: expected at least {LEAST_PLACES}, half to learn from and "
            "half to judge"
        )


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as 8-bit levels; levels stay."""
    return images if images.dtype == torch.uint8 else (images.clamp(0, 1) * 255).round().to(torch.uint8)


def choose_half(number: np.ndarray, seed: int) -> np.ndarray:
    """Which images are learnt from: those of about half of the places, whole places in an order drawn by the seed."""
    places = torch.randperm(number.max() + 1, generator=noise_generator(seed, 0)).numpy()
    return np.isin(number, places[: len(places) // 2])


def make_judge(channels: int) -> nn.Sequential:
    """Windows B x channels x H x W to B logits of being generated; 62 000 parameters."""

    def block(inner: int, outer: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outer), nn.ReLU()]

    layers = [*block(channels, 16, 5, 2), *block(16, 32, 3, 2), *block(32, 64, 3, 2), *block(64, 64, 3, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))


def train_judge(sides: list[Tensor], sar: Tensor | None, images: np.ndarray, seed: int, device) -> nn.Module:
    """The classifier of one seed. Both images of a place are in the same batch, in the same window."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = make_judge(3 + (0 if sar is None else sar.shape[1])).to(device).train()
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, UPDATES)
    rng = noise_generator(seed, 1)
    labels = torch.tensor([1.0, 0.0], device=device).repeat_interleave(PAIRS)
    for _ in range(UPDATES):
        chosen = images[torch.randint(len(images), (PAIRS,), generator=rng).numpy()].tolist()
        windows = torch.stack([random_window(sides, sar, image, rng) for image in chosen], dim=1).flatten(0, 1)
        logits = judge(disturbed(windows, rng).to(device))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def random_window(sides: list[Tensor], sar: Tensor | None, image: int, rng: torch.Generator) -> Tensor:
    """A window of the generated and of the true image, turned and mirrored alike: 2 x C x WINDOW x WINDOW, uint8."""
    stack = beside(sides, sar, image)
    size = window_of(stack)
    spans = [length - size + 1 for length in stack.shape[2:]]
    top, left = (int(torch.randint(span, (1,), generator=rng)) for span in spans)
    turns, mirrored = (int(torch.randint(many, (1,), generator=rng)) for many in (4, 2))
    window = torch.rot90(stack[..., top : top + size, left : left + size], turns, (2, 3))
    return window.flip(3) if mirrored else window


def beside(sides: list[Tensor], sar: Tensor | None, image: int) -> Tensor:
    """The generated and the true image, each with the SAR image beside it: 2 x C x H x W."""
    return torch.stack([side[image] if sar is None else torch.cat([side[image], sar[image]]) for side in sides])


def window_of(images: Tensor) -> int:
    """The side of windows."""
    return min(WINDOW, *images.shape[2:])


def disturbed(windows: Tensor, rng: torch.Generator) -> Tensor:
    """Levels as the classifier sees them, in [-1, 1]: generated windows, then true ones, with the same noise."""
    values = windows.float()
    noise = NOISE * torch.randn((len(values) // 2, 3, *values.shape[2:]), generator=rng)
    values[:, :3] += torch.cat([noise, noise])
    return values / 127.5 - 1


@torch.no_grad()
def judge_image(judge: nn.Module, sides: list[Tensor], sar: Tensor | None, image: int, seed: int, device) -> Tensor:
    """For every window of the image, in its generated and its true form, whether it is named rightly; 0.5 if open."""
    stack = beside(sides, sar, image)
    size = window_of(stack)
    parts = stack.unfold(2, size, size).unfold(3, size, size)  # 2 x C x rows x columns x size x size
    windows = parts.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    values = disturbed(windows, noise_generator(seed, 2, image))
    logits = torch.cat([judge(part.to(device)).cpu() for part in values.split(JUDGED_AT_ONCE)])
    generated, true = logits.chunk(2)
    return torch.cat([torch.heaviside(x, torch.tensor(0.5)) for x in (generated, -true)])


def limits(right: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the accuracy over places and seeds (rows), both resampled (percentile bootstrap)."""
    rng = np.random.default_rng(0)
    seeds, places = (
        rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float) for count in right.shape
    )
    hits, all_ = (np.einsum("rs,sp,rp->r", seeds, counts, places) for counts in (right, seen))
    low, high = np.quantile(hits[all_ > 0] / all_[all_ > 0], [0.025, 0.975])
    return float(low), float(high)
