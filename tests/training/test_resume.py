"""A training that is killed, at any moment, goes on as if nothing had happened."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.run import RunFolder
from tests.helpers import kill_when, log_lines, succeed, training_command

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    succeed(*training_command(settings, output))
    return output


def assert_same_run(output: Path, uninterrupted: Path) -> None:
    """The same losses, bit for bit, and the same weights; nothing half-written is left."""
    assert log_lines(output) == log_lines(uninterrupted)
    assert [line["step"] for line in log_lines(output)][-1] == STEPS
    for folder in ("pipeline", "stage1"):
        name = f"{folder}/unet/diffusion_pytorch_model.safetensors"
        expected = load_file(uninterrupted / name)
        for key, value in load_file(output / name).items():
            assert torch.equal(value, expected[key]), key
    assert not [path for path in output.rglob("*") if path.name.endswith((".partial", ".old", ".lock"))]


@pytest.mark.parametrize("step", [8, 10])
def test_killed_in_the_middle_of_a_step(step, settings, uninterrupted, tmp_path):
    """Stage 1 ends with update 8."""
    output = tmp_path / "run"
    metrics = output / "metrics.jsonl"
    kill_when(
        lambda: metrics.exists() and f'"step": {step}' in metrics.read_text(), *training_command(settings, output)
    )
    assert RunFolder(output).finished_checkpoints()[-1].name < f"step_{STEPS:08d}"
    succeed(*training_command(settings, output))
    assert_same_run(output, uninterrupted)


@pytest.mark.parametrize("name", ["step_00000006", "stage1"])
def test_killed_in_the_middle_of_a_checkpoint(name, settings, uninterrupted, tmp_path):
    """In stage 1, and while its finished model is kept."""
    output = tmp_path / "run"
    aside = output / f"checkpoints/.{name}.partial"
    kill_when(lambda: aside.exists() and any(aside.iterdir()), *training_command(settings, output))
    succeed(*training_command(settings, output))
    assert_same_run(output, uninterrupted)
