"""Mean log-probability: what a model writes is likely to it (Solaiman et al. 2019)."""

from jielong.detect.scores.registry import score
from jielong.detect.tokenstats import TokenStats


@score("likelihood")
def likelihood(stats: TokenStats) -> float:
    """1/n Σ log q(x_t)"""
    return float(stats.logprob.mean())
