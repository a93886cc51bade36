"""Over the wire with the real client: whole or not at all, repeatable, and never over something else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from c_diffset import write_pairs
from c_diffset.commands import finetune
from c_diffset.hub.publish import publish
from c_diffset.hub.publish_pairs import publish_pairs
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.config import DataConfig, FinetuneConfig, ModelConfig, SmallUNetConfig, ValidationConfig
from tests.hub.conftest import REPO, change_json, names_below, save_model, translate
from tests.hub.server import TOKEN

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


@pytest.mark.slow
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
    root = Path(__file__).parents[2]
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


@pytest.mark.slow
def test_training_publishes_its_result(hub, tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    write_pairs(tmp_path / "pairs", 2, size=32, split="train")
    config = FinetuneConfig(
        output_dir=str(tmp_path / "run"),
        model=ModelConfig(
            unet=SmallUNetConfig(block_out_channels=[8, 32], layers_per_block=1),
            sar_transform={"units": "display", "range": [0.0, 1.0], "channels": [0]},
            default_num_inference_steps=1,
        ),
        data=DataConfig(source=str(tmp_path / "pairs"), crop_size=16, validation_split=None),
        validation=ValidationConfig(every=0),
        max_steps=2,
        batch_size=1,
        push_to_hub=REPO,
        push_private=True,
    )
    with monkeypatch.context() as context:
        context.delenv("HF_TOKEN")
        with pytest.raises(PermissionError, match="no token"):  # before any work
            finetune(config)
    assert not (tmp_path / "run/pipeline").exists() and not hub.calls
    hub.drop = {"commit": 0}
    stays = "Nothing was committed.*The training is complete, and stays in .*: publish it with `c-diffset publish .*"
    with pytest.raises(OSError, match=stays):
        finetune(config)
    hub.drop = {}
    folder = finetune(config)  # there is nothing left to train
    repo = hub.model(REPO)
    assert repo.private and {"README.md", "mlm.json", "pipeline.py", "model_index.json"} <= set(repo.files)
    assert repo.files["unet/config.json"] == (folder / "unet/config.json").read_bytes()
    card = repo.files["README.md"].decode()
    assert "2 updates" in card and "trained from scratch" in card and str(tmp_path) not in card


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
