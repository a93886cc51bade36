"""The report's page: complete in one file, safe, and readable in a real browser on a phone."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from c_diffset.cli import main
from c_diffset.evaluation.compare import write_report
from c_diffset.evaluation.evaluate import evaluate
from c_diffset.evaluation.page.page import make_page
from c_diffset.evaluation.page.pictures import Card, GalleryView, Group
from c_diffset.evaluation.report import ImageMetrics, LeftOut
from c_diffset.synthetic.generate import write_pairs
from tests.evaluation.browser import BINARY, Browser
from tests.evaluation.reports import full_report

OPTIONS = {"num_inference_steps": 1, "lpips_net": None, "download": False}
VOID = {"meta", "img", "br", "hr", "link", "input", "col"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight generated test pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 8, size=64, split="test", discrepancy=0.1)
    return folder


class Balanced(HTMLParser):
    """Checks that every element is closed, and collects what could load something."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def check(text: str) -> Balanced:
    page = Balanced()
    page.feed(text)
    assert not page.open
    assert all(source.startswith(("data:image/", "#")) for source in page.sources), page.sources
    assert "script" not in page.tags and not re.search(r"url\(|@import", text)
    return page


@pytest.fixture
def two_models(make_pipe, data, tmp_path):
    """The folder of a report on two models, one of them calibrated."""
    knots = {"variance": [0.0, 5.0], "expected_error": [10.0, 60.0], "probability": [0.0, 1.0]}
    transform = {"units": "display", "range": [0.0, 1.0], "channels": [0, 0, 0]}
    models = []
    for name, space, calibration in (
        ("<script>alert(1)<b>plain", "tiny", None),
        ("calibrated", "pixel", {"threshold": 32.0, "steps": {"1": knots}}),
    ):
        make_pipe(space, calibration=calibration, sar_transform=transform).save_pretrained(tmp_path / "runs" / name)
        models.append(str(tmp_path / "runs" / name))
    evaluate(models, data, output=tmp_path / "out", spread_samples=2, **OPTIONS)
    return tmp_path / "out"


def test_two_models_side_by_side_in_one_file(two_models):
    text = (two_models / "report.html").read_text()
    page = check(text)
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert page.tags.count("img") >= 8 and "svg" in page.tags
    assert "plain" in text and "calibrated" in text and "psnr" in text.lower() and "synthetic" in text.lower()
    assert "Reliability of the expected error" in text and "Probability of an error above 32 levels" in text
    assert "AUROC" in text and "spread of 2 samples" in text
    differences = json.loads((two_models / "differences.json").read_text())
    assert {"psnr", "ssim"} <= {line["metric"] for line in differences}
    assert len(list(two_models.glob("*/metrics.json"))) == 2


def test_one_model_without_confidence(make_pipe, data, tmp_path):
    from c_diffset.models.unet import small_unet
    from tests.conftest import perturb

    unet = small_unet(3, 3, [8, 32], layers_per_block=1)
    perturb(unet)
    unet.conv_out = type(unet.conv_out)(8, 3, 3, padding=1)
    unet.register_to_config(out_channels=3)
    evaluate(make_pipe("pixel", unet=unet), data, output=tmp_path / "out", **OPTIONS)
    check((tmp_path / "out/report.html").read_text())
    assert json.loads((tmp_path / "out/metrics.json").read_text())["n"] == 8


def test_reports_over_other_images_are_not_compared(make_pipe, data, tmp_path, monkeypatch):
    pipe = make_pipe("tiny")
    for name, count in (("all", None), ("some", 5)):
        evaluate(pipe, data, output=tmp_path / name, max_images=count, **OPTIONS)
    files = [tmp_path / name / "metrics.json" for name in ("all", "some")]
    with pytest.raises(ValueError, match="images"):
        write_report(files, tmp_path / "both.html")
    assert not (tmp_path / "both.html").exists()
    monkeypatch.chdir(data.parent)
    evaluate(pipe, data.name, output=tmp_path / "again", **OPTIONS)
    write_report([tmp_path / "all", tmp_path / "again"], tmp_path / "both.html")  # the same data by another path
    check((tmp_path / "both.html").read_text())
    with pytest.raises(FileExistsError, match="both.html exists"):
        write_report(files[:1], tmp_path / "both.html")


def test_the_expected_error_comes_first_where_the_model_is_calibrated():
    uri = "data:image/jpeg;base64,"
    pictures = dict.fromkeys(("SAR", "generated", "EO", "error", "expected error", "confidence"), uri)
    card = Card("a", [Group(None, {"psnr": 1.0}, pictures)])
    text = make_page([full_report()], ["first"], [], GalleryView("psnr", [card], []))
    order = ('id="expected"', 'id="confidence"', "expected error of a", "confidence of a")
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    for words in ("error and expected error", "64 levels and more", "calibrated on this very split"):
        assert words in text
    bare = full_report()
    bare.trust.expected_error = bare.trust.error_probability = bare.trust.in_sample = None
    text = make_page([bare], ["first"], [])
    assert 'id="expected"' not in text and "There is no expected error" in text


def test_what_is_left_out_says_why_once():
    left_out = [LeftOut(name, reason) for name, reason in (("fid", "no file"), ("kid", "no file"), ("ssim", "small"))]
    text = make_page([full_report(left_out=left_out)], ["first"], [])
    assert "<dt>fid, kid</dt><dd>No file.</dd>" in text and "<dt>ssim</dt><dd>Small.</dd>" in text


def test_compare_says_what_it_found_and_reads_several_models_of_one_folder(tmp_path, capsys):
    rows = full_report().images
    better = [ImageMetrics(row.id, row.metrics | {"psnr": row.metrics["psnr"] + 1}) for row in rows]
    for name, images in (("0_first", rows), ("1_second", better), ("10_third", rows)):
        report = full_report(model=f"runs/{name}", images=images)
        (tmp_path / "both" / name).mkdir(parents=True)
        (tmp_path / "both" / name / "metrics.json").write_text(json.dumps(report.to_json()))
    page = tmp_path / "page.html"
    assert not main(["compare", str(tmp_path / "both"), "--output", str(page)])
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{page}: 3 models on 3 images of 'data/pairs', split 'test'")
    assert "'runs/1_second' has 1 better, 3 equal of 4 metrics; 'runs/10_third' has 4 equal of 4 metrics" in second
    assert third.startswith("next: c-diffset publish MODEL")
    text = page.read_text()
    assert "the same line as runs/0_first" in text and text.count("<td>equal") + text.count('short">equal') == 7


def test_the_page_needs_neither_torch_nor_scipy():
    """So that reports are compared at once."""
    heavy = "{'torch', 'scipy', 'diffusers', 'datasets'}"
    code = f"import sys, c_diffset.evaluation.compare; print(*{heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# the words of headers that do not stand in one line; the numbers that are not aligned as their header is
HEADERS = """[...document.querySelectorAll('th')].map(cell => {
  const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), words = [];
  while (walk.nextNode()) for (const word of walk.currentNode.data.matchAll(/[a-z0-9]+/gi)) {
    const range = document.createRange();
    range.setStart(walk.currentNode, word.index); range.setEnd(walk.currentNode, word.index + word[0].length);
    if (range.getClientRects().length > 1) words.push(word[0]);
  }
  return words.join();
}).filter(word => word)"""
COLUMNS = """[...document.querySelectorAll('tbody td.n')].filter(cell => {
  const head = cell.closest('table').tHead.rows[0].cells[cell.cellIndex];
  const [own, its] = [cell, head].map(each => getComputedStyle(each));
  return !(own.textAlign == 'right' && its.textAlign == 'right' && own.fontVariantNumeric.includes('tabular-nums'));
}).length"""
SCROLLERS = """[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)
  .map(box => [box.tabIndex, box.getAttribute('role'), box.ariaLabel, getComputedStyle(box).backgroundImage])"""


@pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
def test_in_a_browser_on_a_phone_and_a_desk(two_models, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        for width, height, mobile, dark in ((390, 844, True, False), (1400, 900, False, True)):
            browser.open(two_models / "report.html", width, height, mobile=mobile, dark=dark)
            browser.screenshot(tmp_path / f"{width}.png", whole=True)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            assert browser.evaluate("document.images.length") >= 8
            assert browser.evaluate(HEADERS) == [] and browser.evaluate(COLUMNS) == 0
            scrollers = browser.evaluate(SCROLLERS)
            assert len(scrollers) >= 2 or width > 390
            for focus, role, label, background in scrollers:
                assert (focus, role) == (0, "region") and "scroll" in label and "gradient" in background
            asked = [event for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
            urls = [event["params"]["request"]["url"] for event in asked]
            assert all(url.startswith(("file:", "data:")) for url in urls)
            assert not [event for event in browser.events if event.get("method") in ("Runtime.exceptionThrown",)]
    finally:
        browser.close()
