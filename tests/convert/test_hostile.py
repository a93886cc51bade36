"""Files that are no weights, wrong weights or traps: each is refused in one line, and nothing of it runs or stays."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from c_diffset.cli import main
from c_diffset.convert.adm import empty_unet, original_shapes
from c_diffset.convert.convert import convert
from c_diffset.convert.weights import check_names, shapes_of
from tests.conftest import tiny_vae
from tests.convert.originals import Adm, AdmUNet, shaken
from tests.hostile import bounded, outcome

SMALL = Adm(widths=(32, 64), blocks=1, attention=(1,))
MIDDLE = "middle_block.1.qkv.weight"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return shaken(AdmUNet(SMALL)).state_dict()


def refusal(source: Path, kind: str = "guided-diffusion", **options) -> str:
    """Why the file is refused; no folder is left."""
    out = source.with_name("out")
    text = outcome(convert, kind, str(source), str(out), **{"channels_per_head": 32} | options)
    assert isinstance(text, str), "it was converted"
    assert not list(source.parent.glob("*out*")), "a folder is left"
    return text


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "model.pt")
    return folder / "model.pt"


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old", [False, True], ids=["archive", "bare pickle"])
def test_code_in_a_pickle_does_not_run(old, weights, tmp_path):
    content = weights | {"trap": Trap(tmp_path / "trapped")}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not old)
    text = refusal(tmp_path / "model.pt")
    assert "without running code" in text or "torch 1.6" in text
    (tmp_path / "model.pt").write_bytes(pickle.dumps(content["trap"]))
    refusal(tmp_path / "model.pt")
    assert not (tmp_path / "trapped").exists()


def test_one_tensor_missing_or_renamed_is_named(weights, tmp_path):
    found, source = shapes_of(weights), tmp_path / "model.pt"

    def check(found: dict) -> str:
        unet = empty_unet(found, 32, 8)
        return outcome(check_names, found, original_shapes(unet), source, "ADM")

    assert check(found) is None
    for key in [*list(found)[::9], "out.2.bias", "input_blocks.0.0.weight"]:
        others = {name: shape for name, shape in found.items() if name != key}
        assert f"lacks {key}:" in check(others)
        assert f"lacks {key} and holds the unexpected '{key}_':" in check(others | {f"{key}_": found[key]})
    del weights[MIDDLE]
    assert f"{source} lacks {MIDDLE}:" in refusal(saved(tmp_path, weights))


def test_another_shape_is_named(weights, tmp_path):
    text = refusal(saved(tmp_path, weights | {MIDDLE: torch.zeros(191, 64, 1)}))
    assert f"holds {MIDDLE} in shape [191, 64, 1], not [192, 64, 1]" in text


def test_weights_of_another_kind_are_named(weights, tmp_path):
    source = saved(tmp_path, weights)
    assert "lacks down_blocks.0" in (text := refusal(source, "acd")) and "time_embed.0.weight" in text
    assert "guided-diffusion" in (text := refusal(saved(tmp_path, {"conv_in.weight": torch.ones(3)})))
    assert "conv_in.weight" in text


def test_what_is_not_supported_says_so(weights, tmp_path):
    learnt = shaken(AdmUNet(Adm(**vars(SMALL) | {"writes": 6}))).state_dict()
    assert "learn_sigma" in refusal(saved(tmp_path, learnt))
    assert "class_cond" in refusal(saved(tmp_path, weights | {"label_emb.weight": torch.ones(1000, 128)}))
    assert "512 pixels" in refusal(saved(tmp_path, weights | {"time_embed.0.weight": torch.ones(128, 64)}))
    assert "does not divide" in refusal(saved(tmp_path, weights), channels_per_head=48)
    for option in ({"size": 0}, {"num_train_timesteps": 1}, {"num_inference_steps": 0}, {"kind": "other"}):
        assert next(iter(option)) in refusal(saved(tmp_path, weights), **option)


def test_damaged_files(weights, tmp_path):
    whole = saved(tmp_path, weights).read_bytes()
    for content in (b"", b"PK", whole[:100], whole[: len(whole) // 2], whole[:-10], b"x" * 1000):
        (tmp_path / "model.pt").write_bytes(content)
        assert "model.pt" in refusal(tmp_path / "model.pt")
        (tmp_path / "model.safetensors").write_bytes(content)
        assert "damaged" in refusal(tmp_path / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors")
    part = (tmp_path / "model.safetensors").read_bytes()[:-1000]
    (tmp_path / "model.safetensors").write_bytes(part)
    assert "damaged" in refusal(tmp_path / "model.safetensors")


def test_small_files_that_would_fill_the_memory(weights, tmp_path):
    one = torch.zeros(1)
    wide = {"input_blocks.0.0.weight": one.expand(10**6, 10**6)}
    many = {f"input_blocks.{number}.0.in_layers.0.weight": one for number in range(10_001)}
    for content in (wide, many, weights | {MIDDLE: one.expand(192, 64, 1)}):
        assert "stored once" in refusal(saved(tmp_path, content))
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**25))
    assert "larger than the file" in refusal(packed)
    deep = io.BytesIO()
    with zipfile.ZipFile(deep, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"(" * 10**5 + b"]" * 10**5 + b".")
        archive.writestr("archive/version", b"3\n")
    packed.write_bytes(deep.getvalue())
    refusal(packed)


@pytest.mark.parametrize("value", [[1], "text", 1, {}, {"state_dict": {}}, {1: torch.zeros(1)}], ids=repr)
def test_what_holds_no_state_dict(value, tmp_path):
    assert "expected" in refusal(saved(tmp_path, value))


def test_values_that_are_no_numbers(weights, tmp_path):
    shape, whole = (192, 64, 1), torch.zeros(192, 64, 1)
    wrong = [torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, device="meta")]
    for tensor in [*wrong, whole.to_sparse(), whole.to(torch.float8_e4m3fn), whole.to(torch.complex64)]:
        assert MIDDLE in refusal(saved(tmp_path, weights | {MIDDLE: tensor}))
    save_file(weights | {MIDDLE: whole.to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    assert MIDDLE in refusal(tmp_path / "model.safetensors")


def test_files_of_others_stay(weights, tmp_path, capsys):
    source, out = saved(tmp_path, weights), tmp_path / "mine"
    out.mkdir()
    (out / "LICENSE").write_text("mine")
    assert main(["convert", "guided-diffusion", str(source), str(out), "--channels_per_head", "32"]) == 2
    assert "not an empty folder" in capsys.readouterr().err and [path.name for path in out.iterdir()] == ["LICENSE"]
    assert main(["convert", "guided-diffusion", str(tmp_path / "absent.pt"), str(tmp_path / "new")]) == 2
    assert "absent.pt is missing" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_folder_names_its_weights(weights, tmp_path):
    folder = tmp_path / "cell"
    folder.mkdir()
    assert "holds no weights" in refusal(folder)
    for name in ("ema_0.9999_050000.pt", "model050000.pt"):
        torch.save(weights, folder / name)
    assert "2 files of weights" in refusal(folder)


@pytest.mark.parametrize("kind", ["acd", "c-diffset"])
def test_a_config_that_makes_no_sense(kind, tmp_path):
    folder, base = tmp_path / "cell", tmp_path / "base"
    folder.mkdir()
    save_file({"conv_in.weight": torch.zeros(32, 4, 3, 3)}, folder / "model.safetensors")
    tiny_vae().save_pretrained(base / "vae")
    for settings in ("{", "[]", '{"block_out_channels": [1e12]}', '{"layers_per_block": 1000000}', '{"act_fn": []}'):
        (folder / "config.json").write_text(settings)
        assert "config.json" in refusal(folder, kind, base=str(base))
    (folder / "config.json").write_text("{}")
    assert "lacks" in refusal(folder, kind, base=str(base))


def test_half_precision_and_wrappers_are_read(weights, tmp_path):
    half = {f"module.{name}": weight.half() for name, weight in weights.items()}
    with bounded():
        convert(
            "guided-diffusion", str(saved(tmp_path, {"state_dict": half})), str(tmp_path / "out"), channels_per_head=32
        )
