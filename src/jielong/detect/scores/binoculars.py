"""Binoculars: perplexity over cross-perplexity (Hans et al. 2024), here with its sign turned."""

from jielong.detect.scores.registry import score
from jielong.detect.tokenstats import TokenStats


@score("binoculars", needs="cross")
def binoculars(stats: TokenStats) -> float:
    """− Σ log q(x_t)⁻¹ / Σ_t −Σ_v p_t(v) log q_t(v), over the same n places; q: the scorer, p: the observer."""
    assert stats.cross is not None, "needs an observer"
    cross = float(stats.cross.sum())
    return float(stats.logprob.sum()) / cross if cross > 0 else 0.0
