"""A model says how it was trained wherever its folder goes, and nothing about the machine that it was trained on."""

import shutil
from pathlib import Path

import pytest
import yaml

from c_diffset.cli import main
from c_diffset.history import HISTORY, read_ancestors
from c_diffset.hub.run import read_run
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig, SmallUNetConfig
from c_diffset.training.distill import distill
from c_diffset.training.distill_config import DistillConfig
from c_diffset.training.finetune import finetune
from tests.helpers import fresh_accelerate, short_run


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A student of a teacher that was trained from scratch, each in a run of its own."""
    root = tmp_path_factory.mktemp("secret_place")
    write_pairs(root / "pairs", 2, size=32)
    data = DataConfig(source=str(root / "pairs"), crop_size=16, validation_split=None)
    model = ModelConfig(unet=SmallUNetConfig(block_out_channels=[8, 32], layers_per_block=1, attention_levels=0))
    fresh_accelerate()
    teacher = finetune(short_run(FinetuneConfig, root / "first", root, model=model, data=data))
    fresh_accelerate()
    return distill(short_run(DistillConfig, root / "second", root, teacher=str(teacher), data=data))


@pytest.fixture
def copied(student, tmp_path) -> Path:
    """The student alone, in the folder of another run."""
    shutil.copytree(student, tmp_path / "other/model")
    (tmp_path / "other/config.yaml").write_text(yaml.safe_dump({"output_dir": "x", "data": {"source": "others"}}))
    return tmp_path / "other/model"


def test_a_copied_model_keeps_its_history(student, copied, tmp_path):
    there, here = read_run(student), read_run(copied)
    assert here.settings == there.settings and (here.updates, here.method, here.crop_size) == (4, "consistency", 16)
    assert (Path(there.source), here.source) == (student.parents[1] / "pairs", "pairs")
    assert read_ancestors(copied) == ["first"]
    CDiffSETPipeline.from_pretrained(copied).save_pretrained(copied)
    assert read_run(copied) == here, "saving a loaded model over itself changes nothing of it"
    CDiffSETPipeline.from_pretrained(copied).save_pretrained(tmp_path / "new/model")
    assert read_run(tmp_path / "new/model") is None


def test_a_published_model_carries_it_without_the_places_of_a_machine(copied, tmp_path):
    assert main(["publish", str(copied), "--repo", "me/model", "--dry_run", str(tmp_path / "out")]) == 0
    told = (tmp_path / "out" / HISTORY).read_text()
    assert yaml.safe_load(told)["updates"] == 4 and yaml.safe_load(told)["ancestors"] == ["first"]
    assert "secret" not in told and "/" not in told
    assert "4 updates" in (tmp_path / "out/README.md").read_text()
    assert read_run(tmp_path / "out").updates == 4, "and so does what somebody else downloads"


@pytest.mark.parametrize(
    "content",
    [
        "settings: 3",
        "settings: {}\nupdates: -1\nancestors: []",
        "settings: {}\nupdates: 1.5\nancestors: []",
        "settings: {}\nupdates: 1\nancestors: [{}]",
        "settings: {}\nupdates: 1\nancestors: x",
        f"settings: {{}}\nupdates: 1\nancestors: ['{'x' * 2000}']",
        "settings: &a {b: 1}\nupdates: *a\nancestors: []",
        "settings: " + "[" * 9999,
        "!!python/object/apply:os.system ['true']",
        "x" * 200_000,
        "settings: {data: {source: 3}}\nupdates: 1\nancestors: []",
    ],
)
def test_a_history_that_no_training_wrote_is_refused_in_one_line(content, copied, tmp_path, capsys):
    (copied / HISTORY).write_text(content)
    assert main(["publish", str(copied), "--repo", "me/model", "--dry_run", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert HISTORY in said and len(said) < 600 and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_private_settings_of_a_foreign_history_are_left_out(copied, tmp_path):
    told = yaml.safe_load((copied / HISTORY).read_text())
    told |= {"more": "secret", "ancestors": ["/home/secret/base"]}
    told["settings"] |= {"output_dir": "/home/secret", "teacher": "/home/secret/teacher"}
    (copied / HISTORY).write_text(yaml.safe_dump(told))
    assert main(["publish", str(copied), "--repo", "me/model", "--dry_run", str(tmp_path / "out")]) == 0
    assert not [
        path
        for path in (tmp_path / "out").rglob("*.*")
        if path.suffix != ".safetensors" and b"secret" in path.read_bytes()
    ]
