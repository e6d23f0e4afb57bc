"""Intervals and calibration, for whoever reports a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Interval = tuple[float, float, float]
"""(value, low, high): 95 %."""


def bootstrap(
    groups: Sequence[Sequence[int]], statistic: Callable[[np.ndarray], float], rounds: int = 600, seed: int = 0
) -> Interval:
    """`statistic` of all indices in `groups`, and the percentile interval when whole groups (prompts) are drawn anew, since
    answers to one prompt are no independent witnesses. Draws without a value (NaN) are left out."""
    arrays = [np.asarray(g, dtype=np.int64) for g in groups]
    value = statistic(np.concatenate(arrays)) if arrays else math.nan
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(rounds if arrays else 0):
        picked = rng.integers(0, len(arrays), len(arrays))
        draws.append(statistic(np.concatenate([arrays[i] for i in picked])))
    kept = [d for d in draws if not math.isnan(d)]
    low, high = np.percentile(kept, [2.5, 97.5]) if kept else (math.nan, math.nan)
    return float(value), float(low), float(high)


def student(values: np.ndarray) -> Interval:
    """Mean of independent values, and its interval by Student's t (1908): honest for as few as two; NaN for one."""
    n = len(values)
    half = t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    mean = float(np.mean(values))
    return mean, mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """97.5 % of Student's t; from six degrees of freedom on by the expansion of Fisher & Cornish (1960), to 0.002."""
    few = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706)
    if freedom <= len(few):
        return few[freedom - 1]
    z, d = 1.959964, freedom
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(t / d**k for k, t in enumerate(terms, 1))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a positive's score exceeds a negative's, ties counting half (Mann & Whitney 1947); NaN without
    both kinds."""
    positive = labels.astype(bool)
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share the mean of their ranks
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def auc_within(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """The same over pairs of one group (user) only, all groups' pairs together: how lenient each one is says nothing then."""
    right = pairs = 0.0
    for group in np.unique(groups):
        own = groups == group
        n = float(labels[own].sum())
        weight = n * (own.sum() - n)
        if weight:
            right, pairs = right + weight * auc(scores[own], labels[own]), pairs + weight
    return right / pairs if pairs else math.nan


def platt(scores: np.ndarray, labels: np.ndarray, rounds: int = 50) -> tuple[float, float]:
    """(a, b) of p = σ(a·score + b) by Newton's method, with Platt's targets, which keep it finite (Platt 1999)."""
    n, m = labels.sum(), (1 - labels).sum()
    target = np.where(labels > 0, (n + 1) / (n + 2), 1 / (m + 2))
    x = np.stack([scores, np.ones_like(scores)], 1)
    w = np.zeros(2)
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (p - target) + 1e-6 * w)
        w -= step
        if np.abs(step).max() < 1e-9:
            break
    return float(w[0]), float(w[1])


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean over equally filled bins of |share of positives − mean probability|."""
    if not len(labels):
        return math.nan
    order = np.argsort(probabilities, kind="stable")
    parts = [p for p in np.array_split(order, min(bins, len(order))) if len(p)]
    return float(sum(len(p) * abs(labels[p].mean() - probabilities[p].mean()) for p in parts) / len(labels))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, 0 where one does not vary."""
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(D, p) of the two-sample test: the largest distance of the two empirical distributions, and how often samples of one
    distribution are as far apart. Exact by counting the orders of both samples (Hodges 1958) where p exceeds 1e-9, else
    Kolmogorov's limit. With few values p is easily large: tell how many there were. NaN without both samples."""
    n, m = len(a), len(b)
    if not n or not m:
        return math.nan, math.nan
    x, y, both = np.sort(a), np.sort(b), np.unique(np.concatenate([a, b]))
    steps = np.searchsorted(x, both, "right") * m - np.searchsorted(y, both, "right") * n  # in units of 1/(n m)
    far = int(np.abs(steps).max())
    if far == 0:
        return 0.0, 1.0
    inside, scale = (
        np.array([1.0]),
        0.0,
    )  # orders that stay nearer than `far`: of i values of a and low, low + 1, … of b
    low = 0
    for i in range(n + 1):
        first = max(0, -((far - 1 - i * m) // n))  # |i m − j n| < far
        last = min(m, (far - 1 + i * m) // n)
        if last < first:
            return far / (n * m), 1.0
        row = np.zeros(last - first + 1)
        at = max(first, low)
        kept = inside[at - low : last - low + 1]
        row[at - first : at - first + len(kept)] = kept
        inside, low = np.cumsum(row), first
        if i == 0:
            inside = np.ones(last - first + 1)
        most = inside.max()
        if most == 0:
            return far / (n * m), 1.0
        inside, scale = inside / most, scale + math.log(most)
    orders = math.lgamma(n + m + 1) - math.lgamma(n + 1) - math.lgamma(m + 1)
    p = 1 - math.exp(min(0.0, math.log(inside[-1]) + scale - orders)) if inside[-1] > 0 else 1.0
    if p < 1e-9:
        x2 = 2 * (far / (n * m)) ** 2 * n * m / (n + m)
        p = 2 * sum((-1) ** (k - 1) * math.exp(-x2 * k * k) for k in range(1, 101))
    return far / (n * m), float(min(1.0, max(0.0, p)))
