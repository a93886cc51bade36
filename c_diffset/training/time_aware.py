"""Time-aware one-step distillation (TAD-SR, He et al.; arXiv 2408.07476), in latent or pixel space."""

import torch
from accelerate import Accelerator
from torch.utils.data import default_collate

from c_diffset.data.batches import TrainingPairs, shuffled_row
from c_diffset.data.latents import fingerprint
from c_diffset.data.teacher_results import ResultSamples, build_results, open_results
from c_diffset.models.critics import TimeAwareCritic, encoder_features, encoder_half
from c_diffset.objectives.denoising import add_noise, clean_and_noise, denoising_loss
from c_diffset.objectives.time_aware import score_distillation_loss
from c_diffset.training.pairs import training_pairs
from c_diffset.training.student import Distill, keep_valid, teacher_fingerprint
from c_diffset.training.task import PRECISION, with_components


class TimeAwareDistill(Distill):
    """One-step distillation: regression, high-frequency score distillation and the time-aware critic."""

    critic_class = TimeAwareCritic

    def samples(self, accelerator: Accelerator) -> TrainingPairs | ResultSamples:
        """Training samples with a second noise and, where the student is regressed to it, the teacher's result."""
        if not self.config.needs_results:
            samples = super().samples(accelerator)
            samples.second_noise = True
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
        return ResultSamples(samples, folder, settings.num_results)

    @property
    def teacher_steps(self) -> int:
        """The number of steps that the teacher takes to a cached result."""
        return self.config.time_aware.teacher_steps or self.teacher_pipe.config.default_num_inference_steps

    def results_made_with(self, accelerator: Accelerator) -> dict[str, str | int]:
        """All that the teacher's results depend on."""
        data, pairs = self.config.data, training_pairs(self.config)
        return {
            "teacher": teacher_fingerprint(self.teacher_pipe),
            "data": fingerprint(self.teacher_pipe, pairs, PRECISION[accelerator.mixed_precision]),
            "steps": self.teacher_steps,
            "crop_size": data.crop_size,
            "augment": data.augment,
            "seed": self.config.seed,
        }

    def losses(self, accelerator: Accelerator, batch: dict) -> dict[str, torch.Tensor]:
        """The losses of the regression, the score distillation, the variance and the critic."""
        sar, eo = self.latents(batch)
        mask, result = batch.get("mask"), batch.get("result", eo)
        last = torch.full_like(batch["timestep"], len(self.abar) - 1)
        clean, variance = self.student_prediction(sar, batch["noise"], last)
        losses = {"regression": denoising_loss(clean, result, mask)}
        losses |= self.confidence_loss(clean, eo, variance, mask)
        if not self.config.time_aware.score_weight and self.critic is None:
            return losses

        # the teacher's one pass over the student's image serves the score and the critic
        low, high = self.config.time_aware.noise_timesteps
        tau = low + batch["timestep_2"] * (high - low + 1) // len(self.abar)
        leaf = clean.detach().requires_grad_(self.critic is not None)
        image = add_noise(keep_valid(leaf, eo, mask), batch["noise_2"], self.abar[tau])
        with accelerator.autocast(), encoder_features(self.teacher) as fake:
            student_noise = self.teacher_noise(sar, image, tau)
        if self.config.time_aware.score_weight:
            with torch.no_grad(), accelerator.autocast():
                result = add_noise(keep_valid(result, eo, mask), batch["noise_2"], self.abar[tau])
                teacher_noise = self.teacher_noise(sar, result, tau)
            losses["score"] = score_distillation_loss(student_noise, teacher_noise, clean, mask)
        if self.critic is not None:
            with torch.no_grad(), accelerator.autocast(), encoder_features(self.teacher) as real:
                image = add_noise(eo, batch["noise_2"], self.abar[tau])
                self.call(encoder_half(self.teacher), sar, image, tau)
            cut = [features.detach().requires_grad_() for features in fake]
            logits = self.wrapped_critic([torch.cat(pair) for pair in zip(real, cut, strict=True)]).chunk(2)

            def gradient_of(loss: torch.Tensor) -> torch.Tensor:
                gradients = torch.autograd.grad(loss, cut[:-1], retain_graph=True)
                return torch.autograd.grad(fake[:-1], leaf, gradients)[0]

            losses |= self.adversarial_losses(accelerator, clean, *logits, gradient_of)
        return losses

    def teacher_noise(self, sar, noisy, timestep) -> torch.Tensor:
        """The noise that the teacher sees in an image."""
        prediction, _ = self.call(self.teacher, sar, noisy, timestep)
        return clean_and_noise(prediction, noisy, self.abar[timestep], self.kind)[1]
