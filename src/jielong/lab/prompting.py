"""`jielong lab prompting`: what stands before a question changes the answer, though no weight changes.

The prompt room's matrix: prompts × demonstrations on the served model of the run, home-grown or imported, with questions about the world
that each seed draws anew. The control is a sentence that has nothing to do with the question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from jielong.config import PromptingConfig
from jielong.corpus.world import Fact, load_world
from jielong.errors import UserError
from jielong.evaluate.statistics import Interval
from jielong.generate.engine import Engine
from jielong.lab.branch import Branch, examined, folder, say, sized
from jielong.lab.claims import Claim, Condition, above, shown
from jielong.lab.exams import difference, mean
from jielong.lab.sheet import Sheet, Table, bars, finish
from jielong.lab.texts import has_han
from jielong.prompt.form import Prompt
from jielong.prompt.journal import Journal, bar
from jielong.prompt.matrix import cells_of, columns
from jielong.prompt.sheet import SETTINGS, Check, Model, Test
from jielong.prompt.sheet import Sheet as Matrix
from jielong.prompt.task import Item, exact
from jielong.run import Artifact, Run
from jielong.teacher.questions import UNSEEN_PHRASINGS

NAME = "prompting"
CLAIM = Claim(
    {"en": "The prompt changes the answer", "zh": "提示改變答案"},
    {
        "en": "What stands before a question (an instruction, examples) changes the answer, and can make it better, though no weight changes.",
        "zh": "問題前面放什麼（指示、例子）會改變答案，也能讓答案更好，而模型一個參數也沒有動。",
    },
)
PLAIN, CONTROL, EXPERT, CHINESE = "plain", "unrelated sentence", "expert", "in Chinese"
PROMPTS = {
    PLAIN: "",
    CONTROL: "The sky is blue and the grass is green.",
    "name only": "Answer with the name alone and nothing else.",
    EXPERT: "You are a teacher of geography who knows every country. Answer the question correctly.",
    CHINESE: "請一律用繁體中文回答。",
}
ATTRIBUTES = ("capital", "currency", "language", "region")
FAMOUS = "AR AU AT BE BR CA CL CN CO CU CZ DE DK EG ES FI FR GB GR HU ID IE IN IT JP KE KR MX NG NL NO NZ PE PH PL PT RU SE TH TR TW UA US VN ZA"
QUICK = {"questions": 6, "shots": 1, "max_tokens": 6}


def run(config: PromptingConfig, run: Run) -> Artifact:
    """The experiment → `lab-prompting`. Seeds that are there are not asked again."""
    artifact = run.need(config.model or run.serving())
    config = sized(config, QUICK)
    if min(config.questions // 2, config.shots, config.max_tokens) < 1:
        raise UserError("questions must be at least 2, shots and max-tokens at least 1.")
    drawn(config.questions, config.shots, config.seed)  # are there so many?
    engine = Engine.load(artifact.path, config.threads, precision="auto", rows=32, prefix_bytes=512 << 20)
    found = []
    for seed in range(config.seed, config.seed + config.seeds):
        found.append(one(config, run, artifact, engine, seed))
        rates = ", ".join(f"{key} {100 * float(np.mean(v)):.0f} %" for key, v in found[-1]["right"].items())
        say(f"seed {seed}, right: {rates}")
    tables = {
        name: {key: [m[name][key] for m in found] for key in found[0][name]}
        for name in ("right", "form", "chinese", "changed")
    }
    figures = {name: {key: mean(v, config) for key, v in own.items()} for name, own in tables.items()}
    best = picked(tables["right"], config)
    metrics = {"model": artifact.name, "figures": figures, "best": best, "examples": found[0]["examples"]}
    return finish(
        NAME, config, run, CLAIM, conditions(tables, best, config), sheet(metrics, config), metrics, [artifact]
    )


def one(config: PromptingConfig, run: Run, artifact: Artifact, engine: Engine, seed: int) -> dict[str, Any]:
    """Every cell of one seed: right, in the demonstrations' form, in Chinese, another answer than the plain prompt's."""
    branch = Branch(run, f"{folder(NAME, config.quick)}/{artifact.name}-{seed}", ())
    asked = {"questions": config.questions, "shots": config.shots, "max_tokens": config.max_tokens, "halves": "apart"}
    return examined(branch, "exam", [artifact], asked, lambda: ask(config, branch, engine, seed), seed)


def ask(config: PromptingConfig, branch: Branch, engine: Engine, seed: int) -> dict[str, Any]:
    shown, asked = drawn(config.questions, config.shots, seed)
    tests = [Test({"input": text}, (Check("icontains", (gold,)),)) for text, gold in asked]
    matrix = Matrix(
        prompts=[Prompt(name, system) for name, system in PROMPTS.items()],
        models=[Model("served", branch.path, "", {**SETTINGS, "max_tokens": config.max_tokens})],
        tests=tests,
        shots=[0, config.shots],
        pool={Item(text, (gold,)): {"input": text} for text, gold in shown},
    )
    branch.create()
    journal = Journal(branch.path / "answers.jsonl", (matrix.prompts, tests, list(matrix.pool), engine.hash))
    with bar(f"seed {seed}", len(tests) * len(list(columns(matrix)))) as advance:
        cells = cells_of(matrix, matrix.models[0], engine, journal, advance)
    journal.close()
    golds = [gold for _, gold in asked]
    answers = {key(c.prompt, c.shots): c.answers for c in cells}
    plain = answers[key(PLAIN, 0)]
    return {
        "right": {key(c.prompt, c.shots): c.scores[0].tolist() for c in cells},
        "form": {name: [exact(a, (g,)) for a, g in zip(own, golds, strict=True)] for name, own in answers.items()},
        "chinese": {name: [float(has_han(a)) for a in own] for name, own in answers.items()},
        "changed": {name: [float(a != b) for a, b in zip(own, plain, strict=True)] for name, own in answers.items()},
        "examples": {name: own[:3] for name, own in answers.items()} | {"question": [t for t, _ in asked[:3]]},
    }


def key(prompt: str, shots: int) -> str:
    return f"{prompt}, {shots} shots" if shots else prompt


Asked = list[tuple[str, str]]
"""(English question, right answer)"""


def drawn(questions: int, shots: int, seed: int) -> tuple[Asked, Asked]:
    """(demonstrations, questions) about well-known countries, each fact once. The first half of the questions, by which a prompt
    is picked, is about other facts than the second, which judges it, whatever the seed. Raises UserError when there are too few."""
    famous = set(FAMOUS.split())
    facts = [f for f in load_world().facts if f.code in famous and f.attribute in ATTRIBUTES]
    random.Random("halves").shuffle(facts)
    halves, wanted = (facts[::2], facts[1::2]), (shots + questions // 2, questions - questions // 2)
    if any(count > len(half) for count, half in zip(wanted, halves, strict=True)):
        raise UserError(f"There are {len(facts)} such questions, demonstrations included; ask for fewer.")
    rng = random.Random(f"prompting/{seed}")
    picked = [f for half, count in zip(halves, wanted, strict=True) for f in rng.sample(half, count)]
    found = [(wording(f, rng), f.value["en"]) for f in picked]
    return found[:shots], found[shots:]


def wording(fact: Fact, rng: random.Random) -> str:
    return rng.choice(UNSEEN_PHRASINGS["en"][fact.attribute]).format(s=fact.subject["en"])


def picked(right: dict[str, list[list[float]]], config: PromptingConfig) -> dict[str, Any]:
    """Which cell is best on the first half of all questions, and what it gains over the plain prompt on the other half."""
    halves = {k: ([v[: len(v) // 2] for v in own], [v[len(v) // 2 :] for v in own]) for k, own in right.items()}
    name = max(halves, key=lambda k: float(np.mean([np.mean(v) for v in halves[k][0]])))
    gain: Interval = difference(halves[name][1], halves[PLAIN][1], config)
    return {"name": name, "gain": gain}


def conditions(tables: dict[str, Any], best: dict[str, Any], config: PromptingConfig) -> list[Condition]:
    """An instruction is followed, demonstrations shape the answer, the real prompts change more than a sentence without sense, and the best
    prompt of one half of the questions is better on the other half."""
    shots = key(PLAIN, config.shots)
    real = [k for k in tables["changed"] if not k.startswith((PLAIN, CONTROL)) and "shots" not in k]
    changed = [
        [float(np.mean([tables["changed"][k][s][q] for k in real])) for q in range(len(own))]
        for s, own in enumerate(tables["changed"][PLAIN])
    ]
    return [
        above("asked to answer in Chinese, it does: points more than without", "要求用中文回答就用中文：高幾個百分點", difference(tables["chinese"][CHINESE], tables["chinese"][PLAIN], config)),
        above(f"after {config.shots} demonstrations it says the name alone: points more", f"看了 {config.shots} 個例子後只說名稱：高幾個百分點", difference(tables["form"][shots], tables["form"][PLAIN], config)),
        above("instructions change more answers than an unrelated sentence does: points", "指示比無關的句子改變更多答案：百分點", difference(changed, tables["changed"][CONTROL], config)),
        above(f"the best prompt of one half of the questions ({best['name']}) is right more often on the other half: points", f"一半問題上最好的提示（{best['name']}）在另一半答對更多：百分點", tuple(best["gain"])),
    ]  # fmt: skip


def sheet(metrics: dict[str, Any], config: PromptingConfig) -> Sheet:
    """For people."""
    figures = metrics["figures"]
    names: Sequence[str] = list(figures["right"])
    rows = [[n, *(shown(figures[k][n]) for k in ("right", "form", "chinese", "changed"))] for n in names]
    examples = metrics["examples"]
    return Sheet(
        about=f"{config.questions} English questions about well-known countries per seed, asked of {metrics['model']} greedily under {len(PROMPTS)} system messages, without and with {config.shots} demonstrations "
        "(a question, the name alone). The control is a sentence that has nothing to do with the question. Right: the name stands in the answer.",
        findings=[
            f"Of the plain prompt's answers {told(figures, CONTROL)} % become others behind an unrelated sentence, "
            f"{told(figures, EXPERT)} % behind a role, {told(figures, key(PLAIN, config.shots))} % behind {config.shots} demonstrations, after which "
            f"{shown(figures['right'][key(PLAIN, config.shots)])} % are right, and {shown(figures['right'][PLAIN])} % without anything.",
            f"Best on one half of the questions: {metrics['best']['name']}; on the other half "
            f"{shown(metrics['best']['gain'], signed=True)} points against the plain prompt.",
        ],
        tables=[
            Table("Figures", ["prompt", "right, %", "the name alone, %", "in Chinese, %", "another answer than plain, %"], rows),
            Table("Some answers", ["prompt", *examples["question"]], [[n, *examples[n]] for n in names]),
        ],
        charts=[bars("Prompts before the same questions", "%", names, {"right": [figures["right"][n] for n in names], "the name alone": [figures["form"][n] for n in names]})],
    )  # fmt: skip


def told(figures: dict[str, Any], name: str) -> str:
    return f"{100 * figures['changed'][name][0]:.0f}"
