"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sampling:
    """How the next token is drawn; the defaults of the API."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int = 0


def penalise(logits: Tensor, past: list[int], penalty: float) -> Tensor:
    """Divide positive and multiply negative logits (V,) of tokens in `past` (Keskar et al. 2019)."""
    if penalty == 1.0 or not past:
        return logits
    logits = logits.clone()
    index = torch.tensor(sorted(set(past)))
    picked = logits[index]
    logits[index] = torch.where(picked > 0, picked / penalty, picked * penalty)
    return logits


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (V,) after temperature, top-k, min-p and top-p, in that order; they sum to 1."""
    if sampling.temperature <= 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
    p = torch.softmax(logits.float() / sampling.temperature, -1)
    if sampling.top_k > 0:
        floor = p.topk(min(sampling.top_k, len(p))).values[-1]
        p = p.where(p >= floor, 0.0)
    if sampling.min_p > 0:
        p = p.where(p >= sampling.min_p * p.max(), 0.0)
    if sampling.top_p < 1:
        values, index = p.sort(descending=True, stable=True)
        before = values.cumsum(0) - values
        p = p.index_fill(0, index[before >= sampling.top_p * values.sum()], 0.0)
    return p / p.sum()


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial(distribution(logits, sampling), 1, generator=generator))
