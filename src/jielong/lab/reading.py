"""Questions whose answer stands in a passage, and nowhere else: every value in it is another country's.

Who answers from memory is wrong, so that reading is told apart from knowing.
"""

from __future__ import annotations

import random
from dataclasses import replace

from jielong.corpus.world import Fact, World, split
from jielong.teacher.lessons import Conversation
from jielong.teacher.questions import UNSEEN_PHRASINGS, Question, ask, lesson_phrasing, statement

ATTRIBUTES = ("capital", "currency", "language", "region", "domain")
SENTENCES = 3


def passage(world: World, code: str, lang: str, rng: random.Random) -> tuple[str, Fact] | None:
    """(sentences about a country with other countries' values, the fact to ask for); None where too few facts are known."""
    facts = world.of(code)
    known = [a for a in ATTRIBUTES if a in facts]
    if len(known) < SENTENCES:
        return None
    told = []
    for attribute in rng.sample(known, SENTENCES):
        true = facts[attribute]
        others = [f for f in world.facts if f.attribute == attribute and f.value[lang] != true.value[lang]]
        told.append(replace(true, value=rng.choice(others).value))
    asked = rng.choice(told)
    return ("" if lang == "zh" else " ").join(statement(fact, lang) for fact in told), asked


def reading_lessons(world: World, seed: int, count: int) -> list[Conversation]:
    """Passages about taught countries, in the teacher's wordings."""
    taught = sorted(split(world, seed)[0])
    made: list[Conversation] = []
    for n in range(count):
        rng, lang, found = random.Random(f"reading/{seed}/{n}"), "en" if n % 2 else "zh", None
        while found is None:
            found = passage(world, rng.choice(taught), lang, rng)
        text, fact = found
        question = ask(fact, lang, lesson_phrasing(fact.attribute, lang, rng), rng)
        made.append(
            [
                {"role": "user", "content": f"{text}\n{question.prompt}"},
                {"role": "assistant", "content": question.answer},
            ]
        )
    return made


def reading_exam(world: World, seed: int, most: int) -> list[tuple[Question, str]]:
    """At most so many (question, passage) per language, about unseen countries and in wordings that no lesson has used."""
    unseen = sorted(split(world, seed)[1])
    asked = []
    for lang in ("en", "zh"):
        pool = [(code, turn) for turn in range(1 + most // len(unseen)) for code in unseen]
        for code, turn in pool[:most]:
            rng = random.Random(f"reading-exam/{seed}/{code}/{turn}/{lang}")
            found = passage(world, code, lang, rng)
            if found is not None:
                text, fact = found
                phrasing = rng.choice(UNSEEN_PHRASINGS[lang][fact.attribute])
                asked.append((ask(fact, lang, phrasing, rng), text))
    return asked
