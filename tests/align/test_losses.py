"""PPO's arithmetic against slow sums and closed forms."""

from __future__ import annotations

import pytest
import torch

from jielong.align.losses import adapted, gae, kl_estimates, per_answer, policy_loss, token_rewards, value_loss, whiten

LENGTHS = torch.tensor([3, 1, 5])


def flat(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(9, generator=generator), torch.randn(9, generator=generator)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_the_double_sum(gamma, lam):
    rewards, values = flat()
    expected = []
    for r, v in zip(rewards.split(LENGTHS.tolist()), values.split(LENGTHS.tolist()), strict=True):
        T = len(r)
        delta = [r[t] + gamma * (v[t + 1] if t + 1 < T else 0.0) - v[t] for t in range(T)]
        expected += [sum((gamma * lam) ** k * delta[t + k] for k in range(T - t)) for t in range(T)]
    assert torch.allclose(gae(rewards, values, LENGTHS, gamma, lam), torch.stack(expected), atol=1e-6)


def test_gae_ends():
    rewards, values = flat()
    returns = gae(rewards, values, LENGTHS, 1.0, 1.0) + values  # λ = 1: what is still to come
    to_come = torch.cat([r.flip(0).cumsum(0).flip(0) for r in rewards.split(LENGTHS.tolist())])
    assert torch.allclose(returns, to_come, atol=1e-6)
    one_step = gae(rewards, values, LENGTHS, 1.0, 0.0)
    assert torch.allclose(one_step[2], rewards[2] - values[2])  # nothing follows an end
    assert torch.allclose(one_step[3], rewards[3] - values[3])
    assert torch.allclose(one_step[0], rewards[0] + values[1] - values[0])


def test_the_score_stands_at_the_end_token():
    logprobs, reference = flat()
    scores = torch.tensor([10.0, 20.0, 30.0])
    rewards = token_rewards(scores, logprobs, reference, LENGTHS, 0.5)
    plain = -0.5 * (logprobs - reference)
    assert torch.allclose((rewards - plain)[[2, 3, 8]], scores) and (rewards - plain)[[0, 1, 4, 7]].abs().max() == 0
    assert torch.allclose(per_answer(rewards, LENGTHS), scores + per_answer(plain, LENGTHS))


def test_whitening():
    values, _ = flat()
    white = whiten(values)
    assert abs(float(white.mean())) < 1e-6 and abs(float(white.var(correction=0)) - 1) < 1e-5
    kept = whiten(values, keep_mean=True)
    assert abs(float(kept.mean() - values.mean())) < 1e-6 and torch.allclose(kept - kept.mean(), white, atol=1e-6)


def test_clipping_by_hand():
    """ρ = 1.5 and 0.5 with both signs of A, clip 0.2: only moves that went too far in their own direction are cut off."""
    old = torch.zeros(4)
    new = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, clipped = policy_loss(new, old, advantages, 0.2)
    assert loss.item() == pytest.approx(-1.2 + 1.5 - 0.5 + 0.8) and clipped == 2
    loss.backward()
    assert new.grad is not None and new.grad.tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0])
    values = torch.tensor([2.0, 0.1], requires_grad=True)
    lost = value_loss(values, torch.zeros(2), torch.tensor([1.0, 1.0]), 0.2)
    assert lost.item() == pytest.approx(0.5 * (max(1.0, 0.64) + 0.81))
    lost.backward()
    assert values.grad is not None and values.grad.tolist() == pytest.approx([1.0, -0.9])


def test_kl_estimates_against_the_exact_kl():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(6, generator=generator).softmax(0), torch.randn(6, generator=generator).softmax(0)
    exact = float((p * (p / q).log()).sum())
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    found = kl_estimates(p.log()[drawn], q.log()[drawn])
    for name in ("k1", "k3"):
        error = float(found[name].std()) / len(drawn) ** 0.5
        assert abs(float(found[name].mean()) - exact) < 4 * error, name
    assert found["k3"].min() >= 0 and found["k3"].std() < found["k1"].std()
    assert abs(float(found["k2"].mean()) - exact) < 0.5 * exact  # biased, but near


def test_the_controller_by_hand():
    # Ziegler et al. 2019: target 6, horizon 10,000, 512 answers per step; the error is cut at ±0.2
    assert adapted(0.15, 12.0, 6.0, 512, 10_000) == pytest.approx(0.15 * (1 + 0.2 * 0.0512))
    assert adapted(0.15, 5.4, 6.0, 512, 10_000) == pytest.approx(0.15 * (1 - 0.1 * 0.0512))
    assert adapted(0.15, 6.0, 6.0, 512, 10_000) == pytest.approx(0.15)
