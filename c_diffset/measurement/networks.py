"""Pretrained networks that measure images: LPIPS, DISTS, and the Inception network of FID and KID."""

import warnings
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import lpips
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
DISTS_URL = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/DISTS_weights-f5e65c96.pth"
QUALITY = ("clipiqa", "musiq")
LPIPS_TRUNKS = {"alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights", "vgg": "VGG16_Weights"}


def _read_weights(path: str | Path, model: nn.Module) -> None:
    """Load a complete state dict from a local file; the file can hold nothing but tensors."""
    weights = _named(path, torch.load, path, map_location="cpu", weights_only=True)
    _named(path, model.load_state_dict, weights)


def _named(path: str | Path, function: Callable, *args, **options):
    """What a function makes of a file's content, whose faults, of any kind, become a ValueError of one line."""
    try:
        return function(*args, **options)
    except OSError:
        raise
    except Exception as error:  # torch, zipfile and pickle raise whatever they meet
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path}: expected the weights of this network, saved by torch ({reason[:300]})") from error


def _hub_weights(url: str, download: bool) -> dict[str, Tensor]:
    """Weights from torch's cache, or downloaded with the hash in their name checked.

    Raises:
        OSError: they are neither; the message is a sentence without the folders of this machine.
    """
    address = urlparse(url)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(address.path).name)
    if not download and not cached.exists():
        raise FileNotFoundError(f"the weights {cached.name} are not in torch's cache, and downloads are off")
    load = torch.hub.load_state_dict_from_url
    try:
        return _named(cached, load, url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        if cached.exists():
            raise
        raise OSError(f"the weights {cached.name} could not be downloaded from {address.hostname}") from error


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
    trunk = {}
    if weights is None:  # before a network is built that nothing fills
        trunk = _hub_weights(torchvision.models.get_weight(f"{LPIPS_TRUNKS[net]}.IMAGENET1K_V1").url, download)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision with a deprecated argument
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    if weights is not None:
        _read_weights(weights, model)
    else:
        names = {name: "features." + name.split(".", 1)[1] for name in model.net.state_dict()}
        _named(f"torch's cache of {net}", lambda: model.net.load_state_dict({x: trunk[y] for x, y in names.items()}))
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


def load_dists(vgg: lpips.LPIPS, weights: str | Path | None = None, download: bool = True) -> "Dists":
    """DISTS on the network of an LPIPS model, which must be that of "vgg".

    Args:
        vgg: as `load_lpips("vgg")` gives it.
        weights: the file with `alpha` and `beta` that the authors, pyiqa and torchmetrics have; by default from torch's
            cache or downloaded.
        download: False reads torch's cache only.

    Raises:
        ValueError: a file that does not fit. OSError: no file, and no download.
    """
    model = Dists(vgg)
    if weights is not None:
        _read_weights(weights, model.weights)
    else:
        _named("torch's cache of DISTS", model.weights.load_state_dict, _hub_weights(DISTS_URL, download))
    return model.eval().requires_grad_(False)


class Dists(nn.Module):
    """Deep image structure and texture similarity (Ding, Ma, Wang, Simoncelli, 2020; arXiv 2004.07728).

    Of the image and of the VGG features at five levels, whose pooling is that of squares under a Hann window, means and
    correlations are compared over the whole image; `alpha` and `beta` weigh the channels.
    """

    def __init__(self, vgg: lpips.LPIPS):
        super().__init__()
        self.vgg = vgg  # LPIPS normalises images to the same mean and deviation
        self.weights = nn.ParameterDict({name: torch.zeros(1, 1475, 1, 1) for name in ("alpha", "beta")})

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Images B x 3 x H x W in [0, 1] to distances (B,); 0 for equal images."""
        alpha, beta = self.weights["alpha"], self.weights["beta"]
        similarity, start = 0, 0
        for x, y in zip(self.features(images), self.features(others), strict=True):
            channels = slice(start, start := start + x.shape[1])
            mean_x, mean_y = (z.mean((2, 3), keepdim=True) for z in (x, y))
            variances = sum(z.var((2, 3), correction=0, keepdim=True) for z in (x, y))
            covariance = (x * y).mean((2, 3), keepdim=True) - mean_x * mean_y
            texture = (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)
            structure = (2 * covariance + 1e-6) / (variances + 1e-6)
            similarity = similarity + (alpha[:, channels] * texture + beta[:, channels] * structure).sum((1, 2, 3))
        return 1 - similarity / (alpha.sum() + beta.sum())

    def features(self, images: Tensor) -> list[Tensor]:
        """The images themselves, and the last activations before each pooling."""
        net, values, found = self.vgg.net, self.vgg.scaling_layer(images * 2 - 1), [images]
        for level in (net.slice1, net.slice2, net.slice3, net.slice4, net.slice5):
            for layer in level:
                values = _pool_squares(values) if isinstance(layer, nn.MaxPool2d) else layer(values)
            found.append(values)
        return found


def _pool_squares(values: Tensor) -> Tensor:
    """The root of the mean square under a Hann window of 3 x 3, at every second place."""
    channels, taps = values.shape[1], values.new_tensor([0.25, 0.5, 0.25])
    window = torch.outer(taps, taps).expand(channels, 1, 3, 3)
    return (F.conv2d(values**2, window, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


def load_quality(name: str, download: bool = True) -> nn.Module:
    """A network of `QUALITY` that judges images B x 3 x H x W in [0, 1] without a reference, by the package pyiqa.

    Raises:
        OSError: pyiqa is not installed, or its weights, which it downloads by itself, cannot be had.
    """
    try:
        import pyiqa  # it is no dependency, and takes seconds
    except ImportError as error:
        raise OSError(f"pyiqa is not there ({error}): pip install pyiqa") from None
    if not download:
        raise OSError("pyiqa downloads its weights by itself: allow the download")
    try:
        return pyiqa.create_metric(name, device="cpu").eval()
    except Exception as error:  # several libraries download for it, and each raises its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(f"pyiqa cannot load it ({reason[:200]}): connect this machine") from error


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
    found = _hub_weights(INCEPTION_URL, download) if weights is None else {}
    net = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    if weights is not None:
        _read_weights(weights, net)
    else:
        _named("torch's cache of Inception", net.load_state_dict, found)
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
