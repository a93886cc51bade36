"""Losses of one step on the image, B x C x H x W in any unit: distances, and the energy score of samples."""

import torch
import torch.nn.functional as F

from c_diffset.objectives.adversarial import weighted_mean
from c_diffset.objectives.denoising import append_dims

CHARBONNIER = 1 / 32  # width of the smooth part: one 8-bit level where the unit is 32 of them


def pixel_distance(images: torch.Tensor, others: torch.Tensor, kind: str) -> torch.Tensor:
    """Distance of every value: "l1", "l2", or "charbonnier", sqrt(d^2 + c^2) - c (Charbonnier et al., 1994)."""
    difference = images - others
    if kind == "l1":
        return difference.abs()
    if kind == "l2":
        return difference.square()
    if kind == "charbonnier":
        return (difference.square() + CHARBONNIER**2).sqrt() - CHARBONNIER
    raise ValueError(f"pixel_loss {kind!r}: expected 'l1', 'charbonnier' or 'l2'")


def energy_score(images, true, other, diversity: torch.Tensor, kind: str) -> torch.Tensor:
    """d(x, y) - diversity d(x, sg(x')), averaged: x and x' are samples of one input, y is the true image.

    With a `diversity` (B) of 1 its gradient is that of the energy score E d(X, y) - E d(X, X') / 2, which only the true
    distribution makes least (Gneiting and Raftery, 2007); for "l1" this is the CRPS of every value, for "l2" the square
    error of the samples' mean, which leaves their spread to other losses (Ohayon et al., 2021). With 0, or
    without `other`, it is the plain distance, whose best image is one estimate: the median for "l1", the mean for "l2".
    """
    distance = pixel_distance(images, true, kind)
    if other is not None:
        distance = distance - append_dims(diversity, images) * pixel_distance(images, other.detach(), kind)
    return distance.mean()


def random_filters(images: torch.Tensor, filters: torch.Tensor, scale: int) -> torch.Tensor:
    """Images, halved `scale` times, under `filters` (N x C x k x k): B x N x h x w.

    A distribution of images is settled by those of all its projections (Cramer and Wold, 1936); these are local ones.
    """
    if scale:
        images = F.avg_pool2d(images, 2**scale)
    return F.conv2d(images, filters)


def draw_filters(count: int, channels: int, size: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """`count` Gaussian filters of mean 0 and norm 1, count x channels x size x size: they see texture and no level."""
    filters = torch.randn(count, channels, size, size, generator=generator)
    filters = filters - filters.mean(dim=(1, 2, 3), keepdim=True)
    return filters / filters.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def texture_score(images, true, other, diversity: torch.Tensor, filters: list[torch.Tensor]) -> torch.Tensor:
    """The `energy_score` of filtered images, "l1": one filter bank for each halving of the image, mean over them."""
    scores = []
    for scale, bank in enumerate(filters):
        if min(images.shape[-2:]) >> scale < bank.shape[-1]:
            break
        seen = [None if x is None else random_filters(x, bank, scale) for x in (images, true, other)]
        scores.append(energy_score(*seen, diversity, "l1"))
    return torch.stack(scores).mean()


def perceptual_distance(lpips, images: torch.Tensor, true: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """LPIPS, each image weighted by `weight` (B)."""
    return weighted_mean(lpips(images, true).flatten(1), weight)
