"""Folders: written, read, read without the package, put together by hand, uploaded, and refused."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file

from c_diffset.pipelines import pipeline_cdiffset
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from tests.helpers import DTYPE

every_space = pytest.mark.parametrize("space", ["kl", "tiny", "pixel"])
CODE = Path(pipeline_cdiffset.__file__).read_text(encoding="utf-8")


def translate(pipe: CDiffSETPipeline, sar, **options):
    """Run with fixed noise, to arrays."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(sar, **{"generator": torch.Generator().manual_seed(0), "output_type": "np"} | options)


def assert_same(first, second, tolerance: float = 0) -> None:
    for key in ("images", "confidence", "variance", "latents"):
        np.testing.assert_allclose(first[key], second[key], rtol=0, atol=tolerance)


def weights(folder: Path) -> set[str]:
    """Names of the weight files below a folder."""
    return {file.name for file in folder.rglob("*") if file.suffix in (".safetensors", ".bin")}


@every_space
def test_round_trip(make_pipe, sar, tmp_path, space):
    transform = {"units": "display", "range": [0.1, 0.9], "channels": [0, 0, 0]}
    pipe = make_pipe(space, sar_transform=transform, confidence_timestep=300)
    pipe.save_pretrained(tmp_path / "model")
    loaded = CDiffSETPipeline.from_pretrained(tmp_path / "model")
    assert_same(translate(loaded, sar), translate(pipe, sar))
    for key in (
        "sar_transform",
        "confidence_timestep",
        "default_num_inference_steps",
        "prediction_type",
        "prompt_embeds",
    ):
        assert loaded.config[key] == pipe.config[key]
    assert isinstance(json.loads((tmp_path / "model/model_index.json").read_text())["_class_name"], str)
    assert (tmp_path / "model/pipeline.py").read_text(encoding="utf-8") == CODE


@every_space
def test_weights_are_aligned_in_memory(make_pipe, tmp_path, space):
    """Mapped safetensors start anywhere; matrix kernels of many CPUs add in another order there."""
    make_pipe(space).save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "model")
    as_it_is = UNet2DModel if space != "kl" else UNet2DConditionModel
    assert any(weight.data_ptr() % 64 for weight in as_it_is.from_pretrained(folder, subfolder="unet").parameters())
    for pipe in (
        CDiffSETPipeline.from_pretrained(folder),
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True),
    ):
        parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        assert all(weight.data_ptr() % 64 == 0 for part in parts for weight in (*part.parameters(), *part.buffers()))
    other = as_it_is.from_pretrained(folder, subfolder="unet")
    pipe.register_modules(unet=other)
    assert all(weight.data_ptr() % 64 == 0 for weight in other.parameters())


def test_the_text_encoder_is_optional_once_the_prompt_is_embedded(make_pipe, sar, tmp_path):
    pipe = make_pipe("kl")
    pipe.save_pretrained(tmp_path / "full")
    slim = CDiffSETPipeline.from_pretrained(tmp_path / "full", text_encoder=None, tokenizer=None)
    assert slim.text_encoder is None and slim.tokenizer is None
    assert_same(translate(slim, sar), translate(pipe, sar))
    slim.save_pretrained(tmp_path / "slim")
    assert {path.name for path in (tmp_path / "slim").iterdir()} == {
        "model_index.json",
        "pipeline.py",
        "scheduler",
        "unet",
        "vae",
    }
    assert_same(translate(CDiffSETPipeline.from_pretrained(tmp_path / "slim"), sar), translate(pipe, sar))


@every_space
def test_variant_and_precision(make_pipe, sar, tmp_path, space):
    pipe = make_pipe(space).to(torch.float16)
    pipe.save_pretrained(tmp_path / "model", variant="fp16")
    assert weights(tmp_path / "model") and all(".fp16." in name for name in weights(tmp_path / "model"))
    loaded = CDiffSETPipeline.from_pretrained(tmp_path / "model", variant="fp16", **{DTYPE: torch.float16})
    assert loaded.unet.dtype == torch.float16
    assert_same(translate(loaded, sar), translate(pipe, sar))


LOAD_ELSEWHERE = """
import sys
sys.modules["c_diffset"] = None  # importing it fails
import numpy as np, torch
from diffusers import DiffusionPipeline
folder, again, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
sar = np.arange(256, dtype=np.uint8).reshape(16, 16)
output = pipe(sar, generator=torch.Generator().manual_seed(0), output_type="np")
np.savez(out, images=output.images, confidence=output.confidence, variance=output.variance, latents=output.latents)
pipe.save_pretrained(again)
"""


@pytest.mark.slow
def test_the_folder_works_where_the_package_is_not_installed(make_pipe, tmp_path):
    pipe = make_pipe("kl")
    pipe.save_pretrained(tmp_path / "model")
    expected = translate(pipe, np.arange(256, dtype=np.uint8).reshape(16, 16))
    names = [str(tmp_path / name) for name in ("model", "again", "out.npz")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-I", "-c", LOAD_ELSEWHERE, *names], cwd=tmp_path, env=environment, check=True)

    with np.load(tmp_path / "out.npz") as found:
        assert_same(found, expected, tolerance=1e-6)
    assert (tmp_path / "again/pipeline.py").read_text(encoding="utf-8") == CODE
    loaded = CDiffSETPipeline.from_pretrained(tmp_path / "again")
    assert loaded.config.prompt_embeds == pipe.config.prompt_embeds


def test_a_unet_folder_of_the_reference_shape_is_used_unchanged(make_pipe, sar, tmp_path):
    """A stock `UNet2DConditionModel`, 8 in and 5 out, as fine-tuning code outside this project writes it."""
    source = make_pipe("kl")
    source.unet.save_pretrained(tmp_path / "unet")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    pipe = make_pipe("kl", unet=unet)
    assert (unet.config.in_channels, unet.config.out_channels) == (8, 5) and pipe.predicts_variance
    assert_same(translate(pipe, sar), translate(source, sar))


def test_a_folder_put_together_by_hand(make_pipe, sar, tmp_path):
    """Components saved one by one and an index without any setting of ours; an old setting is ignored."""
    pipe = make_pipe("kl")
    index = {"_class_name": "CDiffSETPipeline", "_diffusers_version": "0.30.0", "some_old_setting": 3}
    libraries = {"unet": "diffusers", "vae": "diffusers", "scheduler": "diffusers"}
    for name in ("unet", "vae", "scheduler", "text_encoder", "tokenizer"):
        component = getattr(pipe, name)
        component.save_pretrained(tmp_path / name)
        index[name] = [libraries.get(name, "transformers"), type(component).__name__]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = CDiffSETPipeline.from_pretrained(tmp_path)
    assert loaded.config.sar_transform == {"units": "display", "range": [0.0, 1.0], "channels": [0, 0, 0]}
    assert loaded.config.default_num_inference_steps == 50
    assert_same(translate(loaded, sar, num_inference_steps=2), translate(pipe, sar), tolerance=1e-6)

    loaded.save_pretrained(tmp_path / "complete")
    slim = CDiffSETPipeline.from_pretrained(tmp_path / "complete", text_encoder=None, tokenizer=None)
    assert_same(translate(slim, sar, num_inference_steps=2), translate(pipe, sar), tolerance=1e-6)


def test_an_index_without_the_optional_components(make_pipe, sar, tmp_path):
    pipe = make_pipe("pixel")
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    kept = {key: value for key, value in index.items() if key not in ("vae", "text_encoder", "tokenizer")}
    (tmp_path / "model_index.json").write_text(json.dumps(kept))
    assert_same(translate(CDiffSETPipeline.from_pretrained(tmp_path), sar), translate(pipe, sar))


class Canary:
    """Unpickling this makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("options", [{}, {"use_safetensors": False}, {"use_safetensors": None}])
@pytest.mark.parametrize(
    ("component", "pickled", "name"),
    [
        ("unet", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "pytorch_model.bin", "model.safetensors"),
    ],
)
def test_pickled_weights_are_refused(make_pipe, sar, tmp_path, component, pickled, name, options):
    pipe = make_pipe("kl")
    pipe.save_pretrained(tmp_path / "model")
    folder = tmp_path / "model" / component
    (folder / name).unlink()
    torch.save({"state": Canary(tmp_path / "ran")}, folder / pickled)
    with pytest.raises(
        OSError, match=f"{component}/{pickled} is a pickle.*expected {name}.*weights_only=True"
    ) as error:
        CDiffSETPipeline.from_pretrained(tmp_path / "model", **options)
    assert f"safetensors.torch.save_file(..., '{name}')" in str(error.value)
    assert not (tmp_path / "ran").exists()

    # converted as the message says
    state = {key: weight.contiguous() for key, weight in getattr(pipe, component).state_dict().items()}
    torch.save(state, folder / pickled)
    save_file(torch.load(folder / pickled, weights_only=True), folder / name, metadata={"format": "pt"})
    assert_same(translate(CDiffSETPipeline.from_pretrained(tmp_path / "model", **options), sar), translate(pipe, sar))


def test_a_component_that_is_given_is_not_read(make_pipe, sar, tmp_path):
    pipe = make_pipe("pixel")
    pipe.save_pretrained(tmp_path)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").rename(tmp_path / "unet/diffusion_pytorch_model.bin")
    assert_same(translate(CDiffSETPipeline.from_pretrained(tmp_path, unet=pipe.unet), sar), translate(pipe, sar))


def test_missing_weights_and_a_missing_folder(make_pipe, tmp_path):
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    (tmp_path / "model/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model.safetensors"):
        CDiffSETPipeline.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="nowhere"):
        CDiffSETPipeline.from_pretrained(f"{tmp_path}/nowhere")


def test_settings_of_a_damaged_index_are_refused(make_pipe, tmp_path):
    make_pipe("kl").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for change, message in (
        ({"sar_transform": {"units": "dB"}}, "'dB'"),
        ({"prompt_embeds": {"shape": [1, 9, 8], "float32": "AAAA"}}, "prompt_embeds cannot be read"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(ValueError, match=message):
            CDiffSETPipeline.from_pretrained(tmp_path)


def test_weights_are_never_pickled(make_pipe, tmp_path):
    with pytest.raises(ValueError, match="weights are only written as safetensors"):
        make_pipe("pixel").save_pretrained(tmp_path, safe_serialization=False)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as an upload uses; keeps the files that it is sent."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            answer = {"files": [file | {"shouldIgnore": False, "oid": None} for file in files]}
        elif self.path.endswith("/commit/main"):
            rows = [json.loads(line) for line in body.splitlines()]
            sent = [row["value"] for row in rows if row["key"] == "file"]
            self.server.files |= {file["path"]: base64.b64decode(file["content"]) for file in sent}
            answer = {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": self.server.url + "/me/model/commit/" + "0" * 40,
            }
        else:
            answer = {"url": self.server.url + "/me/model", "warnings": [], "errors": []}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.url = {}, f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


UPLOAD = """
import sys
from pathlib import Path
from c_diffset import CDiffSETPipeline
folder, again = sys.argv[1:]
pipe = CDiffSETPipeline.from_pretrained(folder)
{call}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "readme"),
    [
        ("pipe.push_to_hub('me/model')", None),
        ("pipe.save_pretrained(Path(again), push_to_hub=True, repo_id='me/model')", b"ours"),
    ],
)
def test_an_upload_is_complete_and_leaves_the_readme_alone(make_pipe, tmp_path, hub, call, readme):
    make_pipe("pixel").save_pretrained(tmp_path / "model")
    (tmp_path / "again").mkdir()
    (tmp_path / "again/README.md").write_bytes(b"ours")
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_none", "HF_HOME": str(tmp_path / "home")}
    root = Path(pipeline_cdiffset.__file__).parents[2]
    names = [str(tmp_path / name) for name in ("model", "again")]
    command = [sys.executable, "-c", UPLOAD.format(call=call), *names]
    subprocess.run(command, cwd=root, env=os.environ | environment, check=True)
    written = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert {"pipeline.py", "model_index.json", "unet/diffusion_pytorch_model.safetensors"} <= written
    assert set(hub.files) - {"README.md"} == written
    assert hub.files["pipeline.py"].decode() == CODE
    assert hub.files.get("README.md") == readme


def test_scheduler_settings_travel(make_pipe, tmp_path):
    make_pipe("pixel").save_pretrained(tmp_path)
    scheduler = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert scheduler.config.timestep_spacing == "trailing" and not scheduler.config.clip_sample
