"""AlphaEdit (Fang et al. 2025): MEMIT whose change is projected on what ordinary text's keys hardly use, and which minds the keys of
earlier edits.

Δᵀ solves [P(KKᵀ + KₚKₚᵀ) + αI] Δᵀ = P K Rᵀ. The authors keep directions whose singular value is below a fixed 0.02, which on another
scale of activations is none or all; here P leaves out the directions that hold `ENERGY` of C's trace.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jielong.edit.bench import Bench
from jielong.edit.methods.memit import Memit
from jielong.edit.values import matrix
from jielong.errors import UserError

ENERGY = 0.98
ALPHA = 1.0  # α; the authors' 10 is for keys of another size


class AlphaEdit(Memit):
    def rows(self, bench: Bench, layer: int, k: Tensor) -> Tensor:
        p, name = null_space(bench.c(layer)), f"{matrix(layer)}|k"
        known = k @ k.T
        for _, stored in bench.earlier.values():
            if name in stored:
                known = known + stored[name].double().T @ stored[name].double()
        return torch.linalg.solve(p @ known + ALPHA * torch.eye(len(p), dtype=p.dtype), p @ k).T.contiguous()


def null_space(c: Tensor, energy: float = ENERGY) -> Tensor:
    """P (K, K): the projection that leaves out the leading eigenvectors which hold `energy` of the trace of C. Raises UserError
    when nothing is left."""
    values, vectors = torch.linalg.eigh(c.double())  # ascending
    values = values.clamp_min(0.0)
    held = values.flip(0).cumsum(0) / values.sum()
    leading = int((held < energy - 1e-12).sum()) + 1
    rest = vectors[:, : len(values) - leading]
    if rest.shape[1] == 0:
        raise UserError("The keys of this layer leave no room (null space of rank 0): choose another --layer.")
    return rest @ rest.T
