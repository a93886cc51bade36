"""The command `translate`: images, scenes and lists of them, on one process or many; what is finished stays."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from c_diffset.inference.options import MAX_PIXELS, SceneOptions
from c_diffset.precision import Precision

if TYPE_CHECKING:
    from c_diffset.inference.job import Translation

MANIFEST = "manifest.jsonl"


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
    dtype: Precision = "auto",
    revision: str | None = None,
    vae: str | None = None,
    units: str | None = None,
    bands: list[str] | None = None,
    despeckle: bool = False,
    crs: str | None = None,
    resolution: float | None = None,
    bbox: list[float] | None = None,
    bbox_crs: str | None = None,
    window: list[int] | None = None,
    tile_size: int | None = None,
    overlap: int | None = None,
    max_pixels: int = MAX_PIXELS,
    stac: bool = False,
    threads: int | None = None,
    preview: bool = False,
    realism: float | None = None,
) -> "Translation":
    """Translate SAR images (PNG, JPEG) and scenes (GeoTIFF, Sentinel-1 GRD in SAFE) to EO images of the same names.

    A scene becomes a Cloud Optimized GeoTIFF of its size and place, masked where it has no data. What is finished is
    skipped, and noted in `manifest.jsonl` of the output folder. Under `accelerate launch -m c_diffset translate ...`
    the processes share the list, and share every scene that is large against the whole.

    Args:
        inputs: Images, scenes, folders, glob patterns, lists (.txt, one input a line) and STAC items (.json).
        model: Folder or Hub id of the model.
        output: Folder that the EO images are written to.
        num_inference_steps: Number of inference steps. The model's own number when not given.
        batch_size: Number of images of one size, or of tiles, that the model sees together.
        seed: Random seed of the sampling noise. The noise of an image depends on this and on its name, the noise of a
            scene on this and on the position on the ground.
        confidence: Also write NAME_confidence: for scenes .tif, float32 in (0, 1]; for images .png, 65535 being 1.
        overwrite: Translate again what is in `output` already, instead of skipping it.
        device: Device of the model, such as cpu or cuda:1. CUDA where there is one when not given.
        dtype: Precision of the model. By default (auto), the fastest that the device has instructions for: bfloat16 on
            newer GPUs and on CPUs with AMX.
        revision: Revision of the model on the Hub.
        vae: Folder or Hub id of an autoencoder of the same latent space, or "taesd", that replaces the model's own.
        units: Units of a scene's pixels: display, db, power or amplitude, or reflectance of a scene that is upscaled.
            They are detected where that is certain.
        bands: Polarisations (VV VH HH HV) or numbers of a scene's bands, in the model's order.
        despeckle: Filter the speckle of a scene (refined Lee) before the model sees it.
        crs: Coordinate system that scenes are warped to first, such as EPSG:32631.
        resolution: Pixel size after warping, in units of the coordinate system.
        bbox: Left, bottom, right and top of the part of each scene that is translated, in units of `bbox_crs`.
        bbox_crs: Coordinate system of `bbox`, such as EPSG:4326 for longitude and latitude. That of the scene (after
            warping) when not given.
        window: Column, row, width and height in pixels of the part of each scene that is translated.
        tile_size: Side of the tiles of scenes, and of images that are larger, in pixels. What the model was trained at,
            or 512, when not given.
        overlap: Number of pixels that neighbouring tiles share at least. 64, or less in small tiles, when not given.
        max_pixels: Number of pixels above which a scene is refused, so that the others do not wait for it.
        stac: Also write NAME.json, a STAC item, for every scene.
        threads: Number of threads of each process on a CPU. Its share of the cores when not given. One process and
            many write the same bytes where this is the same; otherwise sums are rounded in another order.
        preview: Also write NAME_preview.png, of at most 1024 pixels a side: the image beside its expected error, where
            the model is calibrated, or else beside its confidence.
        realism: From 0, the best estimate of every pixel, to 1, a plausible sample with the detail that such ground may
            have. For models of one step that were trained for it, whose own default it is when not given.

    Returns:
        What was written, skipped, and failed with which error: an input that cannot be read does not stop the others.

    Raises:
        ValueError: an option is empty or does not fit the model, two inputs have the same output name, or an output
            would replace its input.
        OSError: an input that does not exist, or an output folder that cannot be written.
    """
    for name, value in list(locals().items()):
        if any(isinstance(text, str) and not text.strip() for text in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{name} is, or holds, an empty string: is a variable of the shell not set?")
    if not inputs:
        raise ValueError("inputs is an empty list: name at least one image, scene or folder")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}: expected at least 1")
    from c_diffset.cpu import use_whole_cpu
    from c_diffset.inference.canvas import check_scene_model
    from c_diffset.inference.inputs import find_inputs, is_scene, matching, plan_outputs
    from c_diffset.inference.job import Job
    from c_diffset.inference.scene import Translator
    from c_diffset.inference.team import join_team
    from c_diffset.loading import load_pipeline, model_revision

    reading = {"units": units, "bands": bands, "despeckle": despeckle, "crs": crs, "resolution": resolution}
    tiles = {"tile_size": tile_size, "overlap": overlap, "batch_size": batch_size}
    reading |= {"bbox": bbox, "bbox_crs": bbox_crs, "window": window, "max_pixels": max_pixels}
    options = SceneOptions(num_inference_steps, seed, **tiles, realism=realism, **reading)
    options.check()
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: this folder cannot be written")
    sources = find_inputs(inputs, folder)
    if options.is_part and (images := [source for source in sources if not is_scene(source)]):
        raise ValueError(f"{images[0]}: bbox and window are of scenes (GeoTIFF, SAFE): leave images out, or cut them")
    named = [path for name in inputs for path in (Path(name), *matching(name, folder))]
    plan = plan_outputs(sources, folder, confidence, stac, named, preview)
    team, own_device = join_team()
    if device is None or (team.size > 1 and device == own_device.type):
        device = str(own_device)
    pipe = load_pipeline(model, revision, device, dtype, vae)
    identity = {"model": model, "revision": model_revision(model, revision), "vae": vae}
    translator = Translator(pipe, options, identity)
    check_scene_model(pipe, translator.sampling)
    if pipe.device.type == "cpu":
        use_whole_cpu(int(os.environ.get("LOCAL_WORLD_SIZE", team.size)), threads)
    if confidence and not pipe.predicts_variance:
        raise ValueError(f"model {model} predicts no confidence: its UNet has no variance channel")
    return Job(plan, translator, folder / MANIFEST, team, overwrite).run()
