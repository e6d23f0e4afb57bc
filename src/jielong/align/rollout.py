"""Answers drawn from the policy by the one generation engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.align.scoring import Answered, merged_copy
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT
from jielong.tokens.tokenizer import Tokenizer


@dataclass
class Rollout:
    """Answers to prompts, in order."""

    sequences: list[Answered]
    texts: list[str]
    ended: Tensor
    """(E,) bool: the answer ended by itself"""
    sampled: Tensor
    """(N,) log-probability with which the engine drew each token"""

    @property
    def lengths(self) -> Tensor:
        """(E,)"""
        return torch.tensor([len(s.answer) for s in self.sequences], dtype=torch.int64)


def key(*parts: object) -> int:
    """A seed below 2⁶² that depends on all parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 2


def rollout(
    actor: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    temperature: float,
    max_tokens: int,
    precision: str = "fp32",
    rows: int = 128,
) -> Rollout:
    """One answer to each prompt at `temperature`, from the whole distribution. An answer depends on the weights, its prompt
    and its seed alone, whatever else is drawn beside it."""
    engine = Engine(
        merged_copy(actor), tokenizer, precision=precision, device=actor.device.type, rows=rows, prefix_bytes=0
    )
    requests = [
        engine.submit(list(p), Sampling(temperature=temperature, max_tokens=max_tokens, seed=s))
        for p, s in zip(prompts, seeds, strict=True)
    ]
    while any(r.finish is None for r in requests):
        engine.step()
    for r in requests:
        if r.error:
            raise r.error
    return Rollout(
        [Answered(tuple(r.prompt), tuple(r.answer)) for r in requests],
        [r.text for r in requests],
        torch.tensor([r.finish == "stop" for r in requests], dtype=torch.bool),
        torch.tensor([step.sampling_logprob for r in requests for step in r.steps]),
    )
