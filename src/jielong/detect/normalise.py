"""Disguises taken off before anything is measured: invisible characters, look-alike letters, letters of other widths and
styles. What was changed is evidence of its own, and every change knows its place in the original.

Only what no ordinary text of its script has is touched: joiners between Arabic or Indic letters or in emoji, a word that is
wholly Cyrillic in a Cyrillic text, and the full-width punctuation of Chinese stay.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from jielong.detect.evidence import Evidence, Span

_INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\U000e0000-\U000e007f"  # fmt: skip
_SPACES = "\u2000-\u200a\u202f\u205f"
_STYLED = "\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\U0001d400-\U0001d7ff"
INVISIBLE, SPACES, STYLED = (re.compile(f"[{c}]") for c in (_INVISIBLE, _SPACES, _STYLED))
JOINERS = "\u200c\u200d"
LOOKALIKE = dict(
    zip(
        "аеорсухіјѕһԁԛԝѵАВЕКМНОРСТХУЅІЈԌοινακρυχγΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
        "aeopcyxijshdqwvABEKMHOPCTXYSIJGoivakpuxyABEZHIKMNOPTYX",
        strict=True,
    )
)
_ALIKE = re.compile(f"[{''.join(LOOKALIKE)}]")
SUSPECT = re.compile(f"[\r{_INVISIBLE}{_SPACES}{_STYLED}{''.join(LOOKALIKE)}]")
"""Every character that may have to be changed; what lies between two of them is copied as it is."""
WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Normal:
    """`text` is what is measured; its i-th character stood at `origin[i]` of the original, `origin[len]` is its length."""

    text: str
    origin: list[int]
    changes: tuple[Span, ...]

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Characters [start, end) of the text → of the original."""
        return self.origin[start], self.origin[end - 1] + 1 if end > start else self.origin[start]

    def evidence(self) -> Evidence | None:
        """The disguise, if there was one. It has no p-value: people, too, paste odd characters."""
        if not self.changes:
            return None
        note = (
            f"disguises undone before measuring: {len(self.changes)}; copying from some programs makes such places, too"
        )
        return Evidence("disguise", "disguise", float(len(self.changes)), n=len(self.text), spans=self.changes, notes=(note,))  # fmt: skip


def normalise(text: str) -> Normal:
    """Undo disguises. Line ends become \\n, which is no disguise and is not reported."""
    swaps = _swaps(text)
    out: list[str] = []
    origin: list[int] = []
    changes: list[Span] = []
    copied = 0  # up to here

    def told(at: int, was: str, to: str) -> None:
        name = unicodedata.name(was, f"U+{ord(was):04X}").lower()
        changes.append(Span(at, at + 1, 1.0, f"{name} → {to or 'nothing'}"))

    for found in SUSPECT.finditer(text):
        at, char = found.start(), found.group()
        out.append(text[copied:at])
        origin.extend(range(copied, at))
        copied = at + 1
        if char == "\r":
            if text[at + 1 : at + 2] != "\n":
                out.append("\n")
                origin.append(at)
            continue
        if INVISIBLE.match(char) and not (char in JOINERS and _joins(text, at)):
            if at or char != "\ufeff":  # a mark at the very beginning only names the encoding
                told(at, char, "")
            continue
        new = swaps.get(at) or (" " if SPACES.match(char) else _styled(char))
        if new != char:
            told(at, char, new)
        out.append(new)
        origin += [at] * len(new)
    out.append(text[copied:])
    origin.extend(range(copied, len(text) + 1))
    return Normal("".join(out), origin, tuple(changes))


def _styled(char: str) -> str:
    """Full-width letters and digits, and mathematical letters, as plain ones."""
    return unicodedata.normalize("NFKC", char) if STYLED.match(char) else char


def _joins(text: str, at: int) -> bool:
    """Does a joiner stand where its script needs it: not beside Latin or Han letters, digits, spaces or punctuation?"""
    around = text[max(0, at - 1) : at] + text[at + 1 : at + 2]
    return len(around) == 2 and all(
        ord(c) > 0x5FF and not "\u3000" <= c <= "\u9fff" and not c.isspace() for c in around
    )


def _mostly_latin(text: str) -> bool:
    """Do Latin letters outnumber those of the scripts that look like them?"""
    latin = sum(c.isalpha() and _styled(c).isascii() for c in text)
    return latin >= sum("\u0370" <= c <= "\u052f" for c in text)


def _swaps(text: str) -> dict[int, str]:
    """Place → Latin letter, for look-alikes in words that have Latin letters, too, or, in a text that is mostly Latin, in
    words of look-alikes alone. Invisible characters do not end a word."""
    if not _ALIKE.search(text):
        return {}
    mostly_latin = _mostly_latin(text)
    seen = [(at, c) for at, c in enumerate(text) if not INVISIBLE.match(c)]
    swaps: dict[int, str] = {}
    for found in WORD.finditer("".join(c for _, c in seen)):
        word = seen[found.start() : found.end()]
        alike = [(at, LOOKALIKE[c]) for at, c in word if c in LOOKALIKE]
        if alike and (any(_styled(c).isascii() for _, c in word) or (mostly_latin and len(alike) == len(word))):
            swaps.update(alike)
    return swaps
