"""HTML as text that is escaped by construction: everything that is not `Html` already is escaped."""

from html import escape

VOID = ("br", "img", "meta")


class Html(str):
    """Text that is markup already."""


def join(parts) -> Html:
    """Parts one after the other; those that are not `Html` are escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def element(tag: str, *children, **attributes) -> Html:
    """One element with its children; `class_` stands for class, `stroke_width` for stroke-width, and so on."""
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    spelt = "".join(f' {names[name]}="{escape(str(value))}"' for name, value in attributes.items())
    return Html(f"<{tag}{spelt}>" if tag in VOID else f"<{tag}{spelt}>{join(children)}</{tag}>")


def table(head: list, rows: list[list]) -> Html:
    """A table in a box of its own that scrolls sideways; the first cell of each row is its header."""
    titles = element("tr", *(element("th", title, scope="col") for title in head))
    body = [element("tr", element("th", row[0], scope="row"), *(cell_of(cell) for cell in row[1:])) for row in rows]
    content = element("table", element("thead", titles), element("tbody", *body))
    return element("div", content, class_="scroll", tabindex="0")


def cell_of(cell) -> Html:
    """A `td`; cells that are elements of a table already stay as they are."""
    return cell if isinstance(cell, Html) and cell.startswith("<td") else element("td", cell)
