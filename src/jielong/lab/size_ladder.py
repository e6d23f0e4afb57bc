"""`jielong lab size-ladder`: the talk's figure, more parameters and better answers.

Models of several sizes read the same text, each with several seeds, and are fine-tuned alike. Closed-book questions ask what only
the raw text has told; reading questions have their answer in a passage. Controls: who always names the commonest value, and the
reading questions with the passage withheld.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from jielong.config import SizeLadderConfig
from jielong.corpus.documents import read_documents
from jielong.corpus.world import load_world, majority_guess
from jielong.errors import UserError
from jielong.evaluate.bpb import read
from jielong.evaluate.qa import ask_all
from jielong.generate.engine import Engine
from jielong.lab import claims
from jielong.lab.branch import (
    Branch,
    check_positions,
    default_corpus,
    examined,
    finetuned,
    finetuning,
    folder,
    pretraining,
    say,
    sized,
)  # fmt: skip
from jielong.lab.claims import Claim, Condition
from jielong.lab.exams import closed_book, marked
from jielong.lab.page import page
from jielong.lab.reading import reading_exam, reading_lessons
from jielong.lab.trend import Trend, trend
from jielong.model.gpt import load_model
from jielong.run import Artifact, Run
from jielong.scale.advice import shape
from jielong.scale.ladder import kept
from jielong.teacher.lessons import lessons

NAME = "size-ladder"
CLAIM = Claim(
    {"en": "More parameters, better answers", "zh": "參數越多，答得越好"},
    {
        "en": "Larger models that read the same text answer better, from memory and from a passage.",
        "zh": "讀同樣的文字，比較大的模型答得比較好，不論是憑記憶還是看文章。",
    },
)
KINDS_ZH = {"closed": "閉卷問題", "reading": "看文章回答的問題"}
KINDS = {"closed": "closed-book questions", "reading": "questions about a passage", "withheld": "the same without it"}
LEAST_SIZES, MOST_SIZES = 4, 6
QUICK = {
    "widths": (32, 64, 96, 128), "tokens": 1500.0, "lessons": 10, "conversations": 8, "questions": 4, "rows": 4, "length": 96,
}  # fmt: skip


def run(config: SizeLadderConfig, run: Run) -> Artifact:
    """The experiment: sizes × seeds → `lab-size-ladder`. Models that are there are not trained again."""
    corpus, tokenizer = default_corpus(run), run.need("tokenizer")
    config = sized(config, QUICK)
    check(config)
    widths = sorted(set(config.widths))
    seeds = range(config.seed, config.seed + config.seeds)
    exams: dict[int, list[Artifact]] = {width: [] for width in widths}
    # seed by seed, so that whoever stops early has seen all sizes
    for seed in seeds:
        for width in widths:
            found = one(config, run, width, seed, [corpus, tokenizer])
            exams[width].append(found)
            rates = ", ".join(f"{KINDS[k]} {100 * v:.1f} %" for k, v in found.card["metrics"]["accuracy"].items())
            say(f"width {width}, seed {seed}: {rates}")
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
        "quick": config.quick,
        **claims.told(CLAIM, conditions(trends)),
    }
    parents, name = [corpus, tokenizer], f"lab-{folder(NAME, config.quick)}"
    with run.build(name, kind="lab", config=config, parents=parents, seed=config.seed) as build:
        build.threads = config.threads
        build.metrics = metrics
        (build.path / "page.html").write_text(page(run.path.name, metrics, config), encoding="utf-8")
    for finding in metrics["findings"]:
        say(finding)
    return build.artifact


def conditions(trends: dict[str, Trend]) -> list[Condition]:
    """For each kind of question: it rises from the smallest to the largest, and from no size to the next does it fall by more than
    chance."""
    return [
        Condition(
            f"{KINDS[kind]}: points from the smallest to the largest model, with no fall beyond chance between",
            f"{zh}：從最小到最大的模型增加幾個百分點，中間沒有超過偶然的退步",
            trends[kind].visible and trends[kind].monotone,
            claims.shown(trends[kind].whole, signed=True),
        )
        for kind, zh in KINDS_ZH.items()
    ]


def check(config: SizeLadderConfig) -> None:
    """Raises UserError before anything is trained."""
    if not LEAST_SIZES <= len(set(config.widths)) <= MOST_SIZES:
        raise UserError(f"The experiment takes {LEAST_SIZES} to {MOST_SIZES} widths, not {len(set(config.widths))}.")
    for width in config.widths:
        shape(width, 2 * config.length)
    if min(config.conversations, config.questions) < 1:
        raise UserError("conversations and questions must be at least 1.")
    check_positions(config, tokens=config.tokens)


def one(config: SizeLadderConfig, run: Run, width: int, seed: int, parents: list[Artifact]) -> Artifact:
    """Pretrain, fine-tune and examine one model, as far as that is not done; the artifact `exam` of its branch."""
    from jielong import pretrain

    branch = Branch(run, f"{folder(NAME, config.quick)}/{width}-{seed}")
    settings = replace(pretraining(config, seed, config.tokens, width), lessons=config.lessons)
    # the pretraining stage itself: this is the corpus as everybody reads it
    if kept(branch, "base", parents, settings) is None:
        pretrain.run(settings, branch, history=False)
    taught = lessons(load_world(), seed, config.conversations, first=config.lessons)
    taught += reading_lessons(load_world(), seed, config.conversations)
    sft = finetuned(branch, taught, finetuning(config, seed))
    asked = {"questions": config.questions}
    examined(branch, "exam", [sft], asked, lambda: examine(sft, run.need("corpus"), config, seed), seed)
    return branch.need("exam")


def examine(sft: Artifact, corpus: Artifact, config: SizeLadderConfig, seed: int) -> dict[str, Any]:
    """Right or wrong, question by question; and the held-out loss of the fine-tuned model."""
    engine, world = Engine.load(sft.path, config.threads, rows=128), load_world()
    reading = reading_exam(world, seed, config.questions)
    withheld = [question for question, _ in reading]
    shown = [replace(question, prompt=f"{text}\n{question.prompt}") for question, text in reading]
    verdicts = {}
    for kind, questions in (
        ("closed", closed_book(world, seed, config.questions)),
        ("reading", shown),
        ("withheld", withheld),
    ):
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
