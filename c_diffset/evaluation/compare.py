"""Reports on the same images beside each other: differences with their intervals, and one page."""

import json
import os
from pathlib import Path

from c_diffset.evaluation.page.page import make_page
from c_diffset.evaluation.reliability import paired_bootstrap

SAME_IMAGES = ("split", "crop_size", "n")  # of reports on one page, beside the name of the data and the ids


def write_report(metrics: list[str | os.PathLike], output: str | os.PathLike) -> None:
    """Write the page of one or several `metrics.json`, of runs on the same images; it has no pictures.

    Args:
        metrics: the files, or the folders that `evaluate` has written them to.
        output: a new HTML file.

    Raises:
        FileExistsError: `output` exists.
        ValueError: a file is no `metrics.json`, or the files are of unequal test sets.
        OSError: a file is not there.
    """
    if Path(output).exists():
        raise FileExistsError(f"{output} exists: choose another output")
    reports = [_read_metrics(Path(path)) for path in metrics]
    names = unique_names([report["model"] for report in reports])
    differences = compare(reports, names) if len(reports) > 1 else None
    write_files({Path(output).name: make_page(reports, names, differences).encode()}, Path(output).parent)


def compare(reports: list[dict], names: list[str]) -> list[dict]:
    """Differences of all models to the first, for every metric of single images, as `make_page` takes them.

    Raises:
        ValueError: the reports are not of the same images.
    """
    check_same_images(reports, names)
    first, differences = reports[0]["images"], []
    if len(first) < 2:
        return []
    for name, report in zip(names[1:], reports[1:], strict=True):
        for metric in (metric for metric in first[0] if metric != "id" and metric in report["images"][0]):
            values = [[row[metric] for row in rows] for rows in (report["images"], first)]
            mean, low, high = paired_bootstrap(*values)
            entry = {"metric": metric, "model": name, "mean": mean, "low": low, "high": high, "n": len(first)}
            differences.append(entry)
    return differences


def check_same_images(reports: list[dict], names: list[str]) -> None:
    """Refuse reports on different images.

    Raises:
        ValueError: another data set, split, crop size or number of images, or other ids; the message names the first.
    """
    first = reports[0]
    for name, report in zip(names[1:], reports[1:], strict=True):
        pairs = [("data", *(data_name(each) for each in (first, report)))]
        pairs += [(key, first[key], report[key]) for key in SAME_IMAGES]
        pairs += [("id", a["id"], b["id"]) for a, b in zip(first["images"], report["images"], strict=False)]
        for key, expected, found in pairs:
            if found != expected:
                raise ValueError(
                    f"unequal test sets: {name} has {key} {found!r}, but {names[0]} has {expected!r}: "
                    "evaluate all models on the same images"
                )


def data_name(report: dict) -> str:
    """The data of a report: a Hub id, or of a folder the name alone, wherever it lay."""
    return str(report["data"]) if report.get("data_on_hub") else Path(str(report["data"])).name


def unique_names(models: list[str]) -> list[str]:
    """Short names: the last two parts of a path or Hub id, numbered where two are equal."""
    short = ["/".join(Path(model).parts[-2:]).strip("/") for model in models]
    return [f"{i} {name}" if short.count(name) > 1 else name for i, name in enumerate(short)]


def to_json(content) -> bytes:
    """The content of a JSON file."""
    return json.dumps(content, indent=2, allow_nan=False).encode()


def _read_metrics(path: Path) -> dict:
    path = path / "metrics.json" if path.is_dir() else path
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        report["mean"], report["images"], report["model"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected the metrics.json of one model, as `c-diffset evaluate` writes it") from None
    return report


def write_files(contents: dict[str, bytes], folder: Path) -> None:
    """Write each file aside and rename it, in order: where the last stands, the others are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        aside = folder / f".{name}.partial"
        aside.write_bytes(content)
        os.replace(aside, folder / name)
