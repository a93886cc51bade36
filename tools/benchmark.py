"""Speed of training and sampling against their floors: python tools/benchmark.py [--quick] [--json_file FILE]

Ratios are taken within one run: the two sides alternate, and the median of their times counts, so that a machine whose
speed drifts does not change them. All is measured in the precision that the machine is fast in. Everything runs on
generated data and random weights. FLOPs are 2 x multiply-adds of matrix products and convolutions; a training step is
three forward passes. No test depends on a time.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import set_seed
from benchmark_scenes import scene_parts
from benchmark_training import training_share
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from timing import FlopCounter, alternate, fast_precision, seconds, table, turns

from c_diffset.arguments import run
from c_diffset.cli import COMMANDS
from c_diffset.models.critics import encoder_half
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig, SmallUNetConfig, ValidationConfig
from c_diffset.training.consistency import ConsistencyDistill
from c_diffset.training.distill import METHODS, build_student, load_teacher
from c_diffset.training.distill_config import CriticConfig, DistillConfig, TimeAwareConfig
from c_diffset.training.finetune import Finetune, build_pipeline
from c_diffset.training.loop import make_accelerator, train
from c_diffset.training.student import Distill

SD_UNET = dict(
    in_channels=8,
    out_channels=5,
    block_out_channels=(320, 640, 1280, 1280),
    cross_attention_dim=1024,
    attention_head_dim=(5, 10, 20, 20),
    use_linear_projection=True,
)
MIXED = {"float32": "no", "bfloat16": "bf16"}
SD_VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
)


def flops(function: Callable[[], object]) -> int:
    """Floating point operations of a forward pass."""
    with FlopCounter() as counter, torch.no_grad():
        function()
    return counter.total


def sd_flops(size: int = 512) -> dict:
    """What the latent cache saves at the shape of Stable Diffusion 2.1: a bound, from FLOPs alone."""
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**SD_UNET), AutoencoderKL(**SD_VAE)
        sample, text = torch.empty(1, 8, size // 8, size // 8), torch.empty(1, 7, 1024)
        step = 3 * flops(lambda: unet(sample, torch.empty(1), text))
        encode = flops(lambda: vae.encode(torch.empty(1, 3, size, size)))
    return {
        "sd21_unet_training_step_gflop": step / 1e9,
        "sd21_encode_gflop": encode / 1e9,
        "sd21_cache_speedup_bound": (step + 2 * encode) / step,
    }


def one_step_bound(encode: float, unet: float, decode: float, steps: int = 50) -> float:
    """How much faster one step can be than many, if time is FLOPs."""
    return (encode + steps * unet + decode) / (encode + unet + decode)


def sd_one_step_bounds(size: int = 512) -> dict:
    """One step instead of 50 at the shape of Stable Diffusion 2.1, with its autoencoder and with TAESD, from FLOPs."""
    bounds = {}
    with torch.device("meta"):
        unet, image = UNet2DConditionModel(**SD_UNET), torch.empty(1, 3, size, size)
        sample = torch.empty(1, 8, size // 8, size // 8)
        step = flops(lambda: unet(sample, torch.empty(1), torch.empty(1, 7, 1024)))
        for name, vae in (("sd_vae", AutoencoderKL(**SD_VAE)), ("taesd", AutoencoderTiny())):
            encode, decode = flops(lambda v=vae: v.encode(image)), flops(lambda v=vae: v.decode(sample[:, :4]))
            bounds[f"sd21_one_step_bound_{name}"] = one_step_bound(encode, step, decode)
    return bounds


def one_step_speedup(folder: Path, rounds: int, precision: str) -> dict:
    """A teacher's 50 steps over its student's one, whole images, same batch and precision; and the bound from FLOPs."""
    model = settings(folder, False).model
    model.unet = SmallUNetConfig([64, 128, 256], layers_per_block=1)
    teacher = build_pipeline(model)
    teacher.save_pretrained(folder / "teacher")
    config = DistillConfig(
        output_dir="", teacher=str(folder / "teacher"), method="time_aware", data=DataConfig(source=""),
        time_aware=TimeAwareConfig(regression="data"),
    )  # fmt: skip
    student = build_student(config, teacher)
    sar, image = torch.rand(4, 1, 256, 256), torch.rand(4, 3, 256, 256)
    latents = torch.randn(4, 4, 32, 32)
    encode, decode = flops(lambda: teacher.vae.encode(image)), flops(lambda: teacher.vae.decode(latents))
    bound = one_step_bound(encode, flops(lambda: teacher.unet(latents.repeat(1, 2, 1, 1), 500)), decode)
    for pipe in (teacher, student):
        pipe.set_progress_bar_config(disable=True)
        pipe.to(getattr(torch, precision))
    many, one = alternate(lambda: teacher(sar, 50), lambda: student(sar), rounds)
    return {
        "teacher_50_steps_seconds_per_image": many / 4,
        "student_1_step_seconds_per_image": one / 4,
        "one_step_speedup_measured": many / one,
        "one_step_speedup_bound": bound,
        "one_step_speedup_share_of_bound": many / one / bound,
    }


def critic_flops(task: Distill) -> int:
    """Of the critic alone: four times a forward pass of its images, for back to the student's image, back through the
    layers, and back to the weights."""
    sar, image, times = torch.randn(4, 4, 16, 16), torch.randn(4, 4, 16, 16), torch.full((4,), 500)
    if isinstance(task, ConsistencyDistill):
        return 4 * flops(lambda: task.critic(sar, image, times, [image, image], times, {}))
    half, images = encoder_half(task.teacher), torch.cat([sar, image], dim=1).repeat(2, 1, 1, 1)
    return 4 * flops(lambda: half(images, times.repeat(2)))


def adversarial_flops(folder: Path) -> dict:
    """What the critic adds to an update, over a forward and backward pass of the critic alone: at most 1."""
    shares = {}
    for method, weight in (("consistency", 1.0), ("time_aware", 0.02)):
        counts = []
        for critic in (0.0, weight):
            config = DistillConfig(
                output_dir=str(folder / "distill"),
                teacher=str(folder / "teacher"),
                method=method,
                data=settings(folder, True).data,
                time_aware=TimeAwareConfig(regression="data"),
                critic=CriticConfig(critic),
                batch_size=4,
            )
            accelerator = make_accelerator(config)
            pipe = load_teacher(config)
            task = METHODS[method](config, pipe, build_student(config, pipe))
            task.prepare(accelerator)
            batch = next(iter(task.loader(accelerator, 0)))
            with FlopCounter() as counter:
                task.train_batch(accelerator, batch, 0)
            counts.append(counter.total)
        shares[f"critic_flops_share_{method}"] = (counts[1] - counts[0]) / critic_flops(task)
        shares[f"critic_update_flops_ratio_{method}"] = counts[1] / counts[0]
    return shares


def settings(folder: Path, cache: bool, **changes) -> FinetuneConfig:
    """A small UNet in the latent space of a random TAESD, 128 px crops."""
    return FinetuneConfig(
        output_dir=str(folder / f"run{cache}"),
        model=ModelConfig(unet=SmallUNetConfig([64, 128, 128], layers_per_block=1), vae=str(folder / "vae")),
        data=DataConfig(
            source=str(folder / "pairs"),
            crop_size=128,
            validation_split=None,
            latent_cache=str(folder / "cache") if cache else None,
        ),
        validation=ValidationConfig(every=0),
        stage="denoising",
        batch_size=8,
        **changes,
    )


def prepared(config: FinetuneConfig) -> tuple[Finetune, object]:
    """A task ready for its first batch, and its accelerator."""
    accelerator = make_accelerator(config)
    task = Finetune(config, build_pipeline(config.model))
    task.prepare(accelerator)
    return task, accelerator


def cache_speedup(folder: Path, rounds: int, precision: str) -> dict:
    """Images a second with and without the latent cache, loader included; and of the loaders alone."""
    sides, loaders = [], []
    for cache in (True, False):
        config = settings(folder, cache, mixed_precision=MIXED[precision])
        task, accelerator = prepared(config)
        batches = iter(task.loader(accelerator, 0))
        sides.append(lambda t=task, a=accelerator, b=batches: t.train_batch(a, next(b), 0))
        loaders.append(lambda b=batches: next(b))
    cached, plain = alternate(*sides, rounds)
    cached_loader, plain_loader = alternate(*loaders, rounds)
    return {
        "training_images_per_second_with_cache": 8 / cached,
        "training_images_per_second_without": 8 / plain,
        "cache_speedup_measured": plain / cached,
        "loader_images_per_second_with_cache": 8 / cached_loader,
        "loader_images_per_second_without": 8 / plain_loader,
    }


def loop_overhead(folder: Path, rounds: int, precision: str) -> dict:
    """An update of the real loop, as its own log has it, over forward, backward, clipping and optimiser alone."""
    updates = 10
    steps = {"max_steps": 3 * updates, "log_every": updates, "checkpoint_every": 10**6, "resume": False}
    config = settings(folder, True, mixed_precision=MIXED[precision], **steps)
    bare_task, bare_accelerator = prepared(config)
    batch = next(iter(bare_task.loader(bare_accelerator, 0)))
    bare_optimizer = torch.optim.AdamW(bare_task.model.parameters(), lr=1e-5)

    def bare() -> None:
        loss, _ = bare_task.loss(batch, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare_task.model.parameters(), 1.0)
        bare_optimizer.step()
        bare_optimizer.zero_grad()

    loop_times, bare_times = [], []
    for number in range(rounds):
        config.output_dir = str(folder / f"loop{number}")
        accelerator = make_accelerator(config)
        train(Finetune(config, build_pipeline(config.model)), config, accelerator)
        lines = (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
        loop_times += [8 / json.loads(line)["images_per_second"] for line in lines[1:]]
        bare()
        bare_times += [seconds(bare) for _ in range(2 * updates)]
    loop, alone = statistics.median(loop_times), statistics.median(bare_times)
    return {"loop_seconds_per_update": loop, "bare_seconds_per_update": alone, "loop_overhead": loop / alone - 1}


def sampling_overhead(folder: Path, rounds: int, precision: str, space: str) -> dict:
    """A step of the pipeline, encoding and decoding left out, over the bare UNet call."""
    vae = None if space == "pixel" else AutoencoderTiny.from_pretrained(folder / "vae")
    config = settings(folder, False)
    config.model.vae = None if vae is None else config.model.vae
    pipe = build_pipeline(config.model).to(getattr(torch, precision))
    pipe.set_progress_bar_config(disable=True)
    sar = torch.rand(4, 1, 64, 64) if space == "pixel" else torch.rand(4, 1, 512, 512)
    channels = pipe.unet.config.in_channels
    sample = torch.randn(4, channels, 64, 64, dtype=pipe.unet.dtype)
    few, many = 5, 25

    @torch.no_grad()
    def bare() -> None:
        for _ in range(many - few):
            pipe.unet(sample, 500, return_dict=False)

    def sampled() -> float:
        """The steps that a long run has more than a short one."""
        short, long = (seconds(lambda n=n: pipe(sar, n, output_type="latent")) for n in (few, many))
        return long - short

    bare(), sampled()
    ratios = [sampled() / seconds(bare) for _ in turns(rounds)]
    return {f"sampling_overhead_{space}": statistics.median(ratios) - 1}


def start_up(model: str, folder: Path) -> dict:
    """How long a user waits: for the help of a command, for a page of two evaluations, for a first image.

    The floor of the last is importing the pipeline alone.
    """

    def clock(*command) -> float:
        shown = [sys.executable, *map(str, command)]
        return seconds(lambda: subprocess.run(shown, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    data, page, own = folder / "pairs", folder / "page.html", ("-m", "c_diffset")
    measured = ("--split", "train", "--max_images", 2, "--num_inference_steps", 1, "--download", "false")
    clock(*own, "evaluate", "--model", model, "--data", data, *measured, "--output", folder / "evaluation")
    sar = next(path for path in sorted(data.rglob("*.png")) if "sar" in path.parts)
    translate = (*own, "translate", sar, "--model", model, "--output", folder / "eo", "--num_inference_steps", 1)
    return {
        "help_seconds_slowest": max(clock(*own, name, "--help") for name in COMMANDS),
        "compare_seconds": clock(*own, "compare", folder / "evaluation", folder / "evaluation", "--output", page),
        "import_seconds": clock("-c", "from c_diffset import CDiffSETPipeline"),
        "first_image_seconds": clock(*translate),
    }


def benchmark(quick: bool = False, json_file: str | None = None) -> None:
    """Run all, print each row of the table as it is ready.

    Args:
        quick: few rounds: a smoke test, no measurement.
        json_file: also write the figures to this file.
    """
    set_seed(0)
    rounds, precision = 2 if quick else 9, fast_precision()
    print(f"measured in {precision} on {torch.get_num_threads()} threads", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder / "pairs", 8, size=256)
        AutoencoderTiny().save_pretrained(folder / "vae")
        figures = table(
            [
                ("the latent cache, from FLOPs", sd_flops),
                ("the latent cache", lambda: cache_speedup(folder, 2 * rounds, precision)),
                ("a training step", lambda: training_share(folder, rounds, MIXED[precision])),
                ("the training loop", lambda: loop_overhead(folder, 1 if quick else 3, precision)),
                ("sampling in pixel space", lambda: sampling_overhead(folder, rounds, precision, "pixel")),
                ("sampling in latent space", lambda: sampling_overhead(folder, rounds, precision, "latent")),
                ("one step over 50, from FLOPs", sd_one_step_bounds),
                ("one step over 50", lambda: one_step_speedup(folder, rounds, precision)),
                ("the critic, from FLOPs", lambda: adversarial_flops(folder)),
            ]
        )
        model, steps = str(folder / "teacher"), [1] if quick else [1, 4]
        figures |= table([("start-up", lambda: start_up(model, folder))])
        figures |= table(scene_parts(model, folder, steps, precision, quick=quick, limit=60 if quick else 600))
    figures |= {"precision": precision, "torch_threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}
    if json_file:
        Path(json_file).write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    run(benchmark)
