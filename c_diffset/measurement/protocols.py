"""The protocols that images are measured by: metrics and their conventions, crops, times of sampling, as data."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# settings of a scheduler by the name of its spacing; published figures are sampled as Stable Diffusion's scheduler does
# without a word on its times: 981, 961, ..., 1 for 50 steps, and the last step goes to the noise of time 0, not to none
SPACINGS = {
    "leading": {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
}


@dataclass(frozen=True)
class Protocol:
    """How images are made and measured, so that figures can stand beside others that were made so.

    Attributes:
        name: What `evaluate --protocol` calls it.
        source: Where it is from, and what applies to every metric, in sentences; empty for this package's own.
        metrics: The metrics of single images, without the network of LPIPS; None for all that there are.
        sets: The metrics of sets of images; None for all that there are.
        lpips_net: The network of LPIPS; None leaves the choice to the user.
        lpips_range: What black and white are for LPIPS.
        contrast: Images are stretched by this factor around mid grey, and clipped to [0, 1], before all metrics of
            single images. Of values in [-1, 1], a factor of 2 makes what `x + 0.5` makes of them.
        rounded: Whether metrics of single images see generated images rounded to 8 bits, as files hold them.
        ssim_mirrored: Whether the windows of SSIM reach beyond the border, where the image is mirrored.
        crop: "grid" takes all crops of `crop_size` from an image, "centre" the one in its middle.
        steps: The number of denoising steps; None for the model's own.
        spacing: The times of DDIM samplers, a name in `SPACINGS`; None for the model's own.
        kid_subsets: Size and number of the subsets that KID is averaged over.
        conventions: By metric, what is said of it instead of the text in `conventions`.
        left_out: By metric of the source, why it is not measured here.
    """

    name: str
    source: tuple[str, ...] = ()
    metrics: tuple[str, ...] | None = None
    sets: tuple[str, ...] | None = None
    lpips_net: str | None = None
    lpips_range: tuple[float, float] = (-1.0, 1.0)
    contrast: float = 1.0
    rounded: bool = True
    ssim_mirrored: bool = False
    crop: str = "grid"
    steps: int | None = None
    spacing: str | None = None
    kid_subsets: tuple[int, int] = (1000, 100)
    conventions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def stretch(self, images: "Tensor") -> "Tensor":
        """Images in [0, 1], of any shape, as the metrics of single images see them."""
        return images if self.contrast == 1 else ((images - 0.5) * self.contrast + 0.5).clamp(0, 1)

    def for_lpips(self, images: "Tensor") -> "Tensor":
        """Stretched images in [0, 1] in the range that LPIPS is given."""
        black, white = self.lpips_range
        return images * (white - black) + black

    @property
    def measures_dists(self) -> bool:
        """Whether DISTS is one of its metrics; it is in no protocol that does not name it."""
        return self.metrics is not None and "dists" in self.metrics

    def has(self, metric: str) -> bool:
        """Whether this metric of single images, such as "psnr" or "lpips_vgg", is one of the protocol."""
        return self.metrics is None or metric.removesuffix(f"_{self.lpips_net}") in self.metrics


OWN = Protocol(name="own")

ZOO = Protocol(
    name="zoo",
    source=(
        "The evaluators of the model zoos of ReFlowSET (arXiv 2609.00968) and GeoSET (arXiv 2609.37496).",
        "Images are compared as 8-bit files, x * 0.5 + 0.5 of the model's values, and are never resized.",
        "Crops are the centre of each image (SAR2Opt: 512 pixels of 600; QXS-SAROPT is whole, at 256).",
        "The samples of C-DiffSET there have 50 DDIM steps at leading times with offset 1, in float32; a distilled "
        "model or another sampler has its own times.",
        "Not the same: the zoos' images of C-DiffSET are cut off to 8 bits instead of rounded, half a level darker, "
        "and those of ReFlowSET all begin with one noise.",
    ),
    metrics=("psnr", "ssim", "lpips", "dists", "copy_ratio", "confidence_spearman"),
    sets=("fid", "kid"),
    lpips_net="vgg",
    ssim_mirrored=True,
    crop="centre",
    steps=50,
    spacing="leading",
    kid_subsets=(500, 50),
    conventions={
        "psnr": "dB, data range 1, of each image, then the mean (as torchmetrics); higher is better",
        "ssim": "data range 1, Gaussian window of 11 pixels, sigma 1.5, mirrored borders (as torchmetrics), of each "
        "image, then the mean; higher is better",
        "lpips_vgg": "version 0.1, VGG, images in [-1, 1]; fed [0, 1] it would be about 0.05 lower; lower is better",
        "fid": "pytorch-fid, 2048 features, against the true images that were measured; lower is better",
        "kid": "as GeoSET: unbiased, cubic kernel, features of pytorch-fid, 50 subsets of at most 500 images; lower is "
        "better",
        "copy_ratio": "mean|generated - SAR| / mean|generated - EO|; the zoos mark models below 1; higher is better",
    },
    left_out={"dino": "GeoSET's similarity of DINOv3-SAT features needs weights that may not be redistributed"},
)

C_DIFFSET = Protocol(
    name="c-diffset",
    source=(
        "The metrics of the C-DiffSET paper's own code (doi 10.1109/TCSVT.2026.3701447).",
        "Images of values in [-1, 1] are compared as x + 0.5, clipped to [0, 1]: with twice the contrast, and without "
        "what is darker than a quarter or brighter than three quarters. No other protocol gives such figures.",
        "Images are not rounded before they are compared, and crops are the centre of each image.",
        "The samples there have 50 DDIM steps at leading times with offset 1, in float32; a distilled model or another "
        "sampler has its own times.",
        "Not known: of which images the published FID is. Here they are as the paper's test.py writes them, "
        "x * 0.5 + 0.5 as 8-bit files.",
    ),
    metrics=("psnr", "ssim", "scc", "lpips", "confidence_spearman"),
    sets=("fid",),
    lpips_net="vgg",
    lpips_range=(0.0, 1.0),
    contrast=2.0,
    rounded=False,
    ssim_mirrored=True,
    crop="centre",
    steps=50,
    spacing="leading",
    conventions={
        "psnr": "dB, data range 1, of each image as x + 0.5, then the mean; not that of other protocols; higher is "
        "better",
        "ssim": "images as x + 0.5, data range 1, Gaussian window of 11 pixels, sigma 1.5, mirrored borders (as "
        "torchmetrics); higher is better",
        "scc": "spatial correlation of images as x + 0.5 (as torchmetrics); higher is better",
        "lpips_vgg": "version 0.1, VGG, images as x + 0.5 in [0, 1] where the net expects [-1, 1]; lower is better",
        "fid": "pytorch-fid, 2048 features, images as x * 0.5 + 0.5 in 8 bits; lower is better",
    },
    left_out={
        "inception_score": "the reference code measures it in batches of more than ten images, and tests one by one"
    },
)

PROTOCOLS = {protocol.name: protocol for protocol in (OWN, ZOO, C_DIFFSET)}
