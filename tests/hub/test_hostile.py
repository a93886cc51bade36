"""Whatever the files around a pipeline hold: a refusal of one line, or a card in which all of it is mere text."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c_diffset.history import read_ancestors
from c_diffset.hub.card import Facts, model_card
from c_diffset.hub.checks import INDEX, hub_ids
from c_diffset.hub.contents import read_evaluation
from c_diffset.hub.markdown import code, text
from c_diffset.hub.publish import publish
from c_diffset.hub.run import read_run
from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline
from c_diffset.training.config import ModelConfig
from tests.hostile import outcome
from tests.hub.conftest import CALIBRATION, REPO, evaluation_of, save_model, write_run
from tests.hub.markdown import foreign_parts, parts_of

KEYS = {"license", "library_name", "pipeline_tag", "tags", "base_model", "datasets", "model-index", "model_name"}
TITLES = [
    "Input",
    "Output",
    "Use",
    "Confidence",
    "Metrics",
    "Training",
    "Limits and misuse",
    "Licence",
    "Citation",
    "Files",
]
PIECES = (
    *("\n", "\r", "```", "~~~", "`", "---\n", "...\n", "|", "\\", "# ", "- ", "1. ", "> ", "    ", "*", "_", "~~", "!"),
    *(
        "[a](https://evil.example)",
        "[a]: //evil.example",
        "<img src=x>",
        "<!--",
        "<script>",
        "&lt;",
        "&#60;",
        "]",
        "(",
        "@a",
    ),
    *(
        "https://evil.example",
        "www.evil.example",
        "a@evil.example",
        "{{ 1 }}",
        "{% raw %}",
        "$$",
        '"',
        "'",
        "license: mit",
    ),
    *(
        "/home/me/x",
        "me/model",
        "../..",
        "\x00",
        "\x1b[31m",
        "\u2028",
        "\x85",
        "\u202e",
        "\ud800",
        "é",
        "\t",
        "a" * 700,
    ),
)
WHOLE = (
    "x\n```\n---\nlicense: mit\n---\n# Bought\n[free](https://evil.example) <img src=x onerror=alert(1)> | `a`",
    "<script>alert(1)</script>",
    "[a](https://evil.example)",
    "https://evil.example www.evil.example a@evil.example",
)
STRINGS = st.sampled_from(WHOLE) | st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=6).map("".join)
NUMBERS = st.sampled_from([0, -1, 2, 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf"), True, None])
JUNK = st.recursive(
    STRINGS | NUMBERS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(STRINGS | st.sampled_from(["data", "steps"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(content, here=()) -> list[tuple]:
    """The keys and indices that lead to every value of a structure."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [here, *(place for key, value in inner for place in places(value, (*here, key)))][1 if here == () else 0 :]


def at(content, place):
    """The value at a place."""
    return at(content[place[0]], place[1:]) if place else content


@st.composite
def spoiled(draw, content: dict):
    """A structure with some of its values replaced, left out, or joined by others; or with texts that are others."""
    content = copy.deepcopy(content)
    if draw(st.booleans()):
        texts = [place for place in places(content) if isinstance(at(content, place), str) and place[-1] != "weights"]
        for *way, last in draw(st.lists(st.sampled_from(texts), min_size=2, max_size=9)):
            at(content, way)[last] = draw(STRINGS)
        return content
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from(places(content)))
        parent = at(content, way)
        action = draw(st.sampled_from(["replace", "replace", "text", "remove", "add"]))
        if action == "remove":
            del parent[last]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(STRINGS)] = draw(JUNK)
        else:
            parent[last] = draw(STRINGS if action == "text" else JUNK)
        if not content:
            break
    return content


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A pipeline's folder, the pipeline, and what its index, the settings of its run and a report on it hold."""
    run = tmp_path_factory.mktemp("run")
    transform = {"units": "db", "range": [-30.0, 0.0], "channels": [0, 1, "0-1"], "bands": ["VV", "VH"]}
    model = save_model(run / "pipeline", run / "text", "pixel", sar_transform=transform, calibration=CALIBRATION)
    write_run(run, model=ModelConfig(base="me/base"))
    index = json.loads((model / INDEX).read_text())
    pipe = CDiffSETPipeline.from_pretrained(model)
    return model, pipe, index, yaml.safe_load((run / "config.yaml").read_text()), evaluation_of(model)


def check_card(content: str) -> None:
    """A card whose metadata has the expected keys, and whose text the expected parts and no others."""
    front = content.split("---\n")[1]
    found = yaml.safe_load(front)
    assert found.keys() <= KEYS and {"license", "library_name", "pipeline_tag", "tags"} <= found.keys()
    assert found["library_name"] == "diffusers" and found["license"] == "unknown"
    card = ModelCard(content)
    assert not foreign_parts(card.text)
    parts = parts_of(card.text)
    titles = [after.content for part, after in zip(parts, parts[1:], strict=False) if part.type == "heading_open"]
    assert titles == ["sar2eo", *TITLES]
    assert [part.info for part in parts if part.type == "fence"][:3] == ["python", "python", "bash"]
    assert content.isascii() or all(sign.isprintable() or sign == "\n" for sign in content)


@pytest.mark.slow
@settings(max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_folder(valid, tmp_path_factory, data):
    """The whole way into a folder, whatever its index, its README and the files of its run hold."""
    model, _, index, config, report = valid
    out = tmp_path_factory.getbasetemp() / "out"
    (model / INDEX).write_text(json.dumps(data.draw(spoiled(index))))
    (model / "README.md").write_text("# Bought\n<script>alert(1)</script>")
    write_settings(model, config)
    write_report(model, report)
    shutil.rmtree(out, ignore_errors=True)
    found = outcome(publish, model, REPO, evaluation=model.parent / "metrics.json", dry_run=out)
    (model / INDEX).write_text(json.dumps(index))
    assert (found == str(out)) == out.exists() and not list(out.parent.glob(".*.partial"))
    if out.exists():
        check_card((out / "README.md").read_text())
        json.loads((out / "mlm.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
@settings(max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_settings(valid, data):
    model, pipe, _, config, _ = valid
    write_settings(model, data.draw(spoiled(config) | STRINGS.filter(lambda text: "\ud800" not in text)))
    check_outcome(lambda: model_card(Facts(REPO, pipe, "unknown", run=read_run(model), base_model=base_of(model))))


@pytest.mark.slow
@settings(max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_report(valid, data):
    model, pipe, _, _, report = valid
    path = write_report(model, data.draw(spoiled(report)))
    check_outcome(lambda: model_card(Facts(REPO, pipe, "unknown", report=read_evaluation(path, model))))


def write_settings(model: Path, content) -> None:
    (model.parent / "config.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))


def write_report(model: Path, content: dict) -> Path:
    path = model.parent / "metrics.json"
    path.write_text(json.dumps(content))
    return path


def base_of(model: Path) -> str | None:
    return next(iter(hub_ids(read_ancestors(model))), None)


def check_outcome(card: Callable[[], str]) -> None:
    found = outcome(card)
    if found.startswith("---"):
        check_card(found)


@settings(max_examples=100, derandomize=True)
@given(STRINGS)
def test_any_value_stays_text_where_it_stands(value):
    line = f"- {code(value)}: ({text(value)})\n\n| {code(value)} | {text(value)} |\n|---|---|\n| {code(value)} | a |\n"
    parts = parts_of(line)
    assert not foreign_parts(line)
    kinds = [part.type for part in parts if part.type.endswith("_open")]
    cells = ["th_open"] * 2 + ["tbody_open", "tr_open"] + ["td_open"] * 2
    item = ["bullet_list_open", "list_item_open", "paragraph_open"]
    assert kinds == [*item, "table_open", "thead_open", "tr_open", *cells]
