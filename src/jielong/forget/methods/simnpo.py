"""SimNPO (Fan et al. 2024): NPO without a reference model, by the mean instead of the sum over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from jielong.forget.methods.method import Method, Scene, given, lengths, nll


def simnpo_loss(now: Tensor, length: Tensor, beta: float, delta: float) -> Tensor:
    """Summed −log p of the texts (E,) and their tokens (E,) → −(2/β) log σ(β (now/length − δ)), (E,) (Fan et al. 2024, eq. 4)."""
    return (2 / beta) * F.softplus(-beta * (now / length - delta))


class SimNPO(Method):
    """SimNPO with the mean retain loss beside it."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 3e-4, "epochs": 10.0, "gamma": 0.125, "alpha": 1.0, "beta": 4.5, "delta": 0.0,
    }  # fmt: skip

    def forget_loss(self, scene: Scene, items: Sequence[int]) -> Tensor:
        own, c = [scene.forget[i] for i in items], scene.config
        return simnpo_loss(nll(scene.model, own, scene.dtype), lengths(own), given(c.beta), given(c.delta)).mean()
