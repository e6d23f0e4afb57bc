"""A text as a set of hashes of its runs of five words (of Chinese: characters), without its wording."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from jielong.corpus.ngrams import unit_hashes, windows

RUN = 5  # units of a shingle
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
UNIT = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+")


@dataclass(frozen=True)
class Shingles:
    hashes: np.ndarray
    """(S,) uint64 in the order of the text, repeated ones included."""
    spans: list[tuple[int, int]]
    """Characters [start, end) of each."""
    words: str
    """The units alone, in small letters: what "the same text" compares."""
    units: int


def shingles(text: str) -> Shingles:
    """Case, spaces and punctuation do not count."""
    found = [(m.group().casefold(), m.span()) for m in UNIT.finditer(text)]
    hashes = windows(unit_hashes([w for w, _ in found]), RUN)
    spans = [(found[i][1][0], found[i + RUN - 1][1][1]) for i in range(len(hashes))]
    return Shingles(hashes, spans, " ".join(w for w, _ in found), len(found))
