"""A forgetting in a process of its own, as the server starts it. The request comes over standard input, since arguments are seen by
others and files stay; what is kept of it is the journal, which has no word of it."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from jielong.config import ForgetConfig, SuppressConfig
from jielong.errors import Unclear, UserError
from jielong.forget import commit
from jielong.forget.items import Examples, Rows
from jielong.forget.request import SHORTEST, as_word
from jielong.forget.stage import run as forget
from jielong.forget.telling import JOURNAL, Journal
from jielong.run import Run
from jielong.train.bar import listening

STOPPED = "Stopped, and nothing was changed. The same request goes on where this one was."


def main() -> int:
    """Exit codes as those of `jielong`. Nothing is printed: a message might say what is to be forgotten."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server in the background ignores it, and so would this
    config, examples = received(sys.stdin)
    run = Run(config.run)
    return work(config, run, Journal(run.path / JOURNAL), examples)


def received(stream: TextIO) -> tuple[ForgetConfig, Examples]:
    """The settings and the examples that `asked` wrote."""
    found: dict[str, Any] = json.loads(stream.read())
    examples = {
        part: rows and Rows(rows["name"], tuple((n, row) for n, row in rows["rows"]), rows["each"])
        for part, rows in found.pop("examples").items()
    }
    found |= {name: tuple(found[name]) for name in ("record", "name", "grep")}
    found |= {"run": Path(found["run"]), "suppress": SuppressConfig(**found["suppress"])}
    return ForgetConfig(**found, yes=True), Examples(**examples)


def asked(config: ForgetConfig, examples: Examples) -> str:
    """A request for `received`: what is asked for, of which run, and how. It names no files."""
    names = ("record", "name", "grep", "owner", "method", "twins", "samples", "who", "why", "store")
    found = {name: getattr(config, name) for name in names}
    return json.dumps(
        found | {"run": str(config.run), "suppress": asdict(config.suppress), "examples": asdict(examples)}
    )


def work(config: ForgetConfig, run: Run, journal: Journal, examples: Examples | None = None) -> int:
    """Forget, and tell the journal."""

    def tell(event: str, **what: Any) -> None:
        if what.get("stage") == "commit":  # takes seconds, and may not end half done
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        journal.tell(event, **what)

    tell("start", method=config.method)
    try:
        with listening(lambda title, step, steps: journal.tell("step", stage=title, step=step, of=steps)):
            entry = forget(config, run, tell, examples)
    except Unclear as problem:
        tell("error", code=problem.code, message=unspoken(str(problem), config, examples))
        return 2
    except UserError as problem:
        tell("error", code=None, message=unspoken(str(problem), config, examples))
        return 2
    except KeyboardInterrupt:
        tell("error", code="stopped", message=STOPPED)
        return 130
    except BaseException as problem:  # its own words may quote a text
        where = traceback.extract_tb(problem.__traceback__)[-1]
        place = f"{type(problem).__name__} in {Path(where.filename).name}, line {where.lineno}"
        left = "it must be finished" if commit.pending(run) else "nothing was changed"
        tell("error", code=None, message=f"It failed ({place}); {left}.")
        return 1
    if entry is not None:
        tell("result", number=entry["number"], kind=entry["kind"], word=entry["word"], model=run.serving())
    return 0


def unspoken(message: str, config: ForgetConfig, examples: Examples | None = None) -> str:
    """The message, or another one where it says what is to be forgotten. An owner's name and examples, which may be short, count
    where they stand as words."""
    said = message.casefold()
    whole = any(text.casefold() in said for text in (*config.name, *config.grep, *config.record) if text.strip())
    named = config.owner and as_word(config.owner).search(message)
    if whole or named or _spoken(message, examples.words() if examples else ()):
        return "It was refused, for a reason that quotes the request; `jielong forget` in a terminal shows it."
    return message


def _spoken(message: str, texts: Iterable[str]) -> bool:
    """Does one of the texts stand there as words?"""
    return any(as_word(text.strip()).search(message) for text in texts if SHORTEST <= len(text.strip()) <= len(message))
