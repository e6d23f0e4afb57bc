"""The new parts take their places, what is stale goes, and the ledger says so: step by step, each of which may be repeated.

What is to be done stands in `.forget/commit.json` before the first step. From then on the run can only go forward: whatever
stops it, `jielong forget RUN` goes on, and until then `Run.need` gives nothing out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jielong.changes.ledger import Entry, Ledger
from jielong.errors import UserError
from jielong.feedback.stage import store_of
from jielong.run import COMMIT, FORGETTING, STALE, Run, write_atomic

JOURNALS = ("improve.jsonl",)
OLD = ".forgotten"  # ends the name of what was swapped out and is about to be deleted


def pending(run: Run) -> dict[str, Any] | None:
    """The commit that was begun and not finished."""
    path = run.path / FORGETTING / COMMIT
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error


def begin(run: Run, what: dict[str, Any]) -> None:
    """From here on there is no way back. `what`: replace and stale (artifact names; of the latter, why), remove (files and folders
    of the run), feedback (ids), store, key, and the ledger's entry with its kind."""
    write_atomic(run.path / FORGETTING / COMMIT, json.dumps(what, ensure_ascii=False))


def finish(run: Run, what: dict[str, Any]) -> Entry:
    """Do what is left to do; the ledger's entry."""
    shadow = run.path / FORGETTING
    for name in what["replace"]:
        for part in (name, run.work(name).name):
            if (shadow / part).exists():
                _swap(shadow / part, run.path / part)
        (run.work(name) / "ready").unlink(missing_ok=True)
    for name, why in what["stale"].items():
        take_away(run, name, why)
    for name in what["remove"]:
        _remove(run.path / name)
    run.withdraw(what["stale"])
    if what["feedback"]:
        store_of(what["store"], run).forget(what["feedback"])
    ledger = Ledger(run, Path(what["key"]) if what["key"] else None)
    entry = next(
        (e for e in ledger.entries() if e.get("request", {}).get("id") == what["entry"]["request"]["id"]), None
    )
    entry = entry or ledger.append(what.get("kind", "forget"), **what["entry"])
    for left in run.path.glob(f".*{OLD}"):  # of a swap that was stopped behind its last rename
        shutil.rmtree(left)
    shutil.rmtree(shadow)
    return entry


def _swap(new: Path, place: Path) -> None:
    """`new` in the place of what is there."""
    old = place.with_name(f".{place.name.lstrip('.')}{OLD}")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def take_away(run: Run, name: str, why: str) -> None:
    """A folder that holds nothing but the reason, and no work folder beside it."""
    if not (run.path / name / STALE).is_file():
        beside = run.path / f".{name}.stale"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        write_atomic(beside / STALE, json.dumps({"why": why}, ensure_ascii=False))
        _swap(beside, run.path / name)
    if run.work(name).exists():
        shutil.rmtree(run.work(name))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
