"""Checkpoints are written beside the training: what they hold, what happens when writing fails, and when it is cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_process import training

from jielong.config import OptimConfig
from jielong.model.gpt import GPT
from jielong.model.lora import trained
from jielong.train.checkpoint import Checkpoints
from jielong.train.loop import Enough, History, LoopConfig, repeat
from jielong.train.optim import Optimizer

FP32 = torch.float32


class Gate:
    """Stands in for `save_file`: writing goes on when it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.reached = threading.Event(), threading.Event()
        monkeypatch.setattr("safetensors.torch.save_file", self)

    def __call__(self, tensors, path):
        self.reached.set()
        assert self.open.wait(60)
        save_file(tensors, path)


def made(model: GPT, folder: Path) -> tuple[Optimizer, Checkpoints]:
    optimizer = Optimizer(model, OptimConfig(), FP32)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step(0.5)
    return optimizer, Checkpoints(folder, 4)


def test_a_checkpoint_holds_the_moment_at_which_it_was_saved(model, tmp_path, monkeypatch):
    """Byte for byte what is written at once, though the training goes on meanwhile."""
    optimizer, checkpoints = made(model, tmp_path / "beside")
    history = History(loss=[(0, 1.5)], seen=[{"step": 1}], seconds=2.0, tokens=7)
    save_file({k: v.contiguous() for k, v in trained(model).items()}, tmp_path / "model.safetensors")
    save_file({k: p.tensor.clone() for k, p in optimizer.parts().items()}, tmp_path / "optimizer.safetensors")
    gate = Gate(monkeypatch)
    checkpoints.save(1, model, optimizer, history)
    assert gate.reached.wait(60)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step(0.5)
    history.loss.append((1, 1.0))
    checkpoints.settle()
    assert checkpoints.steps() == []  # it is still being written
    gate.open.set()
    checkpoints.save(2, model, optimizer, history)  # waits for the one before
    assert checkpoints.steps() == [1]
    for name in ("model", "optimizer"):
        file = f"{name}.safetensors"
        assert (checkpoints.path(1) / file).read_bytes() == (tmp_path / file).read_bytes()
    state = json.loads((checkpoints.path(1) / "state.json").read_text())
    assert (state["loss"], state["seen"], state["tokens"]) == ([[0, 1.5]], [{"step": 1}], 7)
    checkpoints.settle(wait=True)
    assert checkpoints.steps() == [2]  # the newest one, and those of the history
    assert checkpoints.restore(model, optimizer, history) == 2


def test_what_fails_while_writing_ends_the_training(model, tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    loop = LoopConfig(8, OptimConfig(), "fp32", 1, checkpoint_seconds=0.0)
    with pytest.raises(OSError, match="No space left"):
        repeat(model, lambda *_: 0.0, loop, tmp_path)
    assert Checkpoints(tmp_path, 8).steps() == []


@pytest.mark.parametrize("end", [KeyboardInterrupt, Enough])
def test_an_interrupted_training_waits_for_its_checkpoint(model, tmp_path, monkeypatch, end):
    gate = Gate(monkeypatch)

    def update(optimizer, step, dtype, history):
        if step == 1:
            assert gate.reached.wait(60)
            threading.Timer(0.05, gate.open.set).start()
            raise end
        return 0.0

    loop = LoopConfig(8, OptimConfig(), "fp32", 1, checkpoint_seconds=0.0)
    if end is Enough:
        repeat(model, update, loop, tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            repeat(model, update, loop, tmp_path)
    assert Checkpoints(tmp_path, 8).steps() == [1]


KILLED = """
import os, signal, sys
from pathlib import Path
import safetensors.torch
original, count = safetensors.torch.save_file, [0]
def half(tensors, path):
    count[0] += 1
    original(tensors, path)
    if count[0] == 4:  # the optimizer's state of the second checkpoint
        with open(path, "r+b") as f:
            f.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
safetensors.torch.save_file = half
from training_process import training
training(Path(sys.argv[1]), "run", {"shape": "qwen"})
"""


def test_a_process_that_is_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path):
    torch.set_num_threads(1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    told = training(whole, "run", {"shape": "qwen"})
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run([sys.executable, "-c", KILLED, str(cut)], env={**os.environ, "PYTHONPATH": path})
    assert process.returncode == -signal.SIGKILL
    left = sorted(p.name for p in (cut / "run").iterdir())
    assert left == [".step-00000006.partial", "step-00000003"]
    again = training(cut, "run", {"shape": "qwen"})
    assert again["loss"] == told["loss"]
    a, b = load_file(whole / "run.safetensors"), load_file(cut / "run.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith("gradient/"))
    assert not list((cut / "run").glob(".*"))
