"""`jielong lab size-ladder`: the talk's figure, more parameters and better answers.

Models of several sizes read the same text, each with several seeds, and are fine-tuned alike. Closed-book questions ask what only
the raw text has told; reading questions have their answer in a passage. Controls: who always names the commonest value, and the
reading questions with the passage withheld.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jielong.config import FinetuneConfig, PretrainConfig, SizeLadderConfig
from jielong.corpus.documents import read_documents
from jielong.corpus.world import load_world, majority_guess
from jielong.errors import UserError
from jielong.evaluate.bpb import read
from jielong.evaluate.qa import ask_all
from jielong.generate.engine import Engine
from jielong.lab.page import page
from jielong.lab.reading import reading_exam, reading_lessons
from jielong.lab.trend import Trend, trend
from jielong.model.gpt import load_model
from jielong.run import Artifact, Run, write_atomic
from jielong.scale.advice import shape
from jielong.scale.ladder import kept
from jielong.teacher.lessons import lessons
from jielong.teacher.questions import Question, exam, is_correct
from jielong.train.loop import use_threads

NAME = "lab-size-ladder"
KINDS = {"closed": "closed-book questions", "reading": "questions about a passage", "withheld": "the same without it"}
LEAST_SIZES, MOST_SIZES, LEAST_SEEDS = 4, 6, 3


class Branch(Run):
    """A run of its own that reads another one's corpus and tokenizer."""

    def __init__(self, trunk: Run, name: str):
        super().__init__(trunk.path / NAME.removeprefix("lab-") / name)
        self.trunk = trunk

    def artifact(self, name: str) -> Artifact | None:
        return self.trunk.artifact(name) if name in ("corpus", "tokenizer") else super().artifact(name)


def run(config: SizeLadderConfig, run: Run) -> Artifact:
    """The experiment: sizes × seeds → `lab-size-ladder`. Models that are there are not trained again."""
    from rich.console import Console

    corpus, tokenizer = run.need("corpus"), run.need("tokenizer")
    check(config, corpus)
    config = replace(config, threads=use_threads(config.threads))
    widths = sorted(set(config.widths))
    seeds = range(config.seed, config.seed + config.seeds)
    exams: dict[int, list[Artifact]] = {width: [] for width in widths}
    # seed by seed, so that whoever stops early has seen all sizes
    for seed in seeds:
        for width in widths:
            found = one(config, run, width, seed, [corpus, tokenizer])
            exams[width].append(found)
            rates = ", ".join(f"{KINDS[k]} {100 * v:.1f} %" for k, v in found.card["metrics"]["accuracy"].items())
            Console(highlight=False).print(f"width {width}, seed {seed}: {rates}")
    measured = [[a.card["metrics"] for a in exams[width]] for width in widths]
    trends = {
        kind: trend([[m["verdicts"][kind] for m in own] for own in measured], config.rounds, config.seed)
        for kind in KINDS
    }
    losses = [sum(m["loss"] for m in own) / len(own) for own in measured]
    world = load_world()
    metrics: dict[str, Any] = {
        "sizes": [
            {"width": w, "layers": m[0]["layers"], "parameters": m[0]["parameters"], "loss": loss}
            for w, m, loss in zip(widths, measured, losses, strict=True)
        ],
        "trends": {k: {**asdict(t), "visible": t.visible, "monotone": t.monotone} for k, t in trends.items()},
        "seeds": {k: [[m["accuracy"][k] for m in own] for own in measured] for k in KINDS},
        "majority": sum(majority_guess(world, lang) for lang in ("en", "zh")) / 2,
        "findings": [told(kind, trends[kind], losses) for kind in ("closed", "reading")],
    }
    parents = [corpus, tokenizer]
    with run.build(NAME, kind="lab", config=config, parents=parents, seed=config.seed) as build:
        build.threads = config.threads
        build.metrics = metrics
        (build.path / "page.html").write_text(page(run.path.name, metrics, config), encoding="utf-8")
    for finding in metrics["findings"]:
        Console(highlight=False).print(finding)
    return build.artifact


def check(config: SizeLadderConfig, corpus: Artifact) -> None:
    """Raises UserError before anything is trained."""
    if not LEAST_SIZES <= len(set(config.widths)) <= MOST_SIZES:
        raise UserError(f"The experiment takes {LEAST_SIZES} to {MOST_SIZES} widths, not {len(set(config.widths))}.")
    if config.seeds < LEAST_SEEDS:
        raise UserError(f"Give at least {LEAST_SEEDS} --seeds: with fewer nobody can tell a trend from luck.")
    for width in config.widths:
        shape(width, 2 * config.length)
    if min(config.rows, config.length, config.conversations, config.questions) < 1:
        raise UserError("rows, length, conversations and questions must be at least 1.")
    if config.tokens < config.rows * config.length:
        raise UserError(f"{config.tokens:,.0f} tokens are less than one step of {config.rows} × {config.length}.")
    if not corpus.card["config"].get("default"):
        raise UserError(
            "The questions are about the default corpus; make one with `jielong corpus`, without --no-default."
        )


def one(config: SizeLadderConfig, run: Run, width: int, seed: int, parents: list[Artifact]) -> Artifact:
    """Pretrain, fine-tune and examine one model, as far as that is not done; the artifact `exam` of its branch."""
    from jielong import finetune, pretrain

    branch = Branch(run, f"{width}-{seed}")
    settings = PretrainConfig(
        model=shape(width, 2 * config.length), steps=round(config.tokens / (config.rows * config.length)),
        rows=config.rows, length=config.length, precision=config.precision, threads=config.threads,
        lessons=config.lessons, sample_every=1.0, seed=seed,
    )  # fmt: skip
    base = kept(branch, "base", parents, settings) or pretrain.run(settings, branch, history=False)
    taught = lessons(load_world(), seed, config.conversations, first=config.lessons)
    taught += reading_lessons(load_world(), seed, config.conversations)
    text = "".join(json.dumps({"messages": m}, ensure_ascii=False) + "\n" for m in taught)
    file = branch.path / f"lessons-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    write_atomic(file, text)
    tune = FinetuneConfig(
        conversations=file, epochs=1.0, length=2 * config.length, precision=config.precision, threads=config.threads,
        seed=seed,
    )  # fmt: skip
    sft = kept(branch, "sft", [base], tune, computed=("steps", "conversations"))
    if sft is not None and Path(sft.card["config"]["conversations"]).name != file.name:  # the folder may have moved
        raise UserError(f"{sft.path} was made with other settings (conversations); delete it to make it anew.")
    sft = sft or finetune.run(tune, branch)
    asked = {"questions": config.questions}
    found = kept(branch, "exam", [sft], asked)
    if found is None:
        with branch.build("exam", kind="exam", config=asked, parents=[sft], seed=seed) as build:
            build.metrics = examine(sft, run.need("corpus"), config, seed)
        found = build.artifact
    return found


def examine(sft: Artifact, corpus: Artifact, config: SizeLadderConfig, seed: int) -> dict[str, Any]:
    """Right or wrong, question by question; and the held-out loss of the fine-tuned model."""
    world, engine = load_world(), Engine.load(sft.path, config.threads, rows=128)
    closed = exam(world, seed)
    # every so many, so that all attributes and countries are there
    picked = [
        q
        for lang in ("en", "zh")
        for own in [[q for q in closed if q.lang == lang]]
        for q in own[:: max(1, len(own) // config.questions)][: config.questions]
    ]
    reading = reading_exam(world, seed, config.questions)
    withheld = [question for question, _ in reading]
    shown = [replace(question, prompt=f"{text}\n{question.prompt}") for question, text in reading]
    verdicts = {}
    for kind, questions in (("closed", picked), ("reading", shown), ("withheld", withheld)):
        verdicts[kind] = marked(questions, ask_all(engine, questions))
    model = load_model(sft.path)
    readings = read(model, engine.tokenizer, read_documents(corpus.file("heldout.parquet")))
    return {
        "layers": model.config.layers,
        "parameters": model.parameter_count(),
        "loss": sum(r.nats for r in readings) / sum(r.tokens for r in readings),
        "accuracy": {kind: sum(v) / len(v) for kind, v in verdicts.items()},
        "verdicts": verdicts,
    }


def marked(questions: list[Question], replies: list[str]) -> list[bool]:
    """Each reply by the exam's rule: the value is named, and no other value of the attribute before it."""
    world = load_world()
    return [
        is_correct(q, reply, world.values(q.attribute, q.lang)) for q, reply in zip(questions, replies, strict=True)
    ]


def told(kind: str, found: Trend, losses: list[float]) -> str:
    """What the experiment says of one kind of question, and, where the claim does not hold, what speaks for which reason."""
    first, last = found.accuracy[0], found.accuracy[-1]
    rise, low, high = found.whole
    text = (
        f"{KINDS[kind].capitalize()}: {100 * first[0]:.1f} % with the smallest model, {100 * last[0]:.1f} % with the largest "
        f"({100 * rise:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f})"
    )
    if found.visible and found.monotone:
        return text + "; it rises, and nowhere does it fall by more than chance."
    problems = []
    if not found.visible:
        problems.append("the rise is not more than chance")
    falls = [n for n, (_, _, top) in enumerate(found.steps) if top < 0]
    problems += [f"from size {n + 1} to size {n + 2} it falls by {-100 * found.steps[n][0]:.1f} points" for n in falls]
    where = falls or range(len(losses) - 1)
    if all(losses[n + 1] >= losses[n] for n in where):
        why = "the larger models' loss on held-out text is no lower either: they have not read enough to be ahead"
    elif max(a[0] for a in found.accuracy) < 0.1:
        why = "the larger models predict held-out text better, but all are too small or have read too little to answer"
    elif min(a[0] for a in found.accuracy) > 0.9:
        why = "all of them answer nearly everything: the questions are too easy"
    else:
        why = "the larger models predict held-out text better, which these questions or this many seeds do not show"
    return f"{text}; {' and '.join(problems)}. Probably: {why}."
