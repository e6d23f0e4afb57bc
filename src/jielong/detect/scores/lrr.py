"""Log-likelihood log-rank ratio (DetectLLM, Su et al. 2023)."""

from jielong.detect.scores.registry import score
from jielong.detect.tokenstats import TokenStats

LEAST = 1e-3  # per token: a text of nothing but likeliest tokens has a log rank of 0


@score("lrr")
def lrr(stats: TokenStats) -> float:
    """|Σ log q(x_t)| / Σ log r_t"""
    ranks = float(stats.rank.double().log().sum())
    return -float(stats.logprob.sum()) / max(ranks, LEAST * len(stats))
