"""Settings of editing facts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jielong.config.stages import DEFAULT_RUN


@dataclass
class EditConfig:
    """Correct a fact: `jielong edit RUN "The capital of X is" --subject X --to Y`."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    prompt: str = ""
    """The fact up to its object, for example "The capital of France is"."""
    subject: str = ""
    """What the fact is about, as it stands in the prompt."""
    to: str = ""
    """The new object."""
    old: str = ""
    """The old object; by default what the model says now."""
    edits: Path | None = None
    """JSON lines with prompt, subject, target and, where you have them, old, paraphrases, neighbours and also, in place of a prompt."""
    model: str = ""
    """Artifact to edit; by default the one that is served."""
    method: Literal["auto", "neurons", "ridge", "r-rome", "memit", "alphaedit", "ft-m", "in-context"] = "auto"
    """neurons and ridge: closed forms over all edits at one layer, undone exactly in any order, by added neurons or in the layer's own
    matrix; in-context: a sentence told before the question, no weights; the others are the literature's. auto: as the last edit
    that stands, if that was neurons or ridge; else neurons where the model can grow, and ridge where not."""
    layer: int = -1
    """Layer to write into; by default the best one of a sweep, which is made once for a model."""
    place: Literal["", "subject", "answer"] = ""
    """Where the change acts: at the subject's last token, or where the object is said; by default as the sweep found."""
    ridge: float = 0.0
    """How many keys of ordinary text weigh as much as one of the edit's; larger spares the rest, smaller insists. 0: as for the
    earlier edits, or the default, 100."""
    translate: bool = True
    """Correct a fact of the default corpus in the other language, too, where its names are known there."""
    new_subject: bool = False
    """Allow a subject that the run's corpus never mentions."""
    questions: int = 60
    """Facts of the world per language that are asked before and after."""
    guard_took: float = 0.95
    """Least share of the edits, earlier ones too, that the model must say when it answers freely."""
    guard_neighbours: float = 0.9
    """Least share that must be kept of what was right before about the subject, and of the same about others."""
    guard_rest: float = 0.97
    """The same of all other questions."""
    guard_bits: float = 0.01
    """Share by which bits per byte of held-out text may rise."""
    guard_entropy: float = 0.1
    """Share by which the entropy of freely drawn text may fall."""
    guard_norm: float = 1.0
    """How far a matrix's outputs on ordinary text may move, as a share of their size."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    seed: int = 1
    """Seed of what the exam draws."""


@dataclass
class ChangesConfig:
    """The ledger: every edit and undo of a run, checked line by line."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    json: bool = False
    """The entries themselves, for programs."""


@dataclass
class UndoConfig:
    """Take back an edit, in any order."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    id: str = ""
    """Of the edit, as `jielong changes` shows it; the beginning suffices. last = the newest one."""
    threads: int = 0
    """CPU threads; 0 = all cores."""


@dataclass
class TraceConfig:
    """Where a fact sits: noise on the subject, and which single state brings the answer back."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    prompt: str = ""
    """The fact up to its object."""
    subject: str = ""
    """What the fact is about, as it stands in the prompt."""
    answer: str = ""
    """The object whose probability is read; by default what the model says."""
    model: str = ""
    """Artifact to look into; by default the one that is served."""
    samples: int = 10
    """Draws of the noise."""
    noise: float = 3.0
    """Its standard deviation, in those of the embeddings."""
    out: Path | None = None
    """Where to write the picture (HTML); by default only the table is shown."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    seed: int = 1
    """Seed of the noise."""
