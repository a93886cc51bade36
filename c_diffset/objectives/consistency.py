"""Consistency distillation (Song et al., 2023) as latent consistency models do it (Luo et al., arXiv 2310.04378).

Bai and Xu (arXiv 2407.06095) add an adversarial term. `timestep` and `abar` are B, images and latents B x C x h x w.
"""

import torch

from c_diffset.objectives.denoising import append_dims, masked_mean

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # as LCMScheduler has them


def solver_timesteps(grid: int, num_train_timesteps: int = 1000) -> torch.Tensor:
    """The solver's times t_n = n * N / K - 1 for n = 0 ... K; t_0 = 0 stands for the clean image."""
    return (torch.arange(grid + 1) * (num_train_timesteps // grid) - 1).clamp_min(0)


def boundary_scalings(timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip and c_out of the consistency function: 1 and 0 at time 0."""
    scaled = TIMESTEP_SCALING * timestep.float()
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    return c_skip, scaled / (scaled**2 + SIGMA_DATA**2).sqrt()


def consistency_function(clean: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """f(z, t) = c_skip(t) z + c_out(t) zhat_0: the identity at time 0."""
    c_skip, c_out = (append_dims(scaling, noisy) for scaling in boundary_scalings(timestep))
    return c_skip * noisy + c_out * clean


def ddim_step(clean: torch.Tensor, noise: torch.Tensor, abar: torch.Tensor) -> torch.Tensor:
    """One deterministic DDIM step to `abar` (Song et al., 2021), from the predicted clean image and noise."""
    abar = append_dims(abar, clean)
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def pseudo_huber(prediction, target, mask=None, c: float = 1e-3) -> torch.Tensor:
    """mean(sqrt(d^2 + c^2) - c) of the difference d (Song & Dhariwal, 2024)."""
    return masked_mean(((prediction - target).square() + c**2).sqrt() - c, mask)
