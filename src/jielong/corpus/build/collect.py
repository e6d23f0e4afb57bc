"""The last step: the documents of all tasks → the run's corpus artifact, mixed, with the funnel's report.

It holds the clean corpus in the memory of one process, because the stages behind it read one parquet file.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document as Passing
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep

from jielong.config import CorpusBuildConfig
from jielong.corpus.build.funnel import Tally, funnel_report, measure, read_funnel
from jielong.corpus.build.inputs import Bad
from jielong.corpus.build.mix import picked, shares
from jielong.corpus.build.page import funnel_page
from jielong.corpus.build.read import Stored
from jielong.corpus.build.recipe import Recipe
from jielong.corpus.documents import Document, write_documents
from jielong.errors import UserError
from jielong.run import Run

NAMES = {"zh-Hant": "zh"}  # what the stages behind this one call Traditional Chinese


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
        clean = list(self._documents())
        tally = Tally("mix")
        documents = self._mixed(clean, tally)
        report = funnel_report([*tallies, tally])
        if not documents:
            worst = max(report["steps"], key=lambda s: sum(s["dropped"].values()))
            raise UserError(
                f"Nothing was left of {report['steps'][0]['docs_in']:,} documents; most fell at the step {worst['step']!r}. "
                "Look at the recipe's languages and rules, or give more text."
            )
        held = [d for d in documents if int(d.id[:8], 16) < self.recipe.heldout * 2**32]
        held = [d for d in held if "#" not in d.id]  # copies are for training
        names = {d.id for d in held}
        train = [d for d in documents if d.id.partition("#")[0] not in names]
        with Run(self.config.run).build("corpus", kind="corpus", config=self.config, seed=self.recipe.seed) as build:
            build.extra["recipe"] = dataclasses.asdict(self.recipe)
            write_documents(build.path / "train.parquet", train)
            write_documents(build.path / "heldout.parquet", held)
            (build.path / "funnel.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
            (build.path / "funnel.html").write_text(funnel_page(report), encoding="utf-8")
            (build.path / "quarantine.jsonl").write_text(self._quarantine(folder), encoding="utf-8")
            build.metrics = {
                "funnel": [{k: v for k, v in s.items() if k != "changed"} for s in report["steps"]],
                "documents": len(train),
                "characters": _characters(train, "lang"),
                "sources": _characters(train, "source"),
            }
        yield from ()

    def _documents(self) -> Iterator[Passing]:
        stored = Stored(f"{self.folder}/clean")
        for rank in range(self.tasks):
            yield from stored.run(rank=rank)

    def _mixed(self, clean: list[Passing], tally: Tally) -> list[Document]:
        """As many documents of each source as the weights ask for; copies bear the id of the first with #2, #3, …"""
        size = {d.id: measure(d.text)[3] for d in clean}
        of_source: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for d in clean:
            of_source[d.metadata["source"]].append((d.id, size[d.id]))
        have = {name: sum(t for _, t in rows) for name, rows in of_source.items()}
        wanted = shares(self.recipe.source, have, self.recipe.tokens)
        copies: dict[str, int] = {}
        for name, rows in of_source.items():
            copies |= dict(picked(rows, wanted[name], self.recipe.seed))
        found = []
        for d in clean:
            tally.enter(d)
            if not copies.get(d.id):
                tally.drop(d, f"more {d.metadata['source']} than its weight")
            lang: str = NAMES.get(d.metadata["lang"]) or d.metadata["lang"]
            for number in range(1, copies.get(d.id, 0) + 1):
                tally.leave(d)
                found.append(Document(d.id if number == 1 else f"{d.id}#{number}", d.text, lang, d.metadata["source"]))
        return found

    def _quarantine(self, folder: Any) -> str:
        parts = [json.dumps(b.__dict__, ensure_ascii=False) + "\n" for b in self.bad]
        for name in sorted(folder.list_files("quarantine")):
            with folder.open(name, "r", encoding="utf-8") as f:
                parts.append(f.read())
        return "".join(parts)


def _characters(documents: list[Document], key: str) -> dict[str, int]:
    count: Counter[str] = Counter()
    for d in documents:
        count[getattr(d, key)] += len(d.text)
    return dict(sorted(count.items()))


def remove_work(folder: Path) -> None:
    """The documents between the stages, which nobody needs any more."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
