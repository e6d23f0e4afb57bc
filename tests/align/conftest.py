from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def prompts(tokenizer) -> list[list[int]]:
    texts = [
        "The capital of France",
        "法國的首都",
        "People in Japan speak",
        "日本",
        "a",
        "of France is Paris",
        "說日文",
    ]
    return [tokenizer.encode(t) for t in texts]
