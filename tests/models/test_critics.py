"""The critics, on real UNets at tiny size."""

import pytest
import torch

from c_diffset.models.critics import ConsistencyCritic, TimeAwareCritic, encoder_features, encoder_half
from c_diffset.models.unet import small_unet
from tests.conftest import tiny_conditional_unet

TIMES = torch.tensor([999, 499])


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


def test_consistency_critic_judges_each_candidate_alone(unet):
    critic = ConsistencyCritic(unet).eval()
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


def test_the_trunk_is_a_trained_copy_without_a_decoder(unet):
    unet.requires_grad_(False)
    critic = ConsistencyCritic(unet)
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
