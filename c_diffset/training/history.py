"""What a run's models say of their training: it is written beside the weights, so that a copied folder keeps it."""

import json
from dataclasses import asdict
from pathlib import Path

import yaml

from c_diffset.files import public_name, read_yaml, write_file
from c_diffset.training.config import RunConfig

HISTORY = "training.yaml"  # in the folder of a model
PLACES = ("base", "teacher", "student", "vae", "source")  # settings that name a folder, a file or a Hub id
# settings that say nothing about the model: places and habits of one machine
PRIVATE = {
    *("output_dir", "resume", "push_to_hub", "push_private", "log_every", "checkpoint_every", "keep_checkpoints"),
    *("num_workers", "latent_cache", "lpips_weights", "results", "report_to"),
}
LONGEST = 1000  # signs of the name of a folder or a repository


def plain_settings(config: RunConfig) -> dict:
    """Settings as YAML gives them back."""
    return json.loads(json.dumps(asdict(config), default=str))


def public_settings(settings: dict) -> dict:
    """Settings without what is private, and without the folders of a machine: of a path the last part stays."""
    public = {}
    for key, value in settings.items():
        if key in PRIVATE or value is None:
            continue
        if isinstance(value, dict):
            value = public_settings(value)
            if not value:
                continue
        elif key in PLACES and isinstance(value, str) and value:
            value = public_name(value[:LONGEST])
        public[key] = value
    return public


def history(settings: dict, updates: int | None, ancestors: list[str]) -> dict:
    """What the file holds: public settings, the number of updates, and the names of what the model comes from."""
    names = [public_name(name[:LONGEST]) for name in ancestors]
    return {"settings": public_settings(settings), "updates": updates, "ancestors": names}


def write_history(folder: Path, config: RunConfig, updates: int) -> None:
    """Say in a model's folder how it was trained."""
    settings = plain_settings(config)
    content = history(settings, updates, ancestors_of(settings))
    write_file(folder / HISTORY, yaml.safe_dump(content, sort_keys=False))


def ancestors_of(settings: dict) -> list[str]:
    """What a run starts from, and what that was trained from, nearest first: folders and Hub ids."""
    parent = setting(Path("config.yaml"), settings, "teacher", str)
    parent = parent or setting(Path("config.yaml"), settings, "model.base", str)
    return [parent, *(name for name in read_ancestors(Path(parent)) if name != parent)] if parent else []


def read_ancestors(folder: Path) -> list[str]:
    """What the model in this folder was trained from, nearest first: folders and Hub ids.

    Raises:
        ValueError: the file that says it, or the settings of a run, are not what training writes.
    """
    if (told := read_history(folder)) is not None:
        return told["ancestors"]
    names: list[str] = []
    path = folder.resolve().parent / "config.yaml"
    while (settings := read_settings(path)) is not None:
        parent = setting(path, settings, "teacher", str) or setting(path, settings, "model.base", str)
        if not parent or parent in names:
            break
        names.append(parent)
        if (told := read_history(Path(parent))) is not None:
            return names + [name for name in told["ancestors"] if name not in names]
        path = Path(parent).resolve().parent / "config.yaml"
    return names


def read_history(folder: Path) -> dict | None:
    """What `history` made of a model's training; None where its folder does not say.

    Raises:
        ValueError: the file is not what training writes.
    """
    path = folder / HISTORY
    if not path.is_file():
        return None
    told = read_yaml(path)
    settings, updates, names = (told.get(key) for key in ("settings", "updates", "ancestors"))
    good = isinstance(settings, dict) and (updates is None or type(updates) is int and 0 <= updates < 10**9)
    listed = isinstance(names, list) and len(names) <= 100
    if not good or not listed or not all(isinstance(name, str) and len(name) <= LONGEST for name in names):
        raise ValueError(f"{path} is not what a training writes: expected settings, updates and ancestors; remove it")
    return history(settings, updates, names)


def read_settings(path: Path) -> dict | None:
    """The settings of a run; None where there is no such file, or it belongs to another program."""
    settings = read_yaml(path) if path.is_file() else {}
    data = settings.get("data")
    return settings if "output_dir" in settings and isinstance(data, dict) and data.get("source") else None


def setting(path: Path, settings: dict, key: str, kind: type):
    """A setting by its dotted name, or None; ValueError, which names the file, where it is of another kind."""
    value: object = settings
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is not None and (type(value) is not kind or kind is str and len(value) > LONGEST):
        expected = {str: "text", int: "a whole number"}[kind]
        raise ValueError(f"{path}: {key} is {repr(value)[:80]}, expected {expected}")
    return value
