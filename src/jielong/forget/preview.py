"""What a request would do to a run, before anything is done: the records that it means, and what becomes of every artifact."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from jielong.forget import replay
from jielong.forget.find import Found
from jielong.forget.request import Request
from jielong.forget.tree import Step
from jielong.run import Run

AROUND = 40  # characters of an excerpt on either side of what was found


@dataclass(frozen=True)
class Row:
    """A record that the request means. `step` is the first one that saw it, counted from 0; None when none did."""

    kind: Literal["document", "held_out", "conversation", "feedback"]
    id: str
    stage: str
    step: int | None
    before: str
    said: str
    """What was asked for, as it stands there; empty for a record that was named by its id."""
    after: str

    @property
    def when(self) -> str:
        if self.kind == "held_out":
            return "held out, never trained on"
        if self.kind == "feedback":
            return ""
        if self.step is None:
            return "never reached"
        return f"step {self.step + 1}" + ("" if self.kind == "document" else f" of {self.stage}")

    def __str__(self) -> str:
        kind = "document" if self.kind == "held_out" else self.kind
        return "  ·  ".join(filter(None, (f"{kind} {self.id}", self.when, self.before + self.said + self.after)))


@dataclass(frozen=True)
class Cost:
    """What becomes of an artifact, and how much training that takes; `steps` is 0 where there is none."""

    name: str
    fate: str
    why: str
    start: int = 0
    steps: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        more = f"; {self.steps - self.start} of {self.steps} steps, about {self.seconds / 60:.1f} minutes"
        return f"{self.name}: {self.fate} ({self.why}{more if self.steps else ''})"


def rows(request: Request, found: Found) -> list[Row]:
    """Documents, then conversations, then feedback."""
    made: list[Row] = []
    first = found.trained.get("base")
    seen = {first.shard.ids[n]: step for n, step in first.first_steps().items()} if first else {}
    for part, documents in found.documents.items():
        kind = "held_out" if part == "heldout" else "document"
        made += [Row(kind, d.id, "base", seen.get(d.id), *excerpt(d.text, request)) for d in documents]
    known = {row.id for row in made}
    for name, stage in found.trained.items():
        steps = stage.first_steps()
        for n, text in stage.records.items():
            if (record := stage.shard.ids[n]) not in known:
                made.append(Row("conversation", record, name, steps.get(n), *excerpt(text, request)))
    return made + [Row("feedback", i, "", None, *excerpt(text, request)) for i, text in found.feedback.items()]


def costs(run: Run, found: Found, steps: list[Step]) -> list[Cost]:
    """Of every artifact that is not kept."""
    made = []
    for step in steps:
        name, stage = step.artifact.name, found.trained.get(step.artifact.name)
        if step.fate in ("replayed", "rebuilt") and stage is not None:
            start = max([0, *replay.usable_checkpoints(run.work(name), step, stage)])
            seconds = (stage.steps - start) / stage.steps * step.artifact.card["metrics"]["train_seconds"]
            made.append(Cost(name, step.fate, step.why, start, stage.steps, seconds))
        elif step.fate != "kept":
            made.append(Cost(name, step.fate, step.why))
    return made


def excerpt(text: str, request: Request) -> tuple[str, str, str]:
    """What was found, with some text before and behind it, on one line."""
    text = unicodedata.normalize("NFC", text)  # the form in which `find` counts
    start, end = request.find(text) or (0, 0)
    parts = (text[max(0, start - AROUND) : start], text[start:end], text[end : end + AROUND])
    before, said, after = (part.replace("\n", " ") for part in parts)
    return ("…" if start > AROUND else "") + before, said, after + ("…" if end + AROUND < len(text) else "")
