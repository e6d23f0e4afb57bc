"""How people choose words where the model would choose others: the model's own distribution, tilted towards human texts.

A model that is well calibrated gives human texts of its kind the likelihood that it expects, and then no statistic of
likelihoods, ranks and entropies tells them from its samples. What it does get wrong is how often which token is used, and how
often a text comes back to what it had. Its human version is h(v) ∝ q_t(v)·e^(b_v + c), c by whether v stood among the last
RECENT tokens, earlier in the text, or not yet: the exponential tilt under which all of this is expected as often as people do
it (maximum entropy: Della Pietra et al. 1997). log q(x) − log h(x) is then a likelihood ratio without a second model. b and c
come from ROUNDS of iterative scaling on human documents that no p-value is taken from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jielong.detect.tokenstats import read
from jielong.generate.engine import Engine

SMOOTH = 0.5
"""Tokens added to what is used and to what is expected."""
RECENT = 20
ROUNDS = 3
LONGEST = 300  # tokens of a document that count


@dataclass(frozen=True)
class Human:
    """What makes the model's human version."""

    b: Tensor
    """(V,) float32 by token."""
    near: float = 0.0
    """Of tokens that stood among the last RECENT ones."""
    far: float = 0.0
    """Of those that only stood before them."""

    def array(self) -> np.ndarray:
        """(V + 2,) float32"""
        return np.concatenate([self.b.numpy(), np.array([self.near, self.far], np.float32)])

    @classmethod
    def of(cls, array: np.ndarray) -> Human:
        return cls(torch.from_numpy(array[:-2].copy()), float(array[-2]), float(array[-1]))


class Tilt:
    """A probe (detect.tokenstats): log q(x_t) − log h_t(x_t) = log Σ_v q_t(v) e^w_t(v) − w_t(x_t), w = b + c. Of the fit it
    also adds up what is used and what h expects."""

    def __init__(self, human: Human, ids: Sequence[int], count: Count | None = None):
        self.human, self.ids, self.count = human, torch.tensor(ids, dtype=torch.int64), count

    def __call__(self, places: Sequence[int], logits: Tensor) -> Tensor:
        """Places, logits (N, V) float32 → (N, 1)."""
        N, V = len(places), len(self.human.b)
        kind = torch.zeros(N, V, dtype=torch.int8)  # 0 new, 1 near, 2 far
        for row, t in enumerate(places):
            kind[row, self.ids[:t]] = 2
            kind[row, self.ids[max(0, t - RECENT) : t]] = 1
        w = self.human.b + torch.tensor([0.0, self.human.near, self.human.far])[kind.long()]  # (N, V)
        tilted = logits[:, :V] + w
        own = self.ids[list(places)].unsqueeze(1)  # (N, 1)
        if self.count:
            self.count.add(tilted.softmax(1), kind, own)
        gap = tilted.logsumexp(1, keepdim=True).double() - logits.logsumexp(1, keepdim=True).double()
        return gap - w.gather(1, own).double()


class Count:
    """How often each token, and tokens near and far, are used, and how often h expects them."""

    def __init__(self, size: int):
        self.used, self.expected = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        self.kinds_used, self.kinds_expected = (torch.zeros(3, dtype=torch.float64) for _ in range(2))

    def add(self, h: Tensor, kind: Tensor, own: Tensor) -> None:
        self.used += torch.bincount(own.squeeze(1), minlength=len(self.used)).double()
        self.expected += h.sum(0, dtype=torch.float64)
        self.kinds_used += torch.bincount(kind.gather(1, own).squeeze(1).long(), minlength=3).double()
        self.kinds_expected += torch.stack([(h * (kind == k)).sum(dtype=torch.float64) for k in range(3)])


def fit(engine: Engine, documents: Sequence[Sequence[int]]) -> Human:
    """The human version by documents, given as token ids."""
    cut = [ids[: min(LONGEST, engine.context)] for ids in documents]  # one window each: no place is read twice
    human = Human(torch.zeros(engine.vocab_size))
    for _ in range(ROUNDS):
        count = Count(engine.vocab_size)
        read(engine, cut, probes=[Tilt(human, ids, count) for ids in cut])
        b = human.b + ((count.used + SMOOTH) / (count.expected + SMOOTH)).log().float()
        # c compares with new tokens, whose own weight is 0
        new, near, far = ((count.kinds_used + SMOOTH) / (count.kinds_expected + SMOOTH)).log().tolist()
        human = Human(b, human.near + near - new, human.far + far - new)
    return human
