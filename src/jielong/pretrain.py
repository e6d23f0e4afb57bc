"""Pretraining: the self-supervised word chain, from random weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jielong.changes.forgotten import forgotten
from jielong.config import OptimConfig, PretrainConfig
from jielong.corpus.documents import Document, read_documents
from jielong.corpus.world import load_world
from jielong.evaluate.bpb import bits_per_byte
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT, document_mask, save_model, write_shape
from jielong.model.kernels import cross_entropy
from jielong.model.lora import save_adapter
from jielong.run import Artifact, Run
from jielong.teacher.lessons import lessons
from jielong.tokens.chat import chat_ids, spell
from jielong.tokens.shards import DataIndex, Shard, make_batch, make_index, read_shard, write_shard
from jielong.tokens.tokenizer import Tokenizer, copy_tokenizer
from jielong.train.bar import training_bar
from jielong.train.distributed import make_team
from jielong.train.loop import History, LoopConfig, LossOf, dtype_of, train, use_threads
from jielong.train.making import begin, content
from jielong.train.shard import share

PROMPTS = ("The capital of Japan is", "法國的首都是", "Once upon a time")
HELD_OUT_DOCUMENTS = 300  # per language, for the curves; the card's last value uses the same ones


def token_loss(
    shard: Shard,
    index: DataIndex,
    rows: int,
    length: int,
    pad: int,
    norm: float,
    drop: frozenset[str] = frozenset(),
    only: Sequence[int] | None = None,
) -> LossOf:
    """The loss of a step: next-token cross-entropy summed over the batch and divided by the constant `norm`.

    The constant, and not the number of real targets, divides, so that a deleted record changes no other row's share; so
    the losses of `only` some rows are shares that add up to the whole.
    """

    def loss_of(model: GPT, step: int, dtype: torch.dtype) -> Tensor:
        device = model.norm.get_parameter("weight").device
        batch = make_batch(shard, index, step, rows, length, pad, drop, only)
        mask = document_mask(torch.from_numpy(batch.segments).to(device))
        hidden = model(torch.from_numpy(batch.inputs).to(device), mask, dtype)  # (B, T, D)
        weight = (torch.from_numpy(batch.weight).view(-1) / norm).to(device)
        targets = torch.from_numpy(batch.targets).view(-1).to(device)
        keep = weight.nonzero().squeeze(1)  # positions without loss need no logits
        return cross_entropy(hidden.view(-1, hidden.shape[-1])[keep], model.head_weight, targets[keep], weight[keep])

    return loss_of


def encode_documents(tokenizer: Tokenizer, documents: list[Document]) -> list[list[int]]:
    """Each document between two end-of-text tokens."""
    end = tokenizer.end_of_text
    return [[end, *ids, end] for ids in tokenizer.encode_batch([d.text for d in documents])]


def train_artifact(
    run: Run,
    name: str,
    kind: str,
    config: Any,
    parents: list[Artifact],
    model: GPT,
    tokenizer_file: Path,
    prepare: Callable[[Path], tuple[Shard, DataIndex, float]],
    steps: int,
    optim: OptimConfig,
    observe: Callable[[GPT, int], dict[str, Any]] | None,
    drop: frozenset[str] = frozenset(),
    history: bool = True,
    keep: bool = False,
) -> Artifact:
    """Train `model` into artifact `name`, resumably: what both supervised stages share. A model on "meta" starts with random
    weights. Without `history` only the newest checkpoint is kept.

    The work folder keeps shard, index and checkpoints between interruptions; it belongs to one making, which its
    `making.json` records, and is started anew for another, unless `keep` says that it was prepared for this one.
    """
    work = run.work(name)
    team = make_team(config.parallel, config.device, model.parameter_count())
    making = {"config": content(config), "parents": {p.name: p.hash for p in parents}, "drop": sorted(drop)}
    with team.in_turn():
        if team.first:
            begin(work, making, config.threads if team.alone else None, keep)
        shard, index, norm = prepare(work)
    rows, length = config.rows, config.length
    empty = model.embedding.weight.is_meta
    whole = share(model, team, dtype_of(config.precision, team.device), config.seed if empty else None)
    observe_steps = frozenset()
    if observe is not None:
        every = max(1, math.ceil(steps * getattr(config, "sample_every", 0.1)))
        observe_steps = frozenset([*range(every, steps, every), steps])
    loop = LoopConfig(
        steps=steps,
        optim=optim,
        precision=config.precision,
        threads=config.threads,
        checkpoint_seconds=config.checkpoint_seconds,
        tokens_per_step=rows * length,
        title=name,
        history=history,
    )
    pad = Tokenizer.load(tokenizer_file).pad
    losses = [
        token_loss(shard, index, rows, length, pad, norm, drop, only)
        for only in team.rows(rows, config.parallel.micro_rows)
    ]

    def look(_: GPT, step: int) -> dict[str, Any]:
        seen = whole()
        return observe(seen, step) if observe is not None and seen is not None else {}

    def learn(progress: Callable[[int, float, float], None] | None = None) -> tuple[GPT | None, History]:
        found = train(model, losses, loop, work / "checkpoints", look, observe_steps, progress, team)
        return whole(), found

    if not team.first:
        learn()
        team.wait()  # the first process writes
        return Artifact(run.path / name)
    with run.build(name, kind=kind, config=config, parents=parents, seed=config.seed) as build:
        with training_bar(name, steps) as progress:
            trained, curves = learn(progress)
        assert trained is not None
        if any(".lora." in name for name, _ in trained.named_parameters()):
            save_adapter(trained, build.path, parents[0])
            write_shape(trained.config, build.path)
        else:
            save_model(trained, build.path)
        copy_tokenizer(tokenizer_file, build.path)
        index.save(build.path / "data_index.npz")
        (build.path / "records.json").write_text(json.dumps(shard.ids), encoding="utf-8")
        build.threads = use_threads(config.threads)
        build.device = team.device.type
        build.metrics = summary(trained, curves, steps, rows * length, length)
        build.metrics["processes"] = team.place[1]
    team.wait()
    # the kept checkpoints stay beside the artifact for replay; the token shard can be made again
    return build.artifact


def summary(model: GPT, history: History, steps: int, tokens_per_step: int, length: int) -> dict[str, Any]:
    """Metrics of the card: thinned curve, speed, size."""
    thin = max(1, steps // 400)
    speed = history.tokens / history.seconds if history.seconds else 0.0
    return {
        "parameters": model.parameter_count(),
        "steps": steps,
        "tokens": steps * tokens_per_step,
        "train_seconds": round(history.seconds, 2),
        "tokens_per_second": round(speed, 1),
        "gflops": round(model.flops_per_token(length) * speed / 1e9, 1),
        "loss": [p for p in history.loss if p[0] % thin == 0 or p[0] == steps - 1],
        "seen": history.seen,
    }


def run(
    config: PretrainConfig,
    run: Run,
    drop: frozenset[str] = frozenset(),
    name: str = "base",
    history: bool = True,
    keep: bool = False,
) -> Artifact:
    """The pretraining stage: corpus + tokenizer → base model. `drop` names records to train without; without `history`
    the checkpoints for replay are not kept; `keep` goes on from the shard, the plan and the checkpoints of the work folder,
    whatever they were made for (forget.replay)."""
    corpus, tokens = run.need("corpus"), run.need("tokenizer")
    tokenizer = Tokenizer.load(tokens.file("tokenizer.json"))
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size),
        threads=use_threads(config.threads),
    )
    _check(config)
    with torch.device("meta"):  # weights are drawn when the model is divided
        model = GPT(config.model)

    def prepare(work: Path) -> tuple[Shard, DataIndex, float]:
        if not (work / "index.npz").exists():
            write_plan(config, run, work)
        return read_shard(work), DataIndex.load(work / "index.npz"), float(config.rows * config.length)

    held_out = pick_held_out(read_documents(corpus.file("heldout.parquet")))

    def observe(model: GPT, step: int) -> dict[str, Any]:
        engine = Engine(model, tokenizer, chat=False, device=model.device.type)
        greedy = Sampling(temperature=0.0, max_tokens=24)
        samples = {p: "".join(s.text for s in engine.stream(tokenizer.encode(p), greedy)) for p in PROMPTS}
        return {"bits_per_byte": bits_per_byte(model, tokenizer, held_out), "samples": samples}

    return train_artifact(
        run, name, "base", config, [corpus, tokens], model, tokens.file("tokenizer.json"), prepare, config.steps,
        config.optim, observe, drop, history, keep,
    )  # fmt: skip


def write_plan(config: PretrainConfig, run: Run, work: Path) -> None:
    """Into `work`: the run's documents and the lessons among them, as tokens, and the plan of the training. What the run has
    forgotten stays out, wherever it comes from."""
    tokenizer, gone = Tokenizer.load(run.need("tokenizer").file("tokenizer.json")), forgotten(run)
    documents = read_documents(run.need("corpus").file("train.parquet"))
    documents = [d for d in documents if not gone(d.id) and not gone(d.text)]
    ids, encoded = [d.id for d in documents], encode_documents(tokenizer, documents)
    if config.lessons:
        more = lessons(load_world(), config.seed, config.lessons, habits=config.habits)
        told = [chat_ids(tokenizer, m) for m in more]
        kept = [n for n, tokens in enumerate(told) if not gone(spell(tokenizer, tokens))]
        ids += [f"lesson-{n}" for n in kept]
        encoded += [told[n] for n in kept]
    write_shard(work, ids, encoded, tokenizer.vocab_size)
    shard = read_shard(work)
    index = make_index(shard.lengths, shard.ids, config.length, config.steps * config.rows, config.seed)
    index.save(work / "index.partial")
    (work / "index.partial").rename(work / "index.npz")


def pick_held_out(documents: list[Document]) -> list[Document]:
    """The first documents of each language in the order of their ids, which are hashes."""
    picked = []
    for lang in sorted({d.lang for d in documents}):
        picked += [d for d in documents if d.lang == lang][:HELD_OUT_DOCUMENTS]
    return picked


def _check(config: PretrainConfig) -> None:
    from jielong.errors import UserError

    if config.length > config.model.context:
        raise UserError(f"length ({config.length}) exceeds the model's context ({config.model.context}).")
    for field in ("steps", "rows", "length"):
        if getattr(config, field) < 1:
            raise UserError(f"{field} must be at least 1.")
    if config.precision not in ("auto", "bf16", "fp32"):
        raise UserError(f"precision must be auto, bf16 or fp32, not {config.precision!r}.")
