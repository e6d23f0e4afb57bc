"""A small change to named matrices, in a file of its own; the weights that it changes are never written.

W′ = W + Σ Uᵢ Vᵢ, or + a dense matrix where a method's change has no low rank. What is stored belongs to one base, named
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
                if added.shape != total.shape:
                    raise UserError(f"The change belongs to another model: {name} has another shape there.")
                total = total + added
        changed[name] = total.float()
    return changed


def joined(deltas: Sequence[Delta]) -> Delta:
    """The sum of low-rank changes as one: their columns side by side; dense ones are added up."""
    parts: dict[str, tuple[Tensor, ...]] = {}
    for name in sorted({name for delta in deltas for name in delta.parts}):
        own = [delta for delta in deltas if name in delta.parts]
        if all(len(delta.parts[name]) == 2 for delta in own):
            pairs = [delta.parts[name] for delta in own]
            parts[name] = (torch.cat([u for u, _ in pairs], 1), torch.cat([v for _, v in pairs], 0))
        else:
            parts[name] = (torch.stack([delta.added(name) for delta in own]).sum(0).float(),)
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
