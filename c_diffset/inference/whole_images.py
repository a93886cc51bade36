"""Whole images, many at a time: PNG and JPEG in, the same out."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import PIL.Image

from c_diffset.data.batches import batches_of_one_size
from c_diffset.data.images import read_image
from c_diffset.inference.inputs import Outputs
from c_diffset.noise import noise_generator
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, sar_to_tensor


def translate_images(
    plan: dict[Path, Outputs],
    pipe: CDiffSETPipeline,
    num_inference_steps: int | None,
    batch_size: int,
    seed: int,
    fail: Callable[[Path, str], None],
) -> Iterator[list[Path]]:
    """Translate images in batches of one size; yields the inputs of every batch that is written.

    The noise of an image depends on the seed and on its name alone. An image that cannot be read does not stop the
    others: it is passed to `fail` with the error.
    """
    for batch in batches_of_one_size(_read(plan, pipe, fail), lambda item: item[1].shape[:2], batch_size):
        generators = [noise_generator(seed, crc32(source.name.encode())) for source, _ in batch]
        images = pipe([sar for _, sar in batch], num_inference_steps, generator=generators, output_type="np")
        for i, (source, _) in enumerate(batch):
            if not np.isfinite(images.images[i]).all():
                fail(source, "the model's image holds NaN or infinite values: try dtype float32")
                continue
            try:
                if plan[source].confidence is not None:
                    save_image((images.confidence[i] * 65535).round().astype(np.uint16), plan[source].confidence)
                save_image((images.images[i] * 255).round().astype(np.uint8), plan[source].eo)
            except OSError as error:
                fail(source, f"{plan[source].eo} cannot be written ({error}): is the disk full?")
        yield [source for source, _ in batch]


def _read(
    plan: dict[Path, Outputs], pipe: CDiffSETPipeline, fail: Callable[[Path, str], None]
) -> Iterator[tuple[Path, np.ndarray]]:
    """The images that can be read and fit the model."""
    for source in plan:
        try:
            sar = read_image(source)
            if not sar.any():
                raise ValueError("every pixel is zero (an all-black image)")
            sar_to_tensor(sar, pipe.config.sar_transform)
        except (ValueError, OSError) as error:
            fail(source, str(error))
        else:
            yield source, sar


def save_image(pixels: np.ndarray, target: Path) -> None:
    """Write uint8 H x W x 3 or uint16 H x W aside and rename, so that a file under its final name is complete."""
    aside = target.with_name(f".{target.name}.partial")
    options = {"quality": 95} if target.suffix.lower() in (".jpg", ".jpeg") else {}
    try:
        PIL.Image.fromarray(pixels).save(aside, format="JPEG" if options else "PNG", **options)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
