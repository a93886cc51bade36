"""Reports on the same images beside each other: differences with their intervals, and one page."""

import os
from pathlib import Path

from c_diffset.evaluation.page.page import make_page
from c_diffset.evaluation.reliability import paired_bootstrap
from c_diffset.evaluation.report import Difference, Report, read_report, shown
from c_diffset.files import check_writable, write_file

SAME_IMAGES = ("data_name", "split", "crop_size", "n", "eo_values")  # what reports on one page share, beside ids


def write_report(metrics: list[str | os.PathLike], output: str | os.PathLike) -> None:
    """Write the page of one or several evaluations on the same images; it has no pictures.

    Args:
        metrics: The `metrics.json` files, or the folders that `evaluate` has written them to.
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
    reports = [read_report(path) for path in metrics]
    names = unique_names([report.model for report in reports])
    page = make_page(reports, names, compare(reports, names))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, page)


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
    """Refuse reports on different images.

    Raises:
        ValueError: another data set, split, crop size or number of images, or other ids; the message names the first.
    """
    first = reports[0]
    for name, report in zip(names[1:], reports[1:], strict=True):
        pairs = [(key, getattr(first, key), getattr(report, key)) for key in SAME_IMAGES]
        pairs += [("id", a.id, b.id) for a, b in zip(first.images, report.images, strict=False)]
        for key, expected, found in pairs:
            if found != expected:
                raise ValueError(
                    f"unequal test sets: {shown(name)} has {key} {shown(found)}, but {shown(names[0])} has "
                    f"{shown(expected)}: evaluate all models on the same images"
                )


def unique_names(models: list[str]) -> list[str]:
    """Short names: the last two parts of a path or Hub id, numbered where two are equal."""
    short = ["/".join(Path(model).parts[-2:]).strip("/") for model in models]
    return [f"{i} {name}" if short.count(name) > 1 else name for i, name in enumerate(short)]
