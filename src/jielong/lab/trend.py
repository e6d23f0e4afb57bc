"""Does an accuracy rise with size, and is that more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jielong.evaluate.statistics import Interval, student

Verdicts = Sequence[Sequence[float]]
"""Right or wrong, or any other number, per seed and question."""


@dataclass(frozen=True)
class Trend:
    """Accuracies by size, as (value, low, high), and what follows."""

    accuracy: tuple[Interval, ...]
    steps: tuple[Interval, ...]
    """From each size to the next."""
    whole: Interval
    """From the smallest to the largest."""

    @property
    def visible(self) -> bool:
        return self.whole[1] > 0

    @property
    def monotone(self) -> bool:
        """No step falls by more than chance."""
        return all(high >= 0 for _, _, high in self.steps)


def trend(sizes: Sequence[Verdicts], rounds: int = 1000, seed: int = 0, shared: bool = False) -> Trend:
    """95 % intervals of a bootstrap: seeds are drawn anew, and of each the questions; or, where all seeds are asked the same
    ones (`shared`), the questions once for all of them, since an odd question is odd for every seed. See `wider`.

    All sizes have the same seeds, and a seed's questions are the same for all sizes: differences are paired.
    """
    tables = [[np.asarray(row, float) for row in one] for one in sizes]
    rng, S = np.random.default_rng(seed), len(tables[0])
    own = np.array([[row.mean() for row in one] for one in tables])  # (sizes, seeds)
    draws = np.empty((rounds, len(tables)))
    for r in range(rounds):
        total, picked = np.zeros(len(tables)), None
        for s in rng.integers(0, S, S):
            if picked is None or not shared:
                picked = rng.integers(0, len(tables[0][s]), len(tables[0][s]))
            total += [one[s][picked].mean() for one in tables]
        draws[r] = total / S

    accuracy = [wider(d, o) for d, o in zip(draws.T, own, strict=True)]
    ends = [(min(row.min() for row in one), max(row.max() for row in one)) for one in tables]
    return Trend(
        # no mean lies beyond its extremes
        accuracy=tuple((v, max(low, a), min(high, b)) for (v, low, high), (a, b) in zip(accuracy, ends, strict=True)),
        steps=tuple(wider(d, o) for d, o in zip(np.diff(draws).T, np.diff(own, axis=0), strict=True)),
        whole=wider(draws[:, -1] - draws[:, 0], own[-1] - own[0]),
    )


def wider(draws: np.ndarray, seeds: np.ndarray) -> Interval:
    """The mean of the seeds' values (S,), and the percentiles of the bootstrap's (rounds,), or Student's interval over the seeds
    where that is wider: with three seeds that all happen to lie above 0 the bootstrap alone lies above 0, too, which is one
    time in eight by chance."""
    low, high = np.percentile(draws, [2.5, 97.5])
    value, least, most = student(seeds)
    if len(seeds) > 1:
        low, high = min(low, least), max(high, most)
    return value, float(low), float(high)
