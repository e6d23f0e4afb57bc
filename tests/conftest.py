from __future__ import annotations

import pytest
import torch

from jielong.cli import main
from jielong.config import ModelConfig
from jielong.corpus.world import load_world
from jielong.model.gpt import GPT
from jielong.tokens.tokenizer import Tokenizer, train


@pytest.fixture(autouse=True)
def _fixed():
    torch.manual_seed(0)
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def world():
    return load_world()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    lines = [
        "The capital of France is Paris. ",
        "法國的首都是巴黎。",
        "People in Japan speak Japanese, 日本的人說日文。",
    ]
    return train([line * 3 + str(n) for n in range(40) for line in lines], 320)


@pytest.fixture
def model(tokenizer) -> GPT:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=64, context=64
    )
    model = GPT(config)
    model.init_weights(1)
    with torch.no_grad():
        for p in model.parameters():  # no zeros: every path must matter
            p.add_(torch.randn(p.shape) * 0.05)
    return model.eval()


@pytest.fixture(scope="session")
def life(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["raise", "--recipe", "tiny", "--control", "--run", str(path)]) == 0
    return path
