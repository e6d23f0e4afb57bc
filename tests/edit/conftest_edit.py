"""A small model with statistics of random keys, and helpers that the files of this room share."""

from __future__ import annotations

import torch

from jielong.edit.bench import Bench, Site
from jielong.edit.facts import Fact
from jielong.edit.values import Search
from jielong.model.gpt import GPT
from jielong.tokens.tokenizer import Tokenizer

FACTS = [
    Fact("The capital of France is", "France", "Tokyo", "Paris"),
    Fact("People in Japan speak", "Japan", "French", "Japanese"),
    Fact("法國的首都是", "法國", "東京", "巴黎"),
]


def some_keys(n: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_bench(model: GPT, tokenizer: Tokenizer, site: Site | None = None, **settings) -> Bench:
    keys = some_keys(400, model.config.mlp_width)
    c = keys.T @ keys / len(keys)
    settings = {"ridge": 0.01, "search": Search(steps=60, lr=0.5, clamp=50.0, decay=0.0), **settings}
    return Bench(
        model.requires_grad_(False),
        tokenizer,
        False,
        site or Site(1),
        lambda layers: dict.fromkeys(layers, c),
        **settings,
    )
