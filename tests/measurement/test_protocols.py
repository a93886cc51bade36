"""The protocols of published figures, against their formulas written out on tensors."""

from types import SimpleNamespace

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from c_diffset.data.pairs import Pair
from c_diffset.measurement.conventions import convention
from c_diffset.measurement.measure import crop_pairs, evaluate_pairs
from c_diffset.measurement.metrics import Instruments, measure, scc
from c_diffset.measurement.networks import Dists, load_dists
from c_diffset.measurement.protocols import C_DIFFSET, OWN, PROTOCOLS, ZOO


@pytest.fixture(scope="module")
def vgg() -> lpips.LPIPS:
    """LPIPS on a VGG of random weights, built without the layers that LPIPS leaves out, which are most of it."""
    torch.manual_seed(0)
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "vgg16", lambda **_: SimpleNamespace(features=features))
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def dists(vgg, tmp_path_factory) -> Dists:
    path = tmp_path_factory.mktemp("weights") / "dists.pt"
    torch.save({name: torch.rand(1, 1475, 1, 1) for name in ("alpha", "beta")}, path)
    return load_dists(vgg, path)


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Generated and true images in [-1, 1], 2 x 3 x 24 x 40, as a decoder gives them: unrounded, and some beyond."""
    rng = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(2, 3, 4, 5, generator=rng) * 2 - 1, size=(24, 40), mode="bicubic").clamp(-1, 1)
    return (smooth + 0.2 * torch.randn(smooth.shape, generator=rng)).clamp(-1, 1), smooth


def measured(protocol, generated, eo, **networks) -> list[dict[str, float]]:
    """By this protocol, of images in [-1, 1]."""
    generated, eo = generated * 0.5 + 0.5, eo * 0.5 + 0.5
    return measure(generated, eo, eo.flip(-1), instruments=Instruments(protocol, **networks))


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy()


def test_the_zoo_measures_images_in_their_own_range(images, vgg, dists):
    rows = measured(ZOO, *images, lpips_model=vgg, dists_model=dists)
    assert list(rows[0]) == ["psnr", "ssim", "copy_ratio", "lpips_vgg", "dists"]
    distances = vgg(*images).flatten()
    for i, row in enumerate(rows):
        x, y = (as_array(image[i] * 0.5 + 0.5) for image in images)
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(y, x, data_range=1.0), abs=1e-4)
        assert row["ssim"] == pytest.approx(ssim_by_hand(x, y), abs=1e-5)
        assert row["lpips_vgg"] == pytest.approx(distances[i].item(), rel=1e-4)
        assert row["dists"] == pytest.approx(dists_by_hand(dists, x, y), abs=1e-4)


def ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. (2004) at every pixel, with what torchmetrics has beyond the border: the image, mirrored."""

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, mode="mirror", truncate=3.5, axes=(0, 1))

    mean_x, mean_y = smooth(x), smooth(y)
    variances = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2
    structure = (2 * (smooth(x * y) - mean_x * mean_y) + 0.03**2) / (variances + 0.03**2)
    return ((2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2) * structure).mean()


def dists_by_hand(dists: Dists, *images: np.ndarray) -> float:
    """Ding et al. (2020), equations 5 to 7, one channel after the other."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    levels = []
    for image in images:
        values, found = torch.from_numpy((image - mean) / deviation).permute(2, 0, 1)[None].float(), []
        for level in range(1, 6):
            for layer in getattr(dists.vgg.net, f"slice{level}"):
                if isinstance(layer, torch.nn.MaxPool2d):
                    patches = F.unfold(values[0][:, None] ** 2, 3, padding=1, stride=2)  # channels x 9 x places
                    window = torch.tensor([1, 2, 1, 2, 4, 2, 1, 2, 1]) / 16
                    pooled = (patches * window[:, None]).sum(1).sqrt()
                    values = pooled.reshape(1, len(pooled), *(-(-side // 2) for side in values.shape[-2:]))
                else:
                    values = layer(values)
            found.extend(values[0].double().numpy())
        levels.append([*image.transpose(2, 0, 1), *found])
    alpha, beta = (dists.weights[name].flatten().double().numpy() for name in ("alpha", "beta"))
    similarity = 0.0
    for i, (x, y) in enumerate(zip(*levels, strict=True)):
        texture = (2 * x.mean() * y.mean() + 1e-6) / (x.mean() ** 2 + y.mean() ** 2 + 1e-6)
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        structure = (2 * covariance + 1e-6) / (x.var() + y.var() + 1e-6)
        similarity += alpha[i] * texture + beta[i] * structure
    return 1 - similarity / (alpha.sum() + beta.sum())


def test_dists_of_equal_images_is_zero_whatever_the_size(dists):
    image = torch.rand(2, 3, 11, 17)
    torch.testing.assert_close(dists(image, image), torch.zeros(2), atol=1e-5, rtol=0)
    assert (dists(image, image.flip(-1) * 0.5) > 0.05).all()


def test_weights_of_dists_that_do_not_fit_are_refused(vgg, tmp_path, monkeypatch):
    torch.save({"alpha": torch.zeros(1, 1475, 1, 1), "beta": torch.zeros(3)}, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match="wrong.pt"):
        load_dists(vgg, tmp_path / "wrong.pt")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match="DISTS_weights-f5e65c96.pth are not in torch's cache"):
        load_dists(vgg, download=False)


def test_the_papers_own_code_shifts_values_by_a_half(images, vgg):
    """Its `denormalize` is (x + 0.5).clamp(0, 1) of values in [-1, 1], and LPIPS is given what comes out of it."""
    rows = measured(C_DIFFSET, *images, lpips_model=vgg)
    assert list(rows[0]) == ["psnr", "ssim", "scc", "lpips_vgg"]
    x, y = ((image + 0.5).clamp(0, 1) for image in images)
    for i, row in enumerate(rows):
        error = ((as_array(x[i]) - as_array(y[i])) ** 2).mean()
        assert row["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-4)
        assert row["ssim"] == pytest.approx(ssim_by_hand(as_array(x[i]), as_array(y[i])), abs=1e-5)
        assert row["scc"] == pytest.approx(scc(x, y)[i].item(), abs=1e-5)
        assert row["lpips_vgg"] == pytest.approx(vgg(x, y)[i].item(), rel=1e-4)
    assert all(a["psnr"] != b["psnr"] for a, b in zip(rows, measured(ZOO, *images), strict=True))


def test_the_papers_own_code_does_not_round(make_pipe):
    rng, pipe = np.random.default_rng(0), make_pipe("pixel")
    pair = Pair(rng.integers(0, 256, (16, 16), np.uint8), rng.integers(0, 256, (16, 16, 3), np.uint8), None, "a")
    unrounded, rounded = (next(evaluate_pairs(pipe, [pair], 2, instruments=Instruments(x))) for x in (C_DIFFSET, OWN))
    assert torch.equal(unrounded.generated, rounded.generated), "pictures and FID see the file in both"
    eo = torch.from_numpy(pair.eo).permute(2, 0, 1)[None].float() / 127.5 - 1
    again = [measured(C_DIFFSET, x, eo)[0]["psnr"] for x in (unrounded.generated[None] * 2 - 1,)]
    assert unrounded.metrics["psnr"] != pytest.approx(again[0], abs=1e-7)
    assert unrounded.metrics["psnr"] == pytest.approx(again[0], abs=0.1)


def test_a_centre_crop_is_the_one_of_the_published_splits():
    sar, eo = np.arange(600 * 601).reshape(600, 601), np.zeros((600, 601, 3), np.uint8)
    (crop,) = crop_pairs([Pair(sar, eo, None, "tile")], 512, ZOO.crop)
    assert crop.id == "tile_44_44" and np.array_equal(crop.sar, sar[44:556, 44:556]) and crop.eo.shape == (512, 512, 3)
    assert len(list(crop_pairs([Pair(sar, eo, None, "tile")], 256, OWN.crop))) == 4
    masked = Pair(sar, eo, np.zeros((600, 601), bool), "tile")
    assert not list(crop_pairs([masked], 512, ZOO.crop))


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_convention_says_which_way_is_better(protocol):
    names = [*(protocol.metrics or ("psnr", "ssim", "lpips", "dists")), *(protocol.sets or ("fid", "kid"))]
    for name in names:
        text = convention(f"lpips_{protocol.lpips_net}" if name == "lpips" else name, protocol)
        assert text.endswith(("higher is better", "lower is better", "negative is right")), name
    assert all(name.split("_")[0] in " ".join(names) for name in protocol.conventions)
    assert protocol is OWN or protocol.source
