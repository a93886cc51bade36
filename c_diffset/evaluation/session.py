"""What all models of one evaluation share, and what is measured, collected and written for each of them."""

import csv
import io
import os
import shlex
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from tqdm.auto import tqdm

from c_diffset.evaluation.calibration import absolute_error, calibrated_on, is_in_sample, pixel_variance
from c_diffset.evaluation.instruments import Features
from c_diffset.evaluation.judged import JudgedImages
from c_diffset.evaluation.page.pictures import Gallery
from c_diffset.evaluation.reliability import PixelSample
from c_diffset.evaluation.report import ImageMetrics, Judgement, LeftOut, Report, by_reason
from c_diffset.evaluation.sampling import choose_spacing, choose_steps, departures, describe_sampling, sampled_at
from c_diffset.evaluation.split import SplitPairs
from c_diffset.files import check_id, check_writable, write_file, write_json
from c_diffset.history import read_loss_networks
from c_diffset.measurement.conventions import by_text, convention, marks
from c_diffset.measurement.measure import PairResult, evaluate_pairs, floors_and_ceiling, mean_metrics
from c_diffset.measurement.metrics import Instruments, frechet_distance, kernel_distance
from c_diffset.measurement.picture_grid import make_grid, to_pixels
from c_diffset.measurement.protocols import OWN, Protocol
from c_diffset.pipelines.pipeline_cdiffset import (
    EO_DISPLAY,
    SAR_DISPLAY,
    CDiffSETPipeline,
    check_eo_transform,
    check_sar_transform,
    describe_eo_transform,
)

Model = CDiffSETPipeline | str | os.PathLike
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what formulas begin with


# ------------------------------------------------------------------------------------------ models and their use


def name_of(model: Model) -> str:
    """Where a model is from."""
    return str((model.name_or_path or "in memory") if isinstance(model, CDiffSETPipeline) else model)


def check_models(models: list[Model], revision: str | None, vae: str | None) -> tuple[dict, list[dict]]:
    """Find what is wrong with any of the models before the first is measured.

    Returns:
        The `eo_transform` of all, and the `sar_transform` of each.
    """
    if vae is not None and any(isinstance(model, CDiffSETPipeline) for model in models):
        raise ValueError("vae is set, but the model is a pipeline in memory: give it to `load_pipeline` instead")
    transforms, reads = [], []
    for model in models:
        given = isinstance(model, CDiffSETPipeline)
        config = model.config if given else CDiffSETPipeline.load_config(model, revision=revision)
        transforms.append(check_eo_transform(config.get("eo_transform") or EO_DISPLAY))
        reads.append(check_sar_transform(config.get("sar_transform") or SAR_DISPLAY))
        if transforms[-1] != transforms[0]:
            found = f"{name_of(model)} has {transforms[-1]}, but {name_of(models[0])} {transforms[0]}"
            raise ValueError(f"the models' eo_transform differ: {found}: evaluate them one by one")
    return transforms[0], reads


def networks_in_losses(model: Model, revision: str | None, vae: str | None) -> list[str]:
    """The networks in the losses of a model, and in those of the autoencoder that takes the place of its own."""
    source = model.name_or_path or "" if isinstance(model, CDiffSETPipeline) else model
    found = read_loss_networks(source, revision) + ([] if vae is None else read_loss_networks(vae))
    return list(dict.fromkeys(found))


def eo_values(eo_transform: dict) -> str:
    """What a report says on EO values: nothing where they are display values of full scale."""
    return "" if eo_transform == EO_DISPLAY else describe_eo_transform(eo_transform)


@dataclass(kw_only=True)
class Session:
    """What all models of a run share: the images, how they are sampled, and what measures them."""

    pairs: SplitPairs
    facts: dict
    num_inference_steps: int | None
    realism: float | None
    timestep_spacing: str | None
    batch_size: int
    spread_samples: int
    grid_rows: int
    instruments: Instruments
    features: Features
    left_out: list[LeftOut]
    two_sample: bool = False

    def measure(
        self, pipe: CDiffSETPipeline, identity: dict, gallery: Gallery, folder: Path | None = None
    ) -> tuple[Report, PIL.Image.Image]:
        """The report on one model, and its picture grid; `gallery` sees every image, and `folder` takes them in."""
        with sampled_at(pipe, choose_spacing(pipe, self.timestep_spacing, self.instruments.protocol)):
            return self._measure(pipe, identity, gallery, folder)

    def _measure(
        self, pipe: CDiffSETPipeline, identity: dict, gallery: Gallery, folder: Path | None
    ) -> tuple[Report, PIL.Image.Image]:
        """The same, of a pipeline with the scheduler that it is to be measured with."""
        pipe.set_progress_bar_config(disable=True)
        protocol = self.instruments.protocol
        steps = choose_steps(pipe, self.num_inference_steps, protocol)
        self.instruments.to(pipe.device)
        if "" in self.features:
            self.features[""].to(pipe.device)
        judged = JudgedImages()
        images, pictures, vectors, pixels = self._collect(pipe, steps, gallery, folder, judged)
        if not images:
            data, split = self.facts["data"], self.facts["split"]
            raise ValueError(f"{data}, split {split}: no image to evaluate (crop_size {self.pairs.crop_size})")
        again = tqdm(self.pairs, "floors and ceiling", len(images), leave=False)
        floors, ceiling = floors_and_ceiling(again, pipe, self.facts["mean_colour"], self.instruments)
        left_out = list(self.left_out)
        judgements, places = judged.judge(self.pairs, pipe.device, left_out) if self.two_sample else ({}, None)
        means = mean_metrics([row.metrics for row in images]) | _distances(vectors, protocol, left_out)
        means |= {name: each.accuracy.value for name, each in judgements.items() if each.accuracy.value is not None}
        calibration = pipe.config.calibration or {}
        trust = pixels.report(calibration.get("threshold")) if pixels.images else None
        if trust and trust.expected_error:
            place = (self.facts["data_name"], self.facts["split"], self.pairs.first_image)
            trust = replace(trust, in_sample=is_in_sample(calibration, *place))
        report = Report(
            **identity,
            **self.facts,
            n=len(images),
            **self.pairs.describe(),
            **describe_sampling(pipe, steps),
            realism=pipe.choose_realism(self.realism, steps),
            protocol=protocol.name,
            protocol_source=[*protocol.source, *self._departures(pipe, steps)],
            generated_images=f"{'' if protocol.rounded else 'not '}rounded to 8 bits before they are measured",
            calibration=self._calibrated_on(pipe, steps),
            mean=means,
            marks=marks(means, identity["loss_networks"]),
            conventions={metric: convention(metric, protocol) for metric in means},
            floors=floors,
            ceiling=ceiling,
            trust=trust,
            two_sample=judgements,
            two_sample_places=places,
            left_out=left_out,
            images=images,
        )
        return report, make_grid(pictures)

    def _departures(self, pipe: CDiffSETPipeline, steps: int) -> list[str]:
        """How the samples are not made as the protocol has it."""
        protocol = self.instruments.protocol
        return departures(pipe, steps, choose_spacing(pipe, self.timestep_spacing, protocol), protocol)

    def _calibrated_on(self, pipe: CDiffSETPipeline, steps: int) -> str | None:
        """What the expected error was fitted on, and whether the samples were of other times then."""
        fitted = calibrated_on(pipe, steps, self.realism)
        changed = choose_spacing(pipe, self.timestep_spacing, self.instruments.protocol)
        return f"{fitted}, at the model's own times" if fitted and changed else fitted

    def _collect(self, pipe: CDiffSETPipeline, steps: int, gallery: Gallery, folder: Path | None, judged: JudgedImages):
        """Rows of metrics and of pictures, for every feature function those of generated and EO images, and pixels."""
        results = evaluate_pairs(
            pipe,
            self.pairs,
            steps,
            self.batch_size,
            self.facts["seed"],
            self.instruments,
            self.spread_samples,
            self.realism,
        )
        results = tqdm(results, "evaluate", self.pairs.expected_images, unit="image")
        images, pictures, pixels = [], [], PixelSample()
        vectors = {name: ([], []) for name in self.features}
        for number, result in enumerate(results):
            images.append(ImageMetrics(printable(result.id), result.metrics))
            gallery.add(number, result)
            if self.two_sample:
                judged.add(result)
            if folder is not None:
                write_images(folder, result)
            if number < self.grid_rows:
                pictures.append(result.pictures)
            if result.confidence is not None or result.spread is not None:
                add_pixels(pixels, result, f"spread of {self.spread_samples} samples")
            for name, feature in self.features.items():
                for image, kept in zip((result.generated, result.eo), vectors[name], strict=True):
                    kept.append(feature(image[None].to(pipe.device)).cpu())
        return images, pictures, vectors, pixels


def add_pixels(sample: PixelSample, result: PairResult, spread: str) -> None:
    """Add one image's errors and what predicts them: the model's variance, and as baselines the spread, under that
    name, and the SAR image's gradient, whose magnitude costs nothing: edges are where images go wrong.
    """
    uncertainties = {}
    if result.confidence is not None:
        uncertainties["predicted variance"] = pixel_variance(result)
    if result.spread is not None:
        uncertainties[spread] = result.spread.numpy()
    uncertainties[f"{result.given} gradient"] = np.hypot(*np.gradient(result.sar[0].numpy()))
    optional = (result.expected_error, result.error_probability, result.discrepancy, result.mask)
    sample.add(absolute_error(result), uncertainties, *(None if x is None else x.numpy() for x in optional))


def _distances(
    vectors: dict[str, tuple[list[Tensor], list[Tensor]]], protocol: Protocol, left_out: list[LeftOut]
) -> dict[str, float]:
    """FID and KID, where the protocol has them, for every feature function; a covariance takes at least two images."""
    distances = {}
    for name, (generated, eo) in vectors.items():
        kinds = [kind for kind in ("fid", "kid") if protocol.sets is None or kind in protocol.sets]
        if len(eo) < 2:
            reason = "it compares sets of images: measure at least 2"
            left_out += [LeftOut(kind + name, reason) for kind in kinds]
            continue
        for kind in kinds:
            distance = {"fid": frechet_distance, "kid": partial(kernel_distance, **_subsets(protocol))}[kind]
            distances[kind + name] = distance(torch.cat(generated), torch.cat(eo))
    return distances


def _subsets(protocol: Protocol) -> dict[str, int]:
    """The options of `kernel_distance`."""
    return dict(zip(("subset_size", "subsets"), protocol.kid_subsets, strict=True))


# ------------------------------------------------------------------------------------------------------- output


def quality_table(report: Report) -> str:
    """The means beside the floors and the autoencoder's ceiling, and what was left out, as text."""
    ceiling = {} if report.ceiling is None else {"autoencoder": report.ceiling}
    columns = {"model": report.mean, **report.floors, **ceiling}
    lines = [
        f"{report.model} on {report.data}, split {report.split}: {report.n} images, "
        f"{report.num_inference_steps} steps of {report.scheduler}, seed {report.seed}, "
        f"{'' if report.realism is None else f'realism {report.realism:g}, '}"
        f"in {str(report.dtype).removeprefix('torch.')}",
        f"{'':<22}" + "".join(f"{name:>13}" for name in columns),
    ]
    if report.protocol != OWN.name:
        lines.insert(1, f"protocol {report.protocol}: " + " ".join(report.protocol_source))
        lines.insert(2, f"times of the steps: {report.timesteps}")
    for metric in report.mean:
        values = [f"{column[metric]:.4f}" if metric in column else "-" for column in columns.values()]
        name = f"{metric} *" if metric in report.marks else metric
        lines.append(f"{name:<22}" + "".join(f"{value:>13}" for value in values))
    lines += [f"* {', '.join(names)}: {text}" for text, names in by_text(report.marks).items()]
    lines += [judgement_line(metric, found, report) for metric, found in report.two_sample.items()]
    if report.protocol != OWN.name:
        lines += [f"{metric}: {text}" for metric, text in report.conventions.items()]
    lines += [f"left out: {', '.join(names)} ({reason})" for reason, names in by_reason(report.left_out).items()]
    return "\n".join(lines)


def judgement_line(metric: str, found: Judgement, report: Report) -> str:
    """The interval of a two-sample test and what it is of, as text."""
    seeds = " ".join(f"{value:.3f}" for value in found.by_seed)
    interval = f"{found.accuracy.low:.3f} to {found.accuracy.high:.3f}"
    return f"{metric}: 95 % {interval}; by seed {seeds}; {found.places} places ({report.two_sample_places})"


def closing(report: Report, models: int, folder: Path) -> str:
    """What was written and what comes next, in two lines; `report` is that of the first of so many models."""
    place = "beside it" if models == 1 else "in a folder for each model"
    lines = [f"{folder / 'report.html'}: open it in a browser; metrics.json, per_image.csv and grid.png are {place}"]
    named = {key: shlex.quote(value) for key, value in (("model", report.model), ("data", report.data))}
    if not Path(report.model).is_dir():  # only a folder can be calibrated and published
        return lines[0]
    if models == 1 and report.trust and not report.trust.expected_error:
        lines.append(f"next: c-diffset calibrate --model {named['model']} --data {named['data']}, then evaluate again")
    else:
        model = named["model"] if models == 1 else "MODEL"
        lines.append(f"next: c-diffset publish {model} --repo USER/NAME --evaluation {shlex.quote(str(folder))}")
    return "\n".join(lines)


def check_output(output: str | os.PathLike | None, overwrite: bool) -> None:
    if output is None:
        return
    folder = Path(output)
    if not overwrite and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder: choose another output, or set overwrite")
    check_writable(folder)


def write_files(report: Report, grid: PIL.Image.Image, folder: Path) -> None:
    """Write the files of one model, `metrics.json` last: where it stands, the others are complete."""
    picture = io.BytesIO()
    grid.save(picture, "PNG")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "per_image.csv", image_table(report))
    write_file(folder / "grid.png", picture.getvalue())
    write_json(folder / "metrics.json", report.to_json())


def write_images(folder: Path, result: PairResult) -> None:
    """One generated image and its true one as 8-bit files, `generated/ID.png` and `true/ID.png`.

    Raises:
        ValueError: the id of the pair cannot be the name of a file.
    """
    name = f"{check_id(result.id, 'save_images')}.png"
    for part, image in (("generated", result.generated), ("true", result.eo)):
        file = io.BytesIO()
        PIL.Image.fromarray(to_pixels(image, part)).save(file, "PNG")
        (folder / part).mkdir(parents=True, exist_ok=True)
        write_file(folder / part / name, file.getvalue())


def image_table(report: Report) -> str:
    """The metrics of each image as CSV; a quote stands before an id that a spreadsheet would take for a formula."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(["id", *report.images[0].metrics])
    for row in report.images:
        quote = "'" if row.id.lstrip(" ").startswith(FORMULA) else ""
        writer.writerow([quote + row.id, *row.metrics.values()])
    return table.getvalue()


def printable(text: str) -> str:
    """A file's name as text that can be written: bytes of it that are no UTF-8 become question marks."""
    return text.encode(errors="replace").decode()
