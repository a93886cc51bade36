"""Metrics of generated EO images. The convention of each is in its docstring, and in short in `CONVENTIONS`.

Images are float tensors B x 3 x H x W in [0, 1]; masks B x 1 x H x W, 1 = valid and 0 = not. Metrics of single images
return a tensor (B,). Under a mask, means run over the valid pixels (or over the windows with a valid centre).
"""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import lpips
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
LPIPS_TRUNKS = {"alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights", "vgg": "VGG16_Weights"}
CONVENTIONS = {
    "psnr": "dB, data range 1, of each image, then the mean; at most 100; higher is better",
    "ssim": "data range 1, Gaussian window of 11 pixels, sigma 1.5, no padding (as scikit-image); higher is better",
    "scc": "spatial correlation: Laplacian high pass, windows of 8 pixels (as torchmetrics, sewar); higher is better",
    "lpips": "version 0.1, the net is in the name, images in [-1, 1]; lower is better",
    "bias": "generated minus EO, mean of each channel (r, g, b) in 8-bit levels; 0 is best",
    "copy_ratio": "mean|generated - SAR| / mean|generated - EO|; near 0 for a copy of the input, so higher is better",
    "confidence_spearman": "rank correlation over pixels of confidence and absolute error; negative is right",
    "fid": "Frechet distance of pytorch-fid's Inception features; too high below some thousand images; lower is better",
    "kid": "unbiased, cubic kernel, the same features, 100 subsets of at most 1000; may be below 0; lower is better",
    "fid_lpips": "as fid, on the deepest normalised LPIPS features, averaged: no published figure compares with it",
    "kid_lpips": "as kid, on the deepest normalised LPIPS features, averaged: no published figure compares with it",
}


def convention(metric: str) -> str:
    """The convention of a metric by its full name, such as "lpips_squeeze" or "bias_r"."""
    return CONVENTIONS[max((name for name in CONVENTIONS if metric.startswith(name)), key=len)]


# ------------------------------------------------------------------------------------------------- single images


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over channels and valid pixels: B x C x H x W to (B,)."""
    if mask is None:
        return values.mean((1, 2, 3))
    return (values * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * values.shape[1])


def _filter(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with a kernel h x w, without padding."""
    channels = images.shape[1]
    return F.conv2d(images, kernel.to(images).expand(channels, 1, *kernel.shape), groups=channels)


def psnr(generated: Tensor, eo: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, data range 1. The squared error is at least 1e-10: equal images give 100 dB."""
    return -10 * torch.log10(_mean((generated - eo) ** 2, mask).clamp_min(1e-10))


def ssim(generated: Tensor, eo: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al., 2004): data range 1, K = (0.01, 0.03), mean over channels.

    The Gaussian window has 11 pixels and sigma 1.5, and lies within the image: the least size is 11 x 11.
    """
    taps = torch.exp(-((torch.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps) / taps.sum() ** 2
    mean_x, mean_y = _filter(generated, window), _filter(eo, window)
    variance_x = _filter(generated**2, window) - mean_x**2
    variance_y = _filter(eo**2, window) - mean_y**2
    covariance = _filter(generated * eo, window) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return _mean(luminance * structure, None if mask is None else mask[..., 5:-5, 5:-5])


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


def mean_colour_bias(generated: Tensor, eo: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of generated - EO by channel, signed, in 8-bit levels: B x 3."""
    difference = 255 * (generated - eo)
    return torch.stack([_mean(difference[:, i : i + 1], mask) for i in range(3)], dim=1)


def copy_ratio(generated: Tensor, eo: Tensor, sar: Tensor, mask: Tensor | None = None) -> Tensor:
    """mean|generated - SAR| / mean|generated - EO|: 0 for a copy of the input, large for a good translation.

    `sar`: B x 3 x H x W in [0, 1], the SAR image in grey.
    """
    return _mean((generated - sar).abs(), mask) / _mean((generated - eo).abs(), mask).clamp_min(1e-6)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two tensors of one size, ties at their mean rank; 0 where one of them is constant."""
    ranks = []
    for values in (a, b):
        _, inverse, counts = torch.unique(values.flatten(), return_inverse=True, return_counts=True)
        rank = (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]
        ranks.append(rank - rank.mean())
    norm = ranks[0].norm() * ranks[1].norm()
    return (ranks[0].dot(ranks[1]) / norm).item() if norm > 0 else 0.0


@torch.no_grad()
def measure(
    generated: Tensor,
    eo: Tensor,
    sar: Tensor,
    confidence: Tensor | None = None,
    mask: Tensor | None = None,
    lpips_model: lpips.LPIPS | None = None,
) -> list[dict[str, float]]:
    """All metrics of single images, one dictionary for each image of the batch.

    Invalid pixels are made black in all three images first, so that what lies there cannot count.

    Args:
        generated, eo, sar: B x 3 x H x W in [0, 1]; SAR in grey.
        confidence: B x H x W, adds `confidence_spearman` (against the absolute error, mean over channels).
        mask: B x 1 x H x W, 1 = valid.
        lpips_model: as `load_lpips` gives it; adds `lpips_NET`.
    """
    if mask is not None:
        generated, eo, sar = generated * mask, eo * mask, sar * mask
    bias = mean_colour_bias(generated, eo, mask)
    columns = {
        "psnr": psnr(generated, eo, mask),
        "ssim": ssim(generated, eo, mask),
        "scc": scc(generated, eo, mask),
        "bias_r": bias[:, 0],
        "bias_g": bias[:, 1],
        "bias_b": bias[:, 2],
        "copy_ratio": copy_ratio(generated, eo, sar, mask),
    }
    if lpips_model is not None:
        columns[f"lpips_{lpips_model.pnet_type}"] = lpips_model(generated * 2 - 1, eo * 2 - 1).flatten()
    rows = [{name: column[i].item() for name, column in columns.items()} for i in range(len(eo))]
    if confidence is not None:
        error = (generated - eo).abs().mean(1)
        for i, row in enumerate(rows):
            valid = ... if mask is None else mask[i, 0] > 0
            row["confidence_spearman"] = spearman(confidence[i][valid], error[i][valid])
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


# ---------------------------------------------------------------------------------------------- pretrained networks


def _read_weights(path: str | Path, model: nn.Module) -> None:
    """Load a complete state dict from a local file; the file can hold nothing but tensors."""
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected a state dict of {type(model).__name__}, saved by torch: {error}") from error


def _hub_weights(url: str, download: bool) -> dict[str, Tensor]:
    """Weights from torch's cache, or downloaded with the hash in their name checked. OSError without either."""
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if not download and not cached.exists():
        raise FileNotFoundError(f"{cached.name} is not in {cached.parent}, and downloads are off")
    return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)


def load_lpips(net: str = "squeeze", weights: str | Path | None = None, download: bool = True) -> lpips.LPIPS:
    """LPIPS (Zhang et al., 2018), version 0.1; call it with images in [-1, 1].

    Args:
        net: "alex", "squeeze" or "vgg".
        weights: a file with the complete state dict, trunk and linear heads; by default torchvision's trunk, from
            torch's cache or downloaded, with the heads that the package lpips contains.
        download: False reads torch's cache only.

    Raises:
        ValueError: an unknown net, or a file that does not fit it.
        OSError: no file, and no download.
    """
    if net not in LPIPS_TRUNKS:
        raise ValueError(f"LPIPS net {net!r}, expected one of {', '.join(LPIPS_TRUNKS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision with a deprecated argument
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    if weights is not None:
        _read_weights(weights, model)
    else:
        trunk = _hub_weights(torchvision.models.get_weight(f"{LPIPS_TRUNKS[net]}.IMAGENET1K_V1").url, download)
        names = {name: "features." + name.split(".", 1)[1] for name in model.net.state_dict()}
        model.net.load_state_dict({name: trunk[source] for name, source in names.items()})
    return model.eval().requires_grad_(False)


def lpips_features(model: lpips.LPIPS) -> Callable[[Tensor], Tensor]:
    """A function from images B x 3 x H x W in [0, 1] to features B x D of the LPIPS trunk.

    The deepest activations, of unit length at every pixel as LPIPS compares them, averaged over the image, and times
    sqrt(D), so that features are of order 1, as the kernel of KID expects.
    """

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        deepest = model.net(model.scaling_layer(images * 2 - 1))[-1]
        return F.normalize(deepest, dim=1).mean((2, 3)) * deepest.shape[1] ** 0.5

    return features


def load_inception(weights: str | Path | None = None, download: bool = True) -> nn.Module:
    """The Inception network that FID is defined by, with the weights and conventions of pytorch-fid.

    Args:
        weights: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`; by default from torch's cache or downloaded.
        download: False reads torch's cache only.

    Returns:
        A module from images B x 3 x H x W in [0, 1] to features B x 2048.

    Raises:
        ValueError: a file that does not fit. OSError: no file, and no download.
    """
    net = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    if weights is not None:
        _read_weights(weights, net)
    else:
        net.load_state_dict(_hub_weights(INCEPTION_URL, download))
    return InceptionFeatures(net).eval().requires_grad_(False)


class InceptionFeatures(nn.Module):
    """torchvision's Inception v3, changed to the TensorFlow graph of 2015 that FID was published with.

    That graph leaves the padding out of its averages, and takes the maximum in its last block.
    """

    def __init__(self, net: torchvision.models.Inception3):
        super().__init__()
        for name, block in net.named_children():
            if hasattr(block, "branch_pool"):
                _replace_pooling(block, "max" if name == "Mixed_7c" else "average")
        net.fc = nn.Identity()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Images B x 3 x H x W in [0, 1] to features B x 2048."""
        return self.net(F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1)


def _replace_pooling(block: nn.Module, kind: str) -> None:
    """Compute the last of the block's branches, the pooled one, anew with another pooling."""
    branches = block._forward

    def forward(x: Tensor) -> list[Tensor]:
        if kind == "max":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return [*branches(x)[:-1], block.branch_pool(pooled)]

    block._forward = forward
