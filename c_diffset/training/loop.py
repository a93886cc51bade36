"""The one training loop: exact resume, averaged weights, logging, validation, checkpoints.

What differs between methods is a `Task`: its models and optimisers, and what one micro-batch does to them.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration, broadcast, parse_flag_from_env, set_seed
from tqdm import tqdm

from c_diffset.cpu import use_whole_cpu
from c_diffset.data.pairs import Pair
from c_diffset.files import read_yaml
from c_diffset.history import write_history
from c_diffset.measurement.preview import write_preview
from c_diffset.noise import noise_generator
from c_diffset.precision import choose_precision
from c_diffset.training.average import AveragedWeights
from c_diffset.training.checkpoint import Part
from c_diffset.training.config import TRACKERS, Phase, RunConfig
from c_diffset.training.run import RunFolder
from c_diffset.training.stopping import Stop, Stopped
from c_diffset.training.task import Task, learning_rate
from c_diffset.training.trackers import start_trackers, track_picture


def settled_precision(config: RunConfig) -> Literal["no", "fp16", "bf16"] | None:
    """The precision that a run is really trained in.

    A run that goes on keeps its own, on whatever machine. Else "auto" is what `accelerate launch` names, or what the
    device is fast in; and a precision in which it would crawl becomes "no", which is said.

    Raises:
        OSError, ValueError: the run that goes on has lost its settings.
    """
    run, wanted = RunFolder(config.output_dir), config.mixed_precision
    if run.finished_checkpoints():
        stored = read_yaml(run.settings).get("mixed_precision")
        if wanted in ("auto", stored):
            return stored
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if wanted == "auto" and launched in ("fp16", "bf16"):
        wanted = launched
    if wanted in (None, "no"):
        return wanted
    state, names = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")), {"fp16": "float16", "bf16": "bfloat16"}
    chosen = choose_precision(names.get(wanted, "auto"), state.device, quiet=not state.is_main_process)
    return next((mixed for mixed, name in names.items() if name == chosen), "no")


def make_accelerator(config: RunConfig) -> Accelerator:
    """The Accelerator of a run: precision, which is settled in `config`, accumulation, trackers and seeds."""
    config.mixed_precision = settled_precision(config)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=TRACKERS[config.report_to] or None,
        project_config=ProjectConfiguration(config.output_dir, logging_dir=str(Path(config.output_dir, "logs"))),
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
        Stopped: Ctrl-C or SIGTERM; a checkpoint is written, and a message says how the run goes on.
    """
    run, stop = RunFolder(config.output_dir), Stop(accelerator)
    seen = [task.see(pair) for pair in pairs]
    with run.opened(config) if accelerator.is_main_process else nullcontext(), stop.watched():
        if seen:
            write_preview(run.preview, seen, task.sar_transform)
        accelerator.wait_for_everyone()
        training = _Training(task, config, accelerator, run, stop)
        try:
            training.resume()
            training.go_on()
        except Stopped:
            training.say_where_it_goes_on()
            raise
        left = broadcast(torch.tensor(int(training.to_validate), device=accelerator.device))
        accelerator.end_training()
        if training.stopping and (training.progress.step < config.max_steps or left):
            training.say_where_it_goes_on()
            raise Stopped(stop.number)
    return run.path / "pipeline"


class _Progress:
    """What every checkpoint says of a run: the number of its updates, their phase, and the losses not logged yet.

    The losses are sums with the number of values in them, those of all processes one after the other.
    """

    def __init__(self, accelerator: Accelerator, config: RunConfig):
        self.accelerator, self.config, self.step = accelerator, config, 0
        self.losses: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, logs: dict[str, torch.Tensor]) -> None:
        """Take in what one micro-batch has logged."""
        for name, value in logs.items():
            self.losses[name] = self.losses.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The mean of each loss since the last call, over all processes."""
        sums = {name: self.accelerator.reduce(sum_ / self.counts[name], "mean") for name, sum_ in self.losses.items()}
        self.losses, self.counts = {}, {}
        return {name: sum_.item() for name, sum_ in sums.items()}

    def gather(self) -> None:
        """Bring the losses of all processes together for a checkpoint, which one of them writes."""
        self.losses = {name: self.accelerator.gather(sum_.reshape(1)) for name, sum_ in self.losses.items()}

    @property
    def phase(self) -> Phase:
        """The phase of the last update."""
        return self.config.phase(max(0, self.step - 1))

    def state_dict(self) -> dict:
        return {"step": self.step, "schedule": str(self.phase), "losses": self.losses, "counts": self.counts}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.counts = state["step"], dict(state.get("counts", {}))
        then = state.get("schedule", f"updates 1 to {self.config.max_steps}")
        if then != str(self.phase) and self.step < self.config.max_steps:
            raise ValueError(
                f"the last update of this run belongs to a schedule of {then}, but by these settings to one of "
                f"{self.phase} (earlier versions had one for both stages): restore confidence_start_step, or choose "
                "another output_dir and start from this run's pipeline/ (model.base)"
            )
        rank, device = self.accelerator.process_index, self.accelerator.device
        gathered = state.get("losses", {})
        self.losses = {name: values[rank % len(values)].to(device) for name, values in gathered.items()}


class _Training:
    """What the loop carries from one update to the next."""

    def __init__(self, task: Task, config: RunConfig, accelerator: Accelerator, run: RunFolder, stop: Stop):
        self.task, self.config, self.accelerator, self.run, self.stop = task, config, accelerator, run, stop
        self.main = accelerator.is_main_process
        self.progress, self.ema = _Progress(accelerator, config), AveragedWeights(task.trainable, config.ema_decay)
        self.to_validate = self.stopping = False
        self.samples_per_step = config.batch_size * accelerator.num_processes * config.gradient_accumulation_steps

    def parts(self) -> dict[str, Part]:
        """All that an update depends on. Whatever is random follows from the seed and the number of the update."""
        scaler = {} if self.accelerator.scaler is None else {"scaler": self.accelerator.scaler}
        return self.task.parts() | {"average": self.ema, "progress": self.progress} | scaler

    def resume(self) -> None:
        """Prepare the task, and give it the state of the newest whole checkpoint."""
        self.task.prepare(self.accelerator)
        self.ema.to(self.accelerator.device)
        newest = torch.tensor(self.run.newest(self.parts()) if self.main else 0, device=self.accelerator.device)
        step = int(broadcast(newest))
        if step:
            self.run.load(self.parts(), step)
        if self.main:
            if 0 < step < self.config.max_steps:
                print(f"{self.run.path}: going on after update {step} of {self.config.max_steps}", flush=True)
            self.run.forget_after(step)
            start_trackers(self.accelerator, self.config)
        data = self.config.data
        due = step > 0 and self._is_validated(step) and bool(data.validation_split or data.validation_fraction)
        self.to_validate = due and not self.run.has_validation(step)

    def go_on(self) -> None:
        """Update after update, to the last, or until the training is told to stop."""
        config, accelerator, rank = self.config, self.accelerator, self.accelerator.process_index
        batches = iter(self.task.loader(accelerator, self.progress.step * self.samples_per_step))
        options = dict(total=config.max_steps, initial=self.progress.step, unit="step", smoothing=0.05)
        with tqdm(**options, disable=not self.main) as bar, self.stop.finishing():
            if self.to_validate:  # it was stopped before it came to that
                self._on_main(self._validate)
                self.stopping = self.stop.agreed()
            self._restart_clock()
            while self.progress.step < config.max_steps and not self.stopping:
                if self.progress.step == config.phase(self.progress.step).start > 0:
                    self._begin_phase()
                torch.manual_seed(noise_generator(config.seed, self.progress.step, rank).initial_seed())  # of dropout
                for _ in range(config.gradient_accumulation_steps):
                    self.progress.add(self.task.train_batch(accelerator, next(batches), self.progress.step))
                self.ema.update()
                self.progress.step += 1
                bar.update()
                self._after_update(bar)

    def _begin_phase(self) -> None:
        """Go on from the averaged weights, which are the finished model, as a training of its own would."""
        self.ema.restart()
        self.task.optimizer.state.clear()
        if self.main:
            tqdm.write(f"{self.run.path}: stage 1 is finished, and kept in stage1/; stage 2 begins")

    def _ends_phase(self, step: int) -> bool:
        return step == self.config.phase(step - 1).end

    def _is_validated(self, step: int) -> bool:
        every = self.config.validation.every
        return self._ends_phase(step) or (every > 0 and step % every == 0)

    def _after_update(self, bar: tqdm) -> None:
        """Log, validate and save where this is due, or where the training is told to stop."""
        config, step = self.config, self.progress.step
        save = self._ends_phase(step) or step % config.checkpoint_every == 0
        self.to_validate = self._is_validated(step)
        if save or step % config.log_every == 0:
            self._log(bar)
        validate = self.to_validate and not self.stop.agreed()
        if validate:
            self._on_main(self._validate)
        self.stopping = self.stop.agreed()
        if save or self.stopping:
            self.progress.gather()
            self._on_main(self._save)
        if validate or save:
            self._restart_clock()

    def _on_main(self, work) -> None:
        """Let the main process do something with the averaged weights, while the others wait."""
        if self.main:
            work()
        self.accelerator.wait_for_everyone()

    def _restart_clock(self) -> None:
        self.clock, self.clock_step = time.perf_counter(), self.progress.step

    def _log(self, bar: tqdm) -> None:
        """The mean of each loss since the last line, over all processes."""
        step, steps = self.progress.step, self.progress.step - self.clock_step
        values = self.progress.means()
        phase = self.progress.phase
        values["learning_rate"] = learning_rate(step - 1, phase.optimizer, phase)
        if phase.stage is not None:
            values["stage"] = phase.stage
        values["images_per_second"] = steps * self.samples_per_step / (time.perf_counter() - self.clock)
        if self.main:
            self.run.log(step=step, **values)
            bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        self.accelerator.log(values, step=step)
        self._restart_clock()

    def _validate(self) -> None:
        """Validate the averaged weights, log, and keep the best pipeline; after a signal, the next start does it."""
        step = self.progress.step
        with self.ema.applied():
            pipe = self.task.pipeline(step)
            picture = self.run.samples / f"step_{step:08d}.png"
            try:
                with self.stop.interruptible():
                    values = self.task.validate(pipe, picture, step)
            except Stopped:
                return
            self.to_validate = False
            if values is None:
                return
            metric = self.config.validation.metric
            best, value = self.run.best_value(metric, after=self.task.rivals_after(step)), values[metric]
            if best is None or (value < best if metric == "lpips" else value > best):
                self.run.replace("best", self._writer(pipe))
        named = {f"validation/{name}": value for name, value in values.items()}
        self.run.log(step=step, **named)
        self.accelerator.log(named, step=step)
        track_picture(self.accelerator, picture, step)

    def _save(self) -> None:
        """The pipeline first: where a checkpoint is, its pipeline is too."""
        step = self.progress.step
        with self.ema.applied():
            pipe = self.task.pipeline(step)
            self.run.replace("pipeline", self._writer(pipe))
            self.task.save_adapter(self.run)
            if self._ends_phase(step) and step < self.config.max_steps:
                self.run.replace("stage1", self._writer(pipe))
        self.run.save(self.parts(), step, self.config.keep_checkpoints)

    def _writer(self, pipe) -> Callable[[Path], None]:
        """What fills a model's folder: the model, and how it was trained."""

        def write(folder: Path) -> None:
            pipe.save_pretrained(folder)
            write_history(folder, self.config, self.progress.step)

        return write

    def say_where_it_goes_on(self) -> None:
        """Say after which update the run has stopped, and how it goes on."""
        if not self.main:
            return
        step, saved = self.progress.step, self.run.last_saved()
        command = "the same command" if self.config.resume else "the same command with --resume true"
        if not saved:
            outcome = "stopped before the first checkpoint; the same command starts again"
        elif step == saved:
            outcome = f"stopped after update {step}; {command} goes on from there"
        else:
            outcome = f"ended after update {step}; {command} goes on from update {saved}"
        print(f"{self.run.path}: {outcome}", file=sys.stderr, flush=True)
