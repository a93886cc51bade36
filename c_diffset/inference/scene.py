"""One georeferenced SAR scene to an EO image in Cloud Optimized GeoTIFF, with its confidence and a STAC item."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import PIL.Image
import rasterio.shutil
from rasterio.enums import MaskFlags

from c_diffset import __version__
from c_diffset.files import locked, make_own, remove_own
from c_diffset.inference.canvas import Sampling, SceneCanvas, Work, scene_tiling, tile_sides
from c_diffset.inference.cog import BLOCK, CogWriter
from c_diffset.inference.enlarged import finer_place, on_grid_of_model
from c_diffset.inference.grid import OutsideError, check_size, part_of_source, part_size
from c_diffset.inference.inputs import Outputs, is_raster, plan_outputs
from c_diffset.inference.options import ReadOptions, SceneOptions
from c_diffset.inference.preview import scene_preview
from c_diffset.inference.progress import Tell, tell_nobody
from c_diffset.inference.raster import SarRaster
from c_diffset.inference.record import TAG, Found, as_asked, save_image, settings_in
from c_diffset.inference.source import Source
from c_diffset.inference.stac import describe_place, write_item
from c_diffset.inference.team import Team
from c_diffset.pipelines.pipeline_cdiffset import LOW_RESOLUTION, CDiffSETPipeline, count_bands
from c_diffset.sar.gdal import gdal, open_raster, reading, sidecar
from c_diffset.sar.radiometry import polarisation
from c_diffset.sar.safe import calibrate_safe, is_safe

SCRATCH = "scene.tif"  # in the work folder
SWATH_BYTES = 64 * 2**20  # bytes that GDAL copies at once
KEPT_TAGS = ("AREA_OR_POINT", "PRODUCT", "ACQUISITION_START")
SYNTHETIC = (
    "Synthetic electro-optical image, translated from SAR by a generative model. It shows what the ground may look "
    "like; it is not an observation."
)
UPSCALED = (
    "Electro-optical image of a lower resolution, made {upscale} times as fine by a generative model. Its detail is "
    "synthetic: it shows what the ground may look like; it is not an observation."
)


@dataclass
class Translator:
    """A model, and how it is used.

    Attributes:
        pipe: the model.
        options: how scenes are read, and how images and scenes are translated.
        model: what names the model in the tags: "model", "revision", "vae".
    """

    pipe: CDiffSETPipeline
    options: SceneOptions
    model: dict

    @property
    def steps(self) -> int:
        """The number of inference steps."""
        steps = self.options.num_inference_steps
        return self.pipe.config.default_num_inference_steps if steps is None else steps

    @property
    def realism(self) -> float | None:
        """What is asked for, or the model's default; None for a model without."""
        return self.pipe.choose_realism(self.options.realism, self.steps)

    @property
    def sampling(self) -> Sampling:
        """How images and scenes are drawn from the model."""
        return Sampling(self.steps, self.options.seed, self.options.batch_size, self.realism)

    @cached_property
    def settings(self) -> dict:
        """What decides the image of a scene, for its tags and the manifest."""
        options = asdict(self.options)
        tile_size, overlap = tile_sides(self.pipe, options["tile_size"], options["overlap"])
        del options["max_pixels"], options["realism"]
        upscale = self.pipe.config.upscale
        own = {"upscale": upscale} if upscale > 1 else {}  # settings of other models stay as they always were
        own |= {} if self.realism is None else {"realism": self.realism}
        return (
            options
            | own
            | {
                **self.model,
                "software": f"c_diffset {__version__}",
                "num_inference_steps": self.steps,
                "tile_size": tile_size,
                "overlap": overlap,
                "scheduler": type(self.pipe.scheduler).__name__,
                "dtype": str(self.pipe.unet.dtype).removeprefix("torch."),
            }
        )

    @cached_property
    def tiled_image_settings(self) -> dict:
        """What decides an image that is larger than a tile."""
        of_scenes = {field.name for field in fields(ReadOptions)}
        return {name: value for name, value in self.settings.items() if name not in of_scenes}

    @cached_property
    def image_settings(self) -> dict:
        """What decides an image that is translated as a whole."""
        return {k: value for k, value in self.tiled_image_settings.items() if k not in ("tile_size", "overlap")}

    def size_of(self, path: Path) -> tuple[int, int]:
        """Height and width of the EO image that an image, a scene or the part of it becomes, see `size_of`."""
        height, width = size_of(path, self.options)
        return height * self.pipe.config.upscale, width * self.pipe.config.upscale

    def check_size(self, path: Path, height: int, width: int) -> None:
        """Refuse an EO image of more than `max_pixels`, by ValueError."""
        upscale = self.pipe.config.upscale
        pixels = "pixels" if upscale == 1 else f"pixels after upscaling by {upscale}"
        check_size(path, height, width, self.options.max_pixels, pixels)

    def canvas(self, source: Source, work: Work, seed: int) -> SceneCanvas:
        """The canvas that a scene or an image is translated on; all is ready, and nothing done."""
        source = on_grid_of_model(source, self.pipe)
        tiling = scene_tiling(self.pipe, source, self.settings["tile_size"], self.settings["overlap"])
        return SceneCanvas(source, self.pipe, tiling, replace(self.sampling, seed=seed), work)


def translate_scene(
    path: str | Path,
    pipe: CDiffSETPipeline,
    output: str | Path,
    options: SceneOptions | None = None,
    *,
    confidence: bool = True,
    stac: bool = False,
    preview: bool = False,
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
        preview: also write NAME_preview.png, see `scene_preview`.
        model: name and revision of the model for the tags; where it was loaded from by default.

    Raises:
        ValueError: the scene does not fit the model, its units or bands are not certain, or an argument is wrong.
        OSError: the scene cannot be read, or an output cannot be written.
    """
    path, output = Path(path), Path(output)
    output.mkdir(parents=True, exist_ok=True)
    outputs = plan_outputs([path], output, confidence, stac, preview=preview)[path]
    model = model or {"model": str(pipe.config.get("_name_or_path", ""))}
    translator = Translator(pipe, options or SceneOptions(), model)
    record = run_scene(path, translator, outputs, Team(), tell_nobody)
    if record.get("empty"):
        warnings.warn(f"{path} has no valid pixel: the image is all masked", stacklevel=2)
    return outputs


def run_scene(
    path: Path,
    translator: Translator,
    outputs: Outputs,
    team: Team,
    progress: Tell,
    opened: Callable[[Found], None] = lambda found: None,
) -> dict:
    """`translate_scene` by the processes of a team; returns the settings as they were used.

    Args:
        path, translator, outputs, team: what is translated, how, into what and by whom.
        progress: told of the stages and the work done.
        opened: told, before the work begins, what the scene is read as.
    """
    pipe, options = translator.pipe, translator.options
    if outputs.confidence is not None and not pipe.predicts_variance:
        raise ValueError("this model predicts no confidence: its UNet has no variance channel")
    translator.check_size(path, *translator.size_of(path))
    folder = outputs.eo.parent / f".{outputs.eo.name}.work"
    progress("reading", 0, 1)
    with ExitStack() as mine:
        with team.phase():
            if team.rank == 0:
                mine.enter_context(work_folder(folder))
                prepare_scene(path, pipe, options, folder)
        with team.phase():
            raster = open_scene(path, pipe, options, folder)
            if outputs.item is not None:
                describe_place(path, raster.raster)
            found = Found(raster.units, raster.units_are, raster.band_names, tuple(raster.bands))
            opened(found)
            canvas = translator.canvas(raster, Work(team, folder, progress), options.seed)
        canvas.run()
        record = found.record(translator.settings, empty=not canvas.active)
        with team.phase():
            if team.rank == 0:
                write_outputs(canvas, raster, outputs, folder, record)
    return record


@contextmanager
def work_folder(folder: Path) -> Iterator[None]:
    """A new folder that one process alone works in, and that is gone afterwards.

    Raises:
        OSError: another process works in it, it cannot be made, or a folder of this name is not of this program.
    """
    lock = folder.with_name(f"{folder.name}.lock")
    with locked(lock, "another process is translating this scene into the same folder"):
        if folder.is_symlink() or (folder.exists() and any(folder.iterdir())):
            remove_own(folder)  # what a killed process has left
        make_own(folder)
        try:
            yield
        finally:
            remove_own(folder)


def size_of(path: Path, options: ReadOptions) -> tuple[int, int]:
    """Height and width of an image, a scene or the part of one that is asked for.

    They are (1, 1) where that cannot be read: whoever translates it will say why.

    Raises:
        OutsideError: nothing of the scene is in the part that is asked for.
    """
    try:
        if is_safe(path):
            path = next(file for file in sorted((path / "measurement").iterdir()) if is_raster(file))
        if is_raster(path):
            with gdal(), open_raster(path) as raster:
                return part_size(path, raster, options)
        with PIL.Image.open(path) as image:
            return image.height, image.width
    except OutsideError:
        raise
    except Exception:  # such as of an image too large to be safe
        return 1, 1


def prepare_scene(path: Path, pipe: CDiffSETPipeline, options: SceneOptions, folder: Path) -> None:
    """Write into `folder` what is read in place of the scene: a product calibrated, or wide strips cut into tiles."""
    if is_safe(path):
        if options.units not in (None, "power"):
            raise ValueError(f"{path}: units is {options.units!r}, but SAFE products become power: leave it out")
        with gdal():
            bands = options.bands or pipe.config.sar_transform.get("bands")
            calibrate_safe(path, folder / SCRATCH, bands, partial(part_of_source, options=options))
        return
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "IF_SAFER", "sparse_ok": True}
    with reading(path), open_raster(path) as raster, rasterio.Env(GDAL_SWATH_SIZE=SWATH_BYTES):
        # every window would decode whole rows
        strips = raster.block_shapes[0][1] == raster.width > 2 * BLOCK and not options.is_part
        masked = any(MaskFlags.per_dataset in flags for flags in raster.mask_flag_enums)
        mask = None if masked else sidecar(path, ".msk")
        if strips or mask:
            rasterio.shutil.copy(raster, folder / SCRATCH, driver="GTiff", **layout)
    if mask:
        with reading(mask), open_raster(mask) as source, open_raster(folder / SCRATCH, "r+") as target:
            if source.shape != target.shape:
                raise ValueError(f"{mask}: {source.shape} pixels, but the scene that it masks has {target.shape}")
            for _, window in target.block_windows(1):
                target.write_mask(source.read(1, window=window) > 0, window=window)


def open_scene(path: Path, pipe: CDiffSETPipeline, options: SceneOptions, folder: Path) -> SarRaster:
    """The scene as the model reads it; `folder` holds what `prepare_scene` wrote."""
    if is_safe(path):
        options = replace(options, units="power", bands=None)
    file = folder / SCRATCH if (folder / SCRATCH).exists() else path
    raster = scene_raster(path, pipe, options, file)
    raster.units_are = "calibrated" if is_safe(path) else raster.units_are
    return raster


def scene_raster(path: Path, pipe: CDiffSETPipeline, options: ReadOptions, file: Path | None = None) -> SarRaster:
    """A GeoTIFF as a model reads it; `file` is read in its place."""
    transform = pipe.config.sar_transform
    if pipe.config.upscale == 1:
        return SarRaster(path, transform, options, file)
    if count_bands(transform["channels"]) == 3:
        transform = {"bands": LOW_RESOLUTION["bands"]} | transform
    return SarRaster(path, transform, options, file, pipe.config.eo_transform)


def write_outputs(canvas: SceneCanvas, raster: SarRaster, outputs: Outputs, folder: Path, settings: dict) -> None:
    """The scene's files, each complete or absent; a STAC item last."""
    place, size = finer_place(raster.place, canvas.pipe.config.upscale), canvas.source.size
    if "crs" not in place or place["crs"] is None:
        text = "has no coordinate system, so the image has none either (.tfw and .aux.xml files are not read)"
        warnings.warn(f"{raster.path} {text}", stacklevel=2)
    tags = tags_of(raster, settings)
    with ExitStack() as stack:
        eo = stack.enter_context(CogWriter(outputs.eo, folder, size, place, tags))
        trust = None
        if outputs.confidence or (outputs.preview and canvas.pipe.predicts_variance):
            names = ("confidence", "expected_error") if canvas.knots else ("confidence",)
            target = outputs.confidence or outputs.eo.with_name("confidence.tif")  # for the preview alone
            trust = stack.enter_context(CogWriter(target, folder, size, place, tags, *names))
        for window in canvas.windows():
            eo.write(window.box, window.eo, window.valid)
            if trust is not None:
                maps = [window.confidence, window.expected_error] if canvas.knots else [window.confidence]
                trust.write(window.box, np.stack(maps), window.valid)
    if outputs.preview is not None:
        picture = scene_preview(eo.partial, trust and trust.partial, outputs.eo.name)
        save_image(np.asarray(picture), outputs.preview, settings)
    if trust is not None and outputs.confidence is not None:
        trust.publish()
    eo.publish()  # the image comes last: where it stands, the others are complete
    if outputs.item is not None:
        describe_outputs(outputs, settings, canvas.pipe)


def tags_of(raster: SarRaster, settings: dict) -> dict:
    """What the files of a scene say of themselves; `settings` are those that it was translated with."""
    if "upscale" in settings:
        about = {"TIFFTAG_IMAGEDESCRIPTION": UPSCALED.format(**settings), "UPSCALE": settings["upscale"]}
        about |= {"INPUT_UNITS": raster.units, "INPUT_BANDS": ",".join(raster.band_names)}
    else:
        about = {"TIFFTAG_IMAGEDESCRIPTION": SYNTHETIC}
        about |= {"SAR_UNITS": raster.units, "SAR_BANDS": ",".join(raster.polarisations)}
    kept = {name: value for name, value in raster.tags.items() if name in KEPT_TAGS}
    tags = kept | {
        "TIFFTAG_SOFTWARE": settings["software"],
        "SYNTHETIC": "yes",
        "MODEL": settings.get("model"),
        "MODEL_REVISION": settings.get("revision"),
        "NUM_INFERENCE_STEPS": settings["num_inference_steps"],
        "SEED": settings["seed"],
        "REALISM": settings.get("realism"),
        **about,
        TAG: json.dumps(settings),
    }
    return {name: value for name, value in tags.items() if value not in (None, "")}


def describe_outputs(outputs: Outputs, record: dict, pipe: CDiffSETPipeline) -> None:
    """Write the STAC item of a scene's files, which are there."""
    assert outputs.item is not None
    used = {name: value for name, value in record.items() if name != "asked"}
    polarisations = [found for name in record["bands"] if (found := polarisation(name))]
    with gdal():
        about = used, polarisations, pipe.config.eo_transform
        write_item(outputs.item, outputs.eo, outputs.confidence, *about, outputs.preview)


def lacks_additions_alone(outputs: Outputs, translator: Translator) -> bool:
    """Whether a scene is translated already in this way, and only its preview or its item is missing."""
    missing = [file for file in outputs.files if not file.exists()]
    if outputs.preview in missing and outputs.confidence is None and translator.pipe.predicts_variance:
        return False  # it shows a confidence that is in no file
    translated = not {outputs.eo, outputs.confidence} & set(missing)
    return bool(missing) and translated and as_asked(settings_in(outputs.eo)) == translator.settings


def add_to_scene(outputs: Outputs, translator: Translator) -> dict:
    """Write the preview and the item of a scene for which `lacks_additions_alone`; returns how it was made."""
    record = settings_in(outputs.eo)
    assert record is not None
    if outputs.preview is not None:
        picture = scene_preview(outputs.eo, outputs.confidence, outputs.eo.name)
        save_image(np.asarray(picture), outputs.preview, record)
    if outputs.item is not None:
        describe_outputs(outputs, record, translator.pipe)
    return record
