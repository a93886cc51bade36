"""PSNR and SSIM on the luminance, as the literature of super-resolution has them.

Y of ITU-R BT.601 in 8 bits: 16 + 65.481 R + 128.553 G + 24.966 B for R, G, B in [0, 1], as MATLAB has it, so from 16
to 235; the data range is 255 all the same. No border is cropped, where part of the literature crops `upscale` pixels.
"""

import torch
from torch import Tensor

from c_diffset.measurement.metrics import psnr, ssim

WEIGHTS = (65.481, 128.553, 24.966)


def luma(images: Tensor) -> Tensor:
    """Images B x 3 x H x W in [0, 1] to Y, B x 1 x H x W, as a fraction of 255; not rounded."""
    weights = torch.tensor(WEIGHTS, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return ((images * weights).sum(dim=1, keepdim=True) + 16) / 255


def measure_luma(generated: Tensor, eo: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """`psnr_y` in dB and `ssim_y` of images B x 3 x H x W in [0, 1], each (B,); under a mask as in `metrics`."""
    pair = luma(generated), luma(eo)
    return {"psnr_y": psnr(*pair, mask), "ssim_y": ssim(*pair, mask)}
