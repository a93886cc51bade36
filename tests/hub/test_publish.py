"""What is published: code, weights, card and `mlm.json`, complete, true and usable."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pystac
import pytest
import rasterio
import yaml
from datasets import Dataset
from huggingface_hub import DatasetCard, ModelCard
from pystac.validation import validate_dict

from c_diffset import write_pairs
from c_diffset.history import read_loss_networks, write_history
from c_diffset.hub.contents import publish_autoencoder, read_evaluation
from c_diffset.hub.licence import inherited_license
from c_diffset.hub.publish import publish
from c_diffset.hub.publish_pairs import pairs_card
from c_diffset.loading import load_autoencoder
from c_diffset.pipelines.pipeline_cdiffset import SOURCE, CDiffSETPipeline
from c_diffset.training.config import DataConfig, DecoderConfig, FinetuneConfig, ModelConfig
from c_diffset.training.run import save_config
from tests.conftest import tiny_taesd
from tests.hub.conftest import (
    CALIBRATION,
    EVALUATION,
    REPO,
    SAR,
    SD21,
    change_json,
    evaluation_of,
    names_below,
    translate,
    write_reports,
    write_run,
)
from tests.hub.markdown import foreign_parts, parts_of, shown_text


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
    assert "mark" in result["metrics"][1]["args"] and "mark" not in result["metrics"][0]["args"]
    assert result["metrics"][0]["args"]["convention"].startswith("data range 1")
    assert result["dataset"]["split"] == "test" and result["dataset"]["args"]["n"] == 2
    for words in (
        "synthetic: plausible, not observed",
        "display values",
        "Pixel size of the training data: 2.5 m",
        "psnr | 15.4000 | 15.8000 | 23.2000",
        "lpips * | 0.3780",
        "* marked: lpips (its network stands in a loss)",
        "Protocol: 2 images of sen12, split test",
        "left out: fid (w.pth is not in cache, offline)",
        "calibrated on 160 images of sen12, split validation",
        "exceeds 20 levels",
        "confidence | 3.210 (2.500 to 4.000) | 0.500 | - | -",
        "Calibration error of expected_error: 1.250 levels",
        "40 updates",
        "max_steps: 40",
        "[image grid.png]",
        "arXiv:2411.10788",
        (out / "checksums.sha256").read_text().split()[0],
    ):
        assert words in shown_text(card.text)
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
    assert [(band.name, band.expression) for band in sar.bands] == [
        ("VV", None),
        ("VH", None),
        ("VV - VH", "bands[0] - bands[1]"),
    ]
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
    assert "`VV - VH` from 0 to 20" in (out / "README.md").read_text()


def test_a_folder_without_code_gets_it_and_a_dry_run_replaces_nothing(model, tmp_path):
    (model / "pipeline.py").unlink()
    out = publish(model, REPO, dry_run=tmp_path / "out", pixel_size=10)
    assert (tmp_path / "out/pipeline.py").read_text() == SOURCE
    text = (tmp_path / "out/README.md").read_text()
    assert "Pixel size of the training data: 10 m" in text and "license: unknown" in text and "Not measured." in text
    with pytest.raises(FileExistsError, match="not an empty folder"):
        publish(model, REPO, dry_run=out)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


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


def test_the_card_says_what_black_and_white_stand_for(model, tmp_path):
    transform = {"units": "reflectance", "range": [[0, 2000], [0, 2500], [0, 3000]], "gamma": 2.2}
    change_json(model / "model_index.json", eo_transform=transform)
    publish(model, REPO, dry_run=tmp_path / "out")
    said = "black stands for 0 / 0 / 0 and white for 2000 / 2500 / 3000 (red / green / blue) in reflectance"
    assert said in shown_text((tmp_path / "out/README.md").read_text())
    item = json.loads((tmp_path / "out/mlm.json").read_text())
    assert item["properties"]["c_diffset:eo_transform"] == transform
    assert said in item["properties"]["mlm:output"][0]["description"]
    change_json(model / "model_index.json", eo_transform={"units": "reflectance", "range": [3000, 0]})
    with pytest.raises(ValueError, match="eo_transform"):
        publish(model, REPO, dry_run=tmp_path / "again")


def test_of_several_reports_the_card_has_that_of_its_model(model, tmp_path):
    own, other = evaluation_of(model), evaluation_of(model, weights="sha256:0", mean={"psnr": 9.0})
    write_reports(tmp_path / "two", [other, own])
    publish(model, REPO, evaluation=tmp_path / "two", dry_run=tmp_path / "out")
    assert "psnr | 15.4000" in shown_text(ModelCard.load(tmp_path / "out/README.md").text)
    twin = evaluation_of(model, mean={"psnr": 9.0}) | {"model": "runs/twin"}  # the same weights in another folder
    write_reports(tmp_path / "twins", [twin, own])
    assert read_evaluation(tmp_path / "twins", model).mean["psnr"] == own["mean"]["psnr"]


@pytest.mark.parametrize("when", ["before", "of another calibration", "of this one"])
def test_the_card_says_whether_its_calibration_was_judged(when, model, tmp_path, capsys):
    trust = dict(EVALUATION["trust"])
    if when == "before":
        del trust["expected_error"]
    own = "{data}, split {split}: {n} images".format(**CALIBRATION)
    calibrations = {"of another calibration": "others, split train: 3 images", "of this one": own}
    report = evaluation_of(model, trust=trust, calibration=calibrations.get(when))
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    publish(model, REPO, evaluation=tmp_path / "metrics.json", dry_run=tmp_path / "out")
    text = shown_text(ModelCard.load(tmp_path / "out/README.md").text)
    judged = when == "of this one"
    assert ("Calibration error of expected_error" in text) == judged
    assert ("The evaluation was made without this calibration" in text) != judged
    assert ("evaluate again" in capsys.readouterr().out) != judged


def test_reports_cannot_write_into_the_card(model, tmp_path):
    text = "test\n\n# Bought\n<script>alert(1)</script> | `a`"
    report = evaluation_of(model, split=text, conventions={"psnr": text}, data=text)
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    publish(model, REPO, evaluation=tmp_path / "metrics.json", dry_run=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert "# Bought" in shown_text(card.text) and not foreign_parts(card.text)


def test_settings_and_names_cannot_write_into_the_card(model, tmp_path):
    """Values that would close the code block, the table or the front matter, were they written as they are."""
    evil = "x\n```\n---\nlicense: mit\n---\n# Bought\n[free](https://evil.example) <img src=x onerror=alert(1)> | `a`"
    write_run(model.parent, model=ModelConfig(base="me/base"))
    settings = yaml.safe_load((model.parent / "config.yaml").read_text())
    settings["data"] |= {"source": evil, "split": evil, evil: evil}
    (model.parent / "config.yaml").write_text(yaml.safe_dump(settings | {"more": [evil, {evil: evil}]}))
    transform = {"units": "db", "range": [-30.0, 0.0], "channels": [0, 1, "0-1"], "bands": [evil, f"{evil}2"]}
    knots = CALIBRATION["steps"]["2"]
    calibration = CALIBRATION | {"data": evil, "split": evil, "n": evil, "steps": {"2": knots, evil: knots}}
    change_json(model / "model_index.json", sar_transform=transform, calibration=calibration)
    trust = EVALUATION["trust"] | {"uncertainties": {evil: EVALUATION["trust"]["uncertainties"]["confidence"]}}
    tables = {"mean": {evil: 1.5}, "floors": {evil: {evil: 1.0}}, "conventions": {evil: evil}}
    names = {"data": evil, "split": evil, "scheduler": evil, "split_against_train": [evil]}
    left_out = [{"metric": evil, "reason": evil}]
    report = evaluation_of(model, trust=trust, left_out=left_out, **tables, **names)
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    out = Path(publish(model, REPO, evaluation=tmp_path / "metrics.json", dry_run=tmp_path / "out"))

    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict().keys() == {
        "license",
        "library_name",
        "pipeline_tag",
        "base_model",
        "tags",
        "model-index",
    }
    assert card.data.license == "unknown" and card.data.base_model == "me/base"
    assert not foreign_parts(card.text)
    titles = [line for line in card.text.splitlines() if line.startswith("#")]
    assert [title for title in titles if "Bought" in title] == []
    python = [part.content for part in parts_of(card.text) if part.info == "python"]
    assert len(python) == 2 and all(compile(block, "card", "exec") for block in python)
    item = json.loads((out / "mlm.json").read_text())
    assert all("\n" not in band["name"] for band in item["properties"]["bands"])
    assert item["properties"]["mlm:input"][0]["bands"][2]["expression"] == "bands[0] - bands[1]"
    pair_card = pairs_card("me/pairs", "mit", {"train": Dataset.from_dict({"id": ["a"], evil: [1]})})
    assert not foreign_parts(DatasetCard(pair_card).text)


def test_settings_of_another_program_stay_at_home(model, tmp_path):
    (model.parent / "config.yaml").write_text("password: secret\ndata: {source: 3}\n")
    publish(model, REPO, dry_run=tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "secret" not in text and "The run's settings are not recorded." in text


def test_an_unfinished_line_of_the_log_does_not_count(model, tmp_path):
    write_run(model.parent)
    with open(model.parent / "metrics.jsonl", "a") as log:
        log.write('{"step": 5')
    publish(model, REPO, dry_run=tmp_path / "out")
    assert "40 updates" in (tmp_path / "out/README.md").read_text()


def test_an_autoencoder_alone(hub, tmp_path):
    folder = tmp_path / "run" / "vae"
    tiny_taesd().save_pretrained(folder)
    change_json(folder / "config.json", _name_or_path=str(tmp_path / "private"))
    publish_autoencoder(folder, REPO)
    repo = hub.model(REPO)
    assert set(repo.files) == {".gitattributes", "README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert not [content for content in repo.files.values() if b"private" in content]
    assert type(load_autoencoder(REPO)).__name__ == "AutoencoderTiny"
    publish_autoencoder(folder, REPO)
    assert len(repo.commits) == 2
    write_history(folder, DecoderConfig(output_dir="x", data=DataConfig(source="y"), base="taesd"), 4)
    publish_autoencoder(folder, REPO)
    assert b"lpips_squeeze" in repo.files["README.md"] and read_loss_networks(REPO) == ["lpips_squeeze"]
    repo.files["model_index.json"] = b"{}"
    with pytest.raises(ValueError, match="exists and holds model_index.json: choose another repository"):
        publish_autoencoder(folder, REPO)


@pytest.mark.parametrize("kill", [False, True])
def test_what_a_killed_publish_leaves_blocks_none(model, tmp_path, kill):
    """A dry run whose process is gone leaves a folder beside its target; one that somebody else made stays."""
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "README.md").write_text("half")
    if kill:
        (left / ".c_diffset").touch()
        publish(model, REPO, dry_run=tmp_path / "out")
        assert not left.exists() and (tmp_path / "out/README.md").is_file()
    else:
        with pytest.raises(FileExistsError, match="was not made by c_diffset"):
            publish(model, REPO, dry_run=tmp_path / "out")
        assert (left / "README.md").read_text() == "half"


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


def test_the_licence_follows_the_base(hub, model, tmp_path):
    change_json(model / "unet/config.json", _name_or_path=SD21)
    with pytest.raises(ValueError, match="'mit', but weights that come from Stable Diffusion 2 stay under 'openrail"):
        publish(model, REPO, license="mit")
    assert not hub.calls
    publish(model, REPO, dry_run=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out/README.md").data.license == "openrail++"


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


def test_a_known_base_of_other_weights_or_none_decides_the_licence(model, tmp_path):
    unet = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024}
    assert inherited_license(unet, ["stabilityai/sd-turbo"], shape_tells=False) is None
    publish(model, REPO, license="mit", base_model="stabilityai/sd-turbo", dry_run=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out/README.md").data.license == "mit"


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
