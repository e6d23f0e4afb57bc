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

from jielong.config import ModelConfig, OptimConfig, ParallelConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT, document_mask, for_gpu
from jielong.model.kernels import cross_entropy
from jielong.scale.plan import Sharing
from jielong.train.distributed import make_team
from jielong.train.optim import Optimizer
from jielong.train.shard import share


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
    """The most bytes that tensors occupied at once, looked at after every operation that made one of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.live: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.bytes = 0

    def watch(self, tensors: Any) -> None:
        """Count their storages from now on."""
        found = [t for t in tree_leaves(tensors) if isinstance(t, torch.Tensor)]
        storages = [getattr(t, "_local_tensor", t).untyped_storage() for t in found]
        new = sum(s.nbytes() for s in storages if s not in self.live)
        self.live.update(storages)
        if 1000 * new > self.bytes:
            # storages grow and shrink without an operation (gathered weights), so sizes are summed anew
            self.bytes = max(self.bytes, sum(s.nbytes() for s in self.live))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.watch(out)
        return out


def traced_memory(config: ModelConfig, layout: Sharing, length: int, optimizer: str) -> float:
    """Bytes per GPU at the peak of the second step; the first one makes what stays. No tensor holds data, so that no GPU, no
    memory and no other process is needed; every operation of model, FSDP and optimizer runs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    parallel = ParallelConfig("fsdp", layout.tensor, recompute=layout.checkpointing)
    with pretended_group(layout.gpus):
        team = make_team(parallel, "cpu", 0)
        nothing = FakeTensorMode(allow_non_fake_inputs=True)
        with nothing:
            model = GPT(config)
        for block in model.blocks:
            for_gpu(block)  # pyright: ignore[reportArgumentType]
        share(model, team, torch.bfloat16)  # outside: it looks for this process in the mesh
        steps = Optimizer(model, OptimConfig(muon=optimizer == "muon"), torch.bfloat16, team.layout)
        peak = Peak()
        for step in range(2):
            with peak:
                peak.watch([*model.parameters(), *(p.tensor for p in steps.parts().values())])
            for _ in range(min(2, layout.passes)):  # the third pass is like the second
                with nothing, peak:
                    forward_and_backward(model, layout.rows, length)
            with peak:
                team.sum_gradients(model)
                steps.step(step / 2)
    return float(peak.bytes)


def forward_and_backward(model: GPT, rows: int, length: int) -> None:
    """A step's share of one process; every position counts."""
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    hidden = model(tokens, document_mask(tokens), torch.bfloat16)  # (B, T, D)
    weight = torch.zeros(rows * length)
    cross_entropy(hidden.view(-1, model.config.width), model.head_weight, tokens.view(-1), weight).backward()
