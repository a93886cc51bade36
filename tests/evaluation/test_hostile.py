"""Reports, calibrations and names from strangers: a correct page, table or file, or an error of one line."""

import copy
import csv
import io
import json
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c_diffset.evaluation.calibration import store_calibration
from c_diffset.evaluation.compare import write_report
from c_diffset.evaluation.evaluate import evaluate
from c_diffset.evaluation.page.page import make_page
from c_diffset.evaluation.page.pictures import Card, GalleryView, Group
from c_diffset.evaluation.report import Difference, ImageMetrics, LeftOut, read_report
from c_diffset.evaluation.session import image_table, printable
from tests.evaluation.reports import full_disk, full_report
from tests.hostile import outcome

FACTS = {"threshold": 32.0, "data": "pairs", "split": "validation", "n": 4, "first_image": "0"}
MAP = {"variance": [0.1, 0.2], "expected_error": [1.0, 2.0], "probability": [0.0, 0.1]}
INDEX = {"_class_name": "CDiffSETPipeline", "calibration": FACTS | {"steps": {"2": MAP, "50": MAP}}}
MARKUP = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'--><style>*{}</style>", "&lt;b&gt;", "]]>"]
CELLS = ['=HYPERLINK("http://a.b")', "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", 'a,b;c"d']
SIGNS = [
    "\x00",
    "\x1b[31m",
    "\u202egnp.exe",
    "\ud800",
    "\x85",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "a" * 5000,
    "",
    " ",
    "é\n\nè",
]
TEXTS = st.one_of(st.sampled_from(MARKUP + CELLS + SIGNS), st.text(max_size=20))
VALUES = st.one_of(
    st.sampled_from([None, True, [], {}, [[[[]]]], {"a": {"b": {}}}, [1, "2"], {"id": 1}, "NaN", 0, -1, 1e29, -1e29]),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, 10**40, -(10**40), 2**63]),
    TEXTS,
)


def places(content, path=()) -> list[tuple]:
    """The path to every value within a JSON document."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def changed(content, path: tuple, value, action: str):
    """A copy of a JSON document with one value replaced, removed or repeated, or a key added beside it."""
    content = copy.deepcopy(content)
    if not path:
        return value
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if action == "remove":
        del holder[path[-1]]
    elif action == "add" and isinstance(holder, dict):
        holder[str(value)] = value
    elif action == "repeat" and isinstance(holder, list):
        holder.append(holder[-1])
    else:
        holder[path[-1]] = value
    return content


def changes(content):
    """Documents that differ from this one in one to three places."""
    steps = st.tuples(st.integers(0, 10**6), VALUES, st.sampled_from(["replace", "replace", "remove", "add", "repeat"]))

    def apply(drawn):
        result = content
        for number, value, action in drawn:
            known = places(result)
            result = changed(result, known[number % len(known)], value, action)
        return result

    return st.lists(steps, min_size=1, max_size=3).map(apply)


class Skeleton(HTMLParser):
    """Every element of a page with the names of its attributes, and every value that could load something."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.sources = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, [name for name, _ in attributes]))
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.elements.append(("/", tag))


# ---------------------------------------------------------------------------------------------------------- reports


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = full_report()
    (tmp_path / "metrics.json").write_text(json.dumps(report.to_json(), allow_nan=False))
    assert read_report(tmp_path) == read_report(tmp_path / "metrics.json") == report
    content = report.to_json()
    assert content["images"][0] == {"id": "image 0", **report.images[0].metrics} and report.data_name == "pairs"
    del content["data_name"], content["ceiling"]  # as earlier versions wrote it
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert read_report(tmp_path) == full_report(ceiling=None)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("n",), "3", "n is '3': expected a whole number"),
        (("n",), 4, "images holds 3 images, and n is 4"),
        (("mean", "psnr"), float("nan"), "mean.psnr is nan: expected a finite number"),
        (("trust", "uncertainties"), [1], r"trust.uncertainties is \[1\]: expected an object"),
        (("trust", "fractions"), [0.5], "trust.uncertainties.predicted variance.sparsification has 20 values beside 1"),
        (("trust", "expected_error", "curve", "count"), [1.0], r"trust.expected_error.curve has lists of \[1, "),
        (("images", 1), {"psnr": 1.0}, r"images\[1\].id is None: expected text"),
        (("images", 1), {"id": "a", "psnr": 1.0}, r"images: 'a' has \['psnr'\]: expected the metrics of the first"),
        (("left_out", 0), {"metric": "fid"}, r"left_out\[0\].reason is missing"),
        (("split",), "\ud800", "split is .*: expected text in UTF-8"),
        (("surprise",), 1, "surprise is no key"),
    ],
)
def test_an_odd_report_is_refused_by_file_and_key(path, value, message, tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(changed(full_report().to_json(), path, value, "replace")))
    with pytest.raises(ValueError, match=f"^{file}: {message}.*; expected the metrics.json of one model"):
        write_report([file], tmp_path / "page.html")


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"\xff\xfe{", b'{"n": 1' + b"0" * 5000 + b"}", b"[1]", b"null"]
)
def test_what_is_no_report_is_refused(content, tmp_path):
    (tmp_path / "metrics.json").write_bytes(content)
    assert "metrics.json" in outcome(write_report, [tmp_path], tmp_path / "page.html")


def test_a_report_of_absurd_size_is_refused_unread(tmp_path):
    with open(tmp_path / "metrics.json", "wb") as file:
        file.truncate(2**40)
    assert "has 1099511627776 bytes" in outcome(write_report, [tmp_path], tmp_path / "page.html")


def test_a_full_disk_leaves_nothing(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(full_report().to_json()))
    with full_disk():
        assert "File too large" in outcome(write_report, [tmp_path], tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    "option", ["output", "batch_size", "crop_size", "grid_rows", "max_images", "mean_colour", "model"]
)
def test_odd_arguments_are_refused_before_the_work(option, tmp_path):
    """The data do not exist, so that any work would fail by itself."""
    (tmp_path / "file").touch()
    odd = {"output": tmp_path / "file/out", "crop_size": 10, "mean_colour": [0.5, 0.5], "model": []}
    with pytest.raises((ValueError, OSError), match=f"{option} is|cannot be written to"):
        evaluate(**{"model": "nowhere", "data": "nowhere", option: odd.get(option, 0)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@settings(max_examples=400, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(content=changes(full_report(model="runs/second").to_json()))
def test_changed_reports_give_a_page_or_an_error_of_one_line(folder, content):
    page = folder / "page.html"
    page.unlink(missing_ok=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    if outcome(write_report, [folder], page) is None:
        assert page.read_text(encoding="utf-8").endswith("</html>\n")
        page.unlink()
    assert {path.name for path in folder.iterdir()} <= {"metrics.json", "first.json"}


@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(content=changes(full_report(model="runs/second").to_json()))
def test_changed_reports_beside_a_sound_one(folder, content):
    (folder / "first.json").write_text(json.dumps(full_report().to_json()))
    (folder / "metrics.json").write_text(json.dumps(content))
    outcome(write_report, [folder / "first.json", folder], folder / "page.html")
    (folder / "page.html").unlink(missing_ok=True)
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "first.json"}


# ------------------------------------------------------------------------------------------------------ calibrations


@settings(max_examples=400, derandomize=True)
@given(content=changes(INDEX))
def test_changed_calibrations_are_replaced_or_refused(folder, content):
    index = folder.parent / "model_index.json"
    index.write_text(json.dumps(content))
    found = outcome(store_calibration, index, FACTS, {"4": MAP})
    if isinstance(found, str):
        assert index.read_text() == json.dumps(content)
    else:
        assert json.loads(index.read_text())["calibration"] == found and found["steps"]["4"] == MAP


# ------------------------------------------------------------------------------------------------------------- names


def report_of(texts: list[str]):
    """A report whose texts are these nine."""
    model, data, split, ident, reason, convention, about, device, uncertainty = texts
    report = full_report(model=model, data=data, split=split, device=device, conventions={"psnr": convention})
    report.images[0] = ImageMetrics(ident, report.images[0].metrics)
    report.left_out, report.split_against_train = [LeftOut("fid", reason)], [about]
    report.trust.uncertainties = {"a" + uncertainty: report.trust.uncertainties["predicted variance"]}
    return report


def page_of(texts: list[str]) -> str:
    """A page with every section, whose names, ids and settings are these texts."""
    report, other = report_of(texts), full_report()
    names = [f"1 {texts[0]}", f"2 {texts[1]}"]
    uri = "data:image/jpeg;base64,"
    groups = [Group(None, None, {"SAR": uri}), Group(names[1], report.images[0].metrics, {"error": uri})]
    gallery = GalleryView("psnr", [Card(report.images[0].id, groups)], [Card(texts[3], groups)])
    return make_page([report, other], names, [Difference("psnr", names[1], 1.0, 0.5, 1.5, 3)], gallery)


PLAIN = Skeleton(page_of([f"text {i}" for i in range(9)]))


@settings(max_examples=250, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXTS.map(printable), min_size=9, max_size=9))
def test_no_text_makes_an_element_or_an_attribute(texts):
    page = page_of(texts)
    found = Skeleton(page)
    assert found.elements == PLAIN.elements and found.sources == PLAIN.sources
    assert not set("\x00\x1b\u202e\x85") & set(page)


@settings(max_examples=300, derandomize=True)
@given(ids=st.lists(TEXTS.map(printable), min_size=3, max_size=3))
def test_no_id_is_a_formula(ids):
    report = full_report()
    report.images = [ImageMetrics(name, row.metrics) for name, row in zip(ids, report.images, strict=True)]
    rows = list(csv.DictReader(io.StringIO(image_table(report), newline="")))
    for name, row, image in zip(ids, rows, report.images, strict=True):
        assert row["id"] in (name, f"'{name}") and not row["id"].lstrip(" ").startswith(tuple("=+-@\t\r\n＝＋－＠"))
        assert float(row["bias_r"]) == image.metrics["bias_r"]
