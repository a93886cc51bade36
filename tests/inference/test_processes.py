"""Real processes: two give what one gives, and a killed one's work goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ACCELERATE, write_png, write_raster
from tests.inference.test_scene import UTM, display

pytestmark = pytest.mark.slow

OPTIONS = ["--num_inference_steps", "2", "--tile_size", "64", "--overlap", "16", "--confidence", "--threads", "1"]


@pytest.fixture
def scenes(make_pipe, tmp_path) -> Path:
    """One large scene with a hole, three small ones, a broken one, and a model."""
    folder = tmp_path / "sar"
    folder.mkdir()
    large = display(300, 420)
    large[100:180, :300] = 0
    write_raster(folder / "large.tif", large, nodata=0, **UTM)
    for number in range(3):
        write_raster(folder / f"small{number}.tif", display(70 + 9 * number, 70), **UTM)
    (folder / "broken.tif").write_bytes((folder / "large.tif").read_bytes()[:20_000])
    make_pipe("tiny").save_pretrained(tmp_path / "model")
    return folder


def command(launch: list[str], scenes: Path, output: Path, *options: str) -> list[str]:
    arguments = [str(scenes), "--model", str(scenes.parent / "model"), "--output", str(output)]
    return [*launch, "-m", "c_diffset", "translate", *arguments, *OPTIONS, *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".tif", ".png")}


def test_two_processes_write_what_one_writes(scenes, tmp_path):
    two = [ACCELERATE, "launch", "--multi_gpu", "--num_processes", "2"]
    write_png(scenes / "wide.png", display(70, 150))  # larger than a tile
    for number in range(5):  # one batch of four, and one
        write_png(scenes / f"image{number}.png", display(40 + 8 * (number == 1), 40))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}  # how two processes start without a GPU
    outputs = []
    for launch in ([sys.executable], two):
        out = tmp_path / f"out{len(outputs)}"
        done = subprocess.run(command(launch, scenes, out), capture_output=True, text=True, env=environment)
        assert done.returncode == 1 and "10 written, 0 there already, 1 failed" in done.stdout, done.stderr
        assert "broken.tif" in done.stderr
        lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        finished = sorted(Path(line["input"]).stem for line in lines)
        assert finished == [*(f"image{n}" for n in range(5)), "large", "small0", "small1", "small2", "wide"]
        assert not [path for path in out.iterdir() if path.name.startswith(".")]
        outputs.append(contents(out))
    assert len(outputs[0]) == 20
    assert outputs[0] == outputs[1]


def test_after_a_kill_the_same_command_goes_on(scenes, tmp_path):
    (scenes / "broken.tif").unlink()
    out, whole = tmp_path / "out", tmp_path / "whole"
    steps = ("--num_inference_steps", "30")
    process = subprocess.Popen(
        command([sys.executable], scenes, out, *steps), stderr=subprocess.DEVNULL, start_new_session=True
    )
    # scenes go by size, the largest first: the kill falls into one of the small ones
    wait_for(lambda: (out / "large.tif").exists() and list(out.glob(".small*.work")), process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = (out / "large.tif").stat().st_mtime_ns
    assert len(contents(out)) < 8 and list(out.glob(".*"))

    for folder, skipped in ((out, (1, 2, 3)), (whole, (0,))):
        done = subprocess.run(command([sys.executable], scenes, folder, *steps), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert any(f"{4 - count} written, {count} there already" in done.stdout for count in skipped), done.stdout
    assert (out / "large.tif").stat().st_mtime_ns == before
    assert contents(out) == contents(whole) and len(contents(out)) == 8
    assert not list(out.glob(".*"))


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, "it ended too early"
        time.sleep(0.01)
