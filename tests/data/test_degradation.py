"""Degraded images: pure functions of (seed, number), whose parts are what their names say."""

from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from math import pi

import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import gaussian_filter, shift

from c_diffset.data import degradation
from c_diffset.data.batches import pair_to_tensors
from c_diffset.data.degradation import Degradation, bell_kernel, degrade, input_transform, sinc_kernel
from c_diffset.data.pairs import Pair
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY


def picture(height: int = 64, width: int = 96) -> np.ndarray:
    """A smooth random image with all levels."""
    noise = np.random.default_rng(0).standard_normal((height, width, 3))
    smooth = gaussian_filter(noise, (3, 3, 0))
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def fingerprint(count: int) -> str:
    """A hash of the first images of seed 7."""
    images = [degrade(picture(), "real_esrgan", 4, 7, number) for number in range(count)]
    return sha256(b"".join(image.tobytes() for image in images)).hexdigest()


def test_an_image_depends_on_seed_and_number_alone():
    images = [degrade(picture(), "real_esrgan", 4, seed, number) for seed in (0, 1) for number in range(20)]
    assert all(image.shape == (16, 24, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == 40
    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(fingerprint, [8] * 4)} == {fingerprint(8)}


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_the_mean_of_many_is_the_smoothed_image_in_its_place(upscale):
    """Neither blur nor the resizes move anything: half a pixel away, the images agree less."""
    degraded = [degrade(picture(96, 96), "real_esrgan", upscale, 0, number) for number in range(60)]
    blocks = picture(96, 96).reshape(96 // upscale, upscale, 96 // upscale, upscale, 3).mean((1, 3))
    mean, smooth = np.mean(degraded, axis=0), gaussian_filter(blocks, (1, 1, 0))
    assert np.abs(mean.mean((0, 1)) - blocks.mean((0, 1))).max() < 3

    def agreement(*move: float) -> float:
        return np.corrcoef(*(x[3:-3, 3:-3].ravel() for x in (mean, shift(smooth, (*move, 0), order=1))))[0, 1]

    away = [agreement(*move) for move in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))]
    assert agreement(0, 0) > max(0.8, *away)


def test_bicubic_is_that_of_the_literature():
    """Antialiased, as in MATLAB and PIL, and without any chance."""
    image = picture()
    expected = PIL.Image.fromarray(image).resize((24, 16), PIL.Image.Resampling.BICUBIC)
    assert np.array_equal(degrade(image, "bicubic", 4, 0, 1), np.asarray(expected))


def test_a_bell_of_exponent_1_is_a_gaussian():
    impulse = np.zeros((21, 21))
    impulse[10, 10] = 1
    kernel = bell_kernel(21, (2.0, 1.0), 0.0, 1.0)
    assert np.abs(kernel - gaussian_filter(impulse, (1.0, 2.0), truncate=10)).max() < 1e-3
    assert np.allclose(bell_kernel(21, (2.0, 1.0), pi / 2, 1.0), kernel.T)


def test_a_plateau_is_flatter_in_the_middle():
    gaussian, plateau = (bell_kernel(21, (3.0, 3.0), 0.0, 2.0, plateau) for plateau in (False, True))
    assert gaussian.sum() == pytest.approx(1) and plateau.sum() == pytest.approx(1)
    assert plateau[10, 12] / plateau[10, 10] == pytest.approx(1 / (1 + (4 / 9) ** 2))


def test_a_sinc_filter_cuts_off_what_is_above_its_frequency():
    """Its response to waves below and above the cutoff, along an axis."""
    kernel, steps = sinc_kernel(21, pi / 2), np.arange(21) - 10
    response = [abs((kernel * np.cos(frequency * steps)).sum()) for frequency in (0.1, pi / 4, 3 * pi / 4, pi)]
    assert response[0] == pytest.approx(1, abs=0.05) and response[1] > 0.8
    assert max(response[2:]) < 0.1


def test_poisson_noise_grows_with_brightness_and_may_be_grey():
    image = np.repeat(np.linspace(0.05, 1, 128, dtype=np.float32)[:, None], 512, axis=1)[..., None].repeat(3, axis=2)
    noise = degradation._poisson_noise(image, False, np.random.default_rng(0))
    assert noise.shape == image.shape and abs(noise.mean()) < 1e-3
    assert noise[-32:].var() / noise[:32].var() == pytest.approx(image[-32:].mean() / image[:32].mean(), rel=0.1)
    assert degradation._poisson_noise(image, True, np.random.default_rng(0)).shape == (128, 512, 1)


def test_what_cannot_be_degraded_is_refused():
    with pytest.raises(ValueError, match="uint8 63 x 96 x 3: expected .* multiples of 4"):
        degrade(picture(63, 96), "real_esrgan", 4, 0, 0)
    with pytest.raises(ValueError, match="uint16 8 x 8 x 3"):
        degrade(np.zeros((8, 8, 3), np.uint16), "real_esrgan", 4, 0, 0)
    with pytest.raises(ValueError, match="degradation is 'fog': expected one of real_esrgan, bicubic"):
        degrade(picture(), "fog", 4, 0, 0)


def test_even_the_smallest_images_can_be_degraded():
    assert {degrade(picture(4, 4), "real_esrgan", 4, 0, n).shape for n in range(50)} == {(1, 1, 3)}


def test_a_pair_keeps_its_eo_image_and_mask_and_gets_a_small_one():
    """Sides that are no multiples are cut; reflectance is degraded as a model sees it."""
    eo = picture(66, 97).astype(np.uint16) * 10
    mask = np.ones((66, 97), bool)
    mask[:, 0] = False
    reflectance = {"units": "reflectance", "range": [0, 2550]}
    for transform, expected in ((reflectance, eo / 10), ({"units": "reflectance", "range": [0, 5100]}, eo / 20)):
        pair = Degradation("bicubic", 4, transform)(Pair(eo, eo, mask, "x"), 3)
        assert pair.upscale == 4 and pair.sar.dtype == np.uint16 and pair.sar.shape == (16, 24, 3)
        assert np.array_equal(pair.eo, eo[:64, :96]) and np.array_equal(pair.mask, mask[:64, :96])
        tensors = pair_to_tensors(pair, input_transform(eo, transform), transform, 4)
        assert abs(pair.sar.mean() - eo[:64, :96].mean()) < 10
        assert abs((tensors["sar"].mean() + 1) * 127.5 - expected[:64, :96].mean()) < 1
    with pytest.raises(ValueError, match="pair x: the EO image holds floats"):
        Degradation("bicubic", 4, EO_DISPLAY)(Pair(eo, eo.astype(np.float32), None, "x"), 0)
