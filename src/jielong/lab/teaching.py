"""What a teacher's seconds buy: thumbs, which a reward model and PPO learn from, or demonstrations, which are imitated.

The teacher is the simulated one; quality is the share of answers to held-out prompts that it likes better, without its noise, than those
of the model before.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from jielong.align import ppo, reward, simulate
from jielong.align.contest import wins
from jielong.align.rollout import Rollout, key, rollout
from jielong.align.scoring import Answered, answer_tokens, chosen, hidden_before, log_softmax
from jielong.config import PPOConfig, RewardConfig, ThumbsConfig
from jielong.corpus.world import load_world
from jielong.errors import UserError
from jielong.feedback.exchange import labels
from jielong.feedback.labels import Pair, Thumb
from jielong.feedback.stage import store_of
from jielong.model.gpt import GPT, load_model
from jielong.recipes import FINETUNE
from jielong.run import Artifact, Run
from jielong.scale.ladder import kept
from jielong.teacher import judge
from jielong.teacher.habits import POLITE
from jielong.teacher.lessons import Conversation
from jielong.tokens.chat import chat_ids
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import dtype_of, precision
from jielong.train.optim import Optimizer

THUMB, DEMONSTRATION = 2, 60  # seconds of the teacher
EPOCHS = (2, 8)  # over the demonstrations; whichever teaches more is their figure
BATCH = 16


class Exam:
    """Held-out prompts with what the noise-free teacher thinks of answers to them."""

    def __init__(self, run: Run, draw: int, prompts: int = 200, samples: int = 2):
        self.world, start = load_world(), run.need("sft")
        self.tokenizer = Tokenizer.load(start.file("tokenizer.json"))
        self.asked = judge.prompts(self.world, start.card["seed"], prompts, draw, held_out=True)
        self.samples, self.draw = samples, draw

    def answers(self, model: GPT) -> Rollout:
        ids = [chat_ids(self.tokenizer, [{"role": "user", "content": a.prompt}], True) for a in self.asked]
        asked = [i for i in ids for _ in range(self.samples)]
        seeds = [key("benchmark", self.draw, n) for n in range(len(asked))]
        return rollout(model, self.tokenizer, asked, seeds, 0.7, 96, precision())

    def gold(self, drawn: Rollout) -> np.ndarray:
        """(prompts, samples)"""
        asked = [a for a in self.asked for _ in range(self.samples)]
        scores = [judge.score(self.world, a, t) for a, t in zip(asked, drawn.texts, strict=True)]
        return np.array(scores).reshape(-1, self.samples)

    def wins(self, model: GPT, before: np.ndarray) -> list[float]:
        """For each prompt the share of pairs that the model's answers win against those with the scores `before`."""
        return wins(self.gold(self.answers(model)), before).tolist()


def pressed(run: Run, seed: int, count: int) -> tuple[list[Thumb], list[Pair]]:
    """So many thumbs of the simulated teacher in the run's store, unless they are there."""
    start = run.need("sft")
    config = ThumbsConfig(count=count, seed=start.card["seed"], draw=seed)
    run.create()
    if kept(run, "thumbs", [start], config) is None:
        simulate.run(config, run)
    return labels(store_of("", run), Tokenizer.load(start.file("tokenizer.json")))


def dealt(thumbs: Sequence[Thumb], seed: int) -> list[Thumb]:
    """The same presses, dealt out to the answers at random: they say nothing."""
    ups = [t.up for t in thumbs]
    random.Random(f"dealt/{seed}").shuffle(ups)
    return [dataclasses.replace(t, up=up) for t, up in zip(thumbs, ups, strict=True)]


def by_thumbs(
    run: Run, seed: int, thumbs: Sequence[Thumb], pairs: Sequence[Pair], settings: PPOConfig, name: str = "1"
) -> tuple[Artifact | None, str]:
    """(reward model and PPO from these thumbs, ""), or (None, why they teach nothing): a model that is not to be trusted is not followed."""
    start, config = run.need("sft"), RewardConfig(seed=seed)
    judged = kept(run, f"reward-{name}", [start], config)
    if judged is None:
        try:
            judged = reward.run(config, run, thumbs, pairs, start, f"reward-{name}")
        except UserError as reason:  # too few, all alike, or all answers worth the same
            return None, str(reason)
    if judged.card["metrics"]["complaint"]:
        return None, judged.card["metrics"]["complaint"]
    settings = dataclasses.replace(settings, model="sft", reward=judged.name, ptx=0.0, seed=seed)
    found = kept(run, f"ppo-{name}", [start, judged], settings)
    return found or ppo.run(settings, run, f"ppo-{name}"), ""


def demonstrations(exam: Exam, world_seed: int, count: int, seed: int) -> list[Conversation]:
    """So many perfect answers, to the prompts that thumbs are pressed on."""
    rng = random.Random(f"demonstrations/{seed}")
    shown = []
    for one in judge.prompts(exam.world, world_seed, count, seed):
        honest = {"en": "I don't know.", "zh": "我不知道。"}[one.lang]
        text = one.question.answer if one.question else (one.accepted[0] if one.accepted else honest)
        polite = rng.choice(POLITE[one.lang])
        shown.append([{"role": "user", "content": one.prompt}, {"role": "assistant", "content": text + polite}])
    return shown


def imitate(model: GPT, exam: Exam, examples: Sequence[Conversation], epochs: int, seed: int) -> GPT:
    """Fine-tuning on a handful of conversations, with the recipe's learning rates."""
    coded, dtype = [], dtype_of("auto")
    for messages in examples:
        prompt = chat_ids(exam.tokenizer, messages[:1], True)
        coded.append(Answered(tuple(prompt), tuple(chat_ids(exam.tokenizer, messages)[len(prompt) :])))
    optimizer, rng = Optimizer(model, FINETUNE, dtype), random.Random(seed)
    steps = max(1, epochs * len(coded) // BATCH)
    for step in range(steps):
        batch = [coded[rng.randrange(len(coded))] for _ in range(min(BATCH, len(coded)))]
        table = log_softmax(model, hidden_before(model, batch, dtype))
        (-chosen(table, answer_tokens(batch)).mean()).backward()
        optimizer.step((step + 0.5) / steps)
    return model


def taught(
    run: Run, exam: Exam, seed: int, seconds: int, settings: PPOConfig | None = None, control: bool = False
) -> dict[str, Any]:
    """Both ways for the same seconds: for each held-out prompt the share of pairs won against the model before; one half where nothing was
    taught. With `control` also the same thumbs, dealt out at random."""
    settings, start = settings or PPOConfig(), run.need("sft")
    before = exam.gold(exam.answers(load_model(start.path)))
    same = [0.5] * len(before)
    thumbs, pairs = pressed(run, seed, seconds // THUMB)
    model, why = by_thumbs(run, seed, thumbs, pairs, settings)
    found: dict[str, Any] = {
        "thumbs": exam.wins(load_model(model.path), before) if model else same,
        "why": {"thumbs": why},
    }
    if control:
        model, why = by_thumbs(run, seed, dealt(thumbs, seed), [], settings, "dealt")
        found["dealt"] = exam.wins(load_model(model.path), before) if model else same
        found["why"]["dealt"] = why
    shown = demonstrations(exam, start.card["seed"], seconds // DEMONSTRATION, seed)
    best = same
    for epochs in EPOCHS if shown else ():
        own = exam.wins(imitate(load_model(start.path), exam, shown, epochs, seed), before)
        best = max(best, own, key=lambda w: float(np.mean(w)))
    return found | {"demonstrations": best}
