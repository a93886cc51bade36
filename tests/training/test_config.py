"""Settings: read, checked, overridden, written."""

from pathlib import Path

import pytest
import yaml

from c_diffset.training.config import DistillConfig, FinetuneConfig, parse_config, save_config
from c_diffset.training.decoder import DecoderConfig

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
        ({"model": {}}, "either `base`"),
        ({"model": MINIMAL["model"] | {"base": "sd"}}, "either `base`"),
        ({"model": MINIMAL["model"] | {"zero_terminal_snr": True}}, "zero_terminal_snr"),
        ({"data": {"source": "pairs", "latent_cache": "cache"}}, "latent_cache"),
    ],
)
def test_wrong_settings_are_named_before_any_work(tmp_path, capsys, change, named):
    with pytest.raises(SystemExit) as stop:
        parse(tmp_path, MINIMAL | change)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


def test_a_yaml_file_runs_no_code(tmp_path, capsys):
    marker = tmp_path / "ran"
    (tmp_path / "config.yaml").write_text(f"output_dir: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(SystemExit):
        parse_config(FinetuneConfig, "", ["--config", str(tmp_path / "config.yaml")])
    assert not marker.exists()


@pytest.mark.parametrize("stage, start", [("both", 5), ("denoising", 10), ("confidence", 0)])
def test_the_stage_says_when_confidence_starts(tmp_path, stage, start):
    assert parse(tmp_path, MINIMAL | {"max_steps": 10, "stage": stage}).confidence_start == start
