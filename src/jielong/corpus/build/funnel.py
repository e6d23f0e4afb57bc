"""The funnel: what went into every step and came out, why documents fell, and what that means for 45 TB."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

EXAMPLES = 4  # of each reason
EXAMPLE_CHARS = 160
CRAWL_BYTES = 45e12  # what Common Crawl gave GPT-3 before filtering (Brown et al. 2020, section 2.2); 570 GB were left
UNITS = ("docs", "chars", "bytes", "tokens")


def measure(text: str) -> tuple[int, int, int, float]:
    """(1 document, characters, UTF-8 bytes, estimated tokens) of a text.

    A Chinese character takes 3 bytes and about 1/1.5 token, another one about 1 byte and 1/4.3 token: the means of a
    32k vocabulary on English and Traditional Chinese prose. A real count needs the tokenizer that comes later.
    """
    chars = len(text)
    size = chars if text.isascii() else len(text.encode("utf-8", "replace"))
    wide = min(chars, (size - chars) / 2)
    return 1, chars, size, wide / 1.5 + (chars - wide) / 4.3


class Tally:
    """One step's row of the funnel in one task."""

    def __init__(self, step: str):
        self.step = step
        self.rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"in": [0] * 4, "out": [0] * 4})
        """source/language → documents, characters, bytes and tokens in and out."""
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        """Counts of what was changed rather than dropped."""
        self.examples: dict[str, list[tuple[str, str]]] = {}

    def enter(self, document: Any) -> None:
        self._add(document, "in")

    def leave(self, document: Any) -> None:
        self._add(document, "out")

    def _add(self, document: Any, side: str) -> None:
        row = self.rows[f"{document.metadata['source']}/{document.metadata['lang']}"][side]
        for k, value in enumerate(measure(document.text)):
            row[k] += value

    def drop(self, document: Any, reason: str) -> None:
        self.dropped[reason] += 1
        self._example(reason, document.id, document.text)

    def note(self, what: str, count: int, document: Any) -> None:
        """Something was changed; the example is the end of the changed text."""
        self.notes[what] += count
        self._example(what, document.id, document.text[-EXAMPLE_CHARS:])

    def unreadable(self, source: str, path: str, reason: str) -> None:
        """A file or record that could not be read; faults that differ in names and numbers alone count as one."""
        self.rows[f"{source}/"]["in"][0] += 1
        name = rf"(?<!\w){re.escape(path.rstrip('/').rpartition('/')[2])}(?!\w)"
        kind = re.sub(name, "a file", re.sub(f"{name}, ", "", reason.replace(path, "a file")))
        self.dropped[re.sub(r"\d[\d,.]*", "N", kind.split(" (")[0])[:60]] += 1

    def _example(self, reason: str, key: str, text: str) -> None:
        """A random sample that is the same however the work is shared out: the smallest hashes."""
        rank = hashlib.sha256(f"{reason}/{key}".encode()).hexdigest()[:12]
        rows = self.examples.setdefault(reason, [])
        if len(rows) < EXAMPLES or rank < rows[-1][0]:
            rows.append((rank, text[:EXAMPLE_CHARS]))
            rows.sort()
            del rows[EXAMPLES:]

    def save(self, folder: Any, rank: int) -> None:
        """Write funnel/STEP/RANK.json below a datatrove folder."""
        data = {"rows": self.rows, "dropped": self.dropped, "notes": self.notes, "examples": self.examples}
        with folder.open(f"funnel/{self.step}/{rank:05d}.json", "w", encoding="utf-8") as f:
            json.dump(data, f, ensure_ascii=False)


def merged(step: str, parts: Iterable[dict[str, Any]]) -> Tally:
    """The row of all tasks together, whatever their order."""
    whole = Tally(step)
    samples: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for part in parts:
        for key, row in part["rows"].items():
            for side in ("in", "out"):
                whole.rows[key][side] = [a + b for a, b in zip(whole.rows[key][side], row[side], strict=True)]
        whole.dropped.update(part["dropped"])
        whole.notes.update(part["notes"])
        for reason, rows in part["examples"].items():
            samples[reason] += [tuple(row) for row in rows]
    whole.examples = {reason: sorted(rows)[:EXAMPLES] for reason, rows in sorted(samples.items())}
    return whole


def hide(tallies: Iterable[Tally], texts: Iterable[str]) -> None:
    """Take out the examples that show one of these texts: what a run has forgotten is not shown in its report."""
    texts = list(texts)
    for tally in tallies:
        for reason, rows in tally.examples.items():
            tally.examples[reason] = [r for r in rows if not any(r[1] in t or t in r[1] for t in texts)]


def read_funnel(folder: Any, steps: list[str]) -> list[Tally]:
    """The rows of the steps, in their order, of everything that the tasks saved."""
    found = []
    for step in steps:
        names = sorted(folder.list_files(f"funnel/{step}"))
        parts = []
        for name in names:
            with folder.open(name, "r", encoding="utf-8") as f:
                parts.append(json.load(f))
        found.append(merged(step, parts))
    return found


def _totals(rows: Iterable[dict[str, list[float]]], side: str) -> dict[str, int]:
    sums = [0.0] * 4
    for row in rows:
        sums = [a + b for a, b in zip(sums, row[side], strict=True)]
    return {f"{unit}_{side}": round(value) for unit, value in zip(UNITS, sums, strict=True)}


def _by(tallies: list[Tally], part: int) -> dict[str, dict[str, dict[str, int]]]:
    """source (part 0) or language (part 1) → step → documents, characters, bytes and tokens in and out."""
    table: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    for tally in tallies:
        groups = defaultdict(list)
        for key, row in tally.rows.items():
            groups[key.rsplit("/", 1)[part]].append(row)
        for name, rows in groups.items():
            if name:
                table[name][tally.step] = _totals(rows, "in") | _totals(rows, "out")
    return {name: table[name] for name in sorted(table)}


def funnel_report(tallies: list[Tally]) -> dict[str, Any]:
    """The funnel as plain data: steps, sources, languages, and 45 TB at the same rates."""
    steps = []
    for tally in tallies:
        rows = list(tally.rows.values())
        samples = [{"reason": r, "text": text} for r, found in sorted(tally.examples.items()) for _, text in found]
        order = sorted(tally.dropped.items(), key=lambda item: (-item[1], item[0]))
        steps.append(
            {"step": tally.step, **_totals(rows, "in"), **_totals(rows, "out"), "dropped": dict(order)}
            | {"changed": dict(sorted(tally.notes.items())), "examples": samples}
        )
    return {
        "steps": steps,
        "sources": _by(tallies, 0),
        "languages": _by(tallies, 1),
        "crawl": crawl(steps),
    }


def crawl(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """What `CRAWL_BYTES` would become: bytes and tokens after every step, if it fell at the rates of this corpus."""
    first = steps[0]["bytes_out"] if steps else 0
    rows = [
        {
            "step": s["step"],
            "bytes": round(CRAWL_BYTES * s["bytes_out"] / first),
            "tokens": round(CRAWL_BYTES * s["tokens_out"] / first),
        }
        for s in steps
        if first
    ]
    return {"bytes": round(CRAWL_BYTES), "steps": rows}
