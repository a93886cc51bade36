"""Does the C-Diff loss help where the data disagree? python tools/discrepancy.py [--output FOLDER] [--max_steps N]

Generated pairs in which 0, 5 and 20 % of the pixels show different surfaces in the two images. From one stage 1, the
training goes on for as many updates again: once with the plain loss and once with the C-Diff loss, all else equal.
Both are measured on unseen pairs that agree everywhere; and how well the variance finds the pixels that disagree, on
unseen pairs that do. A stopped run goes on.
"""

import json
from pathlib import Path

import numpy as np

from c_diffset.arguments import run
from c_diffset.evaluation.evaluate import evaluate
from c_diffset.evaluation.reliability import paired_bootstrap
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    SmallUNetConfig,
    ValidationConfig,
)
from c_diffset.training.finetune import finetune

SIZE, TEST_PAIRS = 64, 64
METRICS = ("psnr", "ssim")


def settings(output: Path, data: Path, max_steps: int, model: ModelConfig, stage: str, seed: int) -> FinetuneConfig:
    """As `c-diffset demo`, in one stage."""
    return FinetuneConfig(
        output_dir=str(output),
        model=model,
        data=DataConfig(source=str(data), crop_size=SIZE, validation_split=None),
        optimizer=OptimizerConfig(learning_rate=5e-4),
        validation=ValidationConfig(every=0),
        stage=stage,
        max_steps=max_steps,
        ema_decay=0.99,
        checkpoint_every=100,
        seed=seed,
    )


def discrepancy(output: str = "runs/discrepancy", max_steps: int = 400, pairs: int = 400, seeds: int = 2) -> None:
    """Train and measure all; print a line for each model and each comparison, also into `results.jsonl`.

    Args:
        output: folder of data and runs.
        max_steps: updates of stage 1, and again of what follows.
        pairs: for training.
        seeds: how often the continuation is repeated.
    """
    folder = Path(output)
    (folder / "results.jsonl").unlink(missing_ok=True)
    if not (folder / "test").exists():
        write_pairs(folder, TEST_PAIRS, size=SIZE, seed=1, split="test")
    scratch = ModelConfig(
        unet=SmallUNetConfig(block_out_channels=[16, 32, 64], layers_per_block=1),
        prediction_type="sample",
        beta_schedule="linear",
        zero_terminal_snr=True,
        sar_transform={"units": "display", "range": [0.0, 1.0], "channels": [0]},
        default_num_inference_steps=20,
    )
    for share in (0.0, 0.05, 0.2):
        data = folder / f"data{share:g}"
        if not (data / "train/metadata.jsonl").exists():
            write_pairs(data, TEST_PAIRS, size=SIZE, seed=1, discrepancy=share, split="test")
            write_pairs(data, pairs, size=SIZE, discrepancy=share)
        first = finetune(settings(folder / f"stage1_{share:g}", data, max_steps, scratch, "denoising", 0))
        values = {}
        for seed in range(1, seeds + 1):
            for stage in ("denoising", "confidence"):
                run = folder / f"{stage}_{share:g}_{seed}"
                model = finetune(settings(run, data, max_steps, ModelConfig(base=str(first)), stage, seed))
                report = evaluate(model, folder, split="test", lpips_net=None, download=False)
                for name in METRICS:
                    values.setdefault((stage, name), []).append([row.metrics[name] for row in report.images])
                means = {name: round(report.mean[name], 4) for name in METRICS}
                note(folder, {"discrepancy": share, "loss": stage, "seed": seed, "n": report.n} | means)
                if stage == "confidence" and share > 0:
                    note(folder, {"discrepancy": share, "seed": seed} | detection(model, data))
        for name in METRICS:
            plain, guided = (np.mean(values[stage, name], axis=0) for stage in ("denoising", "confidence"))
            gain = paired_bootstrap(guided, plain)
            interval = [round(value, 4) for value in vars(gain).values()]
            note(folder, {"discrepancy": share, "metric": name, "confidence - denoising": interval})


def detection(model: Path, data: Path) -> dict:
    """How well the variance of a translation finds the pixels at which the pairs of the test split disagree."""
    trust = evaluate(model, data, split="test", lpips_net=None, download=False).trust
    found = trust.uncertainties["predicted variance"]
    values = {name: list(vars(getattr(found, name)).values()) for name in ("auroc", "average_precision")}
    return values | {"average_precision of chance": trust.constant.average_precision}


def note(folder: Path, line: dict) -> None:
    """Print a result, and append it to the file."""
    print(line, flush=True)
    with open(folder / "results.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    run(discrepancy)
