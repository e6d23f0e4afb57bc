"""What PPO has to beat without any training: best-of-n. And how far a policy has gone from its start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.align.ppo import judged
from jielong.align.rollout import Rollout, key, rollout
from jielong.align.scoring import (
    ALONE,
    Answered,
    Scored,
    answer_tokens,
    chosen,
    hidden_before,
    log_softmax,
    merged_copy,
    parts,
    score,
    spread,
)
from jielong.errors import UserError
from jielong.model.gpt import GPT
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.distributed import Team
from jielong.train.loop import dtype_of

# best-of-n


@dataclass
class Candidates:
    """Several answers to each prompt, prompt after prompt."""

    drawn: Rollout
    scores: Tensor
    """(P, n)"""

    def best(self, n: int = 0) -> Rollout:
        """Of each prompt's first n answers (0 = all of them) the one with the highest score, of equals the first."""
        P, most = self.scores.shape
        places = self.scores[:, : n or most].numpy().argmax(1)
        picked = [row * most + int(place) for row, place in zip(range(P), places, strict=True)]
        sampled = self.drawn.sampled.split(self.drawn.lengths.tolist())
        return Rollout(
            [self.drawn.sequences[i] for i in picked],
            [self.drawn.texts[i] for i in picked],
            self.drawn.ended[picked],
            torch.cat([sampled[i] for i in picked]),
        )


def candidates(
    start: GPT,
    tokenizer: Tokenizer,
    reward: Scored,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    n: int,
    temperature: float = 0.7,
    max_tokens: int = 96,
    missing_end: float | None = -1.0,
    precision: str = "fp32",
) -> Candidates:
    """n answers of the start model to each prompt and what PPO would say about each: the reward, or `missing_end`.

    The i-th answer depends on the weights, its prompt, its prompt's seed and i alone: not on n, so that one drawing serves
    every smaller n. Raises UserError for settings with which there is nothing to choose from.
    """
    if n < 1 or not prompts:
        raise UserError("best-of-n needs at least one prompt and n of at least 1.")
    if temperature <= 0:
        raise UserError("temperature must be above 0: best-of-n chooses among different answers.")
    asked = [p for p in prompts for _ in range(n)]
    drawn_with = [key(seed, "candidate", i) for seed, _ in zip(seeds, prompts, strict=True) for i in range(n)]
    dtype = dtype_of(precision)
    drawn = rollout(
        start, tokenizer, asked, drawn_with, temperature, max_tokens, "bf16" if dtype == torch.bfloat16 else "fp32"
    )
    scores = judged(lambda some: score(reward, some.sequences, dtype), drawn, missing_end)
    return Candidates(drawn, scores.view(len(prompts), n))


def best_of_n(
    start: GPT,
    tokenizer: Tokenizer,
    reward: Scored,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    n: int,
    temperature: float = 0.7,
    max_tokens: int = 96,
    missing_end: float | None = -1.0,
    precision: str = "fp32",
) -> Rollout:
    """One answer to each prompt: the one of n that the reward model likes best. The rest as in `candidates`."""
    return candidates(
        start, tokenizer, reward, prompts, seeds, n, temperature, max_tokens, missing_end, precision
    ).best()


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n to the start model in nats per answer, ln n − (n−1)/n (Gao et al. 2023). It is exact where no two
    answers are alike, and the most that it can be where some are (Beirami et al. 2024)."""
    return math.log(n) - (n - 1) / n


# how far a policy has gone


@torch.no_grad()
def compared(
    policy: GPT,
    reference: GPT,
    sequences: Sequence[Answered],
    dtype: torch.dtype,
    temperature: float,
    team: Team = ALONE,
) -> tuple[Tensor, Tensor, Tensor]:
    """log π and log π_ref of the answers' tokens, and KL(π ‖ π_ref) over the whole vocabulary before each: (N,) three times,
    from one forward pass of each model."""
    groups = team.even(parts([len(s) for s in sequences]))
    pieces: tuple[list[Tensor], ...] = [], [], []
    for group in groups:
        own = [sequences[i] for i in group]
        tokens = answer_tokens(own)
        p = log_softmax(policy, hidden_before(policy, own, dtype), temperature)  # (N, V)
        q = log_softmax(reference, hidden_before(reference, own, dtype), temperature)
        for found, piece in zip(
            pieces, (chosen(p, tokens), chosen(q, tokens), (p.exp() * (p - q)).sum(-1)), strict=True
        ):
            found.append(piece)
    logprobs, references, exact = (spread(sequences, groups, found) for found in pieces)
    return logprobs, references, exact


def distance(
    policy: GPT, reference: GPT, sequences: Sequence[Answered], dtype: torch.dtype, temperature: float
) -> float:
    """KL(π ‖ π_ref) in nats per answer, over answers that the policy drew: the mean over answers of the exact KL before each token."""
    exact = compared(merged_copy(policy), reference, sequences, dtype, temperature)[2]
    return round(float(exact.sum()) / len(sequences), 4)
