"""The rules for crawled pages: Gopher (Rae et al. 2021), C4 (Raffel et al. 2020) and FineWeb (Penedo et al. 2024).

They were made for English. Chinese has no spaces, and a word has about one and a half characters; so lengths and
n-grams are counted in characters, one and a half to two times as many, sentences end in 。！？, and the function words
are characters. Taiwan's law texts repeat set phrases, which is why the shortest Chinese n-gram has 8 characters and may
cover 40 %: at 30 % one law in ten fell.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from jielong.corpus.ngrams import repeats, unit_hashes, windows
from jielong.corpus.quality import units

BULLET = re.compile(r"^\s*[•●○■□▪*·‣◦–\-]")
ELLIPSIS = re.compile(r"(?:\.\.\.|…)\s*$")
STOP_EN = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
STOP_ZH = frozenset("的是在不有了和與为為之以也而其於于就這这")
LINE_END_EN = re.compile(r"[.!?。！？\"”’']\s*$")
LINE_END_ZH = re.compile(r"[。！？；：…」』”）.!?]\s*$")
SENTENCE = re.compile(r"[.!?](?:\s|$)|[。！？；]")
# share of the characters that the commonest n-gram may cover, and that n-grams seen before may cover
TOP = {"en": {2: 0.20, 3: 0.18, 4: 0.16}, "zh": {4: 0.20, 6: 0.18, 8: 0.16}}
SEEN = {
    "en": {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
    "zh": {8: 0.40, 10: 0.35, 12: 0.30, 16: 0.25, 20: 0.20},
}


def web_reason(text: str, lang: str) -> str | None:
    """Why a crawled page is no good, or None. `lang` is en or zh; other languages have no rules and pass."""
    if lang not in TOP:
        return None
    found = units(text, lang)
    lines = [line for line in text.split("\n") if line.strip()]
    return (
        _length(found, lang) or _words(text, found, lang) or _lines(lines, len(found), lang) or _repetition(found, lang)
    )


def _length(found: list[str], lang: str) -> str | None:
    n = len(found)
    if n < (50 if lang == "en" else 80):
        return "too few words"
    return "too many words" if n > (100_000 if lang == "en" else 200_000) else None


def _words(text: str, found: list[str], lang: str) -> str | None:
    n = len(found)
    if (text.count("#") + text.count("…") + text.count("...")) > 0.1 * n:
        return "symbols among words"
    if "lorem ipsum" in text.lower():
        return "lorem ipsum"
    if text.count("{") > 0.002 * len(text):
        return "curly brackets"
    if lang == "zh":
        if sum("\u3400" <= u <= "\u9fff" for u in found) < 0.7 * n:
            return "few Chinese characters"
        if len(STOP_ZH.intersection(text)) < 2:
            return "no function words"
        return None
    if not 3 <= sum(map(len, found)) / n <= 10:
        return "odd word length"
    if sum(any(c.isalpha() for c in w) for w in found) < 0.8 * n:
        return "few alphabetic words"
    if len(STOP_EN.intersection(w.lower() for w in found)) < 2:
        return "no function words"
    return None


def _lines(lines: list[str], n: int, lang: str) -> str | None:
    if sum(bool(BULLET.match(line)) for line in lines) > 0.9 * len(lines):
        return "only bullets"
    if sum(bool(ELLIPSIS.search(line)) for line in lines) > 0.3 * len(lines):
        return "lines cut off"
    end, short = (LINE_END_EN, 30) if lang == "en" else (LINE_END_ZH, 12)
    if len(lines) < 3:  # a share of lines says nothing; a book may be one line
        if sum(len(SENTENCE.findall(line)) for line in lines) * 100 < n:
            return "no sentences"
    elif sum(bool(end.search(line)) for line in lines) <= 0.12 * len(lines):
        return "no sentences"
    if len(lines) > 3 and sum(len(line) <= short for line in lines) >= 0.67 * len(lines):
        return "short lines"
    if len(lines) > 0.3 * n:
        return "a list of words"
    copies = sum((count - 1) * len(line) for line, count in Counter(lines).items())
    return "repeated lines" if copies > 0.1 * sum(map(len, lines)) else None


def _repetition(found: list[str], lang: str) -> str | None:
    hashes = unit_hashes([u.lower() for u in found])
    lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
    total = int(lengths.sum())
    for n, most in TOP[lang].items():
        if top_share(hashes, lengths, n) > most * total:
            return "one phrase again and again"
    for n, most in SEEN[lang].items():
        covered = seen_characters(hashes, lengths, n)
        if covered > most * total:
            return "repeated phrases"
        if covered == 0:  # then no longer phrase is repeated either
            break
    return None


def top_share(hashes: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters in all occurrences of the commonest n-gram, which must occur at least twice; 0 otherwise."""
    grams = windows(hashes, n)
    if not len(grams):
        return 0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    best = int(counts.argmax())
    if counts[best] < 2:
        return 0
    return int(counts[best] * lengths[first[best] : first[best] + n].sum())


def seen_characters(hashes: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters of the units that lie in some n-gram that occurred before."""
    grams = windows(hashes, n)
    if not len(grams):
        return 0
    starts = repeats(grams)
    edges = np.zeros(len(hashes) + 1, dtype=np.int64)
    edges[: len(starts)] += starts
    edges[n : n + len(starts)] -= starts
    return int(lengths[np.cumsum(edges)[:-1] > 0].sum())
