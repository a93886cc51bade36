"""What a training run says about the pipeline in its folder: settings, updates, and what it was trained from."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from c_diffset.files import public_name, read_yaml
from c_diffset.training.run import PLACES

LONGEST = 1000  # signs of the name of a folder or a repository
# settings that say nothing about the model: places and habits of one machine
PRIVATE = {
    *("output_dir", "resume", "push_to_hub", "push_private", "log_every", "checkpoint_every", "keep_checkpoints"),
    *("num_workers", "latent_cache", "lpips_weights", "results"),
}


@dataclass(frozen=True)
class Run:
    """The training run that a pipeline comes from.

    Attributes:
        settings: The settings without places, as YAML.
        updates: The number of updates; None where no log tells it.
        source: The training pairs, as the run names them.
        method: How a student was distilled.
        crop_size: The side of the training crops in pixels.
    """

    settings: str
    updates: int | None
    source: str
    method: str | None
    crop_size: int | None


def read_run(folder: Path) -> Run | None:
    """The run whose folder holds this pipeline; None where no `config.yaml` of a training run stands beside it.

    Raises:
        ValueError: the settings or the log of the run are not what training writes.
    """
    path = folder.resolve().parent / "config.yaml"
    settings = _read_settings(path)
    if settings is None:
        return None
    try:
        public = yaml.safe_dump(_public(settings), sort_keys=False).strip()
    except ValueError as error:  # a number too long to be written
        raise ValueError(f"{path}: {error}") from None
    return Run(
        settings=public,
        updates=_count_updates(path.with_name("metrics.jsonl")) if folder.name == "pipeline" else None,
        source=_setting(path, settings, "data.source", str),
        method=_setting(path, settings, "method", str),
        crop_size=_setting(path, settings, "data.crop_size", int),
    )


def read_ancestors(folder: Path) -> list[str]:
    """What the pipeline was trained from, and what that was trained from, nearest first: folders and Hub ids."""
    names: list[str] = []
    path = folder.resolve().parent / "config.yaml"
    while (settings := _read_settings(path)) is not None:
        parent = _setting(path, settings, "teacher", str) or _setting(path, settings, "model.base", str)
        if not parent or parent in names:
            break
        names.append(parent)
        path = Path(parent).resolve().parent / "config.yaml"
    return names


def _read_settings(path: Path) -> dict | None:
    """The settings of a run; None where there is no such file, or it belongs to another program."""
    settings = read_yaml(path) if path.is_file() else {}
    data = settings.get("data")
    return settings if "output_dir" in settings and isinstance(data, dict) and data.get("source") else None


def _setting(path: Path, settings: dict, key: str, kind: type):
    """A setting by its dotted name, or None; ValueError where it is of another kind."""
    value: object = settings
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is not None and (type(value) is not kind or kind is str and len(value) > LONGEST):
        expected = {str: "text", int: "a whole number"}[kind]
        raise ValueError(f"{path}: {key} is {repr(value)[:80]}, expected {expected}")
    return value


def _public(settings: dict) -> dict:
    public = {}
    for key, value in settings.items():
        if key in PRIVATE or value is None:
            continue
        if isinstance(value, dict):
            value = _public(value)
        elif key in PLACES and isinstance(value, str) and value:
            value = public_name(value[:LONGEST])
        public[key] = value
    return public


def _count_updates(log: Path) -> int | None:
    """The last step of a log; a line that a killed run has not finished does not count."""
    last = None
    if not log.is_file():
        return last
    with open(log, encoding="utf-8", newline="\n") as file:
        try:
            for line in file:
                last = int(json.loads(line)["step"]) if line.endswith("\n") else last
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise ValueError(f"{log}: expected the log of a training run, one JSON object with a step a line") from None
    return last
