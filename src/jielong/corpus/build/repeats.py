"""Exact duplicates of documents and of lines over all tasks: keys are written, sorted together, and marked.

Each task writes (key, document) pairs into shards by key; each shard is sorted by one task, which marks all documents of
a key but the first, in the order of tasks and documents; each task reads its marks. Keys have 64 bits: among 10⁹
documents one wrong pair is expected in 37 runs.
"""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep

from jielong.corpus.build.funnel import Tally
from jielong.corpus.build.screens import Screen, is_code
from jielong.corpus.dedup import fingerprint
from jielong.corpus.language import HAN

SHARDS = 16
PAIR = np.dtype([("key", "<u8"), ("doc", "<u4")])
SHORTEST_LINE = 20  # characters, a Chinese one counted twice; shorter lines are headings and speech


def document_keys(document: Document) -> list[int]:
    """One key: the text without case, spaces and punctuation."""
    return [_key(document.text)]


def line_keys(document: Document) -> list[int]:
    """Keys of the different lines that are long enough."""
    if is_code(document):
        return []
    return sorted({_key(line) for line in document.text.split("\n") if _long(line)})


def _key(text: str) -> int:
    return int.from_bytes(fingerprint(text)[:8], "little")


def _long(line: str) -> bool:
    return len(line) >= SHORTEST_LINE or len(line) + len(HAN.findall(line)) >= SHORTEST_LINE


class Keys(PipelineStep):
    """Documents pass; keys/NAME/SHARD/RANK holds their (key, number of the document in this task)."""

    type = "jielong"
    name = "keys"

    def __init__(self, folder: str, what: str, keys: Callable[[Document], list[int]]):
        super().__init__()
        self.folder = get_datafolder(folder)
        self.what = what
        self.keys = keys

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        keys, docs = array("Q"), array("I")
        for number, document in enumerate(data):
            found = self.keys(document)
            keys.extend(found)
            docs.extend([number] * len(found))
            yield document
        table = np.zeros(len(keys), dtype=PAIR)
        table["key"], table["doc"] = keys, docs
        for shard in range(SHARDS):
            part = table[table["key"] % SHARDS == shard]
            with self.folder.open(f"keys/{self.what}/{shard:02d}/{rank:05d}", "wb") as f:
                f.write(part.tobytes())


class Find(PipelineStep):
    """One task per shard: marks/NAME/RANK/SHARD holds the (key, document) pairs that repeat an earlier one.

    `copies`: a key is marked only if more documents than this have it.
    """

    type = "jielong"
    name = "find"

    def __init__(self, folder: str, what: str, copies: int = 1):
        super().__init__()
        self.folder = get_datafolder(folder)
        self.what = what
        self.copies = copies

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        names = sorted(self.folder.list_files(f"keys/{self.what}/{rank:02d}"))
        tables = [_read(self.folder, name) for name in names]
        tasks = np.array([int(name.rpartition("/")[2]) for name in names])
        for task, marked in zip(tasks, marks(tables, self.copies), strict=True):
            with self.folder.open(f"marks/{self.what}/{task:05d}/{rank:02d}", "wb") as f:
                f.write(marked.tobytes())
        yield from ()


def _read(folder: Any, name: str) -> np.ndarray:
    with folder.open(name, "rb") as f:
        return np.frombuffer(f.read(), dtype=PAIR)


def marks(tables: list[np.ndarray], copies: int) -> list[np.ndarray]:
    """Of each task's (key, document) pairs, those whose key stands in more than `copies` documents, but for the first."""
    if not tables:
        return []
    pairs = np.concatenate(tables)
    task = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
    order = np.lexsort((pairs["doc"], task, pairs["key"]))
    keys = pairs["key"][order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    group = np.cumsum(first) - 1
    sizes = np.bincount(group) if len(group) else np.zeros(0, dtype=np.int64)
    marked = np.zeros(len(keys), dtype=bool)
    marked[order] = ~first & (sizes[group] > copies)
    ends = np.cumsum([0, *(len(t) for t in tables)])
    return [t[marked[a:b]] for t, a, b in zip(tables, ends[:-1], ends[1:], strict=True)]


def read_marks(folder: Any, what: str, rank: int) -> np.ndarray:
    """The marked pairs of one task, of all shards."""
    place = f"marks/{what}/{rank:05d}"
    names = sorted(folder.list_files(place)) if folder.exists(place) else []
    return np.concatenate([_read(folder, name) for name in names]) if names else np.zeros(0, dtype=PAIR)


class DropMarked(Screen):
    """Documents without those that were marked, by their number among the documents that come here.

    `counted`: False for a pass that another one repeats, so that the funnel counts it once.
    """

    def __init__(self, folder: str, what: str, name: str, reason: str, counted: bool = True):
        super().__init__(folder)
        self.what = what
        self.name = name
        self.reason = reason
        self.counted = counted

    def start(self, rank: int, tally: Tally) -> None:
        self.marked = frozenset(read_marks(self.folder, self.what, rank)["doc"].tolist())
        self.number = -1
        if not self.counted:
            tally.step = f"again-{self.name}"

    def judge(self, document: Document) -> str | None:
        self.number += 1
        return self.reason if self.number in self.marked else None


class DropLines(Screen):
    """Documents without the lines that were marked; a document of nothing else falls."""

    name = "repeated lines"

    def start(self, rank: int, tally: Tally) -> None:
        self.tally = tally
        self.number = -1
        self.marked: dict[int, set[int]] = defaultdict(set)
        for key, doc in read_marks(self.folder, "lines", rank).tolist():
            self.marked[doc].add(key)

    def judge(self, document: Document) -> str | None:
        self.number += 1
        marked = self.marked.get(self.number)
        if not marked:
            return None
        lines = document.text.split("\n")
        kept = list(_without(lines, marked))
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
        if not any(_long(line) for line in kept):
            return "only repeated lines"
        document.text = text
        self.tally.note("lines removed", len(lines) - len(kept), document)
        return None


def _without(lines: Iterable[str], marked: set[int]) -> Iterator[str]:
    return (line for line in lines if not (_long(line) and _key(line) in marked))
