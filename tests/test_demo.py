"""The demo removes and overwrites its own folder alone, and looks at all its arguments before."""

import pytest

from c_diffset import demo as demo_module
from c_diffset.demo import demo
from c_diffset.files import MARKER
from tests.hostile import outcome


@pytest.fixture
def precious(tmp_path):
    """A folder of somebody else."""
    (tmp_path / "photos/data").mkdir(parents=True)
    (tmp_path / "photos/data/holiday.jpg").write_text("precious")
    return tmp_path / "photos"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_stays(precious, overwrite):
    message = outcome(demo, str(precious), max_steps=1, overwrite=overwrite)
    assert "holds files that no demo has made: name another folder" in message
    assert (precious / "data/holiday.jpg").read_text() == "precious" and len(list(precious.iterdir())) == 1
    (precious.parent / "link").symlink_to(precious)
    assert "holds files" in outcome(demo, str(precious.parent / "link"), max_steps=1, overwrite=overwrite)
    assert "holds files" in outcome(demo, str(precious / "data/holiday.jpg"), max_steps=1, overwrite=overwrite)
    assert (precious / "data/holiday.jpg").read_text() == "precious"


@pytest.mark.parametrize(
    "arguments, found",
    [
        ({"max_steps": 0}, "max_steps is 0"),
        ({"max_steps": -5}, "is -5"),
        ({"size": 30}, "size is 30, expected a multiple of 4 from 32 to 4096"),
        ({"size": 34}, "size is 34, expected a multiple of 4"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_an_earlier_demo_is_removed_only_with_good_arguments(arguments, found, tmp_path):
    (tmp_path / MARKER).touch()
    (tmp_path / "run").mkdir()
    assert found in outcome(demo, str(tmp_path), overwrite=True, **arguments)
    assert (tmp_path / "run").exists()


def test_an_interrupted_demo_goes_on_and_an_earlier_one_is_removed(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(config):
        raise Stop

    monkeypatch.setattr(demo_module, "SPLITS", {"train": 2, "validation": 1})
    monkeypatch.setattr("c_diffset.training.finetune.finetune", stop)
    output = tmp_path / "demo"
    (output / "data/train/sar").mkdir(parents=True)
    (output / MARKER).touch()  # as a demo that was killed while it drew its first pairs leaves it
    with pytest.raises(Stop):
        demo(str(output), max_steps=1, size=32)
    assert (output / "data/train/metadata.jsonl").is_file()
    (output / "run").mkdir()
    with pytest.raises(Stop):
        demo(str(output), max_steps=1, size=32, overwrite=True)
    assert not (output / "run").exists() and (output / "data/validation/metadata.jsonl").is_file()
