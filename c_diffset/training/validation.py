"""Validation while training: samples of the validation split, their metrics, and a picture grid."""

from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset

from c_diffset.data.degradation import Degradation
from c_diffset.data.pairs import read_pair
from c_diffset.measurement.measure import crop_pairs, evaluate_pairs, mean_metrics
from c_diffset.measurement.metrics import Instruments
from c_diffset.measurement.networks import load_lpips
from c_diffset.measurement.picture_grid import make_grid
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.config import ValidationConfig

GRID_ROWS = 6


def title_of(step: int) -> str:
    """What stands above the samples of a training."""
    return f"after {step:,} update{'s' * (step > 1)}"


class Validator:
    """Samples the same crops with the same noise at every call, so that its figures can be compared over a run.

    The crops are spread evenly over the validation split. Where images are degraded, crop number n has degradation n.
    """

    def __init__(
        self, pairs: Dataset, config: ValidationConfig, device: torch.device, degradation: Degradation | None = None
    ):
        self.config = config
        rows = list(pairs)
        crops = []
        for row in rows:
            whole = [read_pair(row)]
            available = crop_pairs(whole, config.crop_size) if config.crop_size else whole
            crops.append(list(islice(available, -(-config.num_images // len(rows)))))
        self.pairs = [pair for group in crops for pair in group][: config.num_images]
        if degradation is not None:
            self.pairs = [degradation(pair, number) for number, pair in enumerate(self.pairs)]
        self.lpips_model = None
        if config.metric == "lpips" or config.lpips_weights is not None:
            self.lpips_model = load_lpips(config.lpips_net, config.lpips_weights).to(device)

    def __call__(self, pipe: CDiffSETPipeline, grid: Path, step: int) -> dict[str, float]:
        """Mean metrics over the crops after update `step`; writes the picture grid to `grid`."""
        pipe.set_progress_bar_config(disable=True)
        results = list(
            evaluate_pairs(
                pipe,
                self.pairs,
                self.config.num_inference_steps,
                self.config.batch_size,
                instruments=Instruments(lpips_model=self.lpips_model),
            )
        )
        shown = results[:GRID_ROWS]
        captions = [f"{result.id}: PSNR {result.metrics['psnr']:.1f} dB" for result in shown]
        make_grid([result.pictures for result in shown], captions=captions, title=title_of(step)).save(grid)
        means = mean_metrics([result.metrics for result in results])
        return {"lpips" if name.startswith("lpips") else name: value for name, value in means.items()}
