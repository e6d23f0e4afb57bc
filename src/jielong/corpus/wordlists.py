"""The user's own lists: addresses that are not wanted, and words of which a document may have only few."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from urllib.parse import urlsplit

from jielong.corpus.language import HAN
from jielong.errors import UserError


def read_list(path: Path) -> list[str]:
    """Lines of a text file, gz or not, without empty ones and # comments. Raises UserError."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(
            f"The list {path} cannot be read ({error}); it must be a UTF-8 text, one entry a line."
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


class AddressList:
    """Domains (with all their subdomains) and, where an entry has a slash, beginnings of addresses."""

    def __init__(self, entries: list[str]):
        plain = [re.sub(r"^https?://", "", e.lower()).removeprefix("www.") for e in entries]
        self.domains = frozenset(e for e in plain if "/" not in e)
        self.prefixes = tuple(e for e in plain if "/" in e)

    def blocks(self, url: str) -> bool:
        address = url.lower() if "//" in url else "//" + url.lower()
        try:
            host = (urlsplit(address).hostname or "").removeprefix("www.")
        except ValueError:  # no address at all
            return False
        labels = host.split(".")
        if any(".".join(labels[k:]) in self.domains for k in range(len(labels))):
            return True
        return (host + urlsplit(address).path).startswith(self.prefixes) if self.prefixes else False


class WordList:
    """Words and phrases; a Chinese entry is also looked for in the other script."""

    def __init__(self, words: list[str]):
        chinese = {w for w in words if HAN.search(w) and len(w) > 1}  # one character is part of too many words
        if chinese:
            from opencc import OpenCC

            chinese |= {OpenCC("s2t").convert(w) for w in chinese} | {OpenCC("t2s").convert(w) for w in chinese}
        others = {w.lower() for w in words if not HAN.search(w)}
        parts = []
        if others:
            parts.append(
                r"(?<![^\W_])(?:"
                + "|".join(map(re.escape, sorted(others, key=lambda w: (-len(w), w))))
                + r")(?![^\W_])"
            )
        if chinese:
            parts.append("|".join(map(re.escape, sorted(chinese, key=lambda w: (-len(w), w)))))
        self.pattern = re.compile("|".join(parts)) if parts else None

    def count(self, text: str) -> int:
        """How often an entry stands in the text."""
        return len(self.pattern.findall(text.lower())) if self.pattern else 0
