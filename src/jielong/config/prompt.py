"""Settings of prompting: the library, the matrix, the search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jielong.config.stages import DEFAULT_RUN


@dataclass
class PromptListConfig:
    """The prompts that there are: the run's own, yours, and the built-in ones."""

    run: Path = DEFAULT_RUN
    """The run's folder."""
    lang: str = ""
    """Only those in this language: en or zh-TW."""
    json: bool = False
    """Print them as JSON, with their texts."""


@dataclass
class PromptShowConfig:
    """A prompt with its variables filled in, as the model would read it."""

    name: str
    """Name of a prompt (`jielong prompt list`), or a prompt file."""
    var: tuple[str, ...] = ()
    """Values of its variables: --var language=French topic=history."""
    lang: str = ""
    """Which one, where there are several of that name: en or zh-TW; by default the first."""
    run: Path = DEFAULT_RUN
    """The run's folder."""


@dataclass
class PromptRunConfig:
    """One question under a prompt. For a whole conversation: `jielong chat --prompt NAME`."""

    name: str
    """Name of a prompt (`jielong prompt list`), or a prompt file."""
    ask: str = ""
    """What to say to the model; by default it is read from the standard input."""
    var: tuple[str, ...] = ()
    """Values of the prompt's variables: --var language=French topic=history."""
    lang: str = ""
    """Which one, where there are several of that name: en or zh-TW; by default the first."""
    run: Path = DEFAULT_RUN
    """The run's folder."""
    model: str = ""
    """Artifact that answers; by default the one that is served."""
    temperature: float = 0.3
    """0 = always the likeliest token."""
    max_tokens: int = 200
    """Longest answer."""
    seed: int | None = None
    """Makes the answer repeatable."""


@dataclass
class PromptNewConfig:
    """A prompt of your own, kept as a plain file."""

    name: str
    """Its name: letters, digits, - and _."""
    text: str = ""
    """What it says, with {{variables}}; by default it is read from the standard input."""
    title: str = ""
    """What people call it; by default the name."""
    purpose: str = ""
    """What it is for, in a sentence."""
    var: tuple[str, ...] = ()
    """Defaults of its variables: --var language=French."""
    lang: str = "en"
    """Its language: en or zh-TW."""
    run: Path = DEFAULT_RUN
    """The run's folder."""
    everywhere: bool = False
    """Keep it for all runs, in your own folder, rather than in this run's."""
    force: bool = False
    """Overwrite the one of this name."""


@dataclass
class PromptImportConfig:
    """A public collection, JSON or CSV with `act` and `prompt`, becomes prompts of your own."""

    file: Path
    """The collection."""
    lang: str = "en"
    """Its language: en or zh-TW."""
    run: Path = DEFAULT_RUN
    """The run's folder."""
    everywhere: bool = False
    """Keep them for all runs, in your own folder, rather than in this run's."""


@dataclass
class PromptMatrixConfig:
    """Prompts × shots × models on the tests of a file in promptfoo's form, with intervals."""

    file: Path
    """The YAML file; docs/prompting.md describes it."""
    out: Path | None = None
    """The HTML page with the table and every answer; by default beside the file."""
    threads: int = 0
    """CPU threads; 0 = all cores."""


@dataclass
class PromptSearchConfig:
    """A task's examples → a better instruction and demonstrations, proved on a half that the search never sees."""

    task: Path
    """JSON lines with `input`, `output` and, where the answer is one of a few, `labels`; docs/prompting.md."""
    run: Path = DEFAULT_RUN
    """The run's folder."""
    model: str = ""
    """Artifact to find the prompt for; by default the one that is served."""
    name: str = ""
    """Name of the found prompt; by default the task's file name."""
    instruction: str = "Answer the question."
    """The plain prompt, which the found one must beat."""
    more: tuple[str, ...] = ()
    """Further instructions of yours to try, beside the built-in wordings."""
    shots: int = 6
    """At most this many demonstrations."""
    candidates: int = 24
    """Prompts to try, the plain one included."""
    held_out: float = 0.5
    """Share of the examples that only the final comparison sees."""
    first: int = 8
    """Examples on which every candidate is tried; then the better half goes on with twice as many, and so on."""
    most: int = 400
    """Use at most this many examples of the task."""
    metric: Literal["exact", "f1"] = "exact"
    """What counts as right where there are no labels: the same words, or the share of words in common."""
    calibrate: bool = True
    """Divide labels' probabilities by those that the prompt gives without a question (Zhao et al. 2021)."""
    max_tokens: int = 24
    """Longest answer where there are no labels."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    force: bool = False
    """Search anew, in place of a result of this name."""
    seed: int = 1
    """Seed of the split and of the candidates."""
