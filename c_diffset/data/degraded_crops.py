"""Latents of degraded training crops: a fixed number of them, encoded once, trained on in ever new orders and noise.

Every training sample has a degradation of its own, so images cannot be cached whole. What is kept is the first `count`
samples: each with its crop, flip and degradation.
"""

import hashlib
import json
from pathlib import Path

import torch

from c_diffset.data.batches import TrainingPairs, collate, sample_rng, shuffled_row
from c_diffset.data.teacher_results import open_results, read_result
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

WHAT = "the latents of degraded crops"


def crops_folder(cache: str | Path, made_with: dict[str, str | int | bool]) -> Path:
    """The folder of the crops that are made with these settings, in the folder of the latent cache."""
    name = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:16]
    return open_results(Path(cache, f"crops_{name}"), made_with, WHAT)


def encode_crops(samples: TrainingPairs, numbers: list[int], pipe: CDiffSETPipeline) -> torch.Tensor:
    """Training samples by their numbers, as B x (2C + 1) x h x w: latents of input and EO image, and the mask."""
    batch = collate([samples[shuffled_row(samples.seed, number, len(samples)), number] for number in numbers])
    latents = [pipe.encode(batch[name].to(pipe.device)).float().cpu() for name in ("sar", "eo")]
    return torch.cat([*latents, batch.get("mask", torch.ones_like(latents[0][:, :1]))], dim=1)


class DegradedCrops(TrainingPairs):
    """Training samples out of these crops: `sar` and `eo` are C x h x w latents, the rest is as in `TrainingPairs`."""

    def __init__(self, folder: Path, count: int, **options):
        super().__init__(range(count), {}, {}, **options)
        self.folder = folder

    def __getitem__(self, key: tuple[int, int]) -> dict:
        crop, number = int(key[0]), key[1]
        stored = read_result(self.folder, crop)
        sar, eo, mask = stored.split([self.noise_channels, self.noise_channels, 1])
        return {"sar": sar, "eo": eo, "mask": mask} | self.noise(sample_rng(self.seed, number), number)
