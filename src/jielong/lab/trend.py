"""Does an accuracy rise with size, and is that more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Verdicts = Sequence[Sequence[float]]
"""Right or wrong, or any other number, per seed and question."""


@dataclass(frozen=True)
class Trend:
    """Accuracies by size, as (value, low, high), and what follows."""

    accuracy: tuple[tuple[float, float, float], ...]
    steps: tuple[tuple[float, float, float], ...]
    """From each size to the next."""
    whole: tuple[float, float, float]
    """From the smallest to the largest."""

    @property
    def visible(self) -> bool:
        return self.whole[1] > 0

    @property
    def monotone(self) -> bool:
        """No step falls by more than chance."""
        return all(high >= 0 for _, _, high in self.steps)


def trend(sizes: Sequence[Verdicts], rounds: int = 1000, seed: int = 0) -> Trend:
    """95 % percentile intervals of a nested bootstrap: seeds are drawn anew, and of each the questions.

    All sizes have the same seeds, and a seed's questions are the same for all sizes: differences are paired.
    """
    tables = [[np.asarray(row, float) for row in one] for one in sizes]
    rng = np.random.default_rng(seed)
    value = np.array([np.mean([row.mean() for row in one]) for one in tables])
    draws = np.empty((rounds, len(tables)))
    for r in range(rounds):
        total = np.zeros(len(tables))
        for s in rng.integers(0, len(tables[0]), len(tables[0])):
            picked = rng.integers(0, len(tables[0][s]), len(tables[0][s]))
            total += [one[s][picked].mean() for one in tables]
        draws[r] = total / len(tables[0])

    def interval(at: float, drawn: np.ndarray) -> tuple[float, float, float]:
        low, high = np.percentile(drawn, [2.5, 97.5])
        return float(at), float(low), float(high)

    return Trend(
        accuracy=tuple(interval(v, d) for v, d in zip(value, draws.T, strict=True)),
        steps=tuple(interval(v, d) for v, d in zip(np.diff(value), np.diff(draws).T, strict=True)),
        whole=interval(value[-1] - value[0], draws[:, -1] - draws[:, 0]),
    )
