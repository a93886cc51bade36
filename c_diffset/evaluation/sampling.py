"""How a model is sampled in an evaluation: its steps, their times, and what the report says of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, LCMScheduler

from c_diffset.measurement.protocols import PROTOCOLS, SPACINGS, Protocol
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

FEW_STEPS = 10  # a model whose own number of steps is no larger was distilled, and gives images at its own times alone
MOST_TIMES = 8  # in a report


def check_sampling(protocol: str, timestep_spacing: str | None) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: there is no such protocol, or no such spacing.
    """
    for name, value, known in (
        ("protocol", protocol, PROTOCOLS),
        ("timestep_spacing", timestep_spacing, (None, *SPACINGS)),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: expected one of {', '.join(filter(None, known))}")
    return PROTOCOLS[protocol]


def choose_steps(pipe: CDiffSETPipeline, num_inference_steps: int | None, protocol: Protocol) -> int:
    """The number of steps: as asked for, or as the protocol says, or the model's own."""
    steps = num_inference_steps or (protocol.steps if _takes_times_of(pipe, protocol) else None)
    return steps or pipe.config.default_num_inference_steps


def choose_spacing(pipe: CDiffSETPipeline, timestep_spacing: str | None, protocol: Protocol) -> str | None:
    """A name in `SPACINGS`: as asked for, or as the protocol says; None for the model's own.

    Raises:
        ValueError: a spacing was asked for, but this sampler takes its times from the steps it was distilled at.
    """
    if timestep_spacing is not None and isinstance(pipe.scheduler, LCMScheduler):
        raise ValueError(
            f"timestep_spacing is {timestep_spacing}, but the LCMScheduler of this model has times of its own, those "
            "it was distilled at: leave it out"
        )
    return timestep_spacing or (protocol.spacing if _takes_times_of(pipe, protocol) else None)


def _takes_times_of(pipe: CDiffSETPipeline, protocol: Protocol) -> bool:
    """Whether the protocol's steps and times are for this model: a sampler of DDIM that was not distilled."""
    few = pipe.config.default_num_inference_steps <= FEW_STEPS
    enough = len(pipe.scheduler.alphas_cumprod) >= (protocol.steps or 0)
    return isinstance(pipe.scheduler, DDIMScheduler) and enough and not few


def departures(pipe: CDiffSETPipeline, steps: int, spacing: str | None, protocol: Protocol) -> list[str]:
    """How these samples are not made as the protocol has it, in sentences; nothing for this package's own."""
    found = []
    if _takes_times_of(pipe, protocol):
        found += [f"{steps} steps instead of {protocol.steps}"] if protocol.steps not in (None, steps) else []
        found += (
            [f"{spacing} times instead of {protocol.spacing} ones"] if protocol.spacing not in (None, spacing) else []
        )
    if protocol.source and pipe.dtype != torch.float32:
        found.append(f"{str(pipe.dtype).removeprefix('torch.')} instead of float32")
    return [f"Departs from the protocol: {', '.join(found)}."] if found else []


@contextmanager
def sampled_at(pipe: CDiffSETPipeline, spacing: str | None) -> Iterator[None]:
    """Within the block, the pipeline samples at the times of this spacing; None leaves them."""
    own = pipe.scheduler
    if spacing is not None:
        settings = {key: value for key, value in SPACINGS[spacing].items() if key in own.config}
        pipe.scheduler = type(own).from_config(own.config, **settings)
    try:
        yield
    finally:
        pipe.scheduler = own


def describe_sampling(pipe: CDiffSETPipeline, steps: int) -> dict:
    """What a report says of the model and of how it is sampled, as fields of `Report`."""
    scheduler = pipe.scheduler.config
    return {
        "num_inference_steps": steps,
        "scheduler": type(pipe.scheduler).__name__,
        "timestep_spacing": scheduler.get("timestep_spacing"),
        "timesteps": describe_times(pipe, steps),
        "prediction_type": scheduler.prediction_type,
        "autoencoder": None if pipe.vae is None else _describe_autoencoder(pipe.vae),
        "dtype": str(pipe.dtype),
        "device": str(pipe.device),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def describe_times(pipe: CDiffSETPipeline, steps: int) -> str:
    """The times of the steps: all of a few, or the first two and the last."""
    pipe.scheduler.set_timesteps(steps)
    times = [f"{time:g}" for time in pipe.scheduler.timesteps.tolist()]
    return ", ".join(times if len(times) <= MOST_TIMES else [*times[:2], "...", times[-1]])


def _describe_autoencoder(vae: AutoencoderKL | AutoencoderTiny) -> str:
    """Its class, and where it was loaded from."""
    return f"{type(vae).__name__}, {vae.config.get('_name_or_path') or 'in memory'}"
