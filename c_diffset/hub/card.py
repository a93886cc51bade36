"""The model card: what the model is, what it reads, how well it does and how that was measured, and its limits.

Here are the values, typed; `card.md.j2` is the text, and makes each value fit for its place.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from c_diffset.convert.record import Conversion
from c_diffset.evaluation.calibration import calibrated_on
from c_diffset.evaluation.report import Report, by_reason
from c_diffset.files import public_name
from c_diffset.hub.markdown import code, fence, plain, text
from c_diffset.hub.mlm import FINITE, UNITS, band_names, channel_names, channel_ranges, what_it_does
from c_diffset.hub.run import Run
from c_diffset.measurement.conventions import by_text
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, describe_eo_transform

TEMPLATE = Path(__file__).with_name("card.md.j2")
AUTOENCODER_TEMPLATE = Path(__file__).with_name("autoencoder_card.md.j2")
TAGS = ["sar", "eo", "remote-sensing", "earth-observation", "image-to-image", "diffusion", "c_diffset"]
UPSCALED_TAGS = ["super-resolution", *TAGS[1:]]
LARGEST_CARD = 2**20  # characters


@dataclass
class Facts:
    """What a card tells.

    Attributes:
        base_model: The Hub id of what the weights come from, if it has one.
        origin: What the weights come from, in words; None for a model from scratch.
        conversion: The released weights that the model was converted from.
        pixel_size: The metres a pixel of the training data.
        weights: For the name of each file its bytes and its SHA-256.
    """

    repo: str
    pipe: CDiffSETPipeline
    license: str
    base_model: str | None = None
    origin: str | None = None
    datasets: list[str] = field(default_factory=list)
    run: Run | None = None
    conversion: Conversion | None = None
    report: Report | None = None
    has_grid: bool = False
    pixel_size: float | None = None
    weights: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def has_unjudged_calibration(self) -> bool:
        """Whether the report was made without the calibration that the model has now for its number of steps."""
        report = self.report
        if report is None or report.trust is None:
            return False
        now = calibrated_on(self.pipe, report.num_inference_steps, report.realism)
        return now is not None and (report.trust.expected_error is None or report.calibration not in (None, now))

    @property
    def name(self) -> str:
        return self.repo.split("/")[1]


def model_card(facts: Facts) -> str:
    """The README.md of a model repository, metadata included."""
    transform, report = facts.pipe.config.sar_transform, facts.report
    card = ModelCard.from_template(
        card_data(facts),
        template_path=str(TEMPLATE),
        **{"plain": plain, "text": text, "code": code, "fence": fence, "facts": facts, "pipe": facts.pipe},
        **{"report": report, "trust": report and report.trust, "run": facts.run, "finite": FINITE},
        units=UNITS[transform["units"]],
        unit="of full scale" if transform["units"] == "display" else "dB",
        bands=band_names(transform),
        channels=list(dict.fromkeys(zip(channel_names(transform), channel_ranges(transform), strict=True))),
        eo_values=describe_eo_transform(facts.pipe.config.eo_transform),
        upscale=facts.pipe.config.upscale,
        picture=picture_of(facts.pipe),
        calibration=facts.pipe.config.calibration,
        calibrated_data=public_name(str((facts.pipe.config.calibration or {}).get("data", "unknown data"))),
        columns=quality_columns(report),
        marks=by_text(report.marks) if report else {},
        left_out=by_reason(report.left_out) if report else {},
        without_folders=without_folders,
    )
    if len(str(card)) > LARGEST_CARD:
        raise ValueError(f"the card of {facts.repo} would have {len(str(card))} signs: expected at most {LARGEST_CARD}")
    return str(card)


def picture_of(pipe: CDiffSETPipeline) -> str | None:
    """What an image file for the model is called in examples; None where it reads no such file."""
    upscaled = pipe.config.upscale > 1
    bands = len(band_names(pipe.config.sar_transform))
    if pipe.config.sar_transform["units"] != "display" or bands != (3 if upscaled else 1):
        return None
    return "low_resolution.png" if upscaled else "sar.png"


def autoencoder_card(repo: str, loss_networks: list[str]) -> str:
    """The README.md of the repository of an autoencoder alone, with the networks in the losses of its decoder."""
    data = ModelCardData(license="unknown", library_name="diffusers", tags=TAGS, model_name=repo.split("/")[1])
    return str(
        ModelCard.from_template(data, template_path=str(AUTOENCODER_TEMPLATE), repo=repo, networks=loss_networks)
    )


def card_data(facts: Facts) -> ModelCardData:
    """The metadata, with the metrics as `model-index`."""
    return ModelCardData(
        license=facts.license,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        base_model=facts.base_model,
        tags=TAGS if facts.pipe.config.upscale == 1 else UPSCALED_TAGS,
        datasets=facts.datasets or None,
        model_name=facts.name,
        eval_results=eval_results(facts.report, what_it_does(facts.pipe)) or None,
    )


def eval_results(report: Report | None, task: str = "SAR to EO image translation") -> list[EvalResult]:
    """The mean metrics of a report, each with the protocol it was measured by."""
    if report is None:
        return []
    protocol = {
        "n": report.n,
        "num_inference_steps": report.num_inference_steps,
        "realism": report.realism,
        "seed": report.seed,
        "crop_size": report.crop_size,
    }
    return [
        EvalResult(
            task_type="image-to-image",
            task_name=task,
            dataset_type=plain(report.data) if report.data_on_hub else "custom",
            dataset_name=plain(report.data_name),
            dataset_split=plain(report.split),
            dataset_args={key: value for key, value in protocol.items() if value is not None},
            metric_type=plain(metric),
            metric_name=plain(metric),
            metric_value=round(value, 4),
            metric_args={
                key: plain(texts[metric])
                for key, texts in (("convention", report.conventions), ("mark", report.marks))
                if metric in texts
            }
            or None,
        )
        for metric, value in report.mean.items()
    ]


def quality_columns(report: Report | None) -> dict[str, dict[str, float]]:
    """The metrics of the model beside those of the floors and the ceiling."""
    if report is None:
        return {}
    floors = {f"floor: {name.replace('_', ' ')}": values for name, values in report.floors.items()}
    ceiling = {} if report.ceiling is None else {"ceiling: autoencoder": report.ceiling}
    return {"model": report.mean, **floors, **ceiling}


def without_folders(reason: str) -> str:
    """The sentence with every path cut down to its last part."""
    return re.sub(r"(?<![\w/:])/(?:[^\s/]+/)*", "", reason)
