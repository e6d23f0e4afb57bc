"""The reward model: a number for an answer that says how much people like it.

From unpaired thumbs: P(👍) = σ(r(x, y) + b + b_user + b_prompt), binary cross-entropy. The shift b, the users' leniency and
the prompts' offsets have Gaussian priors, so that r keeps only what is about the answer; they are thrown away after
training. From comparisons: −log σ(r(chosen) − r(rejected)) (Bradley & Terry 1952), also where one prompt has a thumb up
and a thumb down by one user. The reward is read at the answer's last token.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jielong.align.scoring import ALONE, PART, Answered, Scored, hidden_at_ends, merge, parts, score
from jielong.config import ModelConfig, RewardConfig
from jielong.errors import UserError
from jielong.evaluate.statistics import auc_within, bootstrap, calibration_error, correlation, platt
from jielong.feedback.labels import Pair, Thumb, is_held_out, paired, prompt_key
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import load_model
from jielong.model.lora import add_lora
from jielong.run import Artifact, Run
from jielong.tokens.tokenizer import copy_tokenizer
from jielong.train.bar import training_bar
from jielong.train.distributed import Team
from jielong.train.loop import History, LoopConfig, dtype_of, finite, repeat, use_threads
from jielong.train.making import begin, content
from jielong.train.optim import Optimizer
from jielong.train.shard import share

LEAST = 20  # labels: with fewer nothing can be learnt and held out


UNIT = (
    100.0  # logits per unit of an offset: Adam moves every number by its learning rate, and these must move by logits
)


class Offsets(nn.Module):
    """What a thumb says beside the answer: the general shift, the user's leniency, the prompt's difficulty, in UNITs."""

    def __init__(self, users: int, prompts: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))
        self.user = nn.Parameter(torch.zeros(users))
        self.prompt = nn.Parameter(torch.zeros(prompts))


class Judge(nn.Module):
    """What is trained: the reward model and the offsets."""

    def __init__(self, reward: Scored, offsets: Offsets):
        super().__init__()
        self.reward, self.offsets = reward, offsets


class Labels:
    """Thumbs and comparisons with their users and prompts numbered."""

    def __init__(self, thumbs: Sequence[Thumb], pairs: Sequence[Pair]):
        self.thumbs, self.pairs = list(thumbs), [*pairs, *paired(thumbs)]
        self.users = sorted({t.user for t in self.thumbs})
        self.prompts = sorted({prompt_key(t.messages) for t in self.thumbs})
        users, prompts = {u: n for n, u in enumerate(self.users)}, {p: n for n, p in enumerate(self.prompts)}
        self.user_of = [users[t.user] for t in self.thumbs]
        self.prompt_of = [prompts[prompt_key(t.messages)] for t in self.thumbs]

    def __len__(self) -> int:
        return len(self.thumbs) + len(self.pairs)

    def sequences(self, item: int) -> list[Answered]:
        """One for a thumb, two for a comparison: items are numbered thumbs first."""
        if item < len(self.thumbs):
            t = self.thumbs[item]
            return [Answered(t.prompt, t.answer)]
        p = self.pairs[item - len(self.thumbs)]
        return [Answered(p.prompt, p.chosen), Answered(p.prompt, p.rejected)]


def label_loss(
    judge: Judge, labels: Labels, items: Sequence[int], config: RewardConfig, rewards: dict[int, Tensor]
) -> Tensor:
    """Σ over `items` of each label's negative log-likelihood; `rewards` holds each item's (1,) or (2,) rewards.

    The priors' share of an item is theirs divided by the number of labels, so that an epoch counts them once.
    """
    losses = []
    offsets = judge.offsets
    thumbs = [i for i in items if i < len(labels.thumbs)]
    if thumbs:
        r = torch.cat([rewards[i] for i in thumbs])
        user = UNIT * offsets.user[torch.tensor([labels.user_of[i] for i in thumbs])]
        prompt = UNIT * offsets.prompt[torch.tensor([labels.prompt_of[i] for i in thumbs])]
        up = torch.tensor([float(labels.thumbs[i].up) for i in thumbs])
        losses.append(F.binary_cross_entropy_with_logits(r + UNIT * offsets.shift + user + prompt, up, reduction="sum"))
        prior = (UNIT * offsets.user).square().sum() / config.user_spread**2
        prior = (prior + (UNIT * offsets.prompt).square().sum() / config.prompt_spread**2) / 2
        losses.append(prior * len(thumbs) / len(labels.thumbs))
    pairs = [i for i in items if i >= len(labels.thumbs)]
    if pairs:
        r = torch.stack([rewards[i] for i in pairs])  # (P, 2)
        losses.append(config.pair_weight * F.softplus(r[:, 1] - r[:, 0]).sum())
    return torch.stack(losses).sum()


def batch_of(config: RewardConfig, count: int, step: int) -> list[int]:
    """The items of a step: epoch after epoch, each in an order of its own."""
    at, out = step * config.rows, []
    while len(out) < min(config.rows, count):
        epoch, place = divmod(at + len(out), count)
        order = np.random.default_rng([config.seed, epoch]).permutation(count)
        out += order[place : place + config.rows - len(out)].tolist()
    return out


def steps_for(config: RewardConfig, count: int) -> int:
    """Optimizer steps for so many labels: `epochs` passes, or more of them where that makes too few steps to learn from."""
    more = min(config.least_steps * config.rows, config.most_epochs * count)
    return max(1, math.ceil(max(config.epochs * count, more) / config.rows))


def part_tokens(c: ModelConfig) -> int:
    """Tokens that go through a model at once in training: what their backward pass needs (measured: about 12 widths and 4 MLP
    widths of bfloat16 a layer) takes 1 GB, which binds models of more than some tens of millions of parameters."""
    return max(256, min(PART, 2**30 // (2 * c.layers * (12 * c.width + 4 * c.mlp_width))))


def train_reward(
    judge: Judge,
    labels: Labels,
    config: RewardConfig,
    steps: int,
    work: Path,
    progress: Any = None,
    team: Team = ALONE,
) -> History:
    """Train in place, resumably. Each process of the team learns from other labels."""
    count = len(labels)
    rank, size = team.readers
    tokens = sum(len(s) for i in range(count) for s in labels.sequences(i)) / count

    def update(optimizer: Optimizer, step: int, dtype: torch.dtype, history: History) -> float:
        everyones = batch_of(config, count, step)
        items, value = everyones[rank::size], 0.0
        lengths = [sum(len(s) for s in labels.sequences(i)) for i in items]
        groups = parts(lengths, part_tokens(judge.reward.body.config))  # memory does not grow with the batch
        for group in team.even(groups):
            value += _backward(judge, labels, [items[n] for n in group], config, dtype, len(everyones))
        value = finite(team.total(value), step)
        team.sum_gradients(judge)
        optimizer.step((step + 0.5) / steps)
        return value

    loop = LoopConfig(
        steps, config.optim, config.precision, config.threads, config.checkpoint_seconds,
        int(config.rows * tokens), "reward", history=False,
    )  # fmt: skip
    return repeat(judge, update, loop, work, progress, team)


def _backward(
    judge: Judge, labels: Labels, part: list[int], config: RewardConfig, dtype: torch.dtype, of: int
) -> float:
    sequences = [s for i in part for s in labels.sequences(i)]
    read = judge.reward.read(hidden_at_ends(judge.reward.body, sequences, dtype))
    pieces = read.split([len(labels.sequences(i)) for i in part])
    loss = label_loss(judge, labels, part, config, dict(zip(part, pieces, strict=True))) / of if part else read.sum()
    loss.backward()
    return float(loss.detach())


Fold = tuple[Scored, Sequence[Thumb], Sequence[Pair]]
"""A model, and labels on prompts that it never saw."""


def examine(folds: Sequence[Fold], dtype: torch.dtype) -> dict[str, Any]:
    """Labels on prompts that the model which scores them never saw: AUC among each user's thumbs, pair accuracy, calibration,
    length. Intervals by bootstrap over prompts. Thumbs of different folds are never compared, nor are those of two users."""
    thumbs = [t for _, own, _ in folds for t in own]
    pairs = [p for _, _, own in folds for p in own]
    found: dict[str, Any] = {"thumbs": len(thumbs), "pairs": len(pairs)}
    if thumbs:
        said = [score(m, [Answered(t.prompt, t.answer) for t in own], dtype).numpy() for m, own, _ in folds]
        r = np.concatenate(said).astype(float)
        up = np.array([float(t.up) for t in thumbs])
        length = np.array([float(len(t.answer)) for t in thumbs])
        groups = _groups(thumbs)
        fold = np.repeat(np.arange(len(folds)), [len(own) for _, own, _ in folds])
        among = np.unique([f"{f}/{t.user}" for f, t in zip(fold, thumbs, strict=True)], return_inverse=True)[1]
        found["auc"] = bootstrap(groups, lambda i: auc_within(r[i], up[i], among[i]))
        found["auc_longer_wins"] = bootstrap(groups, lambda i: auc_within(length[i], up[i], among[i]))
        found["length_correlation"] = correlation(r, length)
        a, b = platt(r, up)
        found["platt"] = [a, b]
        halves = [np.concatenate(groups[k::2]) if groups[k::2] else np.zeros(0, int) for k in (0, 1)]
        guesses = np.zeros(len(r))
        for mine, other in (halves, halves[::-1]):  # each half by the line of the other
            slope, shift = platt(r[other], up[other]) if len(other) else (a, b)
            guesses[mine] = 1 / (1 + np.exp(-(slope * r[mine] + shift)))
        found["calibration_error"] = calibration_error(guesses, up)
    if pairs:

        def said_of(which: str) -> np.ndarray:
            own = [(m, [Answered(p.prompt, getattr(p, which)) for p in ps]) for m, _, ps in folds]
            return np.concatenate([score(m, answers, dtype).numpy() for m, answers in own])

        chosen, rejected = said_of("chosen"), said_of("rejected")
        right = (chosen > rejected) + 0.5 * (chosen == rejected)
        longer = np.array([0.5 + 0.5 * np.sign(len(p.chosen) - len(p.rejected)) for p in pairs])
        groups = _groups(pairs)
        found["pair_accuracy"] = bootstrap(groups, lambda i: float(right[i].mean()))
        found["pair_accuracy_longer_wins"] = bootstrap(groups, lambda i: float(longer[i].mean()))
    return found


def _groups(items: Sequence[Thumb] | Sequence[Pair]) -> list[list[int]]:
    by: dict[str, list[int]] = {}
    for n, item in enumerate(items):
        by.setdefault(prompt_key(item.messages), []).append(n)
    return list(by.values())


def complaint(exam: dict[str, Any]) -> str:
    """Why PPO should not trust this model; empty when it may."""
    named = [("auc", "AUC", "thumbs"), ("pair_accuracy", "pair accuracy", "comparisons")]
    known = [(label, what, exam[key]) for key, label, what in named if key in exam and not math.isnan(exam[key][1])]
    if not known:
        return "no held-out prompts with both kinds of labels are there to prove it; collect more feedback."
    if any(low > 0.5 for _, _, (_, low, _) in known):
        return ""
    label, what, (value, low, high) = known[0]
    return (
        f"its {label} on held-out {what} is {value:.2f} (95 % interval {low:.2f} to {high:.2f}), which includes chance "
        "(0.50); collect more feedback."
    )


def check(thumbs: Sequence[Thumb], pairs: Sequence[Pair]) -> None:
    """Raises UserError where nothing can be learnt."""
    if len(thumbs) + len(pairs) < LEAST:
        raise UserError(
            f"There are {len(thumbs)} thumbs and {len(pairs)} comparisons; a reward model needs at least {LEAST}."
        )
    kinds = Counter(t.up for t in thumbs)
    if not pairs and len(kinds) == 1:
        way = "up" if kinds[True] else "down"
        raise UserError(f"All {len(thumbs)} thumbs point {way}, which says nothing about what is better; press both.")


def run(
    config: RewardConfig,
    run: Run,
    thumbs: Sequence[Thumb],
    pairs: Sequence[Pair],
    start: Artifact,
    name: str = "reward",
    feedback: str = "",
    second: Artifact | None = None,
    team: Team = ALONE,
) -> Artifact:
    """The reward stage: labels → `name`, a reward model whose card says how far it can be trusted. `feedback`
    is kept in the card as the labels' identity. `second` is a model of the held-out labels alone: what it says about the
    other ones is evidence, too. All processes of the team train; the first one examines and writes. Raises UserError, on
    all of them, when the labels are too few or all alike."""
    check(thumbs, pairs)
    held = {t.messages for t in [*thumbs, *pairs] if is_held_out(t.messages, config.held_out, config.seed)}
    labels = Labels([t for t in thumbs if t.messages not in held], [p for p in pairs if p.messages not in held])
    kept_thumbs = [t for t in thumbs if t.messages in held]
    kept_pairs = [p for p in pairs if p.messages in held] + paired(kept_thumbs)
    config = dataclasses.replace(config, threads=use_threads(config.threads))
    steps = steps_for(config, len(labels))
    reward = Scored(load_model(start.path))
    if config.lora_rank:  # the score, which lies outside the body, is trained as ever
        add_lora(reward.body, config.lora_rank, config.lora_alpha or 2.0 * config.lora_rank, config.seed)
    judge = Judge(reward, Offsets(len(labels.users), len(labels.prompts)))
    dtype = dtype_of(config.precision)
    work = run.work(name)
    making = {"config": content(config), "start": start.hash, "labels": _stamp(thumbs, pairs)}
    with team.in_turn():
        if team.first:
            begin(work, making, config.threads if team.alone else None)
    whole = share(reward.body, team, dtype)
    made = run.build(name, kind="reward", config=config, parents=[start], seed=config.seed)
    with made if team.first else nullcontext() as build:
        with training_bar(name, steps) if team.first else nullcontext() as progress:
            history = train_reward(judge, labels, config, steps, work, progress, team)
        body = whole()

        def finish() -> None:
            assert build is not None and body is not None
            reward.body = body
            merge(body)  # what is normalised, examined and kept is a plain model, which PPO can train as its critic
            reward.requires_grad_(False)
            messages = sorted({t.messages for t in [*labels.thumbs, *labels.pairs]})
            mean, std = normalise(reward, reference_answers(start, messages, config), dtype)
            folds: list[Fold] = [(reward, kept_thumbs, kept_pairs)]
            if second is not None:
                folds.append((Scored.load(second.path).eval(), labels.thumbs, labels.pairs))
            found = examine(folds, dtype)
            reward.save(build.path)
            copy_tokenizer(start.file("tokenizer.json"), build.path)
            (build.path / "prompts.json").write_text(json.dumps(messages, ensure_ascii=False), encoding="utf-8")
            build.threads = config.threads
            build.metrics = {
                "feedback": feedback,
                "labels": {"thumbs": len(thumbs), "up": sum(t.up for t in thumbs), "pairs": len(pairs)},
                "trained_on": {"thumbs": len(labels.thumbs), "pairs": len(labels.pairs)},
                "steps": steps,
                "processes": team.place[1],
                "loss": history.loss,
                "leniency": dict(zip(labels.users, (UNIT * judge.offsets.user).tolist(), strict=True)),
                "raw_reference": {"mean": mean, "std": std},
                "held_out": found,
                "complaint": complaint(found),
            }

        team.told(finish)
    with team.in_turn():
        if team.first:
            shutil.rmtree(work, ignore_errors=True)
    return Artifact(run.path / name)


def reference_answers(start: Artifact, messages: Sequence[Any], config: RewardConfig) -> list[Answered]:
    """Answers of the starting model to as many prompts as `references` says, in turns."""
    engine = Engine.load(start.path, config.threads, rows=64)
    prompts = [engine.chat_ids([{"role": r, "content": c} for r, c in m]) for m in messages]
    sampling = Sampling(temperature=config.temperature, max_tokens=config.max_tokens)
    asked = [prompts[n % len(prompts)] for n in range(config.references)]
    requests = [
        engine.submit(p, dataclasses.replace(sampling, seed=config.seed * 1_000_003 + n)) for n, p in enumerate(asked)
    ]
    while any(r.finish is None for r in requests):
        engine.step()
    return [Answered(tuple(r.prompt), tuple(r.answer)) for r in requests]


def normalise(reward: Scored, references: list[Answered], dtype: torch.dtype) -> tuple[float, float]:
    """Scale and shift the score head so that the references have mean 0 and standard deviation 1; what they had before."""
    raw = score(reward, references, dtype)
    mean, std = float(raw.mean()), float(raw.std(correction=0))
    if not std > 1e-6:
        raise UserError("The reward model gives every answer the same reward; collect feedback of both kinds.")
    with torch.no_grad():
        reward.score.weight /= std
        reward.score.bias.sub_(mean).div_(std)
    return mean, std


def _stamp(thumbs: Sequence[Thumb], pairs: Sequence[Pair]) -> str:
    return hashlib.sha256(repr((list(thumbs), list(pairs))).encode()).hexdigest()
