"""Checkpoints: everything that a resumed run needs, written whole or not at all.

Two kinds share one folder: the newest one (by the clock, so that a kill loses little) and a thinned history, about
the square root of the number of steps but at most `MOST`, from which a run can be replayed without a record.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jielong.errors import UserError
from jielong.model.lora import trained
from jielong.run import sha256_file, write_atomic
from jielong.train.distributed import Team
from jielong.train.layout import Part, local
from jielong.train.pieces import Stored, write_parts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from jielong.train.loop import History
    from jielong.train.optim import Optimizer

MOST = 12  # a checkpoint holds weights and optimizer state: about 3 times the model
WHOLE = ("model", "optimizer")


@dataclass
class Writing:
    """A checkpoint that a thread writes, beside its place."""

    step: int
    beside: Path
    state: dict[str, Any]
    files: futures.Future[dict[str, Any]]
    """What state.json says about the files, once they are written."""


class Checkpoints:
    """`folder`/step-00000123/ with state.json and model.safetensors and optimizer.safetensors; or, where no process holds
    the whole model, with one file of parts for each process (train.pieces).

    Any number of processes reads either. The folder must be one that all processes see. Files are written by a thread
    beside the training, from copies in host memory; the system's calls that write and hash do not hold the interpreter.
    """

    def __init__(self, folder: Path, steps: int, history: bool = True, team: Team | None = None):
        self.folder, self.history, self.team = folder, history, team or Team()
        self._writer = futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: Writing | None = None
        self.every = max(1, math.ceil(steps / min(MOST, max(1, round(math.sqrt(steps))))))

    def due(self, step: int) -> bool:
        """Is this step part of the kept history?"""
        return self.history and step % self.every == 0

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(int(p.name.split("-")[1]) for p in self.folder.glob("step-*") if (p / "state.json").exists())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, model: nn.Module, optimizer: Optimizer, history: History) -> None:
        """Copy what a resumed run needs, and write it while the training goes on; `settle` makes a checkpoint of it.

        All processes call it; where each holds the whole model, the first one alone writes. It waits for the checkpoint
        before.
        """
        self.settle(wait=True)
        beside = self.folder / f".step-{step:08d}.partial"
        with self.team.in_turn():
            if self.team.first:
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
        state: dict[str, Any] = {"loss": list(history.loss), "seen": list(history.seen)}
        state |= {"seconds": history.seconds, "tokens": history.tokens}
        if self.team.sharded:
            rank, size = self.team.place
            mine = {n: replace(p, tensor=_copy(p.tensor)) for n, p in self._parts(model, optimizer).items()}

            def write() -> dict[str, Any]:
                write_parts(beside, rank, mine)
                return {"parts": size}
        elif self.team.first:
            weights = {name: _copy(p) for name, p in trained(model).items()}
            moments = {name: _copy(part.tensor) for name, part in optimizer.parts().items()}

            def write() -> dict[str, Any]:
                return _write_whole(beside, model=weights, optimizer=moments)
        else:
            return
        self._writing = Writing(step, beside, state, self._writer.submit(write))

    def settle(self, wait: bool = False) -> None:
        """Make a checkpoint of what all processes have written, if none is still writing (or when none is, with `wait`).
        All processes call it. Raises what went wrong while this one wrote."""
        mine = self._writing
        if mine is None:
            return
        if wait:
            futures.wait([mine.files])
        done = mine.files.done()
        missing = not done or mine.files.exception() is not None
        if self.team.agreed(missing) if self.team.sharded else missing:
            if done:
                mine.files.result()  # raises, if it was this process that failed
            return
        self._writing = None
        if self.team.first:
            self._publish(mine)

    def leave(self) -> None:
        """When a training is interrupted: wait for what is being written. Other processes may be gone, and are not asked."""
        if not self.team.sharded:
            self.settle(wait=True)
        elif self._writing is not None:
            futures.wait([self._writing.files])

    def _publish(self, written: Writing) -> None:
        """Give the checkpoint its name, and drop the ones that neither history nor resumption needs."""
        state = {"step": written.step, **written.files.result(), **written.state}
        write_atomic(written.beside / "state.json", json.dumps(state, ensure_ascii=False))
        shutil.rmtree(self.path(written.step), ignore_errors=True)
        os.replace(written.beside, self.path(written.step))
        for old in self.steps():
            if old != written.step and not self.due(old):
                shutil.rmtree(self.path(old), ignore_errors=True)

    def restore(self, model: nn.Module, optimizer: Optimizer, history: History) -> int:
        """Load the newest undamaged checkpoint; the number of steps done, 0 without one."""
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                state = json.loads((path / "state.json").read_text(encoding="utf-8"))
                self._check(path, state)
                stored = Stored(path, [] if "parts" in state else list(WHOLE), state.get("parts", 0))
            except (OSError, ValueError, KeyError):
                stored, state = None, {}
            if self.team.agreed(stored is None):
                continue  # a damaged one: an older one will do, it only costs time
            assert stored is not None
            parts = self._parts(model, optimizer)
            try:
                if stored.shapes.keys() != parts.keys():
                    raise KeyError("other weights were trained")
                for name, part in parts.items():
                    stored.read(name, part)
            except KeyError as error:
                raise UserError(f"The checkpoint {path} belongs to another model; delete {self.folder}.") from error
            history.loss = [(int(s), float(v)) for s, v in state["loss"]]
            history.seen, history.seconds, history.tokens = state["seen"], state["seconds"], state["tokens"]
            return step
        return 0

    def _parts(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Part]:
        """What this process holds. What is frozen is not in a checkpoint."""
        weights = {n: Part(local(p), p.shape, self.team.layout(p)) for n, p in trained(model).items()}
        return {f"model/{n}": p for n, p in weights.items()} | {
            f"optimizer/{n}": p for n, p in optimizer.parts().items()
        }

    def _check(self, path: Path, state: dict[str, Any]) -> None:
        """Raises OSError, ValueError or KeyError for a damaged file; processes share the work."""
        if "parts" in state:
            indices = [json.loads((path / f"part-{n}.json").read_text(encoding="utf-8")) for n in range(state["parts"])]
            files = {f"part-{n}.safetensors": index["sha256"] for n, index in enumerate(indices)}
        else:
            files = state["files"]
        rank, size = self.team.place
        for name, digest in sorted(files.items())[rank::size]:
            if sha256_file(path / name) != digest:
                raise ValueError(f"the hash of {name} differs")


def _copy(tensor: Tensor) -> Tensor:
    """In host memory, whatever the training does to it next."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _write_whole(folder: Path, **tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A file for each of WHOLE; what state.json says about them."""
    from safetensors.torch import save_file

    for kind in WHOLE:
        save_file(tensors[kind], folder / f"{kind}.safetensors")
    return {"files": {f"{kind}.safetensors": sha256_file(folder / f"{kind}.safetensors") for kind in WHOLE}}
