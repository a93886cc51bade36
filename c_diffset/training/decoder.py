"""Fine-tuning the decoder of a tiny autoencoder on EO images: a generic one loses detail that satellite images have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler
from torch import Tensor
from torch.utils.data import DataLoader

from c_diffset.data.batches import (
    FLIPS_AND_TURNS,
    TrainingPairs,
    eo_to_tensor,
    flip_and_turn,
    random_crop,
    sample_rng,
)
from c_diffset.data.pairs import load_pairs, read_pair
from c_diffset.loading import check_same_latents, load_autoencoder
from c_diffset.measurement.measure import mean_metrics
from c_diffset.measurement.metrics import psnr, ssim
from c_diffset.measurement.networks import load_lpips
from c_diffset.measurement.picture_grid import make_grid
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.config import RunConfig
from c_diffset.training.loop import RunFolder, make_accelerator, make_optimizer, process_batches, train, update
from c_diffset.training.validation import GRID_ROWS, Validator

GRID_LABELS = ("EO", "generic", "fine-tuned")


@dataclass(kw_only=True)
class DecoderConfig(RunConfig):
    """Fine-tuning the decoder of an `AutoencoderTiny`.

    Attributes:
        base: folder or Hub id of the `AutoencoderTiny`.
        encoder: folder or Hub id of the autoencoder whose latents the decoder learns to read, such as the one that the
            diffusion model was trained with; None: those of `base`.
        lpips_weight: of LPIPS beside the L1 distance; 0: none.
        lpips_net: network of that LPIPS.
        lpips_weights: file with its complete weights; None: downloaded.
    """

    base: str
    encoder: str | None = None
    lpips_weight: float = 0.5
    lpips_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    lpips_weights: str | None = None


class EOCrops(TrainingPairs):
    """Training samples of the EO images of pairs alone: `eo` 3 x size x size in [-1, 1], perhaps `mask` 1 x size x size
    (1 = valid), and `number`."""

    def __init__(self, pairs, crop_size: int, **options):
        super().__init__(pairs, {}, crop_size, **options)

    def sample(self, row: dict, number: int) -> dict:
        """Training sample `number`, made of this row."""
        rng = sample_rng(self.seed, number)
        pair = read_pair(row)
        images = {"sar": np.moveaxis(np.atleast_3d(pair.sar), -1, 0), "eo": np.moveaxis(pair.eo, -1, 0)}
        if pair.mask is not None:
            images["mask"] = pair.mask[None]
        images = random_crop(images, self.crop_size, rng, pair.id)
        which = rng.integers(FLIPS_AND_TURNS) if self.augment else 0
        sample = {"eo": eo_to_tensor(flip_and_turn(images["eo"], which)), "number": number}
        if pair.mask is not None:
            sample["mask"] = torch.from_numpy(flip_and_turn(images["mask"], which).astype(np.float32))
        return sample


def latent_space(vae: AutoencoderKL | AutoencoderTiny) -> CDiffSETPipeline:
    """The pipeline's `encode` and `decode`, with its scaling, of an autoencoder alone: there is no UNet in it."""
    return CDiffSETPipeline(unet=None, scheduler=DDIMScheduler(), vae=vae)


class DecoderTask:
    """A `Task` of the loop: the decoder of `base` learns to invert a frozen encoder."""

    def __init__(self, config: DecoderConfig):
        self.config = config
        self.model = load_autoencoder(config.base)
        if not isinstance(self.model, AutoencoderTiny):
            raise ValueError(f"base {config.base} is a {type(self.model).__name__}: expected an AutoencoderTiny")
        self.space = latent_space(load_autoencoder(config.encoder) if config.encoder else self.model)
        check_same_latents(self.model, self.space, config.base)
        self.space.vae.requires_grad_(False)
        self.model.requires_grad_(False)
        self.model.decoder.requires_grad_(True)
        if config.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
            self.space.vae.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model.decoder.parameters(), config.optimizer)
        self.lpips = load_lpips(config.lpips_net, config.lpips_weights) if config.lpips_weight else None

    def prepare(self, accelerator: Accelerator) -> None:
        """Wrap decoder and optimiser, and look at what the generic decoder does."""
        for module in (self.model, self.space.vae, self.lpips):
            if module is not None:
                module.to(accelerator.device)
        if self.config.compile:
            self.model.decoder.compile()
        self.decoder, self.optimizer = accelerator.prepare(self.model.decoder, self.optimizer)
        if self.config.data.validation_split and accelerator.is_main_process:
            validator = Validator(self.config.data, self.config.validation, accelerator.device)
            self.crops, self.judge = validator.pairs, validator.lpips_model or self.lpips
            self.generic = self.reconstruct(self.model)

    def loader(self, accelerator: Accelerator, start: int) -> DataLoader:
        """Endless batches of EO crops for this process, from sample number `start` on."""
        data = self.config.data
        crops = EOCrops(
            load_pairs(data.source, split=data.split, streaming=data.streaming),
            data.crop_size,
            seed=self.config.seed,
            augment=data.augment,
            factor=self.space.vae_scale_factor,
        )
        return process_batches(crops, self.config, accelerator, start)

    def train_batch(self, accelerator: Accelerator, batch: dict, step: int) -> dict[str, Tensor]:
        """Forward, backward and update; returns the loss, its parts, and the norm of the gradient."""
        eo = batch["eo"].to(accelerator.device)
        mask = batch["mask"].to(accelerator.device) if "mask" in batch else None
        with accelerator.accumulate(self.decoder):
            with accelerator.autocast():
                latents = self.space.encode(eo)
            scaling, shift = self.model.config.scaling_factor, self.model.config.shift_factor
            loss, logs = self.loss(self.decoder(latents / scaling + shift), eo, mask)
            accelerator.backward(loss)
            logs |= update(
                accelerator, self.decoder, self.optimizer, self.config.optimizer, step, self.config.max_steps
            )
        return logs

    def loss(self, decoded: Tensor, eo: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 + lpips_weight * LPIPS of images B x 3 x H x W in [-1, 1], under a mask B x 1 x H x W, and its parts."""
        if mask is None:
            l1 = (decoded - eo).abs().mean()
        else:
            decoded, eo = decoded * mask, eo * mask
            l1 = (decoded - eo).abs().sum() / (3 * mask.sum()).clamp_min(1)
        logs, loss = {"l1": l1.detach()}, l1
        if self.lpips is not None:
            distance = self.lpips(decoded, eo).mean()
            logs["lpips"], loss = distance.detach(), l1 + self.config.lpips_weight * distance
        return loss, {"loss": loss.detach()} | logs

    @torch.no_grad()
    def reconstruct(self, vae: AutoencoderTiny) -> tuple[dict[str, float], list[Tensor]]:
        """Mean metrics of the validation crops decoded by `vae`, and the first of them, 3 x H x W in [0, 1]."""
        rows, pictures, factor, decoder = [], [], self.space.vae_scale_factor, latent_space(vae)
        for pair in self.crops:
            eo = eo_to_tensor(np.moveaxis(pair.eo, -1, 0))[None].to(self.space.device)
            height, width = eo.shape[-2:]
            padded = F.pad(eo, (0, -width % factor, 0, -height % factor), mode="reflect")
            decoded = decoder.decode(self.space.encode(padded))[..., :height, :width].float()
            mask = torch.ones_like(eo[:, :1]) if pair.mask is None else torch.from_numpy(pair.mask).to(eo)[None, None]
            true, generated = (mask * (image * 0.5 + 0.5) for image in (eo, decoded))
            generated = (generated * 255).round() / 255
            row = {"psnr": psnr(generated, true, mask), "ssim": ssim(generated, true, mask)}
            if self.judge is not None:
                row["lpips"] = self.judge(generated * 2 - 1, true * 2 - 1)
            rows.append({name: value.item() for name, value in row.items()})
            pictures.append(generated[0])
        return mean_metrics(rows), pictures[:GRID_ROWS]

    def pipeline(self, model: AutoencoderTiny) -> AutoencoderTiny:
        """The whole autoencoder: it is what a run saves."""
        return model

    def save_adapter(self, run: RunFolder) -> None:
        """There is none."""

    def validate(self, pipe: AutoencoderTiny, samples: Path, step: int) -> dict[str, float] | None:
        """Metrics of the reconstructed validation crops, beside those before fine-tuning, with a picture grid."""
        if self.config.data.validation_split is None:
            return None
        means, pictures = self.reconstruct(pipe)
        true = [eo_to_tensor(np.moveaxis(pair.eo, -1, 0)) * 0.5 + 0.5 for pair in self.crops[:GRID_ROWS]]
        rows = list(zip(true, self.generic[1], pictures, strict=True))
        make_grid(rows, GRID_LABELS).save(samples / f"step_{step:08d}.png")
        return means | {f"generic_{name}": value for name, value in self.generic[0].items()}


def finetune_decoder(config: DecoderConfig) -> Path:
    """Fine-tune as `config` says; returns the folder of the finished autoencoder."""
    accelerator = make_accelerator(config)
    return train(DecoderTask(config), config, accelerator)
