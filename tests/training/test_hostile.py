"""Damaged run folders and odd settings end in a correct resume, correct settings, or an error of one line."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from c_diffset.training.average import AveragedWeights
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig, SmallUNetConfig
from c_diffset.training.parser import parse_config
from c_diffset.training.run import RunFolder, check_same_run
from tests.hostile import outcome
from tests.training.test_config import BOMB, MINIMAL

pytestmark = pytest.mark.slow
STEPS = (2, 4)


class Parts(dict):
    """A model, its optimiser and its average, trained for some updates on numbers that depend on the update alone."""

    def __init__(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(model.parameters())
        super().__init__(model=model, optimizer=optimizer, average=AveragedWeights(list(model.parameters()), 0.9))

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            images = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(step))
            self["model"](images).square().sum().backward()
            self["optimizer"].step()
            self["optimizer"].zero_grad()
            self["average"].update()


def config(output: Path) -> FinetuneConfig:
    model = ModelConfig(unet=SmallUNetConfig(block_out_channels=[8, 32]))
    return FinetuneConfig(output_dir=str(output), model=model, data=DataConfig(source="pairs"), max_steps=6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run folder with two checkpoints, its log and its settings."""
    folder = tmp_path_factory.mktemp("run")
    run, parts = RunFolder(folder), Parts()
    with run.opened(config(folder)):
        for first, last in ((0, 2), (2, 4)):
            parts.train(first, last)
            run.save(parts, last, keep=2)
            run.log(step=last, loss=0.5)
    return folder


def resume(folder: Path) -> list[torch.Tensor]:
    """What the loop does with a run folder, in small: the weights and averages after update 6."""
    run, parts = RunFolder(folder), Parts()
    with run.opened(config(folder)):
        step = run.newest(parts)
        if step:
            run.load(parts, step)
        run.forget_after(step)
        assert all(row["step"] <= step for row in run.rows())
        parts.train(step, 6)
    return [*parts["model"].state_dict().values(), *parts["average"].average]


@pytest.fixture(scope="module")
def straight() -> list[torch.Tensor]:
    """What a run that nobody disturbs ends with."""
    parts = Parts()
    parts.train(0, 6)
    return [*parts["model"].state_dict().values(), *parts["average"].average]


FILES = [
    *(f"checkpoints/step_0000000{step}/{name}" for step in STEPS for name in ("checkpoint.json", "model.safetensors")),
    *(f"checkpoints/step_00000004/{name}.safetensors" for name in ("optimizer", "average")),
    *("metrics.jsonl", "config.yaml", "checkpoints/.c_diffset"),
]
JUNK = [b"", b"null", b"[]", b"{}", b'{"step": 4}', b"\x80\x04N.", b"\xff" * 50, b"[" * 5000, BOMB.encode(), b"\0" * 9]
DAMAGE = st.one_of(
    st.tuples(st.just("truncate"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.floats(0, 1)),
    st.tuples(st.just("delete"), st.none()),
    st.tuples(st.just("folder"), st.none()),
    st.tuples(st.just("replace"), st.sampled_from(JUNK) | st.binary(max_size=60)),
    st.tuples(st.just("swap"), st.sampled_from(FILES)),
)


def damage(folder: Path, name: str, kind: str, how) -> None:
    path = folder / name
    content = path.read_bytes() if path.is_file() else b""
    if kind == "truncate":
        path.write_bytes(content[: int(how * len(content))])
    elif kind == "flip" and content:
        place = int(how * (len(content) - 1))
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
    elif kind == "replace":
        path.write_bytes(how)
    elif kind == "swap" and (folder / how).is_file():
        path.write_bytes((folder / how).read_bytes())
    elif kind in ("delete", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()


@settings(max_examples=150, derandomize=True)
@given(st.dictionaries(st.sampled_from(FILES), DAMAGE, min_size=1, max_size=3))
def test_a_damaged_run_goes_on_correctly_or_not_at_all(whole, straight, tmp_path_factory, damages):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(whole, folder)
    for name, (kind, how) in damages.items():
        damage(folder, name, kind, how)
    found = outcome(resume, folder)
    if not isinstance(found, str):
        assert all(torch.equal(a, b) for a, b in zip(found, straight, strict=True))
    shutil.rmtree(folder.parent)


TREE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**30, "1e9", ".inf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({*asdict(config(Path("run"))), "class_path", "init_args", "foo"})


def parsed(path: Path) -> FinetuneConfig:
    found = parse_config(FinetuneConfig, "", ["--config", str(path)])
    assert 1 <= found.max_steps < 10**8 and 1 <= found.batch_size <= 65_536 and 0 <= found.optimizer.learning_rate <= 10
    return found


@settings(max_examples=150, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(NAMES), TREE, max_size=3), st.dictionaries(st.sampled_from(NAMES), TREE, max_size=2)
)
def test_odd_settings_are_refused_or_right(tmp_path_factory, changes, nested):
    path = tmp_path_factory.mktemp("settings") / "config.yaml"
    values = MINIMAL | changes
    values["optimizer"] = nested or values.get("optimizer") or {}
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8", errors="replace")
    outcome(parsed, path)


TEXT = st.lists(
    st.sampled_from([*"&*!|>%@`'\"#,?:-[]{}<= \n\t", "a", "b", "seed", "1", "&a", "*a", "<<", "!!set", "\0", "é"])
)


@settings(max_examples=150, derandomize=True)
@given(TEXT.map("".join) | st.binary(max_size=80).map(lambda data: data.decode("latin-1")))
@example(BOMB)
@example("a: &a [*a]")
@example("seed: 2020-13-45")
@example("!!timestamp x")
@example("? {a: 1}\n: 2")
@example("seed: !!int x")
@example("{" * 100_000)
def test_odd_text_is_refused_as_settings(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    assert isinstance(outcome(parsed, path), str)
    assert isinstance(outcome(check_same_run, config(path.parent), path), str)
