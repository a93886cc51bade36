"""The report on a model: mean metrics beside floors and a ceiling, the protocol of the measurement, and pictures."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import diffusers
import lpips
import numpy as np
import torch
from datasets import Dataset
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor
from tqdm.auto import tqdm

from c_diffset.data.pairs import Pair, Pairs, list_splits, load_pairs, read_pair
from c_diffset.evaluation.grid import make_grid
from c_diffset.evaluation.images import (
    PairResult,
    crop_pairs,
    evaluate_pairs,
    floors_and_ceiling,
    mean_colour_of,
    mean_metrics,
)
from c_diffset.evaluation.metrics import (
    convention,
    frechet_distance,
    kernel_distance,
    load_inception,
    load_lpips,
    lpips_features,
)
from c_diffset.loading import Precision, load_pipeline
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

GRID_LABELS = ("SAR", "generated", "EO", "confidence")
MEAN_COLOUR_PAIRS = 500  # enough for a mean: reading a large training split whole would take hours
ORIGIN_COLUMNS = ("region", "scene", "sar_product", "eo_product")

Features = dict[str, Callable[[Tensor], Tensor]]
LeftOut = list[dict[str, str]]


def evaluate(
    model: CDiffSETPipeline | str | os.PathLike,
    data: str | os.PathLike,
    split: str = "test",
    output: str | os.PathLike | None = None,
    num_inference_steps: int | None = None,
    crop_size: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    max_images: int | None = None,
    lpips_net: str | None = "squeeze",
    lpips_weights: str | os.PathLike | None = None,
    inception_weights: str | os.PathLike | None = None,
    download: bool = True,
    mean_colour: list[float] | None = None,
    grid_rows: int = 8,
    revision: str | None = None,
    device: str | None = None,
    dtype: Precision = "float32",
    overwrite: bool = False,
    vae: str | None = None,
) -> dict:
    """Evaluate a model on a split, print a table, and write `metrics.json`, `per_image.csv` and `grid.png`.

    Args:
        model: a pipeline, its folder or its Hub id. The progress bar of a given pipeline is switched off.
        data: what `load_pairs` reads.
        split: the split of `data`.
        output: a new or empty folder; None writes nothing.
        num_inference_steps: the model's own number when None.
        crop_size: side of the crops that are evaluated, as `crop_pairs` cuts them; whole images when None.
        batch_size: images at a time; the results do not depend on it.
        seed: of the noise.
        max_images: stop after so many images (or crops), in the order of the data.
        lpips_net: "squeeze", "alex" or "vgg" (the one most published figures use); None leaves LPIPS out.
        lpips_weights: a file with complete LPIPS weights, instead of a download.
        inception_weights: a file with pytorch-fid's weights for FID and KID, instead of a download.
        download: False takes from torch's cache what is not given as a file, and names as left out what is not there.
        mean_colour: r, g, b in [0, 1] for the floor of one colour; by default the mean of the data's train split.
        grid_rows: how many images the picture shows, the first ones.
        revision: of a Hub id.
        device: by default CUDA where there is one; a given pipeline stays where it is.
        dtype: precision of the model; a given pipeline stays as it is.
        overwrite: write into a folder that is not empty.
        vae: folder or Hub id of an autoencoder of the same latent space, or "taesd", instead of the model's own.

    Returns:
        What `metrics.json` holds: the protocol, `mean`, `floors`, `ceiling` (the true EO image after the autoencoder's
        round trip; None in pixel space), `left_out` (metric and reason) and `images`.

    Raises:
        FileExistsError: `output` is not empty, and `overwrite` is not set.
        ValueError: `vae` does not fit the model, or comes with a pipeline in memory.
        ValueError, OSError: unusable data, model or weights files; the message names them.
    """
    _check_output(output, overwrite)
    if vae is not None and isinstance(model, CDiffSETPipeline):
        raise ValueError("vae is set, but the model is a pipeline in memory: give it to `load_pipeline` instead")
    pairs = SplitPairs(load_pairs(data, split), crop_size, max_images)
    pipe = model if isinstance(model, CDiffSETPipeline) else load_pipeline(model, revision, device, dtype, vae)
    pipe.set_progress_bar_config(disable=True)
    left_out: LeftOut = []
    lpips_model = _load_lpips(lpips_net, lpips_weights, download, pipe.device, left_out)
    features = _load_features(lpips_model, inception_weights, download, pipe.device, left_out)
    train_rows = load_pairs(data, "train", streaming=_is_remote(data)) if "train" in list_splits(data) else None
    mean_colour = mean_colour or _train_colour(train_rows, left_out)

    results = evaluate_pairs(pipe, pairs, num_inference_steps, batch_size, seed, lpips_model)
    results = tqdm(results, "evaluate", pairs.expected_images, unit="image")
    images, pictures, vectors = _collect(results, features, grid_rows, pipe.device)
    if not images:
        raise ValueError(f"{data}, split {split}: no image to evaluate (crop_size {crop_size})")
    again = tqdm(pairs, "floors and ceiling", len(images), leave=False)
    floors, ceiling = floors_and_ceiling(again, pipe, mean_colour, lpips_model)
    report = {
        "model": str((pipe.name_or_path or "in memory") if isinstance(model, CDiffSETPipeline) else model),
        "revision": revision,
        "data": str(data),
        "split": split,
        "split_against_train": split_against_train(pairs.rows, train_rows) if split != "train" else [],
        "n": len(images),
        "seed": seed,
        **pairs.describe(),
        **_describe_sampling(pipe, num_inference_steps),
        "mean": mean_metrics(images) | _distances(vectors, left_out),
        "floors": floors,
        "ceiling": ceiling,
        "mean_colour": mean_colour,
        "left_out": left_out,
        "images": images,
    }
    report["conventions"] = {metric: convention(metric) for metric in report["mean"]}
    print(quality_table(report))
    if output is not None:
        _write(report, make_grid(pictures, GRID_LABELS), Path(output))
    return report


# --------------------------------------------------------------------------------------------- what is evaluated


class SplitPairs:
    """The pairs of a split, read anew in every pass: whole or in crops, the first `max_images` of them."""

    def __init__(self, rows: Pairs, crop_size: int | None, max_images: int | None):
        self.rows, self.crop_size, self.max_images = rows, crop_size, max_images
        self.pixels_read = self.pixels_used = self.pairs_read = 0

    def __iter__(self) -> Iterator[Pair]:
        self.pixels_read = self.pixels_used = self.pairs_read = 0
        whole = self._read()
        for pair in islice(crop_pairs(whole, self.crop_size) if self.crop_size else whole, self.max_images):
            self.pixels_used += pair.eo[..., 0].size
            yield pair

    def _read(self) -> Iterator[Pair]:
        for row in self.rows:
            pair = read_pair(row)
            self.pairs_read += 1
            self.pixels_read += pair.eo[..., 0].size
            yield pair

    @property
    def expected_images(self) -> int | None:
        """How many images there will be, where that is known beforehand."""
        return self.max_images if self.crop_size else min(len(self.rows), self.max_images or len(self.rows))

    def describe(self) -> dict:
        """What the last complete pass covered."""
        return {
            "pairs": f"{self.pairs_read} of {len(self.rows)}",
            "crop_size": self.crop_size,
            "max_images": self.max_images,
            "fraction_of_pixels": round(self.pixels_used / self.pixels_read, 4),
        }


def split_against_train(rows: Pairs, train_rows: Pairs | None) -> list[str]:
    """Facts on how far a split is apart from the train split: shared regions or products, and overlapping ground."""
    if train_rows is None or not isinstance(train_rows, Dataset):
        return ["unknown: the train split is absent, or too far away to read"]
    facts = []
    for column in set(ORIGIN_COLUMNS) & set(rows.column_names) & set(train_rows.column_names):
        own, trained = set(rows[column]), set(train_rows[column])
        facts.append(f"{len(own & trained)} of {len(own)} values of {column} occur in train too")
    if {"bounds", "crs"} <= set(rows.column_names) & set(train_rows.column_names):
        count = _count_overlaps(rows, train_rows)
        facts.append(f"{count} of {len(rows)} images overlap with the bounds of a train image")
    return sorted(facts) or ["unknown: the metadata name neither origin nor bounds"]


def _count_overlaps(rows: Dataset, train_rows: Dataset) -> int:
    """How many rows share ground with a train row: `bounds` are left, bottom, right, top in `crs`."""
    trained = np.array(train_rows["bounds"], dtype=float)
    trained_crs = np.array(train_rows["crs"])
    count = 0
    for (left, bottom, right, top), crs in zip(rows["bounds"], rows["crs"], strict=True):
        apart = (trained[:, 0] >= right) | (trained[:, 2] <= left) | (trained[:, 1] >= top) | (trained[:, 3] <= bottom)
        count += bool((~apart & (trained_crs == crs)).any())
    return count


def _is_remote(data: str | os.PathLike) -> bool:
    return not Path(data).exists()


def _train_colour(rows: Pairs | None, left_out: LeftOut) -> list[float] | None:
    """The mean colour of at most `MEAN_COLOUR_PAIRS` pairs, evenly spread, or the first ones of a remote data set."""
    if rows is None:
        left_out.append({"metric": "floor mean_colour", "reason": "the data have no train split, and none was given"})
        return None
    if isinstance(rows, Dataset):
        some = rows.select(range(0, len(rows), math.ceil(len(rows) / MEAN_COLOUR_PAIRS)))
    else:
        some = rows.take(MEAN_COLOUR_PAIRS)
    return mean_colour_of(map(read_pair, some))


# ------------------------------------------------------------------------------------------ models and their use


def _load_lpips(net, weights, download, device, left_out: LeftOut) -> lpips.LPIPS | None:
    if net is None:
        left_out.append({"metric": "lpips", "reason": "lpips_net is not set"})
        return None
    try:
        return load_lpips(net, weights, download).to(device)
    except OSError as error:
        if weights is not None:
            raise
        left_out.append({"metric": f"lpips_{net}", "reason": f"no lpips_weights: {error}"})
        return None


def _load_features(lpips_model, inception_weights, download, device, left_out: LeftOut) -> Features:
    """Feature functions by the suffix of the metrics they serve: "" for FID and KID proper."""
    features: Features = {}
    try:
        features[""] = load_inception(inception_weights, download).to(device)
    except OSError as error:
        if inception_weights is not None:
            raise
        left_out += [{"metric": name, "reason": f"no inception_weights: {error}"} for name in ("fid", "kid")]
    if lpips_model is not None:
        features[f"_lpips_{lpips_model.pnet_type}"] = lpips_features(lpips_model)
    return features


def _collect(results: Iterable[PairResult], features: Features, grid_rows: int, device):
    """Rows of metrics, rows of pictures, and for every feature function the features of generated and EO images."""
    images, pictures = [], []
    vectors = {name: ([], []) for name in features}
    for result in results:
        images.append({"id": result.id, **result.metrics})
        if len(pictures) < grid_rows:
            pictures.append(result.pictures)
        for name, feature in features.items():
            for image, kept in zip((result.generated, result.eo), vectors[name], strict=True):
                kept.append(feature(image[None].to(device)).cpu())
    return images, pictures, vectors


def _distances(vectors: dict[str, tuple[list[Tensor], list[Tensor]]], left_out: LeftOut) -> dict[str, float]:
    """FID and KID for every feature function; two images are the least that has a covariance."""
    distances = {}
    for name, (generated, eo) in vectors.items():
        if len(eo) < 2:
            left_out += [{"metric": kind + name, "reason": "needs at least 2 images"} for kind in ("fid", "kid")]
            continue
        distances["fid" + name] = frechet_distance(torch.cat(generated), torch.cat(eo))
        distances["kid" + name] = kernel_distance(torch.cat(generated), torch.cat(eo))
    return distances


def _describe_sampling(pipe: CDiffSETPipeline, num_inference_steps: int | None) -> dict:
    scheduler = pipe.scheduler.config
    return {
        "num_inference_steps": num_inference_steps or pipe.config.default_num_inference_steps,
        "scheduler": type(pipe.scheduler).__name__,
        "timestep_spacing": scheduler.get("timestep_spacing"),
        "prediction_type": scheduler.prediction_type,
        "autoencoder": None if pipe.vae is None else _describe_autoencoder(pipe.vae),
        "generated_images": "rounded to 8 bits before they are measured",
        "dtype": str(pipe.dtype),
        "device": str(pipe.device),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def _describe_autoencoder(vae: AutoencoderKL | AutoencoderTiny) -> str:
    """Its class, and where it was loaded from."""
    return f"{type(vae).__name__}, {vae.config.get('_name_or_path') or 'in memory'}"


# ------------------------------------------------------------------------------------------------------- output


def quality_table(report: dict) -> str:
    """The means beside the floors and the autoencoder's ceiling, and what was left out, as text."""
    ceiling = {} if report["ceiling"] is None else {"autoencoder": report["ceiling"]}
    columns = {"model": report["mean"], **report["floors"], **ceiling}
    lines = [
        f"{report['data']}, split {report['split']}: {report['n']} images, "
        f"{report['num_inference_steps']} steps of {report['scheduler']}, seed {report['seed']}",
        f"{'':<22}" + "".join(f"{name:>13}" for name in columns),
    ]
    for metric in report["mean"]:
        values = [f"{column[metric]:.4f}" if metric in column else "-" for column in columns.values()]
        lines.append(f"{metric:<22}" + "".join(f"{value:>13}" for value in values))
    lines += [f"left out: {entry['metric']} ({entry['reason']})" for entry in report["left_out"]]
    return "\n".join(lines)


def _check_output(output: str | os.PathLike | None, overwrite: bool) -> None:
    if output is None or overwrite or not Path(output).exists():
        return
    if not Path(output).is_dir() or any(Path(output).iterdir()):
        raise FileExistsError(f"{output} exists and is not an empty folder: choose another output, or set overwrite")


def _write(report: dict, grid, folder: Path) -> None:
    """Write each file aside and rename it, `metrics.json` last: where it stands, the others are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = io.StringIO(newline=""), io.BytesIO()
    writer = csv.DictWriter(table, report["images"][0])
    writer.writeheader()
    writer.writerows(report["images"])
    grid.save(picture, "PNG")
    contents = {
        "per_image.csv": table.getvalue().encode(),
        "grid.png": picture.getvalue(),
        "metrics.json": json.dumps(report, indent=2, allow_nan=False).encode(),
    }
    for name, content in contents.items():
        aside = folder / f".{name}.partial"
        aside.write_bytes(content)
        os.replace(aside, folder / name)
