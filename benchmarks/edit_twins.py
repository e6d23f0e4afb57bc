"""The twins of `edit.py --part twins`: what would the model be if its texts had always said the new facts?

Ten facts of the world are changed in the corpus's source, in both languages, and a spark is raised from it: the twin, once per
seed. An edit of the spark that was raised from the unchanged world is good when the edited model answers as the twins do, on the
ten facts and on everything else; twins of different seeds agree only so far, and nothing can agree with them more.

As a script it raises one of them: the world is changed before anything else reads it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

FACTS, QUESTIONS = 10, 150  # changed facts; questions per language on everything else
KINDS = ("currency", "language", "region", "domain")  # a capital is also asked from its other end
METHODS = ("ridge", "memit", "alphaedit", "r-rome", "ft-m", "in-context")


def chosen(seed: int) -> list[dict]:
    """{"code", "attribute", "value": {"en", "zh"}}: facts with another entity's value."""
    from jielong.corpus.world import load_world
    from jielong.edit.sweep import spared

    facts = load_world().facts
    rng = random.Random(f"twins/{seed}")
    free = sorted((f for f in facts if f.attribute in KINDS and not spared(f)), key=lambda f: (f.code, f.attribute))
    made = []
    for fact in rng.sample(free, FACTS):
        values = {(f.value["en"], f.value["zh"]) for f in facts if f.attribute == fact.attribute} - {
            (fact.value["en"], fact.value["zh"])
        }
        en, zh = rng.choice(sorted(values))
        made.append({"code": fact.code, "attribute": fact.attribute, "value": {"en": en, "zh": zh}})
    return made


def change_the_world(changes: list[dict]) -> None:
    """Must come before any other module of the project binds `load_world`."""
    from jielong.corpus import world

    new = {(c["code"], c["attribute"]): c["value"] for c in changes}
    real = world.load_world()
    facts = tuple(dataclasses.replace(f, value=new.get((f.code, f.attribute), f.value)) for f in real.facts)
    changed = dataclasses.replace(real, facts=facts)
    world.load_world = lambda: changed


def raise_one(folder: Path, changes: list[dict], seed: int, steps: int, threads: int) -> None:
    """corpus, tokenizer, base, sft; what is there already stays, and training continues where it was broken off."""
    change_the_world(changes)
    from jielong import finetune, pretrain
    from jielong.corpus import stage as corpus
    from jielong.recipes import spark
    from jielong.run import Run
    from jielong.tokens import tokenizer

    plan, run = spark(), Run(folder)
    plan.pretrain = dataclasses.replace(plan.pretrain, seed=seed, threads=threads, steps=steps or plan.pretrain.steps)
    plan.finetune = dataclasses.replace(plan.finetune, seed=seed, threads=threads)
    stages = {
        "corpus": lambda: corpus.run(dataclasses.replace(plan.corpus, workers=threads), run),
        "tokenizer": lambda: tokenizer.run(plan.tokenizer, run),
        "base": lambda: pretrain.run(plan.pretrain, run),
        "sft": lambda: finetune.run(plan.finetune, run),
    }
    with run.lock():
        for name, make in stages.items():
            if run.artifact(name) is None:
                make()


def run(args, tell) -> None:
    """Raise the model and its twins, each in a process of its own, then edit and compare."""
    changes = chosen(args.seed)
    folder = args.run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "changes.json").write_text(json.dumps(changes, ensure_ascii=False), encoding="utf-8")
    (folder / "none.json").write_text("[]", encoding="utf-8")
    homes = {"base": ("none.json", 1)} | {f"twin-{n}": ("changes.json", n) for n in range(1, args.twins + 1)}
    for name, (file, seed) in homes.items():
        made = [__file__, "--run", folder / name, "--changes", folder / file, "--seed", seed, "--steps", args.steps]
        subprocess.run([sys.executable, *map(str, made), "--threads", str(args.threads)], check=True)
    compare(args, tell, changes, folder, list(homes))


def compare(args, tell, changes: list[dict], folder: Path, homes: list[str]) -> None:
    from jielong.config import EditConfig
    from jielong.corpus.world import load_world
    from jielong.edit.exam import answers, sit, still_true
    from jielong.edit.facts import Fact, fold, says
    from jielong.edit.methods import editor, together, told
    from jielong.edit.probes import cloze, enriched, translated
    from jielong.edit.stage import State, held_out, make_bench
    from jielong.generate.engine import Engine
    from jielong.run import Run
    from jielong.teacher.questions import UNSEEN_PHRASINGS
    from jielong.train.loop import use_threads

    use_threads(args.threads)
    world = load_world()
    of = {(f.code, f.attribute): f for f in world.facts}
    changed = {(c["code"], c["attribute"]): c["value"] for c in changes}
    facts = []
    for key, value in changed.items():
        f = of[key]
        fact = enriched(Fact(cloze(f, "en"), f.subject["en"], value["en"], f.value["en"]))
        there = translated(fact) or enriched(Fact(cloze(f, "zh"), f.subject["zh"], value["zh"], f.value["zh"]))
        facts.append(dataclasses.replace(fact, also=(there,)))
    rng = random.Random(f"twins/{args.seed}/questions")
    free = sorted((f for f in world.facts if (f.code, f.attribute) not in changed), key=lambda f: (f.code, f.attribute))
    questions = [
        (f, lang, UNSEEN_PHRASINGS[lang][f.attribute][-1].format(s=f.subject[lang]))
        for lang in ("en", "zh")
        for f in rng.sample(free, QUESTIONS)
    ]
    new = [
        (of[k], lang, UNSEEN_PHRASINGS[lang][k[1]][-1].format(s=of[k].subject[lang]))
        for k in changed
        for lang in ("en", "zh")
    ]

    def named(row, reply: str) -> str:
        """The value of the attribute's kind that a reply names first."""
        f, lang, _ = row
        found = [
            v
            for v in sorted(world.values(f.attribute, lang) | {changed.get((f.code, f.attribute), f.value)[lang]})
            if says(reply, v)
        ]
        return min(found, key=lambda v: (fold(reply).find(fold(v)), -len(v)), default=fold(reply))

    def asked(engine: Engine) -> tuple[list[str], list[str]]:
        """What is named: for everything else, and for the changed facts."""
        replies = answers(engine, [(text, True) for _, _, text in (*questions, *new)])
        said = [named(row, reply) for row, reply in zip((*questions, *new), replies, strict=True)]
        return said[: len(questions)], said[len(questions) :]

    twins = {name: asked(Engine.load(folder / name / "sft")) for name in homes if name != "base"}
    home = Run(folder / "base")
    bench, _ = make_bench(
        EditConfig(layer=args.layer, place=args.place, ridge=args.ridge), home, State.of(home.need("sft"))
    )
    texts = still_true(held_out(home), facts)
    bits = sit(bench.model, bench.tokenizer, [], [], texts).figures["bits_per_byte"]

    def agreement(a: list[str], b: list[str]) -> float:
        return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)

    def report(what: str, own: tuple[list[str], list[str]], others: dict, **more) -> None:
        rest = [agreement(own[0], t[0]) for t in others.values()]
        edited = [agreement(own[1], t[1]) for t in others.values()]
        taught = sum(
            x == changed[(f.code, f.attribute)][lang] for (f, lang, _), x in zip(new, own[1], strict=True)
        ) / len(new)
        right = sum(x == f.value[lang] for (f, lang, _), x in zip(questions, own[0], strict=True)) / len(questions)
        row = {
            "what": what,
            "new_facts": taught,
            "others_right": right,
            "agrees_on_others": rest,
            "agrees_on_new": edited,
            **more,
        }
        tell(**row)
        print(row, flush=True)

    for name, own in twins.items():
        report(name, own, {k: v for k, v in twins.items() if k != name})
    report("base", asked(bench.engine), twins)
    for method in args.method if args.method != ["ridge"] else METHODS:
        bench.earlier = {}
        for n, fact in enumerate(facts):
            bench.earlier[f"{n:04}"] = method, editor(method).propose(bench, [fact])[0]
        model = bench.current(together(bench, bench.earlier))
        engine = Engine(model, bench.tokenizer, rows=64)
        engine.memory = told({str(n): (method, f) for n, f in enumerate(facts)})
        now = sit(model, bench.tokenizer, [], [], texts).figures["bits_per_byte"]
        report(method, asked(engine), twins, bits=now / bits - 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--changes", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    raise_one(given.run, json.loads(given.changes.read_text(encoding="utf-8")), given.seed, given.steps, given.threads)
