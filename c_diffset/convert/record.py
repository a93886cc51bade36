"""What a converted model says of where it comes from: a file beside its weights."""

import re
from dataclasses import dataclass
from pathlib import Path

from c_diffset.files import read_json

CONVERSION = "conversion.json"  # in the folder of a model
SYSTEMS = {
    "c-diffset": "C-DiffSET (Do, Lee, Lee, Kim)",
    "acd": "adversarial consistency distillation (Bai, Xu)",
    "guided-diffusion": "conditional diffusion in pixel space (Bai, Pu, Xu)",
}


@dataclass(frozen=True)
class Conversion:
    """Released weights that a model was converted from.

    Attributes:
        kind: One of `SYSTEMS`.
        source: The name of the file.
        size: Its bytes.
        sha256: Its checksum.
    """

    kind: str
    source: str
    size: int
    sha256: str

    def describe(self) -> str:
        return f"converted from {self.source}, weights of {SYSTEMS[self.kind]}, sha256:{self.sha256[:16]}"


def read_conversion(folder: Path) -> Conversion | None:
    """What the model in this folder was converted from; None where it was not.

    Raises:
        ValueError: the file that says it is not what the conversion writes.
    """
    path = folder / CONVERSION
    if not path.is_file():
        return None
    told = read_json(path)
    expected = {"kind": str, "source": str, "size": int, "sha256": str}
    good = {key: type(value) for key, value in told.items()} == expected and told["kind"] in SYSTEMS
    if not good or not re.fullmatch(r"[0-9a-f]{64}", told["sha256"]) or len(told["source"]) > 255:
        raise ValueError(f"{path} is not what a conversion writes: expected {', '.join(expected)}; remove it")
    return Conversion(**told)
