"""What several processes add up (torch.distributed); alone, nothing happens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """(rank, number of processes)"""
    return (dist.get_rank(), dist.get_world_size()) if _on() else (0, 1)


def total(values: Tensor) -> Tensor:
    """The sum over all processes, elementwise."""
    if _on():
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather(values: Tensor) -> Tensor:
    """Each process's (n, …) one after the other; n may differ."""
    if not _on():
        return values
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(values)]))
    most = max(int(s) for s in sizes)
    padded = torch.zeros(most, *values.shape[1:], dtype=values.dtype)
    padded[: len(values)] = values
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([p[: int(s)] for p, s in zip(parts, sizes, strict=True)])


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, whose losses are shares of one sum."""
    if _on():
        for p in parameters:
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()
