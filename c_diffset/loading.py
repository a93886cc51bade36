"""A pipeline ready for work: on its device, in its precision, quiet, and with another autoencoder where asked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from c_diffset.cpu import use_whole_cpu
from c_diffset.files import file_sha256
from c_diffset.pipelines.pipeline_cdiffset import (
    CDiffSETPipeline,
    align,
    build_empty,
    check_weights,
    describe_pickle,
    encode_prompt_embeds,
)
from c_diffset.precision import Precision, choose_precision

# short names of autoencoders: `taesd` reads and writes the scaled latents of Stable Diffusion 1 and 2
AUTOENCODERS = {"taesd": "madebyollin/taesd"}


def load_pipeline(
    model: str | os.PathLike,
    revision: str | None = None,
    device: str | None = None,
    dtype: Precision = "auto",
    vae: str | os.PathLike | None = None,
) -> CDiffSETPipeline:
    """Load a folder or Hub id onto `device`, by default CUDA where there is one; its calls show no progress bar.

    Args:
        model: folder or Hub id of the pipeline.
        revision: branch, tag or commit of a Hub id.
        device: where the model runs, see `choose_device`.
        dtype: precision of the weights; "auto" is the fastest that the device has instructions for.
        vae: the autoencoder to use instead of the model's own, as in `replace_autoencoder`.

    Raises:
        ValueError: `vae` does not fit the model, there is no such device, or settings of the model make no sense.
        OSError: files are missing or damaged, or the model's weights are pickled.
    """
    where = choose_device(device)
    with no_loading_bar():
        pipe = CDiffSETPipeline.from_pretrained(model, revision=revision)
    if vae is not None:
        replace_autoencoder(pipe, vae)
    if where.type == "mps":  # its convolutions are only tried in the plain order of memory
        for part in filter(None, (pipe.unet, pipe.vae)):
            part.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    else:
        # up to half as fast again in half precision
        pipe.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    precision, models = (
        getattr(torch, choose_precision(dtype, where)),
        [part for part in pipe.components.values() if hasattr(part, "dtype")],
    )
    change = [precision] if any(part.dtype != precision for part in models) else []
    pipe.to(where, *change)  # a precision that changes nothing would make diffusers warn
    pipe.set_progress_bar_config(disable=True)
    if pipe.device.type == "cpu":
        use_whole_cpu()
    return pipe


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Without the bar that diffusers shows while it loads the three parts of a pipeline."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def choose_device(name: str | None = None) -> torch.device:
    """The device of this name, such as "cuda:1" or "mps"; by default CUDA where there is one, else the CPU.

    Apple's "mps" is used where it is asked for alone, since no result has been compared with that of other devices.

    Raises:
        ValueError: this machine has no such device.
    """
    there = ["cpu"]
    if accelerator := torch.accelerator.is_available() and torch.accelerator.current_accelerator():
        kind = accelerator.type
        there += [kind, *(f"{kind}:{number}" for number in range(torch.accelerator.device_count()))]
    name = name or ("cuda" if "cuda" in there else "cpu")
    if str(name) not in (*there, "cpu:0"):  # as a launched process is told
        raise ValueError(f"device {str(name)!r} is not on this machine: expected one of {', '.join(there)}")
    return torch.device(name)


def model_revision(model: str | os.PathLike, revision: str | None = None) -> str | None:
    """What tells a model's weights from others: the commit of a Hub id, or a checksum of a folder's UNet."""
    if not Path(model).is_dir():
        cached = try_to_load_from_cache(str(model), "model_index.json", revision=revision)
        return Path(cached).parent.name if isinstance(cached, str) else revision
    return component_checksum(Path(model), "unet")


def component_checksum(folder: Path, name: str) -> str | None:
    """A checksum of a component's weights in the folder of a pipeline; None where there are none."""
    weights = sorted(Path(folder, name).glob("*.safetensors"))
    return f"sha256:{file_sha256(weights[0])[:16]}" if weights else None


def weights_sha256(module: nn.Module) -> str:
    """A checksum of a model's weights, whatever their precision and their device."""
    digest = sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def replace_autoencoder(pipe: CDiffSETPipeline, source: str | os.PathLike) -> None:
    """Give the pipeline another autoencoder of the same latent space: a folder, a Hub id, or "taesd".

    Raises:
        ValueError: the pipeline is in pixel space, or what `load_autoencoder` and `check_same_latents` raise.
    """
    if pipe.vae is None:
        raise ValueError(f"autoencoder {source}: this model is in pixel space and uses none, so leave `vae` out")
    vae = load_autoencoder(AUTOENCODERS.get(str(source), str(source)))
    check_same_latents(vae, pipe, source)
    vae.to(memory_format=torch.channels_last)  # as the pipeline does with its own # pyright: ignore[reportCallIssue]
    pipe.register_modules(vae=vae)


def check_same_latents(vae: AutoencoderKL | AutoencoderTiny, pipe: CDiffSETPipeline, source: str | os.PathLike) -> None:
    """Refuse the autoencoder from `source` if its latents have another shape than those of the pipeline.

    Raises:
        ValueError: it has another number of latent channels, or of pixels per latent.
    """
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    for what, found, expected in (
        ("latent channels", vae.config.latent_channels, pipe.eo_channels),
        ("pixels per latent along each axis", factor, pipe.vae_scale_factor),
    ):
        if found != expected:
            raise ValueError(
                f"autoencoder {source} has {found} {what}, expected {expected}: choose one of the same latent space"
            )


def load_autoencoder(
    source: str | os.PathLike, revision: str | None = None, subfolder: str | None = None
) -> AutoencoderKL | AutoencoderTiny:
    """An `AutoencoderKL` or `AutoencoderTiny` from a folder or Hub id, by the class its config names.

    Raises:
        ValueError: the config names another class, or the weights are pickled.
        OSError: files are missing.
    """
    config: Any = AutoencoderKL.load_config(source, revision=revision, subfolder=subfolder)
    classes: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if config.get("_class_name") not in classes:
        raise ValueError(f"autoencoder {source} is a {config.get('_class_name')}: expected one of {sorted(classes)}")
    message = describe_pickle(Path(source, subfolder or ""))
    if message is not None:
        raise ValueError(message)
    chosen = classes[config["_class_name"]]
    if Path(source).is_dir():
        folder = Path(source, subfolder or "")
        check_weights(folder, build_empty(folder, chosen))
    return align(chosen.from_pretrained(source, revision=revision, subfolder=subfolder, use_safetensors=True))


def load_prompt(base: str | os.PathLike, revision: str | None = None) -> dict:
    """The constant prompt's embedding by the text encoder of Stable Diffusion, a folder or Hub id."""
    where: dict[str, Any] = dict(revision=revision)
    text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", use_safetensors=True, **where)
    return encode_prompt_embeds(
        align(text_encoder), CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", **where)
    )
