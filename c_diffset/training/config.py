"""The typed settings behind `train_configs/*.yaml`; an unknown key or a wrong value is an error before any work."""

from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, get_args

from jsonargparse import ArgumentError, get_loader, set_loader
from yaml import YAMLError

from c_diffset.arguments import ArgumentParser
from c_diffset.files import check_yaml
from c_diffset.training.recipes import ConfigAction, recipes

MOST_STEPS = 99_999_999  # names of checkpoints have eight digits
TRACKERS = {"tensorboard": ["tensorboard"], "wandb": ["wandb"], "both": ["tensorboard", "wandb"], "none": []}
MOST_WEIGHT = 1e6  # the largest weight of one loss beside the others


def number(default: Any, lowest: float, highest: float) -> Any:
    """A setting that is a number, or a few of them, from `lowest` to `highest`."""
    return field(default=default, metadata={"limits": (lowest, highest)})


def check_values(settings: Any, prefix: str = "") -> None:
    """Refuse null where a value has to be, and numbers outside their limits, in settings and the groups within them.

    Raises:
        ValueError: the message names the setting.
    """
    for one in fields(settings):
        value = getattr(settings, one.name)
        if is_dataclass(value):
            check_values(value, f"{prefix}{one.name}.")
        elif value is None and type(None) not in get_args(one.type):
            raise ValueError(f"{prefix}{one.name} is null, expected a value: leave it out, or give one")
        elif "limits" in one.metadata and value is not None:
            lowest, highest = one.metadata["limits"]
            if value == []:
                raise ValueError(f"{prefix}{one.name} is empty, expected {lowest:,} to {highest:,}")
            for entry in value if isinstance(value, list | tuple) else [value]:
                if not isinstance(entry, int | float) or not lowest <= entry <= highest:
                    raise ValueError(f"{prefix}{one.name} is {value}, expected {lowest:,} to {highest:,}")


@dataclass
class SmallUNetConfig:
    """A UNet from scratch.

    Attributes:
        block_out_channels: Channels of each level, the finest first; each level halves the size.
        layers_per_block: Number of residual blocks in each level.
        attention_levels: Number of levels, from the coarsest on, that have self-attention.
    """

    block_out_channels: list[int] = field(metadata={"limits": (1, 8192)})
    layers_per_block: int = number(2, 1, 100)
    attention_levels: int = number(1, 0, 100)


@dataclass
class ModelConfig:
    """What is trained, and from where it starts.

    Attributes:
        base: Folder or Hub id to start from: Stable Diffusion, or a pipeline of this project. Without it, the UNet is
            trained from scratch.
        revision: Hub revision of the base.
        unet: Shape of the UNet that is trained from scratch, where there is no base.
        vae: Folder or Hub id of the autoencoder. Without it, that of the base is used, or none in pixel space.
        prediction_type: What a UNet from scratch predicts; with a base, the base decides.
        beta_schedule: Noise schedule of a UNet from scratch; with a base, the base decides.
        zero_terminal_snr: Whether the noise schedule is rescaled so that it ends in pure noise (Lin et al., 2023).
        lora_rank: Rank of the LoRA that is trained instead of all weights; 0 trains all weights.
        sar_transform: Units, range and channels of the SAR input (see `sar_to_tensor`); with a pipeline of this project
            as base, the base decides.
        eo_transform: Units (display or reflectance), range and gamma of the EO images (see `check_eo_transform`), such
            as {units: reflectance, range: [0, 3000]}; null takes what the data say, else that of the base.
        default_num_inference_steps: Number of sampling steps that the pipeline takes unless told otherwise.
    """

    base: str | None = None
    revision: str | None = None
    unet: SmallUNetConfig | None = None
    vae: str | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    zero_terminal_snr: bool = False
    lora_rank: int = number(0, 0, 8192)
    sar_transform: dict | None = None
    eo_transform: dict | None = None
    default_num_inference_steps: int = number(50, 1, 10_000)


@dataclass
class DataConfig:
    """The pairs.

    Attributes:
        source: Folder, CSV file, Parquet file, WebDataset shards or Hub id of the pairs (see `load_pairs`).
        split: Name of the split that is trained on.
        validation_split: Name of the split that is validated on; null turns validation off.
        validation_fraction: Share of the pairs that is held out of the training and validated on, in place of a
            `validation_split`: by region, scene or bounds where the data name them, else at random.
        crop_size: Side of the random square crops, in pixels.
        augment: Whether crops are flipped and turned at random.
        latent_cache: Folder of the latent cache; without it, every image is encoded anew.
        streaming: Whether the data set is read as a stream.
        shuffle_buffer: Number of pairs that are held in memory for shuffling a stream.
        num_workers: Number of processes that load pairs, for each training process.
    """

    source: str
    split: str | None = "train"
    validation_split: str | None = "validation"
    validation_fraction: float | None = number(None, 0.0001, 0.9)
    crop_size: int = number(256, 1, 65_536)
    augment: bool = True
    latent_cache: str | None = None
    streaming: bool = False
    shuffle_buffer: int = number(1000, 1, 10_000_000)
    num_workers: int = number(0, 0, 1024)


@dataclass
class OptimizerConfig:
    """AdamW with warm-up and a cosine schedule.

    Attributes:
        learning_rate: The highest learning rate, reached after the warm-up.
        weight_decay: Strength of the decoupled weight decay.
        betas: Decay rates of the two moments.
        warmup_steps: Number of updates in which the learning rate rises from zero.
        max_grad_norm: Largest norm of the gradients; larger ones are scaled down to it.
        use_8bit_adam: Whether the 8-bit AdamW of bitsandbytes is used, which must be installed.
    """

    learning_rate: float = number(3e-5, 0.0, 10.0)
    weight_decay: float = number(0.01, 0.0, 10.0)
    betas: tuple[float, float] = number((0.9, 0.999), 0.0, 0.9999999)
    warmup_steps: int = number(100, 0, MOST_STEPS)
    max_grad_norm: float = number(1.0, 1e-9, 1e9)
    use_8bit_adam: bool = False


@dataclass
class ValidationConfig:
    """Sampling from the validation split while training.

    Attributes:
        every: Number of updates between two validations; 0 validates only at the end.
        num_images: Number of crops that are translated.
        crop_size: Side of the crops, which do not overlap, in pixels; null takes whole images.
        num_inference_steps: Number of sampling steps; null takes the pipeline's default.
        batch_size: Number of crops that are translated together.
        metric: Metric that chooses the best pipeline.
        lpips_net: Network of the LPIPS metric.
        lpips_weights: File with the complete weights of that network; without it, they are downloaded.
    """

    every: int = number(1000, 0, MOST_STEPS)
    num_images: int = number(16, 1, 1_000_000)
    crop_size: int | None = number(256, 1, 65_536)
    num_inference_steps: int | None = number(None, 1, 10_000)
    batch_size: int = number(8, 1, 65_536)
    metric: Literal["psnr", "ssim", "lpips"] = "psnr"
    lpips_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    lpips_weights: str | None = None


@dataclass(kw_only=True)
class RunConfig:
    """What every training run has, whatever its method.

    Attributes:
        output_dir: Folder of the run, which holds all that it writes.
        data: Settings of the pairs.
        optimizer: Settings of the optimiser.
        validation: Settings of the sampling while training.
        max_steps: Number of optimiser updates.
        batch_size: Number of images of one process in one forward pass.
        gradient_accumulation_steps: Number of forward passes in one update.
        ema_decay: Decay of the averaged weights, which are those that are saved.
        mixed_precision: Precision of the forward pass. "auto" is the fastest that the device has instructions for, and
            in a run that goes on its own; null takes what `accelerate launch` says.
        gradient_checkpointing: Whether activations are computed twice, which needs less memory and more time.
        compile: Whether the model is compiled by `torch.compile`.
        channels_last: Whether the model's weights lie in memory with their channels last.
        seed: Random seed of the weights, the order, the crops and the noise.
        log_every: Number of updates between two lines of `metrics.jsonl`.
        report_to: Where losses, learning rate, metrics and samples go beside `metrics.jsonl` and `samples/`: to
            "tensorboard" in the run's folder, to "wandb" (Weights & Biases, which must be installed), both or none.
        checkpoint_every: Number of updates between two checkpoints.
        keep_checkpoints: Number of checkpoints that are kept.
        resume: Whether to go on from the newest checkpoint in the run's folder, if there is one.
        push_to_hub: Hub id that the finished pipeline is published to, as by `c-diffset publish`.
        push_private: Whether that repository is private, if it is new.
    """

    output_dir: str
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    max_steps: int = number(50_000, 1, MOST_STEPS)
    batch_size: int = number(16, 1, 65_536)
    gradient_accumulation_steps: int = number(1, 1, 65_536)
    ema_decay: float = number(0.9999, 0.0, 1.0)
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] | None = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    seed: int = number(0, 0, 2**32 - 1)
    log_every: int = number(10, 1, MOST_STEPS)
    report_to: Literal["tensorboard", "wandb", "both", "none"] = "tensorboard"
    checkpoint_every: int = number(1000, 1, MOST_STEPS)
    keep_checkpoints: int = number(2, 1, 1_000_000)
    resume: bool = True
    push_to_hub: str | None = None
    push_private: bool = False

    def __post_init__(self):
        check_values(self)
        if "wandb" in TRACKERS[self.report_to] and find_spec("wandb") is None:
            raise ValueError(
                f"report_to is {self.report_to}, but Weights & Biases is not installed: pip install wandb, or set "
                "report_to to tensorboard"
            )
        if self.data.latent_cache and self.data.streaming:
            raise ValueError(
                "data.latent_cache and data.streaming exclude each other: the cache needs the whole data set"
            )
        if self.data.validation_fraction and self.data.streaming:
            raise ValueError(
                "data.validation_fraction and data.streaming exclude each other: a stream cannot be divided, so name a "
                "data.validation_split, or null"
            )


@dataclass(kw_only=True)
class FinetuneConfig(RunConfig):
    """Fine-tuning, stages 1 and 2.

    Attributes:
        model: Settings of the model that is trained.
        stage: Stage of C-DiffSET: "denoising" (1), "confidence" (2), or "both", one after the other in one run.
        confidence_start_step: Update at which stage 2 starts in a run of both; null takes half of `max_steps`.
        min_snr_gamma: Strength of the min-SNR weighting of stage 1 (5 is usual); null weights all times alike.
    """

    model: ModelConfig
    stage: Literal["denoising", "confidence", "both"] = "both"
    confidence_start_step: int | None = number(None, 0, MOST_STEPS)
    min_snr_gamma: float | None = number(None, 0.0, MOST_WEIGHT)

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
        grid: Number of times of the teacher's DDIM solver.
        target_decay: Decay of the target, the average of the student that the student is compared with.
        huber_c: Width of the pseudo-Huber loss.
    """

    grid: int = number(50, 1, 10_000)
    target_decay: float = number(0.95, 0.0, 1.0)
    huber_c: float = number(1e-3, 1e-9, 1e3)


@dataclass
class TimeAwareConfig:
    """One-step distillation (TAD-SR, arXiv 2408.07476).

    Attributes:
        regression: What the student is regressed to: the "teacher"'s result from the same noise, or the "data".
        results: Folder of the teacher's results, computed once; needed where the student is regressed to them.
        num_results: Number of training samples that the teacher translates.
        teacher_steps: Number of the teacher's sampling steps; null takes the teacher's default.
        score_weight: Weight of the high-frequency score distillation; 0 leaves it out.
        noise_timesteps: Lowest and highest time that score distillation and the critic noise images to.
    """

    regression: Literal["teacher", "data"] = "teacher"
    results: str | None = None
    num_results: int = number(4096, 1, 100_000_000)
    teacher_steps: int | None = number(None, 1, 10_000)
    score_weight: float = number(1.0, 0.0, MOST_WEIGHT)
    noise_timesteps: tuple[int, int] = number((20, 400), 0, 1_000_000)


@dataclass
class CriticConfig:
    """The adversarial term.

    Attributes:
        weight: Weight of the student's adversarial loss; 0 trains no critic.
        loss: Form of the adversarial loss: "softplus", "hinge" or "wasserstein".
        real: What counts as real for the consistency critic: the "target"'s prediction, or the "data".
        optimizer: Settings of the critic's optimiser.
    """

    weight: float = number(0.0, 0.0, MOST_WEIGHT)
    loss: Literal["softplus", "hinge", "wasserstein"] = "softplus"
    real: Literal["target", "data"] = "target"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(kw_only=True)
class DistillConfig(RunConfig):
    """Distillation of a teacher into a student of few steps or one.

    Attributes:
        teacher: Folder or Hub id of the fine-tuned pipeline that teaches.
        revision: Hub revision of the teacher.
        student: Folder or Hub id of the pipeline that the student starts from; null starts from the teacher.
        lora_rank: Rank of the LoRA that is trained instead of all weights; 0 trains all weights.
        method: Method of distillation: "consistency" (1 to 8 steps) or "time_aware" (one step).
        consistency: Settings of consistency distillation.
        time_aware: Settings of time-aware distillation.
        critic: Settings of the adversarial term, which either method can have.
        confidence_weight: Weight of the loss of the student's variance, which is trained on the student's own error.
        default_num_inference_steps: Number of sampling steps that the student takes unless told otherwise; null takes 4
            for consistency and 1 for time-aware distillation.
    """

    teacher: str
    revision: str | None = None
    student: str | None = None
    lora_rank: int = number(0, 0, 8192)
    method: Literal["consistency", "time_aware"] = "consistency"
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    time_aware: TimeAwareConfig = field(default_factory=TimeAwareConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    confidence_weight: float = number(1.0, 0.0, MOST_WEIGHT)
    default_num_inference_steps: int | None = number(None, 1, 10_000)

    def __post_init__(self):
        super().__post_init__()
        if self.method == "consistency" and self.steps > self.consistency.grid:
            raise ValueError(
                f"default_num_inference_steps is {self.steps}, expected 1 to {self.consistency.grid} (consistency.grid)"
            )
        if self.needs_results:
            if self.time_aware.results is None:
                raise ValueError("time_aware.results is not set: name the folder for the teacher's results")
            if self.data.streaming:
                raise ValueError("time_aware.regression teacher and data.streaming exclude each other: use data")
        low, high = self.time_aware.noise_timesteps
        if low > high:
            raise ValueError(f"time_aware.noise_timesteps is {low}, {high}: expected the lowest first")

    @property
    def steps(self) -> int:
        """The student's default number of steps."""
        return self.default_num_inference_steps or (4 if self.method == "consistency" else 1)

    @property
    def needs_results(self) -> bool:
        """Whether the student is regressed to the teacher's cached results."""
        return self.method == "time_aware" and self.time_aware.regression == "teacher"


@dataclass(kw_only=True)
class DecoderConfig(RunConfig):
    """Fine-tuning the decoder of an `AutoencoderTiny`.

    Attributes:
        base: Folder or Hub id of the `AutoencoderTiny` whose decoder is trained.
        encoder: Folder or Hub id of the autoencoder whose latents the decoder learns to read, such as the one that the
            diffusion model was trained with; without it, the encoder of the base.
        eo_transform: Units, range and gamma of the EO images, as in the settings of a model; null takes what the data
            say, else display values.
        lpips_weight: Weight of LPIPS beside the L1 distance; 0 leaves LPIPS out.
        lpips_net: Network of that LPIPS.
        lpips_weights: File with the complete weights of that network; without it, they are downloaded.
    """

    base: str
    encoder: str | None = None
    eo_transform: dict | None = None
    lpips_weight: float = number(0.5, 0.0, MOST_WEIGHT)
    lpips_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    lpips_weights: str | None = None


any_yaml = get_loader("yaml")


def checked_yaml(text: str) -> Any:
    """What `jsonargparse` reads, where `check_yaml` lets it through."""
    check_yaml(text)
    return any_yaml(text)


set_loader("yaml", checked_yaml, (ValueError, TypeError, AttributeError, YAMLError))


@cache
def config_parser(config_class: type, description: str) -> ArgumentParser:
    """A parser that reads `--config NAME_OR_FILE`, and every field of `config_class` as an option that overrides it."""
    usage = "%(prog)s --config RECIPE [--NAME VALUE ...]"
    parser = ArgumentParser(description=description, usage=usage, exit_on_error=False)
    text = f"YAML file with any of the settings below, or the name of a recipe: {', '.join(recipes())}."
    parser.add_argument("--config", action=ConfigAction, metavar="RECIPE", help=text)
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def parse_config(config_class: type, description: str, args: list[str] | None = None):
    """Parse the command line into a `config_class`.

    Raises:
        ValueError: a setting is unknown, missing or wrong; the message is one line.
        FileNotFoundError: the file of settings is missing.
    """
    parser = config_parser(config_class, description)
    try:
        settings = parser.instantiate(parser.parse_args(args))
        settings.pop("config", None)
        return config_class(**vars(settings))
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
