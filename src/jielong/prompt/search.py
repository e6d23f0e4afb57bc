"""`jielong prompt search`: a better instruction and demonstrations for a task, and the proof on examples that it never saw.

Random search over bootstrapped demonstrations (BootstrapFewShotWithRandomSearch, Khattab et al. 2023): the examples are
split into a pool, a trial part and a held-out half. The plain prompt answers the pool, and what it gets right may become a
demonstration, in the model's own words. Candidates are an instruction and a draw of demonstrations; they compete on the
trial part by successive halving (Jamieson & Talwalkar 2016): all of them on a few examples, the better half on twice as
many, and so on. Only the plain prompt and the winner see the held-out half.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jielong.config import PromptSearchConfig
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.prompt.answer import reply
from jielong.prompt.form import NAME, Prompt, variables_in, whole, write
from jielong.prompt.journal import Journal, bar
from jielong.prompt.matrix import difference, mean_interval, percent
from jielong.prompt.shots import in_turns
from jielong.prompt.task import METRICS, Item, Task, read_task
from jielong.run import Artifact, Run

BATCH = 32  # answers between two entries of the journal
RIGHT = 0.5  # an own answer that scores at least this may be shown as an example
# ways to say what is wanted; with {labels} only for tasks that have them
WORDINGS = (
    "{plain}",
    "{plain} Reply with the answer only, without any explanation.",
    "Look at the examples, find the rule behind them, and continue in the same way.",
    "You are an expert who answers briefly and exactly. {plain}",
    "Each question has one short answer. {plain} Write nothing but that answer.",
    "{plain} Choose one of: {labels}.",
    "Decide which of these fits: {labels}. Reply with that one word.",
    "",
)


@dataclass(frozen=True)
class Split:
    pool: tuple[Item, ...]
    """May become demonstrations."""
    trial: tuple[Item, ...]
    """Candidates compete on these."""
    held_out: tuple[Item, ...]


def split(task: Task, config: PromptSearchConfig) -> Split:
    """At random by the seed; equal inputs stay on one side. Raises UserError when there are too few examples."""
    distinct = list({item.input: item for item in task.items}.values())
    random.Random(config.seed).shuffle(distinct)
    distinct = distinct[: config.most]
    held = round(len(distinct) * config.held_out)
    pool = (len(distinct) - held) // 2
    if min(pool, len(distinct) - held - pool, held) < 4:
        raise UserError(
            f"{task.name} has {len(distinct)} different examples, too few for a pool, a trial part and a held-out part; give at least 16."
        )
    return Split(tuple(distinct[held : held + pool]), tuple(distinct[held + pool :]), tuple(distinct[:held]))


class Scorer:
    """Prompts → scores of examples, each answer paid for once."""

    def __init__(self, engine: Engine, config: PromptSearchConfig, journal: Journal):
        self.engine, self.metric, self.journal = engine, METRICS[config.metric], journal
        stop = () if engine.chat else ("\n",)
        self.sampling = Sampling(temperature=0.0, max_tokens=config.max_tokens, stop=stop)
        self.asked = 0

    def answers(self, prompt: Prompt, items: Sequence[Item], advance: Any = lambda count: None) -> list[str]:
        told = (prompt.system, prompt.shots, prompt.ask, prompt.labels, prompt.calibrated)
        column = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
        keys = [f"{column}:{hashlib.sha256(i.input.encode()).hexdigest()[:16]}" for i in items]
        open_ = [n for n, key in enumerate(keys) if key not in self.journal.found]
        advance(len(items) - len(open_))
        for start in range(0, len(open_), BATCH):
            part = open_[start : start + BATCH]
            texts = [items[n].input for n in part]
            replies = reply(self.engine, [prompt] * len(part), [{}] * len(part), texts, self.sampling)
            self.journal.add({keys[n]: r for n, r in zip(part, replies, strict=True)})
            self.asked += len(part)
            advance(len(part))
        return [self.journal.found[key].text for key in keys]

    def scores(self, prompt: Prompt, items: Sequence[Item], advance: Any = lambda count: None) -> np.ndarray:
        """(items,)"""
        found = self.answers(prompt, items, advance)
        return np.array([self.score(answer, item) for answer, item in zip(found, items, strict=True)])

    def score(self, answer: str, item: Item) -> float:
        return self.metric(answer, item.outputs)


def instructions(task: Task, config: PromptSearchConfig) -> list[str]:
    """The plain one first."""
    labels = ", ".join(task.labels)
    known = [w for w in WORDINGS if task.labels or "{labels}" not in w]
    found = [w.replace("{plain}", config.instruction).replace("{labels}", labels) for w in known]
    return list(dict.fromkeys([*found, *config.more]))


def bootstrapped(pool: Sequence[Item], answers: Sequence[str], score: Any) -> list[Item]:
    """The examples that the model gets right, with its own words as the answer."""
    return [Item(i.input, (a,)) for i, a in zip(pool, answers, strict=True) if score(a, i) >= RIGHT]


def candidates(
    plain: Prompt, wordings: Sequence[str], pool: Sequence[Item], own: Sequence[Item], config: PromptSearchConfig
) -> list[Prompt]:
    """The plain prompt; it with written demonstrations, and with the model's own; then random ones: an instruction, a number of
    demonstrations, written or own. Own ones are filled up with written ones where they are too few."""

    def shown(examples: Sequence[Item], count: int, rng: random.Random) -> list[tuple[str, str]]:
        picked = in_turns(examples, rng)[:count]
        have = {i.input for i in picked}
        picked += in_turns([i for i in pool if i.input not in have], rng)[: count - len(picked)]
        rng.shuffle(picked)
        return [(i.input, i.outputs[0]) for i in picked]

    most = min(config.shots, len(pool))
    found = [plain]
    if most:
        first = random.Random(f"{config.seed} first")
        found += [plain.with_shots(shown(examples, most, first)) for examples in (pool, own)]
    for draw in range(20 * config.candidates):  # a draw may repeat an earlier one
        rng = random.Random(f"{config.seed} {draw}")
        wording, count = rng.choice(list(wordings)), rng.randint(0, most)
        examples = own if rng.random() < 0.5 else pool
        found.append(replace(plain, system=wording).with_shots(shown(examples, count, rng)))
        if len(dict.fromkeys(found)) >= config.candidates:
            break
    return list(dict.fromkeys(found))[: config.candidates]


def rungs(candidates: int, trial: int, first: int) -> list[tuple[int, int]]:
    """(candidates that take part, examples that they have seen by then), until one is left or the trial part is used up; at the
    last rung the examples are all there are."""
    found = []
    seen = min(first, trial)
    while True:
        if seen >= trial or candidates <= 2:
            return [*found, (candidates, trial)]
        found.append((candidates, seen))
        candidates, seen = max(2, math.ceil(candidates / 2)), min(2 * seen, trial)


def race(
    found: Sequence[Prompt], trial: Sequence[Item], first: int, scorer: Scorer, advance: Any
) -> tuple[Prompt, list[dict[str, Any]]]:
    """(the winner, what each rung showed). The plain prompt, the first, stays to the end; of equals the earlier one wins."""
    alive = list(range(len(found)))
    told = []
    scores: dict[int, float] = {}
    for count, seen in rungs(len(found), len(trial), first):
        alive = _best(alive, scores, count)
        scores = {n: float(scorer.scores(found[n], trial[:seen], advance).mean()) for n in alive}
        told.append({"examples": seen, "scores": {str(n): round(s, 4) for n, s in scores.items()}})
    return found[max(alive, key=lambda n: (scores[n], -n))], told


def _best(alive: list[int], scores: dict[int, float], count: int) -> list[int]:
    ranked = sorted(alive, key=lambda n: (-scores.get(n, 0.0), n))[:count]
    return sorted({0, *(ranked if 0 in ranked else ranked[:-1])})


def run(config: PromptSearchConfig, run: Run) -> Artifact:
    """A model and a task → prompt-NAME: NAME.md, which `jielong prompt run NAME` uses, and search.json. The same command
    continues after an interruption."""
    task = read_task(config.task)
    name = config.name or config.task.stem
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name for a prompt; give one of letters, digits, - and _ with --name.")
    if config.candidates < 2 or config.shots < 0 or config.first < 1 or not 0 < config.held_out < 1:
        raise UserError(
            "--candidates must be at least 2, --first 1, --shots 0, and --held-out must lie between 0 and 1."
        )
    if config.most < 1 or config.max_tokens < 1:
        raise UserError("--most and --max-tokens must be at least 1.")
    for told in (config.instruction, *config.more):
        if named := variables_in(whole(told, "An instruction")):
            raise UserError(
                f"The instruction {told!r} has the variable {{{{{named[0]}}}}}, for which a search has no value."
            )
    if run.artifact(f"prompt-{name}") is not None and not config.force:
        raise UserError(f"{run.path / f'prompt-{name}'} exists; use --force to search anew, or another --name.")
    parts, start = split(task, config), run.need(config.model or run.serving())
    engine = Engine.load(start.path, config.threads, precision="auto", rows=BATCH, prefix_bytes=512 << 20)
    answers = run.work(f"prompt-{name}") / "answers.jsonl"
    scorer = Scorer(engine, config, Journal(answers, [start.hash, config.max_tokens]))
    plain = Prompt(
        name, config.instruction, title=name, labels=task.labels, calibrated=bool(task.labels) and config.calibrate
    )
    plain = replace(plain, purpose=f"Found by search for {task.name} and {start.name}.")
    with run.build(f"prompt-{name}", kind="prompt", config=config, parents=[start], seed=config.seed) as build:
        told = _search(config, task, parts, plain, scorer)
        (build.path / f"{name}.md").write_text(write(told.pop("prompt")), encoding="utf-8")
        (build.path / "search.json").write_text(json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8")
        build.metrics = told["result"]
    _show(told["result"])
    return build.artifact


def _search(config: PromptSearchConfig, task: Task, parts: Split, plain: Prompt, scorer: Scorer) -> dict[str, Any]:
    total = sum(n * seen for n, seen in rungs(config.candidates, len(parts.trial), config.first))
    with bar("answers", len(parts.pool) + total + 2 * len(parts.held_out)) as advance:
        own = bootstrapped(parts.pool, scorer.answers(plain, parts.pool, advance), scorer.score)
        found = candidates(plain, instructions(task, config), parts.pool, own, config)
        winner, told = race(found, parts.trial, config.first, scorer, advance)
        before = scorer.scores(plain, parts.held_out, advance)[None]
        after = scorer.scores(winner, parts.held_out, advance)[None]
    result = {
        "metric": "label" if task.labels else config.metric,
        "held_out": len(parts.held_out),
        "plain": [round(x, 4) for x in mean_interval(before)],
        "found": [round(x, 4) for x in mean_interval(after)],
        "difference": [round(x, 4) for x in difference(after, before)],
        "shots": len(winner.shots),
        "candidate": found.index(winner),
        "own_right": [len(own), len(parts.pool)],
    }
    tried = [{"system": p.system, "shots": p.shots} for p in found]
    return {"prompt": winner, "result": result, "rungs": told, "candidates": tried}


def _show(result: dict[str, Any]) -> None:
    for key in ("plain", "found"):
        value, low, high = result[key]
        print(
            f"{key:6} {percent(value):>6} % ({percent(low)} – {percent(high)}) of {result['held_out']} held-out examples"
        )
    change, low, high = result["difference"]
    verdict = "better than the plain prompt" if low > 0 else "worse" if high < 0 else "not shown to be better"
    print(
        f"difference {percent(change, True)} points ({percent(low, True)} to {percent(high, True)}): {verdict}; {result['shots']} demonstrations"
    )
