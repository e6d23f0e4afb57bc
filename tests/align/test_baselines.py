"""The baselines of PPO: losses and advantages against hand-written ones, the closed form, and whole small stages."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest_align import Letters, exact_kl, letters_model
from test_ppo import distribution, every_answer

from jielong.align import direct, groups
from jielong.align.baselines import best_of_n, best_of_n_kl, candidates, compared
from jielong.align.direct import Direct, Examples, check, dpo_loss, kto_loss, kto_weights, mismatched
from jielong.align.groups import Groups, group_normalised, leave_one_out
from jielong.align.rollout import rollout
from jielong.align.scoring import (
    Answered,
    Scored,
    answer_logprobs,
    answer_tokens,
    chosen,
    hidden_before,
    log_softmax,
    merged_copy,
    score,
)
from jielong.config import DirectConfig, GroupConfig, adam
from jielong.errors import UserError
from jielong.feedback.labels import Pair, Thumb
from jielong.generate.engine import Engine
from jielong.model.gpt import load_model, save_model
from jielong.run import Artifact, Run
from jielong.train.loop import Enough, History
from jielong.train.optim import Optimizer

FP32 = torch.float32


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_length(drawn):
    return torch.tensor([float(len(s.answer)) for s in drawn.sequences])


def some_labels(count: int = 12, seed: int = 0) -> tuple[list[Thumb], list[Pair]]:
    """Thumbs, two to a prompt by one user, and comparisons, with answers of different lengths."""
    rng = np.random.default_rng(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(int(x) for x in rng.integers(20, 60, n))

    thumbs, pairs = [], []
    for n in range(count):
        asked, prompt = (("user", f"question {n // 2}"),), (1, 2, 20 + n // 2)
        thumbs.append(Thumb(asked, prompt, (*tokens(2 + n % 5), 4), n % 2 == 0, "ann"))
        if n % 3 == 0:
            pairs.append(Pair((("user", f"other {n}"),), (5, 6, 7 + n), tokens(3), (*tokens(5), 4), "bob"))
    return thumbs, pairs


def make_direct(model, tokenizer, method: str, reference=None, **changes) -> Direct:
    config = DirectConfig(
        **{"method": method, "precision": "fp32", "threads": 2, "rows": 8, "max_tokens": 8, "probes": 8, **changes}
    )
    examples = Examples.of(method, *some_labels())
    return Direct(model, reference or merged_copy(model), tokenizer, examples, config, 10, FP32)


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def nudged(model, by: float = 0.02):
    """A reference that is not the model: log-ratios are not 0."""
    other = merged_copy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * by)
    return other


def log_ratio(model, reference, sequence: Answered, temperature: float) -> torch.Tensor:
    """The slow way, one answer at a time."""
    total = torch.zeros(())
    for sign, one in ((1, model), (-1, reference)):
        table = log_softmax(one, hidden_before(one, [sequence], FP32), temperature)
        total = total + sign * chosen(table, answer_tokens([sequence])).sum()
    return total


# losses


def test_dpo_loss_by_hand():
    better, worse = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 3.0, 0.5])
    expected = [-math.log(sigmoid(0.3 * d)) for d in (0.5, -5.0, 0.0)]
    assert dpo_loss(better, worse, 0.3).tolist() == pytest.approx(expected)
    assert torch.isfinite(dpo_loss(torch.tensor([-1e4]), torch.tensor([1e4]), 1.0)).all()


def test_kto_loss_by_hand():
    ratios, up = torch.tensor([1.0, -2.0, 3.0, 0.2]), torch.tensor([True, True, False, False])
    expected = [0.7 * (1 - sigmoid(0.3 * (r - 0.4))) for r in (1.0, -2.0)]
    expected += [1.2 * (1 - sigmoid(0.3 * (0.4 - r))) for r in (3.0, 0.2)]
    assert kto_loss(ratios, up, 0.4, 0.3, 0.7, 1.2).tolist() == pytest.approx(expected)
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    lost = kto_loss(far, torch.tensor([False, True]), 0.0, 1.0, 1.0, 1.0)
    lost.sum().backward()
    assert lost.tolist() == [1.0, 1.0] and torch.isfinite(far.grad).all()


def test_kto_weights():
    for up, down, balance in ((10, 10, 1.0), (2000, 10_000, 1.0), (1, 10_000, 4 / 3), (900, 3, 1.2)):
        of_up, of_down = kto_weights(up, down, balance)
        assert up * of_up / (down * of_down) == pytest.approx(balance) and max(of_up, of_down) == 1.0


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


# DPO and KTO on a model


def test_what_is_learnt_from():
    thumbs, pairs = some_labels()
    for_dpo, for_kto = Examples.of("dpo", thumbs, pairs), Examples.of("kto", thumbs, pairs)
    assert len(for_dpo) == 6 + len(pairs) and for_dpo.up == [True, False] * len(for_dpo)
    assert for_dpo.sequences[:2] == [
        Answered(pairs[0].prompt, pairs[0].chosen),
        Answered(pairs[0].prompt, pairs[0].rejected),
    ]
    assert len(for_kto) == 12 + 2 * len(pairs) and for_kto.up == [t.up for t in thumbs] + [True, False] * len(pairs)
    assert for_dpo.rows([2, 0]) == [4, 5, 0, 1] and for_kto.rows([2, 0]) == [2, 0]
    assert for_dpo.ranked(torch.tensor([2.0, 1.0] * 4 + [0.0, 0.0] * 2 + [0.0, 1.0] * 4)) == pytest.approx(0.5)
    silent = [dataclasses.replace(thumbs[0], answer=())]
    assert not len(Examples.of("kto", silent, [])) and not len(Examples.of("dpo", [*silent, thumbs[1]], []))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_dpo_gradient(model, tokenizer, temperature):
    """−β σ(−margin) (∇ log π(better) − ∇ log π(worse)), the mean over the pairs (Rafailov et al. 2023, section 4)."""
    reference, beta = nudged(model), 0.5
    dpo = make_direct(model, tokenizer, "dpo", reference, beta=beta, temperature=temperature)
    items = [0, 3, 5, 7]
    told = dpo.gradients(items, FP32)
    found = gradients_of(model)
    model.zero_grad()
    losses = []
    for item in items:
        better, worse = dpo.examples.sequences[2 * item : 2 * item + 2]
        gap = log_ratio(model, reference, better, temperature) - log_ratio(model, reference, worse, temperature)
        margin = beta * float(gap.detach())
        losses.append(-math.log(sigmoid(margin)))
        (-beta * sigmoid(-margin) * gap / len(items)).backward()
    assert told["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, found[name], atol=1e-6), name


def test_kto_loss_and_reference_point(model, tokenizer):
    """z0 is the mean log-ratio of shifted answers, or 0; it is a constant of the gradient."""
    reference, T = nudged(model), 0.7
    kto = make_direct(model, tokenizer, "kto", reference, beta=0.5, balance=1.2)
    items = [0, 3, 5, 7, 12, 13]
    told = kto.gradients(items, FP32)
    found = gradients_of(model)
    model.zero_grad()
    own = [kto.examples.sequences[i] for i in items]
    shifted = [Answered(s.prompt, own[(n + 1) % len(own)].answer) for n, s in enumerate(own)]
    assert mismatched(own, 64) == shifted
    mean = np.mean([float(log_ratio(model, reference, s, T).detach()) for s in shifted])
    assert told["z0"] == pytest.approx(max(0.0, mean), abs=1e-4)
    swapped = make_direct(reference, tokenizer, "kto", model)  # the other way round the sign is the other one
    z0s = [told["z0"], swapped.reference_point(own, FP32)]
    assert min(z0s) == 0 and max(z0s) == pytest.approx(abs(mean), abs=1e-4) and max(z0s) > 0.01
    of_up, of_down = kto_weights(sum(kto.examples.up), kto.examples.up.count(False), 1.2)
    loss = torch.zeros(())
    for i, s in zip(items, own, strict=True):
        r, up = log_ratio(model, reference, s, T), kto.examples.up[i]
        gain = 0.5 * (r - told["z0"]) if up else 0.5 * (told["z0"] - r)
        loss = loss + (of_up if up else of_down) * (1 - torch.sigmoid(gain)) / len(items)
    loss.backward()
    assert told["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, found[name], atol=1e-6), name


def test_mismatched_answers_end_with_the_context():
    long = [Answered((1,) * 60, (2,) * 4), Answered((3,), (4,) * 50)]
    assert [len(s) for s in mismatched(long, 64)] == [64, 5]


def test_a_batch_of_one_kind_is_no_trouble(model, tokenizer):
    kto = make_direct(model, tokenizer, "kto")
    told = kto.gradients([1, 3, 5], FP32)  # thumbs down only
    assert math.isfinite(told["loss"]) and "reward_up" not in told and "ranked" not in told
    assert all(torch.isfinite(g).all() for g in gradients_of(model).values())


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_labels_are_learnt(model, tokenizer, method):
    """Liked answers rise against the others, and the KL to the start is measured on the way."""
    trainer = make_direct(model, tokenizer, method, optim=adam(1e-3), rows=16, keep_every=5)
    kept = {}
    trainer.keep = lambda step, told: kept.update({step: told})
    optimizer, history = Optimizer(model, trainer.config.optim, FP32), History()
    for step in range(10):
        trainer(optimizer, step, FP32, history)
    trainer.last(FP32)
    first, last = history.seen[0], history.seen[-1]
    assert first["reward_up"] == pytest.approx(0, abs=1e-5)
    assert last["ranked"] > 0.9 and last["reward_up"] > last["reward_down"] + 0.1 and last["loss"] < first["loss"]
    assert sorted(kept) == [0, 5, 10] and kept[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert kept[10]["kl_exact"] > 0.01 and first["kl"] == kept[0]["kl"] and "kl" not in last
    trainer.config.kl_limit = 0.005
    with pytest.raises(Enough, match="KL reached"):
        trainer.last(FP32)


def test_what_cannot_be_learnt(model, tokenizer):
    thumbs, pairs = some_labels()
    alone = [t for t in thumbs if t.up]

    def refused(match, thumbs, pairs, **changes):
        config = DirectConfig(**changes)
        with pytest.raises(UserError, match=match):
            check(config, len(thumbs), Examples.of(config.method, thumbs, pairs))

    refused("these 6 thumbs hold no such pair", alone, [])
    refused("All 6 thumbs point up", alone, [], method="kto")
    refused("no thumbs and no comparisons", [], [], method="kto")
    refused("between 1 and 4/3", thumbs, pairs, method="kto", balance=2.0)
    refused("at least 2", thumbs, pairs, method="kto", rows=1)
    refused("dpo or kto", thumbs, pairs, method="ipo")
    refused("above 0", thumbs, pairs, beta=0.0)
    refused("at least 1", thumbs, pairs, probes=0)
    check(DirectConfig(method="kto", balance=4 / 3), 12, Examples.of("kto", thumbs, pairs))
    config = DirectConfig()
    for answer, match in (((20,) * 80, "reads at most 64"), ((9999,), "another tokenizer")):
        bad = Examples.of("dpo", [], [dataclasses.replace(pairs[0], chosen=answer)])
        with pytest.raises(UserError, match=match):
            Direct(model, model, tokenizer, bad, config, 1, FP32)


# best-of-n


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


# RLOO and GRPO


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
        monkeypatch.setattr(groups, "world", lambda rank=rank: (rank, 3))
        monkeypatch.setattr(groups, "gather", lambda own: torch.cat([rewards[r::3] for r in range(3)]))
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


# whole stages


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
