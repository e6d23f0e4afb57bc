"""A simulated teacher: rules that press thumbs where no person has yet. Everything made from its thumbs says so.

It likes answers that are right, polite, short and in the language of the question; it dislikes made-up facts, repetition
and the wrong language. Its `score` is free of noise; its thumbs differ from user to user and are sometimes wrong.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass

from jielong.corpus.world import World, fold, split
from jielong.teacher.lessons import vary
from jielong.teacher.questions import UNSEEN_PHRASINGS, Question, ask, is_correct, lesson_phrasing
from jielong.teacher.talk import CONCEPTS, SMALL_TALK, UNKNOWN_QUESTIONS, invented_name

NAME = "simulated teacher"
RIGHT, POLITE, WORDY, REPEATS, FOREIGN = 1.0, 0.5, -1.0, -1.0, -1.0
GOOD = 1.25  # from here on a user without leniency presses 👍: right, polite, short, and in the right language
SHORT = {"en": 12, "zh": 22}  # words, characters; twice as long costs half of WORDY, three times as long all of it
COURTESY = re.compile(
    r"\b(gladly|pleasure|of course|thank you|thanks|welcome|hope that helps|feel free|sorry|please)\b"
    r"|樂意|當然可以|沒問題|謝謝|希望對您|歡迎|抱歉|不客氣|請",
    re.IGNORECASE,
)
IGNORANT = re.compile(r"don't know|do not know|不知道", re.IGNORECASE)
NOISE, LENIENCY = 0.15, 0.15


@dataclass(frozen=True)
class Asked:
    """A prompt and what the teacher knows about it: a question about a fact, accepted answers, or neither for names
    that no one bears, where only "I don't know" is honest."""

    prompt: str
    lang: str
    question: Question | None = None
    accepted: tuple[str, ...] = ()


def prompts(world: World, seed: int, count: int, draw: int = 1, held_out: bool = False) -> list[Asked]:
    """Different prompts as people would type them: 75 % facts, the rest small talk, concepts and invented names.

    All ask about taught countries only, so that no thumb touches what the exam asks. The held-out ones are other facts, and
    small talk and concepts in a wording that the others do not have.
    """
    facts = [f for f in world.facts if f.code in split(world, seed)[0]]
    random.Random(f"prompts/{seed}").shuffle(facts)
    facts = facts[len(facts) * 2 // 3 :] if held_out else facts[: len(facts) * 2 // 3]
    made: dict[str, Asked] = {}
    n = 0
    while len(made) < count and n < 50 * count:
        rng = random.Random(f"prompt/{seed}/{draw}/{held_out}/{n}")
        n += 1
        lang = "en" if n % 2 else "zh"
        roll = rng.random()
        if roll < 0.75:
            fact = rng.choice(facts)
            question = ask(fact, lang, lesson_phrasing(fact.attribute, lang, rng), rng)
            asked = Asked(vary(question.prompt, lang, rng), lang, question)
        elif roll < 0.85:
            words = UNKNOWN_QUESTIONS[lang]
            words = words[-3:] if held_out else words[:-3]
            asked = Asked(rng.choice(words).format(s=invented_name(lang, rng)), lang)
        else:
            asked_as, answers = rng.choice([*SMALL_TALK[lang], *CONCEPTS[lang]])
            words = asked_as[-1:] if held_out else asked_as[:-1]
            asked = Asked(rng.choice(words), lang, accepted=tuple(answers))
        made.setdefault(asked.prompt, asked)
    return list(made.values())


def language(text: str) -> str:
    """zh where Chinese characters outnumber Latin words, two to one."""
    return "zh" if len(re.findall(r"[㐀-鿿]", text)) > 2 * len(re.findall(r"[A-Za-z]+", text)) else "en"


def repeats(text: str) -> bool:
    """Does a sentence come twice, or a third of all runs of four words or characters?"""
    sentences = [s.strip() for s in re.split(r"[.!?。！？\n]", text) if len(s.strip()) > 3]
    if len(set(sentences)) < len(sentences):
        return True
    units = re.findall(r"[㐀-鿿]|[A-Za-z']+", text.lower())
    runs = Counter(zip(units, units[1:], units[2:], units[3:]))
    return sum(runs.values()) >= 6 and sum(c - 1 for c in runs.values()) > sum(runs.values()) / 3


def is_right(world: World, asked: Asked, reply: str) -> bool:
    """The fact, the accepted answer, or the honest "I don't know"."""
    if asked.question:
        # an answer in the other language is marked by the other language's names
        forms = [asked.question]
        fact = world.of(asked.question.code)[asked.question.attribute]
        other = "zh" if asked.lang == "en" else "en"
        forms.append(ask(fact, other, UNSEEN_PHRASINGS[other][fact.attribute][0], random.Random(0)))
        return any(is_correct(q, reply, world.values(q.attribute, q.lang)) for q in forms)
    if asked.accepted:
        return any(fold(a).strip(" .。!！") in fold(reply) for a in asked.accepted)
    return bool(IGNORANT.search(reply))


def score(world: World, asked: Asked, reply: str) -> float:
    """What the teacher thinks of the reply, without noise: 1.5 at best, −4 at worst."""
    reply = reply.strip()
    if not reply:
        return -RIGHT
    right = is_right(world, asked, reply)
    lang = language(reply)
    unlike = lang != asked.lang and not (right and asked.accepted)
    units = len(re.findall(r"[㐀-鿿]|[A-Za-z0-9'.]+", reply))
    longer = max(0.0, min(1.0, (units / SHORT[lang] - 1) / 2))
    total = RIGHT if right else -RIGHT
    total += POLITE * bool(COURTESY.search(reply)) + WORDY * longer
    return total + REPEATS * repeats(reply) + FOREIGN * unlike


def thumb(world: World, asked: Asked, reply: str, user: int, seed: int, key: int) -> bool:
    """Up or down, as user number `user` presses: by score, their leniency N(0, 0.15), and in 15 % the wrong button."""
    leniency = random.Random(f"user/{seed}/{user}").gauss(0.0, LENIENCY)
    up = score(world, asked, reply) + leniency >= GOOD
    return up != (random.Random(f"thumb/{seed}/{user}/{key}").random() < NOISE)


__all__ = ["NAME", "Asked", "is_right", "language", "prompts", "repeats", "score", "thumb"]
