"""A small training that processes share. `python training_process.py FOLDER CASES` is started by torchrun in test_processes.py,
and trains each case; alone, `training` is what they are compared with."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jielong.config import ModelConfig, OptimConfig, ParallelConfig
from jielong.model.gpt import GPT
from jielong.pretrain import token_loss
from jielong.tokens.shards import make_index, read_shard, write_shard
from jielong.train.distributed import job, make_team
from jielong.train.layout import local
from jielong.train.loop import LoopConfig, train
from jielong.train.shard import share

STEPS, ROWS, LENGTH, VOCABULARY = 6, 5, 16, 37
SHAPES = {  # sizes that two processes divide unevenly, where that is allowed
    "qwen": {"heads": 4, "kv_heads": 2, "head_dim": 6, "mlp_width": 22},
    "gpt2": {
        "heads": 2, "kv_heads": 2, "head_dim": 10, "mlp_width": 18, "mlp": "gelu", "norm": "layer", "qk_norm": False,
        "positions": "learned", "qkv_bias": True, "bias": True, "tied": False,
    },
}  # fmt: skip


def config_of(shape: str) -> ModelConfig:
    return ModelConfig(vocab_size=VOCABULARY, context=LENGTH, layers=2, width=23, **SHAPES[shape])


def tiny(shape: str) -> GPT:
    """No weight is zero, so that every path matters."""
    model = GPT(config_of(shape))
    model.init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


def training(folder: Path, name: str, case: dict[str, Any], start: Path | None = None) -> dict[str, Any]:
    """Train, from the checkpoint in `start` if there is one. Writes NAME.safetensors (weights, and the gradients of the
    first step) into `folder`, checkpoints into NAME/; returns the curve and what this process saw and held."""
    config = ParallelConfig(**case.get("parallel", {}))
    team = make_team(config, "cpu", 0)
    with team.in_turn():
        if team.first:
            random = np.random.default_rng(3)
            documents = [random.integers(0, VOCABULARY, random.integers(3, 30)).tolist() for _ in range(60)]
            write_shard(folder / "data", [str(n) for n in range(60)], documents, VOCABULARY)
            if start:
                shutil.copytree(start, folder / name / start.name)
    shard = read_shard(folder / "data")
    index = make_index(shard.lengths, shard.ids, LENGTH, STEPS * ROWS, 1)
    groups = team.rows(ROWS, config.micro_rows)
    losses = [token_loss(shard, index, ROWS, LENGTH, 0, ROWS * LENGTH, frozenset({"7"}), only) for only in groups]
    seed = case.get("seed")  # random weights that are drawn as the model is divided
    with torch.device("cpu" if seed is None else "meta"):
        model = tiny(case["shape"]) if seed is None else GPT(config_of(case["shape"]))
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # all that torch.compile does but the machine's code, which takes its time
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        whole = share(model, team, torch.float32, seed)
    if seed is not None and (began := whole()) is not None:
        save_file(began.state_dict(), folder / f"{name}.began.safetensors")
    held = sum(local(p).numel() for p in model.parameters())
    for loss_of in losses:
        loss_of(model, 0, torch.float32).backward()
    team.sum_gradients(model)
    gradients = {f"gradient/{n}": full(p.grad) for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    # keys' biases have no gradient but rounding, which a tiny epsilon would blow up
    optim = OptimConfig(clip=case.get("clip", 0.0), muon_lr=0.01, eps=1e-5)
    loop = LoopConfig(STEPS, optim, "fp32", 1, tokens_per_step=ROWS * LENGTH, checkpoint_seconds=1e9)
    history = train(model, losses, loop, folder / name, team=team)
    found = whole()
    if found is not None:
        save_file({**found.state_dict(), **gradients}, folder / f"{name}.safetensors")
    return {"loss": history.loss, "rows": groups, "held": held}


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with job():
        folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
        for name, case in cases.items():
            start = Path(case["start"]) if "start" in case else None
            told = training(folder, name, case, start)
            (folder / f"{name}.{torch.distributed.get_rank()}.json").write_text(json.dumps(told))
