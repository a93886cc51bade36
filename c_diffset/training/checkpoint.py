"""Checkpoints: the whole state of a training as safetensors and JSON, so that reading one runs no code that is in it.

A checkpoint is a folder with one `NAME.safetensors` for each part of the training, such as a model or an optimiser, and
`checkpoint.json` with the number of updates and the checksum of every file.
"""

import json
import sys
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim import Optimizer

from c_diffset.files import file_sha256, read_json, write_json

MANIFEST = "checkpoint.json"
TENSOR = "__tensor__"  # in the JSON of a part: the name of the tensor that belongs here


class Part(Protocol):
    """What a checkpoint holds: a model, an optimiser, averaged weights, a scaler of gradients, a count."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...


def save_checkpoint(folder: Path, parts: dict[str, Part], step: int) -> None:
    """Fill an empty folder with the state of all parts after update `step`."""
    for name, part in parts.items():
        state = part.state_dict()
        tensors: dict[str, torch.Tensor] = {}
        # an optimiser leaves its moments only: its settings are those of the run
        rest = _without_tensors(state["state"] if isinstance(part, Optimizer) else state, "", tensors, {})
        save_file(tensors, folder / f"{name}.safetensors", {"rest": json.dumps(rest)})
    sums = {f"{name}.safetensors": file_sha256(folder / f"{name}.safetensors") for name in parts}
    write_json(folder / MANIFEST, {"step": step, "sha256": sums})


def _without_tensors(value, name: str, tensors: dict[str, torch.Tensor], known: dict):
    """`value` in a form that JSON takes. Its tensors go into `tensors`, each of them once."""
    if isinstance(value, dict):
        return {str(key): _without_tensors(item, f"{name}.{key}", tensors, known) for key, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    turned = value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
    place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
    if known.setdefault(place, name) == name:
        # a tensor in the order of its memory needs no copy
        tensors[name] = value.permute(0, 2, 3, 1) if turned else value.contiguous()
    return {TENSOR: known[place], "channels_last": turned}


def load_checkpoint(folder: Path, parts: dict[str, Part]) -> None:
    """Give all parts the state that a checkpoint holds, which `check_checkpoint` has let through.

    Raises:
        ValueError: it is the checkpoint of another model.
    """
    for name, part in parts.items():
        try:
            with safe_open(folder / f"{name}.safetensors", "pt") as file:
                state = _with_tensors(json.loads(file.metadata()["rest"]), file)
            if isinstance(part, Optimizer):
                moments = {int(key): value for key, value in state.items()}
                state = part.state_dict() | {"state": moments}
            part.load_state_dict(state)
            if isinstance(part, Optimizer):
                _order_as_weights(part)
        except (RuntimeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{folder} does not fit this {name}, so that another model was trained here: choose another output_dir "
                f"({reason})"
            ) from None


def _order_as_weights(optimizer: Optimizer) -> None:
    """Lay the moments out in memory as the weights are, which another setting of `channels_last` may have turned.

    The fused optimiser goes through the memory of both, and does not look at its order.
    """
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            one_for_each = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if one_for_each and value.is_floating_point() and value.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _with_tensors(value, file):
    """The inverse of `_without_tensors`."""
    if not isinstance(value, dict):
        return value
    if TENSOR not in value:
        return {key: _with_tensors(item, file) for key, item in value.items()}
    tensor = file.get_tensor(value[TENSOR]).clone()  # a copy, because memory of the mapped file is not aligned
    return tensor.permute(0, 3, 1, 2) if value["channels_last"] else tensor


def check_checkpoint(folder: Path, parts: dict[str, Part]) -> None:
    """Refuse a checkpoint that is not as it was written.

    Raises:
        ValueError: a file was changed or belongs to another training; OSError: one is missing.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest.get("step") != int(folder.name.removeprefix("step_")) or not isinstance(manifest.get("sha256"), dict):
        raise ValueError(f"{folder / MANIFEST} is not what a training writes into {folder.name}")
    for name in parts:
        path = folder / f"{name}.safetensors"
        if file_sha256(path) != manifest["sha256"].get(path.name):
            raise ValueError(f"{path} is damaged: its checksum is not that of {MANIFEST}")


def newest_whole(folders: list[Path], parts: dict[str, Part]) -> int:
    """The number of updates in the last checkpoint that is whole, 0 where there is none at all.

    Damaged ones are named on stderr.

    Raises:
        ValueError: there are checkpoints, and all of them are damaged.
    """
    reasons: list[str] = []
    for folder in reversed(folders):
        try:
            check_checkpoint(folder, parts)
        except (OSError, ValueError) as error:
            reasons.append(str(error))
            continue
        if reasons:
            print(f"{'; '.join(reasons)}; going on from {folder.name} instead", file=sys.stderr)
        return int(folder.name.removeprefix("step_"))
    if reasons:
        raise ValueError(f"no checkpoint is whole: {reasons[0]}; start anew in another output_dir")
    return 0
