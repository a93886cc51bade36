"""What diffusers' own tests and callbacks ask of every pipeline, beyond the calls in `test_pipeline`."""

import json

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import AsymmetricAutoencoderKL
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.configuration_utils import FrozenDict
from torch import nn

from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from tests.conftest import SPACES, tiny_vae

every_space = pytest.mark.parametrize("space", SPACES)


def translate(pipe: CDiffSETPipeline, sar, **options) -> np.ndarray:
    return pipe(sar, **{"generator": torch.Generator().manual_seed(0), "output_type": "np"} | options).images


def offload_one_by_one(pipe: CDiffSETPipeline) -> None:
    """What `enable_sequential_cpu_offload` does for an accelerator, with the CPU as the device that computes."""
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
    assert pipe.unet.device.type == "meta" and pipe._execution_device.type == "cpu"


OFFLOADS = {
    "sequential": offload_one_by_one,
    "models": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "leaves": lambda pipe: pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
    "blocks": lambda pipe: pipe.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1),
}


@every_space
@pytest.mark.parametrize("kind", OFFLOADS)
def test_offloaded_weights_give_the_same_images_twice(make_pipe, sar, space, kind):
    if kind in ("leaves", "blocks") and not torch.accelerator.is_available() and torch.__version__ < "2.7":
        pytest.skip("offloading by groups asks torch 2.6 for an accelerator")
    expected, pipe = translate(make_pipe(space), sar), make_pipe(space)
    OFFLOADS[kind](pipe)
    assert all(np.array_equal(translate(pipe, sar), expected) for _ in range(2))


@every_space
def test_weights_can_be_stored_in_eight_bits(make_pipe, sar, space):
    expected, pipe = translate(make_pipe(space), sar), make_pipe(space)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert np.abs(translate(pipe, sar) - expected).mean() < 0.05


class HalfWay(PipelineCallback):
    """Black latents from half of the steps on, as the callbacks of diffusers find it."""

    tensor_inputs = ["latents"]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        if step_index == int(pipeline.num_timesteps * self.config.cutoff_step_ratio):
            callback_kwargs["latents"] = torch.zeros_like(callback_kwargs["latents"])
        return callback_kwargs


@pytest.mark.parametrize("several", [False, True])
def test_callbacks_of_diffusers_read_the_number_of_steps(make_pipe, sar, several):
    pipe, callback = make_pipe("pixel"), HalfWay(cutoff_step_ratio=0.75)
    callback = MultiPipelineCallbacks([callback]) if several else callback
    output = pipe(sar, num_inference_steps=4, callback_on_step_end=callback)
    assert pipe.num_timesteps == 4 and not output.latents.any()


@every_space
def test_an_interrupted_call_takes_no_further_step(make_pipe, sar, space):
    pipe, seen = make_pipe(space), []

    def stop(pipe, i, t, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = i == 1

    output = pipe(sar, num_inference_steps=4, callback_on_step_end=stop)
    assert pipe.interrupt and len(seen) == 2 and torch.equal(output.latents, seen[-1])
    pipe(sar, num_inference_steps=4, callback_on_step_end=stop, ensemble_size=3)
    assert len(seen) == 4, "no further sample is begun"
    assert np.array_equal(translate(pipe, sar), translate(make_pipe(space), sar)) and not pipe.interrupt


def test_a_list_of_batches_is_one_batch(make_pipe, sar):
    pipe, one = make_pipe("pixel"), torch.from_numpy(sar)[None, None]
    expected = translate(pipe, [sar, sar, 255 - sar])
    assert np.array_equal(translate(pipe, [one, one, 255 - one]), expected)
    assert np.array_equal(translate(pipe, [torch.cat([one, one]), 255 - one[0]]), expected)
    assert np.array_equal(translate(pipe, [sar[None, ..., None]] * 2), translate(pipe, [sar, sar]))


@pytest.mark.parametrize("space", ["kl", "tiny"])
def test_an_autoencoder_whose_config_names_no_shift(make_pipe, sar, space):
    pipe = make_pipe(space)
    expected, config = translate(pipe, sar), dict(pipe.vae.config)
    del config["shift_factor"]
    pipe.vae._internal_dict = FrozenDict(config)
    assert np.array_equal(translate(pipe, sar), expected)


def test_autoencoders_of_other_classes_are_refused(make_pipe, sar, tmp_path):
    other = AsymmetricAutoencoderKL(
        down_block_out_channels=(8,), up_block_out_channels=(8,), layers_per_down_block=1, norm_num_groups=4
    )
    message = "AsymmetricAutoencoderKL, whose latents differ: expected AutoencoderKL or AutoencoderTiny, or None"
    with pytest.raises(ValueError, match=message):
        make_pipe("kl", vae=other)
    pipe = make_pipe("kl")
    pipe.save_pretrained(tmp_path)
    pipe.vae = other
    with pytest.raises(ValueError, match=message):
        pipe(sar)
    with pytest.raises(ValueError, match=message):
        CDiffSETPipeline.from_pretrained(tmp_path, vae=other)
    index = json.loads((tmp_path / "model_index.json").read_text()) | {"vae": ["diffusers", "AsymmetricAutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="AsymmetricAutoencoderKL.*, expected .*AutoencoderKL.* or .*AutoencoderTiny"):
        CDiffSETPipeline.from_pretrained(tmp_path)


def test_a_compiled_autoencoder_is_recognised_at_construction(make_pipe):
    assert make_pipe("kl", vae=torch.compile(tiny_vae(), backend="eager")).vae_scale_factor == 2
