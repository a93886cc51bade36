"""The teacher's many-step results for training samples, computed once, resumable, read through memory mapping."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from c_diffset.data.batches import TrainingPairs, shuffled_row
from c_diffset.files import locked, read_json, write_json, written_aside

CHUNK = 64


def open_results(folder: str | Path, made_with: dict[str, str | int], what: str = "the teacher's results") -> Path:
    """Make the folder of the teacher's results, or check that what is there was made in the same way.

    `what` is what messages call them.

    Raises:
        ValueError: the folder holds results of another teacher, other data or other settings; the message names them.
    """
    folder = Path(folder)
    index = folder / "index.json"
    if not index.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds other files: name a new folder for {what}")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(index, made_with)
    stored = read_json(index)
    changed = [name for name in made_with if stored.get(name) != made_with[name]]
    if changed:
        differences = [f"{name} is {made_with[name]}, but {stored.get(name)} in {folder}" for name in changed]
        raise ValueError(f"{what} were made otherwise: {'; '.join(differences)}; name a new folder")
    return folder


def build_results(
    folder: Path,
    count: int,
    translate: Callable[[list[int]], torch.Tensor],
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    what: str = "teacher's results",
) -> None:
    """Compute those chunks of results 0 ... `count` that are missing; each process takes every `world`-th of them.

    `translate` gives the results B x C x h x w of `batch_size` samples, by their numbers. A chunk is written aside and
    renamed, so that a stopped run goes on where it was.
    """
    chunks = range(-(-count // CHUNK))
    missing = [chunk for chunk in chunks if not _chunk_file(folder, chunk).exists()]
    for chunk in tqdm(missing[rank::world], desc=what, unit=f"x{CHUNK}", disable=rank > 0):
        target = _chunk_file(folder, chunk)
        with locked(target.with_suffix(".lock"), "another training computes these results", timeout=-1):
            if target.exists():
                continue
            numbers = list(range(chunk * CHUNK, (chunk + 1) * CHUNK))
            results = torch.cat([translate(numbers[i : i + batch_size]) for i in range(0, CHUNK, batch_size)])
            with written_aside(target) as aside, open(aside, "wb") as file:
                np.save(file, results.to(torch.float16).cpu().numpy())


def _chunk_file(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:05d}.npy"


def read_result(folder: Path, number: int) -> torch.Tensor:
    """Result `number`, C x h x w, float32."""
    path = _chunk_file(folder, number // CHUNK)
    try:
        return torch.from_numpy(np.load(path, mmap_mode="r")[number % CHUNK].astype(np.float32))
    except (ValueError, EOFError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and it is computed again") from None


class ResultSamples(Dataset):
    """Training samples with the teacher's result: `count` fixed crops, each with its starting noise.

    A sample is what `TrainingPairs` gives for its number, with `result` (C x h x w) beside it. The further
    noises and times (`more_noise`, as there) change from one visit of a crop to the next.
    """

    def __init__(self, samples: TrainingPairs, folder: str | Path, count: int, more_noise: tuple[int, ...] = ()):
        self.samples, self.folder, self.count, self.more_noise = samples, Path(folder), count, more_noise
        self.pairs, self.seed = range(count), samples.seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict:
        crop, number = int(key[0]), key[1]
        result = read_result(self.folder, crop)
        sample = self.samples[shuffled_row(self.seed, crop, len(self.samples)), crop]
        return sample | self.samples.further_noise(number, self.more_noise) | {"result": result}
