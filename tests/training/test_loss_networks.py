"""A model says which networks stand in its losses and in those of all that it comes from, wherever its folder goes."""

import shutil
from pathlib import Path

import pytest
import yaml

from c_diffset.evaluation.evaluate import evaluate
from c_diffset.history import HISTORY, read_loss_networks, write_history
from c_diffset.synthetic.generate import write_pairs
from c_diffset.training.config import DataConfig, DecoderConfig, FinetuneConfig, ModelConfig, SmallUNetConfig
from c_diffset.training.distill_config import DistillConfig, EndToEndConfig
from c_diffset.training.run import save_config
from tests.conftest import tiny_taesd

DATA = DataConfig(source="pairs")
UNET = SmallUNetConfig([8, 16])


def write_model(root: Path, name: str, kind: type, **settings) -> str:
    """The folder of a model that a run with these settings wrote, without its weights."""
    folder = root / name / "pipeline"
    folder.mkdir(parents=True)
    config = kind(output_dir=str(root / name), data=DATA, **settings)
    save_config(config, root / name / "config.yaml")
    write_history(folder, config, updates=4)
    return str(folder)


def test_networks_are_inherited_from_all_that_a_model_comes_from(tmp_path):
    plain = write_model(tmp_path, "plain", DecoderConfig, base="taesd", lpips_weight=0)
    decoder = write_model(tmp_path, "decoder", DecoderConfig, base=plain, lpips_net="vgg")
    teacher = write_model(tmp_path, "teacher", FinetuneConfig, model=ModelConfig(vae=decoder, unet=UNET))
    terms = EndToEndConfig(lpips_weight=1.0)
    student = write_model(tmp_path, "student", DistillConfig, teacher=teacher, method="end_to_end", end_to_end=terms)
    other = write_model(tmp_path, "other", DistillConfig, teacher=teacher, end_to_end=terms)
    tuned = write_model(tmp_path, "tuned", FinetuneConfig, model=ModelConfig(base=student, vae=plain))
    found = {Path(folder).parent.name: read_loss_networks(folder) for folder in (plain, decoder, student, other, tuned)}
    assert found == {
        "plain": [],
        "decoder": ["lpips_vgg"],
        "student": ["lpips_squeeze", "lpips_vgg"],
        "other": ["lpips_vgg"],
        "tuned": ["lpips_squeeze", "lpips_vgg"],
    }
    shutil.move(student, tmp_path / "alone")
    assert read_loss_networks(tmp_path / "alone") == found["student"]


def test_models_of_earlier_versions_are_known_by_their_settings(tmp_path):
    decoder = write_model(tmp_path, "decoder", DecoderConfig, base="taesd")
    student = write_model(tmp_path, "student", FinetuneConfig, model=ModelConfig(vae=decoder, unet=UNET))
    told = yaml.safe_load(Path(decoder, HISTORY).read_text())
    del told["loss_networks"]
    Path(decoder, HISTORY).write_text(yaml.safe_dump(told))
    assert read_loss_networks(decoder) == ["lpips_squeeze"]
    Path(student, HISTORY).unlink()
    assert read_loss_networks(student) == ["lpips_squeeze"], "the settings of the run around it tell"
    assert read_loss_networks(tmp_path) == read_loss_networks("") == read_loss_networks("no folder") == []


def test_a_circle_of_runs_ends(tmp_path):
    first = write_model(tmp_path, "first", FinetuneConfig, model=ModelConfig(unet=UNET))
    second = write_model(tmp_path, "second", FinetuneConfig, model=ModelConfig(base=first))
    circle = FinetuneConfig(output_dir="x", data=DATA, model=ModelConfig(base=second))
    save_config(circle, tmp_path / "first/config.yaml")
    for folder in (first, second):
        Path(folder, HISTORY).unlink()
    assert read_loss_networks(second) == []


@pytest.mark.parametrize(
    "change",
    [
        {"loss_networks": 3},
        {"loss_networks": ["<b>"]},
        {"loss_networks": ["x" * 99]},
        {"loss_networks": ["lpips"] * 99},
        {"loss_networks": None, "settings": {"lpips_weight": 1, "lpips_net": "../x"}},
        {"loss_networks": None, "settings": {"lpips_weight": "1"}},
    ],
)
def test_what_no_training_wrote_is_refused_in_one_line(change, tmp_path):
    folder = write_model(tmp_path, "run", DecoderConfig, base="taesd")
    told = yaml.safe_load(Path(folder, HISTORY).read_text())
    Path(folder, HISTORY).write_text(yaml.safe_dump(told | change))
    with pytest.raises(ValueError, match=rf"^{folder}/{HISTORY}: [^\n]*expected [^\n]*$"):
        read_loss_networks(folder)


def test_figures_of_such_a_model_are_marked(make_pipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("c_diffset.evaluation.instruments.load_lpips", lambda net, *_: random_lpips(net))
    write_pairs(tmp_path / "pairs", 2, size=32, split="test")
    make_pipe("tiny").save_pretrained(tmp_path / "model")
    tiny_taesd().save_pretrained(tmp_path / "vae")
    write_history(tmp_path / "vae", DecoderConfig(output_dir="x", data=DATA, base="taesd"), 4)
    options = dict(download=False, num_inference_steps=1)
    assert evaluate(str(tmp_path / "model"), tmp_path / "pairs", **options).marks == {}
    report = evaluate(
        str(tmp_path / "model"), tmp_path / "pairs", vae=str(tmp_path / "vae"), output=tmp_path / "out", **options
    )
    assert report.loss_networks == ["lpips_squeeze"]
    assert set(report.marks) == {"lpips_squeeze", "fid_lpips_squeeze", "kid_lpips_squeeze"}
    printed, page = capsys.readouterr().out, (tmp_path / "out/report.html").read_text()
    assert "\nlpips_squeeze *" in printed and "\npsnr  " in printed and report.marks["lpips_squeeze"] in printed
    assert report.marks["lpips_squeeze"] in page
    alex = evaluate(str(tmp_path / "model"), tmp_path / "pairs", vae=str(tmp_path / "vae"), lpips_net="alex", **options)
    assert "of the same kind, lpips_squeeze" in alex.marks["kid_lpips_alex"]


def random_lpips(net: str):
    import lpips

    return lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False).eval()
