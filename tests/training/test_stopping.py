"""Ctrl-C and SIGTERM: a training finishes its update, writes a checkpoint, and goes on as if not stopped."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from c_diffset.cli import main
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.average import AveragedWeights
from c_diffset.training.run import RunFolder
from c_diffset.training.validation import Validator
from tests.helpers import ACCELERATE, ROOT, fresh_accelerate, log_lines
from tests.training.test_run import assert_same

STEPS = 10


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Stages 1 and 2, accumulation, validation; log lines, validations and checkpoints at different updates."""
    folder = tmp_path_factory.mktemp("stopping")
    for split, count in (("train", 4), ("validation", 1)):
        write_pairs(folder / "data", count, size=32, split=split)
    settings = {
        "model": {"unet": {"block_out_channels": [8, 32], "layers_per_block": 1, "attention_levels": 0}},
        "data": {"source": str(folder / "data"), "crop_size": 16},
        "validation": {"every": 5, "num_images": 1, "crop_size": None, "num_inference_steps": 1},
        "optimizer": {"warmup_steps": 3, "learning_rate": 1e-3},
        "confidence_start_step": 5,
        "max_steps": STEPS,
        "batch_size": 1,
        "gradient_accumulation_steps": 2,
        "mixed_precision": "no",
        "ema_decay": 0.9,
        "log_every": 3,
        "checkpoint_every": 4,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def train(recipe: Path, output: Path) -> int:
    """The exit status of the command."""
    fresh_accelerate()
    return main(["finetune", "--config", str(recipe), "--output_dir", str(output)])


@pytest.fixture(scope="module")
def whole(recipe) -> Path:
    assert train(recipe, recipe.parent / "whole") == 0
    return recipe.parent / "whole"


def signalled(monkeypatch, owner: type, name: str, when: Callable, *numbers: int) -> None:
    """Send these signals to this process before the method `name`, whenever `when` holds for its arguments."""
    method = getattr(owner, name)

    def first_signal(*args):
        if when(*args):
            for number in numbers:
                os.kill(os.getpid(), number)
        return method(*args)

    monkeypatch.setattr(owner, name, first_signal)


def update_number(number: int) -> Callable:
    """A condition for `signalled` on `AveragedWeights.update`: it is the update of this number."""
    numbers = itertools.count(1)
    return lambda average: next(numbers) == number


@pytest.mark.parametrize(("update", "number", "status"), [(7, signal.SIGINT, 130), (5, signal.SIGTERM, 143)])
def test_a_signal_finishes_the_update_and_the_run_goes_on_from_there(
    update, number, status, recipe, whole, tmp_path, monkeypatch, capfd
):
    """After update 7: log lines come after 6 and 9, so that the losses of one update are not logged yet. Update 5 is
    the last one of stage 1."""
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    signalled(monkeypatch, AveragedWeights, "update", update_number(update), number)
    assert train(recipe, tmp_path / "run") == status
    said = capfd.readouterr().err
    assert "stopping after this update" in said
    told = f"{tmp_path / 'run'}: stopped after update {update}; the same command goes on from there"
    assert said.splitlines()[-1] == told
    assert RunFolder(tmp_path / "run").finished_checkpoints()[-1].name == f"step_{update:08d}"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    assert train(recipe, tmp_path / "run") == 0
    assert f"{tmp_path / 'run'}: going on after update {update} of {STEPS}" in capfd.readouterr().out
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("step", [5, STEPS])
def test_a_signal_ends_a_validation_which_the_next_start_does(step, recipe, whole, tmp_path, monkeypatch, capfd):
    is_due = lambda validator, pipe, picture, *rest: picture.name == f"step_{step:08d}.png"  # noqa: E731
    signalled(monkeypatch, Validator, "__call__", is_due, signal.SIGTERM)
    assert train(recipe, tmp_path / "run") == 143
    assert f"stopped after update {step}; " in capfd.readouterr().err
    assert not RunFolder(tmp_path / "run").has_validation(step)
    monkeypatch.undo()
    assert train(recipe, tmp_path / "run") == 0
    assert_same(tmp_path / "run", whole)


def test_a_second_ctrl_c_ends_at_once(recipe, whole, tmp_path, monkeypatch, capfd):
    twice = (signal.SIGINT, signal.SIGINT)
    signalled(monkeypatch, AveragedWeights, "update", update_number(7), *twice)
    assert train(recipe, tmp_path / "run") == 130
    assert "ended after update 6; the same command goes on from update 5" in capfd.readouterr().err
    monkeypatch.undo()
    assert train(recipe, tmp_path / "run") == 0
    assert_same(tmp_path / "run", whole)


def test_a_signal_before_the_first_update_ends_at_once(recipe, tmp_path, monkeypatch, capfd):
    signalled(monkeypatch, RunFolder, "newest", lambda *args: True, signal.SIGTERM)
    assert train(recipe, tmp_path / "run") == 143
    assert "stopped before the first checkpoint; the same command starts again" in capfd.readouterr().err


def test_a_training_in_another_thread_leaves_the_signals_alone(recipe, whole, tmp_path):
    handler, found = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: found.append(train(recipe, tmp_path / "run")))
    thread.start()
    thread.join()
    assert found == [0] and signal.getsignal(signal.SIGTERM) is handler
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers", "number"), [(1, 2, signal.SIGINT), (2, 0, signal.SIGTERM)])
def test_real_processes_are_stopped(processes, workers, number, recipe, tmp_path):
    """Ctrl-C reaches the processes that load pairs too; SIGTERM to the launcher reaches both that train."""
    long = ["--max_steps", "100000", "--data.num_workers", str(workers), "--validation.every", "0"]
    command = ["finetune", "--config", str(recipe), "--output_dir", str(tmp_path / "run"), *long]
    if processes > 1:
        launch = [ACCELERATE, "launch", "--multi_gpu", "--num_processes", str(processes), "-m", "c_diffset"]
    else:
        launch = [sys.executable, "-m", "c_diffset"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(
        [*launch, *command], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = tmp_path / "run/metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    if processes > 1:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    said = process.communicate(timeout=300)[1]
    stopped = int(said.split("stopped after update ")[1].split(";")[0])
    assert RunFolder(tmp_path / "run").last_saved() == stopped > 0
    if processes == 1:
        assert process.returncode == 130 and "Traceback" not in said
    assert log_lines(tmp_path / "run")[-1]["step"] <= stopped
