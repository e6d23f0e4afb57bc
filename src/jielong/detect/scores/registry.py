"""Name → statistic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jielong.detect.tokenstats import TokenStats
from jielong.errors import UserError

Needs = Literal["", "cross", "outside", "tilt"]


@dataclass(frozen=True)
class Score:
    """A number from the statistics of n tokens, higher for generated text."""

    name: str
    of: Callable[[TokenStats], float]
    needs: Needs = ""
    """cross: an observer with the same vocabulary; outside: one with any; tilt: a reference that has one."""


SCORES: dict[str, Score] = {}


def score(name: str, needs: Needs = "") -> Callable[[Callable[[TokenStats], float]], Callable[[TokenStats], float]]:
    """Register a statistic."""

    def register(function: Callable[[TokenStats], float]) -> Callable[[TokenStats], float]:
        SCORES[name] = Score(name, function, needs)
        return function

    return register


def find(name: str) -> Score:
    """Raises UserError for an unknown name."""
    if name not in SCORES:
        raise UserError(f"There is no statistic {name!r}; there are {', '.join(SCORES)}.")
    return SCORES[name]
