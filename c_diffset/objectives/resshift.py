"""The process of ResShift (Yue, Wang, Loy; arXiv 2307.12348) as the noise schedule of a model of the residual.

ResShift shifts the image z_0 to the condition z_y while it adds noise: z_t = (1 - eta_t) z_0 + eta_t z_y + kappa
sqrt(eta_t) eps. The residual w_t = z_t - z_y is then (1 - eta_t) w_0 + kappa sqrt(eta_t) eps: divided by the root of
(1 - eta_t)^2 + kappa^2 eta_t, it is a variance-preserving process as every scheduler has it.
"""

import numpy as np

KAPPA = 2.0
FIRST, LAST, POWER = 0.02, 0.99, 0.3  # of sqrt(eta): min_noise_level 0.04 / kappa, and etas_end, of the paper's models


def resshift_etas(times: int) -> np.ndarray:
    """eta_t of ResShift at t = 0 ... times - 1, float64: sqrt(eta) grows from 0.02 to 0.99, geometrically in t^0.3."""
    position = np.linspace(0, 1, times) ** POWER
    return (FIRST * (LAST / FIRST) ** position) ** 2


def resshift_betas(times: int) -> list[float]:
    """Betas of the variance-preserving process that is ResShift's of the residual; of 15 times in the paper."""
    etas = resshift_etas(times)
    abar = (1 - etas) ** 2 / ((1 - etas) ** 2 + KAPPA**2 * etas)
    return (1 - abar / np.concatenate([[1.0], abar[:-1]])).tolist()
