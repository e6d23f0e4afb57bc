from __future__ import annotations

import random
import shutil
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
from jielong.run import Run
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
    history = train(model, [loss_of], LoopConfig(steps=40, optim=OptimConfig(), precision="fp32"), tmp_path)
    assert history.loss[-1][1] < history.loss[0][1] / 2
    with pytest.raises(UserError, match="learning rate"):
        train(
            model,
            [lambda *_: model.norm.weight.sum() * float("nan")],
            LoopConfig(steps=1, optim=OptimConfig()),
            tmp_path / "x",
        )


def test_killed_pretraining_ends_bit_equal(life, tmp_path):
    """The real command, killed at random moments three times, against one that nobody disturbed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for path in (whole, killed):
        for name in ("corpus", "tokenizer"):
            shutil.copytree(life / name, path / name)
    shape = (
        "--model.width 64 --model.layers 2 --model.heads 2 --model.kv-heads 2 --model.head-dim 32 --model.mlp-width 128"
    )
    command = [sys.executable, "-m", "jielong.cli", "pretrain", *shape.split(), "--steps", "80", "--rows", "8"]
    command += ["--checkpoint-seconds", "0.1", "--sample-every", "0.5", "--lessons", "50", "--run"]
    subprocess.run([*command, whole], check=True, capture_output=True)
    moments = random.Random()
    for count in (1, 15, 35):
        process = subprocess.Popen([*command, killed], stdout=subprocess.DEVNULL)
        until = time.time() + 120
        while time.time() < until and process.poll() is None:
            steps = [int(p.name.split("-")[1]) for p in (killed / ".base.work" / "checkpoints").glob("step-*")]
            if steps and max(steps) >= count:
                break
            time.sleep(0.005)
        time.sleep(moments.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        assert not (killed / "base").exists()
    subprocess.run([*command, killed], check=True, capture_output=True)
    a, b = load_file(whole / "base" / "model.safetensors"), load_file(killed / "base" / "model.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)
    cards = [Run(path).need("base").card["metrics"] for path in (whole, killed)]
    assert cards[0]["loss"] == cards[1]["loss"] and cards[0]["seen"] == cards[1]["seen"]
