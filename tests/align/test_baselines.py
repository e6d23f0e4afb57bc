"""Best-of-n, and whole small stages of the methods that PPO has to beat."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest_align import FP32, some_labels

from jielong.align import direct, groups
from jielong.align.baselines import best_of_n, best_of_n_kl, candidates
from jielong.align.scoring import (
    Scored,
    answer_logprobs,
    merged_copy,
    score,
)
from jielong.config import DirectConfig, GroupConfig, adam
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.model.gpt import load_model, save_model
from jielong.run import Artifact, Run


def test_best_of_n_returns_the_best(model, tokenizer, prompts):
    reward = Scored(model)
    torch.nn.init.normal_(reward.score.weight)
    seeds = list(range(len(prompts)))
    found = candidates(model, tokenizer, reward, prompts, seeds, 5, 1.0, 10, None)
    slow = score(reward, found.drawn.sequences, FP32).view(-1, 5)
    assert torch.allclose(found.scores, slow) and found.drawn.sequences[7].prompt == tuple(prompts[1])
    best = best_of_n(model, tokenizer, reward, prompts, seeds, 5, 1.0, 10, None)
    at = 0
    for n, row in enumerate(slow.tolist()):
        place = row.index(max(row))
        assert best.sequences[n] == found.drawn.sequences[5 * n + place]
        assert best.texts[n] == found.drawn.texts[5 * n + place]
        length = len(best.sequences[n].answer)
        own = answer_logprobs(model, [best.sequences[n]], FP32)
        assert torch.allclose(best.sampled[at : at + length], own, atol=1e-4)
        at += length
    # fewer candidates are the first ones of more, and a prompt's do not depend on the others
    fewer = candidates(model, tokenizer, reward, prompts[2:3], seeds[2:3], 2, 1.0, 10, None)
    assert fewer.drawn.sequences == found.drawn.sequences[10:12]
    assert found.best(2).sequences[2] == fewer.best().sequences[0]
    ended = candidates(model, tokenizer, reward, prompts, seeds, 3, 1.0, 4, -50.0)
    assert torch.equal(ended.scores.flatten() == -50, ~ended.drawn.ended) and not ended.drawn.ended.all()


def test_kl_of_best_of_n():
    """Against the KL of the best of n among many equally likely answers, (n/N) Σ (i/N)^{n−1} · ln(n (i/N)^{n−1})."""
    assert best_of_n_kl(1) == 0 and best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    x = (np.arange(200_000) + 0.5) / 200_000
    density = 16 * x**15
    assert best_of_n_kl(16) == pytest.approx(float(np.mean(density * np.log(density + 1e-300))), abs=1e-3)


def test_best_of_nothing(model, tokenizer, prompts):
    for asked, n, temperature in ((prompts, 0, 1.0), ([], 2, 1.0), (prompts, 2, 0.0)):
        with pytest.raises(UserError, match="best-of-n"):
            best_of_n(model, tokenizer, Scored(model), asked, list(range(len(asked))), n, temperature)


@pytest.fixture
def home(model, tokenizer, tmp_path) -> Run:
    """A run with an assistant and a reward model, both tiny."""
    run = Run(tmp_path / "home")
    with run.build("sft", kind="sft", config={}) as build:
        save_model(model, build.path)
        tokenizer.save(build.path)
    reward = Scored(merged_copy(model))
    torch.nn.init.normal_(reward.score.weight)
    with run.build("reward", kind="reward", config={}, parents=[run.need("sft")]) as build:
        reward.save(build.path)
        (build.path / "prompts.json").write_text(
            json.dumps([[["user", "Japan"]], [["user", "法國"]]]), encoding="utf-8"
        )
        build.metrics = {"complaint": ""}
    return run


SMALL = {"precision": "fp32", "threads": 2, "max_tokens": 8, "optim": adam(3e-3), "checkpoint_seconds": 0.0}


def by_method(method: str, run: Run, name: str = "", tell=None, choose=None, **changes) -> Artifact:
    if method in ("dpo", "kto"):
        config = DirectConfig(**{"method": method, **SMALL, "rows": 4, "probes": 6, "keep_every": 2, **changes})
        return direct.run(config, run, *some_labels(24), run.need("sft"), name, choose, tell)
    small = {"iterations": 3, "episodes": 8, "epochs": 2, "keep_every": 1, "missing_end": None, **changes}
    return groups.run(GroupConfig(**{"method": method, **SMALL, **small}), run, name, choose, tell)


@pytest.mark.parametrize("method", ["dpo", "kto", "rloo", "grpo"])
def test_a_stage(home, method):
    told = []
    made = by_method(method, home, tell=told.append)
    metrics = made.card["metrics"]
    assert made.name == made.card["kind"] == method and "sft" in made.card["parents"] and metrics["ended"] == ""
    assert [t["iteration"] for t in told] == [k["iteration"] for k in metrics["kept"]]
    assert {"kl", "kl_exact"} <= metrics["kept"][-1].keys() and metrics["kept"][0]["kl"] == pytest.approx(0, abs=1e-4)
    assert (
        metrics["picked"] == {"iteration": told[-1]["of"], "rule": "the last state"}
        and len(metrics["seen"]) == told[-1]["of"]
    )
    engine = Engine.load(made.path)
    assert engine.chat and not home.work(method).exists()
    start, end = load_model(home.path / "sft"), load_model(made.path)
    assert not torch.equal(start.embedding.weight, end.embedding.weight)


@pytest.mark.parametrize("method", ["kto", "grpo"])
def test_the_state_that_is_chosen(home, method):
    back = by_method(method, home, "back", choose=lambda states, actor: (states[0], {"rule": "the first"}))
    assert back.card["metrics"]["picked"] == {"iteration": 0, "rule": "the first"}
    start, end = load_model(home.path / "sft"), load_model(back.path)
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True))


@pytest.mark.parametrize("method", ["kto", "grpo"])
def test_interrupted_and_resumed_is_bit_equal(home, method):
    whole = by_method(method, home)

    def stop_at(step):
        def tell(told):
            if told["iteration"] == step:
                raise KeyboardInterrupt

        return tell

    again = Run(home.path)
    with pytest.raises(KeyboardInterrupt):
        by_method(method, again, "cut", stop_at(2))
    resumed = by_method(method, again, "cut")
    assert resumed.card["files"] == whole.card["files"]
    assert resumed.card["metrics"] == whole.card["metrics"]


def test_a_small_change_to_the_start(home):
    made = by_method("dpo", home, lora_rank=2)
    assert made.file("adapter.safetensors").is_file() and not made.file("model.safetensors").is_file()
    start, end = load_model(home.path / "sft"), load_model(made.path)
    assert torch.equal(start.embedding.weight, end.embedding.weight)
    assert not torch.equal(start.blocks[0].mlp.up.weight, end.blocks[0].mlp.up.weight)


def test_a_reward_model_that_is_not_to_be_trusted(home):
    card = json.loads((home.path / "reward" / "card.json").read_text())
    card["metrics"]["complaint"] = "its AUC includes chance."
    (home.path / "reward" / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"RLOO must not follow .* includes chance"):
        by_method("rloo", home)


def test_kl_limit_keeps_what_came_before(home):
    made = by_method("dpo", home, kl_limit=1e-3, optim=adam(0.05))
    metrics = made.card["metrics"]
    assert "KL reached" in metrics["ended"] and metrics["picked"]["iteration"] == 0
