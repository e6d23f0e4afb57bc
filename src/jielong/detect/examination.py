"""One text, looked at by every method: the ledger, the watermarks, and a model's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jielong.corpus.language import identify
from jielong.detect import scores
from jielong.detect.evidence import Evidence, Report, Span, combine
from jielong.detect.ledger import Ledger
from jielong.detect.normalise import normalise
from jielong.detect.reference import FEWEST, LENGTHS, THIRD, Reference, outside
from jielong.detect.tilt import Tilt
from jielong.detect.tokenstats import WINDOW, Probe, Reader, TokenStats, aligned
from jielong.detect.watermark import Key, examine
from jielong.detect.watermark.race import TEMPERATURES, Races, examine_races
from jielong.errors import UserError
from jielong.generate.engine import Engine

ALONE, OBSERVED = "fast-detect", "likelihood-ratio"
"""The statistic that is taken where none is named: without and with an observer."""
MOST = LENGTHS[-1]
"""Tokens that the model reads, and places of one piece of evidence that are told; watermark and ledger look at the whole text."""


@dataclass
class Tools:
    """What there is to look with."""

    engine: Engine
    observer: Engine | None = None
    reference: Reference | None = None
    keys: Sequence[Key] = ()
    ledger: Ledger | None = None


class Examination:
    """A text under examination: `step` while it says True, as it needs the model, then `report`.

    Raises UserError for a text without a letter, an unknown statistic, one that needs an observer where there is none, an
    observer or a key for another vocabulary.
    """

    def __init__(self, text: str, tools: Tools, methods: Sequence[str] = (), top: int = 0):
        self.normal = normalise(text)
        if not any(c.isalnum() for c in self.normal.text):
            raise UserError("There is no text to look at.")
        self.tools = tools
        self.methods = [
            scores.find(name) for name in dict.fromkeys(methods or (OBSERVED if tools.observer else ALONE,))
        ]
        needs = {m.needs: m.name for m in self.methods if m.needs}
        second = [name for need, name in needs.items() if need != "tilt"]
        if second and tools.observer is None:
            raise UserError(f"{second[0]} needs a second model: name it as the observer.")
        for key in tools.keys:
            key.fit(tools.engine.tokenizer, tools.engine.name)
        self.lang = identify(self.normal.text)
        ids, offsets = tools.engine.tokenizer.encode_spans(self.normal.text, markup=False)
        self._whole, self.count, self.offsets = (ids, offsets), len(ids), offsets[:MOST]
        self.races = [Races(key, ids[:MOST]) for key in tools.keys if key.scheme == "gumbel"]
        looks: list[Probe] = [*self.races]
        self.tilt = tools.reference.tilts.get(self.lang) if tools.reference and "tilt" in needs else None
        if self.tilt is not None:
            looks.append(Tilt(self.tilt, ids[:MOST]))
        probes = [lambda places, logits: torch.cat([see(places, logits) for see in looks], 1)] if looks else []
        self.reader = Reader(
            tools.engine, [ids[:MOST]], tools.observer if "cross" in needs else None, top, WINDOW, probes
        )
        self._outside: Reader | None = None
        if tools.observer and "outside" in needs:
            theirs, self._its_offsets = outside(tools.observer, self.normal.text, self.offsets, len(self.offsets))
            self._outside = Reader(tools.observer, [theirs], batch=WINDOW)

    def step(self) -> bool:
        """A part of the model's work; False when it is done."""
        return self.reader.step() or bool(self._outside and self._outside.step())

    def report(self, alpha: float = 0.01) -> Report:
        """All evidence. Raises UserError for a damaged ledger, or an alpha outside (0, 0.5]."""
        t = self.tools
        found: list[Evidence] = []
        if t.ledger:
            humans = t.reference.shingles.get(self.lang, []) if t.reference else []
            corpus = f"{t.reference.corpus}@{self.lang}" if t.reference else ""
            found.append(t.ledger.examine(self.normal, humans, corpus))
        found += [examine(key, *self._whole, self.normal) for key in t.keys]
        for races, seen in zip(self.races, self._probed(), strict=True):
            found.append(examine_races(races.key, seen, self.normal, self.offsets))
        found += [self._statistic(method, alpha) for method in self.methods]
        disguise = self.normal.evidence()
        found += [disguise] if disguise else []
        return combine([replace(e, spans=e.spans[:MOST]) for e in found], alpha)

    @property
    def stats(self) -> TokenStats:
        while self.step():
            pass
        if not hasattr(self, "_stats"):
            self._stats = self.reader.finish()[0]
            if self.tilt is not None and self._stats.probed is not None:
                self._stats.tilt = self._stats.probed[:, -1]
            if self._outside:
                self._stats = aligned(self._stats, self.offsets, self._outside.finish()[0], self._its_offsets)
        return self._stats

    def _probed(self) -> Sequence[Tensor]:
        """(n, C) of each of the races."""
        if not self.races:
            return ()
        assert self.stats.probed is not None
        columns = 2 * len(TEMPERATURES)
        return [self.stats.probed[:, n * columns : (n + 1) * columns] for n in range(len(self.races))]

    def _statistic(self, method: scores.Score, alpha: float) -> Evidence:
        stats, reference, name = self.stats, self.tools.reference, self.tools.engine.name

        def silent(note: str, score: float | None = None) -> Evidence:
            return Evidence(method.name, "statistic", score, n=len(stats), notes=(note,))

        untilted = method.needs == "tilt" and stats.tilt is None
        whole = None if untilted or not len(stats) else method.of(stats)
        if len(stats) < LENGTHS[0]:
            return silent(f"too short: {len(stats)} tokens, {LENGTHS[0]} are needed")
        if reference is None:
            return silent(f"no human texts to compare with for {name}: `jielong detect reference` reads some", whole)
        if not any(key[2] == method.name for key in reference.scores):
            lacks = (
                f"{THIRD * FEWEST} documents of a language are needed for it"
                if untilted
                else "name its observer in `jielong detect reference`"
            )
            return silent(f"{reference.corpus} was measured without {method.name}; {lacks}", whole)
        own = [L for L in LENGTHS if (self.lang, L, method.name) in reference.scores]
        if not own:
            has = ", ".join(reference.languages(method.name))
            none = f"too few human texts for {method.name}" if self.lang in reference.languages() else "no human texts"
            return silent(f"{none} in its language ({self.lang}); {reference.corpus} has {has}", whole)
        fits = [L for L in own if len(stats) >= L]
        if not fits:
            return silent(f"too short: {len(stats)} tokens; the human texts in {self.lang} begin at {own[0]}")
        observer = self.tools.observer
        if method.needs in ("cross", "outside") and observer and observer.hash != reference.observer:
            return silent(f"{reference.corpus} was measured with another observer", whole)
        counts = {L: len(reference.scores[self.lang, L, method.name]) for L in fits}
        # the longest length at which there are humans enough for alpha; the scores have no say in it
        length = max(fits, key=lambda L: (1 / (counts[L] + 1) <= alpha, L))
        score, human = method.of(stats.head(length)), counts[length]
        if 1 / (human + 1) > alpha:
            return silent(f"{human} human texts of its language and length cannot give a p-value of {alpha:g}", score)
        p = reference.p(self.lang, length, method.name, score)
        notes = [] if self.count == length else [f"its first {length} of {self.count} tokens were compared"]
        if reference.precision != self.tools.engine.runtime.precision:
            notes.append(
                f"the human texts were measured in {reference.precision}, this one in {self.tools.engine.runtime.precision}"
            )
        return Evidence(method.name, "statistic", score, p, reference.null(self.lang, length, method.name), length, self._spans(length), tuple(notes))  # fmt: skip

    def _spans(self, length: int) -> tuple[Span, ...]:
        ranks = self.stats.rank[:length].tolist()
        return tuple(Span(*self.normal.place(*o), float(r)) for o, r in zip(self.offsets, ranks, strict=False))

    def tokens(self) -> list[dict[str, Any]]:
        """The heat map: each token's characters [start, end) in the original text, rank, log-probability and, where they
        were asked for, the likeliest tokens at its place."""
        stats, name = self.stats, self.tools.engine.tokenizer.name
        top = stats.top or [[]] * len(stats)
        rows = zip(stats.ids, self.offsets, stats.rank.tolist(), stats.logprob.tolist(), top, strict=True)
        return [
            {
                "id": i,
                "start": (place := self.normal.place(*offset))[0],
                "end": place[1],
                "rank": rank,
                "logprob": round(logprob, 4),
                "top": [{"token": name(j), "id": j, "logprob": round(v, 4)} for j, v in best],
            }
            for i, offset, rank, logprob, best in rows
        ]
