"""The evaluation from end to end: a tiny pixel-space model on generated pairs."""

import copy
import csv
import json
import warnings
from pathlib import Path

import lpips
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler
from skimage.metrics import peak_signal_noise_ratio

from c_diffset.cli import main
from c_diffset.data.pairs import Pair, load_pairs, read_pair
from c_diffset.evaluation.evaluate import evaluate
from c_diffset.evaluation.instruments import try_features
from c_diffset.evaluation.report import read_report
from c_diffset.evaluation.split import split_against_train
from c_diffset.loading import component_checksum
from c_diffset.measurement.colours import SCALES
from c_diffset.measurement.measure import crop_pairs, evaluate_pairs, floors_and_ceiling, mean_colour_of
from c_diffset.measurement.picture_grid import make_grid
from c_diffset.models.unet import small_unet
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY, CDiffSETPipeline
from c_diffset.synthetic.generate import write_pairs
from tests.conftest import tiny_taesd

STEPS = 2


@pytest.fixture(autouse=True)
def empty_hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub, so that no test depends on what was downloaded before."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 3, size=64, split="train")
    write_pairs(folder, 4, size=64, split="test")
    return folder


@pytest.fixture(scope="module")
def pipe() -> CDiffSETPipeline:
    torch.manual_seed(0)
    unet = small_unet(3, 3, [16, 32], layers_per_block=1, attention_levels=0)
    torch.nn.init.normal_(unet.conv_out.weight[-1], std=0.01)  # a variance of zeros was never trained, and is left out
    pipe = CDiffSETPipeline(unet, DDIMScheduler(timestep_spacing="trailing"), default_num_inference_steps=STEPS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pairs(data) -> list[Pair]:
    return [read_pair(row) for row in load_pairs(data, "test")]


def gap(first: list, second: list) -> float:
    return max((a.generated - b.generated).abs().max().item() for a, b in zip(first, second, strict=True))


def test_evaluate_from_a_saved_model_to_files(pipe, data, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "model")
    torch.save(lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).state_dict(), tmp_path / "lpips.pt")
    report = evaluate(
        str(tmp_path / "model"),
        data,
        output=tmp_path / "out",
        crop_size=32,
        lpips_weights=tmp_path / "lpips.pt",
        download=False,
    )
    assert read_report(tmp_path / "out") == report
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *("grid.png", "metrics.json", "per_image.csv", "report.html")
    ]
    assert (report.n, report.pairs, report.fraction_of_pixels) == (16, "4 of 4", 1.0)
    assert (report.num_inference_steps, report.scheduler) == (STEPS, "DDIMScheduler")
    with open(tmp_path / "out/per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows[:3]] == ["test-0000_0_0", "test-0000_0_32", "test-0000_32_0"]
    assert report.mean["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))
    assert {"lpips_squeeze", "fid_lpips_squeeze", "kid_lpips_squeeze", "confidence_spearman"} <= set(report.mean)
    assert set(report.conventions) == set(report.mean)
    assert set(report.floors) == {"sar_grey", "mean_colour"}
    assert report.ceiling is None and report.autoencoder is None
    assert [entry.metric for entry in report.left_out] == ["fid", "kid"]
    for entry in report.left_out:  # a sentence without the folders of this machine, and what to do
        assert "downloads are off: allow the download, or name the file with --inception_weights" in entry.reason
        assert "/" not in entry.reason
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("psnr", "sar_grey", "mean_colour", "left out: fid, kid (", "16 images"))
    written, following = printed.splitlines()[-2:]
    assert written.startswith(f"{tmp_path / 'out/report.html'}: open it in a browser")
    assert following.startswith(f"next: c-diffset calibrate --model {tmp_path / 'model'} --data {data}")


def test_a_download_that_fails_is_left_out_in_a_sentence(monkeypatch):
    monkeypatch.setattr("c_diffset.measurement.networks.INCEPTION_URL", "http://127.0.0.1:9/weights-01234567.pth")
    left_out = []
    assert try_features(None, None, True, left_out) == {}
    assert {entry.metric: entry.reason for entry in left_out} == dict.fromkeys(
        ("fid", "kid"),
        "the weights weights-01234567.pth could not be downloaded from 127.0.0.1: connect this machine, or name the "
        "file with --inception_weights",
    )


def test_metrics_are_those_of_the_8_bit_files(pipe, pairs):
    results = list(evaluate_pairs(pipe, pairs, seed=3))
    assert [result.id for result in results] == [pair.id for pair in pairs]
    for result, pair in zip(results, pairs, strict=True):
        file = (result.generated * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_allclose(file / 255, result.generated.permute(1, 2, 0), atol=1e-6)
        assert result.metrics["psnr"] == pytest.approx(peak_signal_noise_ratio(pair.eo, file), abs=1e-3)
        difference = file.astype(float) - pair.eo
        assert result.metrics["bias_g"] == pytest.approx(difference[..., 1].mean(), abs=1e-3)
        np.testing.assert_allclose(result.sar[0], pair.sar / 255, atol=1e-6)
        assert result.confidence.shape == (64, 64)


def test_noise_depends_on_seed_and_place_but_not_on_the_batch_size(pipe, pairs):
    alone = list(evaluate_pairs(pipe, pairs, batch_size=1))
    assert gap(alone, list(evaluate_pairs(pipe, pairs, batch_size=3))) <= 1.01 / 255
    assert gap(alone, list(evaluate_pairs(pipe, pairs, batch_size=1, seed=1))) > 10 / 255
    twins = list(evaluate_pairs(pipe, [pairs[0], pairs[0]]))
    assert gap(twins[:1], twins[1:]) > 10 / 255


def test_images_of_several_sizes(pipe, pairs):
    small = next(crop_pairs(pairs[:1], 40))
    results = list(evaluate_pairs(pipe, [pairs[0], small, pairs[1], pairs[2]]))
    assert [tuple(result.generated.shape) for result in results] == [(3, 64, 64), (3, 40, 40), (3, 64, 64), (3, 64, 64)]


def test_nodata_counts_nowhere_and_is_black(pipe, pairs):
    mask = np.ones((64, 64), dtype=bool)
    mask[:, 40:] = False
    sar, eo = pairs[0].sar, pairs[0].eo
    results = []
    for fill in (0, 255):
        masked = Pair(sar, np.where(mask[..., None], eo, fill).astype(np.uint8), mask, "masked")
        results += evaluate_pairs(pipe, [masked])
    assert results[0].metrics == results[1].metrics
    assert results[0].generated[..., 40:].max() == 0 and results[0].generated[..., :40].max() > 0


def test_trust_holds_baselines_calibration_and_known_discrepancies(make_pipe, data, tmp_path):
    write_pairs(tmp_path / "pairs", 4, size=64, discrepancy=0.2, split="test")
    knots = {"variance": [0.0, 5.0], "expected_error": [10.0, 60.0], "probability": [0.0, 1.0]}
    pipe = make_pipe("pixel", calibration={"threshold": 32.0, "steps": {"2": knots}, "data": "d", "split": "s", "n": 7})
    options = {"num_inference_steps": STEPS, "lpips_net": None, "download": False}
    plain = evaluate(pipe, tmp_path / "pairs", **options)
    report = evaluate(pipe, tmp_path / "pairs", **options, spread_samples=3, batch_size=3)
    assert report.images[0].metrics["psnr"] == pytest.approx(plain.images[0].metrics["psnr"], abs=1e-3)
    assert report.calibration == "d, split s: 7 images"
    found = report.trust.uncertainties
    assert list(found) == ["predicted variance", "spread of 3 samples", "SAR gradient"]
    assert list(plain.trust.uncertainties) == ["predicted variance", "SAR gradient"]
    read = [read_pair(row) for row in load_pairs(tmp_path / "pairs", "test")]
    share = np.mean([pair.discrepancy for pair in read])
    assert report.trust.constant.average_precision == pytest.approx(share, abs=0.03) and share > 0.15
    assert np.mean([crop.discrepancy for crop in crop_pairs(read, 32)]) == pytest.approx(share)
    for entry in found.values():
        assert 0.3 < entry.auroc.value < 0.9 and share / 2 < entry.average_precision.value < 4 * share
    assert len(report.trust.expected_error.curve.count) == len(report.trust.error_probability.curve.count) > 1
    assert report.trust.threshold == 32 and not report.trust.in_sample

    place = {"data": "pairs", "split": "test"}
    own = make_pipe("pixel", calibration=pipe.config.calibration | place)
    assert evaluate(own, tmp_path / "pairs", **options, max_images=1).trust.in_sample
    expected = np.mean([result.expected_error.numpy() for result in evaluate_pairs(pipe, read, STEPS)])
    curve = report.trust.expected_error.curve
    assert np.average(curve.expected, weights=curve.count) == pytest.approx(expected, rel=0.05)
    agreeing = evaluate(pipe, data, **options).trust
    assert agreeing.uncertainties["SAR gradient"].auroc is None, "these pairs hold no discrepancies"


def test_the_spread_is_that_of_other_samples(make_pipe, pairs):
    pipe = make_pipe("tiny", sar_transform={"units": "display", "range": [0.0, 1.0], "channels": [0, 0, 0]})
    results = [list(evaluate_pairs(pipe, pairs, 1, size, spread_samples=2)) for size in (1, 4)]
    for alone, batched in zip(*results, strict=True):
        assert alone.spread.shape == (64, 64) and alone.spread.mean() > 0.5
        torch.testing.assert_close(alone.spread, batched.spread, atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match="spread_samples is 1"):
        evaluate(pipe, "nowhere", spread_samples=1)


def test_nan_out_of_the_model_names_the_pair(data):
    unet = small_unet(3, 3, [16, 32], layers_per_block=1, attention_levels=0)
    unet.conv_out.bias.data.fill_(float("nan"))
    pipe = CDiffSETPipeline(unet, DDIMScheduler(), default_num_inference_steps=1)
    with pytest.raises(ValueError, match="test-0000.*NaN"):
        evaluate(pipe, data, lpips_net=None, download=False)


def test_crops_cover_the_image_without_overlap(pairs):
    crops = list(crop_pairs(pairs[:1], 32))
    top, bottom = (np.concatenate([crop.eo for crop in crops[i : i + 2]], axis=1) for i in (0, 2))
    np.testing.assert_array_equal(np.concatenate([top, bottom]), pairs[0].eo)
    mask = np.zeros((64, 64), dtype=bool)
    mask[:32] = True
    masked = Pair(pairs[0].sar, pairs[0].eo, mask, "half")
    assert [crop.id for crop in crop_pairs([masked], 32)] == ["half_0_0", "half_0_32"]
    with pytest.raises(ValueError, match="test-0000 is 64 x 64, smaller than crop_size 65"):
        next(crop_pairs(pairs, 65))


def test_the_report_says_what_was_not_looked_at(pipe, data):
    report = evaluate(pipe, data, crop_size=48, max_images=3, lpips_net=None, download=False)
    assert (report.n, report.pairs) == (3, "3 of 4")
    assert report.fraction_of_pixels == pytest.approx(48**2 / 64**2, abs=1e-4)
    assert [entry.metric for entry in report.left_out] == ["lpips", "fid", "kid"]


def test_images_far_larger_than_what_the_model_was_made_for_are_named(pipe, pairs):
    pipe, side = copy.deepcopy(pipe), max(pairs[0].eo.shape[:2])
    pipe.unet.register_to_config(sample_size=side // 4 // pipe.vae_scale_factor)
    with pytest.warns(UserWarning, match=f"images of {side} x {side} pixels .* crop_size {side // 4} measures crops"):
        next(evaluate_pairs(pipe, pairs[:1], 1))
    pipe.unet.register_to_config(sample_size=side // 2 // pipe.vae_scale_factor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(evaluate_pairs(pipe, pairs[:1], 1))


def test_one_image_has_no_distribution(pipe, data, tmp_path):
    torch.save(lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).state_dict(), tmp_path / "lpips.pt")
    report = evaluate(pipe, data, max_images=1, lpips_weights=tmp_path / "lpips.pt", download=False)
    reasons = {entry.metric: entry.reason for entry in report.left_out}
    assert (
        reasons["kid_lpips_squeeze"] == "it compares sets of images: measure at least 2"
        and "kid_lpips_squeeze" not in report.mean
    )


def test_floors_in_closed_form(pipe, pairs):
    colour = [0.2, 0.4, 0.6]
    flat = Pair(pairs[0].sar, np.broadcast_to(np.uint8([51, 102, 153]), (64, 64, 3)), None, "flat")
    assert mean_colour_of([flat, flat], EO_DISPLAY) == pytest.approx(colour)
    measured, ceiling = floors_and_ceiling([flat], pipe, colour)
    assert measured["mean_colour"]["psnr"] == pytest.approx(100, abs=0.1)
    assert measured["sar_grey"]["copy_ratio"] == 0.0
    assert measured["sar_grey"]["bias_r"] == pytest.approx(flat.sar.mean() - 51, abs=1e-3)
    assert ceiling is None, "pixel space loses nothing"
    assert set(floors_and_ceiling(pairs, pipe, None)[0]) == {"sar_grey"}


@pytest.mark.parametrize("space", ["kl", "tiny"])
def test_the_ceiling_is_the_round_trip_of_the_true_image(make_pipe, pairs, space):
    """49 pixels become 52, a multiple of 4, by reflection; nodata is black in both images."""
    pipe = make_pipe(space)
    mask = np.ones((49, 49), dtype=bool)
    mask[:20, 30:] = False
    eo = pairs[0].eo[:49, :49]
    ceiling = floors_and_ceiling([Pair(pairs[0].sar[:49, :49], eo, mask, "odd")], pipe, None)[1]

    vae = copy.deepcopy(pipe.vae).double()
    padded = np.pad(eo / 127.5 - 1, ((0, 3), (0, 3), (0, 0)), mode="reflect")
    with torch.no_grad():
        encoded = vae.encode(torch.from_numpy(padded).permute(2, 0, 1)[None])
        latents = encoded.latents if space == "tiny" else encoded.latent_dist.mean
        decoded = vae.decode(latents).sample[0].permute(1, 2, 0).numpy()[:49, :49]
    levels = np.round(127.5 * (np.clip(decoded, -1, 1) + 1))
    error = (levels - eo.astype(float))[mask]
    assert ceiling["psnr"] == pytest.approx(10 * np.log10(255**2 / np.mean(error**2)), abs=1e-3)
    assert [ceiling[f"bias_{band}"] for band in "rgb"] == pytest.approx(error.mean(0).tolist(), abs=2e-2)


def test_the_report_names_the_autoencoder_and_its_ceiling(make_pipe, data, tmp_path, capsys):
    make_pipe("kl").save_pretrained(tmp_path / "model")
    tiny_taesd().save_pretrained(tmp_path / "taesd")
    options = dict(max_images=2, lpips_net=None, download=False)
    own = evaluate(tmp_path / "model", data, **options)
    assert own.autoencoder == f"AutoencoderKL, {tmp_path / 'model/vae'}"
    assert own.autoencoder_weights == component_checksum(tmp_path / "model", "vae") != own.weights
    other = evaluate(tmp_path / "model", data, output=tmp_path / "out", vae=str(tmp_path / "taesd"), **options)
    assert other.autoencoder == f"AutoencoderTiny, {tmp_path / 'taesd'}"
    assert other.weights == f"{own.weights} with the autoencoder {tmp_path / 'taesd'}"  # so it cannot be published
    assert json.loads((tmp_path / "out/metrics.json").read_text())["ceiling"] == other.ceiling
    assert other.ceiling["psnr"] != own.ceiling["psnr"] and other.floors == own.floors
    lines = capsys.readouterr().out.splitlines()
    psnr = [line for line in lines if line.startswith("psnr")][-1]
    assert psnr.split()[-1] == f"{other.ceiling['psnr']:.4f}"
    assert [line.split()[-1] for line in lines if "sar_grey" in line] == ["autoencoder", "autoencoder"]


def test_a_pipeline_in_memory_keeps_its_autoencoder(pipe, data):
    with pytest.raises(ValueError, match="vae is set, but the model is a pipeline in memory"):
        evaluate(pipe, data, vae="taesd")


def test_mean_colour_comes_from_train_and_never_from_the_split(pipe, data, tmp_path):
    report = evaluate(pipe, data, max_images=2, lpips_net=None, download=False)
    train = [read_pair(row).eo for row in load_pairs(data, "train")]
    assert report.mean_colour == pytest.approx(np.mean(train, axis=(0, 1, 2)) / 255)
    write_pairs(tmp_path / "test_only", 2, size=64, split="test")
    report = evaluate(pipe, tmp_path / "test_only", lpips_net=None, download=False)
    assert set(report.floors) == {"sar_grey"}
    assert report.left_out[-1].metric == "floor mean_colour"
    report = evaluate(pipe, tmp_path / "test_only", lpips_net=None, download=False, mean_colour=[0.1, 0.2, 0.3])
    assert report.mean_colour == [0.1, 0.2, 0.3] and "mean_colour" in report.floors


def test_a_folder_with_content_is_not_overwritten(pipe, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.json").write_text("earlier")
    with pytest.raises(FileExistsError, match="overwrite"):
        evaluate(pipe, data, output=tmp_path / "out")
    assert (tmp_path / "out/metrics.json").read_text() == "earlier"
    evaluate(pipe, data, output=tmp_path / "out", max_images=1, lpips_net=None, download=False, overwrite=True)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["n"] == 1


def test_weights_that_were_named_must_work(pipe, data, tmp_path):
    for option in ("lpips_weights", "inception_weights"):
        with pytest.raises(FileNotFoundError, match="absent.pt"):
            evaluate(pipe, data, download=False, lpips_net="squeeze", **{option: tmp_path / "absent.pt"})


def test_split_against_train_counts_shared_origin_and_ground(data, tmp_path):
    for split, left in (("train", 0), ("test", 5)):
        folder = write_pairs(tmp_path, 2, size=64, split=split)
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        for i, row in enumerate(rows):
            start = left + 20 * i * (split == "test")
            row |= {"region": f"{split}{i}", "crs": "EPSG:3395", "bounds": [start, 0, start + 10, 10]}
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert split_against_train(load_pairs(tmp_path, "test"), load_pairs(tmp_path, "train")) == [
        "0 of 2 values of region occur in train too",
        "1 of 2 images overlap with the bounds of a train image",
    ]
    assert split_against_train(load_pairs(data, "test"), None)[0].startswith("unknown")


def test_grid_keeps_pixels_and_fixes_the_colours_of_confidence():
    grey, confidence = torch.full((3, 40, 60), 0.5), torch.full((40, 60), 1.0)
    grid = make_grid([{"SAR": grey, "confidence": confidence}, {"SAR": grey}])
    pixels = np.asarray(grid).reshape(-1, 3)
    counts = [(pixels == colour).all(1).sum() for colour in ((128, 128, 128), (253, 231, 37))]
    assert counts[0] >= 2 * 40 * 60 and counts[1] >= 40 * 60
    assert SCALES["confidence"].paint(np.array([[0.0, 0.5]]))[0].tolist() == [[68, 1, 84], [33, 145, 140]]
    assert SCALES["expected error"].paint(np.array([[0.0, 64.0, 200.0]]))[0, 0].tolist() == [0, 0, 4]
    both = make_grid([{"SAR": grey, "expected error": confidence * 32, "confidence": confidence}])
    places = [np.argwhere((np.asarray(both) == colour).all(2)) for colour in ((188, 55, 84), (253, 231, 37))]
    assert all(len(place) >= 40 * 60 for place in places) and places[0][0, 1] < places[1][0, 1]
    large = make_grid([{"SAR": torch.zeros(3, 400, 200)}], cell=100)
    assert isinstance(large, PIL.Image.Image) and large.height < 140 and large.width < 70


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_data_are_looked_for_before_models(command, pipe, data, tmp_path, capsys):
    """The model's weights are damaged, and so is a file of LPIPS: neither is read before the data are found."""
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model/unet/diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    arguments = [command, "--model", str(tmp_path / "model")]
    if command == "evaluate":
        arguments += ["--lpips_weights", str(tmp_path / "damaged.pth")]
    assert main([*arguments, "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is neither a file or folder" in capsys.readouterr().err
    assert main([*arguments, "--data", str(data), "--split", "spring"]) == 2
    assert "has no split 'spring'; found: " in capsys.readouterr().err


@pytest.fixture
def short_judge(monkeypatch):
    """The two-sample test with few updates: here, what is done with it counts."""
    monkeypatch.setattr("c_diffset.measurement.two_sample.UPDATES", 8)


@pytest.mark.usefixtures("short_judge")
def test_the_two_sample_test_stands_in_every_table(pipe, data, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "model")
    options = dict(lpips_net=None, download=False, crop_size=32, output=tmp_path / "out", two_sample=True)
    report = evaluate(str(tmp_path / "model"), data, **options)
    assert read_report(tmp_path / "out") == report
    for metric in ("two_sample", "two_sample_with_input"):
        found = report.two_sample[metric]
        assert report.mean[metric] == found.accuracy.value and found.accuracy.low <= found.accuracy.high
        assert (found.places, found.images, len(found.by_seed)) == (4, 16, 5), "crops of an image are of one place"
        assert report.conventions[metric].endswith("lower is better")
    printed, page = capsys.readouterr().out, (tmp_path / "out/report.html").read_text()
    assert "two_sample: 95 % " in printed and report.two_sample_places in printed
    assert "Two-sample test" in page and ">two_\u200bsample_\u200bwith_\u200binput<" in page


@pytest.mark.usefixtures("short_judge")
def test_a_two_sample_test_of_too_few_places_is_left_out(pipe, data):
    report = evaluate(pipe, data, lpips_net=None, download=False, max_images=3, two_sample=True)
    reasons = {entry.metric: entry.reason for entry in report.left_out}
    assert "the images are of 3 places: expected at least 4" in reasons["two_sample"]
    assert "two_sample" not in report.mean and "two_sample_with_input" in reasons
