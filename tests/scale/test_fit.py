"""The fitted law against laws that are known, its optimum against a grid, its minimiser against another one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT
from jielong.scale.advice import Size, Speed, advise, family, shape, size_of, speed
from jielong.scale.fit import DELTA, Fit, Law, Problem, fit, huber, left_out

CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # Hoffmann et al. 2022, equation 10
SMALL = Law(E=1.2, A=60.0, B=3000.0, alpha=0.3, beta=0.6)


def grid(sizes: int = 6, counts: int = 3) -> tuple[np.ndarray, np.ndarray]:
    n, d = np.meshgrid(np.geomspace(1e5, 4e6, sizes), np.geomspace(3e5, 1.2e6, counts))
    return n.ravel(), d.ravel()


def losses(law: Law, n: np.ndarray, d: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    true = np.array([law.loss(*point) for point in zip(n, d, strict=True)])
    return true * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))


@pytest.mark.parametrize("law", [CHINCHILLA, SMALL])
def test_known_coefficients_come_back(law):
    n, d = grid()
    found = fit(n, d, losses(law, n, d), rounds=2)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found.law, name) == pytest.approx(getattr(law, name), rel=1e-6)
    assert found.objective < 1e-20


def test_one_wrong_training_does_not_move_the_law():
    """That is what Huber's loss is for; least squares would be pulled."""
    n, d = grid()
    measured = losses(SMALL, n, d)
    measured[7] *= 1.3
    law = fit(n, d, measured, rounds=2).law
    assert law.loss(1.2e7, 6e5) == pytest.approx(SMALL.loss(1.2e7, 6e5), rel=2e-3)


def test_intervals_cover():
    """95 % intervals of 20 noisy ladders: of a loss far above the ladder, of one within, of an exponent, of one more training."""
    n, d = grid()
    far, near = (1.2e7, 6e5), (1e6, 6e5)
    covered = np.zeros(4)
    for seed in range(20):
        found = fit(n, d, losses(SMALL, n, d, 0.01, seed), rounds=60, seed=seed)
        again = SMALL.loss(*far) * math.exp(np.random.default_rng(1000 + seed).normal(0, 0.01))
        intervals = [
            (found.interval(lambda law: law.loss(*far)), SMALL.loss(*far)),
            (found.interval(lambda law: law.loss(*near)), SMALL.loss(*near)),
            (found.interval(lambda law: law.alpha), SMALL.alpha),
            (found.predict(*far, seed), again),
        ]
        covered += [low <= true <= high for (_, low, high), true in intervals]
    assert (covered / 20 >= 0.8).all(), covered / 20
    assert covered.min() < 20  # not because they are endless


def test_the_minimiser_against_torchs():
    """The sum of Huber losses of noisy points: LBFGS in float64, from our solution and from the true law, finds nothing better."""
    n, d = grid()
    measured = losses(SMALL, n, d, 0.02, 3)
    found = fit(n, d, measured, rounds=1)
    x, y, target = (torch.from_numpy(np.log(v)) for v in (n, d, measured))
    for law in (found.law, SMALL):
        start = [math.log(law.A), math.log(law.B), math.log(law.E), law.alpha, law.beta]
        theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=300, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
        )

        def closure(theta=theta, optimizer=optimizer):
            optimizer.zero_grad()
            a, b, e, alpha, beta = theta
            terms = torch.stack([a - alpha * x, b - beta * y, e.expand(len(x))])
            loss = torch.nn.functional.huber_loss(terms.logsumexp(0), target, reduction="sum", delta=DELTA)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert found.objective <= float(closure().detach()) * (1 + 1e-3)
    residual = np.log(measured) - np.log(losses(found.law, n, d))
    assert found.objective == pytest.approx(float(huber(residual)))
    np.testing.assert_allclose(found.residuals, residual, atol=1e-9)


def test_gradient_against_differences():
    problem = Problem(*map(np.log, grid()))
    theta = np.array([[0.2, 0.4, 0.3, -1.0, -0.5], [0.9, -1.0, 0.1, 0.2, -2.0]])
    for k in range(5):
        step = np.eye(5)[k] * 1e-6
        slope = (problem.log_loss(theta + step) - problem.log_loss(theta - step)) / 2e-6
        np.testing.assert_allclose(problem.gradient(theta)[..., k], slope, atol=1e-8)


@pytest.mark.parametrize("law", [CHINCHILLA, SMALL])
@pytest.mark.parametrize("flops", [1e14, 5.76e23])
def test_optimum_against_a_grid(law, flops):
    n, d = law.optimum(flops)
    assert 6 * n * d == pytest.approx(flops)
    sizes = np.geomspace(n / 100, n * 100, 200_001)
    best = sizes[np.argmin([law.E + law.A * sizes**-law.alpha + law.B * (flops / 6 / sizes) ** -law.beta])]
    assert n == pytest.approx(best, rel=1e-3)


def test_what_to_count_is_told_by_sizes_left_out():
    n, d = grid()
    blocks = n - 3000 * (n / 3000) ** 0.5  # small ones are mostly embedding
    measured = losses(SMALL, blocks, d, 0.002)
    assert left_out(blocks, d, measured) < 0.01 < left_out(n * (1 + 0.5 * np.sin(n)), d, measured)


def test_too_few_trainings_tell_nothing():
    with pytest.raises(ValueError, match="5 coefficients"):
        fit(*(np.ones(5) for _ in range(3)))


def test_sizes_are_the_models():
    config = shape(96, 64)
    assert (config.heads * config.head_dim, config.layers, shape(320, 64).layers) == (96, 2, 8)
    small = ModelConfig(vocab_size=50, width=96, layers=2, heads=3, kv_heads=3, head_dim=32, mlp_width=288, context=64)
    model, size = GPT(small), size_of(small, 32)
    assert size.total == model.parameter_count() and size.blocks == size.total - 50 * 96
    assert size.flops == model.flops_per_token(32)
    for width in (0, 33, 16):
        with pytest.raises(UserError, match="multiples of 32"):
            shape(width, 64)


def test_speed_of_a_machine():
    flops = np.geomspace(1e6, 1e8, 6)
    found = speed(flops.tolist(), (2e-5 + 1e-11 * flops).tolist())
    assert found.fixed == pytest.approx(2e-5) and found.per_flop == pytest.approx(1e-11)
    for shares in ((3e-5, 0.0), (0.0, 2e-11)):
        alone = speed(flops.tolist(), (shares[0] + shares[1] * flops).tolist())
        assert (alone.fixed, alone.per_flop) == pytest.approx(shares, abs=1e-16)
    falling = speed([1e6, 1e8], [2e-5, 1e-5])  # a busy machine: more work took less time
    assert falling.per_flop == 0 and 1e-5 < falling.fixed < 2e-5
    steep = speed([1e6, 2e6], [1e-5, 4e-5])
    assert steep.fixed == 0 and steep.per_flop > 0


def test_advice_is_the_best_of_all_sizes():
    """Against a search by hand; and near the closed form, where a token costs 6 FLOPs per weight."""
    sizes = family(512, 32)
    found = Fit(SMALL, 0.0, np.zeros(18), (SMALL,) * 30 + (Law(1.2, 90.0, 3000.0, 0.3, 0.6),) * 30)
    measured = Speed(1e-5, 1e-11)
    advice = advise(found, "total", sizes, lambda s: measured.seconds(s.flops), 600, "seconds")
    by_hand = min(sizes, key=lambda s: SMALL.loss(s.total, 600 / measured.seconds(s.flops)))
    assert advice.size == by_hand and advice.parameters[0] == by_hand.total
    assert advice.tokens[0] * measured.seconds(by_hand.flops) == pytest.approx(600)
    assert advice.parameters[1] <= advice.parameters[0] <= advice.parameters[2] and len(advice.curve) == len(sizes)
    assert advice.parameters[2] > advice.parameters[0]  # where sizes matter more, larger ones pay
    little = advise(found, "total", sizes, lambda s: measured.seconds(s.flops), 600, "seconds", advice.tokens[0] / 4)
    assert little.tokens[0] <= advice.tokens[0] / 4 and little.parameters[0] > advice.parameters[0]
    assert little.loss[0] > advice.loss[0]
    dense = [Size(n, 1, n, n, 6.0 * n) for n in np.geomspace(1e4, 1e8, 4001).astype(int).tolist()]
    free = advise(found, "total", dense, lambda s: s.flops, 1e14, "FLOPs")
    assert free.parameters[0] == pytest.approx(SMALL.optimum(1e14)[0], rel=0.01)
    assert free.tokens[0] == pytest.approx(SMALL.optimum(1e14)[1], rel=0.01)
