"""Which language, and which script of Chinese."""

from __future__ import annotations

import re
from functools import lru_cache

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
KANA_HANGUL = re.compile(r"[\u3041-\u30ff\uac00-\ud7af]")
LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
CANTONESE = re.compile(r"[嘅咗喺嗰哋冇啲嚟唔佢咁嘢乜啱攞瞓諗㗎噉嘞]")
ENGLISH = frozenset(
    [
        "the",
        "of",
        "and",
        "to",
        "a",
        "in",
        "is",
        "it",
        "that",
        "for",
        "as",
        "was",
        "with",
        "be",
        "by",
        "on",
        "not",
        "he",
        "his",
        "at",
        "from",
        "are",
        "this",
        "have",
        "an",
        "which",
        "or",
        "but",
        "they",
        "you",
        "one",
        "all",
        "were",
        "their",
        "has",
        "been",
        "who",
        "its",
        "will",
        "would",
        "there",
        "what",
        "so",
        "when",
        "can",
        "more",
        "no",
        "if",
        "out",
        "up",
        "into",
        "about",
        "than",
        "them",
        "some",
        "time",
        "could",
        "also",
        "other",
    ]
)


@lru_cache(maxsize=1)
def _scripts() -> tuple[frozenset[str], frozenset[str]]:
    """Characters that occur only in Simplified, and only in Traditional writing, from CC-CEDICT."""
    from jielong.corpus.world import cedict

    simplified: set[str] = set()
    traditional: set[str] = set()
    for t, s, _ in cedict():
        traditional.update(t)
        simplified.update(s)
    return frozenset(simplified - traditional), frozenset(traditional - simplified)


def identify(text: str) -> str:
    """en, zh-Hant, zh-Hans, yue (written Cantonese), ja, ko, the code of another language in Latin letters,
    or other.

    From the first 4,000 characters. Script decides first; Simplified from Traditional by the characters that only one
    of them has, Cantonese by its own characters; English from other Latin languages by its function words, else by
    py3langid.
    """
    text = text[:4000]
    han, kana = len(HAN.findall(text)), len(KANA_HANGUL.findall(text))
    words = LATIN_WORD.findall(text)
    if kana > 0.1 * max(1, han + kana):
        return "ko" if sum("\uac00" <= c <= "\ud7af" for c in text) * 2 > kana else "ja"
    if han * 1.5 >= len(words) and han >= 4:
        if len(CANTONESE.findall(text)) > 0.03 * han:
            return "yue"
        only_simplified, only_traditional = _scripts()
        s = sum(c in only_simplified for c in text)
        t = sum(c in only_traditional for c in text)
        return "zh-Hans" if s > t else "zh-Hant"
    if len(words) < 3:
        return "other"
    known = sum(w.lower() in ENGLISH for w in words) / len(words)
    if known > 0.12:
        return "en"
    import py3langid

    return py3langid.classify(text)[0]


def language(text: str) -> str:
    """en, zh (Traditional, as written in Taiwan) or other: what the small corpus stage keeps."""
    return {"en": "en", "zh-Hant": "zh"}.get(identify(text), "other")
