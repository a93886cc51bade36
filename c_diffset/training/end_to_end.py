"""End-to-end fine-tuning: one step from noise, decoded, and trained on the image itself, in latent or pixel space.

Garcia et al. (arXiv 2409.11355) and img2img-turbo (Parmar et al., arXiv 2403.12036) train image-conditioned diffusion
models so. With graded noise one model spans the plane of distortion and perception, between the best estimate, which
starts from no noise, and a plausible sample, which starts from all of it (Blau and Michaeli, 2018).
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from c_diffset.data.batches import TrainingPairs
from c_diffset.measurement.networks import load_lpips
from c_diffset.models.critics import PatchCritic, TimeAwareCritic
from c_diffset.objectives.denoising import append_dims
from c_diffset.objectives.end_to_end import draw_filters, energy_score, perceptual_distance, texture_score
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.student import keep_valid
from c_diffset.training.time_aware import TimeAwareDistill

LEVELS = 127.5 / 32  # [-1, 1] in units of 32 8-bit levels: those of a variance of the image, and of its distances
FILTERS, FILTER_SIZE, SCALES = 32, 5, 4  # random filters, new for each update: of each scale, their side, and scales


class EndToEndDistill(TimeAwareDistill):
    """One step at the last time, trained on the decoded image: distance, LPIPS, a critic, and the variance."""

    def __init__(self, config: DistillConfig, teacher: CDiffSETPipeline, student: CDiffSETPipeline):
        self.settings = config.end_to_end
        super().__init__(config, teacher, student)
        check_gradient(student)
        self.lpips = None
        if self.settings.lpips_weight:
            self.lpips = load_lpips(self.settings.lpips_net, self.settings.lpips_weights)

    def make_critic(self) -> nn.Module:
        """The critic of patches, or one of the teacher's features."""
        if self.config.critic.head != "patch":
            return TimeAwareCritic(self.teacher, self.config.critic.head)
        return PatchCritic(len(self.pipe.config.sar_transform["channels"]))

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the losses, by name."""
        own = {"pixel": self.settings.pixel_weight, "texture": self.settings.texture_weight}
        return super().weights | own | {"lpips": self.settings.lpips_weight}

    def prepare(self, accelerator: Accelerator) -> None:
        """As in the base; LPIPS moves to the device."""
        super().prepare(accelerator)
        if self.lpips is not None:
            self.lpips.to(accelerator.device)

    def samples(self, accelerator: Accelerator) -> TrainingPairs:
        """Training samples in pixels; a second noise for another sample of each, a third for a critic of features."""
        samples = super(TimeAwareDistill, self).samples(accelerator)
        reads_features = self.critic is not None and self.config.critic.head != "patch"
        samples.more_noise = (2,) * self.needs_two + (3,) * reads_features
        return samples

    @property
    def needs_two(self) -> bool:
        """Whether every image is compared with another sample of it."""
        return self.settings.diversity > 0 and self.settings.starting_noise != "zero"

    def losses(self, accelerator: Accelerator, batch: dict) -> dict[str, Tensor]:
        """The losses of the image, of its variance, and of the critic."""
        true, realism = batch["eo"], self.realism(batch)
        with accelerator.autocast():
            sar = self.pipe.encode(batch["sar"]).float()
        valid = pixels_of(batch.get("mask"), self.pipe.vae_scale_factor)
        clean, image, variance = self.one_step(accelerator, sar, batch["noise"], realism)
        losses = self.confidence_loss(image * LEVELS, true * LEVELS, variance, valid)
        image, other = keep_valid(image, true, valid), None
        if self.needs_two:
            with torch.no_grad():
                other = LEVELS * keep_valid(self.one_step(accelerator, sar, batch["noise_2"], realism)[1], true, valid)
        # in the units of the variance, whose loss would outweigh them otherwise
        compared = (image * LEVELS, true * LEVELS, other, self.settings.diversity * realism)
        if self.settings.pixel_weight:
            losses["pixel"] = energy_score(*compared, self.settings.pixel_loss)
        if self.settings.texture_weight:
            losses["texture"] = texture_score(*compared, self.filters(batch, accelerator.num_processes))
        if self.lpips is not None:
            losses["lpips"] = perceptual_distance(self.lpips, image, true, realism)
        if self.critic is not None and self.config.critic.head == "patch":
            losses |= self.patch_losses(accelerator, batch["sar"], true, image, realism)
        elif self.critic is not None:
            with accelerator.autocast():
                eo = self.pipe.to_residual(self.pipe.encode(true).float(), sar)
            losses |= self.critic_losses(accelerator, sar, eo, clean, batch, realism)
        return losses

    def realism(self, batch: dict) -> Tensor:
        """The standard deviation of each image's starting noise, B: with graded noise a quarter are 0, a quarter 1."""
        share = batch["timestep"].float() / (len(self.abar) - 1)
        graded = {"zero": torch.zeros_like, "random": torch.ones_like, "graded": lambda x: (2 * x - 0.5).clamp(0, 1)}
        return graded[self.settings.starting_noise](share)

    def one_step(self, accelerator, sar: Tensor, noise: Tensor, realism: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents, image B x 3 x H x W and its variance B x 1 x H x W, from noise of these strengths."""
        last = torch.full((len(sar),), len(self.abar) - 1, device=sar.device)
        clean, variance = self.student_prediction(sar, append_dims(realism, noise) * noise, last)
        with accelerator.autocast():
            image = self.pipe.decode_with_gradient(self.pipe.from_residual(clean, sar)).float()
        return clean, image, self.pipe.to_pixels(variance[:, 0])[:, None]

    def filters(self, batch: dict, processes: int) -> list[Tensor]:
        """The random filters of this batch, which are the same in all processes."""
        generator = torch.Generator().manual_seed(int(batch["number"][0]) // (self.config.batch_size * processes))
        device, channels = batch["eo"].device, batch["eo"].shape[1]
        return [draw_filters(FILTERS, channels, FILTER_SIZE, generator).to(device) for _ in range(SCALES)]

    def patch_losses(self, accelerator, sar, true, image, realism) -> dict[str, Tensor]:
        """The adversarial losses of the critic of patches."""
        leaf = image.detach().requires_grad_()
        with accelerator.autocast():
            real, fake = self.wrapped_critic(torch.cat([sar, sar]), torch.cat([true, leaf])).chunk(2)

        def gradient_of(loss: Tensor) -> Tensor:
            return torch.autograd.grad(loss, leaf, retain_graph=True)[0]

        return self.adversarial_losses(accelerator, image, real, fake, gradient_of, realism)


def pixels_of(mask: Tensor | None, factor: int) -> Tensor | None:
    """A mask of the latent grid, B x 1 x h x w, as one of pixels."""
    return mask if mask is None or factor == 1 else mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def check_gradient(pipe: CDiffSETPipeline) -> None:
    """Refuse, before work starts, an autoencoder through whose decoder no gradient comes, such as a quantised one.

    Raises:
        ValueError: it says which class of autoencoder.
    """
    side = pipe.size_multiple // pipe.vae_scale_factor
    latents = torch.randn(1, pipe.eo_channels, side, side, generator=torch.Generator().manual_seed(0))
    latents = latents.to(pipe.device).requires_grad_()
    try:
        with torch.enable_grad():
            gradient = torch.autograd.grad(pipe.decode_with_gradient(latents).float().square().sum(), latents)[0]
        found = None if gradient.isfinite().all() and gradient.any() else "it is zero or not finite"
    except (RuntimeError, NotImplementedError, ValueError) as error:
        found = str(error).splitlines()[0]
    if found is not None:
        raise ValueError(
            f"no gradient comes through the decoder of this {type(pipe.vae).__name__} ({found}): method end_to_end "
            "needs one that is neither quantised nor compiled without gradients"
        )
