"""Small trainings from feedback that processes share. `python learning_process.py FOLDER CASES` is started by torchrun in
test_distributed.py, and trains each case; alone, `learning` is what they are compared with."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest_align import FP32, Letters, letters_model, nudged, some_labels
from safetensors.torch import save_file
from torch import nn

from jielong.align import ppo as ppo_module
from jielong.align import reward as reward_module
from jielong.align.direct import Direct, Examples
from jielong.align.groups import Groups
from jielong.align.ppo import PPO, ActorCritic
from jielong.align.reward import Judge, Labels, Offsets, train_reward
from jielong.align.scoring import Scored, merged_copy, score
from jielong.config import DirectConfig, GroupConfig, ParallelConfig, PPOConfig, RewardConfig, adam
from jielong.model.gpt import GPT
from jielong.model.lora import add_lora
from jielong.pretrain import token_loss
from jielong.tokens.shards import make_index, read_shard, write_shard
from jielong.train.distributed import Team, job, make_team
from jielong.train.layout import local
from jielong.train.loop import LoopConfig, repeat
from jielong.train.shard import release, share

STEPS, MIXED, LENGTH = 3, 3, 8
PROMPTS = [[1], [2, 3], [4]]
ROLLOUT = {
    "precision": "fp32", "optim": adam(1e-3), "kl": 0.05, "episodes": 10, "epochs": 2, "max_tokens": 4, "iterations": STEPS,
}  # fmt: skip


def mixed(folder: Path, team: Team):
    """The pretraining loss of PPO-ptx: an odd number of rows, of which each process reads its own."""
    with team.in_turn():
        if team.first:
            random = np.random.default_rng(3)
            documents = [random.integers(0, 6, random.integers(3, 20)).tolist() for _ in range(60)]
            write_shard(folder / "data", [str(n) for n in range(60)], documents, 6)
    shard = read_shard(folder / "data")
    index = make_index(shard.lengths, shard.ids, LENGTH, 40 * MIXED, 1)
    return token_loss(shard, index, MIXED, LENGTH, 0, MIXED * LENGTH, only=team.rows(MIXED)[0])


def learner(case: dict[str, Any], folder: Path, team: Team):
    """(what is trained, its update, what gathers each of its models)"""
    kind, labels = case["kind"], some_labels(14)
    actor = letters_model(64, 1, context=16) if kind in ("dpo", "kto") else letters_model(6, 1)
    reference, critic = nudged(actor), Scored(merged_copy(actor).requires_grad_(True))
    judge = Scored(letters_model(6, 2)).requires_grad_(False)
    nn.init.constant_(judge.score.weight, 0.5)
    if case.get("lora"):
        add_lora(actor, 2, 4.0, 1)
    wholes = {"actor": share(actor, team, FP32)}
    share(reference, team, FP32)
    if kind in ("dpo", "kto"):
        config = DirectConfig(method=kind, precision="fp32", rows=5, max_tokens=4, probes=5, keep_every=2)
        examples, held = Examples.of(kind, *labels), Examples.of(kind, *some_labels(6, 1))
        kept = lambda step, told: None  # noqa: E731
        args = examples, config, STEPS, FP32, held, kept, team, wholes["actor"]
        return actor, Direct(actor, reference, Letters(), *args), wholes
    share(judge.body, team, FP32)

    def scores(drawn):
        return score(judge, drawn.sequences, FP32, team=team)

    if kind == "grpo":
        config = GroupConfig(**ROLLOUT, method="grpo", answers=2)
        groups = Groups(
            actor, reference, scores, Letters(), PROMPTS, config, team=team, whole=wholes["actor"],
        )  # fmt: skip
        return groups.model, groups, wholes
    config = PPOConfig(**ROLLOUT, minibatches=4, kl_target=6.0, value_warmup=case.get("warmup", 0), whiten_rewards=True)
    wholes["critic"] = share(critic.body, team, FP32)
    model = ActorCritic(actor, critic)
    mix = mixed(folder, team)
    return (
        model,
        PPO(model, reference, scores, Letters(), PROMPTS, config, mix, None, None, team, wholes["actor"]),
        wholes,
    )


def learning(folder: Path, name: str, case: dict[str, Any], start: Path | None = None) -> dict[str, Any]:
    """Train, from the checkpoint in `start` if there is one. Writes NAME.safetensors into `folder`, checkpoints into NAME/;
    returns the curve, what was seen, and how many numbers this process held."""
    team = make_team(ParallelConfig(**case.get("parallel", {})), "cpu", 0)
    with team.in_turn():
        if team.first and start:
            shutil.copytree(start, folder / name / start.name)
    reward_module.part_tokens = lambda c: 24  # pyright: ignore  several groups to a step, not the same number everywhere
    ppo_module.PART = 16
    reward_module.LoopConfig = lambda *args, history: LoopConfig(*args)  # pyright: ignore  earlier checkpoints stay
    model: nn.Module
    if case["kind"] == "reward":
        labels, config = Labels(*some_labels(14)), RewardConfig(precision="fp32", threads=1, rows=5, optim=adam(3e-3))
        body = letters_model(64, 1)
        model = Judge(Scored(body), Offsets(len(labels.users), len(labels.prompts)))
        wholes = {"body": share(body, team, FP32)}
        history = train_reward(model, labels, config, 6, folder / name, team=team)
    else:
        model, update, wholes = learner(case, folder, team)
        loop = LoopConfig(STEPS, adam(1e-3), "fp32", 1, 1e9, 10)
        history = repeat(model, update, loop, folder / name, team=team)
        if case["kind"] != "grpo":  # it only measures
            update.last(FP32)
    if team.fsdp:
        release(model)  # as after each step: measuring gathers weights, and no backward pass divides them again
    held = sum(local(p).numel() for p in model.parameters())
    found = {n: whole() for n, whole in wholes.items()}
    if team.first:
        parts: dict[str, torch.Tensor] = {}
        for n, one in found.items():
            assert isinstance(one, GPT)
            parts |= {f"{n}.{key}": p for key, p in one.state_dict().items()}
        # what is no GPT's is whole everywhere
        own = {n: p for n, p in model.state_dict().items() if "offsets" in n or "score" in n}
        save_file({n: p.contiguous() for n, p in (parts | own).items()}, folder / f"{name}.safetensors")
    return {"loss": history.loss, "seen": history.seen, "held": held}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with job():
        folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
        for name, case in cases.items():
            told = learning(folder, name, case)
            (folder / f"{name}.{torch.distributed.get_rank()}.json").write_text(json.dumps(told))
