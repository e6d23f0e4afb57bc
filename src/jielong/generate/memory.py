"""Corrections that a model is told instead of having them in its weights: each is a sentence, put before a question that names
its subject (in-context editing: Zheng et al. 2023, IKE; Zhong et al. 2023, MeLLo)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jielong.run import write_atomic

MEMORY = "memory.json"
WORD = re.compile(r"[A-Za-z0-9\u00c0-\u024f]")


@dataclass(frozen=True)
class Note:
    """`text` is told where `subject` is asked about."""

    subject: str
    text: str


@dataclass(frozen=True)
class Memory:
    notes: tuple[Note, ...] = ()

    def recalled(self, text: str) -> list[str]:
        """The sentences that belong to the subjects that a text names."""
        raw = text.encode()
        return [n.text for n in self.notes if occurrences(raw, n.subject)]

    def told(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The conversation with what is recalled at the beginning of its last message, so that a short context keeps it."""
        given = list(messages)
        if given and given[-1].get("role") == "user" and isinstance(given[-1].get("content"), str):
            asked = given[-1]["content"]
            given[-1] = {**given[-1], "content": "\n".join([*self.recalled(asked), asked])}
        return given

    def save(self, folder: Path) -> None:
        write_atomic(folder / MEMORY, json.dumps([asdict(n) for n in self.notes], ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Memory:
        """Empty where the artifact has none."""
        file = folder / MEMORY
        if not file.is_file():
            return cls()
        return cls(tuple(Note(**n) for n in json.loads(file.read_text(encoding="utf-8"))))


def occurrences(text: bytes, subject: str) -> list[int]:
    """Where each occurrence of the subject ends in `text`, in bytes; not inside a longer word (Niger in Nigeria)."""
    found, raw, at = [], subject.encode(), -1
    while (at := text.find(raw, at + 1)) >= 0:
        end = at + len(raw)
        left = text[max(0, at - 4) : at].decode("utf-8", "ignore")[-1:]  # a character has at most four bytes
        right = text[end : end + 4].decode("utf-8", "ignore")[:1]
        if (WORD.match(left) and WORD.match(subject[0])) or (WORD.match(right) and WORD.match(subject[-1])):
            continue
        found.append(end)
    return found
