"""The typed settings of distillation."""

from dataclasses import dataclass, field
from typing import Literal

from c_diffset.training.config import OptimizerConfig, RunConfig
from c_diffset.training.limits import MOST_WEIGHT, number


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
class CriticConfig:
    """The adversarial term.

    Attributes:
        weight: Weight of the student's adversarial loss; 0 trains no critic.
        loss: Form of the adversarial loss: "softplus", "hinge" or "wasserstein".
        real: What counts as real for the consistency critic: the "target"'s prediction, or the "data".
        head: What turns the features of the teacher's UNet into a verdict: the "light" head, or the far larger one that
            was "published" with the method.
        optimizer: Settings of the critic's optimiser.
    """

    weight: float = number(0.0, 0.0, MOST_WEIGHT)
    loss: Literal["softplus", "hinge", "wasserstein"] = "softplus"
    real: Literal["target", "data"] = "target"
    head: Literal["light", "published"] = "light"
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
        for name in ("score_timesteps", "critic_timesteps"):
            low, high = getattr(self.time_aware, name)
            if low > high:
                raise ValueError(f"time_aware.{name} is {low}, {high}: expected the lowest first")

    @property
    def steps(self) -> int:
        """The student's default number of steps."""
        return self.default_num_inference_steps or (4 if self.method == "consistency" else 1)

    @property
    def needs_results(self) -> bool:
        """Whether the student is regressed to the teacher's cached results."""
        return self.method == "time_aware" and self.time_aware.regression == "teacher"
