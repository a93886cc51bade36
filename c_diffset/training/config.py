"""The typed settings behind `train_configs/*.yaml`, those of distillation apart."""

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Literal

from c_diffset.models.shape import SmallUNetConfig
from c_diffset.training.limits import MOST_STEPS, MOST_WEIGHT, check_values, number

TRACKERS = {"tensorboard": ["tensorboard"], "wandb": ["wandb"], "both": ["tensorboard", "wandb"], "none": []}


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
        beta_schedule: Noise schedule of a UNet from scratch; with a base, the base decides. "resshift" is that of
            ResShift (Yue et al., 2023), which needs `residual` and has 15 `num_train_timesteps` in the paper.
        beta_range: First and last beta of that schedule; null takes 0.0001 and 0.02, or 0.00085 and 0.012 where it is
            scaled_linear.
        num_train_timesteps: Number of times of that schedule.
        sampler: How a UNet from scratch is sampled: "ddim" without noise at the steps (Song et al., 2021), or "ddpm"
            with noise of the largest variance, at times that are spread from the first to the last (Ho et al., 2020).
        zero_terminal_snr: Whether the noise schedule is rescaled so that it ends in pure noise (Lin et al., 2023).
        lora_rank: Rank of the LoRA that is trained instead of all weights; 0 trains all weights.
        sar_transform: Units, range and channels of the SAR input (see `sar_to_tensor`). Without it, display values are
            read, of one band or, to be upscaled, of three. With a pipeline of this project as base, the base decides.
        upscale: Sides of the EO image for one of the input; more than 1 is super-resolution, whose input is an EO image
            of low resolution. With a pipeline of this project as base, the base decides.
        residual: Whether the difference between the EO image and the input is diffused, in latent or pixel space,
            instead of the EO image. With a pipeline of this project as base, the base decides.
        eo_transform: Units (display or reflectance), range and gamma of the EO images (see `check_eo_transform`), such
            as {units: reflectance, range: [0, 3000]}; null takes what the data say, else that of the base.
        default_num_inference_steps: Number of sampling steps that the pipeline takes unless told otherwise.
    """

    base: str | None = None
    revision: str | None = None
    unet: SmallUNetConfig | None = None
    vae: str | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "resshift"] = "scaled_linear"
    beta_range: tuple[float, float] | None = number(None, 1e-9, 0.999)
    num_train_timesteps: int = number(1000, 2, 100_000)
    sampler: Literal["ddim", "ddpm"] = "ddim"
    zero_terminal_snr: bool = False
    lora_rank: int = number(0, 0, 8192)
    sar_transform: dict | None = None
    upscale: int = number(1, 1, 16)
    residual: bool = False
    eo_transform: dict | None = None
    default_num_inference_steps: int = number(50, 1, 10_000)

    def check(self) -> None:
        """Refuse a model that cannot be built, by ValueError."""
        if (self.base is None) == (self.unet is None):
            raise ValueError("model: give either `base` (fine-tune) or `unet` (from scratch), and not both")
        if self.zero_terminal_snr and self.base is None and self.prediction_type == "epsilon":
            raise ValueError(
                "model.zero_terminal_snr needs prediction_type v_prediction or sample: pure noise predicts no noise"
            )
        if self.base is None and self.beta_schedule == "resshift":
            if not self.residual or self.beta_range is not None:
                raise ValueError("model.beta_schedule resshift needs model.residual true, and no model.beta_range")
        if self.base is None and self.default_num_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"model.default_num_inference_steps is {self.default_num_inference_steps}: expected at most "
                f"model.num_train_timesteps, {self.num_train_timesteps}"
            )


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
        degradation: How low-resolution images are made of the EO images, for super-resolution by the model's `upscale`:
            "real_esrgan" (blur, resize, noise and JPEG, twice) or "bicubic"; null takes the data's own pairs.
        augment: Whether crops are flipped and turned at random.
        latent_cache: Folder of the latent cache; without it, every image is encoded anew.
        latent_crops: Number of crops that the latent cache holds where images are degraded: the training goes through
            them again and again, with new noise.
        streaming: Whether the data set is read as a stream.
        shuffle_buffer: Number of pairs that are held in memory for shuffling a stream.
        num_workers: Number of processes that load pairs, for each training process.
    """

    source: str
    split: str | None = "train"
    validation_split: str | None = "validation"
    validation_fraction: float | None = number(None, 0.0001, 0.9)
    crop_size: int = number(256, 1, 65_536)
    degradation: Literal["real_esrgan", "bicubic"] | None = None
    augment: bool = True
    latent_cache: str | None = None
    latent_crops: int = number(16_384, 1, 100_000_000)
    streaming: bool = False
    shuffle_buffer: int = number(1000, 1, 10_000_000)
    num_workers: int = number(0, 0, 1024)


@dataclass
class OptimizerConfig:
    """AdamW with warm-up and a schedule of the learning rate.

    Attributes:
        learning_rate: The highest learning rate, reached after the warm-up.
        schedule: How the learning rate goes on after the warm-up: "cosine" and "linear" lead down to zero at the end of
            the training, "constant" leaves it as it is.
        weight_decay: Strength of the decoupled weight decay.
        betas: Decay rates of the two moments.
        warmup_steps: Number of updates in which the learning rate rises from zero.
        max_grad_norm: Largest norm of the gradients; larger ones are scaled down to it.
        use_8bit_adam: Whether the 8-bit AdamW of bitsandbytes is used, which must be installed.
    """

    learning_rate: float = number(3e-5, 0.0, 10.0)
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    weight_decay: float = number(0.01, 0.0, 10.0)
    betas: tuple[float, float] = number((0.9, 0.999), 0.0, 0.9999999)
    warmup_steps: int = number(100, 0, MOST_STEPS)
    max_grad_norm: float = number(1.0, 1e-9, 1e9)
    use_8bit_adam: bool = False


@dataclass
class ConfidenceOptimizerConfig:
    """What stage 2's optimiser has of its own in a run of both stages; null is as in stage 1.

    Attributes:
        learning_rate: The highest learning rate of stage 2; null takes that of stage 1.
        schedule: Schedule of stage 2; null takes that of stage 1.
        weight_decay: Strength of the decoupled weight decay in stage 2; null takes that of stage 1.
        warmup_steps: Number of updates of stage 2's own warm-up; null takes that of stage 1.
        max_grad_norm: Largest norm of the gradients of stage 2; null takes that of stage 1.
    """

    learning_rate: float | None = number(None, 0.0, 10.0)
    schedule: Literal["cosine", "constant", "linear"] | None = None
    weight_decay: float | None = number(None, 0.0, 10.0)
    warmup_steps: int | None = number(None, 0, MOST_STEPS)
    max_grad_norm: float | None = number(None, 1e-9, 1e9)

    def over(self, first: OptimizerConfig) -> OptimizerConfig:
        """The settings of stage 2, where `first` are those of stage 1."""
        return replace(first, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class Phase:
    """A part of a training with an optimiser, a schedule and averaged weights of its own.

    Attributes:
        start: Number of updates before its first one.
        end: Number of updates after its last one.
        optimizer: Settings of its optimiser.
        stage: Stage of C-DiffSET that it is; None in methods that have no stages.
    """

    start: int
    end: int
    optimizer: OptimizerConfig
    stage: Literal[1, 2] | None = None

    def __str__(self) -> str:
        return f"updates {self.start + 1} to {self.end}"


@dataclass
class ValidationConfig:
    """Sampling from the validation split while training.

    Attributes:
        every: Number of updates between two validations; 0 validates only at the end, or at that of each stage.
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
        max_steps: Number of optimiser updates, those of both stages together where there are two.
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

    def phase(self, step: int) -> Phase:
        """The phase of update `step`, counted from 0; most methods have only one."""
        return Phase(0, self.max_steps, self.optimizer)


@dataclass(kw_only=True)
class FinetuneConfig(RunConfig):
    """Fine-tuning, stages 1 and 2.

    Attributes:
        model: Settings of the model that is trained.
        stage: Stage of C-DiffSET: "denoising" (1), "confidence" (2), or "both", one after the other in one run, each
            with an optimiser, a schedule and averaged weights of its own.
        confidence_start_step: Number of updates of stage 1 in a run of both; null takes half of `max_steps`.
        confidence_optimizer: What stage 2's optimiser has of its own in a run of both.
        min_snr_gamma: Strength of the min-SNR weighting of stage 1 (5 is usual); null weights all times alike.
        input_perturbation: Standard deviation of further noise in the noisy image, which is not to be predicted (Ning
            et al., 2023; 0.1 is usual).
    """

    model: ModelConfig
    stage: Literal["denoising", "confidence", "both"] = "both"
    confidence_start_step: int | None = number(None, 0, MOST_STEPS)
    confidence_optimizer: ConfidenceOptimizerConfig = field(default_factory=ConfidenceOptimizerConfig)
    min_snr_gamma: float | None = number(None, 0.0, MOST_WEIGHT)
    input_perturbation: float = number(0.0, 0.0, 1.0)

    def __post_init__(self):
        super().__post_init__()
        self.model.check()
        if self.data.latent_cache and self.model.base is None and self.model.vae is None:
            raise ValueError("data.latent_cache is set, but pixel space (no model.vae) has no latents: remove it")
        if self.stage == "both":
            self._check_stages()

    def _check_stages(self) -> None:
        """Settle where stage 2 starts, and refuse a run of both stages that would not be one."""
        if self.confidence_start_step is None:
            self.confidence_start_step = self.max_steps // 2
        if self.confidence_start_step >= self.max_steps:
            raise ValueError(
                f"confidence_start_step is {self.confidence_start_step}, but max_steps, which counts both stages, is "
                f"{self.max_steps}: lower the one or raise the other, or set stage to denoising for stage 1 alone"
            )

    @property
    def confidence_start(self) -> int:
        """The update from which on the C-Diff loss is used."""
        starts = {"denoising": self.max_steps, "confidence": 0, "both": self.confidence_start_step}
        return starts[self.stage]

    def phase(self, step: int) -> Phase:
        """The stage of update `step`, counted from 0."""
        start = self.confidence_start
        if step < start:
            return Phase(0, start, self.optimizer, stage=1)
        both = self.stage == "both"
        optimizer = self.confidence_optimizer.over(self.optimizer) if both else self.optimizer
        return Phase(start, self.max_steps, optimizer, stage=2)


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
