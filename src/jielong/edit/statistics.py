"""Key statistics C = E[k kᵀ] of a layer over the model's own text: what the matrix is used for beside the facts that are edited.

Meng et al. (2022) take 44 million keys; a few tens for each dimension suffice (arXiv 2506.04226). An artifact per layer, made once
for a model; an interrupted pass continues.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.corpus.documents import read_documents
from jielong.edit.values import inner
from jielong.errors import UserError
from jielong.model.gpt import GPT
from jielong.run import Artifact, Run
from jielong.tokens.chat import chat_ids
from jielong.tokens.shards import order
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.making import begin

LONGEST = 128  # tokens of a document that are read
ROWS = 16
SAVE = 20.0  # seconds between two states that an interruption leaves


def add_keys(total: Tensor, inside: Tensor, lengths: Sequence[int]) -> int:
    """total (K, K) float64 += Σ k kᵀ over the real positions of inside (B, T, K); returns how many there were."""
    real = torch.cat([inside[row, :n] for row, n in enumerate(lengths)]).float()  # (n, K)
    total += real.T @ real  # a batch in float32, their sum in float64
    return len(real)


def read_text(run: Run, chat: bool, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Documents in tokens, in a drawn order that does not change (a corpus may be sorted by its sources): of the run's corpus, or where
    it has none of the default corpus's prose. For a model that chats, every second one stands in a conversation."""
    corpus = run.artifact("corpus")
    if corpus is not None:
        texts = {d.id: d.text for d in read_documents(corpus.file("train.parquet"))}
    else:
        from jielong.corpus.sources import wikipedia

        texts = {str(n): text for n, text in enumerate(wikipedia())}
    ids = list(texts)
    for n, at in enumerate(order(ids, 0, 0).tolist()):
        text = texts[ids[at]]
        if chat and n % 2:
            cut = max(1, len(text) // 3)
            turns = [{"role": "user", "content": text[:cut]}, {"role": "assistant", "content": text[cut:] or text}]
            yield chat_ids(tokenizer, turns)[:LONGEST]
        else:
            yield tokenizer.encode(text)[:LONGEST]


def key_statistics(
    run: Run,
    base: Artifact,
    model: GPT,
    tokenizer: Tokenizer,
    layers: Sequence[int],
    chat: bool,
    per_dimension: int = 30,
    of: str = "down",
) -> dict[int, Tensor]:
    """Layer → C (K, K) float64 of the model `base` over the run's corpus; what is missing, or was counted over another corpus, is made
    in one pass over about `per_dimension` · K tokens. With `of` "mlp" the same of y = (x, 1), x the feed-forward's inputs:
    (D + 1, D + 1), their mean in the last column.

    Raises UserError when the text is too short: C would not have full rank.
    """
    names = {n: f"{'keys' if of == 'down' else 'inputs'}-{base.name}-{n}" for n in layers}
    config = {"layers": [], "per_dimension": per_dimension, "chat": chat} | ({"of": of} if of != "down" else {})
    found = {n: run.artifact(name) for n, name in names.items()}
    corpus = run.artifact("corpus")
    parents = [base] if corpus is None else [base, corpus]
    hashes = {p.name: p.hash for p in parents}
    missing = [
        n for n, a in found.items()
        if a is None or a.card["parents"] != hashes or a.card["config"] != config | {"layers": [n]}
    ]  # fmt: skip
    if missing:
        sums, count, batches = _stream(run, base, model, tokenizer, missing, chat, per_dimension, of)
        for n in missing:
            with run.build(names[n], kind="keys", config=config | {"layers": [n]}, parents=parents) as build:
                _save({"c": sums[n] / count}, build.path / "keys.safetensors")
                build.metrics = {"tokens": count, "batches": batches, "layer": n}
    return {n: _load(run.need(name).file("keys.safetensors"))["c"] for n, name in names.items()}


def _stream(
    run: Run,
    base: Artifact,
    model: GPT,
    tokenizer: Tokenizer,
    layers: Sequence[int],
    chat: bool,
    per_dimension: int,
    of: str,
) -> tuple[dict[int, Tensor], int, int]:
    K = model.config.mlp_width if of == "down" else model.config.width + 1
    wanted = per_dimension * K
    work, corpus = run.work("keys"), run.artifact("corpus")
    begin(
        work,
        {"base": base.hash, "corpus": corpus and corpus.hash, "layers": list(layers), "chat": chat, "per_dimension": per_dimension, "of": of},
        None,
    )  # fmt: skip
    sums = {n: torch.zeros(K, K, dtype=torch.float64) for n in layers}
    count = at = 0
    if (state := work / "sums.safetensors").is_file():
        kept = _load(state)
        sums, count, at = {n: kept[str(n)] for n in layers}, int(kept["count"]), int(kept["at"])
    documents = [ids for ids in _first(read_text(run, chat, tokenizer), wanted) if ids]
    told = time.monotonic()
    while at < len(documents) and count < wanted:
        rows = documents[at : at + ROWS]
        tokens = torch.tensor([[*r, *[0] * (max(map(len, rows)) - len(r))] for r in rows])
        inside = inner(model, tokens, layers, of)
        if of == "mlp":
            inside = {n: F.pad(x, (0, 1), value=1.0) for n, x in inside.items()}
        added = {n: add_keys(sums[n], inside[n], [len(r) for r in rows]) for n in layers}
        count += next(iter(added.values()))
        at += ROWS
        if time.monotonic() - told > SAVE:
            _save({**{str(n): s for n, s in sums.items()}, "count": torch.tensor(count), "at": torch.tensor(at)}, state)
            told = time.monotonic()
    if count < 2 * K:
        raise UserError(f"The text has {count:,} tokens; the statistics of this layer need {2 * K:,} at least.")
    shutil.rmtree(work, ignore_errors=True)
    return sums, count, -(-at // ROWS)


def _first(documents: Iterator[list[int]], tokens: int) -> Iterator[list[int]]:
    """Documents until there are so many tokens."""
    for ids in documents:
        yield ids
        tokens -= len(ids)
        if tokens < 0:
            return


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save

    from jielong.run import write_atomic

    write_atomic(path, save(tensors))


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
