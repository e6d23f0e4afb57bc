"""The ridge ledger: one layer, one closed form over the set of all edits.

With A = λC + Σ kᵢkᵢᵀ over every key of every edit and δᵢ what each is to write more (nothing where a model that chats decides how to
begin its answer), W = W₀ + (Σ δᵢkᵢᵀ) A⁻¹ minimises
Σ‖(W − W₀)kᵢ − δᵢ‖² + λ tr((W − W₀) C (W − W₀)ᵀ): MEMIT's objective (Meng et al. 2023) at a single layer. Keys depend on weights below the
layer only, and δᵢ is searched on the base, so that W is a function of the set: the order changes nothing, and an edit that
is taken out has never been made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from jielong.edit.bench import Bench, Stored
from jielong.edit.facts import Fact
from jielong.edit.methods.additive import statements
from jielong.edit.values import keys, matrix, search, still_keys
from jielong.generate.memory import Note
from jielong.model.delta import Delta


class Ridge:
    exact = True

    def notes(self, fact: Fact) -> list[Note]:
        return []

    def propose(self, bench: Bench, facts: Sequence[Fact]) -> list[Stored]:
        return [self._one(bench, fact) for fact in facts]

    def _one(self, bench: Bench, fact: Fact) -> Stored:
        layer = bench.site.layer
        found: list[Tensor] = []
        slots: list[int] = []
        values: list[Tensor] = []
        still: list[Tensor] = []
        for statement in statements(fact):
            contexts = bench.contexts(statement)
            more = bench.keep(statement) if bench.site.place == "subject" else []
            value, _ = search(bench.model, layer, [*contexts, *more], bench.search)
            for own in keys(bench.model, contexts, layer):
                slots += [len(found)] * len(own)
                found.append(own)
            values.append(value)
            still.append(still_keys(bench.model, contexts, layer))
        return {
            "keys": torch.cat(found).float(),
            "still": torch.cat(still).float(),
            "slots": torch.tensor(slots),
            "values": torch.cat(values).float(),
            "layer": torch.tensor(layer),
        }

    def delta(self, bench: Bench, stored: Mapping[str, Stored]) -> Delta:
        parts = {}
        for layer in sorted({int(s["layer"]) for s in stored.values()}):
            own = [stored[key] for key in sorted(stored) if int(stored[key]["layer"]) == layer]
            parts[matrix(layer)] = closed_form(own, bench.c(layer), bench.ridge)
        return Delta(parts)


def closed_form(edits: Sequence[Stored], c: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(U (D, R), V (R, K)) float64 with U V = (Σ δkᵀ)(λC + Σ kkᵀ)⁻¹: a column per value that the edits store."""
    a = ridge * c.double()
    sums = []
    for edit in edits:
        k, still = edit["keys"].double(), edit["still"].double()  # (n, K), (m, K)
        a = a + k.T @ k + still.T @ still
        sums.append(torch.zeros(len(edit["values"]), k.shape[1], dtype=torch.float64).index_add_(0, edit["slots"], k))
    v = torch.linalg.solve(a, torch.cat(sums).T).T  # (R, K)
    return torch.cat([edit["values"] for edit in edits]).double().T.contiguous(), v.contiguous()
