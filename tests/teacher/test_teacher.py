from __future__ import annotations

from jielong.corpus.world import ATTRIBUTES, majority_guess, split
from jielong.teacher.lessons import lessons
from jielong.teacher.questions import FRAMES, SEEN_PHRASINGS, UNSEEN_PHRASINGS, exam, is_correct


def test_world_is_bilingual_and_not_guessable(world):
    assert len(world.entities) > 190 and len(world.facts) > 1200
    assert all(f.value["en"] and f.value["zh"] for f in world.facts)
    assert majority_guess(world, "en") < 0.11 and majority_guess(world, "zh") < 0.11
    france = {a: f.value for a, f in world.of("FR").items()}
    assert france["capital"] == {"en": "Paris", "zh": "巴黎"} and france["currency"]["zh"] == "歐元"
    assert france["name"] == {"en": "法國", "zh": "France"}


def test_exam_is_disjoint_from_the_lessons(world):
    taught, unseen = split(world, 1)
    assert not taught & unseen and abs(len(taught) - len(unseen)) <= 1
    questions = exam(world, 1)
    assert {q.code for q in questions} == unseen and {q.lang for q in questions} == {"en", "zh"}
    for lang in ("en", "zh"):
        for a in ATTRIBUTES:
            assert len(SEEN_PHRASINGS[lang][a]) >= 8 and len(UNSEEN_PHRASINGS[lang][a]) >= 3
            assert not set(SEEN_PHRASINGS[lang][a]) & set(UNSEEN_PHRASINGS[lang][a])
    said = "\n".join(m["content"] for c in lessons(world, 1, 4000) for m in c)
    asked = {q.prompt for q in questions} | {q.prompt for q in exam(world, 1, "taught")}
    assert not [p for p in asked if p in said]
    own = [f for f in world.facts if f.code in unseen and f.attribute == "capital"]
    assert not [f for f in own if f"The capital of {f.subject['en']} is" in said]
    assert all("{t}" in f for forms in FRAMES.values() for f in forms)


def test_marking(world):
    questions = {(q.code, q.attribute, q.lang): q for q in exam(world, 1) + exam(world, 1, "taught")}
    capitals = world.values("capital", "en")
    q = questions["FR", "capital", "en"]
    assert is_correct(q, "It is paris!", capitals)
    assert not is_correct(q, "Parisian", capitals)
    assert not is_correct(q, "Berlin, Rome, Paris", capitals)
    sudan = questions["SD", "country", "en"]
    assert not is_correct(sudan, "It is in South Sudan.", world.values("country", "en"))
    for q in questions.values():
        assert is_correct(q, q.answer, world.values(q.attribute, q.lang)), q


def test_lessons_alternate_and_repeat(world):
    made = lessons(world, 1, 500)
    assert made == lessons(world, 1, 500) != lessons(world, 2, 500)
    for conversation in made:
        roles = [m["role"] for m in conversation]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
