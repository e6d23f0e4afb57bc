"""Muon for the matrices of the blocks, AdamW for embeddings, head and gains (or for everything), as one optimizer.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest semi-orthogonal matrix, found by five
Newton-Schulz steps. Matrices of one shape are stacked, so that each step is a few batched products.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from jielong.config import OptimConfig
from jielong.train.group import total
from jielong.train.layout import Division, Layout, Part, gradient, local
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
    """`step(progress)` applies the gradients; all state is in `parts()`.

    Where parameters are divided among processes, each keeps the state of its parts. AdamW needs no more; for Muon the
    matrices of one shape are dealt out, so that each process makes its share of them orthogonal and none makes all.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        dtype: torch.dtype,
        layout: Callable[[Tensor], Layout] = lambda _: Layout(),
    ):
        self.config, self.dtype, self.layout = config, dtype, layout
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.groups: dict[tuple[torch.Size, Layout], list[tuple[str, nn.Parameter]]] = defaultdict(list)
        self.adam: list[tuple[str, nn.Parameter]] = []
        for name, p in named:
            if config.muon and p.ndim == 2 and name.startswith("blocks.") and ".lora." not in name:
                self.groups[p.shape, layout(p)].append((name, p))
            else:
                self.adam.append((name, p))
        self.momentum: dict[tuple[torch.Size, Layout], Tensor] = {}
        for group, members in self.groups.items():
            first = local(members[0][1].detach())
            self.momentum[group] = first.new_zeros(len(members), *first.shape)
        self.moments = {
            f"{name}.{moment}": torch.zeros_like(local(p.detach())) for name, p in self.adam for moment in "mv"
        }
        # how often each has been updated: its moments are corrected by its own count, as some begin later than others
        self.updates = torch.zeros(len(self.adam), dtype=torch.int64)

    def parts(self) -> dict[str, Part]:
        """All state, as this process holds it: a momentum for each of Muon's matrices, two moments for each of AdamW's."""
        parts = {"updates": Part(self.updates, self.updates.shape, self.layout(self.updates))}
        for group, members in self.groups.items():
            for (name, p), matrix in zip(members, self.momentum[group], strict=True):
                parts[f"{name}.momentum"] = Part(matrix, p.shape, group[1])
        for name, p in self.adam:
            for moment in "mv":
                parts[f"{name}.{moment}"] = Part(self.moments[f"{name}.{moment}"], p.shape, self.layout(p))
        return parts

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """One update at `progress` in [0, 1]; gradients are cleared."""
        c = self.config
        factor = learning_rate(progress, c)
        if c.clip:
            self._clip([p for g in self.groups.values() for _, p in g] + [p for _, p in self.adam])
        mu = momentum(progress, c.momentum)
        for (shape, layout), members in self.groups.items():
            grads = torch.stack([gradient(p) for _, p in members])  # (n, r, c)
            buffer = self.momentum[shape, layout]
            buffer.lerp_(grads, 1 - mu)
            dealt = layout.deal(grads.lerp_(buffer, mu), shape)  # Nesterov
            update = layout.collect(orthogonalise(dealt, dtype=self.dtype), shape, len(members)).float()
            lr = c.muon_lr * factor * max(1.0, shape[0] / shape[1]) ** 0.5
            for (_, p), u in zip(members, update, strict=True):
                local(p).mul_(1 - lr * c.weight_decay).add_(u, alpha=-lr)
        self.updates += torch.tensor([p.grad is not None for _, p in self.adam])
        for (name, p), updates in zip(self.adam, self.updates.tolist(), strict=True):
            lr = (c.scalar_lr if p.ndim == 1 else c.adam_lr) * factor
            m, v = self.moments[f"{name}.m"], self.moments[f"{name}.v"]
            # not part of the loss: the output matrix of a model that only scores, the actor while the critic warms up
            if p.grad is None:
                continue
            p, grad = local(p), gradient(p)
            m.lerp_(grad, 1 - c.beta1)
            v.mul_(c.beta2).addcmul_(grad, grad, value=1 - c.beta2)
            root = (1 - c.beta2**updates) ** 0.5
            eps = c.eps if c.tf_eps else c.eps * root  # PyTorch's form adds it to the corrected root of v
            if p.ndim == 2:
                p.mul_(1 - lr * c.weight_decay)
            p.addcdiv_(m, v.sqrt().add_(eps), value=-lr * root / (1 - c.beta1**updates))
        self.skip()

    def _clip(self, parameters: Sequence[nn.Parameter]) -> None:
        """Scale the gradients so that their norm, over all processes' parts, is at most `clip`."""
        divided: dict[tuple[Division, ...], list[Tensor]] = defaultdict(list)
        for p in parameters:
            if p.grad is not None:
                divided[tuple(d for d in self.layout(p).divisions if d.dim is not None)].append(local(p.grad))
        if divided.keys() <= {()}:
            nn.utils.clip_grad_norm_(parameters, self.config.clip)
            return
        square = torch.zeros((), device=parameters[0].device)
        for divisions, grads in divided.items():
            part = torch.stack([torch.linalg.vector_norm(g) for g in grads]).square().sum()
            for d in divisions:
                part = total(part, d.group)
            square = square + part
        scale = (self.config.clip / (square.sqrt() + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ does
        for grads in divided.values():
            for g in grads:
                g.mul_(scale)

    def skip(self) -> None:
        """Clear the gradients without a step."""
        for _, p in [*(m for members in self.groups.values() for m in members), *self.adam]:
            p.grad = None
