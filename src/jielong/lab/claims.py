"""What a claim needs in order to hold. Each experiment writes its conditions down in code, before anything is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jielong.evaluate.statistics import Interval

Verdict = Literal["held", "partly", "not", "untested"]
LANGS = ("en", "zh")
WORDS: dict[Verdict, dict[str, str]] = {
    "held": {"en": "held", "zh": "成立"},
    "partly": {"en": "held partly", "zh": "部分成立"},
    "not": {"en": "did not hold at this size", "zh": "在這個大小不成立"},
    "untested": {"en": "was not measured", "zh": "沒有量測"},
}
RULE = {
    "en": "The rule, which stands in the code and was written before the runs: a claim is a list of conditions. A condition is met when "
    "the whole 95 % interval of its figure lies above its bound. All conditions met: held. Some: held partly. None: did not hold at this size.",
    "zh": "判定規則在實驗之前就寫在程式裡：每個主張是一串條件，某條件的數字整個 95 % 區間都高於門檻才算符合。全部符合：成立；部分符合：部分成立；全不符合：在這個大小不成立。",
}


@dataclass(frozen=True)
class Claim:
    """What the talk says, in both languages."""

    title: dict[str, str]
    text: dict[str, str]


@dataclass(frozen=True)
class Condition:
    """Something that must be seen."""

    en: str
    zh: str
    met: bool
    figure: str
    """What was seen."""


def above(en: str, zh: str, value: Interval, bound: float = 0.0, points: bool = True) -> Condition:
    """`value` (value, low, high) lies above `bound` with its whole interval. Shown in points (hundredths), or as it is."""
    return Condition(en, zh, value[1] > bound, shown(value, points, signed=True))


def verdict(conditions: Sequence[Condition]) -> Verdict:
    """RULE."""
    met = sum(c.met for c in conditions)
    return "untested" if not conditions else "held" if met == len(conditions) else "partly" if met else "not"


def told(claim: Claim, conditions: Sequence[Condition]) -> dict[str, Any]:
    """Claim, conditions and verdict for a card."""
    return {"claim": asdict(claim), "conditions": [asdict(c) for c in conditions], "verdict": verdict(conditions)}


def shown(value: Interval, points: bool = True, signed: bool = False) -> str:
    """(value, low, high) → "12.3 [10.1, 14.2]"; in points, or with three digits as it is."""
    if math.isnan(value[0]):
        return "–"
    form = ("{:+" if signed else "{:") + (".1f}" if points else ".3f}")
    scale = 100 if points else 1
    at, low, high = (form.format(scale * v + 0.0) for v in value)
    return f"{at} [{low}, {high}]"
