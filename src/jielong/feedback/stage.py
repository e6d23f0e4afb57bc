"""`jielong feedback`: look at the store, take out, bring in, erase."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

from jielong.config import FeedbackConfig
from jielong.errors import UserError
from jielong.feedback.exchange import export, read, statistics
from jielong.feedback.store import Capped, Store
from jielong.run import Run, write_atomic


def store_of(url: str, run: Run) -> Store:
    """The named store, or the run's own file. Raises UserError when it cannot be used."""
    return Store(url or run.path / "feedback.db")


def existing_store(url: str, run: Run) -> Store:
    """The same, where there must be feedback already. Raises UserError when there is none."""
    if not url and not (run.path / "feedback.db").is_file():
        raise UserError(f"{run.path} has no feedback yet; press a thumb in the page, or use `jielong feedback import`.")
    if url and "://" not in url and not Path(url).is_file():
        raise UserError(f"There is no feedback in {url}; check its name.")
    return store_of(url, run)


def run(config: FeedbackConfig, run: Run) -> None:
    """Do what `action` says. Raises UserError for everything that the user can mend."""
    store = store_of(config.store, run) if config.action == "import" else existing_store(config.store, run)
    if config.action == "list":
        _list(store)
    elif config.action == "stats":
        print(json.dumps(statistics(store), ensure_ascii=False, indent=1))
    elif config.action == "export":
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in export(store, config.format)]
        if config.file:
            write_atomic(config.file, "".join(lines))
            print(f"{config.file}: {len(lines)} rows")
        else:
            sys.stdout.writelines(lines)
    elif config.action == "import":
        if config.file is None:
            raise UserError("Name the file to read: jielong feedback import --file FILE.")
        _bring_in(config, store)
    else:
        if not config.user:
            raise UserError("Name whose feedback to erase: jielong feedback erase --user NAME.")
        events, answers = store.erase(config.user)
        print(
            f"Erased {events} events and {answers} answers of {config.user}; models trained with them are not changed."
        )


def _list(store: Store) -> None:
    events = store.current()
    answers = store.answers_of([e.answer for e in events if e.answer])
    for e in events:
        own = answers.get(e.answer or "")
        when = datetime.fromtimestamp(e.created).strftime("%Y-%m-%d %H:%M")
        said = f"{own.messages[-1]['content']} → {own.text}" if own else "(erased)"
        note = f"  [{e.text}]" if e.text else ""
        print(f"{e.id:6} {when} {e.user:16} {e.kind:8}{e.value:8} {said}{note}".replace("\n", " "))


def _bring_in(config: FeedbackConfig, store: Store) -> None:
    assert config.file
    found, stored, capped = read(config.file), 0, 0
    known = {(e.kind, e.user, e.answer, e.other, e.value, e.text) for e in store.all_events()}
    for answers, event in found:
        if (event.kind, event.user, event.answer, event.other, event.value, event.text) in known:
            continue
        try:
            store.add(event, answers)
            stored += 1
        except Capped:
            capped += 1
    print(f"{config.file}: {stored} of {len(found)} stored, {len(found) - stored - capped} were there already.")
    if capped:
        print(f"{capped} were left out: a user may leave {store.cap} a day.")
