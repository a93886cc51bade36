"""A run on disk: what a training writes, what it may remove, and how a stopped one is found and continued."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import yaml

from c_diffset.files import is_own, locked, make_own, read_yaml, write_file
from c_diffset.history import PLACES, plain_settings
from c_diffset.training.checkpoint import Part, load_checkpoint, newest_whole, save_checkpoint
from c_diffset.training.config import RunConfig

FOLDERS = ("pipeline", "best", "lora", "stage1")  # what `replace` writes
LOCK_SECONDS = 10  # loaders of a killed training hold its lock until they notice


# settings that a resumed run may change: they alter neither the updates nor what is averaged
FREE_ON_RESUME = {
    *("output_dir", "model.base", "model.vae", "data.source", "data.latent_cache", "data.validation_split"),
    *("data.num_workers", "log_every", "checkpoint_every", "keep_checkpoints", "compile", "channels_last"),
    *("resume", "report_to", "push_to_hub", "push_private", "gradient_checkpointing", "teacher", "time_aware.results"),
    *("base", "encoder", "lpips_weights"),
    "confidence_start_step",  # every checkpoint says it, also those of versions that left it to be worked out
}


class RunFolder:
    """What a run has in its folder: models (`FOLDERS`), `checkpoints/`, `samples/`, `logs/`, and files.

    What is not finished, and what is about to be removed, lies in `checkpoints/`, which the run makes and marks as its
    own: whatever else the folder holds stays.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints, self.samples = self.path / "checkpoints", self.path / "samples"
        self.metrics, self.settings = self.path / "metrics.jsonl", self.path / "config.yaml"
        self.preview = self.path / "preview.png"

    def finished_checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(path for path in self.checkpoints.glob("step_*") if re.fullmatch(r"step_\d{8}", path.name))

    @contextmanager
    def opened(self, config: RunConfig) -> Iterator[None]:
        """Hold the folder for a new run or for the one that it holds, clear what a killed one left, write the settings.

        Raises:
            ValueError: it holds another run, the same one without `resume`, or files of somebody else in a run's place.
            OSError: another training writes to it.
        """
        self._check_owner()
        make_own(self.checkpoints)
        message = "another training writes to this output_dir: wait for its end, or choose another folder"
        with locked(self.checkpoints / ".lock", message, LOCK_SECONDS):
            if not config.resume and (self.metrics.exists() or self.finished_checkpoints()):
                raise ValueError(f"output_dir {self.path} holds a run already: set resume, or choose another folder")
            if self.finished_checkpoints():
                check_same_run(config, self.settings)
            self.samples.mkdir(exist_ok=True)
            self._clear_up()
            save_config(config, self.settings)
            yield

    def _check_owner(self) -> None:
        """Refuse a folder in which a run would overwrite what no run has made."""
        if is_own(self.checkpoints):
            return
        if any(self.checkpoints.glob("step_*/*.pkl")):
            raise ValueError(
                f"output_dir {self.path} holds a run of an earlier version, whose checkpoints can run code: this one "
                "does not resume it, so choose another folder"
            )
        own = (self.checkpoints, self.samples, self.metrics, self.settings, self.preview)
        for path in (*own, *map(self.path.joinpath, FOLDERS)):
            if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise ValueError(
                    f"output_dir {self.path} holds {path.name}, which no training has made: choose another folder"
                )

    def _aside(self, name: str) -> tuple[Path, Path]:
        """The places where a new folder is filled, and where the old one goes."""
        return self.checkpoints / f".{name}.partial", self.checkpoints / f".{name}.old"

    def _clear_up(self) -> None:
        """Finish or remove what a killed run left half done."""
        for name in FOLDERS:
            aside, old = self._aside(name)
            if old.exists() and not (self.path / name).exists():  # killed between two renames: the new one is complete
                (aside if aside.exists() else old).rename(self.path / name)
        for leftover in (*self.checkpoints.glob(".*.partial"), *self.checkpoints.glob(".*.old")):
            shutil.rmtree(leftover)

    def replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` fill a folder aside, then put it in place of the old one."""
        target, (aside, old) = self.path / name, self._aside(name)
        shutil.rmtree(aside, ignore_errors=True)  # what was stopped half way
        aside.mkdir()
        write(aside)
        if target.exists():
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    def save(self, parts: dict[str, Part], step: int, keep: int) -> None:
        """Write a checkpoint, and drop the oldest so that `keep` are left."""
        target, (aside, _) = self.checkpoints / f"step_{step:08d}", self._aside(f"step_{step:08d}")
        aside.mkdir()
        save_checkpoint(aside, parts, step)
        if target.exists():  # it is damaged, else the run would have gone on from it
            shutil.rmtree(target)
        aside.rename(target)
        for old in self.finished_checkpoints()[:-keep]:
            shutil.rmtree(old)

    def newest(self, parts: dict[str, Part]) -> int:
        """The number of updates in the last checkpoint that is whole; 0 without any (see `newest_whole`)."""
        return newest_whole(self.finished_checkpoints(), parts)

    def load(self, parts: dict[str, Part], step: int) -> None:
        """Go back to the checkpoint after `step` updates."""
        load_checkpoint(self.checkpoints / f"step_{step:08d}", parts)

    def rows(self) -> list[dict]:
        """The lines of `metrics.jsonl`, without one that a kill has cut off.

        Raises:
            ValueError: a line is none that a training writes.
        """
        if not self.metrics.exists():
            return []
        *lines, _ = self.metrics.read_text(encoding="utf-8", errors="replace").split("\n")
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
                good = isinstance(rows[-1]["step"], int) and all(isinstance(x, int | float) for x in rows[-1].values())
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                good = False
            if not good:
                raise ValueError(f"{self.metrics}, line {number} is damaged, expected numbers and a step: remove it")
        return rows

    def last_saved(self) -> int:
        """The number of updates in the last checkpoint; 0 without any."""
        return max((int(path.name.removeprefix("step_")) for path in self.finished_checkpoints()), default=0)

    def has_validation(self, step: int) -> bool:
        """Whether the log holds the validation after update `step`."""
        return any(row["step"] == step and any(name.startswith("validation/") for name in row) for row in self.rows())

    def forget_after(self, step: int) -> None:
        """Drop the log lines of updates that a resumed run will do again."""
        if not self.metrics.exists():
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        write_file(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def log(self, **values) -> None:
        """Append one line to `metrics.jsonl`."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def best_value(self, metric: str, after: int = 0) -> float | None:
        """The best validation value that is logged of updates later than `after`."""
        name = f"validation/{metric}"
        values = (row[name] for row in self.rows() if name in row and row["step"] > after)
        return (min if metric == "lpips" else max)(values, default=None)


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved settings as YAML that `--config` reads again; folders and files by their absolute paths."""
    write_file(path, yaml.safe_dump(_located(plain_settings(config)), sort_keys=False))


def _located(settings: dict) -> dict:
    """Settings in which no relative path can be taken for a Hub id, or for another folder, elsewhere."""
    located = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = _located(value)
        elif key in PLACES and isinstance(value, str) and os.path.exists(value):
            value = os.path.abspath(value)
        located[key] = value
    return located


def check_same_run(config: RunConfig, stored: Path) -> None:
    """Refuse to go on with a run under settings that would have made another run of it.

    A setting that came into being after the run was started had its default.

    Raises:
        ValueError: a setting differs from `stored`, the `config.yaml` of the run, which the message names; or that file
            is damaged.
        FileNotFoundError: it is missing.
    """
    settings = plain_settings(config), _completed(read_yaml(stored), config)
    now, then = (_flatten(_located(each)) for each in settings)
    for key, value in now.items():
        free = key in FREE_ON_RESUME or key.startswith("validation.")
        if not free and then.get(key) != value:
            raise ValueError(
                f"{key} is {value}, but the run in {stored.parent} was started with {then.get(key)}: "
                "restore it, or choose another output_dir"
            )


def _completed(stored: dict, config) -> dict:
    """Stored settings of the type of `config`, with the defaults of those that they lack."""
    complete = dict(stored)
    for one in fields(config):
        value, found = getattr(config, one.name), stored.get(one.name)
        if is_dataclass(value) and isinstance(found, dict):
            complete[one.name] = _completed(found, value)
        elif one.name not in stored and one.metadata.get("was") in stored:
            complete[one.name] = stored[one.metadata["was"]]
        elif one.name not in stored and one.default_factory is not MISSING:
            complete[one.name] = plain_settings(one.default_factory())
        elif one.name not in stored and one.default is not MISSING:
            complete[one.name] = json.loads(json.dumps(one.default))
    return complete


def _flatten(settings: dict, prefix: str = "") -> dict:
    """Nested settings to dotted keys."""
    flat = {}
    for key, value in settings.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
