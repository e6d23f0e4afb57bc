"""RLOO and GRPO: advantages and gradients against hand-written ones, and the closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest_align import FP32, Letters, by_length, exact_kl, gradients_of, letters_model, log_ratio, nudged
from test_ppo import distribution, every_answer

from jielong.align.baselines import compared
from jielong.align.groups import Groups, group_normalised, leave_one_out
from jielong.align.rollout import rollout
from jielong.align.scoring import (
    Answered,
    answer_logprobs,
    answer_tokens,
    chosen,
    hidden_before,
    log_softmax,
    merged_copy,
)
from jielong.config import GroupConfig, adam
from jielong.errors import UserError
from jielong.train.distributed import Team
from jielong.train.loop import History
from jielong.train.optim import Optimizer


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]])
    expected = [
        [r - sum(x for m, x in enumerate(row) if m != n) / 2 for n, r in enumerate(row)] for row in rewards.tolist()
    ]
    assert torch.allclose(leave_one_out(rewards), torch.tensor(expected))
    std = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2)
    found = group_normalised(rewards)
    assert found[0].tolist() == pytest.approx([-2 / (std + 1e-4), -1 / (std + 1e-4), 3 / (std + 1e-4)])
    assert found[1].tolist() == [0, 0, 0]
    nearly = torch.tensor([[0.5, 0.5 + 1e-7]])  # rounding does not become an opinion
    assert group_normalised(nearly).abs().max() < 1e-2


def make_groups(model, tokenizer, score, prompts, method="rloo", reference=None, **changes) -> Groups:
    settings = {"method": method, "precision": "fp32", "threads": 2, "optim": adam(1e-3), "max_tokens": 8, **changes}
    return Groups(model, reference or merged_copy(model), score, tokenizer, prompts, GroupConfig(**settings))


def test_answers_come_in_groups(model, tokenizer, prompts):
    trainer = make_groups(model, tokenizer, by_length, prompts, episodes=12, answers=3)
    drawn = [trainer.prompts_of(step) for step in range(2)]
    asked = [tuple(p) for own, _ in drawn for p in own]
    assert all(len(set(asked[n : n + 3])) == 1 for n in range(0, 24, 3))
    assert len(set(asked[:21:3])) == 7  # every prompt once before any comes again
    assert len({s for _, seeds in drawn for s in seeds}) == 24


def test_what_a_pass_compares(model, tokenizer, prompts):
    policy, reference, exact = compared(model, nudged(model), some(model, tokenizer, prompts), FP32, 0.7)
    sequences = some(model, tokenizer, prompts)
    assert torch.allclose(policy, answer_logprobs(model, sequences, FP32, 0.7))
    assert torch.allclose(reference, answer_logprobs(nudged(model), sequences, FP32, 0.7))
    assert torch.allclose(exact, exact_kl(model, nudged(model), sequences, FP32, 0.7)) and exact.min() > 0


def test_several_processes_share_a_group(model, tokenizer, prompts, monkeypatch):
    """Every process finds its own answers' advantages among everyone's."""
    trainer = make_groups(model, tokenizer, by_length, prompts, episodes=12, answers=4)
    rewards = torch.randn(12)
    alone, asked = trainer.advantages(rewards), trainer.prompts_of(1)
    found, drawn = torch.empty(12), [None] * 12
    for rank in range(3):
        monkeypatch.setattr(Team, "readers", (rank, 3))
        monkeypatch.setattr(Team, "gather", lambda self, own: torch.cat([rewards[r::3] for r in range(3)]))
        found[rank::3] = trainer.advantages(rewards[rank::3])
        drawn[rank::3] = zip(*trainer.prompts_of(1), strict=True)
    assert torch.equal(found, alone) and drawn == list(zip(*asked, strict=True))


def some(model, tokenizer, prompts, count: int = 4, k: int = 3) -> list[Answered]:
    asked = [p for p in prompts[:count] for _ in range(k)]
    return rollout(model, tokenizer, asked, list(range(len(asked))), 1.0, 8).sequences


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_gradient_of_the_first_pass(model, tokenizer, prompts, method):
    """RLOO's is that of REINFORCE with the others' mean as baseline, −Σ A ∇ log π(answer) / N. GRPO's has normalised
    scores and the gradient of its KL term, kl · Σ (1 − π_ref/π) ∇ log π / N, beside it."""
    T, kl, reference = 0.7, 0.3, nudged(model)
    trainer = make_groups(
        model, tokenizer, by_length, prompts, method, reference, episodes=12, answers=3, kl=kl, missing_end=None
    )
    asked = [p for p in prompts[:4] for _ in range(3)]
    drawn = rollout(model, tokenizer, asked, list(range(12)), T, 8)
    experience, told = trainer.experience(drawn, kl, FP32)
    count = float(experience.lengths.sum())
    loss, sums = trainer.loss(experience, FP32, count)
    loss.backward()
    found = gradients_of(model)
    model.zero_grad()
    ratios = [log_ratio(model, reference, s, T) for s in drawn.sequences]
    scores = by_length(drawn).tolist()
    if method == "rloo":
        scores = [r - kl * float(k.detach()) for r, k in zip(scores, ratios, strict=True)]
    for n, s in enumerate(drawn.sequences):
        own = [i for i in range(12) if i // 3 == n // 3]
        mean = np.mean([scores[i] for i in own])
        if method == "rloo":
            advantage = scores[n] - np.mean([scores[i] for i in own if i != n])
        else:
            advantage = (scores[n] - mean) / (np.std([scores[i] for i in own], ddof=1) + 1e-4)
        logprobs = chosen(log_softmax(model, hidden_before(model, [s], FP32), T), answer_tokens([s]))
        (-float(advantage) * logprobs.sum() / count).backward()
        if method == "grpo":
            logprobs = chosen(log_softmax(model, hidden_before(model, [s], FP32), T), answer_tokens([s]))
            far = 1 - (answer_logprobs(reference, [s], FP32, T) - logprobs.detach()).exp()
            (kl * (far * logprobs).sum() / count).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, found[name], atol=2e-6), name
    model.zero_grad()
    for part in ([0, 5, 7], [1, 2, 3, 4], [6, 8, 9, 10, 11]):  # micro-batches add up
        trainer.loss(experience.rows(part), FP32, count)[0].backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, found[name], atol=2e-6), name
    assert told["kl"] == pytest.approx(float(torch.stack(ratios).detach().mean()), abs=1e-4) and told["kl_exact"] > 0
    assert float(sums[5]) == pytest.approx(count, rel=1e-5) and sums[3] == 0 and "explained" not in told


def test_an_answers_ratio_is_clipped_as_a_whole(model, tokenizer, prompts):
    """RLOO stops an answer that has become likelier by more than the clip, whatever its single tokens did."""
    trainer = make_groups(model, tokenizer, by_length, prompts, episodes=12, answers=3)
    experience, _ = trainer.experience(rollout(model, tokenizer, [p for p in prompts[:4] for _ in range(3)], list(range(12)), 0.7, 8), 0.05, FP32)  # fmt: skip
    experience.logprobs = experience.logprobs - 0.5 / experience.lengths.repeat_interleave(experience.lengths)
    experience.advantages = experience.advantages.abs() + 1
    loss, sums = trainer.loss(experience, FP32, 1.0)
    assert float(loss.detach()) == pytest.approx(
        -1.2 * float(experience.advantages[experience.lengths.cumsum(0) - 1].sum())
    )
    assert float(sums[3]) == pytest.approx(float(experience.lengths.sum()))
    loss.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)


def test_groups_of_what_cannot_be_compared(model, tokenizer, prompts):
    for match, changes in (
        ("at least 2", {"answers": 1}),
        ("multiple of answers", {"episodes": 10, "answers": 4}),
        ("temperature", {"temperature": 0.0}),
        ("rloo or grpo", {"method": "ppo"}),
    ):
        with pytest.raises(UserError, match=match):
            make_groups(model, tokenizer, by_length, prompts, **changes)
    nan = make_groups(model, tokenizer, lambda d: torch.full((len(d.sequences),), float("nan")), prompts, episodes=4)
    with pytest.raises(UserError, match=r"reward of .* is nan"):
        nan.last(FP32)


def learn(trainer) -> History:
    optimizer, history = Optimizer(trainer.model, trainer.config.optim, FP32), History()
    for step in range(trainer.config.iterations):
        trainer(optimizer, step, FP32, history)
    return history


def test_rloo_converges_to_the_closed_form():
    """E[r] − β KL(π ‖ π_ref) is largest at π* ∝ π_ref · exp(r/β), as in test_ppo.py.

    The prompt is a token that no answer goes on after: with another one the model could not tell a, a a and a a a apart,
    since attention to equal values is that value, and the optimum would lie out of its reach.
    """
    beta, answers, model = 0.5, every_answer(4, 3), letters_model(4, 0)
    reference = distribution(model, answers)
    table = torch.randn(len(answers), generator=torch.Generator().manual_seed(0))
    of = dict(zip(answers, table.tolist(), strict=True))
    best = reference * (table / beta).exp()
    best /= best.sum()
    trainer = make_groups(
        model, Letters(), lambda drawn: torch.tensor([of[s.answer] for s in drawn.sequences]), [[0]],
        iterations=30, episodes=128, answers=8, epochs=4, max_tokens=3, temperature=1.0, kl=beta, missing_end=None,
        optim=adam(4e-3), kl_limit=1e9,
    )  # fmt: skip
    learn(trainer)
    before, after = (
        float((reference - best).abs().sum() / 2),
        float((distribution(model, answers) - best).abs().sum() / 2),
    )
    print(f"total variation {before:.3f} → {after:.3f}")
    assert before > 0.5 and after < 0.1


def test_grpo_earns_more():
    model = letters_model(6, 1)
    trainer = make_groups(
        model, Letters(), lambda d: torch.tensor([float(2 in s.answer) for s in d.sequences]), [[1], [2, 3]], "grpo",
        iterations=12, episodes=64, answers=8, max_tokens=4, temperature=1.0, missing_end=None, optim=adam(4e-3),
    )  # fmt: skip
    seen = learn(trainer).seen
    assert seen[0]["kl"] == pytest.approx(0, abs=1e-5) and seen[0]["first_pass"]["ratio"] == pytest.approx(1, abs=1e-5)
    assert seen[-1]["score"] > seen[0]["score"] + 0.2 and seen[-1]["kl_exact"] > 0.1
