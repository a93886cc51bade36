"""PSNR and SSIM on the luminance against the formulas written out, and scikit-image."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from c_diffset.measurement.metrics import luma, measure_luma


def images() -> torch.Tensor:
    """Two images that resemble each other, in 8-bit levels."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(1, 3, 24, 32, generator=generator)
    second = (first + 0.1 * torch.randn(1, 3, 24, 32, generator=generator)).clamp(0, 1)
    return (torch.cat([first, second]) * 255).round() / 255


def test_the_luminance_is_that_of_matlab():
    pixels = images()[0].numpy().transpose(1, 2, 0)
    expected = rgb2ycbcr(pixels)[..., 0]
    assert np.abs(luma(images())[0, 0].numpy() * 255 - expected).max() < 1e-3
    ends = luma(torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])).flatten() * 255
    assert ends.tolist() == pytest.approx([16, 235], abs=1e-4)


def test_psnr_and_ssim_are_those_of_scikit_image_with_the_data_range_of_8_bits():
    first, second = images()[:1], images()[1:]
    y = [rgb2ycbcr(image[0].numpy().transpose(1, 2, 0))[..., 0] for image in (first, second)]
    found = measure_luma(second, first)
    assert found["psnr_y"].item() == pytest.approx(peak_signal_noise_ratio(*y, data_range=255), abs=1e-3)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, maps = structural_similarity(*y, full=True, **options)
    assert found["ssim_y"].item() == pytest.approx(maps[5:-5, 5:-5].mean(), abs=1e-4)


def test_what_lies_under_the_mask_does_not_count():
    first, second = images()[:1], images()[1:].clone()
    mask = torch.ones(1, 1, 24, 32)
    mask[..., :4] = 0
    expected = measure_luma(second, first, mask)["psnr_y"]
    second[..., :4] = 0
    assert torch.equal(measure_luma(second, first, mask)["psnr_y"], expected)
