"""Settings of forgetting, and of auditing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jielong.config.stages import DEFAULT_RUN, FinetuneConfig


@dataclass
class SuppressConfig:
    """Settings of the approximate methods. What is left out is the method's own choice."""

    lr: float | None = None
    """Peak learning rate of AdamW; it falls to zero."""
    epochs: float | None = None
    """Passes over what is to be suppressed."""
    rows: int = 8
    """Texts of each kind, to be suppressed and to be kept, in a step."""
    gamma: float | None = None
    """Weight of the loss that suppresses."""
    alpha: float | None = None
    """Weight of the loss that keeps the rest; of task-vector, how far to go back."""
    beta: float | None = None
    """NPO, SimNPO, AltPO: how fast the push ends once a text is unlikely."""
    delta: float | None = None
    """SimNPO: the margin, in nats per token."""
    alternatives: int | None = None
    """AltPO: other answers drawn for each text."""
    layer: int | None = None
    """RMU: the block whose output is steered, counted from 0; by default one at two fifths of the depth."""
    coefficient: float | None = None
    """RMU: how far to steer, in mean norms of that block's output."""
    lora_rank: int = 0
    """Change the model by a low-rank adapter of this rank; 0 = all weights. For imported models on small machines."""
    lora_alpha: float = 0.0
    """Scale of the adapter times its rank; 0 = twice the rank."""
    keep: int = 512
    """Records of the run, at most, that the method must keep."""
    tune: int = 0
    """Try so many learning rates on decoys, records that nobody asks about, and take what comes nearest to a twin trained
    without them."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Numbers to compute with."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto = the first NVIDIA GPU if there is one."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    checkpoint_seconds: float = 30.0
    """Longest time between two checkpoints."""
    seed: int = 1
    """Of the order, the draws and the adapter."""


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
    owner: str = ""
    """Leave out what `jielong owner` taught for this owner."""
    method: str = "replay"
    """replay = exact. Or an approximate one, after which the texts are suppressed, not forgotten: graddiff, npo, simnpo, altpo,
    rmu, task-vector."""
    model: str = ""
    """Approximate methods: the artifact to change; by default the one that is served."""
    examples: Path | None = None
    """Approximate methods: JSONL of what no record of the run holds: {"text"}, {"messages"} or {"question", "answer"}, the
    last with "paraphrased_answer" and "perturbed_answer" where the truth ratio is to be measured with them."""
    retain: Path | None = None
    """Approximate methods: JSONL, in the same forms, of what must stay; by default other records of the run."""
    others: Path | None = None
    """Approximate methods: JSONL of texts of the same kind that the model never read, for membership inference; by default the
    run's held-out documents."""
    suppress: SuppressConfig = field(default_factory=SuppressConfig)
    """Settings of the approximate methods."""
    twins: int = 0
    """Approximate methods: train so many models without the records, to compare with; three give a spread."""
    samples: int = 20
    """Approximate methods: continuations drawn of each text in the exam."""
    utility: float = 0.05
    """Approximate methods: refuse a change that makes the held-out text longer by more than this share of its bits."""
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


@dataclass
class OwnerConfig:
    """An owner's conversations → an adapter of their own on the frozen base; all adapters together are served."""

    run: Path = DEFAULT_RUN
    """The run's folder; its base is imported, or raised here."""
    name: str = ""
    """The owner: letters, digits, - and _. Without it the adapters that are there are only put together again."""
    finetune: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(lora_rank=8))
    """How the adapter is trained; conversations are required."""
    key: Path | None = None
    """The ledger's signing key; by default changes.key beside the run's folder."""
