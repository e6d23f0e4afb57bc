"""What the experiments share: runs within the run, trainings and examinations that are made once, and how they end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from jielong.config import FinetuneConfig, PretrainConfig
from jielong.corpus.documents import Document, read_documents, write_documents
from jielong.errors import UserError
from jielong.model.gpt import GPT, load_model
from jielong.run import Artifact, Run, plain, write_atomic
from jielong.scale.advice import shape
from jielong.scale.ladder import kept
from jielong.teacher.lessons import Conversation
from jielong.tokens.chat import chat_ids
from jielong.tokens.shards import DataIndex, Shard, make_index, read_shard, write_shard
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import use_threads

LEAST_SEEDS = 3
Settings = TypeVar("Settings")


def say(text: str) -> None:
    from rich.console import Console

    Console(highlight=False).print(text, markup=False)


def folder(name: str, quick: bool) -> str:
    """Of an experiment's trainings; its artifact is `lab-` and this."""
    return f"{name}-quick" if quick else name


def sized(config: Settings, small: dict[str, Any]) -> Settings:
    """The settings, with the `small` ones where they are quick; threads counted. Raises UserError for too few seeds or rounds."""
    settings: Any = config
    if settings.rounds < 1:
        raise UserError("rounds must be at least 1.")
    if not settings.quick and settings.seeds < LEAST_SEEDS:
        raise UserError(f"Give at least {LEAST_SEEDS} --seeds: with fewer nobody can tell a trend from luck.")
    small = {"seeds": 1, "rounds": 50, **small} if settings.quick else {}
    return dataclasses.replace(settings, threads=use_threads(settings.threads), **small)


def check_positions(config: Any, **given: float) -> None:
    """Raises UserError, before anything is made, where some positions to read (by their setting's name) are less than one step
    of pretraining or no number."""
    if min(config.rows, config.length) < 1:
        raise UserError("rows and length must be at least 1.")
    for name, positions in given.items():
        if not config.rows * config.length <= positions < math.inf:
            raise UserError(
                f"{name} must be at least one step of {config.rows} × {config.length} positions, not {positions:g}."
            )


def pretraining(config: Any, seed: int, positions: float, width: int = 0) -> PretrainConfig:
    """So many positions of pretraining for a model of the experiment's width, or another one."""
    return PretrainConfig(
        model=shape(width or config.width, 2 * config.length), steps=round(positions / (config.rows * config.length)),
        rows=config.rows, length=config.length, precision=config.precision, threads=config.threads, sample_every=1.0, seed=seed,
    )  # fmt: skip


def finetuning(config: Any, seed: int) -> FinetuneConfig:
    """One pass over the conversations, in rows twice as long as those of pretraining."""
    return FinetuneConfig(
        epochs=1.0, length=2 * config.length, precision=config.precision, threads=config.threads, seed=seed
    )


def default_corpus(run: Run) -> Artifact:
    """The run's corpus. Raises UserError where it is not the default one, about which the questions are."""
    corpus = run.need("corpus")
    if not corpus.card["config"].get("default"):
        raise UserError(
            "The questions are about the default corpus; make one with `jielong corpus`, without --no-default."
        )
    return corpus


class Branch(Run):
    """A run of its own within a run, which reads some of that one's artifacts where it has none of its own."""

    def __init__(self, trunk: Run, name: str, borrowed: tuple[str, ...] = ("corpus", "tokenizer")):
        super().__init__(trunk.path / name)
        self.trunk, self.borrowed = trunk, borrowed

    def artifact(self, name: str) -> Artifact | None:
        return self.trunk.artifact(name) if name in self.borrowed else super().artifact(name)


@dataclass
class Reading(PretrainConfig):
    """Pretraining as the experiments need it."""

    conversations: str = ""
    """Hash of the conversations among the text."""


def stamp(things: Any) -> str:
    return hashlib.sha256(json.dumps(plain(things), ensure_ascii=False).encode()).hexdigest()[:16]


def corpus_of(branch: Branch, documents: Iterable[Document], held_out: Sequence[Document] = ()) -> Artifact:
    """The branch's own corpus, kept by its content."""
    train = list({d.id: d for d in documents}.values())
    held_out = [d for d in {d.id: d for d in held_out}.values() if d.text]
    settings = {"documents": stamp([[d.id, d.text] for d in train]), "held_out": stamp([d.id for d in held_out])}
    found = kept(branch, "corpus", [], settings)
    if found is None:
        with branch.build("corpus", kind="corpus", config=settings) as build:
            write_documents(build.path / "train.parquet", train)
            write_documents(build.path / "heldout.parquet", list(held_out))
            build.metrics = {"documents": len(train), "characters": sum(len(d.text) for d in train)}
        found = build.artifact
    return found


def pretrained(
    branch: Branch, config: PretrainConfig, conversations: Sequence[Conversation] = (), start: Artifact | None = None
) -> Artifact:
    """`base` of the branch: its corpus with the conversations among it, read from random weights or from `start` on. Kept by what it was
    made of; raises UserError when that was something else."""
    from jielong.pretrain import encode_documents, train_artifact

    corpus, tokens = branch.need("corpus"), branch.need("tokenizer")
    parents = [corpus, tokens, *([start] if start else [])]
    tokenizer = Tokenizer.load(tokens.file("tokenizer.json"))
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(PretrainConfig)}
    own["model"] = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    settings = Reading(**own, conversations=stamp(list(conversations)))
    found = kept(branch, "base", parents, settings)
    if found is not None:
        return found
    if settings.steps < 1:
        raise UserError(
            f"The positions are less than one step of {settings.rows} × {settings.length}; give more --tokens."
        )

    def prepare(work: Path) -> tuple[Shard, DataIndex, float]:
        if not (work / "index.npz").exists():
            documents = read_documents(corpus.file("train.parquet"))
            ids = [d.id for d in documents] + [f"lesson-{n}" for n in range(len(conversations))]
            encoded = encode_documents(tokenizer, documents)
            encoded += [chat_ids(tokenizer, messages) for messages in conversations]
            write_shard(work, ids, encoded, tokenizer.vocab_size)
            shard = read_shard(work)
            index = make_index(shard.lengths, shard.ids, settings.length, settings.steps * settings.rows, settings.seed)
            index.save(work / "index.partial")
            (work / "index.partial").rename(work / "index.npz")
        return read_shard(work), DataIndex.load(work / "index.npz"), float(settings.rows * settings.length)

    if start is None:
        with torch.device("meta"):  # the weights are drawn by the training
            model = GPT(settings.model)
    else:
        model = load_model(start.path)
    made = train_artifact(
        branch, "base", "base", settings, parents, model, tokens.file("tokenizer.json"), prepare, settings.steps,
        settings.optim, None, history=False,
    )  # fmt: skip
    shutil.rmtree(branch.work("base"), ignore_errors=True)  # nothing is replayed from an experiment
    return made


def finetuned(branch: Branch, conversations: Sequence[Conversation], config: FinetuneConfig) -> Artifact:
    """`sft` of the branch, or `control` from scratch: its base taught by the conversations. Kept as `pretrained` keeps."""
    from jielong import finetune

    text = "".join(json.dumps({"messages": m}, ensure_ascii=False) + "\n" for m in conversations)
    file = branch.path / f"lessons-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    branch.create()
    write_atomic(file, text)
    settings = dataclasses.replace(config, conversations=file)
    name = "control" if config.from_scratch else "sft"
    found = kept(branch, name, [branch.need("base")], settings, computed=("steps", "conversations"))
    if found is not None and Path(found.card["config"]["conversations"]).name != file.name:  # the folder may have moved
        raise UserError(f"{found.path} was made with other settings (conversations); delete it to make it anew.")
    return found or finetune.run(settings, branch)


def examined(
    branch: Branch, name: str, parents: list[Artifact], asked: dict[str, Any], measure: Callable[[], dict[str, Any]], seed: int
) -> dict[str, Any]:  # fmt: skip
    """What `measure` finds, made once for these parents and these settings."""
    found = kept(branch, name, parents, asked)
    if found is None:
        with branch.build(name, kind="exam", config=asked, parents=parents, seed=seed) as build:
            build.metrics = measure()
        found = build.artifact
    return found.card["metrics"]
