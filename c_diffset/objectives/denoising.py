"""Stage 1 and stage 2 of C-DiffSET (Do, Lee, Lee, Kim; arXiv 2411.10788): pure functions on tensors.

`abar` is the cumulative product of alphas at each image's time, shaped B; images and latents are B x C x h x w.
"""

import math

import torch

from c_diffset.pipelines.pipeline_cdiffset import raw_to_variance


def append_dims(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shape B values so that they broadcast over a tensor B x ..."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(clean: torch.Tensor, noise: torch.Tensor, abar: torch.Tensor) -> torch.Tensor:
    """z_t = sqrt(abar) z + sqrt(1 - abar) eps (Ho et al., 2020)."""
    abar = append_dims(abar, clean)
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def prediction_target(clean: torch.Tensor, noise: torch.Tensor, abar: torch.Tensor, prediction_type: str):
    """What the UNet predicts: the noise, v = sqrt(abar) eps - sqrt(1 - abar) z (Salimans & Ho, 2022), or the sample."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        abar = append_dims(abar, clean)
        return abar.sqrt() * noise - (1 - abar).sqrt() * clean
    if prediction_type == "sample":
        return clean
    raise ValueError(f"prediction_type {prediction_type!r}: expected 'epsilon', 'v_prediction' or 'sample'")


def clean_and_noise(
    prediction: torch.Tensor, noisy: torch.Tensor, abar: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean image and the noise that a prediction at `abar` (B) implies: `prediction_target` solved for both."""
    signal, spread = append_dims(abar, noisy).sqrt(), append_dims(1 - abar, noisy).sqrt()
    if prediction_type == "epsilon":
        return (noisy - spread * prediction) / signal, prediction
    if prediction_type == "v_prediction":
        return signal * noisy - spread * prediction, signal * prediction + spread * noisy
    if prediction_type == "sample":
        return prediction, (noisy - signal * prediction) / spread
    raise ValueError(f"prediction_type {prediction_type!r}: expected 'epsilon', 'v_prediction' or 'sample'")


def min_snr_weight(abar: torch.Tensor, prediction_type: str, gamma: float) -> torch.Tensor:
    """Min-SNR weight of each image's loss, B (Hang et al., 2023), for the squared error of the prediction itself."""
    snr = abar / (1 - abar)
    weight = snr.clamp_max(gamma)
    if prediction_type == "epsilon":
        return torch.where(snr > 0, weight / snr, 1.0)
    return weight / (snr + 1) if prediction_type == "v_prediction" else weight


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of B x C x h x w over the positions where `mask` (B x 1 x h x w, 1 = valid) allows; 0 where none does."""
    if mask is None:
        return values.mean()
    mask = mask.expand_as(values)
    return (values * mask).sum() / mask.sum().clamp_min(1)


def denoising_loss(prediction, target, mask=None, weight=None) -> torch.Tensor:
    """Stage 1: mean (target - prediction)^2, each image weighted by `weight` (B) where given."""
    error = (target - prediction).square()
    return masked_mean(error if weight is None else append_dims(weight, error) * error, mask)


def beta_nll(prediction, target, variance, beta, mask=None) -> torch.Tensor:
    """Gaussian negative log-likelihood weighted by sg(s2)^beta, averaged (Seitzer et al., 2022).

    mean[ sg(s2)^beta * 1/2 * ((target - prediction)^2 / s2 + log s2 + log 2 pi) ]; `variance` s2 is B x 1 x h x w and
    shared by the channels, `beta` a number or B x 1 x 1 x 1.
    """
    nll = 0.5 * ((target - prediction).square() / variance + variance.log() + math.log(2 * math.pi))
    return masked_mean(variance.detach() ** beta * nll, mask)


def c_diff_loss(prediction, target, raw_variance, abar, mask=None) -> torch.Tensor:
    """Stage 2, the C-Diff loss: a beta-NLL whose beta, sqrt(abar), falls with the noise.

    The variance comes from `raw_variance` (B x 1 x h x w) by `raw_to_variance`.
    """
    variance = raw_to_variance(raw_variance)
    return beta_nll(prediction, target, variance, append_dims(abar.sqrt(), variance), mask)
