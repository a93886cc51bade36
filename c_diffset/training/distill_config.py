"""The typed settings of distillation."""

from dataclasses import dataclass, field
from typing import Literal

from c_diffset.training.config import ModelConfig, OptimizerConfig, RunConfig
from c_diffset.training.limits import MOST_WEIGHT, number

SMALLEST_PATCH = 32  # pixels of a side that the critic of patches can halve three times


@dataclass
class ConsistencyConfig:
    """Consistency distillation (arXiv 2310.04378, 2407.06095).

    Attributes:
        grid: Number of times of the teacher's DDIM solver.
        target_decay: Decay of the target, the average of the student that the student is compared with.
        huber_c: Width of the pseudo-Huber loss.
        input_perturbation: Standard deviation of further noise in the noisy image (Ning et al., 2023; 0.1 is usual).
    """

    grid: int = number(50, 1, 10_000)
    target_decay: float = number(0.95, 0.0, 1.0)
    huber_c: float = number(1e-3, 1e-9, 1e3)
    input_perturbation: float = number(0.0, 0.0, 1.0)


@dataclass
class TimeAwareConfig:
    """One-step distillation (TAD-SR, arXiv 2408.07476).

    Attributes:
        regression: What the student is regressed to: the "teacher"'s result from the same noise, or the "data".
        results: Folder of the teacher's results, computed once; needed where the student is regressed to them.
        num_results: Number of training samples that the teacher translates.
        teacher_steps: Number of the teacher's sampling steps; null takes the teacher's default.
        regression_weight: Weight of that regression.
        score_weight: Weight of the high-frequency score distillation; 0 leaves it out.
        score_timesteps: Lowest and highest time that score distillation noises images to.
        critic_timesteps: Lowest and highest time that images are noised to for the critic.
    """

    regression: Literal["teacher", "data"] = "teacher"
    results: str | None = None
    num_results: int = number(4096, 1, 100_000_000)
    teacher_steps: int | None = number(None, 1, 10_000)
    regression_weight: float = number(1.0, 0.0, MOST_WEIGHT)
    score_weight: float = number(1.0, 0.0, MOST_WEIGHT)
    score_timesteps: tuple[int, int] = number((20, 400), 0, 1_000_000, was="noise_timesteps")
    critic_timesteps: tuple[int, int] = number((20, 400), 0, 1_000_000, was="noise_timesteps")


@dataclass
class EndToEndConfig:
    """Fine-tuning of one step on the decoded image (Garcia et al., arXiv 2409.11355; Parmar et al., 2403.12036).

    Attributes:
        pixel_loss: Distance of the image from the true one: "l1", "charbonnier" (a smooth L1) or "l2".
        pixel_weight: Weight of that distance.
        diversity: Strength, from 0 to 1, with which two samples of a realism of 1 are kept apart. With 1, pixels and
            local textures follow the energy score, whose best model draws from the true distribution.
        texture_weight: Weight of the same distance between filtered images, by random filters of several sizes.
        lpips_weight: Weight of LPIPS, which then says nothing as a figure; 0 leaves it out.
        lpips_net: Network of that LPIPS.
        lpips_weights: File with the complete weights of that network; without it, they are downloaded.
        starting_noise: What the one step starts from: "zero" noise (one best estimate), "random" noise (samples), or
            "graded": noise of any strength from zero to random, which is the `realism` of the model.
        default_realism: Realism of the model where none is asked for, with graded noise.
    """

    pixel_loss: Literal["l1", "charbonnier", "l2"] = "charbonnier"
    pixel_weight: float = number(1.0, 0.0, MOST_WEIGHT)
    diversity: float = number(0.0, 0.0, 1.0)
    texture_weight: float = number(0.0, 0.0, MOST_WEIGHT)
    lpips_weight: float = number(0.0, 0.0, MOST_WEIGHT)
    lpips_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    lpips_weights: str | None = None
    starting_noise: Literal["zero", "random", "graded"] = "graded"
    default_realism: float = number(0.0, 0.0, 1.0)


@dataclass
class CriticConfig:
    """The adversarial term.

    Attributes:
        weight: Weight of the student's adversarial loss; 0 trains no critic.
        loss: Form of the adversarial loss: "softplus", "hinge" or "wasserstein".
        real: What counts as real for the consistency critic: the "target"'s prediction, or the "data".
        head: What turns the features of the teacher's UNet into a verdict: the "light" head, or the far larger one that
            was "published" with the method. For end-to-end fine-tuning also "patch", which reads pixels.
        optimizer: Settings of the critic's optimiser.
    """

    weight: float = number(0.0, 0.0, MOST_WEIGHT)
    loss: Literal["softplus", "hinge", "wasserstein"] = "softplus"
    real: Literal["target", "data"] = "target"
    head: Literal["light", "published", "patch"] = "light"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(kw_only=True)
class DistillConfig(RunConfig):
    """Distillation of a teacher into a student of few steps or one.

    Attributes:
        teacher: Folder or Hub id of the fine-tuned pipeline that teaches, or that end-to-end fine-tuning starts from.
        revision: Hub revision of the teacher.
        student: Folder or Hub id of the pipeline that the student starts from; null starts from the teacher.
        lora_rank: Rank of the LoRA that is trained instead of all weights; 0 trains all weights.
        model: What end-to-end fine-tuning starts from where there is no teacher: a base model, or a UNet from scratch.
        method: Method of distillation: "consistency" (1 to 8 steps), "time_aware" (one step), or "end_to_end" (one step
            that is trained on the image, and need not imitate a teacher).
        consistency: Settings of consistency distillation.
        time_aware: Settings of time-aware distillation.
        end_to_end: Settings of end-to-end fine-tuning.
        critic: Settings of the adversarial term, which every method can have.
        confidence_weight: Weight of the loss of the student's variance, which is trained on the student's own error.
        default_num_inference_steps: Number of sampling steps that the student takes unless told otherwise; null takes 4
            for consistency distillation and 1 for the other methods.
    """

    teacher: str | None = None
    revision: str | None = None
    student: str | None = None
    lora_rank: int = number(0, 0, 8192)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Literal["consistency", "time_aware", "end_to_end"] = "consistency"
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    time_aware: TimeAwareConfig = field(default_factory=TimeAwareConfig)
    end_to_end: EndToEndConfig = field(default_factory=EndToEndConfig)
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
        for name in ("score_timesteps", "critic_timesteps"):
            low, high = getattr(self.time_aware, name)
            if low > high:
                raise ValueError(f"time_aware.{name} is {low}, {high}: expected the lowest first")
        self._check_start()
        if self.method == "end_to_end":
            self._check_end_to_end()
        elif self.critic.weight and self.critic.head == "patch":
            raise ValueError(
                f"critic.head is patch, which reads pixels, but method {self.method} makes none: use light"
            )

    def _check_start(self) -> None:
        """Refuse a run that starts from nothing, or from two models."""
        starts_from_model = self.model != ModelConfig()
        if self.method != "end_to_end" and (self.teacher is None or starts_from_model):
            raise ValueError(f"method {self.method} needs a teacher, and no model: name the folder of a fine-tuned one")
        if (self.teacher is None) != starts_from_model:
            raise ValueError("give either `teacher` or `model` (a base, or a UNet from scratch) to start from")
        if starts_from_model:
            self.model.check()
            if self.student is not None or self.model.lora_rank:
                raise ValueError(
                    "student and model.lora_rank are not for a run that starts from `model`: leave them out"
                )

    def _check_end_to_end(self) -> None:
        """Refuse losses that teach nothing, or that the method does not have."""
        settings, critic = self.end_to_end, self.critic
        weights = [settings.pixel_weight, settings.texture_weight, settings.lpips_weight, critic.weight]
        if not any(weights):
            raise ValueError(
                "end_to_end.pixel_weight, texture_weight, lpips_weight and critic.weight are all 0, so nothing would "
                "be learnt: raise one of them"
            )
        if critic.weight and critic.real != "data":
            raise ValueError("critic.real is target, which method end_to_end has not: set it to data")
        if critic.weight and critic.head != "patch" and self.teacher is None and self.model.base is None:
            raise ValueError(f"critic.head is {critic.head}, which reads a trained UNet: set it to patch")
        if critic.weight and critic.head == "patch" and self.data.crop_size < SMALLEST_PATCH:
            raise ValueError(f"critic.head patch needs a data.crop_size of {SMALLEST_PATCH} at least, or a weight of 0")
        if self.data.latent_cache:
            raise ValueError("data.latent_cache is set, but method end_to_end compares pixels: remove it")
        if self.steps != 1:
            raise ValueError(f"default_num_inference_steps is {self.steps}: method end_to_end trains one step")
        if settings.default_realism and settings.starting_noise != "graded":
            raise ValueError("end_to_end.default_realism is set, but only graded noise has a realism: remove it")

    @property
    def steps(self) -> int:
        """The student's default number of steps."""
        return self.default_num_inference_steps or (4 if self.method == "consistency" else 1)

    @property
    def needs_results(self) -> bool:
        """Whether the student is regressed to the teacher's cached results."""
        return self.method == "time_aware" and self.time_aware.regression == "teacher"
