"""Main text of a web page (trafilatura; Barbaresi 2021), and the form of every text."""

from __future__ import annotations

import logging
import re
import unicodedata

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060\ufeff\ufffe\uffff\ud800-\udfff]")


def main_text(html: str) -> str:
    """Title and paragraphs without menus, banners and footers; empty where there is no main text."""
    from trafilatura import extract

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    return extract(html, include_comments=False, include_tables=True, deduplicate=False) or ""


def normalise(text: str) -> str:
    """NFC, one kind of line end and space, no invisible characters, at most one empty line in a row."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = CONTROL.sub("", text.replace("\u00a0", " ").replace("\u3000", " "))
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


_TAG = re.compile(r"<(/?)([a-z][a-z0-9]*)[^<>]*?(/?)>")
_CODE = ("script", "style")
_VOID = frozenset([
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
    "p", "li", "td", "tr", "th", "dt", "dd", "option",
])  # fmt: skip


def tag_depth(html: str) -> int:
    """Levels of nested tags, without those that close themselves or whose end may be left out.

    Parsers and tree walks take time and stack with the depth, and a page can be made of a million open tags.
    """
    depth = deepest = at = 0
    lower = html.lower()
    while match := _TAG.search(lower, at):
        close, name, empty = match.groups()
        at = match.end()
        if name in _CODE and not close:
            at = lower.find(f"</{name}", at)  # programs write pages, too; their tags are no tags of this one
            if at < 0:
                break
        elif not empty and name not in _VOID and name not in _CODE:
            depth = max(0, depth - 1) if close else depth + 1
            deepest = max(deepest, depth)
    return deepest
