"""The console, from pairs to metrics, as a user types it."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from c_diffset import __version__
from c_diffset.cli import COMMANDS, CONFIGURED, command_parser, main
from c_diffset.commands import TRAINING
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.parser import config_parser, parse_config

ROOT = Path(__file__).parent.parent


def run(*args, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(arg) for arg in args], cwd=ROOT, capture_output=True, text=True, **options)


HEAVY = {"torch", "diffusers", "transformers", "accelerate", "datasets", "rasterio", "scipy", "sklearn"}


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_needs_none_of_the_libraries_that_take_seconds_to_import(command):
    code = f"""
import sys
from c_diffset.cli import main
try:
    main({[*command, "--help"]})
except SystemExit as stop:
    assert stop.code == 0
print("imported:", *sorted({HEAVY} & set(sys.modules)))
"""
    shown = run(sys.executable, "-c", code)
    assert shown.returncode == 0, shown.stderr
    assert "imported:\n" in shown.stdout and "--help" in shown.stdout
    assert command or all(name in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_its_options(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "--" in capsys.readouterr().out


def parser_of(command: str):
    """The parser of a command, the settings of a training included."""
    if command not in CONFIGURED:
        return command_parser(command)[0]
    config_class, description, _ = TRAINING[command]
    return config_parser(config_class, description)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_line_of_help_is_a_phrase(command):
    """A capital letter first and a full stop last, whatever jsonargparse adds in brackets after it."""
    actions = [action for action in parser_of(command)._actions if action.help not in (None, argparse.SUPPRESS)]
    texts = {action.dest: action.help for action in actions if action.dest not in ("help", "config", "print_config")}
    assert {name: text for name, text in texts.items() if not re.fullmatch(r"[A-Z`\d].*\.", text, re.DOTALL)} == {}
    assert all(action.help for action in parser_of(command)._actions if action.option_strings)


def test_translating_imports_no_library_that_only_training_needs():
    modules = "from c_diffset.inference import job, team; from c_diffset import loading; import sys; "
    found = "print({'datasets', 'lpips', 'sklearn', 'tensorboard'} & set(sys.modules))"
    shown = run(sys.executable, "-c", modules + found)
    assert shown.stdout == "set()\n", shown.stderr


def test_wrong_usage_is_named(capsys):
    assert main(["transalte"]) == 2
    assert "unknown command 'transalte'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["translate", "x.png", "--model", "m", "--output", "o", "--num_steps", "3"])
    assert stop.value.code == 2
    assert "--num_steps" in capsys.readouterr().err
    assert main(["translate", "absent.png", "--model", "m", "--output", "o"]) == 2
    assert "absent.png" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["publish"])
    assert "folder" in capsys.readouterr().err


def test_options_are_given_by_their_whole_names(capsys):
    for args in (["translate", "x.png", "--model", "m", "--output", "o", "--confid"], ["demo", "--max_step", "3"]):
        with pytest.raises(SystemExit) as stop:
            main(args)
        assert stop.value.code == 2 and args[-1].split()[0].strip("3") in capsys.readouterr().err
    assert main(["finetune", "--output_dir", "o", "--data.source", "d", "--max_step", "3"]) == 2
    assert "--max_step" in capsys.readouterr().err


def test_flags_need_no_value_anywhere(capsys, tmp_path):
    parser, _ = command_parser("translate")
    given = parser.parse_args(
        ["--stac", "x.png", "--model", "m", "--output", "o", "--overwrite", "false", "--confidence"]
    )
    assert (given.stac, given.overwrite, given.confidence, given.inputs) == (True, False, True, ["x.png"])
    args = ["--config", "sd21", "--output-dir", "o", "--data.source", "d", "--compile", "--resume", "false"]
    config = parse_config(*TRAINING["finetune"][:2], args)
    assert (config.compile, config.resume, config.output_dir) == (True, False, "o")
    tool = "def tool(quick: bool = False):\n    'Say it.'\n    print(quick)\n"
    code = f"from c_diffset.arguments import run\n{tool}run(tool)"
    assert run(sys.executable, "-c", code, "--quick").stdout == "True\n"


def test_a_warning_is_one_line_without_code(tmp_path):
    code = "from c_diffset.arguments import quieten; quieten(); import warnings; warnings.warn('two\\nlines')"
    assert run(sys.executable, "-c", code).stderr == "warning: two lines\n"


def test_env_says_what_a_bug_report_needs(capsys):
    assert main(["env"]) == 0
    shown = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["c_diffset"] == __version__ and shown["torch"] == torch.__version__.split("+")[0]
    assert {"Python", "system", "CPU", "memory", "device", "diffusers", "rasterio"} <= shown.keys()
    assert "pytest" not in shown


@pytest.mark.slow
def test_from_pairs_to_metrics(tmp_path):
    for split, count in (("train", 4), ("validation", 2), ("test", 2)):
        write_pairs(tmp_path / "raw", count, size=32, split=split)

    prepare = ["prepare", "folders", tmp_path / "raw/train", tmp_path / "data", "--fractions", "[0.5,0.25,0.25]"]
    done = run(sys.executable, "-m", "c_diffset", *prepare)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/train/metadata.jsonl").is_file()

    config = {
        "output_dir": str(tmp_path / "run"),
        "model": {
            "unet": {"block_out_channels": [8, 32], "layers_per_block": 1},
            "sar_transform": {"units": "display", "range": [0.0, 1.0], "channels": [0]},
            "prediction_type": "v_prediction",
            "zero_terminal_snr": True,
            "default_num_inference_steps": 2,
        },
        "data": {"source": str(tmp_path / "data"), "crop_size": 32},
        "validation": {"every": 2, "num_images": 1, "crop_size": 32},
        "max_steps": 4,
        "batch_size": 2,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    launch = [Path(sys.executable).parent / "accelerate", "launch", "--config_file", "accelerate_config.yaml"]
    done = run(*launch, "tools/finetune.py", "--config", tmp_path / "config.yaml", "--optimizer.learning_rate", "1e-4")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/pipeline/pipeline.py").is_file() and (tmp_path / "run/best/model_index.json").is_file()

    student = {"output_dir": str(tmp_path / "student"), "teacher": str(tmp_path / "run/pipeline"), "batch_size": 2}
    student |= {name: config[name] for name in ("data", "validation", "max_steps")} | {"critic": {"weight": 1.0}}
    student |= {"optimizer": {"learning_rate": 1e-2, "warmup_steps": 1}, "ema_decay": 0.5}  # its variance moves
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(student))
    done = run(*launch, "tools/distill.py", "--config", tmp_path / "distill.yaml", "--critic.loss", "hinge")
    assert done.returncode == 0, done.stderr

    model = ["--model", tmp_path / "student/pipeline"]
    translate = [tmp_path / "raw/test/sar", *model, "--output", tmp_path / "eo", "--confidence"]
    done = run(sys.executable, "-m", "c_diffset", "translate", *translate)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "eo").glob("*_confidence.png"))) == 2

    evaluate = ["--data", tmp_path / "raw", "--output", tmp_path / "metrics", "--download", "false"]
    done = run(sys.executable, "-m", "c_diffset", "evaluate", *model, *evaluate)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "metrics/metrics.json").read_text())
    assert report["n"] == 2 and 0 < report["mean"]["psnr"] < 60
    assert {"fid", "kid"} <= {entry["metric"] for entry in report["left_out"]} | set(report["mean"])
    assert (tmp_path / "metrics/grid.png").is_file()

    assert main(["compare", str(tmp_path / "metrics"), "--output", str(tmp_path / "page.html")]) == 0
    assert "psnr" in (tmp_path / "page.html").read_text()

    source = ["--data", str(tmp_path / "raw"), "--split", "validation"]
    assert main(["calibrate", "--model", str(tmp_path / "student/pipeline"), *source]) == 0
    publish = ["publish", str(tmp_path / "student/pipeline"), "--repo", "me/student", "--license", "mit"]
    options = ["--evaluation", str(tmp_path / "metrics"), f"--dry-run={tmp_path / 'preview'}", "--pixel-size", "10"]
    assert main([*publish, *options]) == 0
    card = (tmp_path / "preview/README.md").read_text()
    assert "expected_error" in card and f"| `psnr` | {report['mean']['psnr']:.4f} |" in card
