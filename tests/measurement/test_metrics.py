"""Metrics against scikit-image, SciPy and formulas written out anew."""

from pathlib import Path

import lpips
import numpy as np
import pytest
import scipy
import torch
import torch.nn.functional as F
import torchvision
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from c_diffset.measurement.conventions import convention
from c_diffset.measurement.metrics import (
    Instruments,
    copy_ratio,
    frechet_distance,
    kernel_distance,
    mean_colour_bias,
    measure,
    psnr,
    scc,
    ssim,
)
from c_diffset.measurement.networks import (
    InceptionFeatures,
    _hub_weights,
    load_inception,
    load_lpips,
    lpips_features,
)
from c_diffset.measurement.ranks import spearman

LPIPS_WEIGHTS = Path(__file__).parents[2] / "../shared/weights/lpips/lpips_squeeze.pt"


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of 2 x 3 x 40 x 56 that resemble each other."""
    rng = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(2, 3, 5, 7, generator=rng), size=(40, 56), mode="bicubic").clamp(0, 1)
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=rng)).clamp(0, 1), smooth


@pytest.fixture
def empty_hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch.hub."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints"


def as_arrays(*batches):
    return zip(*(batch.permute(0, 2, 3, 1).double().numpy() for batch in batches), strict=True)


def test_psnr_and_ssim_are_those_of_scikit_image(images):
    gaussian = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    for i, (x, y) in enumerate(as_arrays(*images)):
        assert psnr(*images)[i].item() == pytest.approx(peak_signal_noise_ratio(y, x, data_range=1.0), abs=1e-4)
        expected = structural_similarity(y, x, data_range=1.0, channel_axis=2, **gaussian)
        assert ssim(*images)[i].item() == pytest.approx(expected, abs=1e-5)


def test_psnr_of_a_constant_error_and_of_equal_images():
    eo = torch.full((1, 3, 12, 12), 0.5)
    assert psnr(eo + 0.1, eo).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(eo, eo).item() == pytest.approx(100.0)


def test_scc_is_the_local_correlation_of_laplacians(images):
    laplacian = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]])

    def local_mean(values):
        return scipy.ndimage.uniform_filter(values, 8, mode="constant")

    for i, pair in enumerate(as_arrays(*images)):
        expected = []
        for channel in range(3):
            x, y = (scipy.ndimage.convolve(image[..., channel], laplacian, mode="reflect") for image in pair)
            covariance = local_mean(x * y) - local_mean(x) * local_mean(y)
            variances = [local_mean(z * z) - local_mean(z) ** 2 for z in (x, y)]
            expected.append(covariance / np.sqrt(variances[0] * variances[1]))
        assert scc(*images)[i].item() == pytest.approx(np.mean(expected), abs=1e-4)


def test_scc_of_a_flat_image_is_zero(images):
    assert scc(torch.full_like(images[1], 0.3), images[1]).tolist() == [0.0, 0.0]


def test_bias_is_signed_in_8_bit_levels(images):
    _, eo = images
    shift = torch.tensor([10.0, 0.0, -3.0]).view(1, 3, 1, 1) / 255
    torch.testing.assert_close(mean_colour_bias(eo + shift, eo), torch.tensor([[10.0, 0.0, -3.0]] * 2))


def test_copy_ratio_tells_a_copy_from_a_translation():
    sar, eo = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert copy_ratio(sar, eo, sar).item() == 0.0
    assert copy_ratio(torch.full_like(eo, 0.75), eo, sar).item() == pytest.approx(3.0)


def test_spearman_with_ties_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 200)
    b = a + rng.integers(0, 9, 200)
    expected = scipy.stats.spearmanr(a, b).statistic
    assert spearman(a, b) == pytest.approx(expected, abs=1e-9)
    assert spearman(np.ones(200), b) == 0.0


def test_what_lies_under_the_mask_does_not_count(images):
    generated, eo = images
    sar, confidence = eo.flip(-1), 1 - (generated - eo).abs().mean(1)
    mask = torch.ones(2, 1, 40, 56)
    mask[..., 30:] = 0
    spoilt = torch.where(mask > 0, generated, torch.rand_like(generated))
    measured = measure(spoilt, eo, sar, confidence, mask)
    assert measured == measure(generated, eo, sar, confidence, mask)
    alone = measure(generated[..., :30], eo[..., :30], sar[..., :30], confidence[..., :30])
    for name in ("psnr", "bias_r", "bias_g", "bias_b", "copy_ratio", "confidence_spearman"):
        assert [row[name] for row in measured] == pytest.approx([row[name] for row in alone], abs=1e-4)
    assert measured[0]["confidence_spearman"] == pytest.approx(-1.0, abs=1e-4)


def test_frechet_distance_is_the_published_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(1, 2, size=(40, 5))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_scaled_gaussians_in_closed_form():
    a = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4)))
    variance = a.var(0).sum().item()
    assert frechet_distance(a, 3 * a + 2) == pytest.approx((2 + 2 * a.mean(0)).square().sum().item() + 4 * variance)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_with_fewer_images_than_features():
    a = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 64)))
    assert frechet_distance(a, a + 1) == pytest.approx(64.0)


def test_kernel_distance_is_the_unbiased_estimate():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    within = sum(kernel(f[i], f[j]) for f in (a, b) for i in range(6) for j in range(6) if i != j) / 30
    between = sum(kernel(x, y) for x in a for y in b) / 36
    distance = kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert distance == pytest.approx(within - 2 * between, abs=1e-12)


def test_kernel_distance_has_no_bias():
    rng = np.random.default_rng(0)
    sets = torch.from_numpy(rng.normal(size=(300, 2, 20, 8)))
    same = np.array([kernel_distance(a, b) for a, b in sets])
    error = same.std() / len(same) ** 0.5
    assert same.min() < 0 and abs(same.mean()) < 3 * error
    apart = np.array([kernel_distance(a, b + 0.5) for a, b in sets])
    assert apart.mean() > 30 * error


def test_kernel_distance_over_subsets_estimates_the_same():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(shift, 1, size=(200, 8))) for shift in (0.0, 0.5))
    subsets = kernel_distance(a, b, subset_size=50, subsets=200)
    assert subsets == pytest.approx(kernel_distance(a, b), rel=0.05)
    assert subsets == kernel_distance(a, b, subset_size=50, subsets=200)


def test_every_metric_has_a_convention():
    assert "8-bit levels" in convention("bias_g")
    assert "[-1, 1]" in convention("lpips_squeeze")
    assert convention("kid_lpips_squeeze") == convention("kid_lpips_vgg") != convention("kid")


def test_lpips_weights_from_a_file(images):
    if not LPIPS_WEIGHTS.exists():
        pytest.skip(f"{LPIPS_WEIGHTS.name} is not at hand")
    model = load_lpips("squeeze", LPIPS_WEIGHTS)
    instruments = Instruments(lpips_model=model)
    rows = measure(*images, sar=images[1], instruments=instruments)
    blurred = F.avg_pool2d(images[1], 3, stride=1, padding=1, count_include_pad=False)
    closer = measure(blurred, images[1], sar=images[1], instruments=instruments)
    assert all(0 < near["lpips_squeeze"] < far["lpips_squeeze"] for near, far in zip(closer, rows, strict=True))
    expected = model(images[0][:1], images[1][:1], normalize=True).item()
    assert rows[0]["lpips_squeeze"] == pytest.approx(expected, abs=1e-6)


def test_lpips_trunk_from_the_cache(images, empty_hub):
    with pytest.raises(FileNotFoundError, match="downloads are off"):
        load_lpips("squeeze", download=False)
    torch.manual_seed(0)
    trunk = torchvision.models.squeezenet1_1(weights=None)
    torch.save(trunk.state_dict(), empty_hub / torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.split("/")[-1])
    model = load_lpips("squeeze", download=False)
    deepest = trunk.features(model.scaling_layer(images[0] * 2 - 1))
    expected = 512**0.5 * (deepest / deepest.norm(dim=1, keepdim=True)).mean((2, 3))
    torch.testing.assert_close(lpips_features(model)(images[0]), expected)
    heads = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).lins.state_dict()
    torch.testing.assert_close(model.lins.state_dict(), heads)


def test_a_download_that_fails_is_an_oserror(empty_hub):
    with pytest.raises(OSError):
        _hub_weights("http://127.0.0.1:9/weights-01234567.pth", download=True)
    assert not list(empty_hub.iterdir())


def test_weights_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "other.pt").write_bytes(b"not weights")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "wrong.pt")
    for name in ("other.pt", "wrong.pt"):
        with pytest.raises(ValueError, match=name):
            load_lpips("squeeze", tmp_path / name)
    with pytest.raises(ValueError, match="wrong.pt"):
        load_inception(tmp_path / "wrong.pt")
    with pytest.raises(FileNotFoundError, match="absent.pt"):
        load_lpips("squeeze", tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="resnet"):
        load_lpips("resnet")


def test_inception_pools_as_the_graph_that_fid_was_published_with():
    torch.manual_seed(0)
    net = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    model = InceptionFeatures(net).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 2048)
        for block, channels, pooled in ((net.Mixed_5b, 192, "average"), (net.Mixed_7c, 2048, "max")):
            x = torch.randn(1, channels, 6, 6)
            gaps = torch.nan if pooled == "average" else -torch.inf
            windows = F.pad(x, (1, 1, 1, 1), value=gaps).unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
            expected = block.branch_pool(windows.nanmean(-1) if pooled == "average" else windows.amax(-1))
            torch.testing.assert_close(block(x)[:, -expected.shape[1] :], expected)
