"""Hostile settings, folders and images: each is refused in one line, or gives a picture."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file

from c_diffset.cli import main
from c_diffset.data.eo import eo_to_tensor
from c_diffset.loading import load_pipeline
from c_diffset.pipelines.pipeline_cdiffset import (
    CDiffSETPipeline,
    apply_calibration,
    check_calibration,
    check_eo_transform,
    check_sar_transform,
    decode_prompt_embeds,
    describe_eo_transform,
    sar_to_tensor,
)
from tests.conftest import tiny_components
from tests.hostile import outcome

NUMBERS = st.sampled_from([0, 1, -1, 2, 0.5, -30, 1e-320, 1e12, 1e300, -1e300, 10**400, float("nan"), float("inf")])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
IMAGE = np.linspace(0.01, 1, 64, dtype=np.float32).reshape(8, 8)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model in pixel space, read by every example and changed by none."""
    folder = tmp_path_factory.mktemp("model")
    CDiffSETPipeline(**tiny_components("pixel", folder / "text")).save_pretrained(folder / "whole")
    return folder / "whole"


def changed(folder: Path, name: str, content: bytes) -> Path:
    """A copy of the model, one of its files replaced."""
    copy = folder.parent / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(content)
    return copy


def bounded_examples(count: int):
    return settings(max_examples=count, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


def test_the_whole_model_is_loaded(folder):
    assert isinstance(outcome(load_pipeline, folder), CDiffSETPipeline)


@bounded_examples(150)
@given(
    units=st.sampled_from(["display", "db", "power", "amplitude"]) | JUNK,
    limits=st.tuples(NUMBERS, NUMBERS).map(list) | st.lists(st.tuples(NUMBERS, NUMBERS).map(list)) | JUNK,
    channels=st.lists(st.sampled_from([0, 1, "0", "1-0", "-1", "9" * 5000, 10**5000]), max_size=3) | JUNK,
    bands=st.none() | st.lists(st.text(max_size=2), max_size=3) | JUNK,
    extra=st.dictionaries(st.text(max_size=3) | st.integers(), JUNK, max_size=1),
)
def test_transforms(units, limits, channels, bands, extra):
    transform = outcome(check_sar_transform, {"units": units, "range": limits, "channels": channels} | extra)
    outcome(check_sar_transform, {"units": "db", "bands": bands})
    if isinstance(transform, dict):
        tensor = outcome(sar_to_tensor, np.stack([IMAGE, IMAGE], -1), transform)
        assert isinstance(tensor, str) or (torch.isfinite(tensor).all() and tensor.abs().max() <= 1)


@bounded_examples(150)
@given(
    units=st.sampled_from(["display", "reflectance"]) | JUNK,
    limits=st.tuples(NUMBERS, NUMBERS).map(list) | st.lists(st.tuples(NUMBERS, NUMBERS).map(list)) | JUNK,
    gamma=st.just(1) | NUMBERS | JUNK,
    extra=st.dictionaries(st.text(max_size=3) | st.integers(), JUNK, max_size=1),
    highest=st.sampled_from([np.uint8(255), np.uint16(65535), np.float32(1e-38), np.float32(3e38)]),
)
def test_eo_transforms(units, limits, gamma, extra, highest):
    transform = outcome(check_eo_transform, {"units": units, "range": limits, "gamma": gamma} | extra)
    if isinstance(transform, dict):
        assert describe_eo_transform(transform).isprintable() and len(describe_eo_transform(transform)) < 300
        tensor = outcome(eo_to_tensor, np.stack([np.diag([highest] * 4)] * 3), transform)
        assert isinstance(tensor, str) or (torch.isfinite(tensor).all() and tensor.abs().max() <= 1)


@pytest.mark.parametrize("junk", [None, 3, [], "db", ["units"]])
def test_a_transform_that_is_no_mapping(junk):
    assert isinstance(outcome(check_sar_transform, junk), str)
    assert isinstance(outcome(check_eo_transform, junk), str)


KNOTS = st.lists(NUMBERS | st.floats(0, 1), min_size=1, max_size=3) | JUNK


@bounded_examples(100)
@given(
    threshold=NUMBERS | JUNK,
    knots=st.fixed_dictionaries({"variance": KNOTS, "expected_error": KNOTS, "probability": KNOTS}) | JUNK,
    steps=st.none() | JUNK,
)
def test_calibrations(threshold, knots, steps):
    outcome(check_calibration, {"threshold": 8, "steps": steps})
    calibration = outcome(check_calibration, {"threshold": threshold, "steps": {"2": knots}})
    if isinstance(calibration, dict):
        confidence = torch.tensor([1.0, 0.5, 1e-3])
        for name in ("expected_error", "probability"):
            assert torch.isfinite(apply_calibration(confidence, knots, name)).all()


BAD_CALIBRATION = """
from c_diffset.pipelines.pipeline_cdiffset import check_calibration
knots = {"variance": [1.0, 0.5], "expected_error": [0.0, 1.0], "probability": [0.0, 1.0]}
try:
    check_calibration({"threshold": 8, "steps": {"2": knots}})
except ValueError as error:
    print(error)
"""


@pytest.mark.slow  # python -O compiles every library anew
def test_a_calibration_is_checked_without_assertions_too():
    root = Path(__file__).parents[2]
    shown = subprocess.run([sys.executable, "-O", "-c", BAD_CALIBRATION], cwd=root, capture_output=True, text=True)
    assert shown.stdout == "calibration of '2' steps: expected rising knots, and probabilities up to 1\n", shown.stderr


@bounded_examples(50)
@given(
    shape=st.lists(st.sampled_from([0, 1, 2, -1, 8, 10**6, 10**18, 10**30]), max_size=4) | JUNK,
    data=st.sampled_from(["", "AAAA", "AACAPwAAgD8=", "not base64", "\u00e9", "AADAfw=="]) | JUNK,
)
def test_prompt_embeddings(shape, data):
    outcome(decode_prompt_embeds, {"shape": shape, "float32": data})
    outcome(decode_prompt_embeds, data)


DTYPES = ["uint8", "uint16", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex64", "bool"]


@bounded_examples(120)
@given(
    image=st.sampled_from([*DTYPES, "U3", "datetime64[s]"]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    units=st.sampled_from(["display", "db", "power", "amplitude"]),
    tensor=st.booleans(),
)
def test_images(image, units, tensor):
    if tensor and image.dtype.kind in "fciub":
        image = torch.from_numpy(image.astype(image.dtype.newbyteorder("=")))
    result = outcome(sar_to_tensor, image, {"units": units, "channels": [0]})
    assert isinstance(result, str) or (torch.isfinite(result).all() and result.abs().max() <= 1)


def test_a_masked_array_is_no_image():
    masked = np.ma.masked_less(IMAGE, 0.5)
    assert "masked" in outcome(sar_to_tensor, masked, {"units": "display"})


INDEX = st.sampled_from(["unet", "scheduler", "vae", "_class_name", "sar_transform", "calibration", "prompt_embeds"])
SETTING = st.sampled_from(["default_num_inference_steps", "confidence_timestep", "prediction_type"])
ENTRY = st.sampled_from([["os", "system"], ["diffusers", "UNet2DModel"], ["diffusers", "PNDMScheduler"], [None, None]])


@bounded_examples(60)
@given(changes=st.dictionaries(INDEX | SETTING, ENTRY | NUMBERS | JUNK, min_size=1, max_size=2))
def test_indices(folder, changes):
    index = json.loads((folder / "model_index.json").read_text()) | changes
    outcome(load_pipeline, changed(folder, "model_index.json", json.dumps(index).encode()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds a list"),
        (b"\xff\xfe", "is not JSON"),
        (b"{}", "unet is None, expected"),
        (b'{"unet": ["os", "system"]}', "unet is ['os', 'system'], expected [\"diffusers\""),
        (b'{"unet": "diffusers"}', "unet is 'diffusers', expected"),
    ],
)
def test_an_index_that_is_none(folder, content, message, capsys):
    copy = changed(folder, "model_index.json", content)
    assert message in outcome(load_pipeline, copy)
    image = folder.parent / "sar.png"
    PIL.Image.fromarray((IMAGE * 255).astype(np.uint8)).save(image)
    assert main(["translate", str(image), "--model", str(copy), "--output", str(folder.parent / "out")]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and message in shown


CONFIG = st.sampled_from(
    ["block_out_channels", "in_channels", "out_channels", "layers_per_block", "norm_num_groups", "sample_size"]
    + ["down_block_types", "attention_head_dim", "num_class_embeds", "dropout", "act_fn"]
)
BIG = st.sampled_from([10**9, [10**9, 10**9], [8] * 5000, [8, 10**12], 2**62, -8, [0, 0], "AttnDownBlock2D"])


@bounded_examples(50)
@given(changes=st.dictionaries(CONFIG, BIG | NUMBERS | JUNK, min_size=1, max_size=2))
def test_configs_of_a_unet(folder, changes):
    config = json.loads((folder / "unet/config.json").read_text()) | changes
    outcome(load_pipeline, changed(folder, "unet/config.json", json.dumps(config).encode()))


SCHEDULE = st.sampled_from(
    ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "steps_offset"]
    + ["timestep_spacing", "prediction_type", "_class_name"]
)


@bounded_examples(40)
@given(changes=st.dictionaries(SCHEDULE, NUMBERS | JUNK, min_size=1, max_size=2))
def test_configs_of_a_scheduler(folder, changes):
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text()) | changes
    pipe = outcome(load_pipeline, changed(folder, "scheduler/scheduler_config.json", json.dumps(config).encode()))
    if not isinstance(pipe, str):
        output = outcome(pipe, IMAGE, num_inference_steps=1)
        assert isinstance(output, str) or output.images[0].size == (8, 8)


def test_weights_that_lack_a_tensor_are_refused(folder):
    tensors = load_file(folder / WEIGHTS)
    copy = changed(folder, WEIGHTS, b"")
    for name, tensor in (("conv_in.weight", None), ("conv_out.bias", torch.zeros(9))):
        state = {key: value for key, value in tensors.items() if key != name}
        save_file(state | ({} if tensor is None else {name: tensor}), copy / WEIGHTS, metadata={"format": "pt"})
        message = outcome(load_pipeline, copy)
        assert name in message and ("lacks the tensor" if tensor is None else "shape [9]") in message
        assert isinstance(UNet2DModel.load_config(copy / "unet"), dict)


@bounded_examples(30)
@given(keep=st.floats(0, 0.999), flip=st.booleans(), place=st.integers(0, 2000))
def test_damaged_weights(folder, keep, flip, place):
    content = (folder / WEIGHTS).read_bytes()
    damaged = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
    result = outcome(load_pipeline, changed(folder, WEIGHTS, damaged if flip else content[: int(keep * len(content))]))
    assert flip or "damaged" in result


def test_a_device_that_is_not_there(folder, capsys):
    for device in ("foo", "cuda:99", "mps:7", ""):
        message = outcome(load_pipeline, folder, device=device or "cpu:3")
        assert "is not on this machine: expected one of cpu" in message
