"""RMU (Li et al. 2024, WMDP): what is to go is steered to a random direction inside the model, what must stay is held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from jielong.align.rollout import key
from jielong.align.scoring import Answered
from jielong.forget.methods.method import Method, Scene, given
from jielong.model.gpt import GPT, causal_mask

BELOW = 2  # blocks under the steered one whose MLP outputs learn, too


class RMU(Method):
    """‖h_l(f) − c u‖² and α ‖h_l(r) − h_l^start(r)‖², per dimension and token, then means over texts. u is a random unit vector,
    and c is `coefficient` times the mean norm of h_l on the texts that go, since layers and models differ in scale. Only the
    MLP outputs of blocks l − 2 to l learn."""

    defaults: ClassVar[dict[str, Any]] = {
        "lr": 1e-3, "epochs": 10.0, "gamma": 1.0, "alpha": 10.0, "coefficient": 2.0,
    }  # fmt: skip

    def prepare(self, scene: Scene) -> None:
        c, depth = scene.config, len(scene.model.blocks)
        self.layer = min(depth - 1, int(0.4 * depth) if c.layer is None else c.layer)
        trained = [f"blocks.{n}.mlp.down." for n in range(max(0, self.layer - BELOW), self.layer + 1)]
        for name, p in scene.model.named_parameters():
            p.requires_grad_(p.requires_grad and name.startswith(tuple(trained)))
        generator = torch.Generator().manual_seed(key(c.seed, "rmu"))
        u = torch.rand(scene.model.config.width, generator=generator)
        with torch.no_grad():
            norms = [h.norm(dim=-1).mean() for h in states(scene.start, scene.forget, self.layer, scene.dtype)]
        self.target = given(c.coefficient) * torch.stack(norms).mean() * (u / u.norm()).to(norms[0].device)  # (D,)

    def forget_loss(self, scene: Scene, items: Sequence[int]) -> Tensor:
        own = [scene.forget[i] for i in items]
        return distance(states(scene.model, own, self.layer, scene.dtype), [self.target] * len(own)).mean()

    def retain_loss(self, scene: Scene, items: Sequence[int]) -> Tensor:
        own = [scene.retain[i] for i in items]
        with torch.no_grad():
            held = states(scene.start, own, self.layer, scene.dtype)
        return distance(states(scene.model, own, self.layer, scene.dtype), held).mean()


def states(model: GPT, items: Sequence[Answered], layer: int, dtype: torch.dtype) -> list[Tensor]:
    """The output of block `layer` at the tokens of each answer: (|answer|, D) float32 each. Blocks above are not computed."""
    T = max(map(len, items))
    tokens = torch.zeros(len(items), T, dtype=torch.int64)
    for row, s in enumerate(items):
        tokens[row, : len(s)] = torch.tensor(s.prompt + s.answer)
    x, rope = model.enter(tokens.to(model.device), dtype)
    mask = causal_mask(T).to(model.device, dtype)
    for block in model.blocks[: layer + 1]:
        x = block(x, rope, mask)  # (B, T, D)
    return [x[row, len(s.prompt) : len(s)].float() for row, s in enumerate(items)]


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """(E,): for each text the squared distance per dimension, mean over its tokens; lengths may differ."""
    return torch.stack([(a - b).square().mean() for a, b in zip(found, wanted, strict=True)])
