"""Gaussian images, for which teacher and student have closed forms: each method must end at the right distribution.

Every EO pixel is N(mean, DEVIATION^2) with the pixel's SAR value as mean. The best v prediction is then affine in the
noisy pixel and in the SAR pixel, with coefficients that depend on the time alone. `AffineUNet` is that family.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.config import DataConfig, OptimizerConfig
from c_diffset.training.distill import METHODS, build_student
from c_diffset.training.distill_config import ConsistencyConfig, CriticConfig, DistillConfig, TimeAwareConfig
from c_diffset.training.loop import make_accelerator
from tests.conftest import tiny_scheduler

pytestmark = pytest.mark.slow

DEVIATION = 0.4
GRID = 5
SIZE, BATCH = 8, 16


class AffineUNet(ModelMixin, ConfigMixin):
    """v = a[t] z + b[t] x, and a raw variance c[t], for the SAR pixel x and the noisy pixel z."""

    @register_to_config
    def __init__(self, in_channels: int = 6, out_channels: int = 4, block_out_channels: tuple = (1,)):
        super().__init__()
        self.table = nn.Embedding(1000, 3)
        self.down_blocks, self.mid_block, self.time_embedding = nn.ModuleList(), nn.Identity(), nn.Identity()

    def forward(self, sample, timestep, return_dict: bool = True):
        a, b, c = self.table(timestep.expand(len(sample))).view(-1, 3, 1, 1, 1).unbind(1)
        sar, noisy = sample.chunk(2, dim=1)
        return (torch.cat([a * noisy + b * sar, c.expand_as(noisy[:, :1])], dim=1),)


class PixelCritic(nn.Module):
    """Judges single pixels: what it can tell apart is their distribution, given the SAR pixel."""

    def __init__(self, teacher, head):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(6, 8, 1), nn.SiLU(), nn.Conv2d(8, 1, 1))

    def forward(self, sar, noisy, timestep, candidates, earlier, prompt):
        return [self.net(torch.cat([sar, image], dim=1)).mean(dim=(1, 2, 3)) for image in candidates]


def teacher_pipeline() -> CDiffSETPipeline:
    """The exact teacher: the posterior mean of v under the Gaussian."""
    scheduler = tiny_scheduler(set_alpha_to_one=True, rescale_betas_zero_snr=True)
    abar = scheduler.alphas_cumprod.double()
    unet = AffineUNet()
    # E[x0 | z] = x + g (z - sqrt(abar) x), and v = (sqrt(abar) z - x0) / sqrt(1 - abar)
    g = abar.sqrt() * DEVIATION**2 / (abar * DEVIATION**2 + 1 - abar)
    with torch.no_grad():
        unet.table.weight[:, 0] = ((abar.sqrt() - g) / (1 - abar).sqrt()).float()
        unet.table.weight[:, 1] = (-(1 - g * abar.sqrt()) / (1 - abar).sqrt()).float()
        unet.table.weight[:, 2] = 0
    return CDiffSETPipeline(unet, scheduler, default_num_inference_steps=GRID)


def teachers_map(steps: int) -> tuple[float, float]:
    """The teacher's DDIM sampler is affine, x0 = p noise + q x: p and q, in float64, by the posterior's formula."""
    scheduler = tiny_scheduler(set_alpha_to_one=True, rescale_betas_zero_snr=True)
    abar = scheduler.alphas_cumprod.double().numpy()
    times = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    p, q = 1.0, 0.0
    for t, earlier in zip(times, [*times[1:], None], strict=True):
        a, b = abar[t], 1.0 if earlier is None else abar[earlier]
        g = np.sqrt(a) * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
        clean = np.array([g * p, 1 + g * (q - np.sqrt(a))])
        noise = (np.array([p, q]) - np.sqrt(a) * clean) / np.sqrt(1 - a)
        p, q = np.sqrt(b) * clean + np.sqrt(1 - b) * noise
    return p, q


def train(method: str, tmp_path, updates: int, only: set[str] | None = None, **changes):
    """The real task on Gaussian batches; `only` these losses. Returns the task."""
    config = DistillConfig(
        output_dir=str(tmp_path / "run"),
        teacher="",
        method=method,
        data=DataConfig(source="", validation_split=None),
        optimizer=OptimizerConfig(learning_rate=0.05, warmup_steps=10, weight_decay=0.0, max_grad_norm=10.0),
        consistency=ConsistencyConfig(grid=GRID),
        time_aware=TimeAwareConfig(results=str(tmp_path), score_timesteps=(20, 400)),
        max_steps=updates,
        batch_size=BATCH,
    )
    config = replace(config, **changes)
    accelerator = make_accelerator(config)
    teacher = teacher_pipeline()
    task_class = METHODS[method]
    if config.critic.weight:
        task_class = type("Task", (task_class,), {"critic_class": PixelCritic})
    task = task_class(config, teacher, build_student(config, teacher))
    task.prepare(accelerator)
    if only is not None:
        every = task.losses
        task.losses = lambda *args: {name: value for name, value in every(*args).items() if name in only}
    generator = torch.manual_seed(0)
    sampler = DDIMScheduler.from_config(teacher.scheduler.config)
    frozen = CDiffSETPipeline(task.teacher, sampler)
    frozen.set_progress_bar_config(disable=True)
    for step in range(updates):
        draw = lambda: torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)  # noqa: E731
        sar = 0.5 * draw()
        batch = {"sar": sar, "eo": sar + DEVIATION * draw(), "noise": draw(), "noise_2": draw()}
        batch |= {name: torch.randint(0, 1000, (BATCH,), generator=generator) for name in ("timestep", "timestep_2")}
        if config.needs_results:
            batch["result"] = frozen.denoise(sar, GRID, latents=batch["noise"])[0]
        task.train_batch(accelerator, batch, step)
    return task


def one_step_map(task) -> tuple[float, float, float]:
    """The student's x0 = p noise + q x in one step, and the variance it expects of it."""
    zero, one = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    with torch.no_grad():
        last = torch.tensor([999])
        p, variance = task.student_prediction(zero, one, last)
        q, _ = task.student_prediction(one, zero, last)
    return p.mean().item(), q.mean().item(), variance.item()


def expected_error(p: float, q: float) -> float:
    """E (x0 - y)^2 of x0 = p noise + q x against y = x + DEVIATION n, x of variance 0.25."""
    return p**2 + (q - 1) ** 2 * 0.25 + DEVIATION**2


def test_the_teachers_map_is_right_in_the_limit():
    """Mean x and standard deviation DEVIATION: the data's distribution."""
    assert teachers_map(1000) == pytest.approx((DEVIATION, 1.0), abs=2e-3)
    assert teachers_map(1) == pytest.approx((0.0, 1.0), abs=1e-6)


@pytest.mark.parametrize("critic", [CriticConfig(), CriticConfig(0.05, "softplus", "target")])
def test_consistency_distillation(critic, tmp_path):
    """From a student of the right mean and no variance to the teacher's result of five steps, with its error known."""
    task = train("consistency", tmp_path, 600, critic=critic)
    p, q, variance = one_step_map(task)
    assert (p, q) == pytest.approx(teachers_map(GRID), abs=0.02)
    assert variance == pytest.approx(expected_error(p, q), rel=0.1)


@pytest.mark.parametrize("only", [{"regression", "confidence"}, {"score", "confidence"}, None])
def test_time_aware_distillation(only, tmp_path):
    """Regression alone, score distillation alone, and all together."""
    task = train("time_aware", tmp_path, 300, only)
    p, q, variance = one_step_map(task)
    assert (p, q) == pytest.approx(teachers_map(GRID), abs=0.02)
    assert variance == pytest.approx(expected_error(p, q), rel=0.1)


def test_regression_to_the_data_gives_the_mean(tmp_path):
    """The known limit of that choice: no variance is left."""
    task = train("time_aware", tmp_path, 300, {"regression"}, time_aware=TimeAwareConfig("data"))
    p, q, _ = one_step_map(task)
    assert (p, q) == pytest.approx((0.0, 1.0), abs=0.02)
