"""Documents that contain a piece of an examination (GPT-3's rule, Brown et al. 2020, appendix C): n-grams of words in
English, of characters in Chinese."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jielong.corpus.language import HAN
from jielong.corpus.ngrams import unit_hashes, windows
from jielong.corpus.quality import units
from jielong.corpus.readers import read_paths

WORDS, CHARACTERS = 13, 20
SHORTEST = 8  # units; a shorter example would be found everywhere


def exam_units(text: str) -> tuple[list[str], int]:
    """Units in lower case, and how many of them make an n-gram: by characters where Han characters are the most."""
    chinese = len(HAN.findall(text)) * 2 > sum(c.isalpha() for c in text)
    return units(text.lower(), "zh" if chinese else "en"), CHARACTERS if chinese else WORDS


class ExamIndex:
    """The n-grams of every example; an example shorter than an n-gram counts as a whole, if it has 8 units."""

    def __init__(self, grams: dict[int, np.ndarray]):
        self.grams = grams
        """Length in units → sorted hashes (n,) uint64."""

    @classmethod
    def of(cls, examples: Iterable[str]) -> ExamIndex:
        """The index of these examples."""
        found: dict[int, list[np.ndarray]] = {}
        for text in examples:
            pieces, n = exam_units(text)
            size = min(n, len(pieces))
            if size >= SHORTEST:
                found.setdefault(size, []).append(windows(unit_hashes(pieces), size))
        return cls({size: np.unique(np.concatenate(rows)) for size, rows in sorted(found.items())})

    @classmethod
    def read(cls, paths: Iterable[Path]) -> ExamIndex:
        """The index of files; each line of jsonl, row of parquet and line of txt is an example. Raises UserError."""
        skipped: Counter[str] = Counter()
        lines = (line for raw in read_paths(tuple(paths), skipped) for line in raw.text.split("\n"))
        return cls.of(lines)

    def save(self, path: Path) -> None:
        np.savez(path, allow_pickle=False, **{str(size): hashes for size, hashes in self.grams.items()})

    @classmethod
    def load(cls, path: Path) -> ExamIndex:
        with np.load(path, allow_pickle=False) as arrays:
            return cls({int(size): arrays[size] for size in arrays.files})

    def contains(self, text: str) -> bool:
        """Whether some n-gram of the text belongs to an example."""
        for lang in ("en", "zh") if HAN.search(text) else ("en",):
            hashes = unit_hashes(units(text.lower(), lang))
            for size, known in self.grams.items():
                grams = windows(hashes, size)
                at = np.searchsorted(known, grams)
                if len(known) and (known[np.minimum(at, len(known) - 1)] == grams).any():
                    return True
        return False
