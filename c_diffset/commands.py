"""Commands that join packages which do not know each other: prepare, train, then publish."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from c_diffset.arguments import quieten
from c_diffset.training.config import DecoderConfig, FinetuneConfig, RunConfig
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.parser import parse_config

if TYPE_CHECKING:
    from c_diffset.data.degrade import DegradedPairs
    from c_diffset.data.inspect import DataSummary
    from c_diffset.data.prepare import Summary


def inspect(
    data: str,
    *,
    output: str = "inspection",
    model: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    crop_size: int | None = None,
    streaming: bool = False,
) -> "DataSummary":
    """Look at a data set before any work: pairs, sizes, values and faults by split, and six pairs in `preview.png`.

    Sizes are those that the headers of the images say; the values are those of a few pairs, spread over each split.

    Args:
        data: The folder, file or Hub id of the pairs.
        output: The folder that `preview.png` is written to.
        model: The folder or Hub id of the model as which the pairs are seen. By default, transforms are chosen that
            fit the values.
        revision: The revision of a Hub id.
        split: The split to look at. By default, all of them.
        crop_size: Images with a side smaller than this are listed as faults.
        streaming: Look at the first pairs alone, without downloading a data set of the Hub.

    Returns:
        What was found; `failed` lists what cannot be used.

    Raises:
        ValueError, OSError: There are no such data, or they do not fit the model.
    """
    from c_diffset.data.batches import pair_to_tensors
    from c_diffset.data.eo import declared_eo_transform
    from c_diffset.data.inspect import fitting_transforms, inspect_source
    from c_diffset.data.pairs import load_pairs
    from c_diffset.data.sar_values import check_sar_values
    from c_diffset.measurement.preview import write_preview
    from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY, SAR_DISPLAY, CDiffSETPipeline

    summary = inspect_source(data, split, crop_size, streaming)
    print(summary)
    shown = next((one for one in sorted(summary.splits, key=lambda one: one.name != "train") if one.pairs), None)
    if shown is None:
        return summary
    if model is not None:
        config = CDiffSETPipeline.load_config(model, revision=revision)
        sar_transform, eo_transform = config.get("sar_transform", SAR_DISPLAY), config.get("eo_transform", EO_DISPLAY)
    else:
        sar_transform, eo_transform = fitting_transforms(shown)
        eo_transform = declared_eo_transform(load_pairs(data, shown.name, streaming), data) or eo_transform
        both = {"sar_transform": sar_transform, "eo_transform": eo_transform}
        told = [f"--model.{key} '{json.dumps(one)}'" for key, one in both.items() if one["units"] != "display"]
        if told:
            print("settings that fit these values:", *told)
    upscale = shown.pairs[0].upscale if model is None else config.get("upscale", 1)
    seen = [pair_to_tensors(pair, sar_transform, eo_transform, upscale) for pair in shown.pairs]
    check_sar_values(shown.pairs, sar_transform, data)
    Path(output).mkdir(parents=True, exist_ok=True)
    write_preview(Path(output, "preview.png"), seen, sar_transform)
    return summary


def prepare(
    layout: str,
    source: str,
    out: str,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    sar_dir: str | None = None,
    eo_dir: str | None = None,
    mask_dir: str | None = None,
    match: str | None = None,
    columns: str | None = None,
    filter: bool = False,
    max_shift: float | None = None,
    progress: bool = True,
    push: str | None = None,
    license: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> "Summary":
    """Write a data set of a known layout in the standard form of `load_pairs`, and publish it where `push` says so.

    The result is written aside and renamed when complete. Pairs that cannot be used are left out, and listed in
    `summary.json` with the reason.

    Args:
        layout: The layout of the data set: folders, csv, parquet, webdataset, hub, or that of a published one: sen1-2,
            sen12ms, bigearthnet, major-tom, terramesh, ssl4eo-s12, qxs-saropt, sar2opt or spacenet6.
        source: The folder or the file of the data set; for the layout hub, its id on the Hugging Face Hub.
        out: The folder to write, which is absent or empty. With `push` it may also be one that an earlier call has
            finished, which is then published as it is.
        fractions: The shares of train, validation and test, as far as the layout does not settle them. A share of 0
            leaves a split out.
        seed: Random seed of the splits.
        sar_dir: The folder of the SAR images in `source` or its split folders, for the layout folders.
        eo_dir: The folder of the EO images, in the same place.
        mask_dir: The folder of the masks, in the same place.
        match: Patterns that pair files, for the layout folders: one for SAR and one for EO, such as
            's1_*.png:s2_*.png', and perhaps a third one for masks. The * stands for the same text in each.
        columns: Names of columns that are others than expected, for tables, Parquet, WebDataset and the Hub, such as
            'sar:s1,eo:s2,region:city'.
        filter: Drop training pairs that are flat, clouded, blocked by compression or misregistered. What is dropped is
            listed with the reason; pairs of validation and test with such faults are kept, and listed.
        max_shift: The largest shift between the images of a pair that the filter lets through, in pixels of the EO
            image. By default, 8.
        progress: Whether to show a progress bar.
        push: The Hub id of the data set repository that the result is published to, as Parquet with a card.
        license: The licence of the data, which the repository states.
        private: Whether a new repository is private.
        overwrite: Whether to replace what the repository holds, even where that is other pairs.

    Raises:
        ValueError: unknown layout, no pairs found, or none fit to use; an unfit id or licence.
        OSError: `out` is in use, or the Hub cannot be reached.
    """
    from c_diffset.data.faults import MOST_SHIFT
    from c_diffset.data.prepare import prepare as prepare_pairs
    from c_diffset.hub.publish_pairs import check_push, publish_pairs

    if max_shift is not None and not (filter and 0 <= max_shift < float("inf")):
        raise ValueError(f"max_shift is {max_shift}: expected a number of pixels from 0, together with filter")
    if push is not None:
        check_push(push, license)
    if push is not None and (Path(out) / "summary.json").is_file():
        summary = _read_summary(Path(out), layout)
    else:
        options = {"sar_dir": sar_dir, "eo_dir": eo_dir, "mask_dir": mask_dir, "match": match}
        options |= {"columns": None if columns is None else _read_columns(columns)}
        limit = None if not filter else MOST_SHIFT if max_shift is None else max_shift
        summary = prepare_pairs(layout, source, out, fractions, seed, options, progress, limit)
        print(summary)
        print(summary.next_commands())
    if push is not None:
        publish_pairs(out, push, license=license, private=private, overwrite=overwrite)
    return summary


def degrade(
    source: str,
    out: str,
    *,
    upscale: int = 4,
    degradation: Literal["real_esrgan", "bicubic"] = "real_esrgan",
    seed: int = 0,
    crop_size: int | None = None,
    split: str | None = None,
    eo_transform: dict | None = None,
    progress: bool = True,
) -> "DegradedPairs":
    """Write fixed pairs for super-resolution out of EO images, each beside a degraded image of low resolution.

    `evaluate`, `inspect` and trainings read the result as pairs. Images that cannot be used are left out, and listed in
    `summary.json` with the reason. Image number n of a split always has the same degradation.

    Args:
        source: The folder, the file or the Hub id of the EO images: images alone, or pairs, whose EO images are taken.
        out: The folder to write, which is absent or empty.
        upscale: The factor between the sides of the EO image and of the degraded one, 2 to 16.
        degradation: How images are degraded: "real_esrgan" (blur, resize, noise and JPEG, twice) or "bicubic".
        seed: Random seed of the degradations.
        crop_size: Images are cut into crops with sides of so many pixels, each degraded by itself. By default, they
            stay whole.
        split: The split that is read. By default, all of them.
        eo_transform: What the EO values mean, such as '{units: reflectance, range: [0, 3000]}'. By default, what the
            data say, else display values.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: unfit numbers, no EO images, or none that is fit to use.
        OSError: `out` is in use.
    """
    from c_diffset.data.degradation import Degradation
    from c_diffset.data.degrade import degrade_images
    from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY

    made_by = Degradation(degradation, upscale, eo_transform or EO_DISPLAY, seed)
    summary = degrade_images(source, out, made_by, crop_size, split, progress)
    print(summary)
    print(f"next: c-diffset inspect {shlex.quote(out)}")
    return summary


def _read_columns(text: str) -> dict[str, str]:
    """`sar:s1,eo:s2` as a dictionary."""
    pairs = [part.split(":", 1) for part in text.split(",")]
    names = [name for name, *_ in pairs]
    if any(len(pair) != 2 or not all(pair) for pair in pairs) or len({*names}) < len(names):
        raise ValueError(f"columns is {text!r}: expected names by the expected ones, such as sar:s1,eo:s2")
    return {name: found for name, found in pairs}


def _read_summary(out: Path, layout: str) -> "Summary":
    """The summary that an earlier call wrote; FileExistsError where it is of another layout, or no summary."""
    from c_diffset.data.prepare import Summary

    try:
        summary = Summary(**json.loads((out / "summary.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise FileExistsError(f"{out} holds a summary.json that is none of `prepare`: name another one.") from None
    if summary.layout != layout:
        raise FileExistsError(f"{out} holds pairs of the layout {summary.layout!r}, not {layout!r}: name another one.")
    print(f"{out} is prepared already: published as it is")
    return summary


def finetune(config: FinetuneConfig) -> Path:
    """Fine-tune as `config` says, and publish the result where it says so; returns the folder of the pipeline."""
    from c_diffset.training.finetune import finetune as train

    return _train_and_publish(train, config)


def distill(config: DistillConfig) -> Path:
    """Distil as `config` says, and publish the result where it says so; returns the folder of the student."""
    from c_diffset.training.distill import distill as train

    return _train_and_publish(train, config)


def finetune_decoder(config: DecoderConfig) -> Path:
    """Fine-tune a decoder as `config` says, and publish it where it says so; returns the autoencoder's folder."""
    from c_diffset.training.decoder import finetune_decoder as train

    return _train_and_publish(train, config)


# command: (its settings, what it does, the function)
TRAINING = {
    "finetune": (FinetuneConfig, "Fine-tune a diffusion model to translate SAR to EO images.", finetune),
    "distill": (DistillConfig, "Distil a fine-tuned model into a student of few steps, or one.", distill),
    "finetune_decoder": (DecoderConfig, "Fine-tune the decoder of a tiny autoencoder on EO images.", finetune_decoder),
}


def train_as_told(command: str, args: list[str] | None = None) -> None:
    """Run a command of `TRAINING` with `--config FILE.yaml` and the settings of the command line."""
    config_class, description, function = TRAINING[command]
    try:
        config = parse_config(config_class, description, args)
    except (ValueError, OSError):
        if os.environ.get("RANK", "0") != "0":  # the first of several processes says it
            sys.exit(2)
        raise
    function(config)


def run_tool(command: str) -> None:
    """`train_as_told` for the scripts of `accelerate launch`: an error is one line, and exit status 2."""
    quieten()
    try:
        train_as_told(command)
    except (ValueError, OSError, ImportError) as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        sys.exit(getattr(stop, "status", 130))  # a training has said itself how it goes on


def _train_and_publish(train: Callable[[RunConfig], Path], config: RunConfig) -> Path:
    """Check what the Hub needs before hours of work, then train and publish; the model stays where publishing fails."""
    from accelerate import PartialState

    from c_diffset.hub.contents import check_target, publish_autoencoder
    from c_diffset.hub.publish import publish
    from c_diffset.training.summary import summary

    repo, private = config.push_to_hub, config.push_private
    if repo:
        check_target(repo)
    folder = train(config)
    if PartialState().is_main_process:
        print(summary(folder, config))
    if repo and PartialState().is_main_process:
        is_pipeline = (folder / "model_index.json").is_file()
        try:
            (publish if is_pipeline else publish_autoencoder)(folder, repo, private=private)
        except (ValueError, OSError) as error:
            place = shlex.quote(str(folder))
            command = f"c-diffset publish {place} --repo {repo}" if is_pipeline else f"hf upload {repo} {place}"
            command += " --private" * private
            reason = str(error).rstrip(".")
            message = f"{reason}. The training is complete, and stays in {folder}: publish it with `{command}`"
            raise (ValueError if isinstance(error, ValueError) else OSError)(message) from error
    return folder
