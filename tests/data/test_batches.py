"""The order, the crops and the noise of training samples."""

import io
import json
from itertools import islice

import numpy as np
import PIL.Image
import pytest
import rasterio
import torch

from c_diffset.data.batches import (
    FLIPS_AND_TURNS,
    ProcessBatches,
    TrainingPairs,
    flip_and_turn,
    pair_to_tensors,
    pool_mask,
    random_crop,
    training_loader,
)
from c_diffset.data.pairs import load_pairs, read_pair
from c_diffset.inference.options import ReadOptions
from c_diffset.inference.raster import SarRaster
from c_diffset.inference.tiles import Box
from c_diffset.pipelines.pipeline_cdiffset import EO_DISPLAY
from c_diffset.synthetic.generate import write_pairs

SAR = {"units": "display", "range": [0.0, 1.0], "channels": [0]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 7, size=32)
    return folder


def samples(source, streaming: bool = False, **options) -> TrainingPairs:
    return TrainingPairs(
        load_pairs(source, streaming=streaming), SAR, EO_DISPLAY, **{"crop_size": 16, "seed": 3} | options
    )


def take(loader, count: int) -> list[dict]:
    return list(islice(iter(loader), count))


def assert_same(batches: list[dict], expected: list[dict]) -> None:
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[key], other[key]) for key in batch)


def test_the_eight_symmetries_are_distinct_and_agree_for_arrays_and_tensors():
    image = np.arange(12).reshape(1, 3, 4)
    turned = [flip_and_turn(image, which) for which in range(FLIPS_AND_TURNS)]
    assert len({(array.shape, array.tobytes()) for array in map(np.ascontiguousarray, turned)}) == 8
    for which, array in enumerate(turned):
        assert np.array_equal(flip_and_turn(torch.from_numpy(image), which).numpy(), array)


def test_every_row_comes_once_in_an_epoch():
    rows = [row for batch in islice(ProcessBatches(6, 2, seed=0), 9) for row, _ in batch]
    epochs = [rows[:6], rows[6:12], rows[12:]]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_processes_share_the_samples_of_one():
    one = [key for batch in islice(ProcessBatches(7, 4, seed=1), 5) for key in batch]
    two = [islice(ProcessBatches(7, 2, seed=1, rank=rank, world=2), 5) for rank in range(2)]
    assert [key for pair in zip(*two, strict=True) for batch in pair for key in batch] == one


@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_loader_and_workers_give_the_same_batches(source, streaming):
    whole = take(training_loader(samples(source, streaming), batch_size=2), 8)
    resumed = take(training_loader(samples(source, streaming), batch_size=2, start=6), 5)
    assert_same(resumed, whole[3:])
    assert_same(take(training_loader(samples(source, streaming), batch_size=2, num_workers=2), 8), whole)
    assert [batch["number"].tolist() for batch in whole] == [[2 * i, 2 * i + 1] for i in range(8)]


def test_processes_share_a_stream(source):
    one = take(training_loader(samples(source, True), batch_size=4), 3)
    two = [take(training_loader(samples(source, True), 2, rank, world=2), 3) for rank in range(2)]
    for batch, first, second in zip(one, *two, strict=True):
        assert torch.equal(torch.cat([first["noise"], second["noise"]]), batch["noise"])
        assert torch.equal(torch.cat([first["eo"], second["eo"]]), batch["eo"])


def test_images_and_mask_are_cropped_and_turned_alike(source):
    """Where the mask and the SAR image are made of the EO image, they still are after augmentation."""
    rows = load_pairs(source)
    pairs = samples(source, crop_size=16)
    seen = set()
    for number in range(40):
        sample = pairs[(number % len(rows), number)]
        plain = TrainingPairs(rows, SAR, EO_DISPLAY, crop_size=32, augment=False)[(number % len(rows), 0)]
        found = [
            (which, top, left)
            for which in range(FLIPS_AND_TURNS)
            for top in range(17)
            for left in range(17)
            if torch.equal(flip_and_turn(plain["sar"][:, top : top + 16, left : left + 16], which), sample["sar"])
        ]
        assert len(found) == 1
        which, top, left = found[0]
        assert torch.equal(flip_and_turn(plain["eo"][:, top : top + 16, left : left + 16], which), sample["eo"])
        seen.add(which)
    assert len(seen) > 4


def test_one_invalid_pixel_makes_its_latent_pixel_invalid():
    mask = torch.ones(1, 8, 8)
    mask[0, 5, 2] = 0
    pooled = pool_mask(mask, 4)
    assert pooled.tolist() == [[[1, 1], [0, 1]]]


def test_a_crop_larger_than_the_image_names_the_pair():
    with pytest.raises(ValueError, match="pair lake is 8 x 9, smaller than crop_size 16"):
        random_crop({"eo": torch.zeros(3, 8, 9)}, 16, np.random.default_rng(0), "lake")


def test_times_cover_the_schedule_and_noise_is_gaussian(source):
    pairs = samples(source)
    drawn = [pairs.noise(np.random.default_rng([0, number]), number) for number in range(400)]
    times = [item["timestep"] for item in drawn]
    noise = torch.stack([item["noise"] for item in drawn])
    assert min(times) < 50 and max(times) >= 950 and abs(np.mean(times) - 500) < 50
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("units", ["db", "power"])
@pytest.mark.parametrize("form", ["int16 scaled", "offset", "nodata", "zero", "fill"])
def test_a_tiff_means_the_same_in_training_and_as_a_scene(form, units, tmp_path):
    """Scale, offset, nodata and values that are no measurements, read as a pair and as a scene."""
    db = np.random.default_rng(0).uniform(-24, -3, (16, 16)).astype(np.float32)
    values, profile, scale, offset = db if units == "db" else 10 ** (db / 10), {}, 1, 0
    if form == "int16 scaled":
        scale = 0.01 if units == "db" else 1e-4
        values = np.rint(values / scale).astype(np.int16)
    elif form == "offset":
        values, offset = values + 30, -30
    elif form == "nodata":
        values[3:5, :7], profile = -32768, {"nodata": -32768}
    else:
        values[3:5, :7] = 0 if form == "zero" else -9999
    path = tmp_path / "sar.tif"
    shape = {"count": 1, "height": 16, "width": 16, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as raster:
        raster.write(values, 1)
        raster.scales, raster.offsets = [scale], [offset]
    transform = {"units": units, "range": [-25.0, 0.0], "channels": [0, 0, 0]}
    scene, valid = SarRaster(path, transform, ReadOptions(units=units)).read(Box(0, 0, 16, 16))
    eo = io.BytesIO()
    PIL.Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(eo, "PNG")
    row = {"id": "x", "sar": {"bytes": path.read_bytes(), "path": None}, "eo": {"bytes": eo.getvalue(), "path": None}}
    tensors = pair_to_tensors(read_pair(row), transform, EO_DISPLAY)
    mask = tensors["mask"][0].numpy() > 0 if "mask" in tensors else np.ones((16, 16), bool)
    np.testing.assert_array_equal(mask, valid)
    assert mask.sum() == (256 if form in ("int16 scaled", "offset") else 242)
    np.testing.assert_array_equal(tensors["sar"].numpy()[:, mask], scene[:, mask])
    assert np.abs((tensors["sar"].numpy()[0] + 1) / 2 * 25 - 25 - db)[mask].max() < (0.1 if units == "power" else 0.01)


def test_pairs_with_and_without_a_mask_share_a_batch(tmp_path):
    folder = write_pairs(tmp_path, 4, size=32)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    mask = np.full((32, 32), 255, np.uint8)
    mask[3, 3] = 0
    PIL.Image.fromarray(mask).save(folder / "mask.png")
    lines[0]["mask_file_name"] = "mask.png"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (batch,) = take(training_loader(samples(tmp_path, crop_size=32), batch_size=4), 1)
    assert batch["mask"].shape == (4, 1, 32, 32)
    assert sorted((1 - batch["mask"]).sum((1, 2, 3)).tolist()) == [0, 0, 0, 1]
