"""PPO's arithmetic on frozen numbers against two references: TRL 1.12 and OpenAI's formulas.

`golden/trl-1.12.json` holds tables of logits, values and scores, and what TRL's PPOTrainer.train() made of them
(benchmarks/ppo_golden.py says how). In "full" every answer fills its row; "ragged" and "whitened" hold answers that end early.
TRL differs from us, and from Ziegler et al., in four ways; each is undone here by what it is, not by a looser bound:

- the score of an answer that ends early stands on the first PAD after its end, where TRL also reads a value and
  counts that value's error: its row is an answer of one token more, whose log-ratio is 0;
- the variance of whitening is divided by n − 1, ours by n, as in OpenAI's code;
- log-probabilities of padding are set to 1.0, old and new, so that approxkl and the mean ratio count padding as tokens
  that have not moved;
- a missing end subtracts a penalty from the score; ours replaces the score.

The OpenAI formulas are written out below in numpy from their description in Ziegler et al. 2019 (arXiv:1909.08593) and
Huang et al. 2024 ("The N implementation details of RLHF with PPO").
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest_align import Letters, letters_model, make_ppo
from torch import Tensor, nn

from jielong.align.losses import gae, kl_estimates, policy_loss, token_rewards, value_loss, whiten
from jielong.align.ppo import PPO, ActorCritic
from jielong.align.rollout import Rollout, rollout
from jielong.align.scoring import Answered
from jielong.config import OptimConfig, PPOConfig, adam
from jielong.train.optim import Optimizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "trl-1.12.json").read_text(encoding="utf-8"))
CASES = sorted(GOLDEN["cases"])
FP32 = torch.float32
EOS = 1


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # more only wait for each other over such small tensors


def given(name: str) -> Tensor:
    return torch.tensor(GOLDEN["inputs"][name])


class Case:
    """One recorded case; `flat` are the answers' tokens, `flat_p1` with TRL's one more where an answer ends early."""

    def __init__(self, name: str):
        self.found = GOLDEN["cases"][name]
        self.settings = SimpleNamespace(**self.found["settings"])
        self.answers = torch.tensor(self.found["answers"])
        self.real, self.real_p1 = ~torch.tensor(self.found["pad"]).bool(), ~torch.tensor(self.found["pad_p1"]).bool()
        self.lengths, self.lengths_p1 = self.real.sum(1), self.real_p1.sum(1)

    def flat(self, name: str) -> Tensor:
        return torch.tensor(self.found[name])[self.real]

    def flat_p1(self, name: str) -> Tensor:
        return torch.tensor(self.found[name])[self.real_p1]

    def bessel(self, count: int) -> float:
        """Ours is whitened by the variance, theirs by n/(n − 1) of it."""
        return (1 - 1 / count) ** 0.5

    def config(self, missing_end: float | None = None) -> PPOConfig:
        s = self.settings
        return PPOConfig(
            episodes=len(self.lengths), temperature=s.temperature, kl=s.kl_coef, gamma=s.gamma, lam=s.lam, clip=s.cliprange,
            value_clip=s.cliprange_value, value_weight=s.vf_coef, whiten_rewards=s.whiten_rewards,
            missing_end=missing_end, precision="fp32",
        )  # fmt: skip

    def drawn(self) -> Rollout:
        sequences = [
            Answered((row, row), tuple(tokens[:n].tolist()))
            for row, (tokens, n) in enumerate(zip(self.answers, self.lengths, strict=True))
        ]
        ended = torch.tensor([s.answer[-1] == EOS for s in sequences])
        return Rollout(sequences, [""] * len(sequences), ended, torch.zeros(int(self.lengths.sum())))


def close(a: Tensor | np.ndarray | float, b: Tensor | np.ndarray | float) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return Case(request.param)


# the parts, against TRL


def test_rewards_of_trl(case):
    """−β·(log π − log π_ref) per token and the score at the end."""
    logprobs = case.flat_p1("logprobs")
    reference = logprobs - case.flat_p1("kl")
    scores = torch.tensor(case.found["scores"])
    rewards = token_rewards(scores, logprobs, reference, case.lengths_p1, case.settings.kl_coef)
    close(kl_estimates(logprobs, reference)["k1"], case.flat_p1("kl"))
    if not case.settings.whiten_rewards:
        return close(rewards, case.flat_p1("rewards"))
    close(rewards, case.flat_p1("plain_rewards"))
    mean = rewards.mean()
    close((whiten(rewards, keep_mean=True) - mean) * case.bessel(len(rewards)) + mean, case.flat_p1("rewards"))


def test_advantages_and_returns_of_trl(case):
    s = case.settings
    advantages = gae(case.flat_p1("rewards"), case.flat_p1("values"), case.lengths_p1, s.gamma, s.lam)
    close(advantages, case.flat_p1("plain_advantages"))
    close(advantages + case.flat_p1("values"), case.flat_p1("returns"))
    plain = case.flat("plain_advantages")
    close(whiten(plain) * case.bessel(len(plain)), case.flat("advantages"))


def test_losses_of_trl(case):
    """Both losses, their gradients, and the metrics. ½ of the value loss is in both."""
    s, found = case.settings, case.found
    new, old = case.flat("new_logprobs").requires_grad_(), case.flat("logprobs")
    policy, clipped = policy_loss(new, old, case.flat("advantages"), s.cliprange)
    close(policy.item() / len(new), found["pg_loss"])
    assert int(clipped) == round(found["clipfrac"] * len(new)) > 0
    values = given("new_values")[case.real_p1].requires_grad_()
    value = value_loss(values, case.flat_p1("values"), case.flat_p1("returns"), s.cliprange_value)
    close(value.item() / len(values), found["vf_loss"])
    loss = policy / len(new) + s.vf_coef * value / len(values)
    close(loss.item(), found["loss"])
    loss.backward()
    close(values.grad, case.flat_p1("new_values_gradient"))
    change = (new - old).detach()
    close(change.exp(), case.flat("ratio"))
    pads, size = case.real.numel() - len(new), case.real.numel()
    close(0.5 * float(change.square().sum()) / size, found["approxkl"])
    close((float(change.exp().sum()) + pads) / size, found["mean_ratio"])


# the whole of PPO on the same numbers: tables in the place of models


class Table(nn.Module):
    """A "GPT" whose hidden state before answer token t of episode e is table[e, t]; a prompt is (e, e)."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = nn.Parameter(table.clone())

    @property
    def device(self) -> torch.device:
        return self.table.device

    def forward(self, tokens: Tensor, mask, dtype) -> Tensor:
        rows = self.table[tokens[:, 0]][:, : tokens.shape[1] - 2]
        blank = torch.zeros_like(rows[:, :1])
        return torch.cat([blank, rows, blank], 1)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class TableCritic(nn.Module):
    def __init__(self, values: Tensor):
        super().__init__()
        self.body = Table(values.unsqueeze(-1))

    def read(self, hidden: Tensor) -> Tensor:
        return hidden.squeeze(-1)


def our_update(case: Case, missing_end: float | None):
    """(experience, metrics, PPO.loss's loss and sums, model) with the old tables at first and the new ones in the loss."""
    model = ActorCritic(Table(given("old")), TableCritic(given("values")))  # pyright: ignore[reportArgumentType]
    config = case.config(missing_end)
    ppo = PPO(model, Table(given("reference")), lambda _: given("scores"), Letters(), [[0]], config)  # pyright: ignore
    drawn = case.drawn()
    with torch.no_grad():
        experience, metrics = ppo.experience(drawn, config.kl, FP32)
        model.actor.table.copy_(given("new"))
        model.critic.body.table.copy_(given("new_values").unsqueeze(-1))
    loss, sums = ppo.loss(experience, FP32, float(case.lengths.sum()))
    loss.backward()
    return experience, metrics, loss.item(), sums, model


def test_whole_update_of_trl():
    """Where no answer ends early TRL's update is ours, from logits to gradients, but for Bessel's factor on the policy."""
    case = Case("full")
    experience, _, loss, sums, model = our_update(case, None)
    found, count = case.found, int(case.lengths.sum())
    factor = case.bessel(count)
    close(experience.logprobs, case.flat("logprobs"))
    close(experience.returns, case.flat("returns"))
    close(experience.advantages * factor, case.flat("advantages"))
    close(sums[1] / count * factor, found["pg_loss"])
    close(sums[2] / count, found["vf_loss"])
    close(
        [sums[3] / count, sums[4] / count, sums[5] / count], [found[k] for k in ("clipfrac", "approxkl", "mean_ratio")]
    )
    close(loss, found["pg_loss"] / factor + case.settings.vf_coef * found["vf_loss"])
    close(model.actor.table.grad * factor, np.array(found["new_gradient"]))
    close(model.critic.body.table.grad.squeeze(-1), np.array(found["new_values_gradient"]))


# OpenAI's formulas


def log_probabilities(logits: np.ndarray, tokens: np.ndarray, temperature: float) -> np.ndarray:
    """(T, V), (T,) → (T,)"""
    z = logits / temperature
    z = z - z.max(-1, keepdims=True)
    return (z - np.log(np.exp(z).sum(-1, keepdims=True)))[np.arange(len(tokens)), tokens]


def whitened(values: np.ndarray, shift_mean: bool = True) -> np.ndarray:
    """By the biased variance; the mean is put back unless it is to be shifted."""
    white = (values - values.mean()) / np.sqrt(values.var() + 1e-8)
    return white if shift_mean else white + values.mean()


def openai(case: Case, missing_end: float) -> dict[str, np.ndarray]:
    """A PPO update in float64, one answer after the other; lists of answers are joined only where a mean runs over tokens."""
    s = case.settings
    tables = {name: np.array(GOLDEN["inputs"][name]) for name in GOLDEN["inputs"]}
    answers = [case.answers[e, :n].numpy() for e, n in enumerate(case.lengths.tolist())]

    def scored(name: str) -> list[np.ndarray]:
        return [log_probabilities(tables[name][e, : len(a)], a, s.temperature) for e, a in enumerate(answers)]

    old, reference, new = scored("old"), scored("reference"), scored("new")
    value = [tables["values"][e, : len(a)] for e, a in enumerate(answers)]
    rewards, scores = [], []
    for e, answer in enumerate(answers):
        reward = -s.kl_coef * (old[e] - reference[e])
        scores.append(tables["scores"][e] if answer[-1] == EOS else missing_end)
        reward[-1] += scores[-1]
        rewards.append(reward)
    if s.whiten_rewards:
        rewards = np.split(
            whitened(np.concatenate(rewards), shift_mean=False), np.cumsum([len(a) for a in answers])[:-1]
        )
    advantages = []
    for e, answer in enumerate(answers):
        advantage, last = np.zeros(len(answer)), 0.0
        for t in reversed(range(len(answer))):
            next_value = value[e][t + 1] if t + 1 < len(answer) else 0.0
            delta = rewards[e][t] + s.gamma * next_value - value[e][t]
            advantage[t] = last = delta + s.gamma * s.lam * last
        advantages.append(advantage)
    plain, v, log_old, log_new = map(np.concatenate, (advantages, value, old, new))
    returns, advantage = plain + v, whitened(plain)
    prediction = np.concatenate([tables["new_values"][e, : len(a)] for e, a in enumerate(answers)])
    near = np.clip(prediction, v - s.cliprange_value, v + s.cliprange_value)
    ratio = np.exp(log_new - log_old)
    loss, loss_clipped = -advantage * ratio, -advantage * np.clip(ratio, 1 - s.cliprange, 1 + s.cliprange)
    policy = np.maximum(loss, loss_clipped).mean()
    critic = 0.5 * np.maximum((prediction - returns) ** 2, (near - returns) ** 2).mean()
    return {
        "logprobs": log_old,
        "returns": returns,
        "advantages": advantage,
        "score": np.mean(scores),
        "kl": np.mean([(o - r).sum() for o, r in zip(old, reference, strict=True)]),
        "loss": policy + s.vf_coef * critic,
        "means": np.array([policy, critic, (loss_clipped > loss).mean(), 0.5 * ((log_new - log_old) ** 2).mean(), ratio.mean()]),
    }  # fmt: skip


def test_whole_update_of_openai(case):
    """From logits to the loss, with answers of every length; OpenAI's −1 for an answer that does not end."""
    ours, reference = our_update(case, -1.0), openai(case, -1.0)
    experience, metrics, loss, sums, _ = ours
    for name in ("logprobs", "returns", "advantages"):
        close(getattr(experience, name), reference[name])
    close([metrics["score"], metrics["kl"]], [reference["score"], reference["kl"]])
    close(sums[1:6] / sums[0], reference["means"])
    close(loss, reference["loss"])
    assert sums[0] == case.lengths.sum() and sums[3] > 0


# Adam


def steady(tf_eps: bool, eps: float = 1e-5, lr: float = 1e-2) -> OptimConfig:
    return dataclasses.replace(adam(lr, eps), cooldown=0.0, tf_eps=tf_eps)


def tensorflow_adam(gradients: list[np.ndarray], c: OptimConfig) -> np.ndarray:
    """Weights after steps from 0: θ −= α_t·m/(√v + ε), α_t = α·√(1 − β₂ᵗ)/(1 − β₁ᵗ) (Kingma & Ba 2015, end of section 2)."""
    weights = m = v = np.zeros_like(gradients[0])
    for t, g in enumerate(gradients, 1):
        m, v = c.beta1 * m + (1 - c.beta1) * g, c.beta2 * v + (1 - c.beta2) * g * g
        weights = weights - c.adam_lr * (1 - c.beta2**t) ** 0.5 / (1 - c.beta1**t) * m / (np.sqrt(v) + c.eps)
    return weights


@pytest.mark.parametrize("tf_eps", [True, False])
def test_adam_is_that_of_tensorflow_or_pytorch(tf_eps):
    """Five steps with gradients from 1e-8 to 1, on both sides of ε."""
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(9, 5)) * 10.0 ** np.arange(-8, 1)[:, None] for _ in range(5)]
    c = steady(tf_eps)
    model = nn.Linear(5, 9).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    theirs = nn.Parameter(torch.zeros(9, 5, dtype=torch.float64))
    ours, pytorch = Optimizer(model, c, FP32), torch.optim.AdamW([theirs], c.adam_lr, (0.9, 0.999), c.eps, 0.0)
    for step, g in enumerate(gradients):
        model.weight.grad, theirs.grad = torch.tensor(g), torch.tensor(g)
        model.bias.grad = torch.tensor(g[:, 0])
        ours.step(step / 5)
        pytorch.step()
    expected = tensorflow_adam(gradients, c) if tf_eps else theirs.detach().numpy()
    np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=1e-7)
    np.testing.assert_allclose(model.bias.detach().numpy(), expected[:, 0], rtol=1e-7)
    other = theirs.detach().numpy() if tf_eps else tensorflow_adam(gradients, c)
    assert np.abs(expected / other - 1).max() > 1  # the two forms are not alike


def test_pytorchs_form_moves_farther_at_first():
    """The first update divides by |g| + ε in PyTorch's form, by |g| + ε/√(1 − β₂) = |g| + 32 ε in TensorFlow's, so that small
    gradients move several times less there. Published for GPT-2 124M at ε = 1e-5: approximate KL .000372 in TensorFlow,
    .002367 in PyTorch, 6.4 times as much, .000375 in PyTorch with TensorFlow's ε (Huang et al. 2024). Those absolute
    numbers need that model's weights; this shows the mechanism on a small one, with ε against its gradients' size."""
    model = letters_model(6, 1)
    ppo = make_ppo(model, Letters(), lambda d: torch.tensor([float(sum(s.answer)) for s in d.sequences]), [[1], [2, 3]])
    drawn = rollout(model, Letters(), [[1], [2, 3]] * 32, list(range(64)), ppo.config.temperature, 6)  # pyright: ignore
    experience, _ = ppo.experience(drawn, 0.05, FP32)
    start = {n: p.detach().clone() for n, p in ppo.model.named_parameters()}
    count = float(experience.lengths.sum())

    def moved(c: OptimConfig) -> float:
        """The approximate KL after one update."""
        ppo.model.load_state_dict(start, strict=False)
        optimizer = Optimizer(ppo.model, c, FP32)
        optimizer.skip()
        ppo.loss(experience, FP32, count)[0].backward()
        optimizer.step(0.0)
        with torch.no_grad():
            return float(ppo.loss(experience, FP32, count)[1][4]) / count

    ppo.loss(experience, FP32, count)[0].backward()
    size = float(torch.cat([p.grad.flatten() for p in model.parameters()]).abs().median())
    ratios = []
    for share in (0.01, 0.3, 1.0):
        eps = share * size
        tensorflow, pytorch = moved(steady(True, eps, 1e-4)), moved(steady(False, eps, 1e-4))
        same = moved(steady(False, eps / (1 - 0.999) ** 0.5, 1e-4))
        ratios.append(pytorch / tensorflow)
        print(
            f"ε = {share} median |g|: TF {tensorflow:.3g}, PyTorch {pytorch:.3g} ({ratios[-1]:.1f} ×), with TF's ε {same:.3g}"
        )
        assert same == pytest.approx(tensorflow, rel=1e-3)
    assert 1 < ratios[0] < ratios[1] < ratios[2] and ratios[1] > 3
