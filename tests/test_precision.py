"""`auto` is the precision that a device has instructions for; one that would crawl is not taken."""

import json
import os
import sys

import numpy as np
import pytest
import torch
import yaml

from c_diffset.loading import load_pipeline
from c_diffset.precision import choose_precision
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig, SmallUNetConfig
from c_diffset.training.finetune import finetune
from tests.helpers import fresh_accelerate, run, short_run, succeed, write_png

GPU = torch.device("cuda", 0)
SAYS = (
    "bfloat16 would be many times slower than float32, as this {} has no instructions for it: float32 is used instead"
)


@pytest.mark.parametrize(
    ("capability", "auto", "bfloat16"),
    [
        ((9, 0), "bfloat16", "bfloat16"),
        ((8, 0), "bfloat16", "bfloat16"),
        ((7, 5), "float16", "float32"),
        ((7, 0), "float16", "float32"),
        ((6, 1), "float32", "float32"),
    ],
)
def test_a_gpu_is_judged_by_its_capability(capability, auto, bfloat16, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", GPU) == auto and not capsys.readouterr().err
    assert choose_precision("bfloat16", GPU) == bfloat16
    assert capsys.readouterr().err.strip() == ("" if bfloat16 == "bfloat16" else SAYS.format("cuda"))
    assert choose_precision("float32", GPU) == "float32" and choose_precision("float16", GPU) == "float16"
    assert choose_precision("auto", torch.device("mps")) == "float32"


def ask(isa: str, wanted: str) -> str:
    """What a new process chooses on this CPU, where oneDNN may use the instructions up to `isa`."""
    code = f"import torch; from c_diffset.precision import *; print(choose_precision({wanted!r}, torch.device('cpu')))"
    return succeed(sys.executable, "-c", code, env={"ONEDNN_MAX_CPU_ISA": isa}).strip()


@pytest.mark.slow
def test_a_cpu_is_judged_by_its_instructions():
    amx = torch.cpu._is_amx_tile_supported()
    assert ask("DEFAULT", "auto") == ("bfloat16" if amx else "float32")
    assert ask("AVX512_CORE_BF16", "auto") == "float32"
    assert ask("AVX512_CORE_BF16", "bfloat16") == ("bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32")
    assert [ask("AVX2", wanted) for wanted in ("auto", "bfloat16", "float16")] == ["float32"] * 3


@pytest.mark.slow
def test_commands_take_float32_where_bfloat16_would_crawl(make_pipe, tmp_path):
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    write_png(tmp_path / "sar/a.png", np.random.default_rng(0).integers(1, 256, (32, 32), dtype=np.uint8))
    write_pairs(tmp_path / "data", 2, size=32)
    options = ["--model", tmp_path / "model", "--output", tmp_path / "eo", "--dtype", "bfloat16"]
    old = {"env": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
    done = run(sys.executable, "-m", "c_diffset", "translate", tmp_path / "sar", *options, **old)
    assert done.returncode == 0 and SAYS.format("cpu") in done.stderr.splitlines()
    assert json.loads((tmp_path / "eo/manifest.jsonl").read_text())["settings"]["dtype"] == "float32"

    data = ["--data.source", tmp_path / "data", "--data.crop_size", 16, "--data.validation_split", "null"]
    rest = ["--max_steps", 1, "--batch_size", 1, "--output_dir", tmp_path / "run", "--mixed_precision", "bf16"]
    done = run(sys.executable, "-m", "c_diffset", "finetune", "--model.base", tmp_path / "model", *data, *rest, **old)
    assert done.returncode == 0 and SAYS.format("cpu") in done.stderr.splitlines()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["mixed_precision"] == "no"


def test_a_loaded_pipeline_is_in_the_precision_that_auto_means(make_pipe, tmp_path, monkeypatch):
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    assert load_pipeline(tmp_path / "model").dtype == torch.float32
    monkeypatch.setattr("c_diffset.precision.fast_precision", lambda device: "bfloat16")
    assert load_pipeline(tmp_path / "model").dtype == torch.bfloat16
    assert load_pipeline(tmp_path / "model", dtype="float32").dtype == torch.float32


def test_a_run_goes_on_in_its_precision_on_whatever_machine(tmp_path, monkeypatch):
    write_pairs(tmp_path / "data", 2, size=32)
    data = DataConfig(source=str(tmp_path / "data"), crop_size=16, validation_split=None)
    model = ModelConfig(unet=SmallUNetConfig(block_out_channels=[8, 32], layers_per_block=1, attention_levels=0))
    settings = dict(model=model, data=data, checkpoint_every=1, mixed_precision="auto")

    def train(fast: str, **changes) -> str:
        fresh_accelerate()
        monkeypatch.setattr("c_diffset.precision.fast_precision", lambda device: fast)
        finetune(short_run(FinetuneConfig, tmp_path / "run", tmp_path / "data", **settings | changes))
        return yaml.safe_load((tmp_path / "run/config.yaml").read_text())["mixed_precision"]

    assert train("bfloat16") == "bf16"
    for folder in list((tmp_path / "run/checkpoints").glob("step_*"))[-1:]:
        (folder / "checkpoint.json").write_text("")  # so that there is something left to do
    assert train("float32") == "bf16"
    with pytest.raises(ValueError, match="mixed_precision is no, but the run in"):
        train("float32", mixed_precision="no")


def test_auto_takes_what_accelerate_launch_names(tmp_path, monkeypatch):
    from c_diffset.training.loop import settled_precision

    write_pairs(tmp_path / "data", 1, size=32)
    model = ModelConfig(unet=SmallUNetConfig(block_out_channels=[8, 32]))
    config = short_run(FinetuneConfig, tmp_path / "run", tmp_path / "data", model=model, mixed_precision="auto")
    assert settled_precision(config) == "no"
    monkeypatch.setitem(os.environ, "ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr("c_diffset.precision.crawls", lambda *args: False)
    assert settled_precision(config) == "bf16"
