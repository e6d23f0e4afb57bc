"""The Chinchilla form, fitted to the losses of many small trainings.

    L(N, D) = E + A / N^α + B / D^β        (Hoffmann et al. 2022, section 3.3 and appendix D.3)

N parameters, D tokens, L nats per token. The five coefficients minimise the *sum* of Huber losses of log L from many starts. Besiroglu
et al. (2024) found that the published coefficients came of a mean, whose small values stopped the optimiser too early; the
minimiser here has no such threshold: it goes on, in float64, until no step helps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DELTA = 1e-3  # where Huber's loss becomes linear, as in the paper
COEFFICIENTS = 5
TINY = 1e-11  # a relative gain below which nothing more is to come
KEPT = 16  # starts that are followed to their end
LEAST, MOST = math.log(0.02), math.log(3.0)  # of the logarithms of α and β


@dataclass(frozen=True)
class Law:
    """The fitted coefficients."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats per token."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the least loss with 6 · parameters · tokens = flops (Hoffmann et al. 2022, equation 4)."""
        a, b = self.alpha, self.beta
        g = (a * self.A / (b * self.B)) ** (1 / (a + b))
        return g * (flops / 6) ** (b / (a + b)), (flops / 6) ** (a / (a + b)) / g


@dataclass(frozen=True)
class Fit:
    """A law, how well it fits, and laws that the noise might have made of it."""

    law: Law
    objective: float
    residuals: np.ndarray
    """(n,) log of the measured over the fitted loss."""
    draws: tuple[Law, ...]
    """One law per round of the bootstrap."""

    def interval(self, of: Callable[[Law], float]) -> tuple[float, float, float]:
        """(value, low, high): `of` the law, and 95 % of it over the draws."""
        low, high = np.percentile([of(law) for law in self.draws], [2.5, 97.5])
        return of(self.law), float(low), float(high)

    def predict(self, parameters: float, tokens: float, seed: int = 0) -> tuple[float, float, float]:
        """(loss, low, high) of one more training: 95 % of the draws' losses, each with a residual of its own."""
        losses = np.array([law.loss(parameters, tokens) for law in self.draws])
        noise = np.random.default_rng(seed).choice(spread(self.residuals), len(losses))
        low, high = np.percentile(losses * np.exp(noise), [2.5, 97.5])
        return self.law.loss(parameters, tokens), float(low), float(high)


def spread(residuals: np.ndarray) -> np.ndarray:
    """Residuals as large as the noise: five coefficients have followed it (Efron & Tibshirani 1993, chapter 9)."""
    n = len(residuals)
    return (residuals - residuals.mean()) * math.sqrt(n / (n - COEFFICIENTS))


def fit(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray, rounds: int = 400, seed: int = 0) -> Fit:
    """The law of n trainings, all arrays (n,) and n > 5. The bootstrap keeps the design and draws residuals anew."""
    n = len(losses)
    if n <= COEFFICIENTS:
        raise ValueError(f"{n} trainings cannot tell {COEFFICIENTS} coefficients")
    problem = Problem(np.log(np.asarray(parameters, float)), np.log(np.asarray(tokens, float)))
    target = np.log(np.asarray(losses, float))
    theta, value = problem.minimise(starts(target), target[None], 25)
    kept = np.argsort(value, kind="stable")[:KEPT]  # the others are far behind
    theta, value = problem.minimise(theta[kept], target[None])
    order = np.argsort(value, kind="stable")
    best = theta[order[0]]
    fitted = problem.log_loss(best[None])[0]
    residuals = target - fitted
    rng = np.random.default_rng(seed)
    anew = fitted + rng.choice(spread(residuals), (rounds, n))
    # from the best of all and from the best of another kind of solution
    seeds = (theta[order[0]], theta[order[len(order) // 4]])
    tries = [problem.minimise(np.broadcast_to(one, (rounds, COEFFICIENTS)), anew, 150) for one in seeds]
    better = tries[1][1] < tries[0][1]
    drawn = np.where(better[:, None], tries[1][0], tries[0][0])
    return Fit(problem.law(best), float(value[order[0]]), residuals, tuple(map(problem.law, drawn)))


def starts(target: np.ndarray) -> np.ndarray:
    """(starts, 5): how a typical loss may be divided into its three terms, and both exponents."""
    shares = [s for s in itertools.product((0.05, 0.2, 0.45, 0.7), repeat=2) if sum(s) < 1]
    exponents = np.log([0.08, 0.2, 0.4, 0.8, 1.6])
    level = float(np.median(target))
    return np.array(
        [
            (level + math.log(p), level + math.log(q), level + math.log(1 - p - q), a, b)
            for p, q in shares
            for a in exponents
            for b in exponents
        ]
    )


class Problem:
    """log L = log(exp(a − α x) + exp(b − β y) + exp(e)) for the logarithms x of sizes and y of tokens, both counted from
    their means so that coefficients and exponents disturb each other less. θ = (a, b, e, log α, log β)."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.middle = x.mean(), y.mean()
        self.x, self.y = x - self.middle[0], y - self.middle[1]

    def law(self, theta: np.ndarray) -> Law:
        a, b, e, alpha, beta = *theta[:3], *np.exp(theta[3:])
        return Law(
            E=math.exp(e), A=math.exp(a + alpha * self.middle[0]), B=math.exp(b + beta * self.middle[1]),
            alpha=float(alpha), beta=float(beta),
        )  # fmt: skip

    def terms(self, theta: np.ndarray) -> np.ndarray:
        """(S, 5) → the logarithms of the three terms (S, n, 3)."""
        a, b, e, p, q = (theta[:, [k]] for k in range(COEFFICIENTS))
        return np.stack(np.broadcast_arrays(a - np.exp(p) * self.x, b - np.exp(q) * self.y, e), -1)

    def log_loss(self, theta: np.ndarray) -> np.ndarray:
        """(S, 5) → (S, n)"""
        return np.logaddexp.reduce(self.terms(theta), -1)

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """Of the logarithms of the losses: (S, 5) → (S, n, 5)."""
        terms = self.terms(theta)
        share = np.exp(terms - np.logaddexp.reduce(terms, -1)[..., None])
        alpha, beta = np.exp(theta[:, [3]]), np.exp(theta[:, [4]])
        of_exponents = -share[..., :2] * np.stack([alpha * self.x, beta * self.y], -1)
        return np.concatenate([share, of_exponents], -1)

    def minimise(self, theta: np.ndarray, target: np.ndarray, rounds: int = 400) -> tuple[np.ndarray, np.ndarray]:
        """Start points (S, 5) and targets (S or 1, n) → points (S, 5) and their sums of Huber losses (S,).

        Levenberg's and Marquardt's steps on squares that are weighted anew each time, which majorise Huber's loss; all
        starts at the same time.
        """
        theta = np.array(theta, dtype=np.float64)
        target = np.broadcast_to(target, (len(theta), target.shape[-1]))
        value = huber(self.log_loss(theta) - target)
        damping = np.full(len(theta), 1e-2)
        active = np.arange(len(theta))
        level = target.mean(-1, keepdims=True)
        for _ in range(rounds):
            at, goal = theta[active], target[active]
            residual = self.log_loss(at) - goal
            weight = np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
            gradient = self.gradient(at)
            weighted = gradient * weight[..., None]
            square = np.einsum("sni,snj->sij", weighted, gradient)
            diagonal = np.einsum("sii->si", square)
            ridge = damping[active, None] * (diagonal + 1e-9 * diagonal.max(-1, keepdims=True) + 1e-300)
            square[:, range(COEFFICIENTS), range(COEFFICIENTS)] += ridge
            step = np.linalg.solve(square, np.einsum("sni,sn->si", weighted, residual)[..., None])[..., 0]
            trial = at - step
            trial[:, :3] = np.clip(trial[:, :3], level[active] - 12, level[active] + 4)
            trial[:, 3:] = np.clip(trial[:, 3:], LEAST, MOST)
            found = huber(self.log_loss(trial) - goal)
            better = found < value[active]
            gain = np.where(better, (value[active] - found) / value[active].clip(1e-300), 0.0)
            theta[active[better]], value[active[better]] = trial[better], found[better]
            damping[active] = np.where(better, damping[active] / 4, damping[active] * 5).clip(1e-12)
            active = active[(damping[active] < 1e9) & ~(better & (gain < TINY))]
            if not len(active):
                break
        return theta, value


def huber(residual: np.ndarray) -> np.ndarray:
    """(…, n) → the sum over the trainings (…)."""
    size = np.abs(residual)
    return np.where(size < DELTA, residual**2 / 2, DELTA * (size - DELTA / 2)).sum(-1)


def left_out(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> float:
    """Mean |log error| of each size's losses, predicted from the other sizes: what tells which weights to count."""
    errors = []
    for size in np.unique(parameters):
        own = parameters == size
        law = fit(parameters[~own], tokens[~own], losses[~own], rounds=1).law
        errors += [
            abs(math.log(law.loss(n, d) / loss))
            for n, d, loss in zip(parameters[own], tokens[own], losses[own], strict=True)
        ]
    return float(np.mean(errors))
