"""The questions of the exam: about the fact, and about the rest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from jielong.corpus.world import Fact as WorldFact
from jielong.corpus.world import load_world
from jielong.edit.bench import read_half
from jielong.edit.facts import Fact, fold
from jielong.teacher.questions import ANSWERS, UNSEEN_PHRASINGS

NEAR, OTHER = 10, 6  # neighbours: other subjects of the same kind; other facts of the same subject


@dataclass(frozen=True)
class Probe:
    """`prompt` is asked (in a conversation where `chat`, else continued) and should be answered by `target`, not by `old`."""

    group: str
    prompt: str
    target: str
    old: str = ""
    chat: bool = True


def cloze(fact: WorldFact, lang: str) -> str:
    """The sentence of a fact up to its object."""
    return ANSWERS[lang][fact.attribute][0].partition("{v}")[0].format(s=fact.subject[lang]).rstrip()


@lru_cache(maxsize=1)
def _clozes() -> dict[tuple[str, str], tuple[WorldFact, str]]:
    return {
        (fold(cloze(f, lang)), fold(f.subject[lang])): (f, lang) for f in load_world().facts for lang in ("en", "zh")
    }


def known(fact: Fact) -> tuple[WorldFact, str] | None:
    """The fact of the default corpus's world that a correction is about, and its language."""
    return _clozes().get((fold(fact.prompt), fold(fact.subject)))


def enriched(fact: Fact) -> Fact:
    """A correction of a fact of the world with the world's phrasings of it, where it brings none of its own. The editors read
    half of them, the exam asks the other half."""
    found = known(fact)
    if found is None or fact.paraphrases:
        return fact
    world_fact, lang = found
    asked = [p.format(s=fact.subject) for p in UNSEEN_PHRASINGS[lang][world_fact.attribute]]
    return replace(fact, paraphrases=tuple(asked))


def about(facts: Sequence[Fact], chat: bool) -> list[Probe]:
    """What must have changed: the prompt, and the paraphrases that no editor read."""
    probes = []
    for fact in facts:
        probes.append(Probe("efficacy", fact.prompt, fact.target, fact.old, chat))
        held = fact.paraphrases[len(read_half(fact)) :]
        probes += [Probe("paraphrase", text, fact.target, fact.old, chat) for text in held]
        for other in fact.also:
            probes.append(Probe("efficacy", other.prompt, other.target, other.old, chat))
    return probes


def other_language(facts: Sequence[Fact], chat: bool) -> list[Probe]:
    """The same fact asked in the other language, where the world can translate subject and objects."""
    probes = []
    for fact in facts:
        found = known(fact)
        if found is None:
            continue
        world_fact, lang = found
        there = "zh" if lang == "en" else "en"
        same = [f for f in load_world().facts if f.attribute == world_fact.attribute]
        target = next((f.value[there] for f in same if fold(f.value[lang]) == fold(fact.target)), None)
        if target is not None and world_fact.attribute != "name":
            text = UNSEEN_PHRASINGS[there][world_fact.attribute][0].format(s=world_fact.subject[there])
            probes.append(
                Probe(
                    "other_language", text if chat else cloze(world_fact, there), target, world_fact.value[there], chat
                )
            )
    return probes


def nearby(facts: Sequence[Fact], chat: bool, seed: int) -> list[Probe]:
    """Facts that must stay: those that came with the edit; of a fact of the world other facts of its subject, and the same of
    other subjects."""
    probes = [Probe("neighbours", text, answer, chat=chat) for f in facts for text, answer in f.neighbours]
    edited = {(w.code, w.attribute) for w, _ in filter(None, map(known, facts))}
    for fact in facts:
        found = known(fact)
        if found is None:
            continue
        world_fact, lang = found
        rng = random.Random(f"near/{seed}/{fact.id}")
        free = [f for f in load_world().facts if (f.code, f.attribute) not in edited]
        own = [f for f in free if f.code == world_fact.code and not _mirror(f, world_fact)]
        others = [f for f in free if f.attribute == world_fact.attribute]
        for f in rng.sample(own, min(OTHER, len(own))) + rng.sample(others, min(NEAR, len(others))):
            probes.append(_asked("neighbours", f, lang, chat, rng))
    return probes


def rest(facts: Sequence[Fact], chat: bool, count: int, seed: int) -> list[Probe]:
    """`count` facts of the world per language, none of them an edited one: the same ones for the same seed."""
    edited = [w for w, _ in filter(None, map(known, facts))]
    probes = []
    for lang in ("en", "zh"):
        rng = random.Random(f"rest/{seed}/{lang}")
        facts_of = sorted(load_world().facts, key=lambda f: rng.random())
        free = [f for f in facts_of if not any(f == w or _mirror(f, w) for w in edited)]
        probes += [_asked("knowledge", f, lang, chat, rng) for f in free[:count]]
    return probes


def _mirror(a: WorldFact, b: WorldFact) -> bool:
    """Is one the other seen from its end (the capital of a country, the country of a capital)?"""
    return a.code == b.code and {a.attribute, b.attribute} == {"capital", "country"}


def _asked(group: str, fact: WorldFact, lang: str, chat: bool, rng: random.Random) -> Probe:
    text = rng.choice(UNSEEN_PHRASINGS[lang][fact.attribute]).format(s=fact.subject[lang])
    return Probe(group, text if chat else cloze(fact, lang), fact.value[lang], chat=chat)
