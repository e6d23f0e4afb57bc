"""The corpus stage: raw text → clean documents, with a funnel that says what every step dropped and why."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jielong.changes.forgotten import forgotten
from jielong.config import CorpusConfig
from jielong.corpus.dedup import fingerprint, near_duplicates
from jielong.corpus.documents import Document, record_id, write_documents
from jielong.corpus.extract import main_text, normalise
from jielong.corpus.language import language
from jielong.corpus.privacy import scrub
from jielong.corpus.quality import reason_to_drop
from jielong.corpus.readers import Raw, read_paths
from jielong.errors import UserError
from jielong.run import Artifact, Run, peak_memory

EXAMPLES = 6  # per step, each of at most EXAMPLE_CHARS
EXAMPLE_CHARS = 120


@dataclass
class Step:
    """One row of the funnel."""

    step: str
    docs_in: int = 0
    docs_out: int = 0
    chars_in: int = 0
    chars_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def drop(self, reason: str, text: str) -> None:
        self.dropped[reason] += 1
        if len(self.examples) < EXAMPLES and self.dropped[reason] <= 2:
            self.examples.append({"reason": reason, "text": text[:EXAMPLE_CHARS]})


@dataclass(slots=True)
class Item:
    """A document on its way."""

    id: str
    text: str
    source: str
    label: str
    lang: str = ""


def clean_one(raw: tuple[str, bool]) -> tuple[str, str, str | None]:
    """(text, language, reason to drop) of one raw document: the steps that look at one document alone."""
    text, html = raw
    if html:
        text = main_text(text)
    text = normalise(text)
    if not text:
        return "", "other", "no main text" if html else "empty"
    lang = language(text)
    if lang == "other":
        return text, lang, "other language"
    return text, lang, reason_to_drop(text, lang)


def clean(
    raws: list[Raw], workers: int = 0, memory: Callable[[int], None] = lambda _: None
) -> tuple[list[Document], list[Step], dict[str, str]]:
    """Clean documents, the funnel, and for every raw id the step that dropped it ("" = kept).

    `memory` is told the peak bytes of each worker process.
    """
    steps = {
        name: Step(name)
        for name in ("extract", "language", "quality", "exact duplicates", "near duplicates", "privacy")
    }
    fate: dict[str, str] = {}
    items = [Item(_id(r, n), r.text, r.source, r.label) for n, r in enumerate(raws)]
    results = _map([(r.text, r.html) for r in raws], workers, memory)
    extract, lang_step, quality = steps["extract"], steps["language"], steps["quality"]
    kept: list[Item] = []
    for item, raw, (text, lang, reason) in zip(items, raws, results, strict=True):
        _count_in(extract, len(raw.text))
        if reason in ("no main text", "empty"):
            extract.drop(reason, raw.text)
            fate[item.id] = "extract"
            continue
        _count_out(extract, len(text))
        item.text, item.lang = text, lang
        _count_in(lang_step, len(text))
        if reason == "other language":
            lang_step.drop(reason, text)
            fate[item.id] = "language"
            continue
        _count_out(lang_step, len(text))
        _count_in(quality, len(text))
        if reason:
            quality.drop(reason, text)
            fate[item.id] = "quality"
            continue
        _count_out(quality, len(text))
        kept.append(item)
    kept = _drop_exact(kept, steps["exact duplicates"], fate)
    kept = _drop_near(kept, steps["near duplicates"], fate)
    documents = []
    privacy = steps["privacy"]
    for item in kept:
        _count_in(privacy, len(item.text))
        text, found = scrub(item.text)
        for kind, count in found.items():
            privacy.dropped[f"{kind} replaced"] += count
        if found and len(privacy.examples) < EXAMPLES:
            privacy.examples.append({"reason": "replaced", "text": text[-EXAMPLE_CHARS:]})
        _count_out(privacy, len(text))
        fate[item.id] = ""
        documents.append(Document(item.id, text, item.lang, item.source))
    return documents, list(steps.values()), fate


def _id(raw: Raw, number: int) -> str:
    """Content hash of the raw document; a planted duplicate is told apart by its place."""
    salt = f"\x00{number}" if raw.label and raw.label != "good" else ""
    return record_id(raw.text + salt)


def _map(
    raws: list[tuple[str, bool]], workers: int, memory: Callable[[int], None]
) -> list[tuple[str, str, str | None]]:
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(raws) < 500:
        return [clean_one(r) for r in raws]
    with ProcessPoolExecutor(workers) as pool:
        results = list(pool.map(clean_one, raws, chunksize=128))
        for process in multiprocessing.active_children():
            memory(peak_memory(process.pid or "self"))
    return results


def _count_in(step: Step, chars: int) -> None:
    step.docs_in += 1
    step.chars_in += chars


def _count_out(step: Step, chars: int) -> None:
    step.docs_out += 1
    step.chars_out += chars


def _drop_exact(items: list[Item], step: Step, fate: dict[str, str]) -> list[Item]:
    seen: set[bytes] = set()
    kept = []
    for item in items:
        _count_in(step, len(item.text))
        key = fingerprint(item.text)
        if key in seen:
            step.drop("same text", item.text)
            fate.setdefault(item.id, step.step)
            continue
        seen.add(key)
        _count_out(step, len(item.text))
        kept.append(item)
    return kept


def _drop_near(items: list[Item], step: Step, fate: dict[str, str]) -> list[Item]:
    dropped = set(near_duplicates([i.text for i in items]))
    kept = []
    for n, item in enumerate(items):
        _count_in(step, len(item.text))
        if n in dropped:
            step.drop("nearly the same text", item.text)
            fate[item.id] = step.step
            continue
        _count_out(step, len(item.text))
        kept.append(item)
    return kept


def hide(steps: list[Step], texts: list[str]) -> None:
    """Take out the examples that show one of these texts, which the run has forgotten."""
    for step in steps:
        step.examples = [e for e in step.examples if not any(e["text"] in t or t in e["text"] for t in texts)]


def measure_dirt(raws: list[Raw], documents: list[Document], fate: dict[str, str]) -> dict[str, Any]:
    """Share of each kind of planted dirt that is gone, and of good documents that were lost."""
    text_of = {d.id: d.text for d in documents}
    planted: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    for number, raw in enumerate(raws):
        kind, _, secrets = raw.label.partition(":")
        if not kind:
            continue
        key = _id(raw, number)
        if kind == "private":
            left = text_of.get(key, "")
            for secret in secrets.split("|"):
                planted["private data"] += 1
                removed["private data"] += secret not in left
        else:
            planted[kind] += 1
            removed[kind] += key not in text_of
    return {
        kind: {"planted": n, "removed": removed[kind], "share": round(removed[kind] / n, 4)}
        for kind, n in planted.items()
    }


def run(config: CorpusConfig, run: Run) -> Artifact:
    """Raw text → train.parquet and heldout.parquet. Raises UserError when nothing readable or nothing clean is left."""
    if not config.text and not config.default:
        raise UserError("There is nothing to read: give --text PATH or leave the default corpus on.")
    if not 0 <= config.heldout < 1:
        raise UserError("heldout must be at least 0 and below 1.")
    if config.canaries < 0:
        raise UserError("canaries must be at least 0.")
    skipped: Counter[str] = Counter()
    with run.build("corpus", kind="corpus", config=config, seed=config.seed) as build:
        raws: list[Raw] = list(read_paths(tuple(config.text), skipped))
        if config.default:
            from jielong.corpus.dirt import plant
            from jielong.corpus.sources import default_documents

            default = list(default_documents(config))
            raws += plant(default, config.seed) if config.dirt else default
        if config.canaries:
            from jielong.corpus import canaries

            raws = list(canaries.plant(raws, config.canaries, config.seed))
        if not any(r.text.strip() for r in raws):
            why = "; ".join(f"{n}× {reason}" for reason, n in skipped.most_common(3))
            raise UserError("No readable text was found" + (f" ({why})." if why else "; the files are empty."))
        memory: list[int] = []
        documents, steps, fate = clean(raws, config.workers, memory.append)
        build.workers_memory = sum(memory)
        gone = forgotten(run)
        kept = [d for d in documents if not gone(d.id) and not gone(d.text)]
        if len(kept) < len(documents):
            print(f"{len(documents) - len(kept)} documents were forgotten by this run and stay out.")
            hide(steps, [d.text for d in documents if gone(d.id) or gone(d.text)])
        documents = kept
        held = [d for d in documents if int(d.id[:8], 16) < config.heldout * 2**32]
        names = {d.id for d in held}
        train = [d for d in documents if d.id not in names]
        if not train:
            why = Counter(fate.values()).most_common(1)[0][0] if fate else "extract"
            raise UserError(
                f"Nothing was left of {len(raws)} documents after cleaning; most fell at the step {why!r}. "
                "Give more or cleaner text: at least a few sentences of English or Traditional Chinese."
            )
        write_documents(build.path / "train.parquet", train)
        write_documents(build.path / "heldout.parquet", held)
        build.metrics = {
            "funnel": [s.__dict__ | {"dropped": dict(s.dropped)} for s in steps],
            "skipped_files": dict(skipped),
            "documents": len(train),
            "characters": _by(train, lambda d: d.lang),
            "sources": _by(train, lambda d: d.source),
        }
        print_funnel(steps, skipped)
        if config.default and config.dirt:
            build.metrics["dirt"] = measure_dirt(raws, documents, fate)
            print_dirt(build.metrics["dirt"])
    return build.artifact


def _by(documents: Iterable[Document], key) -> dict[str, int]:
    chars: Counter[str] = Counter()
    for d in documents:
        chars[key(d)] += len(d.text)
    return dict(sorted(chars.items()))


def print_funnel(steps: list[Step], skipped: Counter[str]) -> None:
    """The funnel as a table on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("step", "documents in → out", "characters in → out", "dropped", "example", title="funnel")
    for s in steps:
        why = ", ".join(f"{reason} {n:,}" for reason, n in s.dropped.most_common(4))
        example = s.examples[0]["text"][:60].replace("\n", " ") if s.examples else ""
        table.add_row(
            s.step, f"{s.docs_in:,} → {s.docs_out:,}", f"{s.chars_in:,} → {s.chars_out:,}", why, escape(example)
        )
    console = Console()
    console.print(table)
    for reason, n in skipped.most_common(8):
        console.print(f"skipped {n}: {escape(reason)}")


def print_dirt(dirt: dict[str, Any]) -> None:
    """How much of the planted dirt is gone."""
    gone = ", ".join(f"{kind} {d['share']:.1%} of {d['planted']:,}" for kind, d in dirt.items() if kind != "good")
    print(f"planted dirt removed: {gone}")
    if "good" in dirt:
        print(f"good documents lost: {dirt['good']['share']:.2%} of {dirt['good']['planted']:,}")
