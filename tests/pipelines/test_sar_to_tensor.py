"""SAR pixels in every form to what the model sees, and what is refused."""

import re

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c_diffset.pipelines.pipeline_cdiffset import SAR_DISPLAY, check_sar_transform, sar_to_tensor

DB = {"units": "db", "range": [-30, 0], "channels": [0]}
GREY = {"units": "display", "range": [0, 1], "channels": [0]}


def refused(image, transform: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sar_to_tensor(image, transform)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)


def test_display_values_of_8_bits(pixels):
    tensor = sar_to_tensor(pixels, SAR_DISPLAY)
    assert tensor.shape == (3, 5, 7) and tensor.dtype == torch.float32
    for channel in tensor:
        np.testing.assert_allclose(channel, pixels / 255 * 2 - 1, atol=1e-6)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: PIL.Image.fromarray(x),
        lambda x: PIL.Image.fromarray(x).convert("RGB"),
        lambda x: x[..., None],
        lambda x: np.stack([x] * 3, axis=-1),
        lambda x: x.astype(np.uint16) * 257,
        lambda x: (x.astype(np.uint16) * 257).astype(">u2"),
        lambda x: PIL.Image.fromarray(x.astype(np.uint16) * 257),
        lambda x: PIL.Image.fromarray(x.astype(np.int32) * 257),
        lambda x: x.astype(np.float32) / 255,
        lambda x: x.astype(">f8") / 255,
        lambda x: PIL.Image.fromarray(x.astype(np.float32) / 255),
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x)[None],
        lambda x: torch.from_numpy(x.astype(np.uint16) * 257),
        lambda x: torch.from_numpy(x).double() / 255,
    ],
)
def test_every_form_of_an_image_gives_the_same(pixels, form):
    torch.testing.assert_close(sar_to_tensor(form(pixels), GREY), sar_to_tensor(pixels, GREY), rtol=0, atol=1e-6)


def test_a_16_bit_png_keeps_its_precision(tmp_path):
    values = np.arange(0, 65536, 257 * 4 - 1, dtype=np.uint16)[None]
    PIL.Image.fromarray(values).save(tmp_path / "sar.png")
    with PIL.Image.open(tmp_path / "sar.png") as image:
        tensor = sar_to_tensor(image, GREY)
    np.testing.assert_allclose(tensor[0], values / 65535 * 2 - 1, atol=1e-6)


@given(st.floats(-60, 20), st.floats(-40, -20), st.floats(5, 40))
def test_db_power_and_amplitude_agree_and_are_clipped(db, low, width):
    transform = {"range": [low, low + width], "channels": [0]}
    expected = min(max((db - low) / width, 0), 1) * 2 - 1
    forms = {"db": db, "power": 10 ** (db / 10), "amplitude": 10 ** (db / 20)}
    for units, value in forms.items():
        tensor = sar_to_tensor(np.full((2, 2), value), transform | {"units": units})
        np.testing.assert_allclose(tensor, np.full((1, 2, 2), expected), atol=1e-4)


def test_zero_power_and_a_few_negative_values_are_the_low_end():
    power = np.array([[0.0, -1e-4], [0.01, 1.0]])
    tensor = sar_to_tensor(power, {"units": "power", "range": [-30, 0], "channels": [0]})
    np.testing.assert_allclose(tensor[0], [[-1, -1], [1 / 3 * 2 - 1, 1]], atol=1e-6)


def test_channels_pick_bands_and_ratios():
    vv, vh = np.full((2, 3), -10.0), np.full((2, 3), -16.0)
    transform = {"units": "db", "range": [-20, 0], "channels": [0, 1, "1-0"]}
    tensor = sar_to_tensor(np.stack([vv, vh], axis=-1), transform)
    np.testing.assert_allclose(tensor[:, 0, 0], [0.0, -0.6, 0.4], atol=1e-6)


def test_a_ratio_of_powers_is_a_difference_in_db():
    bands = np.stack([np.full((2, 2), 0.1), np.full((2, 2), 0.01)], axis=-1)
    tensor = sar_to_tensor(bands, {"units": "power", "range": [-20, 0], "channels": ["1-0"]})
    np.testing.assert_allclose(tensor, np.zeros((1, 2, 2)), atol=1e-6)


@pytest.mark.parametrize("units", ["db", "power", "amplitude"])
@pytest.mark.parametrize("form", [lambda x: x, PIL.Image.fromarray, torch.from_numpy])
def test_8_bit_input_for_backscatter_is_refused(pixels, units, form):
    refused(
        form(pixels),
        DB | {"units": units},
        f"integer SAR pixels (full scale 255), but this model reads backscatter as {units}",
    )


def test_backscatter_for_display_values_is_refused():
    refused(np.full((2, 2), -12.0), GREY, "input pixels from -12 to -12 (1 is full scale)")
    refused(np.array([[0.5, 1.5]]), GREY, "input pixels from 0.5 to 1.5 (1 is full scale)")
    refused(np.array([[-1, 5]], dtype=np.int32), GREY, "this model reads display values, in [0, 1]")


@pytest.mark.parametrize("units", ["power", "amplitude"])
def test_db_for_a_linear_model_is_refused(units):
    refused(np.full((2, 2), -12.0), DB | {"units": units}, f"this model reads linear {units}: convert them from dB")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("transform", [GREY, DB])
def test_nan_and_infinity_are_refused(bad, transform):
    image = np.full((4, 4), 0.5)
    image[1, 2:] = bad
    refused(image, transform, "the input holds 2 NaN or infinite values")
    refused(torch.from_numpy(image), transform, "the input holds 2 NaN or infinite values")


def test_bands_that_do_not_fit_are_refused(pixels):
    refused(np.stack([pixels] * 2, axis=-1), GREY, "the input has 2 bands, but this model reads 1 (channels [0])")
    refused(pixels, GREY | {"channels": [0, 1, 0]}, "the input has 1 bands, but this model reads 2")
    refused(np.stack([pixels, pixels, 255 - pixels], axis=-1), GREY, "the input has 3 bands")
    refused(PIL.Image.fromarray(pixels).convert("RGBA"), GREY, "PIL mode RGBA")
    refused(PIL.Image.fromarray(pixels).convert("P"), GREY, "PIL mode P")


def test_pixel_types_and_shapes_that_have_no_meaning_are_refused(pixels):
    refused(pixels.astype(np.int16), GREY, "input pixels of type int16")
    refused(pixels > 100, GREY, "input pixels of type bool")
    refused(torch.from_numpy(pixels).long(), GREY, "input pixels of type int64")
    refused(pixels[0], GREY, "an input of shape (7,)")
    refused(pixels[None, None], GREY, "an input of shape (1, 1, 5, 7)")
    refused(pixels[:0], GREY, "an input of shape (0, 7)")


def test_defaults_of_the_transform():
    assert check_sar_transform({"units": "display"}) == SAR_DISPLAY
    for units in ("db", "power", "amplitude"):
        expected = {"units": units, "range": [-30.0, 0.0], "channels": [0, 0, 0]}
        assert check_sar_transform({"units": units}) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"units": "decibel"},
            "sar_transform['units'] is 'decibel': expected one of ['display', 'db', 'power', 'amplitude']",
        ),
        ({"units": None}, "sar_transform['units'] is None"),
        ({"range": [0, -30]}, "sar_transform['range'] is [0, -30]: expected [low, high], two numbers with low < high"),
        ({"range": [0, 0]}, "sar_transform['range'] is [0, 0]"),
        ({"range": [0]}, "sar_transform['range'] is [0]"),
        ({"range": "-30,0"}, "sar_transform['range'] is '-30,0'"),
        ({"range": [float("nan"), 0]}, "sar_transform['range'] is [nan, 0]"),
        ({"range": None}, "sar_transform['range'] is None"),
        ({"channels": []}, "sar_transform['channels'] is []"),
        ({"channels": 0}, "sar_transform['channels'] is 0"),
        ({"channels": "0-1"}, "sar_transform['channels'] is '0-1'"),
        (
            {"channels": [-1]},
            "sar_transform['channels'] is [-1]: expected a list of band indices, or 'i-j' for a ratio",
        ),
        ({"channels": [0.5]}, "sar_transform['channels'] is [0.5]"),
        ({"channels": ["vv"]}, "sar_transform['channels'] is ['vv']"),
        ({"channels": ["0-1-2"]}, "sar_transform['channels'] is ['0-1-2']"),
        ({"channels": ["0/1"]}, "sar_transform['channels'] is ['0/1']"),
        ({"gain": 2}, "sar_transform has unknown keys ['gain']"),
    ],
)
def test_a_malformed_transform_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_sar_transform(DB | change)


def test_a_transform_without_units_is_refused():
    with pytest.raises(ValueError, match=re.escape("sar_transform['units'] is None")):
        check_sar_transform({"range": [0, 1], "channels": [0]})


def test_each_channel_can_have_its_own_range():
    vv_vh = np.array([[[-10.0, -20.0]]])
    transform = {"units": "db", "channels": [0, 1, "0-1"], "range": [[-20, 0], [-30, -10], [0, 20]]}
    assert sar_to_tensor(vv_vh, transform).flatten().tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="one such pair for each of the 3 channels"):
        sar_to_tensor(vv_vh, transform | {"range": [[-20, 0], [-30, -10]]})
