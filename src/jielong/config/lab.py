"""Settings of the experiments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class SizeLadderConfig:
    """More parameters, better answers? Models of several sizes read one corpus, and are asked with and without a passage."""

    widths: tuple[int, ...] = (32, 64, 128, 192)
    """Widths of the models, four to six; each has a layer per 40 of its width, and two at least."""
    seeds: int = 3
    """Trainings of each size, at least three."""
    tokens: float = 1.2e6
    """Tokens of pretraining, the same for every size."""
    lessons: int = 4000
    """Conversations of the teacher that are mixed into the raw text."""
    conversations: int = 1200
    """Conversations of fine-tuning without a passage, and as many with one."""
    questions: int = 200
    """Questions of each kind and language."""
    rows: int = 24
    """Packed rows of pretraining per step."""
    length: int = 128
    """Tokens per packed row of pretraining; fine-tuning takes twice as long ones."""
    rounds: int = 1000
    """Rounds of the bootstrap behind the intervals."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Numbers to compute with; auto = bf16 where the processor has it."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    seed: int = 1
    """The first training's seed; the others count on from it."""
