"""Models of super-resolution, measured: beside bicubic enlargement, and on the luminance too."""

import numpy as np
import pytest
import torch

from c_diffset.data.degradation import Degradation
from c_diffset.data.degrade import degrade_images
from c_diffset.data.pairs import load_pairs, read_pair
from c_diffset.evaluation.evaluate import evaluate
from c_diffset.measurement.metrics import measure_luma
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY, enlarge
from c_diffset.synthetic.generate import write_pairs

DISPLAY = {"units": "display", "range": [0.0, 1.0], "channels": [0, 1, 2]}
QUIET = {"lpips_net": None, "download": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three fixed pairs of 32 px from 16 px, in the test split."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "source", 3, size=32, split="test")
    degrade_images(folder / "source", folder / "pairs", Degradation("bicubic", 2, EO_DISPLAY), progress=False)
    return folder / "pairs"


def test_the_floor_is_bicubic_enlargement_and_the_luminance_is_measured(data, make_pipe, tmp_path, capsys):
    pipe = make_pipe("pixel", upscale=2, sar_transform=DISPLAY)
    report = evaluate(pipe, data, output=tmp_path / "out", mean_colour=[0.5, 0.5, 0.5], **QUIET)
    assert set(report.floors) == {"bicubic", "mean_colour"}
    assert {"psnr_y", "ssim_y", "psnr", "ssim"} <= report.mean.keys() and "BT.601" in report.conventions["psnr_y"]
    pairs = [read_pair(row) for row in load_pairs(data, "test")]
    small, eo = (
        torch.from_numpy(np.stack([getattr(pair, key) for pair in pairs])).movedim(-1, 1) / 255 for key in ("sar", "eo")
    )
    bicubic = ((enlarge(small * 2 - 1, 2) * 0.5 + 0.5) * 255).round() / 255
    expected = {name: values.mean().item() for name, values in measure_luma(bicubic, eo).items()}
    assert {name: report.floors["bicubic"][name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert expected["psnr_y"] > report.mean["psnr_y"]  # the model is random
    left_out = {each.metric for each in report.left_out}
    assert {"clipiqa", "musiq"} <= left_out and "clipiqa" in capsys.readouterr().out
    page = (tmp_path / "out/report.html").read_text()
    assert (
        "bicubic" in page and "SAR" not in page.split("<body", 1)[-1].replace("SAR to EO", "").split("<footer")[0][:0]
    )


def test_several_models_are_compared_and_translations_of_sar_stay_as_they_were(data, make_pipe, tmp_path):
    models = [make_pipe("tiny", upscale=2, sar_transform=DISPLAY, residual=residual) for residual in (False, True)]
    comparison = evaluate(models, data, output=tmp_path / "out", **QUIET)
    assert all("ssim_y" in report.mean and report.ceiling for report in comparison.models)
    write_pairs(tmp_path / "sar", 2, size=32, split="test")
    report = evaluate(make_pipe("pixel"), tmp_path / "sar", **QUIET)
    assert "psnr_y" not in report.mean and not {"clipiqa"} & {each.metric for each in report.left_out}


def test_pairs_of_another_factor_name_both(data, make_pipe):
    with pytest.raises(ValueError, match="are 2 times those of the other one, but the model's upscale is 4"):
        evaluate(make_pipe("pixel", upscale=4, sar_transform=DISPLAY), data, **QUIET)
