"""What was forgotten does not come back by the next reading of the same files."""

from __future__ import annotations

from collections.abc import Callable

from jielong.changes.ledger import Ledger
from jielong.run import FORGETTING, Run


def forgotten(run: Run) -> Callable[[str], bool]:
    """Was the record with this id, or with this text, forgotten by the run? The ledger keeps keyed hashes of both.

    Raises UserError when the ledger does not verify, or when its key is not beside the run's folder.
    """
    ledger = Ledger(
        Run(run.path.parent) if run.path.name == FORGETTING else run
    )  # a forgetting works in a folder of the run
    known = [
        (e["request"]["salt"], frozenset(e["records"]["fingerprints"]))
        for e in ledger.entries()
        if e["kind"] == "forget"
    ]
    return lambda text: any(ledger.fingerprint(text, salt) in hashes for salt, hashes in known)
