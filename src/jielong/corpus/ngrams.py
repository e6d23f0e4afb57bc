"""Hashes of words, characters and their n-grams as numpy arrays: what rules, decontamination and the classifier count."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing


def unit_hashes(units: Sequence[str]) -> np.ndarray:
    """(n,) uint64: a hash of each unit that is the same in every process (Python's own is not)."""
    return np.fromiter((crc32(u.encode("utf-8", "replace")) for u in units), dtype=np.uint64, count=len(units))


def windows(hashes: np.ndarray, n: int) -> np.ndarray:
    """(len − n + 1,) uint64: one hash for each run of `n` units; empty where there are fewer.

    A polynomial modulo 2⁶⁴ with mixing, so that equal runs have equal hashes and others meet with probability 2⁻⁶⁴.
    """
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    mixed = np.zeros(count, dtype=np.uint64)
    for k in range(n):
        mixed = (mixed ^ hashes[k : k + count]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed


def repeats(grams: np.ndarray) -> np.ndarray:
    """(n,) bool: which n-grams occurred before in the same text."""
    _, first, inverse = np.unique(grams, return_index=True, return_inverse=True)
    return first[inverse] != np.arange(len(grams))
