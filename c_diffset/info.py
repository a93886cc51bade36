"""`c-diffset info`: what a model reads and writes, and what scenes would take, without translating anything."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from c_diffset.inference.options import MAX_PIXELS, SceneOptions
from c_diffset.precision import Precision

if TYPE_CHECKING:
    from c_diffset.inference.forecast import Cost, Forecast
    from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline


@dataclass
class Info:
    """What `info` has found: facts of the model by name, and the scenes."""

    facts: dict[str, str]
    scenes: "list[Forecast]" = field(default_factory=list)

    @property
    def failed(self) -> "list[Forecast]":
        """The scenes that the model cannot translate."""
        return [scene for scene in self.scenes if scene.problem is not None]


def info(
    model: str,
    scenes: list[str] | None = None,
    num_inference_steps: int | None = None,
    batch_size: int = 4,
    device: str | None = None,
    dtype: Precision = "auto",
    revision: str | None = None,
    vae: str | None = None,
    units: str | None = None,
    bands: list[str] | None = None,
    crs: str | None = None,
    resolution: float | None = None,
    bbox: list[float] | None = None,
    bbox_crs: str | None = None,
    window: list[int] | None = None,
    tile_size: int | None = None,
    overlap: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> "Info":
    """Say what a model reads and writes; and of scenes whether they fit it, and what translating them would take here.

    Args:
        model: Folder or Hub id of the model.
        scenes: GeoTIFF and SAFE folders; folders of them, patterns, lists and STAC items, as `translate` takes them.
        num_inference_steps: Number of inference steps. The model's own number when not given.
        batch_size: Number of tiles that the model sees together.
        device: Device of the model, such as cpu or cuda:1. CUDA where there is one when not given.
        dtype: Precision of the model. By default (auto), the one that `translate` takes here.
        revision: Revision of the model on the Hub.
        vae: Folder or Hub id of an autoencoder of the same latent space, or "taesd", that replaces the model's own.
        units: Units of a scene's pixels: display, db, power or amplitude, or reflectance of a scene that is upscaled.
            They are detected where that is certain.
        bands: Polarisations (VV VH HH HV) or numbers of a scene's bands, in the model's order.
        crs: Coordinate system that scenes are warped to first, such as EPSG:32631.
        resolution: Pixel size after warping, in units of the coordinate system.
        bbox: Left, bottom, right and top of the part that counts, in `bbox_crs`; pixels that it touches count.
        bbox_crs: Coordinate system of `bbox`, such as EPSG:4326 for longitude and latitude. That of the scenes, after
            warping, when not given.
        window: Column, row, width and height in pixels, after warping, of the part that counts.
        tile_size: Side of a scene's tiles in pixels. What the model was trained at, or 512, when not given.
        overlap: Number of pixels that neighbouring tiles share at least. 64, or less in small tiles, when not given.
        max_pixels: Number of pixels above which a scene is refused.

    Returns:
        What was printed; its `failed` are the scenes that the model cannot translate.

    Raises:
        ValueError, OSError: the model cannot be loaded, an input does not exist, or an option does not fit the model.
    """
    from c_diffset.inference.canvas import check_scene_model
    from c_diffset.inference.forecast import forecast, measure_cost
    from c_diffset.inference.inputs import find_inputs, is_scene
    from c_diffset.inference.scene import Translator
    from c_diffset.loading import load_pipeline, model_revision

    reading = {"units": units, "bands": bands, "crs": crs, "resolution": resolution, "max_pixels": max_pixels}
    part = {"bbox": bbox, "bbox_crs": bbox_crs, "window": window}
    options = SceneOptions(num_inference_steps, 0, tile_size, overlap, batch_size, **reading, **part)
    options.check()
    paths = find_inputs(scenes) if scenes else []
    pipe = load_pipeline(model, revision, device, dtype, vae)
    version = model_revision(model, revision)
    translator = Translator(pipe, options, {"model": model, "revision": version, "vae": vae})
    check_scene_model(pipe, translator.sampling)
    side = translator.settings["tile_size"]
    facts = {"model": f"{model}{f', {version}' if version else ''}", **describe(pipe, side), **training(Path(model))}
    found = Info(facts, [forecast(path, translator) for path in paths if is_scene(path)])
    print("\n".join(f"{name:<11} {text}" for name, text in facts.items()))
    cost = measure_cost(translator) if len(found.scenes) > len(found.failed) else None
    for scene in found.scenes:
        print("\n" + scene_text(scene, translator.steps, cost))
    others = len(paths) - len(found.scenes)
    if others:
        print(f"\n{others} image{'s' * (others > 1)}, which have no place on the ground")
    return found


def describe(pipe: "CDiffSETPipeline", side: int) -> dict[str, str]:
    """What a model reads, writes and is, in words."""
    from c_diffset.hub.mlm import UNITS, band_names, channel_names, channel_ranges
    from c_diffset.pipelines.pipeline_cdiffset import describe_eo_transform

    transform = pipe.config.sar_transform
    ranges = zip(channel_names(transform), channel_ranges(transform), strict=True)
    channels = dict.fromkeys(f"{name} from {low:g} to {high:g}" for name, (low, high) in ranges)
    steps = ", ".join((pipe.config.calibration or {"steps": {}})["steps"])
    trust = "no confidence: its variance is not trained"
    if pipe.predicts_variance:
        error = f"the expected error at {steps} steps" if steps else "no expected error: it is not calibrated"
        trust = f"a confidence, and {error}"
    where = "pixel space" if pipe.vae is None else f"the latent space of {type(pipe.vae).__name__}"
    steps, upscale, realism = pipe.config.default_num_inference_steps, pipe.config.upscale, pipe.config.realism
    drawn = (
        ""
        if realism is None
        else "; realism from {:g} to {:g}, by default {default:g}".format(*realism["range"], **realism)
    )
    finer = "" if upscale == 1 else f" of {upscale} times as fine pixels"
    sides = "images of any size" if upscale == 1 else f"images of any size, enlarged {upscale} times"
    return {
        "reads": f"{UNITS[transform['units']]}: {', '.join(band_names(transform))}; channels {'; '.join(channels)}",
        "writes": f"RGB of 8 bits{finer}, in which {describe_eo_transform(pipe.config.eo_transform)}; {trust}",
        "tiles": f"{sides}, in tiles of {side} pixels, multiples of {pipe.size_multiple}",
        "sampling": f"{steps} step{'s' * (steps > 1)} of {type(pipe.scheduler).__name__}, in {where}{drawn}",
        "parameters": f"{sum(weight.numel() for weight in pipe.unet.parameters()) / 1e6:.1f} million in the UNet",
        "runs on": f"{pipe.device}, in {str(pipe.unet.dtype).removeprefix('torch.')}",
    }


def training(folder: Path) -> dict[str, str]:
    """How a model in a folder was trained, or what it was converted from, where that is known."""
    from c_diffset.convert.record import read_conversion
    from c_diffset.files import public_name
    from c_diffset.hub.run import read_run

    run = read_run(folder) if folder.is_dir() else None
    if run is None:
        conversion = read_conversion(folder)
        return {} if conversion is None else {"training": conversion.describe()}
    updates = "" if run.updates is None else f"{run.updates} updates "
    crops = "" if run.crop_size is None else f", crops of {run.crop_size} pixels"
    method = "" if run.method is None else f", distilled ({run.method})"
    return {"training": f"{updates}on {public_name(run.source)}{crops}{method}"}


def scene_text(scene: "Forecast", steps: int, cost: "Cost | None") -> str:
    """What was found of one scene, in lines."""
    height, width = scene.size
    lines = [str(scene.path), f"  size      {width} x {height} pixels, {height * width / 1e6:.1f} megapixels"]
    facts = {"units": scene.units, "bands": scene.bands, "place": scene.place}
    lines += [f"  {name:<9} {text}" for name, text in facts.items() if text]
    lines += [f"  becomes   {scene.becomes}"] if scene.becomes else []
    if scene.problem is not None:
        return "\n".join([*lines, f"  cannot be translated: {scene.problem}"])
    if scene.valid is not None:
        lines.append(f"  data      about {scene.valid:.0%} of its pixels")
    lines.append(f"  work      about {scene.tiles} tiles, {steps} step{'s' * (steps > 1)} each")
    if cost is not None:
        lines.append(f"  time      about {duration(cost.seconds(scene.tiles, steps))} here, by one batch of tiles")
        lines += [] if cost.memory is None else [f"  memory    about {cost.memory / 2**30:.1f} GiB, whatever its size"]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    rounded = max(1, round(seconds))
    return f"{rounded} second{'s' * (rounded > 1)}"
