"""The classifier two-sample test: what looks true is near 0.5, what does not is far above."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c_diffset.measurement.two_sample import choose_half, limits, two_sample

PLACES, EACH, SIDE = 8, 4, 32


@pytest.fixture(scope="module")
def ground() -> Tensor:
    """Two true images of every part of the ground, 2 x N x 3 x SIDE x SIDE in [0, 1]: fields and fine grain."""
    rng = torch.Generator().manual_seed(0)
    fields = F.interpolate(torch.rand(2 * PLACES * EACH, 3, 6, 6, generator=rng), size=SIDE, mode="nearest")
    grain = torch.randn(fields.shape, generator=rng)
    return (0.2 + 0.6 * fields + 0.04 * grain).clamp(0, 1).unflatten(0, (2, -1))


@pytest.fixture(scope="module")
def groups() -> list[str]:
    return [f"place {i}" for i in range(PLACES) for _ in range(EACH)]


def blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)


@pytest.fixture
def quick(monkeypatch):
    """These images are so simple that fewer updates do."""
    monkeypatch.setattr("c_diffset.measurement.two_sample.UPDATES", 80)


@pytest.mark.usefixtures("quick")
def test_true_images_cannot_be_told_apart_and_worse_ones_ever_more(ground, groups):
    other, true = ground
    grey = true.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    half = other.clone()
    half[::2] = blurred(other[::2])
    sets = {"true": other, "half blurred": half, "blurred": blurred(true), "grey": grey}
    found = {name: two_sample(images, true, groups, seeds=[0]) for name, images in sets.items()}
    accuracy = {name: each.accuracy for name, each in found.items()}
    assert abs(accuracy["true"] - 0.5) < 0.12, accuracy
    assert 0.65 < accuracy["half blurred"] < 0.85, accuracy
    assert min(accuracy[name] for name in ("blurred", "grey")) > 0.9, accuracy
    assert all(each.low <= each.accuracy <= each.high for each in found.values())


def test_what_does_not_fit_is_seen_beside_the_sar_image_alone(ground, groups):
    true = ground[0]
    sar = true.mean(1, keepdim=True)
    elsewhere = true.unflatten(0, (PLACES, EACH)).roll(1, 1).flatten(0, 1)  # of the same places: nothing else differs
    assert abs(two_sample(elsewhere, true, groups, seeds=[0]).accuracy - 0.5) < 0.12
    assert two_sample(elsewhere, true, groups, sar, seeds=[0]).accuracy > 0.7


def test_equal_seeds_give_equal_figures_and_equal_images_one_half(ground, groups, monkeypatch):
    monkeypatch.setattr("c_diffset.measurement.two_sample.UPDATES", 5)
    other, true = ground
    state = torch.get_rng_state()
    assert two_sample(other, true, groups, seeds=[3]) == two_sample(other, true, groups, seeds=[3])
    assert torch.equal(torch.get_rng_state(), state)
    as_bytes = (true * 255).round().to(torch.uint8)
    assert two_sample(as_bytes, true, groups, seeds=[0]).by_seed == [0.5]


def test_places_are_learnt_from_or_judged_as_a_whole():
    number = np.repeat(np.arange(7), 3)
    halves = [choose_half(number, seed) for seed in range(5)]
    assert all(set(half.reshape(7, 3).sum(1)) == {0, 3} and half.sum() == 9 for half in halves)
    assert len({half.tobytes() for half in halves}) > 1


def test_the_interval_is_wide_where_places_disagree():
    seen = np.full((5, 6), 10.0)
    steady, uneven = np.full((5, 6), 8.0), np.tile([4.0, 10.0, 10.0, 10.0, 10.0, 4.0], (5, 1))
    assert limits(steady, seen) == (0.8, 0.8)
    low, high = limits(uneven, seen)
    assert low < 0.7 and high > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": ["a", "b", "c"] * 3}, "of 3 places: expected at least 4"),
        ({"groups": ["a"] * 8}, "groups has 8 entries"),
        ({"generated": torch.zeros(9, 3, 16, 20)}, "generated and true images have shapes"),
        ({"true": torch.zeros(9, 3, 12, 12), "generated": torch.zeros(9, 3, 12, 12)}, "12 x 12: expected sides of 16"),
        ({"sar": torch.zeros(9, 1, 8, 8)}, "sar has 9 entries"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    images = torch.zeros(9, 3, 16, 16)
    with pytest.raises(ValueError, match=message):
        two_sample(**{"generated": images, "true": images, "groups": list("abcdefghi")} | changes)
