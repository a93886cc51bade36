"""From pairs to training batches: crops, flips, turns, noise, and an order that any process can recompute.

Everything random about training sample number k is a pure function of (seed, k), and so is the order of the samples.
A resumed run starts at another k and needs no saved state; two processes draw what one process with twice the batch
draws.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from c_diffset.data.degradation import Degradation
from c_diffset.data.eo import eo_to_tensor
from c_diffset.data.pairs import Pair, read_pair, repeat
from c_diffset.pipelines.pipeline_cdiffset import enlarge
from c_diffset.sar.radiometry import measured, to_model

FLIPS_AND_TURNS = 8


def flip_and_turn(image, which: int):
    """One of the eight symmetries of the square, of an array or tensor ... x H x W; 0 leaves it as it is."""
    if isinstance(image, np.ndarray):
        turned = np.rot90(image, which % 4, axes=(-2, -1))
        return turned[..., ::-1] if which >= 4 else turned
    turned = torch.rot90(image, which % 4, dims=(-2, -1))
    return turned.flip(-1) if which >= 4 else turned


def sample_rng(seed: int, number: int) -> np.random.Generator:
    """The random generator of training sample `number`."""
    return np.random.default_rng([seed, number])


@lru_cache(maxsize=256)
def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order of the rows in one epoch."""
    return np.random.default_rng([seed, epoch, 0]).permutation(rows)


def shuffled_row(seed: int, number: int, rows: int) -> int:
    """The row that training sample `number` is made of."""
    return int(epoch_order(seed, number // rows, rows)[number % rows])


def pair_to_tensors(pair: Pair, sar_transform: dict, eo_transform: dict, upscale: int = 1) -> dict[str, torch.Tensor]:
    """`sar` C x H x W and `eo` 3 x H x W in [-1, 1], and perhaps `mask` 1 x H x W in {0, 1}.

    The transforms and `upscale` are those of the model, see `sar_to_tensor` and `check_eo_transform`; `sar` is enlarged
    to the size of `eo` as the pipeline does. The mask joins that of the pair with what cannot be a measurement in the
    units of the model, as in scenes.

    Raises:
        ValueError: images that do not fit the transforms, or the sides of `eo` are not `upscale` times those of `sar`.
    """
    if pair.upscale != upscale:
        raise ValueError(
            f"pair {pair.id}: the sides of its EO image are {pair.upscale} times those of the other one, but the "
            f"model's upscale is {upscale}: give pairs of this factor; a training makes them by data.degradation"
        )
    mask = measured(np.moveaxis(np.atleast_3d(pair.sar), -1, 0), sar_transform.get("units"), pair.mask is not None)
    try:
        sar, mask = to_model(pair.sar, mask, sar_transform)
        eo = eo_to_tensor(np.moveaxis(pair.eo, -1, 0), eo_transform)
    except ValueError as error:
        raise ValueError(f"pair {pair.id}: {error}") from None
    tensors = {"sar": enlarge(torch.from_numpy(sar)[None], upscale)[0], "eo": eo}
    mask = repeat(mask, upscale)
    mask = mask if pair.mask is None else mask & pair.mask
    return tensors if mask.all() else tensors | {"mask": torch.from_numpy(mask.astype(np.float32))[None]}


def pool_mask(mask: torch.Tensor, factor: int) -> torch.Tensor:
    """Mask ... x H x W, 1 = valid, to the latent grid: one invalid pixel makes its latent pixel invalid."""
    return mask if factor == 1 else 1 - F.max_pool2d(1 - mask, factor)


def collate(samples: list[dict]) -> dict:
    """Samples as one batch; where some have a mask, the others are valid everywhere."""
    masks = [sample["mask"] for sample in samples if "mask" in sample]
    return default_collate([{"mask": torch.ones_like(masks[0])} | sample for sample in samples] if masks else samples)


def random_window(
    height: int, width: int, size: int, rng: np.random.Generator, name: str, step: int = 1
) -> tuple[slice, slice]:
    """The rows and columns of a random `size` x `size` window, which starts at multiples of `step`."""
    if min(height, width) < size:
        raise ValueError(f"pair {name} is {height} x {width}, smaller than crop_size {size}: lower data.crop_size")
    top, left = (step * int(rng.integers((side - size) // step + 1)) for side in (height, width))
    return slice(top, top + size), slice(left, left + size)


def random_crop(tensors: dict, size: int, rng: np.random.Generator, name: str, step: int = 1) -> dict:
    """The same `random_window` of every tensor or array C x H x W."""
    rows, columns = random_window(*tensors["eo"].shape[-2:], size, rng, name, step)
    return {key: value[..., rows, columns] for key, value in tensors.items()}


class TrainingPairs(Dataset):
    """Training samples from a map-style data set of pairs; indexed by (row, sample number).

    A sample holds `sar` and `eo` (C x size x size in [-1, 1]), perhaps `mask` (1 x h x w, on the latent grid), `noise`
    (C x h x w, unit Gaussian), `timestep` in [0, num_train_timesteps) and `number`; and for each number n in
    `more_noise` also `noise_n` and `timestep_n`. With a `degradation`, `sar` is made of `eo` after cropping, anew for
    every number.
    """

    def __init__(
        self,
        pairs,
        sar_transform: dict,
        eo_transform: dict,
        crop_size: int,
        seed: int = 0,
        augment: bool = True,
        noise_channels: int = 3,
        factor: int = 1,
        num_train_timesteps: int = 1000,
        more_noise: tuple[int, ...] = (),
        upscale: int = 1,
        degradation: Degradation | None = None,
    ):
        if crop_size % factor:
            raise ValueError(f"data.crop_size is {crop_size}, expected a multiple of {factor} for this autoencoder")
        if crop_size % upscale:
            raise ValueError(f"data.crop_size is {crop_size}, expected a multiple of the model's upscale {upscale}")
        self.pairs, self.sar_transform, self.eo_transform = pairs, sar_transform, eo_transform
        self.crop_size, self.seed, self.augment = crop_size, seed, augment
        self.noise_channels, self.factor = noise_channels, factor
        self.num_train_timesteps, self.more_noise = num_train_timesteps, more_noise
        self.upscale, self.degradation = upscale, degradation

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        row, number = key
        return self.sample(self.pairs[int(row)], number)

    def sample(self, row: dict, number: int) -> dict:
        """Training sample `number`, made of this row."""
        rng = sample_rng(self.seed, number)
        tensors = self.crop(read_pair(row), rng, number)
        which = rng.integers(FLIPS_AND_TURNS) if self.augment else 0
        tensors = {key: flip_and_turn(value, which).contiguous() for key, value in tensors.items()}
        if "mask" in tensors:
            tensors["mask"] = pool_mask(tensors["mask"], self.factor)
        return tensors | self.noise(rng, number)

    def crop(self, pair: Pair, rng: np.random.Generator, number: int) -> dict[str, torch.Tensor]:
        """A random window of a pair as tensors; only what is in it is transformed, where that changes nothing."""
        transforms = (self.sar_transform, self.eo_transform, self.upscale)
        if self.degradation is None and self.upscale > 1:  # enlarging looks beyond the window
            return random_crop(pair_to_tensors(pair, *transforms), self.crop_size, rng, pair.id, self.upscale)
        window = random_window(*pair.eo.shape[:2], self.crop_size, rng, pair.id)
        part = pair.part(*window)
        return pair_to_tensors(part if self.degradation is None else self.degradation(part, number), *transforms)

    def noise(self, rng: np.random.Generator, number: int) -> dict:
        """All noises and times of training sample `number`."""
        noise, timestep = self._draw(rng)
        drawn = {"noise": noise, "timestep": timestep, "number": number}
        return drawn | self.further_noise(number, self.more_noise)

    def further_noise(self, number: int, which: tuple[int, ...]) -> dict:
        """`noise_n` and `timestep_n` of training sample `number` for each n, which is 2 or more; all independent."""
        drawn = {}
        for n in which:
            drawn[f"noise_{n}"], drawn[f"timestep_{n}"] = self._draw(np.random.default_rng([self.seed, number, n]))
        return drawn

    def _draw(self, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        side = self.crop_size // self.factor
        noise = rng.standard_normal((self.noise_channels, side, side), dtype=np.float32)
        return torch.from_numpy(noise), int(rng.integers(self.num_train_timesteps))


class StreamedPairs(IterableDataset):
    """The same samples from a streamed data set: shuffled by shards and a buffer, each epoch anew.

    Every worker and process reads the whole stream, and decodes its own samples alone; resuming reads past the samples
    already seen. That costs reading, and makes the order independent of workers, processes and interruptions.
    """

    def __init__(self, training_pairs: TrainingPairs, batch_size: int, rank: int, world: int, start: int, buffer: int):
        self.training_pairs, self.batch_size = training_pairs, batch_size
        self.rank, self.world, self.start, self.buffer = rank, world, start, buffer

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        first_batch = self.start // (self.batch_size * self.world)
        for number, row in enumerate(self.rows()):
            batch, owner = divmod(number // self.batch_size, self.world)
            if number >= self.start and owner == self.rank and (batch - first_batch) % workers == worker_id:
                yield self.training_pairs.sample(row, number)

    def rows(self) -> Iterator[dict]:
        """Rows without end, epoch after epoch."""
        for epoch in count():
            empty = True
            shuffled = self.training_pairs.pairs.shuffle(self.training_pairs.seed + epoch, buffer_size=self.buffer)
            # `iter` gives every worker the whole stream; iterating over the data set itself would divide its shards
            for batch in shuffled.iter(batch_size=1):
                empty = False
                yield {key: values[0] for key, values in batch.items()}
            if empty:
                raise ValueError("the streamed data set holds no pair")


class ProcessBatches:
    """Batches of (row, sample number) for one of `world` processes, from sample `start` on, without end."""

    def __init__(self, rows: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in count(self.start + self.rank * self.batch_size, self.batch_size * self.world):
            numbers = range(first, first + self.batch_size)
            yield [(shuffled_row(self.seed, number, self.rows), number) for number in numbers]


def training_loader(
    samples: TrainingPairs,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    num_workers: int = 0,
    shuffle_buffer: int = 1000,
    pin_memory: bool = False,
    worker_init_fn: Callable | None = None,
) -> DataLoader:
    """Endless batches for one process, from sample number `start` (a multiple of the global batch) on."""
    options = dict(collate_fn=collate, num_workers=num_workers, pin_memory=pin_memory, worker_init_fn=worker_init_fn)
    if not hasattr(samples.pairs, "__len__"):
        stream = StreamedPairs(samples, batch_size, rank, world, start, shuffle_buffer)
        return DataLoader(stream, batch_size=batch_size, **options)
    if len(samples) == 0:
        raise ValueError("the training data set holds no pair")
    batches = ProcessBatches(len(samples), batch_size, samples.seed, rank, world, start)
    return DataLoader(samples, batch_sampler=batches, **options)
