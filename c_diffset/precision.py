"""The precisions that a model can work in, and which of them this machine is fast in."""

import os
import platform
import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def choose_precision(wanted: str, device: "torch.device", quiet: bool = False) -> str:
    """The precision to work in: `wanted`, unless that is "auto" or would crawl on this device, which is said.

    Args:
        wanted: one of `Precision`.
        device: where the model runs.
        quiet: whether to say nothing.
    """
    if wanted == "auto":
        return fast_precision(device)
    if not crawls(wanted, device):
        return wanted
    if not quiet:
        reason = f"{wanted} would be many times slower than float32, as this {device.type} has no instructions for it"
        print(f"{reason}: float32 is used instead", file=sys.stderr)
    return "float32"


def fast_precision(device: "torch.device") -> str:
    """The fastest precision of a device that is fine for inference and for training; "float32" where in doubt.

    Measured on CPUs: bfloat16 is faster with AMX alone, by half to three times. With AVX512-BF16 it is up to a third
    slower than float32, and float16 is slower with whatever instructions.
    """
    import torch

    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bfloat16" if major >= 8 else "float16" if major >= 7 else "float32"
    if device.type != "cpu" or crawls("bfloat16", device):
        return "float32"
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    has_amx = torch.cpu._is_amx_tile_supported() and ("AMX" in allowed or allowed in ("", "DEFAULT", "ALL"))
    return "bfloat16" if has_amx else "float32"


def crawls(precision: str, device: "torch.device") -> bool:
    """Whether a device has no instructions for a precision, so that it is many times slower than float32."""
    import torch

    if device.type == "cuda":
        return precision == "bfloat16" and torch.cuda.get_device_capability(device)[0] < 8
    if device.type != "cpu" or precision == "float32":
        return False
    if not torch.backends.mkldnn.is_available():
        return True
    if precision == "float16":
        return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    # oneDNN also counts AVX512 without instructions for bfloat16, with which it is four times slower
    emulated = platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_avx512_bf16_supported()
    return emulated or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
