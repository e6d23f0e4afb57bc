"""What the experiments' models read: a part of the world, pages about it, and the run's prose."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence

from jielong.corpus.documents import Document, read_documents, record_id
from jielong.corpus.render import render_pages
from jielong.corpus.world import World
from jielong.run import Artifact
from jielong.teacher.lessons import Conversation
from jielong.tokens.tokenizer import is_han


def ranked(codes: Iterable[str], key: str) -> list[str]:
    """An order that depends on each code and the key alone."""
    return sorted(codes, key=lambda code: hashlib.sha256(f"{key}/{code}".encode()).digest())


def part(world: World, codes: Iterable[str], attributes: Sequence[str] = ()) -> World:
    """The world of these countries; with `attributes`, only of these."""
    kept = frozenset(codes)
    return World(
        tuple(e for e in world.entities if e.code in kept),
        tuple(f for f in world.facts if f.code in kept and (not attributes or f.attribute in attributes)),
    )


def pages(world: World, seed: int, variants: int, langs: Sequence[str] = ("en", "zh")) -> Iterator[Document]:
    """The world told in pages, as the default corpus tells it."""
    for page in render_pages(world, seed, variants):
        if page.lang in langs:
            yield Document(record_id(page.text), page.text, page.lang, "world")


def prose(
    corpus: Artifact, chars: int, langs: Sequence[str] = ("en", "zh"), without: Sequence[str] = ()
) -> list[Document]:
    """About so many characters of the corpus's texts that no template wrote, without those that name one of `without`; in a
    language alone, without the other one's characters. Split evenly among the languages."""
    left, found = dict.fromkeys(langs, chars / len(langs)), []
    for d in read_documents(corpus.file("train.parquet")):
        if d.source != "world" and left.get(d.lang, 0) > 0 and fits(d, langs, without):
            left[d.lang] -= len(d.text)
            found.append(d)
    return found


def held_out(
    corpus: Artifact, langs: Sequence[str] = ("en", "zh"), without: Sequence[str] = (), most: int = 150
) -> list[Document]:
    """The same of the held-out documents, at most so many of each language."""
    documents = [
        d for d in read_documents(corpus.file("heldout.parquet")) if d.source != "world" and fits(d, langs, without)
    ]
    return [d for lang in langs for d in [d for d in documents if d.lang == lang][:most]]


def fits(document: Document, langs: Sequence[str], without: Sequence[str]) -> bool:
    if "zh" not in langs and has_han(document.text):
        return False
    return not any(name in document.text for name in without)


def has_han(text: str) -> bool:
    return any(map(is_han, text))


def in_english(conversations: Iterable[Conversation]) -> Iterator[Conversation]:
    """Those without a Chinese character."""
    return (m for m in conversations if not any(has_han(turn["content"]) for turn in m))


def mixed(conversations: Sequence[Conversation], seed: int) -> list[Conversation]:
    """In an order of their own, so that kinds of conversations do not come one after the other."""
    found = list(conversations)
    random.Random(f"mixed/{seed}").shuffle(found)
    return found
