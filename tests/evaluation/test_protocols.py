"""`evaluate` by the protocols of published figures: what it samples, measures, says and refuses."""

import json
from html import unescape
from typing import get_args

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler
from skimage.metrics import peak_signal_noise_ratio

from c_diffset.cli import main
from c_diffset.data.pairs import load_pairs, read_pair
from c_diffset.evaluation.evaluate import ProtocolName, Spacing, evaluate
from c_diffset.evaluation.instruments import choose_instruments
from c_diffset.evaluation.page.page import direction
from c_diffset.evaluation.report import read_report
from c_diffset.evaluation.sampling import choose_spacing, choose_steps, departures, describe_times, sampled_at
from c_diffset.evaluation.session import quality_table
from c_diffset.measurement.measure import evaluate_pairs
from c_diffset.measurement.protocols import C_DIFFSET, OWN, PROTOCOLS, SPACINGS, ZOO
from c_diffset.synthetic.generate import write_pairs


@pytest.fixture(autouse=True)
def empty_hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub, so that no test depends on what was downloaded before."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 1, size=32, split="train")
    write_pairs(folder, 2, size=32, split="test")
    return folder


def teacher(make_pipe, **options):
    """A model in pixel space that takes 50 steps on its own."""
    scheduler = DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction", set_alpha_to_one=True)
    return make_pipe("pixel", **{"scheduler": scheduler, "default_num_inference_steps": 50} | options)


def test_the_options_name_what_there_is():
    assert direction("dists") == direction("lpips_vgg") == -1
    assert get_args(ProtocolName) == tuple(PROTOCOLS) and get_args(Spacing) == tuple(SPACINGS)


@pytest.mark.parametrize("protocol", [ZOO, C_DIFFSET])
def test_published_times_are_leading_ones_with_offset_1(make_pipe, protocol):
    pipe = teacher(make_pipe)
    own = pipe.scheduler
    with sampled_at(pipe, choose_spacing(pipe, None, protocol)):
        steps = choose_steps(pipe, None, protocol)
        assert steps == 50 and describe_times(pipe, steps) == "981, 961, ..., 1"
        assert pipe.scheduler.timesteps.tolist() == list(range(981, 0, -20))
        assert pipe.scheduler.final_alpha_cumprod == pipe.scheduler.alphas_cumprod[0]
    assert pipe.scheduler is own and describe_times(pipe, 4) == "999, 749, 499, 249"
    assert choose_steps(pipe, 20, protocol) == 20
    assert choose_spacing(pipe, None, OWN) is None and choose_steps(pipe, None, OWN) == 50
    with sampled_at(pipe, choose_spacing(pipe, "linspace", protocol)):
        assert describe_times(pipe, 3) == "999, 500, 0"


def test_distilled_models_and_other_samplers_keep_their_times(make_pipe):
    student, ancestral = teacher(make_pipe, default_num_inference_steps=1), teacher(make_pipe)
    ancestral.scheduler = DDPMScheduler(prediction_type="v_prediction")
    short = teacher(make_pipe, scheduler=DDIMScheduler(15, prediction_type="v_prediction"))
    for pipe in (student, ancestral, short):
        assert choose_spacing(pipe, None, ZOO) is None
        assert choose_steps(pipe, None, ZOO) == pipe.config.default_num_inference_steps
    assert choose_spacing(ancestral, "leading", OWN) == "leading"
    with sampled_at(ancestral, "leading"):
        assert describe_times(ancestral, 50) == "981, 961, ..., 1"
    student.scheduler = LCMScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="timestep_spacing is leading, but the LCMScheduler of this model has times"):
        choose_spacing(student, "leading", ZOO)


def test_what_departs_from_a_protocol_is_named(make_pipe):
    pipe = teacher(make_pipe)
    assert departures(pipe, 50, "leading", ZOO) == departures(pipe, 3, "linspace", OWN) == []
    pipe.to(torch.bfloat16)
    (sentence,) = departures(pipe, 20, "trailing", C_DIFFSET)
    said = "20 steps instead of 50, trailing times instead of leading ones, bfloat16 instead of float32"
    assert sentence == f"Departs from the protocol: {said}."
    student = teacher(make_pipe, default_num_inference_steps=1)
    assert departures(student, 1, None, ZOO) == []


def test_an_evaluation_by_the_zoos_protocol_says_all_that_it_does(make_pipe, data, tmp_path, capsys):
    pipe = teacher(make_pipe)
    options = dict(output=tmp_path / "zoo", crop_size=16, num_inference_steps=4, download=False)
    report = evaluate(pipe, data, protocol="zoo", **options)
    assert read_report(tmp_path / "zoo") == report and report.protocol == "zoo"
    assert (report.timesteps, report.timestep_spacing) == ("751, 501, 251, 1", "leading")
    assert [row.id for row in report.images] == ["test-0000_8_8", "test-0001_8_8"]
    assert list(report.mean) == ["psnr", "ssim", "copy_ratio", "confidence_spearman"]
    left_out = {entry.metric: entry.reason for entry in report.left_out}
    assert {"lpips_vgg", "dists", "dino", "fid", "kid"} <= set(left_out) and "VGG" in left_out["dists"]
    assert pipe.scheduler.config.timestep_spacing == "trailing", "a given pipeline stays as it is"
    page, printed = unescape((tmp_path / "zoo/report.html").read_text()), capsys.readouterr().out
    metrics = json.loads((tmp_path / "zoo/metrics.json").read_text())
    for text in (*report.protocol_source, *report.conventions.values(), report.timesteps):
        assert text in page and text in printed and text in json.dumps(metrics)
    assert report.generated_images == "rounded to 8 bits before they are measured"
    assert report.protocol_source[-1] == "Departs from the protocol: 4 steps instead of 50."


def test_the_papers_own_protocol_changes_the_metrics_and_not_the_images(make_pipe, data):
    pipe, options = teacher(make_pipe), dict(num_inference_steps=2, download=False)
    zoo, paper = (evaluate(pipe, data, protocol=name, **options) for name in ("zoo", "c-diffset"))
    assert list(paper.mean) == ["psnr", "ssim", "scc", "confidence_spearman"]
    assert paper.mean["psnr"] != pytest.approx(zoo.mean["psnr"], abs=0.05)
    assert paper.mean["confidence_spearman"] == pytest.approx(zoo.mean["confidence_spearman"], abs=1e-3)
    assert "x + 0.5" in paper.conventions["psnr"] and any("x + 0.5" in text for text in paper.protocol_source)
    assert paper.generated_images.startswith("not rounded") and "inception_score" in str(paper.left_out)
    assert set(paper.floors) == {"sar_grey", "mean_colour"} and set(paper.floors["sar_grey"]) == {"psnr", "ssim", "scc"}


def test_leading_times_alone_change_the_images_and_no_convention(make_pipe, data):
    pipe, options = teacher(make_pipe), dict(num_inference_steps=2, download=False)
    own, leading = (evaluate(pipe, data, timestep_spacing=name, **options) for name in (None, "leading"))
    assert (own.timesteps, leading.timesteps) == ("999, 499", "501, 1")
    assert own.protocol == leading.protocol == "own" and own.conventions == leading.conventions
    assert own.mean["psnr"] != leading.mean["psnr"] and "protocol" not in quality_table(own)
    by_hand = [result.metrics["psnr"] for result in evaluate_pairs(pipe, map(read_pair, load_pairs(data, "test")), 2)]
    assert own.mean["psnr"] == np.mean(by_hand), "the default is what it was"


def test_other_programs_can_measure_the_same_images(make_pipe, data, tmp_path):
    options = dict(num_inference_steps=1, download=False, protocol="zoo", crop_size=16, save_images=True)
    report = evaluate(teacher(make_pipe), data, output=tmp_path / "out", **options)
    for row in report.images:
        images = [
            np.asarray(PIL.Image.open(tmp_path / "out" / part / f"{row.id}.png")) for part in ("generated", "true")
        ]
        assert images[0].shape == (16, 16, 3)
        assert row.metrics["psnr"] == pytest.approx(peak_signal_noise_ratio(*images[::-1]), abs=1e-4)
    with pytest.raises(ValueError, match="save_images is set, but no output is named"):
        evaluate(teacher(make_pipe), data, **options)


def test_reports_of_two_protocols_are_not_put_together(make_pipe, data, tmp_path, capsys):
    for name in ("own", "zoo"):
        evaluate(teacher(make_pipe), data, output=tmp_path / name, num_inference_steps=1, protocol=name, download=False)
    assert main(["compare", str(tmp_path / "own"), str(tmp_path / "zoo"), "--output", str(tmp_path / "page.html")])
    error = capsys.readouterr().err
    assert "has protocol 'zoo'" in error and "by one protocol" in error and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "paper"}, "protocol is 'paper': expected one of own, zoo, c-diffset"),
        ({"timestep_spacing": "first"}, "timestep_spacing is 'first': expected one of leading, linspace, trailing"),
        ({"protocol": "zoo", "lpips_net": "alex"}, "lpips_net is alex, but protocol zoo measures LPIPS by vgg"),
    ],
)
def test_what_there_is_not_is_refused_before_any_work(make_pipe, data, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(teacher(make_pipe), data, download=False, **options)


def test_lpips_can_be_left_out_of_a_protocol():
    left_out = []
    assert choose_instruments(ZOO, None, None, None, False, left_out).lpips_model is None
    assert [entry.metric for entry in left_out] == ["lpips", "dists", "dino"]
