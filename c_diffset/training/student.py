"""What both methods of distillation share: a frozen teacher, a student that keeps its variance, perhaps a critic."""

from hashlib import sha256

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from c_diffset.loading import weights_sha256
from c_diffset.objectives.adversarial import critic_loss, student_loss
from c_diffset.objectives.denoising import append_dims, beta_nll, clean_and_noise
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, clean_variance, raw_to_variance
from c_diffset.training.checkpoint import Part
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.task import PairsTask, make_optimizer

CONFIDENCE_BETA = 0.5  # the beta of the beta-NLL that Seitzer et al. recommend


def teacher_fingerprint(pipe: CDiffSETPipeline) -> str:
    """A hash of the UNet's weights, the noise schedule and what is predicted."""
    digest = sha256(f"{pipe.config.prediction_type} {weights_sha256(pipe.unet)}".encode())
    digest.update(pipe.scheduler.alphas_cumprod.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class _SameTeacher:
    """The part of every checkpoint that names the teacher, so that a run cannot go on under another one."""

    def __init__(self, teacher: CDiffSETPipeline):
        self.fingerprint = teacher_fingerprint(teacher)

    def state_dict(self) -> dict:
        return {"teacher": self.fingerprint}

    def load_state_dict(self, state: dict) -> None:
        if state["teacher"] != self.fingerprint:
            raise ValueError(
                f"this run was started with teacher {state['teacher']}, but the one given is {self.fingerprint}: "
                "restore it, or choose another output_dir"
            )


class Distill(PairsTask):
    """What both methods share: a frozen teacher, a student with its variance, perhaps a critic."""

    critic_class: type[nn.Module]

    def __init__(self, config: DistillConfig, teacher: CDiffSETPipeline, student: CDiffSETPipeline):
        super().__init__(config, student, config.lora_rank)
        self.teacher_pipe, self.kind = teacher, teacher.config.prediction_type
        self.variance_from = 0 if config.confidence_weight else config.max_steps  # else it is not of this student
        self.same_teacher = _SameTeacher(teacher)
        self.teacher = teacher.unet.eval().requires_grad_(False)
        if config.channels_last:
            self.teacher.to(memory_format=torch.channels_last)
        self.critic = None
        if config.critic.weight:
            self.critic = self.make_critic()
            self.critic_optimizer = make_optimizer(self.critic.parameters(), config.critic.optimizer)

    def prepare(self, accelerator: Accelerator) -> None:
        """As in `PairsTask`, and the critic with its optimiser. The frozen teacher only moves to the device."""
        super().prepare(accelerator)
        self.teacher_pipe.to(accelerator.device)
        if self.critic is not None:
            self.wrapped_critic, self.critic_optimizer = accelerator.prepare(self.critic, self.critic_optimizer)

    def parts(self) -> dict[str, Part]:
        """As in `PairsTask`, and the critic with its optimiser, and the fingerprint of the teacher."""
        critic = {} if self.critic is None else {"critic": self.critic, "critic_optimizer": self.critic_optimizer}
        return super().parts() | critic | {"teacher": self.same_teacher}

    def make_critic(self) -> nn.Module:
        """The critic, untrained."""
        return self.critic_class(self.teacher, self.config.critic.head)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the losses, by name; 1 for others."""
        return {"confidence": self.config.confidence_weight, "adversarial": self.config.critic.weight}

    def train_batch(self, accelerator: Accelerator, batch: dict, step: int) -> dict[str, Tensor]:
        """Forward, backward and update of the student and of the critic; returns the losses."""
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
        models = [self.wrapped] if self.critic is None else [self.wrapped, self.wrapped_critic]
        with accelerator.accumulate(*models):
            losses = self.losses(accelerator, batch)
            critic = losses.pop("critic", None)
            total = sum(self.weights.get(name, 1.0) * value for name, value in losses.items())
            logs = {"loss": total.detach()} | {name: value.detach() for name, value in losses.items()}
            accelerator.backward(total)
            logs |= self.update(accelerator, self.wrapped, self.optimizer, self.config.optimizer, step)
            if critic is not None:
                logs["critic"] = critic.detach()
                accelerator.backward(critic)
                config = self.config.critic.optimizer
                found = self.update(accelerator, self.wrapped_critic, self.critic_optimizer, config, step)
                logs |= {f"critic_{name}": value for name, value in found.items()}
        return logs

    def losses(self, accelerator: Accelerator, batch: dict) -> dict[str, Tensor]:
        """The student's losses by name and, where there is a critic, its own as "critic"."""
        raise NotImplementedError

    def student_prediction(self, sar, noisy, timestep) -> tuple[Tensor, Tensor]:
        """The student's clean image B x C x h x w, and the variance B x 1 x h x w that it expects of it."""
        abar = self.abar[timestep]
        prediction, raw = self.call(self.wrapped, sar, noisy, timestep)
        clean, _ = clean_and_noise(prediction, noisy, abar, self.kind)
        variance = raw_to_variance(raw)
        if self.pipe.config.variance_of == "image":
            return clean, variance
        return clean, clean_variance(variance, append_dims(abar, raw), self.kind)

    def confidence_loss(self, clean, eo, variance, mask) -> dict[str, Tensor]:
        """The beta-NLL of the student's own error, which moves its variance and not its image."""
        if not self.config.confidence_weight:
            return {}
        return {"confidence": beta_nll(clean.detach(), eo, variance, CONFIDENCE_BETA, mask)}

    def adversarial_losses(
        self, accelerator, image, real_logits, fake_logits, gradient_of, weight=None
    ) -> dict[str, Tensor]:
        """The losses of student and critic from one pass of the critic, over images that are cut off from the student.

        `gradient_of` maps the student's adversarial loss to its gradient with respect to the cut-off `image`. The
        gradient goes into the student's loss as a constant, so that neither loss reaches the other's weights. `weight`
        (B) weights the images.
        """
        kind = self.config.critic.loss
        value = student_loss(fake_logits, kind, weight)
        scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()  # float16 would underflow
        product = (gradient_of(value * scale) / scale * image).sum()
        return {
            "adversarial": value.detach() + product - product.detach(),
            "critic": critic_loss(real_logits, fake_logits, kind, weight),
        }


def keep_valid(image: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
    """`image` where `mask` (B x 1 x h x w, 1 = valid) allows, and `other` elsewhere, so that there they are alike."""
    return image if mask is None else torch.where(mask > 0, image, other)
