"""What one forward pass of a loaded model says about every token of a text: all that the statistics need.

The model's own runtime computes it (generate.engine, model.runtime), window by window and block of logits by block, so that
a long text takes no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.tokens.tokenizer import Tokenizer

WINDOW = 512  # tokens that are read with one past at most; fewer where the model's context is shorter
OVERLAP = 8  # a later window begins with 1/8 of tokens that the one before has measured
BATCH = 2048  # tokens of a batch of windows, padding included
BLOCK = 64  # rows of logits at a time
CACHED = 1 << 18  # logits whose statistics are taken at a time, small enough for the processor's cache


Probe = Callable[[Sequence[int], Tensor], Tensor]
"""(places in a document, the logits (N, V) float32 before them, not to be changed) → what else is wanted (N, C) float64."""


@dataclass
class TokenStats:
    """Of n tokens x_t with the model's distribution q_t before each: float64 except `rank`."""

    ids: list[int]
    logprob: Tensor
    """(n,) log q_t(x_t), natural."""
    rank: Tensor
    """(n,) int64, 1 = the likeliest; tokens as likely as x_t do not count before it."""
    entropy: Tensor
    """(n,) −Σ q log q."""
    variance: Tensor
    """(n,) Σ q log² q − (Σ q log q)²."""
    cross: Tensor | None = None
    """(n,) −Σ p log q, where p_t is the observer's distribution."""
    outside: Tensor | None = None
    """(n,) log-probability that an outsider, with tokens of its own, gives to the characters of x_t."""
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    """The likeliest tokens of each place with their log-probabilities, where they were asked for."""
    probed: Tensor | None = None
    """(n, C) what a probe saw."""
    tilt: Tensor | None = None
    """(n,) log q_t(x_t) − log h_t(x_t), h: the model's human version (detect.tilt)."""

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, count: int) -> TokenStats:
        """The first `count` tokens: what a text cut there would give, since no token sees later ones."""
        more = (self.cross, self.outside, self.probed, self.tilt)
        cross, outside, probed, tilt = (None if a is None else a[:count] for a in more)
        arrays = (self.logprob[:count], self.rank[:count], self.entropy[:count], self.variance[:count])
        return TokenStats(self.ids[:count], *arrays, cross, outside, self.top[:count], probed, tilt)


@dataclass
class Window:
    document: int
    start: int
    """Where it begins in the document."""
    fresh: int
    """Its first tokens that an earlier window has measured."""
    ids: list[int]


def window(engine: Engine) -> int:
    """Tokens that a model reads with one past."""
    return min(WINDOW, engine.context)


def same_vocabulary(a: Tokenizer, b: Tokenizer) -> bool:
    return a is b or a.fingerprint == b.fingerprint


class Reader:
    """Reads documents a batch at a time, so that a server can answer others in between.

    observer: a second model for Binoculars; batch: tokens of a batch; probes: one per document, all with as many columns.
    Raises UserError when the observer has another vocabulary, or reads less at a time.
    """

    def __init__(
        self,
        engine: Engine,
        documents: Sequence[Sequence[int]],
        observer: Engine | None = None,
        top: int = 0,
        batch: int = BATCH,
        probes: Sequence[Probe] = (),
    ):
        longest = window(engine)
        if observer and not same_vocabulary(engine.tokenizer, observer.tokenizer):
            raise UserError(
                f"{observer.name} has another vocabulary than {engine.name}; two models can only be compared token by token "
                "when they share one."
            )
        if observer and observer.context < longest:  # shorter windows would change the scorer's own statistics, too
            raise UserError(
                f"{observer.name} reads {observer.context} tokens at a time, {engine.name} {longest}: as an observer it must "
                "read as many."
            )
        self.engine, self.observer, self.top, self.batch, self.probes = engine, observer, top, batch, probes
        self.documents = [list(d) for d in documents]
        windows = [w for n, ids in enumerate(self.documents) for w in cut(n, ids, longest)]
        self._waiting = sorted(windows, key=lambda w: len(w.ids))
        self._found: dict[tuple[int, int], tuple[list[Tensor], list[list[tuple[int, float]]]]] = {}

    @property
    def left(self) -> int:
        """Tokens that are not read yet."""
        return sum(len(w.ids) for w in self._waiting)

    @torch.inference_mode()
    def step(self) -> bool:
        """Read one batch; False when there is nothing left."""
        if not self._waiting:
            return False
        longest = len(self._waiting[-1].ids)
        count = max(1, self.batch // longest)
        self._waiting, batch = self._waiting[:-count], self._waiting[-count:]
        hidden = [self._forward(e, batch) for e in (self.engine, self.observer) if e]  # (N, D) each
        targets = torch.tensor([i for w in batch for i in w.ids])  # (N,)
        rows_of = [(w.document, w.start + t) for w in batch for t in range(len(w.ids))]
        columns: list[list[Tensor]] = []
        probed: list[Tensor] = []
        top: list[list[tuple[int, float]]] = []
        for at in range(0, len(targets), BLOCK):
            rows = slice(at, at + BLOCK)
            logits = self.engine.runtime.logits(hidden[0][rows])
            other = self.observer.runtime.logits(hidden[1][rows]) if self.observer else None
            if self.probes:
                probed.append(self._probe(rows_of[rows], logits))
            part = max(1, CACHED // logits.shape[1])
            for b in range(0, len(logits), part):
                own = slice(b, b + part)
                columns.append(
                    measure(logits[own], targets[rows][own], None if other is None else other[own], self.top, top)
                )
        joined = [torch.cat(c) for c in zip(*columns, strict=True)] + ([torch.cat(probed)] if probed else [])
        end = 0
        for w in batch:
            start, end = end + w.fresh, end + len(w.ids)
            self._found[w.document, w.start + w.fresh] = ([c[start:end] for c in joined], top[start:end])
        return True

    def _probe(self, rows: list[tuple[int, int]], logits: Tensor) -> Tensor:
        """(N, C) of rows that belong to (document, place)."""
        found, at = [], 0
        for document, own in groupby(rows, key=lambda row: row[0]):
            places = [place for _, place in own]
            found.append(self.probes[document](places, logits[at : at + len(places)]))
            at += len(places)
        return torch.cat(found)

    def _forward(self, engine: Engine, batch: list[Window]) -> Tensor:
        before = beginning(engine.tokenizer)
        return engine.runtime.forward([[before, *w.ids[:-1]] for w in batch], [0] * len(batch), engine.runtime.cache())

    def finish(self) -> list[TokenStats]:
        """The statistics of every document, in order."""
        while self.step():
            pass
        pieces: list[list[tuple[list[Tensor], list[list[tuple[int, float]]]]]] = [[] for _ in self.documents]
        for (document, _), piece in sorted(self._found.items(), key=lambda item: item[0]):
            pieces[document].append(piece)
        results = []
        for ids, own in zip(self.documents, pieces, strict=True):
            empty = [torch.zeros(0, dtype=torch.float64)] * (4 + bool(self.observer) + bool(self.probes))
            columns = [torch.cat(c) for c in zip(*(p for p, _ in own), strict=True)] if own else empty
            cross = columns[4] if self.observer else None
            probed = columns[-1] if self.probes else None
            logprob, rank, entropy, variance = columns[:4]
            top = [t for _, part in own for t in part]
            results.append(TokenStats(ids, logprob, rank.long(), entropy, variance, cross, None, top, probed))
        return results


def read(
    engine: Engine,
    documents: Sequence[Sequence[int]],
    observer: Engine | None = None,
    top: int = 0,
    probes: Sequence[Probe] = (),
) -> list[TokenStats]:
    """The statistics of documents, given as token ids. Raises UserError for an observer with another vocabulary."""
    return Reader(engine, documents, observer, top, probes=probes).finish()


Offsets = Sequence[tuple[int, int]]


def aligned(stats: TokenStats, offsets: Offsets, outsider: TokenStats, its_offsets: Offsets) -> TokenStats:
    """`stats` with `outside`: each of the outsider's log-probabilities goes to the token that holds the last character of
    its token, so that any first tokens are compared over the same characters, but for a token cut in two.

    offsets: characters [start, end) of each token."""
    ends = torch.tensor([end for _, end in offsets[: len(stats)]])
    its = torch.tensor([end for _, end in its_offsets[: len(outsider)]])
    owner = torch.searchsorted(ends, its)  # (M,)
    inside = owner < len(ends)
    outside = torch.zeros(len(ends), dtype=torch.float64).index_add_(0, owner[inside], outsider.logprob[inside])
    return replace(stats, outside=outside)


def beginning(tokenizer: Tokenizer) -> int:
    """The token that stands before a text in training."""
    begins = tokenizer.begin is not None and tokenizer.settings.get("add_bos_token")
    return int(tokenizer.begin) if begins and tokenizer.begin is not None else tokenizer.end_of_text


def cut(document: int, ids: list[int], longest: int) -> list[Window]:
    """Windows of at most `longest` tokens; the first begins the text, each later one with tokens of the one before."""
    windows, end, overlap = [], 0, longest // OVERLAP
    while end < len(ids):
        fresh = min(overlap, end)
        start = end - fresh
        end = min(len(ids), start + longest)
        windows.append(Window(document, start, fresh, ids[start:end]))
    return windows


def measure(
    logits: Tensor, targets: Tensor, other: Tensor | None, top: int, into: list[list[tuple[int, float]]]
) -> list[Tensor]:
    """(log q(x), rank, entropy, variance[, cross]) as (N,) float64 of logits (N, V) float32, which are overwritten; the
    `top` likeliest tokens of each row are added to `into`.

    With l = logits − max: Σ q log q = Σ q·l − log Z and Var_q(log q) = Σ q·l² − (Σ q·l)².
    """
    N = len(logits)
    picked = logits.gather(1, targets.unsqueeze(1))  # (N, 1)
    rank = (logits > picked).sum(1) + 1
    best = logits.amax(1, keepdim=True)
    l = logits.sub_(best)  # noqa: E741  # as in the formula
    e = l.exp()  # (N, V)
    mass = e.sum(1)  # (N,)
    total = mass.double().log()
    if top:
        values, index = l.topk(min(top, l.shape[1]))
        logs = (values.double() - total.unsqueeze(1)).tolist()
        into += [list(zip(i, v, strict=True)) for i, v in zip(index.tolist(), logs, strict=True)]
    logprob = (picked - best).squeeze(1).double() - total
    cross = None
    if other is not None:
        V = min(l.shape[1], other.shape[1])
        p = other[:, :V].softmax(1)
        cross = total - (p * l[:, :V]).sum(1).double()
    e.mul_(l)
    first = e.sum(1).double() / mass  # Σ q·l
    second = (e.mul_(l)).sum(1).double() / mass
    found = [logprob, rank.double(), total - first, (second - first.square()).clamp_min(0.0)]
    assert found[0].shape == (N,)
    return found if cross is None else [*found, cross]
