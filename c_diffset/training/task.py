"""What one training step is: the part that all methods share, and the part that the methods on pairs share."""

import copy
from math import cos, pi
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderTiny
from torch import nn
from torch.utils.data import DataLoader, Dataset

from c_diffset.data.batches import TrainingPairs, pair_to_tensors, training_loader
from c_diffset.data.degradation import Degradation
from c_diffset.data.degraded_crops import DegradedCrops, crops_folder, encode_crops
from c_diffset.data.latents import CachedPairs, build_latent_cache, fingerprint
from c_diffset.data.pairs import Pair
from c_diffset.data.teacher_results import build_results
from c_diffset.models.cpu_training import attend_in_float32, keep_channels_last
from c_diffset.models.unet import add_lora, without_variance
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.checkpoint import Part
from c_diffset.training.config import OptimizerConfig, Phase, RunConfig
from c_diffset.training.pairs import training_pairs, validation_pairs
from c_diffset.training.run import RunFolder
from c_diffset.training.stopping import ignore_signals
from c_diffset.training.validation import Validator

PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_optimizer(parameters, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW in one pass over the weights, or its 8-bit form."""
    options = dict(lr=config.learning_rate, betas=tuple(config.betas), weight_decay=config.weight_decay)
    if not config.use_8bit_adam:
        return torch.optim.AdamW(parameters, fused=True, **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ImportError("optimizer.use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from None
    return AdamW8bit(parameters, **options)


def learning_rate(step: int, config: OptimizerConfig, phase: Phase) -> float:
    """Learning rate of update `step`, counted from 0: linear warm-up, then as the schedule says to the phase's end."""
    done, left = step - phase.start, phase.end - phase.start - config.warmup_steps
    if done < config.warmup_steps:
        return config.learning_rate * (done + 1) / config.warmup_steps
    progress = min(1.0, (done - config.warmup_steps) / max(1, left))
    share = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + cos(pi * progress))}
    return config.learning_rate * share[config.schedule]


class Task:
    """A training method, as the loop sees it: `model` is averaged, validated and saved, its part `trained` is trained.

    A method says what its batches are (`loader`), what the loss of one is (`loss`), and what is saved (`pipeline`).
    `sar_transform` is that of the model, where it reads SAR images, and `degradation` makes these of the EO images.
    """

    sar_transform: dict | None = None
    degradation: Degradation | None = None

    def __init__(self, config: RunConfig, model: nn.Module, trained: nn.Module):
        self.config, self.model, self.trained = config, model, trained
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        self.trainable = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(self.trainable, config.optimizer)

    def prepare(self, accelerator: Accelerator) -> None:
        """Wrap what is trained and its optimiser for the device and the number of processes."""
        if self.config.compile:
            self.trained.compile()
        elif accelerator.device.type == "cpu":
            self.tune_for_cpu(accelerator.mixed_precision)
        self.model.to(accelerator.device)
        self.wrapped, self.optimizer = accelerator.prepare(self.trained, self.optimizer)
        self.autocast = accelerator.autocast
        self.validator = None
        pairs = validation_pairs(self.config) if accelerator.is_main_process else None
        if pairs is not None:
            self.validator = Validator(pairs, self.config.validation, accelerator.device, self.degradation)

    def tune_for_cpu(self, precision: str) -> None:
        """Take the ways of torch that are fast on a CPU; they differ in rounding alone."""
        if precision == "bf16":
            attend_in_float32(self.model)
        if self.config.channels_last:
            keep_channels_last(self.model)

    def parts(self) -> dict[str, Part]:
        """What a checkpoint holds, by name."""
        return {"model": self.trained, "optimizer": self.optimizer}

    def see(self, pair: Pair) -> dict[str, torch.Tensor]:
        """A pair as the model sees it: `eo` 3 x H x W in [-1, 1], perhaps `sar` C x H x W and `mask` 1 x H x W."""
        raise NotImplementedError

    def loader(self, accelerator: Accelerator, start: int) -> DataLoader:
        """Endless batches of this process, from sample number `start` on."""
        raise NotImplementedError

    def batches(self, samples: Dataset, accelerator: Accelerator, start: int) -> DataLoader:
        """Endless batches of `samples` for this process, from sample number `start` on."""
        return training_loader(
            samples,
            self.config.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            start,
            self.config.data.num_workers,
            self.config.data.shuffle_buffer,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=ignore_signals,
        )

    def train_batch(self, accelerator: Accelerator, batch: dict, step: int) -> dict[str, torch.Tensor]:
        """Forward, backward, and (where gradients are synchronised) update; returns what is logged."""
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
        with accelerator.accumulate(self.wrapped):
            loss, logs = self.loss(batch, step)
            accelerator.backward(loss)
            optimizer = self.config.phase(step).optimizer
            return logs | self.update(accelerator, self.wrapped, self.optimizer, optimizer, step)

    def loss(self, batch: dict, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch on the device, and what is logged."""
        raise NotImplementedError

    def update(
        self, accelerator: Accelerator, model: nn.Module, optimizer, config: OptimizerConfig, step: int
    ) -> dict[str, torch.Tensor]:
        """Clip the gradients and update the model, where gradients are synchronised; returns their norm to log."""
        rate = learning_rate(step, config, self.config.phase(step))
        for group in optimizer.param_groups:
            group |= dict(lr=rate, betas=tuple(config.betas), weight_decay=config.weight_decay)
        logs = {}
        if accelerator.sync_gradients:
            logs["grad_norm"] = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return logs

    def pipeline(self, step: int) -> CDiffSETPipeline | AutoencoderTiny:
        """What is validated and saved after update `step`."""
        raise NotImplementedError

    def rivals_after(self, step: int) -> int:
        """The update after which validations compete with that of update `step` for the best model."""
        return 0

    def save_adapter(self, run: RunFolder) -> None:
        """Write the adapter, where one is trained instead of all weights."""

    def validate(self, pipe: CDiffSETPipeline | AutoencoderTiny, picture: Path, step: int) -> dict[str, float] | None:
        """Metrics on the validation split after update `step`, with a picture grid; None without such a split."""
        return None if self.validator is None else self.validator(pipe, picture, step)


class PairsTask(Task):
    """A task without its loss: it trains the UNet of `pipe`, or a LoRA of it, on pairs.

    The UNet has a variance channel from the start. As long as that is untrained, pipelines are saved without it, so
    that nobody takes what it holds for a confidence: it is trained from update `variance_from` on.
    """

    variance_from: int
    input_perturbation: float = 0.0  # standard deviation of noise in the images that is not to be predicted

    def __init__(self, config: RunConfig, pipe: CDiffSETPipeline, lora_rank: int = 0):
        if config.data.crop_size % pipe.size_multiple:
            found, expected = config.data.crop_size, pipe.size_multiple
            raise ValueError(f"data.crop_size is {found}, expected a multiple of {expected} for this model")
        self.pipe, self.lora_rank, self.sar_transform = pipe, lora_rank, pipe.config.sar_transform
        if config.data.degradation is not None:
            self.degradation = make_degradation(config, pipe)
        pipe.unet.train().requires_grad_(True)
        if pipe.vae is not None:
            pipe.vae.requires_grad_(False)
        if lora_rank:
            add_lora(pipe.unet, lora_rank)
        super().__init__(config, pipe.unet, pipe.unet)

    def prepare(self, accelerator: Accelerator) -> None:
        """As in `Task`; the frozen autoencoder only moves to the device."""
        super().prepare(accelerator)
        if self.pipe.vae is not None:
            self.pipe.vae.to(accelerator.device)
        self.abar = self.pipe.scheduler.alphas_cumprod.to(accelerator.device)

    def see(self, pair: Pair) -> dict[str, torch.Tensor]:
        """A pair after the transforms of the pipeline."""
        pair = pair if self.degradation is None else self.degradation(pair, 0)
        return pair_to_tensors(pair, self.sar_transform, self.pipe.config.eo_transform, self.pipe.config.upscale)

    def samples(self, accelerator: Accelerator) -> TrainingPairs:
        """The training samples, out of the latent cache where there is one."""
        data = self.config.data
        pairs = training_pairs(self.config)
        options = dict(
            crop_size=data.crop_size,
            seed=self.config.seed,
            augment=data.augment,
            factor=self.pipe.vae_scale_factor,
            num_train_timesteps=self.pipe.scheduler.config.num_train_timesteps,
            upscale=self.pipe.config.upscale,
            more_noise=(2,) if self.input_perturbation else (),
        )
        if data.latent_cache and self.degradation is None:
            with accelerator.main_process_first():
                cache = build_latent_cache(self.pipe, pairs, data.latent_cache, PRECISION[accelerator.mixed_precision])
            return CachedPairs(cache, channels=self.pipe.eo_channels, **options)
        transforms = (self.pipe.config.sar_transform, self.pipe.config.eo_transform)
        options |= dict(noise_channels=self.pipe.eo_channels)
        samples = TrainingPairs(pairs, *transforms, degradation=self.degradation, **options)
        return self.cached_crops(accelerator, samples, options) if data.latent_cache else samples

    def cached_crops(self, accelerator: Accelerator, samples: TrainingPairs, options: dict) -> DegradedCrops:
        """The first `data.latent_crops` of degraded samples, encoded once."""
        data = self.config.data
        made_with = self.samples_made_with(accelerator, samples.pairs)
        with accelerator.main_process_first():
            folder = crops_folder(data.latent_cache, made_with)

        def encode(numbers: list[int]) -> torch.Tensor:
            with accelerator.autocast():
                return encode_crops(samples, numbers, self.pipe)

        place = (accelerator.process_index, accelerator.num_processes)
        build_results(folder, data.latent_crops, encode, self.config.batch_size, *place, what="encoding crops")
        accelerator.wait_for_everyone()
        return DegradedCrops(folder, data.latent_crops, **options)

    def samples_made_with(self, accelerator: Accelerator, pairs) -> dict[str, str | int]:
        """All that training samples depend on, up to their noise."""
        data, made_by = self.config.data, self.degradation
        settings = {
            "data": fingerprint(self.pipe, pairs, PRECISION[accelerator.mixed_precision]),
            "crop_size": data.crop_size,
            "augment": data.augment,
            "seed": self.config.seed,
        }
        return settings if made_by is None else settings | {"degradation": f"{made_by.name} {made_by.upscale}"}

    def loader(self, accelerator: Accelerator, start: int) -> DataLoader:
        """Endless batches of this process, from sample number `start` on."""
        return self.batches(self.samples(accelerator), accelerator, start)

    def latents(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """SAR of a batch, and what is diffused (see `to_residual`), in latent (B x C x h x w) or pixel space."""
        sar, eo = batch["sar"], batch["eo"]
        if not self.config.data.latent_cache:
            sar, eo = (self.pipe.encode(images).to(batch["noise"].dtype) for images in (sar, eo))
        return sar, self.pipe.to_residual(eo, sar)

    def noise(self, batch: dict) -> torch.Tensor:
        """The noise that is added to the images of a batch, B x C x h x w: perturbed where that is asked for."""
        if not self.input_perturbation:
            return batch["noise"]
        return batch["noise"] + self.input_perturbation * batch["noise_2"]

    def call(
        self, unet: nn.Module, sar: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One UNet call: prediction B x C x h x w, and raw variance B x 1 (or, without one, 0) x h x w; float32."""
        prompt = self.pipe.prompt_kwargs(len(sar))
        output = unet(torch.cat([sar, noisy], dim=1), timestep, **prompt, return_dict=False)[0].float()
        return output[:, : noisy.shape[1]], output[:, noisy.shape[1] :]

    def pipeline(self, step: int) -> CDiffSETPipeline:
        """A complete pipeline around the model; a LoRA is fused into a copy, an untrained variance left out."""
        model = self.model
        if self.lora_rank:
            model = copy.deepcopy(model)
            model.fuse_lora()
            model.unload_lora()
        if step <= self.variance_from:
            model = without_variance(model)
        return with_components(self.pipe, unet=model)

    def rivals_after(self, step: int) -> int:
        """A model with a confidence competes with its like alone."""
        return self.variance_from if step > self.variance_from else 0

    def save_adapter(self, run: RunFolder) -> None:
        """Write a LoRA as a standard adapter, `lora/`."""
        if self.lora_rank:
            run.replace("lora", self.model.save_lora_adapter)


def make_degradation(config: RunConfig, pipe: CDiffSETPipeline) -> Degradation:
    """What makes the low-resolution images of a training.

    Raises:
        ValueError: the model does not enlarge, or reads something else than display values of three bands.
    """
    upscale, transform = pipe.config.upscale, pipe.config.sar_transform
    if upscale == 1:
        raise ValueError(
            f"data.degradation is {config.data.degradation}, but the model's upscale is 1: set model.upscale, such as 4"
        )
    if transform["units"] != "display" or transform["channels"] != [0, 1, 2]:
        found = f"units {transform['units']} and channels {transform['channels']}"
        raise ValueError(f"data.degradation makes display values of 3 bands, but the sar_transform has {found}")
    return Degradation(config.data.degradation, upscale, pipe.config.eo_transform, config.seed)


def with_components(pipe: CDiffSETPipeline, **changes) -> CDiffSETPipeline:
    """The same pipeline with some components or settings replaced."""
    settings = {name: pipe.config[name] for name in pipe._get_signature_keys(pipe)[1]}
    return CDiffSETPipeline(**pipe.components | settings | changes)
