"""The networks of an evaluation: those whose weights are there, and what is left out for want of the others."""

from collections.abc import Callable

import lpips
from torch import Tensor, nn

from c_diffset.evaluation.report import LeftOut
from c_diffset.measurement.metrics import Instruments
from c_diffset.measurement.networks import (
    QUALITY,
    Dists,
    load_dists,
    load_inception,
    load_lpips,
    load_quality,
    lpips_features,
)
from c_diffset.measurement.protocols import Protocol

Features = dict[str, Callable[[Tensor], Tensor]]


def choose_instruments(
    protocol: Protocol,
    lpips_net: str | None,
    lpips_weights,
    dists_weights,
    download: bool,
    left_out: list[LeftOut],
    enlarged: bool = False,
) -> Instruments:
    """What measures single images by this protocol; `enlarged` of super-resolution.

    Raises:
        ValueError: `lpips_net` is neither the default nor that of the protocol, or a file does not fit.
        OSError: a file is not there.
    """
    if protocol.lpips_net is not None and lpips_net not in (protocol.lpips_net, "squeeze", None):
        expected = f"protocol {protocol.name} measures LPIPS by {protocol.lpips_net}"
        raise ValueError(f"lpips_net is {lpips_net}, but {expected}: leave it out")
    net = None if lpips_net is None else protocol.lpips_net or lpips_net
    lpips_model = try_lpips(net, lpips_weights, download, left_out)
    dists_model = None
    if protocol.measures_dists:
        dists_model = try_dists(lpips_model, dists_weights, download, left_out)
    left_out += [LeftOut(metric, reason) for metric, reason in protocol.left_out.items()]
    quality = try_quality(download, left_out) if enlarged and protocol.metrics is None else {}
    return Instruments(protocol, lpips_model, dists_model, quality)


def try_lpips(net, weights, download, left_out: list[LeftOut]) -> lpips.LPIPS | None:
    if net is None:
        left_out.append(LeftOut("lpips", "it was not asked for: name a network with --lpips_net"))
        return None
    try:
        return load_lpips(net, weights, download)
    except OSError as error:
        if weights is not None:
            raise
        left_out.append(LeftOut(f"lpips_{net}", _without_weights(error, download, "--lpips_weights")))
        return None


def try_dists(lpips_model, weights, download, left_out: list[LeftOut]) -> Dists | None:
    if lpips_model is None:
        left_out.append(LeftOut("dists", "it reads the VGG network of LPIPS, which is left out"))
        return None
    try:
        return load_dists(lpips_model, weights, download)
    except OSError as error:
        if weights is not None:
            raise
        left_out.append(LeftOut("dists", _without_weights(error, download, "--dists_weights")))
        return None


def try_quality(download: bool, left_out: list[LeftOut]) -> dict[str, nn.Module]:
    """The networks that judge images without a reference, by the names of their metrics."""
    models = {}
    for name in QUALITY:
        try:
            models[name] = load_quality(name, download)
        except OSError as error:
            left_out.append(LeftOut(name, str(error)))
    return models


def try_features(
    lpips_model, inception_weights, download, left_out: list[LeftOut], sets: tuple[str, ...] | None = None
) -> Features:
    """Feature functions by the suffix of the metrics they serve: "" for FID and KID proper.

    Args:
        sets: the metrics of sets that are wanted; None for all.
    """
    features: Features = {}
    try:
        features[""] = load_inception(inception_weights, download)
    except OSError as error:
        if inception_weights is not None:
            raise
        reason = _without_weights(error, download, "--inception_weights")
        left_out += [LeftOut(name, reason) for name in sets or ("fid", "kid")]
    if lpips_model is not None and sets is None:
        features[f"_lpips_{lpips_model.pnet_type}"] = lpips_features(lpips_model)
    return features


def _without_weights(error: OSError, download: bool, option: str) -> str:
    """What is missing, and what to do."""
    return f"{error}: {'connect this machine' if download else 'allow the download'}, or name the file with {option}"
