"""Mean log rank (Gehrmann et al. 2019, Mitchell et al. 2023)."""

from jielong.detect.scores.registry import score
from jielong.detect.tokenstats import TokenStats


@score("log-rank")
def log_rank(stats: TokenStats) -> float:
    """−1/n Σ log r_t"""
    return -float(stats.rank.double().log().mean())
