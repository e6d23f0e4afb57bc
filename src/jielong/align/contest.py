"""Two models answer the same prompts: whose answers are liked more, and what else has changed about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jielong.align.ppo import repetition
from jielong.align.rollout import Rollout, key, rollout
from jielong.align.scoring import Scored, score
from jielong.evaluate.statistics import Interval, bootstrap
from jielong.feedback.labels import Messages
from jielong.model.gpt import GPT
from jielong.teacher.judge import language
from jielong.tokens.chat import chat_ids
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import precision


@dataclass
class Contest:
    """Held-out prompts, each answered `samples` times, prompt after prompt."""

    messages: Sequence[Messages]
    tokenizer: Tokenizer
    samples: int
    temperature: float
    max_tokens: int
    precision: str
    seed: int

    def answers(self, model: GPT, purpose: str = "") -> Rollout:
        """The model's answers. Models that are compared draw with the same seeds, so that equal models answer alike."""
        prompts = [chat_ids(self.tokenizer, [{"role": r, "content": c} for r, c in m], True) for m in self.messages]
        asked = [p for p in prompts for _ in range(self.samples)]
        seeds = [key("contest", self.seed, purpose, n) for n in range(len(asked))]
        return rollout(
            model, self.tokenizer, asked, seeds, self.temperature, self.max_tokens, precision(self.precision)
        )

    def win_rate(self, judge: Scored, new: Rollout, old: Rollout, dtype: torch.dtype) -> Interval:
        """Share of (new, old) pairs of answers to one prompt of which the judge likes the new one more, equal ones counting
        half; interval by bootstrap over prompts."""
        return win_rate(self.scores(judge, new, dtype), self.scores(judge, old, dtype))

    def scores(self, judge: Scored, drawn: Rollout, dtype: torch.dtype) -> np.ndarray:
        """(prompts, samples) of what the judge says; equal answers get equal scores, whatever they were batched with."""
        distinct = {s: n for n, s in enumerate(dict.fromkeys(drawn.sequences))}
        said = score(judge, list(distinct), dtype).double().numpy()
        return np.array([said[distinct[s]] for s in drawn.sequences]).reshape(len(self.messages), self.samples)

    def describe(self, drawn: Rollout) -> dict[str, float]:
        """Mean length in tokens, share of repeated runs, share in the language of the question, share that ended."""
        asked = [m[-1][1] for m in self.messages for _ in range(self.samples)]
        same = [language(text) == language(q) for text, q in zip(drawn.texts, asked, strict=True)]
        return {
            "length": round(float(drawn.lengths.double().mean()), 3),
            "repetition": round(float(np.mean([repetition(s.answer) for s in drawn.sequences])), 4),
            "language": round(float(np.mean(same)), 4),
            "ended": round(float(drawn.ended.double().mean()), 4),
        }

    def examples(self, old: Rollout, new: Rollout, most: int = 12) -> list[dict[str, Any]]:
        """Some prompts with an answer of each."""
        step = max(1, len(self.messages) // most)
        return [
            {
                "prompt": self.messages[n][-1][1],
                "before": old.texts[n * self.samples],
                "after": new.texts[n * self.samples],
            }
            for n in range(0, len(self.messages), step)
        ][:most]


def wins(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """(P, S) scores of each side → (P,) share of the pairs of a prompt that the new side wins, ties counting half."""
    return ((new[:, :, None] > old[:, None, :]) + 0.5 * (new[:, :, None] == old[:, None, :])).mean((1, 2))  # (P, S, S)


def win_rate(new: np.ndarray, old: np.ndarray) -> Interval:
    """(prompts, samples) scores of each side → share of all pairs within a prompt that the new side wins."""
    per_prompt = wins(new, old)
    return bootstrap([[n] for n in range(len(per_prompt))], lambda i: float(per_prompt[i].mean()))
