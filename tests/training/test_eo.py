"""What EO values mean, from the data and the settings through training to the evaluation, as a user meets it."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml

from c_diffset.cli import main
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY, CDiffSETPipeline
from tests.conftest import tiny_taesd
from tests.evaluation.reports import full_report
from tests.helpers import DISPLAY, fresh_accelerate, losses, write_reflectance

REFLECTANCE = {"units": "reflectance", "range": [0, 3000], "gamma": 1.0}
GIVEN = ["--model.eo_transform.units", "reflectance", "--model.eo_transform.range", "[0, 3000]"]
PIXEL_MODEL = {
    "model": {
        "unet": {"block_out_channels": [8, 32], "layers_per_block": 1},
        "sar_transform": DISPLAY,
        "prediction_type": "v_prediction",
        "zero_terminal_snr": True,
        "default_num_inference_steps": 2,
    },
    "data": {"crop_size": 16},
    "validation": {"num_images": 2, "crop_size": 16},
    **{"max_steps": 4, "batch_size": 2, "ema_decay": 0.9, "log_every": 1},
}
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(autouse=True)
def fresh():
    fresh_accelerate()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """16-bit reflectance that does not say what it is."""
    root = tmp_path_factory.mktemp("plain")
    for split in ("train", "validation", "test"):
        write_reflectance(root, 3, split)
    return root


@pytest.fixture(scope="module")
def saying(plain, tmp_path_factory) -> Path:
    """The same with columns that say what it is."""
    root = shutil.copytree(plain, tmp_path_factory.mktemp("saying") / "data")
    for table in root.rglob("metadata.jsonl"):
        lines = [json.loads(line) for line in table.read_text().splitlines()]
        said = {"eo_units": "reflectance", "eo_range": [0, 3000]}
        table.write_text("".join(json.dumps(line | said) + "\n" for line in lines))
    return root


def run_finetune(source: Path, output: Path, *options: str) -> int:
    recipe = output.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(PIXEL_MODEL))
    command = ["finetune", "--config", recipe, "--data.source", source, "--output_dir", output, *options]
    return main([str(part) for part in command])


@pytest.fixture(scope="module")
def trained(saying, tmp_path_factory) -> Path:
    """The folder of a run on data that say what they are."""
    fresh_accelerate()
    output = tmp_path_factory.mktemp("trained") / "run"
    assert run_finetune(saying, output) == 0
    return output


def transform_of(run: Path) -> dict:
    return json.loads((run / "pipeline/model_index.json").read_text())["eo_transform"]


def test_reflectance_without_a_transform_is_refused_in_one_line(plain, tmp_path, capsys):
    assert run_finetune(plain, tmp_path / "run") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{plain}: the EO values reach from" in error and "less than a tenth" in error
    assert "--model.eo_transform '{units: reflectance, range: [0, 3000]}'" in error
    assert not (tmp_path / "run").exists(), "nothing was made"


@pytest.mark.parametrize("given", [GIVEN, ["--model.eo_transform", "{units: reflectance, range: [0, 3000]}"]])
def test_the_setting_is_kept_in_the_model(given, plain, tmp_path):
    assert run_finetune(plain, tmp_path / "run", *given) == 0
    assert transform_of(tmp_path / "run") == REFLECTANCE


def test_data_that_say_what_they_are_need_no_setting(trained):
    assert transform_of(trained) == REFLECTANCE
    assert yaml.safe_load((trained / "config.yaml").read_text())["model"]["eo_transform"] == REFLECTANCE
    picture = np.asarray(PIL.Image.open(next((trained / "samples").glob("*.png"))).convert("RGB"))
    true = picture[-16:, 2 * (picture.shape[1] // 4) : 3 * (picture.shape[1] // 4)]
    assert true.mean() > 40, "the true EO image is not black"


def test_the_setting_stands_above_what_the_data_say(saying, tmp_path):
    assert run_finetune(saying, tmp_path / "run", "--model.eo_transform", "{units: reflectance, range: [0, 2000]}") == 0
    assert transform_of(tmp_path / "run")["range"] == [0, 2000]


def test_a_run_goes_on_only_with_the_same_transform(trained, saying, plain, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    assert run_finetune(saying, run) == 0
    assert run_finetune(plain, run, *GIVEN) == 0, "the same, said otherwise"
    assert run_finetune(plain, run, "--model.eo_transform", "{units: reflectance, range: [0, 4000]}") == 2
    assert "model.eo_transform.range is [0, 4000]" in capsys.readouterr().err


def test_the_base_decides_where_nothing_else_does(trained, plain, tmp_path):
    """A recipe without a model of its own, and data that say nothing."""
    options = ["--data.crop_size", "16", "--validation.crop_size", "16", "--max_steps", "1"]
    base = ["finetune", "--model.base", str(trained / "pipeline"), *options, "--data.source", str(plain)]
    assert main([*base, "--output_dir", str(tmp_path / "second")]) == 0
    assert transform_of(tmp_path / "second") == REFLECTANCE
    other = ["--model.eo_transform", "{units: reflectance, range: [0, 2500]}"]
    assert main([*base, *other, "--output_dir", str(tmp_path / "third")]) == 0
    assert transform_of(tmp_path / "third")["range"] == [0, 2500]


def test_evaluation_takes_the_models_transform(trained, plain, tmp_path, capsys):
    command = ["evaluate", "--model", str(trained / "pipeline"), "--data", str(plain), "--lpips_net", "null"]
    assert main([*command, "--download", "false", "--output", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report/metrics.json").read_text())
    assert "white for 3000" in report["eo_values"]
    assert min(report["mean_colour"]) > 0.1, "black would be 0.02"
    assert report["floors"]["mean_colour"]["psnr"] < 30, "47 dB are those of black on black"


def test_data_that_say_something_else_than_the_model_are_named(make_pipe, saying, tmp_path):
    other = {"units": "reflectance", "range": [0, 2000]}
    make_pipe("pixel", eo_transform=other).save_pretrained(tmp_path / "model")
    command = ["evaluate", "--model", str(tmp_path / "model"), "--data", str(saying), "--lpips_net", "null"]
    with pytest.warns(UserWarning, match=r"reflectance .0, 3000., but the model sees reflectance .0, 2000."):
        assert main([*command, "--download", "false"]) == 0


def test_a_model_of_display_values_is_not_measured_on_reflectance(make_pipe, plain, tmp_path, capsys):
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    for command in ("evaluate", "calibrate"):
        options = ["--lpips_net", "null", "--download", "false"] if command == "evaluate" else []
        assert main([command, "--model", str(tmp_path / "model"), "--data", str(plain), *options]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "less than a tenth" in error and "the model was trained on other EO values" in error


def test_models_of_unequal_transforms_are_not_compared(make_pipe, trained, plain, tmp_path, capsys):
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    models = [str(trained / "pipeline"), str(tmp_path / "model")]
    assert main(["evaluate", "--model", *models, "--data", str(plain), "--lpips_net", "null"]) == 2
    assert "the models' eo_transform differ" in capsys.readouterr().err


def test_evaluations_of_unequal_transforms_are_not_put_together(tmp_path, capsys):
    for name, values in (("a", ""), ("b", "black stands for 0 and white for 3000")):
        (tmp_path / name).mkdir()
        report = full_report(eo_values=values)
        (tmp_path / name / "metrics.json").write_text(json.dumps(report.to_json()))
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "page.html")]
    assert main(command) == 2
    assert "unequal test sets" in (error := capsys.readouterr().err) and "eo_values" in error


def test_a_student_sees_what_the_teacher_sees(make_pipe, trained, plain, tmp_path, capsys):
    options = ["--data.crop_size", "16", "--data.validation_split", "null", "--max_steps", "1"]
    distill = ["distill", "--teacher", str(trained / "pipeline"), "--data.source", str(plain), *options]
    assert main([*distill, "--output_dir", str(tmp_path / "student")]) == 0
    assert transform_of(tmp_path / "student") == REFLECTANCE
    pipe = CDiffSETPipeline.from_pretrained(trained / "pipeline")
    pipe.register_to_config(eo_transform=EO_DISPLAY)
    pipe.save_pretrained(tmp_path / "display")
    assert main([*distill, "--student", str(tmp_path / "display"), "--output_dir", str(tmp_path / "no")]) == 2
    assert "has eo_transform" in capsys.readouterr().err
    distill[2] = str(tmp_path / "display")
    assert main([*distill, "--output_dir", str(tmp_path / "black")]) == 2
    assert "less than a tenth" in capsys.readouterr().err


def test_a_decoder_learns_from_reflectance(plain, saying, tmp_path, capsys):
    tiny_taesd().save_pretrained(tmp_path / "taesd")
    command = ["finetune_decoder", "--base", str(tmp_path / "taesd"), "--lpips_weight", "0", "--max_steps", "2"]
    command += ["--data.crop_size", "16", "--validation.crop_size", "16", "--log_every", "1"]
    assert main([*command, "--data.source", str(plain), "--output_dir", str(tmp_path / "no")]) == 2
    assert "set --eo_transform '{units: reflectance, range: [0, 3000]}'" in capsys.readouterr().err
    assert main([*command, "--data.source", str(saying), "--output_dir", str(tmp_path / "run")]) == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["eo_transform"] == REFLECTANCE
    assert len(losses(tmp_path / "run")) == 2
