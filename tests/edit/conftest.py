from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from jielong.config import ModelConfig
from jielong.corpus.documents import Document, record_id, write_documents
from jielong.model.gpt import GPT, save_model
from jielong.run import Run

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def raised(tokenizer, tmp_path_factory) -> Path:
    """A run with a corpus and a chat model of random weights, which no training had to make."""
    run = Run(tmp_path_factory.mktemp("edit") / "run")
    texts = [f"The capital of France is Paris {n}. 法國的首都是巴黎。 日本的首都是東京。" for n in range(40)]
    documents = [Document(record_id(t), t, "en", "test") for t in texts]
    with run.build("corpus", kind="corpus", config={}) as build:
        write_documents(build.path / "train.parquet", documents[8:])
        write_documents(build.path / "heldout.parquet", documents[:8])
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=2, kv_heads=2, head_dim=16, mlp_width=64, context=256
    )
    model = GPT(dataclasses.replace(shape))
    model.init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    with run.build("sft", kind="sft", config={}, parents=[run.need("corpus")], seed=1) as build:
        save_model(model, build.path)
        tokenizer.save(build.path)
        build.metrics = {"parameters": model.parameter_count()}
    return run.path
