"""What becomes of every artifact of a run when records leave it: the lineage on the cards decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jielong.forget.find import STAGES, Found
from jielong.run import Artifact, Run

TOGETHER = "owners"  # the sum of the owners' adapters
LEARNT_FROM_FEEDBACK = ("reward", "ppo", "rloo", "grpo", "dpo", "kto", "promotion")

Fate = Literal["kept", "rewritten", "replayed", "rebuilt", "stale"]


@dataclass(frozen=True)
class Step:
    """What becomes of an artifact.

    kept: no training or text of it had the records; its card names the new parents. rewritten: the records are taken out of its
    files. replayed: trained again from the last checkpoint before they were seen. rebuilt: trained again on a new parent. stale:
    its files are taken away, and a note says why and what makes it anew.
    """

    artifact: Artifact
    fate: Fate
    why: str


def fates(run: Run, found: Found) -> list[Step]:
    """The fate of every artifact, parents before children."""
    steps: dict[str, Step] = {}

    def fate(a: Artifact, parents: list[str]) -> tuple[Fate, str]:
        changed = [p for p in parents if steps[p].fate in ("replayed", "rebuilt", "stale")]
        if a.name == "corpus":
            hits = sum(map(len, found.documents.values()))
            return ("rewritten", f"{hits} of its records leave") if hits else ("kept", "")
        if a.name == "tokenizer":
            return "kept", "" if steps.get("corpus") is None or steps["corpus"].fate == "kept" else "not made anew"
        if a.name in found.trained:
            own = found.trained[a.name]
            if changed and not a.card["config"].get("from_scratch"):
                return "rebuilt", f"{changed[0]} is another"
            if own.first is not None:
                return "replayed", f"first seen in step {own.first + 1} of {own.steps}"
            if own.records:
                return "rewritten", "its training never came to these records"
            return "kept", "trained from random weights without these records" if changed else ""
        if a.name in STAGES and changed and a.card["kind"] == "sft" and not a.card["config"].get("from_scratch"):
            return "rebuilt", f"{changed[0]} is another"
        if a.name == TOGETHER and changed and all(steps[p].fate != "stale" for p in parents):
            return "rebuilt", f"{changed[0]} is another"
        if a.name == "report":
            return "stale", "it shows the run as it was"
        if changed:
            return "stale", f"it came of {changed[0]}"
        if a.card["kind"] == "keys" and found.documents.get("train"):
            return "stale", "it was counted over the corpus with these records"
        if a.card["kind"] == "suppressed" and found:
            return "stale", "other records than these stood beside them in its training"
        if found.feedback and a.card["kind"] in LEARNT_FROM_FEEDBACK:
            return "stale", "it learnt from feedback that leaves"
        return "kept", ""

    for artifact in sorted_by_parents(run.artifacts()):
        parents = [p for p in (artifact.card.get("parents") or {}) if p in steps]
        steps[artifact.name] = Step(artifact, *fate(artifact, parents))
    return list(steps.values())


def sorted_by_parents(artifacts: list[Artifact]) -> list[Artifact]:
    """Parents before children, otherwise as they are given."""
    waiting, done = list(artifacts), []
    while waiting:
        names = {a.name for a in waiting}
        ready = [a for a in waiting if not names & (a.card.get("parents") or {}).keys() - {a.name}]
        done += ready or waiting[:1]
        waiting = [a for a in waiting if a not in done]
    return done
