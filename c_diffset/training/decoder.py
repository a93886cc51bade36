"""Fine-tuning the decoder of a tiny autoencoder on EO images: a generic one loses detail that satellite images have."""

from pathlib import Path

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
    flip_and_turn,
    random_crop,
    sample_rng,
)
from c_diffset.data.eo import check_eo_values, declared_eo_transform, eo_to_tensor, some_pairs
from c_diffset.data.pairs import Pair, read_pair
from c_diffset.loading import check_same_latents, load_autoencoder
from c_diffset.measurement.measure import mean_metrics
from c_diffset.measurement.metrics import psnr, ssim
from c_diffset.measurement.networks import load_lpips
from c_diffset.measurement.picture_grid import make_grid
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY, CDiffSETPipeline, check_eo_transform
from c_diffset.training.config import DecoderConfig
from c_diffset.training.loop import make_accelerator, train
from c_diffset.training.pairs import check_pairs, training_pairs
from c_diffset.training.task import Task
from c_diffset.training.validation import GRID_ROWS, title_of

GRID_LABELS = ("EO", "generic", "fine-tuned")


class EOCrops(TrainingPairs):
    """Training samples of the EO images of pairs alone: `eo` 3 x size x size in [-1, 1], perhaps `mask` 1 x size x size
    (1 = valid), and `number`."""

    def __init__(self, pairs, eo_transform: dict, crop_size: int, **options):
        super().__init__(pairs, {}, eo_transform, crop_size, **options)

    def sample(self, row: dict, number: int) -> dict:
        """Training sample `number`, made of this row."""
        rng = sample_rng(self.seed, number)
        pair = read_pair(row)
        images = {"eo": np.moveaxis(pair.eo, -1, 0)}
        if pair.mask is not None:
            images["mask"] = pair.mask[None]
        images = random_crop(images, self.crop_size, rng, pair.id)
        which = rng.integers(FLIPS_AND_TURNS) if self.augment else 0
        turned = {key: flip_and_turn(image, which) for key, image in images.items()}
        sample = {"eo": eo_to_tensor(turned["eo"], self.eo_transform), "number": number}
        return sample | {key: torch.from_numpy(turned[key].astype(np.float32)) for key in turned if key == "mask"}


def latent_space(vae: AutoencoderKL | AutoencoderTiny) -> CDiffSETPipeline:
    """The pipeline's `encode` and `decode`, with its scaling, of an autoencoder alone: there is no UNet in it."""
    return CDiffSETPipeline(unet=None, scheduler=DDIMScheduler(), vae=vae)


class DecoderTask(Task):
    """The decoder of `base` learns to invert a frozen encoder."""

    def __init__(self, config: DecoderConfig):
        self.eo_transform = check_eo_transform(EO_DISPLAY if config.eo_transform is None else config.eo_transform)
        model = load_autoencoder(config.base)
        if not isinstance(model, AutoencoderTiny):
            raise ValueError(f"base {config.base} is a {type(model).__name__}: expected an AutoencoderTiny")
        self.space = latent_space(load_autoencoder(config.encoder) if config.encoder else model)
        check_same_latents(model, self.space, config.base)
        self.space.vae.requires_grad_(False)
        model.requires_grad_(False)
        model.decoder.requires_grad_(True)
        if config.channels_last:
            self.space.vae.to(memory_format=torch.channels_last)
        self.lpips = load_lpips(config.lpips_net, config.lpips_weights) if config.lpips_weight else None
        super().__init__(config, model, model.decoder)

    def prepare(self, accelerator: Accelerator) -> None:
        """As in `Task`; and a look at what the generic decoder does."""
        super().prepare(accelerator)
        for module in (self.space.vae, self.lpips):
            if module is not None:
                module.to(accelerator.device)
        if self.validator is not None:
            self.crops, self.judge = self.validator.pairs, self.validator.lpips_model or self.lpips
            self.generic = self.reconstruct(self.model)

    def see(self, pair: Pair) -> dict[str, Tensor]:
        """The EO image alone, and what of it is valid."""
        seen = {"eo": eo_to_tensor(np.moveaxis(pair.eo, -1, 0), self.eo_transform)}
        return seen if pair.mask is None else seen | {"mask": torch.from_numpy(pair.mask.astype(np.float32))[None]}

    def loader(self, accelerator: Accelerator, start: int) -> DataLoader:
        """Endless batches of EO crops for this process, from sample number `start` on."""
        data = self.config.data
        options = dict(seed=self.config.seed, augment=data.augment, factor=self.space.vae_scale_factor)
        pairs = EOCrops(training_pairs(self.config), self.eo_transform, data.crop_size, **options)
        return self.batches(pairs, accelerator, start)

    def loss(self, batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The distance of the decoded latents from the image, and its parts."""
        with self.autocast():
            latents = self.space.encode(batch["eo"])
        scaling, shift = self.model.config.scaling_factor, self.model.config.shift_factor
        return self.distance(self.wrapped(latents / scaling + shift), batch["eo"], batch.get("mask"))

    def distance(self, decoded: Tensor, eo: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
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
            eo = eo_to_tensor(np.moveaxis(pair.eo, -1, 0), self.eo_transform)[None].to(self.space.device)
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

    def pipeline(self, step: int) -> AutoencoderTiny:
        """The whole autoencoder: it is what a run saves."""
        return self.model

    def validate(self, pipe: AutoencoderTiny, picture: Path, step: int) -> dict[str, float] | None:
        """Metrics of the reconstructed validation crops, beside those before fine-tuning, with a picture grid."""
        if self.validator is None:
            return None
        means, pictures = self.reconstruct(pipe)
        crops = (np.moveaxis(pair.eo, -1, 0) for pair in self.crops[:GRID_ROWS])
        true = [eo_to_tensor(eo, self.eo_transform) * 0.5 + 0.5 for eo in crops]
        rows = zip(true, self.generic[1], pictures, strict=True)
        named, captions = [dict(zip(GRID_LABELS, row, strict=True)) for row in rows], [each.id for each in self.crops]
        make_grid(named, captions=captions[: len(named)], title=title_of(step)).save(picture)
        return means | {f"generic_{name}": value for name, value in self.generic[0].items()}


def finetune_decoder(config: DecoderConfig) -> Path:
    """Fine-tune as `config` says; returns the folder of the finished autoencoder."""
    accelerator = make_accelerator(config)
    some = check_pairs(config, accelerator)
    pairs, source = training_pairs(config), config.data.source
    if config.eo_transform is None:
        config.eo_transform = declared_eo_transform(pairs, source)  # a setting of the run from here on
    task = DecoderTask(config)
    check_eo_values(some_pairs(pairs), task.eo_transform, source, "eo_transform")
    return train(task, config, accelerator, some)
