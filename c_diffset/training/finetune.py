"""Fine-tuning, stages 1 and 2: builds the pipeline, reads the pairs, and says what one batch does."""

import copy
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from torch.utils.data import DataLoader
from transformers import CLIPTextModel, CLIPTokenizer

from c_diffset.data.batches import TrainingPairs, training_loader
from c_diffset.data.latents import CachedPairs, build_latent_cache
from c_diffset.data.pairs import load_pairs
from c_diffset.models.unet import add_lora, add_variance_channel, small_unet, widen
from c_diffset.objectives.denoising import add_noise, c_diff_loss, denoising_loss, min_snr_weight, prediction_target
from c_diffset.pipelines.pipeline_cdiffset import (
    SAR_DISPLAY,
    CDiffSETPipeline,
    check_sar_transform,
    encode_prompt_embeds,
)
from c_diffset.training.config import FinetuneConfig, ModelConfig, parse_config
from c_diffset.training.loop import RunFolder, cosine_lr, make_accelerator, make_optimizer, train
from c_diffset.training.validation import Validator

PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_autoencoder(source: str, revision: str | None = None, subfolder: str | None = None):
    """An `AutoencoderKL` or `AutoencoderTiny` from a folder or Hub id, by the class its config names."""
    config = AutoencoderKL.load_config(source, revision=revision, subfolder=subfolder)
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if config.get("_class_name") not in classes:
        raise ValueError(f"autoencoder {source} is a {config.get('_class_name')}: expected one of {sorted(classes)}")
    chosen = classes[config["_class_name"]]
    return chosen.from_pretrained(source, revision=revision, subfolder=subfolder, use_safetensors=True)


def build_pipeline(config: ModelConfig) -> CDiffSETPipeline:
    """The pipeline that training starts from, its UNet widened for SAR and variance.

    Raises:
        ValueError: the base is none of: a pipeline of this project, Stable Diffusion.
    """
    if config.base is None:
        return _from_scratch(config)
    index = DiffusionPipeline.load_config(config.base, revision=config.revision)
    if index.get("_class_name") == CDiffSETPipeline.__name__:
        where = dict(revision=config.revision, text_encoder=None, tokenizer=None)  # the prompt's embedding is stored
        pipe = CDiffSETPipeline.from_pretrained(config.base, **where)
        if not pipe.predicts_variance:
            add_variance_channel(pipe.unet)
        return pipe
    if not {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= set(index):
        raise ValueError(
            f"base {config.base} is a {index.get('_class_name')}: expected Stable Diffusion or CDiffSETPipeline"
        )
    return _from_stable_diffusion(config)


def _from_stable_diffusion(config: ModelConfig) -> CDiffSETPipeline:
    where = dict(revision=config.revision, use_safetensors=True)
    unet = UNet2DConditionModel.from_pretrained(config.base, subfolder="unet", **where)
    if config.vae is None:
        vae = load_autoencoder(config.base, config.revision, "vae")
    else:
        vae = load_autoencoder(config.vae)
    widen(unet, vae.config.latent_channels)
    text_encoder = CLIPTextModel.from_pretrained(config.base, subfolder="text_encoder", **where)
    tokenizer = CLIPTokenizer.from_pretrained(config.base, subfolder="tokenizer", revision=config.revision)
    scheduler = DDIMScheduler.from_pretrained(
        config.base,
        subfolder="scheduler",
        revision=config.revision,
        timestep_spacing="trailing",
        clip_sample=False,
        rescale_betas_zero_snr=config.zero_terminal_snr,
    )
    return CDiffSETPipeline(
        unet,
        scheduler,
        vae,
        prompt_embeds=encode_prompt_embeds(text_encoder, tokenizer),
        sar_transform=config.sar_transform,
        default_num_inference_steps=config.default_num_inference_steps,
    )


def _from_scratch(config: ModelConfig) -> CDiffSETPipeline:
    vae = None if config.vae is None else load_autoencoder(config.vae)
    transform = check_sar_transform(config.sar_transform or SAR_DISPLAY)
    eo_channels = 3 if vae is None else vae.config.latent_channels
    sar_channels = len(transform["channels"]) if vae is None else eo_channels
    scheduler = DDIMScheduler(
        beta_schedule=config.beta_schedule,
        beta_start=0.00085 if config.beta_schedule == "scaled_linear" else 0.0001,
        beta_end=0.012 if config.beta_schedule == "scaled_linear" else 0.02,
        prediction_type=config.prediction_type,
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=vae is None,
        set_alpha_to_one=True,
    )
    unet = small_unet(sar_channels, eo_channels, **vars(config.unet))
    steps = config.default_num_inference_steps
    return CDiffSETPipeline(unet, scheduler, vae, sar_transform=transform, default_num_inference_steps=steps)


class Finetune:
    """The task of `train`: C-DiffSET's stages 1 and 2, in latent or pixel space."""

    def __init__(self, config: FinetuneConfig, pipe: CDiffSETPipeline):
        self.config, self.pipe = config, pipe
        self.model: nn.Module = pipe.unet
        self.model.train().requires_grad_(True)
        if pipe.vae is not None:
            pipe.vae.requires_grad_(False)
        if config.model.lora_rank:
            add_lora(self.model, config.model.lora_rank)
        if config.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(trainable, config.optimizer)

    def prepare(self, accelerator: Accelerator) -> None:
        """Wrap UNet and optimiser; the frozen autoencoder only moves to the device."""
        if self.config.compile:
            self.model.compile()
        self.unet, self.optimizer = accelerator.prepare(self.model, self.optimizer)
        if self.pipe.vae is not None:
            self.pipe.vae.to(accelerator.device, memory_format=torch.channels_last)
        if self.config.data.validation_split and accelerator.is_main_process:
            self.validator = Validator(self.config.data, self.config.validation, accelerator.device)
        self.abar = self.pipe.scheduler.alphas_cumprod.to(accelerator.device)

    def loader(self, accelerator: Accelerator, start: int) -> DataLoader:
        """Endless batches of this process, from sample number `start` on."""
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
            samples = CachedPairs(cache, channels=self.pipe.eo_channels, **options)
        else:
            samples = TrainingPairs(
                pairs, self.pipe.config.sar_transform, noise_channels=self.pipe.eo_channels, **options
            )
        return training_loader(
            samples,
            self.config.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            start,
            data.num_workers,
            data.shuffle_buffer,
            pin_memory=accelerator.device.type == "cuda",
        )

    def train_batch(self, accelerator: Accelerator, batch: dict, step: int) -> dict[str, torch.Tensor]:
        """Forward, backward and update; returns the loss and its parts."""
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_lr(step, self.config.optimizer, self.config.max_steps)
        with accelerator.accumulate(self.unet):
            loss, logs = self.loss(batch, step)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                logs["grad_norm"] = accelerator.clip_grad_norm_(
                    self.unet.parameters(), self.config.optimizer.max_grad_norm
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
        return logs

    def loss(self, batch: dict, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of stage 1 or 2, as `step` says, and what is logged."""
        if self.config.data.latent_cache:
            sar, eo = batch["sar"], batch["eo"]
        else:
            sar, eo = (self.pipe.encode(batch[name]).to(batch["noise"].dtype) for name in ("sar", "eo"))
        abar = self.abar[batch["timestep"]]
        kind = self.pipe.config.prediction_type
        noisy = add_noise(eo, batch["noise"], abar)
        target = prediction_target(eo, batch["noise"], abar, kind)
        prompt = self.pipe.prompt_kwargs(len(sar))
        output = self.unet(torch.cat([sar, noisy], dim=1), batch["timestep"], **prompt, return_dict=False)[0].float()
        prediction, raw_variance = output[:, : eo.shape[1]], output[:, eo.shape[1] :]
        mask = batch.get("mask")
        if step >= self.config.confidence_start:
            loss = c_diff_loss(prediction, target, raw_variance, abar, mask)
            return loss, {"loss": loss.detach(), "error": denoising_loss(prediction, target, mask).detach()}
        gamma = self.config.min_snr_gamma
        weight = None if gamma is None else min_snr_weight(abar, kind, gamma)
        loss = denoising_loss(prediction, target, mask, weight)
        return loss, {"loss": loss.detach()}

    def pipeline(self, model: nn.Module) -> CDiffSETPipeline:
        """A complete pipeline around the model; a LoRA is fused into a copy."""
        if self.config.model.lora_rank:
            model = copy.deepcopy(model)
            model.fuse_lora()
            model.unload_lora()
        components = self.pipe.components | {"unet": model}
        return CDiffSETPipeline(**components, **_settings(self.pipe))

    def save_adapter(self, run: RunFolder) -> None:
        """Write a LoRA as a standard adapter, `lora/`."""
        if self.config.model.lora_rank:
            run.replace("lora", self.model.save_lora_adapter)

    def validate(self, pipe: CDiffSETPipeline, samples: Path, step: int) -> dict[str, float] | None:
        """Metrics on the validation split, with a picture grid."""
        if self.config.data.validation_split is None:
            return None
        return self.validator(pipe, samples / f"step_{step:08d}.png")


def _settings(pipe: CDiffSETPipeline) -> dict:
    """The pipeline's own config values, without its components."""
    return {name: pipe.config[name] for name in pipe._get_signature_keys(pipe)[1]}


def finetune(config: FinetuneConfig) -> Path:
    """Fine-tune as `config` says; returns the folder of the finished pipeline."""
    accelerator = make_accelerator(config)
    task = Finetune(config, build_pipeline(config.model))
    folder = train(task, config, accelerator)
    if config.push_to_hub and accelerator.is_main_process:
        CDiffSETPipeline.from_pretrained(folder).push_to_hub(config.push_to_hub)
    return folder


def main(args: list[str] | None = None) -> None:
    """The command `accelerate launch tools/finetune.py`."""
    finetune(parse_config(FinetuneConfig, "Fine-tune a diffusion model to translate SAR to EO images.", args))
