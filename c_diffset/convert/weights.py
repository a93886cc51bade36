"""Weights in files that somebody else has written, read without running what is in them, and compared by name."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from c_diffset.pipelines.pipeline_cdiffset import one_line

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
MOST_BYTES = 2**34  # of a file of weights: the largest that is published has a fifth of it
MOST_PICKLED = 2**24  # bytes of what a .pt file says of its tensors
MOST_TENSORS = 10_000
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = ("ema", "state_dict", "model", "unet", "module")  # what some programs put around their weights
PREFIXES = ("module.", "_orig_mod.", "unet.", "model.")  # and before each name

Shapes = Mapping[str, list[int]]


def find_weights(source: Path) -> Path:
    """The one file of weights in a folder (or in its folder `unet`), or the file itself.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, so that one has to be named.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is missing: expected a file of weights, or a folder that holds one")
    folder = source / "unet" if (source / "unet").is_dir() else source
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", *PICKLES)]
    files = [path for path in files if path.suffix == ".safetensors"] or files
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights: expected a file *.safetensors or *.pt")
    if len(files) > 1:
        raise ValueError(f"{folder} holds {len(files)} files of weights: name one of them, such as {files[0]}")
    return files[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names, in float32 where they are smaller, without wrappers and prefixes.

    Raises:
        OSError: the file is damaged, or holds anything but tensors, such as code.
        ValueError: it is too large, of an unknown format, or holds values that are not finite.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size / 2**30:.0f} GiB: expected at most {MOST_BYTES >> 30}")
    if path.suffix == ".safetensors":
        try:
            found = load_file(path)
        except (SafetensorError, OSError) as error:
            raise OSError(f"{path} is damaged ({one_line(error)}): copy or download it again") from None
    elif path.suffix in PICKLES:
        found = unwrap(read_pickle(path), path)
    else:
        raise ValueError(
            f"{path} is no file of weights: expected *.safetensors or {', '.join('*' + p for p in PICKLES)}"
        )
    check_plain(found, path)
    if len(found) > MOST_TENSORS or sum(tensor.nbytes for tensor in found.values()) > path.stat().st_size:
        raise ValueError(f"{path} names more than it holds: expected at most {MOST_TENSORS} tensors, each stored once")
    return {name: check_finite(tensor, name, path) for name, tensor in without_prefix(found).items()}


def read_pickle(path: Path) -> object:
    """What `torch.save` wrote, where nothing in it is more than data.

    The file is an archive. Each entry has to lie in it as it is, so that nothing grows when it is read.

    Raises:
        OSError: it is damaged, of a form that torch no longer writes, or holds code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        expected = "a file that torch 1.6 or later has saved, whole"
        raise OSError(f"{path} is damaged or too old ({one_line(error)}): expected {expected}") from None
    pickled = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or pickled > MOST_PICKLED or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise OSError(f"{path} is no archive as torch.save writes it: its content is larger than the file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling ends in errors of any kind
        raise OSError(f"{path} cannot be read as weights alone, without running code: {one_line(error)}") from None


def unwrap(found: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds; ValueError where there is none."""
    for _ in range(2):
        inner = [found[name] for name in WRAPPERS if isinstance(found, dict) and isinstance(found.get(name), dict)]
        found = inner[0] if inner else found
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} holds {type(found).__name__}: expected a state dict, tensors by their names")
    return found


def check_plain(found: Mapping[object, object], path: Path) -> None:
    """Refuse, by ValueError, anything but arrays of floating point by their names: a forged file can hold all sorts."""
    for name, value in found.items():
        plain = isinstance(value, Tensor) and value.dtype in FLOATS and value.layout is torch.strided
        if not isinstance(name, str) or not isinstance(value, Tensor) or not plain or value.device.type != "cpu":
            kind = f"{value.device} {value.layout} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{path}: {name!r:.80} is of type {kind}: expected tensors of floating point alone")


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers of models put before all of them."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def check_finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor in float32; ValueError where it holds NaN or infinite values."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path}: {name!r:.80} holds NaN or infinite values")
    return tensor.float()


# ------------------------------------------------------------------------------------------------ names and shapes


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The shape of each tensor."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def count_blocks(found: Shapes, kind: str) -> int:
    """The number of blocks, by the highest number in a name."""
    numbers = [int(match[1]) for name in found if (match := re.match(rf"{kind}\.(\d{{1,4}})\.", name))]
    return max(numbers, default=-1) + 1


def has(found: Shapes, prefix: str) -> bool:
    """Whether the name of any tensor begins so."""
    return any(name.startswith(prefix) for name in found)


def first_size(found: Shapes, prefix: str) -> int:
    """The first side of the first tensor of this prefix; ValueError without one."""
    sizes = [shape[0] for name, shape in found.items() if name.startswith(prefix) and shape]
    if not sizes:
        raise ValueError(
            f"lacks {prefix}* and holds {next(iter(found))!r:.100}: weights of another kind, or only a part"
        )
    return sizes[0]


def check_names(found: Shapes, expected: Shapes, path: Path, what: str) -> None:
    """Refuse weights that are not exactly those of a model: ValueError, which names the first that differ."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    faults = [f"lacks {missing[0]}" + others(missing)] if missing else []
    faults += [f"holds the unexpected {unexpected[0]!r:.100}" + others(unexpected)] if unexpected else []
    if not faults:
        wrong = [name for name in expected if found[name] != expected[name]]
        faults = [f"holds {name} in shape {found[name]}, not {expected[name]}" for name in wrong[:1]]
    if faults:
        raise ValueError(f"{path} {' and '.join(faults)}: expected the weights of {what}, all of them")


def others(names: list[str]) -> str:
    """How many more there are."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
