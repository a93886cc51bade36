"""What is faster on a CPU gives the gradients that the model had, up to the rounding of bfloat16."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from c_diffset.models.cpu_training import attend_in_float32, keep_channels_last
from c_diffset.models.unet import small_unet
from c_diffset.pipelines.pipeline_cdiffset import Model
from tests.models.test_unet import TEXT, text_to_image_unet


class Seen(TorchDispatchMode):
    """Remembers the first input of the operations that have `part` in their names."""

    def __init__(self, part: str):
        super().__init__()
        self.part, self.inputs = part, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.part in str(func):
            self.inputs.append(args[0])
        return func(*args, **kwargs or {})


def small() -> Model:
    torch.manual_seed(0)
    return small_unet(2, 2, [16, 32], layers_per_block=1).train()


def with_text() -> Model:
    return text_to_image_unet().float().train()


def call(unet: Model) -> torch.Tensor:
    sample = torch.linspace(-60, 60, 2 * 4 * 64).sin().reshape(2, 4, 8, 8)
    prompt = {"encoder_hidden_states": TEXT.float().expand(2, -1, -1)} if hasattr(unet, "encoder_hid_proj") else {}
    with torch.autocast("cpu", torch.bfloat16):
        return unet(sample, 500, **prompt).sample.float()


def gradients(unet: Model) -> list[torch.Tensor]:
    unet.zero_grad()
    (call(unet) - 1).square().mean().backward()
    return [parameter.grad.clone() for parameter in unet.parameters()]


@pytest.mark.parametrize("make", [small, with_text])
def test_the_gradients_stay(make):
    unet = make().to(memory_format=torch.channels_last)
    before = gradients(unet)
    attend_in_float32(unet)
    keep_channels_last(unet)
    largest = max(gradient.norm() for gradient in before)
    for found, expected in zip(gradients(unet), before, strict=True):
        assert (found - expected).norm() <= 0.05 * expected.norm() + 1e-3 * largest


@pytest.mark.parametrize("gradient, precision", [(True, torch.float32), (False, torch.bfloat16)])
def test_only_a_training_attends_in_float32(gradient, precision):
    unet = small()
    attend_in_float32(unet)
    with Seen("scaled_dot_product") as seen, torch.set_grad_enabled(gradient):
        call(unet)
    assert seen.inputs and {query.dtype for query in seen.inputs} == {precision}


def test_convolutions_read_channels_last():
    unet = small().to(memory_format=torch.channels_last)
    keep_channels_last(unet)
    with Seen("aten.convolution.default") as seen:
        call(unet)
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in seen.inputs[1:])
    assert len(seen.inputs) > 10
