"""The questions of the exam: about the fact, and about the rest."""

from __future__ import annotations

import random
from collections import Counter
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
    premise: tuple[str, str] | None = None
    """(question, answer) that the model must get right before the change; otherwise this is not asked."""


@dataclass(frozen=True)
class Pair:
    """CounterFact's way of asking: is `more` likelier than `less` behind `prompt`, where `question` is, as the beginning of the
    answer to it? `group` is e (the edit), p (paraphrases) or n (neighbours)."""

    group: str
    prompt: str
    more: str
    less: str
    question: str = ""


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


def translated(fact: Fact) -> Fact | None:
    """The same correction in the other language, where the world has names there for the subject and for both objects."""
    found = known(fact)
    if found is None or found[0].attribute == "name":  # another question there, not the same one
        return None
    world_fact, lang = found
    there = "zh" if lang == "en" else "en"
    target = _names(lang, there).get(fold(fact.target))
    if target is None or fold(target) == fold(world_fact.value[there]):
        return None
    return enriched(Fact(cloze(world_fact, there), world_fact.subject[there], target, world_fact.value[there]))


@lru_cache(maxsize=2)
def _names(lang: str, there: str) -> dict[str, str]:
    """What things are called in the other language; names that stand for several things there are left out."""
    pairs = {
        (fold(side[lang]), side[there])
        for f in load_world().facts
        if f.attribute != "name"
        for side in (f.subject, f.value)
    }
    count = Counter(name for name, _ in pairs)
    return {name: other for name, other in pairs if count[name] == 1}


def about(facts: Sequence[Fact], chat: bool) -> list[Probe]:
    """What must have changed: the prompt, and the paraphrases that no editor read; the same in the other language where the edit
    says it there, too."""
    probes = []
    for fact in facts:
        probes.append(Probe("efficacy", fact.prompt, fact.target, fact.old, chat))
        probes += [Probe("paraphrase", text, fact.target, fact.old, chat) for text in unread(fact)]
        for other in fact.also:
            group = "efficacy" if other.lang == fact.lang else "other_language"
            probes.append(Probe(group, other.prompt, other.target, other.old, chat))
            probes += [Probe(group, text, other.target, other.old, chat) for text in unread(other)]
    return probes


def unread(fact: Fact) -> tuple[str, ...]:
    """The paraphrases that no editor read."""
    return fact.paraphrases[len(read_half(fact)) :]


def other_language(facts: Sequence[Fact], chat: bool) -> list[Probe]:
    """The same fact asked in the other language, where the edit itself does not say it there and the world has the names."""
    probes = []
    for fact in facts:
        there = translated(fact)
        if there is not None and all(other.lang == fact.lang for other in fact.also):
            text = there.paraphrases[-1] if chat else there.prompt
            probes.append(Probe("other_language", text, there.target, there.old, chat))
    return probes


HOLDERS = {
    "en": {"capital": "the country whose capital is {v}", "domain": "the country with the internet domain {v}", "name": "the country that is called {v} in Chinese"},
    "zh": {"capital": "首都是{v}的那個國家", "domain": "網域是{v}的那個國家", "name": "英文叫做{v}的那個國家"},
}  # fmt: skip
BEHIND = ("language", "currency", "region")


def ripple(facts: Sequence[Fact], chat: bool) -> list[Probe]:
    """What follows from a corrected fact of the world (Cohen et al. 2024, RippleEdits): its subject named by another of its facts
    (two_hop) or by its foreign name (alias), its new object's own facts (two_hop), and the fact asked from its other end
    (reversed). Only what the model could follow before the change is worth asking: see `Probe.premise`."""
    world, probes = load_world(), []
    for fact in facts:
        found = known(fact)
        if found is None:
            continue
        w, lang = found
        own = world.of(w.code)

        def put(
            group: str, attribute: str, subject: tuple[str, str], answer: tuple[str, str], lang: str = lang
        ) -> None:
            """The question about the new and the old subject, and their answers."""
            new, old = (UNSEEN_PHRASINGS[lang][attribute][1].format(s=s) for s in subject)
            probes.append(Probe(group, new, answer[0], answer[1] if new == old else "", chat, (old, answer[1])))

        if w.attribute != "country":
            for holder, group in (("capital", "two_hop"), ("domain", "two_hop"), ("name", "alias")):
                if holder != w.attribute and holder in own:
                    text = HOLDERS[lang][holder].format(v=own[holder].value[lang])
                    put(group, w.attribute, (text, text), (fact.target, w.value[lang]))
        else:
            new = next((e.code for e in world.entities if fold(e.name(lang)) == fold(fact.target)), "")
            text = HOLDERS[lang]["capital"].format(v=fact.subject)
            for attribute in BEHIND:
                if (
                    attribute in own
                    and attribute in (there := world.of(new))
                    and there[attribute].value != own[attribute].value
                ):
                    put("two_hop", attribute, (text, text), (there[attribute].value[lang], own[attribute].value[lang]))
        back = {
            "capital": ("country", lang),
            "country": ("capital", lang),
            "name": ("name", "zh" if lang == "en" else "en"),
        }
        if w.attribute in back:
            attribute, asked_in = back[w.attribute]
            put("reversed", attribute, (fact.target, w.value[lang]), (fact.subject, fact.subject), asked_in)
    return probes if chat else []


def pairs(facts: Sequence[Fact], chat: bool, seed: int) -> list[Pair]:
    """CounterFact's three scores for these facts: the prompt, its paraphrases (a question is answered by the prompt's sentence),
    and neighbours with the true object against the new one."""
    found = []
    for fact in facts:
        near = list(fact.neighbours)
        if (at := known(fact)) is not None and not near:
            others = [f for f in _others(at[0], seed) if fold(f.value[at[1]]) != fold(fact.target)]
            near = [(cloze(f, at[1]), f.value[at[1]]) for f in others]
        if fact.old:
            found.append(Pair("e", fact.prompt, fact.target, fact.old))
            for text in unread(fact):
                asks = text[-1:] in "?？。.!！"
                if chat or not asks:
                    found.append(Pair("p", fact.prompt if asks else text, fact.target, fact.old, text if asks else ""))
        found += [Pair("n", text, answer, fact.target) for text, answer in near]
    return found


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
        others = [f for f in _others(world_fact, seed) if (f.code, f.attribute) not in edited]
        for f in rng.sample(own, min(OTHER, len(own))) + others:
            probes.append(_asked("neighbours", f, lang, chat, rng))
    return probes


def _others(fact: WorldFact, seed: int) -> list[WorldFact]:
    """The same attribute of other subjects."""
    same = [f for f in load_world().facts if f.attribute == fact.attribute and f.code != fact.code]
    return random.Random(f"others/{seed}/{fact.code}/{fact.attribute}").sample(same, min(NEAR, len(same)))


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
