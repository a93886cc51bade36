"""Distillation: a fine-tuned teacher becomes a student of few steps, or one.

The student keeps a variance, trained on its own error. What is done to it is in `consistency.py` and `time_aware.py`.
"""

import copy
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, LCMScheduler

from c_diffset.data.eo import check_eo_of_model, declared_eo_transform, some_pairs
from c_diffset.data.sar_values import check_sar_values
from c_diffset.loading import no_loading_bar
from c_diffset.models.unet import add_variance_channel
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.consistency import ConsistencyDistill
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.end_to_end import EndToEndDistill
from c_diffset.training.finetune import build_pipeline
from c_diffset.training.loop import make_accelerator, train
from c_diffset.training.pairs import check_pairs, eo_alone, training_pairs
from c_diffset.training.task import with_components
from c_diffset.training.time_aware import TimeAwareDistill

METHODS = {"consistency": ConsistencyDistill, "time_aware": TimeAwareDistill, "end_to_end": EndToEndDistill}


def load_teacher(config: DistillConfig) -> CDiffSETPipeline:
    """The teacher, a many-step pipeline of this project; or, where there is none, the model to start from.

    Raises:
        ValueError: it is another pipeline, or a few-step student itself.
    """
    if config.teacher is None:
        return build_pipeline(config.model)
    teacher = _load(config.teacher, config.revision, "teacher")
    if not isinstance(teacher.scheduler, DDIMScheduler | DDPMScheduler):
        raise ValueError(
            f"teacher {config.teacher} has {type(teacher.scheduler).__name__}: expected a teacher of many steps, with "
            "DDIMScheduler or DDPMScheduler"
        )
    teacher.check_inputs(1, "pt", [])
    return teacher


def _load(source: str, revision: str | None, role: str) -> CDiffSETPipeline:
    name = DiffusionPipeline.load_config(source, revision=revision).get("_class_name")
    if name != CDiffSETPipeline.__name__:
        raise ValueError(f"{role} {source} is a {name}: expected a CDiffSETPipeline, as fine-tuning saves it")
    with no_loading_bar():
        return CDiffSETPipeline.from_pretrained(source, revision=revision, text_encoder=None, tokenizer=None)


def build_student(config: DistillConfig, teacher: CDiffSETPipeline) -> CDiffSETPipeline:
    """The pipeline that is trained: the teacher's weights or those of `config.student`, and the method's sampler.

    Raises:
        ValueError: `config.student` does not fit the teacher.
    """
    check_times(config, len(teacher.scheduler.alphas_cumprod))
    start = teacher if config.student is None else _load(config.student, None, "student")
    if start is not teacher:
        check_student(start, teacher, config)
    unet = copy.deepcopy(start.unet)
    if not start.predicts_variance:
        add_variance_channel(unet)
    # without its list of defaults, which `from_config` would replace by those of the other class: another schedule
    config_of_teacher = {key: value for key, value in teacher.scheduler.config.items() if key != "_use_default_values"}
    options = config_of_teacher | dict(timestep_spacing="trailing", set_alpha_to_one=True)
    if config.method == "consistency":
        options["original_inference_steps"] = config.consistency.grid
        scheduler = LCMScheduler.from_config(options)
    else:
        scheduler = DDIMScheduler.from_config(options)
    return with_components(
        teacher,
        unet=unet,
        scheduler=scheduler,
        default_num_inference_steps=config.steps,
        **starting_noise(config),
        # at pure noise, the one time at which no part of the true image has leaked into what the student sees
        confidence_timestep=scheduler.config.num_train_timesteps - 1,
    )


def starting_noise(config: DistillConfig) -> dict:
    """What a student says of the noise it starts from, and of its variance; nothing of it comes from the teacher."""
    if config.method != "end_to_end":
        return {"realism": None, "variance_of": "latents"}
    settings = config.end_to_end
    graded = {"range": [0.0, 1.0], "default": settings.default_realism}
    realism = {"zero": {"range": [0.0, 0.0], "default": 0.0}, "graded": graded, "random": None}
    return {"realism": realism[settings.starting_noise], "variance_of": "image"}


def check_times(config: DistillConfig, num_train_timesteps: int) -> None:
    """Refuse times that the teacher does not have."""
    grid, last = config.consistency.grid, num_train_timesteps - 1
    if config.method == "consistency":
        if 2 * grid > num_train_timesteps:  # its first time would be time 0, which stands for the clean image
            found = f"consistency.grid is {grid}, but the teacher has {num_train_timesteps} times"
            raise ValueError(f"{found}: expected at most half as many")
        return
    if config.method == "end_to_end" and (not config.critic.weight or config.critic.head == "patch"):
        return
    for name in ("score_timesteps", "critic_timesteps"):
        highest = max(getattr(config.time_aware, name))
        if highest > last:
            raise ValueError(f"time_aware.{name} goes up to {highest}, but the teacher's times to {last}")


def check_student(student: CDiffSETPipeline, teacher: CDiffSETPipeline, config: DistillConfig) -> None:
    """Refuse a student that sees, predicts or noises anything else than the teacher."""
    both = {
        "input channels": [pipe.unet.config.in_channels for pipe in (student, teacher)],
        "image channels": [pipe.eo_channels for pipe in (student, teacher)],
        "vae_scale_factor": [pipe.vae_scale_factor for pipe in (student, teacher)],
        "prediction_type": [pipe.config.prediction_type for pipe in (student, teacher)],
        "sar_transform": [pipe.config.sar_transform for pipe in (student, teacher)],
        "eo_transform": [pipe.config.eo_transform for pipe in (student, teacher)],
        "upscale": [pipe.config.upscale for pipe in (student, teacher)],
        "residual": [pipe.config.residual for pipe in (student, teacher)],
    }
    for name, (found, expected) in both.items():
        if found != expected:
            raise ValueError(f"student {config.student} has {name} {found}, but the teacher {expected}")
    schedules = [pipe.scheduler.alphas_cumprod for pipe in (student, teacher)]
    if schedules[0].shape != schedules[1].shape or not torch.allclose(*schedules):
        raise ValueError(f"student {config.student} has another noise schedule than the teacher")


def distill(config: DistillConfig) -> Path:
    """Distil as `config` says; returns the folder of the finished student."""
    accelerator = make_accelerator(config)
    some = check_pairs(config, accelerator)
    pairs, source = training_pairs(config), config.data.source
    if config.teacher is None and config.model.eo_transform is None:
        config.model.eo_transform = declared_eo_transform(pairs, source)  # a setting of the run from here on
    teacher = load_teacher(config)
    if teacher.unet.config.sample_size is None:  # scenes are translated in tiles of what the model was trained at
        teacher.unet.register_to_config(sample_size=config.data.crop_size // teacher.vae_scale_factor)
    check_eo_of_model(pairs, teacher.config.eo_transform, source)
    if not eo_alone(config):
        check_sar_values(some_pairs(pairs), teacher.config.sar_transform, source)
    task = METHODS[config.method](config, teacher, build_student(config, teacher))
    return train(task, config, accelerator, some)
