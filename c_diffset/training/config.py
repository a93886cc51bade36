"""The typed settings behind `train_configs/*.yaml`; an unknown key or a wrong type is an error before any work."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from c_diffset.objectives.adversarial import AdversarialLoss
from c_diffset.training.recipes import ConfigAction, recipes


@dataclass
class SmallUNetConfig:
    """A UNet from scratch.

    Attributes:
        block_out_channels: channels of each level, finest first; each level halves the size.
        layers_per_block: residual blocks in each level.
        attention_levels: how many of the coarsest levels have self-attention.
    """

    block_out_channels: list[int]
    layers_per_block: int = 2
    attention_levels: int = 1


@dataclass
class ModelConfig:
    """What is trained, and from where it starts.

    Attributes:
        base: folder or Hub id to start from: Stable Diffusion, or a pipeline of this project. None: from scratch.
        revision: Hub revision of `base`.
        unet: the UNet from scratch; only without `base`.
        vae: folder or Hub id of the autoencoder; None: that of `base`, or pixel space.
        prediction_type: what a UNet from scratch predicts; with `base`, that of the base.
        beta_schedule: noise schedule of a UNet from scratch; with `base`, that of the base.
        zero_terminal_snr: rescale the schedule so that the last time is pure noise (Lin et al., 2023).
        lora_rank: train a LoRA of this rank instead of all weights; 0 trains all.
        sar_transform: `units`, `range` and `channels` of the SAR input (see `sar_to_tensor`); with a pipeline of this
            project as `base`, that of the base.
        default_num_inference_steps: stored in the pipeline.
    """

    base: str | None = None
    revision: str | None = None
    unet: SmallUNetConfig | None = None
    vae: str | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    zero_terminal_snr: bool = False
    lora_rank: int = 0
    sar_transform: dict | None = None
    default_num_inference_steps: int = 50


@dataclass
class DataConfig:
    """The pairs.

    Attributes:
        source: folder, CSV, Parquet, WebDataset shards or Hub id (see `load_pairs`).
        split: split that is trained on.
        validation_split: split that is validated on; None: no validation.
        crop_size: pixels of the random square crops.
        augment: flips and quarter turns.
        latent_cache: folder of the latent cache; None: encode every image anew.
        streaming: read the data set as a stream.
        shuffle_buffer: pairs held for shuffling a stream.
        num_workers: loader processes.
    """

    source: str
    split: str | None = "train"
    validation_split: str | None = "validation"
    crop_size: int = 256
    augment: bool = True
    latent_cache: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 1000
    num_workers: int = 0


@dataclass
class OptimizerConfig:
    """AdamW with warm-up and a cosine schedule.

    Attributes:
        learning_rate: the highest learning rate.
        weight_decay: decoupled weight decay.
        betas: decay rates of the two moments.
        warmup_steps: updates of linear warm-up.
        max_grad_norm: gradients are clipped to this norm.
        use_8bit_adam: 8-bit AdamW of bitsandbytes, which must be installed.
    """

    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    use_8bit_adam: bool = False


@dataclass
class ValidationConfig:
    """Sampling from the validation split while training.

    Attributes:
        every: updates between validations; 0: only at the end.
        num_images: crops that are sampled.
        crop_size: pixels of the non-overlapping crops; None: whole images.
        num_inference_steps: None: the pipeline's default.
        batch_size: crops sampled together.
        metric: which metric chooses the best checkpoint.
        lpips_net: network of the LPIPS metric.
        lpips_weights: file with complete LPIPS weights; None: downloaded.
    """

    every: int = 1000
    num_images: int = 16
    crop_size: int | None = 256
    num_inference_steps: int | None = None
    batch_size: int = 8
    metric: Literal["psnr", "ssim", "lpips"] = "psnr"
    lpips_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    lpips_weights: str | None = None


@dataclass(kw_only=True)
class RunConfig:
    """What every training run has, whatever its method.

    Attributes:
        output_dir: the run folder.
        data: the pairs.
        optimizer: the optimiser.
        validation: sampling while training.
        max_steps: optimiser updates.
        batch_size: images of one process in one forward pass.
        gradient_accumulation_steps: forward passes in one update.
        ema_decay: decay of the averaged weights.
        mixed_precision: "no", "fp16" or "bf16"; None: as `accelerate launch` says.
        gradient_checkpointing: less memory, more time.
        compile: `torch.compile` the UNet.
        channels_last: memory format of the UNet.
        seed: of the weights, the order, the crops and the noise.
        log_every: updates between two lines of `metrics.jsonl`.
        checkpoint_every: updates between two checkpoints.
        keep_checkpoints: how many checkpoints are kept.
        resume: go on from the newest checkpoint in `output_dir`, if there is one.
        push_to_hub: Hub id that the finished pipeline is published to, as by `c-diffset publish`.
        push_private: make that repository private, if it is new.
    """

    output_dir: str
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    max_steps: int = 50_000
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    ema_decay: float = 0.9999
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    resume: bool = True
    push_to_hub: str | None = None
    push_private: bool = False

    def __post_init__(self):
        if self.data.latent_cache and self.data.streaming:
            raise ValueError(
                "data.latent_cache and data.streaming exclude each other: the cache needs the whole data set"
            )
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")


@dataclass(kw_only=True)
class FinetuneConfig(RunConfig):
    """Fine-tuning, stages 1 and 2.

    Attributes:
        model: what is trained.
        stage: "denoising" (1), "confidence" (2), or "both": 1 before `confidence_start_step`, 2 from there on.
        confidence_start_step: see `stage`; None: half of `max_steps`.
        min_snr_gamma: min-SNR weighting of stage 1 (5 is usual); None: no weighting.
    """

    model: ModelConfig
    stage: Literal["denoising", "confidence", "both"] = "both"
    confidence_start_step: int | None = None
    min_snr_gamma: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.model.base is None) == (self.model.unet is None):
            raise ValueError("model: give either `base` (fine-tune) or `unet` (from scratch), and not both")
        if self.model.zero_terminal_snr and self.model.base is None and self.model.prediction_type == "epsilon":
            raise ValueError(
                "model.zero_terminal_snr needs prediction_type v_prediction or sample: pure noise predicts no noise"
            )
        if self.data.latent_cache and self.model.base is None and self.model.vae is None:
            raise ValueError("data.latent_cache is set, but pixel space (no model.vae) has no latents: remove it")

    @property
    def confidence_start(self) -> int:
        """The update from which on the C-Diff loss is used."""
        if self.stage == "both":
            return self.max_steps // 2 if self.confidence_start_step is None else self.confidence_start_step
        return 0 if self.stage == "confidence" else self.max_steps


@dataclass
class ConsistencyConfig:
    """Consistency distillation (arXiv 2310.04378, 2407.06095).

    Attributes:
        grid: times of the teacher's DDIM solver.
        target_decay: decay of the target, the average of the student that it is compared with.
        huber_c: width of the pseudo-Huber loss.
    """

    grid: int = 50
    target_decay: float = 0.95
    huber_c: float = 1e-3


@dataclass
class TimeAwareConfig:
    """One-step distillation (TAD-SR, arXiv 2408.07476).

    Attributes:
        regression: what the student is regressed to: the "teacher"'s result from the same noise, or the "data".
        results: folder of the teacher's results, computed once; needed with regression "teacher".
        num_results: how many training samples the teacher translates.
        teacher_steps: its steps; None: the teacher's default.
        score_weight: of high-frequency score distillation; 0: none.
        noise_timesteps: lowest and highest time tau that score distillation and the critic noise images to.
    """

    regression: Literal["teacher", "data"] = "teacher"
    results: str | None = None
    num_results: int = 4096
    teacher_steps: int | None = None
    score_weight: float = 1.0
    noise_timesteps: tuple[int, int] = (20, 400)


@dataclass
class CriticConfig:
    """The adversarial term.

    Attributes:
        weight: of the student's adversarial loss; 0: no critic.
        loss: "softplus", "hinge" or "wasserstein".
        real: what counts as real for the consistency critic: the "target"'s prediction, or the "data".
        optimizer: the critic's optimiser.
    """

    weight: float = 0.0
    loss: AdversarialLoss = "softplus"
    real: Literal["target", "data"] = "target"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(kw_only=True)
class DistillConfig(RunConfig):
    """Distillation of a teacher into a student of few steps or one.

    Attributes:
        teacher: folder or Hub id of a fine-tuned pipeline.
        revision: Hub revision of `teacher`.
        student: pipeline that the student starts from; None: the teacher.
        lora_rank: train a LoRA of this rank instead of all weights; 0 trains all.
        method: "consistency" (1 to 8 steps) or "time_aware" (one step).
        consistency: settings of that method.
        time_aware: settings of that method.
        critic: the adversarial term of either.
        confidence_weight: of the student's own variance, trained on its own error.
        default_num_inference_steps: stored in the student; None: 4 for consistency, 1 for time-aware.
    """

    teacher: str
    revision: str | None = None
    student: str | None = None
    lora_rank: int = 0
    method: Literal["consistency", "time_aware"] = "consistency"
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    time_aware: TimeAwareConfig = field(default_factory=TimeAwareConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    confidence_weight: float = 1.0
    default_num_inference_steps: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.method == "consistency" and not 1 <= self.steps <= self.consistency.grid:
            raise ValueError(
                f"default_num_inference_steps is {self.steps}, expected 1 to {self.consistency.grid} (consistency.grid)"
            )
        if self.needs_results:
            if self.time_aware.results is None:
                raise ValueError("time_aware.results is not set: name the folder for the teacher's results")
            if self.data.streaming:
                raise ValueError("time_aware.regression teacher and data.streaming exclude each other: use data")
        low, high = self.time_aware.noise_timesteps
        if not 0 <= low <= high:
            raise ValueError(f"time_aware.noise_timesteps is {low}, {high}: expected 0 <= lowest <= highest")

    @property
    def steps(self) -> int:
        """The student's default number of steps."""
        return self.default_num_inference_steps or (4 if self.method == "consistency" else 1)

    @property
    def needs_results(self) -> bool:
        """Whether the student is regressed to the teacher's cached results."""
        return self.method == "time_aware" and self.time_aware.regression == "teacher"


def config_parser(config_class: type, description: str) -> ArgumentParser:
    """A parser that reads `--config NAME_OR_FILE`, and every field of `config_class` as an option that overrides it."""
    parser = ArgumentParser(description=description, usage="%(prog)s --config RECIPE [--NAME VALUE ...]")
    text = f"YAML file with any of the settings below, or the name of a recipe: {', '.join(recipes())}"
    parser.add_argument("--config", action=ConfigAction, metavar="RECIPE", help=text)
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def parse_config(config_class: type, description: str, args: list[str] | None = None):
    """Parse the command line into a `config_class`; wrong settings end the program with a message."""
    parser = config_parser(config_class, description)
    settings = parser.instantiate_classes(parser.parse_args(args))
    settings.pop("config", None)
    try:
        return config_class(**vars(settings))
    except ValueError as error:
        parser.error(str(error))


PLACES = ("base", "teacher", "student", "vae", "source")  # settings that name a folder, a file or a Hub id


def save_config(config, path: Path) -> None:
    """Write the resolved settings as YAML that `--config` reads again; folders and files by their absolute paths."""
    parser = config_parser(type(config), "")
    path.write_text(parser.dump(parser.parse_object(Namespace(_located(asdict(config)))), skip_none=False))


def _located(settings: dict) -> dict:
    """Settings in which no relative path can be taken for a Hub id, or for another folder, elsewhere."""
    located = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = _located(value)
        elif key in PLACES and isinstance(value, str) and os.path.exists(value):
            value = os.path.abspath(value)
        located[key] = value
    return located


# settings that a resumed run may change: they alter neither the updates nor what is averaged
FREE_ON_RESUME = {
    *("output_dir", "model.base", "model.vae", "data.source", "data.latent_cache", "data.validation_split"),
    *("data.num_workers", "log_every", "checkpoint_every", "keep_checkpoints", "compile", "channels_last"),
    *("resume", "push_to_hub", "push_private", "gradient_checkpointing", "teacher", "time_aware.results"),
    *("base", "encoder", "lpips_weights"),
}


def check_same_run(config, stored: Path) -> None:
    """Refuse to go on with a run under settings that would have made another run of it.

    Raises:
        ValueError: a setting differs from `stored`, the `config.yaml` of the run; the message names it.
    """
    now, then = (_flatten(_located(x)) for x in (asdict(config), yaml.safe_load(stored.read_text())))
    for key, value in now.items():
        free = key in FREE_ON_RESUME or key.startswith("validation.")
        if not free and key in then and then[key] != value:
            raise ValueError(
                f"{key} is {value}, but the run in {stored.parent} was started with {then[key]}: "
                "restore it, or choose another output_dir"
            )


def _flatten(settings: dict, prefix: str = "") -> dict:
    """Nested settings to dotted keys; tuples as lists, as YAML has them."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
