"""The convention that each metric is measured by, in short; in full, they are in the docstrings of `metrics`."""

from collections.abc import Iterable, Mapping

from c_diffset.measurement.protocols import OWN, Protocol

CONVENTIONS = {
    "psnr": "dB, data range 1, of each image, then the mean; at most 100; higher is better",
    "ssim": "data range 1, Gaussian window of 11 pixels, sigma 1.5, no padding (as scikit-image); higher is better",
    "psnr_y": "dB, on Y of BT.601 (16 to 235), data range 255, no border cropped, of each image; higher is better",
    "ssim_y": "on Y of BT.601, data range 255, otherwise as ssim; higher is better",
    "clipiqa": "without a reference, of each image, 0 to 1 (pyiqa); higher is better",
    "musiq": "without a reference, of each image, 0 to 100 (pyiqa, KonIQ-10k); higher is better",
    "scc": "spatial correlation: Laplacian high pass, windows of 8 pixels (as torchmetrics, sewar); higher is better",
    "lpips": "version 0.1, the net is in the name, images in [-1, 1]; lower is better",
    "dists": "Ding et al. (2020), VGG, images in [0, 1], of each image, then the mean (as pyiqa); lower is better",
    "bias": "generated minus EO, mean of each channel (r, g, b) in 8-bit levels; 0 is best",
    "copy_ratio": "mean|generated - SAR| / mean|generated - EO|; near 0 for a copy of the input, so higher is better",
    "confidence_spearman": "rank correlation over pixels of confidence and absolute error; negative is right",
    "fid": "Frechet distance of pytorch-fid's Inception features; too high below some thousand images; lower is better",
    "kid": "unbiased, cubic kernel, the same features, 100 subsets of at most 1000; may be below 0; lower is better",
    "two_sample": "accuracy of a small network, trained on half of the places, in telling generated from true windows "
    "of 64 pixels at the other places; 0.5 is perfect, 1 is always told; lower is better",
    "two_sample_with_input": "as two_sample, of a network that sees the input beside the image, and so whether both "
    "fit together; lower is better",
    "fid_lpips": "as fid, on the deepest normalised LPIPS features, averaged: no published figure compares with it",
    "kid_lpips": "as kid, on the deepest normalised LPIPS features, averaged: no published figure compares with it",
}


def convention(metric: str, protocol: Protocol = OWN) -> str:
    """The convention of a metric by its full name, such as "lpips_squeeze" or "bias_r"; empty for an unknown one."""
    if metric in protocol.conventions:
        return protocol.conventions[metric]
    return CONVENTIONS.get(max((name for name in CONVENTIONS if metric.startswith(name)), key=len, default=""), "")


def network_of(metric: str) -> str | None:
    """The network of LPIPS that a metric stands on: "lpips_vgg" for itself, for "kid_lpips_vgg", and for DISTS, which
    reads the same features; None for a metric on none."""
    return "lpips_vgg" if metric == "dists" else metric[metric.index("lpips") :] if "lpips" in metric else None


def marks(metrics: Iterable[str], loss_networks: list[str]) -> dict[str, str]:
    """Why figures say little of a model, by the metrics that stand on a network in one of its losses, or on its kin."""
    networks = [name for name in loss_networks if name.startswith("lpips")]
    found = {}
    for metric in metrics if networks else ():
        network = network_of(metric)
        if network in networks:
            found[metric] = f"{network} stands in a loss that the model comes from: the figure says nothing of quality"
        elif network is not None:
            known = " and ".join(networks)
            found[metric] = f"a network of the same kind, {known}, stands in a loss that the model comes from"
    return found


def by_text(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """The metrics that share a text, by the text."""
    found: dict[str, list[str]] = {}
    for metric, text in texts.items():
        found.setdefault(text, []).append(metric)
    return found
