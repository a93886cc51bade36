"""The one training loop: exact resume, averaged weights, logging, validation, checkpoints.

What differs between methods is a `Task`: its models and optimisers, and what one micro-batch does to them.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast, set_seed
from tqdm import tqdm

from c_diffset.cpu import use_whole_cpu
from c_diffset.data.pairs import Pair
from c_diffset.measurement.preview import write_preview
from c_diffset.noise import noise_generator
from c_diffset.training.average import AveragedWeights
from c_diffset.training.checkpoint import Part
from c_diffset.training.config import RunConfig
from c_diffset.training.run import RunFolder
from c_diffset.training.task import Task


def make_accelerator(config: RunConfig) -> Accelerator:
    """The Accelerator of a run: precision, accumulation, TensorBoard and seeds."""
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=config.output_dir),
    )
    if accelerator.device.type == "cpu":
        use_whole_cpu(accelerator.num_processes)
    set_seed(config.seed)
    return accelerator


def train(task: Task, config: RunConfig, accelerator: Accelerator, pairs: Sequence[Pair] = ()) -> Path:
    """Train to `config.max_steps`, from the newest whole checkpoint on; returns the folder of the pipeline.

    `preview.png` in the run's folder shows `pairs` as the model sees them.

    Raises:
        ValueError: the folder cannot be used, or its run cannot be continued in this way.
        OSError: another training writes to it.
    """
    run = RunFolder(config.output_dir)
    seen = [task.see(pair) for pair in pairs]
    with run.opened(config) if accelerator.is_main_process else nullcontext():
        if seen:
            write_preview(run.preview, seen, task.sar_transform)
        accelerator.wait_for_everyone()
        training = _Training(task, config, accelerator, run)
        training.resume()
        training.go_on()
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return run.path / "pipeline"


class _Count:
    """The number of finished updates, in every checkpoint."""

    value = 0

    def state_dict(self) -> dict:
        return {"step": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["step"]


class _Training:
    """What the loop carries from one update to the next."""

    def __init__(self, task: Task, config: RunConfig, accelerator: Accelerator, run: RunFolder):
        self.task, self.config, self.accelerator, self.run = task, config, accelerator, run
        self.main = accelerator.is_main_process
        self.step, self.ema = _Count(), AveragedWeights(task.trainable, config.ema_decay)
        self.losses: dict[str, torch.Tensor] = {}
        self.samples_per_step = config.batch_size * accelerator.num_processes * config.gradient_accumulation_steps

    def parts(self) -> dict[str, Part]:
        """All that an update depends on. Whatever is random follows from the seed and the number of the update."""
        scaler = {} if self.accelerator.scaler is None else {"scaler": self.accelerator.scaler}
        return self.task.parts() | {"average": self.ema, "progress": self.step} | scaler

    def resume(self) -> None:
        """Prepare the task, and give it the state of the newest whole checkpoint."""
        self.task.prepare(self.accelerator)
        self.ema.to(self.accelerator.device)
        newest = torch.tensor(self.run.newest(self.parts()) if self.main else 0, device=self.accelerator.device)
        step = int(broadcast(newest))
        if step:
            self.run.load(self.parts(), step)
        if self.main:
            self.run.forget_after(step)
            self.accelerator.init_trackers("logs")
        self._restart_clock()

    def go_on(self) -> None:
        """Update after update, to the last."""
        config, accelerator, rank = self.config, self.accelerator, self.accelerator.process_index
        batches = iter(self.task.loader(accelerator, self.step.value * self.samples_per_step))
        options = dict(total=config.max_steps, initial=self.step.value, unit="step", smoothing=0.05)
        with tqdm(**options, disable=not self.main) as bar:
            while self.step.value < config.max_steps:
                torch.manual_seed(noise_generator(config.seed, self.step.value, rank).initial_seed())  # of dropout
                for _ in range(config.gradient_accumulation_steps):
                    logs = self.task.train_batch(accelerator, next(batches), self.step.value)
                    for name, value in logs.items():
                        self.losses[name] = self.losses.get(name, 0) + value
                self.ema.update()
                self.step.value += 1
                bar.update()
                self._after_update(bar)

    def _after_update(self, bar: tqdm) -> None:
        """Log, validate and save where this is due."""
        config, step = self.config, self.step.value
        last = step == config.max_steps
        save = last or step % config.checkpoint_every == 0
        validate = last or (config.validation.every > 0 and step % config.validation.every == 0)
        if save or step % config.log_every == 0:
            self._log(bar)
        if validate:
            self._on_main(self._validate)
        if save:
            self._on_main(self._save)
        if validate or save:
            self._restart_clock()

    def _on_main(self, work) -> None:
        """Let the main process do something with the averaged weights, while the others wait."""
        if self.main:
            work()
        self.accelerator.wait_for_everyone()

    def _restart_clock(self) -> None:
        self.logged_at, self.logged_step = time.perf_counter(), self.step.value

    def _log(self, bar: tqdm) -> None:
        """The mean of each loss since the last line, over all processes."""
        steps = self.step.value - self.logged_step
        count = steps * self.config.gradient_accumulation_steps
        values = {name: self.accelerator.reduce(sum_ / count, "mean").item() for name, sum_ in self.losses.items()}
        values["images_per_second"] = steps * self.samples_per_step / (time.perf_counter() - self.logged_at)
        if self.main:
            self.run.log(step=self.step.value, **values)
            bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        self.accelerator.log(values, step=self.step.value)
        self.losses = {}
        self._restart_clock()

    def _validate(self) -> None:
        """Validate the averaged weights, log, and keep the best pipeline."""
        with self.ema.applied():
            pipe = self.task.pipeline(self.task.model)
            values = self.task.validate(pipe, self.run.samples / f"step_{self.step.value:08d}.png")
            if values is None:
                return
            metric = self.config.validation.metric
            best, value = self.run.best_value(metric), values[metric]
            if best is None or (value < best if metric == "lpips" else value > best):
                self.run.replace("best", pipe.save_pretrained)
        named = {f"validation/{name}": value for name, value in values.items()}
        self.run.log(step=self.step.value, **named)
        self.accelerator.log(named, step=self.step.value)

    def _save(self) -> None:
        """The pipeline first: where a checkpoint is, its pipeline is too."""
        with self.ema.applied():
            self.run.replace("pipeline", self.task.pipeline(self.task.model).save_pretrained)
            self.task.save_adapter(self.run)
        self.run.save(self.parts(), self.step.value, self.config.keep_checkpoints)
