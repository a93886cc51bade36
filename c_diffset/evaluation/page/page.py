"""The report as one self-contained HTML page: values for `report.html.j2`, which escapes every one of them."""

import re
from dataclasses import fields
from itertools import zip_longest

from jinja2 import Environment, PackageLoader, StrictUndefined

from c_diffset.evaluation.page.pictures import GalleryView
from c_diffset.evaluation.page.plots import Line, Plot
from c_diffset.evaluation.report import Difference, Reliability, Report, Trust, by_reason
from c_diffset.measurement.conventions import by_text, convention

# what a report holds beside the protocol
NOT_PROTOCOL = {"mean", "floors", "ceiling", "images", "conventions", "left_out", "trust", "data_name"}
NOT_PROTOCOL |= {"two_sample", "marks"}
FLOORS = {
    "sar_grey": "floor: SAR\u00a0in\u00a0grey",
    "bicubic": "floor: bicubic\u00a0enlargement",
    "mean_colour": "floor: one\u00a0colour",
}
CEILING = "ceiling: autoencoder"
CARD_METRICS = ("lpips", "dists", "psnr", "ssim", "scc", "confidence_spearman")
STATISTICS = {
    "ause": "AUSE",
    "ause_difference": "AUSE, less the first's",
    "spearman": "Rank correlation",
    "auroc": "AUROC",
    "average_precision": "Average precision",
}
VERDICTS = BETTER, WORSE, DIFFERS, OPEN, EQUAL = ("better", "worse", "different", "not distinguishable", "equal")
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)  # and turns of direction


def make_page(
    reports: list[Report], names: list[str], differences: list[Difference], gallery: GalleryView | None = None
) -> str:
    """The page of one model or of several that were measured on the same images.

    Args:
        reports: what was found for each model.
        names: what the page calls the models, all different.
        differences: how the other models differ from the first.
        gallery: the worst and the best images; None for a page without pictures.

    Returns:
        A complete document. Every string in the arguments is escaped.
    """
    trusts = {name: report.trust for name, report in zip(names, reports, strict=True) if report.trust}
    calibrated = {name: trust for name, trust in trusts.items() if trust.expected_error}
    uncalibrated = [name for name in trusts if name not in calibrated]
    found = [entry for trust in trusts.values() for entry in trust.uncertainties.values()]
    galleries = {kind: getattr(gallery, kind) for kind in ("worst", "best") if gallery and getattr(gallery, kind)}
    present = {"Differences": differences, "Expected error": calibrated, "Confidence": trusts}
    titles = ["Metrics", *(title for title, content in present.items() if content)]
    columns, first = _columns(reports, names), reports[0]
    return ENVIRONMENT.get_template("report.html.j2").render(
        names=names,
        reports=reports,
        first=first,
        titles=[*titles, *(f"{kind.title()} images" for kind in galleries), "Protocol"],
        steps=sorted({str(report.num_inference_steps) for report in reports}),
        columns=columns,
        metrics=_metrics(reports, columns),
        marked={name: {*report.marks, *first.marks} for name, report in zip(names, reports, strict=True)},
        marks=[(name, by_text(report.marks)) for name, report in zip(names, reports, strict=True)],
        conventions=_conventions(reports),
        left_out=by_reason([entry for report in reports for entry in report.left_out]),
        differences=differences,
        judgements=[
            (name, metric, found)
            for name, report in zip(names, reports, strict=True)
            for metric, found in report.two_sample.items()
        ],
        trusts=trusts,
        calibrated=calibrated,
        calibrations={name: report.calibration for name, report in zip(names, reports, strict=True)},
        uncalibrated=uncalibrated,
        reliability=_reliability_plots(calibrated, names),
        sparsification=_sparsification_plots(trusts),
        statistics={
            key: title for key, title in STATISTICS.items() if any(getattr(entry, key) is not None for entry in found)
        },
        has_spread=any(name.startswith("spread") for trust in trusts.values() for name in trust.uncertainties),
        chance_precision=next((x for x in (t.constant.average_precision for t in trusts.values()) if x is not None), 0),
        in_sample=[name for name, trust in calibrated.items() if trust.in_sample],
        gallery=gallery,
        galleries=galleries,
        protocol=_protocol(reports),
    )


# ------------------------------------------------------------------------------------------------------- numbers


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """A number with a true minus sign, which is as wide as a plus."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def digits_for(values: list[float]) -> int:
    """Decimals that leave three or four significant digits of the largest value."""
    largest = max(map(abs, values))
    return 2 if largest >= 10 else 3 if largest >= 1 else 4


def direction(metric: str) -> int:
    """What its convention says of a metric: 1 where higher is better, -1 where lower is, 0 where neither is said."""
    meaning = convention(metric)
    return meaning.endswith("higher is better") - meaning.endswith(("lower is better", "negative is right"))


def verdict(difference: Difference) -> str:
    """What an interval of the difference to the first model says, by the direction that the convention names."""
    if difference.low == difference.high == 0:
        return EQUAL
    if difference.low <= 0 <= difference.high:
        return OPEN
    better = direction(difference.metric)
    if better == 0:
        return DIFFERS
    return BETTER if (difference.low > 0) == (better > 0) else WORSE


def card_metrics(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """The metrics that stand beside pictures, in the order of `CARD_METRICS`."""
    places = {
        name: next((i for i, start in enumerate(CARD_METRICS) if name.startswith(start)), None) for name in metrics
    }
    shown = sorted((name for name in metrics if places[name] is not None), key=places.get)
    return [(name, number(metrics[name], digits_for([metrics[name]]))) for name in shown]


def printable(value: object) -> object:
    """Text, markup or not, with `UNPRINTABLE` characters replaced; anything else as it is."""
    return type(value)(UNPRINTABLE.sub("\ufffd", value)) if isinstance(value, str) else value


ENVIRONMENT = Environment(
    loader=PackageLoader("c_diffset.evaluation", "page"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=printable,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {
    "number": number,
    "digits": digits_for,
    "thousands": lambda value: f"{value:,.0f}",
    "direction": direction,
    "verdict": verdict,
    "card_metrics": card_metrics,
}


def _columns(reports: list[Report], names: list[str]) -> dict[str, dict[str, float]]:
    """Mean metrics under their headings: models, then floors and ceilings, once where all models share them."""
    columns = {name: report.mean for name, report in zip(names, reports, strict=True)}
    for key, heading in (*FLOORS.items(), (None, CEILING)):
        found = [report.ceiling if key is None else report.floors.get(key) for report in reports]
        shared = all(means == found[0] for means in found)
        for name, means in zip(names[: 1 if shared else None], found, strict=False):
            if means is not None:
                columns[heading if shared else f"{heading} ({name})"] = means
    return columns


def _conventions(reports: list[Report]) -> dict[str, str]:
    """The convention of each metric: what the reports say, which is that of their protocol."""
    metrics = dict.fromkeys(metric for report in reports for metric in report.mean)
    return {
        metric: next((x.conventions[metric] for x in reports if metric in x.conventions), convention(metric))
        for metric in metrics
    }


def _metrics(reports: list[Report], columns: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """The cells of each metric, in the order of the columns."""
    rows = {}
    for metric in dict.fromkeys(metric for report in reports for metric in report.mean):
        values = [means.get(metric) for means in columns.values()]
        digits = digits_for([value for value in values if value is not None])
        cells = ["–" if value is None else number(value, digits) for value in values]
        stars = ["\u00a0*" if metric in report.marks else "" for report in reports]  # of the models, which stand first
        rows[metric] = [cell + star for cell, star in zip_longest(cells, stars, fillvalue="")]
    return rows


# --------------------------------------------------------------------------------------------------------- plots


def _reliability_plots(calibrated: dict[str, Trust], names: list[str]) -> list[Plot]:
    """The expected error against the measured one; the same of the probability, for each threshold."""
    plots = []
    if calibrated:
        found = {name: trust.expected_error for name, trust in calibrated.items() if trust.expected_error}
        plots.append(_reliability(found, names, "error (levels)", "Reliability of the expected error", " levels"))
    for threshold in dict.fromkeys(trust.threshold for trust in calibrated.values() if trust.error_probability):
        same = {name: trust for name, trust in calibrated.items() if trust.threshold == threshold}
        found = {name: trust.error_probability for name, trust in same.items() if trust.error_probability}
        title = f"Probability of an error above {threshold or 0:g} levels"
        plots.append(_reliability(found, names, "share of pixels", title, ""))
    return plots


def _reliability(found: dict[str, Reliability], names: list[str], quantity: str, title: str, unit: str) -> Plot:
    lines = []
    for name, entry in found.items():
        points = list(zip(entry.curve.expected, entry.curve.measured, strict=True))
        value = entry.calibration_error.value
        error = "–" if value is None else number(value, 2 if unit else 3) + unit
        lines.append(Line(name, points, names.index(name), f"calibration error {error}"))
    top = max(x for line in lines for x, _ in line.points)
    ideal = Line("measured = expected", [(0, 0), (top, top)], None)
    return Plot(title, f"expected {quantity}", f"measured {quantity}", [ideal, *lines])


def _sparsification_plots(trusts: dict[str, Trust]) -> list[Plot]:
    """A plot for each model, all on the same scale, with a line for each of its uncertainties."""
    top = max((trust.constant.sparsification[0] for trust in trusts.values()), default=0.0)
    axes = ("share left out, least trusted first", "error of the rest (levels)")
    plots = []
    for name, trust in trusts.items():
        curves = {label: entry.sparsification for label, entry in trust.uncertainties.items()}
        lines = [Line("oracle", list(zip(trust.fractions, trust.oracle.sparsification, strict=True)), None)]
        for style, (label, curve) in enumerate(curves.items()):
            lines.append(Line(label, list(zip(trust.fractions, curve, strict=True)), style))
        title = "Sparsification" if len(trusts) == 1 else f"Sparsification of {name}"
        plots.append(Plot(title, *axes, lines, y_top=top))
    return plots


# ------------------------------------------------------------------------------------------------------ protocol


def _protocol(reports: list[Report]) -> dict[str, list[list[str]]]:
    """Each setting in the lines of each model, once where all models share them."""
    rows = {}
    for key in (each.name for each in fields(Report) if each.name not in NOT_PROTOCOL):
        values = [_readable(getattr(report, key)) for report in reports]
        rows[key.replace("_", " ")] = values[:1] if all(value == values[0] for value in values) else values
    return rows


def _readable(value) -> list[str]:
    """A setting as lines of text: each sentence of a list has its own, numbers share one."""
    if isinstance(value, list) and value and not isinstance(value[0], str):
        return [", ".join(f"{entry:.4g}" for entry in value)]
    return [str(each) for each in (value if isinstance(value, list) else [value]) if each is not None] or ["–"]
