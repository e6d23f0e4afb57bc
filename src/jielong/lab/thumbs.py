"""`jielong lab thumbs`: for the same seconds of a teacher, thumbs or demonstrations?

Ouyang et al. (2022) have people write answers first, and then only judge answers, which is faster. A thumb takes the teacher 2 s, a perfect
demonstration 60 s. The model is the run's own; the control learns from the same thumbs, dealt out at random.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jielong.config import PPOConfig, TeachingConfig
from jielong.errors import UserError
from jielong.lab.branch import Branch, default_corpus, examined, folder, say, sized
from jielong.lab.claims import Claim, Condition, above, shown
from jielong.lab.exams import difference, mean
from jielong.lab.sheet import Sheet, Table, bars, finish
from jielong.lab.teaching import DEMONSTRATION, EPOCHS, THUMB, Exam, taught
from jielong.run import Artifact, Run

NAME = "thumbs"
CLAIM = Claim(
    {"en": "Thumbs or demonstrations", "zh": "按讚還是示範"},
    {
        "en": "Judging answers is less work than writing them: for the same seconds of a teacher, thumbs improve the answers more than demonstrations.",
        "zh": "判斷答案比寫答案省力：老師花同樣的秒數，按讚比示範更能改進回答。",
    },
)
WAYS = {"thumbs": "thumbs", "demonstrations": "demonstrations", "dealt": "control: the same thumbs at random"}
QUICK = {"budgets": (80,), "prompts": 4, "iterations": 1, "episodes": 8}


def run(config: TeachingConfig, run: Run) -> Artifact:
    """The experiment → `lab-thumbs`. What has been taught is not taught again."""
    default_corpus(run)
    start = run.need("sft")
    config = sized(config, QUICK)
    budgets = sorted(set(config.budgets))
    if not budgets or budgets[0] < DEMONSTRATION:
        raise UserError(f"A budget must be at least {DEMONSTRATION} seconds, which a demonstration takes.")
    if min(config.prompts, config.iterations, config.episodes) < 1:
        raise UserError("prompts, iterations and episodes must be at least 1.")
    found: dict[int, list[dict[str, Any]]] = {b: [] for b in budgets}
    for seed in range(config.seed, config.seed + config.seeds):
        for seconds in budgets:
            found[seconds].append(one(config, run, start, seed, seconds, seconds == budgets[0]))
            own = found[seconds][-1]
            rates = ", ".join(f"{WAYS[w]} {100 * float(np.mean(own[w])):.1f} %" for w in WAYS if w in own)
            say(f"{seconds} s, seed {seed}, win rates: {rates}")
    scores = {b: {w: [m[w] for m in own] for w in WAYS if w in own[0]} for b, own in found.items()}
    figures = {str(b): {w: mean(v, config) for w, v in own.items()} for b, own in scores.items()}
    gains = {str(b): difference(own["thumbs"], own["demonstrations"], config) for b, own in scores.items()}
    untaught = [
        f"{WAYS[w]}, {b} s: {why}" for b, own in found.items() for m in own for w, why in m["why"].items() if why
    ]
    metrics = {
        "figures": figures,
        "gains": gains,
        "untaught": untaught,
        "scores": {str(b): s for b, s in scores.items()},
    }
    return finish(NAME, config, run, CLAIM, conditions(scores, config), sheet(metrics, config), metrics, [start])


def one(config: TeachingConfig, run: Run, start: Artifact, seed: int, seconds: int, control: bool) -> dict[str, Any]:
    """One budget of one seed, in a branch with a store and models of its own."""
    branch = Branch(run, f"{folder(NAME, config.quick)}/{seconds}-{seed}", ("corpus", "tokenizer", "base", "sft"))
    settings = PPOConfig(iterations=config.iterations, episodes=config.episodes, precision=config.precision)
    asked = {
        "prompts": config.prompts,
        "iterations": config.iterations,
        "episodes": config.episodes,
        "control": control,
    }
    exam = Exam(run, 1000 + seed, config.prompts)
    return examined(
        branch, "exam", [start], asked, lambda: taught(branch, exam, seed, seconds, settings, control), seed
    )


def conditions(scores: dict[int, dict[str, Any]], config: TeachingConfig) -> list[Condition]:
    """Thumbs help, more than at random, and more than demonstrations at every budget."""
    first = min(scores)
    own = scores[first]["thumbs"]
    even = [[0.5] * len(v) for v in own]
    wanted = [
        above(f"{first} s of thumbs: win rate above one half, in points", f"{first} 秒的讚：勝率高於一半幾個百分點", difference(own, even, config)),
        above(f"{first} s of thumbs against the same at random: points", f"{first} 秒的讚比隨機發的同一批讚高幾個百分點", difference(own, scores[first]["dealt"], config)),
    ]  # fmt: skip
    return wanted + [
        above(
            f"{seconds} s: win rate of thumbs minus demonstrations, in points",
            f"{seconds} 秒：按讚的勝率減去示範的勝率，百分點",
            difference(ways["thumbs"], ways["demonstrations"], config),
        )
        for seconds, ways in sorted(scores.items())
    ]


def sheet(metrics: dict[str, Any], config: TeachingConfig) -> Sheet:
    """For people."""
    figures, gains = metrics["figures"], metrics["gains"]
    head = [
        "seconds of the teacher",
        "thumbs",
        "demonstrations",
        *(f"{w}, win rate %" for w in WAYS.values()),
        "thumbs − demonstrations, points",
    ]
    rows = [
        [b, str(int(b) // THUMB), str(int(b) // DEMONSTRATION), *(shown(own[w]) if w in own else "" for w in WAYS), shown(gains[b], signed=True)]
        for b, own in figures.items()
    ]  # fmt: skip
    untaught = metrics["untaught"]
    ways = {WAYS[w]: [own[w] for own in figures.values()] for w in ("thumbs", "demonstrations")}
    return Sheet(
        about=f"The run's fine-tuned model is taught for so many seconds of the simulated teacher, who has 15 % wrong presses and a leniency per user: by thumbs ({THUMB} s each: reward model, PPO) or by perfect demonstrations "
        f"({DEMONSTRATION} s each, imitated; of {' and '.join(map(str, EPOCHS))} passes the better). Win rate: the share of pairs of answers to {config.prompts} held-out prompts that the noise-free teacher likes better than the model's before. "
        "Where a reward model is not to be trusted nothing is taught, and the win rate is one half.",
        findings=[f"Nothing was learnt from {len(untaught)} of the labels' sets: {untaught[0]}"] if untaught else [],
        tables=[Table("Figures", head, rows)],
        charts=[bars("Quality over the teacher's seconds", "win rate, %", [f"{b} s" for b in figures], ways)],
    )  # fmt: skip
