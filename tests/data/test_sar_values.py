"""Data whose SAR values cannot be in the units of the model, as training and evaluation meet them."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from c_diffset.cli import main
from c_diffset.data.eo import some_pairs
from c_diffset.data.pairs import Pair, load_pairs
from c_diffset.data.sar_values import check_sar_values
from tests.helpers import write_png

DB = {"units": "db", "range": [-30.0, 0.0], "channels": [0, 0, 0]}
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write_pairs(root: Path, units: str) -> Path:
    """Three pairs of float32 backscatter for every split, in two folders."""
    random = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for number in range(3):
            decibels = random.normal(-12, 3, (16, 16)).astype(np.float32)
            values = decibels if units == "db" else 10 ** (decibels / 10)
            path = root / split / "sar" / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(path, "w", driver="GTiff", height=16, width=16, count=1, dtype="float32") as raster:
                raster.write(values, 1)
            write_png(root / split / "eo" / f"{number}.png", random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return root


def test_data_in_other_units_are_refused_before_training(tmp_path, capsys):
    power = write_pairs(tmp_path / "power", "power")
    options = [
        "--model.sar_transform.units",
        "db",
        "--data.crop_size",
        "16",
        "--validation.crop_size",
        "16",
        "--max_steps",
        "1",
        "--batch_size",
        "1",
    ]
    options += ["--model.unet.block_out_channels", "[8, 32]", "--model.unet.layers_per_block", "1"]
    status = main(["finetune", "--data.source", str(power), "--output_dir", str(tmp_path / "run"), *options])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and f"{power}: sar_transform['units'] is 'db', but the pixels" in error
    assert "linear power or amplitude" in error and "say `units` power or amplitude" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_data_in_other_units_are_not_measured(make_pipe, tmp_path, capsys, command):
    power = write_pairs(tmp_path / "power", "power")
    make_pipe("pixel", sar_transform=DB).save_pretrained(tmp_path / "model")
    options = ["--lpips_net", "null", "--download", "false"] if command == "evaluate" else []
    assert main([command, "--model", str(tmp_path / "model"), "--data", str(power), *options]) == 2
    assert "look like linear power or amplitude" in capsys.readouterr().err.strip().splitlines()[-1]


def test_data_in_the_units_of_the_model_pass(tmp_path):
    for units in ("db", "power"):
        source = write_pairs(tmp_path / units, units)
        check_sar_values(some_pairs(load_pairs(source, "train")), DB | {"units": units}, "data")


def test_what_a_mask_rules_out_does_not_count():
    sar = np.random.default_rng(0).normal(-12, 3, (16, 16)).astype(np.float32)
    mask = np.zeros((16, 16), bool)
    mask[:8], sar[8:] = True, 200 + sar[8:]
    pair = Pair(id="a", sar=sar, eo=np.zeros((16, 16, 3), np.uint8), mask=mask)
    check_sar_values([pair, pair], DB, "data")
    with pytest.raises(ValueError, match="data: sar_transform.* is 'db', but the pixels"):
        check_sar_values([Pair(id="a", sar=sar[8:], eo=np.zeros((8, 16, 3), np.uint8), mask=None)], DB, "data")
