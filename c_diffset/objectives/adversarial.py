"""Adversarial losses on logits of any shape: what the critic minimises, and what the student does."""

import torch
import torch.nn.functional as F


def critic_loss(real: torch.Tensor, fake: torch.Tensor, kind: str) -> torch.Tensor:
    """The critic's loss: softplus (Goodfellow et al., 2014), hinge (Lim, Ye, 2017) or Wasserstein (Arjovsky, 2017)."""
    if kind == "softplus":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "wasserstein":
        return fake.mean() - real.mean()
    raise ValueError(f"adversarial loss {kind!r}: expected 'softplus', 'hinge' or 'wasserstein'")


def student_loss(fake: torch.Tensor, kind: str) -> torch.Tensor:
    """The student's loss: non-saturating for softplus, -mean for hinge and Wasserstein."""
    return F.softplus(-fake).mean() if kind == "softplus" else -fake.mean()
