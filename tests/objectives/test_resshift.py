"""The process of ResShift, by its own formulas, and by stock components on the residual."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from c_diffset.objectives.resshift import KAPPA, resshift_betas, resshift_etas
from c_diffset.pipelines.pipeline_cdiffset import LOW_RESOLUTION
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig, SmallUNetConfig
from c_diffset.training.finetune import build_pipeline, new_scheduler
from tests.conftest import tiny_scheduler

TIMES = 15
MODEL = ModelConfig(
    unet=SmallUNetConfig(block_out_channels=[8, 32], layers_per_block=1),
    prediction_type="sample",
    beta_schedule="resshift",
    num_train_timesteps=TIMES,
    default_num_inference_steps=TIMES,
    upscale=4,
    residual=True,
)


def scheduler() -> DDIMScheduler:
    return tiny_scheduler(
        num_train_timesteps=TIMES, trained_betas=resshift_betas(TIMES), prediction_type="sample", set_alpha_to_one=True
    )


def test_the_etas_are_those_of_the_paper():
    """kappa 2, 15 steps, min_noise_level 0.04, etas_end 0.99, power 0.3: sqrt(eta_1) is 0.04 / kappa."""
    etas = resshift_etas(TIMES)
    growth = np.exp(np.log(0.99 / 0.02) / 14)
    np.testing.assert_allclose(np.sqrt(etas), 0.02 * growth ** (14 * (np.arange(15) / 14) ** 0.3), rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(etas)[[0, -1]], [0.02, 0.99], rtol=1e-12)


@pytest.mark.parametrize("space", ["kl", "tiny", "pixel"])
def test_its_deterministic_sampling_is_ddim_on_the_residual(make_pipe, space):
    """z_(t-1) = k zhat_0 + m z_t + j z_y with the paper's k, m and j, from z_y + kappa sqrt(eta_T) eps on."""
    pipe = make_pipe(space, scheduler=scheduler(), sar_transform=LOW_RESOLUTION, upscale=4, residual=True)
    low = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    condition = pipe.encode(pipe.pad(pipe.enlarge(pipe.prepare_sar(low)))).float()
    noise, etas = torch.randn(1, *condition.shape[1:], generator=torch.Generator().manual_seed(0)), resshift_etas(TIMES)

    def predicted(z: torch.Tensor, t: int) -> torch.Tensor:
        """The model's zhat_0: it sees the condition, and the residual to it at the scale 1."""
        scale = ((1 - etas[t]) ** 2 + KAPPA**2 * etas[t]) ** 0.5
        with torch.no_grad():
            residual, _ = pipe.predict(condition, (z - condition) / scale, torch.tensor(t), pipe.prompt_kwargs(1))
        return condition + residual

    z = condition + KAPPA * etas[-1] ** 0.5 * noise
    for t in reversed(range(TIMES)):
        now, before = etas[t], etas[t - 1] if t else 0.0
        m, j = (before / now) ** 0.5, before - (before * now) ** 0.5
        z = (1 - m - j) * predicted(z, t) + m * z + j * condition

    abar = pipe.scheduler.alphas_cumprod[-1]
    output = pipe(low, TIMES, latents=noise * (1 - abar).sqrt(), output_type="latent")
    torch.testing.assert_close(output.latents, z, rtol=0, atol=1e-5)
    assert abs(1 - (1 - abar).sqrt()) < 1e-4, "so unit noise is as good a start"


def test_its_noisy_sampling_has_less_noise_than_ddpm():
    """The posterior of ResShift is DDIM's with an eta for each step: from 1.00 at the end down to 0.40 at the start."""
    etas, abar = resshift_etas(TIMES), scheduler().alphas_cumprod.double().numpy()
    now, before = etas[1:], etas[:-1]
    scale = (1 - before) ** 2 + KAPPA**2 * before
    paper = KAPPA**2 * before * (now - before) / now / scale
    ddpm = DDPMScheduler(num_train_timesteps=TIMES, trained_betas=resshift_betas(TIMES), variance_type="fixed_small")
    ddpm.set_timesteps(TIMES)
    stock = np.array([ddpm._get_variance(t) for t in range(1, TIMES)])
    share = np.sqrt(paper / stock)
    np.testing.assert_allclose(share[[0, 6, 13]], [1.00, 0.85, 0.40], atol=0.01)
    assert (np.diff(share) < 0).all()
    noise = 1 - abar[:-1] - paper  # what the direction of the noise keeps, as in DDIM: the same mean as the paper's
    of_image = np.sqrt(abar[:-1]) - np.sqrt(noise * abar[1:] / (1 - abar[1:]))
    np.testing.assert_allclose(of_image * np.sqrt(scale), (now - before) / now, atol=1e-5)


def test_the_sampler_takes_each_of_the_fifteen_times_once():
    steps = new_scheduler(MODEL)
    np.testing.assert_allclose(steps.alphas_cumprod, scheduler().alphas_cumprod)
    assert not steps.config.clip_sample and float(steps.alphas_cumprod[-1]) == pytest.approx(1.01e-4, rel=0.01)
    for number, times in ((15, range(14, -1, -1)), (5, (14, 11, 8, 5, 2)), (1, (14,))):
        steps.set_timesteps(number)
        assert steps.timesteps.tolist() == list(times)


def test_the_setting_makes_such_a_model(tmp_path):
    pipe = build_pipeline(MODEL)
    assert pipe.config.confidence_timestep == 7 and pipe.config.residual and pipe.config.sar_transform == LOW_RESOLUTION
    pipe.set_progress_bar_config(disable=True)
    low = np.zeros((4, 4, 3), np.uint8)
    assert pipe(low, 3, output_type="np").images.shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match="is 4: this model has 15 times, expected one of 1, 3, 5, 15"):
        pipe(low, 4)
    settings = dict(output_dir=str(tmp_path), data=DataConfig(source="pairs"))
    FinetuneConfig(model=MODEL, **settings)
    for change, message in (
        ({"residual": False}, "model.beta_schedule resshift needs model.residual true"),
        ({"beta_range": (0.1, 0.2)}, "and no model.beta_range"),
        ({"default_num_inference_steps": 50}, "is 50: expected at most model.num_train_timesteps, 15"),
    ):
        with pytest.raises(ValueError, match=message):
            FinetuneConfig(model=replace(MODEL, **change), **settings)
