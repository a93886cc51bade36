"""Reports on the same images beside each other: differences with their intervals, and one page."""

import os
from pathlib import Path

from c_diffset.evaluation.page.page import VERDICTS, make_page, verdict
from c_diffset.evaluation.reliability import paired_bootstrap
from c_diffset.evaluation.report import Difference, Report, read_reports, shown
from c_diffset.files import check_writable, write_file

# what reports on one page share, beside ids
SAME_IMAGES = ("protocol", "data_name", "split", "crop_size", "n", "eo_values")
MOST_NAMED = 5  # models in a line of the console


def write_report(metrics: list[str | os.PathLike], output: str | os.PathLike) -> None:
    """Write the page of one or several evaluations on the same images, and print how the models compare.

    The page has no pictures.

    Args:
        metrics: The `metrics.json` files, or the folders that `evaluate` has written them to, for one model or several.
        output: The HTML file that is written. It must not exist yet.

    Raises:
        FileExistsError: `output` exists.
        ValueError: a file is no `metrics.json`, or the files are of unequal test sets.
        OSError: a file is not there, or `output` cannot be written.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another output")
    check_writable(output.parent)
    reports = [report for path in metrics for report in read_reports(path)]
    names = unique_names([report.model for report in reports])
    differences = compare(reports, names)
    page = make_page(reports, names, differences)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, page)
    first = reports[0]
    models = "1 model" if len(reports) == 1 else f"{len(reports)} models"
    images = f"{first.n} images of {shown(first.data)}, split {shown(first.split)}"
    print(f"{output}: {models} on {images}; open it in a browser")
    if differences:
        print(f"beside {shown(names[0])}: {summary(differences)}")
    print("next: c-diffset publish MODEL --repo USER/NAME --evaluation FOLDER, for the model that you choose")


def summary(differences: list[Difference]) -> str:
    """In how many metrics each of the other models differs from the first, in words."""
    verdicts: dict[str, list[str]] = {}
    for each in differences:
        verdicts.setdefault(each.model, []).append(verdict(each))
    parts = []
    for model, found in list(verdicts.items())[:MOST_NAMED]:
        counts = ", ".join(f"{found.count(word)} {word}" for word in VERDICTS if word in found)
        parts.append(f"{shown(model)} has {counts} of {len(found)} metrics")
    return "; ".join(parts) + " ..." * (len(verdicts) > MOST_NAMED)


def compare(reports: list[Report], names: list[str]) -> list[Difference]:
    """Differences of all models to the first, for every metric of single images that both have.

    Raises:
        ValueError: the reports are not of the same images.
    """
    check_same_images(reports, names)
    first, differences = reports[0].images, []
    if len(first) < 2:
        return []
    for name, report in zip(names[1:], reports[1:], strict=True):
        for metric in (metric for metric in first[0].metrics if metric in report.images[0].metrics):
            values = ([row.metrics[metric] for row in rows] for rows in (report.images, first))
            found = paired_bootstrap(*values)
            differences.append(Difference(metric, name, found.value, found.low, found.high, len(first)))
    return differences


def check_same_images(reports: list[Report], names: list[str]) -> None:
    """Refuse reports on different images, or by different protocols.

    Raises:
        ValueError: another protocol, data set, split, crop size or number of images, or other ids; the message names
            the first.
    """
    first = reports[0]
    for name, report in zip(names[1:], reports[1:], strict=True):
        pairs = [(key, getattr(first, key), getattr(report, key)) for key in SAME_IMAGES]
        pairs += [("id", a.id, b.id) for a, b in zip(first.images, report.images, strict=False)]
        for key, expected, found in pairs:
            if found != expected:
                raise ValueError(
                    f"unequal test sets: {shown(name)} has {key} {shown(found)}, but {shown(names[0])} has "
                    f"{shown(expected)}: evaluate all models on the same images by one protocol"
                )


def unique_names(models: list[str]) -> list[str]:
    """Short names: the last two parts of a path or Hub id, numbered where two are equal."""
    short = ["/".join(Path(model).parts[-2:]).strip("/") for model in models]
    return [f"{i} {name}" if short.count(name) > 1 else name for i, name in enumerate(short)]
