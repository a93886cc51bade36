"""Widening, small UNets and LoRA, on real UNets of tiny size."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from c_diffset.models.unet import add_lora, add_variance_channel, small_unet, widen, widen_conv_in
from c_diffset.objectives.denoising import denoising_loss
from c_diffset.pipelines.pipeline_cdiffset import align, raw_to_variance
from tests.helpers import DTYPE

TEXT = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(1, 5, 8)


def text_to_image_unet(seed: int = 0) -> UNet2DConditionModel:
    """The Stable Diffusion shape, 4 in and 4 out, tiny and in float64."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return unet.double().eval()


def plain_unet(seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    unet = UNet2DModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
    )
    return unet.double().eval()


@torch.no_grad()
def run(unet, sample: torch.Tensor) -> torch.Tensor:
    prompt = {"encoder_hidden_states": TEXT.expand(len(sample), -1, -1)} if hasattr(unet, "encoder_hid_proj") else {}
    return unet(sample, 500, **prompt).sample


@pytest.mark.parametrize("make", [text_to_image_unet, plain_unet])
def test_widened_unet_equals_the_old_where_sar_and_noisy_eo_are_equal(make):
    latents = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    unet = make()
    expected = run(unet, latents)
    widen(unet, eo_channels=4)
    output = run(unet, torch.cat([latents, latents], dim=1))
    assert (unet.config.in_channels, unet.config.out_channels) == (8, 5)
    torch.testing.assert_close(output[:, :4], expected, rtol=0, atol=1e-6)
    assert (raw_to_variance(output[:, 4]) - 1).abs().max() < 1e-6


def test_widened_weights():
    """conv_in([x, z]) = (W x + W z) / 2 + b, and conv_out gains one channel of zeros."""
    unet = text_to_image_unet()
    old_in, old_out = unet.conv_in, unet.conv_out
    widen(unet, eo_channels=4)
    sar, noisy = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    by_hand = 0.5 * (old_in(sar) + old_in(noisy))
    torch.testing.assert_close(unet.conv_in(torch.cat([sar, noisy], dim=1)), by_hand, rtol=0, atol=1e-6)
    features = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    assert torch.equal(unet.conv_out(features)[:, :4], old_out(features))
    assert not unet.conv_out.weight[4].any() and unet.conv_out.bias[4] == 0
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_widened_unet_is_saved_and_loaded_as_a_stock_model(tmp_path):
    unet = text_to_image_unet()
    widen(unet, eo_channels=4)
    unet.save_pretrained(tmp_path)
    loaded = align(UNet2DConditionModel.from_pretrained(tmp_path, **{DTYPE: torch.float64}))
    sample = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    assert torch.equal(run(loaded, sample), run(unet, sample))


def test_widening_keeps_precision():
    unet = text_to_image_unet().to(torch.bfloat16)
    widen(unet, eo_channels=4)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("steps", [[widen_conv_in], [widen_conv_in, add_variance_channel]])
def test_stage_1_and_stage_2_unets_are_completed_and_then_left_alone(steps):
    unet = text_to_image_unet()
    for step in steps:
        step(unet)
    widen(unet, eo_channels=4)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    widen(unet, eo_channels=4)
    assert (unet.config.in_channels, unet.config.out_channels) == (8, 5)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_a_unet_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"\(4, 4\) cannot be widened: expected one of \[\(3, 3\), \(6, 3\), \(6, 4\)\]"
    ):
        widen(text_to_image_unet(), eo_channels=3)


@pytest.mark.parametrize("sar_channels", [1, 3])
def test_small_unet_starts_with_variance_one(sar_channels):
    unet = small_unet(sar_channels, 3, [8, 32, 48], layers_per_block=1)
    output = run(unet, torch.randn(1, sar_channels + 3, 16, 16))
    assert output.shape == (1, 4, 16, 16)
    assert (raw_to_variance(output[:, 3]) == 1).all() and output[:, :3].std() > 0


@pytest.mark.parametrize("widths", [[8, 16], [24, 32], [40, 60]])
def test_small_unet_takes_any_widths(widths):
    unet = small_unet(3, 3, widths, layers_per_block=1)
    assert torch.isfinite(run(unet, torch.randn(1, 6, 16, 16))).all()


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_small_unet_has_attention_at_the_coarsest_levels(levels):
    unet = small_unet(3, 3, [32, 32, 64], layers_per_block=1, attention_levels=levels)
    names = [type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)]
    plain = 3 - levels
    down = ["DownBlock2D"] * plain + ["AttnDownBlock2D"] * levels
    assert names == down + ["AttnUpBlock2D"] * levels + ["UpBlock2D"] * plain


def trained_lora() -> UNet2DConditionModel:
    """A widened UNet with a LoRA after a few updates, adapter still apart from the weights."""
    unet = text_to_image_unet()
    widen(unet, eo_channels=4)
    add_lora(unet, rank=2)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        sample = torch.randn(2, 8, 8, 8, dtype=torch.float64, generator=generator)
        output = unet(sample, 500, TEXT.expand(2, -1, -1)).sample
        denoising_loss(output, torch.ones_like(output)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return unet


def test_lora_trains_the_adapter_alone():
    unet = trained_lora()
    base = text_to_image_unet()
    widen(base, eo_channels=4)
    trainable = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert any(name.startswith("conv_in.") for name in trainable)
    assert any(name.startswith("conv_out.") for name in trainable)
    frozen = {
        name.replace(".base_layer", ""): value for name, value in unet.state_dict().items() if "lora_" not in name
    }
    assert all(torch.equal(frozen[name], value) for name, value in base.state_dict().items())


def test_lora_adapter_is_saved_loaded_and_fused_without_a_change_of_output(tmp_path):
    unet = trained_lora()
    sample = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    expected = run(unet, sample)
    unet.save_lora_adapter(tmp_path)

    other = text_to_image_unet()
    widen(other, eo_channels=4)
    plain = run(other, sample)
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    torch.testing.assert_close(run(other, sample), expected, rtol=0, atol=1e-6)
    assert (plain - expected).abs().max() > 1e-3, "the adapter changes the output"

    other.fuse_lora()
    other.unload_lora()
    assert not any("lora_" in name for name in other.state_dict())
    torch.testing.assert_close(run(other, sample), expected, rtol=0, atol=1e-6)


def test_small_unet_has_attention_at_named_levels():
    unet = small_unet(3, 3, [32, 64, 96], layers_per_block=1, attention_levels=[1], channels_per_head=16)
    assert unet.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    assert unet.config.up_block_types == ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    heads = [unet.down_blocks[1].attentions[0].heads, unet.mid_block.attentions[0].heads]
    assert heads == [4, 6], "64 and 96 channels in heads of 16"


def test_small_unet_can_be_that_of_adm():
    unet = small_unet(3, 3, [8, 16], scale_shift_norm=True, resblock_updown=True, norm_groups=4, dropout=0.5)
    kinds = [type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)]
    assert kinds == ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
    assert unet.mid_block.attentions[0].group_norm.num_groups == unet.conv_norm_out.num_groups == 4
    assert unet.mid_block.resnets[0].time_emb_proj.out_features == 32, "scale and shift of 16 channels"
    assert unet.down_blocks[0].resnets[0].dropout.p == 0.5
    assert torch.isfinite(run(unet, torch.randn(1, 6, 16, 16))).all()


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"attention_levels": 3}, "2 levels"),
        ({"attention_levels": [2]}, "2 levels"),
        ({"channels_per_head": 5}, "channels_per_head"),
        ({"norm_groups": 16}, "norm_groups"),
    ],
)
def test_small_unet_refuses_what_cannot_be(shape, named):
    with pytest.raises(ValueError, match=named):
        small_unet(3, 3, [8, 16], **shape)
