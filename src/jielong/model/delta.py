"""A small change to named matrices, in a file of its own; the weights that it changes are never written.

W′ = W + Σ Uᵢ Vᵢ, or + a dense matrix where a method's change has no low rank. A change may be larger than its matrix: neurons that
are added to the feed-forward. Then W is zero there. What is stored belongs to one base, named
by its hash, so that nothing is added twice: W′ is computed from the base's W each time that the model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jielong.errors import UserError
from jielong.run import Artifact, write_atomic

DELTA = "delta.json"


@dataclass(frozen=True)
class Delta:
    """Matrix name → (U (N, R), V (R, K)), or (D (N, K),) for a dense change."""

    parts: Mapping[str, tuple[Tensor, ...]]

    def added(self, name: str) -> Tensor:
        """(N, K) float64: what is added to the matrix `name`."""
        part = [p.double() for p in self.parts[name]]
        return part[0] @ part[1] if len(part) == 2 else part[0]

    def rank(self, name: str) -> int:
        """Columns of U; of a dense change, its smaller side."""
        part = self.parts[name]
        return part[0].shape[1] if len(part) == 2 else min(part[0].shape)


def applied(state: Mapping[str, Tensor], deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    """A state dict with changes, by their ids: added up in float64 in the order of the ids and rounded once to float32, so that
    the order in which they were made changes no bit. Raises UserError for a matrix that the model does not have."""
    changed = dict(state)
    for name in sorted({name for delta in deltas.values() for name in delta.parts}):
        if name not in state:
            raise UserError(f"The change belongs to another model: this one has no matrix {name}.")
        total = state[name].double()
        for key in sorted(deltas):
            if name in deltas[key].parts:
                added = deltas[key].added(name)
                if not _fits(name, added.shape, state[name].shape):
                    raise UserError(f"The change belongs to another model: {name} has another shape there.")
                total, added = _alike(total, added)
                total = total + added
        changed[name] = total.float()
    return changed


def _fits(name: str, shape: torch.Size, base: torch.Size) -> bool:
    """Is it the matrix's own shape, or in the feed-forward's width a larger one?"""
    part = name.split(".")[-3:-1]
    if part not in (["mlp", "gate"], ["mlp", "up"], ["mlp", "down"]):
        return shape == base
    wide = int(part[1] == "down")
    return shape[1 - wide] == base[1 - wide] and shape[wide] >= base[wide]


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the larger one's shape, zeros below and to the right."""
    rows, columns = max(a.shape[0], b.shape[0]), max(a.shape[1], b.shape[1])
    return _padded(a, rows, columns), _padded(b, rows, columns)


def _padded(t: Tensor, rows: int, columns: int) -> Tensor:
    if t.shape == (rows, columns):
        return t
    larger = t.new_zeros(rows, columns)
    larger[: t.shape[0], : t.shape[1]] = t
    return larger


def widened(width: int, delta: Delta) -> int:
    """The feed-forward's width with a change."""
    return max([width, *(part[-1].shape[1] for name, part in delta.parts.items() if name.endswith(".mlp.down.weight"))])


def joined(deltas: Sequence[Delta]) -> Delta:
    """The sum of low-rank changes as one: their columns side by side; dense ones are added up."""
    parts: dict[str, tuple[Tensor, ...]] = {}
    for name in sorted({name for delta in deltas for name in delta.parts}):
        own = [delta for delta in deltas if name in delta.parts]
        if all(len(delta.parts[name]) == 2 for delta in own):
            pairs = [delta.parts[name] for delta in own]
            rows, columns = max(u.shape[0] for u, _ in pairs), max(v.shape[1] for _, v in pairs)
            pairs = [(_padded(u, rows, u.shape[1]), _padded(v, v.shape[0], columns)) for u, v in pairs]
            parts[name] = (torch.cat([u for u, _ in pairs], 1), torch.cat([v for _, v in pairs], 0))
        else:
            total = own[0].added(name)
            for delta in own[1:]:
                a, b = _alike(total, delta.added(name))
                total = a + b
            parts[name] = (total.float(),)
    return Delta(parts)


def save_delta(delta: Delta, folder: Path, base: Artifact) -> None:
    """delta.safetensors, and delta.json, which names the base by its hash."""
    from safetensors.torch import save_file

    tensors = {}
    for name, part in delta.parts.items():
        for kind, tensor in zip(("u", "v") if len(part) == 2 else ("d",), part, strict=True):
            tensors[f"{name}.{kind}"] = tensor.contiguous()
    save_file(tensors, folder / "delta.safetensors")
    write_atomic(folder / DELTA, json.dumps({"base": base.name, "hash": base.hash}))


def load_delta(folder: Path) -> Delta:
    """Raises UserError when the file cannot be read."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / "delta.safetensors")
        dense = {k.removesuffix(".d"): (t,) for k, t in tensors.items() if k.endswith(".d")}
        low = {k.removesuffix(".u"): (t, tensors[f"{k[:-2]}.v"]) for k, t in tensors.items() if k.endswith(".u")}
    except Exception as error:
        raise UserError(f"The change in {folder} cannot be read: {str(error).splitlines()[0]}") from error
    return Delta(dense | low)


def delta_base(folder: Path) -> Path:
    """The folder of the base. Raises UserError when it is gone or another one by now."""
    known = json.loads((folder / DELTA).read_text(encoding="utf-8"))
    base = folder.parent / known["base"]
    if not base.is_dir() or Artifact(base).hash != known["hash"]:
        raise UserError(f"{folder} is a change of another {base} than the one there; edit again.")
    return base
