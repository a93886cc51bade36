"""What makes the training of a UNet faster on a CPU, and leaves what it computes, up to rounding."""

from functools import wraps

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.overrides import TorchFunctionMode


class _InFloat32(TorchFunctionMode):
    """Computes scaled dot product attention in float32, and all else as it is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs or {})
        with torch.autocast(args[0].device.type, enabled=False):
            return func(*(tensor.float() for tensor in args), **kwargs or {}).to(args[0].dtype)


class Float32Attention(AttnProcessor2_0):
    """The processor of diffusers, whose dot products are taken in float32 where a gradient is asked for.

    On a CPU with AMX, torch's attention and its gradient take four times as long in bfloat16 over 64 positions, and as
    long over 1024. Without a gradient, as in validation, the model attends as it will in use.
    """

    @wraps(AttnProcessor2_0.__call__)  # diffusers passes on what the signature names
    def __call__(self, *args, **kwargs) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().__call__(*args, **kwargs)
        with _InFloat32():
            return super().__call__(*args, **kwargs)


def attend_in_float32(model: nn.Module) -> None:
    """Give every attention of `model` that processor, in place; others than the usual one of diffusers stay."""
    for module in model.modules():
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            module.set_processor(Float32Attention())


def keep_channels_last(model: nn.Module) -> None:
    """Let no residual block of `model` turn its input into another order of memory, in place.

    diffusers does so before each shortcut where the block itself is in training, which says nothing else: what is
    dropped is a module of its own.
    """
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            module.training = False
