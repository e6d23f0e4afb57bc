"""Web pages per second and core: our steps against datatrove's own FineWeb-like ones, on the same pages in one process.

    python benchmarks/corpus_speed.py PATH   # the folder html/ of article-extraction-benchmark

Theirs: trafilatura, Gopher's repetition and quality filters, C4's, FineWeb's, MinHash signatures, writer. They need
`pip install spacy nltk 'xxhash<4' ftfy`, but no download. Theirs has no language filter here, since that would
download fastText's model; ours has one, and repairs encodings, and writes keys of exact duplicates as well.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datatrove.data import Document
from loguru import logger

from jielong.corpus.build.near import Signatures
from jielong.corpus.build.read import Store
from jielong.corpus.build.repeats import Keys, document_keys
from jielong.corpus.build.screens import Extract, Language, Rules
from jielong.corpus.documents import record_id


def documents(pages: list[str]) -> list[Document]:
    row = {"source": "web", "lang": "", "url": "", "html": True, "path": ""}
    return [Document(text, record_id(text), metadata=dict(row)) for text in pages]


def ours(folder: str) -> list[Any]:
    return [
        Extract(folder, 1000), Language(folder, ["en"]), Rules(folder, "web"),
        Keys(folder, "exact", document_keys), Signatures(folder), Store(f"{folder}/out"),
    ]  # fmt: skip


def theirs(folder: str) -> list[Any]:
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.writers import JsonlWriter

    return [
        Trafilatura(favour_precision=True), GopherRepetitionFilter(), GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False), FineWebQualityFilter(),
        JsonlWriter(f"{folder}/out"), MinhashDedupSignature(f"{folder}/signatures"),
    ]  # fmt: skip


def seconds(steps: Callable[[str], list[Any]], pages: list[str]) -> tuple[float, float]:
    """Processor seconds of this process and its children, and wall seconds."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        data: Any = documents(pages)
        chain = steps(folder)
        started, wall = _processor(), time.perf_counter()
        for step in chain:
            data = step(data, 0, 1)
        for _ in data or ():  # their last step hands nothing on
            pass
        return _processor() - started, time.perf_counter() - wall


def _processor() -> float:
    import resource

    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logger.remove()  # datatrove's log
    pages = [gzip.decompress(p.read_bytes()).decode("utf-8", "replace") for p in sorted(args.path.glob("*.html.gz"))]
    size = sum(len(p.encode()) for p in pages) / 1e6
    seconds(ours, pages[:5]), seconds(theirs, pages[:5])  # imports and models
    rows: dict[str, list[tuple[float, float]]] = {"datatrove": [], "jielong": []}
    for _ in range(args.rounds):  # one after the other, so that a busy machine slows both
        rows["datatrove"].append(seconds(theirs, pages))
        rows["jielong"].append(seconds(ours, pages))
    for name, found in rows.items():
        cpu, wall = (statistics.median(column) for column in zip(*found))
        print(
            f"{name}: {len(pages) / wall:.1f} pages/s, {size / wall:.2f} MB/s; processor {cpu:.2f} s, wall {wall:.2f} s for {size:.1f} MB"
        )
    ratio = [t[1] / o[1] for t, o in zip(rows["datatrove"], rows["jielong"])]
    print(f"ratio of speeds, wall: {statistics.median(ratio):.2f} ({min(ratio):.2f}–{max(ratio):.2f})")


if __name__ == "__main__":
    main()
