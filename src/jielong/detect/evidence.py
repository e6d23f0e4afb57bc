"""One answer from one method, and what several of them say together. Nothing here knows whether a text, a voice or an image
is looked at.

A p-value is the probability of a score at least as high under a null that is *named*: texts of one human corpus, or a
random key. It is never the probability that something was generated, and a high one never says "human".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jielong.errors import UserError
from jielong.run import plain

Kind = Literal["ledger", "watermark", "statistic", "disguise"]
Verdict = Literal["generated", "no evidence", "abstain"]


@dataclass(frozen=True)
class Span:
    """A part of what was looked at: characters, seconds or pixels [start, end)."""

    start: float
    end: float
    value: float
    note: str = ""


@dataclass(frozen=True)
class Evidence:
    """What one method found."""

    method: str
    kind: Kind
    score: float | None
    """Higher = more likely generated; None where nothing could be measured."""
    p: float | None = None
    """P(a score as high | null); None when nobody may claim one, and then `notes` say why."""
    null: str = ""
    """What p refers to: human:CORPUS@LANGUAGE,LENGTH,n=COUNT, random-key or exact."""
    n: int = 0
    """Effective length: tokens, or n-grams that were counted once."""
    spans: tuple[Span, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All evidence and the verdict at level `alpha`."""

    verdict: Verdict
    alpha: float
    evidence: tuple[Evidence, ...]
    adjusted: dict[str, float] = field(default_factory=dict)
    """Method → its p-value after Holm's correction; those of at most `alpha` decide."""

    def json(self) -> dict[str, Any]:
        """Plain data; the spans, of which a long text has very many, by hand."""
        found = [
            plain(replace(e, spans=()))
            | {"spans": [{"start": s.start, "end": s.end, "value": s.value, "note": s.note} for s in e.spans]}
            for e in self.evidence
        ]
        return plain(replace(self, evidence=())) | {"evidence": found}


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: rejecting those ≤ α keeps the chance of any false one ≤ α, whatever depends on
    what (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, worst = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = worst
    return adjusted


def check_level(alpha: float) -> None:
    """Raises UserError for a level outside (0, 0.5]."""
    if not 0 < alpha <= 0.5:
        raise UserError(f"alpha must lie above 0 and be at most 0.5, not {alpha}.")


def combine(evidence: Sequence[Evidence], alpha: float = 0.01) -> Report:
    """The verdict of all evidence that has a p-value: generated when one of them stays ≤ alpha after Holm's correction,
    abstain when there is none. Raises UserError for an alpha outside (0, 0.5]."""
    check_level(alpha)
    tests = [e for e in evidence if e.p is not None]
    adjusted = dict(zip((e.method for e in tests), holm([e.p for e in tests if e.p is not None]), strict=True))
    if not tests:
        verdict: Verdict = "abstain"
    else:
        verdict = "generated" if min(adjusted.values()) <= alpha else "no evidence"
    return Report(verdict, alpha, tuple(evidence), adjusted)
