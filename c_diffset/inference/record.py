"""How outputs were made: each finished file says it by itself, and the manifest of the folder says it of all."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from c_diffset.files import file_sha256, written_aside
from c_diffset.inference.inputs import Outputs, is_raster
from c_diffset.sar.gdal import open_raster

TAG = "SETTINGS"  # the tag of TIFF and PNG files; a JPEG file has the settings as its comment
FOUND = ("asked", "band_numbers", "units_are", "empty")  # what a record has beside the settings that were asked for


@dataclass(frozen=True)
class Found:
    """What a scene was read as: given by options, or found in the scene.

    Attributes:
        units: of its pixels.
        units_are: "given", "declared" (by the file), "detected", "calibrated" (a SAFE product) or "assumed" (no pixel).
        bands: polarisations of the bands that were read, or what else the file calls them.
        band_numbers: their numbers, from 1.
    """

    units: str
    units_are: str
    bands: tuple[str, ...]
    band_numbers: tuple[int, ...]

    def __str__(self) -> str:
        bands = ", ".join(
            f"{number}" if name == str(number) else f"{number} ({name})"
            for name, number in zip(self.bands, self.band_numbers, strict=True)
        )
        return f"units: {'dB' if self.units == 'db' else self.units}, {self.units_are}; bands: {bands}"

    def record(self, settings: dict, empty: bool) -> dict:
        """The settings as they were used; under `asked` what options had left to be found."""
        used = {"units": self.units, "bands": list(self.bands)}
        asked = {name: settings[name] for name in used}
        found = {"units_are": self.units_are, "band_numbers": list(self.band_numbers)}
        return settings | used | found | {"asked": asked} | ({"empty": True} if empty else {})


def as_asked(record: dict | None) -> dict | None:
    """The settings that were asked for, out of what `settings_in` finds."""
    if record is None:
        return None
    asked = record.get("asked")
    settings = {name: value for name, value in record.items() if name not in FOUND}
    return settings | (asked if isinstance(asked, dict) else {})


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


def settings_in(path: Path) -> dict | None:
    """The settings that a finished image was made with, as they were used; None where it does not say."""
    try:
        if is_raster(path):
            with open_raster(path) as raster:
                text = raster.tags().get(TAG)
        else:
            with PIL.Image.open(path, formats=("PNG", "JPEG")) as image:
                text = image.info.get(TAG) or image.info.get("comment")
        settings = json.loads(text or "null")
    except Exception:  # a file that cannot be read, for whatever reason, says nothing
        return None
    return settings if isinstance(settings, dict) else None


def conflict(outputs: Outputs, settings: dict, overwrite: bool) -> str | None:
    """Why outputs cannot be completed: some are there, and nothing says that they are from the same settings."""
    if overwrite or as_asked(settings_in(outputs.eo)) == settings:
        return None
    for file in outputs.files:
        if file.exists() and as_asked(settings_in(file)) != settings:
            return f"{file} is there already, and nothing says that it is from these settings: --overwrite redoes it"
    return None


class Manifest:
    """A file with one line of JSON for every finished input, which only ever grows.

    Args:
        path: the file; lines of it that are no such JSON are left alone.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path):
        self.path, self.known, self.torn = path, set(), False
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            self.torn = not line.endswith(b"\n")
            try:
                entry = json.loads(line)
                self.known.add(self._key(entry["input"], entry["outputs"], entry["settings"]))
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # such as the rest of a line whose writing was interrupted

    @staticmethod
    def _key(source: str, outputs, settings: dict) -> tuple:
        return source, frozenset(outputs), json.dumps(settings, sort_keys=True)

    def add(self, source: Path, outputs: Outputs, settings: dict, seconds: float | None = None) -> None:
        """Add the line of a finished input; `seconds` is null where an earlier command was stopped before it did so."""
        line = {
            "input": str(source),
            "outputs": {file.name: f"sha256:{file_sha256(file)}" for file in outputs.files},
            "seconds": None if seconds is None else round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "settings": settings,
        } | ({"empty": True} if settings.get("empty") else {})
        with open(self.path, "ab") as file:
            file.write(b"\n" * self.torn + json.dumps(line).encode() + b"\n")
        self.torn = False

    def complete(self, source: Path, outputs: Outputs, settings: dict) -> None:
        """Add the line of an input that was finished earlier, if it is missing."""
        names = [file.name for file in outputs.files]
        if self._key(str(source), names, settings) not in self.known:
            self.add(source, outputs, settings)
