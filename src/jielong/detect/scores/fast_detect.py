"""Fast-DetectGPT's analytic criterion, scorer and reference the same model (Bao et al. 2024, equation 5)."""

import math

from jielong.detect.scores.registry import score
from jielong.detect.tokenstats import TokenStats


@score("fast-detect")
def fast_detect(stats: TokenStats) -> float:
    """Σ (log q(x_t) − μ_t) / √Σ σ_t², with μ_t and σ_t² the mean and variance of log q(v) over v ~ q_t.

    On text drawn from the model at temperature 1 the summands are martingale differences: mean 0, variance 1.
    """
    variance = float(stats.variance.sum())
    return float((stats.logprob + stats.entropy).sum()) / math.sqrt(variance) if variance > 0 else 0.0
