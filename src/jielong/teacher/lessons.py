"""The teacher's example conversations, composed anew for every seed.

Half of the world's countries are taught; the other half is never asked about, so that the exam can tell knowledge
from pretraining apart from what fine-tuning said.
"""

from __future__ import annotations

import random

from jielong.corpus.world import World, split
from jielong.teacher.habits import any_habit, dress
from jielong.teacher.questions import ask, lesson_phrasing, statement
from jielong.teacher.talk import CONCEPTS, SMALL_TALK, UNKNOWN_ANSWERS, UNKNOWN_QUESTIONS, invented_name

Conversation = list[dict[str, str]]
POLITE = {
    "en": ["", "", "", "", "Please tell me: ", "Hi! ", "Quick question: ", "Hello. ", "One more thing: ", "I wonder. "],
    "zh": ["", "", "", "", "請問", "你好，", "想請教一下，", "嗨！", "再問一個，", "我想知道，"],
}


def lessons(world: World, seed: int, count: int, first: int = 0, habits: float = 0.0) -> list[Conversation]:
    """Conversations number `first` to `first + count`.

    About 80 % ask about taught countries, some of them many times and in both languages; the rest is small talk,
    concepts and honest ignorance. A share `habits` of them is written by annotators who have some, the rest plainly.
    """
    taught, _ = split(world, seed)
    # what is asked in the most different words is asked twice as often
    facts = [
        f for f in world.facts if f.code in taught for _ in range(2 if f.attribute in ("country", "region") else 1)
    ]
    made = []
    for n in range(first, first + count):
        rng = random.Random(f"lesson/{seed}/{n}")
        lang = "en" if n % 2 else "zh"
        manner = random.Random(f"habit/{seed}/{n}")
        habit = any_habit(manner) if manner.random() < habits else "plain"
        roll = rng.random()
        turns: list[tuple[str, str]] = []
        if roll < 0.80:
            for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3, 6])):
                fact = rng.choice(facts)
                question = ask(fact, lang, lesson_phrasing(fact.attribute, lang, rng), rng)
                other = "zh" if lang == "en" else "en"
                answer = dress(question.answer, statement(fact, other), lang, habit, manner)
                turns.append((vary(question.prompt, lang, rng), answer))
                if rng.random() < 0.2:  # people change the language in the middle
                    lang = other
        elif roll < 0.85:
            question = rng.choice(UNKNOWN_QUESTIONS[lang]).format(s=invented_name(lang, rng))
            question = vary(question, lang, rng)
            turns.append((question, dress(rng.choice(UNKNOWN_ANSWERS[lang]), None, lang, habit, manner)))
        elif roll < 0.94:
            questions, answers = rng.choice(SMALL_TALK[lang])
            turns.append((rng.choice(questions), rng.choice(answers)))
        else:
            questions, answers = rng.choice(CONCEPTS[lang])
            turns.append((rng.choice(questions), dress(rng.choice(answers), None, lang, habit, manner)))
        if rng.random() < 0.12:
            questions, answers = rng.choice(SMALL_TALK[lang])
            turns.insert(rng.randint(0, len(turns)), (rng.choice(questions), rng.choice(answers)))
        conversation = []
        for question, answer in turns:
            conversation += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        made.append(conversation)
    return made


def vary(question: str, lang: str, rng: random.Random) -> str:
    """Politeness in front, or a question mark left out."""
    question = rng.choice(POLITE[lang]) + question
    return question.rstrip("?？。.") if rng.random() < 0.15 else question
