"""The card and `mlm.json` of a model of super-resolution."""

from c_diffset.hub.card import Facts, model_card
from c_diffset.hub.mlm import mlm_item


def test_they_say_that_it_upscales(make_pipe):
    pipe = make_pipe("tiny", upscale=4)
    card = model_card(Facts("me/sr", pipe, "mit"))
    assert "the pixels of electro-optical (EO) images of the Earth 4 times as fine" in card
    assert "with 4 times the sides of the input, from 0 to 1" in card and 'open("low_resolution.png")' in card
    assert "Bands: 3 (`red`, `green`, `blue`)" in card
    assert "- super-resolution\n" in card and "- sar\n" not in card and "(SAR)" not in card
    item = mlm_item(pipe, "me/sr", "mit", {})["properties"]
    assert item["c_diffset:upscale"] == 4 and item["description"].startswith("Super-resolution of EO images (x4) by")
    (reads,) = item["mlm:input"]
    assert "enlarged 4 times" in reads["description"]
    assert [band["name"] for band in reads["bands"]] == ["red", "green", "blue"]


def test_others_say_what_they_always_said(make_pipe):
    pipe = make_pipe("tiny")
    card, item = model_card(Facts("me/sar2eo", pipe, "mit")), mlm_item(pipe, "me/sar2eo", "mit", {})["properties"]
    assert "Translates synthetic aperture radar (SAR) images" in card and "finer" not in card and "upscale" not in card
    assert "c_diffset:upscale" not in item and "enlarged" not in item["mlm:input"][0]["description"]
