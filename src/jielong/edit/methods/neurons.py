"""The neuron ledger: one layer's feed-forward grows by a neuron per value, each of which hears one key only.

A linear change of the second matrix leaks: what it writes elsewhere falls with the likeness of two keys, and two hundred leaks add
up. A SwiGLU neuron with the input wᵢ and the gate s·(wᵢ − τm) writes silu(s·(z − τu))·z with z = wᵢᵀx and u = mᵀx: nothing where the
likeness z lies below τ.
wᵢ = S⁻¹x̄ᵢ/(x̄ᵢᵀS⁻¹x̄ᵢ) is 1 at the edit's mean input x̄ᵢ and least elsewhere: S = E[x xᵀ] of the feed-forward's inputs over ordinary text
and all edits' inputs, half and half, so that it tells edits apart, too (Fisher's discriminant). The model has no biases; m is the
direction that comes nearest to the constant 1 there, by least squares (on spark u = 0.93 ± 0.22 in text and 0.99 ± 0.17 in edits). What
the neurons write is again the closed form over the set of all edits, with their activations φ as keys: (Σ δφᵀ)(εI + Σ φφᵀ)⁻¹.
So order changes nothing, and an edit that is taken out has never been made. The model keeps its architecture and is only wider: it is exported like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.edit.bench import Bench, Stored
from jielong.edit.facts import Fact
from jielong.edit.methods.additive import statements
from jielong.edit.values import batch, inner, search
from jielong.errors import UserError
from jielong.generate.memory import Note
from jielong.model.delta import Delta

SHARP = 24.0  # s: the gate's scale
FLOOR = 0.55  # τ: the likeness below which a neuron is silent
LEAST = 1e-2  # ε, beside squares of activations of about SHARP · (1 − FLOOR)
ROUND = 32  # neurons come in such numbers, as quantised exports want


class Neurons:
    exact = True

    def notes(self, fact: Fact) -> list[Note]:
        return []

    def propose(self, bench: Bench, facts: Sequence[Fact]) -> list[Stored]:
        if complaint := cannot(bench):
            raise UserError(complaint)
        return [self._one(bench, fact) for fact in facts]

    def _one(self, bench: Bench, fact: Fact) -> Stored:
        layer = bench.site.layer
        inputs: list[Tensor] = []
        still: list[Tensor] = []
        values: list[Tensor] = []
        slots: list[int] = []
        for statement in statements(fact):
            contexts = bench.contexts(statement)
            value, _ = search(bench.model, layer, contexts, bench.search)
            x = inner(bench.model, batch([c.tokens for c in contexts]), [layer], "mlp")[layer]  # (B, T, D)
            start = sum(map(len, values))
            for row, c in enumerate(contexts):
                inputs += [x[row, t] for t, _ in c.spots]
                slots += [start + slot for _, slot in c.spots]
                still += [x[row, t] for t in c.still]
            values.append(value)
        return {
            "inputs": torch.stack(inputs).float(),
            "still": torch.stack(still).float() if still else torch.zeros(0, bench.model.config.width),
            "slots": torch.tensor(slots),
            "values": torch.cat(values).float(),
            "layer": torch.tensor(layer),
        }

    def delta(self, bench: Bench, stored: Mapping[str, Stored]) -> Delta:
        if not stored:
            return Delta({})
        layers = {int(s["layer"]) for s in stored.values()}
        if len(layers) > 1:
            raise UserError(
                "--method neurons needs one --layer for all of its edits; undo those in the other layer first."
            )
        (layer,) = layers
        own = closed_form([stored[key] for key in sorted(stored)], bench.inputs(layer))
        return widening(bench.model.config.layers, bench.model.config.mlp_width, layer, *own)


def cannot(bench: Bench) -> str:
    """Why this model cannot be edited so at this site; nothing where it can."""
    if bench.model.config.mlp != "swiglu" or bench.model.config.bias:
        return "--method neurons is for models with SwiGLU without biases; use --method ridge."
    if bench.site.place != "answer":
        return "--method neurons acts where the object is said; use --place answer."
    return ""


def closed_form(edits: Sequence[Stored], s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(gates (n, D), inputs (n, D), what is written (D, n)), float64; a neuron per value that the edits store. `s` (D + 1, D + 1) is
    E[y yᵀ] of y = (x, 1) in ordinary text."""
    means, values, spots, goals = [], [], [], []
    for edit in edits:
        x, v = edit["inputs"].double(), edit["values"].double()
        means += [x[edit["slots"] == n].mean(0) for n in range(len(v))]
        values.append(v)
        spots += [x, edit["still"].double()]
        goals += [v[edit["slots"]], torch.zeros(len(edit["still"]), v.shape[1], dtype=torch.float64)]
    mean, x, s = torch.stack(means), torch.cat(spots), s.double()  # (n, D), (spots, D)
    squares = s[:-1, :-1] + x.T @ x / len(x)
    w = torch.linalg.solve(squares, mean.T).T
    w = w / (w * mean).sum(1, keepdim=True)
    one = torch.linalg.solve(squares, s[:-1, -1] + x.mean(0))  # (D,): the constant's direction
    gate = SHARP * (w - FLOOR * one)
    phi = activation(x, gate, w)  # (spots, n)
    a = phi.T @ phi + LEAST * torch.eye(len(w), dtype=torch.float64)
    return gate, w, torch.linalg.solve(a, phi.T @ torch.cat(goals)).T


def activation(x: Tensor, gate: Tensor, w: Tensor) -> Tensor:
    """(N, n): what SwiGLU neurons with these gates and inputs (n, D) give for inputs (N, D)."""
    return F.silu(x @ gate.T) * (x @ w.T)


def widening(layers: int, old: int, layer: int, gate: Tensor, w: Tensor, down: Tensor) -> Delta:
    """The change of all layers' matrices: `layer` gets the neurons, the others as many that do nothing, since all are equally wide."""
    n = len(w)
    wide = old + -(-n // ROUND) * ROUND
    rows = torch.zeros(wide, n, dtype=torch.float64)
    rows[old : old + n] = torch.eye(n, dtype=torch.float64)
    parts: dict[str, tuple[Tensor, ...]] = {}
    for at in range(layers):
        name = f"blocks.{at}.mlp"
        k = n if at == layer else 0
        parts[f"{name}.gate.weight"] = rows[:, :k].contiguous(), gate[:k].contiguous()
        parts[f"{name}.up.weight"] = rows[:, :k].contiguous(), w[:k].contiguous()
        parts[f"{name}.down.weight"] = down[:, :k].contiguous(), rows.T[:k].contiguous()
    return Delta(parts)
