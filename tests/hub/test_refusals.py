"""What is refused before anything is sent."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from c_diffset.hub.publish import publish
from c_diffset.hub.publish_pairs import check_push
from c_diffset.loading import model_revision
from tests.hostile import bounded
from tests.hub.conftest import REPO, change_json, evaluation_of, save_model, write_reports, write_run


def change_weights(folder: Path, change) -> None:
    """Change the first tensor of a component, or leave it out."""
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = change(tensors[name])
    save_file({key: x for key, x in tensors.items() if x is not None}, path, metadata={"format": "pt"})


BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 99))


def write_log(model: Path, line: str) -> None:
    write_run(model.parent)
    (model.parent / "metrics.jsonl").write_text(f"{line}\n")


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
            "unet is .'my_models', 'UNet'., expected UNet2DConditionModel",
        ),
        (link_away, ValueError, "more.txt is a link to .*secret.txt, outside the folder"),
        (
            lambda model: change_json(model / "model_index.json", vae="x"),
            ValueError,
            "vae is 'x', expected AutoencoderKL or AutoencoderTiny",
        ),
        (lambda model: change_weights(model / "unet", lambda x: None), ValueError, "lacks the tensor"),
        (lambda model: change_weights(model / "vae", lambda x: x * np.nan), ValueError, "vae: .* holds NaN"),
        (
            lambda model: (model / "vae/diffusion_pytorch_model.safetensors.index.json").write_text(
                '{"weight_map": [1]}'
            ),
            ValueError,
            "has no weight_map",
        ),
        (lambda model: (model / "model_index.json").write_text("[]"), ValueError, "holds a list"),
        (lambda model: (model / "model_index.json").write_text("[" * 99999), ValueError, "is not JSON"),
        (
            lambda model: change_json(model / "model_index.json", unet=[["a"], {}]),
            ValueError,
            r"unet is .{3}a'\], \{\}\], expected",
        ),
        (
            lambda model: change_json(model / "model_index.json", scheduler=None),
            FileNotFoundError,
            "names no scheduler",
        ),
        (lambda model: change_json(model / "model_index.json", sar_transform=[]), ValueError, "cannot be loaded"),
        (lambda model: change_json(model / "model_index.json", prompt_embeds={"a": 1}), ValueError, "cannot be loaded"),
        (
            lambda model: change_json(model / "model_index.json", default_num_inference_steps="many"),
            ValueError,
            "default_num_inference_steps is 'many': expected a whole number",
        ),
        (lambda model: (model.parent / "config.yaml").write_text("a: [1"), ValueError, "config.yaml: this is not YAML"),
        (lambda model: (model.parent / "config.yaml").write_text(""), ValueError, "config.yaml holds NoneType"),
        (lambda model: (model.parent / "config.yaml").write_text("- a"), ValueError, "config.yaml holds list"),
        (lambda model: (model.parent / "config.yaml").write_text(BOMB), ValueError, "has the alias"),
        (
            lambda model: (model.parent / "config.yaml").write_text("a: " + "[" * 9999),
            ValueError,
            "more than 30 levels deep",
        ),
        (lambda model: write_log(model, "step 1"), ValueError, "metrics.jsonl: expected the log of a training run"),
        (lambda model: write_log(model, '{"step": 1e999}'), ValueError, "metrics.jsonl: expected the log"),
        (lambda model: write_log(model, "[" * 9999), ValueError, "metrics.jsonl: expected the log"),
    ],
)
def test_unfit_folders(hub, model, spoil, error, message):
    spoil(model)
    with bounded(), pytest.raises(error, match=message) as raised:
        publish(model, REPO)
    assert "\n" not in str(raised.value)
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


def test_a_report_on_another_model_is_refused(hub, model, tmp_path):
    other = save_model(tmp_path / "other", tmp_path / "text", "pixel")
    report = tmp_path / "metrics.json"
    for content, message in (
        (evaluation_of(other), "is about .*other, with weights sha256:.*evaluate the folder that you publish"),
        (evaluation_of(model, weights=None), "with weights None"),
        (
            evaluation_of(model, autoencoder_weights="sha256:0"),
            "and autoencoder sha256:0, and not about .* and sha256:",
        ),
        (
            evaluation_of(model, weights=f"{model_revision(model)} with the autoencoder taesd"),
            "with the autoencoder taesd",
        ),
        (evaluation_of(model, mean=None), "mean is None: expected an object"),
        (evaluation_of(model, mean={"psnr": float("nan")}), "mean.psnr is nan: expected a finite number"),
        (evaluation_of(model, floors=[1]), "floors is .1.: expected an object"),
        (evaluation_of(model, left_out=[{"metric": "fid"}]), "left_out.0..reason is missing"),
        (evaluation_of(model, trust={"images": 3}), "trust.pixels is missing"),
        ({"psnr": 99}, "psnr is no key of it"),
        ([1], "holds a list"),
    ):
        report.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            publish(model, REPO, evaluation=report)
    with pytest.raises(FileNotFoundError, match="metrics.json is missing"):
        publish(model, REPO, evaluation=model)
    assert not hub.calls


def test_of_several_reports_none_or_two_on_this_model_are_refused(hub, model, tmp_path):
    other = evaluation_of(model, weights="sha256:0") | {"model": "runs/other"}
    again = [evaluation_of(model) | {"model": name} for name in ("runs/a", "runs/b")]
    for name, contents, message in (
        (
            "none",
            [other, other | {"model": "runs/more"}],
            "runs/other, with .* and runs/more, with .*evaluate the folder",
        ),
        ("two", [other, *again], "runs/a, with .*: 2 of them have the weights of .*name the folder of the report"),
    ):
        write_reports(tmp_path / name, contents)
        with pytest.raises(ValueError, match=message):
            publish(model, REPO, evaluation=tmp_path / name)
    assert not hub.calls


@pytest.mark.slow
def test_a_report_is_refused_without_assertions_too(model, tmp_path):
    """Python leaves assertions out under `-O`."""
    report = tmp_path / "metrics.json"
    report.write_text(json.dumps(evaluation_of(model, mean={"psnr": float("inf")})))
    code = f"from c_diffset.hub.publish import publish; publish({str(model)!r}, {REPO!r}, evaluation={str(report)!r}, "
    done = subprocess.run(
        [sys.executable, "-O", "-c", f"{code}dry_run={str(tmp_path / 'out')!r})"], capture_output=True, text=True
    )
    assert (
        done.returncode == 1
        and "mean.psnr is inf: expected a finite number" in done.stderr
        and not (tmp_path / "out").exists()
    )
