"""`c-diffset demo`: the whole path on generated scenes, on a bare CPU machine, without downloads."""

import shutil
from pathlib import Path

from c_diffset.files import is_own, make_own, remove_own

SPLITS = {"train": 400, "validation": 16, "test": 32}


def demo(output: str = "demo", max_steps: int = 600, size: int = 64, seed: int = 0, overwrite: bool = False) -> dict:
    """Generate pairs, fine-tune a small pixel-space model, translate unseen scenes, and print how good they are.

    Args:
        output: Folder for the data, the run, the metrics and the pictures.
        max_steps: Number of optimiser updates; the first two thirds train the image, the rest image and confidence.
        size: Side of the scenes, in pixels; a multiple of 4.
        seed: Random seed of the scenes and of the training.
        overwrite: Whether an earlier demo in the folder is removed first; without it, an interrupted demo goes on.

    Returns:
        What `evaluate` returns.

    Raises:
        ValueError: an argument is outside its range.
        FileExistsError: the folder holds files that no demo has made.
    """
    from c_diffset.evaluation.evaluate import evaluate
    from c_diffset.synthetic.generate import SIZES, write_pairs
    from c_diffset.training.config import (
        DataConfig,
        FinetuneConfig,
        ModelConfig,
        OptimizerConfig,
        SmallUNetConfig,
        ValidationConfig,
    )
    from c_diffset.training.finetune import finetune

    folder = Path(output)
    data = folder / "data"
    config = FinetuneConfig(
        output_dir=str(folder / "run"),
        model=ModelConfig(
            unet=SmallUNetConfig(block_out_channels=[16, 32, 64], layers_per_block=1),
            prediction_type="sample",  # a small model that predicts the image leaves no grain of noise in it
            beta_schedule="linear",
            zero_terminal_snr=True,
            sar_transform={"units": "display", "range": [0.0, 1.0], "channels": [0]},
            default_num_inference_steps=20,
        ),
        data=DataConfig(source=str(data), crop_size=size),
        optimizer=OptimizerConfig(learning_rate=5e-4),
        validation=ValidationConfig(every=max(1, max_steps // 2), num_images=16, crop_size=None),
        confidence_start_step=max_steps * 2 // 3,
        max_steps=max_steps,
        batch_size=16,
        ema_decay=0.99,
        checkpoint_every=max(1, max_steps // 4),
        seed=seed,
    )
    if size % 4 or not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size is {size}, expected a multiple of 4 from {SIZES[0]} to {SIZES[1]} pixels")
    if folder.exists() and not is_own(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds files that no demo has made: name another folder")
    if overwrite and is_own(folder):
        remove_own(folder)
    make_own(folder)
    for number, (split, count) in enumerate(SPLITS.items()):
        if not (data / split / "metadata.jsonl").exists():
            shutil.rmtree(data / split, ignore_errors=True)  # what an interrupted demo has left
            write_pairs(data, count, size=size, seed=seed + number, split=split)
    model = finetune(config)
    report = evaluate(model, data, split="test", output=folder / "evaluation", download=False, overwrite=True)
    print(f"\npictures: {folder / 'evaluation' / 'grid.png'}\nmodel:    {model}")
    return report
