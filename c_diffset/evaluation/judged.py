"""The images of one model, kept for the two-sample test."""

import torch
from torch import Tensor
from tqdm.auto import tqdm

from c_diffset.evaluation.report import Estimate, Judgement, LeftOut
from c_diffset.evaluation.split import SplitPairs
from c_diffset.measurement.measure import GIVEN, PairResult
from c_diffset.measurement.two_sample import LEAST_PLACES, SEEDS, to_bytes, two_sample

METRICS = ("two_sample", "two_sample_with_input")
MOST_PIXELS = 2**27  # of either kind, in less than 1 GB; images after those are not judged


class JudgedImages:
    """Generated images, true ones and what was given, as 8-bit levels, until there are `MOST_PIXELS`."""

    def __init__(self):
        self.ids: list[str] = []
        self.generated: list[Tensor] = []
        self.true: list[Tensor] = []
        self.given: list[Tensor] = []
        self.pixels = 0

    def add(self, result: PairResult) -> None:
        """Keep one image; of a SAR image that is shown in grey, one channel is enough."""
        self.pixels += result.eo[0].numel()
        if self.ids and self.pixels > MOST_PIXELS:
            return
        self.ids.append(result.id)
        self.generated.append(to_bytes(result.generated))
        self.true.append(to_bytes(result.eo))
        self.given.append(to_bytes(result.sar[:1] if result.given == GIVEN[0] else result.sar))

    def judge(
        self, pairs: SplitPairs, device: torch.device, left_out: list[LeftOut]
    ) -> tuple[dict[str, Judgement], str | None]:
        """By metric the judgement on images alone and beside the input, and what the places are.

        What cannot be judged is added to `left_out`, with the reason.
        """
        sizes = sorted({"{1} x {2}".format(*image.shape) for image in self.true})
        if len(sizes) > 1:
            reason = f"the images are of unequal sizes ({', '.join(sizes[:3])}): cut crops of one size with --crop_size"
            left_out += [LeftOut(metric, reason) for metric in METRICS]
            return {}, None
        groups, by = pairs.places_of(self.ids, LEAST_PLACES)
        generated, true, given = (torch.stack(images) for images in (self.generated, self.true, self.given))
        found = {}
        for metric, beside in zip(METRICS, (None, given), strict=True):
            try:
                result = two_sample(generated, true, groups, beside, tqdm(SEEDS, metric, leave=False), device)
            except ValueError as error:  # too few places, or images too small
                left_out.append(LeftOut(metric, str(error)))
                continue
            accuracy = Estimate(result.accuracy, result.low, result.high)
            found[metric] = Judgement(accuracy, result.by_seed, result.places, result.images)
        return found, by if found else None
