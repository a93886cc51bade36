"""The objectives against their equations, written out in numpy: float64, tolerance 1e-6."""

import math

import numpy as np
import pytest
import torch

from c_diffset.objectives.denoising import (
    add_noise,
    c_diff_loss,
    denoising_loss,
    masked_mean,
    min_snr_weight,
    prediction_target,
)
from c_diffset.pipelines.pipeline_cdiffset import clean_variance, raw_to_variance, variance_to_confidence

SHAPE = (3, 4, 6, 5)
ABAR = np.array([0.9991, 0.5, 0.0047])


@pytest.fixture
def arrays():
    """Clean latents, noise, prediction and target B x C x h x w, and raw variance B x 1 x h x w, float64."""
    rng = np.random.default_rng(0)
    names = ("clean", "noise", "prediction", "target")
    return {name: rng.standard_normal(SHAPE) for name in names} | {"raw": 3 * rng.standard_normal((3, 1, 6, 5))}


def tensors(arrays: dict) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def column(values: np.ndarray) -> np.ndarray:
    return values[:, None, None, None]


def variance_of(raw: np.ndarray) -> np.ndarray:
    """s2 = clamp(softplus(v + log(e^(1 - 1e-6) - 1)) + 1e-6, 1e-6, 10)"""
    return np.clip(np.log1p(np.exp(raw + np.log(np.exp(1 - 1e-6) - 1))) + 1e-6, 1e-6, 10)


def close(actual: torch.Tensor, expected) -> bool:
    return np.allclose(actual.detach().numpy(), expected, rtol=0, atol=1e-6)


def test_add_noise(arrays):
    noisy = add_noise(torch.from_numpy(arrays["clean"]), torch.from_numpy(arrays["noise"]), torch.from_numpy(ABAR))
    assert close(noisy, column(ABAR**0.5) * arrays["clean"] + column((1 - ABAR) ** 0.5) * arrays["noise"])


def test_target_of_each_prediction_type(arrays):
    clean, noise, abar = torch.from_numpy(arrays["clean"]), torch.from_numpy(arrays["noise"]), torch.from_numpy(ABAR)
    v = column(ABAR**0.5) * arrays["noise"] - column((1 - ABAR) ** 0.5) * arrays["clean"]
    assert close(prediction_target(clean, noise, abar, "epsilon"), arrays["noise"])
    assert close(prediction_target(clean, noise, abar, "v_prediction"), v)
    assert close(prediction_target(clean, noise, abar, "sample"), arrays["clean"])
    with pytest.raises(ValueError, match="prediction_type 'flow'"):
        prediction_target(clean, noise, abar, "flow")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_clean_error_by_min_snr_gamma(arrays, kind):
    """However the model predicts, the weighted loss is min(SNR, gamma) |z - z_hat|^2 (Hang et al., 2023)."""
    clean, noise, abar = torch.from_numpy(arrays["clean"]), torch.from_numpy(arrays["noise"]), torch.from_numpy(ABAR)
    noisy = add_noise(clean, noise, abar).numpy()
    prediction = arrays["prediction"]
    a, s = column(ABAR**0.5), column((1 - ABAR) ** 0.5)
    clean_of = {
        "epsilon": (noisy - s * prediction) / a,
        "v_prediction": a * noisy - s * prediction,
        "sample": prediction,
    }
    snr = ABAR / (1 - ABAR)
    expected = column(np.minimum(snr, 5)) * (arrays["clean"] - clean_of[kind]) ** 2

    target = prediction_target(clean, noise, abar, kind)
    loss = denoising_loss(torch.from_numpy(prediction), target, weight=min_snr_weight(abar, kind, gamma=5))
    assert close(loss, expected.mean())


@pytest.mark.parametrize(("kind", "ends"), [("epsilon", [1, 0]), ("v_prediction", [0, 0]), ("sample", [0, 5])])
def test_min_snr_is_finite_at_pure_noise_and_at_no_noise(kind, ends):
    assert min_snr_weight(torch.tensor([0.0, 1.0]), kind, gamma=5).tolist() == ends


def test_stage_1_loss(arrays):
    t = tensors(arrays)
    assert close(denoising_loss(t["prediction"], t["target"]), np.mean((arrays["target"] - arrays["prediction"]) ** 2))


def test_raw_variance_zero_is_variance_one():
    assert close(raw_to_variance(torch.zeros(1, dtype=torch.float64)), 1.0)
    assert close(raw_to_variance(torch.tensor([-100.0, 100.0], dtype=torch.float64)), [1e-6, 10])


def test_raw_to_variance(arrays):
    assert close(raw_to_variance(torch.from_numpy(arrays["raw"])), variance_of(arrays["raw"]))


def c_diff_terms(arrays: dict) -> np.ndarray:
    s2 = variance_of(arrays["raw"])
    nll = 0.5 * ((arrays["target"] - arrays["prediction"]) ** 2 / s2 + np.log(s2) + math.log(2 * math.pi))
    return s2 ** column(ABAR**0.5) * nll


def test_c_diff_loss(arrays):
    t = tensors(arrays)
    loss = c_diff_loss(t["prediction"], t["target"], t["raw"], torch.from_numpy(ABAR))
    assert close(loss, c_diff_terms(arrays).mean())


def test_no_gradient_flows_through_the_weight_of_the_c_diff_loss(arrays):
    """With w = s2^sqrt(abar) fixed: n dL/d mu = w (mu - y) / s2, n dL/d s2 = w/2 (1/s2 - (y - mu)^2 / s2^2)."""
    t = tensors(arrays)
    t["prediction"].requires_grad_()
    t["raw"].requires_grad_()
    c_diff_loss(t["prediction"], t["target"], t["raw"], torch.from_numpy(ABAR)).backward()

    s2, n = variance_of(arrays["raw"]), math.prod(SHAPE)
    weight = s2 ** column(ABAR**0.5)
    residual = arrays["prediction"] - arrays["target"]
    assert close(t["prediction"].grad * n, weight * residual / s2)

    by_s2 = (weight / 2 * (1 / s2 - residual**2 / s2**2)).sum(1, keepdims=True)
    s2_by_raw = np.where(s2 < 10, 1 / (1 + np.exp(-(arrays["raw"] + np.log(np.exp(1 - 1e-6) - 1)))), 0)
    assert close(t["raw"].grad * n, by_s2 * s2_by_raw)


def test_a_raw_variance_of_zero_makes_the_c_diff_loss_half_the_squared_error(arrays):
    t = tensors(arrays)
    loss = c_diff_loss(t["prediction"], t["target"], torch.zeros_like(t["raw"]), torch.from_numpy(ABAR))
    assert close(loss, 0.5 * np.mean((arrays["target"] - arrays["prediction"]) ** 2) + 0.5 * math.log(2 * math.pi))


def test_masked_positions_carry_neither_loss_nor_gradient(arrays):
    t = tensors(arrays)
    mask = np.random.default_rng(1).integers(0, 2, (3, 1, 6, 5)).astype(np.float64)
    valid = np.broadcast_to(mask, SHAPE) == 1
    prediction = t["prediction"].requires_grad_()
    squared = (arrays["target"] - arrays["prediction"]) ** 2
    stage_1 = denoising_loss(prediction, t["target"], torch.from_numpy(mask))
    stage_2 = c_diff_loss(prediction, t["target"], t["raw"], torch.from_numpy(ABAR), torch.from_numpy(mask))
    assert close(stage_1, squared[valid].mean())
    assert close(stage_2, c_diff_terms(arrays)[valid].mean())
    (stage_1 + stage_2).backward()
    assert np.array_equal(prediction.grad.numpy() != 0, valid)


def test_an_empty_mask_gives_zero():
    assert masked_mean(torch.ones(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)) == 0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_variance_of_the_clean_latent(arrays, kind):
    """An error of the prediction becomes an error of the clean latent: the factor is measured, not derived."""
    noisy, a, s = arrays["clean"], column(ABAR**0.5), column((1 - ABAR) ** 0.5)

    def clean_of(prediction):
        return {
            "epsilon": (noisy - s * prediction) / a,
            "v_prediction": a * noisy - s * prediction,
            "sample": prediction,
        }[kind]

    expected = (clean_of(arrays["prediction"] + 1) - clean_of(arrays["prediction"])) ** 2
    found = clean_variance(torch.ones(SHAPE, dtype=torch.float64), torch.from_numpy(column(ABAR)), kind)
    assert np.allclose(found.numpy(), expected, rtol=1e-6)


def test_confidence_falls_with_variance_and_stays_above_zero_at_pure_noise():
    variance = clean_variance(torch.tensor([1e-6, 1.0, 10.0]), torch.tensor(0.0), "epsilon")
    confidence = variance_to_confidence(variance)
    assert torch.isfinite(variance).all()
    assert (confidence.diff() < 0).all() and 0 < confidence.min() and confidence.max() <= 1
