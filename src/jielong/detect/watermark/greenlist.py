"""Green-list watermark (Kirchenbauer et al. 2023): the context chooses a share of the vocabulary, whose logits get a bias.

It changes what the model says, and marks at temperature 0, too. Each token is green by a number of its own, so that
without the key the green ones among N places are Binomial(N, green), exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jielong.detect.watermark.key import Key
from jielong.detect.watermark.prf import BITS, numbers
from jielong.detect.watermark.scheme import Scheme, log_sum, probability, register, seed_at, with_processor


class Bias:
    """A logits processor."""

    def __init__(self, key: Key):
        self.key = key

    def __call__(self, answer: Sequence[int], logits: Tensor) -> Tensor:
        seed = seed_at(self.key, answer)
        if seed is None:
            return logits
        green = numbers(seed, torch.arange(len(logits))) < limit(self.key)
        return torch.where(green, logits + self.key.bias, logits)


def limit(key: Key) -> int:
    return round(key.green * 2**BITS)


def weigh(key: Key, found: np.ndarray) -> np.ndarray:
    return (found < limit(key)).astype(np.float64)


def tail(key: Key, total: float, count: int) -> float:
    """P(Binomial(N, green) ≥ g)"""
    g = round(total)
    if g <= 0:
        return 1.0
    on, off = math.log(key.green), math.log1p(-key.green)
    choose = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(g, count + 1)]
    return probability(log_sum([c + k * on + (count - k) * off for k, c in enumerate(choose, g)]))


register(Scheme("greenlist", lambda key, sampling: with_processor(sampling, Bias(key)), weigh, tail))
