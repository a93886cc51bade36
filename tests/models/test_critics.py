"""The critics, on real UNets at tiny size."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from c_diffset.models.critics import (
    ConsistencyCritic,
    TimeAwareCritic,
    _SpectralConv1d,
    encoder_features,
    encoder_half,
)
from c_diffset.models.unet import small_unet
from tests.conftest import tiny_conditional_unet

TIMES = torch.tensor([999, 499])
HEADS = ("light", "published")


@pytest.fixture(params=["conditional", "small"])
def unet(request):
    torch.manual_seed(0)
    return tiny_conditional_unet() if request.param == "conditional" else small_unet(4, 4, [8, 32], layers_per_block=1)


def prompt_of(unet) -> dict:
    width = unet.config.get("cross_attention_dim")
    return {} if width is None else {"encoder_hidden_states": torch.ones(2, 3, width)}


def images(*names) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 8, 8, generator=generator) for _ in names]


def test_the_encoder_half_is_the_unet_up_to_its_middle(unet):
    sar, noisy = images("sar", "noisy")
    sample = torch.cat([sar, noisy], dim=1)
    with torch.no_grad(), encoder_features(unet) as features:
        whole = unet(sample, TIMES, **prompt_of(unet)).sample
    half = encoder_half(unet)
    with torch.no_grad():
        middle = half(sample, TIMES, **prompt_of(unet)).sample
    torch.testing.assert_close(middle, torch.nn.functional.silu(features[-2]))
    assert half.conv_in is unet.conv_in
    with torch.no_grad():
        assert torch.equal(unet(sample, TIMES, **prompt_of(unet)).sample, whole), "the UNet itself has changed"


def test_features_of_every_level(unet):
    sar, noisy = images("sar", "noisy")
    with torch.no_grad(), encoder_features(unet) as features:
        unet(torch.cat([sar, noisy], dim=1), TIMES, **prompt_of(unet))
    widths = unet.config.block_out_channels
    assert [f.shape[1] for f in features] == [*widths, widths[-1], unet.time_embedding.linear_2.out_features]
    count = len(features)
    with torch.no_grad():
        unet(torch.cat([sar, noisy], dim=1), TIMES, **prompt_of(unet))
    assert len(features) == count


@pytest.mark.parametrize("head", HEADS)
def test_consistency_critic_judges_each_candidate_alone(head, unet):
    critic = ConsistencyCritic(unet, head).eval()
    sar, noisy, real, fake = images("sar", "noisy", "real", "fake")
    earlier, prompt = TIMES - 20, prompt_of(unet)
    with torch.no_grad():
        both = critic(sar, noisy, TIMES, [real, fake], earlier, prompt)
        alone = [critic(sar, noisy, TIMES, [candidate], earlier, prompt)[0] for candidate in (real, fake)]
        other_time = critic(sar, noisy, TIMES, [fake], earlier - 100, prompt)[0]
        other_sar = critic(-sar, noisy, TIMES, [fake], earlier, prompt)[0]
    assert both[0].shape == both[1].shape == (2,)
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-6)
    for other in (other_time, other_sar, both[0]):
        assert not torch.allclose(other, both[1], rtol=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_the_trunk_is_a_trained_copy_without_a_decoder(head, unet):
    unet.requires_grad_(False)
    critic = ConsistencyCritic(unet, head)
    own = {name: value for name, value in critic.named_parameters()}
    assert all(parameter.requires_grad for parameter in own.values())
    assert not any("up_blocks" in name or "conv_out" in name for name in own)
    assert not {parameter.data_ptr() for parameter in own.values()} & {p.data_ptr() for p in unet.parameters()}
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_time_aware_critic_reads_every_level_and_the_time(unet):
    critic = TimeAwareCritic(unet, hidden=8)
    sar, noisy = images("sar", "noisy")
    with torch.no_grad(), encoder_features(unet) as features:
        unet(torch.cat([sar, noisy], dim=1), TIMES, **prompt_of(unet))
    with torch.no_grad(), encoder_features(unet) as later:
        unet(torch.cat([sar, noisy], dim=1), TIMES // 2, **prompt_of(unet))
    with torch.no_grad():
        logits = critic(features)
        assert logits.shape == (2, sum(f.shape[2] * f.shape[3] for f in features[:-1]))
        assert not torch.allclose(critic([*features[:-1], later[-1]]), logits)
        for level in range(len(features) - 1):
            changed = [f if i != level else f + torch.randn_like(f) for i, f in enumerate(features)]
            assert not torch.allclose(critic(changed), logits)


def published_time_aware(unet) -> TimeAwareCritic:
    """A published critic whose convolutions of zeros have left their start."""
    critic = TimeAwareCritic(unet, "published")
    for level in critic.heads:
        torch.nn.init.normal_(level.conv.weight, std=0.1)
    return critic


def collected(critic, unet, size: int = 8, times=TIMES) -> list[torch.Tensor]:
    sample = torch.randn(2, 8, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), critic.features(unet) as features:
        unet(sample, times, **prompt_of(unet))
    return features


def test_the_published_time_aware_critic_reads_every_level_before_it_is_halved(unet):
    critic = published_time_aware(unet).eval()
    features, later = collected(critic, unet), collected(critic, unet, times=TIMES // 2)
    widths = list(unet.config.block_out_channels)
    sizes = [8 // 2**level for level in range(len(widths))]
    assert [f.shape[1:] for f in features[:-1]] == [(w, s, s) for w, s in zip(widths, sizes, strict=True)]
    half = collected(critic, encoder_half(unet))
    assert all(torch.equal(*pair) for pair in zip(features, half, strict=True))
    with torch.no_grad():
        logits = critic(features)
        assert logits.shape == (2, widths[0] * sum(size**2 for size in sizes))
        assert not torch.allclose(critic([*features[:-1], later[-1]]), logits)
        for level in range(len(features) - 1):
            changed = [f if i != level else f + torch.randn_like(f) for i, f in enumerate(features)]
            assert not torch.allclose(critic(changed), logits)


@pytest.mark.parametrize("size", [2, 4, 6])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_published_heads_at_any_size_and_precision(size, precision):
    """Down to levels of one pixel, which a stride of two and a kernel of nine have to bear."""
    unet = small_unet(4, 4, [8, 32], layers_per_block=1)
    unet.to(memory_format=torch.channels_last)
    consistency, time_aware = ConsistencyCritic(unet, "published"), published_time_aware(unet)
    image = torch.randn(2, 4, size, size)
    features = collected(time_aware, unet, size)
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        verdicts = consistency(image, image, TIMES, [image, -image], TIMES, {})
        logits = time_aware(features)
    (torch.cat(verdicts).sum() + logits.sum()).backward()
    assert all(verdict.shape == (2,) and verdict.dtype == torch.float32 for verdict in verdicts)
    for parameter in [*consistency.head.parameters(), *time_aware.parameters()]:
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
    strided = [feature.contiguous() for feature in features]
    time_aware.eval()
    torch.testing.assert_close(time_aware(features), time_aware(strided))


def test_spectral_norm_of_the_published_critic(unet):
    """Every layer that reads the sequence has the largest singular value 1; what that takes is in the state."""
    critic = published_time_aware(unet)
    features = collected(critic, unet)
    for _ in range(20):
        critic(features)
    layers = [module for module in critic.modules() if isinstance(module, torch.nn.Conv1d)]
    assert len(layers) == 3 * len(critic.heads)
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1, abs=0.02)
    assert sum("_u" in name or "_v" in name for name in critic.state_dict()) == 2 * len(layers)


def test_the_sequence_is_a_circle():
    layer = _SpectralConv1d(3, 5, 9).eval()
    circular = torch.nn.Conv1d(3, 5, 9, padding=4, padding_mode="circular")
    circular.weight.data, circular.bias.data = layer.weight.detach(), layer.bias.detach()
    sequence = torch.randn(2, 3, 16)
    torch.testing.assert_close(layer(sequence), circular(sequence))
    assert layer(sequence[:, :, :1]).shape == (2, 5, 1)


def test_published_heads_have_as_many_weights_as_published():
    """Of SD 2.1 the 75.4 million of the authors' Stable Diffusion variant, and 26.2 million at 512 channels."""
    with torch.device("meta"):
        options = dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
        time_aware = TimeAwareCritic(UNet2DConditionModel(in_channels=8, out_channels=5, **options), "published")
        levels = (128, 128, 256, 256, 512, 512)
        blocks = dict(down_block_types=("DownBlock2D",) * 6, up_block_types=("UpBlock2D",) * 6)
        head = ConsistencyCritic(UNet2DModel(block_out_channels=levels, **blocks), "published").head
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (time_aware, head)]
    assert counts == [75_406_400, 26_221_569]
