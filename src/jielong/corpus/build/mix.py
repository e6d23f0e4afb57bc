"""How much of every source: weights in tokens, with a limit to how often a document may be repeated."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

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


def picked(documents: Sequence[tuple[str, float]], tokens: float, seed: int) -> list[tuple[str, int]]:
    """(id, number of copies) of documents (id, tokens) until `tokens` are reached, in a random but fixed order.

    Every document is taken a whole number of times: all of them as often as they fit, then some of them once more.
    """
    have = sum(t for _, t in documents)
    if have <= 0 or tokens <= 0:
        return []
    rounds = math.floor(tokens / have * (1 + 1e-12))
    left = tokens - rounds * have
    chosen = []
    for name, size in sorted(documents, key=lambda d: hashlib.sha256(f"mix/{seed}/{d[0]}".encode()).digest()):
        extra = left >= size / 2
        left -= size if extra else 0
        if rounds + extra:
            chosen.append((name, rounds + extra))
    return chosen
