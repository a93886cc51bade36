"""Distillation: a fine-tuned teacher becomes a student of few steps, or one.

Consistency distillation with an adversarial term (Bai, Xu; arXiv 2407.06095) and time-aware one-step distillation
(TAD-SR, He et al.; arXiv 2408.07476), in latent or pixel space. The student keeps a variance, trained on its own error.
"""

import copy
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, LCMScheduler
from torch import nn
from torch.utils.data import default_collate

from c_diffset.data.batches import TrainingPairs, shuffled_row
from c_diffset.data.latents import fingerprint
from c_diffset.data.pairs import load_pairs
from c_diffset.data.teacher_results import (
    ResultSamples,
    build_results,
    open_results,
    sample_latents,
    weights_fingerprint,
)
from c_diffset.models.critics import ConsistencyCritic, TimeAwareCritic, encoder_features, encoder_half
from c_diffset.models.unet import add_variance_channel
from c_diffset.objectives.adversarial import critic_loss, student_loss
from c_diffset.objectives.consistency import consistency_function, ddim_step, pseudo_huber, solver_timesteps
from c_diffset.objectives.denoising import add_noise, append_dims, beta_nll, clean_and_noise, denoising_loss
from c_diffset.objectives.time_aware import score_distillation_loss
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, clean_variance, raw_to_variance
from c_diffset.training.config import DistillConfig
from c_diffset.training.loop import AveragedWeights, make_accelerator, make_optimizer, train, update
from c_diffset.training.task import PRECISION, PairsTask, with_components

CONFIDENCE_BETA = 0.5  # of the beta-NLL, as Seitzer et al. recommend


def load_teacher(config: DistillConfig) -> CDiffSETPipeline:
    """The teacher, a many-step pipeline of this project.

    Raises:
        ValueError: it is another pipeline, or a few-step student itself.
    """
    teacher = _load(config.teacher, config.revision, "teacher")
    if not isinstance(teacher.scheduler, DDIMScheduler | DDPMScheduler):
        raise ValueError(
            f"teacher {config.teacher} has {type(teacher.scheduler).__name__}: expected a teacher of many steps, with "
            "DDIMScheduler or DDPMScheduler"
        )
    teacher.check_inputs(1, "pt", [])
    return teacher


def _load(source: str, revision: str | None, role: str) -> CDiffSETPipeline:
    name = DiffusionPipeline.load_config(source, revision=revision).get("_class_name")
    if name != CDiffSETPipeline.__name__:
        raise ValueError(f"{role} {source} is a {name}: expected a CDiffSETPipeline, as fine-tuning saves it")
    return CDiffSETPipeline.from_pretrained(source, revision=revision, text_encoder=None, tokenizer=None)


def build_student(config: DistillConfig, teacher: CDiffSETPipeline) -> CDiffSETPipeline:
    """The pipeline that is trained: the teacher's weights or those of `config.student`, and the method's sampler.

    Raises:
        ValueError: `config.student` does not fit the teacher.
    """
    check_times(config, len(teacher.scheduler.alphas_cumprod))
    start = teacher if config.student is None else _load(config.student, None, "student")
    if start is not teacher:
        check_student(start, teacher, config)
    unet = copy.deepcopy(start.unet)
    if not start.predicts_variance:
        add_variance_channel(unet)
    # without its list of defaults, which `from_config` would replace by those of the other class: another schedule
    config_of_teacher = {key: value for key, value in teacher.scheduler.config.items() if key != "_use_default_values"}
    options = config_of_teacher | dict(timestep_spacing="trailing", set_alpha_to_one=True)
    if config.method == "consistency":
        options["original_inference_steps"] = config.consistency.grid
        scheduler = LCMScheduler.from_config(options)
    else:
        scheduler = DDIMScheduler.from_config(options)
    return with_components(
        teacher,
        unet=unet,
        scheduler=scheduler,
        default_num_inference_steps=config.steps,
        # at pure noise, the one time at which no part of the true image has leaked into what the student sees
        confidence_timestep=scheduler.config.num_train_timesteps - 1,
    )


def check_times(config: DistillConfig, num_train_timesteps: int) -> None:
    """Refuse times that the teacher does not have."""
    grid, highest = config.consistency.grid, max(config.time_aware.noise_timesteps)
    if config.method == "consistency" and grid > num_train_timesteps:
        raise ValueError(f"consistency.grid is {grid}, but the teacher has {num_train_timesteps} times")
    if config.method == "time_aware" and highest >= num_train_timesteps:
        raise ValueError(
            f"time_aware.noise_timesteps goes up to {highest}, but the teacher's times to {num_train_timesteps - 1}"
        )


def check_student(student: CDiffSETPipeline, teacher: CDiffSETPipeline, config: DistillConfig) -> None:
    """Refuse a student that sees, predicts or noises anything else than the teacher."""
    both = {
        "input channels": [pipe.unet.config.in_channels for pipe in (student, teacher)],
        "image channels": [pipe.eo_channels for pipe in (student, teacher)],
        "vae_scale_factor": [pipe.vae_scale_factor for pipe in (student, teacher)],
        "prediction_type": [pipe.config.prediction_type for pipe in (student, teacher)],
        "sar_transform": [pipe.config.sar_transform for pipe in (student, teacher)],
    }
    for name, (found, expected) in both.items():
        if found != expected:
            raise ValueError(f"student {config.student} has {name} {found}, but the teacher {expected}")
    schedules = [pipe.scheduler.alphas_cumprod for pipe in (student, teacher)]
    if schedules[0].shape != schedules[1].shape or not torch.allclose(*schedules):
        raise ValueError(f"student {config.student} has another noise schedule than the teacher")


class _SameTeacher:
    """Saved with every checkpoint, so that a run cannot go on under another teacher."""

    def __init__(self, teacher: CDiffSETPipeline):
        self.fingerprint = weights_fingerprint(teacher)

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
        self.teacher = teacher.unet.eval().requires_grad_(False)
        if config.channels_last:
            self.teacher.to(memory_format=torch.channels_last)
        self.critic = None
        if config.critic.weight:
            self.critic = self.critic_class(self.teacher)
            self.critic_optimizer = make_optimizer(self.critic.parameters(), config.critic.optimizer)

    def prepare(self, accelerator: Accelerator) -> None:
        """Wrap student, critic and their optimisers; the frozen teacher only moves to the device."""
        super().prepare(accelerator)
        self.teacher_pipe.to(accelerator.device)
        if self.critic is not None:
            self.critic, self.critic_optimizer = accelerator.prepare(self.critic, self.critic_optimizer)
        accelerator.register_for_checkpointing(_SameTeacher(self.teacher_pipe))

    def train_batch(self, accelerator: Accelerator, batch: dict, step: int) -> dict[str, torch.Tensor]:
        """Forward, backward and update of the student and of the critic; returns the losses."""
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
        weights = {
            "confidence": self.config.confidence_weight,
            "adversarial": self.config.critic.weight,
            "score": self.config.time_aware.score_weight,
        }
        models = [self.unet] if self.critic is None else [self.unet, self.critic]
        with accelerator.accumulate(*models):
            losses = self.losses(accelerator, batch)
            critic = losses.pop("critic", None)
            total = sum(weights.get(name, 1.0) * value for name, value in losses.items())
            logs = {"loss": total.detach()} | {name: value.detach() for name, value in losses.items()}
            accelerator.backward(total)
            settings = (self.config.optimizer, step, self.config.max_steps)
            logs |= update(accelerator, self.unet, self.optimizer, *settings)
            if critic is not None:
                logs["critic"] = critic.detach()
                accelerator.backward(critic)
                settings = (self.config.critic.optimizer, step, self.config.max_steps)
                update(accelerator, self.critic, self.critic_optimizer, *settings)
        return logs

    def losses(self, accelerator: Accelerator, batch: dict) -> dict[str, torch.Tensor]:
        """The student's losses by name and, where there is a critic, its own as "critic"."""
        raise NotImplementedError

    def student_prediction(self, sar, noisy, timestep) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's clean image B x C x h x w, and the variance B x 1 x h x w that it expects of it."""
        abar = self.abar[timestep]
        prediction, raw = self.call(self.unet, sar, noisy, timestep)
        clean, _ = clean_and_noise(prediction, noisy, abar, self.kind)
        return clean, clean_variance(raw_to_variance(raw), append_dims(abar, raw), self.kind)

    def confidence_loss(self, clean, eo, variance, mask) -> dict[str, torch.Tensor]:
        """The beta-NLL of the student's own error, which moves its variance and not its image."""
        if not self.config.confidence_weight:
            return {}
        return {"confidence": beta_nll(clean.detach(), eo, variance, CONFIDENCE_BETA, mask)}

    def adversarial_losses(self, accelerator, image, real_logits, fake_logits, gradient_of) -> dict[str, torch.Tensor]:
        """The losses of student and critic from one pass of the critic, over images that are cut off from the student.

        `gradient_of` maps the student's adversarial loss to its gradient with respect to the cut-off `image`. The
        gradient goes into the student's loss as a constant, so that neither loss reaches the other's weights.
        """
        kind = self.config.critic.loss
        value = student_loss(fake_logits, kind)
        scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()  # float16 would underflow
        product = (gradient_of(value * scale) / scale * image).sum()
        return {
            "adversarial": value.detach() + product - product.detach(),
            "critic": critic_loss(real_logits, fake_logits, kind),
        }


class ConsistencyDistill(Distill):
    """Consistency distillation along the teacher's DDIM path, with an adversarial term where `critic.weight` is set."""

    critic_class = ConsistencyCritic

    def __init__(self, config: DistillConfig, teacher: CDiffSETPipeline, student: CDiffSETPipeline):
        super().__init__(config, teacher, student)
        self.target = AveragedWeights(self.trainable, config.consistency.target_decay, warm_up=False)
        self.times = solver_timesteps(config.consistency.grid, len(teacher.scheduler.alphas_cumprod))

    def prepare(self, accelerator: Accelerator) -> None:
        """As in the base; the target moves to the device, and into the checkpoints."""
        super().prepare(accelerator)
        self.target.to(accelerator.device)
        self.times = self.times.to(accelerator.device)
        self.times_abar = self.abar[self.times]
        self.times_abar[0] = 1.0  # time 0 stands for the clean image
        accelerator.register_for_checkpointing(self.target)

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
        noisy = add_noise(eo, batch["noise"], self.abar[late])
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
            logits = self.critic(sar, noisy, late, [real, keep_valid(leaf, real, mask)], early, prompt)
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

        def translate(crops: list[int]) -> torch.Tensor:
            rows = [samples[shuffled_row(samples.seed, crop, len(samples)), crop] for crop in crops]
            batch = {name: value.to(accelerator.device) for name, value in default_collate(rows).items()}
            with accelerator.autocast():
                return sample_latents(teacher, self.latents(batch)[0], batch["noise"], self.teacher_steps)

        place = (accelerator.process_index, accelerator.num_processes)
        build_results(folder, settings.num_results, translate, self.config.batch_size, *place)
        accelerator.wait_for_everyone()
        return ResultSamples(samples, folder, settings.num_results)

    @property
    def teacher_steps(self) -> int:
        """The teacher's steps to a cached result."""
        return self.config.time_aware.teacher_steps or self.teacher_pipe.config.default_num_inference_steps

    def results_made_with(self, accelerator: Accelerator) -> dict[str, str | int]:
        """All that the teacher's results depend on."""
        data = self.config.data
        pairs = load_pairs(data.source, split=data.split)
        return {
            "teacher": weights_fingerprint(self.teacher_pipe),
            "data": fingerprint(self.teacher_pipe, pairs, PRECISION[accelerator.mixed_precision]),
            "steps": self.teacher_steps,
            "crop_size": data.crop_size,
            "augment": data.augment,
            "seed": self.config.seed,
        }

    def losses(self, accelerator: Accelerator, batch: dict) -> dict[str, torch.Tensor]:
        """The regression, score distillation, that of the variance, and the adversarial ones."""
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
            logits = self.critic([torch.cat(pair) for pair in zip(real, cut, strict=True)]).chunk(2)

            def gradient_of(loss: torch.Tensor) -> torch.Tensor:
                gradients = torch.autograd.grad(loss, cut[:-1], retain_graph=True)
                return torch.autograd.grad(fake[:-1], leaf, gradients)[0]

            losses |= self.adversarial_losses(accelerator, clean, *logits, gradient_of)
        return losses

    def teacher_noise(self, sar, noisy, timestep) -> torch.Tensor:
        """The noise that the teacher sees in an image."""
        prediction, _ = self.call(self.teacher, sar, noisy, timestep)
        return clean_and_noise(prediction, noisy, self.abar[timestep], self.kind)[1]


METHODS = {"consistency": ConsistencyDistill, "time_aware": TimeAwareDistill}


def keep_valid(image: torch.Tensor, other: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`image` where `mask` (B x 1 x h x w, 1 = valid) allows, and `other` elsewhere, so that there they are alike."""
    return image if mask is None else torch.where(mask > 0, image, other)


def distill(config: DistillConfig) -> Path:
    """Distil as `config` says; returns the folder of the finished student."""
    accelerator = make_accelerator(config)
    teacher = load_teacher(config)
    task = METHODS[config.method](config, teacher, build_student(config, teacher))
    return train(task, config, accelerator)
