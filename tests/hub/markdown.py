"""What a reader sees of a card, by a Markdown parser: its text, and what has no business in it."""

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

OURS = ("https://arxiv.org/abs/", "grid.png")  # where links and pictures of a card may lead


def parts_of(text: str) -> list[Token]:
    """The elements of a text, in order: blocks, and what stands in their lines."""
    blocks = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    return [part for block in blocks for part in (block, *(block.children or []))]


def shown_text(text: str) -> str:
    """The text as it is shown: a paragraph, a code block or a row of a table a line."""
    lines = [""]
    for part in parts_of(text):
        if part.type in ("text", "text_special", "code_inline"):
            lines[-1] += part.content
        elif part.type == "softbreak":
            lines[-1] += " "
        elif part.type == "image":
            lines[-1] += f"[image {part.attrs['src']}]"
        elif part.type in ("fence", "code_block"):
            lines += [part.content, ""]
        elif part.type in ("th_close", "td_close"):
            lines[-1] += " | "
        elif part.type in ("paragraph_close", "heading_close", "tr_close"):
            lines.append("")
    return "\n".join(lines)


def foreign_parts(text: str) -> list[str]:
    """Raw HTML, and links, addresses and pictures that lead elsewhere than those of the template."""
    parts = parts_of(text)
    html = [part.content for part in parts if part.type in ("html_inline", "html_block")]
    targets = [str(part.attrs.get("href") or part.attrs.get("src")) for part in parts if part.tag in ("a", "img")]
    lines = [re.sub(r"`[^`]*`", "", part.content) for part in parts if part.type == "inline"]
    targets += [address for line in lines for address in re.findall(r"\w+://[^\s)]*|www\.\S*|\S+@\S*", line)]
    return html + [target for target in targets if target != "None" and not target.startswith(OURS)]
