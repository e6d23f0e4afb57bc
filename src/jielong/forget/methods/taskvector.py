"""Task vector (Ilharco et al. 2023): learn by heart what is to go, then walk the same way backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from jielong.forget.methods.method import Method, Scene, given, lengths, nll


class TaskVector(Method):
    """θ − α (θ_learnt − θ), where θ_learnt minimises −log p of the texts. It knows no retain term: `alpha` is the step back."""

    defaults: ClassVar[dict[str, Any]] = {"lr": 3e-4, "epochs": 5.0, "gamma": 1.0, "alpha": 1.0}

    def prepare(self, scene: Scene) -> None:
        self.before = {n: p.detach().clone() for n, p in scene.model.named_parameters() if p.requires_grad}

    def forget_loss(self, scene: Scene, items: Sequence[int]) -> Tensor:
        own = [scene.forget[i] for i in items]
        return (nll(scene.model, own, scene.dtype) / lengths(own)).mean()

    def loss(self, scene: Scene, forget: Sequence[int], retain: Sequence[int]) -> Tensor:
        return given(scene.config.gamma) * self.forget_loss(scene, forget)

    @torch.no_grad()
    def finish(self, scene: Scene) -> None:
        """With a low-rank change scale · B A, which is zero at the start, B ← −α B turns the whole change round."""
        alpha = given(scene.config.alpha)
        parameters = dict(scene.model.named_parameters())
        low_rank = any(name.endswith(".lora.b") for name in self.before)
        for name, start in self.before.items():
            p = parameters[name]
            if low_rank:
                if name.endswith(".lora.b"):
                    p.mul_(-alpha)
            else:
                p.copy_(start - alpha * (p - start))
