"""The model card: what the model is, what it reads, how well it does and how that was measured, and its limits."""

import re
from dataclasses import dataclass, field

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from c_diffset.evaluation.compare import data_name
from c_diffset.files import public_name
from c_diffset.hub.folder import Run
from c_diffset.hub.mlm import FINITE, UNITS, band_names
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

TAGS = ["sar", "eo", "remote-sensing", "earth-observation", "image-to-image", "diffusion", "c_diffset"]
LICENSE_NOTES = {
    "unknown": "No licence was chosen: ask the author before you use the weights.",
    "openrail++": "CreativeML Open RAIL++-M, with its use restrictions, which weights of Stable Diffusion 2 keep. "
    "Whoever passes them on passes a copy of it on, too.",
    "creativeml-openrail-m": "CreativeML Open RAIL-M, with its use restrictions, which weights of Stable Diffusion 1 "
    "keep. Whoever passes them on passes a copy of it on, too.",
}
LIMITS = """\
- Every image is **synthetic**: plausible, not observed. It shows what an EO image could look like, not what stood
  there. Colours, crops, roofs, vehicles and small buildings may be invented, and real ones may be missing.
- Confidence tells where the model was unsure. It cannot tell what is really there, and is no measure of risk.
- Other sensors, bands, polarisations, calibrations, incidence angles, pixel sizes, regions, climates and seasons than
  those of the training data make the images worse without a warning.
- Not for decisions about people or property without an observed image: targeting, surveillance, law enforcement,
  insurance, disaster relief. Not to pass off as observation: keep the mark "synthetic" with every image you hand on.
"""
CITATIONS = {
    "c_diffset": """\
@article{do2024cdiffset,
  title   = {C-DiffSET: Leveraging Latent Diffusion for SAR-to-EO Image Translation with Confidence-Guided Reliable
             Object Generation},
  author  = {Do, Jeonghyeok and Lee, Jaehyup and Lee, Seungchul and Kim, Munchurl},
  journal = {arXiv preprint arXiv:2411.10788},
  year    = {2024}
}""",
    "pixel": """\
@article{bai2024conditional,
  title   = {Conditional Diffusion for SAR to Optical Image Translation},
  author  = {Bai, Xinyu and Pu, Xinyang and Xu, Feng},
  journal = {IEEE Geoscience and Remote Sensing Letters},
  year    = {2024}
}""",
}
METHODS = {
    "consistency": "Distilled to few steps by consistency distillation ([arXiv:2407.06095](https://arxiv.org/abs/2407.06095)).",
    "time_aware": "Distilled to one step by time-aware distillation ([arXiv:2408.07476](https://arxiv.org/abs/2408.07476)).",
}


@dataclass
class Facts:
    """What a card tells.

    Attributes:
        base_model: Hub id of what the weights come from, if it has one.
        origin: what the weights come from, in words; None for a model from scratch.
        evaluation: a report of `evaluate`.
        pixel_size: metres a pixel of the training data.
        weights: name of each file to (bytes, SHA-256).
    """

    repo: str
    pipe: CDiffSETPipeline
    license: str
    base_model: str | None = None
    origin: str | None = None
    datasets: list[str] = field(default_factory=list)
    run: Run | None = None
    evaluation: dict | None = None
    has_grid: bool = False
    pixel_size: float | None = None
    weights: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.repo.split("/")[1]


def model_card(facts: Facts) -> str:
    """The README.md of a model repository, metadata included."""
    sections = {
        "Input": describe_input(facts),
        "Use": describe_use(facts),
        "Confidence": "\n\n".join([describe_confidence(facts.pipe), *describe_trust(facts.evaluation)]),
        "Metrics": describe_metrics(facts.evaluation),
        "Training": describe_training(facts),
        "Limits and misuse": LIMITS,
        "Licence": f"`{facts.license}`. {LICENSE_NOTES.get(facts.license, '')}",
        "Citation": f"```bibtex\n{CITATIONS['pixel' if facts.pipe.vae is None else 'c_diffset']}\n```",
        "Files": describe_files(facts.weights),
    }
    text = f"# {facts.name}\n\n{describe_model(facts)}\n\n"
    text += "\n\n".join(f"## {title}\n\n{body.strip()}" for title, body in sections.items()) + "\n"
    return str(ModelCard(f"---\n{card_data(facts).to_yaml()}\n---\n{text}"))


def card_data(facts: Facts) -> ModelCardData:
    """The metadata, with the metrics as `model-index`."""
    return ModelCardData(
        license=facts.license,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        base_model=facts.base_model,
        tags=TAGS,
        datasets=facts.datasets or None,
        model_name=facts.name,
        eval_results=eval_results(facts.evaluation) or None,
    )


def eval_results(report: dict | None) -> list[EvalResult]:
    """The mean metrics of a report, each with the protocol it was measured by."""
    if report is None:
        return []
    keys, conventions = ("n", "num_inference_steps", "seed", "crop_size"), report.get("conventions", {})
    protocol = {key: report[key] for key in keys if report.get(key) is not None}
    return [
        EvalResult(
            task_type="image-to-image",
            task_name="SAR to EO image translation",
            dataset_type=report["data"] if report.get("data_on_hub") else "custom",
            dataset_name=plain(data_name(report)),
            dataset_split=report["split"],
            dataset_args=protocol,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 4),
            metric_args={"convention": conventions[metric]} if metric in conventions else None,
        )
        for metric, value in report["mean"].items()
        if value is not None
    ]


def plain(text: object) -> str:
    """Text of a report, fit for one line or one cell of Markdown."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


# ------------------------------------------------------------------------------------------------------- sections


def describe_model(facts: Facts) -> str:
    """What it is, and that its images are not observed."""
    pipe = facts.pipe
    space = "pixel space" if pipe.vae is None else f"the latent space of {type(pipe.vae).__name__}"
    method = ((facts.run and facts.run.settings) or {}).get("method")
    lines = [
        "Translates synthetic aperture radar (SAR) images of the Earth to electro-optical (EO) images by conditional "
        f"diffusion in {space}" + (", with a confidence for every pixel." if pipe.predicts_variance else "."),
        *([METHODS[method]] if method in METHODS else []),
        "",
        "**Every EO image it makes is synthetic: plausible, not observed.**",
    ]
    if facts.has_grid:
        lines += ["", "![SAR, generated, EO and confidence](grid.png)"]
    return "\n".join(lines)


def describe_input(facts: Facts) -> str:
    """Units, range, channels, bands, pixel size."""
    pipe, transform = facts.pipe, facts.pipe.config.sar_transform
    names, channels, limits = band_names(transform), transform["channels"], transform["range"]
    unit = "of full scale" if transform["units"] == "display" else "dB"
    each = limits if isinstance(limits[0], list | tuple) else [limits] * len(channels)
    pictured = [" - ".join(names[int(band)] for band in str(channel).split("-")) for channel in channels]
    ranges = [f"{what} from {low:g} to {high:g}" for what, (low, high) in zip(pictured, each, strict=True)]
    crop = ((facts.run and facts.run.settings.get("data")) or {}).get("crop_size")
    size = "not recorded" if facts.pixel_size is None else f"{facts.pixel_size:g} m"
    return "\n".join(
        [
            f"- Units: {UNITS[transform['units']]}.",
            f"- Bands: {len(names)} ({', '.join(names)}).",
            f"- Channels of the model and their fixed ranges ({unit}), mapped to [-1, 1] and clipped, never scaled per "
            f"image: {'; '.join(dict.fromkeys(ranges))}.",
            f"- Pixel size of the training data: {size}.",
            f"- Any height and width; padded to a multiple of {pipe.size_multiple} pixels"
            + (f". Trained on crops of {crop} pixels." if crop else "."),
            f"- {FINITE} `mlm.json` says the same for machines.",
        ]
    )


def describe_use(facts: Facts) -> str:
    """With c_diffset, and with diffusers alone; on an image as the model reads it."""
    transform = facts.pipe.config.sar_transform
    names = band_names(transform)
    if transform["units"] == "display" and len(names) == 1:
        modules, read = "import PIL.Image", 'sar = PIL.Image.open("sar.png")'
    else:
        modules = "import numpy as np\nimport rasterio"
        read = (
            'with rasterio.open("sar.tif") as scene:\n'
            f"    sar = np.moveaxis(scene.read(), 0, -1)  # H x W x {len(names)}: {', '.join(names)}"
        )
    error = "" if facts.pipe.config.calibration is None else "output.expected_error  # 1 x H x W, 8-bit levels\n"
    confidence = "output.confidence  # 1 x H x W, in (0, 1]\n" if facts.pipe.predicts_variance else ""
    return f"""\
```python
{modules}
from c_diffset import CDiffSETPipeline

{read}
pipe = CDiffSETPipeline.from_pretrained("{facts.repo}")
output = pipe(sar)
output.images[0].save("eo.png")
{confidence}{error}```

Without c_diffset installed, by the code in `pipeline.py`:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{facts.repo}", custom_pipeline="{facts.repo}", trust_remote_code=True)
```

Whole georeferenced scenes, with c_diffset installed:

```bash
c-diffset translate scene.tif --model {facts.repo} --output eo --confidence
```

Number of steps where none is named: {facts.pipe.config.default_num_inference_steps}, of
{type(facts.pipe.scheduler).__name__}."""


def describe_confidence(pipe: CDiffSETPipeline) -> str:
    """The confidence, and what it was calibrated on, if it was."""
    if not pipe.predicts_variance:
        return "This model predicts no variance: `output.confidence` is None."
    text = "`output.confidence` (B x H x W) lies in (0, 1] and can be compared between images. "
    calibration = pipe.config.calibration
    if calibration is None:
        return text + "It is not calibrated: `output.expected_error` is None. `c-diffset calibrate` changes that."
    rows = [
        f"| {steps} | {knots['expected_error'][0]:.1f} to {knots['expected_error'][-1]:.1f} "
        f"| {knots['probability'][0]:.2f} to {knots['probability'][-1]:.2f} |"
        for steps, knots in calibration["steps"].items()
    ]
    data = public_name(str(calibration.get("data", "unknown data")))
    origin = f"{calibration.get('n', 'an unknown number of')} images of {data}, split {calibration.get('split', '?')}"
    text += (
        f"It is calibrated on {plain(origin)}: `output.expected_error` is the expected absolute error of a pixel in "
        "8-bit levels (mean over red, green, blue), `output.error_probability` the probability that it exceeds "
        f"{calibration['threshold']:g} levels. On other data than such, both may be wrong."
    )
    return "\n".join([text, "", "| steps | expected error | probability |", "|---|---|---|", *rows])


def describe_trust(report: dict | None) -> list[str]:
    """How well the uncertainties of a report tell where errors are, as paragraphs; none where it was not measured."""
    trust = (report or {}).get("trust")
    if not trust:
        return []
    known = trust["uncertainties"]
    columns = {"ause": "AUSE", "spearman": "rank correlation", "auroc": "AUROC", "average_precision": "precision"}
    columns = {key: title for key, title in columns.items() if any(key in entry for entry in known.values())}
    table = ["| uncertainty | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, entry in known.items():
        table.append(f"| {plain(name)} | " + " | ".join(_interval(entry.get(key)) for key in columns) + " |")
    text = (
        f"Measured with the metrics below ({trust['images']} images, 95 % intervals over images). AUSE: area between "
        "the sparsification curve and the oracle's, 0 is best; rank correlation with the absolute error; AUROC and "
        "average precision of objects that are in one image only, where they are known."
    )
    error = (trust.get("expected_error") or {}).get("calibration_error")
    place = " on the images of the calibration, which says nothing of others" if trust.get("in_sample") else ""
    calibrated = [] if error is None else [f"Calibration error of `expected_error`{place}: {_interval(error)} levels."]
    return [text, "\n".join(table), *calibrated]


def _interval(found: dict | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    interval = "" if found.get("low") is None else f" ({found['low']:.3f} to {found['high']:.3f})"
    return f"{found['value']:.3f}{interval}"


def describe_metrics(report: dict | None) -> str:
    """Means beside floors and ceiling, and the protocol."""
    if report is None:
        return "Not measured."
    ceiling = {} if report.get("ceiling") is None else {"ceiling: autoencoder": report["ceiling"]}
    floors = {f"floor: {plain(name).replace('_', ' ')}": values for name, values in report.get("floors", {}).items()}
    columns = {"model": report["mean"], **floors, **ceiling}
    table = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for metric in report["mean"]:
        values = [f"{column[metric]:.4f}" if column.get(metric) is not None else "-" for column in columns.values()]
        table.append(f"| {plain(metric)} | " + " | ".join(values) + " |")
    apart = report.get("split_against_train") or []
    facts = [
        f"n = {report['n']} images of {plain(data_name(report))}, split {plain(report['split'])}",
        plain(f"{report.get('num_inference_steps')} steps of {report.get('scheduler')}, seed {report.get('seed')}"),
        "whole images" if report.get("crop_size") is None else f"crops of {plain(report['crop_size'])} pixels",
        *([f"split against train: {plain('; '.join(apart))}"] if apart else []),
    ]
    notes = [f"- {plain(metric)}: {plain(text)}" for metric, text in report.get("conventions", {}).items()]
    for entry in report.get("left_out", []):
        reason = re.sub(r"(?<![\w/:])/(?:[^\s/]+/)*", "", entry["reason"])  # of paths, the last part alone
        notes.append(f"- left out: {plain(entry['metric'])} ({plain(reason)})")
    return "\n".join(["Protocol: " + "; ".join(facts) + ".", "", *table, "", *notes])


def describe_training(facts: Facts) -> str:
    """The settings of the run."""
    base = f"Weights start from {facts.origin}." if facts.origin else "The UNet was trained from scratch."
    if facts.run is None:
        return "The run's settings are not recorded." + (f" {base}" if facts.origin else "")
    updates = "" if facts.run.updates is None else f" {facts.run.updates} updates; the weights are their average (EMA)."
    settings = yaml.safe_dump(facts.run.settings, sort_keys=False).strip()
    return f"{base}{updates}\n\n```yaml\n{settings}\n```"


def describe_files(weights: dict[str, tuple[int, str]]) -> str:
    """Weights and their checksums."""
    rows = [f"| `{name}` | {size} | `{sha256}` |" for name, (size, sha256) in weights.items()]
    lines = ["| weights (safetensors) | bytes | SHA-256 |", "|---|---|---|", *rows]
    return "\n".join([*lines, "", "`sha256sum -c checksums.sha256` checks them."])
