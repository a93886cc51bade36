"""The command `calibrate`: what error a model's variance stands for, measured on a split, stored beside the model."""

import os
import shlex
import warnings
from pathlib import Path

from c_diffset.precision import Precision


def calibrate(
    model: str | os.PathLike,
    data: str | os.PathLike,
    split: str = "validation",
    num_inference_steps: list[int] | None = None,
    crop_size: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    max_images: int | None = None,
    threshold: float = 32.0,
    knots: int = 64,
    device: str | None = None,
    dtype: Precision = "auto",
    realism: list[float] | None = None,
) -> dict:
    """Fit the expected error of a pixel, and the probability of a large one, to the variance; store both in the model.

    Two isotonic regressions (Barlow et al., 1972; Zadrozny and Elkan, 2002) map the per-pixel variance, which is
    `1 / confidence - 1`, to the absolute error and to the probability that it exceeds `threshold`. The error is the
    mean over r, g, b of |generated - true| in 8-bit levels, the generated image rounded to 8 bits. Pixels without data
    do not count. Only `model_index.json` changes, and `pipeline.py` where it is older and may know no calibration.

    Args:
        model: The folder of a pipeline with a variance channel.
        data: The data set that the calibration is fitted on: a folder, a file or a Hub id, as `load_pairs` reads it.
        split: The split of `data` that the calibration is fitted on. Never use the one that results are reported on.
        num_inference_steps: The numbers of steps that are calibrated, each by itself. By default, the model's own one.
        crop_size: Images are cut into crops with sides of so many pixels. By default, they stay whole.
        batch_size: The number of images in a batch. The results do not depend on it.
        seed: Random seed of the sampling noise.
        max_images: The measurement stops after so many images (or crops), in the order of the data.
        threshold: The stored probability is that the error of a pixel exceeds so many 8-bit levels.
        knots: Each stored map has at most so many points, at quantiles of the variance.
        device: The device to compute on. By default, CUDA where there is one.
        dtype: The precision of the model. By default (auto), the fastest that the device has instructions for.
        realism: The values of realism that are calibrated, each by itself: the error of a best estimate (0) is not that
            of a plausible sample (1). By default, the model's own one. For models of one step that were trained for it.

    Returns:
        What `model_index.json` now holds as `calibration`: `threshold`, `data` (see `public_name`), `split`, `n`
        images, `first_image` (a checksum), and `steps`: by number of steps, and by realism where the model has it,
        `variance`, `expected_error` (levels) and `probability`. Earlier calibrations for other numbers of steps, or for
        another realism, stay where the other facts are the same.

    Raises:
        OSError: `model` is not the folder of a pipeline, or cannot be written to.
        ValueError: the model predicts no variance, the split holds no valid pixel, or an argument is out of its range.
    """
    from tqdm.auto import tqdm

    from c_diffset.data.pairs import load_pairs
    from c_diffset.evaluation.calibration import VariancePool, check_model, describe, store_calibration
    from c_diffset.evaluation.split import SplitPairs, check_arguments
    from c_diffset.files import public_name, write_file
    from c_diffset.loading import load_pipeline
    from c_diffset.measurement.measure import evaluate_pairs
    from c_diffset.pipelines.pipeline_cdiffset import SOURCE, calibration_key

    index = Path(model, "model_index.json")
    check_model(index, threshold, knots)
    check_arguments(split, crop_size, batch_size, max_images, num_inference_steps or [])
    if split == "test":
        warnings.warn("calibrating on test: no result on test is valid for this model any more", stacklevel=2)
    pairs = SplitPairs(load_pairs(data, split), crop_size, max_images)
    pipe = load_pipeline(model, device=device, dtype=dtype)
    if not pipe.predicts_variance:
        untrained = "this model predicts no variance, or one that was never trained and is the same everywhere"
        raise ValueError(f"{model}: {untrained}, so there is nothing to calibrate: train stage 2")
    pairs.check_eo(pipe.config.eo_transform, data)
    pairs.check_sar([pipe.config.sar_transform], data)
    maps, images = {}, 0
    numbers = num_inference_steps or [pipe.config.default_num_inference_steps]
    wanted = [(steps, pipe.choose_realism(one, steps)) for steps in numbers for one in realism or [None]]
    for steps, one in wanted:
        key = calibration_key(steps, one)
        results = evaluate_pairs(pipe, pairs, steps, batch_size, seed, realism=one)
        pool = VariancePool(threshold)
        for result in tqdm(results, f"{key} (steps)", pairs.expected_images, unit="image"):
            pool.add(result)
        if not pool.images:
            raise ValueError(f"{data}, split {split}: no valid pixel to calibrate on (crop_size {crop_size})")
        images, maps[key] = pool.images, pool.fit(knots)
        print(describe(key, maps[key], pool))
    facts = {"threshold": float(threshold), "data": public_name(data), "split": split, "n": images}
    write_file(index.with_name("pipeline.py"), SOURCE)
    calibration = store_calibration(index, facts | {"first_image": pairs.first_image}, maps)
    print(f"{index} holds the calibration: `c-diffset translate --confidence` writes the expected error from now on")
    where = " ".join(shlex.quote(f"{value}") for value in ("--model", model, "--data", data))
    print(f"next: c-diffset evaluate {where} --split test --output evaluation")
    return calibration
