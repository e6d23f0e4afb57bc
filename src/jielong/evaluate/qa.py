"""The closed-book exam: does the assistant know what only raw text ever told it?"""

from __future__ import annotations

import math
from typing import Any

from jielong.corpus.world import World, load_world
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.teacher.questions import Question, exam, is_correct

SHOWN = 12


def wilson(right: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    p = right / total
    centre = p + z * z / (2 * total)
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return (centre - spread) / (1 + z * z / total), (centre + spread) / (1 + z * z / total)


def newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float, float]:
    """Difference of two proportions of the same questions, and its 95 % interval (Newcombe 1998, method 10), from how many were
    right both times, the first or the second time only, or never. It holds for a handful of questions, too, where a bootstrap
    is sure of what a few of them had in common."""
    n = both + first + second + neither
    if not n:
        return math.nan, math.nan, math.nan
    p, q = (both + first) / n, (both + second) / n
    (p_low, p_high), (q_low, q_high) = wilson(both + first, n), wilson(both + second, n)
    excess = both * neither - first * second
    excess = max(0.0, excess - n / 2) if excess > 0 else excess
    size = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = excess / math.sqrt(size) if size else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return p - q, p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)


def ask_all(engine: Engine, questions: list[Question]) -> list[str]:
    """Greedy answers in the given order."""
    prompts = [engine.chat_ids([{"role": "user", "content": q.prompt}]) for q in questions]
    return [r.text for r in engine.generate(prompts, Sampling(temperature=0.0, max_tokens=64))]


def mark(world: World, questions: list[Question], replies: list[str]) -> dict[str, Any]:
    """Accuracy with its interval per language and per attribute, and a few answers to look at."""
    values = {(q.attribute, q.lang): world.values(q.attribute, q.lang) for q in questions}
    verdicts = [is_correct(q, r, values[q.attribute, q.lang]) for q, r in zip(questions, replies, strict=True)]
    table: dict[str, Any] = {}
    for lang in sorted({q.lang for q in questions}):
        mine = [v for q, v in zip(questions, verdicts, strict=True) if q.lang == lang]
        low, high = wilson(sum(mine), len(mine))
        by_attribute: dict[str, list[bool]] = {}
        for q, v in zip(questions, verdicts, strict=True):
            if q.lang == lang:
                by_attribute.setdefault(q.attribute, []).append(v)
        table[lang] = {
            "accuracy": round(sum(mine) / len(mine), 4),
            "interval": [round(low, 4), round(high, 4)],
            "questions": len(mine),
            "attributes": {a: round(sum(v) / len(v), 4) for a, v in by_attribute.items()},
        }
    rows = list(zip(questions, replies, verdicts, strict=True))
    step = max(1, len(rows) // SHOWN)
    table["examples"] = [
        {"question": q.prompt, "answer": r, "right": v, "gold": q.golds[0]} for q, r, v in rows[::step]
    ]
    return table


def examine(engine: Engine, seed: int, which: str = "unseen", most: int = 0) -> dict[str, Any]:
    """The exam on the unseen (or taught) half; `most` questions per language, 0 = all."""
    world = load_world()
    questions = exam(world, seed, which)
    if most:
        questions = [q for lang in ("en", "zh") for q in [q for q in questions if q.lang == lang][:most]]
    return mark(world, questions, ask_all(engine, questions))
