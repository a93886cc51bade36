"""One georeferenced SAR scene to an EO image in Cloud Optimized GeoTIFF, with its confidence and a STAC item."""

import fcntl
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rasterio.shutil

from c_diffset import __version__
from c_diffset.inference.canvas import SceneCanvas, check_scene_model, scene_grid, tile_sides
from c_diffset.inference.cog import BLOCK, CogWriter
from c_diffset.inference.inputs import Outputs, plan_outputs
from c_diffset.inference.raster import SarRaster, gdal, open_raster, reading
from c_diffset.inference.stac import write_item
from c_diffset.inference.team import Team
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.sar.safe import calibrate_safe, is_safe

SCRATCH = "scene.tif"  # in the work folder
SWATH_BYTES = 64 * 2**20  # that GDAL copies at once
KEPT_TAGS = ("AREA_OR_POINT", "PRODUCT", "ACQUISITION_START")


@dataclass
class SceneOptions:
    """How a scene is read and translated.

    Attributes:
        num_inference_steps: the model's own number when None.
        seed: of the noise field, which depends on this and on the position on the ground alone.
        tile_size: pixels along a side of what the model sees at once; the size it was trained at, or 512, when None.
        overlap: pixels that neighbouring tiles share at least, where they are blended; 64, or less in small tiles, when
            None.
        batch_size: tiles that the model sees together.
        units: "display", "db", "power" or "amplitude"; detected where certain when None.
        bands: names or numbers from 1 of the scene's bands, in the model's order; chosen by their names when None.
        despeckle: filter speckle (refined Lee) before the model.
        crs: coordinate system to warp the scene to before it is translated; its own when None.
        resolution: pixel size after warping, in units of `crs`.
    """

    num_inference_steps: int | None = None
    seed: int = 0
    tile_size: int | None = None
    overlap: int | None = None
    batch_size: int = 4
    units: str | None = None
    bands: list[str] | None = None
    despeckle: bool = False
    crs: str | None = None
    resolution: float | None = None


def translate_scene(
    path: str | Path,
    pipe: CDiffSETPipeline,
    output: str | Path,
    options: SceneOptions | None = None,
    *,
    confidence: bool = True,
    stac: bool = False,
    model: dict | None = None,
) -> Outputs:
    """Translate a GeoTIFF or a Sentinel-1 GRD SAFE folder; memory does not grow with the scene.

    Args:
        path: the scene.
        pipe: the model.
        output: folder of what comes out: NAME.tif, an RGB uint8 COG of the scene's size and place on the ground with an
            internal mask, and NAME_confidence.tif, float32, NaN where the scene has no data.
        options: how the scene is read and translated.
        confidence: also write the confidence, in (0, 1]; with a calibrated model, the expected error in 8-bit levels as
            a second band.
        stac: also write NAME.json, a STAC item.
        model: name and revision of the model for the tags; where it was loaded from by default.

    Raises:
        ValueError: the scene does not fit the model, its units or bands are not certain, or an argument is wrong.
        OSError: the scene cannot be read, or an output cannot be written.
    """
    path, output = Path(path), Path(output)
    output.mkdir(parents=True, exist_ok=True)
    outputs = plan_outputs([path], output, confidence, stac)[path]
    options = options or SceneOptions()
    model = model or {"model": str(pipe.config.get("_name_or_path", ""))}
    run_scene(path, pipe, outputs, options, model, Team(), lambda pixels: None)
    return outputs


def run_scene(
    path: Path,
    pipe: CDiffSETPipeline,
    outputs: Outputs,
    options: SceneOptions,
    model: dict,
    team: Team,
    progress: Callable[[float], None],
) -> None:
    """`translate_scene` by the processes of a team; `progress` is told of the pixels done by this one."""
    if outputs.confidence is not None and not pipe.predicts_variance:
        raise ValueError("this model predicts no confidence: its UNet has no variance channel")
    folder = outputs.eo.parent / f".{outputs.eo.name}.work"
    with ExitStack() as mine:
        with team.phase():
            if team.rank == 0:
                mine.enter_context(work_folder(folder))
                prepare_scene(path, pipe, options, folder)
        with team.phase():
            raster = open_scene(path, pipe, options, folder)
            canvas = _canvas(raster, pipe, options, team, folder, progress)
        canvas.run()
        with team.phase():
            if team.rank == 0:
                write_outputs(canvas, raster, outputs, folder, settings_of(pipe, options, model))


@contextmanager
def work_folder(folder: Path) -> Iterator[None]:
    """A new folder that one process alone works in, and that is gone afterwards.

    Raises:
        OSError: another process works in it, or it cannot be made.
    """
    lock = folder.with_name(f"{folder.name}.lock")
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{lock}: another process is translating this scene into the same folder") from None
        try:
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
            folder.mkdir()
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def prepare_scene(path: Path, pipe: CDiffSETPipeline, options: SceneOptions, folder: Path) -> None:
    """Write into `folder` what is read in place of the scene: a product calibrated, or wide strips cut into tiles."""
    if is_safe(path):
        if options.units not in (None, "power"):
            raise ValueError(f"{path}: units is {options.units!r}, but SAFE products become power: leave it out")
        with gdal():
            calibrate_safe(path, folder / SCRATCH, options.bands or pipe.config.sar_transform.get("bands"))
        return
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "IF_SAFER", "sparse_ok": True}
    with reading(path), open_raster(path) as raster, rasterio.Env(GDAL_SWATH_SIZE=SWATH_BYTES):
        if raster.block_shapes[0][1] == raster.width > 2 * BLOCK:  # strips: every window would decode whole rows
            rasterio.shutil.copy(raster, folder / SCRATCH, driver="GTiff", **layout)


def open_scene(path: Path, pipe: CDiffSETPipeline, options: SceneOptions, folder: Path) -> SarRaster:
    """The scene as the model reads it; `folder` holds what `prepare_scene` wrote."""
    units, bands = ("power", None) if is_safe(path) else (options.units, options.bands)
    options = {"despeckle": options.despeckle, "crs": options.crs, "resolution": options.resolution}
    file = folder / SCRATCH if (folder / SCRATCH).exists() else path
    return SarRaster(path, pipe.config.sar_transform, units, bands, **options, file=file)


def _canvas(
    raster: SarRaster, pipe: CDiffSETPipeline, options: SceneOptions, team: Team, folder: Path, progress
) -> SceneCanvas:
    steps = options.num_inference_steps
    steps = pipe.config.default_num_inference_steps if steps is None else steps
    check_scene_model(pipe, steps, options.batch_size, options.seed)
    grid = scene_grid(pipe, raster, *tile_sides(pipe, options.tile_size, options.overlap))
    pixels = raster.size[0] * raster.size[1] / (len(grid.boxes) * (steps + 2))  # that one of a tile's passes stands for
    return SceneCanvas(
        raster, pipe, steps, options.seed, grid, options.batch_size, team, folder, lambda n: progress(n * pixels)
    )


def settings_of(pipe: CDiffSETPipeline, options: SceneOptions, model: dict) -> dict:
    """What decides an output, for its tags and the manifest."""
    steps = options.num_inference_steps
    tile_size, overlap = tile_sides(pipe, options.tile_size, options.overlap)
    return asdict(options) | {
        **model,
        "software": f"c_diffset {__version__}",
        "num_inference_steps": pipe.config.default_num_inference_steps if steps is None else steps,
        "tile_size": tile_size,
        "overlap": overlap,
        "scheduler": type(pipe.scheduler).__name__,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
    }


def settings_in(path: Path) -> dict | None:
    """The settings that a finished image was made with; None where it does not say."""
    try:
        with open_raster(path) as raster:
            settings = json.loads(raster.tags().get("SETTINGS", "null"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def write_outputs(canvas: SceneCanvas, raster: SarRaster, outputs: Outputs, folder: Path, settings: dict) -> None:
    """The scene's files, each complete or absent; a STAC item last."""
    place = raster.place
    if "crs" not in place or place["crs"] is None:
        warnings.warn(f"{raster.path} has no coordinate system, so the image has none either", stacklevel=2)
    tags = {name: value for name, value in raster.tags.items() if name in KEPT_TAGS}
    tags |= {
        "TIFFTAG_SOFTWARE": settings["software"],
        "SYNTHETIC": "yes",
        "MODEL": settings.get("model"),
        "MODEL_REVISION": settings.get("revision"),
        "NUM_INFERENCE_STEPS": settings["num_inference_steps"],
        "SEED": settings["seed"],
        "SAR_UNITS": raster.units,
        "SAR_BANDS": ",".join(raster.polarisations),
        "SETTINGS": json.dumps(settings),
    }
    tags = {name: value for name, value in tags.items() if value not in (None, "")}
    any_valid = False
    with ExitStack() as stack:
        eo = stack.enter_context(CogWriter(outputs.eo, folder, raster.size, place, tags))
        if outputs.confidence is not None:
            names = ("confidence", "expected_error") if canvas.knots else ("confidence",)
            trust = stack.enter_context(CogWriter(outputs.confidence, folder, raster.size, place, tags, *names))
        for window in canvas.windows():
            any_valid |= window.valid.any()
            eo.write(window.box, window.eo, window.valid)
            if outputs.confidence is not None:
                maps = [window.confidence, window.expected_error] if canvas.knots else [window.confidence]
                trust.write(window.box, np.stack(maps), window.valid)
    if outputs.confidence is not None:
        trust.publish()
    eo.publish()  # the image last: where it stands, its confidence belongs to it
    if not any_valid:
        warnings.warn(f"{raster.path} has no valid pixel: the image is all masked", stacklevel=2)
    if outputs.item is not None:
        with gdal():
            write_item(outputs.item, outputs.eo, outputs.confidence, settings, raster.polarisations)
