from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jielong.align.ppo import PPO, ActorCritic
from jielong.align.scoring import Answered, Scored, hidden_before, log_softmax, merged_copy, parts, spread
from jielong.config import ModelConfig, PPOConfig, adam
from jielong.model.gpt import GPT


class Letters:
    """A tokenizer of a few tokens, of which 0 ends an answer."""

    ends = frozenset({0})

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == 0 else bytes([96 + token])


def letters_model(vocabulary: int, seed: int, width: int = 32) -> GPT:
    config = ModelConfig(
        vocab_size=vocabulary,
        width=width,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=16,
        mlp_width=64,
        context=8,
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
