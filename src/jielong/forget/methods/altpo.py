"""AltPO (Mekala et al. 2024): DPO towards other answers that the model itself gives, away from the true one.

The paper asks the model in words for other plausible answers. A small model does not understand that, so here they are drawn at
a raised temperature, and those that begin as the true answer does are drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from jielong.align.direct import dpo_loss
from jielong.align.rollout import key, rollout
from jielong.align.scoring import Answered
from jielong.forget.methods.method import Method, Scene, given, known_nll, nll
from jielong.train.loop import precision

TEMPERATURE, ROUNDS = 1.3, 4
SAME = 3  # tokens: an answer that begins with so many of the true one's is no other answer
HEAD = 0.25  # of a text without a prompt of its own: what stands for one


def altpo_loss(other: Tensor, other_known: Tensor, true: Tensor, true_known: Tensor, beta: float) -> Tensor:
    """Summed −log p of the other and the true answers (E,), of the model and of the start → (2/β) · DPO's loss (E,)."""
    return (2 / beta) * dpo_loss(other_known - other, true_known - true, beta)


class AltPO(Method):
    defaults: ClassVar[dict[str, Any]] = {
        "lr": 3e-4, "epochs": 10.0, "gamma": 1.0, "alpha": 1.0, "beta": 0.1, "alternatives": 2,
    }  # fmt: skip

    def prepare(self, scene: Scene) -> None:
        self.true = [prompted(s) for s in scene.forget]
        self.others = other_answers(scene, self.true, scene.config.alternatives or 2)
        self.known = known_nll(scene.start, self.true, scene.dtype)
        flat = [a for own in self.others for a in own]
        self.known_others = list(known_nll(scene.start, flat, scene.dtype).split([len(o) for o in self.others]))

    def forget_loss(self, scene: Scene, items: Sequence[int]) -> Tensor:
        counts = torch.tensor([len(self.others[i]) for i in items])
        others = nll(scene.model, [a for i in items for a in self.others[i]], scene.dtype)
        true = nll(scene.model, [self.true[i] for i in items], scene.dtype)
        known = torch.cat([self.known_others[i] for i in items])
        true, true_known = (t.repeat_interleave(counts) for t in (true, self.known[torch.tensor(items)]))
        return altpo_loss(others, known, true, true_known, given(scene.config.beta)).mean()


def prompted(item: Answered) -> Answered:
    """A text whose prompt is one token (a document) with its beginning as the prompt; others as they are."""
    if len(item.prompt) > 1 or len(item.answer) < 4:
        return item
    cut = max(1, int(len(item.answer) * HEAD))
    return Answered((*item.prompt, *item.answer[:cut]), item.answer[cut:])


def other_answers(scene: Scene, items: Sequence[Answered], count: int) -> list[list[Answered]]:
    """`count` answers of the start model to each prompt, none of which begins as the true one; where it knows no other, what it
    said last. At least one token each."""
    found: list[list[Answered]] = [[] for _ in items]
    for attempt in range(ROUNDS):
        asked = [n for n, own in enumerate(found) for _ in range(count - len(own))]
        if not asked:
            break
        longest = max(len(items[n].answer) for n in asked)
        drawn = rollout(
            scene.start, scene.tokenizer, [items[n].prompt for n in asked],
            [key(scene.config.seed, "altpo", attempt, i) for i in range(len(asked))],
            TEMPERATURE, longest, precision(scene.config.precision),
        )  # fmt: skip
        for n, said in zip(asked, drawn.sequences, strict=True):
            answer = said.answer[: len(items[n].answer)] or items[n].answer[-1:]
            same = answer[:SAME] == items[n].answer[:SAME]
            if not same or attempt == ROUNDS - 1:
                found[n].append(Answered(items[n].prompt, answer))
    return found
