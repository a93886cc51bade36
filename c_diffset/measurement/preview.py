"""Pairs as a model sees them, after its transforms: a picture, and how much lies at the ends of the ranges."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor

from c_diffset.files import write_file
from c_diffset.measurement.picture_grid import make_grid

NO_DATA = (1.0, 0.5, 0.0)  # orange, which neither SAR nor EO images show
LARGEST_SHARE = 0.25  # of pixels at one end of a range, beyond which it is worth a note
Seen = Sequence[dict[str, Tensor]]


def draw_preview(seen: Seen, sar_transform: dict | None) -> PIL.Image.Image:
    """A row for each pair: every channel of the SAR image in grey, and the EO image; what has no data is orange.

    The input of super-resolution is shown in its colours.

    Args:
        seen: pairs as `pair_to_tensors` gives them: `eo` 3 x H x W in [-1, 1], perhaps `sar` C x H x W and `mask`
            1 x H x W.
        sar_transform: the transform of the SAR images, where there are any; it names their channels.
    """
    columns = _columns(sar_transform)
    return make_grid(
        [{name: _paint(pair[key][part], pair.get("mask")) for name, (key, part) in columns.items()} for pair in seen]
    )


def write_preview(path: Path, seen: Seen, sar_transform: dict | None) -> None:
    """Write the picture, and print where it is and what is odd about the ranges."""
    picture = io.BytesIO()
    draw_preview(seen, sar_transform).save(picture, "PNG")
    write_file(path, picture.getvalue())
    print("\n".join([f"{path}: {len(seen)} pairs as a model sees them", *notes_on_ranges(seen, sar_transform)]))


def notes_on_ranges(seen: Seen, sar_transform: dict | None) -> list[str]:
    """Where a transform makes much of the valid pixels black or white."""
    notes = []
    for name, (key, part) in _columns(sar_transform).items():
        values = torch.cat([_valid(pair[key][part], pair.get("mask")) for pair in seen])
        for end, word in ((-1, "black"), (1, "white")):
            share = (values == end).float().mean().item()
            if share > LARGEST_SHARE:
                notes.append(
                    f"  note: {share:.0%} of the values of {name} are {word} for the model: check its {key}_transform"
                )
    return notes


def _columns(sar_transform: dict | None) -> dict[str, tuple[str, slice]]:
    """Title to image and channels: every SAR channel once, then EO."""
    if sar_transform and is_colour(sar_transform):
        return {"input": ("sar", slice(None)), "EO": ("eo", slice(None))}
    columns = {}
    for place, channel in enumerate(map(str, sar_transform["channels"]) if sar_transform else ()):
        columns.setdefault(_title(channel, sar_transform), ("sar", slice(place, place + 1)))
    return columns | {"EO": ("eo", slice(None))}


def is_colour(sar_transform: dict) -> bool:
    """Whether the input is a colour image of display values, as for super-resolution."""
    return sar_transform.get("units") == "display" and list(sar_transform["channels"]) == [0, 1, 2]


def _title(channel: str, sar_transform: dict) -> str:
    """SAR, or which band of it, by the names of the bands where they are known."""
    if len(set(map(str, sar_transform["channels"]))) == 1:
        return "SAR"
    names = sar_transform.get("bands")
    return re.sub(r"\d+", lambda band: names[int(band[0])], channel) if names else f"SAR {channel}"


def _paint(image: Tensor, mask: Tensor | None) -> Tensor:
    image = (image * 0.5 + 0.5).expand(3, -1, -1)
    return image if mask is None else torch.where(mask > 0, image, image.new_tensor(NO_DATA).view(3, 1, 1))


def _valid(image: Tensor, mask: Tensor | None) -> Tensor:
    return (image if mask is None else image[:, mask[0] > 0]).flatten()
