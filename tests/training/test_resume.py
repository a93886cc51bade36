"""A training that is killed, at any moment, goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import FinetuneConfig, parse_config
from c_diffset.training.run import RunFolder, check_same_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
STEPS = 14


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    """Stages 1 and 2, accumulation, EMA; checkpoints at other steps than log lines."""
    data = tmp_path_factory.mktemp("data")
    write_pairs(data, 6, size=32)
    return {
        "model": {
            "unet": {"block_out_channels": [8, 32], "layers_per_block": 1},
            "sar_transform": {"units": "display", "range": [0.0, 1.0], "channels": [0]},
        },
        "data": {"source": str(data), "crop_size": 16, "validation_split": None},
        "optimizer": {"warmup_steps": 3, "learning_rate": 1e-3},
        "confidence_start_step": 8,
        "max_steps": STEPS,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "log_every": 2,
        "checkpoint_every": 3,
    }


def command(settings: dict, output: Path) -> list[str]:
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings | {"output_dir": str(output)}))
    tool = "distill" if "teacher" in settings else "finetune"
    return [sys.executable, f"tools/{tool}.py", "--config", str(config)]


def finish(settings: dict, output: Path) -> None:
    done = subprocess.run(command(settings, output), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def kill_when(condition, settings: dict, output: Path) -> None:
    """Start the training in a group of its own, and SIGKILL it as soon as `condition()` holds."""
    process = subprocess.Popen(command(settings, output), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def log_lines(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    finish(settings, output)
    return output


def assert_same_run(output: Path, uninterrupted: Path) -> None:
    """The same losses, bit for bit, and the same weights; nothing half-written is left."""
    assert log_lines(output) == log_lines(uninterrupted)
    assert [line["step"] for line in log_lines(output)][-1] == STEPS
    name = "pipeline/unet/diffusion_pytorch_model.safetensors"
    expected = load_file(uninterrupted / name)
    for key, value in load_file(output / name).items():
        assert torch.equal(value, expected[key]), key
    assert not [path for path in output.rglob("*") if path.name.endswith((".partial", ".old", ".lock"))]


def test_killed_in_the_middle_of_a_step(settings, uninterrupted, tmp_path):
    output = tmp_path / "run"
    metrics = output / "metrics.jsonl"
    kill_when(lambda: metrics.exists() and '"step": 10' in metrics.read_text(), settings, output)
    assert RunFolder(output).finished_checkpoints()[-1].name < f"step_{STEPS:08d}"
    finish(settings, output)
    assert_same_run(output, uninterrupted)


@pytest.mark.parametrize("method", ["consistency", "time_aware"])
def test_a_killed_distillation_goes_on_exactly(method, settings, uninterrupted, tmp_path):
    """Student, critic, both optimisers, target and average: a lost one would change the losses that follow."""
    settings = {key: value for key, value in settings.items() if key not in ("model", "confidence_start_step")}
    settings |= {"teacher": str(uninterrupted / "pipeline"), "method": method, "critic": {"weight": 1.0}}
    settings |= {"time_aware": {"results": str(tmp_path / "results"), "num_results": 5, "teacher_steps": 2}}
    finish(settings, tmp_path / "whole")
    output = tmp_path / "run"
    metrics = output / "metrics.jsonl"
    kill_when(lambda: metrics.exists() and '"step": 10' in metrics.read_text(), settings, output)
    assert RunFolder(output).finished_checkpoints()[-1].name < f"step_{STEPS:08d}"
    finish(settings, output)
    assert_same_run(output, tmp_path / "whole")
    assert "critic" in log_lines(output)[-1]


def test_killed_in_the_middle_of_a_checkpoint(settings, uninterrupted, tmp_path):
    output = tmp_path / "run"
    aside = output / "checkpoints/.step_00000006.partial"
    kill_when(lambda: aside.exists() and any(aside.iterdir()), settings, output)
    finish(settings, output)
    assert_same_run(output, uninterrupted)


def test_killed_between_the_renames_of_the_pipeline(settings, uninterrupted, tmp_path):
    output = tmp_path / "run"
    finish(settings, output)
    (output / "pipeline").rename(output / "checkpoints/.pipeline.partial")
    (output / "checkpoints/.pipeline.old").mkdir()
    finish(settings, output)
    assert_same_run(output, uninterrupted)


def test_a_run_is_not_continued_under_other_settings(settings, uninterrupted, tmp_path):
    config = tmp_path / "config.yaml"
    for change, key in (({"seed": 1}, "seed"), ({"max_steps": 20}, "max_steps")):
        config.write_text(yaml.safe_dump(settings | {"output_dir": str(uninterrupted)} | change))
        parsed = parse_config(FinetuneConfig, "", ["--config", str(config)])
        with pytest.raises(ValueError, match=f"^{key} is"):
            check_same_run(parsed, uninterrupted / "config.yaml")
    config.write_text(yaml.safe_dump(settings | {"output_dir": str(uninterrupted), "resume": False}))
    with pytest.raises(ValueError, match="holds a run already"):
        with RunFolder(uninterrupted).opened(parse_config(FinetuneConfig, "", ["--config", str(config)])):
            pass
