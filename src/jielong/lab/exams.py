"""Questions about a world, with and without a passage, and their marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jielong.corpus.documents import Document
from jielong.corpus.world import ATTRIBUTES, World, load_world
from jielong.evaluate.bpb import Reading, read
from jielong.evaluate.statistics import Interval
from jielong.lab.reading import reading_exam
from jielong.lab.trend import trend
from jielong.model.gpt import GPT
from jielong.teacher.questions import Question, exam, is_correct
from jielong.tokens.tokenizer import Tokenizer


def marked(questions: Sequence[Question], replies: Sequence[str]) -> list[bool]:
    """Each reply by the exam's rule: the value is named, and no other value of the attribute before it."""
    world = load_world()
    return [is_correct(q, r, world.values(q.attribute, q.lang)) for q, r in zip(questions, replies, strict=True)]


def closed_book(world: World, seed: int, most: int, attributes: Sequence[str] = ATTRIBUTES) -> list[Question]:
    """At most so many questions of each language about countries that no lesson named; every so many, so that all attributes and
    countries are there."""
    asked = [q for q in exam(world, seed) if q.attribute in attributes]
    own = [[q for q in asked if q.lang == lang] for lang in ("en", "zh")]
    return [q for questions in own for q in questions[:: max(1, len(questions) // most)][:most]]


def with_passage(world: World, seed: int, most: int) -> list[Question]:
    """Questions whose passage stands in the prompt."""
    return [replace(q, prompt=f"{text}\n{q.prompt}") for q, text in reading_exam(world, seed, most)]


# what is compared, per seed and question

Scores = Sequence[Sequence[Any]]
"""One number, or right or wrong, per seed and question."""


def mean(scores: Scores, config: Any, shared: bool = False) -> Interval:
    """95 % over seeds and questions (lab.trend); `shared`: all seeds are asked the same ones."""
    return trend([scores], config.rounds, config.seed, shared).accuracy[0]


def difference(a: Scores, b: Scores, config: Any, shared: bool = False) -> Interval:
    """Mean of a − b, question by question."""
    return trend([b, a], config.rounds, config.seed, shared).whole


def bits(model: GPT, tokenizer: Tokenizer, documents: Sequence[Document]) -> list[float]:
    """For each document its bits over the mean document's bytes, so that their mean is all bits over all bytes."""
    return per_byte(read(model, tokenizer, list(documents)))


def per_byte(readings: Sequence[Reading]) -> list[float]:
    size = sum(r.bytes for r in readings) / max(1, len(readings))
    return [r.nats / np.log(2) / size for r in readings]
