"""Where a process's part of a tensor lies in the whole, and how whole matrices are dealt out and collected.

FSDP divides the first dimension of a parameter over the processes that read different rows, tensor parallelism one of
its dimensions over those that compute a block together. Each division is into equal slices, of which the last ones are
shorter or empty where the size is no multiple.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Division:
    """What one dimension of the mesh of processes does to a tensor."""

    group: dist.ProcessGroup
    rank: int
    size: int
    dim: int | None
    """The dimension of the tensor that is divided; None where every process holds the same."""

    def part(self, size: int) -> tuple[int, int]:
        """(start, length) of this process's slice of `size`"""
        step = math.ceil(size / self.size)
        start = min(self.rank * step, size)
        return start, min(step, size - start)


@dataclass(frozen=True)
class Layout:
    """The divisions of a parameter, the last made first."""

    divisions: tuple[Division, ...] = ()
    first: bool = True
    """Of the processes that hold this part, the one that writes it."""

    def box(self, shape: torch.Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(start, size) of this process's part in the whole of `shape`"""
        start, size = [0] * len(shape), list(shape)
        for d in reversed(self.divisions):
            if d.dim is not None:
                begin, size[d.dim] = d.part(size[d.dim])
                start[d.dim] += begin
        return tuple(start), tuple(size)

    def deal(self, parts: Tensor, shape: torch.Size) -> Tensor:
        """This process's parts of n tensors of `shape` (n, …) → its share of these tensors, whole (m, *shape).

        Everyone sends the slices of a tensor to the process whose share it is (an all-to-all). n is filled up with zeros
        to a multiple of the number of processes.
        """
        for d, full in zip(self.divisions, self._sizes(shape), strict=True):
            share = math.ceil(len(parts) / d.size)
            parts = _filled(parts, 0, share * d.size)
            if d.dim is None:
                parts = parts[d.rank * share : (d.rank + 1) * share]
            else:
                at = d.dim + 1
                slices = _exchange(_filled(parts, at, math.ceil(full / d.size)), d)  # rank by rank, of my tensors
                parts = torch.cat(slices.chunk(d.size), at).narrow(at, 0, full)
        return parts

    def collect(self, wholes: Tensor, shape: torch.Size, count: int) -> Tensor:
        """The way back: the tensors that this process was dealt, (m, *shape) → its parts of all `count` of them."""
        counts = [count]
        for d in self.divisions:
            counts.append(math.ceil(counts[-1] / d.size))
        for d, full, n in reversed(list(zip(self.divisions, self._sizes(shape), counts[:-1], strict=True))):
            if d.dim is None:
                everyones = wholes.new_empty(d.size * len(wholes), *wholes.shape[1:])
                dist.all_gather_single(everyones, wholes.contiguous(), group=d.group)
                wholes = everyones[:n]
            else:
                at, step = d.dim + 1, math.ceil(full / d.size)
                slices = _filled(wholes, at, step * d.size).chunk(d.size, at)
                mine = _exchange(torch.cat(slices), d)[:n]  # my slice of everyone's tensors
                wholes = mine.narrow(at, 0, d.part(full)[1])
        return wholes

    def _sizes(self, shape: torch.Size) -> list[int]:
        """For each division, how long the divided dimension was before it."""
        size, before = list(shape), []
        for d in reversed(self.divisions):
            before.append(0 if d.dim is None else size[d.dim])
            if d.dim is not None:
                size[d.dim] = d.part(size[d.dim])[1]
        return before[::-1]


@dataclass
class Part:
    """A process's part of a tensor of `shape`."""

    tensor: Tensor
    shape: torch.Size
    layout: Layout


def local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this process holds, sharing its memory; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def gradient(p: nn.Parameter) -> Tensor:
    """This process's part of a parameter's gradient."""
    assert p.grad is not None
    return local(p.grad)


def _filled(x: Tensor, dim: int, size: int) -> Tensor:
    """x with zeros behind it along `dim`, up to `size`."""
    missing = size - x.shape[dim]
    return F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [0, missing]) if missing else x


def _exchange(x: Tensor, division: Division) -> Tensor:
    """Slice r of x (size·m, …) goes to rank r; the slices that came (size·m, …), in the order of ranks."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(out, x.contiguous(), group=division.group)
    return out
