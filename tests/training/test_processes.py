"""Two processes train the model that one process with twice the batch trains."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from c_diffset.synthetic.generate import write_pairs
from tests.helpers import ACCELERATE, log_lines, succeed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    "method, head",
    [("finetune", None), ("consistency", "light"), ("time_aware", "light"), ("time_aware", "published")]
    + [("end_to_end", "patch")],
)
def test_two_processes_equal_twice_the_batch(method, head, tmp_path, make_pipe):
    write_pairs(tmp_path / "data", 5, size=32)
    settings = {
        "data": {"source": str(tmp_path / "data"), "crop_size": 32, "validation_split": None},
        "optimizer": {"warmup_steps": 2, "learning_rate": 1e-3},
        "max_steps": 6,
        "log_every": 1,
    }
    if method == "finetune":
        unet = {"block_out_channels": [8, 32], "layers_per_block": 1}
        settings |= {"model": {"unet": unet, "prediction_type": "v_prediction"}}
    else:
        make_pipe("pixel").save_pretrained(tmp_path / "teacher")
        settings |= {"teacher": str(tmp_path / "teacher"), "method": method, "critic": {"weight": 1.0, "head": head}}
        settings |= {"time_aware": {"results": str(tmp_path / "results"), "num_results": 65, "teacher_steps": 1}}
    if method == "end_to_end":
        settings["critic"]["real"] = "data"
        settings |= {"end_to_end": {"diversity": 1.0, "texture_weight": 1.0}}
    accelerate = str(Path(sys.executable).parent / "accelerate")
    for processes, batch_size in ((1, 4), (2, 2)):
        config = tmp_path / f"{processes}.yaml"
        output = {"output_dir": str(tmp_path / f"run{processes}"), "batch_size": batch_size}
        config.write_text(yaml.safe_dump(settings | output))
        launch = [accelerate, "launch", *(["--multi_gpu", "--num_processes", "2"] if processes == 2 else ["--cpu"])]
        command = [*launch, f"tools/{'finetune' if method == 'finetune' else 'distill'}.py", "--config", str(config)]
        # this variable is how `accelerate launch` starts several processes without a GPU
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    losses, weights = [], []
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        losses.append([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()])
        weights.append(load_file(run / "pipeline/unet/diffusion_pytorch_model.safetensors"))
    assert len(losses[0]) == 6
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-5, atol=1e-6)
    # AdamW divides by tiny second moments at first, which magnifies the rounding of another order of summation
    if method == "finetune":
        for key, value in weights[0].items():
            torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-5, msg=key)
    else:  # where the critic agrees, single weights have no gradient but rounding: judged by how far training went
        start = load_file(tmp_path / "teacher/unet/diffusion_pytorch_model.safetensors")
        went, apart = (
            sum((weights[0][key] - other[key]).square().sum().item() for key in start) ** 0.5
            for other in (start, weights[1])
        )
        assert apart < 1e-3 * went


def test_two_processes_go_on_at_the_change_of_stages(tmp_path):
    """A launcher that is killed leaves what it has started; so the last checkpoints are removed instead."""
    write_pairs(tmp_path / "data", 5, size=32)
    settings = {
        "data": {"source": str(tmp_path / "data"), "crop_size": 32, "validation_split": None},
        "model": {"unet": {"block_out_channels": [8, 32], "layers_per_block": 1}},
        "optimizer": {"warmup_steps": 2, "learning_rate": 1e-3},
        **{"max_steps": 6, "batch_size": 2, "log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 6},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    launch = [ACCELERATE, "launch", "--multi_gpu", "--num_processes", "2", "-m", "c_diffset", "finetune"]
    command, environment = [*launch, "--config", tmp_path / "recipe.yaml"], {"ACCELERATE_USE_CPU": "true"}
    succeed(*command, env=environment)
    whole = shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for later in (4, 5, 6):
        shutil.rmtree(tmp_path / f"run/checkpoints/step_{later:08d}")
    succeed(*command, env=environment)
    assert log_lines(tmp_path / "run") == log_lines(whole)
    for folder in ("pipeline", "stage1"):
        weights = f"{folder}/unet/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "run" / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.parametrize("options", [["--quiet", "--cpu"], ["--multi_gpu", "--num_processes", "2"]])
def test_what_is_wrong_with_the_data_is_said_once(options, tmp_path):
    """By the main process alone; where there is only one, `accelerate` can be told to say nothing below that line."""
    write_pairs(tmp_path / "data", 2, size=32)
    accelerate = str(Path(sys.executable).parent / "accelerate")
    command = [accelerate, "launch", *options, "-m", "c_diffset", "finetune", "--data.source", tmp_path / "data"]
    command += ["--output_dir", tmp_path / "run", "--model.base", tmp_path / "absent"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and done.stderr.count("has no split 'validation'") == 1, done.stderr
    assert options[0] != "--quiet" or "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
