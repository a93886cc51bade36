"""The inputs of one `translate`, shared by the processes of a team: what is finished stays."""

import math
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from c_diffset.batching import batches_of_one_size
from c_diffset.inference.grid import OutsideError
from c_diffset.inference.images import translate_batch, translate_large
from c_diffset.inference.inputs import Outputs, is_scene
from c_diffset.inference.progress import InputBar
from c_diffset.inference.record import Found, Manifest, as_asked, conflict, settings_in
from c_diffset.inference.scene import Translator, add_to_scene, lacks_additions_alone, run_scene
from c_diffset.inference.team import Team, describe


@dataclass
class Translation:
    """What `translate` did.

    Attributes:
        written: the images written, apart from the following.
        empty: images of scenes without a valid pixel: all masked.
        skipped: images that were there already.
        outside: inputs that have nothing in the part that was asked for.
        failed: the error of each input that failed.
    """

    written: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


@dataclass
class Job:
    """The inputs of one command, shared by the processes of a team."""

    plan: dict[Path, Outputs]
    translator: Translator
    manifest: Path
    team: Team
    overwrite: bool
    result: Translation = field(default_factory=Translation)
    told: dict[str, Path] = field(default_factory=dict)  # what scenes were read as, and the first of each kind

    def run(self) -> Translation:
        """Small images first, then what goes by tiles: what all processes share, and what each does alone."""
        with self.team.phase():  # nobody writes before all have seen what is there
            todo = dict(self.plan)
            if not self.overwrite:
                todo = {s: out for s, out in todo.items() if not all(file.exists() for file in out.files)}
            finished = [source for source in self.plan if source not in todo]
            sizes = self._sizes(todo)
            self.pixels = {source: height * width for source, (height, width) in sizes.items()}
            tile = self.translator.settings["tile_size"]
            self.tiled = {source for source in self.plan if is_scene(source) or max(sizes[source]) > tile}
            self._refuse(todo, sizes)
            translated = [s for s in todo if is_scene(s) and not self.overwrite]
            translated = [s for s in translated if lacks_additions_alone(todo[s], self.translator)]
            self.lines = Manifest(self.manifest)
        for source in self.team.mine(translated):
            self._add(source)
        todo = {source: outputs for source, outputs in todo.items() if source not in translated}
        shared, own = share({source: self.pixels[source] for source in todo if source in self.tiled}, self.team)
        # the same batches whatever is finished, and whoever takes them: their size decides how sums are rounded
        images = sorted((source for source in self.plan if source not in self.tiled), key=sizes.__getitem__)
        batches = batches_of_one_size(images, sizes.__getitem__, self.translator.options.batch_size)
        batches = self.team.mine([batch for batch in batches if todo.keys() & set(batch)])
        mine = [source for batch in batches for source in batch if source in todo]
        total = sum(self.pixels[source] for source in [*mine, *own, *shared])
        self._announce(todo)
        options = {"unit": "pix", "unit_scale": True, "smoothing": 0.05, "disable": self.team.rank > 0}
        with tqdm(total=total, desc="translate", **options) as bar:
            for batch in batches:
                self._images(batch, {source: todo[source] for source in batch if source in todo}, bar)
            for source in shared:
                self._by_tiles(source, self.team, bar)
            for source in own:
                self._by_tiles(source, Team(), bar)
            bar.set_description_str("translate")
        return self._report(finished)

    def _sizes(self, todo: dict[Path, Outputs]) -> dict[Path, tuple[int, int]]:
        """Size of the EO images of what is to be done, and of all images; scenes outside are taken out of `todo`."""
        sizes = {}
        for source in self.plan:
            if source in todo or not is_scene(source):
                try:
                    sizes[source] = self.translator.size_of(source)
                except OutsideError:
                    self.result.outside.append(source)
                    del todo[source]
        if self.plan and len(self.result.outside) == len(self.plan):
            raise ValueError(f"none of the inputs has anything in bbox {self.translator.options.bbox}: check bbox_crs")
        return sizes

    def _refuse(self, todo: dict[Path, Outputs], sizes: dict[Path, tuple[int, int]]) -> None:
        """Take out of `todo` what is too large, or whose outputs are there in part and from other settings."""
        for source, outputs in list(todo.items()):
            try:
                self.translator.check_size(source, *sizes[source])
                if reason := conflict(outputs, self._settings(source), self.overwrite):
                    raise ValueError(reason)
            except ValueError as error:
                self.result.failed[source] = str(error)
                del todo[source]

    def _announce(self, todo: dict[Path, Outputs]) -> None:
        """Say, before it begins, how much work there is."""
        if todo and self.team.rank == 0:
            settings, total = self.translator.settings, sum(self.pixels[source] for source in todo)
            tiles = sum(self.pixels[source] for source in todo if source in self.tiled)
            tiles = math.ceil(tiles / (settings["tile_size"] - settings["overlap"]) ** 2)
            scenes = f", about {tiles} tiles" if tiles else ""
            inputs = f"{len(todo)} input{'s' * (len(todo) > 1)} of {total / 1e6:.1f} megapixels"
            steps = f"{self.translator.steps} step{'s' * (self.translator.steps > 1)} each"
            print(f"{inputs}{scenes}, {steps}", file=sys.stderr, flush=True)

    def _settings(self, source: Path) -> dict:
        if is_scene(source):
            return self.translator.settings
        return self.translator.tiled_image_settings if source in self.tiled else self.translator.image_settings

    @contextmanager
    def _failing(self, sources: Iterable[Path], team: Team) -> Iterator[None]:
        """One input's failure must not end the others."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, ValueError | OSError | RuntimeError):
                traceback.print_exc()
            if team.rank == 0:
                self.result.failed |= dict.fromkeys(sources, describe(error))

    def _images(self, batch: list[Path], todo: dict[Path, Outputs], bar: tqdm) -> None:
        start, fail = time.monotonic(), self.result.failed.__setitem__
        name = next(iter(todo)).name + (f" and {len(todo) - 1} more" if len(todo) > 1 else "")
        own = InputBar(bar, name, sum(self.pixels[source] for source in todo))
        with self._failing(todo, Team()):
            for source in translate_batch(batch, todo, self.translator, fail, own):
                with self._failing([source], Team()):
                    self._finish(source, self.translator.image_settings, (time.monotonic() - start) / len(batch))
        own.close()

    def _by_tiles(self, source: Path, team: Team, bar: tqdm) -> None:
        start, own = time.monotonic(), InputBar(bar, source.name, self.pixels[source])
        run = partial(run_scene, opened=partial(self._tell, source)) if is_scene(source) else translate_large
        with self._failing([source], team):
            record = run(source, self.translator, self.plan[source], team, own) or self._settings(source)
            if team.rank == 0:
                self._finish(source, record, time.monotonic() - start)
        own.close()

    def _add(self, source: Path) -> None:
        """What is missing beside a scene that is translated already."""
        start = time.monotonic()
        with self._failing([source], Team()):
            record = add_to_scene(self.plan[source], self.translator)
            self._finish(source, record, time.monotonic() - start)

    def _tell(self, source: Path, found: Found) -> None:
        """Say what a scene is read as, once for all that are read alike; an empty one is listed as such."""
        if found.units_are != "assumed" and str(found) not in self.told:
            self.told[str(found)] = source
            if self.team.rank == 0:
                tqdm.write(one_line(f"{found} ({source} and those alike)"), file=sys.stderr)

    def _finish(self, source: Path, record: dict, seconds: float) -> None:
        """Note a finished input in the manifest."""
        self.lines.add(source, self.plan[source], record, seconds)
        (self.result.empty if record.get("empty") else self.result.written).append(self.plan[source].eo)

    def _report(self, finished: list[Path]) -> Translation:
        result, gather = self.result, self.team.gather
        result.skipped = [self.plan[source].eo for source in finished]
        result.written, result.empty = gather(result.written), gather(result.empty)
        result.failed = dict(gather(list(result.failed.items())))
        told = gather(list(self.told.items()))
        if self.team.rank == 0:
            for text, source in {text: source for text, source in told if text not in self.told}.items():
                print(one_line(f"{text} ({source} and those alike)"), file=sys.stderr)
            for eo in result.empty:
                print(one_line(f"empty: {eo} is all masked: its scene has no valid pixel"), file=sys.stderr)
            for source in result.outside:
                print(one_line(f"outside: {source} has nothing in the bbox"), file=sys.stderr)
            for source, error in result.failed.items():
                named = error if error.startswith(str(source)) else f"{source}: {error}"
                print(one_line(f"failed: {named}"), file=sys.stderr)
            for source in finished:
                self._keep(source)
            counts = [f"{len(result.written)} written"] + [f"{len(result.empty)} empty"] * bool(result.empty)
            counts += [f"{len(result.outside)} outside"] * bool(result.outside)
            counts += [f"{len(result.skipped)} there already", f"{len(result.failed)} failed"]
            print(", ".join(counts) + (f", by {self.team.size} processes" if self.team.size > 1 else ""), flush=True)
        gather([])  # a process that ended with a failure would have the others stopped before they have spoken
        return result

    def _keep(self, source: Path) -> None:
        """Say where a finished input has other settings, and note it where an earlier command did not come to it."""
        outputs, settings = self.plan[source], self._settings(source)
        made = settings_in(outputs.eo)
        if made is not None:
            self.lines.complete(source, outputs, made)
        if (asked := as_asked(made)) != settings:
            other = sorted(key for key in settings if (asked or {}).get(key) != settings[key])
            how = f"was made with other settings ({', '.join(other)})" if made else "does not say how it was made"
            print(one_line(f"kept: {outputs.eo} {how}: --overwrite redoes it"), file=sys.stderr)


def one_line(text: str) -> str:
    """A text without its line breaks, such as those in names of files."""
    return " ".join(text.splitlines())


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
