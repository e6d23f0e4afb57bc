"""Settings of the experiments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class LabConfig:
    """What every experiment is told."""

    seeds: int = 3
    """Repetitions with seeds of their own, at least three."""
    rounds: int = 1000
    """Rounds of the bootstrap behind the intervals."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Numbers to compute with; auto = bf16 where the processor has it."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    seed: int = 1
    """The first seed; the others count on from it."""
    quick: bool = False
    """The smallest size that runs at all, in seconds and beside the real one: its figures say nothing."""


@dataclass
class TrainedLabConfig(LabConfig):
    """Of those that pretrain models."""

    rows: int = 24
    """Packed rows of pretraining per step."""
    length: int = 128
    """Tokens per packed row of pretraining; fine-tuning takes twice as long ones."""


@dataclass
class OneSizeLabConfig(TrainedLabConfig):
    """Of those whose models are all of one size."""

    width: int = 192
    """Width of the models; they have a layer per 40 of it, and two at least."""
    tokens: float = 7e5
    """Positions of pretraining, the same for every model; those of padding count."""


@dataclass
class SizeLadderConfig(TrainedLabConfig):
    """More parameters, better answers? Models of several sizes read one corpus, and are asked with and without a passage."""

    widths: tuple[int, ...] = (32, 64, 128, 192)
    """Widths of the models, four to six; each has a layer per 40 of its width, and two at least."""
    tokens: float = 1.2e6
    """Tokens of pretraining, the same for every size."""
    lessons: int = 4000
    """Conversations of the teacher that are mixed into the raw text."""
    conversations: int = 1200
    """Conversations of fine-tuning without a passage, and as many with one."""
    questions: int = 200
    """Questions of each kind and language."""


@dataclass
class TwoLanguagesConfig(OneSizeLabConfig):
    """Two languages in pretraining, a task taught in English only: is it done in zh-TW? Controls: English alone, no pretraining."""

    countries: int = 60
    """Countries of the world that the models read about; half of them are only asked about."""
    variants: int = 24
    """About how many times the text states each fact in each language."""
    prose: int = 300_000
    """Characters of the run's prose beside it."""
    conversations: int = 1500
    """English conversations of fine-tuning without a passage, and as many with one."""
    questions: int = 150
    """Questions of each kind and language."""


@dataclass
class CutoffConfig(OneSizeLabConfig):
    """Knowledge ends at the cutoff: countries that the text never mentions, and what mends it: more pretraining, editing, retrieval."""

    countries: int = 60
    """Countries of the world that there are after the cutoff."""
    later: int = 10
    """Countries that only text from after the cutoff mentions."""
    variants: int = 24
    """About how many times the text states each fact in each language."""
    prose: int = 300_000
    """Characters of the run's prose beside it."""
    lessons: int = 1500
    """Conversations of the teacher that are mixed into the raw text."""
    conversations: int = 1000
    """Conversations of fine-tuning without a passage, and as many with one."""
    news: float = 1.5e5
    """Positions of continued pretraining."""
    facts: int = 20
    """Facts from after the cutoff that are asked, in both languages and two wordings."""
    questions: int = 120
    """Questions about facts from before it, in each language."""


@dataclass
class PromptingConfig(LabConfig):
    """Does what stands before a question change the answer? Prompts × demonstrations on the served model."""

    model: str = ""
    """Artifact to ask; by default the one that is served."""
    questions: int = 60
    """Questions per seed; each seed draws others."""
    shots: int = 4
    """Demonstrations, beside none."""
    max_tokens: int = 24
    """Longest answer."""


@dataclass
class TeachingConfig(LabConfig):
    """Thumbs or demonstrations, for the same seconds of a (simulated) teacher? On the run's own fine-tuned model."""

    budgets: tuple[int, ...] = (600, 1200, 2400)
    """Seconds of the teacher: a thumb takes 2, a demonstration 60."""
    prompts: int = 200
    """Held-out prompts, each answered twice, on which win rates are measured."""
    iterations: int = 8
    """Iterations of PPO."""
    episodes: int = 96
    """Answers per iteration."""


@dataclass
class CodeConfig(OneSizeLabConfig):
    """Code in the corpus: is code continued better? Control: the same number of positions of prose alone."""

    vocab_size: int = 3072
    """Entries of the vocabulary, learnt from prose and code and the same for both models."""
    prose: int = 1_500_000
    """Characters of the run's text."""
    code: int = 1_500_000
    """Characters of the standard library's modules."""
    share: float = 0.5
    """Share of code in what the model with code reads."""
    functions: int = 150
    """Functions of held-out modules to continue, the same for all seeds."""


@dataclass
class LabAllConfig(LabConfig):
    """Every experiment that is not there yet, and the report "The talk, checked"."""

    only: tuple[str, ...] = ()
    """Names of experiments; by default all. The report tells about every one that is there."""
