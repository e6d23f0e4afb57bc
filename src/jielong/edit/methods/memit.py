"""MEMIT (Meng et al. 2023): a batch of edits by ridge least squares, the residual spread over several layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jielong.edit.bench import Bench, Stored
from jielong.edit.facts import Fact
from jielong.edit.methods.additive import Additive, add, around, keep, merge, statements, working_copy
from jielong.edit.values import Context, batch, keys, matrix, search
from jielong.model.gpt import GPT, causal_mask

SPREAD = 3  # layers


class Memit(Additive):
    def propose(self, bench: Bench, facts: Sequence[Fact]) -> list[Stored]:
        model, last = working_copy(bench), bench.site.layer
        layers = list(range(max(0, last - SPREAD + 1), last + 1))
        owners: list[int] = []  # the fact that a column belongs to
        asked: list[list[Context]] = []
        goals: list[Tensor] = []
        current = around(bench, model)
        for number, fact in enumerate(facts):
            for statement in statements(fact):
                contexts = current.contexts(statement)
                more = current.keep(statement) if bench.site.place == "subject" else []
                values, _ = search(model, last, [*contexts, *more], bench.search)
                goals.append(written(model, contexts, last) + values)
                asked.append(contexts)
                owners += [number] * len(values)
        goal = torch.cat(goals).T  # (D, n)
        parts: list[dict[int, list[tuple[Tensor, Tensor]]]] = [{} for _ in facts]
        made: list[Stored] = [{} for _ in facts]
        for layer in layers:
            k = torch.cat([torch.stack([own.mean(0) for own in keys(model, c, layer)]) for c in asked]).T  # (K, n)
            here = torch.cat([written(model, c, last) for c in asked]).T
            u, v = (goal - here) / (last + 1 - layer), self.rows(bench, layer, k)  # Δ = U V
            add(model, layer, u, v)
            for n, owner in enumerate(owners):
                parts[owner].setdefault(layer, []).append((u[:, n : n + 1], v[n : n + 1]))
            for number in range(len(facts)):
                own = [n for n, owner in enumerate(owners) if owner == number]
                made[number][f"{matrix(layer)}|k"] = k.T[own].contiguous()
        return [keep(merge(layers, own)) | more for own, more in zip(parts, made, strict=True)]

    def rows(self, bench: Bench, layer: int, k: Tensor) -> Tensor:
        """(n, K): Kᵀ (λC + KKᵀ)⁻¹ of the keys k (K, n)."""
        return torch.linalg.solve(bench.ridge * bench.c(layer) + k @ k.T, k).T.contiguous()


@torch.no_grad()
def written(model: GPT, contexts: Sequence[Context], layer: int) -> Tensor:
    """(slots, D) float64: the residual stream behind the layer at each slot, averaged over the contexts."""
    tokens = batch([c.tokens for c in contexts])
    x, rope = model.enter(tokens)
    mask = causal_mask(tokens.shape[1])
    for n in range(layer + 1):
        x = model.blocks[n](x, rope, mask)
    slots = 1 + max(slot for c in contexts for _, slot in c.spots)
    return torch.stack(
        [
            torch.stack([x[row, t] for row, c in enumerate(contexts) for t, slot in c.spots if slot == own])
            .double()
            .mean(0)
            for own in range(slots)
        ]
    )
