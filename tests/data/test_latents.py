"""The latent cache."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from c_diffset.data.batches import FLIPS_AND_TURNS, flip_and_turn, pair_to_tensors
from c_diffset.data.latents import CachedPairs, build_latent_cache, fingerprint
from c_diffset.data.pairs import load_pairs, read_pair
from c_diffset.synthetic.generate import write_pairs


@pytest.fixture
def source(tmp_path):
    """Three pairs of 32 px; the first has a mask."""
    folder = write_pairs(tmp_path / "pairs", 3, size=32)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    mask = np.full((32, 32), 255, np.uint8)
    mask[3, 30] = 0
    PIL.Image.fromarray(mask).save(folder / "mask.png")
    lines[0]["mask_file_name"] = "mask.png"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "pairs"


@pytest.mark.parametrize("space", ["kl", "tiny"])
def test_cached_latents_are_those_of_the_turned_images(make_pipe, source, tmp_path, space):
    pipe, rows = make_pipe(space), load_pairs(source)
    cache = build_latent_cache(pipe, rows, tmp_path / "cache")
    cached = CachedPairs(cache, crop_size=32, factor=2, channels=4, seed=5)
    tensors = pair_to_tensors(read_pair(rows[1]), pipe.config.sar_transform, pipe.config.eo_transform)
    seen = set()
    for number in range(16):
        sample = cached[(1, number)]
        options = []
        for which in range(FLIPS_AND_TURNS):
            turned = {key: flip_and_turn(image, which) for key, image in tensors.items()}
            latents = {key: pipe.encode(image[None])[0] for key, image in turned.items()}
            if all(torch.allclose(sample[key], latents[key], rtol=1e-3, atol=2e-3) for key in ("sar", "eo")):
                options.append(which)
        assert len(options) == 1
        seen |= set(options)
    assert len(seen) > 3


def test_masks_are_pooled_and_turned_with_the_images(make_pipe, source, tmp_path):
    cache = build_latent_cache(make_pipe("tiny"), load_pairs(source), tmp_path / "cache")
    plain = CachedPairs(cache, crop_size=32, factor=2, channels=4, augment=False)[(0, 0)]["mask"]
    assert plain.shape == (1, 16, 16) and plain.sum() == 255 and plain[0, 1, 15] == 0
    assert "mask" not in CachedPairs(cache, crop_size=32, factor=2, channels=4)[(1, 0)]


def test_the_fingerprint_follows_what_latents_depend_on(make_pipe, source):
    pipe, rows = make_pipe("tiny"), load_pairs(source)
    prints = [fingerprint(pipe, rows), fingerprint(pipe, rows, torch.bfloat16)]
    assert fingerprint(pipe, load_pairs(source)) == prints[0]
    other = {"units": "display", "range": [0.0, 0.5], "channels": [0, 0, 0]}
    prints.append(fingerprint(make_pipe("tiny", sar_transform=other), rows))
    prints.append(fingerprint(make_pipe("tiny", eo_transform={"units": "display", "range": [0.0, 0.5]}), rows))
    with torch.no_grad():
        next(pipe.vae.parameters()).add_(1e-3)
    prints.append(fingerprint(pipe, rows))
    shutil.copy(source / "train/eo/0001.png", source / "train/eo/0002.png")
    prints.append(fingerprint(pipe, load_pairs(source)))
    assert len(set(prints)) == len(prints)


def test_a_cache_is_built_once_and_a_failed_one_leaves_nothing(make_pipe, source, tmp_path):
    pipe, rows = make_pipe("tiny"), load_pairs(source)
    cache = build_latent_cache(pipe, rows, tmp_path / "cache")
    stamp = (cache / "latents.bin").stat().st_mtime_ns
    assert build_latent_cache(pipe, rows, tmp_path / "cache") == cache
    assert (cache / "latents.bin").stat().st_mtime_ns == stamp
    (source / "train/sar/0002.png").write_bytes(b"broken")
    with pytest.raises(OSError, match=r"0002\.png"):
        build_latent_cache(pipe, load_pairs(source), tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_crop_larger_than_the_image_names_the_pair(make_pipe, source, tmp_path):
    cache = build_latent_cache(make_pipe("tiny"), load_pairs(source), tmp_path / "cache")
    with pytest.raises(ValueError, match="pair .* is 32 x 32, smaller than crop_size 64"):
        CachedPairs(cache, crop_size=64, factor=2, channels=4)[(0, 0)]


def test_a_damaged_cache_is_named(make_pipe, source, tmp_path):
    cache = build_latent_cache(make_pipe("tiny"), load_pairs(source), tmp_path / "cache")
    index, latents = (cache / "index.json").read_text(), (cache / "latents.bin").read_bytes()
    for text, content in (
        (index, latents[:-100]),
        (index, b""),
        ("", latents),
        (index[:-5], latents),
        ("{}", b""),
        ("[3]", latents),
        (index.replace('"offset"', '"place"'), latents),
    ):
        (cache / "index.json").write_text(text)
        (cache / "latents.bin").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged: remove it, and it is built again"):
            CachedPairs(cache, crop_size=32, factor=2, channels=4)
