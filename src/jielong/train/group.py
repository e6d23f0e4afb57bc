"""What several processes add up (torch.distributed); alone, nothing happens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 1 << 24  # numbers that one call adds up: few calls, and the first of them run while the next are filled


def world() -> tuple[int, int]:
    """(rank, number of processes)"""
    return (dist.get_rank(), dist.get_world_size()) if _on() else (0, 1)


def total(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum over all processes (of `group`), elementwise."""
    if _on():
        values = values.clone()
        dist.all_reduce(values, group=group)
    return values


def most(value: int, group: dist.ProcessGroup | None = None) -> int:
    """The largest of the processes' numbers."""
    if not _on():
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    return int(found)


def gather(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Each process's (n, …) one after the other; n may differ."""
    if not _on():
        return values
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(values)]), group=group)
    longest = max(int(s) for s in sizes)
    padded = torch.zeros(longest, *values.shape[1:], dtype=values.dtype)
    padded[: len(values)] = values
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([p[: int(s)] for p, s in zip(parts, sizes, strict=True)])


def from_first(data: bytes) -> bytes:
    """What the first process gives."""
    if not _on():
        return data
    size = torch.tensor(len(data))
    dist.broadcast(size, 0)
    said = torch.zeros(int(size), dtype=torch.uint8)
    if dist.get_rank() == 0:
        said = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(said, 0)
    return said.numpy().tobytes()


def add_up(tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Replace each tensor by its sum over the processes (of `group`); many tensors go into one call."""
    running: list[tuple[dist.Work | None, Tensor, list[Tensor]]] = []
    for part in _buckets(tensors):
        flat = torch.cat([t.reshape(-1) for t in part])
        running.append((dist.all_reduce(flat, group=group, async_op=True), flat, part))
    for work, flat, part in running:
        if work is not None:
            work.wait()
        for t, summed in zip(part, flat.split([t.numel() for t in part]), strict=True):
            t.copy_(summed.view(t.shape))


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """In their order, each bucket of about BUCKET numbers of one dtype and device."""
    buckets: list[list[Tensor]] = []
    room = 0
    for t in tensors:
        if not buckets or room < t.numel() or (buckets[-1][0].dtype, buckets[-1][0].device) != (t.dtype, t.device):
            buckets.append([])
            room = BUCKET
        buckets[-1].append(t)
        room -= t.numel()
    return buckets


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()
