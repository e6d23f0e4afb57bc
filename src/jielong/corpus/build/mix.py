"""How much of every source: weights in tokens, with a limit to how often a document may be repeated."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from jielong.corpus.build.recipe import Source


def shares(sources: Sequence[Source], have: dict[str, float], total: float | None) -> dict[str, float]:
    """Tokens to take of each source.

    Without weights: everything once, or as much of it as `total` allows. With weights: `total` tokens in their
    proportion; a source that would have to be repeated more than its epochs gives what it may, and the others share
    the rest in their proportion. Without `total`: as much as keeps the proportion exactly.
    """
    present = [s for s in sources if have.get(s.name, 0) > 0]
    limit = {s.name: have[s.name] * (s.epochs if s.weight is not None else 1.0) for s in present}
    weight = {s.name: s.weight if s.weight is not None else have[s.name] for s in present}
    if total is None:
        if not present or present[0].weight is None:
            return limit
        total = min(limit[n] / weight[n] for n in limit) * sum(weight.values())
    taken: dict[str, float] = {}
    open_ = set(limit)
    while open_:
        room = total - sum(taken.values())
        unit = room / sum(weight[n] for n in open_)
        full = {n for n in open_ if weight[n] * unit >= limit[n]}
        if not full:
            return taken | {n: weight[n] * unit for n in sorted(open_)}
        taken |= {n: limit[n] for n in sorted(full)}
        open_ -= full
    return taken


def total(sizes: np.ndarray) -> float:
    """The sum, added up one by one, so that no version of numpy rounds it another way."""
    return float(np.cumsum(sizes)[-1]) if len(sizes) else 0.0


def picked(ids: np.ndarray, sizes: np.ndarray, tokens: float, seed: int) -> np.ndarray:
    """How often (n,) int64 each document is taken, of `ids` (n,) uint64 and `sizes` (n,) in tokens, until `tokens` are
    reached in a random but fixed order.

    Every document is taken a whole number of times: all of them as often as they fit, then some of them once more.
    """
    have = total(sizes)
    if have <= 0 or tokens <= 0:
        return np.zeros(len(ids), dtype=np.int64)
    rounds = math.floor(tokens / have * (1 + 1e-12))
    copies = np.full(len(ids), rounds, dtype=np.int64)
    left = tokens - rounds * have
    if left < sizes.min() / 2:
        return copies
    keys = np.fromiter((_key(seed, i) for i in ids.tolist()), np.uint64, len(ids))
    for n in np.argsort(keys, kind="stable").tolist():
        if left >= sizes[n] / 2:
            left -= sizes[n]
            copies[n] += 1
    return copies


def _key(seed: int, document: int) -> int:
    return int.from_bytes(hashlib.sha256(f"mix/{seed}/{document:016x}".encode()).digest()[:8], "big")
