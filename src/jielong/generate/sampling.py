"""From logits to the next token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Processor = Callable[[Sequence[int], Tensor], Tensor]
"""(tokens generated so far, logits (V,) float32) → logits (V,). Runs last, before temperature and the cuts; it may keep
its own state for one request and is called once per generated token, in order."""

Picker = Callable[[Sequence[int], Tensor], int | None]
"""(tokens generated so far, probabilities (V,) after everything) → the token, None to draw it by chance. Called once per
generated token, in order, and never at temperature 0."""


LARGEST = 1e30
"""What a penalty may make of a logit: far from everything else, yet finite."""
COLDEST = 1e-6
"""A lower temperature draws what this one draws; float32 could not divide by it."""


@dataclass
class Sampling:
    """How the next token is drawn; the defaults of the API."""

    temperature: float = 0.7
    """0 = the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Of tokens in prompt and answer (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of a token that the answer has."""
    frequency_penalty: float = 0.0
    """Subtracted for each time that the answer has it."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int = 0
    ignore_end: bool = False
    """Go on after an end token, up to max_tokens."""
    processors: tuple[Processor, ...] = ()
    picker: Picker | None = None

    @property
    def plain(self) -> bool:
        """Does nothing but the temperature change the model's distribution?"""
        return not (
            self.top_k
            or self.min_p
            or self.top_p < 1
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.processors
        )


def shape_logits(logits: Tensor, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Logits (V,) after penalties, bias and processors, in that order."""
    if sampling.plain:
        return logits
    logits = logits.float().clone()
    if sampling.repetition_penalty != 1 and (prompt or answer):
        index = torch.tensor(sorted({*prompt, *answer}))
        picked = logits[index]
        penalty = sampling.repetition_penalty
        logits[index] = torch.where(picked > 0, picked / penalty, picked * penalty).clamp(-LARGEST, LARGEST)
    if answer and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(answer)
        count = torch.tensor(list(counts.values()), dtype=torch.float32)
        logits[torch.tensor(list(counts))] -= sampling.presence_penalty + sampling.frequency_penalty * count
    if sampling.logit_bias:
        logits[torch.tensor(list(sampling.logit_bias))] += torch.tensor(list(sampling.logit_bias.values()))
    for processor in sampling.processors:
        logits = processor(answer, logits)
    return logits


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (V,) after temperature, top-k, min-p and top-p, in that order; they sum to 1."""
    if sampling.temperature <= 0:
        return torch.zeros_like(logits, dtype=torch.float32).index_fill_(0, logits.argmax(), 1.0)
    logits = logits.float()
    p = torch.softmax((logits - logits.max()) / max(sampling.temperature, COLDEST), -1)
    if sampling.top_k > 0:
        floor = p.topk(min(sampling.top_k, len(p))).values[-1]
        p = p.where(p >= floor, 0.0)
    if sampling.min_p > 0:
        p = p.where(p >= sampling.min_p * p.max(), 0.0)
    if sampling.top_p < 1:
        values, index = p.sort(descending=True, stable=True)
        before = values.cumsum(0) - values
        p = p.index_fill(0, index[1:][before[1:] >= sampling.top_p * values.sum()], 0.0)  # the likeliest one stays
    return p / p.sum()


def pick(probabilities: Tensor, uniform: float) -> int:
    """The token at which the running sum of probabilities (V,) passes `uniform` in [0, 1)."""
    total = probabilities.cumsum(0)
    token = int(torch.searchsorted(total, uniform * float(total[-1]), right=True))
    if token >= len(probabilities) or probabilities[token] == 0:  # rounding at the very end
        token = int(probabilities.nonzero()[-1])
    return token


def draw(
    logits: Tensor, sampling: Sampling, generator: torch.Generator, answer: Sequence[int] = ()
) -> tuple[int, float]:
    """One token id from logits (V,) and the natural log of the probability with which it was drawn.

    It takes one number from `generator`, whatever the settings, so that a request's draws depend on nothing else. Where a
    picker chose, the probability is the one that the token had before: over random keys it is drawn with that.
    """
    if sampling.temperature <= 0:
        return int(logits.argmax()), 0.0
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    p = distribution(logits, sampling)
    chosen = sampling.picker(answer, p) if sampling.picker else None
    token = pick(p, uniform) if chosen is None else chosen
    return token, float(p[token].log())
