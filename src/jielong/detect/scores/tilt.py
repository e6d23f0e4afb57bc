"""The scorer against its own human version (detect.tilt): how much likelier a text is without the tilt than with it."""

from jielong.detect.scores.registry import score
from jielong.detect.tokenstats import TokenStats


@score("tilt", needs="tilt")
def tilt(stats: TokenStats) -> float:
    """1/n Σ (log q(x_t) − log h_t(x_t)), h_t(v) ∝ q_t(v)·e^(b_v + c)"""
    assert stats.tilt is not None, "needs a reference with a tilt"
    return float(stats.tilt.mean())
