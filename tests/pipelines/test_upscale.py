"""Super-resolution: a pipeline that enlarges its input, and one that diffuses the difference to it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from c_diffset.models.unet import small_unet
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

RGB = {"units": "display", "range": [0.0, 1.0], "channels": [0, 1, 2]}
every_space = pytest.mark.parametrize("space", ["kl", "tiny", "pixel"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def low() -> np.ndarray:
    """An EO image of low resolution, uint8, 8 x 6 x 3."""
    return np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


@every_space
@pytest.mark.parametrize("upscale", [2, 3])
def test_outputs_have_the_finer_grid(make_pipe, low, space, upscale):
    pipe = make_pipe(space, sar_transform=RGB, upscale=upscale)
    output = pipe([low, low], generator=seeded(), output_type="np")
    sides = (8 * upscale, 6 * upscale)
    padded = [-(-side // pipe.size_multiple) * pipe.size_multiple // pipe.vae_scale_factor for side in sides]
    assert output.images.shape == (2, *sides, 3) and output.confidence.shape == (2, *sides)
    assert output.latents.shape == (2, pipe.eo_channels, *padded) and output.variance.shape == (2, *padded)


@every_space
def test_it_is_the_model_of_the_enlarged_image(make_pipe, low, space):
    pipe, plain = (make_pipe(space, sar_transform=RGB, upscale=upscale) for upscale in (4, 1))
    tensor = torch.from_numpy(low / 255).permute(2, 0, 1).float()
    large = F.interpolate(tensor[None] * 2 - 1, size=(32, 24), mode="bicubic").clamp(-1, 1)
    torch.testing.assert_close(pipe.enlarge(pipe.prepare_sar(low)), large, rtol=0, atol=1e-6)
    images = [
        model(image, generator=seeded(), output_type="np")
        for model, image in ((pipe, low), (plain, (large[0] * 0.5 + 0.5).clamp(0, 1)))
    ]
    for key in ("images", "confidence", "latents"):
        np.testing.assert_allclose(images[0][key], images[1][key], rtol=0, atol=1e-4)
    assert plain.enlarge(large) is large


@every_space
def test_the_residual_is_added_to_the_input(make_pipe, low, space):
    """The loop of a model of the residual is that of any other; what it ends in is added to the input's latents."""
    pipe, plain = (make_pipe(space, sar_transform=RGB, residual=residual, upscale=2) for residual in (True, False))
    condition = pipe.encode(pipe.pad(pipe.enlarge(pipe.prepare_sar(low))))
    seen = []
    options = {"output_type": "pt", "callback_on_step_end": lambda pipe, i, t, tensors: seen.append(tensors["latents"])}
    outputs = [model(low, generator=seeded(), **options) for model in (pipe, plain)]
    assert torch.equal(outputs[0].latents, outputs[1].latents + condition)
    assert torch.equal(seen[1], outputs[1].latents) and torch.equal(seen[1], seen[3])
    expected = pipe.decode(outputs[0].latents)[..., :16, :12] * 0.5 + 0.5
    assert torch.equal(outputs[0].images, expected)


def test_both_settings_travel_with_the_model(make_pipe, low, tmp_path):
    pipe = make_pipe("tiny", sar_transform=RGB, upscale=3, residual=True)
    pipe.save_pretrained(tmp_path)
    loaded = CDiffSETPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert (loaded.config.upscale, loaded.config.residual) == (3, True)
    images = [model(low, generator=seeded(), output_type="np").images for model in (pipe, loaded)]
    assert np.array_equal(*images) and make_pipe("tiny").config.upscale == 1


@pytest.mark.parametrize("setting", [{"upscale": 0}, {"upscale": 17}, {"upscale": 2.0}, {"upscale": True}])
def test_an_upscale_beyond_reason_is_refused(make_pipe, setting):
    with pytest.raises(ValueError, match="upscale is .*: expected a whole number, 1 to 16"):
        make_pipe("pixel", **setting)


def test_a_residual_that_cannot_be_is_refused(make_pipe, low):
    with pytest.raises(ValueError, match="residual is 1: expected true or false"):
        make_pipe("pixel", residual=1)
    grey = {"units": "display", "channels": [0]}
    unet = small_unet(1, 3, [8, 32], layers_per_block=1)
    with pytest.raises(ValueError, match="residual is True, but the input has 1 channels and the EO image 3"):
        make_pipe("pixel", unet=unet, sar_transform=grey, residual=True)(low[..., 0])
    pipe = make_pipe("pixel", sar_transform=RGB, residual=True)
    pipe.scheduler.register_to_config(clip_sample=True)
    with pytest.raises(ValueError, match="clip_sample=True, which cuts off residuals: set it to False"):
        pipe(low)
