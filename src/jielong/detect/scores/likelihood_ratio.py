"""How much likelier a text is to the scorer than to an outsider, any other model with any vocabulary.

By the lemma of Neyman & Pearson (1933) no test of "the scorer wrote it" against "the outsider did" is stronger; the better
the outsider knows how people write, the nearer this comes to the best test against people. It is for finding what one's own
model wrote, and says little about texts of a third one.
"""

from jielong.detect.scores.registry import score
from jielong.detect.tokenstats import TokenStats


@score("likelihood-ratio", needs="outside")
def likelihood_ratio(stats: TokenStats) -> float:
    """1/n (log q(x) − log h(x)), n in tokens of the scorer q; h: the outsider, over the same characters."""
    assert stats.outside is not None, "needs an outsider"
    return float((stats.logprob - stats.outside).mean())
