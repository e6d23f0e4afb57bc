from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from jielong.config import OptimConfig
from jielong.errors import UserError
from jielong.model.gpt import causal_mask
from jielong.train.loop import LoopConfig, train
from jielong.train.optim import Optimizer, orthogonalise
from jielong.train.schedule import learning_rate, momentum


def test_schedule_values():
    c = OptimConfig(warmup=0.1, cooldown=0.5, final_lr=0.2)
    assert [round(learning_rate(p, c), 6) for p in (0, 0.05, 0.1, 0.5, 0.75, 1.0)] == [0, 0.5, 1, 1, 0.6, 0.2]
    assert momentum(0, 0.95) == 0.85 and momentum(0.5, 0.95) == 0.95


def test_orthogonalise_against_svd():
    g = torch.randn(3, 20, 8)
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    o = orthogonalise(g, dtype=torch.float32)
    singular = torch.linalg.svdvals(o)
    assert singular.min() > 0.6 and singular.max() < 1.3
    cosine = torch.nn.functional.cosine_similarity(o.flatten(1), (u @ vh).flatten(1))
    assert cosine.min() > 0.97


def test_adamw_against_torch(model):
    config = OptimConfig(muon_lr=0.0, adam_lr=0.01, scalar_lr=0.01, weight_decay=0.0, warmup=0, cooldown=0)
    reference = torch.optim.AdamW(
        [model.embedding.weight.detach().clone().requires_grad_()],
        lr=0.01,
        betas=(0.8, 0.95),
        eps=1e-10,
        weight_decay=0,
    )
    mine = Optimizer(model, config, torch.float32)
    theirs = reference.param_groups[0]["params"][0]
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        theirs.grad = model.embedding.weight.grad.clone()
        mine.step(0.5)
        reference.step()
    torch.testing.assert_close(model.embedding.weight.detach(), theirs.detach(), atol=1e-5, rtol=1e-4)


def loss_of(model, step, dtype):
    tokens = torch.randint(0, 64, (4, 9), generator=torch.Generator().manual_seed(step % 3))
    hidden = model(tokens[:, :-1], causal_mask(8), dtype)
    return torch.nn.functional.cross_entropy(model.logits(hidden).flatten(0, 1).float(), tokens[:, 1:].flatten())


def test_training_learns_and_reports_a_bad_loss(model, tmp_path):
    history = train(model, loss_of, LoopConfig(steps=40, optim=OptimConfig(), precision="fp32"), tmp_path)
    assert history.loss[-1][1] < history.loss[0][1] / 2
    with pytest.raises(UserError, match="learning rate"):
        train(
            model,
            lambda *_: model.norm.weight.sum() * float("nan"),
            LoopConfig(steps=1, optim=OptimConfig()),
            tmp_path / "x",
        )


SCRIPT = """
import sys, time, torch
from pathlib import Path
from jielong.config import ModelConfig, OptimConfig
from jielong.model.gpt import GPT, save_model
from jielong.train.loop import LoopConfig, train
sys.path.insert(0, {here!r})
from test_train import loss_of
model = GPT(ModelConfig(vocab_size=64, width=32, layers=2, heads=2, kv_heads=2, head_dim=16, mlp_width=64))
model.init_weights(3)
def slow(step, loss, speed): time.sleep(0.02)
train(model, loss_of, LoopConfig(steps=60, optim=OptimConfig(), precision="auto", threads=2, checkpoint_seconds=0.05), Path(sys.argv[1]) / "work", progress=slow)
save_model(model, Path(sys.argv[1]))
"""


def test_killed_training_ends_bit_equal(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(here=os.path.dirname(__file__)))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    subprocess.run([sys.executable, script, whole], check=True)
    for count in (2, 9, 30):  # kill after this many checkpoints were seen
        process = subprocess.Popen([sys.executable, script, killed])
        until = time.time() + 60
        while time.time() < until and process.poll() is None:
            steps = [int(p.name.split("-")[1]) for p in (killed / "work").glob("step-*")]
            if steps and max(steps) >= count:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    subprocess.run([sys.executable, script, killed], check=True)
    a, b = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)
