"""What inputs name, and which files come out of them."""

import json
import os
from pathlib import Path

import pytest

from c_diffset.inference.inputs import find_inputs, is_scene, plan_outputs


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A folder of scenes, which is also the working directory."""
    for name in ("b.tif", "a.png", "C.TIFF", "d.jpeg", "notes.md", "._a.png", "deep/er/e.tif", "deep/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("S1A.SAFE", "plain"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "S1A.SAFE/manifest.safe").touch()
    item = {"type": "Feature", "stac_version": "1.1.0", "id": "x", "assets": {"vv": {"href": "./b.tif"}}}
    (tmp_path / "item.json").write_text(json.dumps(item))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(inputs: list[str]) -> list[str]:
    return [str(path) for path in find_inputs(inputs)]


def test_a_folder_stands_for_its_scenes_in_order_of_name(tree):
    assert names(["."]) == ["C.TIFF", "S1A.SAFE", "a.png", "b.tif", "d.jpeg"]
    assert names(["deep"]) == ["deep/f.png"] and names(["S1A.SAFE"]) == ["S1A.SAFE"]
    assert names([str(tree / "deep")]) == [str(tree / "deep/f.png")]


def test_patterns(tree):
    assert names(["*.tif"]) == ["b.tif"]
    assert names(["**/*.tif"]) == ["b.tif", "deep/er/e.tif"]
    assert names(["S1*"]) == ["S1A.SAFE"] and names(["[ab].*"]) == ["a.png", "b.tif"]
    (tree / "x[1].tif").touch()
    assert names(["x[1].tif"]) == ["x[1].tif"]  # a file that is there is no pattern


def test_each_once_in_the_order_given(tree):
    assert names(["d.jpeg", "b.tif", "*.tif", "item.json", ".", "deep/../b.tif", str(tree / "b.tif")]) == [
        "d.jpeg", "b.tif", "C.TIFF", "S1A.SAFE", "a.png",
    ]  # fmt: skip
    os.symlink(tree / "b.tif", tree / "other.tif")
    assert names(["b.tif", "other.tif"]) == ["b.tif", "other.tif"]  # two names, two outputs


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_are_relative_to_themselves(tree, monkeypatch, encoding):
    text = f"e.tif\n\n# a comment\n  ../f.png  \r\n{tree}/b.tif\n../../*.png\n../../S1A.SAFE\n../../item.json\n"
    (tree / "deep/er/list.txt").write_text(text, encoding=encoding)
    monkeypatch.chdir("/")
    found = find_inputs([str(tree / "deep/er/list.txt")])
    expected = ["deep/er/e.tif", "deep/f.png", "b.tif", "a.png", "S1A.SAFE"]
    assert [path.resolve() for path in found] == [(tree / name).resolve() for name in expected]


def test_what_names_nothing_is_said(tree):
    (tree / "nested.txt").write_text("b.tif\nlist.TXT\n")
    with pytest.raises(ValueError, match=r"a list names .*list\.TXT, another list"):
        find_inputs(["nested.txt"])
    (tree / "missing.txt").write_text("b.tif\ngone.tif\n")
    (tree / "empty.txt").write_text("# nothing\n\n")
    cases = {"missing.txt": r"gone\.tif", "empty.txt": r"empty\.txt", "gone.tif": r"gone\.tif", "*.gif": r"\*\.gif"}
    for name, said in (cases | {"plain": "plain", "folder.tif": r"folder\.tif"}).items():
        with pytest.raises(FileNotFoundError, match=said):
            find_inputs(["b.tif", name])
    (tree / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json"):
        find_inputs(["other.json"])


def test_what_is_translated_window_by_window(tree):
    scenes = [name for name in ("b.tif", "C.TIFF", "a.png", "d.jpeg", "S1A.SAFE", "plain") if is_scene(Path(name))]
    assert scenes == ["b.tif", "C.TIFF", "S1A.SAFE"]


def test_outputs_have_the_names_of_their_inputs(tree):
    sources, out = [Path(name) for name in ("b.tif", "C.TIFF", "a.png", "S1A.SAFE")], Path("out")
    plan = plan_outputs(sources, out, confidence=True, stac=True)
    assert {str(source): [path.name for path in outputs.files] for source, outputs in plan.items()} == {
        "b.tif": ["b.tif", "b_confidence.tif", "b.json"],
        "C.TIFF": ["C.TIFF", "C_confidence.tif", "C.json"],
        "a.png": ["a.png", "a_confidence.png"],
        "S1A.SAFE": ["S1A.tif", "S1A_confidence.tif", "S1A.json"],
    }
    assert all(path.parent == out for outputs in plan.values() for path in outputs.files)
    alone = plan_outputs(sources, out, confidence=False, stac=False)
    assert [len(outputs.files) for outputs in alone.values()] == [1, 1, 1, 1]


def test_a_product_that_is_the_working_directory_keeps_its_name(tree, monkeypatch):
    monkeypatch.chdir("S1A.SAFE")
    sources = find_inputs(["."])
    assert plan_outputs(sources, Path("out"), True, False)[sources[0]].eo == Path("out/S1A.tif")


@pytest.mark.parametrize(
    ("sources", "confidence", "stac"),
    [
        (["one/scene.tif", "two/scene.tif"], False, False),
        (["scene.tif", "scene.tiff"], True, False),
        (["scene.tif", "scene.tiff"], False, True),
        (["scene.tif", "scene_confidence.tif"], True, False),
        (["scene_confidence.tif", "scene.tif"], True, False),
        (["S1A.tif", "S1A.SAFE"], False, False),
    ],
)
def test_outputs_that_clash(tree, sources, confidence, stac):
    with pytest.raises(ValueError, match=rf"{sources[0]} and {sources[1]} would both become out/"):
        plan_outputs([Path(source) for source in sources], Path("out"), confidence, stac)


def test_outputs_that_do_not_clash(tree):
    for sources in (["scene.tif", "scene.tiff"], ["scene.tif", "scene.png"]):
        plan = plan_outputs([Path(source) for source in sources], Path("out"), False, False)
        assert [outputs.eo.name for outputs in plan.values()] == sources


def test_no_input_is_replaced(tree):
    with pytest.raises(ValueError, match=r"b\.tif would replace an input"):
        plan_outputs([Path("b.tif")], tree, True, False)
    (tree / "b_confidence.tif").touch()
    with pytest.raises(ValueError, match="would replace an input"):
        plan_outputs([Path("deep/../b.tif"), Path("b_confidence.tif")], Path("deep/.."), True, False)
