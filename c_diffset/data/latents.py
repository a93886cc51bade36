"""The latent cache: every pair's latents for the eight flips and turns, encoded once, read through memory mapping."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from c_diffset.data.batches import FLIPS_AND_TURNS, TrainingPairs, flip_and_turn, pair_to_tensors, pool_mask, sample_rng
from c_diffset.data.pairs import read_pair
from c_diffset.files import folder_aside, locked, write_file
from c_diffset.loading import weights_sha256
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline


def fingerprint(pipe: CDiffSETPipeline, pairs, dtype: torch.dtype = torch.float32) -> str:
    """A hash of what the latents depend on: autoencoder (if any), precision, transforms, upscale, and files."""
    vae_config, weights = ({}, None) if pipe.vae is None else (pipe.vae.config, weights_sha256(pipe.vae))
    config = {key: vae_config.get(key) for key in ("scaling_factor", "shift_factor", "_class_name")}
    made_of = [config, pipe.config.sar_transform, pipe.config.eo_transform, str(dtype), weights]
    made_of += [pipe.config.upscale] if pipe.config.upscale > 1 else []
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode())
    for row in pairs:
        for column in ("sar", "eo", "mask"):
            digest.update(_file_stamp(row.get(column)))
    return digest.hexdigest()[:16]


def _file_stamp(image: dict | None) -> bytes:
    """What tells one version of an image from another: its bytes, or its path, size and time of change."""
    if image is None:
        return b"none"
    if image.get("bytes") is not None:
        return hashlib.sha256(image["bytes"]).digest()
    stat = os.stat(image["path"])
    return f"{os.path.realpath(image['path'])}|{stat.st_size}|{stat.st_mtime_ns}".encode()


def _encode_turned(pipe: CDiffSETPipeline, image: torch.Tensor, dtype: torch.dtype) -> list[np.ndarray]:
    """One image C x H x W to the latents of its eight versions, float16."""
    latents = []
    for which in range(FLIPS_AND_TURNS):
        turned = flip_and_turn(image, which)[None].to(pipe.device)
        factor = pipe.vae_scale_factor
        turned = F.pad(turned, (0, -turned.shape[-1] % factor, 0, -turned.shape[-2] % factor), mode="reflect")
        with torch.autocast(pipe.device.type, dtype, enabled=dtype != torch.float32):
            latents.append(pipe.encode(turned)[0].to(torch.float16).cpu().numpy())
    return latents


def build_latent_cache(pipe: CDiffSETPipeline, pairs, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
    """Encode every pair eight times into `folder`/FINGERPRINT, unless it is there already; returns that folder.

    Images are encoded whole (padded by reflection to the autoencoder's multiple, as the pipeline does) and stored as
    float16 in `latents.bin`; `index.json` has each pair's id and offsets. One process writes, aside, others wait.
    `dtype` is the precision the autoencoder computes in; half precision is several times faster on some machines.
    """
    target = Path(folder) / fingerprint(pipe, pairs, dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock"), "another process fills this cache", timeout=-1):
        if (target / "index.json").is_file():
            return target
        with folder_aside(target) as aside, open(aside / "latents.bin", "wb") as file:
            index = [_write_pair(pipe, row, file, dtype) for row in tqdm(pairs, desc="encoding latents", unit="pair")]
            write_file(aside / "index.json", json.dumps(index))
    return target


def _write_pair(pipe: CDiffSETPipeline, row: dict, file, dtype: torch.dtype) -> dict:
    pair = read_pair(row)
    tensors = pair_to_tensors(pair, pipe.config.sar_transform, pipe.config.eo_transform)
    entry = {"id": pair.id, "arrays": {}}
    for key in ("sar", "eo"):
        entry["arrays"][key] = [_append(file, latents) for latents in _encode_turned(pipe, tensors[key], dtype)]
    if "mask" in tensors:
        masks = []
        for which in range(FLIPS_AND_TURNS):
            mask = flip_and_turn(tensors["mask"], which)
            factor = pipe.vae_scale_factor
            mask = F.pad(mask, (0, -mask.shape[-1] % factor, 0, -mask.shape[-2] % factor))
            masks.append(_append(file, pool_mask(mask, factor).to(torch.float16).numpy()))
        entry["arrays"]["mask"] = masks
    return entry


def _append(file, array: np.ndarray) -> dict:
    entry = {"offset": file.tell() // 2, "shape": list(array.shape)}
    file.write(np.ascontiguousarray(array).tobytes())
    return entry


def _read_index(cache: Path) -> tuple[list[dict], np.ndarray]:
    """The entries of a cache, and the numbers that they point into."""
    try:
        index = json.loads((cache / "index.json").read_text(encoding="utf-8"))
        latents = np.memmap(cache / "latents.bin", dtype=np.float16, mode="r")
        arrays = (array for row in index for versions in row["arrays"].values() for array in versions)
        whole = all(array["offset"] + np.prod(array["shape"]) <= len(latents) for array in arrays)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"the latent cache {cache} is damaged: remove it, and it is built again")
    return index, latents


class CachedPairs(TrainingPairs):
    """Training samples out of the cache: `sar` and `eo` are C x h x w latents, the rest is as in `TrainingPairs`."""

    def __init__(self, cache: str | Path, crop_size: int, factor: int, channels: int, **options):
        index, latents = _read_index(Path(cache))
        super().__init__(index, {}, {}, crop_size, noise_channels=channels, factor=factor, **options)
        self.latents = latents

    def sample(self, row: dict, number: int) -> dict:
        """Training sample `number`, made of this row of the index."""
        rng = sample_rng(self.seed, number)
        which = int(rng.integers(FLIPS_AND_TURNS)) if self.augment else 0
        side = self.crop_size // self.factor
        height, width = row["arrays"]["sar"][which]["shape"][-2:]
        if min(height, width) < side:
            raise ValueError(
                f"pair {row['id']} is {height * self.factor} x {width * self.factor}, "
                f"smaller than crop_size {self.crop_size}: lower data.crop_size"
            )
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        tensors = {}
        for key, versions in row["arrays"].items():
            offset, shape = versions[which]["offset"], versions[which]["shape"]
            array = self.latents[offset : offset + int(np.prod(shape))].reshape(shape)
            window = array[:, top : top + side, left : left + side]
            tensors[key] = torch.from_numpy(window.astype(np.float32))
        return tensors | self.noise(rng, number)
