"""The memory of the real training step, found by running it on tensors without data, as one rank of a process group that sends
nothing. The plan's figures are checked against it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jielong.errors import UserError


@contextmanager
def pretended_group(size: int) -> Iterator[None]:
    """Rank 0 of `size` processes that do not exist. Raises UserError within a real group."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise UserError("--trace pretends to be many processes; run it outside torchrun.")
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


class Peak(TorchDispatchMode):
    """The most bytes that tensors occupied at once, looked at after every operation that made one."""

    def __init__(self) -> None:
        super().__init__()
        self.live: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.bytes = 0

    def watch(self, tensors: Any) -> None:
        for t in tree_leaves(tensors):
            if isinstance(t, torch.Tensor):
                self.live.add(getattr(t, "_local_tensor", t).untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.watch(out)
        # storages grow and shrink without an operation (gathered weights), so sizes are summed anew
        self.bytes = max(self.bytes, sum(s.nbytes() for s in self.live))
        return out
