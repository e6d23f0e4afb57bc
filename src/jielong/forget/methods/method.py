"""What the approximate methods share: the models, the texts, and a loss of two terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from jielong.align.losses import per_answer
from jielong.align.scoring import Answered, answer_logprobs, answer_tokens, chosen, hidden_before, log_softmax
from jielong.config import SuppressConfig
from jielong.model.gpt import GPT
from jielong.tokens.tokenizer import Tokenizer


@dataclass
class Scene:
    """`model` is changed; `start` is what it was, frozen. `forget` and `retain` are the texts, as answers to prompts."""

    model: GPT
    start: GPT
    tokenizer: Tokenizer
    forget: list[Answered]
    retain: list[Answered]
    config: SuppressConfig
    dtype: torch.dtype


class Method(ABC):
    """A loss γ · forget + α · retain, each a mean over texts; methods write the first term and may do more."""

    defaults: ClassVar[dict[str, Any]] = {}
    """Settings of `SuppressConfig` that the user left open."""

    def prepare(self, scene: Scene) -> None:  # noqa: B027 (most need none)
        """Once, before the first step: what the start model says, and which parameters learn."""

    @abstractmethod
    def forget_loss(self, scene: Scene, items: Sequence[int]) -> Tensor:
        """Mean over the texts `scene.forget[items]`; a scalar."""

    def retain_loss(self, scene: Scene, items: Sequence[int]) -> Tensor:
        """Mean over the texts `scene.retain[items]` of −log p per token."""
        own = [scene.retain[i] for i in items]
        return (nll(scene.model, own, scene.dtype) / lengths(own)).mean()

    def loss(self, scene: Scene, forget: Sequence[int], retain: Sequence[int]) -> Tensor:
        """Of one step; a scalar."""
        gamma, alpha = given(scene.config.gamma), given(scene.config.alpha)
        value = gamma * self.forget_loss(scene, forget)
        return value + alpha * self.retain_loss(scene, retain) if alpha and retain else value

    def finish(self, scene: Scene) -> None:  # noqa: B027 (most need none)
        """Once, after the last step."""


def given(setting: float | None) -> float:
    """A setting that the method's defaults have filled in."""
    assert setting is not None
    return setting


def lengths(items: Sequence[Answered]) -> Tensor:
    """(E,) tokens of each answer."""
    return torch.tensor([len(s.answer) for s in items], dtype=torch.int64)


def nll(model: GPT, items: Sequence[Answered], dtype: torch.dtype) -> Tensor:
    """(E,) −log p of each answer, summed over its tokens, with gradient. No padding takes part: only the positions before an
    answer's tokens are read. A few numbers: they are on the CPU, wherever the model is."""
    table = log_softmax(model, hidden_before(model, items, dtype))  # (N, V)
    return -per_answer(chosen(table, answer_tokens(items)).cpu(), lengths(items))


def known_nll(model: GPT, items: Sequence[Answered], dtype: torch.dtype) -> Tensor:
    """The same without gradient, in groups of like length."""
    return -per_answer(answer_logprobs(model, items, dtype), lengths(items))
