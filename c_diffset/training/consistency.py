"""Consistency distillation with an adversarial term (Bai, Xu; arXiv 2407.06095), in latent or pixel space."""

import torch
from accelerate import Accelerator

from c_diffset.models.critics import ConsistencyCritic
from c_diffset.objectives.consistency import consistency_function, ddim_step, pseudo_huber, solver_timesteps
from c_diffset.objectives.denoising import add_noise, clean_and_noise
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.average import AveragedWeights
from c_diffset.training.checkpoint import Part
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.student import Distill, keep_valid


class ConsistencyDistill(Distill):
    """Consistency distillation along the teacher's DDIM path, with an adversarial term where `critic.weight` is set."""

    critic_class = ConsistencyCritic

    def __init__(self, config: DistillConfig, teacher: CDiffSETPipeline, student: CDiffSETPipeline):
        super().__init__(config, teacher, student)
        self.input_perturbation = config.consistency.input_perturbation
        self.target = AveragedWeights(self.trainable, config.consistency.target_decay, warm_up=False)
        self.times = solver_timesteps(config.consistency.grid, len(teacher.scheduler.alphas_cumprod))

    def prepare(self, accelerator: Accelerator) -> None:
        """As in the base; the target moves to the device."""
        super().prepare(accelerator)
        self.target.to(accelerator.device)
        self.times = self.times.to(accelerator.device)
        self.times_abar = self.abar[self.times]
        self.times_abar[0] = 1.0  # time 0 stands for the clean image

    def parts(self) -> dict[str, Part]:
        """As in the base; and the target."""
        return super().parts() | {"target": self.target}

    def train_batch(self, accelerator: Accelerator, batch: dict, step: int) -> dict[str, torch.Tensor]:
        """As in the base; then the target follows the student."""
        logs = super().train_batch(accelerator, batch, step)
        if accelerator.sync_gradients:
            self.target.update()
        return logs

    def losses(self, accelerator: Accelerator, batch: dict) -> dict[str, torch.Tensor]:
        """The consistency loss, that of the variance, and the adversarial ones."""
        sar, eo = self.latents(batch)
        mask, grid = batch.get("mask"), self.config.consistency.grid
        interval = batch["timestep"] * grid // len(self.abar)
        late, early = self.times[interval + 1], self.times[interval]
        noisy = add_noise(eo, self.noise(batch), self.abar[late])
        with torch.no_grad(), accelerator.autocast():
            earlier = self.teacher_step(sar, noisy, late, self.times_abar[interval])
            target = self.target_prediction(sar, earlier, early, self.times_abar[interval])

        clean, variance = self.student_prediction(sar, noisy, late)
        fake = consistency_function(clean, noisy, late)
        losses = {"consistency": pseudo_huber(fake, target, mask, self.config.consistency.huber_c)}
        losses |= self.confidence_loss(clean, eo, variance, mask)
        if self.critic is not None:
            real = target if self.config.critic.real == "target" else eo
            leaf = fake.detach().requires_grad_()
            prompt = self.pipe.prompt_kwargs(len(sar))
            logits = self.wrapped_critic(sar, noisy, late, [real, keep_valid(leaf, real, mask)], early, prompt)
            losses |= self.adversarial_losses(
                accelerator, fake, *logits, lambda loss: torch.autograd.grad(loss, leaf, retain_graph=True)[0]
            )
        return losses

    def teacher_step(self, sar, noisy, timestep, earlier_abar) -> torch.Tensor:
        """The teacher's DDIM step from `timestep` to `earlier_abar`."""
        prediction, _ = self.call(self.teacher, sar, noisy, timestep)
        clean, noise = clean_and_noise(prediction, noisy, self.abar[timestep], self.kind)
        if self.teacher_pipe.scheduler.config.clip_sample:
            clean = clean.clamp(-1, 1)
        return ddim_step(clean, noise, earlier_abar)

    def target_prediction(self, sar, earlier, timestep, abar) -> torch.Tensor:
        """The target's consistency function: that of the averaged student."""
        with self.target.applied():
            prediction, _ = self.call(self.model, sar, earlier, timestep)
        clean, _ = clean_and_noise(prediction, earlier, abar, self.kind)
        return consistency_function(clean, earlier, timestep)
