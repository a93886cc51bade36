"""The licence that published weights stay under, which follows from what they were trained from."""

import re
from collections.abc import Iterable

# Stable Diffusion 1 and 2 share their UNet's channels; the width of the text condition tells them apart
SD_CHANNELS = [320, 640, 1280, 1280]
SD_LICENSES = {768: ("Stable Diffusion 1", "creativeml-openrail-m"), 1024: ("Stable Diffusion 2", "openrail++")}
SD_NAMES = {
    r"stable-diffusion-2|sd2-community|\bsd[-_]?2[-_.]?[01]": 1024,
    r"stable-diffusion-(v?1)|\bsd[-_]?1[-_.]?[45]": 768,
}


def inherited_license(unet: dict, names: Iterable[str], shape_tells: bool = True) -> tuple[str, str] | None:
    """The base that weights come from and the licence they keep, by names, or by the UNet's configuration.

    Args:
        unet: its configuration.
        names: of what the weights come from.
        shape_tells: whether a UNet of Stable Diffusion's shape counts as one; False where the base is known to be
            another, or the UNet to be trained from scratch.

    Returns:
        For example ("Stable Diffusion 2", "openrail++"); None where neither tells of Stable Diffusion.
    """
    for name in names:
        for pattern, width in SD_NAMES.items():
            if re.search(pattern, name.lower()):
                return SD_LICENSES[width]
    width = unet.get("cross_attention_dim")
    is_sd = unet.get("block_out_channels") == SD_CHANNELS and isinstance(width, int)
    return SD_LICENSES.get(width) if shape_tells and is_sd else None


def choose_license(wanted: str | None, inherited: tuple[str, str] | None) -> str:
    """The licence to publish under; "unknown" where neither is given.

    Raises:
        ValueError: `wanted` is not the licence that the weights keep, or no identifier of a licence.
    """
    if inherited is not None and wanted not in (None, inherited[1]):
        raise ValueError(
            f"license is {wanted!r}, but weights that come from {inherited[0]} stay under {inherited[1]!r}: leave "
            "license out, or name another base_model if they come from elsewhere"
        )
    chosen = wanted or (inherited[1] if inherited else "unknown")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", chosen):
        raise ValueError(f"license is {chosen!r}: expected an identifier of the Hub, such as 'mit' or 'openrail++'")
    return chosen
