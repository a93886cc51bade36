"""What an evaluation found, as types: `metrics.json` is a `Report`, written and read here alone."""

import os
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from c_diffset.files import read_json

LARGEST_FILE = 2**28  # bytes; a million images need less
LARGEST_NUMBER = 1e30  # far above what any metric gives, and far below what a plot cannot hold
KINDS = {str: "text in UTF-8", bool: "true or false", int: "a whole number", float: "a finite number"}
KINDS |= {dict: "an object", list: "a list"}
_repr = Repr()
_repr.maxlevel, _repr.maxdict, _repr.maxlist = 2, 2, 2


# ------------------------------------------------------------------------------------------------------ the types


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval over the images; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    def check(self, key: str) -> None:
        """Refuse half an interval, and an interval of nothing."""
        if (self.low is None) != (self.high is None) or (self.value is None and self.low is not None):
            raise ValueError(f"{key} is {shown(vars(self))}: expected a value with both limits, or without")


@dataclass
class Curve:
    """By bin, in ascending order: the mean expected value, the mean measured one, and how many pixels these are."""

    expected: list[float]
    measured: list[float]
    count: list[float]


@dataclass
class Reliability:
    """How a predicted quantity agrees with the measured one."""

    curve: Curve
    calibration_error: Estimate


@dataclass
class Uncertainty:
    """How well one uncertainty tells where the errors are.

    Attributes:
        sparsification: The mean error (levels) of what remains after each of `Trust.fractions` is left out.
        ause: The area between this curve and the oracle's, over the mean error; 0 is best.
        spearman: The rank correlation with the error.
        auroc: The area under the ROC curve of finding known discrepancies; None where there are none.
        average_precision: The average precision of the same; None where there are none.
        ause_difference: The AUSE less that of the first uncertainty; None for the first.
    """

    sparsification: list[float]
    ause: Estimate
    spearman: Estimate
    auroc: Estimate | None = None
    average_precision: Estimate | None = None
    ause_difference: Estimate | None = None


@dataclass
class Reference:
    """The same of a perfect uncertainty (the oracle), or of a constant one (chance)."""

    sparsification: list[float]
    ause: float
    average_precision: float | None = None


@dataclass
class Trust:
    """How far the model's uncertainty can be trusted.

    Attributes:
        pixels: How many valid pixels the images have, which the drawn ones stand for.
        threshold: The error (levels) that `error_probability` speaks of.
        fractions: The shares of the pixels that the sparsification curves leave out.
        uncertainties: By name, what may predict the errors.
        expected_error: None without a calibration.
        in_sample: Whether the calibration was fitted on the images that it is judged by; None without one.
    """

    images: int
    pixels: int
    mean_error: Estimate
    threshold: float | None
    fractions: list[float]
    oracle: Reference
    constant: Reference
    uncertainties: dict[str, Uncertainty]
    expected_error: Reliability | None = None
    error_probability: Reliability | None = None
    in_sample: bool | None = None

    def check(self, key: str) -> None:
        """Refuse lists that do not belong together: a ValueError names them."""
        curves = {f"uncertainties.{name}": found.sparsification for name, found in self.uncertainties.items()}
        curves |= {"oracle": self.oracle.sparsification, "constant": self.constant.sparsification}
        for name, curve in curves.items():
            if not len(curve) == len(self.fractions) > 0:
                found = f"{len(curve)} values beside {len(self.fractions)} fractions"
                raise ValueError(f"{key}.{name}.sparsification has {found}: expected one for each of them")
        for name in ("expected_error", "error_probability"):
            lengths = getattr(self, name) and {len(column) for column in vars(getattr(self, name).curve).values()}
            if lengths and (len(lengths) > 1 or lengths == {0}):
                raise ValueError(f"{key}.{name}.curve has lists of {sorted(lengths)} values: expected equal lengths")


@dataclass
class Judgement:
    """How well a small network tells generated from true images; see `measurement.two_sample`.

    Attributes:
        accuracy: 0.5 where it cannot; with the 95 % interval over places and seeds.
        by_seed: The accuracy of each seed.
        places: How many places there are; each seed learns from half of them and judges the others.
        images: How many images there are, as many generated as true ones.
    """

    accuracy: Estimate
    by_seed: list[float]
    places: int
    images: int


@dataclass
class ImageMetrics:
    """The metrics of one image."""

    id: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class LeftOut:
    """A metric that was not measured, and why."""

    metric: str
    reason: str


def by_reason(entries: list[LeftOut]) -> dict[str, list[str]]:
    """The metrics that were not measured, by the reason, each once."""
    reasons: dict[str, list[str]] = {}
    for entry in dict.fromkeys(entries):
        reasons.setdefault(entry.reason, []).append(entry.metric)
    return reasons


@dataclass
class Difference:
    """The mean difference of `model` to the first model in one metric, with its 95 % interval over `n` images."""

    metric: str
    model: str
    mean: float
    low: float
    high: float
    n: int


@dataclass(kw_only=True)
class Report:
    """What `metrics.json` holds on one model: what was measured, how, and what was found.

    Attributes:
        model: The model's folder or Hub id.
        revision: The revision of a Hub id that was asked for.
        weights: What tells the weights from others: a commit, or a checksum.
        autoencoder_weights: A checksum of the autoencoder's weights, where the model is a folder that holds one.
        data: The data, as they were named in the call.
        data_on_hub: Whether that is a Hub id.
        data_name: What the data are called wherever they lie; see `public_name`.
        split_against_train: What the split shares with the training split, in sentences.
        n: The number of images (or crops) that were measured.
        pairs: How many pairs of the split were read.
        fraction_of_pixels: The share of their pixels that was measured.
        protocol: The name of the protocol that the images were made and measured by.
        protocol_source: Where it is from, and what applies to all its metrics, in sentences.
        realism: From 0, the best estimate, to 1, a plausible sample; None of a model that was not trained for it.
        timesteps: The times of the denoising steps, of many the first two and the last.
        calibration: What the expected error was fitted on; None where the model gives none.
        eo_values: What black and white stand for in the EO images; empty for the full scale of display values.
        loss_networks: The networks in the losses of the model and of all that it comes from, such as "lpips_squeeze".
        mean: The mean of each metric over the images, and the distances of their distributions.
        conventions: The convention of each of these metrics.
        marks: Of each metric that stands on one of `loss_networks`, or on its kin, why it says little of this model.
        floors: The same metrics of what no model should fall below.
        ceiling: The same of the true image after the autoencoder's round trip; None in pixel space.
        mean_colour: The colour (r, g, b in [0, 1]) of the floor of one colour.
        trust: How far the uncertainties can be trusted; None where the model predicts none.
        two_sample: Of each metric of the two-sample test, what is known beside its mean.
        two_sample_places: What its places are; None without the test.
        images: The metrics of each image.
    """

    model: str
    revision: str | None = None
    weights: str | None = None
    autoencoder_weights: str | None = None
    data: str
    data_on_hub: bool = False
    data_name: str = ""
    split: str
    split_against_train: list[str] = field(default_factory=list)
    n: int
    seed: int | None = None
    pairs: str | None = None
    crop_size: int | None = None
    max_images: int | None = None
    fraction_of_pixels: float | None = None
    num_inference_steps: int | None = None
    realism: float | None = None
    scheduler: str | None = None
    timestep_spacing: str | None = None
    timesteps: str | None = None
    prediction_type: str | None = None
    autoencoder: str | None = None
    protocol: str = "own"
    protocol_source: list[str] = field(default_factory=list)
    generated_images: str | None = None
    dtype: str | None = None
    device: str | None = None
    torch: str | None = None
    diffusers: str | None = None
    calibration: str | None = None
    eo_values: str = ""
    loss_networks: list[str] = field(default_factory=list)
    mean: dict[str, float]
    marks: dict[str, str] = field(default_factory=dict)
    conventions: dict[str, str] = field(default_factory=dict)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    ceiling: dict[str, float] | None = None
    mean_colour: list[float] | None = None
    trust: Trust | None = None
    two_sample: dict[str, Judgement] = field(default_factory=dict)
    two_sample_places: str | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    images: list[ImageMetrics]

    def __post_init__(self):
        if not self.data_name:  # the report was written before there was this key
            self.data_name = self.data if self.data_on_hub else Path(self.data).name or self.data

    def check(self, key: str) -> None:
        """Refuse images that are not those of the report: a ValueError names what is wrong."""
        if not len(self.images) == self.n > 0:
            raise ValueError(f"{key}images holds {len(self.images)} images, and n is {self.n}: expected as many")
        for row in self.images:
            if row.metrics.keys() != self.images[0].metrics.keys():
                found = f"{shown(row.id)} has {shown(sorted(row.metrics))}"
                expected = shown(sorted(self.images[0].metrics))
                raise ValueError(f"{key}images: {found}: expected the metrics of the first image, {expected}")

    def to_json(self) -> dict:
        """What `metrics.json` holds."""
        return to_json(self)

    @classmethod
    def from_json(cls, content: Any) -> "Report":
        """The report that `to_json` gave, also one of an earlier version.

        Raises:
            ValueError: `content` is something else; the message names the key, what was found and what is expected.
        """
        return _parse(cls, content, "")


@dataclass
class Comparison:
    """Reports on several models, measured on the same images, and how they differ from the first."""

    models: list[Report]
    differences: list[Difference]


# -------------------------------------------------------------------------------------------------- to and from JSON


def shown(value: Any) -> str:
    """A value as text for an error message: one line, and short."""
    text = _repr.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_report(path: str | os.PathLike) -> Report:
    """The report in `metrics.json`, or in the folder that holds it.

    Raises:
        ValueError: the file holds something else; the message names the file and the key.
        OSError: there is no such file.
    """
    path = Path(path)
    path = path / "metrics.json" if path.is_dir() else path
    if path.is_file() and path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: expected the metrics.json of `c-diffset evaluate`")
    content = read_json(path)
    try:
        return Report.from_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected the metrics.json of one model by `c-diffset evaluate`") from None


def read_reports(path: str | os.PathLike) -> list[Report]:
    """The report that `read_report` finds; of a folder that `evaluate` wrote for several models, theirs in its order.

    Raises:
        ValueError, OSError: as `read_report`.
    """
    folder = Path(path)
    inner = [] if (folder / "metrics.json").exists() else list(folder.glob("*/metrics.json"))
    inner.sort(key=lambda file: (int(number) if (number := file.parent.name.split("_")[0]).isdecimal() else 0, file))
    return [read_report(file) for file in inner] or [read_report(path)]


def to_json(value: Any) -> Any:
    """Dataclasses as objects, an image's metrics beside its id; without optional parts of trust that are absent."""
    if isinstance(value, ImageMetrics):
        return {"id": value.id, **value.metrics}
    if is_dataclass(value):
        parts = {each.name: getattr(value, each.name) for each in fields(value) if _is_written(value, each)}
        return {name: to_json(part) for name, part in parts.items()}
    if isinstance(value, dict):
        return {key: to_json(part) for key, part in value.items()}
    return [to_json(part) for part in value] if isinstance(value, list | tuple) else value


def _is_written(value: Any, each) -> bool:
    return each.default is not None or isinstance(value, Report) or getattr(value, each.name) is not None


_hints = cache(get_type_hints)


def _parse(kind: Any, value: Any, key: str) -> Any:
    """`value` as the type `kind`; ValueError where it is another, with the dotted `key` that it stands at."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # X | None
        return None if value is None else _parse(next(each for each in inner if each is not NoneType), value, key)
    if kind is ImageMetrics and isinstance(value, dict):
        value = {"id": value.get("id"), "metrics": {name: each for name, each in value.items() if name != "id"}}
    if is_dataclass(kind):
        return _parse_fields(kind, value, key)
    if origin is list and isinstance(value, list):
        return [_parse(inner[0], each, f"{key}[{i}]") for i, each in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {_parse(str, name, key): _parse(inner[1], each, _below(key, name)) for name, each in value.items()}
    if not _is_scalar(kind, value):
        raise ValueError(f"{key} is {shown(value)}: expected {KINDS[origin or kind]}")
    return float(value) if kind is float else value


def _is_scalar(kind: Any, value: Any) -> bool:
    if kind in (int, float):
        is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return is_number and abs(value) <= LARGEST_NUMBER  # which NaN is not
    if kind is str:
        return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)
    return kind is bool and isinstance(value, bool)


def _parse_fields(kind: type, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{key or 'the file'} is {shown(value)}: expected {KINDS[dict]}")
    known, parts = {each.name: each for each in fields(kind)}, {}
    if unknown := value.keys() - known.keys():
        raise ValueError(f"{_below(key, min(unknown))} is no key of it")
    for name, each in known.items():
        if name in value:
            parts[name] = _parse(_hints(kind)[name], value[name], _below(key, name))
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{_below(key, name)} is missing")
    parsed = kind(**parts)
    if hasattr(parsed, "check"):
        parsed.check(key)
    return parsed


def _below(key: str, name: str) -> str:
    name = name if name.isidentifier() and len(name) < 40 else shown(name)
    return f"{key}.{name}" if key else name
