"""`jielong lab two-languages`: a model that has read two languages is taught a task in English; does it do it in Chinese?

Pires et al. (2019) saw this of multilingual BERT: fine-tuned in one language it answers in others. Here models read the same number of
positions of English and Chinese, or of English alone, or nothing; all are fine-tuned on the same English conversations, in which no
Chinese character stands, and are asked in both languages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jielong.config import OptimConfig, TwoLanguagesConfig
from jielong.corpus.world import ATTRIBUTES, World, load_world
from jielong.errors import UserError
from jielong.evaluate.qa import ask_all
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
from jielong.lab.exams import closed_book, difference, marked, mean, with_passage
from jielong.lab.reading import reading_lessons
from jielong.lab.sheet import Sheet, Table, bars, finish
from jielong.lab.texts import in_english, mixed, pages, part, prose, ranked
from jielong.run import Artifact, Run
from jielong.scale.advice import shape
from jielong.teacher.lessons import Conversation, lessons

NAME = "two-languages"
CLAIM = Claim(
    {"en": "Two languages, taught in one", "zh": "讀兩種語言，只用一種教"},
    {
        "en": "A model that has read two languages and is taught a task in English only does it in Chinese, too.",
        "zh": "讀過兩種語言的模型，只用英文教會它一項任務，它用中文也會做。",
    },
)
ARMS = {"both": "English and Chinese", "english": "English only", "none": "no pretraining"}
ARMS_ZH = {"english": "只讀英文", "none": "沒有預訓練"}
KINDS = {"closed": "closed-book questions", "reading": "questions about a passage"}
KINDS_ZH = {"closed": "閉卷問題", "reading": "看文章回答的問題"}
ONE_LANGUAGE = [a for a in ATTRIBUTES if a != "name"]  # not what a country is called in the other one
EPOCHS = 3.0  # of fine-tuning, at the learning rates of pretraining
ENOUGH = 0.5  # of what the model does in English it must do in Chinese
QUICK = {
    "width": 32, "tokens": 1200.0, "rows": 4, "length": 96, "countries": 16, "variants": 2, "prose": 4000,
    "conversations": 6, "questions": 3,
}  # fmt: skip


def run(config: TwoLanguagesConfig, run: Run) -> Artifact:
    """The experiment → `lab-two-languages`. Models that are there are not trained again."""
    parents = [default_corpus(run), run.need("tokenizer")]
    config = sized(config, QUICK)
    shape(config.width, 2 * config.length)
    check_positions(config, tokens=config.tokens)
    if min(config.countries, config.variants, config.conversations, config.questions) < 1:
        raise UserError("countries, variants, conversations and questions must be at least 1.")
    seeds = range(config.seed, config.seed + config.seeds)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            found[arm].append(one(config, run, arm, seed))
            rates = ", ".join(f"{k} {100 * sum(v) / len(v):.1f} %" for k, v in found[arm][-1]["verdicts"].items())
            say(f"{ARMS[arm]}, seed {seed}: {rates}")
    scores = {arm: {key: [m["verdicts"][key] for m in own] for key in own[0]["verdicts"]} for arm, own in found.items()}
    figures = {arm: {key: mean(s, config) for key, s in own.items()} for arm, own in scores.items()}
    parameters = found["both"][0]["parameters"]
    metrics = {
        "accuracy": figures,
        "seeds": {a: [m["verdicts"] for m in own] for a, own in found.items()},
        "parameters": parameters,
    }
    return finish(
        NAME, config, run, CLAIM, conditions(scores, config), sheet(figures, config, parameters), metrics, parents
    )


def one(config: TwoLanguagesConfig, run: Run, arm: str, seed: int) -> dict[str, Any]:
    """Pretrain, fine-tune and examine one model, as far as that is not done."""
    world = part(load_world(), ranked((e.code for e in load_world().entities), f"{NAME}/{seed}")[: config.countries])
    langs = ("en",) if arm == "english" else ("en", "zh")
    # the control without pretraining has the other one's shape, so it stands in its branch
    branch = Branch(run, f"{folder(NAME, config.quick)}/{'both' if arm == 'none' else arm}-{seed}", ("tokenizer",))
    told = world if "zh" in langs else part(world, [e.code for e in world.entities], ONE_LANGUAGE)
    documents = [*pages(told, seed, config.variants, langs), *prose(run.need("corpus"), config.prose, langs)]
    corpus_of(branch, documents)
    pretrained(branch, pretraining(config, seed, config.tokens))
    # gentler or shorter, and none of them does the task even in English (docs/log.md)
    tune = replace(finetuning(config, seed), optim=OptimConfig(), epochs=EPOCHS, from_scratch=arm == "none")
    model = finetuned(branch, taught(world, seed, config.conversations), tune)
    asked = {"questions": config.questions}
    return examined(branch, f"exam-{model.name}", [model], asked, lambda: examine(model, world, config, seed), seed)


def taught(world: World, seed: int, count: int) -> list[Conversation]:
    """`count` English conversations without a passage and as many with one; none holds a Chinese character."""
    made: list[Conversation] = []
    for kind in (lessons, reading_lessons):
        more, size = [], 2 * count
        while len(more) < count:  # about half of them are in English throughout
            size *= 2
            more = list(in_english(kind(world, seed, size)))
        made += more[:count]
    return mixed(made, seed)


def examine(model: Artifact, world: World, config: TwoLanguagesConfig, seed: int) -> dict[str, Any]:
    """Right or wrong, question by question, for each kind and language."""
    engine, verdicts = Engine.load(model.path, config.threads, rows=128), {}
    kinds = {
        "closed": closed_book(world, seed, config.questions, ONE_LANGUAGE),
        "reading": with_passage(world, seed, config.questions),
    }
    for kind, questions in kinds.items():
        right = marked(questions, ask_all(engine, questions))
        for lang in ("en", "zh"):
            verdicts[f"{kind} {lang}"] = [r for q, r in zip(questions, right, strict=True) if q.lang == lang]
    return {"verdicts": verdicts, "parameters": model.card["metrics"]["parameters"]}


def conditions(scores: dict[str, dict[str, Any]], config: TwoLanguagesConfig) -> list[Condition]:
    """For each kind of question: in Chinese better than either control, and at least half as good as in English."""
    wanted = []
    for kind in KINDS:
        zh = scores["both"][f"{kind} zh"]
        for control in ("english", "none"):
            wanted.append(
                above(
                    f"{KINDS[kind]} in Chinese: points above the control ({ARMS[control]})",
                    f"中文{KINDS_ZH[kind]}：比對照組（{ARMS_ZH[control]}）高幾個百分點",
                    difference(zh, scores[control][f"{kind} zh"], config),
                )
            )
        en = [[ENOUGH * right for right in own] for own in scores["both"][f"{kind} en"]]
        paired = [(a[: len(b)], b[: len(a)]) for a, b in zip(zh, en, strict=True)]
        wanted.append(
            above(
                f"{KINDS[kind]} in Chinese: points above half of the same in English",
                f"中文{KINDS_ZH[kind]}：比英文成績的一半高幾個百分點",
                difference([a for a, _ in paired], [b for _, b in paired], config),
            )
        )
    return wanted


def sheet(figures: dict[str, Any], config: TwoLanguagesConfig, parameters: float) -> Sheet:
    """For people."""
    head = [
        "right, %",
        *(f"{KINDS[k.split()[0]]}, {'English' if k.endswith('en') else 'Chinese'}" for k in figures["both"]),
    ]
    rows = [[ARMS[arm], *(shown(v) for v in own.values())] for arm, own in figures.items()]
    both, none = figures["both"], figures["none"]
    return Sheet(
        about=f"Models of {parameters / 1e6:.2f} million parameters read {config.tokens / 1e6:.2f} million positions: pages about {config.countries} countries and prose, "
        "in both languages or in English alone (without what countries are called in Chinese). All are fine-tuned alike, "
        f"{EPOCHS:g} times over on the same {2 * config.conversations} English conversations, half of them about a passage, in which no Chinese character "
        "stands. Questions are about countries that no conversation named, in wordings that none has used; in a passage "
        "every value is another country's. All models share the run's vocabulary.",
        findings=[
            f"Asked in Chinese: {shown(both['reading zh'])} % about a passage and {shown(both['closed zh'])} % without one, after fine-tuning in English; "
            f"without pretraining {shown(none['reading zh'])} and {shown(none['closed zh'])} %.",
            f"Asked in English, the language of the task: {shown(both['reading en'])} and {shown(both['closed en'])} %; where that is little, nothing can be "
            "told about Chinese.",
        ],
        tables=[Table("Figures", head, rows)],
        charts=[bars("Taught in English, asked in both languages", "right, %", head[1:], {ARMS[a]: list(own.values()) for a, own in figures.items()})],
    )  # fmt: skip
