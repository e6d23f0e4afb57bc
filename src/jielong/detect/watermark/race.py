"""The Gumbel watermark, read by a model: did the token that stands in the text win its race?

With the model's probabilities q_t and the key the winner of each place is known. Under the key it is the text's token x_t,
but where the text was changed, or written under another prompt, temperature or number format. Under any other key it is x_t
with probability q_t(x_t), whatever q_t may be: that is the exact null, a toss per place. When a share ε of the places is as
chance has it, the likelihood ratio of a place is (1 − ε)/q_t(x_t) + ε for a win and ε for a loss, and their product is the
strongest test (Neyman & Pearson 1933). A place is worth its entropy; the number of the token alone, which is all that
`scheme.examine` looks at, is worth less (of tokens with 0.9 and 0.1 less than half).

The temperature is the one of TEMPERATURES under which the text is likeliest. Text and model choose it, not the key, so the
null stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jielong.detect.evidence import Evidence, Span
from jielong.detect.normalise import Normal
from jielong.detect.tokenstats import CACHED, Offsets
from jielong.detect.watermark.key import Key
from jielong.detect.watermark.prf import numbers, uniform
from jielong.detect.watermark.scheme import FEWEST, probability, seeds_of

TEMPERATURES = (1.0, 0.7, 0.4)
SLIP = 0.2
"""ε"""
UNIT = 16
"""Weights are whole 1/UNIT nats, so that their sum has an exact distribution."""


class Races:
    """A probe (detect.tokenstats) of one text for one key: for each place and temperature log q(x_t) and whether x_t won, NaN
    where nothing is counted."""

    def __init__(self, key: Key, ids: Sequence[int]):
        self.key, self.ids, self.seeds = key, ids, seeds_of(key, ids)

    def __call__(self, places: Sequence[int], logits: Tensor) -> Tensor:
        """Places of the rows, logits (N, V) float32 → (N, 2 · temperatures) float64."""
        V = logits.shape[1]
        found = torch.full((len(places), 2 * len(TEMPERATURES)), math.nan, dtype=torch.float64)
        marked = [row for row, place in enumerate(places) if place in self.seeds]
        part = max(1, CACHED // V)
        for rows in (marked[at : at + part] for at in range(0, len(marked), part)):
            seeds = [self.seeds[places[r]] for r in rows]
            tokens = torch.tensor([self.ids[places[r]] for r in rows])
            clocks = (-uniform(numbers(seeds, torch.arange(V).unsqueeze(1)).T).log()).log()  # (N, V), as logarithms
            for n, temperature in enumerate(TEMPERATURES):
                scaled = logits[rows].double() / temperature
                picked = scaled.gather(1, tokens.unsqueeze(1)).squeeze(1)
                found[rows, 2 * n] = picked - scaled.logsumexp(1)
                found[rows, 2 * n + 1] = ((clocks - scaled).argmin(1) == tokens).double()
        return found


def examine_races(key: Key, found: Tensor, normal: Normal, offsets: Offsets) -> Evidence:
    """What the races (n, 2 · temperatures) of a text's n tokens say. The p-value is exact for a text written without the key."""
    name = f"watermark+model:{key.id}"
    places = (~found[:, 0].isnan()).nonzero().squeeze(1).tolist()
    if len(places) < FEWEST:
        note = f"too short: {len(places)} places after {key.context} tokens, {FEWEST} are needed"
        return Evidence(name, "watermark", None, n=len(places), notes=(note,))
    rows = found[places].numpy()
    n = int(rows[:, 0::2].sum(0).argmax())
    chance, won = np.exp(rows[:, 2 * n]), rows[:, 2 * n + 1] > 0
    worth = weights(chance)
    p = tail(chance, worth, int(worth[won].sum()))
    values = np.where(won, worth / UNIT, 0.0)
    spans = tuple(Span(*normal.place(*offsets[t]), float(v)) for t, v in zip(places, values, strict=True))
    note = f"{won.sum()} of {len(places)} tokens won their race, {chance.sum():.0f} would by chance (temperature {TEMPERATURES[n]:g})"
    return Evidence(name, "watermark", float(values.mean()), p, "random-key", len(places), spans, (note,))


def weights(chance: np.ndarray) -> np.ndarray:
    """(N,) int64: what a win is worth more than a loss, log(1 + (1 − ε)/(ε q)), in 1/UNIT nats."""
    return np.rint(UNIT * np.log1p((1 - SLIP) / (SLIP * np.maximum(chance, 1e-12)))).astype(np.int64)


def tail(chance: np.ndarray, worth: np.ndarray, total: int) -> float:
    """P(Σ worth_t · toss_t ≥ total) for independent tosses with these chances, by adding one toss after the other; all
    terms are positive, so that small tails are exact, too."""
    mass = np.zeros(int(worth.sum()) + 1)
    mass[0], end = 1.0, 1
    for q, w in zip(chance, worth.tolist(), strict=True):
        before = mass[:end] * q
        mass[:end] *= 1 - q
        end += w
        mass[w:end] += before
    sum_ = float(mass[total:].sum())
    return probability(math.log(sum_)) if sum_ > 0 else 1e-300
