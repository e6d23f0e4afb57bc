"""Small models, and helpers that several test files of this room share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jielong.align.ppo import PPO, ActorCritic
from jielong.align.scoring import (
    Answered,
    Scored,
    answer_tokens,
    chosen,
    hidden_before,
    log_softmax,
    merged_copy,
    parts,
    spread,
)
from jielong.config import ModelConfig, PPOConfig, adam
from jielong.feedback.labels import Pair, Thumb
from jielong.model.gpt import GPT

FP32 = torch.float32


class Letters:
    """A tokenizer of a few tokens, of which 0 ends an answer."""

    ends = frozenset({0})

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == 0 else bytes([96 + token])


def letters_model(vocabulary: int, seed: int, width: int = 32, context: int = 8) -> GPT:
    config = ModelConfig(
        vocab_size=vocabulary,
        width=width,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=16,
        mlp_width=64,
        context=context,
        tied=False,
    )
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.15)
    return model


def make_ppo(model: GPT, tokenizer, score, prompts, **changes) -> PPO:
    config = PPOConfig(**{"precision": "fp32", "threads": 2, "optim": adam(1e-3), "kl": 0.05, "epochs": 4, **changes})
    critic = Scored(merged_copy(model).requires_grad_(True))
    return PPO(ActorCritic(model, critic), merged_copy(model), score, tokenizer, prompts, config)


@torch.no_grad()
def exact_kl(
    policy: GPT, reference: GPT, sequences: Sequence[Answered], dtype: torch.dtype, temperature: float
) -> Tensor:
    """(N,) KL(π(·|prefix) ‖ π_ref(·|prefix)) over the whole vocabulary before every answer token."""
    groups = parts([len(s) for s in sequences])
    pieces = []
    for group in groups:
        own = [sequences[i] for i in group]
        p = log_softmax(policy, hidden_before(policy, own, dtype), temperature)
        q = log_softmax(reference, hidden_before(reference, own, dtype), temperature)
        pieces.append((p.exp() * (p - q)).sum(-1))
    return spread(sequences, groups, pieces)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_length(drawn):
    return torch.tensor([float(len(s.answer)) for s in drawn.sequences])


def some_labels(count: int = 12, seed: int = 0) -> tuple[list[Thumb], list[Pair]]:
    """Thumbs, two to a prompt by one user, and comparisons, with answers of different lengths."""
    rng = np.random.default_rng(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(int(x) for x in rng.integers(20, 60, n))

    thumbs, pairs = [], []
    for n in range(count):
        asked, prompt = (("user", f"question {n // 2}"),), (1, 2, 20 + n // 2)
        thumbs.append(Thumb(asked, prompt, (*tokens(2 + n % 5), 4), n % 2 == 0, "ann"))
        if n % 3 == 0:
            pairs.append(Pair((("user", f"other {n}"),), (5, 6, 7 + n), tokens(3), (*tokens(5), 4), "bob"))
    return thumbs, pairs


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def nudged(model, by: float = 0.02):
    """A reference that is not the model: log-ratios are not 0."""
    other = merged_copy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * by)
    return other


def log_ratio(model, reference, sequence: Answered, temperature: float) -> torch.Tensor:
    """The slow way, one answer at a time."""
    total = torch.zeros(())
    for sign, one in ((1, model), (-1, reference)):
        table = log_softmax(one, hidden_before(one, [sequence], FP32), temperature)
        total = total + sign * chosen(table, answer_tokens([sequence])).sum()
    return total
