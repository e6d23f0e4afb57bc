"""Runs that are made by hand, without a training."""

from __future__ import annotations

from pathlib import Path

import torch

from jielong.config import ModelConfig
from jielong.model.gpt import GPT, save_model
from jielong.run import Run
from jielong.tokens.tokenizer import Tokenizer


def make_run(path: Path, tokenizer: Tokenizer, seed: int = 1) -> Run:
    """A run with an `sft` of random weights, large enough that its answers differ."""
    model = GPT(
        ModelConfig(
            vocab_size=tokenizer.vocab_size,
            width=32,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            mlp_width=64,
            context=512,
        )
    )
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.08)
    run = Run(path)
    with run.build("sft", kind="sft", config={}, seed=seed) as build:
        save_model(model, build.path)
        tokenizer.save(build.path)
        build.metrics = {"parameters": 1}
    return run
