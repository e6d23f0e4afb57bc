"""Gumbel watermark (Aaronson 2022): of tokens with probabilities p_v and keyed numbers u_v, take argmax u_v^(1/p_v).

Over random keys that draws exactly from p: the race of exponential clocks −ln(u_v)/p_v is won by v with probability p_v. It
takes place after temperature and cuts. At temperature 0 nothing is drawn, and nothing marked.

Null: without the key each −ln(1 − u) is exponential with mean 1, so the sum of N of them is Gamma(N, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from jielong.detect.watermark.key import Key
from jielong.detect.watermark.prf import BITS, numbers, uniform
from jielong.detect.watermark.scheme import Scheme, log_sum, probability, register, seed_at


class Race:
    """A picker (generate.sampling): the token that the key chooses, None where chance is to choose."""

    def __init__(self, key: Key):
        self.key = key

    def __call__(self, answer: Sequence[int], probabilities: Tensor) -> int | None:
        seed = seed_at(self.key, answer)
        if seed is None:
            return None
        tokens = probabilities.nonzero().squeeze(1)  # (N,): the others cannot win
        clocks = uniform(numbers(seed, tokens)).log() / probabilities[tokens].double()
        return int(tokens[clocks.argmax()])


def weigh(key: Key, found: np.ndarray) -> np.ndarray:
    return -np.log1p(-(found + 0.5) * 2.0**-BITS)


def tail(key: Key, total: float, count: int) -> float:
    """P(Gamma(N, 1) ≥ s) = e⁻ˢ Σ_{k<N} sᵏ/k!"""
    if total <= 0:
        return 1.0
    return probability(log_sum([k * math.log(total) - math.lgamma(k + 1) for k in range(count)]) - total)


register(Scheme("gumbel", lambda key, sampling: replace(sampling, picker=Race(key)), weigh, tail))
