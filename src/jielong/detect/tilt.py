"""How people choose words where the model would choose others: the model's own distribution, tilted towards human texts.

A model that is well calibrated gives human texts of its kind the likelihood that it expects, and then no statistic of
likelihoods, ranks and entropies tells them from its samples. What it does get wrong is how often which token is used. Its
human version is h(v) ∝ q_t(v)·e^(b_v), the exponential tilt under which each token is expected as often as people use it
(maximum entropy: Della Pietra et al. 1997); log q(x) − log h(x) is then a likelihood ratio without a second model. The b are
the first step of iterative scaling, log((used + s) / (expected + s)), from human documents that no p-value is taken from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jielong.detect.tokenstats import read
from jielong.generate.engine import Engine

SMOOTH = 2.0
"""s, in tokens."""
LONGEST = 300  # tokens of a document that count


class Tilt:
    """A probe (detect.tokenstats): log q(x_t) − log h_t(x_t) = log Σ_v q_t(v) e^(b_v) − b_x. b: (V,) float32."""

    def __init__(self, b: Tensor, ids: Sequence[int]):
        self.b, self.ids = b, ids

    def __call__(self, places: Sequence[int], logits: Tensor) -> Tensor:
        """Places, logits (N, V) → (N, 1)."""
        e = (logits - logits.amax(1, keepdim=True)).exp()
        V = len(self.b)
        both = e[:, :V] @ self.b.exp()  # (N,)
        own = self.b[[self.ids[t] for t in places]]
        return ((both / e.sum(1)).double().log() - own.double()).unsqueeze(1)


class _Expected:
    """A probe that adds up how often the model expects each token."""

    def __init__(self, size: int):
        self.sum = torch.zeros(size, dtype=torch.float64)

    def __call__(self, places: Sequence[int], logits: Tensor) -> Tensor:
        self.sum += logits.softmax(1).sum(0, dtype=torch.float64)[: len(self.sum)]
        return torch.empty(len(places), 0, dtype=torch.float64)


def fit(engine: Engine, documents: Sequence[Sequence[int]]) -> Tensor:
    """b (V,) float32 of human documents, given as token ids."""
    cut = [ids[: min(LONGEST, engine.context)] for ids in documents]  # one window each: no place is read twice
    expected = _Expected(engine.vocab_size)
    read(engine, cut, probes=[expected] * len(cut))
    used = torch.bincount(torch.tensor([i for ids in cut for i in ids]), minlength=engine.vocab_size).double()
    return ((used + SMOOTH) / (expected.sum + SMOOTH)).log().float()
