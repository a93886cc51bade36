"""PNG and JPEG in, the same out: small images whole and many at a time, large ones on the canvas of scenes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from c_diffset.batching import batches_of_one_size
from c_diffset.data.images import read_image
from c_diffset.inference.canvas import SceneCanvas, Work
from c_diffset.inference.inputs import Outputs
from c_diffset.inference.preview import Maps, image_preview
from c_diffset.inference.progress import Tell
from c_diffset.inference.record import save_image
from c_diffset.inference.scene import Translator, work_folder
from c_diffset.inference.source import ArraySource
from c_diffset.inference.team import Team
from c_diffset.noise import noise_generator
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, count_bands, sar_to_tensor


def translate_batch(
    batch: list[Path],
    wanted: dict[Path, Outputs],
    translator: Translator,
    fail: Callable[[Path, str], None],
    progress: Tell,
) -> Iterator[Path]:
    """Translate images of one size together, whole; yields the inputs whose outputs are written.

    Sums are rounded in another order in a batch of another size. So the batch is the same in every run, and what is
    finished already is only not written again.

    Args:
        batch: the images. The noise of each depends on the seed and on its name alone.
        wanted: those that are to be written.
        translator: the model and its options.
        fail: told of an image that cannot be read or written, which does not stop the others.
        progress: told of the stages.
    """
    pipe, options = translator.pipe, translator.options

    def tell_step(pipe, i, t, tensors) -> dict:
        step = i + 1
        name = "decoding" if step == translator.steps else f"denoising, step {step + 1} of {translator.steps}"
        progress(name, (step + 1) / (translator.steps + 2), 1)
        return {}

    progress("reading", 0, 1)
    for group in batches_of_one_size(
        _read(batch, wanted, pipe, fail), lambda item: item[1].shape[:2], options.batch_size
    ):
        if not any(source in wanted for source, _ in group):
            continue
        generators = [image_noise(options.seed, source) for source, _ in group]
        progress("encoding", 0, 1)
        made = pipe(
            [sar for _, sar in group],
            translator.steps,
            generator=generators,
            output_type="np",
            callback_on_step_end=tell_step,
            callback_on_step_end_tensor_inputs=[],
            realism=translator.realism,
        )
        for i, (source, _) in enumerate(group):
            if source not in wanted:
                continue
            if not np.isfinite(made.images[i]).all():
                fail(source, "the model's image holds NaN or infinite values: try dtype float32")
                continue
            eo = (made.images[i] * 255).round().astype(np.uint8)
            maps = Maps(*(None if own is None else own[i] for own in (made.confidence, made.expected_error)))
            try:
                write_image(wanted[source], eo, maps, translator.image_settings)
            except OSError as error:
                fail(source, str(error))
            else:
                yield source


def image_noise(seed: int, source: Path) -> torch.Generator:
    """The source of an image's noise: it depends on the seed and on the image's name alone."""
    return noise_generator(seed, crc32(source.name.encode()))


def _read(
    batch: list[Path], wanted: dict[Path, Outputs], pipe: CDiffSETPipeline, fail: Callable[[Path, str], None]
) -> Iterator[tuple[Path, np.ndarray]]:
    """The images that can be read and fit the model."""
    for source in batch:
        try:
            sar = read_sar(source, pipe)
            sar_to_tensor(sar, pipe.config.sar_transform)
        except (ValueError, OSError) as error:
            if source in wanted:  # else it is finished, and has only changed since
                fail(source, str(error))
        else:
            yield source, sar


def read_sar(source: Path, pipe: CDiffSETPipeline) -> np.ndarray:
    """An image in which something can be seen, for a model that upscales in its colours; ValueError for any other."""
    sar = read_image(source)
    if not sar.any():
        raise ValueError("every pixel is zero (an all-black image)")
    return sar if pipe.config.upscale == 1 else as_colours(sar, count_bands(pipe.config.sar_transform["channels"]))


def as_colours(image: np.ndarray, bands: int) -> np.ndarray:
    """H x W (x C) as red, green and blue where a model reads three bands: grey in each of them, opaque alpha left out.

    Raises:
        ValueError: pixels are transparent.
    """
    grey = np.atleast_3d(image)
    if grey.shape[2] in (2, 4) and bands == 3:
        if (grey[..., -1] != np.iinfo(grey.dtype).max).any():
            raise ValueError("pixels are transparent: fill them, and leave out the alpha channel")
        grey = grey[..., :-1]
    return grey.repeat(3, axis=2) if grey.shape[2] == 1 and bands == 3 else grey


def translate_large(source: Path, translator: Translator, outputs: Outputs, team: Team, progress: Tell) -> None:
    """Translate an image that is larger than a tile, by the processes of a team, as scenes are translated.

    The noise depends on the seed, on the image's name and on the position in the image alone.

    Raises:
        ValueError: the image does not fit the model.
        OSError: it cannot be read, or an output cannot be written.
    """
    folder = outputs.eo.parent / f".{outputs.eo.name}.work"
    progress("reading", 0, 1)
    with ExitStack() as mine:
        with team.phase():
            if team.rank == 0:
                mine.enter_context(work_folder(folder))
        with team.phase():
            sar = ArraySource(read_sar(source, translator.pipe), translator.pipe.config.sar_transform)
            seed = image_noise(translator.options.seed, source).initial_seed()
            canvas = translator.canvas(sar, Work(team, folder, progress), seed)
        canvas.run()
        with team.phase():
            if team.rank == 0:
                write_image(outputs, *put_together(canvas), translator.tiled_image_settings)


def put_together(canvas: SceneCanvas) -> tuple[np.ndarray, Maps]:
    """The whole image, uint8 H x W x 3, and what the model says of it."""
    size, trusted = canvas.source.size, canvas.pipe.predicts_variance
    eo = np.empty((*size, 3), np.uint8)
    maps = Maps(*(np.empty(size, np.float32) if there else None for there in (trusted, trusted and canvas.knots)))
    for window in canvas.windows():
        place = window.box.slices()[1:]
        eo[place] = window.eo
        for whole, part in zip(maps, (window.confidence, window.expected_error), strict=True):
            if whole is not None:
                whole[place] = part
    return eo, maps


def write_image(outputs: Outputs, eo: np.ndarray, maps: Maps, settings: dict) -> None:
    """The files of an image, the image itself last: where it stands, the others are complete.

    Raises:
        OSError: one of them cannot be written.
    """
    try:
        if outputs.confidence is not None and maps.confidence is not None:
            save_image((maps.confidence * 65535).round().astype(np.uint16), outputs.confidence, settings)
        if outputs.preview is not None:
            save_image(np.asarray(image_preview(eo, maps, outputs.eo.name)), outputs.preview, settings)
        save_image(eo, outputs.eo, settings)
    except OSError as error:
        raise OSError(f"{outputs.eo} cannot be written ({error}): is the disk full?") from error
