"""A tiny run that chats, made by hand: no training, so that it costs nothing."""

from __future__ import annotations

import json

import pytest
from prompt_runs import make_run

from jielong.generate.engine import Engine
from jielong.run import Run


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory, monkeypatch):
    """The user's own prompts are not the tester's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture
def engine(model, tokenizer) -> Engine:
    return Engine(model, tokenizer)


@pytest.fixture
def tiny(tmp_path, tokenizer) -> Run:
    """A run whose sft is a model of random weights with room for prompts."""

    return make_run(tmp_path / "run", tokenizer)


@pytest.fixture
def task_file(tmp_path):
    """A task with two labels."""
    path = tmp_path / "mood.jsonl"
    rows = [
        {"input": f"{word} {n}", "output": label, "labels": ["good", "bad"]}
        for n in range(16)
        for word, label in (("sun", "good"), ("rain", "bad"))
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path
