"""What a run's models say of their training: it is written beside the weights, so that a copied folder keeps it."""

import json
import os
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from c_diffset.files import is_hub_id, public_name, read_yaml, write_file

HISTORY = "training.yaml"  # in the folder of a model
PLACES = ("base", "teacher", "student", "vae", "source")  # settings that name a folder, a file or a Hub id
# settings that say nothing about the model: places and habits of one machine
PRIVATE = {
    *("output_dir", "resume", "push_to_hub", "push_private", "log_every", "checkpoint_every", "keep_checkpoints"),
    *("num_workers", "latent_cache", "lpips_weights", "results", "report_to"),
}
# settings that name what the weights are from
ORIGINS = ("teacher", "student", "model.base", "model.vae", "base")
MOST_NETWORKS = 20
LONGEST = 1000  # signs of the name of a folder or a repository


def plain_settings(config: Any) -> dict:
    """The settings of a run, a dataclass, as YAML gives them back."""
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


def history(settings: dict, updates: int | None, ancestors: list[str], loss_networks: list[str]) -> dict:
    """What the file holds: public settings, the number of updates, the names of what the model comes from, and the
    networks in its losses and in theirs."""
    names = [public_name(name[:LONGEST]) for name in ancestors]
    about = {"settings": public_settings(settings), "updates": updates, "ancestors": names}
    return about | {"loss_networks": loss_networks}


def write_history(folder: Path, config: Any, updates: int) -> None:
    """Say in a model's folder how it was trained; `config` is the dataclass of the run's settings."""
    settings = plain_settings(config)
    content = history(settings, updates, ancestors_of(settings), loss_networks_of(settings))
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
    networks = told.get("loss_networks")
    if networks is None:  # earlier versions did not say
        networks = own_loss_networks(path, settings)
    return history(settings, updates, names, check_networks(path, networks))


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
    kinds = (int, float) if kind is float else (kind,)
    if value is not None and (type(value) not in kinds or kind is str and len(value) > LONGEST):
        expected = {str: "text", int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{path}: {key} is {repr(value)[:80]}, expected {expected}")
    return value


# ------------------------------------------------------------------------------------------ networks in the losses


def own_loss_networks(path: Path, settings: dict) -> list[str]:
    """The networks with weights of their own in the losses that these settings ask for, such as "lpips_squeeze".

    LPIPS stands in the settings of a decoder, and in those of end-to-end distillation. ValueError, which names `path`,
    where a setting is of another kind.
    """
    found = []
    for where in ("", "end_to_end.") if settings.get("method") == "end_to_end" else ("",):
        if setting(path, settings, f"{where}lpips_weight", float):
            found.append(f"lpips_{setting(path, settings, f'{where}lpips_net', str) or 'squeeze'}")
    return check_networks(path, found)


def check_networks(path: Path, networks: Any) -> list[str]:
    """Refuse what is no list of names of networks; a ValueError names `path`."""
    sound = isinstance(networks, list) and len(networks) <= MOST_NETWORKS
    if not sound or not all(isinstance(name, str) and re.fullmatch("[a-z0-9_]{1,40}", name) for name in networks):
        raise ValueError(f"{path}: loss_networks is {repr(networks)[:80]}, expected names such as lpips_squeeze")
    return networks


def loss_networks_of(settings: dict, download: bool = True, seen: set[str] | None = None) -> list[str]:
    """The networks in the losses of a run, and of all that its model starts from; each once.

    `download` also asks the Hub about what lies there. `seen` holds origins that have been read already.
    """
    path, seen = Path("config.yaml"), set() if seen is None else seen
    found = own_loss_networks(path, settings)
    for key in ORIGINS:
        origin = setting(path, settings, key, str)
        if origin and origin not in seen and (download or Path(origin).is_dir()):
            seen.add(origin)
            found += read_loss_networks(origin, seen=seen)
    return list(dict.fromkeys(found))


def read_loss_networks(
    model: str | os.PathLike, revision: str | None = None, seen: set[str] | None = None
) -> list[str]:
    """The networks in the losses of a model or an autoencoder, and of all that it comes from, as its folder or its
    repository on the Hub says; nothing where neither does.

    Raises:
        ValueError: the file that says it is not what training writes.
    """
    name = str(model)
    folder = Path(name) if Path(name).is_dir() else _download_history(name, revision)
    if not name or folder is None:
        return []
    if (told := read_history(folder)) is not None:
        return told["loss_networks"]
    settings = read_settings(folder.resolve().parent / "config.yaml")
    return [] if settings is None else loss_networks_of(settings, seen=seen)


@cache
def _download_history(repo: str, revision: str | None) -> Path | None:
    """The folder that holds the history of a repository on the Hub; None where there is none, or no connection."""
    if not is_hub_id(repo):
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repo, HISTORY, revision=revision)).parent
    except (OSError, HfHubHTTPError):
        return None
