"""Fine-tuning, stages 1 and 2: builds the pipeline, reads the pairs, and says what one batch does."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel

from c_diffset.data.degradation import input_transform
from c_diffset.data.eo import check_eo_values, declared_eo_transform, some_pairs
from c_diffset.data.sar_values import check_sar_values
from c_diffset.loading import load_autoencoder, load_prompt, no_loading_bar
from c_diffset.models.unet import add_variance_channel, small_unet, widen
from c_diffset.objectives.denoising import add_noise, c_diff_loss, denoising_loss, min_snr_weight, prediction_target
from c_diffset.objectives.resshift import resshift_betas
from c_diffset.pipelines.pipeline_cdiffset import (
    EO_DISPLAY,
    LOW_RESOLUTION,
    SAR_DISPLAY,
    CDiffSETPipeline,
    align,
    check_eo_transform,
    check_sar_transform,
)
from c_diffset.training.config import FinetuneConfig, ModelConfig
from c_diffset.training.loop import make_accelerator, train
from c_diffset.training.pairs import check_pairs, eo_alone, training_pairs
from c_diffset.training.task import PairsTask


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
        with no_loading_bar():
            pipe = CDiffSETPipeline.from_pretrained(config.base, **where)
        _check_base(config, pipe)
        if not pipe.predicts_variance:
            add_variance_channel(pipe.unet)
        pipe.register_to_config(realism=None, variance_of="latents")  # of another training than this one
        if config.eo_transform is not None:
            pipe.register_to_config(eo_transform=check_eo_transform(config.eo_transform))
        return pipe
    if not {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= set(index):
        raise ValueError(
            f"base {config.base} is a {index.get('_class_name')}: expected Stable Diffusion or CDiffSETPipeline"
        )
    return _from_stable_diffusion(config)


def _check_base(config: ModelConfig, pipe: CDiffSETPipeline) -> None:
    """Refuse settings that only a new model can have, where they are not those of the base."""
    for name, unset in (("upscale", 1), ("residual", False)):
        wanted, found = getattr(config, name), pipe.config[name]
        if wanted not in (unset, found):
            raise ValueError(f"model.{name} is {wanted}, but that of the base {config.base} is {found}: leave it out")


def _from_stable_diffusion(config: ModelConfig) -> CDiffSETPipeline:
    where = dict(revision=config.revision, use_safetensors=True)
    unet = align(UNet2DConditionModel.from_pretrained(config.base, subfolder="unet", **where))
    if config.vae is None:
        vae = load_autoencoder(config.base, config.revision, "vae")
    else:
        vae = load_autoencoder(config.vae)
    widen(unet, vae.config.latent_channels)
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
        prompt_embeds=load_prompt(config.base, config.revision),
        sar_transform=config.sar_transform,
        eo_transform=config.eo_transform,
        upscale=config.upscale,
        residual=config.residual,
        default_num_inference_steps=config.default_num_inference_steps,
    )


def _from_scratch(config: ModelConfig) -> CDiffSETPipeline:
    vae = None if config.vae is None else load_autoencoder(config.vae)
    transform = check_sar_transform(config.sar_transform or (SAR_DISPLAY if config.upscale == 1 else LOW_RESOLUTION))
    eo_channels = 3 if vae is None else vae.config.latent_channels
    sar_channels = len(transform["channels"]) if vae is None else eo_channels
    unet = small_unet(sar_channels, eo_channels, **vars(config.unet))
    steps = config.default_num_inference_steps
    settings = dict(sar_transform=transform, eo_transform=config.eo_transform)
    settings |= dict(upscale=config.upscale, residual=config.residual, default_num_inference_steps=steps)
    return CDiffSETPipeline(unet, new_scheduler(config), vae, **settings)


def new_scheduler(config: ModelConfig) -> DDIMScheduler | DDPMScheduler:
    """The noise schedule of a UNet from scratch, and how it is sampled."""
    resshift = config.beta_schedule == "resshift"
    start, end = config.beta_range or ((0.00085, 0.012) if config.beta_schedule == "scaled_linear" else (0.0001, 0.02))
    options: dict[str, Any] = dict(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule="linear" if resshift else config.beta_schedule,  # which `trained_betas` replace
        trained_betas=resshift_betas(config.num_train_timesteps) if resshift else None,
        beta_start=start,
        beta_end=end,
        prediction_type=config.prediction_type,
        rescale_betas_zero_snr=config.zero_terminal_snr,
        clip_sample=config.vae is None and not config.residual,
    )
    if config.sampler == "ddpm":
        return DDPMScheduler(variance_type="fixed_large", timestep_spacing="linspace", **options)
    return DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=True, **options)


class Finetune(PairsTask):
    """The task of `train`: C-DiffSET's stages 1 and 2, in latent or pixel space."""

    def __init__(self, config: FinetuneConfig, pipe: CDiffSETPipeline, lora_rank: int = 0):
        learnt_before = bool(pipe.unet.conv_out.weight[-1].any())
        super().__init__(config, pipe, lora_rank)
        self.input_perturbation = config.input_perturbation
        self.variance_from = 0 if learnt_before else config.confidence_start

    def loss(self, batch: dict, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of stage 1 or 2, as `step` says, and what is logged."""
        sar, eo = self.latents(batch)
        abar = self.abar[batch["timestep"]]
        kind = self.pipe.config.prediction_type
        target = prediction_target(eo, batch["noise"], abar, kind)
        noisy = add_noise(eo, self.noise(batch), abar)
        prediction, raw_variance = self.call(self.wrapped, sar, noisy, batch["timestep"])
        mask = batch.get("mask")
        if step >= self.config.confidence_start:
            loss = c_diff_loss(prediction, target, raw_variance, abar, mask)
            return loss, {"loss": loss.detach(), "error": denoising_loss(prediction, target, mask).detach()}
        gamma = self.config.min_snr_gamma
        weight = None if gamma is None else min_snr_weight(abar, kind, gamma)
        loss = denoising_loss(prediction, target, mask, weight)
        return loss, {"loss": loss.detach()}


def finetune(config: FinetuneConfig) -> Path:
    """Fine-tune as `config` says; returns the folder of the finished pipeline."""
    accelerator = make_accelerator(config)
    some = check_pairs(config, accelerator)
    pairs, source = training_pairs(config), config.data.source
    if config.model.eo_transform is None:
        config.model.eo_transform = declared_eo_transform(pairs, source)  # a setting of the run from here on
    if eo_alone(config) and config.model.sar_transform is None:
        values = config.model.eo_transform or EO_DISPLAY
        config.model.sar_transform = input_transform(next(some_pairs(pairs, 1)).eo, values)
    pipe = build_pipeline(config.model)
    check_eo_values(some_pairs(pairs), pipe.config.eo_transform, source)
    if not eo_alone(config):
        check_sar_values(some_pairs(pairs), pipe.config.sar_transform, source)
    if pipe.unet.config.sample_size is None:  # scenes are translated in tiles of what the model was trained at
        pipe.unet.register_to_config(sample_size=config.data.crop_size // pipe.vae_scale_factor)
    task = Finetune(config, pipe, config.model.lora_rank)
    return train(task, config, accelerator, some)
