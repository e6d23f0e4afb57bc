"""The processes of one training: those that torchrun started, or this one alone.

They read different rows of every step. Losses are shares of one sum, so gradients and losses are added up, and neither the
batch nor the order of the data depends on the number of processes.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from jielong.config import ParallelConfig
from jielong.errors import UserError
from jielong.train import group
from jielong.train.layout import Division, Layout, gradient

Plain = TypeVar("Plain")

WAIT = timedelta(hours=2)  # the first process prepares, observes and writes while the others wait
LOST = (
    "A process of this job ended or no longer answers (killed, or its machine is gone); "
    "start the same command again, and it continues from the last checkpoint."
)


@contextmanager
def job() -> Iterator[bool]:
    """Join the other processes that torchrun started; yields whether this is the first one, which writes.

    When one of them fails, all end: the one that failed first raises its error, or UserError if it was another that
    vanished, and the others leave with exit code 2 and without a word.
    """
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        yield True
        return
    store, rank, size = next(rendezvous("env://", timeout=WAIT))
    store = _of_this_start(store, rank, size)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # torchrun may notice that a process is gone before this one does, and ends it: then this one must tell
    before = signal.signal(signal.SIGTERM, _ended)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT)
        yield rank == 0
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process is ending already
        if not _first_to_tell(store):
            raise SystemExit(2) from None
        lost = isinstance(error, Ended | dist.DistError)
        if lost or (isinstance(error, RuntimeError) and "gloo" in str(error).lower()):
            raise UserError(LOST) from error
        raise
    signal.signal(signal.SIGTERM, before)
    dist.destroy_process_group()


class Ended(BaseException):
    """torchrun sent SIGTERM."""


def _ended(number: int, frame: object) -> None:
    raise Ended


def _of_this_start(store: Store, rank: int, size: int) -> Store:
    """A part of the store that only the processes of this start know: torchrun keeps one store when it starts them
    again, and in it the addresses of those that are gone. The first process makes a name for it, answers whoever says
    that it is here, and goes on when each has heard it."""
    me = name = uuid4().hex
    if rank:
        store.set(f"here/{rank}", me)
        name = store.get(me).decode()
        store.set(f"{name}/{rank}", "")
    for other in range(1, size) if rank == 0 else ():
        while not store.check([f"{name}/{other}"]):
            if store.check([f"here/{other}"]):
                store.set(store.get(f"here/{other}").decode(), name)
            time.sleep(0.01)
    return PrefixStore(name, store)


def _first_to_tell(store: Store) -> bool:
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the store went down with the process that kept it
        return True


def pick_device(name: str) -> torch.device:
    """auto, cpu or cuda → where this process trains. Raises UserError for a GPU that is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no NVIDIA GPU here; use --device cpu.")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise UserError(f"There are more processes than GPUs on this machine; use --nproc-per-node {count}.")
    torch.cuda.set_device(number)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # `repeatable` needs it, before the first product
    return torch.device("cuda", number)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On a GPU, too, the same sums come out twice: without this some kernels add in whatever order their threads arrive, and a
    replay would not give the bits that the first training gave."""
    if device.type != "cuda":
        yield
        return
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


@dataclass(frozen=True)
class Team:
    """This process among those of a training. Alone, there is nothing to share."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None
    """(data, tensor): along the first dimension processes read different rows, along the second they compute a block
    together."""
    fsdp: bool = False
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    @property
    def place(self) -> tuple[int, int]:
        """(rank, number of processes)"""
        return group.world() if self.mesh else (0, 1)

    @property
    def first(self) -> bool:
        """Does this process write, and tell?"""
        return self.place[0] == 0

    @property
    def alone(self) -> bool:
        """Is this the only process?"""
        return self.place[1] == 1

    @property
    def sharded(self) -> bool:
        """Does no process hold the whole model?"""
        return self.fsdp or self.tensor > 1

    @property
    def tensor(self) -> int:
        """Processes that compute a block together."""
        return self.mesh.size(1) if self.mesh else 1

    @property
    def readers(self) -> tuple[int, int]:
        """(rank, number) among the processes that read different rows"""
        return (self.mesh.get_local_rank(0), self.mesh.size(0)) if self.mesh else (0, 1)

    def rows(self, rows: int, at_once: int = 0) -> list[list[int]]:
        """The rows of a step that this process reads, in groups of at most `at_once` (0 = one group).

        Every process gets groups of the same number and sizes, since a divided model computes with all of them at once;
        rows beyond the last one of the step are padding.
        """
        rank, size = self.readers
        mine = [rank + n * size for n in range(-(-rows // size))]
        at_once = at_once or len(mine)
        return [mine[n : n + at_once] for n in range(0, len(mine), at_once)]

    def even(self, groups: list[list[int]]) -> list[list[int]]:
        """As many groups as the process with the most of them, the last ones empty: no process can compute with a model
        that FSDP has divided unless all do."""
        if self.mesh is None or not self.fsdp:
            return groups
        return groups + [[] for _ in range(group.most(len(groups), self.mesh.get_group(0)) - len(groups))]

    def total(self, value: float) -> float:
        """The sum over the processes that read different rows."""
        return float(self.sum(torch.tensor(value, dtype=torch.float64)))

    def sum(self, values: Tensor) -> Tensor:
        """The same elementwise."""
        return group.total(values, self.mesh.get_group(0)) if self.mesh else values

    def gather(self, values: Tensor) -> Tensor:
        """(n, …) of each process that reads different rows, one after the other."""
        return group.gather(values, self.mesh.get_group(0)) if self.mesh else values

    def in_order(self, values: Tensor, count: int) -> Tensor:
        """(n, …) of this process's items, of which it has every `size`-th from its rank on → (count, …) of everyone's."""
        size = self.readers[1]
        order = [n for rank in range(size) for n in range(rank, count, size)]
        everyones = torch.empty(count, *values.shape[1:], dtype=values.dtype)
        everyones[order] = self.gather(values)
        return everyones

    def agreed(self, wish: bool) -> bool:
        """Does any process wish it?"""
        return bool(group.total(torch.tensor(int(wish)))) if self.mesh else wish

    def wait(self) -> None:
        """Until every process is here."""
        self.agreed(True)

    def told(self, make: Callable[[], Plain]) -> Plain:
        """What `make`, called by the first process, returns (plain JSON data: tuples become lists). Its UserError is raised
        by all, so that all can go on if it is caught."""
        if self.mesh is None:
            return make()
        answer: dict[str, Any] = {}
        if self.first:
            try:
                answer = {"value": make()}
            except UserError as error:
                group.from_first(json.dumps({"error": str(error)}).encode())
                raise
        answer = json.loads(group.from_first(json.dumps(answer).encode()))
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["value"]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process, and after it the others: they find done what it did."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up what the losses of other processes say about the parameters; what FSDP divides is added up already.
        A parameter that only others' losses contain gets their gradient."""
        if self.mesh is None:
            return
        whole = [p for p in model.parameters() if p.requires_grad and not self._divided(p, "data")]
        if whole:
            has = self.sum(torch.tensor([float(p.grad is not None) for p in whole])).tolist()
            whole = [p for p, n in zip(whole, has, strict=True) if n]
            for p in whole:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            group.add_up([gradient(p) for p in whole], self.mesh.get_group(0))
        if self.tensor > 1:  # each process has seen its own heads only
            trained = [(name, p) for name, p in model.named_parameters() if p.grad is not None]
            heads = [gradient(p) for name, p in trained if name.endswith(("q_norm.weight", "k_norm.weight"))]
            group.add_up(heads, self.mesh.get_group(1))

    def _divided(self, p: Tensor, name: str) -> bool:
        """Does a dimension of the mesh divide this parameter?"""
        of: DeviceMesh | None = getattr(p, "device_mesh", None)  # a DTensor's
        return of is not None and name in (of.mesh_dim_names or ())

    def layout(self, p: Tensor) -> Layout:
        """Where this process's part of a parameter lies."""
        if self.mesh is None:
            return Layout()
        dims: dict[str, int | None] = {}  # dimension of the mesh → of the tensor that it divides
        if (of := getattr(p, "device_mesh", None)) is not None:  # a DTensor
            placements: tuple[Any, ...] = getattr(p, "placements", ())
            dims = {n: getattr(s, "dim", None) for n, s in zip(of.mesh_dim_names, placements, strict=True)}
        divisions, first = [], True
        for number, name in enumerate(("data", "tensor")):
            rank, size, dim = self.mesh.get_local_rank(number), self.mesh.size(number), dims.get(name)
            if size > 1 and (dim is not None or name == "data"):
                divisions.append(Division(self.mesh.get_group(number), rank, size, dim))
            first = first and (dim is not None or rank == 0)
        return Layout(tuple(divisions), first)


def make_team(config: ParallelConfig, device: str, parameters: int) -> Team:
    """The processes that joined (`job`), as `config` wants them to share a model of so many parameters. Raises UserError
    where that cannot be."""
    place = pick_device(device)
    if config.micro_rows < 0:
        raise UserError("--parallel.micro-rows must be at least 0.")
    if config.compile and config.tensor > 1:
        raise UserError("--parallel.compile does not go with --parallel.tensor; leave one of them out.")
    if not dist.is_initialized():
        if config.strategy == "fsdp" or config.tensor > 1:
            raise UserError(
                "--parallel.strategy fsdp and --parallel.tensor share a model among processes, and this is one alone; "
                "start it with `torchrun --nproc-per-node N -m -- jielong.cli`."
            )
        return Team(place, parallel=config)
    size = dist.get_world_size()
    if config.tensor < 1 or size % config.tensor:
        raise UserError(f"--parallel.tensor ({config.tensor}) must divide the number of processes ({size}).")
    mesh = init_device_mesh(place.type, (size // config.tensor, config.tensor), mesh_dim_names=("data", "tensor"))
    fsdp = config.strategy == "fsdp" or (config.strategy == "auto" and _large(parameters, place))
    return Team(place, mesh, fsdp, config)


def _large(parameters: int, device: torch.device) -> bool:
    """Would weights, gradients and optimizer state, 16 bytes per parameter, fill more than half of the GPU?"""
    return device.type == "cuda" and 32 * parameters > torch.cuda.get_device_properties(device).total_memory
