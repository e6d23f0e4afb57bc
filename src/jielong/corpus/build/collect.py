"""The last step: the documents of all tasks → the run's corpus artifact, mixed, with the funnel's report.

One process writes it, because the stages behind it read one parquet file in the order of the ids. It keeps some 40 bytes of
each document in memory, and the texts of one part (`by_id`) and of one row group.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard
from datatrove.data import Document as Passing
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep

from jielong.changes.forgotten import forgotten
from jielong.config import CorpusBuildConfig
from jielong.corpus.build.funnel import Tally, funnel_report, hide, measure, read_funnel
from jielong.corpus.build.inputs import Bad
from jielong.corpus.build.mix import picked, shares, total
from jielong.corpus.build.page import funnel_page
from jielong.corpus.build.read import Stored
from jielong.corpus.build.recipe import Recipe
from jielong.corpus.documents import Document, DocumentWriter
from jielong.errors import UserError
from jielong.run import Run

NAMES = {"zh-Hant": "zh"}  # what the stages behind this one call Traditional Chinese
HELD = 64_000_000  # characters of documents in memory
BITS = 5
WAYS, DEEPEST = 2**BITS, 64 // BITS


class Collect(PipelineStep):
    """One task: the corpus artifact of the run. Raises UserError when nothing is left."""

    type = "jielong"
    name = "collect"

    def __init__(
        self, folder: str, config: CorpusBuildConfig, recipe: Recipe, tasks: int, steps: list[str], bad: list[Bad]
    ):
        super().__init__()
        self.folder = folder
        self.config = config
        self.recipe = recipe
        self.tasks = tasks
        self.steps = steps
        self.bad = bad

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Passing]:
        folder = get_datafolder(self.folder)
        tallies = read_funnel(folder, self.steps)
        for bad in self.bad:
            tallies[0].unreadable(bad.source, bad.path, bad.reason)
        self.gone, self.passed = forgotten(Run(self.config.run)), dict[str, str]()
        copies, size = self._survey()
        hide(tallies, self.passed.values())
        tally = Tally("mix")
        with Run(self.config.run).build("corpus", kind="corpus", config=self.config, seed=self.recipe.seed) as build:
            documents = by_id(self._documents, size, f"{self.folder}/parts")
            counts = self._write(zip(documents, copies, strict=True), build.path, tally)
            report = funnel_report([*tallies, tally])
            if not copies.any():
                worst = max(report["steps"], key=lambda s: sum(s["dropped"].values()))
                raise UserError(
                    f"Nothing was left of {report['steps'][0]['docs_in']:,} documents; most fell at the step {worst['step']!r}. "
                    "Look at the recipe's languages and rules, or give more text."
                )
            build.extra["recipe"] = dataclasses.asdict(self.recipe)
            build.extra["passed_over"] = len(self.passed)  # documents that the run has forgotten
            (build.path / "funnel.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
            (build.path / "funnel.html").write_text(funnel_page(report), encoding="utf-8")
            (build.path / "quarantine.jsonl").write_text(self._quarantine(folder), encoding="utf-8")
            build.metrics = {
                "funnel": [{k: v for k, v in s.items() if k != "changed"} for s in report["steps"]],
                **counts,
            }
        yield from ()

    def _documents(self) -> Iterator[Passing]:
        stored = Stored(f"{self.folder}/clean")
        for rank in range(self.tasks):
            for d in stored.run(rank=rank):
                if self.gone(d.id) or self.gone(d.text):  # a text that came in another wrapping has another id
                    self.passed[d.id] = d.text
                else:
                    yield d

    def _survey(self) -> tuple[np.ndarray, int]:
        """How often (n,) int64 each document is taken, by the weights of the sources, in the order of the ids; and the
        characters of all."""
        ids, tokens, sources, size = array("Q"), array("d"), array("H"), 0
        number = {s.name: n for n, s in enumerate(self.recipe.source)}
        for d in self._documents():
            ids.append(int(d.id, 16))
            tokens.append(measure(d.text)[3])
            sources.append(number[d.metadata["source"]])
            size += len(d.text)
        id_, token, source = (np.array(a) for a in (ids, tokens, sources))
        have = {name: total(token[source == n]) for name, n in number.items()}
        wanted = shares(self.recipe.source, have, self.recipe.tokens)
        copies = np.zeros(len(ids), dtype=np.int64)
        for name, amount in wanted.items():
            own = source == number[name]
            copies[own] = picked(id_[own], token[own], amount, self.recipe.seed)
        return copies[np.argsort(id_, kind="stable")], size

    def _write(self, rows: Iterable[tuple[Passing, int]], folder: Path, tally: Tally) -> dict[str, Any]:
        """train.parquet and heldout.parquet of the documents and their numbers of copies; what the card says of them.

        Copies bear the id of the first with #2, #3, …; those of a held-out document are left out.
        """
        count, langs, sources = 0, Counter[str](), Counter[str]()
        with DocumentWriter(folder / "train.parquet") as train, DocumentWriter(folder / "heldout.parquet") as held:
            for d, copies in rows:
                tally.enter(d)
                if not copies:
                    tally.drop(d, f"more {d.metadata['source']} than its weight")
                lang: str = NAMES.get(d.metadata["lang"]) or d.metadata["lang"]
                out = int(d.id[:8], 16) < self.recipe.heldout * 2**32
                for name in sorted(d.id if n == 1 else f"{d.id}#{n}" for n in range(1, copies + 1)):
                    tally.leave(d)
                    document = Document(name, d.text, lang, d.metadata["source"])
                    if out and name == d.id:
                        held.add(document)
                    if not out:
                        train.add(document)
                        count += 1
                        langs[lang] += len(d.text)
                        sources[document.source] += len(d.text)
        return {"documents": count, "characters": dict(sorted(langs.items())), "sources": dict(sorted(sources.items()))}

    def _quarantine(self, folder: Any) -> str:
        parts = [json.dumps(b.__dict__, ensure_ascii=False) + "\n" for b in self.bad]
        for name in sorted(folder.list_files("quarantine")):
            with folder.open(name, "r", encoding="utf-8") as f:
                parts.append(f.read())
        return "".join(parts)


def by_id(stored: Callable[[], Iterator[Passing]], size: int, folder: str, depth: int = 0) -> Iterator[Passing]:
    """Documents (`size` characters in all) in the order of their ids; those of more than `HELD` characters by way of
    parts in `folder`, of which one is in memory at a time. Ids are hashes, so that parts are of about one size."""
    if size <= HELD or depth == DEEPEST:
        yield from sorted(stored(), key=lambda d: d.id)
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    Path(folder).mkdir(parents=True)
    sizes = [0] * WAYS
    with ExitStack() as stack:
        # with a small window a file needs a third of a megabyte, with datatrove's writer more than twenty
        small = zstandard.ZstdCompressionParameters.from_level(1, window_log=17)
        packs = [zstandard.ZstdCompressor(compression_params=small) for _ in range(WAYS)]
        files = [stack.enter_context(zstandard.open(_part(folder, n), "wb", pack)) for n, pack in enumerate(packs)]
        for d in stored():
            part = (int(d.id, 16) >> (64 - BITS * (depth + 1))) % WAYS
            sizes[part] += len(d.text)
            files[part].write(orjson.dumps({"text": d.text, "id": d.id, "metadata": d.metadata}) + b"\n")
    parts = Stored(folder)
    for n in range(WAYS):
        yield from by_id(lambda n=n: parts.run(rank=n), sizes[n], f"{folder}/{n}", depth + 1)
        _part(folder, n).unlink()


def _part(folder: str, number: int) -> Path:
    return Path(folder) / f"{number:05d}.jsonl.zst"  # as `Stored` reads it


def remove_work(folder: Path) -> None:
    """The documents between the stages, which nobody needs any more."""
    shutil.rmtree(folder, ignore_errors=True)
