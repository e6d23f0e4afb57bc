"""What this server has generated, without its wording: keyed sketches in an append-only file.

An answer is the set of its runs of five words (shingles), each hashed under a secret; half of the hash values are kept,
chosen by the value itself (a MinHash of fixed rate, so that parts of texts can be compared, too: Irber et al. 2022). The
file tells nobody without the secret what was said.

Each line bears a seal over itself and the line before (HMAC-SHA256): a changed, moved or missing line is found. Lines
that were cut off the end are not. A writer that is killed leaves at most half a line, which the next one removes: its
answer was never reported as written. Writers take turns by a lock.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from jielong.detect.evidence import Evidence, Span
from jielong.detect.normalise import Normal, normalise
from jielong.detect.sketch import Shingles, shingles
from jielong.errors import UserError
from jielong.run import write_atomic

FILE, SECRET = "ledger.jsonl", "ledger.key"
KEPT = 1 << 63  # hashes below it are kept: one half
WHOLE = 20  # words (characters) from which on an equal text can be no accident
SHORTEST = 12  # words; a shorter answer is not entered: everybody writes such
FEWEST = 99  # human documents of a text's length for a p-value
SEAL = 32  # hexadecimal digits


@dataclass(frozen=True)
class Entry:
    id: str
    """Of the answer, as the API gave it."""
    day: str
    model: str
    user: str
    """Keyed hash of the user's name."""
    whole: int
    """Keyed hash of the whole text."""
    marks: np.ndarray
    """(M,) uint64, sorted."""


@dataclass(frozen=True)
class Match:
    """The entry that shares the most with a text."""

    entry: Entry | None
    shared: int
    """Marks that both have."""
    of: int
    """Marks of the text."""
    whole: bool
    """The very same text, apart from case, spaces and punctuation?"""
    places: list[int]
    """Shingles of the text that are shared."""


class Ledger:
    """A folder with the file and its secret. It is made with the first `add`."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / FILE
        self._entries: list[Entry] = []
        self._marks = np.zeros(0, np.uint64)  # of all entries, sorted, with their owners
        self._owners = np.zeros(0, np.int64)
        self._read = 0  # bytes of the file that are read
        self._seal = ""
        self._stamp = (0, 0)  # device and inode: another file was put in its place by `erase`
        self._lock = FileLock(folder / ".ledger.lock", is_singleton=False)
        self._key: bytes | None = None
        # of human documents: their keyed marks, and, until something is entered, what they share with the answers
        self._cut: tuple[Sequence[np.ndarray], list[np.ndarray]] = ((), [])
        self._known: tuple[tuple, np.ndarray] = ((), np.zeros((0, 2), np.int64))

    # secrets

    def _secret(self, make: bool = False) -> bytes:
        if self._key is None:
            path = self.folder / SECRET
            if make and not path.exists():
                if self.file.exists() and self.file.stat().st_size:
                    raise UserError(
                        f"{path} is missing, so that nothing in {self.file} can be found; restore it, or move both away."
                    )
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(file, "w") as f:
                    f.write(secrets.token_hex(32))
            try:
                self._key = bytes.fromhex(path.read_text().strip())
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{path} is missing or damaged, so that nothing in {self.file} can be found; restore it, or move both away."
                ) from error
        return self._key

    def _hash(self, data: bytes, what: str) -> int:
        return int.from_bytes(blake2b(data, key=self._secret(), digest_size=8, person=what.encode()).digest(), "big")

    def _sealed(self, before: str, body: str) -> str:
        return hmac.new(self._secret(), f"{before}\n{body}".encode(), "sha256").hexdigest()[:SEAL]

    def marks(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keyed marks (M,) uint64 of shingles, each once, and the place (M,) of its first shingle."""
        unique, first = np.unique(hashes, return_index=True)
        keyed = np.array([self._hash(h.tobytes(), "shingle") for h in unique], dtype=np.uint64)
        kept = keyed < KEPT
        order = np.argsort(keyed[kept], kind="stable")
        return keyed[kept][order], first[kept][order]

    # writing

    def add(self, id: str, text: str, model: str = "", user: str = "") -> bool:
        """Enter an answer; False where it is too short to be told from everybody's. Raises UserError when the ledger is
        damaged."""
        cut = shingles(normalise(text).text)
        if cut.units < SHORTEST:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._secret(make=True)
            marks = self.marks(cut.hashes)[0]
            day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
            entry = Entry(id, day, model, self._user(user), self._whole(cut), marks)
            seal = self._last_seal()
            with open(self.file, "ab") as f:
                f.write(self._line(entry, seal).encode())
        return True

    def _user(self, name: str) -> str:
        return f"{self._hash(name.encode(), 'user'):016x}" if name else ""

    def _whole(self, cut: Shingles) -> int:
        return self._hash(cut.words.encode(), "whole")

    def _line(self, entry: Entry, before: str) -> str:
        packed = base64.b64encode(entry.marks.astype(">u8").tobytes()).decode()
        row = {"id": entry.id, "day": entry.day, "model": entry.model, "user": entry.user, "whole": f"{entry.whole:016x}", "marks": packed}  # fmt: skip
        body = json.dumps(row, ensure_ascii=False)
        return f"{self._sealed(before, body)} {body}\n"

    def _last_seal(self) -> str:
        """The seal of the last whole line; half a line behind it is removed. Under the lock."""
        if not self.file.exists():
            return ""
        with open(self.file, "r+b") as f:
            end = f.seek(0, os.SEEK_END)
            tail = b""
            while end > 0 and tail.count(b"\n") < 2:  # the last line's end, and the end of the one before
                step = min(1 << 16, end)
                end -= step
                f.seek(end)
                tail = f.read(step) + tail
            whole = tail[: tail.rfind(b"\n") + 1]
            if len(whole) < len(tail):
                f.truncate(end + len(whole))
        lines = whole.splitlines()
        return lines[-1][:SEAL].decode("ascii", "replace") if lines else ""

    # reading

    def entries(self) -> list[Entry]:
        """All of them. Raises UserError that names the first line whose seal is broken."""
        self._refresh()
        return self._entries

    def _refresh(self) -> None:
        """Read what was added since; all anew where the file is another one."""
        if not self.file.exists():
            self._forget_all()
            return
        with open(self.file, "rb") as f:
            status = os.fstat(f.fileno())
            if (status.st_dev, status.st_ino) != self._stamp or status.st_size < self._read:
                self._forget_all()
                self._stamp = (status.st_dev, status.st_ino)
            try:
                self._go_on(f)
            except UserError:
                if not self._entries:
                    raise
                # another file may have got the number of one that `erase` replaced: only the whole of it tells
                self._forget_all()
                self._go_on(f)
                self._stamp = (status.st_dev, status.st_ino)

    def _go_on(self, f: BinaryIO) -> None:
        f.seek(self._read)
        data = f.read()
        data = data[: data.rfind(b"\n") + 1]  # half a line: someone is writing, or was killed
        fresh, seal = [], self._seal
        for line in data.splitlines():
            entry, seal = self._parse(line, len(self._entries) + len(fresh) + 1, seal)
            fresh.append(entry)
        if fresh:
            owners = np.repeat(np.arange(len(fresh)) + len(self._entries), [len(e.marks) for e in fresh])
            marks = np.concatenate([self._marks, *(e.marks for e in fresh)])
            owners = np.concatenate([self._owners, owners])
            order = np.argsort(marks, kind="stable")
            self._marks, self._owners = marks[order], owners[order]
            self._entries = [*self._entries, *fresh]
        self._read, self._seal = self._read + len(data), seal

    def _forget_all(self) -> None:
        self._entries, self._read, self._seal, self._stamp = [], 0, "", (0, 0)
        self._marks, self._owners = np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def _parse(self, line: bytes, number: int, before: str) -> tuple[Entry, str]:
        try:
            seal, _, body = line.decode("utf-8").partition(" ")
            if not hmac.compare_digest(seal, self._sealed(before, body)):
                raise ValueError
            row = json.loads(body)
            marks = np.frombuffer(base64.b64decode(row["marks"]), ">u8").astype(np.uint64)
            return Entry(row["id"], row["day"], row["model"], row["user"], int(row["whole"], 16), marks), seal
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.file}, line {number}, does not fit its seal: the ledger was changed or damaged there. Restore it "
                "from a copy, or move it away to begin a new one."
            ) from error

    def erase(self, ids: Sequence[str] = (), user: str = "") -> int:
        """Take entries out, by answer (with its further choices, ID:1, ID:2, …, or one of these) or by user; how many. The file
        is written anew, whole or not at all."""
        if not self.file.exists():
            return 0
        with self._lock:
            self._last_seal()
            self._refresh()
            name, named = self._user(user), set(ids)
            kept = [
                e for e in self._entries if not {e.id, e.id.partition(":")[0]} & named and not (name and e.user == name)
            ]
            gone = len(self._entries) - len(kept)
            if gone:
                lines, seal = [], ""
                for entry in kept:
                    lines.append(line := self._line(entry, seal))
                    seal = line[:SEAL]
                write_atomic(self.file, "".join(lines))
            return gone

    # finding

    def match(self, cut: Shingles, marked: tuple[np.ndarray, np.ndarray] | None = None) -> Match:
        """The entry that shares the most marks with a text. marked: its `marks`, where they are at hand."""
        self._refresh()
        if not self._entries:
            return Match(None, 0, 0, False, [])
        marks, places = self.marks(cut.hashes) if marked is None else marked
        best, shared = self._best(marks)
        whole = self._whole(cut)
        same = next((e for e in reversed(self._entries) if e.whole == whole), None)
        entry = same or (self._entries[best] if shared else None)
        if entry is None:
            return Match(None, 0, len(marks), False, [])
        hit = np.isin(marks, entry.marks)
        return Match(entry, int(hit.sum()), len(marks), same is not None, sorted(places[hit].tolist()))

    def _best(self, marks: np.ndarray) -> tuple[int, int]:
        """(place of the entry, shared marks)"""
        low, high = np.searchsorted(self._marks, marks, "left"), np.searchsorted(self._marks, marks, "right")
        held = low < high
        owners = np.concatenate([self._owners[:0], *(self._owners[a:b] for a, b in zip(low[held], high[held]))])
        if not len(owners):
            return 0, 0
        counts = np.bincount(owners)
        return int(counts.argmax()), int(counts.max())

    def examine(self, normal: Normal, humans: Sequence[np.ndarray] = (), corpus: str = "") -> Evidence:
        """Was this text, or a part of it, generated here? humans: shingles of human documents in its language, named `corpus`,
        for the p-value of a part: the same search, made with them. Raises UserError when the ledger is damaged."""
        if not self.file.exists():
            return Evidence("ledger", "ledger", None, notes=("the ledger is empty",))
        cut = shingles(normal.text)
        if cut.units < SHORTEST:
            return Evidence(
                "ledger", "ledger", None, n=cut.units, notes=(f"too short: {cut.units} words, {SHORTEST} are needed",)
            )
        marked = self.marks(cut.hashes)
        found = self.match(cut, marked)
        share = found.shared / found.of if found.of else 0.0
        spans = _joined([cut.spans[i] for i in found.places], normal)
        notes = []
        if found.entry:
            part = "this very text" if found.whole else f"{share:.0%} of its runs of five words"
            notes.append(f"{part} in an answer of {found.entry.model or 'a model'} of {found.entry.day}")
        if found.whole and cut.units >= WHOLE:
            p = max(len(self._entries) * 2.0**-64, 1e-300)
            return Evidence("ledger", "ledger", 1.0, p, "exact", cut.units, spans, tuple(notes))
        p, null = self._p(marked, humans, corpus)
        if p is None:
            notes.append(
                f"no p-value: too few human documents of its language are at hand ({len(humans)}; {FEWEST} are needed)"
            )
        return Evidence("ledger", "ledger", share, p, null, cut.units, spans, tuple(notes))

    def _p(
        self, marked: tuple[np.ndarray, np.ndarray], humans: Sequence[np.ndarray], corpus: str
    ) -> tuple[float | None, str]:
        """P(a human text shares as much with one entry): only humans with at least as many marks are asked, since a longer
        text shares more by accident. Where fewer than FEWEST are as long, the text is cut into equal parts that are short
        enough, and the smallest p counts as often as there are parts (Bonferroni). marked: marks and their places."""
        human = self._humans(humans)  # (N, 2): shared, marks
        if len(human) < FEWEST:
            return None, ""
        marks, places = marked
        reach = max(1, int(np.sort(human[:, 1])[-FEWEST]))
        parts = np.array_split(marks[np.argsort(places)], max(1, -(-len(marks) // reach)))  # none has more than `reach`
        found, asked = [], len(human)
        for part in parts:
            as_long = human[human[:, 1] >= len(part), 0]
            asked = min(asked, len(as_long))
            found.append((1 + int((as_long >= self._best(part)[1]).sum())) / (len(as_long) + 1))
        return min(1.0, len(parts) * min(found)), f"human:{corpus},n={asked}"

    def _humans(self, humans: Sequence[np.ndarray]) -> np.ndarray:
        """(N, 2): the most marks that each shares with one entry, and how many it has."""
        if self._cut[0] is not humans:
            self._cut, self._known = (humans, [self.marks(h)[0] for h in humans]), ((), self._known[1])
        state = (len(self._entries), self._seal)
        if self._known[0] != state:
            shared = [(self._best(marks)[1], len(marks)) for marks in self._cut[1]]
            self._known = (state, np.array(shared, dtype=np.int64).reshape(-1, 2))
        return self._known[1]


def _joined(spans: Sequence[tuple[int, int]], normal: Normal) -> tuple[Span, ...]:
    """Overlapping spans as one, in the original text."""
    merged: list[list[int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return tuple(Span(*normal.place(a, b), 1.0) for a, b in merged)
