"""Settings of detecting generated text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jielong.config.stages import DEFAULT_RUN


@dataclass
class DetectConfig:
    """Was this text generated? Evidence with p-values, and "generated", "no evidence" or "abstain"."""

    file: Path
    """A text file, or - for the standard input."""
    run: Path = DEFAULT_RUN
    """The run whose model, references and ledger are asked."""
    model: str = ""
    """Artifact that reads the text; by default the one that the run serves."""
    observer: str = ""
    """A second model for likelihood-ratio and, where it has the same vocabulary, binoculars: an artifact of the run, or RUN or
    RUN:ARTIFACT of another; by default the one of the reference."""
    methods: tuple[str, ...] = ()
    """Statistics to compute: likelihood, log-rank, lrr, fast-detect, tilt, likelihood-ratio, binoculars; several cost power
    (Holm). By default likelihood-ratio with an observer, else fast-detect."""
    reference: str = ""
    """Artifact of the human texts; by default the newest one made for the model."""
    key: tuple[Path, ...] = ()
    """Watermark keys to look for."""
    alpha: float = 0.01
    """Chance that a human text is called generated, all methods together."""
    tokens: bool = False
    """Also show every token with its rank."""
    json: bool = False
    """For programs."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Numbers to compute with; auto = bf16 where the processor has it, else fp32."""
    threads: int = 0
    """CPU threads; 0 = all cores."""


@dataclass
class ReferenceConfig:
    """Human texts → what a model's statistics are like on them: without it no statistic has a p-value."""

    text: tuple[Path, ...] = ()
    """Files or folders of texts that people wrote, and that the model was not trained on; by default the run's held-out
    documents, without those that templates wrote."""
    corpus: str = ""
    """Name of these texts, which every p-value will mention; by default that of the files."""
    name: str = "reference"
    """Artifact to make."""
    model: str = ""
    """Artifact that reads them; by default the one that the run serves."""
    observer: str = ""
    """A second model for likelihood-ratio and, where it has the same vocabulary, binoculars: an artifact of the run, or RUN or
    RUN:ARTIFACT of another. For finding what a small model wrote, any better one helps very much."""
    most: int = 0
    """Documents to read at most; 0 = all."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Numbers to compute with; auto = bf16 where the processor has it, else fp32."""
    threads: int = 0
    """CPU threads; 0 = all cores."""


@dataclass
class WatermarkConfig:
    """A new watermark key for a run's vocabulary, in a file that only you can read."""

    file: Path
    """The file to write; it must not exist."""
    run: Path = DEFAULT_RUN
    """The run whose vocabulary is marked."""
    model: str = ""
    """Its artifact; by default the one that the run serves."""
    scheme: Literal["gumbel", "greenlist"] = "gumbel"
    """gumbel: changes nothing in what is said on average, and marks nothing at temperature 0; greenlist: changes it a little."""
    context: int = 4
    """Tokens that choose the mark of the next one: more survive less editing, fewer can be found out. At least 8 where
    tokens are single bytes or characters."""
    green: float = 0.25
    """greenlist: share of the vocabulary that is favoured."""
    bias: float = 2.0
    """greenlist: added to the logits of these tokens."""


@dataclass
class LedgerConfig:
    """The ledger of what `jielong serve --ledger` has generated: check its seals, or take entries out."""

    action: Literal["verify", "erase"]
    """verify: count the entries and check every seal; erase: take out those of --id or --user."""
    run: Path = DEFAULT_RUN
    """The run's folder."""
    id: tuple[str, ...] = ()
    """Answers to take out, by the ids that the API gave them; the further choices of an answer go with it."""
    user: str = ""
    """Take out all answers to this user, as named in the requests; where the server has API keys: key:KEY, or key:KEY/NAME for a
    name that came with it. Who gave no name is local."""
