"""What methods share whose changes are found on the model as it is and are simply added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jielong.edit.bench import Bench, Stored
from jielong.edit.facts import Fact
from jielong.edit.values import matrix, second
from jielong.generate.memory import Note
from jielong.model.delta import Delta, joined
from jielong.model.gpt import GPT


class Additive:
    exact = False

    def notes(self, fact: Fact) -> list[Note]:
        return []

    def delta(self, bench: Bench, stored: Mapping[str, Stored]) -> Delta:
        return joined([read(stored[key]) for key in sorted(stored)])


def keep(delta: Delta) -> Stored:
    """A change as it is stored."""
    kinds = {1: "d", 2: "uv"}
    return {f"{n}|{k}": t for n, part in delta.parts.items() for k, t in zip(kinds[len(part)], part, strict=True)}


def read(stored: Stored) -> Delta:
    names = sorted({key.rpartition("|")[0] for key in stored if key.rpartition("|")[2] in ("u", "v", "d")})
    return Delta(
        {n: (stored[f"{n}|d"],) if f"{n}|d" in stored else (stored[f"{n}|u"], stored[f"{n}|v"]) for n in names}
    )


def statements(fact: Fact) -> tuple[Fact, ...]:
    """The fact, and the same in other words."""
    return (fact, *fact.also)


def working_copy(bench: Bench) -> GPT:
    """The model with all changes that stand; the editor writes into this copy."""
    from jielong.edit.methods import together

    return bench.current(together(bench, bench.earlier))


@torch.no_grad()
def add(model: GPT, layer: int, u: Tensor, v: Tensor) -> None:
    """W += U V on the copy."""
    weight = second(model, layer).weight
    weight.copy_((weight.double() + u @ v).to(weight.dtype))


def around(bench: Bench, model: GPT) -> Bench:
    """The same bench around another model; the replies of the first one still give the texts."""
    other = replace(bench, model=model)
    other.__dict__["engine"] = bench.engine
    return other


def merge(layers: Sequence[int], parts: Mapping[int, list[tuple[Tensor, Tensor]]]) -> Delta:
    """Layer → (U, V) columns, side by side."""
    return Delta(
        {
            matrix(n): (torch.cat([u for u, _ in parts[n]], 1), torch.cat([v for _, v in parts[n]], 0))
            for n in layers
            if parts.get(n)
        }
    )
