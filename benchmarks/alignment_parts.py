"""The other comparisons of benchmarks/alignment.py: methods, over-optimisation, kinds of labels, thumbs and demonstrations."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from alignment import Exam, copy_of, reward_auc

from jielong.align import direct, groups, improve, ppo, reward, simulate
from jielong.align.baselines import candidates, compared
from jielong.align.contest import win_rate
from jielong.align.policy import State
from jielong.align.rollout import Rollout, key, rollout
from jielong.align.scoring import Scored, merged_copy, score
from jielong.config import DirectConfig, GroupConfig, ImproveConfig, PPOConfig, RewardConfig, ThumbsConfig, adam
from jielong.feedback.exchange import labels
from jielong.feedback.labels import Pair, Thumb
from jielong.feedback.stage import store_of
from jielong.lab.teaching import DEMONSTRATION, THUMB, pressed, taught
from jielong.model.gpt import GPT, load_model
from jielong.run import Run
from jielong.teacher import judge
from jielong.tokens.chat import chat_ids
from jielong.train.loop import precision

BF16 = torch.bfloat16


def prepared(source: Run, folder: Path, seed: int, count: int = 600) -> tuple[Run, list[Thumb], list[Pair]]:
    """A copy of the run with thumbs and reward-1."""
    run = copy_of(source, folder)
    thumbs, pairs = pressed(run, seed, count)
    reward.run(RewardConfig(seed=seed), run, thumbs, pairs, run.need("sft"), "reward-1")
    return run, thumbs, pairs


class Frontier:
    """Gold and proxy along a training: what the teacher and the reward model say at every kept state."""

    def __init__(self, run: Run, exam: Exam):
        self.exam, self.start = exam, load_model(run.need("sft").path)
        self.proxy = Scored.load(run.need("reward-1").path).eval()
        self.old = exam.answers(self.start)
        self.gold_before = exam.gold(self.old)

    def point(self, actor: GPT, drawn: Rollout | None = None) -> dict[str, float]:
        drawn = drawn or self.exam.answers(actor)
        _own, _reference, exact = compared(merged_copy(actor), self.start, drawn.sequences, BF16, 0.7)
        return {
            "kl": float(exact.sum() / len(drawn.sequences)),
            "proxy": float(score(self.proxy, drawn.sequences, BF16).mean()),
            "gold": float(self.exam.gold(drawn).mean()),
            "win": win_rate(self.exam.gold(drawn), self.gold_before)[0],
        }

    def chooser(self, points: list[dict[str, float]]) -> Any:
        def choose(states: list[State], actor: GPT) -> tuple[State, dict[str, Any]]:
            for state in states:
                state.load(actor)
                points.append({"iteration": state.iteration} | self.point(actor))
            return states[-1], {"rule": "the last state"}

        return choose

    def best_of(self, n: int, seed: int) -> dict[str, float]:
        ids = [chat_ids(self.exam.tokenizer, [{"role": "user", "content": a.prompt}], True) for a in self.exam.asked]
        asked = [i for i in ids for _ in range(self.exam.samples)]
        seeds = [key("best-of", seed, k) for k in range(len(asked))]
        drawn = candidates(self.start, self.exam.tokenizer, self.proxy, asked, seeds, n, precision=precision()).best()
        gold = self.exam.gold(drawn)
        return {
            "kl": math.log(n) - (n - 1) / n,
            "proxy": float(score(self.proxy, drawn.sequences, BF16).mean()),
            "gold": float(gold.mean()),
            "win": win_rate(gold, self.gold_before)[0],
        }


def at_kl(points: list[dict[str, float]], kl: float) -> float:
    """Win rate at a KL, by linear interpolation between states; NaN beyond the last."""
    points = [{"kl": 0.0, "win": 0.5}, *points]
    for a, b in itertools.pairwise(points):
        if a["kl"] <= kl <= b["kl"]:
            return a["win"] + (b["win"] - a["win"]) * (kl - a["kl"]) / max(1e-9, b["kl"] - a["kl"])
    return math.nan


def methods(source: Run, folder: Path, seed: int) -> dict[str, list[dict[str, float]]]:
    """Every method on the same 600 thumbs: its states."""
    run, thumbs, pairs = prepared(source, folder, seed)
    frontier = Frontier(run, Exam(run, 1000 + seed))
    found: dict[str, list[dict[str, float]]] = {"best-of-n": [frontier.best_of(n, seed) for n in (2, 4, 8, 16)]}
    own: dict[str, Any] = {"model": "sft", "seed": seed}
    for name in ("ppo", "rloo", "grpo", "dpo", "kto"):
        points: list[dict[str, float]] = []
        choose = frontier.chooser(points)
        if name == "ppo":
            ppo.run(PPOConfig(**own, reward="reward-1", ptx=0.0, keep_every=1), run, name, choose)
        elif name in ("rloo", "grpo"):
            groups.run(GroupConfig(**own, reward="reward-1", method=name, ptx=0.0, keep_every=1), run, name, choose)  # pyright: ignore[reportArgumentType]
        else:
            direct.run(
                DirectConfig(**own, method=name, keep_every=4), run, thumbs, pairs, run.need("sft"), name, choose
            )  # pyright: ignore[reportArgumentType]
        found[name] = points[1:]
    return found


def overoptimised(source: Run, folder: Path, seed: int, count: int = 300) -> list[dict[str, float]]:
    """`jielong improve` far beyond what is sensible: no KL penalty, no text mixed in, a learning rate that does not fall, three times
    as many iterations. At every kept state the reward model's mean, the teacher's, and the judge's win rate; the last point is the state
    that was promoted (or, where none was, the start)."""
    run = copy_of(source, folder)
    simulate.run(ThumbsConfig(count=count, seed=run.need("sft").card["seed"], draw=seed), run)
    exam, points = Exam(run, 1000 + seed), []

    class Watched(improve.Chooser):
        def __call__(self, states: list[State], actor: GPT) -> tuple[State, dict[str, Any]]:
            Frontier(run, exam).chooser(points)(states, actor)
            state, why = super().__call__(states, actor)
            for point, judged in zip(points, why["curve"], strict=True):
                point["judge"] = judged["win_rate"][0]
            points.append(points[states.index(state)] | {"chosen": 1.0})
            return state, why

    constant = dataclasses.replace(adam(1.5e-4), cooldown=0.0)
    far = PPOConfig(kl=0.0, ptx=0.0, iterations=24, optim=constant, keep_every=2, kl_limit=1e9)
    with mock.patch.object(improve, "Chooser", Watched):
        made = improve.run(ImproveConfig(run=run.path, seed=seed, ppo=far), run)
    if not made.card["metrics"]["promoted"]:
        points[-1] = points[0] | {"chosen": 0.0}
    return points


def label_kinds(source: Run, folder: Path, seed: int) -> dict[str, float]:
    """AUC against the noise-free teacher of a reward model from 600 unpaired thumbs, each on a prompt of its own, and of one
    from 1,200 comparisons with the same share of wrong presses."""
    run = copy_of(source, folder)
    start, exam = run.need("sft"), Exam(run, 1000 + seed)
    world_seed = start.card["seed"]
    drawn = exam.answers(load_model(start.path))
    simulate.run(ThumbsConfig(count=600, answers=1, seed=world_seed, draw=seed), run)
    thumbs, _ = labels(store_of("", run), exam.tokenizer)
    reward.run(RewardConfig(seed=seed, held_out=0.0), run, thumbs, [], start, "reward-1")
    unpaired = reward_auc(run, exam, drawn)[0]

    asked = judge.prompts(exam.world, world_seed, 1200, 500 + seed)
    ids = [chat_ids(exam.tokenizer, [{"role": "user", "content": a.prompt}], True) for a in asked]
    twice = [i for i in ids for _ in range(2)]
    both = rollout(load_model(start.path), exam.tokenizer, twice, [key("pairs", seed, n) for n in range(len(twice))], 0.7, 96, precision())  # fmt: skip
    pairs, rng = [], random.Random(f"pairs/{seed}")
    for n, one in enumerate(asked):
        said = [judge.score(exam.world, one, both.texts[2 * n + k]) for k in (0, 1)]
        better = 0 if said[0] > said[1] or (said[0] == said[1] and rng.random() < 0.5) else 1
        if rng.random() < judge.NOISE:
            better = 1 - better
        a, b = both.sequences[2 * n + better], both.sequences[2 * n + 1 - better]
        if a.answer != b.answer:
            pairs.append(Pair((("user", one.prompt),), a.prompt, a.answer, b.answer, f"u{n % 12}"))
    reward.run(RewardConfig(seed=seed, held_out=0.0), run, [], pairs, start, "reward-1")
    return {"unpaired": unpaired, "pairwise": reward_auc(run, exam, drawn)[0], "comparisons": len(pairs)}


def teaching(
    source: Run, folder: Path, seed: int, budgets: tuple[int, ...] = (600, 1200, 2400)
) -> list[dict[str, float]]:
    """Quality over the teacher's seconds: a thumb takes 2, a demonstration 60. Demonstrations are perfect answers to the same
    prompts, learnt by fine-tuning from sft. `jielong lab thumbs` is the same with a control and a page."""
    rows = []
    for seconds in budgets:
        run = copy_of(source, folder / f"t{seconds}")
        found = taught(run, Exam(run, 1000 + seed), seed, seconds)
        row: dict[str, float] = {
            "seconds": seconds,
            "thumbs": seconds // THUMB,
            "demonstrations": seconds // DEMONSTRATION,
        }
        rows.append(row | {f"{way}_win": float(np.mean(found[way])) for way in ("thumbs", "demonstrations")})
    return rows
