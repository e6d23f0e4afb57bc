"""The ledger of a run: what was changed in its models, when, how, and with which figures.

One JSON object a line, only ever appended. Each names the hash of the one before, so that a line that was altered, removed
or moved is noticed; `verify` names it.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime, timezone
from typing import Any

from jielong.errors import UserError
from jielong.run import Run, plain

LEDGER = "changes.jsonl"
FIRST = "0" * 64
Entry = dict[str, Any]


def seal(entry: Entry) -> str:
    """Hex SHA-256 of everything in the entry but its own hash."""
    core = {k: v for k, v in entry.items() if k != "hash"}
    return hashlib.sha256(json.dumps(core, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Ledger:
    """`RUN/changes.jsonl`. Whoever writes holds the run's lock."""

    def __init__(self, run: Run):
        self.path = run.path / LEDGER

    def entries(self) -> list[Entry]:
        """Every entry, oldest first. Raises UserError that names the line from which on the chain is broken."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        if lines and lines[-1] == b"":
            lines.pop()
        found: list[Entry] = []
        before = FIRST
        for number, line in enumerate(lines, 1):
            entry: Entry = {}
            try:
                entry = json.loads(line)
                whole = entry["prev"] == before and entry["number"] == number and entry["hash"] == seal(entry)
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                raise UserError(
                    f"{self.path} was changed by hand: line {number} does not fit the one before it. "
                    "Restore the file from a copy; until then nothing is changed."
                )
            found.append(entry)
            before = entry["hash"]
        return found

    def append(self, kind: str, **what: Any) -> Entry:
        """Add an entry and flush it to the disk; returns it. Raises UserError when the chain is broken already."""
        known = self.entries()
        entry = {
            "number": len(known) + 1,
            "kind": kind,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **plain(what),
            "prev": known[-1]["hash"] if known else FIRST,
        }
        entry["hash"] = seal(entry)
        with open(self.path, "ab") as f:
            f.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            f.flush()
            os.fsync(f.fileno())
        return entry
