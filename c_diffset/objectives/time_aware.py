"""Time-aware one-step distillation, TAD-SR (He et al., arXiv 2408.07476)."""

import torch

from c_diffset.objectives.denoising import masked_mean


def score_distillation_loss(student_noise, teacher_noise, student_clean, mask=None) -> torch.Tensor:
    """High-frequency score distillation: mean(sg(g) * zhat_0^S), g = eps(z_tau^S) - eps(z_tau^T), B x C x h x w.

    Both noises are the frozen teacher's predictions, for the student's and the teacher's result noised by the same
    noise to the same small time tau: their difference leaves out the bias of plain score distillation.
    """
    return masked_mean((student_noise - teacher_noise).detach() * student_clean, mask)
