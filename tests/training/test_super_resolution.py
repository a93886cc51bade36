"""Super-resolution, trained on EO images alone: teacher, student, their data and their refusals, at tiny size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from c_diffset.data import teacher_results
from c_diffset.data.pairs import load_pairs, read_pair
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig, SmallUNetConfig, ValidationConfig
from c_diffset.training.distill import distill
from c_diffset.training.distill_config import DistillConfig, TimeAwareConfig
from c_diffset.training.finetune import Finetune, build_pipeline, finetune
from c_diffset.training.loop import make_accelerator
from c_diffset.training.summary import summary
from tests.conftest import tiny_taesd
from tests.helpers import losses, short_run, write_reflectance

DISPLAY = {"units": "display", "range": [0.0, 1.0], "channels": [0, 1, 2]}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(teacher_results, "CHUNK", 4)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of EO images in two splits."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 5), ("validation", 2)):
        write_pairs(folder / "pairs", count, size=32, split=split)
        (folder / "pairs" / split / "eo").rename(folder / split)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("vae")
    tiny_taesd().save_pretrained(folder)
    return str(folder)


def settings(source: Path, output: Path, model: dict | None = None, data: dict | None = None, **changes):
    unet = SmallUNetConfig(block_out_channels=[8, 32], layers_per_block=1)
    options = {"prediction_type": "v_prediction", "zero_terminal_snr": True, "default_num_inference_steps": 2}
    options |= {"upscale": 2, "sar_transform": DISPLAY}
    data = {"crop_size": 16, "validation_split": None, "degradation": "real_esrgan"} | (data or {})
    changes = {"stage": "denoising", "data": DataConfig(source=str(source), **data)} | changes
    return short_run(FinetuneConfig, output, source, model=ModelConfig(unet=unet, **options | (model or {})), **changes)


def task_of(config: FinetuneConfig):
    """The task of a training, and its accelerator."""
    accelerator = make_accelerator(config)
    task = Finetune(config, build_pipeline(config.model))
    task.prepare(accelerator)
    return task, accelerator


def test_teacher_and_student_of_eo_images_alone(images, vae, tmp_path):
    """In latent space, on the residual: both enlarge, and the student goes the way of any student."""
    data = {"validation_split": "validation", "latent_cache": str(tmp_path / "latents"), "latent_crops": 6}
    options = {"validation": ValidationConfig(num_images=4, crop_size=16, every=4)}
    config = settings(images, tmp_path / "teacher", {"vae": vae, "residual": True}, data, **options)
    said = summary(finetune(config), config)
    assert f"degrade {images} PAIRS --upscale 2" in said and f"--data.source {images} --data.degradation" in said
    assert "evaluate --model" in said and f"--data {images}" not in said
    teacher = CDiffSETPipeline.from_pretrained(tmp_path / "teacher/pipeline")
    assert teacher.config.upscale == 2 and teacher.config.residual
    assert teacher(np.zeros((12, 20, 3), np.uint8), output_type="np").images.shape == (1, 24, 40, 3)
    assert (tmp_path / "teacher/preview.png").is_file() and (tmp_path / "teacher/samples").is_dir()
    config = short_run(
        DistillConfig,
        tmp_path / "student",
        images,
        teacher=str(tmp_path / "teacher/pipeline"),
        method="time_aware",
        time_aware=TimeAwareConfig(results=str(tmp_path / "results"), num_results=4, teacher_steps=2),
        data=replace(settings(images, tmp_path, {"vae": vae}, data).data, validation_split=None),
    )
    distill(config)
    student = CDiffSETPipeline.from_pretrained(tmp_path / "student/pipeline")
    assert student.config.upscale == 2 and student.config.default_num_inference_steps == 1
    assert len(list((tmp_path / "latents").glob("crops_*"))) == 1  # the student's crops are the teacher's


def test_every_sample_has_a_degradation_of_its_own_and_always_the_same(images, tmp_path):
    task, accelerator = task_of(settings(images, tmp_path, data={"augment": False}))
    samples = task.samples(accelerator)
    first, again, other = samples[0, 7], samples[0, 7], samples[0, 8]
    assert torch.equal(first["sar"], again["sar"]) and first["sar"].shape == first["eo"].shape == (3, 16, 16)
    assert not torch.equal(first["sar"], other["sar"])
    blurred, eo = (torch.nn.functional.avg_pool2d(first[key], 8).flatten() for key in ("sar", "eo"))
    assert torch.corrcoef(torch.stack([blurred, eo]))[0, 1] > 0.8


def test_crops_of_the_cache_are_those_that_are_encoded_anew(images, vae, tmp_path):
    cached = {"latent_cache": str(tmp_path / "latents"), "latent_crops": 5}
    task, accelerator = task_of(settings(images, tmp_path, {"vae": vae}, cached))
    crops = task.samples(accelerator)
    fresh, _ = task_of(settings(images, tmp_path, {"vae": vae}))
    samples = fresh.samples(accelerator)
    assert len(crops) == 5
    for number in range(5):
        row = teacher_results.shuffled_row(0, number, len(samples))
        expected = task.pipe.encode(torch.stack([samples[row, number][key] for key in ("sar", "eo")]))
        found = torch.stack([crops[number, 100 + number][key] for key in ("sar", "eo")])
        assert (found - expected).abs().max() < 2e-3  # they are kept in half precision
    assert not torch.equal(crops[0, 1]["noise"], crops[0, 2]["noise"])


def test_a_stopped_training_goes_on_with_the_same_losses(images, tmp_path):
    finetune(settings(images, tmp_path / "whole", checkpoint_every=2, max_steps=4))
    finetune(settings(images, tmp_path / "part", checkpoint_every=2, max_steps=4, log_every=1))
    for folder in (tmp_path / "part/checkpoints").glob("step_00000004"):
        for path in folder.glob("*"):
            path.unlink()
        folder.rmdir()
    finetune(settings(images, tmp_path / "part", checkpoint_every=2, max_steps=4))
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")


def test_validation_sees_the_same_degraded_images_every_time(images, tmp_path):
    config = settings(images, tmp_path, data={"validation_split": "validation"})
    config.validation = ValidationConfig(num_images=4, crop_size=16)
    first, second = (task_of(config)[0].validator.pairs for _ in range(2))
    assert len(first) == 4 and all(pair.upscale == 2 for pair in first)
    assert all(np.array_equal(one.sar, two.sar) for one, two in zip(first, second, strict=True))


def test_what_does_not_fit_is_refused(images, tmp_path):
    with pytest.raises(ValueError, match="data.degradation is bicubic, but the model's upscale is 1"):
        finetune(settings(images, tmp_path, {"upscale": 1}, {"degradation": "bicubic"}))
    with pytest.raises(ValueError, match="expected a multiple of the model's upscale 3"):
        finetune(settings(images, tmp_path, {"upscale": 3}))
    with pytest.raises(ValueError, match="makes display values of 3 bands, but the sar_transform has units db"):
        finetune(settings(images, tmp_path, {"sar_transform": {"units": "db", "channels": [0, 0, 0]}}))


def test_pairs_of_another_factor_are_refused(tmp_path):
    write_pairs(tmp_path, 2, size=32)
    with pytest.raises(ValueError, match="are 1 times those of the other one, but the model's upscale is 2"):
        finetune(settings(tmp_path, tmp_path / "run", {"sar_transform": None}, {"degradation": None}))
    assert read_pair(load_pairs(tmp_path)[0]).upscale == 1


def test_reflectance_of_16_bits_is_read_as_it_is_stored(tmp_path):
    """Without a `sar_transform`, the input has the range of the EO images, and so has a scene of the archive."""
    write_reflectance(tmp_path / "images", 3, eo_units="reflectance", eo_range=[0, 3000])
    finetune(settings(tmp_path / "images", tmp_path / "run", {"sar_transform": None, "residual": True}))
    pipe = CDiffSETPipeline.from_pretrained(tmp_path / "run/pipeline")
    eo = read_pair(load_pairs(tmp_path / "images")[0]).eo
    expected = torch.from_numpy(eo.astype(np.float32) / 3000).movedim(-1, 0).clamp(0, 1) * 2 - 1
    assert (pipe.prepare_sar(eo)[0] - expected).abs().max() < 1e-3
