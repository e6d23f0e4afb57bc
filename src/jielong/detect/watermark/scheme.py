"""What the watermarks share: which places are marked, which are counted, and the exact tails of their nulls.

A place is marked by the `context` tokens of the answer before it; the prompt counts for nothing, and the first places of an
answer stay as chance has them, so that asking again gives another answer. A context that the answer has for the second time
gets other numbers than the first time: with the same ones a text that repeats itself would be called marked (they would be
counted many times as if they were independent), and the model would repeat itself more than it does by chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch

from jielong.detect.evidence import Evidence, Span
from jielong.detect.normalise import Normal
from jielong.detect.watermark.key import Key
from jielong.detect.watermark.prf import numbers, seed_of
from jielong.generate.sampling import Sampling

FEWEST = 16  # places that must be counted before anything is said
TOLD = 800  # places whose value is told


@dataclass(frozen=True)
class Scheme:
    """A way to mark. `mark` adds it to a request's settings; `weigh` gives each counted place, by its numbers (N,) in
    [0, 2⁵²), a value; `tail` is P(a sum as high | random key) for N places."""

    name: str
    mark: Callable[[Key, Sampling], Sampling]
    weigh: Callable[[Key, np.ndarray], np.ndarray]
    tail: Callable[[Key, float, int], float]


SCHEMES: dict[str, Scheme] = {}


def register(scheme: Scheme) -> None:
    SCHEMES[scheme.name] = scheme


def marked(key: Key, sampling: Sampling) -> Sampling:
    """The same settings with the watermark in them; its state is the answer itself, so that many requests may share them."""
    return SCHEMES[key.scheme].mark(key, sampling)


def seed_at(key: Key, answer: Sequence[int]) -> int | None:
    """The seed for the token after `answer`; None where the place is not marked."""
    h = key.context
    if len(answer) < h:
        return None
    context = list(answer[-h:])
    turn, end = 0, h - 1  # of an earlier context
    with suppress(ValueError):  # the list looks for the token faster than we could: every token of an answer asks
        while True:
            end = answer.index(context[-1], end, len(answer) - 1)
            turn += list(answer[end - h + 1 : end + 1]) == context
            end += 1
    return seed_of(key.bytes, context, turn) if key.again or not turn else None


def seeds_of(key: Key, ids: Sequence[int], apart: bool = True) -> dict[int, int]:
    """Place → seed, for all places of a text that are counted; no seed stands there twice. `apart` = False gives a
    repeated context the same seed, which makes every p-value wrong; it is for the test that proves so."""
    h = key.context
    turns: Counter[tuple[int, ...]] = Counter()
    seeds = {}
    for t in range(h, len(ids)):
        context = tuple(ids[t - h : t])
        turn = turns[context]
        turns[context] += 1
        if not turn or key.again or not apart:
            seeds[t] = seed_of(key.bytes, context, turn if apart else 0)
    return seeds


def counted(key: Key, ids: Sequence[int], apart: bool = True) -> tuple[list[int], np.ndarray]:
    """The places of a text that are counted, and the number of the token at each: (N,) int64."""
    seeds = seeds_of(key, ids, apart)
    tokens = torch.tensor([ids[t] for t in seeds], dtype=torch.int64)
    return list(seeds), numbers(list(seeds.values()), tokens).numpy()


def examine(key: Key, ids: Sequence[int], offsets: Sequence[tuple[int, int]], normal: Normal) -> Evidence:
    """Is the mark in this text, given as tokens of the key's vocabulary with their characters [start, end)? The p-value is
    exact for a text written without the key."""
    scheme = SCHEMES[key.scheme]
    places, found = counted(key, ids)
    name = f"watermark:{key.id}"
    if len(places) < FEWEST:
        note = f"too short: {len(places)} different places of {key.context} tokens and one, {FEWEST} are needed"
        return Evidence(name, "watermark", None, n=len(places), notes=(note,))
    values = scheme.weigh(key, found)
    total = float(values.sum())
    p = scheme.tail(key, total, len(places))
    told = zip(places[:TOLD], values.tolist(), strict=False)
    spans = tuple(Span(*normal.place(*offsets[t]), round(float(v), 4)) for t, v in told)
    return Evidence(name, "watermark", total / len(places), p, "random-key", len(places), spans)


def log_sum(logs: Sequence[float]) -> float:
    """log Σ exp"""
    best = max(logs)
    return best + math.log(sum(math.exp(x - best) for x in logs))


def probability(log: float) -> float:
    """exp, kept within what float64 and JSON can say."""
    return min(1.0, max(math.exp(max(log, -700.0)), 1e-300))


def with_processor(sampling: Sampling, processor: Callable) -> Sampling:
    return replace(sampling, processors=(*sampling.processors, processor))
