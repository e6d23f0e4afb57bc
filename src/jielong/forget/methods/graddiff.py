"""Gradient difference (Liu et al. 2022; Maini et al. 2024): up the loss on what is to go, down on what must stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from jielong.forget.methods.method import Method, Scene, lengths, nll


class GradientDifference(Method):
    """−ℓ(f)/|f| + ℓ(r)/|r|. Its first term has no lower bound: too many steps ruin the model."""

    defaults: ClassVar[dict[str, Any]] = {"lr": 1e-4, "epochs": 5.0, "gamma": 1.0, "alpha": 1.0}

    def forget_loss(self, scene: Scene, items: Sequence[int]) -> Tensor:
        own = [scene.forget[i] for i in items]
        return -(nll(scene.model, own, scene.dtype) / lengths(own)).mean()
