"""What is known of the training that a pipeline comes from: settings, updates, and what it was trained from."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from c_diffset.history import (
    HISTORY,
    history,
    loss_networks_of,
    public_settings,
    read_history,
    read_settings,
    setting,
)


@dataclass(frozen=True)
class Run:
    """The training run that a pipeline comes from.

    Attributes:
        settings: The settings without places, as YAML.
        updates: The number of updates; None where nothing tells it.
        loss_networks: The networks in the losses of the model and of all that it comes from.
        source: The training pairs: where they are, if the run is on this machine, else their public name.
        method: How a student was distilled.
        crop_size: The side of the training crops in pixels.
    """

    settings: str
    updates: int | None
    loss_networks: list[str]
    source: str
    method: str | None
    crop_size: int | None


def read_run(folder: Path) -> Run | None:
    """The run that this pipeline comes from, as its folder says, or the run's own folder around it; None without both.

    Raises:
        ValueError: the settings or the log of the run are not what training writes.
    """
    around = folder.resolve().parent / "config.yaml"
    settings, told = read_settings(around), read_history(folder)
    if settings is None and told is None:
        return None
    if told is None:
        updates = _count_updates(around.with_name("metrics.jsonl")) if folder.name == "pipeline" else None
        public, networks = public_settings(settings), loss_networks_of(settings, download=False)
    else:
        updates, public, networks = told["updates"], told["settings"], told["loss_networks"]
        if settings is None or public_settings(settings) != public:  # it was copied out of its run
            settings, around = public, folder / HISTORY
    try:
        text = yaml.safe_dump(public, sort_keys=False).strip()
    except ValueError as error:  # a number too long to be written
        raise ValueError(f"{around}: {error}") from None
    return Run(
        settings=text,
        updates=updates,
        loss_networks=networks,
        source=setting(around, settings, "data.source", str) or "unknown",
        method=setting(around, settings, "method", str),
        crop_size=setting(around, settings, "data.crop_size", int),
    )


def told_history(run: Run, ancestors: list[str]) -> bytes:
    """The file that says a pipeline's training, for a repository."""
    content = history(yaml.safe_load(run.settings), run.updates, ancestors, run.loss_networks)
    return yaml.safe_dump(content, sort_keys=False).encode()


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
