from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from jielong.config import CorpusConfig, ModelConfig, RewardConfig, TokenizerConfig
from jielong.corpus import stage as corpus
from jielong.lab import teaching
from jielong.model.gpt import GPT, save_model
from jielong.run import Run
from jielong.tokens import tokenizer
from jielong.tokens.tokenizer import Tokenizer, copy_tokenizer

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def lab_run(tmp_path_factory) -> Iterator[Run]:
    """A small default corpus with its vocabulary, and a base and a chat model of random weights."""
    run = Run(tmp_path_factory.mktemp("runs") / "lab")
    corpus.run(CorpusConfig(variants=1, prose_chars=20_000, workers=1, heldout=0.05), run)
    tokens = tokenizer.run(TokenizerConfig(vocab_size=600), run)
    vocabulary = Tokenizer.load(tokens.file("tokenizer.json"))
    shape = ModelConfig(
        vocab_size=vocabulary.vocab_size, width=32, layers=2, heads=2, kv_heads=2, head_dim=16, mlp_width=64, context=256
    )  # fmt: skip
    for name in ("base", "sft"):
        model = GPT(shape)
        model.init_weights(1)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
        with run.build(name, kind=name, config=shape, parents=[run.need("corpus"), tokens], seed=1) as build:
            save_model(model, build.path)
            copy_tokenizer(tokens.file("tokenizer.json"), build.path)
            build.metrics = {"parameters": model.parameter_count()}
    gc.collect()
    small = pytest.MonkeyPatch()
    small.setattr(teaching, "RewardConfig", partial(RewardConfig, references=8, max_tokens=8))
    gc.freeze()  # every training collects once, which costs more than these trainings when all modules are looked through
    yield run
    gc.unfreeze()
    small.undo()
