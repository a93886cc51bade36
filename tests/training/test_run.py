"""Run folders: nothing in them is run, damage is seen, one training writes at a time, and what is not theirs stays."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import constants
from diffusers import UNet2DModel
from safetensors import safe_open
from safetensors.torch import load_file

from c_diffset.data import teacher_results
from c_diffset.files import MARKER
from c_diffset.models.unet import small_unet
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.checkpoint import load_checkpoint, save_checkpoint
from c_diffset.training.config import (
    ConfidenceOptimizerConfig,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    SmallUNetConfig,
    ValidationConfig,
)
from c_diffset.training.distill import distill
from c_diffset.training.distill_config import CriticConfig, DistillConfig, EndToEndConfig, TimeAwareConfig
from c_diffset.training.finetune import Finetune, build_pipeline, finetune
from c_diffset.training.loop import _Progress, make_accelerator, train
from c_diffset.training.run import RunFolder
from c_diffset.training.task import make_optimizer
from tests.conftest import tiny_scheduler
from tests.helpers import ROOT, fresh_accelerate, log_lines, short_run

WEIGHTS = "pipeline/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 4, size=32)
    return str(folder)


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory) -> FinetuneConfig:
    """The settings of a finished run of four updates with checkpoints after the second and the fourth."""
    fresh_accelerate()
    return settings(tmp_path_factory.mktemp("runs") / "whole", source, train=True)


def settings(output: Path, source: str, train: bool = False, **changes) -> FinetuneConfig:
    model = ModelConfig(unet=SmallUNetConfig(block_out_channels=[8, 32], layers_per_block=1, attention_levels=0))
    config = short_run(FinetuneConfig, output, source, **{"model": model, "checkpoint_every": 2} | changes)
    if train:
        finetune(config)
    return config


@pytest.fixture
def copied(trained, tmp_path) -> FinetuneConfig:
    """The same run, in a folder that a test may damage."""
    shutil.copytree(trained.output_dir, tmp_path / "run")
    return replace(trained, output_dir=str(tmp_path / "run"))


def assert_same(run: str, whole: str) -> None:
    """The same log and the same weights, bit for bit."""
    assert log_lines(Path(run)) == log_lines(Path(whole))
    expected = load_file(Path(whole) / WEIGHTS)
    assert all(torch.equal(value, expected[key]) for key, value in load_file(Path(run) / WEIGHTS).items())


def stop_after(config, step: int) -> None:
    """Make a finished run look as if it had been killed after the checkpoint of `step`."""
    for folder in Path(config.output_dir, "checkpoints").glob("step_*"):
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)
    Path(config.output_dir, WEIGHTS).unlink()


# ------------------------------------------------------------------------------------------------------- two stages


@pytest.fixture(scope="module")
def staged(source, tmp_path_factory) -> FinetuneConfig:
    """The settings of a finished run of two stages of three updates each, with a checkpoint after every update."""
    fresh_accelerate()
    rest = {"max_steps": 6, "checkpoint_every": 1, "keep_checkpoints": 6}
    second = ConfidenceOptimizerConfig(learning_rate=1e-2, warmup_steps=1, weight_decay=0.1, schedule="linear")
    return settings(tmp_path_factory.mktemp("runs") / "whole", source, train=True, confidence_optimizer=second, **rest)


def part_of(config: FinetuneConfig, step: int, name: str) -> tuple[dict, dict]:
    """The tensors of a part of a checkpoint, and the rest of it."""
    path = Path(config.output_dir, f"checkpoints/step_{step:08d}/{name}.safetensors")
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["rest"])


def test_each_stage_has_a_schedule_an_optimiser_and_an_average_of_its_own(staged):
    lines = log_lines(Path(staged.output_dir))
    assert [line["stage"] for line in lines] == [1, 1, 1, 2, 2, 2]
    assert [line["learning_rate"] for line in lines] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-2, 1e-2, 5e-3])
    for step in range(1, 7):
        moments, _ = part_of(staged, step, "optimizer")
        updates = {value.item() for name, value in moments.items() if name.endswith(".step")}
        _, progress = part_of(staged, step, "progress")
        averaged = part_of(staged, step, "average")[1]["updates"]
        own = (step - 1) % 3 + 1
        assert (updates, averaged) == ({own}, own)
        assert progress["schedule"] == ("updates 1 to 3" if step <= 3 else "updates 4 to 6")
    for step in (1, 4):  # one gradient in both moments
        moments, _ = part_of(staged, step, "optimizer")
        squared, of_squares = moments[".0.exp_avg"].square(), moments[".0.exp_avg_sq"]
        torch.testing.assert_close(squared / (1 - 0.9) ** 2, of_squares / (1 - 0.999), rtol=1e-3, atol=1e-12)


def test_stage_2_starts_from_the_averaged_weights_of_stage_1_which_are_kept(source, tmp_path):
    """Seen by a stage 2 that does not move: its weights and their average are those of the model that is kept."""
    still = ConfidenceOptimizerConfig(learning_rate=0.0)
    config = settings(tmp_path / "run", source, train=True, confidence_optimizer=still)
    kept, last = (load_file(tmp_path / "run" / name) for name in (WEIGHTS.replace("pipeline", "stage1"), WEIGHTS))
    raw, _ = part_of(config, 2, "model")
    moved, _ = part_of(config, 4, "model")
    for name, value in kept.items():  # a model of stage 1 has no variance
        assert torch.equal(moved[f".{name}"][: len(value)], value)
        torch.testing.assert_close(last[name][: len(value)], value, rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(raw[f".{name}"][: len(value)], value) for name, value in kept.items())
    told = yaml.safe_load((tmp_path / "run/stage1/training.yaml").read_text())
    assert told["updates"] == told["settings"]["confidence_start_step"] == 2


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_run_of_two_stages_goes_on_before_at_and_after_the_change(step, staged, tmp_path):
    output = Path(shutil.copytree(staged.output_dir, tmp_path / "run"))
    copied = replace(staged, output_dir=str(output))
    stop_after(copied, step)
    if step < 3:
        shutil.rmtree(output / "stage1")
    finetune(copied)
    assert_same(copied.output_dir, staged.output_dir)
    kept = WEIGHTS.replace("pipeline", "stage1")
    assert (output / kept).read_bytes() == Path(staged.output_dir, kept).read_bytes()


def test_a_run_whose_stages_had_one_schedule_does_not_go_on(copied, monkeypatch):
    """As earlier versions trained them, whose checkpoints name no phase. A finished one stays as it is."""
    state_of = _Progress.state_dict
    monkeypatch.setattr(
        _Progress, "state_dict", lambda self: {k: v for k, v in state_of(self).items() if k != "schedule"}
    )
    shutil.rmtree(copied.output_dir)
    finetune(copied)
    before = Path(copied.output_dir, "metrics.jsonl").read_bytes()
    stored = Path(copied.output_dir, "config.yaml")
    stored.write_text(stored.read_text().replace("confidence_start_step: 2", "confidence_start_step: null"))
    assert finetune(copied) == Path(copied.output_dir, "pipeline")
    stop_after(copied, 2)
    with pytest.raises(
        ValueError, match=r"updates 1 to 4, but by these settings to one of updates 1 to 2 \(earlier versions"
    ):
        finetune(copied)
    assert Path(copied.output_dir, "metrics.jsonl").read_bytes() == before
    alone = replace(copied, stage="denoising", output_dir=f"{copied.output_dir}1")
    finetune(alone)
    stop_after(alone, 2)
    finetune(alone)


# ----------------------------------------------------------------------------------------------------- exact resume


def test_a_run_goes_on_from_its_checkpoint(copied, trained):
    stop_after(copied, 2)
    finetune(copied)
    assert_same(copied.output_dir, trained.output_dir)


def test_a_run_goes_on_that_was_killed_between_the_renames_of_its_pipeline(copied, trained):
    output = Path(copied.output_dir)
    (output / "pipeline").rename(output / "checkpoints/.pipeline.partial")
    (output / "checkpoints/.pipeline.old").mkdir()
    finetune(copied)
    assert_same(output, trained.output_dir)
    assert not list(output.glob("checkpoints/.pipeline*"))


def test_a_run_is_not_continued_under_other_settings(copied):
    stop_after(copied, 2)
    with pytest.raises(ValueError, match="schedule of updates 1 to 2, but by these settings to one of updates 1 to 3"):
        finetune(replace(copied, confidence_start_step=3))
    for name, value in (("seed", 1), ("max_steps", 20)):
        with pytest.raises(ValueError, match=f"^{name} is {value}, but the run in"):
            finetune(replace(copied, **{name: value}))
    with pytest.raises(ValueError, match="holds a run already"):
        finetune(replace(copied, resume=False))


def test_a_run_of_a_version_without_a_setting_goes_on_with_the_default(copied, trained):
    """As long as the setting is left at its default, which is what that version did."""
    stored = Path(copied.output_dir, "config.yaml")
    settings = yaml.safe_load(stored.read_text())
    del settings["optimizer"]["schedule"], settings["validation"], settings["min_snr_gamma"]
    stored.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="optimizer.schedule is constant, but the run in .* was started with cosine"):
        finetune(replace(copied, optimizer=replace(copied.optimizer, schedule="constant")))
    stop_after(copied, 2)
    finetune(copied)
    assert_same(copied.output_dir, trained.output_dir)


def test_logged_losses_are_means_whatever_else_is_due(source, tmp_path):
    """With a validation between two lines, accumulation, and a change of stages, whose losses no line mixes."""
    lines = []
    for log_every in (1, 6):
        data = DataConfig(source=source, crop_size=16, validation_split="train")
        validation = ValidationConfig(every=3, num_images=1, crop_size=None, num_inference_steps=1)
        rest = {"confidence_start_step": 2, "max_steps": 6, "gradient_accumulation_steps": 2, "log_every": log_every}
        output = tmp_path / str(log_every)
        settings(output, source, train=True, data=data, validation=validation, checkpoint_every=6, **rest)
        lines.append([line for line in log_lines(output) if "loss" in line])
    assert [(line["step"], line["stage"]) for line in lines[1]] == [(2, 1), (6, 2)]
    for found, each in zip(lines[1], (lines[0][:2], lines[0][2:]), strict=True):
        for name in {"loss", "grad_norm", "error"} & found.keys():
            assert found[name] == pytest.approx(sum(line[name] for line in each) / len(each), rel=1e-5)
    assert "error" not in lines[1][0] and "error" in lines[1][1]


def test_dropout_goes_on_as_it_would_have(source, tmp_path):
    """No state of random generators is stored: what is random in an update follows from the seed and its number."""
    torch.manual_seed(0)
    shape = small_unet(3, 3, [8, 32], layers_per_block=1, attention_levels=0).config
    CDiffSETPipeline(UNet2DModel.from_config(shape, dropout=0.5), tiny_scheduler()).save_pretrained(tmp_path / "base")
    config = settings(tmp_path / "run", source, train=True, model=ModelConfig(base=str(tmp_path / "base")))
    whole = shutil.copytree(config.output_dir, tmp_path / "whole")
    stop_after(config, 2)
    finetune(config)
    assert_same(config.output_dir, whole)
    other = settings(tmp_path / "other", source, train=True, model=config.model, seed=1)
    assert log_lines(Path(other.output_dir)) != log_lines(whole)


def test_the_scale_of_float16_gradients_goes_on(source, tmp_path):
    """A scale that doubles every second update, in the real gradient scaler on a CPU."""

    def run(output: Path) -> torch.amp.GradScaler:
        config = settings(output, source)
        fresh_accelerate()
        accelerator = make_accelerator(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        train(Finetune(config, build_pipeline(config.model)), config, accelerator)
        return accelerator.scaler

    whole = run(tmp_path / "whole")
    assert whole.get_scale() == 16.0 and whole.state_dict()["_growth_tracker"] == 1
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    stop_after(settings(tmp_path / "run", source), 2)
    assert run(tmp_path / "run").state_dict() == whole.state_dict()
    assert_same(tmp_path / "run", tmp_path / "whole")


OF_TEACHERS = [(method, head) for method in ("consistency", "time_aware") for head in ("light", "published")]


@pytest.mark.parametrize("method, head", [*OF_TEACHERS, ("end_to_end", "patch")])
def test_a_student_and_its_critic_go_on(method, head, trained, source, tmp_path, monkeypatch):
    """Student, critic, both optimisers, target and average: a lost one would change the losses that follow.

    So would the vectors of the published critic's spectral norm.
    """
    monkeypatch.setattr(teacher_results, "CHUNK", 4)
    config = short_run(
        DistillConfig,
        tmp_path / "run",
        source,
        teacher=str(Path(trained.output_dir, "pipeline")),
        method=method,
        time_aware=TimeAwareConfig(results=str(tmp_path / "results"), num_results=5, teacher_steps=2),
        end_to_end=EndToEndConfig(diversity=1.0, texture_weight=1.0),
        data=DataConfig(source=str(source), crop_size=32, validation_split=None),
        critic=CriticConfig(1.0, real="data" if method == "end_to_end" else "target", head=head),
        gradient_accumulation_steps=2,
        checkpoint_every=2,
    )
    distill(config)
    whole = shutil.copytree(config.output_dir, tmp_path / "whole")
    stop_after(config, 2)
    distill(config)
    assert_same(config.output_dir, whole)
    assert "critic" in log_lines(whole)[-1]


def test_a_kill_after_the_last_checkpoint_leaves_the_last_pipeline(source, trained, tmp_path, monkeypatch):
    def save_and_stop(run, *args):
        save(run, *args)
        if args[1] == 4:
            raise KeyboardInterrupt

    save = RunFolder.save
    monkeypatch.setattr(RunFolder, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        settings(tmp_path / "run", source, train=True)
    monkeypatch.undo()
    settings(tmp_path / "run", source, train=True)
    assert_same(tmp_path / "run", trained.output_dir)


def test_every_form_of_tensor_comes_back(tmp_path):
    """Other memory formats, types and shared tensors, as 8-bit optimisers have them."""
    table = torch.linspace(-1, 1, 256)
    state = {
        "image": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "turned": torch.randn(4, 5).t(),
        "half": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(7.0),
        "nested": {"3": {"state1": torch.randint(0, 256, (9,), dtype=torch.uint8), "qmap1": table, "step": 3}},
        "4": {"qmap1": table, "name": "text", "scale": 65536.0, "flags": [True, None]},
    }

    class Held:
        def state_dict(self):
            return state

        def load_state_dict(self, loaded):
            self.loaded = loaded

    part = Held()
    save_checkpoint(tmp_path, {"part": part}, 3)
    load_checkpoint(tmp_path, {"part": part})
    for key, value in state.items():
        found = part.loaded[key]
        if isinstance(value, torch.Tensor):
            assert torch.equal(found, value) and found.dtype == value.dtype
    assert part.loaded["image"].stride() == state["image"].stride()
    assert torch.equal(part.loaded["nested"]["3"]["state1"], state["nested"]["3"]["state1"])
    assert part.loaded["nested"]["3"]["step"] == 3 and torch.equal(part.loaded["4"].pop("qmap1"), table)
    assert part.loaded["4"] == {"name": "text", "scale": 65536.0, "flags": [True, None]}
    assert (tmp_path / "part.safetensors").stat().st_size < 256 * 4 + 3000, "a shared tensor is stored once"


def test_moments_follow_the_weights_into_another_order_of_memory(tmp_path):
    """The fused optimiser of torch does not look at the order: a run may go on with another `channels_last`."""

    def stepped(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> torch.Tensor:
        weight.grad = torch.empty_like(weight).copy_(torch.linspace(-9, 9, 54).cos().reshape(weight.shape))
        optimizer.step()
        return weight.detach().clone()

    start = torch.linspace(-1, 1, 54).sin().reshape(2, 3, 3, 3)
    weight = torch.nn.Parameter(start.clone())
    optimizer = make_optimizer([weight], OptimizerConfig())
    turned = torch.nn.Parameter(stepped(optimizer, weight).to(memory_format=torch.channels_last))
    save_checkpoint(tmp_path, {"optimizer": optimizer}, 1)
    other = make_optimizer([turned], OptimizerConfig())
    load_checkpoint(tmp_path, {"optimizer": other})
    assert torch.equal(stepped(other, turned), stepped(optimizer, weight))


# ----------------------------------------------------------------------------------------- nothing in a folder is run


class Canary:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def known_to_accelerate() -> list[str]:
    """Every file name that its `load_state` reads."""
    stems = [getattr(constants, name) for name in dir(constants) if name.endswith("_NAME")]
    names = {f"{stem}{number}{end}" for stem in stems for number in ("", "_0", "_1") for end in ("", ".bin", ".pkl")}
    names |= {f"custom_checkpoint_{number}.pkl" for number in range(6)} | {"dl_state_dict.bin", "dl_state_dict_1.bin"}
    return sorted(name for name in names if not name.endswith(".safetensors"))


def test_a_planted_pickle_is_never_run(copied, trained, tmp_path):
    """Under every name that accelerate reads, and in the place of every file of a checkpoint."""
    canary = pickle.dumps(Canary(tmp_path / "ran"))
    stop_after(copied, 2)
    checkpoint = Path(copied.output_dir, "checkpoints/step_00000002")
    assert "custom_checkpoint_0.pkl" in known_to_accelerate() and "optimizer.bin" in known_to_accelerate()
    for name in known_to_accelerate():
        (checkpoint / name).write_bytes(canary)
    finetune(copied)
    assert_same(copied.output_dir, trained.output_dir)
    for path in checkpoint.parent.rglob("*"):
        if path.suffix in (".safetensors", ".json"):
            path.write_bytes(canary)
    with pytest.raises(ValueError, match="no checkpoint is whole"):
        finetune(copied)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_accelerates_form_is_refused(copied):
    """As versions before this one wrote them."""
    checkpoints = Path(copied.output_dir, "checkpoints")
    (checkpoints / MARKER).unlink()
    for folder in checkpoints.glob("step_*"):
        shutil.rmtree(folder)
        folder.mkdir()
        for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl", "model.safetensors"):
            (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match="a run of an earlier version, whose checkpoints can run code") as refusal:
        finetune(copied)
    assert "\n" not in str(refusal.value)


# ------------------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: shutil.rmtree(folder) or folder.mkdir(),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "checkpoint.json").write_bytes(b""),
        lambda folder: (folder / "checkpoint.json").write_text('{"step": 4, "sha256": 3}'),
        lambda folder: (folder / "checkpoint.json").write_text('{"step": 2, "sha256": {}}'),
        lambda folder: (folder / "optimizer.safetensors").write_bytes(b"garbage"),
        lambda folder: os.truncate(folder / "average.safetensors", 1000),
        lambda folder: (folder / "progress.safetensors").write_bytes(b""),
    ],
    ids=range(8),
)
def test_the_checkpoint_before_a_damaged_one_is_used(damage, copied, trained, capsys):
    damage(Path(copied.output_dir, "checkpoints/step_00000004"))
    Path(copied.output_dir, WEIGHTS).unlink()
    finetune(copied)
    assert "step_00000004" in capsys.readouterr().err
    assert_same(copied.output_dir, trained.output_dir)
    assert RunFolder(copied.output_dir).finished_checkpoints()[-1].name == "step_00000004"


def test_without_a_whole_checkpoint_the_reason_is_one_line(copied):
    for path in Path(copied.output_dir, "checkpoints").glob("step_*/model.safetensors"):
        os.truncate(path, 100)
    before = sorted(Path(copied.output_dir).rglob("*"))
    with pytest.raises(ValueError, match="no checkpoint is whole: .*step_00000004.*is damaged") as refusal:
        finetune(copied)
    assert "\n" not in str(refusal.value)
    assert sorted(Path(copied.output_dir).rglob("*")) == before


def test_the_checkpoint_of_another_model_is_refused(copied):
    model = replace(copied.model, unet=SmallUNetConfig([8, 64], layers_per_block=1, attention_levels=0))
    settings = Path(copied.output_dir, "config.yaml")
    settings.write_text(settings.read_text().replace("- 32\n", "- 64\n"))
    with pytest.raises(ValueError, match="does not fit this model") as refusal:
        finetune(replace(copied, model=model))
    assert "\n" not in str(refusal.value)


def test_a_damaged_log_is_named_by_its_line(copied):
    log = Path(copied.output_dir, "metrics.jsonl")
    log.write_text(log.read_text() + '{"step": 5, "los')  # cut off by a kill: forgotten
    finetune(copied)
    assert len(log_lines(Path(copied.output_dir))) == 4
    for line in ("[]", '{"loss": 1}', '{"step": "1"}', "{", '{"step": 1, "loss": {}}'):
        log.write_text('{"step": 1}\n' + line + "\n")
        with pytest.raises(ValueError, match="metrics.jsonl, line 2 is damaged"):
            finetune(copied)


# --------------------------------------------------------------------------------------- one owner, one at a time


def test_what_is_not_of_the_run_stays(source, trained, tmp_path):
    output = tmp_path / "run"
    for name in ("foo.tmp", "foo.old.tmp", "pipeline.tmp", ".hidden.partial"):
        (output / name).mkdir(parents=True)
        (output / name / "precious").touch()
    (output / "notes.txt").touch()
    settings(output, source, train=True)
    assert len(list(output.glob("*/precious")) + list(output.glob(".hidden.partial/precious"))) >= 4
    assert (output / "notes.txt").exists()
    assert_same(output, trained.output_dir)


@pytest.mark.parametrize("name", ["pipeline", "best", "lora", "checkpoints", "samples", "config.yaml", "metrics.jsonl"])
def test_a_folder_of_somebody_else_is_not_overwritten(name, source, tmp_path):
    path = tmp_path / "run" / name / "precious" if "." not in name else tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(ValueError, match=f"holds {name}, which no training has made: choose another folder"):
        settings(tmp_path / "run", source, train=True)
    assert path.read_text() == "precious" and len(list((tmp_path / "run").iterdir())) == 1


def test_a_second_training_in_one_folder_is_refused(copied, monkeypatch):
    monkeypatch.setattr("c_diffset.training.run.LOCK_SECONDS", 0.1)
    code = "from filelock import FileLock; lock = FileLock({!r}); lock.acquire(); print('held', flush=True); input()"
    lock = str(Path(copied.output_dir, "checkpoints/.lock"))
    command = [sys.executable, "-c", code.format(lock)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OSError, match="another training writes to this output_dir"):
        finetune(copied)
    holder.kill()
    holder.wait()
    finetune(copied)


def test_a_crop_that_the_model_cannot_halve_is_refused(source, tmp_path):
    data = DataConfig(source=source, crop_size=15, validation_split=None)
    with pytest.raises(ValueError, match="data.crop_size is 15, expected a multiple of 2 for this model"):
        settings(tmp_path / "run", source, train=True, data=data)


@pytest.mark.slow
def test_a_wrong_setting_is_one_line_of_the_command(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"output_dir": str(tmp_path / "run"), "steps": 3}))
    command = [sys.executable, "tools/finetune.py", "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Option 'steps' is not accepted" in done.stderr.strip().splitlines()[-1]
