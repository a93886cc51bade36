"""Calibration: known maps recovered from pooled pixels, and from end to end with tiny pipelines on generated pairs."""

import json
import os
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import UNet2DModel
from scipy.special import erfc

from c_diffset.data.pairs import load_pairs
from c_diffset.evaluation.calibrate import calibrate
from c_diffset.evaluation.calibration import VariancePool, absolute_error, pixel_variance, store_calibration
from c_diffset.evaluation.evaluate import evaluate
from c_diffset.evaluation.reliability import reliability_curve
from c_diffset.evaluation.split import SplitPairs
from c_diffset.loading import load_pipeline
from c_diffset.measurement.measure import PairResult, evaluate_pairs
from c_diffset.models.unet import small_unet
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    SmallUNetConfig,
    ValidationConfig,
)
from c_diffset.training.finetune import finetune
from tests.conftest import SPACES, tiny_components
from tests.evaluation.reports import full_disk

THRESHOLD = 8.5  # between whole levels, so that rounding to 8 bits moves no error across it
FACTS = {"threshold": 32.0, "data": "pairs", "split": "validation", "n": 4}
MAP = {"variance": [0.1, 0.2], "expected_error": [1.0, 2.0], "probability": [0.0, 0.1]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four generated pairs of 32 x 32 for validation, and two for test."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_pairs(folder, 4, size=32, split="validation")
    write_pairs(folder, 2, size=32, split="test")
    return folder


@pytest.fixture
def model(make_pipe, tmp_path) -> Path:
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def stored(model: Path) -> dict:
    return json.loads((model / "model_index.json").read_text())


def hashes(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files}


def translated(model: Path, data: Path, split: str, batch_size: int = 8) -> list[PairResult]:
    pairs = SplitPairs(load_pairs(data, split), None, None)
    return list(evaluate_pairs(load_pipeline(model), pairs, batch_size=batch_size))


def deciles(results: list[PairResult], knots: dict):
    """The reliability curve of all pixels, their errors expected by the stored map."""
    variance, error = (np.concatenate([f(x).ravel() for x in results]) for f in (pixel_variance, absolute_error))
    return reliability_curve(np.interp(variance, knots["variance"], knots["expected_error"]), error)


def scale_of(variance: np.ndarray, low: float, high: float) -> np.ndarray:
    """Standard deviation of the error that a test gives to a variance: 2 to 20 levels."""
    return np.interp(variance, [low, high], [2, 20])


# ------------------------------------------------------------------------------------------------------ the maps


def test_the_map_of_gaussian_errors_is_recovered():
    """e ~ N(0, s), s = 40 sqrt(v): E|e| = s sqrt(2 / pi) and P(|e| > t) = erfc(t / s / sqrt 2)."""
    rng = np.random.default_rng(0)
    pool = VariancePool(threshold=16)
    for _ in range(20):
        variance = np.exp(rng.uniform(np.log(1e-3), np.log(1), (128, 128)))
        error = torch.from_numpy(np.abs(rng.normal(0, 40 * np.sqrt(variance))) / 255)
        confidence = torch.from_numpy(1 / (1 + variance))
        zeros = torch.zeros(3, 128, 128)
        pool.add(PairResult("", {"confidence_spearman": 0.0}, zeros, error.expand(3, -1, -1), zeros, confidence))
    found = {key: np.array(values) for key, values in pool.fit(knots=64).items()}
    scale = 40 * np.sqrt(found["variance"])
    assert len(scale) == 64
    np.testing.assert_allclose(found["expected_error"], scale * np.sqrt(2 / np.pi), rtol=0.06)
    np.testing.assert_allclose(found["probability"], erfc(16 / scale / np.sqrt(2)), atol=0.02)
    for values in (found["expected_error"], found["probability"]):
        assert (np.diff(values) >= 0).all() and (np.diff(found["variance"]) > 0).all()


def test_an_error_that_falls_with_the_variance_gives_its_mean():
    variance = torch.linspace(0.1, 1, 64).expand(64, -1)
    error = (1.2 - variance).expand(3, -1, -1) / 10
    pool = VariancePool(threshold=16)
    pool.add(PairResult("", {"confidence_spearman": 1.0}, error, error, error * 0, 1 / (1 + variance)))
    np.testing.assert_allclose(pool.fit(knots=16)["expected_error"], 255 * error.mean(), rtol=1e-4)


# -------------------------------------------------------------------------------------------------- end to end


def disturb(data: Path, split: str, results: list[PairResult], low: float, high: float) -> None:
    """Make the EO images of a split what the model generates, with Gaussian errors of a scale that its variance gives.

    The errors point to the middle of the range, so that none is cut off at 0 or 255.
    """
    for number, result in enumerate(results):
        error = np.random.default_rng([7, number]).normal(0, scale_of(pixel_variance(result), low, high))
        image = (result.generated.permute(1, 2, 0).numpy() * 255).round()
        eo = image + np.where(image < 128, 1, -1) * np.abs(error).round()[..., None]
        PIL.Image.fromarray(eo.astype(np.uint8)).save(data / split / "eo" / f"{number:04d}.png")


def test_expected_error_of_unseen_images_is_the_measured_one_in_every_decile(model, tmp_path, capsys):
    """A known dependence of the error on the model's own variance, fitted on validation and checked on test."""
    for split in ("validation", "test"):
        write_pairs(tmp_path / "pairs", 16, size=64, split=split)
    drawn = {split: translated(model, tmp_path / "pairs", split) for split in ("validation", "test")}
    low, high = np.quantile([pixel_variance(x) for x in drawn["validation"]], [0.02, 0.98])
    for split, results in drawn.items():
        disturb(tmp_path / "pairs", split, results, low, high)
    calibration = calibrate(model, tmp_path / "pairs", threshold=THRESHOLD)
    assert stored(model)["calibration"] == calibration
    assert {key: calibration[key] for key in FACTS} == FACTS | {"threshold": THRESHOLD, "n": 16}
    knots = calibration["steps"]["2"]
    scale = scale_of(np.array(knots["variance"]), low, high)
    np.testing.assert_allclose(knots["probability"], erfc(THRESHOLD / scale / np.sqrt(2)), atol=0.05)

    curve = deciles(translated(model, tmp_path / "pairs", "test"), knots)
    np.testing.assert_allclose(curve.expected, curve.measured, rtol=0.1)
    assert curve.expected[-1] > 4 * curve.expected[0]
    printed = capsys.readouterr().out.splitlines()
    assert "2 steps, 16 images" in printed[0]
    assert [len(line.split()) for line in printed[2:4]] == [11, 11]
    assert printed[-2].startswith(f"{model / 'model_index.json'} holds the calibration")
    assert printed[-1].startswith(f"next: c-diffset evaluate --model {model} --data {tmp_path / 'pairs'}")


@pytest.mark.slow
def test_a_model_trained_on_generated_pairs_knows_its_error_on_unseen_ones(tmp_path):
    """Trained on one split, calibrated on the next, measured on the third: within 10 % in every decile."""
    for split, count in (("train", 96), ("validation", 1200), ("test", 1200)):
        write_pairs(tmp_path / "pairs", count, size=32, split=split)
    config = FinetuneConfig(
        output_dir=str(tmp_path / "run"),
        model=ModelConfig(
            unet=SmallUNetConfig(block_out_channels=[16, 32], layers_per_block=1),
            prediction_type="sample",
            sar_transform={"units": "display", "range": [0.0, 1.0], "channels": [0]},
            default_num_inference_steps=2,
        ),
        data=DataConfig(source=str(tmp_path / "pairs"), crop_size=32, validation_split=None),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=10),
        validation=ValidationConfig(every=0),
        confidence_start_step=80,
        max_steps=200,
        batch_size=8,
        ema_decay=0.95,
    )
    folder = finetune(config)
    knots = calibrate(folder, tmp_path / "pairs", batch_size=100)["steps"]["2"]
    curve = deciles(translated(folder, tmp_path / "pairs", "test", batch_size=100), knots)
    np.testing.assert_allclose(curve.expected, curve.measured, rtol=0.1)
    assert len(curve.measured) == 10 and curve.measured[-1] > 3 * curve.measured[0], "it tells easy ground from hard"


@pytest.mark.parametrize("space", SPACES)
def test_only_the_calibration_in_the_index_changes(space, make_pipe, data, tmp_path):
    make_pipe(space).save_pretrained(tmp_path / "model")
    before, files = stored(tmp_path / "model"), hashes(tmp_path / "model")
    calibration = calibrate(tmp_path / "model", data, num_inference_steps=[1, 2], knots=8)
    after, files_after = stored(tmp_path / "model"), hashes(tmp_path / "model")
    assert files_after.pop("model_index.json") != files.pop("model_index.json")
    assert files_after == files
    assert after == before | {"calibration": calibration}
    assert list(calibration["steps"]) == ["1", "2"]
    for knots in calibration["steps"].values():
        assert 2 <= len(knots["variance"]) <= 8 and (np.diff(knots["variance"]) > 0).all()
        assert 0 <= min(knots["probability"]) <= max(knots["probability"]) <= 1
    assert CDiffSETPipeline.from_pretrained(tmp_path / "model").config.calibration == calibration


def test_the_pipeline_applies_what_was_stored(model, data):
    knots = calibrate(model, data)["steps"]["2"]
    sar = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    output = load_pipeline(model)(sar, generator=torch.Generator().manual_seed(0), output_type="np")
    variance = 1 / output.confidence.astype(np.float64) - 1
    for values, name in ((output.expected_error, "expected_error"), (output.error_probability, "probability")):
        np.testing.assert_allclose(values, np.interp(variance, knots["variance"], knots[name]), rtol=1e-3, atol=1e-5)


def test_masked_pixels_do_not_enter(model, data, tmp_path):
    """The right half is masked, and black in what is evaluated: the left half alone has the errors of the fit."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    for number in range(4):
        for kind in ("sar", "eo", "mask"):
            path = tmp_path / "pairs/validation" / kind / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = mask if kind == "mask" else np.array(PIL.Image.open(data / "validation" / kind / path.name))
            PIL.Image.fromarray(image).save(path)
    knots = calibrate(model, tmp_path / "pairs")["steps"]["2"]
    results = translated(model, tmp_path / "pairs", "validation")
    error = np.mean([absolute_error(x)[:, :16] for x in results])
    variance = np.array([pixel_variance(x)[:, :16] for x in results])
    expected = np.interp(variance, knots["variance"], knots["expected_error"]).mean()
    assert expected == pytest.approx(error, rel=0.02)
    assert np.mean([absolute_error(x) for x in results]) == pytest.approx(error / 2)  # as if black were right


def test_crops_without_enough_valid_pixels_are_no_data(model, tmp_path):
    write_pairs(tmp_path / "pairs", 1, size=64, split="validation")
    folder = tmp_path / "pairs/validation"
    mask = np.zeros((64, 64), np.uint8)
    mask[:8, :8] = 255
    (folder / "mask").mkdir()
    PIL.Image.fromarray(mask).save(folder / "mask/0000.png")
    row = json.loads((folder / "metadata.jsonl").read_text())
    (folder / "metadata.jsonl").write_text(json.dumps(row | {"mask_file_name": "mask/0000.png"}) + "\n")
    with pytest.raises(ValueError, match="no valid pixel"):
        calibrate(model, tmp_path / "pairs", crop_size=32)


# ------------------------------------------------------------------------------------------------------ the file


def test_other_steps_stay_where_the_data_agree(tmp_path, capsys):
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "CDiffSETPipeline", "calibration": null}')
    store_calibration(index, FACTS, {"50": MAP})
    both = store_calibration(index, FACTS, {"4": MAP, "10": MAP})
    assert list(both["steps"]) == ["4", "10", "50"] and capsys.readouterr().out == ""
    only = store_calibration(index, FACTS | {"threshold": 16.0}, {"4": MAP})
    assert list(only["steps"]) == ["4"] and only["threshold"] == 16
    assert "10, 50 steps is dropped: it was made with threshold 32.0, data pairs" in capsys.readouterr().out
    assert json.loads(index.read_text()) == {"_class_name": "CDiffSETPipeline", "calibration": only}


def test_a_failed_write_leaves_the_file(tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "CDiffSETPipeline"}')
    with pytest.raises(ValueError, match="JSON"):
        store_calibration(index, FACTS, {"4": MAP | {"expected_error": [1.0, float("nan")]}})
    with full_disk(), pytest.raises(OSError):
        store_calibration(index, FACTS, {"4": MAP})
    assert index.read_text() == '{"_class_name": "CDiffSETPipeline"}' and list(tmp_path.iterdir()) == [index]


# ---------------------------------------------------------------------------------------------------- bad input


def test_a_model_without_variance_is_refused(make_pipe, data, tmp_path):
    unet = UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    make_pipe("pixel", unet=unet).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="predicts no variance"):
        calibrate(tmp_path / "model", data)


def test_an_untrained_variance_is_refused(make_pipe, data, tmp_path):
    unet = small_unet(3, 3, [8, 32], layers_per_block=1)  # its variance channel is zero
    make_pipe("pixel", unet=unet).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="everywhere"):
        calibrate(tmp_path / "model", data)
    assert stored(tmp_path / "model").get("calibration") is None


def test_no_image_is_refused(model, data):
    with pytest.raises(ValueError, match="train"):
        calibrate(model, data, split="train")


def test_the_test_split_gives_a_warning(model, data):
    with pytest.warns(UserWarning, match="no result on test is valid"):
        calibrate(model, data, split="test")


def test_bad_arguments_are_named(model, data):
    with pytest.raises(FileNotFoundError, match="download a model of the Hub first"):
        calibrate("someone/model", data)
    with pytest.raises(ValueError, match="threshold is 300"):
        calibrate(model, data, threshold=300)
    with pytest.raises(ValueError, match="knots is 1"):
        calibrate(model, data, knots=1)
    options = {"max_images": 0, "batch_size": 0, "crop_size": 10, "split": ""}
    for name, value in (options | {"num_inference_steps": [2, 0]}).items():
        with pytest.raises(ValueError, match=f"{name} is .*(least|empty)"):
            calibrate(model, "nowhere", **{name: value})


def test_what_cannot_be_stored_is_refused_before_the_work(model, tmp_path):
    """The data do not exist, so that any work would fail by itself."""
    for calibration in (5, {"steps": {}}, {"threshold": 1, "steps": {"many": MAP}}):
        index = model / "model_index.json"
        index.write_text(json.dumps(stored(model) | {"calibration": calibration}))
        with pytest.raises(ValueError, match="model_index.json: .*remove the key `calibration`"):
            calibrate(model, "nowhere")
    index.write_text("[1]")
    with pytest.raises(ValueError, match="model_index.json holds a list"):
        calibrate(model, "nowhere")


def test_a_read_only_model_is_refused_before_the_work(make_pipe):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the folders of pytest are closed to other users
        os.chmod(folder, 0o755)
        make_pipe("pixel").save_pretrained(f"{folder}/model")
        os.chmod(f"{folder}/model", 0o555)
        user = os.geteuid()
        os.seteuid(user or 65534)  # the rights of a folder do not bind root
        try:
            with pytest.raises(OSError, match="model cannot be written to"):
                calibrate(f"{folder}/model", "nowhere")
        finally:
            os.seteuid(user)
            os.chmod(f"{folder}/model", 0o755)


@pytest.fixture(scope="module")
def calibrated(data, tmp_path_factory) -> Path:
    """A model that is calibrated on the validation split."""
    folder = tmp_path_factory.mktemp("calibrated")
    CDiffSETPipeline(**tiny_components("pixel", folder), default_num_inference_steps=1).save_pretrained(
        folder / "model"
    )
    calibrate(folder / "model", data, knots=4)
    return folder / "model"


@pytest.mark.parametrize("spelling", ["link", ".", "pairs/", "./pairs/../pairs", "copy", "split folder", "other split"])
def test_a_calibration_judged_on_its_own_data_says_so(spelling, calibrated, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data if spelling == "." else data.parent)
    given, split = spelling, "validation"
    if spelling == "link":
        given = tmp_path / "another_name"
        given.symlink_to(data)
    elif spelling == "copy":
        given = shutil.copytree(data, tmp_path / "renamed")
    elif spelling == "split folder":
        given, split = data / "validation", "train"
    elif spelling == "other split":
        given, split = data, "test"
    report = evaluate(calibrated, given, split, max_images=1, lpips_net=None, download=False)
    assert report.trust.in_sample == (spelling != "other split")
    assert report.data_name == {"copy": "renamed", "split folder": "validation"}.get(spelling, "pairs")
