"""The command `translate`: images, scenes and lists of them, on one process or many; what is finished stays."""

import glob
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import PIL.Image
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from tqdm.auto import tqdm

from c_diffset.cpu import use_whole_cpu
from c_diffset.files import file_sha256
from c_diffset.inference.canvas import check_scene_model
from c_diffset.inference.inputs import IMAGES, Outputs, find_inputs, is_scene, plan_outputs
from c_diffset.inference.raster import open_raster
from c_diffset.inference.scene import SceneOptions, run_scene, settings_in, settings_of
from c_diffset.inference.team import LaunchedTeam, Team, describe
from c_diffset.inference.whole_images import translate_images
from c_diffset.loading import Precision, load_pipeline, model_revision
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.sar.safe import is_safe

MANIFEST = "manifest.jsonl"


@dataclass
class Translation:
    """What `translate` did: the files written, those skipped because they were there, and the error of each failure."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


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
    units: str | None = None,
    bands: list[str] | None = None,
    despeckle: bool = False,
    crs: str | None = None,
    resolution: float | None = None,
    tile_size: int | None = None,
    overlap: int | None = None,
    stac: bool = False,
    threads: int | None = None,
) -> Translation:
    """Translate SAR images (PNG, JPEG) and scenes (GeoTIFF, Sentinel-1 GRD in SAFE) to EO images of the same names.

    A scene becomes a Cloud Optimized GeoTIFF of its size and place, masked where it has no data. What is finished is
    skipped, and noted in `manifest.jsonl` of the output folder. Under `accelerate launch -m c_diffset translate ...`
    the processes share the list, and share every scene that is large against the whole.

    Args:
        inputs: files, folders, glob patterns, lists (.txt, one input a line) and STAC items (.json).
        model: folder or Hub id of the model.
        output: folder of the EO images.
        num_inference_steps: the model's own number when not given.
        batch_size: images of one size, or tiles of a scene, that the model sees together.
        seed: of the noise; that of an image depends on this and its name, that of a scene on this and the position.
        confidence: also write NAME_confidence: for scenes .tif, float32 in (0, 1]; for images .png, 65535 being 1.
        overwrite: redo what is in `output` already, instead of skipping it.
        device: by default CUDA where there is one.
        dtype: precision of the model; half precision is faster on most GPUs and on CPUs with AMX.
        revision: revision of a Hub id.
        vae: folder or Hub id of an autoencoder of the same latent space, or "taesd", instead of the model's own.
        units: of a scene's pixels: display, db, power or amplitude; detected where that is certain.
        bands: polarisations (VV VH HH HV) or numbers of a scene's bands, in the model's order.
        despeckle: filter speckle of a scene (refined Lee) before the model.
        crs: warp scenes to this coordinate system first, such as EPSG:32631.
        resolution: pixel size after warping, in units of the coordinate system.
        tile_size: of scenes, in pixels; what the model was trained at, or 512, when not given.
        overlap: pixels that neighbouring tiles share at least; 64, or less in small tiles, when not given.
        stac: also write NAME.json, a STAC item, for scenes.
        threads: of each process on a CPU, by default its share of the cores. One process and many write the same bytes
            where this is the same; otherwise sums are rounded in another order.

    Returns:
        What was written, skipped, and failed with which error: an input that cannot be read does not stop the others.

    Raises:
        ValueError: two inputs have the same output name, an output would replace its input, the model gives no
            confidence, or `vae` does not fit the model.
        OSError: an input that does not exist, or an output folder that cannot be written.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: this folder cannot be written")
    named = [Path(match) for name in inputs for match in (name, *glob.glob(name, recursive=True))]
    plan = plan_outputs(find_inputs(inputs, folder), folder, confidence, stac, named)
    # processes wait for each other as long as a scene takes
    state = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))])
    team = LaunchedTeam(state.process_index, state.num_processes) if state.num_processes > 1 else Team()
    if device is None or (team.size > 1 and device == state.device.type):
        device = str(state.device)
    pipe = load_pipeline(model, revision, device, dtype, vae)
    check_scene_model(pipe, num_inference_steps or 1, batch_size, seed)
    if pipe.device.type == "cpu":
        use_whole_cpu(int(os.environ.get("LOCAL_WORLD_SIZE", team.size)))
        if threads is not None:
            torch.set_num_threads(threads)
    if confidence and not pipe.predicts_variance:
        raise ValueError(f"model {model} predicts no confidence: its UNet has no variance channel")
    options = SceneOptions(
        num_inference_steps, seed, tile_size, overlap, batch_size, units, bands, despeckle, crs, resolution
    )
    identity = {"model": model, "revision": model_revision(model, revision), "vae": vae}
    return _Job(plan, pipe, options, identity, folder, team, overwrite).run()


class _Job:
    """The inputs of one command, shared by the processes of a team."""

    def __init__(
        self,
        plan: dict[Path, Outputs],
        pipe: CDiffSETPipeline,
        options: SceneOptions,
        identity: dict,
        folder: Path,
        team: Team,
        overwrite: bool,
    ):
        self.plan, self.pipe, self.options, self.identity, self.team = plan, pipe, options, identity, team
        self.manifest, self.result = folder / MANIFEST, Translation()
        self.settings, self.overwrite = settings_of(pipe, options, identity), overwrite

    def run(self) -> Translation:
        """Images first, then the scenes that all processes share, then those that each does alone."""
        with self.team.phase():  # nobody writes before all have seen what is there
            finished = [s for s, out in self.plan.items() if not self.overwrite and all(f.exists() for f in out.files)]
            todo = [source for source in self.plan if source not in finished]
            sizes = {source: pixels_of(source) for source in todo}
        scenes = {source: size for source, size in sizes.items() if is_scene(source)}
        shared, own = share(scenes, self.team)
        images = self.team.mine([source for source in todo if source not in scenes])
        for source in [source for source in images if self.plan[source].eo.exists() and not self.overwrite]:
            self.result.failed[source] = f"{self.plan[source].eo} is there, but no confidence: --overwrite redoes both"
            images.remove(source)
        total = sum(sizes[source] for source in [*images, *own, *shared])
        options = {"unit": "pix", "unit_scale": True, "smoothing": 0.05, "disable": self.team.rank > 0}
        with tqdm(total=total, desc="translate", **options) as bar:
            self._images(images, sizes, bar)
            for source in shared:
                self._scene(source, sizes[source], self.team, bar)
            for source in own:
                self._scene(source, sizes[source], Team(), bar)
        return self._report(finished)

    def _images(self, images: list[Path], sizes: dict[Path, int], bar: tqdm) -> None:
        options, start = self.options, time.monotonic()
        plan = {source: self.plan[source] for source in images}
        for batch in translate_images(
            plan,
            self.pipe,
            options.num_inference_steps,
            options.batch_size,
            options.seed,
            self.result.failed.__setitem__,
        ):
            for source in set(batch) - set(self.result.failed):
                self._finish(source, (time.monotonic() - start) / len(batch))
            bar.update(sum(sizes[source] for source in batch))
            start = time.monotonic()

    def _scene(self, source: Path, size: int, team: Team, bar: tqdm) -> None:
        start, done = time.monotonic(), 0.0

        def progress(pixels: float) -> None:
            nonlocal done  # warped scenes have other sizes, and processes other shares: no more than was announced
            before, done = done, min(size, done + pixels * team.size)
            bar.update(int(done) - int(before))

        try:
            if reason := conflict(self.plan[source], self.settings, self.overwrite):
                raise ValueError(reason)
            run_scene(source, self.pipe, self.plan[source], self.options, self.identity, team, progress)
        except Exception as error:  # one scene's failure must not end the others
            if not isinstance(error, ValueError | OSError | RuntimeError):
                traceback.print_exc()
            if team.rank == 0:
                self.result.failed[source] = describe(error)
        else:
            if team.rank == 0:
                self._finish(source, time.monotonic() - start)
        bar.update(size - int(done))

    def _finish(self, source: Path, seconds: float) -> None:
        """Note a finished input in the manifest."""
        files = self.plan[source].files
        line = {
            "input": str(source),
            "outputs": {file.name: f"sha256:{file_sha256(file)}" for file in files},
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "settings": self.settings,
        }
        with open(self.manifest, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.result.written.append(files[0])

    def _report(self, finished: list[Path]) -> Translation:
        result, gather = self.result, self.team.gather
        result.skipped = [self.plan[source].eo for source in finished]
        result.written, result.failed = gather(result.written), dict(gather(list(result.failed.items())))
        if self.team.rank == 0:
            for source, error in result.failed.items():
                print(f"failed: {source}: {error}", file=sys.stderr)
            for source in finished:
                made = settings_in(self.plan[source].eo) if is_scene(source) else None
                if made is not None and made != self.settings:
                    other = sorted(key for key in self.settings if made.get(key) != self.settings[key])
                    text = f"was made with other settings ({', '.join(other)}): --overwrite redoes it"
                    print(f"kept: {self.plan[source].eo} {text}", file=sys.stderr)
            counts = f"{len(result.written)} written, {len(result.skipped)} there already, {len(result.failed)} failed"
            print(counts + (f", by {self.team.size} processes" if self.team.size > 1 else ""), flush=True)
        gather([])  # a process that ended with a failure would have the others stopped before they have spoken
        return result


def conflict(outputs: Outputs, settings: dict, overwrite: bool) -> str | None:
    """Why outputs cannot be completed: some are there, and nothing says that they are from the same settings."""
    if overwrite or settings_in(outputs.eo) == settings:
        return None
    for file in outputs.files:
        if file.exists() and settings_in(file) != settings:
            return f"{file} is there already, and nothing says that it is from these settings: --overwrite redoes it"
    return None


def share(scenes: dict[Path, int], team: Team) -> tuple[list[Path], list[Path]]:
    """The scenes that all processes translate together, and those that this one does alone.

    A scene is shared where it is more than half of what a process has to do; of the others each process takes its
    turn, largest first.

    Args:
        scenes: with their sizes in pixels.
        team: the processes.
    """
    limit = sum(scenes.values()) / (2 * team.size)
    shared = [scene for scene, size in scenes.items() if team.size > 1 and size > limit]
    others = sorted((scene for scene in scenes if scene not in shared), key=lambda scene: -scenes[scene])
    return shared, team.mine(others)


def pixels_of(path: Path) -> int:
    """Pixels of a scene, 1 where that cannot be read: whoever translates it will say why."""
    try:
        if is_safe(path):
            path = next((path / "measurement").glob("*.tiff"))
        if path.suffix.lower() in IMAGES:
            with PIL.Image.open(path) as image:
                return image.width * image.height
        with open_raster(path) as raster:
            return raster.width * raster.height
    except Exception:  # such as of an image too large to be safe
        return 1
