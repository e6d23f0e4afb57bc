"""Tasks: examples of what goes in and what should come out."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jielong.errors import UserError
from jielong.prompt.form import whole


@dataclass(frozen=True)
class Item:
    """One example; of several right answers demonstrations show the first."""

    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    name: str
    items: tuple[Item, ...]
    labels: tuple[str, ...] = ()
    """The only answers that there are; none = any text."""


def read_task(path: Path) -> Task:
    """JSON lines with `input`, `output` (text, or a list of right answers) and, on every line or on the first one only,
    `labels`. Raises UserError that names the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other line ends, such as U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    items: list[Item] = []
    labels: tuple[str, ...] = ()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is no valid JSON: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("input"), str) or not row["input"].strip():
            raise UserError(f"{where} needs a text as input.")
        whole(row["input"], f"{where}: input")
        outputs = _texts(row.get("output"), f"{where}: output")
        if "labels" in row:
            own = _texts(row["labels"], f"{where}: labels")
            if len(set(own)) < max(2, len(own)):
                raise UserError(f"{where}: labels must be at least two different texts.")
            if long := [label for label in own if len(label.splitlines()) > 1]:
                raise UserError(f"{where}: the label {long[0]!r} must stand on one line.")
            if (labels and set(own) != set(labels)) or (items and not labels):
                raise UserError(f"{where}: labels differ from those of the first line; a task has one set of labels.")
            labels = labels or own
        if labels and not set(outputs) <= set(labels):
            raise UserError(f"{where}: the output {outputs[0]!r} is not among the labels {', '.join(labels)}.")
        items.append(Item(row["input"].strip(), outputs))
    if not items:
        raise UserError(f"{path} has no examples.")
    return Task(path.stem, tuple(items), labels)


def _texts(value: object, what: str) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(v, str) and v.strip() for v in found):
        raise UserError(f"{what} must be a text, or a list of texts, none of them empty.")
    return tuple(whole(v.strip(), what) for v in found)


# how right an answer is


def words(text: str) -> list[str]:
    """Words in small letters, without punctuation and English articles; each Chinese character is a word."""
    text = unicodedata.normalize("NFKC", text).lower()
    found = re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text)
    return [w for w in found if w not in ("a", "an", "the")] or found


def exact(answer: str, outputs: Sequence[str]) -> float:
    """1 when the answer has the same words as one of the outputs, in their order, else 0 (SQuAD's exact match)."""
    return float(any(words(answer) == words(o) for o in outputs))


def f1(answer: str, outputs: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the answer's words, against the output that fits best (SQuAD's F1)."""

    def one(output: str) -> float:
        mine, theirs = Counter(words(answer)), Counter(words(output))
        common = sum((mine & theirs).values())
        return 2 * common / (mine.total() + theirs.total()) if common else 0.0

    return max(map(one, outputs))


METRICS = {"exact": exact, "f1": f1}
