"""Text from files, made fit for its place on a card: whatever it holds, it is shown as text in one line."""

import re

LONGEST = 500  # signs of one value
# what may mean something within a line of Markdown, HTML or mathematics, or make an address of it
SIGNS = re.compile(r"[^\w\s,;'\"()%/+=.:-]|_|:(?=\S)|(?<=\S)\.(?=\S)")


def plain(value: object) -> str:
    """One line of printable signs, cut where it is very long."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def text(value: object) -> str:
    """Text between other text: signs of Markdown and HTML as entities, so that they are shown, and do nothing."""
    return SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", plain(value).replace("@", " at "))


def code(value: object) -> str:
    """A code span, also fit for the cell of a table: a name as it is written."""
    return f"`{plain(value).replace('`', chr(39)).replace('|', '¦') or ' '}`"


def fence(content: str) -> str:
    """What opens and closes a code block of this content: longer than any of its runs of backticks."""
    return "`" * max([3, *(len(run) + 1 for run in re.findall("`+", content))])
