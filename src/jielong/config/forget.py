"""Settings of forgetting, and of auditing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jielong.config.stages import DEFAULT_RUN


@dataclass
class ForgetConfig:
    """Records → a run that never had them, and an entry in its ledger."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    record: tuple[str, ...] = ()
    """Ids of records: documents, conversations or answers in the feedback."""
    name: tuple[str, ...] = ()
    """Names: every record in which one stands as a word, whatever its case."""
    grep: tuple[str, ...] = ()
    """Texts: every record in which one stands exactly so."""
    request: Path | None = None
    """A JSON file with any of "record", "name" and "grep" (lists), "who" and "why"."""
    yes: bool = False
    """Do it without asking; else it is shown first, and done only when you type so on a terminal."""
    most: float = 0.5
    """Refuse a request that matches more than this share of the corpus's documents or characters."""
    who: str = ""
    """Who asks, for the ledger."""
    why: str = ""
    """Why, for the ledger."""
    store: str = ""
    """Where feedback is kept, if not in RUN/feedback.db: a file or postgresql://…"""
    key: Path | None = None
    """The ledger's signing key; by default changes.key beside the run's folder."""


@dataclass
class AuditConfig:
    """Check a run's ledger, and what it says about the run."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    verify: bool = False
    """Recompute the chain and the signatures, and compare the run with the last entries."""
    replay: int = 0
    """Train again what this entry says was trained, and compare the bits."""
    from_start: bool = False
    """With --replay: from random weights in place of the checkpoint."""
    leaks: bool = False
    """Measure what the base gives away of the canaries that were planted in the corpus (`jielong corpus --canaries 4`)."""
    model: str = "base"
    """With --leaks: the artifact to examine."""
    key: Path | None = None
    """The ledger's signing key; by default changes.key beside the run's folder."""
