"""Time-aware one-step distillation (TAD-SR, He et al.; arXiv 2408.07476), in latent or pixel space."""

import torch
from accelerate import Accelerator
from torch.utils.data import default_collate

from c_diffset.data.batches import TrainingPairs, shuffled_row
from c_diffset.data.teacher_results import ResultSamples, build_results, open_results
from c_diffset.models.critics import TimeAwareCritic, encoder_half
from c_diffset.objectives.denoising import add_noise, clean_and_noise, denoising_loss
from c_diffset.objectives.time_aware import score_distillation_loss
from c_diffset.training.pairs import training_pairs
from c_diffset.training.student import Distill, keep_valid, teacher_fingerprint
from c_diffset.training.task import with_components


class TimeAwareDistill(Distill):
    """One-step distillation: regression, high-frequency score distillation and the time-aware critic."""

    critic_class = TimeAwareCritic

    @property
    def weights(self) -> dict[str, float]:
        """As in the base; and those of the regression and the score."""
        settings = self.config.time_aware
        return super().weights | {"regression": settings.regression_weight, "score": settings.score_weight}

    def samples(self, accelerator: Accelerator) -> TrainingPairs | ResultSamples:
        """Training samples with more noise and, where the student is regressed to it, the teacher's result.

        The second noise and time are for score distillation, the third for the critic.
        """
        more_noise = (2,) * bool(self.config.time_aware.score_weight) + (3,) * (self.critic is not None)
        if not self.config.needs_results:
            samples = super().samples(accelerator)
            samples.more_noise = more_noise
            return samples
        settings = self.config.time_aware
        with accelerator.main_process_first():
            folder = open_results(settings.results, self.results_made_with(accelerator))
        samples = super().samples(accelerator)
        # the student's own sampler: DDIM, which from one noise always makes one result
        teacher = with_components(self.teacher_pipe, scheduler=self.pipe.scheduler)
        teacher.set_progress_bar_config(disable=True)

        def translate(crops: list[int]) -> torch.Tensor:
            rows = [samples[shuffled_row(samples.seed, crop, len(samples)), crop] for crop in crops]
            batch = {name: value.to(accelerator.device) for name, value in default_collate(rows).items()}
            with accelerator.autocast():
                sar = self.latents(batch)[0]
                result = teacher.denoise(sar, self.teacher_steps, latents=batch["noise"])[0]
                return self.pipe.to_residual(result, sar)

        place = (accelerator.process_index, accelerator.num_processes)
        build_results(folder, settings.num_results, translate, self.config.batch_size, *place)
        accelerator.wait_for_everyone()
        return ResultSamples(samples, folder, settings.num_results, more_noise)

    @property
    def teacher_steps(self) -> int:
        """The number of steps that the teacher takes to a cached result."""
        return self.config.time_aware.teacher_steps or self.teacher_pipe.config.default_num_inference_steps

    def results_made_with(self, accelerator: Accelerator) -> dict[str, str | int]:
        """All that the teacher's results depend on."""
        teacher = {"teacher": teacher_fingerprint(self.teacher_pipe), "steps": self.teacher_steps}
        return teacher | self.samples_made_with(accelerator, training_pairs(self.config))

    def losses(self, accelerator: Accelerator, batch: dict) -> dict[str, torch.Tensor]:
        """The losses of the regression, the score distillation, the variance and the critic."""
        sar, eo = self.latents(batch)
        mask, result = batch.get("mask"), batch.get("result", eo)
        last = torch.full_like(batch["timestep"], len(self.abar) - 1)
        clean, variance = self.student_prediction(sar, batch["noise"], last)
        losses = {"regression": denoising_loss(clean, result, mask)}
        losses |= self.confidence_loss(clean, eo, variance, mask)
        image = keep_valid(clean.detach(), eo, mask)
        if self.config.time_aware.score_weight:
            noise, tau = batch["noise_2"], self.time_within(batch["timestep_2"], "score_timesteps")
            with torch.no_grad(), accelerator.autocast():
                noises = [
                    self.teacher_noise(sar, add_noise(other, noise, self.abar[tau]), tau)
                    for other in (image, keep_valid(result, eo, mask))
                ]
            losses["score"] = score_distillation_loss(*noises, clean, mask)
        if self.critic is not None:
            losses |= self.critic_losses(accelerator, sar, eo, clean, batch)
        return losses

    def critic_losses(self, accelerator, sar, eo, clean, batch: dict, weight=None) -> dict[str, torch.Tensor]:
        """The adversarial losses: the critic reads the teacher's features of true and student's images, both noised.

        `weight` (B) weights the images.
        """
        noise, tau = batch["noise_3"], self.time_within(batch["timestep_3"], "critic_timesteps")
        leaf = clean.detach().requires_grad_()
        features = []
        for image in (eo, keep_valid(leaf, eo, batch.get("mask"))):
            with accelerator.autocast(), self.critic.features(self.teacher) as found:
                self.call(encoder_half(self.teacher), sar, add_noise(image, noise, self.abar[tau]), tau)
            features.append(found)
        real, fake = features
        cut = [level.detach().requires_grad_() for level in fake]
        logits = self.wrapped_critic([torch.cat(pair) for pair in zip(real, cut, strict=True)]).chunk(2)

        def gradient_of(loss: torch.Tensor) -> torch.Tensor:
            gradients = torch.autograd.grad(loss, cut[:-1], retain_graph=True)
            return torch.autograd.grad(fake[:-1], leaf, gradients)[0]

        return self.adversarial_losses(accelerator, clean, *logits, gradient_of, weight)

    def time_within(self, timestep: torch.Tensor, name: str) -> torch.Tensor:
        """Times drawn from all times, as times drawn from the range `name` of the settings."""
        low, high = getattr(self.config.time_aware, name)
        return low + timestep * (high - low + 1) // len(self.abar)

    def teacher_noise(self, sar, noisy, timestep) -> torch.Tensor:
        """The noise that the teacher sees in an image."""
        prediction, _ = self.call(self.teacher, sar, noisy, timestep)
        return clean_and_noise(prediction, noisy, self.abar[timestep], self.kind)[1]
