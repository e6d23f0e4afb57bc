"""Checkpoints: everything that a resumed run needs, written whole or not at all.

Two kinds share one folder: the newest one (by the clock, so that a kill loses little) and a thinned history, about
the square root of the number of steps but at most `MOST`, from which a run can be replayed without a record.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from jielong.errors import UserError
from jielong.model.lora import trained
from jielong.run import sha256_file, write_atomic

if TYPE_CHECKING:
    from torch import nn

    from jielong.train.loop import History
    from jielong.train.optim import Optimizer

MOST = 12  # a checkpoint holds weights and optimizer state: about 3 times the model


class Checkpoints:
    """`folder`/step-00000123/ with model.safetensors, optimizer.safetensors and state.json."""

    def __init__(self, folder: Path, steps: int, history: bool = True):
        self.folder, self.history = folder, history
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
        """Write the checkpoint after `step` steps and drop the ones that neither history nor resumption needs."""
        from safetensors.torch import save_file

        beside = self.folder / f".step-{step:08d}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in trained(model).items()}, beside / "model.safetensors")
        save_file(optimizer.state(), beside / "optimizer.safetensors")
        files = {n: sha256_file(beside / n) for n in ("model.safetensors", "optimizer.safetensors")}
        state = {"step": step, "files": files, "loss": history.loss, "seen": history.seen}
        state |= {"seconds": history.seconds, "tokens": history.tokens}
        write_atomic(beside / "state.json", json.dumps(state, ensure_ascii=False))
        shutil.rmtree(self.path(step), ignore_errors=True)
        os.replace(beside, self.path(step))
        for old in self.steps():
            if old != step and not self.due(old):
                shutil.rmtree(self.path(old), ignore_errors=True)

    def restore(self, model: nn.Module, optimizer: Optimizer, history: History) -> int:
        """Load the newest undamaged checkpoint; the number of steps done, 0 without one."""
        from safetensors.torch import load_file

        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                state = json.loads((path / "state.json").read_text(encoding="utf-8"))
                if any(sha256_file(path / name) != digest for name, digest in state["files"].items()):
                    raise ValueError("its hash differs")
                weights, buffers = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
            except (OSError, ValueError, KeyError):
                continue  # a damaged one: an older one will do, it only costs time
            try:
                if weights.keys() != trained(model).keys():
                    raise KeyError("other weights were trained")
                model.load_state_dict(weights, strict=False)  # what is frozen is not in a checkpoint
                optimizer.load(buffers)
            except (RuntimeError, KeyError) as error:
                raise UserError(f"The checkpoint {path} belongs to another model; delete {self.folder}.") from error
            history.loss = [(int(s), float(v)) for s, v in state["loss"]]
            history.seen, history.seconds, history.tokens = state["seen"], state["seconds"], state["tokens"]
            return step
        return 0
