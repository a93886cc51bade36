"""What fine-tuning and distillation share: a UNet inside a pipeline, its pairs, its validation."""

import copy
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from c_diffset.data.batches import TrainingPairs
from c_diffset.data.latents import CachedPairs, build_latent_cache
from c_diffset.data.pairs import load_pairs
from c_diffset.models.unet import add_lora
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.config import RunConfig
from c_diffset.training.loop import RunFolder, make_optimizer, process_batches
from c_diffset.training.validation import Validator

PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class PairsTask:
    """A `Task` of the loop without its `train_batch`: trains the UNet of `pipe`, or a LoRA of it, on pairs."""

    def __init__(self, config: RunConfig, pipe: CDiffSETPipeline, lora_rank: int = 0):
        self.config, self.pipe, self.lora_rank = config, pipe, lora_rank
        self.model: nn.Module = pipe.unet
        self.model.train().requires_grad_(True)
        if pipe.vae is not None:
            pipe.vae.requires_grad_(False)
        if lora_rank:
            add_lora(self.model, lora_rank)
        if config.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(self.trainable, config.optimizer)

    def prepare(self, accelerator: Accelerator) -> None:
        """Wrap UNet and optimiser; the frozen autoencoder only moves to the device."""
        if self.config.compile:
            self.model.compile()
        self.unet, self.optimizer = accelerator.prepare(self.model, self.optimizer)
        if self.pipe.vae is not None:
            self.pipe.vae.to(accelerator.device)
        if self.config.data.validation_split and accelerator.is_main_process:
            self.validator = Validator(self.config.data, self.config.validation, accelerator.device)
        self.abar = self.pipe.scheduler.alphas_cumprod.to(accelerator.device)

    def samples(self, accelerator: Accelerator) -> TrainingPairs:
        """The training samples, out of the latent cache where there is one."""
        data = self.config.data
        pairs = load_pairs(data.source, split=data.split, streaming=data.streaming)
        options = dict(
            crop_size=data.crop_size,
            seed=self.config.seed,
            augment=data.augment,
            factor=self.pipe.vae_scale_factor,
            num_train_timesteps=self.pipe.scheduler.config.num_train_timesteps,
        )
        if data.latent_cache:
            with accelerator.main_process_first():
                cache = build_latent_cache(self.pipe, pairs, data.latent_cache, PRECISION[accelerator.mixed_precision])
            return CachedPairs(cache, channels=self.pipe.eo_channels, **options)
        return TrainingPairs(pairs, self.pipe.config.sar_transform, noise_channels=self.pipe.eo_channels, **options)

    def loader(self, accelerator: Accelerator, start: int) -> DataLoader:
        """Endless batches of this process, from sample number `start` on."""
        return process_batches(self.samples(accelerator), self.config, accelerator, start)

    def latents(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """SAR and EO of a batch in latent space (B x C x h x w), as they are in pixel space."""
        if self.config.data.latent_cache:
            return batch["sar"], batch["eo"]
        return tuple(self.pipe.encode(batch[name]).to(batch["noise"].dtype) for name in ("sar", "eo"))

    def call(
        self, unet: nn.Module, sar: torch.Tensor, noisy: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One UNet call: prediction B x C x h x w, and raw variance B x 1 (or, without one, 0) x h x w; float32."""
        prompt = self.pipe.prompt_kwargs(len(sar))
        output = unet(torch.cat([sar, noisy], dim=1), timestep, **prompt, return_dict=False)[0].float()
        return output[:, : noisy.shape[1]], output[:, noisy.shape[1] :]

    def pipeline(self, model: nn.Module) -> CDiffSETPipeline:
        """A complete pipeline around the model; a LoRA is fused into a copy."""
        if self.lora_rank:
            model = copy.deepcopy(model)
            model.fuse_lora()
            model.unload_lora()
        return with_components(self.pipe, unet=model)

    def save_adapter(self, run: RunFolder) -> None:
        """Write a LoRA as a standard adapter, `lora/`."""
        if self.lora_rank:
            run.replace("lora", self.model.save_lora_adapter)

    def validate(self, pipe: CDiffSETPipeline, samples: Path, step: int) -> dict[str, float] | None:
        """Metrics on the validation split, with a picture grid."""
        if self.config.data.validation_split is None:
            return None
        return self.validator(pipe, samples / f"step_{step:08d}.png")


def with_components(pipe: CDiffSETPipeline, **changes) -> CDiffSETPipeline:
    """The same pipeline with some components or settings replaced."""
    settings = {name: pipe.config[name] for name in pipe._get_signature_keys(pipe)[1]}
    return CDiffSETPipeline(**pipe.components | settings | changes)
