"""Metrics of generated EO images. The convention of each is in its docstring, and in short in `conventions`.

Images are float tensors B x 3 x H x W in [0, 1]; masks B x 1 x H x W, 1 = valid and 0 = not. Metrics of single images
return a tensor (B,). Under a mask, means run over the valid pixels (or over the windows with a valid centre).
"""

from dataclasses import dataclass, field

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c_diffset.measurement.networks import Dists
from c_diffset.measurement.protocols import OWN, Protocol
from c_diffset.measurement.ranks import spearman

LEAST_SIDE = 11  # pixels, of the window of SSIM
LPIPS_LEAST_SIDE = {"alex": 31, "squeeze": 17, "vgg": 16}  # what is left of smaller images after the net's pooling


# ------------------------------------------------------------------------------------------------- single images


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over channels and valid pixels: B x C x H x W to (B,); 0 where no pixel is valid."""
    if mask is None:
        return values.mean((1, 2, 3))
    return (values * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)).clamp_min(1) * values.shape[1])


def _filter(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with a kernel h x w, without padding."""
    channels = images.shape[1]
    return F.conv2d(images, kernel.to(images).expand(channels, 1, *kernel.shape), groups=channels)


def psnr(generated: Tensor, eo: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, data range 1. The squared error is at least 1e-10: equal images give 100 dB."""
    return -10 * torch.log10(_mean((generated - eo) ** 2, mask).clamp_min(1e-10))


def ssim(generated: Tensor, eo: Tensor, mask: Tensor | None = None, mirrored: bool = False) -> Tensor:
    """Structural similarity (Wang et al., 2004): data range 1, K = (0.01, 0.03), mean over channels.

    The Gaussian window has 11 pixels and sigma 1.5, and lies within the image: the least size is 11 x 11. An image none
    of whose windows has a valid centre counts as 0. `mirrored` lets windows stand at every pixel, with the image
    mirrored beyond its border, as torchmetrics does since 1.0.
    """
    if mirrored:
        generated, eo = (F.pad(images, (5, 5, 5, 5), mode="reflect") for images in (generated, eo))
    taps = torch.exp(-((torch.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps) / taps.sum() ** 2
    mean_x, mean_y = _filter(generated, window), _filter(eo, window)
    variance_x = _filter(generated**2, window) - mean_x**2
    variance_y = _filter(eo**2, window) - mean_y**2
    covariance = _filter(generated * eo, window) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return _mean(luminance * structure, mask if mask is None or mirrored else mask[..., 5:-5, 5:-5])


def scc(generated: Tensor, eo: Tensor, mask: Tensor | None = None) -> Tensor:
    """Spatial correlation coefficient (Zhou et al., 1998): local correlation of the high-pass images, in [-1, 1].

    Laplacian of 3 x 3 with mirrored borders, then correlation in windows of 8 x 8 with zeros outside, mean over
    channels and pixels, as torchmetrics and sewar have it. A window in which either image is flat counts as 0.
    """
    laplacian = torch.full((3, 3), -1.0)
    laplacian[1, 1] = 8.0
    window = torch.full((8, 8), 1 / 64)
    x, y = (F.pad(_filter(F.pad(im, (1,) * 4, mode="replicate"), laplacian), (4, 3, 4, 3)) for im in (generated, eo))
    mean_x, mean_y = _filter(x, window), _filter(y, window)
    variance_x = _filter(x**2, window) - mean_x**2
    variance_y = _filter(y**2, window) - mean_y**2
    covariance = _filter(x * y, window) - mean_x * mean_y
    flat = torch.minimum(variance_x, variance_y) < 1e-9  # far below one 8-bit level in one pixel of the window
    correlation = covariance / torch.sqrt(variance_x * variance_y).masked_fill(flat, 1.0)
    return _mean(correlation.masked_fill(flat, 0.0), mask)


def luma(images: Tensor) -> Tensor:
    """Images B x 3 x H x W in [0, 1] to Y of ITU-R BT.601, B x 1 x H x W, as a fraction of 255; not rounded.

    In 8 bits it is 16 + 65.481 R + 128.553 G + 24.966 B, from 16 to 235, as in MATLAB.
    """
    weights = images.new_tensor((65.481, 128.553, 24.966)).view(1, 3, 1, 1)
    return ((images * weights).sum(dim=1, keepdim=True) + 16) / 255


def measure_luma(generated: Tensor, eo: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """`psnr_y` in dB and `ssim_y`, each (B,), as the literature of super-resolution has them: on Y, data range 255.

    No border is cropped, where part of the literature crops as many pixels as the factor.
    """
    pair = luma(generated), luma(eo)
    return {"psnr_y": psnr(*pair, mask), "ssim_y": ssim(*pair, mask)}


def mean_colour_bias(generated: Tensor, eo: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of generated - EO by channel, signed, in 8-bit levels: B x 3."""
    difference = 255 * (generated - eo)
    return torch.stack([_mean(difference[:, i : i + 1], mask) for i in range(3)], dim=1)


def copy_ratio(generated: Tensor, eo: Tensor, sar: Tensor, mask: Tensor | None = None) -> Tensor:
    """mean|generated - SAR| / mean|generated - EO|: 0 for a copy of the input, large for a good translation.

    `sar`: B x 3 x H x W in [0, 1], the SAR image in grey.
    """
    return _mean((generated - sar).abs(), mask) / _mean((generated - eo).abs(), mask).clamp_min(1e-6)


@dataclass(frozen=True)
class Instruments:
    """What images are measured with: a protocol, and the networks that it needs, where their weights are there."""

    protocol: Protocol = OWN
    lpips_model: lpips.LPIPS | None = None
    dists_model: Dists | None = None
    quality: dict[str, nn.Module] = field(default_factory=dict)  # without a reference, by the names of their metrics

    @property
    def least_side(self) -> int:
        """Images must have at least so many pixels a side."""
        return LEAST_SIDE if self.lpips_model is None else LPIPS_LEAST_SIDE[self.lpips_model.pnet_type]

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        for network in filter(None, (self.lpips_model, self.dists_model, *self.quality.values())):
            network.to(device)


PLAIN = Instruments()


@torch.no_grad()
def measure(
    generated: Tensor,
    eo: Tensor,
    sar: Tensor,
    confidence: Tensor | None = None,
    mask: Tensor | None = None,
    instruments: Instruments = PLAIN,
    enlarged: bool = False,
) -> list[dict[str, float]]:
    """The protocol's metrics of single images, one dictionary for each image of the batch.

    Invalid pixels are made black in all three images first, so that what lies there cannot count.

    Args:
        generated, eo, sar: B x 3 x H x W in [0, 1]; SAR in grey.
        confidence: B x H x W, adds `confidence_spearman` (against the absolute error, mean over channels).
        mask: B x 1 x H x W, 1 = valid.
        instruments: the protocol, and networks that add `lpips_NET`, `dists` and those of `quality`.
        enlarged: whether this is super-resolution, which adds the metrics of the luminance; `sar` is then the enlarged
            image of low resolution.
    """
    protocol, lpips_model = instruments.protocol, instruments.lpips_model
    if mask is not None:
        generated, eo, sar = generated * mask, eo * mask, sar * mask
    error = (generated - eo).abs().mean(1)
    generated, eo, sar = map(protocol.stretch, (generated, eo, sar))
    bias = mean_colour_bias(generated, eo, mask)
    columns = {
        "psnr": psnr(generated, eo, mask),
        "ssim": ssim(generated, eo, mask, protocol.ssim_mirrored),
        "scc": scc(generated, eo, mask),
        "bias_r": bias[:, 0],
        "bias_g": bias[:, 1],
        "bias_b": bias[:, 2],
        "copy_ratio": copy_ratio(generated, eo, sar, mask),
    }
    if enlarged:
        columns |= measure_luma(generated, eo, mask)
    columns |= {name: model(generated).flatten() for name, model in instruments.quality.items()}
    if lpips_model is not None:
        distance = lpips_model(protocol.for_lpips(generated), protocol.for_lpips(eo))
        columns[f"lpips_{lpips_model.pnet_type}"] = distance.flatten()
    if instruments.dists_model is not None:
        columns["dists"] = instruments.dists_model(generated, eo)
    columns = {name: column for name, column in columns.items() if protocol.has(name)}
    rows = [{name: column[i].item() for name, column in columns.items()} for i in range(len(eo))]
    if confidence is not None:
        for i, row in enumerate(rows):
            valid = ... if mask is None else mask[i, 0] > 0
            values = (x[i][valid].flatten().numpy(force=True) for x in (confidence, error))
            row["confidence_spearman"] = spearman(*values)
    return rows


# ------------------------------------------------------------------------------------------------- distributions


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to features N x D and M x D, N and M at least 2 (Heusel et al., 2017).

    The trace of the root of the product of both covariances is the sum of the singular values of R_a R_b^T, where
    R^T R is a covariance; unlike the root of the product itself, that holds with fewer images than features too.
    """
    a, b = a.double(), b.double()
    root_a, root_b = (torch.linalg.qr(x - x.mean(0), mode="r").R / (len(x) - 1) ** 0.5 for x in (a, b))
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross).item()


def kernel_distance(a: Tensor, b: Tensor, subset_size: int = 1000, subsets: int = 100, seed: int = 0) -> float:
    """Unbiased squared MMD of features N x D and M x D under the kernel (x.y / D + 1)^3: KID (Binkowski et al., 2018).

    The mean over random subsets, or one computation where the sets are no larger than a subset. It can be negative.
    """
    a, b = a.double(), b.double()
    size = min(subset_size, len(a), len(b))
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(1 if size == len(a) == len(b) else subsets):
        x, y = (f[torch.from_numpy(rng.choice(len(f), size, replace=False)).to(f.device)] for f in (a, b))
        xx, yy, xy = ((p @ q.T / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        distances.append((within - 2 * xy.mean()).item())
    return float(np.mean(distances))
