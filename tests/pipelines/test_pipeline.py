"""What the pipeline promises, in the latent space of both autoencoders and in pixel space, with real components."""

import copy
import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, LCMScheduler

from c_diffset.models.unet import small_unet
from c_diffset.pipelines.pipeline_cdiffset import (
    CDiffSETPipeline,
    CDiffSETPipelineOutput,
    decode_prompt_embeds,
    encode_prompt_embeds,
    raw_to_variance,
    smooth_border,
)

every_space = pytest.mark.parametrize("space", ["kl", "tiny", "pixel"])
SCHEDULERS = [DDIMScheduler, DDPMScheduler, LCMScheduler]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def translate(pipe: CDiffSETPipeline, sar, **options) -> CDiffSETPipelineOutput:
    """Run with fixed noise, to arrays."""
    return pipe(sar, **{"generator": seeded(), "output_type": "np"} | options)


def same(first: CDiffSETPipelineOutput, second: CDiffSETPipelineOutput, tolerance: float = 1e-5) -> bool:
    return all(
        np.allclose(first[key], second[key], rtol=0, atol=tolerance) for key in ("images", "confidence", "latents")
    )


def test_call_signature():
    parameters = inspect.signature(CDiffSETPipeline.__call__).parameters
    assert list(parameters)[1:] == [
        "sar",
        "num_inference_steps",
        "generator",
        "latents",
        "output_type",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "return_dict",
        "ensemble_size",
        "realism",
    ]


@every_space
def test_output_shapes_and_ranges(make_pipe, sar, space):
    pipe = make_pipe(space)
    output = translate(pipe, [sar, sar])
    side = 16 // pipe.vae_scale_factor
    assert output.images.shape == (2, 16, 16, 3) and 0 <= output.images.min() and output.images.max() <= 1
    assert output.confidence.shape == (2, 16, 16) and 0 < output.confidence.min() and output.confidence.max() <= 1
    assert output.variance.shape == (2, side, side) and output.variance.min() > 0
    assert output.latents.shape == (2, pipe.eo_channels, side, side)
    assert output.images.std() > 0 and output.confidence.std() > 0


@every_space
def test_output_types_agree(make_pipe, sar, space):
    pipe = make_pipe(space)
    array = translate(pipe, sar)
    tensor = translate(pipe, sar, output_type="pt")
    assert np.array_equal(tensor.images.permute(0, 2, 3, 1), array.images)
    assert torch.equal(tensor.confidence, torch.from_numpy(array.confidence))
    (picture,) = translate(pipe, sar, output_type="pil").images
    assert picture.size == (16, 16) and np.abs(np.asarray(picture) / 255 - array.images[0]).max() <= 0.5 / 255 + 1e-6
    latent = translate(pipe, sar, output_type="latent")
    assert latent.images is latent.latents and torch.equal(latent.latents, array.latents)


@every_space
def test_tuple_equals_dict(make_pipe, sar, space):
    pipe = make_pipe(space)
    output = translate(pipe, sar)
    images, confidence, variance, latents = translate(pipe, sar, return_dict=False)
    assert np.array_equal(images, output.images) and np.array_equal(confidence, output.confidence)
    assert np.array_equal(variance, output.variance) and torch.equal(latents, output.latents)


@every_space
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_batch_equals_its_images_alone(make_pipe, space, scheduler):
    pipe = make_pipe(space)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    images = list(np.random.default_rng(1).integers(0, 256, (3, 16, 16), dtype=np.uint8))
    together = translate(pipe, images, generator=[seeded(i) for i in range(3)])
    alone = [translate(pipe, image, generator=[seeded(i)]) for i, image in enumerate(images)]
    for key in ("images", "confidence", "variance", "latents"):
        np.testing.assert_allclose(together[key], np.concatenate([one[key] for one in alone]), rtol=0, atol=1e-4)


@every_space
def test_a_batch_of_one_is_identical(make_pipe, sar, space):
    pipe = make_pipe(space)
    assert same(translate(pipe, sar), translate(pipe, [sar]), tolerance=0)


@every_space
def test_the_same_generator_gives_the_same_image_and_another_one_another(make_pipe, sar, space):
    pipe = make_pipe(space)
    assert same(translate(pipe, sar), translate(pipe, sar), tolerance=0)
    assert not same(translate(pipe, sar), translate(pipe, sar, generator=seeded(1)))
    assert not same(translate(pipe, sar), translate(pipe, 255 - sar)), "the SAR image counts"


def test_every_form_of_the_input_gives_the_same(make_pipe, sar):
    pipe = make_pipe("pixel")
    expected = translate(pipe, sar)
    one = {
        "PIL": PIL.Image.fromarray(sar),
        "16-bit": sar.astype(np.uint16) * 257,
        "float": sar.astype(np.float64) / 255,
        "tensor": torch.from_numpy(sar),
        "tensor with bands": torch.from_numpy(sar)[None],
        "array batch": sar[None, ..., None],
        "tensor batch": torch.from_numpy(sar)[None, None],
        "tuple": (sar,),
    }
    for name, image in one.items():
        assert same(translate(pipe, image), expected), name


def test_backscatter_input(make_pipe):
    pipe = make_pipe("tiny", sar_transform={"units": "db", "range": [-25, 0], "channels": [0, 1, "1-0"]})
    db = np.random.default_rng(0).normal(-12, 3, (2, 16, 16))
    expected = translate(pipe, db.transpose(1, 2, 0))
    assert same(translate(pipe, torch.from_numpy(db)), expected)
    pipe = make_pipe("tiny", sar_transform=pipe.config.sar_transform | {"units": "power"})
    assert same(translate(pipe, 10 ** (db.transpose(1, 2, 0) / 10)), expected, tolerance=1e-3)


@every_space
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (16, 16), (31, 5), (20, 22)])
def test_any_size_is_padded_and_cropped_back(make_pipe, space, size):
    pipe = make_pipe(space)
    image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    output = translate(pipe, image)
    assert output.images.shape == (1, *size, 3) and output.confidence.shape == (1, *size)

    padded = pipe.pad(torch.from_numpy(image)[None, None].float())
    assert all(side % pipe.size_multiple == 0 for side in padded.shape[-2:])
    assert torch.equal(padded[0, 0, : size[0], : size[1]], torch.from_numpy(image).float())
    by_hand = translate(pipe, padded[0] / 255)
    assert np.array_equal(by_hand.images[:, : size[0], : size[1]], output.images)


@every_space
def test_given_latents_are_the_starting_noise(make_pipe, sar, space):
    pipe = make_pipe(space)
    side = 16 // pipe.vae_scale_factor
    noise = torch.randn(1, pipe.eo_channels, side, side, generator=seeded())
    assert same(translate(pipe, sar, generator=None, latents=noise), translate(pipe, sar), tolerance=0)


@every_space
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_schedulers_and_prediction_types(make_pipe, sar, space, scheduler, prediction_type):
    options = dict(prediction_type=prediction_type, clip_sample=space == "pixel")
    pipe = make_pipe(space, scheduler=scheduler(**options))
    output = translate(pipe, sar, num_inference_steps=4)
    assert np.isfinite(output.images).all() and pipe.config.prediction_type == prediction_type


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_loop_is_the_schedulers_own(make_pipe, sar, scheduler):
    """The sampling loop written out, in pixel space, and the variance of the clean image at the middle step."""
    pipe = make_pipe("pixel", scheduler=scheduler(clip_sample=True))
    output = translate(pipe, sar, num_inference_steps=5)

    generator = seeded()
    latents = torch.randn(1, 3, 16, 16, generator=generator)
    condition = torch.from_numpy(sar / 255 * 2 - 1).float().expand(1, 3, -1, -1)
    steps = scheduler.from_config(pipe.scheduler.config)
    steps.set_timesteps(5)
    middle = min(steps.timesteps.tolist(), key=lambda t: abs(t - 500))
    for t in steps.timesteps:
        with torch.no_grad():
            predicted = pipe.unet(torch.cat([condition, latents], dim=1), t).sample
        if t == middle:
            abar = steps.alphas_cumprod[t].item()
            variance = (raw_to_variance(predicted[:, 3]) * (1 - abar) / abar)[:, 3:-3, 3:-3]
        latents = steps.step(predicted[:, :3], t, latents, generator=generator).prev_sample
    np.testing.assert_allclose(output.latents, latents, rtol=0, atol=1e-4)
    np.testing.assert_allclose(output.variance[:, 3:-3, 3:-3], variance, rtol=1e-4)
    np.testing.assert_allclose(output.confidence[:, 3:-3, 3:-3], 1 / (1 + variance), rtol=1e-4)


def test_the_zeros_beyond_the_border_leave_no_frame_in_the_confidence(make_pipe):
    """An even image and even noise, of a model whose variance rests on its weights, as those of trained models do."""
    pipe, sides = make_pipe("pixel"), (28, 24)
    with torch.no_grad():
        for layer in (pipe.unet.conv_norm_out, *(resnet.norm2 for resnet in pipe.unet.up_blocks[-1].resnets)):
            layer.bias.fill_(1.0)
        pipe.unet.conv_out.weight[3] = -0.05
    flat = torch.full((1, 3, *sides), 0.5)
    raw = pipe.unet(torch.cat([flat, flat], dim=1), 999).sample[0, 3]
    confidence = translate(pipe, np.full(sides, 191, np.uint8), latents=flat, num_inference_steps=1).confidence[0]
    assert raw[0].mean() - raw[3:-3, 3:-3].mean() > 5 * raw[3:-3, 3:-3].std()  # the UNet itself has the frame
    inside = confidence[3:-3, 3:-3]
    assert inside.min() <= confidence.min() and confidence.max() <= inside.max()
    for side in (confidence[0], confidence[-1], confidence[:, 0], confidence[:, -1]):
        assert abs(side.mean() - inside.mean()) < 3 * inside.std()


@pytest.mark.parametrize("sides, widths", [((1, 1), (0, 0)), ((7, 16), (0, 2)), ((64, 24), (3, 3))])
def test_at_most_an_eighth_of_a_side_loses_its_own_variance(sides, widths):
    raw = torch.arange(float(np.prod(sides))).reshape(1, *sides)
    smoothed = smooth_border(raw)
    middle = (0, *(slice(width, side - width) for side, width in zip(sides, widths, strict=True)))
    assert torch.equal(smoothed[middle], raw[middle]) and smoothed.shape == raw.shape
    assert smoothed[0, 0, 0] == raw[0, widths[0], widths[1]]


def test_number_of_steps(make_pipe, sar):
    pipe = make_pipe("pixel", default_num_inference_steps=3)
    seen = []

    def count(pipe, i, t, tensors):
        seen.append((i, int(t)))
        return tensors

    pipe(sar, callback_on_step_end=count)
    assert seen == [(0, 999), (1, 666), (2, 332)]
    pipe(sar, num_inference_steps=1, callback_on_step_end=count)
    assert seen[3:] == [(0, 999)]


@every_space
def test_step_callback_sees_and_changes_the_latents(make_pipe, sar, space):
    pipe = make_pipe(space)
    last = []

    def zero_at_the_end(pipe, i, t, tensors):
        last.append(tensors["latents"].clone())
        if i == pipe.scheduler.num_inference_steps - 1:
            return {"latents": torch.zeros_like(tensors["latents"])}

    changed = translate(pipe, sar, callback_on_step_end=zero_at_the_end)
    assert len(last) == 2 and torch.equal(last[1], translate(pipe, sar).latents)
    assert not changed.latents.any()
    empty = []
    translate(
        pipe,
        sar,
        callback_on_step_end=lambda pipe, i, t, tensors: empty.append(tensors) or tensors,
        callback_on_step_end_tensor_inputs=[],
    )
    assert empty == [{}, {}]


@every_space
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_without_nan(make_pipe, sar, space, dtype):
    pipe = make_pipe(space)
    expected = translate(pipe, sar)
    pipe.to(dtype)
    assert {module.dtype for module in (pipe.unet, pipe.vae) if module is not None} == {dtype}
    output = translate(pipe, sar)
    assert np.isfinite(output.images).all() and np.isfinite(output.variance).all()
    assert output.latents.dtype == torch.float32
    assert np.abs(output.images - expected.images).mean() < 0.05


def test_sar_keeps_its_precision_until_the_autoencoder(make_pipe, sar):
    """A half-precision UNet beside a float32 autoencoder: encoding is not rounded first."""
    pipe = make_pipe("tiny")
    expected = pipe.encode(pipe.prepare_sar(sar))
    pipe.unet.to(torch.bfloat16)
    assert torch.equal(pipe.encode(pipe.prepare_sar(sar)), expected)


@every_space
def test_to_device_and_dtype(make_pipe, sar, space):
    pipe = make_pipe(space)
    expected = translate(pipe, sar)
    assert pipe.to("cpu", torch.float64) is pipe and pipe.dtype == torch.float64
    assert pipe.device == torch.device("cpu")
    assert same(translate(pipe, sar), expected, tolerance=1e-4)


@every_space
def test_components_rebuild_the_pipeline(make_pipe, sar, space):
    pipe = make_pipe(space)
    rebuilt = CDiffSETPipeline(**pipe.components, default_num_inference_steps=2)
    assert same(translate(rebuilt, sar), translate(pipe, sar), tolerance=0)


def test_from_pipe_keeps_the_settings(make_pipe):
    transform = {"units": "db", "range": [-25, 0], "channels": [0, 0, 0]}
    pipe = make_pipe("kl", sar_transform=transform, confidence_timestep=300)
    other = CDiffSETPipeline.from_pipe(pipe)
    for key in ("sar_transform", "confidence_timestep", "default_num_inference_steps", "prompt_embeds"):
        assert other.config[key] == pipe.config[key]


def test_a_compiled_unet_is_recognised(make_pipe, sar):
    pipe = make_pipe("kl")
    expected = translate(pipe, sar)
    pipe.unet, pipe.vae = (torch.compile(module, backend="eager") for module in (pipe.unet, pipe.vae))
    assert same(translate(pipe, sar), expected, tolerance=1e-4)


@pytest.mark.parametrize(("shift", "expected"), [(None, 0.0), (0.0, 0.0), (0.25, 0.25)])
def test_encode_and_decode_scale_as_the_autoencoder_says(make_pipe, shift, expected):
    pipe = make_pipe("kl")
    pipe.vae.register_to_config(shift_factor=shift, scaling_factor=0.5)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(images).latent_dist.mean
        torch.testing.assert_close(pipe.encode(images), (mean - expected) * 0.5)
        torch.testing.assert_close(pipe.decode(pipe.encode(images)), pipe.vae.decode(mean).sample.clamp(-1, 1))


def test_pixel_space_has_no_encoding(make_pipe):
    pipe, images = make_pipe("pixel"), torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(pipe.encode(images), images) and torch.equal(pipe.decode(images), images)


@every_space
def test_without_a_variance_channel_there_is_no_confidence(make_pipe, sar, space):
    pipe = make_pipe(space)
    full = translate(pipe, sar)
    unet = copy.deepcopy(pipe.unet)
    unet.conv_out.weight, unet.conv_out.bias = (
        torch.nn.Parameter(parameter[:-1]) for parameter in (unet.conv_out.weight, unet.conv_out.bias)
    )
    unet.register_to_config(out_channels=pipe.eo_channels)
    pipe.unet = unet
    output = translate(pipe, sar)
    assert output.confidence is None and output.variance is None
    np.testing.assert_allclose(output.images, full.images, rtol=0, atol=1e-5)


def test_the_prompt_is_embedded_without_padding(make_pipe):
    pipe = make_pipe("kl")
    tokens = pipe.tokenizer("electro-optical image").input_ids
    assert tokens[0] == pipe.tokenizer.bos_token_id and tokens[-1] == pipe.tokenizer.eos_token_id
    with torch.no_grad():
        expected = pipe.text_encoder(torch.tensor([tokens])).last_hidden_state
    assert torch.equal(decode_prompt_embeds(pipe.config.prompt_embeds), expected)
    assert pipe.config.prompt_embeds == encode_prompt_embeds(pipe.text_encoder, pipe.tokenizer)
    assert torch.equal(pipe.prompt_kwargs(2)["encoder_hidden_states"], expected.expand(2, -1, -1))


# what is refused


def refused(pipe: CDiffSETPipeline, message: str, sar=None, **options) -> None:
    image = np.zeros((16, 16), dtype=np.uint8) if sar is None else sar
    with pytest.raises(ValueError, match=message):
        pipe(image, **options)


def test_another_scheduler_class_is_refused(make_pipe):
    pipe = make_pipe("tiny")
    pipe.scheduler = EulerDiscreteScheduler()
    refused(pipe, "scheduler EulerDiscreteScheduler: use DDIMScheduler, DDPMScheduler or LCMScheduler")


def test_another_prediction_type_is_refused(make_pipe):
    pipe = make_pipe("tiny")
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    refused(pipe, "the scheduler's prediction_type is epsilon, but this model was trained for v_prediction")


@pytest.mark.parametrize("space", ["kl", "tiny"])
def test_clipped_latents_are_refused(make_pipe, space):
    pipe = make_pipe(space)
    pipe.scheduler = DDIMScheduler(prediction_type="v_prediction")
    refused(pipe, "the scheduler has clip_sample=True, which cuts off latents: set it to False")


def test_pure_noise_and_epsilon_are_refused(make_pipe):
    pipe = make_pipe("pixel", scheduler=DDIMScheduler(rescale_betas_zero_snr=True))
    refused(pipe, "rescale_betas_zero_snr=True: no image follows from epsilon at pure noise")
    pipe = make_pipe("pixel", scheduler=DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    assert np.isfinite(translate(pipe, np.zeros((16, 16), dtype=np.uint8)).images).all()


def test_components_that_do_not_fit_are_refused(make_pipe):
    refused(
        make_pipe("pixel", unet=small_unet(1, 3, [8, 16])), r"the UNet reads 4 channels, expected 6 \(3 of the input\)"
    )
    refused(make_pipe("kl", vae=None), "the UNet reads 8 channels, expected 6")
    refused(
        make_pipe("tiny", sar_transform={"units": "display", "channels": [0]}), "1 entries, but the autoencoder reads 3"
    )
    pipe = make_pipe("pixel")
    pipe.unet.register_to_config(out_channels=6)
    refused(pipe, "the UNet writes 6 channels, expected 3, or 4 with a variance")


def test_bad_arguments_are_refused(make_pipe, sar):
    pipe = make_pipe("pixel")
    refused(pipe, "num_inference_steps is 0, expected at least 1", num_inference_steps=0)
    refused(pipe, "output_type is 'numpy', expected 'pil', 'np', 'pt' or 'latent'", output_type="numpy")
    refused(pipe, r"callback tensors \['image'\]", callback_on_step_end_tensor_inputs=["image"])
    refused(pipe, "2 generators for 1 images", generator=[seeded(), seeded()])
    refused(pipe, r"latents of shape \(1, 3, 8, 8\), expected \(1, 3, 16, 16\)", latents=torch.zeros(1, 3, 8, 8))
    refused(pipe, "one batch have sizes", sar=[sar, sar[:8]])
    refused(pipe, "one batch have sizes", sar=[])


def test_bad_images_are_refused(make_pipe, sar):
    pipe = make_pipe("pixel")
    refused(pipe, "2 bands, but this model reads 1", sar=np.stack([sar, sar], axis=-1))
    refused(pipe, "NaN or infinite", sar=np.full((16, 16), np.nan))
    refused(pipe, r"input pixels from -12 to -12 \(1 is full scale\)", sar=np.full((16, 16), -12.0))
    refused(make_pipe("pixel", sar_transform={"units": "db"}), "integer SAR pixels", sar=sar)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({}, r"sar_transform\['units'\] is None"),
        ({"units": "dB"}, r"sar_transform\['units'\] is 'dB'"),
        ({"units": "db", "range": [0, -30]}, r"sar_transform\['range'\]"),
        ({"units": "db", "channels": ["vv"]}, r"sar_transform\['channels'\]"),
    ],
)
def test_a_malformed_transform_is_refused_at_construction(make_pipe, transform, message):
    with pytest.raises(ValueError, match=message):
        make_pipe("pixel", sar_transform=transform)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"shape": [1, 1, 8]},
        {"shape": [1, 1, 8], "float32": "?"},
        {"shape": [1, 2, 8], "float32": "AAAAAA=="},
        {"shape": [1], "float32": "AAAAAA=="},
        {"shape": [1, 1, 1], "float32": "AADAfw=="},  # NaN
        "AAAAAA==",
    ],
)
def test_malformed_prompt_embeds_are_refused_at_construction(make_pipe, stored):
    with pytest.raises(ValueError, match="prompt_embeds"):
        make_pipe("kl", prompt_embeds=stored)


def test_prompt_embeds_are_needed_and_have_to_fit(make_pipe):
    refused(make_pipe("kl", text_encoder=None), "holds neither `prompt_embeds` nor `text_encoder` and `tokenizer`")
    narrow = {"shape": [1, 1, 1], "float32": "AAAAAA=="}
    refused(make_pipe("kl", prompt_embeds=narrow), "prompt_embeds has 1 channels, but this UNet reads 8")
