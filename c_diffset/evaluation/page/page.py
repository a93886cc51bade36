"""The report as one self-contained HTML page, made from plain data: no scripts, nothing from the network."""

from c_diffset.evaluation.page.markup import Html, element, join, table
from c_diffset.evaluation.page.pictures import CONFIDENCE_COLOURS, ERROR_COLOURS, ERROR_FULL_SCALE
from c_diffset.evaluation.page.plots import Line, plot
from c_diffset.evaluation.report import Difference, Report, to_json
from c_diffset.measurement.metrics import convention

# what a report holds beside the protocol
NOT_PROTOCOL = ("mean", "floors", "ceiling", "images", "conventions", "left_out", "trust", "model", "n")
FLOORS = {"sar_grey": "floor: SAR in grey", "mean_colour": "floor: one colour"}
CEILING = "ceiling: autoencoder"
BIN = ("expected", "measured", "count")
CARD_METRICS = ("lpips", "psnr", "ssim", "scc", "confidence_spearman")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1d1d1f; --muted: #5b5b60; --line: #dcdce0; --panel: #f5f5f3;
  --s0: #0b62a4; --s1: #c2410c; --s2: #15803d; --s3: #7e22ce; --s4: #a16207; --s5: #be185d; }
@media (prefers-color-scheme: dark) { :root { --bg: #161618; --fg: #e8e8ea; --muted: #a5a5ab; --line: #3a3a3f;
  --panel: #212124; --s0: #6cb6f5; --s1: #fb923c; --s2: #5dd48a; --s3: #c694f9; --s4: #e3b341; --s5: #f68bbb; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 74rem; padding: 1.25rem 1rem 3rem; background: var(--bg); color: var(--fg);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.4rem 0 .5rem; padding-top: .7rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
h4 { font-size: .9rem; margin: .8rem 0 .2rem; }
p { max-width: 46rem; margin: .4rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-top: .8rem; }
a { color: var(--s0); padding: .2rem 0; }
.muted, figcaption { color: var(--muted); font-size: .875rem; }
.scroll { overflow-x: auto; margin: .8rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; min-width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; vertical-align: bottom; background: var(--panel); font-weight: 600; min-width: 4.5rem; }
tbody th { font-weight: 600; background: var(--bg); overflow-wrap: normal; }
.sticky tbody th, .sticky thead th:first-child { position: sticky; left: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.wide { min-width: 17rem; color: var(--muted); font-size: .85rem; }
td.text { min-width: 11rem; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
figure { margin: 0; }
.plot { flex: 1 1 20rem; max-width: 34rem; margin: .6rem 0; }
.plot > svg { display: block; width: 100%; height: auto; }
.plot figcaption { font-weight: 600; color: var(--fg); margin-bottom: .3rem; }
svg text { fill: var(--muted); font-size: 13px; }
svg .rule { stroke: var(--line); }
svg .line { fill: none; stroke-width: 2.2; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; padding: 0; margin: .3rem 0 0;
  font-size: .875rem; }
.legend svg { vertical-align: middle; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); }
.s4 { stroke: var(--s4); } .s5 { stroke: var(--s5); } .grey { stroke: var(--muted); }
.dot { fill: var(--bg); stroke-width: 2; }
.card { margin: 1rem 0; padding: .8rem; border: 1px solid var(--line); border-radius: 6px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .6rem; }
.pictures img { display: block; width: 100%; max-width: 100%; height: auto; image-rendering: pixelated;
  background: var(--panel); }
.values { display: flex; flex-wrap: wrap; gap: 0 1.1rem; margin: 0 0 .5rem; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
.values div { display: flex; gap: .35rem; }
.values dt { color: var(--muted); }
.values dd { margin: 0; }
.scale { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem .5rem; font-size: .875rem; }
.bar { width: 9rem; height: .8rem; border-radius: 2px; }
footer { margin-top: 3rem; padding-top: .7rem; border-top: 1px solid var(--line); }
@media print { :root { color-scheme: light; --bg: #fff; --fg: #000; --muted: #444; --line: #bbb; --panel: #f2f2f2;
  --s0: #0b62a4; --s1: #c2410c; --s2: #15803d; --s3: #7e22ce; --s4: #a16207; --s5: #be185d; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; } .scroll { overflow: visible; }
  .sticky tbody th, .sticky thead th:first-child { position: static; }
  td.wide, td.text { min-width: 0; } .card, .plot, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


FOOTER = "Generated images are synthetic: plausible, not observed. Written by c-diffset; this page holds all it shows."


def make_page(
    reports: list[Report], names: list[str], differences: list[Difference] | None = None, gallery: dict | None = None
) -> str:
    """The page of one model or of several that were measured on the same images.

    Args:
        reports: for each model what `metrics.json` holds.
        names: what the page calls the models, all different.
        differences: for several models and each metric of single images: `metric`, `model` (the name of one that is
            compared with the first), `mean` of its value minus the first's, `low`, `high`, `n`.
        gallery: `metric` (what ranked the images), `worst` and `best`: lists of `id` and `groups`, each with the
            `name` of a model or None, its `metrics` or None, and `pictures`, pairs of a label and a data URI.

    Returns:
        A complete document. Every string in the arguments is escaped.
    """
    reports = [report.to_json() for report in reports]
    differences = to_json(differences or [])
    sections = {"Metrics": _metrics(reports, names)}
    if differences:
        sections["Differences"] = _differences(differences, names[0])
    if any(report.get("trust") for report in reports):
        sections["Confidence"] = _trust(reports, names)
    for kind in ("worst", "best"):
        if gallery and gallery[kind]:
            sections[f"{kind.title()} images"] = _gallery(gallery, kind, names)
    sections["Protocol"] = _protocol(reports, names)
    anchors = {title: title.split()[0].lower() for title in sections}
    links = [element("a", title, href=f"#{anchor}") for title, anchor in anchors.items()]
    body = [
        element("header", *_header(reports, names), element("nav", *links, aria_label="Sections")),
        element("main", *(_section(title, anchors[title], content) for title, content in sections.items())),
        element(
            "footer",
            element("p", FOOTER, class_="muted"),
        ),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", f"Evaluation of {', '.join(names)}"),
        element("style", Html(STYLE)),
    ]
    html = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{html}\n"


def _section(title: str, anchor: str, content: list[Html]) -> Html:
    return element("section", element("h2", title), *content, id=anchor)


def _header(reports: list[dict], names: list[str]) -> list[Html]:
    report = reports[0]
    steps = sorted({str(each["num_inference_steps"]) for each in reports})
    summary = (
        f"{report['n']} images of {report['data']}, split {report['split']}; "
        f"{' and '.join(steps)} {'step' if steps == ['1'] else 'steps'}, seed {report['seed']}."
    )
    return [element("h1", f"Evaluation of {', '.join(names)}"), element("p", summary)]


# ------------------------------------------------------------------------------------------------------- numbers


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """A number with a true minus sign, which is as wide as a plus."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def digits_for(values: list[float]) -> int:
    """Decimals that leave three or four significant digits of the largest value."""
    largest = max(map(abs, values))
    return 2 if largest >= 10 else 3 if largest >= 1 else 4


def _cell(text: str) -> Html:
    return element("td", text, class_="n")


def _sticky(scrolled: Html) -> Html:
    """A table whose first column stays in sight."""
    return element("div", scrolled, class_="sticky")


def _columns(reports: list[dict], names: list[str]) -> dict[str, dict[str, float]]:
    """Mean metrics under their headings: models, then floors and ceilings, once where all models share them."""
    columns = {name: report["mean"] for name, report in zip(names, reports, strict=True)}
    for key, heading in (*FLOORS.items(), (None, CEILING)):
        found = [report["ceiling"] if key is None else report["floors"].get(key) for report in reports]
        shared = all(means == found[0] for means in found)
        for name, means in zip(names[: 1 if shared else None], found, strict=False):
            if means is not None:
                columns[heading if shared else f"{heading} ({name})"] = means
    return columns


def _metrics(reports: list[dict], names: list[str]) -> list[Html]:
    columns = _columns(reports, names)
    metrics = list(dict.fromkeys(metric for report in reports for metric in report["mean"]))
    rows = []
    for metric in metrics:
        values = [means.get(metric) for means in columns.values()]
        digits = digits_for([value for value in values if value is not None])
        cells = [_cell("–" if value is None else number(value, digits)) for value in values]
        meaning = element("td", convention(metric), class_="wide")
        rows.append([metric, *cells, _cell(str(reports[0]["n"])), meaning])
    text = (
        "Means over the images. No model should fall below the floors: the SAR image taken as grey, and the mean "
        "colour of the training split everywhere."
    )
    if any(report["ceiling"] is not None for report in reports):
        text += " The ceiling is the true image after the autoencoder's round trip: no model in this space does better."
    content = [element("p", text), _sticky(table(["Metric", *columns, "n", "Convention"], rows))]
    left_out = {(entry["metric"], entry["reason"]) for report in reports for entry in report["left_out"]}
    if left_out:
        entries = [element("li", f"{metric}: {reason}") for metric, reason in sorted(left_out)]
        content += [element("h3", "Left out"), element("ul", *entries, class_="muted")]
    return content


def verdict(metric: str, low: float, high: float) -> str:
    """What an interval of the difference to the first model says, by the direction that the convention names."""
    if low <= 0 <= high:
        return "not distinguishable"
    meaning = convention(metric)
    if meaning.endswith(("higher is better", "lower is better", "negative is right")):
        return "better" if (low > 0) == meaning.endswith("higher is better") else "worse"
    return "differs"


def _differences(differences: list[dict], first: str) -> list[Html]:
    rows = []
    for entry in differences:
        digits = digits_for([entry["mean"], entry["low"], entry["high"]])
        mean, low, high = (number(entry[key], digits, sign=True) for key in ("mean", "low", "high"))
        cells = [_cell(mean), _cell(f"{low} to {high}"), _cell(str(entry["n"]))]
        judged = verdict(entry["metric"], entry["low"], entry["high"])
        rows.append([entry["metric"], entry["model"], *cells, element("td", judged, class_="text")])
    text = (
        f"Each model minus {first}, image by image, with the 95 % interval of the mean by a paired bootstrap over "
        "the images. An interval that holds 0 does not tell the models apart."
    )
    head = ["Metric", "Model", "Difference", "95 % interval", "n", f"Beside {first}"]
    return [element("p", text), _sticky(table(head, rows))]


# ---------------------------------------------------------------------------------------------------- confidence


def _trust(reports: list[dict], names: list[str]) -> list[Html]:
    known = [(i, name, report.get("trust")) for i, (name, report) in enumerate(zip(names, reports, strict=True))]
    known = [(i, name, trust) for i, name, trust in known if trust]
    text = (
        "How far what the model predicts can be trusted: the absolute error of a pixel is the mean over r, g, b, in "
        f"8-bit levels; {' and '.join(sorted({format(trust['pixels'], ',') for _, _, trust in known}))} pixels."
    )
    calibrated = [entry for entry in known if "expected_error" in entry[2]]
    plots = [_reliability(calibrated), *_probability(calibrated)] if calibrated else []
    plots.append(_sparsification(known))
    content = [element("p", text), element("div", *plots, class_="plots"), *_uncertainties(known)]
    fitted = [name for _, name, trust in calibrated if trust.get("in_sample")]
    if fitted:
        text = "calibrated on this very split, so the reliability says nothing of unseen images."
        content.append(element("p", f"{' and '.join(fitted)}: {text}"))
    if calibrated:
        return [*content, _bins(calibrated)]
    uncalibrated = "No expected error and no reliability plot: the model is not calibrated for this number of steps."
    return [*content, element("p", uncalibrated, class_="muted")]


def _estimate(found: dict | None) -> Html:
    """A statistic as `PixelSample.report` gives it, with its interval where there is one."""
    if found is None or found["value"] is None:
        return _cell("–")
    value = number(found["value"])
    if found["low"] is None:
        return _cell(value)
    return _cell(f"{value} ({number(found['low'])} to {number(found['high'])})")


def _uncertainties(known: list[tuple[int, str, dict]]) -> list[Html]:
    columns = {"ause": "AUSE", "ause_difference": "AUSE, less the first's", "spearman": "Rank correlation"}
    columns |= {"auroc": "AUROC", "average_precision": "Average precision"}
    found = [entry for _, _, trust in known for entry in trust["uncertainties"].values()]
    columns = {key: heading for key, heading in columns.items() if any(key in entry for entry in found)}
    rows = [
        [label, name, *(_estimate(entry.get(key)) for key in columns), _cell(str(trust["images"]))]
        for _, name, trust in known
        for label, entry in trust["uncertainties"].items()
    ]
    text = (
        "Means with their 95 % intervals over the images. AUSE: area between the sparsification curve and the "
        f"oracle's, 0 is best, {' and '.join(number(trust['constant']['ause']) for _, _, trust in known)} is chance. "
        "Rank correlation of the uncertainty with the error, 1 is best. n counts images."
    )
    if any(label.startswith("spread") for _, _, trust in known for label in trust["uncertainties"]):
        text += " A spread takes so many samples more; the others come with the image."
    if "auroc" in columns:
        text += (
            " AUROC and average precision of finding the pixels at which the two true images are known to differ; "
            f"0.5 and {number(known[0][2]['constant']['average_precision'])} are chance."
        )
    numbers = table(["Uncertainty", "Model", *columns.values(), "n"], rows)
    return [element("p", text, class_="muted"), _sticky(numbers)]


def _reliability(calibrated: list[tuple[int, str, dict]]) -> Html:
    found = [(i, name, trust["expected_error"], " levels") for i, name, trust in calibrated]
    return _reliability_plot(found, "error", "(levels)", "Reliability of the expected error")


def _probability(calibrated: list[tuple[int, str, dict]]) -> list[Html]:
    """For each threshold that the models were calibrated with, how often the error exceeded it."""
    plots = []
    for threshold in dict.fromkeys(trust.get("threshold") for _, _, trust in calibrated):
        same = [entry for entry in calibrated if entry[2].get("threshold") == threshold]
        found = [(i, name, trust["error_probability"], "") for i, name, trust in same if "error_probability" in trust]
        if found:
            title = f"Probability of an error above {threshold:g} levels"
            plots.append(_reliability_plot(found, "share of pixels", "", title))
    return plots


def _reliability_plot(found: list[tuple[int, str, dict, str]], quantity: str, unit: str, title: str) -> Html:
    lines = []
    for i, name, entry, suffix in found:
        points = list(zip(entry["curve"]["expected"], entry["curve"]["measured"], strict=True))
        error = number(entry["calibration_error"]["value"], 2 if suffix else 3)
        lines.append(Line(f"{name} (calibration error {error}{suffix})", points, i, markers=True))
    top = max(x for line in lines for x, _ in line.points)
    ideal = Line("measured = expected", [(0, 0), (top, top)], None)
    labels = (f"{kind} {quantity} {unit}".strip() for kind in ("expected", "measured"))
    return plot([ideal, *lines], *labels, title)


def _sparsification(known: list[tuple[int, str, dict]]) -> Html:
    lines = []
    for i, name, trust in known:
        curves = {label: entry["sparsification"] for label, entry in trust["uncertainties"].items()}
        curves |= {"oracle": trust["oracle"]["sparsification"]}
        for j, (label, curve) in enumerate(curves.items()):
            owner = f"{name}: " if len(known) > 1 else ""
            lines.append(Line(f"{owner}{label}", list(zip(trust["fractions"], curve, strict=True)), i, dash=j))
    return plot(lines, "fraction left out, least trusted first", "error of the rest (levels)", "Sparsification")


def _bins(calibrated: list[tuple[int, str, dict]]) -> Html:
    rows = [
        [name, *(_cell(number(value, 2)) for value in (expected, measured)), _cell(f"{count:,.0f}")]
        for _, name, trust in calibrated
        for expected, measured, count in zip(*(trust["expected_error"]["curve"][key] for key in BIN), strict=True)
    ]
    numbers = table(["Model", "Expected", "Measured", "Pixels"], rows)
    return element("details", element("summary", "Numbers of the reliability plot"), numbers)


# ------------------------------------------------------------------------------------------------------- pictures


def _gallery(gallery: dict, kind: str, names: list[str]) -> list[Html]:
    by = f"by {gallery['metric']}" + (f" of {names[0]}" if len(names) > 1 else "")
    labels = {label for card in gallery[kind] for group in card["groups"] for label, _ in group["pictures"]}
    scales = []
    if "confidence" in labels:
        scales.append(_scale("confidence", "0", "1", CONFIDENCE_COLOURS))
    scales.append(_scale("error", "0", f"{ERROR_FULL_SCALE} levels and more", ERROR_COLOURS))
    order = f"The {kind} {len(gallery[kind])} {by}, {'worst' if kind == 'worst' else 'best'} first."
    return [element("p", order), *scales, *(_card(card) for card in gallery[kind])]


def _scale(label: str, low: str, high: str, colours) -> Html:
    steps = ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in colours)
    bar = element("span", class_="bar", style=f"background: linear-gradient(to right, {steps})")
    return element("div", element("span", f"{label}: {low}"), bar, element("span", high), class_="scale muted")


def _card(card: dict) -> Html:
    parts = [element("h3", card["id"])]
    for group in card["groups"]:
        if group["name"] is not None:
            parts.append(element("h4", group["name"]))
        if group["metrics"] is not None:
            parts.append(_values(group["metrics"]))
        owner = "" if group["name"] is None else f", {group['name']}"
        pictures = [_picture(uri, label, f"{label} of {card['id']}{owner}") for label, uri in group["pictures"]]
        parts.append(element("div", *pictures, class_="pictures"))
    return element("article", *parts, class_="card")


def _picture(uri: str, label: str, description: str) -> Html:
    return element("figure", element("img", src=uri, alt=description), element("figcaption", label))


def _values(metrics: dict[str, float]) -> Html:
    shown = sorted((name for name in metrics if name.startswith(CARD_METRICS)), key=_place)
    pairs = [(name, number(metrics[name], digits_for([metrics[name]]))) for name in shown]
    return element("dl", *(element("div", element("dt", k), element("dd", v)) for k, v in pairs), class_="values")


def _place(metric: str) -> int:
    return next(i for i, name in enumerate(CARD_METRICS) if metric.startswith(name))


# ------------------------------------------------------------------------------------------------------- protocol


def _protocol(reports: list[dict], names: list[str]) -> list[Html]:
    keys = list(dict.fromkeys(key for report in reports for key in report if key not in NOT_PROTOCOL))
    rows = []
    for key in ("model", "n", *keys):
        values = [_readable(report.get(key)) for report in reports]
        if len(set(values)) == 1:
            cells = [element("td", values[0], colspan=len(names), class_="text")]
        else:
            cells = [element("td", value, class_="text") for value in values]
        rows.append([key.replace("_", " "), *cells])
    return [_sticky(table(["Setting", *names], rows))]


def _readable(value) -> Html:
    """A setting as text; entries of a list below each other."""
    if value is None:
        return join(["–"])
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return Html("<br>".join(join([entry]) for entry in value)) if value else join(["–"])
    if isinstance(value, list):
        return join([", ".join(f"{entry:.4g}" if isinstance(entry, float) else str(entry) for entry in value)])
    return join([value])
