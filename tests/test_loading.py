"""A pipeline with another autoencoder than its own."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from c_diffset.loading import load_autoencoder, load_pipeline, replace_autoencoder
from tests.conftest import tiny_taesd, tiny_vae


@pytest.fixture
def model(make_pipe, tmp_path) -> Path:
    """A saved pipeline in the latent space of an `AutoencoderKL`: 4 channels, half the size."""
    make_pipe("kl").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def taesd(tmp_path) -> Path:
    """A saved tiny autoencoder of the same latent space."""
    torch.manual_seed(1)
    tiny_taesd().save_pretrained(tmp_path / "taesd")
    return tmp_path / "taesd"


def test_the_autoencoder_is_replaced_and_follows_the_precision(model, taesd, monkeypatch):
    monkeypatch.setattr("c_diffset.precision.crawls", lambda *args: False)  # on whatever machine
    pipe = load_pipeline(model, dtype="bfloat16", vae=taesd)
    assert isinstance(pipe.vae, AutoencoderTiny) and pipe.vae.dtype == torch.bfloat16
    assert pipe.components["vae"] is pipe.vae
    expected = AutoencoderTiny.from_pretrained(taesd).decoder.layers[0].weight.bfloat16()
    assert torch.equal(pipe.vae.decoder.layers[0].weight, expected)


def test_a_short_name_stands_for_a_hub_id(make_pipe, taesd, tmp_path, monkeypatch):
    (tmp_path / "madebyollin").mkdir()
    taesd.rename(tmp_path / "madebyollin/taesd")
    monkeypatch.chdir(tmp_path)  # diffusers takes a folder of the id's name before it asks the Hub
    pipe = make_pipe("kl")
    replace_autoencoder(pipe, "taesd")
    assert isinstance(pipe.vae, AutoencoderTiny)


def test_a_model_in_pixel_space_has_no_autoencoder_to_replace(make_pipe, taesd, tmp_path):
    make_pipe("pixel").save_pretrained(tmp_path / "pixel")
    with pytest.raises(ValueError, match="autoencoder .*taesd: this model is in pixel space"):
        load_pipeline(tmp_path / "pixel", vae=taesd)


def test_latents_of_another_shape_are_refused(make_pipe, tmp_path):
    pipe = make_pipe("kl")
    own = pipe.vae
    tiny_vae(latent_channels=8).save_pretrained(tmp_path / "channels")
    with pytest.raises(ValueError, match="channels has 8 latent channels, expected 4: choose"):
        replace_autoencoder(pipe, tmp_path / "channels")
    three = dict(encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3)
    AutoencoderTiny(**three, num_encoder_blocks=(1,) * 3, num_decoder_blocks=(1,) * 3).save_pretrained(
        tmp_path / "size"
    )
    with pytest.raises(ValueError, match="size has 4 pixels per latent along each axis, expected 2: choose"):
        replace_autoencoder(pipe, tmp_path / "size")
    assert pipe.vae is own


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_weights_are_refused_and_never_loaded(model, taesd, tmp_path):
    (taesd / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"state": Canary(tmp_path / "ran")}, taesd / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"taesd/diffusion_pytorch_model\.bin is a pickle.*weights_only=True"):
        load_pipeline(model, vae=taesd)
    assert not (tmp_path / "ran").exists()


def test_an_autoencoder_inside_a_pipeline_and_a_model_that_is_none(model):
    vae = load_autoencoder(model, subfolder="vae")
    assert vae.config.latent_channels == 4
    with pytest.raises(ValueError, match="is a UNet2DConditionModel: expected one of"):
        load_autoencoder(model / "unet")
