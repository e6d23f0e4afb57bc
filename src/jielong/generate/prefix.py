"""The prefix cache: what several prompts begin with is computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from jielong.model.cache import BLOCK, KVCache, Span


class PrefixCache:
    """Blocks of keys and values by the tokens up to their end, the least recently used thrown away first."""

    def __init__(self, limit: int):
        self.limit = limit
        """Bytes."""
        self.size = 0
        self.hits = 0
        """Tokens that were not computed again."""
        self._spans: OrderedDict[tuple[int, ...], Span] = OrderedDict()

    def restore(self, tokens: Sequence[int], cache: KVCache, row: int) -> int:
        """Write the longest known beginning of `tokens` into a row; how many tokens it has.

        The last token is always left to compute: its logits are wanted.
        """
        done = 0
        while done + BLOCK < len(tokens):
            key = tuple(tokens[: done + BLOCK])
            span = self._spans.get(key)
            if span is None:
                break
            cache.write(row, done, span)
            done += BLOCK
        self._touch(tokens, done)
        self.hits += done
        return done

    def keep(self, tokens: Sequence[int], cache: KVCache, row: int) -> None:
        """Remember the whole blocks of `tokens`, whose keys and values stand in `row`."""
        for start in range(0, len(tokens) // BLOCK * BLOCK, BLOCK):
            key = tuple(tokens[: start + BLOCK])
            if key in self._spans:
                continue
            span = cache.read(row, start)
            if span.bytes > self.limit:
                return
            self._spans[key] = span
            self.size += span.bytes
        self._touch(tokens, len(tokens) // BLOCK * BLOCK)
        while self.size > self.limit:
            _, dropped = self._spans.popitem(last=False)
            self.size -= dropped.bytes

    def _touch(self, tokens: Sequence[int], length: int) -> None:
        """Mark as used, longer beginnings first: without its own beginning a block is of no use."""
        for end in range(length, 0, -BLOCK):
            self._spans.move_to_end(tuple(tokens[:end]))

    def clear(self) -> None:
        self._spans.clear()
        self.size = 0
