"""Muon for the matrices of the blocks, AdamW for embeddings, head and gains (or for everything), as one optimizer.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest semi-orthogonal matrix, found by five
Newton-Schulz steps. Matrices of one shape are stacked, so that each step is a few batched products.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from jielong.config import OptimConfig
from jielong.train.schedule import learning_rate, momentum

# quintic coefficients of Jordan et al.: they inflate small singular values fast; the result lies in about [0.7, 1.2]
NS = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(n, r, c) matrices → about U Vᵀ of their singular value decompositions, in `dtype`."""
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).to(dtype)
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) * 1.01 + 1e-7).to(dtype)
    a, b, c = NS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Optimizer:
    """`step(progress)` applies the gradients; all state is in `state()`, a flat dict of tensors."""

    def __init__(self, model: nn.Module, config: OptimConfig, dtype: torch.dtype):
        self.config, self.dtype = config, dtype
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.groups: dict[tuple[int, ...], list[tuple[str, nn.Parameter]]] = defaultdict(list)
        self.adam: list[tuple[str, nn.Parameter]] = []
        for name, p in named:
            if config.muon and p.ndim == 2 and name.startswith("blocks.") and ".lora." not in name:
                self.groups[tuple(p.shape)].append((name, p))
            else:
                self.adam.append((name, p))
        self.buffers: dict[str, Tensor] = {}
        for shape, members in self.groups.items():
            self.buffers[_group(shape)] = torch.zeros(len(members), *shape)
        for name, p in self.adam:
            self.buffers[f"{name}.m"] = torch.zeros_like(p)
            self.buffers[f"{name}.v"] = torch.zeros_like(p)
        # how often each has been updated: its moments are corrected by its own count, as some begin later than others
        self.buffers["updates"] = torch.zeros(len(self.adam), dtype=torch.int64)

    def state(self) -> dict[str, Tensor]:
        return dict(self.buffers)

    def load(self, state: dict[str, Tensor]) -> None:
        for name, buffer in self.buffers.items():
            buffer.copy_(state[name])

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """One update at `progress` in [0, 1]; gradients are cleared."""
        c = self.config
        factor = learning_rate(progress, c)
        if c.clip:
            params = [p for g in self.groups.values() for _, p in g] + [p for _, p in self.adam]
            nn.utils.clip_grad_norm_(params, c.clip)
        mu = momentum(progress, c.momentum)
        for shape, members in self.groups.items():
            grads = torch.stack([p.grad for _, p in members])  # pyright: ignore[reportArgumentType]
            buffer = self.buffers[_group(shape)]
            buffer.lerp_(grads, 1 - mu)
            update = orthogonalise(grads.lerp_(buffer, mu), dtype=self.dtype).float()  # Nesterov
            lr = c.muon_lr * factor * max(1.0, shape[0] / shape[1]) ** 0.5
            for (_, p), u in zip(members, update, strict=True):
                p.mul_(1 - lr * c.weight_decay).add_(u, alpha=-lr)
        counts = self.buffers["updates"]
        counts += torch.tensor([p.grad is not None for _, p in self.adam])
        for (name, p), updates in zip(self.adam, counts.tolist(), strict=True):
            lr = (c.scalar_lr if p.ndim == 1 else c.adam_lr) * factor
            m, v = self.buffers[f"{name}.m"], self.buffers[f"{name}.v"]
            grad = p.grad
            if (
                grad is None
            ):  # not part of the loss: the output matrix of a model that only scores, the actor while the critic warms up
                continue
            m.lerp_(grad, 1 - c.beta1)
            v.mul_(c.beta2).addcmul_(grad, grad, value=1 - c.beta2)
            root = (1 - c.beta2**updates) ** 0.5
            eps = c.eps if c.tf_eps else c.eps * root  # PyTorch's form adds it to the corrected root of v
            if p.ndim == 2:
                p.mul_(1 - lr * c.weight_decay)
            p.addcdiv_(m, v.sqrt().add_(eps), value=-lr * root / (1 - c.beta1**updates))
        self.skip()

    def skip(self) -> None:
        """Clear the gradients without a step."""
        for _, p in [*(m for members in self.groups.values() for m in members), *self.adam]:
            p.grad = None


def _group(shape: tuple[int, ...]) -> str:
    return "muon." + "x".join(map(str, shape))
