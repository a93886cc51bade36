"""A pipeline's folder as it may be published: complete, and without anything that runs code when it is loaded.

Only the files that make up the pipeline count; whatever else lies in the folder stays at home.
"""

import re
from pathlib import Path

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open

from c_diffset.convert.record import CONVERSION
from c_diffset.files import is_hub_id, public_name, read_json
from c_diffset.history import HISTORY
from c_diffset.hub.markdown import plain
from c_diffset.loading import no_loading_bar
from c_diffset.pipelines.pipeline_cdiffset import MODELS, SCHEDULERS, CDiffSETPipeline, count_bands

INDEX, CODE = "model_index.json", "pipeline.py"
GENERATED = (CODE, HISTORY, CONVERSION, "README.md", "mlm.json", "checksums.sha256", "grid.png")
LICENSE_FILE = "LICENSE"  # is published too where there is one
COMPONENTS = {  # each component's configuration, and the stock classes that it may be of
    "unet": ("config.json", "diffusers", tuple(MODELS["unet"])),
    "vae": ("config.json", "diffusers", tuple(MODELS["vae"])),
    "text_encoder": ("config.json", "transformers", tuple(MODELS["text_encoder"])),
    "tokenizer": ("tokenizer_config.json", "transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "scheduler": ("scheduler_config.json", "diffusers", tuple(SCHEDULERS)),
}
REQUIRED = ("unet", "scheduler")
WITH_WEIGHTS = tuple(MODELS)
COMPONENT_FILES = re.compile(
    r"[\w.-]+\.safetensors(\.index\.json)?|(tokenizer_|scheduler_)?config\.json|vocab\.json|merges\.txt|tokenizer\.json"
    r"|special_tokens_map\.json|added_tokens\.json"
)
PICKLES = (".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
MOST_BANDS = 100  # far above what any radar image has


def check_repo_id(repo: str) -> str:
    """Return the id; ValueError where it is not of the form `user/name`."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"repo {repo!r}: {error}") from None
    if repo.count("/") != 1:
        raise ValueError(f"repo {repo!r}: expected user/name, or organisation/name")
    return repo


def hub_ids(names: list[str]) -> list[str]:
    """Those of the names that are ids of repositories of the Hub."""
    found = []
    for name in names:
        if is_hub_id(name):
            try:
                found.append(check_repo_id(name))
            except ValueError:  # it only looks like one
                continue
    return found


def pipeline_files(folder: Path) -> list[str]:
    """The names, relative to `folder`, of the files that make up its pipeline.

    Raises:
        FileNotFoundError: no index, or a component that the index names is absent or not whole.
        ValueError: another kind of pipeline, a component of a foreign class, a pickle anywhere in the folder, a link
            that leaves it, or a file that is not what its name says.
    """
    index = read_json(folder / INDEX)
    expected = CDiffSETPipeline.__name__
    if index.get("_class_name") != expected:
        found = plain(repr(index.get("_class_name")))
        raise ValueError(f"{folder / INDEX}: _class_name is {found}, expected {expected!r}")
    _check_safe(folder)
    files = [INDEX, *([LICENSE_FILE] if (folder / LICENSE_FILE).is_file() else [])]
    for name, (config, *_) in COMPONENTS.items():
        if _has_component(folder, name, index.get(name)):
            files += [f"{name}/{file}" for file in component_files(folder / name, config, name in WITH_WEIGHTS)]
        elif name in REQUIRED:
            raise FileNotFoundError(f"{folder / INDEX} names no {name}: save the pipeline again")
    return files


def _has_component(folder: Path, name: str, entry: object) -> bool:
    """Whether the index names this component; ValueError where it is of a class that this pipeline does not take."""
    if entry in (None, [None, None]):
        return False
    _, library, classes = COMPONENTS[name]
    if not (isinstance(entry, list) and len(entry) == 2 and entry[0] == library and entry[1] in classes):
        expected = " or ".join(classes)
        raise ValueError(f"{folder / INDEX}: {name} is {plain(repr(entry))}, expected {expected} of {library}")
    return True


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


def component_files(folder: Path, config: str = "config.json", has_weights: bool = True) -> list[str]:
    """The names of a component's files; see `pipeline_files` for the errors."""
    names = [path.name for path in sorted(folder.glob("*")) if path.is_file() and COMPONENT_FILES.fullmatch(path.name)]
    if config not in names:
        raise FileNotFoundError(f"{folder / config} is missing, a part of the model: save it again")
    weights = {name for name in names if name.endswith(".safetensors")}
    if has_weights and not weights:
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors): save the pipeline again")
    for name in (name for name in names if name.endswith(".json")):
        content = read_json(folder / name)
        parts = content.get("weight_map") if name.endswith(".index.json") else {}
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise ValueError(f"{folder / name} has no weight_map of tensors and files: save the pipeline again")
        if missing := set(parts.values()) - weights:
            raise FileNotFoundError(f"{folder / plain(min(missing))} is missing, a part of the weights")
    _check_readable(folder)
    return names


def _check_readable(folder: Path) -> None:
    """Refuse a component's weights that are no safetensors, whether loading would read that file or not: ValueError."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({plain(error)}): save it again") from None


def load_checked(folder: Path) -> CDiffSETPipeline:
    """The pipeline of a folder, with its own weights and none that loading makes up.

    Raises:
        ValueError: it cannot be loaded (also where tensors are missing), its parts do not fit together, or a tensor is
            not finite.
    """
    try:
        with no_loading_bar():
            pipe = CDiffSETPipeline.from_pretrained(folder)
        pipe.check_channels()
        steps, bands = pipe.config.default_num_inference_steps, count_bands(pipe.config.sar_transform["channels"])
    except Exception as error:  # three libraries read these files, and raise whatever their content makes them
        raise ValueError(f"{folder} cannot be loaded ({plain(error)}): save the pipeline again") from error
    if type(steps) is not int or steps < 1:
        raise ValueError(f"{folder / INDEX}: default_num_inference_steps is {plain(repr(steps))}, expected 1 or more")
    if bands > MOST_BANDS:
        raise ValueError(f"{folder / INDEX}: sar_transform reads {bands} bands, expected at most {MOST_BANDS}")
    for name in ("unet", "vae"):
        if getattr(pipe, name) is not None:
            _check_tensors(getattr(pipe, name), folder / name)
    return pipe


def _check_tensors(module: torch.nn.Module, folder: Path) -> None:
    for key, tensor in module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{folder}: {key} holds NaN or infinite values")


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
