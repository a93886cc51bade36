"""Whole images, many at a time: PNG and JPEG in, the same out."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from c_diffset.data.batches import batches_of_one_size
from c_diffset.data.images import read_image
from c_diffset.files import written_aside
from c_diffset.inference.inputs import Outputs
from c_diffset.inference.record import TAG
from c_diffset.inference.scene import Translator
from c_diffset.noise import noise_generator
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, sar_to_tensor


def translate_batch(
    batch: list[Path], wanted: dict[Path, Outputs], translator: Translator, fail: Callable[[Path, str], None]
) -> Iterator[Path]:
    """Translate images of one size together; yields the inputs whose outputs are written.

    Sums are rounded in another order in a batch of another size. So the batch is the same in every run, and what is
    finished already is only not written again.

    Args:
        batch: the images. The noise of each depends on the seed and on its name alone.
        wanted: those that are to be written.
        translator: the model and its options.
        fail: told of an image that cannot be read or written, which does not stop the others.
    """
    pipe, options = translator.pipe, translator.options
    for group in batches_of_one_size(
        _read(batch, wanted, pipe, fail), lambda item: item[1].shape[:2], options.batch_size
    ):
        if not any(source in wanted for source, _ in group):
            continue
        generators = [noise_generator(options.seed, crc32(source.name.encode())) for source, _ in group]
        steps, images = options.num_inference_steps, [sar for _, sar in group]
        made = pipe(images, steps, generator=generators, output_type="np")
        for i, (source, _) in enumerate(group):
            if source not in wanted:
                continue
            if not np.isfinite(made.images[i]).all():
                fail(source, "the model's image holds NaN or infinite values: try dtype float32")
                continue
            outputs, settings = wanted[source], translator.image_settings
            try:
                if outputs.confidence is not None:
                    save_image((made.confidence[i] * 65535).round().astype(np.uint16), outputs.confidence, settings)
                save_image((made.images[i] * 255).round().astype(np.uint8), outputs.eo, settings)
            except OSError as error:
                fail(source, f"{outputs.eo} cannot be written ({error}): is the disk full?")
            else:
                yield source


def _read(
    batch: list[Path], wanted: dict[Path, Outputs], pipe: CDiffSETPipeline, fail: Callable[[Path, str], None]
) -> Iterator[tuple[Path, np.ndarray]]:
    """The images that can be read and fit the model."""
    for source in batch:
        try:
            sar = read_image(source)
            if not sar.any():
                raise ValueError("every pixel is zero (an all-black image)")
            sar_to_tensor(sar, pipe.config.sar_transform)
        except (ValueError, OSError) as error:
            if source in wanted:  # else it is finished, and has only changed since
                fail(source, str(error))
        else:
            yield source, sar


def save_image(pixels: np.ndarray, target: Path, settings: dict) -> None:
    """Write uint8 H x W x 3 or uint16 H x W, with the settings it was made with: whole, or not at all."""
    image, text = PIL.Image.fromarray(pixels), json.dumps(settings)
    with written_aside(target) as aside:
        if target.suffix.lower() in (".jpg", ".jpeg"):
            image.save(aside, format="JPEG", quality=95, comment=text)
        else:
            info = PngInfo()
            info.add_text(TAG, text)
            image.save(aside, format="PNG", pnginfo=info)
