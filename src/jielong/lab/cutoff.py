"""`jielong lab cutoff`: what happened after the text was collected is unknown to the model, and three ways to mend it.

Some countries are only mentioned in text "from after the cutoff". A model is pretrained on the rest; a control reads both from the beginning
(a later cutoff). Then the news is brought to the first one: by continued pretraining, on the news alone or with old text among it, and
fine-tuning again; by editing (the edit room's usual method, a closed form); by retrieval: the three sentences of a
news archive that are most like the question stand before it. Each pays with something: facts from before, bits per byte.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jielong.config import CutoffConfig, OptimConfig
from jielong.corpus.documents import read_documents
from jielong.corpus.world import Fact, World, load_world, majority_guess
from jielong.edit.bench import Bench, Site
from jielong.edit.facts import Fact as Edit
from jielong.edit.methods import editor, usual
from jielong.edit.probes import cloze
from jielong.edit.statistics import key_statistics
from jielong.errors import UserError
from jielong.evaluate.qa import ask_all
from jielong.evaluate.statistics import Interval
from jielong.generate.engine import Engine
from jielong.lab.branch import (
    Branch,
    check_positions,
    corpus_of,
    default_corpus,
    examined,
    finetuned,
    finetuning,
    folder,
    pretrained,
    pretraining,
    say,
    sized,
)  # fmt: skip
from jielong.lab.claims import Claim, Condition, above, shown
from jielong.lab.exams import bits, closed_book, difference, marked, mean
from jielong.lab.reading import reading_lessons
from jielong.lab.sheet import Sheet, Table, bars, finish
from jielong.lab.texts import held_out, mixed, pages, part, prose, ranked
from jielong.lab.trend import wider
from jielong.model.gpt import GPT, load_model
from jielong.prompt.shots import Grams
from jielong.run import Artifact, Run
from jielong.scale.advice import shape
from jielong.teacher.lessons import Conversation, lessons
from jielong.teacher.questions import SEEN_PHRASINGS, UNSEEN_PHRASINGS, Question, ask, statement
from jielong.tokens.tokenizer import Tokenizer

NAME = "cutoff"
CLAIM = Claim(
    {"en": "Knowledge ends at the cutoff", "zh": "知識到截止日為止"},
    {
        "en": "What happened after its text was collected the model does not know; more pretraining, editing, and retrieval in the prompt each bring it.",
        "zh": "文字收集之後發生的事，模型不知道；繼續預訓練、編輯模型、把檢索到的文字放進提示，各自都能補上。",
    },
)
ARMS = {
    "before": "cutoff before the news",
    "later": "control: a later cutoff",
    "news": "continued on the news alone",
    "replay": "continued on news and old text",
    "edited": "edited",
    "retrieval": "retrieval in the prompt",
}
ARMS_ZH = {
    "news": "只用新聞繼續預訓練",
    "replay": "新聞混舊文繼續預訓練",
    "edited": "編輯",
    "retrieval": "檢索放進提示",
}
KNOWN = 0.5  # of what it knows from before the cutoff: less than this share must be known from after it
SHOWN = 3  # sentences that retrieval brings
ATTRIBUTES = ("capital", "currency", "language", "region", "domain")
CONTINUED = OptimConfig(muon_lr=0.005, adam_lr=0.001, scalar_lr=0.001, cooldown=0.9)  # a quarter of pretraining's
QUICK = {
    "width": 32, "tokens": 1200.0, "rows": 4, "length": 96, "countries": 16, "later": 3, "variants": 2, "prose": 6000, "lessons": 4,
    "conversations": 4, "news": 800.0, "facts": 2, "questions": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Times:
    """The world cut in two by time, and what is asked about the later part."""

    whole: World
    before: World
    after: World
    asked: tuple[Fact, ...]

    @classmethod
    def of(cls, config: CutoffConfig, seed: int) -> Times:
        codes = ranked((e.code for e in load_world().entities), f"{NAME}/{seed}")[: config.countries]
        whole = part(load_world(), codes)
        later = ranked(codes, f"later/{seed}")[: config.later]
        before, after = part(whole, set(codes) - set(later)), part(whole, later)
        free = [f for f in after.facts if f.attribute in ATTRIBUTES]
        random.Random(f"asked/{seed}").shuffle(free)
        return cls(whole, before, after, tuple(free[: config.facts]))

    @property
    def names(self) -> list[str]:
        """Of what no old text may mention: countries and their capitals."""
        return sorted({f.subject[lang] for f in self.after.facts for lang in ("en", "zh")})


def run(config: CutoffConfig, run: Run) -> Artifact:
    """The experiment → `lab-cutoff`. Models that are there are not trained again."""
    parents = [default_corpus(run), run.need("tokenizer")]
    config = sized(config, QUICK)
    check(config)
    found: list[dict[str, Any]] = []
    for seed in range(config.seed, config.seed + config.seeds):
        found.append(one(config, run, seed))
        rates = ", ".join(
            f"{ARMS[arm]} {100 * float(np.mean(m['after'])):.1f} %" for arm, m in found[-1]["arms"].items()
        )
        say(f"seed {seed}, facts from after the cutoff: {rates}")
    scores = {arm: {k: [f["arms"][arm][k] for f in found] for k in ("after", "known", "bits")} for arm in ARMS}
    figures = {arm: {k: mean(v, config) for k, v in own.items()} for arm, own in scores.items()}
    costs = {
        arm: {k: difference(own[k], scores["before"][k], config) for k in own}
        for arm, own in scores.items()
        if arm != "before"
    }
    retrieved = float(np.mean([f["retrieved"] for f in found]))
    guess = sum(majority_guess(load_world(), lang) for lang in ("en", "zh")) / 2
    metrics = {
        "figures": figures,
        "costs": costs,
        "retrieved": retrieved,
        "guess": guess,
        "parameters": found[0]["parameters"],
        "scores": scores,
    }
    return finish(NAME, config, run, CLAIM, conditions(scores, config), sheet(metrics, config), metrics, parents)


def check(config: CutoffConfig) -> None:
    """Raises UserError before anything is trained."""
    shape(config.width, 2 * config.length)
    check_positions(config, tokens=config.tokens, news=config.news)
    if min(config.later, config.facts, config.questions, config.variants, config.conversations) < 1:
        raise UserError("later, facts, questions, variants and conversations must be at least 1.")
    if 2 * config.later > config.countries:
        raise UserError(
            f"{config.later} later countries of {config.countries} leave too few from before; give fewer --later."
        )


def one(config: CutoffConfig, run: Run, seed: int) -> dict[str, Any]:
    """All arms of one seed, as far as they are not done."""
    times = Times.of(config, seed)
    where = folder(NAME, config.quick)
    news = list(pages(times.after, seed, config.variants))
    old = [*pages(times.before, seed, config.variants), *prose(run.need("corpus"), config.prose, without=times.names)]
    mix = lessons(times.before, seed, config.lessons)
    # reading is learnt slowly, so pretraining has some of it, too: other passages than those of fine-tuning
    mix += reading_lessons(times.before, seed, config.conversations + config.lessons // 3)[config.conversations :]
    made: dict[str, Artifact] = {}
    bases: dict[str, Artifact] = {}
    texts = {
        "before": old,
        "later": [*old, *news],
        "news": news,
        "replay": [*news, *old[:: max(1, len(old) // len(news))][: len(news)]],
    }
    for arm, documents in texts.items():
        branch = Branch(run, f"{where}/{arm}-{seed}", ("tokenizer",))
        corpus_of(branch, documents, held_out(run.need("corpus"), without=times.names))
        first = arm in ("before", "later")
        positions = config.tokens if first else config.news
        settings = replace(pretraining(config, seed, positions), optim=OptimConfig() if first else CONTINUED)
        bases[arm] = pretrained(branch, settings, mix if first else (), None if first else bases["before"])
        made[arm] = finetuned(branch, taught(times, seed, config), finetuning(config, seed))
    branch = Branch(run, f"{where}/before-{seed}", ("tokenizer",))
    models = {arm: a.hash for arm, a in made.items()}
    asked = {"facts": config.facts, "questions": config.questions, "models": models}
    return examined(branch, "exam", [made["before"]], asked, lambda: examine(made, branch, times, config, seed), seed)


def taught(times: Times, seed: int, config: CutoffConfig) -> list[Conversation]:
    """Conversations about countries from before the cutoff, after those that pretraining has read."""
    count = config.conversations
    return mixed(
        [*lessons(times.before, seed, count, first=config.lessons), *reading_lessons(times.before, seed, count)], seed
    )


# the exam


def later_questions(times: Times, seed: int) -> list[Question]:
    """Each asked fact in both languages and two wordings that neither lessons nor editors use."""
    asked = []
    for fact in times.asked:
        for lang in ("en", "zh"):
            rng = random.Random(f"later/{seed}/{fact.code}/{fact.attribute}/{lang}")
            asked += [
                ask(fact, lang, wording, rng) for wording in rng.sample(UNSEEN_PHRASINGS[lang][fact.attribute], 2)
            ]
    return asked


def examine(made: dict[str, Artifact], branch: Branch, times: Times, config: CutoffConfig, seed: int) -> dict[str, Any]:
    """Right or wrong about facts from after and from before the cutoff, and bits per byte of held-out prose, for every arm."""
    after = later_questions(times, seed)
    known = closed_book(times.before, seed, config.questions, ATTRIBUTES)
    documents = read_documents(branch.need("corpus").file("heldout.parquet"))
    tokenizer = Tokenizer.load(made["before"].file("tokenizer.json"))
    archive = Archive(times)

    def answers(model: GPT, shown: Archive | None = None) -> dict[str, Any]:
        engine = Engine(model, tokenizer, rows=128)
        found: dict[str, Any] = {}
        for name, questions in (("after", after), ("known", known)):
            put = [shown.before(q) for q in questions] if shown else questions
            found[name] = marked(questions, ask_all(engine, put))
        return found | {"bits": bits(model, tokenizer, documents)}

    arms = {arm: answers(load_model(a.path)) for arm, a in made.items()}
    start = load_model(made["before"].path)
    arms["edited"] = answers(edited(made["before"], branch, times.asked))
    arms["retrieval"] = answers(start, archive)
    retrieved = [any(q.golds[0] in line and q.subject in line for line in archive.find(q.prompt)) for q in after]
    return {"arms": arms, "retrieved": float(np.mean(retrieved)), "parameters": start.parameter_count()}


class Archive:
    """The news as single sentences, found by what they share with a question (TF-IDF of character n-grams)."""

    def __init__(self, times: Times):
        facts = [f for f in times.after.facts if f.attribute in ATTRIBUTES]
        self.lines = [statement(f, lang) for f in facts for lang in ("en", "zh")]
        self._vectors = Grams(self.lines)
        self._known = self._vectors(self.lines)  # (lines, D)

    def find(self, text: str, count: int = SHOWN) -> list[str]:
        """The sentences that are most like the text, the most similar last."""
        near = self._known @ self._vectors([text])[0]
        best = np.argsort(-near, kind="stable")[:count]
        return [self.lines[n] for n in reversed(best)]

    def before(self, question: Question) -> Question:
        """The question behind what is found for it."""
        joint = " " if question.lang == "en" else ""
        return replace(question, prompt=f"{joint.join(self.find(question.prompt))}\n{question.prompt}")


def edited(sft: Artifact, branch: Branch, facts: Sequence[Fact]) -> GPT:
    """The model with every fact written into its last layer by the usual editor, in both languages; it reads wordings of the lessons,
    none of the exam's."""
    model = load_model(sft.path).requires_grad_(False).eval()
    tokenizer = Tokenizer.load(sft.file("tokenizer.json"))

    def statistics(layers: Sequence[int], of: str = "down") -> Any:
        return key_statistics(branch, sft, model, tokenizer, list(dict.fromkeys(layers)), True, of=of)

    site = Site(model.config.layers - 1, "answer")
    bench = Bench(model, tokenizer, True, site, statistics, inputs_of=lambda layers: statistics(layers, "mlp"))
    edits = [replace(as_edit(f, "en"), also=(as_edit(f, "zh"),)) for f in facts]
    usually = editor(usual(bench))
    made = usually.propose(bench, edits)
    return bench.current(usually.delta(bench, {e.id: s for e, s in zip(edits, made, strict=True)}))


def as_edit(fact: Fact, lang: str) -> Edit:
    subject = fact.subject[lang]
    wordings = tuple(
        p.format(s=subject) for p in SEEN_PHRASINGS[lang][fact.attribute][:6]
    )  # the editor reads half of them
    return Edit(cloze(fact, lang), subject, fact.value[lang], paraphrases=wordings)


# what is told


def conditions(scores: dict[str, dict[str, Any]], config: CutoffConfig) -> list[Condition]:
    """Unknown after the cutoff, known to the control, and each of the three ways brings it."""
    before = scores["before"]
    known = 100 * float(np.mean([np.mean(own) for own in before["known"]]))
    wanted = [
        above(
            "a later cutoff knows more of the later facts: points",
            "截止日較晚的模型多知道多少後來的事實：百分點",
            difference(scores["later"]["after"], before["after"], config),
        ),
        above(
            f"facts from after the cutoff: points below half of the share that it knows from before ({known:.1f} %)",
            f"截止後的事實：比「截止前答對率的一半」低幾個百分點（截止前 {known:.1f} %）",
            gap(before, config),
        ),
    ]
    wanted += [
        above(
            f"{ARMS[arm]}: points more of the later facts",
            f"{ARMS_ZH[arm]}：後來的事實多答對幾個百分點",
            difference(scores[arm]["after"], before["after"], config),
        )
        for arm in ("replay", "edited", "retrieval")
    ]
    return wanted


def gap(before: dict[str, Any], config: CutoffConfig) -> Interval:
    """KNOWN × (share right from before) − (share right from after); the questions differ, so each has its own draws within a seed."""
    rng, rounds = np.random.default_rng(config.seed), config.rounds
    pairs = [
        (np.asarray(k, float), np.asarray(a, float)) for k, a in zip(before["known"], before["after"], strict=True)
    ]
    draws = []
    for _ in range(rounds):
        picked = [pairs[n] for n in rng.integers(0, len(pairs), len(pairs))]
        draws.append(np.mean([KNOWN * rng.choice(k, len(k)).mean() - rng.choice(a, len(a)).mean() for k, a in picked]))
    return wider(np.array(draws), np.array([KNOWN * k.mean() - a.mean() for k, a in pairs]))


def sheet(metrics: dict[str, Any], config: CutoffConfig) -> Sheet:
    """For people."""
    figures, costs = metrics["figures"], metrics["costs"]
    rows = []
    for arm, own in figures.items():
        cost = costs.get(arm)
        rows.append([
            ARMS[arm], shown(own["after"]), shown(own["known"]), shown(cost["known"], signed=True) if cost else "",
            shown(own["bits"], points=False), shown(cost["bits"], points=False, signed=True) if cost else "",
        ])  # fmt: skip
    ways = ("news", "replay", "edited", "retrieval")
    paid = "; ".join(
        f"{ARMS[a]}: other facts {shown(costs[a]['known'], signed=True)} points, {shown(costs[a]['bits'], points=False, signed=True)} bits per byte"
        for a in ways
    )
    return Sheet(
        about=f"Models of {metrics['parameters'] / 1e6:.2f} million parameters read {config.tokens / 1e6:.2f} million positions: pages about {config.countries - config.later} countries, prose that names none of "
        f"{config.later} others, and {config.lessons + config.lessons // 3} conversations, a quarter of them about a passage; then {2 * config.conversations} conversations of fine-tuning, half about a passage. {len(ATTRIBUTES)} kinds of facts; {config.facts} facts of the later "
        f"countries per seed, asked in both languages and two wordings that neither lessons nor editors use. Continued pretraining reads {config.news / 1e6:.2f} million positions, and fine-tuning follows again. "
        f"Retrieval shows {SHOWN} sentences of an archive of the news, and brought the right one for {100 * metrics['retrieved']:.0f} % of the questions; it is asked about the old facts with its sentences, too.",
        findings=[f"What each way breaks, against the model before: {paid}."],
        tables=[Table(
            "Figures", ["", "later facts, %", "facts from before, %", "change", "bits per byte of held-out prose", "change"], rows,
            f"Who always names an attribute's commonest value is right in about {100 * metrics['guess']:.0f} %.",
        )],
        charts=[bars("Facts from after and from before the cutoff", "right, %", list(ARMS.values()), {"after": [f["after"] for f in figures.values()], "before": [f["known"] for f in figures.values()]})],
    )  # fmt: skip
