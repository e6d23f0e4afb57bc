"""The guard: an exam before and after a change, and the limits beyond which the change is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Limit:
    """One figure of the exam and how far it may move. `least` and `most` are seen from the figure before: a share of it, or
    with `absolute` the bound itself."""

    name: str
    label: str
    least: float | None = None
    most: float | None = None
    absolute: bool = False
    percent: bool = True
    """How people read it."""
    advice: str = ""

    def bounds(self, before: float) -> tuple[float | None, float | None]:
        scale = 1.0 if self.absolute else before
        return (
            None if self.least is None else self.least * scale,
            None if self.most is None else self.most * scale,
        )


@dataclass(frozen=True)
class Breach:
    """A figure that left its limits, in words."""

    name: str
    text: str
    advice: str
    now: float = 0.0
    before: float | None = None
    bound: float = 0.0
    least: bool = True
    """Is the bound the least that is allowed, or the most?"""
    percent: bool = True


def judge(limits: Sequence[Limit], before: Figures, after: Figures) -> list[Breach]:
    """What the change broke; empty when all is well. What was not measured is not guarded; what is no number (NaN) is broken."""
    found = []
    for limit in limits:
        if limit.name not in after or (not limit.absolute and limit.name not in before):
            continue
        now = after[limit.name]
        low, high = limit.bounds(before.get(limit.name, 0.0))
        if low is not None and not now >= low - 1e-12:
            found.append(_breach(limit, before, now, low, True))
        elif high is not None and not now <= high + 1e-12:
            found.append(_breach(limit, before, now, high, False))
    return found


def _breach(limit: Limit, before: Figures, now: float, bound: float, least: bool) -> Breach:
    form = (lambda x: f"{x:.1%}") if limit.percent else (lambda x: f"{x:.4g}")
    was = f" (before: {form(before[limit.name])})" if limit.name in before else ""
    text = f"{limit.label} is {form(now)}{was}, allowed is {'at least' if least else 'at most'} {form(bound)}"
    return Breach(limit.name, text, limit.advice, now, before.get(limit.name), bound, least, limit.percent)
