"""A pipeline ready for work: on its device, in its precision, quiet."""

import os
from typing import Literal

import torch

from c_diffset.cpu import use_whole_cpu
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

Precision = Literal["float32", "bfloat16", "float16"]


def load_pipeline(
    model: str | os.PathLike, revision: str | None = None, device: str | None = None, dtype: Precision = "float32"
) -> CDiffSETPipeline:
    """Load a folder or Hub id onto `device`, by default CUDA where there is one; its calls show no progress bar."""
    pipe = CDiffSETPipeline.from_pretrained(model, revision=revision)
    pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    if pipe.device.type == "cpu":
        use_whole_cpu()
    return pipe
