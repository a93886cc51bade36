"""Work that was broken off, or is done in other company, gives the same bytes, and the manifest knows of all of it."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from c_diffset.inference.record import Manifest, settings_in
from c_diffset.inference.translate import translate
from tests.helpers import DISPLAY, succeed, write_png


@pytest.fixture
def model(make_pipe, tmp_path) -> str:
    make_pipe("pixel", sar_transform=DISPLAY | {"channels": [0, 0, 0]}).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def images(tmp_path) -> Path:
    """Eleven images of two sizes, in turn."""
    random = np.random.default_rng(0)
    for number in range(11):
        size = (16, 16) if number % 3 else (24, 16)
        suffix = ".jpg" if number == 4 else ".png"
        write_png(tmp_path / f"sar/{number:02}{suffix}", random.integers(1, 255, size, dtype=np.uint8))
    return tmp_path / "sar"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".jpg")}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_what_is_finished_does_not_change_what_is_left(model, images, tmp_path):
    translate([str(images)], model, str(tmp_path / "whole"), confidence=True, batch_size=4)
    whole = contents(tmp_path / "whole")
    for number, gone in enumerate((["01"], ["00", "05", "10"], ["02", "04", "07", "08"])):
        out = tmp_path / f"out{number}"
        out.mkdir()
        for name, data in whole.items():
            if name[:2] not in gone:
                (out / name).write_bytes(data)
        result = translate([str(images)], model, str(out), confidence=True, batch_size=4)
        assert sorted(path.name[:2] for path in result.written) == gone
        assert contents(out) == whole


def test_a_finished_input_that_is_damaged_later_is_no_failure(model, images, tmp_path):
    out = tmp_path / "out"
    translate([str(images / "0[12].png")], model, str(out))
    (images / "01.png").write_bytes(b"")
    (out / "02.png").unlink()
    result = translate([str(images / "0[12].png")], model, str(out))
    assert not result.failed and [path.name for path in result.written] == ["02.png"]


def test_other_settings_are_said_for_images_too(model, images, tmp_path, capsys):
    out = tmp_path / "out"
    translate([str(images / "0[14].*")], model, str(out))
    for file in ("01.png", "04.jpg"):
        assert settings_in(out / file)["seed"] == 0
    before = contents(out)
    capsys.readouterr()
    assert len(translate([str(images / "0[14].*")], model, str(out)).skipped) == 2
    assert "kept" not in capsys.readouterr().err
    for options, said in (({"seed": 1}, "(seed)"), ({"num_inference_steps": 3}, "(num_inference_steps)")):
        assert len(translate([str(images / "0[14].*")], model, str(out), **options).skipped) == 2
        errors = capsys.readouterr().err
        for file in ("01.png", "04.jpg"):
            assert f"kept: {out / file} was made with other settings {said}: --overwrite redoes it" in errors
    assert contents(out) == before
    translate([str(images / "0[14].*")], model, str(out), tile_size=64, units="display")  # of scenes alone
    assert "kept" not in capsys.readouterr().err
    PIL.Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(out / "02.png")
    translate([str(images / "02.png")], model, str(out))
    assert f"kept: {out / '02.png'} does not say how it was made" in capsys.readouterr().err


def test_confidence_that_is_missing_is_added_where_the_settings_are_the_same(model, images, tmp_path, capsys):
    out = tmp_path / "out"
    translate([str(images / "0*")], model, str(out), batch_size=4)
    before = contents(out)
    assert translate([str(images / "0*")], model, str(out), confidence=True, batch_size=4, seed=1).failed
    assert contents(out) == before and "--overwrite redoes it" in capsys.readouterr().err
    assert not translate([str(images / "0*")], model, str(out), confidence=True, batch_size=4).failed
    assert {name: contents(out)[name] for name in before} == before and len(contents(out)) == 2 * len(before)


def test_odd_manifests(model, images, tmp_path):
    for number, text in enumerate((b"{", b"[]\n1\nnull\n{}\n", b"\xff\xfe\0", b"[" * 9999, b'{"input": []}\n', b"")):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / "manifest.jsonl").write_bytes(text)
        translate([str(images / "01.png")], model, str(out))
        after = (out / "manifest.jsonl").read_bytes()
        assert after.startswith(text) and json.loads(after.splitlines()[-1])["input"] == str(images / "01.png")
    (tmp_path / "folder/manifest.jsonl").mkdir(parents=True)
    with pytest.raises(OSError, match=r"manifest\.jsonl"):
        translate([str(images / "01.png")], model, str(tmp_path / "folder"))
    assert not (tmp_path / "folder/01.png").exists()


def test_the_manifest_is_completed(model, images, tmp_path):
    out = tmp_path / "out"
    translate([str(images)], model, str(out), confidence=True)
    whole = (out / "manifest.jsonl").read_bytes()
    keys = ("input", "outputs", "settings")
    for cut in (0, 100, len(whole) // 2, len(whole) - 1):
        (out / "manifest.jsonl").write_bytes(whole[:cut])
        translate([str(images)], model, str(out), confidence=True)
        text = (out / "manifest.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in text if line.endswith("}")]
        expected = [json.loads(line) for line in whole.decode().splitlines()]
        order = sorted(([line[key] for key in keys] for line in found), key=str)
        assert order == sorted(([line[key] for key in keys] for line in expected), key=str)
    before = (out / "manifest.jsonl").read_bytes()
    translate([str(images)], model, str(out), confidence=True)
    assert (out / "manifest.jsonl").read_bytes() == before
    assert len(Manifest(out / "manifest.jsonl").known) == 11


KILLS = """
import os, signal, sys, time
from pathlib import Path
from c_diffset.inference.translate import translate
images, model, folder = sys.argv[1:]
for files in (1, 2, 3, 5, 8, 12, 17, 21, 22):
    out = Path(folder, str(files))
    child = os.fork()  # before torch has started threads
    if child == 0:
        translate([images], model, str(out), 20, batch_size=2, confidence=True, threads=1)
        os._exit(0)
    while len(list(out.glob("[0-9]*"))) < files:
        time.sleep(0.0002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that it forks")
def test_kills_at_many_moments(model, images, tmp_path):
    options = {"num_inference_steps": 20, "batch_size": 2, "confidence": True, "threads": 1}
    translate([str(images)], model, str(tmp_path / "whole"), **options)
    whole = contents(tmp_path / "whole")
    succeed(sys.executable, "-c", KILLS, images, model, tmp_path / "killed")
    for out in (tmp_path / "killed").iterdir():
        assert int(out.name) <= len(contents(out)) and contents(out).items() <= whole.items()
        result = translate([str(images)], model, str(out), **options)
        assert not result.failed and contents(out) == whole and not list(out.glob(".*"))
        assert sorted(line["input"] for line in lines(out)) == sorted(map(str, images.iterdir()))
