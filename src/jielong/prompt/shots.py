"""Which examples are shown before a question: at random, or those that are most like it (Liu et al. 2021)."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jielong.prompt.task import Item

if TYPE_CHECKING:
    from jielong.generate.engine import Engine

LONGEST_GRAM = 4
HOW = ("random", "similar", "embedding")
Vectors = Callable[[Sequence[str]], np.ndarray]
"""Texts → (N, D), each of length 1."""


class Grams:
    """TF-IDF of character n-grams, of one to four characters: enough for English and Chinese, without a word list.

    tf · idf with idf = 1 + ln((1 + N) / (1 + df)), of length 1; n-grams that no text of `corpus` has are left out.
    """

    def __init__(self, corpus: Sequence[str]):
        df = Counter(gram for text in corpus for gram in set(grams(text)))
        self._place = {gram: n for n, gram in enumerate(df)}
        self._idf = np.array([1 + math.log((1 + len(corpus)) / (1 + n)) for n in df.values()])

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), len(self._place)))  # (N, D)
        for row, text in zip(vectors, texts, strict=True):
            for gram, count in Counter(grams(text)).items():
                if gram in self._place:
                    row[self._place[gram]] = count * self._idf[self._place[gram]]
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def grams(text: str) -> list[str]:
    """All runs of one to four characters, words' borders included, but the border alone."""
    text = f" {' '.join(text.lower().split())} "
    found = (text[i : i + n] for n in range(1, LONGEST_GRAM + 1) for i in range(len(text) - n + 1))
    return [gram for gram in found if gram.strip()]


def embeddings(engine: Engine) -> Vectors:
    """The model's own view of a text: the mean of its last hidden states."""
    ends = [engine.tokenizer.end_of_text]
    return lambda texts: engine.embed([engine.tokenizer.prompt(t) or ends for t in texts]).double().numpy()


class Chooser:
    """Demonstrations from `pool` for any text."""

    def __init__(self, pool: Sequence[Item], how: str = "random", seed: int = 0, vectors: Vectors | None = None):
        """vectors: how texts are compared; character n-grams by default. Not for random ones."""
        self.pool, self.how = list(pool), how
        if how == "random":
            self._order = in_turns(self.pool, random.Random(seed))
            return
        inputs = [item.input for item in self.pool]
        self._vectors = vectors or Grams(inputs)
        self._known = self._vectors(inputs)  # (pool, D)

    def pick(self, text: str, count: int) -> list[Item]:
        """`count` examples, or as many as there are, never one with the same input. Random ones are the same for all texts
        (but for that rule), so that their beginning is computed once; of similar ones the most similar stands last."""
        if self.how == "random":
            return [item for item in self._order if item.input != text][:count]
        near = self._known @ self._vectors([text])[0]
        others = [n for n, item in enumerate(self.pool) if item.input != text]
        best = sorted(others, key=lambda n: (-near[n], n))[:count]
        return [self.pool[n] for n in reversed(best)]


def in_turns(pool: Sequence[Item], rng: random.Random) -> list[Item]:
    """A random order in which answers that occur several times come in turns: a model that has seen one answer more often
    than another prefers it (Zhao et al. 2021)."""
    shuffled = list(pool)
    rng.shuffle(shuffled)
    seen: Counter[str] = Counter()
    turns = []
    for n, item in enumerate(shuffled):
        turns.append((seen[item.outputs[0]], n))
        seen[item.outputs[0]] += 1
    return [shuffled[n] for _, n in sorted(turns)]
