"""Answers that were paid for: kept line by line, so that the same command continues after any interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jielong.prompt.answer import Reply
from jielong.run import plain


class Journal:
    """Replies by key. A journal of another making (`making`: whatever decides the answers) is begun anew, with the first
    reply; of a last line that was cut off in the middle nothing is kept."""

    def __init__(self, path: Path, making: Any):
        made = json.dumps(plain(making), sort_keys=True, default=str)
        self.path, self.found = path, dict[str, Reply]()
        self._first = f"{hashlib.sha256(made.encode(errors='surrogatepass')).hexdigest()}\n"
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        self._begun = bool(whole) and whole[0] == self._first.encode()
        if not self._begun:
            return
        if len(whole) < len(lines):
            path.write_bytes(b"".join(whole))
        for line in whole[1:]:
            key, text, probabilities = json.loads(line)
            self.found[key] = Reply(text, tuple(probabilities))

    def add(self, replies: dict[str, Reply]) -> None:
        lines = [json.dumps([k, r.text, r.probabilities], ensure_ascii=False) + "\n" for k, r in replies.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a" if self._begun else "w", encoding="utf-8") as f:
            f.writelines(lines if self._begun else [self._first, *lines])
        self.found |= replies
        self._begun = True

    def close(self) -> None:
        """All is done with the answers: the file goes."""
        self.path.unlink(missing_ok=True)


@contextmanager
def bar(title: str, total: int) -> Iterator[Any]:
    """A bar of answers on a terminal; yields `advance(count)`."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
