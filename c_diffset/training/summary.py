"""What a finished training says at its end: where its models are, how good they are, and which command comes next."""

import shlex
from pathlib import Path

from c_diffset.data.pairs import list_splits
from c_diffset.files import read_json
from c_diffset.history import read_history
from c_diffset.training.config import FinetuneConfig, RunConfig
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.run import RunFolder

METRICS = ("psnr", "ssim", "lpips")


def summary(folder: Path, config: RunConfig) -> str:
    """The last words of a training, several lines, on the run that holds the pipeline `folder`."""
    run = RunFolder(folder.parent)
    rows = [row for row in run.rows() if f"validation/{config.validation.metric}" in row]
    best = run.path / "best"
    lines = [f"{run.path}: finished after {config.max_steps} updates", f"  newest model: {folder}"]
    if rows and best.is_dir():
        lines[-1] += f" ({_figures(rows[-1])})"
        lines.append(f"  best model:   {best} ({_figures(_best(run, best, rows, config))})")
    elif not best.is_dir():
        lines.append("  without validation, no best model was chosen")
    if (first := run.path / "stage1").is_dir():
        told = [row for row in rows if row["step"] == config.phase(0).end]
        lines.append(f"  stage 1:      {first}" + (f" ({_figures(told[-1])})" if told else ""))
    return "\n".join([*lines, *_next(best if best.is_dir() else folder, config)])


def _best(run: RunFolder, best: Path, rows: list[dict], config: RunConfig) -> dict:
    """The validation that the best model was chosen by."""
    name, lowest = f"validation/{config.validation.metric}", config.validation.metric == "lpips"
    updates = told["updates"] if (told := read_history(best)) else None
    known = [row for row in rows if row["step"] == updates]
    return known[0] if known else (min if lowest else max)(rows, key=lambda row: row[name])


def _figures(row: dict) -> str:
    named = [f"{name} {row[f'validation/{name}']:.4g}" for name in METRICS if f"validation/{name}" in row]
    return f"validation after update {row['step']}: {', '.join(named)}"


def _next(model: Path, config: RunConfig) -> list[str]:
    """The commands that may follow."""
    data, place, split = shlex.quote(config.data.source), shlex.quote(str(model)), config.data.validation_split
    if not isinstance(config, FinetuneConfig | DistillConfig):
        return ["next:", f"  c-diffset translate INPUT --model MODEL --vae {place} --output eo"]
    commands = []
    splits = _splits(config)
    again = f"--data.source {data}"
    if degradation := config.data.degradation:  # the data are EO images alone: pairs are made of them
        again += f" --data.degradation {degradation}"
        upscale = read_json(model / "model_index.json")["upscale"]
        made = f"degrade {data} PAIRS --upscale {upscale} --degradation {degradation}"
        commands.append((made, "fixed pairs, to compare models on"))
        data = "PAIRS"
    if _predicts_variance(model):
        pairs = f"{data} --split {split}" if split in splits else "OTHER_PAIRS"
        commands.append((f"calibrate --model {place} --data {pairs}", "what error its confidence stands for"))
    elif isinstance(config, FinetuneConfig):
        more = f"finetune --model.base {place} --stage confidence {again} --output_dir NEW"
        commands.append((more, "it predicts no confidence: train one"))
    pairs = data if "test" in splits else "TEST_PAIRS"
    commands.append((f"evaluate --model {place} --data {pairs} --output NEW", "how good it is on pairs it never saw"))
    commands.append((f"translate INPUT --model {place} --output eo", "use it"))
    if isinstance(config, FinetuneConfig):
        student = f"distill --teacher {place} {again} --output_dir NEW"
        commands.append((student, "a student of few steps"))
    return ["next:", *(f"  c-diffset {command}  # {why}" for command, why in commands)]


def _splits(config: RunConfig) -> list[str]:
    try:
        return list_splits(config.data.source, eo_alone=config.data.degradation is not None)
    except (ValueError, OSError):  # the data have gone since
        return []


def _predicts_variance(model: Path) -> bool:
    """Whether a saved pipeline has a variance channel: as many outputs as image channels, and one more."""
    unet, vae = read_json(model / "unet/config.json"), model / "vae/config.json"
    channels = read_json(vae)["latent_channels"] if vae.is_file() else 3
    return unet["out_channels"] == channels + 1
