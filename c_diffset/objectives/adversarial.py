"""Adversarial losses on logits of any shape: what the critic minimises, and what the student does."""

import torch
import torch.nn.functional as F

from c_diffset.objectives.denoising import append_dims


def critic_loss(real: torch.Tensor, fake: torch.Tensor, kind: str, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The critic's loss: softplus (Goodfellow et al., 2014), hinge (Lim, Ye, 2017) or Wasserstein (Arjovsky, 2017).

    `weight` (B) weights the images of a batch; all alike without it.
    """
    if kind == "softplus":
        return weighted_mean(F.softplus(-real), weight) + weighted_mean(F.softplus(fake), weight)
    if kind == "hinge":
        return weighted_mean(F.relu(1 - real), weight) + weighted_mean(F.relu(1 + fake), weight)
    if kind == "wasserstein":
        return weighted_mean(fake, weight) - weighted_mean(real, weight)
    raise ValueError(f"adversarial loss {kind!r}: expected 'softplus', 'hinge' or 'wasserstein'")


def student_loss(fake: torch.Tensor, kind: str, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The student's loss: non-saturating for softplus, -mean for hinge and Wasserstein; `weight` as above."""
    return weighted_mean(F.softplus(-fake) if kind == "softplus" else -fake, weight)


def weighted_mean(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Mean of B x ..., each of the B entries times its weight where there are weights."""
    return values.mean() if weight is None else (values * append_dims(weight, values)).mean()
