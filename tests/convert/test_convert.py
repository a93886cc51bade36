"""Released weights as models of this project: each gives what the original network and its sampler give."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, PNDMScheduler, UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file

from c_diffset.cli import main
from c_diffset.convert import adm as converter
from c_diffset.convert.record import read_conversion
from c_diffset.convert.systems import Published, empty_student
from c_diffset.convert.weights import check_names, shapes_of
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import FinetuneConfig, ModelConfig
from c_diffset.training.finetune import finetune
from tests.conftest import save_stable_diffusion, tiny_conditional_unet
from tests.convert.originals import Adm, AdmUNet, ancestral, consistency, deterministic, shaken
from tests.helpers import short_run
from tests.hub.markdown import shown_text

SIZE = 8


def acd(*widths: int) -> dict:
    """As published, but for the widths: attention at the last level but one."""
    plain = len(widths) - 2
    return {
        "in_channels": 4,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": widths,
        "down_block_types": ("DownBlock2D",) * plain + ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * plain,
    }


ACD = acd(128, 128, 256, 256, 512, 512)
STABLE_DIFFUSION = {  # 2.1
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}


def display(size: int = SIZE) -> torch.Tensor:
    """SAR images of display values, B x 1 x H x W in [0, 1]."""
    return torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(1))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def convert(kind: str, source: Path, *options) -> CDiffSETPipeline:
    """The model that the command makes of a file, in a folder beside it."""
    out = source.with_name("model")
    assert main(["convert", kind, str(source), str(out), *map(str, options)]) == 0
    pipe = CDiffSETPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of what the values extend over, and no constant image."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * max(1, expected.abs().max()) < 0.1 * expected.std()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


ADM = {
    "published": Adm(),
    "new order": Adm(new_order=True),
    "ADM of OpenAI": Adm(updown=True, attention=(2,), heads=4),
    "time added": Adm(scale_shift=False, blocks=1, attention=(2,)),
    "no attention but in the middle": Adm(attention=(), reads=4),
}


@pytest.mark.parametrize("adm", ADM.values(), ids=list(ADM))
def test_conditional_diffusion(adm, tmp_path):
    original = shaken(AdmUNet(adm))
    torch.save(original.state_dict(), tmp_path / "ema_0.9999_050000.pt")
    heads = ["--channels_per_head", 64 // adm.heads, "--new_attention_order", str(adm.new_order).lower()]
    pipe = convert("guided-diffusion", tmp_path / "ema_0.9999_050000.pt", "--size", SIZE, *heads)
    assert pipe.config.default_num_inference_steps == 250 and pipe.trained_size == SIZE
    assert pipe.config.confidence_timestep == 1000 and not pipe.predicts_variance

    sar, noisy, times = (display() * 2 - 1).expand(-1, adm.reads - 3, -1, -1), random(2, 3, SIZE, SIZE), [3, 1711]
    with torch.no_grad():
        expected = original(torch.cat([noisy, sar], dim=1), torch.tensor(times))
        assert_same(pipe.unet(torch.cat([sar, noisy], dim=1), torch.tensor(times)).sample, expected)
    expected = ancestral(original, sar, 20, generator())
    assert (expected.abs() < 0.9).float().mean() > 0.5, "most pixels are clipped, which hides differences"
    assert_same(pipe(display(), 20, generator(), output_type="latent").images, expected)


def test_an_adversarial_consistency_student(tmp_path):
    original = shaken(UNet2DModel(**acd(32, 64, 64)))
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    pipe = convert("acd", tmp_path / "model.safetensors", "--size", 16)
    assert pipe.config.default_num_inference_steps == 8

    sar, noisy = display(16) * 2 - 1, random(2, 3, 16, 16)
    with torch.no_grad():
        expected = original(torch.cat([noisy, sar], dim=1), 999).sample
        assert_same(pipe.unet(torch.cat([sar, noisy], dim=1), 999).sample, expected)
    expected = consistency(original, sar, 20, generator())
    assert_same(pipe(display(16), 20, generator(), output_type="latent").images, expected)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """Stable Diffusion at tiny size, with the scheduler that it is published with."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return save_stable_diffusion(tmp_path_factory.mktemp("base"), PNDMScheduler(steps_offset=1, **betas))


@pytest.mark.parametrize("writes", [4, 5], ids=["stage 1", "stage 2"])
@pytest.mark.parametrize("form", ["file", "folder"])
def test_c_diffset(writes, form, base, tmp_path):
    original = shaken(tiny_conditional_unet(8, writes))
    if form == "file":
        source = tmp_path / "model.safetensors"
        save_file({f"module.{name}": weight for name, weight in original.state_dict().items()}, source)
    else:
        source = tmp_path / "cell"
        original.save_pretrained(source)
    pipe = convert("c-diffset", source, "--base", base, "--size", SIZE)
    assert pipe.predicts_variance == (writes == 5) and pipe.trained_size == SIZE
    assert pipe.config.default_num_inference_steps == 50

    images = (display() * 2 - 1).expand(-1, 3, -1, -1)
    with torch.no_grad():
        sar = pipe.vae.encode(images).latent_dist.mean * pipe.vae.config.scaling_factor
    prompt = pipe.prompt_kwargs(2)["encoder_hidden_states"]
    expected = deterministic(original, sar, prompt, 20, generator())
    assert_same(pipe(display(), 20, generator(), output_type="latent").images, expected)


def test_a_folder_says_what_names_and_shapes_do_not(tmp_path):
    """The form in which diffusers saves a UNet, its class that of the authors."""
    original = shaken(UNet2DModel(**acd(16, 32, 32), norm_num_groups=8, attention_head_dim=16))
    original.save_pretrained(tmp_path / "checkpoint_ema-5000")
    settings = json.loads((path := tmp_path / "checkpoint_ema-5000/config.json").read_text())
    path.write_text(json.dumps(settings | {"_class_name": "SAR2OptUNetv3"}))
    pipe = convert("acd", tmp_path / "checkpoint_ema-5000", "--size", 16)
    sar, noisy = random(2, 1, 16, 16), random(2, 3, 16, 16)
    with torch.no_grad():
        expected = original(torch.cat([noisy, sar], dim=1), 500).sample
        assert_same(pipe.unet(torch.cat([sar, noisy], dim=1), 500).sample, expected)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """The folder of a tiny model of conditional diffusion."""
    folder = tmp_path_factory.mktemp("cd")
    torch.save(shaken(AdmUNet(Adm((32, 64), blocks=1, attention=(1,)))).state_dict(), folder / "ema.pt")
    convert("guided-diffusion", folder / "ema.pt", "--size", 16, "--channels_per_head", 32)
    return folder / "model"


def test_a_model_says_what_it_was_converted_from(converted, tmp_path, capsys):
    assert main(["info", str(converted)]) == 0
    assert "converted from ema.pt, weights of conditional diffusion in pixel space" in capsys.readouterr().out
    publish = ["publish", str(converted), "--repo", "me/cd", "--license", "other", "--dry_run", str(tmp_path / "out")]
    assert main(publish) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "converted from ema.pt" in shown_text(card) and "bai2024conditional" in card
    assert read_conversion(tmp_path / "out") == read_conversion(converted) is not None
    for wrong in ({"kind": "acd"}, {"kind": "x", "source": "s", "size": 1, "sha256": "0" * 64}):
        (tmp_path / "out/conversion.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="conversion.json is not what a conversion writes"):
            read_conversion(tmp_path / "out")


def test_a_converted_model_gains_a_confidence(converted, tmp_path):
    write_pairs(tmp_path / "pairs", 2, size=32)
    model = ModelConfig(base=str(converted))
    run = short_run(FinetuneConfig, tmp_path / "run", tmp_path / "pairs", model=model, stage="confidence")
    pipe = CDiffSETPipeline.from_pretrained(finetune(run))
    assert pipe.predicts_variance and isinstance(pipe.scheduler, DDPMScheduler) and len(pipe.scheduler.betas) == 2000


@pytest.mark.parametrize("source", ["ema.pt", "cell"])
def test_weights_in_place_of_a_model_point_here(source, converted, tmp_path, capsys):
    place = converted.with_name("ema.pt")
    if source == "cell":
        place = tmp_path / "cell"
        shutil.copytree(converted / "unet", place)
    assert main(["info", str(place)]) == 2
    assert "`c-diffset convert` makes a model" in capsys.readouterr().err


def test_published_widths_map_without_remainder(tmp_path):
    """By names and shapes alone; the numbers of weights are those that the authors and the model zoo state."""
    with torch.device("meta"):
        pixels = AdmUNet(Adm((128, 128, 256, 256, 512, 512), blocks=3, attention=(4, 5), heads=4))
        student = UNet2DModel(**ACD)
        latent = UNet2DConditionModel(sample_size=64, in_channels=8, out_channels=5, **STABLE_DIFFUSION)
    assert round(pixels_count := sum(weight.numel() for weight in pixels.parameters()), -5) == 164_300_000
    found = shapes_of(pixels.state_dict())
    unet = converter.empty_unet(found, 128, 256)
    check_names(found, converter.original_shapes(unet), tmp_path, "ADM")
    assert sum(weight.numel() for weight in unet.parameters()) == pixels_count
    assert unet.config.down_block_types == ("DownBlock2D",) * 4 + ("AttnDownBlock2D",) * 2

    found = shapes_of(student.state_dict())
    unet = empty_student(found, tmp_path / "model.safetensors", Published("base"))
    check_names(found, shapes_of(unet.state_dict()), tmp_path, "ACD")
    assert {key: unet.config[key] for key in ACD} == ACD

    assert len(latent.state_dict()) == 686 and sum(weight.numel() for weight in latent.parameters()) == 865_925_125
