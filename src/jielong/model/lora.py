"""LoRA (Hu et al. 2021): W stays, W + (alpha / rank) · B A is used; only A and B are trained and kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.errors import UserError
from jielong.run import Artifact, write_atomic

ADAPTER = "adapter.json"


class LoRA(nn.Module):
    """x (…, K) → (alpha / rank) · B A x (…, N); zero at the start."""

    def __init__(self, d_in: int, d_out: int, rank: int, alpha: float):
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, d_in))
        self.b = nn.Parameter(torch.zeros(d_out, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)) * self.scale


def add_lora(model: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Give every matrix of the blocks a LoRA and freeze everything else. Raises UserError for a rank that is none."""
    if rank < 1 or alpha <= 0:
        raise UserError("lora-rank must be at least 1 and lora-alpha above 0.")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, p in list(model.named_parameters()):
        layer = model.get_submodule(name.rpartition(".")[0])
        if name.startswith("blocks.") and name.endswith(".weight") and hasattr(layer, "lora"):
            d_out, d_in = p.shape
            change = LoRA(d_in, d_out, rank, alpha)
            with torch.no_grad():
                change.a.normal_(0.0, 1 / math.sqrt(d_in), generator=generator)
            layer.add_module("lora", change.to(p.device))


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The part of the state dict that training changes."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict with its LoRA, if it has one, added to the weights; nothing else is copied."""
    state = {name: p.detach() for name, p in model.state_dict().items() if ".lora." not in name}
    for name, layer in model.named_modules():
        if isinstance(layer, LoRA):
            weight = f"{name.removesuffix('.lora')}.weight"
            state[weight] = state[weight] + layer.scale * (layer.b @ layer.a)
    return state


def save_adapter(model: nn.Module, folder: Path, base: Artifact) -> None:
    """adapter.safetensors, and adapter.json, which names the base by its hash."""
    from safetensors.torch import save_file

    scale = next(m.scale for m in model.modules() if isinstance(m, LoRA))
    save_file({k: v.contiguous() for k, v in trained(model).items()}, folder / "adapter.safetensors")
    write_atomic(folder / ADAPTER, json.dumps({"base": base.name, "hash": base.hash, "scale": scale}))


def merged(folder: Path, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """The base's state dict with the adapter of `folder` added, float32 where it was."""
    from safetensors.torch import load_file

    parts = load_file(folder / "adapter.safetensors")
    scale = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["scale"]
    state = dict(base)
    for name, a in parts.items():
        if name.endswith(".lora.a"):
            layer = name.removesuffix(".lora.a")
            b = parts[f"{layer}.lora.b"]
            state[f"{layer}.weight"] = state[f"{layer}.weight"].float() + scale * (b @ a)
    return state


def base_of(folder: Path) -> Path:
    """The folder of the base that an adapter belongs to. Raises UserError when it is gone or another one by now."""
    known = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    base = folder.parent / known["base"]
    if not base.is_dir() or Artifact(base).hash != known["hash"]:
        raise UserError(f"{folder} is an adapter for another {base} than the one there; fine-tune again.")
    return base
