"""Negative preference optimisation (Zhang et al. 2024): DPO with a losing answer only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.forget.methods.method import Method, Scene, given, known_nll, nll


def npo_loss(now: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Summed −log p of the texts (E,) under the model and under the start model → −(2/β) log σ(β (now − reference)), (E,)
    (Zhang et al. 2024, eq. 3). Its gradient is that of gradient ascent times 2 σ(−β (now − reference)), which is 1 at the
    start and for β → 0, and vanishes as a text becomes unlikely."""
    return (2 / beta) * F.softplus(-beta * (now - reference))


class NPO(Method):
    """NPO with the mean retain loss beside it."""

    defaults: ClassVar[dict[str, Any]] = {"lr": 3e-4, "epochs": 10.0, "gamma": 1.0, "alpha": 1.0, "beta": 0.1}

    def prepare(self, scene: Scene) -> None:
        self.known = known_nll(scene.start, scene.forget, scene.dtype)

    def forget_loss(self, scene: Scene, items: Sequence[int]) -> Tensor:
        own = [scene.forget[i] for i in items]
        known = self.known[torch.tensor(items)]
        return npo_loss(nll(scene.model, own, scene.dtype), known, given(scene.config.beta)).mean()
