"""Where to write: a short trial of layers and places on facts that the model knows, once for a model."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

from jielong.corpus.world import Fact as WorldFact
from jielong.corpus.world import load_world
from jielong.edit.bench import RIDGE, Bench, Site
from jielong.edit.exam import Sat, kept, sit
from jielong.edit.facts import Fact
from jielong.edit.methods import editor
from jielong.edit.probes import Probe, about, cloze, enriched, nearby
from jielong.run import Artifact, Run

ATTRIBUTES = ("capital", "currency", "language", "region", "domain")
FACTS, LAYERS = 4, 6


def spared(fact: WorldFact) -> bool:
    """A quarter of the world's subjects is for choosing settings; no figure that is reported comes from them."""
    return hashlib.sha256(fact.code.encode()).digest()[0] % 4 == 0


def world_edits(count: int, seed: int, tuning: bool, langs: Sequence[str] = ("en", "zh")) -> list[Fact]:
    """Facts of the world with another object of their kind, drawn at random; for tuning or for figures, which share no subject."""
    world = load_world()
    rng = random.Random(f"edits/{seed}/{tuning}")
    free = [f for f in world.facts if f.attribute in ATTRIBUTES and spared(f) == tuning]
    rng.shuffle(free)
    made = []
    for f in free[:count]:
        lang = rng.choice(list(langs))
        others = sorted(world.values(f.attribute, lang) - {f.value[lang]})
        made.append(enriched(Fact(cloze(f, lang), f.subject[lang], rng.choice(others), f.value[lang])))
    return made


def answered(bench: Bench, facts: Sequence[Fact], count: int) -> list[Fact]:
    """The first `count` facts whose prompt the model continues with the old object, and in a conversation answers with it."""
    truths = [Fact(f.prompt, f.subject, f.old) for f in facts]
    probes = [Probe("plain", f.prompt, f.target, chat=False) for f in truths]
    if bench.chat:
        probes += [Probe("chat", f.prompt, f.target) for f in truths]
    right = sit(bench.model, bench.tokenizer, [], probes).right
    sure = [all(right[n :: len(facts)]) for n in range(len(facts))]
    return [f for f, ok in zip(facts, sure, strict=True) if ok][:count]


def score(bench: Bench, facts: Sequence[Fact], method: str = "ridge", seed: int = 1) -> dict[str, float]:
    """Each fact edited alone: shares of prompts and paraphrases that took and of neighbours that were kept, and their harmonic mean."""
    asked = [[*about([f], bench.chat), *nearby([f], bench.chat, seed)] for f in facts]
    at_once = sit(bench.model, bench.tokenizer, [], [p for probes in asked for p in probes])
    totals: dict[str, list[float]] = {}
    start = 0
    for fact, probes in zip(facts, asked, strict=True):
        before = Sat({}, at_once.right[start : start + len(probes)], [])
        start += len(probes)
        one = editor(method)
        model = bench.current(one.delta(bench, {"": one.propose(bench, [fact])[0]}))
        after = sit(model, bench.tokenizer, [], probes)
        for name, value in shares(before, after, probes).items():
            totals.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return means | {"s": len(means) / sum(1 / max(v, 1e-6) for v in means.values()) if means else 0.0}


def shares(before: Sat, after: Sat, probes: Sequence[Probe]) -> dict[str, float]:
    """Efficacy and paraphrase as they are, neighbours as the share kept."""
    found = {name: after.figures[name] for name in ("efficacy", "paraphrase") if name in after.figures}
    near = kept(before, after, probes, "neighbours")
    return found | ({"neighbours": near} if near is not None else {})


def candidates(layers: int) -> list[Site]:
    """At most LAYERS layers, evenly spread, at both places; the subject's change cannot act in the last layer."""
    picked = sorted({round((n + 1) * layers / min(LAYERS, layers)) - 1 for n in range(min(LAYERS, layers))})
    return [Site(n, "answer") for n in picked] + [Site(n, "subject") for n in picked if n < layers - 1]


def sweep(run: Run, base: Artifact, bench: Bench) -> tuple[Site, str]:
    """(the site, why). Made once for a model, at the default λ, and kept as an artifact."""
    bench = replace(bench, ridge=RIDGE)
    name = f"sites-{base.name}"
    found = run.artifact(name)
    if found is None or found.card["parents"] != {base.name: base.hash}:
        facts = answered(bench, world_edits(10 * FACTS, 0, True, ("en", "zh") if bench.chat else ("en",)), FACTS)
        sites = candidates(bench.model.config.layers)
        table = []
        if len(facts) == FACTS:
            bench.statistics([s.layer for s in sites])  # in one pass
            for site in sites:
                table.append({"layer": site.layer, "place": site.place, **score(replace(bench, site=site), facts)})
        with run.build(name, kind="sites", config={"facts": FACTS}, parents=[base]) as build:
            build.metrics = {"facts": [[f.prompt, f.old, f.target] for f in facts], "table": table}
        found = build.artifact
    table = found.card["metrics"]["table"]
    if not table:
        last = bench.model.config.layers - 1
        return Site(last, "answer"), "the last layer, since the model knows too few facts of the world for a sweep"
    best = max(table, key=lambda row: row["s"])
    return Site(best["layer"], best["place"]), f"the best of {len(table)} sites of a sweep (S {best['s']:.2f})"
