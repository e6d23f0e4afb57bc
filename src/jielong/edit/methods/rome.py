"""r-ROME: the smallest change, in the metric of C, that makes the keys write exactly their values.

Δ = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹, which is EMMET's form (Gupta et al. 2024); for one key it is ROME's rank-one update δuᵀ/(uᵀk) with u = C⁻¹k
(Meng et al. 2022) and the same averaged key in every place, as r-ROME demands (Gupta et al. 2024): ROME itself mixes two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jielong.edit.bench import Bench, Stored
from jielong.edit.facts import Fact
from jielong.edit.methods.additive import Additive, add, around, keep, merge, statements, working_copy
from jielong.edit.values import keys, search


class RRome(Additive):
    def propose(self, bench: Bench, facts: Sequence[Fact]) -> list[Stored]:
        model, layer, made = working_copy(bench), bench.site.layer, []
        current = around(bench, model)
        for fact in facts:
            parts: list[tuple[Tensor, Tensor]] = []
            for statement in statements(fact):
                contexts = current.contexts(statement)
                more = current.keep(statement) if bench.site.place == "subject" else []
                values, _ = search(model, layer, [*contexts, *more], bench.search)
                k = torch.stack([own.mean(0) for own in keys(model, contexts, layer)], 1)  # (K, slots)
                parts.append(equality(values.T, k, bench.c(layer)))
                add(model, layer, *parts[-1])
            made.append(keep(merge([layer], {layer: parts})))
        return made


def equality(residual: Tensor, k: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(U, V) with (U V) K = R and the least tr(Δ C Δᵀ): residual (D, n), k (K, n), c (K, K), all float64."""
    u = torch.linalg.solve(c, k)  # C⁻¹K
    return residual.contiguous(), torch.linalg.solve(k.T @ u, u.T).contiguous()
