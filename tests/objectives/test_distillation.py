"""The objectives of distillation against their equations, written out in numpy: float64, tolerance 1e-6."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from c_diffset.objectives.adversarial import critic_loss, student_loss
from c_diffset.objectives.consistency import (
    boundary_scalings,
    consistency_function,
    ddim_step,
    pseudo_huber,
    solver_timesteps,
)
from c_diffset.objectives.denoising import add_noise, beta_nll, clean_and_noise, prediction_target
from c_diffset.objectives.time_aware import score_distillation_loss

SHAPE = (3, 4, 6, 5)
ABAR = np.array([0.9991, 0.5, 0.0047])
EXACT = dict(rtol=1e-6, atol=1e-9)


@pytest.fixture
def draw():
    """`draw()`: a standard normal array B x C x h x w, float64."""
    rng = np.random.default_rng(0)
    return lambda shape=SHAPE: rng.standard_normal(shape)


def column(values: np.ndarray) -> np.ndarray:
    return values[:, None, None, None]


def test_solver_times():
    assert solver_timesteps(50).tolist() == [0, *range(19, 1000, 20)]
    assert solver_timesteps(4, 1000).tolist() == [0, 249, 499, 749, 999]
    scheduler = LCMScheduler(original_inference_steps=50)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == solver_timesteps(50)[1:].flip(0).tolist()


def test_consistency_function(draw):
    clean, noisy, times = draw(), draw(), np.array([0, 19, 999])
    u = 10 * times
    c_skip, c_out = 0.25 / (u**2 + 0.25), u / np.sqrt(u**2 + 0.25)
    expected = column(c_skip) * noisy + column(c_out) * clean
    tensors = [torch.from_numpy(array) for array in (clean, noisy, times)]
    np.testing.assert_allclose(consistency_function(*tensors), expected, rtol=1e-6, atol=1e-6)
    for found, scaling in zip(boundary_scalings(tensors[2]), (c_skip, c_out), strict=True):
        np.testing.assert_allclose(found, scaling, rtol=1e-6)


def test_consistency_function_is_the_identity_at_time_0(draw):
    clean, noisy = torch.from_numpy(draw()), torch.from_numpy(draw())
    assert torch.equal(consistency_function(clean, noisy, torch.zeros(3, dtype=torch.long)), noisy)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_clean_and_noise_undo_the_prediction_target(kind, draw):
    clean, noise, abar = torch.from_numpy(draw()), torch.from_numpy(draw()), torch.from_numpy(ABAR)
    prediction = prediction_target(clean, noise, abar, kind)
    found = clean_and_noise(prediction, add_noise(clean, noise, abar), abar, kind)
    torch.testing.assert_close(found[0], clean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], noise, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="'x'"):
        clean_and_noise(prediction, clean, abar, "x")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [999, 499, 19])
def test_ddim_step_is_that_of_diffusers(kind, timestep, draw):
    scheduler = DDIMScheduler(
        prediction_type=kind, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(50)
    prediction, noisy = torch.from_numpy(draw()), torch.from_numpy(draw())
    expected = scheduler.step(prediction, timestep, noisy).prev_sample
    abar = scheduler.alphas_cumprod.double()
    earlier = torch.tensor(1.0) if timestep == 19 else abar[timestep - 20]
    clean, noise = clean_and_noise(prediction, noisy, abar[timestep].expand(3), kind)
    # the scheduler computes its coefficients in float32
    torch.testing.assert_close(ddim_step(clean, noise, earlier.double().expand(3)), expected, rtol=1e-4, atol=1e-5)


def test_pseudo_huber(draw):
    prediction, target, mask = draw(), draw(), np.random.default_rng(1).integers(0, 2, (3, 1, 6, 5)).astype(float)
    loss = np.sqrt((prediction - target) ** 2 + 1e-6) - 1e-3
    tensors = [torch.from_numpy(array) for array in (prediction, target)]
    np.testing.assert_allclose(pseudo_huber(*tensors), loss.mean(), **EXACT)
    valid = np.broadcast_to(mask, SHAPE) == 1
    np.testing.assert_allclose(pseudo_huber(*tensors, torch.from_numpy(mask)), loss[valid].mean(), **EXACT)
    assert pseudo_huber(tensors[0], tensors[0]) == 0


def test_beta_nll(draw):
    prediction, target, variance = draw(), draw(), np.exp(draw((3, 1, 6, 5)))
    nll = 0.5 * ((prediction - target) ** 2 / variance + np.log(variance) + np.log(2 * np.pi))
    tensors = [torch.from_numpy(array) for array in (prediction, target, variance)]
    np.testing.assert_allclose(beta_nll(*tensors, 0.5), (variance**0.5 * nll).mean(), **EXACT)
    tensors[2].requires_grad_()
    beta_nll(*tensors, 0.5).backward()
    gradient = variance**0.5 * 0.5 * (1 / variance - (prediction - target) ** 2 / variance**2)
    np.testing.assert_allclose(tensors[2].grad, gradient.sum(1, keepdims=True) / prediction.size, **EXACT)


def test_adversarial_losses(draw):
    real, fake = draw((7,)), draw((7,))
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    hinge = np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()
    expected = {
        "softplus": (softplus(-real).mean() + softplus(fake).mean(), softplus(-fake).mean()),
        "hinge": (hinge, -fake.mean()),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
    }
    real, fake = torch.from_numpy(real), torch.from_numpy(fake)
    for kind, (critic, student) in expected.items():
        np.testing.assert_allclose(critic_loss(real, fake, kind), critic, **EXACT)
        np.testing.assert_allclose(student_loss(fake, kind), student, **EXACT)
    with pytest.raises(ValueError, match="'x'"):
        critic_loss(real, fake, "x")


def test_score_distillation(draw):
    student_noise, teacher_noise, clean = draw(), draw(), draw()
    expected = ((student_noise - teacher_noise) * clean).mean()
    tensors = [torch.from_numpy(array).requires_grad_() for array in (student_noise, teacher_noise, clean)]
    loss = score_distillation_loss(*tensors)
    np.testing.assert_allclose(loss.detach(), expected, **EXACT)
    loss.backward()
    np.testing.assert_allclose(tensors[2].grad, (student_noise - teacher_noise) / clean.size, **EXACT)
    assert tensors[0].grad is None and tensors[1].grad is None
