"""Prompt lookup: guess the next tokens from what followed the last few ones earlier in the text (Saxena 2023).

The model reads the guesses in one pass and draws at each place as it would have anyway; a guess counts only when it is
the token that was drawn. So the answer is the same, token by token, with any sampling, as without guessing; and since a
guess is a single token, its chance to be accepted, p(guess), is the best that speculative sampling allows (Leviathan et
al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2  # tokens that must agree
WINDOW = 4096  # tokens to look back


def guess(prompt: Sequence[int], answer: Sequence[int], count: int) -> list[int]:
    """At most `count` tokens that followed the latest earlier occurrence of the last 3, else 2, tokens."""
    text = [*prompt, *answer][-WINDOW:]
    for size in range(LONGEST, SHORTEST - 1, -1):
        tail = text[-size:]
        for at in range(len(text) - size - 1, -1, -1):
            if text[at + size - 1] == tail[-1] and text[at : at + size] == tail:
                return text[at + size : at + size + count]
    return []
