"""From SAR files to EO files."""

import glob
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from zlib import crc32

import numpy as np
import PIL.Image
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from tqdm.auto import tqdm

from c_diffset.data.pairs import read_image
from c_diffset.evaluation.images import image_generator
from c_diffset.loading import Precision, load_pipeline
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, sar_to_tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass
class Translation:
    """What `translate` did: the files written, those skipped because they were there, and the error of each failure."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def find_images(inputs: list[str]) -> list[Path]:
    """Files, folders (their images, in order of name) and glob patterns to a list of files.

    Raises:
        FileNotFoundError: an input that names nothing.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            matches = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            matches = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]
        if not matches:
            raise FileNotFoundError(f"{name}: no such file, no image in that folder, and no match as a pattern")
        found |= dict.fromkeys(matches)
    return list(found)


def translate(
    inputs: list[str],
    model: str,
    output: str,
    num_inference_steps: int | None = None,
    batch_size: int = 4,
    seed: int = 0,
    confidence: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    dtype: Precision = "float32",
    revision: str | None = None,
    vae: str | None = None,
) -> Translation:
    """Translate SAR images (PNG, JPEG, TIFF) to EO images of the same names.

    Args:
        inputs: files, folders and glob patterns.
        model: folder or Hub id of the model.
        output: folder of the EO images.
        num_inference_steps: the model's own number when not given.
        batch_size: images of one size that are translated together.
        seed: of the noise; the noise of an image depends on this and on its name alone.
        confidence: also write NAME_confidence.png, 16 bits, 65535 standing for 1.
        overwrite: redo what is in `output` already, instead of skipping it.
        device: by default CUDA where there is one.
        dtype: precision of the model; half precision is faster on most GPUs and on CPUs with AMX.
        revision: revision of a Hub id.
        vae: folder or Hub id of an autoencoder of the same latent space, or "taesd", instead of the model's own.

    Returns:
        What was written, skipped, and failed with which error: a file that cannot be read does not stop the others.

    Raises:
        ValueError: two inputs have the same output name, an output would replace its input, the model gives no
            confidence, or `vae` does not fit the model.
        OSError: an input that does not exist, or an output folder that cannot be written.
    """
    outputs = plan_outputs(find_images(inputs), Path(output), confidence)
    pipe = load_pipeline(model, revision, device, dtype, vae)
    if confidence and not pipe.predicts_variance:
        raise ValueError(f"model {model} predicts no confidence: its UNet has no variance channel")

    result = Translation()
    todo = []
    for source, targets in outputs.items():
        if not overwrite and all(target.exists() for target in targets):
            result.skipped.append(targets[0])
        else:
            todo.append(source)
    with tqdm(total=len(todo), desc="translate", unit="image") as bar:
        for batch in _batches(_read(todo, pipe, result, bar), batch_size):
            generators = [image_generator(seed, crc32(source.name.encode())) for source, _ in batch]
            images = pipe([sar for _, sar in batch], num_inference_steps, generator=generators, output_type="np")
            for i, (source, _) in enumerate(batch):
                if not np.isfinite(images.images[i]).all():
                    result.failed[source] = "the model's image holds NaN or infinite values"
                    continue
                target, *confidence_target = outputs[source]
                for path in confidence_target:
                    save_image((images.confidence[i] * 65535).round().astype(np.uint16), path, source)
                save_image((images.images[i] * 255).round().astype(np.uint8), target, source)
                result.written.append(target)
            bar.update(len(batch))
    _report(result)
    return result


def plan_outputs(sources: list[Path], output: Path, confidence: bool) -> dict[Path, list[Path]]:
    """The output files of every input: the EO image, and the confidence map where asked for.

    Raises:
        ValueError: two inputs would share an output, or an output would replace an input.
    """
    output.mkdir(parents=True, exist_ok=True)
    inputs = {source.resolve() for source in sources}
    plan: dict[Path, list[Path]] = {}
    owner: dict[Path, Path] = {}
    for source in sources:
        plan[source] = [output / source.name] + [output / f"{source.stem}_confidence.png"] * confidence
        for target in plan[source]:
            if target in owner:
                raise ValueError(f"{owner[target]} and {source} would both become {target}: translate them apart")
            if target.resolve() in inputs:
                raise ValueError(f"{target} would replace an input: choose another output folder")
            owner[target] = source
    return plan


def _read(todo: list[Path], pipe: CDiffSETPipeline, result: Translation, bar) -> Iterator[tuple[Path, np.ndarray]]:
    """The images that can be read and fit the model; the others go into `result.failed`."""
    for source in todo:
        try:
            sar = read_image(source)
            if not sar.any():
                raise ValueError("every pixel is zero (an all-black image)")
            sar_to_tensor(sar, pipe.config.sar_transform)
        except (ValueError, OSError) as error:
            result.failed[source] = str(error)
            bar.update()
        else:
            yield source, sar


def _batches(images: Iterator[tuple[Path, np.ndarray]], batch_size: int) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Neighbours of one size, at most `batch_size` together."""
    for _, same_size in groupby(images, key=lambda item: item[1].shape[:2]):
        while batch := list(islice(same_size, batch_size)):
            yield batch


def save_image(pixels: np.ndarray, target: Path, source: Path) -> None:
    """Write uint8 H x W x 3 or uint16 H x W aside and rename, so that a file under its final name is complete.

    A TIFF keeps the coordinates of its source.
    """
    aside = target.with_name(f".{target.name}.partial")
    suffix = target.suffix.lower()
    if suffix in (".tif", ".tiff"):
        _save_tiff(pixels, aside, source)
    else:
        options = {"quality": 95} if suffix in (".jpg", ".jpeg") else {}
        PIL.Image.fromarray(pixels).save(aside, format="PNG" if suffix == ".png" else "JPEG", **options)
    os.replace(aside, target)


def _save_tiff(pixels: np.ndarray, path: Path, source: Path) -> None:
    """An RGB image H x W x 3 as TIFF, with the coordinates of the image it was made from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(source) as raster:
            place = {"crs": raster.crs, "transform": raster.transform}
        size = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 3}
        options = {"dtype": "uint8", "photometric": "RGB", "compress": "deflate"}
        with rasterio.open(path, "w", driver="GTiff", **size, **options, **place) as raster:
            raster.write(np.moveaxis(pixels, -1, 0))


def _report(result: Translation) -> None:
    print(f"{len(result.written)} written, {len(result.skipped)} there already, {len(result.failed)} failed")
    for source, error in result.failed.items():
        print(f"failed: {source}: {error}", file=sys.stderr)
