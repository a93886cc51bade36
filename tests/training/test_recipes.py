"""Recipes by name, from wherever a command is started."""

import sys

import pytest
import yaml

from c_diffset.training.config import FinetuneConfig
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.parser import parse_config
from c_diffset.training.recipes import recipes
from tests.helpers import ROOT, succeed

NAMES = sorted(path.stem for path in ROOT.glob("train_configs/*.yaml"))


def test_every_published_recipe_has_a_name():
    assert NAMES and list(recipes()) == NAMES


def test_a_name_reads_the_recipe_and_options_override_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = parse_config(FinetuneConfig, "", ["--config", "sd21", "--max_steps", "7"])
    path = parse_config(FinetuneConfig, "", ["--config", str(ROOT / "train_configs/sd21.yaml"), "--max_steps", "7"])
    assert named == path and named.max_steps == 7


def test_a_file_in_the_folder_comes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"output_dir": "run", "model": {"unet": {"block_out_channels": [8, 32]}}, "data": {"source": "mine"}}
    (tmp_path / "sd21").write_text(yaml.safe_dump(settings))
    assert parse_config(FinetuneConfig, "", ["--config", "sd21"]).data.source == "mine"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="sd99") as refusal:
        parse_config(DistillConfig, "", ["--config", "sd99"])
    assert all(name in str(refusal.value) for name in NAMES)


@pytest.mark.slow
def test_the_command_and_the_tool_know_them(tmp_path):
    settings = ["--config", "sd21", "--data.source", "pairs", "--print_config"]
    shown = []
    for command in (["-m", "c_diffset", "finetune"], [str(ROOT / "tools/finetune.py")]):
        printed = succeed(sys.executable, *command, *settings, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
        shown.append(yaml.safe_load(printed))
    assert shown[0] == shown[1] and shown[0]["data"]["source"] == "pairs"
