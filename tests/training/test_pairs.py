"""Before a training does anything else it looks at its data, and says what it found."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml

from c_diffset.cli import main
from c_diffset.data.pairs import load_pairs
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig, SmallUNetConfig
from c_diffset.training.pairs import training_pairs, validation_pairs
from tests.helpers import losses

ABSENT = ["--model.base", "no/model", "--teacher", "no/model", "--base", "no/model"]
COMMANDS = {"finetune": ABSENT[:2], "distill": ABSENT[2:4], "finetune_decoder": ABSENT[4:]}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 10, size=32, split="train")
    return folder


def settings(source: Path, output: Path) -> list[str]:
    """A model of a few thousand weights in pixel space, for the command line."""
    model = {"unet": {"block_out_channels": [8, 32], "layers_per_block": 1}, "default_num_inference_steps": 2}
    model |= {"prediction_type": "v_prediction"}
    options = {"output_dir": output, "data.source": source, "data.crop_size": 16, "validation.crop_size": 16}
    options |= {"max_steps": 2, "batch_size": 2, "validation.num_images": 2, "model": json.dumps(model)}
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def error_of(command: str, *arguments, capsys) -> str:
    """The one line of error that a command ends with."""
    assert main([command, *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"c-diffset {command}: ")
    return error


@pytest.mark.parametrize("command", COMMANDS)
def test_data_are_looked_at_before_the_model_and_the_output(command, source, tmp_path, capsys):
    """No command names the model, which is absent as well."""
    start = [command, *COMMANDS[command], "--output_dir", tmp_path / "run", "--data.crop_size", "32"]
    error = error_of(*start, "--data.source", tmp_path / "nowhere", capsys=capsys)
    assert "nowhere is neither a file or folder" in error
    error = error_of(*start, "--data.source", source, capsys=capsys)
    assert "no split 'validation'" in error and "found: train" in error
    assert "--data.validation_split null" in error and "--data.validation_fraction 0.1" in error
    error = error_of(*start, "--data.source", source, "--data.split", "all", capsys=capsys)
    assert "no split" in error
    alone = ["--data.source", source, "--data.validation_split", "null"]
    error = error_of(*start, *alone, "--data.crop_size", "64", capsys=capsys)
    assert "10 of the pairs looked at cannot be used" in error and "smaller than data.crop_size 64" in error
    assert not (tmp_path / "run").exists()


def test_every_fault_is_printed_before_the_error(source, tmp_path, capsys):
    write_pairs(tmp_path / "data", 4, size=32, split="train")
    for path in sorted((tmp_path / "data/train/eo").iterdir())[1:3]:
        PIL.Image.new("RGB", (8, 8), "white").save(path)
    alone = ["--data.validation_split", "null"]
    assert main(["finetune", *settings(tmp_path / "data", tmp_path / "run"), *alone]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("cannot be used: pair train-000") == 2 and "train: 4 pairs" in printed.out
    assert "2 of the pairs looked at cannot be used" in printed.err and printed.err.count("\n") == 1


def test_a_part_is_held_out_and_not_trained_on(source, tmp_path, capsys):
    options = [*settings(source, tmp_path / "run"), "--data.validation_fraction", "0.3"]
    assert main(["finetune", *options]) == 0
    printed = capsys.readouterr().out
    assert "are held out, by region" in printed and "train: 6 pairs" in printed and "validation: 4 pairs" in printed
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("validation/psnr" in row for row in rows) and (tmp_path / "run/best/model_index.json").is_file()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["validation_fraction"] == 0.3
    picture = np.array(PIL.Image.open(tmp_path / "run/preview.png"))
    assert picture.shape[0] > 6 * 256 and picture[30:, :256].std() > 10  # six rows
    assert "6 pairs as a model sees them" in printed


def test_held_out_pairs_are_not_in_the_latent_cache(source, tmp_path, make_pipe):
    make_pipe("kl").save_pretrained(tmp_path / "base")
    options = {"model.base": tmp_path / "base", "data.source": source, "data.latent_cache": tmp_path / "cache"}
    options |= {"data.validation_fraction": 0.3, "data.crop_size": 16, "validation.crop_size": 16, "max_steps": 1}
    options |= {"validation.num_images": 1, "validation.num_inference_steps": 1, "output_dir": tmp_path / "run"}
    assert main(["finetune", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]) == 0
    (index,) = (tmp_path / "cache").glob("*/index.json")
    assert len(json.loads(index.read_text())) == 6


def test_what_is_held_out_follows_the_seed(tmp_path):
    write_pairs(tmp_path, 10, size=32, split="train")
    table = tmp_path / "train/metadata.jsonl"
    table.write_text(table.read_text().replace('"region"', '"landscape"'))

    def config(**changes) -> FinetuneConfig:
        data = DataConfig(source=str(tmp_path), validation_fraction=0.3)
        model = ModelConfig(unet=SmallUNetConfig(block_out_channels=[8]))
        return FinetuneConfig(output_dir=str(tmp_path), data=data, model=model, **changes)

    trained, held = training_pairs(config())["id"][:], validation_pairs(config())["id"][:]
    assert sorted(trained + held) == sorted(load_pairs(tmp_path)["id"][:]) and len(held) == 3
    assert validation_pairs(config())["id"][:] == held
    assert {tuple(validation_pairs(config(seed=seed))["id"][:]) for seed in range(8)} != {tuple(held)}


def test_a_stream_is_not_divided(source, tmp_path, capsys):
    options = [*settings(source, tmp_path / "run"), "--data.validation_fraction", "0.3", "--data.streaming", "true"]
    assert "exclude each other" in error_of("finetune", *options, capsys=capsys)


def test_a_stream_is_looked_at_too(source, tmp_path, capsys):
    options = ["--data.streaming", "true", "--data.validation_split", "null"]
    assert main(["finetune", *settings(source, tmp_path / "run"), *options]) == 0
    assert "train: a stream of pairs, 32 x 32" in capsys.readouterr().out
    assert (tmp_path / "run/preview.png").is_file()


def test_looking_changes_no_loss(source, tmp_path, monkeypatch):
    """The numbers of a training do not depend on what was looked at before it."""
    alone = ["--data.validation_split", "null", "--log_every", "1"]
    assert main(["finetune", *settings(source, tmp_path / "looked"), *alone]) == 0
    monkeypatch.setattr("c_diffset.training.finetune.check_pairs", lambda *_: [])
    assert main(["finetune", *settings(source, tmp_path / "blind"), *alone]) == 0
    assert losses(tmp_path / "looked") == losses(tmp_path / "blind")
    assert not (tmp_path / "blind/preview.png").exists()


def test_a_wrong_setting_is_said_by_the_first_of_several_processes(monkeypatch, capsys):
    assert main(["finetune", "--data.sorce", "x"]) == 2
    assert "--data.sorce" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--data.sorce", "x"])
    assert stop.value.code == 2 and not capsys.readouterr().err
