"""The ledger of a run: what was changed in it, when, how, and with which figures. Append-only, hash-chained, signed.

One JSON object a line. Each names the hash of the one before, so that a line that was altered, removed or moved is noticed; each
is signed (HMAC-SHA256) with a key that lies outside the run's folder, so that nobody without it can write a new chain; and
`changes.head` names the last one, so that a cut-off end is noticed, too. What none of this shows is that somebody put back an
older copy of both files: keep the last hash elsewhere where that matters.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jielong.errors import UserError
from jielong.run import Run, plain, write_atomic

LEDGER, HEAD, KEY = "changes.jsonl", "changes.head", "changes.key"
FIRST = "0" * 64  # what the first entry follows
OWN = ("number", "kind", "time", "prev", "hash", "signature")  # the ledger's own fields
Entry = dict[str, Any]


class Ledger:
    """`RUN/changes.jsonl`. Whoever writes holds the run's lock.

    `key` is the file of the signing key, by default `changes.key` beside the run's folder, so that one key serves all runs in a
    folder and a copy of a run does not carry it. It is made with the first entry.
    """

    def __init__(self, run: Run, key: Path | None = None):
        self.path, self.head = run.path / LEDGER, run.path / HEAD
        self.key = key or run.path.parent / KEY

    def entries(self) -> list[Entry]:
        """Every entry, oldest first. Raises UserError that names the line from which on the chain is broken; where the key is at
        hand, also one that it did not sign, or an end that was cut off."""
        entries, problems = self._read()
        if problems := problems or (self.problems() if self.key.exists() else []):
            raise UserError(f"{problems[0]} Restore the file from a copy; until then nothing is changed.")
        return entries

    def append(self, kind: str, **what: Any) -> Entry:
        """Add an entry and flush it to the disk; returns it. Raises UserError when what is there does not verify."""
        if clash := what.keys() & set(OWN):
            raise ValueError(f"the ledger itself writes {', '.join(sorted(clash))}")
        known, key = self.entries(), self._key(make=True)
        entry = {
            "number": len(known) + 1,
            "kind": kind,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **plain(what),
            "prev": known[-1]["hash"] if known else FIRST,
        }
        entry["hash"] = seal(entry)
        entry["signature"] = sign(key, entry["hash"])
        raw = self.path.read_bytes() if self.path.exists() else b""
        write_atomic(self.path, raw + json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        count, last = entry["number"], entry["hash"]
        write_atomic(self.head, json.dumps({"count": count, "hash": last, "signature": sign(key, f"{count}/{last}")}))
        return entry

    def problems(self) -> list[str]:
        """What does not verify, in words that name the line; empty when all is well."""
        entries, problems = self._read()
        if not entries and not problems and not self.head.exists():
            return []
        try:
            key = self._key()
        except UserError as error:
            return [*problems, str(error)]
        for entry in entries:
            if not hmac.compare_digest(sign(key, str(entry["hash"])), str(entry.get("signature"))):
                problems.append(f"{self.path}, line {entry['number']}, was not signed with the key {self.key}.")
        return problems or self._end(entries, key)

    def fingerprint(self, text: str, salt: str) -> str:
        """HMAC-SHA256 of a salted text: without the key, nobody finds a short text by trying all."""
        whole = f"text/{salt}/{text}".encode("utf-8", "replace")
        return hmac.new(self._key(make=True), whole, hashlib.sha256).hexdigest()

    def _read(self) -> tuple[list[Entry], list[str]]:
        """The entries up to the first line that does not fit, and what is wrong with that one and those behind it."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], []
        if lines[-1] == b"":
            lines.pop()
        found: list[Entry] = []
        problems: list[str] = []
        before = FIRST
        for number, line in enumerate(lines, 1):
            entry: Entry = {}
            try:
                entry = json.loads(line)
                follows = entry["prev"] == before and entry["number"] == number
                whole, before = entry["hash"] == seal(entry), entry["hash"]
            except (ValueError, KeyError, TypeError):
                follows = whole = False
            if not whole:
                problems.append(f"{self.path} was changed by hand: line {number} does not fit its own hash.")
            elif not follows:
                problems.append(f"{self.path} was changed by hand: line {number} does not fit the one before it.")
            elif not problems:
                found.append(entry)
        return found, problems

    def _end(self, entries: list[Entry], key: bytes) -> list[str]:
        """Does the head name the last entry, or, where a crash came between, the one before?"""
        try:
            head = json.loads(self.head.read_text(encoding="utf-8"))
            count, last = int(head["count"]), str(head["hash"])
            genuine = hmac.compare_digest(sign(key, f"{count}/{last}"), str(head["signature"]))
        except FileNotFoundError:
            return [] if len(entries) <= 1 else [f"{self.head} is missing."]
        except (OSError, ValueError, KeyError, TypeError):
            return [f"{self.head} is damaged."]
        if not genuine:
            return [f"{self.head} was not signed with the key {self.key}."]
        if len(entries) < count:
            return [f"{self.path} ends with line {len(entries)}, but {count} were written: its end was cut off."]
        if len(entries) > count + 1 or entries[count - 1]["hash"] != last:
            return [f"{self.head} does not name the last line of {self.path}."]
        return []

    def _key(self, make: bool = False) -> bytes:
        """The signing key; it is made where there is neither key nor ledger. Raises UserError when it is lost or damaged."""
        if not self.key.exists():
            if not make or self.path.exists():
                raise UserError(f"The signing key {self.key} is missing; put it back, or name its place with --key.")
            self._make_key()
        try:
            key = bytes.fromhex(self.key.read_text(encoding="ascii").strip())
        except (OSError, ValueError) as error:
            raise UserError(f"The signing key {self.key} cannot be read ({error}).") from error
        if len(key) != 32:
            raise UserError(f"The signing key {self.key} is damaged: it has {len(key)} bytes, not 32.")
        return key

    def _make_key(self) -> None:
        """Whole or not at all; of two runs that make one at once, both use the one that was first."""
        self.key.parent.mkdir(parents=True, exist_ok=True)
        beside = self.key.with_name(f".{self.key.name}.{secrets.token_hex(8)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w", encoding="ascii") as f:
                f.write(secrets.token_hex(32))
                f.flush()
                os.fsync(f.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(beside, self.key)
        finally:
            beside.unlink()


def seal(entry: Entry) -> str:
    """Hex SHA-256 of everything in the entry but its own hash and signature."""
    core = {k: v for k, v in entry.items() if k not in ("hash", "signature")}
    return hashlib.sha256(json.dumps(core, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sign(key: bytes, text: str) -> str:
    """Hex HMAC-SHA256."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
