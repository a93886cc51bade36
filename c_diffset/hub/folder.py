"""A pipeline's folder as it may be published: complete, without anything that runs code when loaded, rightly licensed.

Only the files that make up the pipeline count; whatever else lies in the folder stays at home.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open

from c_diffset.files import is_hub_id, public_name, read_json
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

INDEX, CODE = "model_index.json", "pipeline.py"
GENERATED = (CODE, "README.md", "mlm.json", "checksums.sha256", "grid.png")
LICENSE_FILE = "LICENSE"  # goes along where there is one
COMPONENTS = {  # each component's configuration, and whether it has weights
    "unet": ("config.json", True),
    "vae": ("config.json", True),
    "text_encoder": ("config.json", True),
    "tokenizer": ("tokenizer_config.json", False),
    "scheduler": ("scheduler_config.json", False),
}
REQUIRED = ("unet", "scheduler")
COMPONENT_FILES = re.compile(
    r"[\w.-]+\.safetensors(\.index\.json)?|(tokenizer_|scheduler_)?config\.json|vocab\.json|merges\.txt|tokenizer\.json"
    r"|special_tokens_map\.json|added_tokens\.json"
)
PICKLES = (".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")

# Stable Diffusion 1 and 2 share their UNet's channels; the width of the text condition tells them apart
SD_CHANNELS = [320, 640, 1280, 1280]
SD_LICENSES = {768: ("Stable Diffusion 1", "creativeml-openrail-m"), 1024: ("Stable Diffusion 2", "openrail++")}
SD_NAMES = {
    r"stable-diffusion-2|sd2-community|\bsd[-_]?2[-_.]?[01]": 1024,
    r"stable-diffusion-(v?1)|\bsd[-_]?1[-_.]?[45]": 768,
}
# settings of a run that say nothing about the model: places and habits of one machine
PRIVATE = {
    *("output_dir", "resume", "push_to_hub", "push_private", "log_every", "checkpoint_every", "keep_checkpoints"),
    *("num_workers", "latent_cache", "lpips_weights", "results"),
}


def check_repo_id(repo: str) -> str:
    """Return the id; ValueError where it is not of the form `user/name`."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"repo {repo!r}: {error}") from None
    if repo.count("/") != 1:
        raise ValueError(f"repo {repo!r}: expected user/name, or organisation/name")
    return repo


# ---------------------------------------------------------------------------------------------------------- files


def pipeline_files(folder: Path) -> list[str]:
    """The names, relative to `folder`, of the files that make up its pipeline.

    Raises:
        FileNotFoundError: no index, or a component that the index names is absent or not whole.
        ValueError: another kind of pipeline, a component of a foreign library, a pickle anywhere in the folder, a link
            that leaves it, or a file that is not what its name says.
    """
    index = read_json(folder / INDEX)
    expected = CDiffSETPipeline.__name__
    if index.get("_class_name") != expected:
        raise ValueError(f"{folder / INDEX}: _class_name is {index.get('_class_name')!r}, expected {expected!r}")
    _check_safe(folder)
    components = {name: entry for name, entry in _components(folder, index).items() if entry[0] is not None}
    absent = [name for name in REQUIRED if name not in components]
    if absent:
        raise FileNotFoundError(f"{folder / INDEX} names no {absent[0]}: save the pipeline again")
    files = [INDEX, *([LICENSE_FILE] if (folder / LICENSE_FILE).is_file() else [])]
    for name, (library, _) in components.items():
        if library not in ("diffusers", "transformers"):
            raise ValueError(f"{folder / INDEX}: {name} is of {library!r}, which loading refuses: use a stock class")
        files += [f"{name}/{file}" for file in _component_files(folder / name, *COMPONENTS[name])]
    return files


def _components(folder: Path, index: dict) -> dict[str, list]:
    """Library and class of each component that the index names, both None for one left out."""
    named = {name: index[name] for name in COMPONENTS if index.get(name) is not None}
    for name, entry in named.items():
        if not isinstance(entry, list) or len(entry) != 2:
            raise ValueError(f"{folder / INDEX}: {name} is {entry!r}, expected a library and a class")
    return named


def _check_safe(folder: Path) -> None:
    """Refuse pickles, which run code when loaded, and links to what lies elsewhere."""
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLES:
            raise ValueError(
                f"{path} may hold a pickle, which can run code when loaded: remove it, or convert it to safetensors"
            )
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ValueError(f"{path} is a link to {path.resolve()}, outside the folder: put the file itself there")


def _component_files(folder: Path, config: str, has_weights: bool) -> list[str]:
    """The names of a component's files; see `pipeline_files` for the errors."""
    paths = sorted(folder.glob("*"))
    names = [path.name for path in paths if path.is_file() and COMPONENT_FILES.fullmatch(path.name)]
    if config not in names:
        raise FileNotFoundError(f"{folder / config} is missing, but {INDEX} names {folder.name}: save it again")
    weights = {name for name in names if name.endswith(".safetensors")}
    wanted: set[str] = set()
    for name in names:
        if name.endswith(".json"):
            content = read_json(folder / name)
            wanted |= set(content["weight_map"].values()) if name.endswith(".index.json") else set()
    if has_weights and not weights:
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors): save the pipeline again")
    if wanted - weights:
        raise FileNotFoundError(f"{folder / min(wanted - weights)} is missing, a part of the weights")
    stored_tensors(folder)
    return names


def stored_tensors(folder: Path) -> set[str]:
    """The names of all tensors in a component's weights; ValueError for a file that is none of safetensors."""
    found: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                found |= set(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}): save it again") from None
    return found


def check_weights(pipe: CDiffSETPipeline, folder: Path) -> None:
    """Refuse a loaded pipeline whose folder lacks weights, which loading makes up at random, or holds NaN.

    Raises:
        FileNotFoundError: tensors are missing.
        ValueError: a tensor is not finite.
    """
    for name in ("unet", "vae"):
        module = getattr(pipe, name)
        if module is None:
            continue
        missing = sorted(set(module.state_dict()) - stored_tensors(folder / name))
        if missing:
            raise FileNotFoundError(
                f"{folder / name} lacks {len(missing)} tensors, such as {missing[0]}: save the pipeline again"
            )
        for key, tensor in module.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{folder / name}: {key} holds NaN or infinite values")


def without_paths(content: dict) -> dict:
    """A configuration without the folders it was once loaded from; Hub ids stay."""
    kept = {}
    for key, value in content.items():
        if key in ("_name_or_path", "name_or_path") and not is_hub_id(str(value)):
            continue
        if key == "calibration" and isinstance(value, dict) and "data" in value:
            value = value | {"data": public_name(str(value["data"]))}
        kept[key] = value
    return kept


# -------------------------------------------------------------------------------------------------------- the run


@dataclass
class Run:
    """The training run that a pipeline comes from: its settings, without places, and how many updates it made."""

    settings: dict[str, Any]
    updates: int | None
    source: str | None  # the training pairs, as the run names them


def read_run(folder: Path) -> Run | None:
    """The run whose folder holds this pipeline; None where there is no `config.yaml` beside it."""
    settings = _read_settings(folder)
    if settings is None:
        return None
    log, updates = folder.parent / "metrics.jsonl", None
    if folder.name == "pipeline" and log.is_file():
        try:
            steps = [int(json.loads(line)["step"]) for line in log.read_text(encoding="utf-8").splitlines()]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{log}: expected the log of a training run, one JSON object with a step a line") from None
        updates = max(steps, default=None)
    return Run(_public_settings(settings), updates, _part(settings, "data").get("source"))


def _read_settings(folder: Path) -> dict | None:
    path = folder.resolve().parent / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    return settings if isinstance(settings, dict) else None


def _part(settings: dict, name: str) -> dict:
    """A group of settings, empty where there is none."""
    return settings[name] if isinstance(settings.get(name), dict) else {}


def _public_settings(settings: dict) -> dict:
    public = {}
    for key, value in settings.items():
        if key in PRIVATE or value is None:
            continue
        if isinstance(value, dict):
            value = _public_settings(value)
        elif key in ("base", "teacher", "student", "vae", "source") and isinstance(value, str):
            value = public_name(value)
        public[key] = value
    return public


def ancestors(folder: Path) -> list[str]:
    """What the pipeline was trained from, and what that was trained from, nearest first: folders and Hub ids."""
    names: list[str] = []
    while (settings := _read_settings(folder)) is not None:
        parent = settings.get("teacher") or _part(settings, "model").get("base")
        if not parent or parent in names:
            break
        names.append(parent)
        folder = Path(parent)
    return names


# ---------------------------------------------------------------------------------------------------- the licence


def inherited_license(unet: dict, names: Iterable[str], shape_tells: bool = True) -> tuple[str, str] | None:
    """The base that weights come from and the licence they keep, by names, or by the UNet's configuration.

    Args:
        unet: its configuration.
        names: of what the weights come from.
        shape_tells: whether a UNet of Stable Diffusion's shape counts as one; False where the base is known to be
            another, or the UNet to be trained from scratch.

    Returns:
        For example ("Stable Diffusion 2", "openrail++"); None where neither tells of Stable Diffusion.
    """
    for name in names:
        for pattern, width in SD_NAMES.items():
            if re.search(pattern, name.lower()):
                return SD_LICENSES[width]
    width = unet.get("cross_attention_dim")
    is_sd = list(unet.get("block_out_channels") or []) == SD_CHANNELS and width in SD_LICENSES
    return SD_LICENSES[width] if shape_tells and is_sd else None


def choose_license(wanted: str | None, inherited: tuple[str, str] | None) -> str:
    """The licence to publish under; "unknown" where neither is given.

    Raises:
        ValueError: `wanted` is not the licence that the weights keep, or no identifier of a licence.
    """
    if inherited is not None and wanted not in (None, inherited[1]):
        raise ValueError(
            f"license is {wanted!r}, but weights that come from {inherited[0]} stay under {inherited[1]!r}: leave "
            "license out, or name another base_model if they come from elsewhere"
        )
    chosen = wanted or (inherited[1] if inherited else "unknown")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", chosen):
        raise ValueError(f"license is {chosen!r}: expected an identifier of the Hub, such as 'mit' or 'openrail++'")
    return chosen


def component_origins(folder: Path, files: Iterable[str]) -> list[str]:
    """What the components' configurations say they were loaded from, paths included."""
    configs = [read_json(folder / name) for name in files if os.path.basename(name) == "config.json"]
    return [str(config["_name_or_path"]) for config in configs if config.get("_name_or_path")]
