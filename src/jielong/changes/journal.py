"""An entry in the ledger and the model that talks from then on: both or neither, whatever stops the process between them.

The entry decides. What is to follow it is written down first, so that whoever next has the run's lock can make it good; where the
process was stopped before the entry, the run is as it was.
"""

from __future__ import annotations

import json
from typing import Any

from jielong.changes.ledger import Entry, Ledger
from jielong.run import Run, write_atomic

BEGUN = ".change.json"


def conclude(run: Run, ledger: Ledger, kind: str, serve: str, **what: Any) -> Entry:
    """Add the entry, and let the artifact `serve` talk; the entry. The caller holds the run's lock. Raises UserError when the
    ledger does not verify."""
    begun = {"entry": len(ledger.entries()) + 1, "serve": serve, "promoted": run.promotions()}
    write_atomic(run.path / BEGUN, json.dumps(begun))
    entry = ledger.append(kind, **what)
    run.promote(serve)
    (run.path / BEGUN).unlink()
    return entry


def settle(run: Run, ledger: Ledger) -> None:
    """Make good what was stopped behind its entry. The caller holds the run's lock. Raises UserError when the ledger does not
    verify; nothing is changed then."""
    entries = ledger.entries()
    try:
        begun = json.loads((run.path / BEGUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if len(entries) >= begun["entry"] and run.promotions() == begun["promoted"]:
        run.promote(begun["serve"])
    (run.path / BEGUN).unlink()
