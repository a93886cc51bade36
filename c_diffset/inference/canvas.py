"""A whole scene through a diffusion model: one canvas and one field of noise, which the model sees in tiles.

At every step the model sees all overlapping tiles; what it predicts is blended on the canvas before the scheduler's
step, so that tiles agree at every noise level (joint diffusion over windows: MultiDiffusion, Bar-Tal et al., arXiv
2302.08113). Nothing but a batch of tiles is in memory at once where the canvas goes to files.
"""

import copy
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from c_diffset.batching import batches_of_one_size
from c_diffset.inference.enlarged import on_grid_of_model
from c_diffset.inference.progress import Passes, Tell, tell_nobody
from c_diffset.inference.source import ArraySource, Source, fill_invalid
from c_diffset.inference.team import Team
from c_diffset.inference.tiles import Box, Tiling, blocks_of
from c_diffset.noise import noise_generator
from c_diffset.pipelines.pipeline_cdiffset import (
    CDiffSETPipeline,
    apply_calibration,
    variance_to_confidence,
)

BLOCK = 128  # side of the blocks, in canvas pixels, that the canvas is kept in and noise is drawn for
WINDOW = 512  # side of the windows, in image pixels, that come out
MEMORY_LIMIT = 8 * 2**20  # bytes above which one kind of tile goes to files


@dataclass
class SceneWindow:
    """A finished rectangle of a scene.

    Attributes:
        box: where, in image pixels of the scene.
        eo: uint8 H x W x 3; black where not valid.
        confidence: float32 H x W in (0, 1]; NaN where not valid; None if the model predicts no variance.
        valid: bool H x W.
        expected_error: float32 H x W, 8-bit levels; None without a calibration for the number of steps.
    """

    box: Box
    eo: np.ndarray
    confidence: np.ndarray | None
    valid: np.ndarray
    expected_error: np.ndarray | None = None


class Store:
    """Arrays by number: in memory, or in files of a folder, where other processes see them too."""

    def __init__(self, folder: Path | None):
        self.folder, self.arrays = folder, {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key) -> Path:
        return self.folder / f"{key}.npy"

    def __setitem__(self, key, array: np.ndarray) -> None:
        if self.folder is None:
            # outside of the heap, where what stays between large activations would tear its free space apart
            pages = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
            pages[:] = array
            self.arrays[key] = pages
            return
        try:
            np.save(self._path(key), np.ascontiguousarray(array))  # other arrays are written element by element
        except OSError as error:
            raise OSError(f"{self.folder} cannot be written ({error}): is the disk full?") from error

    def __getitem__(self, key) -> np.ndarray:
        return self.arrays[key] if self.folder is None else np.load(self._path(key), mmap_mode="r")


def tile_sides(pipe: CDiffSETPipeline, tile_size: int | None = None, overlap: int | None = None) -> tuple[int, int]:
    """Side of a tile and overlap in pixels: as given, or the side that the model was trained at and 64.

    Raises:
        ValueError: they do not fit the model or each other.
    """
    multiple = pipe.size_multiple
    if tile_size is None:
        tile_size = max(2, (pipe.trained_size or 512) // multiple) * multiple
    if overlap is None:
        overlap = max(1, min(64, tile_size // 4) // multiple) * multiple
    for name, value in (("tile_size", tile_size), ("overlap", overlap)):
        if value % multiple:
            raise ValueError(f"{name} is {value} pixels: this model needs a multiple of {multiple}")
    if not 0 <= overlap <= tile_size // 2 or tile_size == 0:
        raise ValueError(f"overlap is {overlap} pixels, expected from 0 to half of tile_size, {tile_size}")
    return tile_size, overlap


def scene_tiling(pipe: CDiffSETPipeline, source: Source, tile_size: int, overlap: int) -> Tiling:
    """The tiles of a scene, in canvas pixels: the scene, widened to the model's multiple on the ground."""
    multiple, factor = pipe.size_multiple, pipe.vae_scale_factor
    top, left = (position // multiple * multiple for position in source.origin)
    ends = [position + side for position, side in zip(source.origin, source.size, strict=True)]
    height, width = (-(-end // multiple) * multiple - start for end, start in zip(ends, (top, left), strict=True))
    origin, size = (top // factor, left // factor), (height // factor, width // factor)
    return Tiling(origin, size, tile_size // factor, overlap // factor, multiple // factor)


@dataclass(frozen=True)
class Sampling:
    """How a scene is drawn from the model.

    Attributes:
        steps: number of inference steps.
        seed: random seed of the noise field.
        batch_size: tiles that the model sees together; the result does not depend on which process has which tiles.
        realism: as in a call of the pipeline; the model's default when None.
    """

    steps: int
    seed: int = 0
    batch_size: int = 4
    realism: float | None = None


@dataclass(frozen=True)
class Work:
    """Who translates a scene, and where.

    Attributes:
        team: the processes that share the scene.
        folder: where arrays go that outgrow the memory limit or that other processes need; None keeps all in memory.
        progress: told of the stages and of the passes of tiles: encoding, every step, decoding. Tiles without data are
            no work, once they are known.
    """

    team: Team = field(default_factory=Team)
    folder: Path | None = None
    progress: Tell = tell_nobody


class SceneCanvas:
    """The state of one scene between its phases: `encode`, `denoise`, `decode`, then `windows`.

    Args:
        source: the scene.
        pipe: the model.
        tiling: from `scene_tiling`.
        sampling: the steps, the noise and the batches.
        work: the processes and the folder.

    Raises:
        ValueError: the model cannot translate a scene by blocks.
    """

    def __init__(self, source: Source, pipe: CDiffSETPipeline, tiling: Tiling, sampling: Sampling, work: Work):
        check_scene_model(pipe, sampling)
        self.source, self.pipe, self.tiling = source, pipe, tiling
        self.steps, self.seed, self.batch_size = sampling.steps, sampling.seed, sampling.batch_size
        self.team, folder = work.team, work.folder
        self.progress = Passes(work.progress, len(tiling.boxes) * (self.steps + 2), work.team.size)
        self.realism = pipe.choose_realism(sampling.realism, self.steps)
        self.factor, self.knots = pipe.vae_scale_factor, pipe.calibration_knots(self.steps, self.realism)
        self.pixels = tiling.scaled(self.factor)  # the same tiles in image pixels
        # the scene's first pixel on the canvas
        self.offset = tuple(p - o * self.factor for p, o in zip(source.origin, tiling.origin, strict=True))
        latent = 4 * sum(height * width for height, width in (box.size for box in tiling.boxes))  # bytes of one channel
        limits = {"sar": 4, "latents": 4, "predictions": 4, "variance": 1, "decoded": 0.75 * self.factor**2}
        self.stores = {
            name: Store(folder and folder / name if self.team.size > 1 or channels * latent > MEMORY_LIMIT else None)
            for name, channels in limits.items()
        }
        self.active: dict[int, None] = {}  # the tiles that hold a valid pixel, in order

    def run(self) -> None:
        """All phases up to `windows`."""
        with torch.no_grad():
            self.encode()
            self.denoise()
            self.decode()

    def encode(self) -> None:
        """SAR tiles to latents, one by one: one tile keeps an autoencoder busy, and several would fill the memory.

        Tiles without a valid pixel are left out from here on.
        """
        self.progress.stage("encoding", len(self.tiling.boxes))
        active, behind = [], None  # the tile before this one, which a GPU still works on while this one is read
        with self.team.phase():
            for tile in [*self.team.mine(list(range(len(self.tiling.boxes)))), None]:
                sar = None if tile is None else self._read_tile(tile)
                if behind is not None:
                    self.stores["sar"][behind[0]] = behind[1][0].float().cpu().numpy()
                    self.progress.add(1)
                    behind = None
                if sar is not None:
                    behind = tile, self.pipe.encode(torch.from_numpy(sar)[None].to(self.pipe.unet.device))
                    active.append(tile)
                elif tile is not None:
                    self.progress.add(1)
        self.active = dict.fromkeys(sorted(self.team.gather(active)))
        self.progress.total = len(self.tiling.boxes) + len(self.active) * (self.steps + 1)

    def denoise(self) -> None:
        """Every step over all tiles, blended on the canvas before the scheduler's step."""
        pipe, canvas = self.pipe, self.stores["latents"]
        pipe.scheduler.set_timesteps(self.steps)
        timesteps = pipe.scheduler.timesteps
        blocks = sorted({block for tile in self.active for block in blocks_of(self._on_ground(tile), BLOCK)})
        shape = (1, pipe.eo_channels, BLOCK, BLOCK)
        with self.team.phase():
            for block in self.team.mine(blocks):
                noise = torch.randn(shape, generator=noise_generator(self.seed, 0, *block))
                canvas[block] = (noise * pipe.starting_scale(self.realism)).numpy()
        confidence_step = (timesteps - pipe.config.confidence_timestep).abs().argmin().item()
        for i, t in enumerate(timesteps):
            self.progress.stage(f"denoising, step {i + 1} of {len(timesteps)}", len(self.active))
            with self.team.phase():
                for chunk in self._mine(self.active):
                    self._predict(chunk, t, i == confidence_step)
                    self.progress.add(len(chunk))
            with self.team.phase():
                for block in self.team.mine(blocks):
                    self._step(block, i, t)

    def decode(self) -> None:
        """Latents of the tiles to 8-bit images, one by one."""
        self.progress.stage("decoding", len(self.active))
        with self.team.phase():
            for tile in self.team.mine(list(self.active)):
                latents = torch.from_numpy(self._latents(tile))[None]
                latents = self.pipe.from_residual(latents, torch.from_numpy(np.array(self.stores["sar"][tile]))[None])
                image = self.pipe.decode(latents.to(self.pipe.unet.device))[0].float().mul_(0.5).add_(0.5).mul_(255)
                if not image.sum().isfinite():
                    raise ValueError("the model's image holds NaN or infinite values: try dtype float32")
                self.stores["decoded"][tile] = image.round_().byte().cpu().numpy()
                self.progress.add(1)

    def windows(self) -> Iterator[SceneWindow]:
        """The scene, window by window, row by row."""
        self.progress.stage("writing")
        height, width = self.source.size
        for row, column in blocks_of(Box(0, 0, height, width), WINDOW):
            top, left = row * WINDOW, column * WINDOW
            yield self._window(Box(top, left, min(top + WINDOW, height), min(left + WINDOW, width)))

    def batches(self, tiles: Iterable[int]) -> list[list[int]]:
        """What the model sees together: tiles of one size."""

        def size_of(tile: int) -> tuple[int, int]:
            return self.tiling.boxes[tile].size

        return list(batches_of_one_size(sorted(tiles, key=size_of, reverse=True), size_of, self.batch_size))

    def _mine(self, tiles: Iterable[int]) -> list[list[int]]:
        """This process's batches."""
        return self.team.mine(self.batches(tiles))

    def _on_ground(self, tile: int) -> Box:
        return self.tiling.boxes[tile].moved(*(-side for side in self.tiling.origin))

    def _read_tile(self, number: int) -> np.ndarray | None:
        """SAR of a tile, None where it holds no valid pixel; what lies outside of the scene is not valid."""
        box = self.tiling.boxes[number].scaled(self.factor).moved(*self.offset)
        inside = box.common(Box(0, 0, *self.source.size))
        sar, valid = self.source.read(inside)
        if not valid.any():
            return None
        if inside != box:
            rows = inside.top - box.top, box.bottom - inside.bottom
            columns = inside.left - box.left, box.right - inside.right
            sar, valid = np.pad(sar, ((0, 0), rows, columns)), np.pad(valid, (rows, columns))
        return fill_invalid(sar, valid)

    def _latents(self, tile: int) -> np.ndarray:
        """A tile's part of the canvas, C x h x w."""
        box, store = self._on_ground(tile), self.stores["latents"]
        values = np.empty((self.pipe.eo_channels, *box.size), np.float32)
        for block in blocks_of(box, BLOCK):
            corner = [number * BLOCK for number in block]
            shared = box.common(Box(*corner, *(side + BLOCK for side in corner)))
            values[shared.slices(*box[:2])] = store[block][0][shared.slices(*corner)]
        return values

    def _predict(self, chunk: list[int], t: torch.Tensor, keep_variance: bool) -> None:
        """What the model predicts for some tiles at one step."""
        pipe, device = self.pipe, self.pipe.unet.device
        sar = torch.from_numpy(np.stack([self.stores["sar"][tile] for tile in chunk])).to(device)
        latents = torch.from_numpy(np.stack([self._latents(tile) for tile in chunk])).to(device)
        prediction, raw = pipe.predict(sar, latents, t.to(device), pipe.prompt_kwargs(len(chunk)))
        for tile, values in zip(chunk, prediction.cpu().numpy(), strict=True):
            self.stores["predictions"][tile] = values
        if raw is not None and keep_variance:
            for tile, values in zip(chunk, pipe.to_variance(raw, t).cpu().numpy(), strict=True):
                self.stores["variance"][tile] = values[None]

    def _step(self, block: tuple[int, int], i: int, t: torch.Tensor) -> None:
        """The scheduler's step for one block of the canvas, with the block's own noise."""
        corner = tuple(number * BLOCK for number in block)
        on_canvas = Box(*corner, *(side + BLOCK for side in corner)).moved(*self.tiling.origin)
        part = on_canvas.common(Box(0, 0, *self.tiling.size))
        prediction = np.zeros((1, self.pipe.eo_channels, BLOCK, BLOCK), np.float32)
        blended = self.tiling.blend(part, self.active, self.stores["predictions"].__getitem__)
        prediction[part.slices(*on_canvas[:2])] = blended
        # schedulers count their steps: a copy for every block keeps them at this one
        scheduler, generator = copy.copy(self.pipe.scheduler), noise_generator(self.seed, i + 1, *block)
        latents = torch.from_numpy(np.array(self.stores["latents"][block]))
        stepped = scheduler.step(torch.from_numpy(prediction), t, latents, generator=generator, return_dict=False)[0]
        self.stores["latents"][block] = stepped.numpy()

    def _window(self, box: Box) -> SceneWindow:
        valid = self.source.valid(box)
        eo, maps = np.zeros((*box.size, 3), np.uint8), {}
        if self.pipe.predicts_variance:
            names = ["confidence", "expected_error"] if self.knots else ["confidence"]
            maps = {name: np.full(box.size, np.nan, np.float32) for name in names}
        if valid.any():
            on_canvas = box.moved(*(-side for side in self.offset))
            image = self.pixels.blend(on_canvas, self.active, self.stores["decoded"].__getitem__)
            eo = np.moveaxis(np.rint(image, out=image).astype(np.uint8), 0, -1) * valid[..., None]
            if maps:
                confidence = self._confidence(on_canvas)
                maps["confidence"][valid] = confidence[valid].numpy()
            if self.knots:
                maps["expected_error"][valid] = apply_calibration(confidence, self.knots, "expected_error")[valid]
        return SceneWindow(box, eo, maps.get("confidence"), valid, maps.get("expected_error"))

    def _confidence(self, box: Box) -> torch.Tensor:
        """Confidence at the pixels of a rectangle: between latent pixels linear, as the pipeline has it."""
        factor, (height, width) = self.factor, self.tiling.size
        around = Box(
            box.top // factor - 1, box.left // factor - 1, -(-box.bottom // factor) + 1, -(-box.right // factor) + 1
        )
        inside = around.common(Box(0, 0, height, width))
        variance = self.tiling.blend(inside, self.active, self.stores["variance"].__getitem__)
        variance = fill_invalid(variance, variance[0] > 0)  # where there is no tile
        confidence = self.pipe.to_pixels(variance_to_confidence(torch.from_numpy(variance)))[0]
        return confidence[box.slices(inside.top * factor, inside.left * factor)]


def translate_windows(
    image,
    pipe: CDiffSETPipeline,
    *,
    valid=None,
    origin: tuple[int, int] = (0, 0),
    num_inference_steps: int | None = None,
    seed: int = 0,
    tile_size: int | None = None,
    overlap: int | None = None,
    batch_size: int = 4,
    folder: Path | None = None,
    realism: float | None = None,
) -> Iterator[SceneWindow]:
    """Translate a scene that is at hand as an array of any size, window by window.

    The windows of a model of super-resolution lie on its finer grid.

    Args:
        image: H x W or H x W x bands (in xarray the dimensions y, x and band, in any order), in the model's units:
            numpy, or what is read window by window (memory maps, xarray, zarr), see `ArraySource`.
        pipe: the model.
        valid: bool H x W; by default where every band is finite, and not 0 in linear units.
        origin: row and column of the first pixel of `image` on the ground: the same ground gets the same noise.
        num_inference_steps: the model's own number when None.
        seed: random seed of the noise field.
        tile_size, overlap: in pixels, multiples of `pipe.size_multiple`; see `tile_sides`.
        batch_size: tiles that the model sees together.
        folder: where large arrays go; None keeps everything in memory, which then grows with the scene.
        realism: as in a call of the pipeline; the model's default when None.

    Raises:
        ValueError: the image or an argument does not fit the model.
    """
    source = on_grid_of_model(ArraySource(image, pipe.config.sar_transform, valid, origin), pipe)
    steps = pipe.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
    tiling = scene_tiling(pipe, source, *tile_sides(pipe, tile_size, overlap))
    canvas = SceneCanvas(source, pipe, tiling, Sampling(steps, seed, batch_size, realism), Work(folder=folder))
    canvas.run()
    yield from canvas.windows()


def check_scene_model(pipe: CDiffSETPipeline, sampling: Sampling) -> None:
    """Refuse, before any work, what cannot translate a scene by blocks."""
    pipe.check_inputs(sampling.steps, "np", [])
    pipe.choose_realism(sampling.realism, sampling.steps)
    if sampling.steps > (trained := pipe.scheduler.config.num_train_timesteps):
        raise ValueError(f"num_inference_steps is {sampling.steps}: the scheduler has {trained} steps at most")
    if sampling.batch_size < 1 or sampling.seed < 0:
        found = f"batch_size is {sampling.batch_size} and seed {sampling.seed}"
        raise ValueError(f"{found}: expected at least 1, and at least 0")
    if getattr(pipe.scheduler.config, "thresholding", False):
        raise ValueError("the scheduler has thresholding=True, which looks at whole images: set it to False for scenes")
