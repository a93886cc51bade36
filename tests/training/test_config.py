"""Settings: read, checked, overridden, written."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from c_diffset.training.config import DecoderConfig, FinetuneConfig, Phase
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.parser import parse_config
from c_diffset.training.run import check_same_run, save_config
from c_diffset.training.task import learning_rate
from tests.hostile import outcome

ROOT = Path(__file__).parent.parent.parent
MINIMAL = {"output_dir": "run", "model": {"unet": {"block_out_channels": [8, 32]}}, "data": {"source": "pairs"}}


def parse(tmp_path, settings: dict, *args: str) -> FinetuneConfig:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return parse_config(FinetuneConfig, "", ["--config", str(tmp_path / "config.yaml"), *args])


@pytest.mark.parametrize("path", sorted(ROOT.glob("train_configs/*.yaml")), ids=lambda path: path.stem)
def test_published_recipes_are_valid(path):
    settings = yaml.safe_load(path.read_text())
    config_class = DistillConfig if "teacher" in settings else DecoderConfig if "base" in settings else FinetuneConfig
    assert parse_config(config_class, "", ["--config", str(path)]).max_steps > 0


def test_the_command_line_overrides_the_file(tmp_path):
    config = parse(tmp_path, MINIMAL, "--optimizer.learning_rate", "1e-5", "--data.crop_size", "64")
    assert config.optimizer.learning_rate == 1e-5 and config.data.crop_size == 64


def test_resolved_settings_read_back_equal(tmp_path):
    transform = {"units": "db", "channels": [0, 1, "0-1"], "range": [[-25, 0], [-32, -5], [0, 20]]}
    config = parse(tmp_path, MINIMAL | {"model": MINIMAL["model"] | {"sar_transform": transform}})
    save_config(config, tmp_path / "resolved.yaml")
    assert parse_config(FinetuneConfig, "", ["--config", str(tmp_path / "resolved.yaml")]) == config


@pytest.mark.parametrize(
    "change, named",
    [
        ({"optimizer": {"lr": 1e-4}}, "lr"),
        ({"steps": 3}, "steps"),
        ({"max_steps": "many"}, "max_steps"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"stage": "third"}, "stage"),
        ({"max_steps": 1e12}, "max_steps"),
        ({"batch_size": 10**12}, "batch_size is 1000000000000, expected 1 to 65,536"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": None}, "batch_size is null"),
        ({"optimizer": {"betas": None}}, "optimizer.betas is null"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate is nan, expected 0.0 to 10.0"),
        ({"optimizer": {"learning_rate": float("inf")}}, "optimizer.learning_rate is inf"),
        ({"optimizer": {"schedule": "step"}}, "optimizer.schedule"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"optimizer.betas is \(0.9, 1.0\)"),
        ({"data": {"source": "pairs", "crop_size": 0}}, "data.crop_size is 0"),
        ({"data": {"source": "pairs", "crop_size": -1}}, "data.crop_size is -1"),
        ({"model": {"unet": {"block_out_channels": [8, -32]}}}, r"model.unet.block_out_channels is \[8, -32\]"),
        ({"model": {"unet": {"block_out_channels": []}}}, "model.unet.block_out_channels is empty"),
        ({"max_steps": 4, "confidence_start_step": 4}, "confidence_start_step is 4, but max_steps"),
        ({"confidence_optimizer": {"learning_rate": 11}}, "confidence_optimizer.learning_rate is 11"),
        ({"model": {}}, "either `base`"),
        ({"model": MINIMAL["model"] | {"base": "sd"}}, "either `base`"),
        ({"model": MINIMAL["model"] | {"zero_terminal_snr": True}}, "zero_terminal_snr"),
        ({"data": {"source": "pairs", "latent_cache": "cache"}}, "latent_cache"),
    ],
)
def test_wrong_settings_are_named_before_any_work(tmp_path, change, named):
    with pytest.raises(ValueError, match=named) as refusal:
        parse(tmp_path, MINIMAL | change)
    assert "\n" not in str(refusal.value)


def test_a_yaml_file_runs_no_code(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "config.yaml").write_text(f"output_dir: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(ValueError, match="config.yaml: could not determine a constructor"):
        parse_config(FinetuneConfig, "", ["--config", str(tmp_path / "config.yaml")])
    assert not marker.exists()


@pytest.mark.parametrize("stage, start", [("both", 5), ("denoising", 10), ("confidence", 0)])
def test_the_stage_says_when_confidence_starts(tmp_path, stage, start):
    assert parse(tmp_path, MINIMAL | {"max_steps": 10, "stage": stage}).confidence_start == start


@pytest.mark.parametrize(
    "schedule, rates",
    [
        ("cosine", [0.5, 1.0, 1.0, 0.75, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 2 / 3, 1 / 3]),
    ],
)
def test_the_learning_rate_follows_the_schedule_after_the_warm_up(tmp_path, schedule, rates):
    config = parse(tmp_path, MINIMAL, f"--optimizer.schedule={schedule}", "--optimizer.warmup_steps=2").optimizer
    for start in (0, 7):
        phase = Phase(start, start + 5, config)
        found = [learning_rate(start + step, config, phase) / config.learning_rate for step in range(5)]
        assert found == pytest.approx(rates)


def test_stage_2_has_the_optimiser_of_stage_1_but_for_its_own_settings(tmp_path):
    settings = MINIMAL | {"max_steps": 10, "optimizer": {"max_grad_norm": 5.0, "weight_decay": 0.1}}
    config = parse(tmp_path, settings, "--confidence_optimizer.weight_decay=0", "--confidence_optimizer.warmup_steps=3")
    first, second = (config.phase(step) for step in (4, 5))
    assert (first.start, first.end, first.stage) == (0, 5, 1) and (second.start, second.end, second.stage) == (5, 10, 2)
    assert first.optimizer == config.optimizer
    assert second.optimizer == replace(config.optimizer, weight_decay=0.0, warmup_steps=3)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmno"))


@pytest.mark.parametrize(
    "text, found",
    [
        (BOMB, "has the alias"),
        ("data: &d {source: *d}", "has the alias"),
        ("<<: &a {seed: 1}\nmodel: {<<: [*a, *a]}", "has the alias"),
        ("model: " + "[" * 10_000, "more than 30 levels deep"),
        ("seed: 1\n" * 20_000, "160000 characters"),
        ("", "holds NoneType: expected a mapping"),
        ("- seed: 1", "holds list"),
        ("run", "holds str"),
        ("a: 1\n---\nb: 1", "expected a single document"),
        ("seed: " + "1" * 5000, "digits"),
        ("a: [1", "is not YAML"),
    ],
    ids=range(11),
)
def test_files_of_settings_that_are_none(tmp_path, text, found):
    """For the command line, and for the settings that a run folder holds; both soon enough."""
    (tmp_path / "config.yaml").write_text(text)
    for read in (
        lambda path: parse_config(FinetuneConfig, "", ["--config", str(path)]),
        lambda path: parse_config(FinetuneConfig, "", [f"--config={path}"]),
        lambda path: check_same_run(parse(tmp_path.parent, MINIMAL), path),
    ):
        message = outcome(read, tmp_path / "config.yaml")
        assert found in message and str(tmp_path / "config.yaml") in message


def test_settings_on_the_command_line_are_no_bomb_either(tmp_path):
    bomb = "{" + ", ".join(BOMB.splitlines()) + "}"
    assert "data" in outcome(parse, tmp_path, MINIMAL, "--data", bomb)
    assert "Expected a <class 'int'>" in outcome(parse, tmp_path, MINIMAL, "--seed", "*a")
