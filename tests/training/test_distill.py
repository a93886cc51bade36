"""Distillation with real components at tiny size: its losses, its students, its errors."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, LCMScheduler
from torch.utils.data import default_collate

from c_diffset.data import teacher_results
from c_diffset.objectives.resshift import resshift_betas
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, raw_to_variance
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, OptimizerConfig
from c_diffset.training.distill import METHODS, build_student, distill, load_teacher
from c_diffset.training.distill_config import ConsistencyConfig, CriticConfig, DistillConfig, TimeAwareConfig
from c_diffset.training.loop import make_accelerator
from c_diffset.training.parser import parse_config
from c_diffset.training.run import check_same_run, save_config
from c_diffset.training.task import with_components
from tests.conftest import tiny_components, tiny_scheduler
from tests.helpers import log_lines

SAR = {"units": "display", "range": [0.0, 1.0], "channels": [0, 0, 0]}
SPACES = ("kl", "pixel")
OF_TEACHERS = ("consistency", "time_aware")  # the methods that imitate a teacher


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """The teacher's results are computed a few at a time."""
    monkeypatch.setattr(teacher_results, "CHUNK", 4)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 6, size=32)
    return str(folder)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    """Teachers of random weights: Stable Diffusion's components, and pixel space."""
    folders = {}
    for space in SPACES:
        folder = tmp_path_factory.mktemp(space)
        components = tiny_components(space, folder / "text") | {"scheduler": teacher_scheduler()}
        pipe = CDiffSETPipeline(**components, sar_transform=SAR, default_num_inference_steps=3)
        pipe.save_pretrained(folder / "teacher")
        folders[space] = str(folder / "teacher")
    return folders


def teacher_scheduler(**options) -> DDIMScheduler:
    return tiny_scheduler(set_alpha_to_one=True, rescale_betas_zero_snr=True, **options)


def settings(teacher: str, source: str, output: Path, **changes) -> DistillConfig:
    """Four updates, no validation."""
    config = DistillConfig(
        output_dir=str(output),
        teacher=teacher,
        data=DataConfig(source=source, crop_size=16, validation_split=None),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        consistency=ConsistencyConfig(grid=20),
        time_aware=TimeAwareConfig(results=str(output.parent / "results"), num_results=4, teacher_steps=2),
        max_steps=4,
        batch_size=2,
        ema_decay=0.9,
        log_every=1,
    )
    return replace(config, **changes)


def prepared(config: DistillConfig):
    """A task ready for its first batch, its accelerator, and that batch."""
    accelerator = make_accelerator(config)
    teacher = load_teacher(config)
    task = METHODS[config.method](config, teacher, build_student(config, teacher))
    task.prepare(accelerator)
    return task, accelerator, next(iter(task.loader(accelerator, 0)))


def with_critic(method: str) -> dict:
    return {"method": method, "critic": CriticConfig(0.5, "softplus" if method == "consistency" else "hinge")}


def huber(difference: torch.Tensor) -> torch.Tensor:
    return ((difference**2 + 1e-6).sqrt() - 1e-3).mean()


def consistency(pipe: CDiffSETPipeline, sar, noisy, times) -> tuple[torch.Tensor, torch.Tensor]:
    """f(z, t) of the pipeline's UNet, v prediction, written out; and the variance of the clean image."""
    output = pipe.unet(torch.cat([sar, noisy], 1), times, **pipe.prompt_kwargs(len(sar))).sample
    abar = pipe.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
    abar = torch.where((times == 0).view(-1, 1, 1, 1), 1.0, abar)
    v, raw = output[:, : pipe.eo_channels], output[:, pipe.eo_channels :]
    clean, u = abar.sqrt() * noisy - (1 - abar).sqrt() * v, 10.0 * times.view(-1, 1, 1, 1)
    f = 0.25 / (u**2 + 0.25) * noisy + u / (u**2 + 0.25).sqrt() * clean
    return f, clean, raw_to_variance(raw) * (1 - abar)


# ------------------------------------------------------------------------------------------------- consistency


@pytest.mark.parametrize("space", SPACES)
def test_the_consistency_losses_are_their_equations(space, teachers, source, tmp_path):
    """Written out with diffusers' own DDIM step; at the start, student and target are the teacher."""
    task, accelerator, batch = prepared(settings(teachers[space], source, tmp_path / "run"))
    teacher = CDiffSETPipeline.from_pretrained(teachers[space])
    with torch.no_grad():
        losses = task.losses(accelerator, batch)
        sar, eo = teacher.encode(batch["sar"]), teacher.encode(batch["eo"])
        step = 1000 // 20
        n = batch["timestep"] * 20 // 1000 + 1
        late, early = n * step - 1, (n * step - 1 - step).clamp_min(0)
        abar = teacher.scheduler.alphas_cumprod[late].view(-1, 1, 1, 1)
        noisy = abar.sqrt() * eo + (1 - abar).sqrt() * batch["noise"]
        v = teacher.unet(torch.cat([sar, noisy], 1), late, **teacher.prompt_kwargs(2)).sample[:, : teacher.eo_channels]
        teacher.scheduler.set_timesteps(20)
        rows = [teacher.scheduler.step(v[i], late[i], noisy[i]).prev_sample for i in range(2)]
        target, *_ = consistency(teacher, sar, torch.stack(rows), early)
        f, clean, variance = consistency(teacher, sar, noisy, late)
        nll = 0.5 * ((clean - eo) ** 2 / variance + variance.log() + np.log(2 * np.pi))
    torch.testing.assert_close(losses["consistency"], huber(f - target), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["confidence"], (variance**0.5 * nll).mean(), rtol=1e-4, atol=1e-6)
    assert set(losses) == {"consistency", "confidence"} and losses["consistency"] > 1e-3


def test_the_target_follows_the_student(teachers, source, tmp_path):
    task, accelerator, batch = prepared(settings(teachers["pixel"], source, tmp_path / "run"))
    before = [parameter.detach().clone() for parameter in task.trainable]
    task.train_batch(accelerator, batch, 0)
    for old, now, average in zip(before, task.trainable, task.target.average, strict=True):
        torch.testing.assert_close(average, 0.95 * old + 0.05 * now)
    assert any(not torch.equal(old, now) for old, now in zip(before, task.trainable, strict=True))


def plain_gradients(task, accelerator, batch) -> tuple[dict, dict]:
    """Gradients of student and critic by two plain backward passes through everything."""
    config = task.config
    sar, eo = task.latents(batch)
    noisy_at = lambda image, noise, t: (  # noqa: E731
        task.abar[t].view(-1, 1, 1, 1).sqrt() * image + (1 - task.abar[t]).view(-1, 1, 1, 1).sqrt() * noise
    )
    if config.method == "consistency":
        n = batch["timestep"] * 20 // 1000
        late, early = task.times[n + 1], task.times[n]
        noisy = noisy_at(eo, batch["noise"], late)
        fake, *_ = consistency(task.pipe, sar, noisy, late)
        real, fake = task.critic(sar, noisy, late, [eo, fake], early, task.pipe.prompt_kwargs(2))
        student = torch.nn.functional.softplus(-fake).mean()
        critic = torch.nn.functional.softplus(-real).mean() + torch.nn.functional.softplus(fake).mean()
    else:
        _, clean, _ = consistency(task.pipe, sar, batch["noise"], torch.tensor([999, 999]))
        tau = 20 + batch["timestep_3"] * 381 // 1000
        logits = []
        for image in (eo, clean):
            with task.critic.features(task.teacher) as features:
                task.call(task.teacher, sar, noisy_at(image, batch["noise_3"], tau), tau)
            logits.append(task.critic(features))
        student = -logits[1].mean()
        critic = torch.relu(1 - logits[0]).mean() + torch.relu(1 + logits[1]).mean()
    gradients = []
    for loss, model in ((student, task.model), (critic, task.critic)):
        parameters = dict(model.named_parameters())
        found = torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True)
        gradients.append({k: g for k, g in zip(parameters, found, strict=True) if g is not None and g.abs().max() > 0})
    return tuple(gradients)


@pytest.mark.parametrize("head", ["light", "published"])
@pytest.mark.parametrize("method", OF_TEACHERS)
@pytest.mark.parametrize("space", SPACES)
def test_one_pass_of_the_critic_gives_the_gradients_of_two(method, space, head, teachers, source, tmp_path):
    critic = CriticConfig(1.0, "softplus" if method == "consistency" else "hinge", real="data", head=head)
    time_aware = TimeAwareConfig(regression="data")
    config = settings(teachers[space], source, tmp_path / "run", method=method, critic=critic, time_aware=time_aware)
    task, accelerator, batch = prepared(config)
    with torch.no_grad():
        for parameter in task.critic.parameters():  # a published level starts with a convolution of zeros
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(0)))
    task.critic.eval()  # the power iteration of the spectral norm would go on at every pass
    expected = plain_gradients(task, accelerator, batch)
    for name, model, other, gradients in (
        ("adversarial", task.model, task.critic, expected[0]),
        ("critic", task.critic, task.model, expected[1]),
    ):
        task.model.zero_grad(), task.critic.zero_grad()
        task.losses(accelerator, batch)[name].backward()
        assert gradients and all(parameter.grad is None for parameter in other.parameters())
        own = {key: p.grad for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert own.keys() == gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(own[key], gradient, rtol=1e-3, atol=1e-6, msg=key)
    assert all(parameter.grad is None for parameter in task.teacher.parameters())


# -------------------------------------------------------------------------------------------------- time-aware


@pytest.mark.parametrize("space", SPACES)
def test_the_time_aware_losses_are_their_equations(space, teachers, source, tmp_path):
    task, accelerator, batch = prepared(settings(teachers[space], source, tmp_path / "run", method="time_aware"))
    teacher = CDiffSETPipeline.from_pretrained(teachers[space])
    with torch.no_grad():
        losses = task.losses(accelerator, batch)
        sar, eo = teacher.encode(batch["sar"]), teacher.encode(batch["eo"])
        _, clean, variance = consistency(teacher, sar, batch["noise"], torch.tensor([999, 999]))
        tau = 20 + batch["timestep_2"] * 381 // 1000
        abar = teacher.scheduler.alphas_cumprod[tau].view(-1, 1, 1, 1)
        eps = []
        for image in (clean, batch["result"]):
            noisy = abar.sqrt() * image + (1 - abar).sqrt() * batch["noise_2"]
            output = teacher.unet(torch.cat([sar, noisy], 1), tau, **teacher.prompt_kwargs(2)).sample
            eps.append(abar.sqrt() * output[:, : teacher.eo_channels] + (1 - abar).sqrt() * noisy)
        nll = 0.5 * ((clean - eo) ** 2 / variance + variance.log() + np.log(2 * np.pi))
    expected = {
        "regression": ((clean - batch["result"]) ** 2).mean(),
        "score": ((eps[0] - eps[1]) * clean).mean(),
        "confidence": (variance**0.5 * nll).mean(),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("space", SPACES)
def test_the_cached_results_are_the_teachers(space, teachers, source, tmp_path):
    """Those of the teacher's pipeline, from the SAR image and the noise of the same sample."""
    task, _, batch = prepared(settings(teachers[space], source, tmp_path / "run", method="time_aware"))
    teacher = CDiffSETPipeline.from_pretrained(teachers[space])
    grey = batch["sar"][:, :1] * 0.5 + 0.5
    for i in range(2):
        latents = teacher(grey[i], 2, latents=batch["noise"][i : i + 1], output_type="latent").latents[0]
        torch.testing.assert_close(batch["result"][i], latents, rtol=2e-3, atol=2e-3)  # stored as float16


def test_results_are_computed_once_and_kept_apart(teachers, source, tmp_path):
    config = settings(teachers["pixel"], source, tmp_path / "run", method="time_aware", max_steps=1)
    config.time_aware.num_results = 7
    distill(config)
    results = tmp_path / "results"
    chunks = sorted(results.glob("*.npy"))
    assert len(chunks) == 2
    stored = {chunk: (chunk.read_bytes(), chunk.stat().st_mtime_ns) for chunk in chunks}
    chunks[1].unlink()  # as if the run had been stopped before it
    distill(replace(config, output_dir=str(tmp_path / "again")))
    assert chunks[0].stat().st_mtime_ns == stored[chunks[0]][1]
    assert chunks[1].read_bytes() == stored[chunks[1]][0]
    for content in (b"", b"garbage", stored[chunks[0]][0][:-50]):
        chunks[0].write_bytes(content)
        with pytest.raises(ValueError, match="00000.npy is damaged .*: remove it, and it is computed again"):
            distill(replace(config, output_dir=str(tmp_path / f"damaged{len(content)}")))
    chunks[0].write_bytes(stored[chunks[0]][0])

    other = replace(config, output_dir=str(tmp_path / "other"), teacher=changed_teacher(teachers["pixel"], tmp_path))
    with pytest.raises(ValueError, match=r"results were made otherwise: teacher is \w+, but \w+ in"):
        distill(other)
    with pytest.raises(ValueError, match="steps is 3, but 2 in"):
        distill(replace(config, output_dir=str(tmp_path / "a"), time_aware=replace(config.time_aware, teacher_steps=3)))
    with pytest.raises(ValueError, match="holds other files"):
        distill(replace(config, output_dir=str(tmp_path / "b"), time_aware=replace(config.time_aware, results=source)))
    assert not (tmp_path / "other/metrics.jsonl").exists()


def changed_teacher(teacher: str, folder: Path, **options) -> str:
    """The same teacher with other weights, or with `options` of its scheduler."""
    pipe = CDiffSETPipeline.from_pretrained(teacher)
    if options:
        pipe.scheduler = teacher_scheduler(**options)
        pipe.register_to_config(prediction_type=pipe.scheduler.config.prediction_type)
    else:
        with torch.no_grad():
            pipe.unet.conv_out.bias.add_(0.1)
    pipe.save_pretrained(folder / "changed")
    return str(folder / "changed")


# ---------------------------------------------------------------------------------------------------- students


@pytest.mark.parametrize("method", OF_TEACHERS)
@pytest.mark.parametrize("space", SPACES)
def test_a_student_loads_and_runs_without_arguments(method, space, teachers, source, tmp_path, sar):
    output = tmp_path / "run"
    folder = distill(settings(teachers[space], source, output, **with_critic(method)))
    lines = log_lines(output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    expected = {"consistency": {"consistency"}, "time_aware": {"regression", "score"}}[method]
    assert expected | {"loss", "confidence", "adversarial", "critic"} <= lines[0].keys()
    parts = {"adversarial": 0.5}
    total = sum(parts.get(name, 1.0) * lines[0][name] for name in expected | {"confidence", "adversarial"})
    assert lines[0]["loss"] == pytest.approx(total, rel=1e-5)

    student = CDiffSETPipeline.from_pretrained(folder)
    student.set_progress_bar_config(disable=True)
    seen = []
    result = student(sar, callback_on_step_end=lambda pipe, step, t, tensors: seen.append(int(t)))
    scheduler, times = {
        "consistency": (LCMScheduler, [999, 749, 499, 249]),
        "time_aware": (DDIMScheduler, [999]),
    }[method]
    assert isinstance(student.scheduler, scheduler) and seen == times
    assert result.images[0].size == (16, 16)
    assert result.confidence.shape == (1, 16, 16) and 0 < result.confidence.min() <= result.confidence.max() <= 1


@pytest.mark.parametrize("space", SPACES)
def test_the_sampler_is_the_lcm_loop(space, teachers, source, tmp_path, sar):
    student = CDiffSETPipeline.from_pretrained(distill(settings(teachers[space], source, tmp_path / "run")))
    student.set_progress_bar_config(disable=True)
    found = student(sar, 3, generator=torch.manual_seed(5), output_type="pt")

    generator = torch.manual_seed(5)
    condition = student.encode(student.prepare_sar(sar))
    latents = torch.randn(1, student.eo_channels, *condition.shape[-2:], generator=generator)
    times = [999, 699, 349]  # three of the twenty times of the grid, spread from the last one down
    with torch.no_grad():
        for i, t in enumerate(times):
            f, clean, variance = consistency(student, condition, latents, torch.tensor([t]))
            if i == 0:
                first_variance = variance
            latents = f
            if i < 2:
                abar = student.scheduler.alphas_cumprod[times[i + 1]]
                noise = torch.randn(latents.shape, generator=generator)
                latents = abar.sqrt() * f + (1 - abar).sqrt() * noise
    torch.testing.assert_close(found.latents, latents, rtol=1e-4, atol=1e-4)
    inner = (..., slice(3, -3), slice(3, -3))  # at the borders, the pipeline repeats its inner neighbours
    torch.testing.assert_close(found.variance[inner], first_variance[:, 0][inner], rtol=1e-4, atol=1e-5)


def test_a_lora_turns_the_teacher_into_the_student(teachers, source, tmp_path):
    output = tmp_path / "run"
    folder = distill(settings(teachers["kl"], source, output, lora_rank=2, **with_critic("consistency")))
    student = CDiffSETPipeline.from_pretrained(folder)
    unet = CDiffSETPipeline.from_pretrained(teachers["kl"]).unet
    unet.load_lora_adapter(output / "lora", prefix=None, use_safetensors=True)
    unet.fuse_lora()
    unet.unload_lora()
    before = CDiffSETPipeline.from_pretrained(teachers["kl"]).unet.state_dict()
    for key, value in student.unet.state_dict().items():
        torch.testing.assert_close(unet.state_dict()[key], value, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(before[key], value) for key, value in student.unet.state_dict().items())


def test_a_student_of_a_student(teachers, source, tmp_path):
    """One method's student may be where the other starts."""
    first = distill(settings(teachers["pixel"], source, tmp_path / "first", max_steps=1))
    config = settings(teachers["pixel"], source, tmp_path / "second", method="time_aware", student=str(first))
    config.time_aware.regression = "data"
    student = build_student(config, load_teacher(config))
    start = CDiffSETPipeline.from_pretrained(first).unet.state_dict()
    assert all(torch.equal(start[key], value) for key, value in student.unet.state_dict().items())
    assert isinstance(student.scheduler, DDIMScheduler) and student.config.default_num_inference_steps == 1
    distill(config)


@pytest.mark.parametrize("method", OF_TEACHERS)
def test_nothing_is_learned_from_invalid_pixels(method, teachers, source, tmp_path):
    """With a mask, neither loss depends on what the images hold where it says invalid."""
    config = settings(teachers["pixel"], source, tmp_path / "run", **with_critic(method))
    config.critic.real = "data"
    task, accelerator, batch = prepared(config)
    mask = torch.ones_like(batch["noise"][:, :1])
    mask[:, :, :8] = 0
    gradients = []
    task.student_prediction = lambda *args: (image, torch.ones_like(mask))
    for _ in range(2):
        image = torch.randn(batch["noise"].shape, generator=torch.manual_seed(0)).requires_grad_()
        losses = task.losses(accelerator, batch | {"mask": mask})
        critic = losses.pop("critic")
        (gradient,) = torch.autograd.grad(sum(losses.values()), image)
        gradients.append(gradient)
        assert gradient[:, :, :8].abs().max() == 0 and gradient[:, :, 8:].abs().min() > 0
        assert torch.isfinite(critic)
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------------------------------------------- bad input


def test_teachers_that_cannot_teach(teachers, source, tmp_path):
    student = distill(settings(teachers["pixel"], source, tmp_path / "run", max_steps=1))
    with pytest.raises(ValueError, match="LCMScheduler: expected a teacher of many steps"):
        distill(settings(str(student), source, tmp_path / "other"))
    vae = Path(teachers["kl"]) / "vae"
    with pytest.raises((ValueError, OSError), match="vae"):
        distill(settings(str(vae), source, tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "options, name",
    [
        ({"prediction_type": "sample"}, "prediction_type sample"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "noise schedule"),
    ],
)
def test_students_that_do_not_fit(options, name, teachers, source, tmp_path):
    student = changed_teacher(teachers["pixel"], tmp_path, **options)
    with pytest.raises(ValueError, match=f"student .*{name}"):
        distill(settings(teachers["pixel"], source, tmp_path / "run", student=student))
    with pytest.raises(ValueError, match="student .* has input channels 8, but the teacher 6"):
        distill(settings(teachers["pixel"], source, tmp_path / "run", student=teachers["kl"]))


def test_settings_that_do_not_fit(teachers, source, tmp_path):
    config = settings(teachers["pixel"], source, tmp_path / "run")
    for changes, message in (
        ({"consistency": ConsistencyConfig(grid=3)}, r"default_num_inference_steps is 4, expected 1 to 3"),
        ({"consistency": ConsistencyConfig(grid=1001)}, "consistency.grid is 1001, but the teacher has 1000 times"),
        ({"method": "time_aware", "time_aware": TimeAwareConfig()}, "time_aware.results is not set"),
        ({"time_aware": TimeAwareConfig(score_timesteps=(5, 1))}, "score_timesteps is 5, 1"),
        ({"time_aware": TimeAwareConfig("data", critic_timesteps=(5, 1000)), "method": "time_aware"}, "up to 1000"),
        ({"lora_rank": 2}, "lora_rank"),  # a UNet2DModel takes no adapter
    ):
        with pytest.raises(ValueError, match=message):
            distill(replace(config, **changes))
    assert not (tmp_path / "run").exists()


def test_another_teacher_does_not_go_on_with_a_run(teachers, source, tmp_path):
    config = settings(teachers["pixel"], source, tmp_path / "run")
    distill(config)
    with pytest.raises(ValueError, match="this run was started with teacher"):
        distill(replace(config, teacher=changed_teacher(teachers["pixel"], tmp_path)))


def test_student_and_critic_have_schedules_of_their_own(teachers, source, tmp_path):
    critic = CriticConfig(0.5, optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup_steps=2))
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup_steps=2)
    config = settings(teachers["pixel"], source, tmp_path / "run", critic=critic, optimizer=optimizer)
    task, accelerator, batch = prepared(config)
    task.train_batch(accelerator, batch, 3)
    rates = [each.param_groups[0]["lr"] for each in (task.optimizer, task.critic_optimizer)]
    assert rates == pytest.approx([0.5e-3, 1e-4])


def test_score_and_critic_have_noises_and_times_of_their_own(teachers, source, tmp_path):
    """The same crop comes again with the same first noise; the second and the third are others each time."""
    config = settings(teachers["pixel"], source, tmp_path / "run", **with_critic("time_aware"))
    task, accelerator, _ = prepared(config)
    samples = task.samples(accelerator)
    first, again = samples[2, 2], samples[2, 7]
    for key in ("sar", "eo", "noise", "result"):
        assert torch.equal(first[key], again[key])
    drawn = [sample[key] for sample in (first, again) for key in ("noise", "noise_2", "noise_3")]
    drawn.pop(3)  # the first noise of `again`
    for i, noise in enumerate(drawn):
        for other in drawn[:i]:
            assert (noise * other).mean().abs() < 0.2
    numbers = range(40)
    scores, critics = ([samples[2, number][f"timestep_{n}"] for number in numbers] for n in (2, 3))
    assert len({*scores}) > 30 and abs(np.corrcoef(scores, critics)[0, 1]) < 0.5
    assert default_collate([first, again])["noise_2"].shape == (2, 3, 16, 16)


def test_ranges_of_noise_times(teachers, source, tmp_path):
    """Both ends of a range are drawn, and each range is of its own."""
    time_aware = TimeAwareConfig("data", score_timesteps=(0, 2), critic_timesteps=(7, 9))
    config = settings(teachers["pixel"], source, tmp_path / "run", **with_critic("time_aware"), time_aware=time_aware)
    task, accelerator, batch = prepared(config)
    drawn = torch.arange(1000)
    assert torch.equal(task.time_within(drawn, "score_timesteps").unique(), torch.arange(3))
    assert torch.equal(task.time_within(drawn, "critic_timesteps").unique(), torch.arange(7, 10))
    seen = {"noise": [], "critic": []}
    call = task.call

    def watched(unet, sar, noisy, t):
        seen["noise" if len(unet.up_blocks) else "critic"].extend(t)
        return call(unet, sar, noisy, t)

    task.call = watched
    task.losses(accelerator, batch)
    assert set(map(int, seen["noise"])) <= {0, 1, 2, 999} and set(map(int, seen["critic"])) <= {7, 8, 9}


def test_the_input_is_perturbed_by_a_second_noise(teachers, source, tmp_path):
    """The images that teacher and student see hold the noise plus a tenth of another."""
    plain = settings(teachers["pixel"], source, tmp_path / "run")
    perturbed = replace(plain, consistency=ConsistencyConfig(grid=20, input_perturbation=0.1))
    seen = []
    for config in (plain, perturbed):
        task, accelerator, batch = prepared(config)
        with patch.object(task, "student_prediction", wraps=task.student_prediction) as student:
            task.losses(accelerator, batch)
        seen.append((student.call_args.args[1], batch))
    (before, batch), (after, other) = seen
    assert torch.equal(batch["noise"], other["noise"]) and "noise_2" not in batch
    t = batch["timestep"] * 20 // 1000 * 50 + 49
    added = (1 - task.abar[t]).sqrt().view(-1, 1, 1, 1) * 0.1 * other["noise_2"]
    torch.testing.assert_close(after - before, added, rtol=1e-4, atol=1e-5)


def test_a_run_of_the_one_setting_goes_on_under_the_two(teachers, source, tmp_path):
    both = dict(score_timesteps=(10, 300), critic_timesteps=(10, 300))
    config = settings(teachers["pixel"], source, tmp_path / "run", time_aware=TimeAwareConfig("data", **both))
    stored = tmp_path / "config.yaml"
    save_config(config, stored)
    content = yaml.safe_load(stored.read_text())
    del content["time_aware"]["critic_timesteps"]
    content["time_aware"]["noise_timesteps"] = content["time_aware"].pop("score_timesteps")
    stored.write_text(yaml.safe_dump(content))
    check_same_run(config, stored)
    with pytest.raises(ValueError, match=r"critic_timesteps is \[20, 400\], but .* with \[10, 300\]"):
        check_same_run(replace(config, time_aware=TimeAwareConfig("data", score_timesteps=(10, 300))), stored)


def test_the_setting_that_two_have_replaced_is_named(tmp_path):
    recipe = tmp_path / "old.yaml"
    recipe.write_text(
        "output_dir: run\nteacher: teacher\ndata: {source: data}\ntime_aware: {noise_timesteps: [20, 400]}\n"
    )
    options = ["--time_aware.noise_timesteps", "[20, 400]"]
    for args in (["--config", str(recipe)], ["--config", "sd21_time_aware", *options]):
        with pytest.raises(ValueError, match="give time_aware.score_timesteps and time_aware.critic_timesteps"):
            parse_config(DistillConfig, "", args)


def test_the_teachers_results_of_a_residual_are_residuals(teachers, source, tmp_path):
    """What the student is regressed to is what it predicts: the teacher's image without the input."""
    teacher = CDiffSETPipeline.from_pretrained(teachers["pixel"])
    teacher.register_to_config(residual=True)
    teacher.save_pretrained(tmp_path / "teacher")
    config = settings(str(tmp_path / "teacher"), source, tmp_path / "run", method="time_aware")
    task, _, batch = prepared(config)
    sar, eo = task.latents(batch)
    image = task.teacher_pipe.denoise(sar, 2, latents=batch["noise"])[0]
    torch.testing.assert_close(batch["result"], image - sar, rtol=0, atol=1e-2)
    assert torch.equal(eo, batch["eo"] - sar)


@pytest.mark.parametrize("method", OF_TEACHERS)
def test_a_teacher_by_the_process_of_resshift(method, teachers, source, tmp_path):
    """Fifteen times: TAD-SR's own ranges are settings, and a consistency grid has at most half as many times."""
    teacher = CDiffSETPipeline.from_pretrained(teachers["pixel"])
    betas = {"num_train_timesteps": 15, "trained_betas": resshift_betas(15), "rescale_betas_zero_snr": False}
    scheduler = DDIMScheduler.from_config(dict(teacher.scheduler.config) | betas)
    with_components(teacher, scheduler=scheduler, residual=True).save_pretrained(tmp_path / "teacher")
    config = settings(str(tmp_path / "teacher"), source, tmp_path / "run", **with_critic(method))
    times = replace(config.time_aware, score_timesteps=(0, 2), critic_timesteps=(0, 13), teacher_steps=15)
    config = replace(config, consistency=ConsistencyConfig(grid=5), time_aware=times)
    task, accelerator, batch = prepared(config)
    logs = task.train_batch(accelerator, batch, 0)
    assert all(torch.isfinite(value) for value in logs.values()) and "critic" in logs
    student = task.pipeline(config.max_steps)
    assert student.config.confidence_timestep == 14 and student.config.residual
    image = student(np.zeros((16, 16), np.uint8), config.steps, output_type="np").images
    assert np.isfinite(image).all()
    with pytest.raises(ValueError, match="consistency.grid is 15, but the teacher has 15 times: expected at most half"):
        prepared(replace(config, method="consistency", consistency=ConsistencyConfig(grid=15)))
