"""The exam's two columns, their limits, and the guard's answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jielong.changes.guard import Breach, Limit
from jielong.changes.words import say
from jielong.config import EditConfig
from jielong.edit.bench import Bench
from jielong.edit.exam import Sat, kept
from jielong.edit.probes import Probe
from jielong.errors import Unclear
from jielong.model.delta import Delta


class Refused(Unclear):
    """The guard's answer; nothing was written. Its values name what broke, and two settings to try."""

    def __init__(self, broken: Sequence[Breach], config: EditConfig):
        lines = "; ".join(b.text for b in broken)
        text = f"Refused, and nothing was changed: {lines}. Next: {broken[0].advice}."
        shown = [{k: v for k, v in dataclasses.asdict(b).items() if k not in ("text", "advice")} for b in broken]
        for row in shown:
            row |= {k: None for k, v in row.items() if v != v}  # JSON knows no NaN
        super().__init__("refused", text, broken=shown, next=steps(config, broken[0].name))


def figures(
    before: Sat, after: Sat, probes: Sequence[Probe], bench: Bench, delta: Delta
) -> tuple[dict[str, float], dict[str, float]]:
    """The two columns, with what only both together tell: shares kept, and how far the weights moved."""
    old, new = dict(before.figures), dict(after.figures)
    for group in ("neighbours", "knowledge"):
        share = kept(before, after, probes, group)
        if share is not None:
            old[f"{group}_kept"], new[f"{group}_kept"] = 1.0, share
    new["weights"] = max(
        (moved(bench, delta, name) for name in delta.parts if name.endswith(".down.weight")), default=0.0
    )
    return old, new


def moved(bench: Bench, delta: Delta, name: str) -> float:
    """√(tr(ΔCΔᵀ)/tr(WCWᵀ)): how far the matrix's outputs on ordinary text move, as a share of their size."""
    c = bench.c(int(name.split(".")[1]))
    weight = bench.model.state_dict()[name].double()
    change = delta.added(name)[:, : weight.shape[1]]  # of added neurons the outputs are not these keys'
    return float(((change @ c * change).sum() / (weight @ c * weight).sum()).sqrt())


def steps(config: EditConfig, name: str) -> list[dict[str, Any]]:
    """Two settings to try when the figure `name` broke its limit."""
    if config.method not in ("ridge", "memit"):  # λ means nothing to the others
        return [{"method": "ridge"}, {"method": "memit"}]
    weaker = name not in ("efficacy", "earlier")
    other = "memit" if config.method == "ridge" else "ridge"
    return [{"ridge": config.ridge * (10.0 if weaker else 0.1)}, {"method": other}]


TIPS = {
    "efficacy": "give paraphrases in an edits file, so that the editor sees more ways to ask",
    "neighbours_kept": "name neighbours that must stay in an edits file",
    "knowledge_kept": "name neighbours that must stay in an edits file",
    "earlier": "undo one of them (`jielong undo`)",
}


def advice(config: EditConfig, name: str) -> str:
    words = []
    for step in steps(config, name):
        if "ridge" in step:
            words.append(f"{'raise' if step['ridge'] > config.ridge else 'lower'} --ridge to {step['ridge']:g}")
        else:
            words.append(f"try another method (--method {step['method']})")
    return "; ".join(words) + (f"; or {TIPS[name]}" if name in TIPS else "")


def limits(config: EditConfig) -> list[Limit]:
    found = [
        Limit("efficacy", "the share of edits that the model says freely", config.guard_took, None, True, True),
        Limit("earlier", "the share of earlier edits that it still says", config.guard_took, None, False, True),
        Limit("neighbours_kept", "the share of neighbouring facts kept", config.guard_neighbours, None, True, True),
        Limit("knowledge_kept", "the share of other facts kept", config.guard_rest, None, True, True),
        Limit("bits_per_byte", "bits per byte of held-out text", None, 1 + config.guard_bits, False, False),
        Limit("entropy", "the entropy of drawn text", 1 - config.guard_entropy, None, False, False),
        Limit("weights", "the change of what a matrix writes in ordinary text", None, config.guard_norm, True, True),
    ]
    return [dataclasses.replace(x, advice=advice(config, x.name)) for x in found]


NAMES = {
    "efficacy": "the edit, asked freely", "paraphrase": "in other words", "other_language": "in the other language",
    "two_hop": "what follows from it", "alias": "its subject by another name", "reversed": "asked from its other end",
    "earlier": "earlier edits", "neighbours": "neighbours", "neighbours_kept": "neighbours kept", "knowledge": "other facts",
    "knowledge_kept": "other facts kept", "es": "P(new) > P(old)", "ps": "the same, paraphrased", "ns": "neighbours: P(true) > P(new)",
    "bits_per_byte": "bits per byte", "repetition": "repetition", "entropy": "entropy", "weights": "change on ordinary text",
}  # fmt: skip


def show(before: dict[str, float], after: dict[str, float]) -> None:
    """Before and after, for people."""
    for name, label in NAMES.items():
        if name in after:
            form = "{:.4f}" if name in ("bits_per_byte", "entropy") else "{:.1%}"
            was = form.format(before[name]) if name in before else ""
            say(f"  {label:30} {was:>9} → {form.format(after[name]):>9}")
