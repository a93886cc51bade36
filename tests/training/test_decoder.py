"""Fine-tuning a tiny decoder on EO images: what it learns from, what it leaves alone, and how its result is used."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import lpips
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from c_diffset.data.pairs import load_pairs, read_pair
from c_diffset.loading import load_pipeline
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, DecoderConfig, OptimizerConfig, ValidationConfig
from c_diffset.training.decoder import DecoderTask, EOCrops, finetune_decoder
from c_diffset.training.loop import make_accelerator
from tests.conftest import tiny_taesd, tiny_vae
from tests.helpers import fresh_accelerate, log_lines

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Pairs with SAR in dB, a tiny autoencoder, and LPIPS weights."""
    folder = tmp_path_factory.mktemp("files")
    for split, count in (("train", 4), ("validation", 2)):
        write_pairs(folder / "pairs", count, size=40, split=split, sar_format="tif")
    torch.manual_seed(0)
    tiny_taesd().save_pretrained(folder / "taesd")
    torch.save(lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).state_dict(), folder / "lpips.pt")
    return folder


def settings(files: Path, output: Path, **changes) -> DecoderConfig:
    """Four updates without validation."""
    config = DecoderConfig(
        output_dir=str(output),
        base=str(files / "taesd"),
        lpips_weights=str(files / "lpips.pt"),
        data=DataConfig(source=str(files / "pairs"), crop_size=32, validation_split=None),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
        max_steps=4,
        batch_size=2,
        ema_decay=0.9,
        log_every=1,
    )
    return replace(config, **changes)


def test_the_loss_falls_the_encoder_stays_and_the_result_serves_a_model(files, tmp_path, make_pipe):
    config = settings(files, tmp_path / "run", max_steps=20)
    config.data.validation_split = "validation"
    config.validation = ValidationConfig(num_images=2, crop_size=33, every=0)
    folder = finetune_decoder(config)

    lines = log_lines(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    validation = {name.removeprefix("validation/"): value for name, value in lines[-1].items()}
    assert validation["psnr"] > validation["generic_psnr"] + 1
    assert {"ssim", "lpips", "generic_ssim", "generic_lpips"} <= set(validation)
    assert (tmp_path / "run/samples/step_00000020.png").exists() and (tmp_path / "run/best").is_dir()

    before, after = load_file(files / "taesd" / WEIGHTS), load_file(folder / WEIGHTS)
    assert set(before) == set(after)
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name

    pipe = make_pipe("tiny")
    pipe.save_pretrained(tmp_path / "model")
    vae = load_pipeline(tmp_path / "model", vae=folder).vae
    assert all(torch.equal(value, after[name]) for name, value in vae.state_dict().items())


def test_a_stopped_run_goes_on_exactly(files, tmp_path):
    config = settings(files, tmp_path / "run", checkpoint_every=2, gradient_accumulation_steps=2)
    weights = finetune_decoder(config) / WEIGHTS
    lines, whole = log_lines(tmp_path / "run"), load_file(weights)
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000004")
    weights.unlink()
    fresh_accelerate()
    finetune_decoder(config)
    assert log_lines(tmp_path / "run") == lines and len(lines) == 4
    assert all(torch.equal(value, whole[name]) for name, value in load_file(weights).items())


def prepared(config: DecoderConfig):
    accelerator = make_accelerator(config)
    task = DecoderTask(config)
    task.prepare(accelerator)
    return task, accelerator


def test_the_decoder_reads_the_scaled_latents_of_another_encoder(files, tmp_path):
    """Latents are those of the pipeline: mean times scaling; the decoder's own scaling and shift are undone."""
    torch.manual_seed(1)
    other = tiny_vae(scaling_factor=0.2, shift_factor=0.3)
    other.save_pretrained(tmp_path / "kl")
    base = tiny_taesd()
    base.register_to_config(scaling_factor=2.0, shift_factor=0.1)
    base.save_pretrained(tmp_path / "scaled")
    config = settings(files, tmp_path / "run", base=str(tmp_path / "scaled"), encoder=str(tmp_path / "kl"))
    task, accelerator = prepared(config)
    read = []
    task.model.decoder.layers.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    batch = next(iter(task.loader(accelerator, 0)))
    task.train_batch(accelerator, batch, 0)
    with torch.no_grad():
        latents = (other.double().encode(batch["eo"].double()).latent_dist.mean - 0.3) * 0.2
    torch.testing.assert_close(read[0].double(), 3 * torch.tanh((latents / 2 + 0.1) / 3), rtol=1e-4, atol=1e-4)


def test_the_loss_in_closed_form_and_masked_pixels_have_no_part(files, tmp_path):
    task, _ = prepared(settings(files, tmp_path / "run", lpips_weight=0.7))
    decoded, eo = torch.rand(2, 2, 3, 32, 32).mul(2).sub(1).unbind()
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, 0, 3:9, 5:30] = 1
    decoded.requires_grad_(True)
    loss, logs = task.distance(decoded, eo, mask)

    valid = (decoded - eo).detach().double()[0, :, 3:9, 5:30]
    network = copy.deepcopy(task.lpips).double()
    distance = network((decoded * mask).double(), (eo * mask).double()).mean()
    assert loss.item() == pytest.approx(valid.abs().mean().item() + 0.7 * distance.item(), rel=1e-4)
    assert set(logs) == {"loss", "l1", "lpips"}
    (gradient,) = torch.autograd.grad(loss, decoded)
    assert (gradient * (1 - mask)).abs().max() == 0 and (gradient[0] * mask[0]).abs().max() > 0

    loss, logs = task.distance(decoded, eo, None)
    assert logs["l1"].item() == pytest.approx((decoded - eo).abs().double().mean().item(), rel=1e-5)


def test_without_lpips_no_weights_are_needed(files, tmp_path):
    task, accelerator = prepared(settings(files, tmp_path / "run", lpips_weight=0.0, lpips_weights="absent.pt"))
    logs = task.train_batch(accelerator, next(iter(task.loader(accelerator, 0))), 0)
    assert set(logs) == {"loss", "l1", "grad_norm"} and logs["loss"] == logs["l1"]


def test_a_sample_is_a_window_of_the_eo_image(files, tmp_path):
    rows = load_pairs(files / "pairs", "train")
    eo = read_pair(rows[1]).eo
    windows = {eo[top : top + 32, left : left + 32].tobytes() for top in range(9) for left in range(9)}
    crops, turned = (EOCrops(rows, EO_DISPLAY, 32, augment=augment) for augment in (False, True))
    for number in range(4):
        levels = ((crops[1, number]["eo"] + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous()
        assert levels.numpy().tobytes() in windows
        assert torch.equal(crops[1, number]["eo"], crops[1, number]["eo"])
        symmetries = [torch.rot90(image, k, (1, 2)) for image in (crops[1, number]["eo"],) for k in range(4)]
        symmetries += [image.flip(2) for image in symmetries]
        assert any(torch.equal(turned[1, number]["eo"], image) for image in symmetries)
    assert not torch.equal(crops[1, 0]["eo"], crops[1, 1]["eo"])
    with pytest.raises(ValueError, match="train-0001 is 40 x 40, smaller than crop_size 48"):
        EOCrops(rows, EO_DISPLAY, 48)[1, 0]


def test_the_mask_follows_its_image(files, tmp_path):
    """A mask that is set where red is bright is so after cropping, flips and turns, and reaches the loss."""
    folder = shutil.copytree(files / "pairs/train", tmp_path / "pairs/train")
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for line in lines:
        red = np.asarray(PIL.Image.open(folder / line["eo_file_name"]))[..., 0]
        PIL.Image.fromarray(np.uint8(red > np.median(red))).save(folder / f"{line['id']}_mask.png")
        line |= {"mask_file_name": f"{line['id']}_mask.png", "threshold": float(np.median(red))}
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    crops = EOCrops(load_pairs(tmp_path / "pairs", "train"), EO_DISPLAY, 24)
    for number in range(6):
        sample = crops[0, number]
        bright = (sample["eo"][:1] + 1) * 127.5 > lines[0]["threshold"] + 0.5
        assert torch.equal(sample["mask"], bright.float()) and 0 < sample["mask"].mean() < 1

    data = DataConfig(source=str(tmp_path / "pairs"), crop_size=24, validation_split=None)
    task, accelerator = prepared(settings(files, tmp_path / "run", data=data, gradient_checkpointing=True))
    batch = next(iter(task.loader(accelerator, 0)))
    logs = task.train_batch(accelerator, batch, 0)
    generic = AutoencoderTiny.from_pretrained(files / "taesd")
    with torch.no_grad():
        error = (generic.decode(generic.encode(batch["eo"]).latents).sample - batch["eo"]).abs()
    expected = error.double()[batch["mask"].expand_as(error) > 0].mean().item()
    assert logs["l1"].item() == pytest.approx(expected, rel=1e-4)


def test_autoencoders_that_do_not_fit_are_refused(files, tmp_path):
    tiny_vae(latent_channels=8).save_pretrained(tmp_path / "kl")
    with pytest.raises(ValueError, match="kl is a AutoencoderKL: expected an AutoencoderTiny"):
        DecoderTask(settings(files, tmp_path / "run", base=str(tmp_path / "kl")))
    with pytest.raises(ValueError, match="taesd has 4 latent channels, expected 8"):
        DecoderTask(settings(files, tmp_path / "run", encoder=str(tmp_path / "kl")))


def test_a_folder_of_eo_images_is_enough(files, tmp_path):
    """They train the same decoder as the pairs that they are from."""
    shutil.copytree(files / "pairs/train/eo", tmp_path / "images")
    finetune_decoder(settings(files, tmp_path / "of_pairs"))
    fresh_accelerate()
    config = settings(files, tmp_path / "of_images")
    finetune_decoder(replace(config, data=replace(config.data, source=str(tmp_path / "images"))))
    assert log_lines(tmp_path / "of_images") == log_lines(tmp_path / "of_pairs") != []
