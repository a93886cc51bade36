"""A scene through the model: what it is equal to, and what it does not depend on."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from c_diffset.inference import canvas as canvas_module
from c_diffset.inference.canvas import (
    BLOCK,
    Sampling,
    SceneCanvas,
    Work,
    noise_generator,
    scene_tiling,
    tile_sides,
    translate_windows,
)
from c_diffset.inference.source import ArraySource, fill_invalid
from tests.conftest import SPACES, copying_pipe, tiny_components


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Display values of two textures, uint8."""
    image = np.random.default_rng(seed).integers(1, 200, (height, width), dtype=np.uint8)
    image[:, : width // 3] //= 4
    return image


def put_together(image: np.ndarray, pipe, **options) -> tuple[np.ndarray, np.ndarray]:
    """The EO image and the confidence of a whole scene."""
    eo = np.full((*image.shape[:2], 3), 255, np.uint8)
    confidence = np.full(image.shape[:2], -1, np.float32)
    for window in translate_windows(image, pipe, **options):
        eo[window.box.slices()[1:]] = window.eo
        confidence[window.box.slices()[1:]] = window.confidence
    return eo, confidence


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "lcm"])
def test_a_scene_of_one_tile_is_what_the_pipeline_gives(make_pipe, space, scheduler, monkeypatch):
    block = 16
    monkeypatch.setattr(canvas_module, "BLOCK", block)
    pipe = make_pipe(space)
    if scheduler != "ddim":
        pipe.scheduler = {"ddpm": DDPMScheduler, "lcm": LCMScheduler}[scheduler].from_config(pipe.scheduler.config)
    side = block * pipe.vae_scale_factor
    image, steps = scene(side, side), 3
    eo, confidence = put_together(image, pipe, num_inference_steps=steps, seed=7, tile_size=side, overlap=0)

    seeds = [noise_generator(7, step, 0, 0).initial_seed() for step in range(steps + 2)]
    noise = torch.randn((1, pipe.eo_channels, block, block), generator=torch.Generator().manual_seed(seeds[0]))
    generator = torch.Generator().manual_seed(seeds[1])
    whole = pipe(
        image, steps, generator=generator, latents=noise, output_type="np",
        callback_on_step_end=lambda pipe, i, t, tensors: generator.manual_seed(seeds[i + 2]) and {},
    )  # fmt: skip
    assert np.abs(eo - (whole.images[0] * 255).round()).max() <= 1
    np.testing.assert_allclose(confidence, whole.confidence[0], atol=1e-4)


@pytest.mark.parametrize("space", SPACES)
def test_an_uneven_scene_is_padded_as_the_pipeline_pads(make_pipe, space):
    pipe, image = make_pipe(space), scene(45, 50)
    eo, _ = put_together(image, pipe, num_inference_steps=1, tile_size=64, overlap=0)
    block = torch.randn((1, pipe.eo_channels, BLOCK, BLOCK), generator=noise_generator(0, 0, 0, 0))
    height, width = (side // pipe.vae_scale_factor for side in pipe.pad(torch.zeros(1, 1, 45, 50)).shape[-2:])
    whole = pipe(image, 1, latents=block[..., :height, :width], output_type="np")
    assert np.abs(eo - (whole.images[0] * 255).round()).max() <= 1


@pytest.mark.parametrize("space", ["tiny", "pixel"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_same_ground_gives_the_same_picture_wherever_the_scene_is_cut(make_pipe, space, steps):
    pipe, image = make_pipe(space), scene(160, 150)
    options = {"num_inference_steps": steps, "tile_size": 32, "overlap": 8}
    whole, trust = put_together(image, pipe, origin=(-1000, 5003), **options)
    for top, left in ((8, 8), (3, 21)):
        part, part_trust = put_together(image[top:, left:], pipe, origin=(-1000 + top, 5003 + left), **options)
        inner = slice(64, -64)  # two tiles from the cut: what is there does not depend on it but by way of tiles
        assert np.abs(part[inner, inner].astype(int) - whole[top:, left:][inner, inner]).max() <= 1
        np.testing.assert_allclose(part_trust[inner, inner], trust[top:, left:][inner, inner], atol=2e-3)
        assert (part[inner, inner].std(axis=(0, 1)) > 5).any()  # there is something that could differ
    other, _ = put_together(image, pipe, origin=(-1000, 5003), seed=1, **options)
    assert np.abs(other.astype(int) - whole).mean() > 2


def test_memory_files_and_batches_give_the_same(make_pipe, tmp_path, monkeypatch):
    pipe, image = make_pipe("tiny"), scene(90, 70)
    options = {"num_inference_steps": 2, "tile_size": 32, "overlap": 8}
    memory, trust = put_together(image, pipe, **options)
    monkeypatch.setattr(canvas_module, "MEMORY_LIMIT", 0)
    files, files_trust = put_together(image, pipe, folder=tmp_path / "work", **options)
    assert {path.name for path in (tmp_path / "work").iterdir()} == {
        *("sar", "latents", "predictions", "variance", "decoded")
    }
    np.testing.assert_array_equal(files, memory)
    np.testing.assert_array_equal(files_trust, trust)
    one, one_trust = put_together(image, pipe, batch_size=1, **options)
    assert np.abs(one.astype(int) - memory).max() <= 1
    np.testing.assert_allclose(one_trust, trust, atol=1e-3)


def test_what_lies_under_the_mask_changes_nothing(make_pipe):
    transform = {"units": "db", "range": [-30.0, 0.0], "channels": [0, 0, 0]}
    pipe = make_pipe("tiny", sar_transform=transform)
    decibel = scene(80, 75).astype(np.float32) / 8 - 27
    hole = np.zeros(decibel.shape, bool)
    hole[20:50, 10:40] = hole[70:, 60:] = hole[::13, ::11] = True
    options = {"num_inference_steps": 2, "tile_size": 32, "overlap": 8, "valid": ~hole}
    results = []
    for value in (np.nan, -np.inf, 1e9, -99.0):
        results.append(put_together(np.where(hole, np.float32(value), decibel), pipe, **options))
    for eo, confidence in results:
        assert (eo[hole] == 0).all() and np.isnan(confidence[hole]).all()
        assert eo[~hole].any(axis=-1).mean() > 0.99 and (confidence[~hole] > 0).all()
        np.testing.assert_array_equal(eo, results[0][0])
        np.testing.assert_array_equal(confidence, results[0][1])


def test_arrays_that_are_not_in_memory_are_read_by_windows(make_pipe, tmp_path):
    class Lazy:
        """What xarray and zarr have in common."""

        shape, dtype = (70, 90), np.dtype(np.uint8)
        windows = []

        def __getitem__(self, window):
            self.windows.append(window)
            return memoryview(np.ascontiguousarray(image[window]))

    pipe, image, lazy = make_pipe("tiny"), scene(70, 90), Lazy()
    options = {"num_inference_steps": 1, "tile_size": 32, "overlap": 8}
    np.testing.assert_array_equal(put_together(lazy, pipe, **options)[0], put_together(image, pipe, **options)[0])
    tiles = [window for window in lazy.windows if window != (slice(0, 70), slice(0, 90))]  # the last: what comes out
    assert all(side.stop - side.start <= 32 for window in tiles for side in window)
    mapped = np.memmap(tmp_path / "scene.bin", np.uint8, "w+", shape=(70, 90))
    mapped[:] = image
    np.testing.assert_array_equal(put_together(mapped, pipe, **options)[0], put_together(image, pipe, **options)[0])


def test_zero_power_and_nan_are_no_data(make_pipe):
    pipe = make_pipe("tiny", sar_transform={"units": "power", "range": [-30.0, 0.0], "channels": [0, 1, "0-1"]})
    power = np.random.default_rng(0).gamma(4, 0.05, (40, 40, 2)).astype(np.float32)
    power[3, 5, 0], power[9, 9, 1] = 0, np.nan
    window = next(translate_windows(power, pipe, num_inference_steps=1, tile_size=32, overlap=8))
    assert [tuple(place) for place in np.argwhere(~window.valid)] == [(3, 5), (9, 9)]


@settings(max_examples=25)
@given(st.data())
def test_every_pixel_comes_out_once_for_any_size_tile_overlap_and_mask(tmp_path_factory, data):
    pipe = make_tiny_pipe(tmp_path_factory)
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    tile = 4 * data.draw(st.integers(2, 12))
    overlap = 4 * data.draw(st.integers(0, tile // 8))
    cut = data.draw(st.tuples(*[st.integers(0, side) for side in (height, height, width, width)]))
    valid = np.ones((height, width), bool)
    valid[min(cut[:2]) : max(cut[:2]), min(cut[2:]) : max(cut[2:])] = False
    options = {
        "tile_size": tile,
        "overlap": overlap,
        "num_inference_steps": 1,
        "batch_size": data.draw(st.integers(1, 3)),
    }
    origin = data.draw(st.tuples(st.integers(-99, 99), st.integers(-99, 99)))
    seen = np.zeros((height, width), int)
    for window in translate_windows(scene(height, width), pipe, valid=valid, origin=origin, **options):
        inside = window.box.slices()[1:]
        seen[inside] += 1
        np.testing.assert_array_equal(window.valid, valid[inside])
        np.testing.assert_array_equal(np.isfinite(window.confidence), valid[inside])
        assert not window.eo[~window.valid].any()
    assert (seen == 1).all()


def make_tiny_pipe(tmp_path_factory):
    """One pipeline for all examples."""
    pipe = canvas_module.CDiffSETPipeline(**tiny_components("tiny", tmp_path_factory.mktemp("pipe")))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_tiles_without_a_valid_pixel_are_not_translated(make_pipe, monkeypatch):
    pipe, image = make_pipe("tiny"), scene(200, 40)
    valid = np.zeros(image.shape, bool)
    valid[190:] = True
    source = ArraySource(image, pipe.config.sar_transform, valid)
    tiling, told = scene_tiling(pipe, source, 32, 8), []
    run = SceneCanvas(source, pipe, tiling, Sampling(2, batch_size=2), Work(progress=lambda *now: told.append(now)))
    run.run()
    list(run.windows())
    tiles, active = len(tiling.boxes), len(run.active)
    assert 0 < active < tiles / 3
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["encoding", "denoising, step 1 of 2", "denoising, step 2 of 2", "decoding", "writing"]
    # tiles without data are read, and are no work afterwards
    work = (tiles + 3 * active) / (4 * tiles)
    assert {left for stage, _, left in told if stage != "encoding"} == {work} and told[-1][1] == work
    shares = [done for _, done, _ in told]
    assert shares == sorted(shares) and shares[0] == 0
    begin = {stage: min(done for name, done, _ in told if name == stage) for stage in stages}
    assert [round(begin[stage] * 4 * tiles) for stage in stages] == [0, *(tiles + i * active for i in range(4))]


def test_blending_takes_the_seams_away():
    pipe = copying_pipe()  # its UNet normalises over a tile, so that tiles of unlike ground disagree
    ramp = np.linspace(10, 200, 256) + np.random.default_rng(0).normal(0, 4, (256, 256))
    image = ramp.clip(1, 255).astype(np.uint8)
    ratios = []
    for overlap in (0, 32):
        eo = put_together(image, pipe, tile_size=64, overlap=overlap)[0].astype(float)
        jumps = np.abs(np.diff(eo, axis=1)).mean(axis=(0, 2))  # between columns x and x + 1
        boxes = scene_tiling(pipe, ArraySource(image, pipe.config.sar_transform), 64, overlap).boxes
        sides = {side for box in boxes for side in (box.left, box.right)} - {0, 256}
        border = np.isin(np.arange(1, 256), list(sides))
        ratios.append(jumps[border].mean() / jumps[~border].mean())
    assert ratios[1] < 1.05 < 2 < ratios[0]


def test_mirrored_filling():
    sar = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    valid = np.zeros((4, 6), bool)
    valid[:, :4] = True
    filled = fill_invalid(sar, valid)
    np.testing.assert_array_equal(filled[..., :4], sar[..., :4])
    np.testing.assert_array_equal(filled[..., 4:], sar[..., [2, 1]])


def test_tiles_are_of_the_size_that_the_model_was_trained_at(make_pipe):
    pipe = make_pipe("tiny")
    assert tile_sides(pipe) == (512, 64) and tile_sides(pipe, 64) == (64, 16) and tile_sides(pipe, 32, 4) == (32, 4)
    pipe.unet.register_to_config(sample_size=49)  # latent pixels
    assert tile_sides(pipe) == (96, 24)
    pipe.unet.register_to_config(sample_size=4)
    assert tile_sides(pipe) == (8, 4)  # never without an overlap


def test_what_does_not_fit_is_refused(make_pipe):
    pipe, image = make_pipe("tiny"), scene(40, 40)
    with pytest.raises(ValueError, match="tile_size is 30.*multiple of 4"):
        list(translate_windows(image, pipe, tile_size=30))
    with pytest.raises(ValueError, match="overlap is 20 pixels, expected from 0 to half of tile_size, 32"):
        list(translate_windows(image, pipe, tile_size=32, overlap=20))
    for shape in ((40,), (1, 1, 40, 40)):
        with pytest.raises(ValueError, match="expected H x W or H x W x bands"):
            list(translate_windows(np.zeros(shape), pipe))
    with pytest.raises(ValueError, match="valid has shape"):
        list(translate_windows(image, pipe, valid=np.ones((3, 3))))
    pipe.scheduler.register_to_config(thresholding=True)
    with pytest.raises(ValueError, match="thresholding"):
        list(translate_windows(image, pipe, tile_size=32, overlap=8))
