"""PPO: its invariants, its gradient, and the one place where its answer is known exactly."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from conftest_align import Letters, exact_kl, letters_model, make_ppo

from jielong.align.losses import whiten
from jielong.align.ppo import repetition
from jielong.align.rollout import rollout
from jielong.align.scoring import (
    Answered,
    Scored,
    answer_logprobs,
    answer_tokens,
    answer_values,
    chosen,
    hidden_before,
    log_softmax,
)
from jielong.align.scoring import score as score_with
from jielong.config import adam
from jielong.errors import UserError
from jielong.model.lora import add_lora
from jielong.train.loop import Enough, History, LoopConfig, repeat
from jielong.train.optim import Optimizer

FP32 = torch.float32


def by_length(drawn):
    return torch.tensor([float(len(s.answer)) for s in drawn.sequences])


def one_iteration(ppo, step: int = 0, history: History | None = None):
    optimizer = Optimizer(ppo.model, ppo.config.optim, FP32)
    history = history or History()
    ppo(optimizer, step, FP32, history)
    return history.seen[-1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_pass(model, tokenizer, prompts, temperature):
    """Before anything is learnt the ratio is 1, the KL 0, nothing is clipped, and whitened advantages sum to 0."""
    ppo = make_ppo(model, tokenizer, by_length, prompts, episodes=16, epochs=2, max_tokens=12, temperature=temperature)
    told = one_iteration(ppo)
    first = told["first_pass"]
    assert first["ratio"] == pytest.approx(1, abs=1e-5) and first["approx_kl"] < 1e-10 and first["clipped"] == 0
    assert abs(first["policy_loss"]) < 1e-5
    assert told["kl"] == 0 and abs(told["kl3"]) < 1e-9
    assert told["rollout_gap"] < 1e-4  # the engine's cache and batch against the training forward pass
    assert told["approx_kl"] > 0  # the second pass has moved


def test_nothing_moves_without_a_learning_rate(model, tokenizer, prompts):
    ppo = make_ppo(model, tokenizer, by_length, prompts, episodes=8, epochs=3, max_tokens=8, optim=adam(0.0))
    told = one_iteration(ppo)
    assert told["passes"] == 3 and told["approx_kl"] < 1e-10 and told["ratio"] == pytest.approx(1, abs=1e-5)


def some(tokenizer, prompts, model, count=7):
    return rollout(model, tokenizer, prompts[:count], list(range(count)), 1.0, 10)


def test_padding_neighbours_and_micro_batches_change_nothing(model, tokenizer, prompts):
    drawn = some(tokenizer, prompts, model)
    sequences = drawn.sequences
    whole = answer_logprobs(model, sequences, FP32)
    alone = torch.cat([answer_logprobs(model, [s], FP32) for s in sequences])
    assert torch.allclose(whole, alone, atol=1e-5)
    assert torch.allclose(answer_logprobs(model, sequences, FP32, most=40), whole, atol=1e-5)
    assert torch.allclose(drawn.sampled, whole, atol=1e-4)
    order = [3, 1, 6, 0, 2, 5, 4]
    mixed = answer_logprobs(model, [sequences[i] for i in order], FP32).split([len(sequences[i].answer) for i in order])
    back = torch.cat([mixed[order.index(i)] for i in range(7)])
    assert torch.allclose(back, whole, atol=1e-5)
    critic = Scored(model)
    torch.nn.init.normal_(critic.score.weight)
    ends = score_with(critic, sequences, FP32)
    assert torch.allclose(ends, torch.cat([score_with(critic, [s], FP32) for s in sequences]), atol=1e-5)
    # what follows an answer cannot reach its score, what is in it does
    longer = [Answered(s.prompt, (*s.answer, 5)) for s in sequences]
    assert torch.allclose(answer_values(critic, longer, FP32)[: len(sequences[0].answer)], answer_values(critic, sequences, FP32)[: len(sequences[0].answer)], atol=1e-5)  # fmt: skip
    assert not torch.allclose(score_with(critic, longer, FP32), ends, atol=1e-3)


def gradients(ppo, experience, count=None):
    ppo.model.zero_grad()
    loss, _ = ppo.loss(experience, FP32, count or float(experience.lengths.sum()))
    loss.backward()
    return {n: p.grad.clone() for n, p in ppo.model.named_parameters() if p.grad is not None}


def test_micro_batches_add_up(model, tokenizer, prompts):
    ppo = make_ppo(model, tokenizer, by_length, prompts, max_tokens=10)
    drawn = some(tokenizer, prompts, model)
    experience, _ = ppo.experience(drawn, 0.05, FP32)
    whole = gradients(ppo, experience)
    count = float(experience.lengths.sum())
    ppo.model.zero_grad()
    for part in ([0, 4], [1, 2, 3], [5, 6]):
        ppo.loss(experience.rows(part), FP32, count)[0].backward()
    for name, p in ppo.model.named_parameters():
        assert torch.allclose(p.grad, whole[name], atol=1e-6), name


def test_gradient_is_that_of_reinforce(model, tokenizer, prompts):
    """At ratio 1 the clipped objective's gradient is −Σ A ∇ log π / N, that of REINFORCE with a baseline."""
    ppo = make_ppo(model, tokenizer, by_length, prompts, max_tokens=10, value_weight=0.0)
    experience, _ = ppo.experience(some(tokenizer, prompts, model), 0.05, FP32)
    found = gradients(ppo, experience)
    ppo.model.zero_grad()
    hidden = hidden_before(model, experience.sequences, FP32)
    logprobs = chosen(log_softmax(model, hidden, ppo.config.temperature), answer_tokens(experience.sequences))
    (-(experience.advantages * logprobs).sum() / len(logprobs)).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, found[f"actor.{name}"], atol=1e-6), name


def test_advantages_are_whitened_over_the_whole_batch(model, tokenizer, prompts):
    ppo = make_ppo(model, tokenizer, by_length, prompts, max_tokens=10)
    experience, _ = ppo.experience(some(tokenizer, prompts, model), 0.05, FP32)
    assert torch.allclose(experience.advantages, whiten(experience.returns - experience.values), atol=1e-6)


def test_the_score_of_an_answer_without_an_end(model, tokenizer, prompts):
    ppo = make_ppo(model, tokenizer, lambda drawn: torch.full((len(drawn.sequences),), 5.0), prompts, max_tokens=3)
    told = one_iteration(ppo)
    assert told["score"] == pytest.approx(5.0 * told["ended"] - (1 - told["ended"]))


def test_reward_of_nan_and_kl_explosion(model, tokenizer, prompts):
    nan = make_ppo(model, tokenizer, lambda d: torch.full((len(d.sequences),), float("nan")), prompts, max_tokens=3)
    with pytest.raises(UserError, match=r"reward of .* is nan"):
        one_iteration(nan)
    with pytest.raises(UserError, match="minibatches must lie"):
        make_ppo(model, tokenizer, by_length, prompts, episodes=4, minibatches=5)
    far = make_ppo(model, tokenizer, by_length, prompts, max_tokens=6, kl_limit=-1.0)
    with pytest.raises(Enough, match="KL reached"):
        one_iteration(far)


def test_adaptive_weight_goes_on_from_the_history(model, tokenizer, prompts):
    ppo = make_ppo(model, tokenizer, by_length, prompts, episodes=8, max_tokens=6, kl_target=6.0, kl_horizon=100.0)
    history = History()
    first = one_iteration(ppo, 0, history)
    assert first["kl_weight"] == 0.05 and first["next_kl_weight"] == pytest.approx(0.05 * (1 - 0.2 * 8 / 100))
    assert one_iteration(ppo, 1, history)["kl_weight"] == first["next_kl_weight"]


def test_repetition():
    assert repetition([1, 2, 3]) == 0 and repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_interrupted_and_resumed_is_bit_equal(tmp_path):
    """Weights, critic, optimizer, KL weight and draws go on where they were."""

    def life(work, stop_at=None):
        ppo = make_ppo(
            letters_model(6, 1), Letters(), lambda d: torch.tensor([float(sum(s.answer)) for s in d.sequences]), [[1], [2, 3]],
            episodes=12, epochs=2, iterations=5, max_tokens=4, kl_target=1.0, kl_horizon=50.0,
        )  # fmt: skip

        def keep(iteration, metrics):
            if iteration == stop_at:
                raise KeyboardInterrupt

        ppo.keep = keep
        loop = LoopConfig(5, ppo.config.optim, "fp32", 2, checkpoint_seconds=0.0, history=False)
        history = repeat(ppo.model, ppo, loop, work)
        return history.seen, torch.cat([p.detach().flatten() for p in ppo.model.parameters()])

    seen, weights = life(tmp_path / "whole")
    for stop_at in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            life(tmp_path / "cut", stop_at)
    seen_again, weights_again = life(tmp_path / "cut")
    assert seen_again == seen and torch.equal(weights, weights_again) and len(seen) == 5


def test_lora_actor(model, tokenizer, prompts):
    """Only the low-rank change learns; what rolls out is the sum of both."""
    add_lora(model, 2, 4.0, 1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ppo = make_ppo(model, tokenizer, by_length, prompts, episodes=8, epochs=2, max_tokens=8, optim=adam(1e-2))
    told = one_iteration(ppo)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".lora." in n for n in changed)
    again = one_iteration(ppo, 1)
    assert again["rollout_gap"] < 1e-4 and again["kl"] != 0 and told["kl"] == 0


def test_value_warmup_leaves_the_actor_alone(model, tokenizer, prompts):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ppo = make_ppo(model, tokenizer, by_length, prompts, episodes=8, epochs=2, max_tokens=8, value_warmup=1)
    critic = ppo.model.critic.score.weight.detach().clone()
    one_iteration(ppo)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not torch.equal(ppo.model.critic.score.weight, critic)


def test_the_actors_first_step_is_a_first_step(model, tokenizer, prompts):
    """Adam corrects the actor's moments by the actor's own steps, whatever the critic did before: without an epsilon the
    first step moves each weight by the learning rate."""
    ppo = make_ppo(
        model, tokenizer, by_length, prompts, episodes=8, epochs=1, max_tokens=8, value_warmup=2, iterations=3
    )
    ppo.config.optim = dataclasses.replace(ppo.config.optim, eps=1e-20, clip=0.0, cooldown=0.0)
    optimizer, history = Optimizer(ppo.model, ppo.config.optim, FP32), History()
    for step in range(2):
        ppo(optimizer, step, FP32, history)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ppo(optimizer, 2, FP32, history)
    moved = torch.cat([(p.detach() - before[n]).abs().flatten() for n, p in model.named_parameters()])
    moved = moved[moved > 0]
    assert len(moved) > 1000 and torch.allclose(moved, torch.tensor(ppo.config.optim.adam_lr), rtol=1e-2)


def test_pretraining_mix_pulls_back(model, tokenizer, prompts):
    """PPO-ptx adds the gradient of its own loss, scaled."""

    def mix(actor, number, dtype):
        return sum(p.square().sum() for p in actor.parameters())

    plain = make_ppo(model, tokenizer, by_length, prompts, max_tokens=8)
    experience, _ = plain.experience(some(tokenizer, prompts, model), 0.05, FP32)
    alone = gradients(plain, experience)
    mixed = make_ppo(model, tokenizer, by_length, prompts, max_tokens=8, ptx=0.5)
    mixed.mix = mix
    mixed.model.zero_grad()
    seen = {}

    class Recorder:
        def step(self, progress):
            seen.update({n: p.grad.clone() for n, p in mixed.model.actor.named_parameters()})

    mixed.update(experience, Recorder(), 0, FP32)
    for name, p in model.named_parameters():
        assert torch.allclose(seen[name], alone[f"actor.{name}"] + p.detach(), atol=1e-5), name


# the closed form


def every_answer(vocabulary: int, longest: int) -> list[tuple[int, ...]]:
    found = []
    for length in range(1, longest + 1):
        for body in itertools.product(range(1, vocabulary), repeat=length - 1):
            found += [(*body, last) for last in range(vocabulary) if last == 0 or length == longest]
    return found


def distribution(model, answers) -> torch.Tensor:
    sequences = [Answered((0,), a) for a in answers]
    flat = answer_logprobs(model, sequences, FP32)
    return torch.stack([f.sum() for f in flat.split([len(a) for a in answers])]).exp()


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_converges_to_the_closed_form(seed, beta):
    """E[r] − β KL(π ‖ π_ref) is largest at π* ∝ π_ref · exp(r/β): PPO must end there, for any reward table.

    The prompt is a token that no answer continues with: to this model of one layer, prompts and answers of one repeated
    token would all look alike, and then not even the exact gradient reaches π* (docs/log.md).
    """
    answers = every_answer(3, 3)
    model = letters_model(3, seed)
    reference = distribution(model, answers)
    assert float(reference.sum()) == pytest.approx(1, abs=1e-4)
    table = torch.randn(len(answers), generator=torch.Generator().manual_seed(seed))
    of = {a: float(r) for a, r in zip(answers, table, strict=True)}
    best = reference * (table / beta).exp()
    best /= best.sum()

    def score(drawn):
        return torch.tensor([of[s.answer] for s in drawn.sequences])

    ppo = make_ppo(
        model, Letters(), score, [[0]], iterations=40, episodes=192, epochs=4, max_tokens=3, temperature=1.0, kl=beta,
        missing_end=None, lam=1.0, value_weight=0.5, value_clip=10.0, optim=adam(6e-3), kl_limit=1e9, seed=seed,
    )  # fmt: skip
    optimizer, history = Optimizer(ppo.model, ppo.config.optim, FP32), History()
    for step in range(ppo.config.iterations):
        ppo(optimizer, step, FP32, history)
    final = distribution(model, answers)
    before, after = float((reference - best).abs().sum() / 2), float((final - best).abs().sum() / 2)
    print(f"seed {seed} beta {beta}: total variation {before:.3f} → {after:.3f}")
    assert after < 0.06 and after < before / 2
    exact = exact_kl(model, ppo.reference, [Answered((0,), a) for a in answers], FP32, 1.0)
    assert exact.min() > -1e-6
