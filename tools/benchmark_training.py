"""A training step against the machine's matrix peak, and where its time goes.

Part of `tools/benchmark.py`; by itself: python tools/benchmark_training.py [--rounds N] [--threads N] [--batch_size N]

The step is that of the recipe `sentinel_taesd`, on generated pairs and a random autoencoder: loader, forward, backward,
clipping, AdamW and the averaged weights. Steps and matrix products take turns. Seconds of the processor stand beside
those of the clock, because they change less where other work shares the machine.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import set_seed
from diffusers import AutoencoderTiny
from timing import FlopCounter, seconds, table, turns
from torch.utils._python_dispatch import TorchDispatchMode

from c_diffset.arguments import run
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.average import AveragedWeights
from c_diffset.training.config import FinetuneConfig
from c_diffset.training.finetune import Finetune, build_pipeline
from c_diffset.training.loop import make_accelerator
from c_diffset.training.parser import parse_config
from c_diffset.training.task import PRECISION

RECIPE = Path(__file__).parent.parent / "train_configs/sentinel_taesd.yaml"


class OperationClock(TorchDispatchMode):
    """Seconds of the processor in each operation of torch, forward and backward, of the thread that calls them."""

    def __init__(self):
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start = time.thread_time()
        out = func(*args, **kwargs or {})
        self.seconds[func._schema.name.removeprefix("aten::")] += time.thread_time() - start
        return out


def training_step(folder: Path, precision: str, batch_size: int | None) -> tuple[Callable[[], object], FinetuneConfig]:
    """An update of the recipe, as the loop makes it, and the settings."""
    write_pairs(folder / "step_pairs", 1, size=256)
    AutoencoderTiny().save_pretrained(folder / "step_vae")
    given = {
        "output_dir": "step",
        "data.source": "step_pairs",
        "data.latent_cache": "step_cache",
        "model.vae": "step_vae",
    }
    options = [f"--{name}={folder / value}" for name, value in given.items()] + [f"--mixed_precision={precision}"]
    if batch_size:
        options.append(f"--batch_size={batch_size}")
    config = parse_config(FinetuneConfig, "", ["--config", str(RECIPE), "--data.validation_split=null", *options])
    accelerator = make_accelerator(config)
    task = Finetune(config, build_pipeline(config.model))
    task.prepare(accelerator)
    average, batches = AveragedWeights(task.trainable, config.ema_decay), iter(task.loader(accelerator, 0))
    average.to(accelerator.device)

    def step() -> None:
        task.train_batch(accelerator, next(batches), 0)
        average.update()

    return step, config


def matrix_product(dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A product of square matrices on the device that is trained on, and its floating point operations."""
    on_gpu = torch.cuda.is_available()
    side = 8192 if on_gpu else 2048
    matrix = torch.rand(side, side, dtype=dtype, device="cuda" if on_gpu else "cpu")
    return lambda: matrix @ matrix, 2.0 * side**3


def both_clocks(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor, all threads of this process together."""
    start = time.process_time()
    elapsed = seconds(function)
    return elapsed, time.process_time() - start


def training_share(
    folder: Path, rounds: int, precision: str = "auto", threads: int | None = None, batch_size: int | None = None
) -> dict:
    """What a training step reaches of the peak of matrix products, in the precision that is trained in."""
    step, config = training_step(folder, precision, batch_size)
    torch.set_num_threads(threads or torch.get_num_threads())
    product, product_flops = matrix_product(PRECISION[config.mixed_precision])
    step(), product()
    with FlopCounter() as counter:
        step()
    times = [(*both_clocks(step), *both_clocks(product)) for _ in turns(rounds)]
    wall, cpu, product_wall, product_cpu = (statistics.median(column) for column in zip(*times, strict=True))
    figures = {
        "training_step_gflop": counter.total / 1e9,
        "training_step_seconds": wall,
        "training_step_images_per_second": config.batch_size / wall,
        "training_matrix_peak_gflops": product_flops / product_wall / 1e9,
        "training_step_share_of_peak": counter.total / wall / (product_flops / product_wall),
    }
    if torch.cuda.is_available():
        return figures
    with OperationClock() as clock:
        step()
    slowest = sorted(clock.seconds.items(), key=lambda item: -item[1])[:12]
    figures |= {
        "training_step_processor_seconds": cpu,
        "training_step_share_of_peak_processor": counter.total / cpu / (product_flops / product_cpu),
    }
    return figures | {f"training_step_ms_{name}": 1e3 * value for name, value in slowest}


def benchmark_training(rounds: int = 9, threads: int | None = None, batch_size: int | None = None) -> None:
    """Print the figures of a training step.

    Args:
        rounds: Number of turns of step and matrix product.
        threads: Number of threads; without it, one for each core.
        batch_size: Number of images of a step; without it, that of the recipe.
    """
    set_seed(0)
    with tempfile.TemporaryDirectory() as name:
        table([("a training step", lambda: training_share(Path(name), rounds, "auto", threads, batch_size))])


if __name__ == "__main__":
    run(benchmark_training)
