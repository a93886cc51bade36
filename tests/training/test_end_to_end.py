"""End-to-end fine-tuning with real components at tiny size: its losses, its models, its errors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from c_diffset.models.shape import SmallUNetConfig
from c_diffset.objectives.end_to_end import draw_filters, energy_score, pixel_distance, texture_score
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, raw_to_variance
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, ModelConfig, OptimizerConfig
from c_diffset.training.distill import METHODS, build_student, distill, load_teacher
from c_diffset.training.distill_config import CriticConfig, DistillConfig, EndToEndConfig, TimeAwareConfig
from c_diffset.training.end_to_end import check_gradient
from c_diffset.training.finetune import build_pipeline
from c_diffset.training.loop import make_accelerator
from tests.conftest import tiny_components, tiny_scheduler
from tests.helpers import log_lines

SAR = {"units": "display", "range": [0.0, 1.0], "channels": [0, 0, 0]}
SPACES = ("kl", "pixel")
PATCH = CriticConfig(0.5, "hinge", real="data", head="patch")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 6, size=64)
    return str(folder)


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> dict[str, str]:
    """Models to start from: Stable Diffusion's components, and pixel space."""
    folders = {}
    for space in SPACES:
        folder = tmp_path_factory.mktemp(space)
        scheduler = tiny_scheduler(set_alpha_to_one=True, rescale_betas_zero_snr=True)
        pipe = CDiffSETPipeline(**tiny_components(space, folder / "text") | {"scheduler": scheduler}, sar_transform=SAR)
        pipe.save_pretrained(folder / "start")
        folders[space] = str(folder / "start")
    return folders


def settings(start: str | None, source: str, output: Path, **changes) -> DistillConfig:
    """Four updates, no validation."""
    config = DistillConfig(
        output_dir=str(output),
        teacher=start,
        **{
            "method": "end_to_end",
            "data": DataConfig(source=source, crop_size=32, validation_split=None),
            "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
            "max_steps": 4,
            "batch_size": 2,
            "ema_decay": 0.9,
            "log_every": 1,
        }
        | changes,
    )
    return config


def prepared(config: DistillConfig):
    """A task ready for its first batch, its accelerator, and that batch."""
    accelerator = make_accelerator(config)
    start = load_teacher(config)
    task = METHODS[config.method](config, start, build_student(config, start))
    task.prepare(accelerator)
    return task, accelerator, next(iter(task.loader(accelerator, 0)))


def one_step(pipe: CDiffSETPipeline, batch: dict, strength: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and variance at pixels of one step of v prediction from pure noise, where v is minus the clean image."""
    sar = pipe.encode(batch["sar"])
    noise = strength.view(-1, 1, 1, 1) * batch["noise"]
    times = torch.full((len(sar),), 999)
    output = pipe.unet(torch.cat([sar, noise], 1), times, **pipe.prompt_kwargs(len(sar))).sample
    image = -output[:, : pipe.eo_channels]
    if pipe.vae is not None:
        image = pipe.vae.decode(image / pipe.vae.config.scaling_factor).sample
    return image, pipe.to_pixels(raw_to_variance(output[:, pipe.eo_channels]))[:, None]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("noise", ["zero", "random", "graded"])
def test_the_losses_are_their_equations(space, noise, starts, source, tmp_path):
    """The first update's losses, written out; the variance is that of the image in units of 32 levels."""
    chosen = EndToEndConfig(pixel_loss="l1", starting_noise=noise)
    task, accelerator, batch = prepared(settings(starts[space], source, tmp_path / "run", end_to_end=chosen))
    share = batch["timestep"] / 999
    strength = {"zero": 0 * share, "random": 0 * share + 1, "graded": (2 * share - 0.5).clamp(0, 1)}[noise]
    with torch.no_grad():
        losses = task.losses(accelerator, batch)
        image, variance = one_step(task.pipe, batch, strength)
    error = 127.5 * (image - batch["eo"]) / 32
    nll = 0.5 * (error**2 / variance + variance.log() + np.log(2 * np.pi))
    assert losses.keys() == {"pixel", "confidence"}
    torch.testing.assert_close(losses["pixel"], error.abs().mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["confidence"], (variance**0.5 * nll).mean(), rtol=1e-4, atol=1e-5)


def test_gradients_go_through_the_frozen_decoder(starts, source, tmp_path):
    task, accelerator, batch = prepared(settings(starts["kl"], source, tmp_path / "run"))
    task.losses(accelerator, batch)["pixel"].backward()
    assert all(parameter.grad is None for parameter in task.pipe.vae.parameters())
    assert task.model.conv_in.weight.grad.abs().max() > 0
    assert task.model.conv_out.weight.grad[-1].abs().max() == 0  # the variance learns from its own loss alone
    task.model.zero_grad()
    task.losses(accelerator, batch)["confidence"].backward()
    assert task.model.conv_out.weight.grad[-1].abs().max() > 0
    assert task.model.conv_out.weight.grad[:-1].abs().max() == 0


@pytest.mark.parametrize("head", ["patch", "light"])
@pytest.mark.parametrize("space", SPACES)
def test_a_model_trains_loads_and_takes_a_realism(space, head, starts, source, tmp_path, sar):
    critic = CriticConfig(0.5, "hinge", real="data", head=head)
    chosen = EndToEndConfig(diversity=1.0, texture_weight=1.0, default_realism=0.25)
    output = tmp_path / "run"
    folder = distill(settings(starts[space], source, output, critic=critic, end_to_end=chosen))
    first = log_lines(output)[0]
    assert {"pixel", "texture", "confidence", "adversarial", "critic"} <= first.keys()
    weights = {"adversarial": 0.5}
    total = sum(weights.get(k, 1.0) * first[k] for k in ("pixel", "texture", "confidence", "adversarial"))
    assert first["loss"] == pytest.approx(total, rel=1e-5)

    pipe = CDiffSETPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.realism == {"range": [0.0, 1.0], "default": 0.25}
    drawn = {
        (realism, seed): pipe(sar, realism=realism, generator=torch.manual_seed(seed), output_type="pt")
        for realism in (0, 0.25, 1, None)
        for seed in (0, 1)
    }
    assert torch.equal(drawn[0, 0].images, drawn[0, 1].images)  # the best estimate has no seed
    assert not torch.equal(drawn[1, 0].images, drawn[1, 1].images)
    assert torch.equal(drawn[None, 0].images, drawn[0.25, 0].images)
    assert not torch.equal(drawn[0, 0].confidence, drawn[1, 0].confidence)


def test_what_is_trained_on_otherwise_has_no_realism(starts, source, tmp_path):
    first = distill(settings(starts["pixel"], source, tmp_path / "run", max_steps=1))
    config = settings(
        str(first), source, tmp_path / "other", method="time_aware", max_steps=1, time_aware=TimeAwareConfig("data")
    )
    student = build_student(config, load_teacher(config))
    for pipe in (student, build_pipeline(ModelConfig(base=str(first)))):
        assert pipe.config.realism is None and pipe.config.variance_of == "latents"


def test_a_model_from_scratch_learns_the_best_estimate(source, tmp_path):
    """From no teacher at all, in pixel space: the distance falls, and the variance comes to the error."""
    model = ModelConfig(unet=SmallUNetConfig([8, 16]), prediction_type="v_prediction", zero_terminal_snr=True)
    chosen = EndToEndConfig(pixel_loss="l2", starting_noise="zero")
    config = settings(None, source, tmp_path / "run", model=model, end_to_end=chosen)
    config.batch_size, config.max_steps = 4, 60
    config.optimizer.learning_rate = 5e-3
    pipe = CDiffSETPipeline.from_pretrained(distill(config))
    rows = log_lines(tmp_path / "run")
    assert np.mean([row["pixel"] for row in rows[-10:]]) < 0.5 * np.mean([row["pixel"] for row in rows[:5]])
    error = np.mean([row["pixel"] for row in rows[-20:]])
    _, _, batch = prepared(replace(config, output_dir=str(tmp_path / "other")))
    assert pipe.trained_size == 32 and pipe.config.realism["range"] == [0.0, 0.0]
    found = float(pipe((batch["sar"][:, :1] + 1) / 2, output_type="pt").variance.mean())
    assert 0.5 < found / error < 2


def test_the_energy_score_is_least_for_the_true_distribution():
    """Of Gaussians around 0, against y from N(0, 1): without diversity the narrowest wins, with it the true one."""
    generator = torch.manual_seed(0)
    y, a, b = torch.randn(3, 200_000, 1, 1, 1, generator=generator)
    scores = {}
    for diversity in (0.0, 1.0):
        each = torch.full((len(y),), diversity)
        halved = {s: energy_score(s * a, y, s * b, each / 2, "l1").item() for s in (0.1, 0.5, 1.0, 1.5, 2.0)}
        scores[diversity] = min(halved, key=halved.__getitem__)
    assert scores == {0.0: 0.1, 1.0: 1.0}


def test_the_gradient_of_the_score_is_that_of_both_samples():
    """One pass through one of the two samples, at full diversity, stands for the half of passes through both."""
    y, a, b = torch.randn(3, 50_000, 1, 1, 1, generator=torch.manual_seed(0))
    spread = torch.tensor(0.7, requires_grad=True)
    ones = torch.ones(len(y))
    (one,) = torch.autograd.grad(energy_score(spread * a, y, spread * b, ones, "l1"), spread)
    both = (spread * a - y).abs().mean() - 0.5 * (spread * a - spread * b).abs().mean()
    (two,) = torch.autograd.grad(both, spread)
    assert abs(one - two) < 0.01 and two < -0.05


def test_filters_see_texture_and_no_level():
    bank = [draw_filters(8, 3, 5, torch.manual_seed(0)) for _ in range(3)]
    image = torch.rand(2, 3, 16, 16)
    none = torch.zeros(2)
    same = texture_score(image + 0.3, image, None, none, bank)
    other = texture_score(image.flip(-1), image, None, none, bank)
    assert same < 1e-5 < 0.05 < other
    assert texture_score(image, image, None, none, bank) == 0
    with pytest.raises(ValueError, match="pixel_loss 'l3'"):
        pixel_distance(image, image, "l3")


def test_what_is_invalid_teaches_nothing(starts, source, tmp_path):
    chosen = EndToEndConfig(diversity=1.0, texture_weight=1.0)
    task, accelerator, batch = prepared(
        settings(starts["pixel"], source, tmp_path / "run", critic=PATCH, end_to_end=chosen)
    )
    mask = torch.ones_like(batch["noise"][:, :1])
    mask[:, :, :8] = 0
    image = torch.randn(batch["noise"].shape, generator=torch.manual_seed(0)).requires_grad_()
    task.student_prediction = lambda *args: (image, torch.ones_like(mask))
    losses = task.losses(accelerator, batch | {"mask": mask})
    critic = losses.pop("critic")
    (gradient,) = torch.autograd.grad(sum(losses.values()), image)
    assert gradient[:, :, :8].abs().max() == 0 < gradient[:, :, 8:].abs().max() and torch.isfinite(critic)


def test_the_critic_sees_samples_alone(starts, source, tmp_path):
    """Where all images are best estimates, the critic has nothing to judge."""
    chosen = EndToEndConfig(starting_noise="zero")
    task, accelerator, batch = prepared(
        settings(starts["pixel"], source, tmp_path / "run", critic=PATCH, end_to_end=chosen)
    )
    losses = task.losses(accelerator, batch)
    assert losses["critic"] == 0 and losses["adversarial"] == 0


def test_an_autoencoder_without_gradients_is_refused(starts):
    pipe = CDiffSETPipeline.from_pretrained(starts["kl"])
    check_gradient(pipe)
    pipe.vae.decoder.forward = torch.no_grad()(pipe.vae.decoder.forward)  # as engines compiled for inference are
    with pytest.raises(ValueError, match="no gradient comes through the decoder of this AutoencoderKL"):
        check_gradient(pipe)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"end_to_end": EndToEndConfig(pixel_weight=0)}, "are all 0, so nothing would be learnt"),
        ({"critic": CriticConfig(1.0, real="target", head="patch")}, "critic.real is target"),
        ({"default_num_inference_steps": 4}, "default_num_inference_steps is 4"),
        ({"data": DataConfig(source="x", latent_cache="y")}, "data.latent_cache is set"),
        ({"end_to_end": EndToEndConfig(starting_noise="zero", default_realism=0.5)}, "default_realism is set"),
        ({"teacher": None}, "either `teacher` or `model`"),
        ({"model": ModelConfig(base="b")}, "either `teacher` or `model`"),
        ({"method": "consistency", "teacher": None}, "needs a teacher"),
        ({"method": "consistency", "critic": PATCH}, "critic.head is patch"),
        ({"critic": PATCH, "data": DataConfig(source="x", crop_size=16)}, "data.crop_size of 32 at least"),
    ],
)
def test_settings_that_teach_nothing(changes, message, source, tmp_path):
    with pytest.raises(ValueError, match=message):
        replace(settings("teacher", source, tmp_path / "run"), **changes)


def test_a_critic_of_features_needs_a_trained_unet(source, tmp_path):
    model = ModelConfig(unet=SmallUNetConfig([8, 16]))
    with pytest.raises(ValueError, match="critic.head is light, which reads a trained UNet"):
        settings(None, source, tmp_path / "run", model=model, critic=CriticConfig(1.0, real="data"))
