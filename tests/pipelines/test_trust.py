"""Expected error by calibration, and ensembles."""

import numpy as np
import pytest
import torch

from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from tests.conftest import SPACES

KNOTS = {"variance": [0.1, 0.5, 2.0], "expected_error": [3.0, 10.0, 40.0], "probability": [0.0, 0.2, 0.9]}
CALIBRATION = {"threshold": 32.0, "steps": {"2": KNOTS}, "data": "pairs", "split": "validation", "n": 7}


@pytest.mark.parametrize("space", SPACES)
def test_calibration_is_linear_between_knots_and_travels_with_the_model(make_pipe, space, sar, tmp_path):
    make_pipe(space, calibration=CALIBRATION).save_pretrained(tmp_path)
    pipe = CDiffSETPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    output = pipe([sar, sar[::-1].copy()], 2, generator=torch.Generator().manual_seed(0), output_type="np")
    variance = 1 / output.confidence.astype(float) - 1
    for found, name in ((output.expected_error, "expected_error"), (output.error_probability, "probability")):
        expected = np.interp(variance, KNOTS["variance"], KNOTS[name])
        assert found.shape == (2, 16, 16) and np.ptp(expected) > 0
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    other = pipe(sar, 3, output_type="pt")
    assert other.expected_error is None and other.error_probability is None
    assert pipe(sar, 2, ensemble_size=2).expected_error is None  # the mean of samples errs less than one
    assert make_pipe(space)(sar, 2).expected_error is None


@pytest.mark.parametrize(
    "change",
    [
        {"variance": [0.5, 0.1, 2.0]},
        {"variance": [0.1]},
        {"expected_error": [3.0, 2.0, 4.0]},
        {"probability": [0.0, 0.5]},
        {"expected_error": [3.0, float("nan"), 4.0]},
    ],
)
def test_knots_that_do_not_rise_are_refused(make_pipe, change):
    with pytest.raises(ValueError, match="calibration"):
        make_pipe("pixel", calibration=CALIBRATION | {"steps": {"2": KNOTS | change}})
    with pytest.raises(ValueError, match="calibration"):
        make_pipe("pixel", calibration={"steps": 3})


@pytest.mark.parametrize("space", SPACES)
def test_an_ensemble_is_the_mean_of_its_samples(make_pipe, space, sar):
    pipe, generator = make_pipe(space), torch.Generator().manual_seed(5)
    samples = [pipe(sar, 2, generator=generator, output_type="pt") for _ in range(3)]
    both = pipe(sar, 2, generator=torch.Generator().manual_seed(5), output_type="pt", ensemble_size=3)
    images = torch.stack([sample.images for sample in samples])
    torch.testing.assert_close(both.images, images.mean(dim=0))
    torch.testing.assert_close(both.spread, 255 * images.std(dim=0).mean(dim=1))
    variance = torch.stack([sample.variance for sample in samples]).mean(dim=0)
    torch.testing.assert_close(both.variance, variance)
    assert both.spread.shape == (1, 16, 16) and both.spread.mean() > 1
    assert samples[0].spread is None
    assert isinstance(pipe(sar, 2, ensemble_size=2).spread, np.ndarray)


def test_ensembles_that_cannot_be(make_pipe, sar):
    pipe = make_pipe("tiny")
    for options in ({"ensemble_size": 0}, {"ensemble_size": 2, "output_type": "latent"}):
        with pytest.raises(ValueError, match="ensemble_size"):
            pipe(sar, 1, **options)
    with pytest.raises(ValueError, match="ensemble_size"):
        pipe(sar, 1, latents=torch.zeros(1, 4, 8, 8), ensemble_size=2)


def test_realism_is_the_strength_of_the_starting_noise(make_pipe, sar):
    """Of a model that was trained for it; its pictures between the ends are those of noise of their strength."""
    pipe = make_pipe("tiny", default_num_inference_steps=1, realism={"range": [0.0, 1.0], "default": 0.5})
    noise = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(0))
    plain = make_pipe("tiny", default_num_inference_steps=1)
    for realism in (0.0, 0.3, None, 1.0):
        found = pipe(sar, latents=noise, realism=realism, output_type="pt")
        expected = plain(sar, latents=noise * (0.5 if realism is None else realism), output_type="pt")
        assert torch.equal(found.images, expected.images) and torch.equal(found.confidence, expected.confidence)


def test_realism_that_makes_no_sense(make_pipe, sar):
    pipe = make_pipe("pixel", default_num_inference_steps=1, realism={"range": [0.0, 0.5], "default": 0.0})
    for realism in (-0.1, 0.6, float("nan"), True, "1"):
        with pytest.raises(ValueError, match="this model was trained for 0 to 0.5"):
            pipe(sar, realism=realism)
    with pytest.raises(ValueError, match="a model that was trained for `realism` takes 1"):
        pipe(sar, num_inference_steps=2)
    with pytest.raises(ValueError, match="with a realism of 0 all samples are the same"):
        pipe(sar, ensemble_size=2)
    with pytest.raises(ValueError, match="realism is 0.5, but this model was not trained for it"):
        make_pipe("pixel")(sar, realism=0.5)
    for bad in ({"range": [0.5, 0.0], "default": 0.2}, {"range": [0, 2], "default": 1}, {"range": [0, 1]}, [0, 1], "x"):
        with pytest.raises(ValueError, match="realism is .*: expected {'range'"):
            make_pipe("pixel", realism=bad)
    with pytest.raises(ValueError, match="variance_of is 'x'"):
        make_pipe("pixel", variance_of="x")


def test_every_realism_has_a_calibration_of_its_own(make_pipe, sar):
    pipe = make_pipe("pixel", default_num_inference_steps=1, realism={"range": [0.0, 1.0], "default": 0.0})
    knots = {"variance": [0.0, 10.0], "expected_error": [1.0, 1.0], "probability": [0.0, 0.1]}
    maps = {"1 at realism 0": knots, "1 at realism 0.25": knots | {"expected_error": [2.0, 2.0]}, "1": knots}
    pipe.register_to_config(calibration={"threshold": 32.0, "steps": maps})
    assert pipe(sar, output_type="np").expected_error.max() == 1
    assert pipe(sar, output_type="np", realism=0.25).expected_error.min() == 2
    assert pipe(sar, output_type="np", realism=0.5).expected_error is None
