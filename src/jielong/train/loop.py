"""The one training loop. Pretraining and fine-tuning (and later stages) give it batches and a loss.

A step is a pure function of (weights, optimizer state, step number): batches and losses draw nothing from a global
generator. So a run that was killed continues from its last checkpoint to bit-equal weights on the CPU.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jielong.config import OptimConfig
from jielong.errors import UserError
from jielong.model.gpt import GPT
from jielong.train.checkpoint import Checkpoints
from jielong.train.distributed import Team, repeatable
from jielong.train.optim import Optimizer
from jielong.train.shard import release


@dataclass
class LoopConfig:
    """What the loop needs to know, whatever it trains."""

    steps: int
    optim: OptimConfig
    precision: str = "auto"
    threads: int = 0
    checkpoint_seconds: float = 30.0
    tokens_per_step: int = 0
    title: str = "training"
    history: bool = True
    """Keep the thinned history of checkpoints for replay, beside the newest one."""


@dataclass
class History:
    """Curves of a run: (step, loss) pairs, and what `observe` returned."""

    loss: list[tuple[int, float]] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    ended: str = ""
    """Why the training ended before its last step."""


def has_bf16() -> bool:
    """Does this processor multiply bfloat16 matrices in hardware?"""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def dtype_of(precision: str, device: torch.device | None = None) -> torch.dtype:
    """auto, bf16 or fp32 → the dtype of the forward pass on a device, by default the processor."""
    if precision == "auto":
        found = torch.cuda.is_bf16_supported() if device and device.type == "cuda" else has_bf16()
        return torch.bfloat16 if found else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def precision(name: str = "auto") -> str:
    """auto, bf16 or fp32 → what the engine calls it."""
    return "bf16" if dtype_of(name) == torch.bfloat16 else "fp32"


def use_threads(threads: int) -> int:
    """Fix the number of threads (0 = all cores, shared among torchrun's processes on this machine) and return it. Raises
    UserError for a negative one."""
    if threads < 0:
        raise UserError("--threads must be 0, for all cores, or more.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def keep_memory() -> None:
    """Let glibc keep freed blocks: a step frees and asks for the same tens of megabytes hundreds of times, and each
    time the kernel would clear the pages anew (a tenth of the step; docs/log.md)."""
    import ctypes

    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass


class Enough(Exception):
    """An update says that the training is to end before it; what the message says goes into the history."""


LossOf = Callable[[GPT, int, torch.dtype], Tensor]
"""(model, step, dtype) → a scalar: the loss of a step, or a share of it."""
Update = Callable[[Optimizer, int, torch.dtype, History], float]
"""(optimizer, step, dtype, history) → the loss: one step of training, which applies its gradients itself."""


def finite(value: float, step: int) -> float:
    """The loss. Raises UserError when it is no number."""
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(f"The loss of step {step} is {value}; lower the learning rates (--optim.muon-lr).")
    return value


def train(
    model: GPT,
    losses: Sequence[LossOf],
    config: LoopConfig,
    work: Path,
    observe: Callable[[GPT, int], dict[str, Any]] | None = None,
    observe_steps: frozenset[int] = frozenset(),
    progress: Callable[[int, float, float], None] | None = None,
    team: Team | None = None,
) -> History:
    """Train in place. The loss of a step is the sum of `losses`, over all processes of the team; each is computed and
    differentiated before the next, so that only one is in memory.

    `observe` is called after each step of `observe_steps`, by all processes; its answer is kept in the history. The rest
    as in `repeat`.
    """
    team = team or Team()

    def update(optimizer: Optimizer, step: int, dtype: torch.dtype, history: History) -> float:
        shares = []
        for loss_of in losses:
            loss = loss_of(model, step, dtype)
            loss.backward()
            shares.append(loss.detach())
        value = finite(team.total(sum(map(float, shares))), step)
        team.sum_gradients(model)
        optimizer.step((step + 0.5) / config.steps)
        if observe is not None and step + 1 in observe_steps:
            model.eval()
            history.seen.append({"step": step + 1, **observe(model, step + 1)})
            model.train()
        return value

    return repeat(model, update, config, work, progress, team)


def repeat(
    model: nn.Module,
    update: Update,
    config: LoopConfig,
    work: Path,
    progress: Callable[[int, float, float], None] | None = None,
    team: Team | None = None,
) -> History:
    """Call `update` for every step. Checkpoints go to `work`; a run that finds some there continues.
    `progress(step, loss, tokens per second)` is called after every step. Every process of a team calls this."""
    team = team or Team()
    dtype = dtype_of(config.precision, team.device)
    use_threads(config.threads)
    keep_memory()
    optimizer = Optimizer(model, config.optim, dtype, team.layout)
    checkpoints = Checkpoints(work, config.steps, config.history, team)
    history = History()
    first = checkpoints.restore(model, optimizer, history)
    saved_at = time.perf_counter()
    model.train()
    gc.collect()
    gc.disable()  # a collection in the middle of a step costs more than it frees
    try:
        for step in range(first, config.steps):
            started = time.perf_counter()
            try:
                with repeatable(team.device):
                    value = update(optimizer, step, dtype, history)
            except Enough as reason:
                history.ended = str(reason)
                break
            if team.fsdp:
                release(model)
            history.loss.append((step, round(value, 5)))
            history.tokens += config.tokens_per_step
            took = time.perf_counter() - started
            history.seconds += took
            if progress:
                progress(step + 1, value, config.tokens_per_step / took)
            checkpoints.settle()
            now = time.perf_counter()
            if checkpoints.due(step + 1) or team.agreed(now - saved_at > config.checkpoint_seconds):
                checkpoints.save(step + 1, model, optimizer, history)
                saved_at = now
        checkpoints.settle(wait=True)
    except BaseException:
        checkpoints.leave()
        raise
    finally:
        gc.enable()
    model.eval()
    return history
