"""PPO-ptx: pretraining text mixed into PPO, so that what was learnt from it stays (Ouyang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jielong.config import RolloutConfig
from jielong.corpus.documents import read_documents
from jielong.model.gpt import GPT
from jielong.pretrain import encode_documents, token_loss
from jielong.run import Run
from jielong.tokens.shards import make_index, read_shard, write_shard
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.distributed import Team

MOST = 20_000  # documents; more than these no PPO reads

Mix = Callable[[GPT, int, torch.dtype], Tensor]


def pretraining_mix(
    config: RolloutConfig, run: Run, tokenizer: Tokenizer, length: int, work: Path, team: Team
) -> Mix | None:
    """The mean loss per token of `ptx_rows` rows of the run's corpus at each optimizer step, of which every process reads
    its share; None where `ptx` is 0 or the run has no corpus."""
    if not config.ptx or run.artifact("corpus") is None:
        return None
    with team.in_turn():
        if team.first:
            documents = read_documents(run.need("corpus").file("train.parquet"))
            picked = np.random.default_rng(config.seed).permutation(len(documents))[:MOST]
            documents = [documents[i] for i in sorted(picked)]
            work.mkdir(parents=True, exist_ok=True)
            write_shard(work, [d.id for d in documents], encode_documents(tokenizer, documents), tokenizer.vocab_size)
        shard = read_shard(work)
    steps = config.iterations * config.epochs * config.minibatches
    index = make_index(shard.lengths, shard.ids, length, steps * config.ptx_rows, config.seed)
    norm, (mine,) = float(config.ptx_rows * length), team.rows(config.ptx_rows)
    return token_loss(shard, index, config.ptx_rows, length, tokenizer.pad, norm, only=mine)
