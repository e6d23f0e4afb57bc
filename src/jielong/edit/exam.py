"""One exam before and after a change, with the same seeds. What is generated freely counts first: under teacher forcing the answer
and its length leak, and editing looks far better than it is (Yang et al. 2025, "The Mirage of Model Editing")."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jielong.corpus.documents import Document
from jielong.edit.facts import Fact, continuation, fold, says
from jielong.edit.probes import Probe
from jielong.edit.values import batch
from jielong.evaluate.bpb import bits_per_byte
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT, causal_mask
from jielong.tokens.tokenizer import Tokenizer

ANSWER, SAMPLE = 32, 48  # tokens of an answer to a probe, and of a sampled text
STARTS = ("The", "In", "People", "這", "我們", "A city", "中國", "One day")


@dataclass
class Sat:
    """What a model scored: figures, and what it said to each probe."""

    figures: dict[str, float]
    right: list[bool]
    replies: list[str]


def sit(
    model: GPT,
    tokenizer: Tokenizer,
    facts: Sequence[Fact],
    probes: Sequence[Probe],
    documents: Sequence[Document] = (),
    seed: int | None = None,
) -> Sat:
    """The exam. Figures: for each group of probes the share that is answered right in free generation; es, ps, ns and their
    magnitudes under teacher forcing; bits_per_byte where there are documents; repetition and entropy of sampled texts where there is a seed."""
    engine = Engine(model, tokenizer, rows=128)
    prompts = [
        engine.chat_ids([{"role": "user", "content": p.prompt}]) if p.chat else tokenizer.prompt(p.prompt)
        for p in probes
    ]
    replies = [r.text for r in engine.generate(prompts, Sampling(temperature=0.0, max_tokens=ANSWER))]
    # an old object that the question itself names (Micronesia lies in Micronesia) is no wrong answer
    olds = ["" if fold(p.old) in fold(p.prompt) else p.old for p in probes]
    right = [says(text, p.target, old) for p, text, old in zip(probes, replies, olds, strict=True)]
    figures: dict[str, float] = {}
    for group in dict.fromkeys(p.group for p in probes):
        own = [ok for p, ok in zip(probes, right, strict=True) if p.group == group]
        figures[group] = sum(own) / len(own)
    figures |= forced(model, tokenizer, facts)
    if documents:
        bits = bits_per_byte(model, tokenizer, list(documents))
        figures["bits_per_byte"] = sum(bits.values()) / len(bits)
    if seed is not None:
        figures |= _spoken(engine, seed)
    return Sat(figures, right, replies)


def kept(before: Sat, after: Sat, probes: Sequence[Probe], group: str) -> float | None:
    """Of the group's probes that were answered right before, the share that still is."""
    both = [(a, b) for p, a, b in zip(probes, before.right, after.right, strict=True) if p.group == group and a]
    return sum(b for _, b in both) / len(both) if both else None


def forced(model: GPT, tokenizer: Tokenizer, facts: Sequence[Fact]) -> dict[str, float]:
    """CounterFact's scores (Meng et al. 2022) as its published code computes them: with P = exp(−mean NLL per token) the share
    with P(new) > P(old), and the mean difference, for the prompt (es, em), for its paraphrases (ps, pm), and with the true
    object in place of the new one for the neighbours (ns, nm)."""
    pairs: dict[str, list[tuple[str, str, str]]] = {"e": [], "p": [], "n": []}
    for fact in facts:
        if not fact.old:
            continue
        pairs["e"].append((fact.prompt, fact.target, fact.old))
        pairs["p"] += [(text, fact.target, fact.old) for text in fact.paraphrases if text[-1:] not in "?？。.!！"]
        pairs["n"] += [(text, answer, fact.target) for text, answer in fact.neighbours]
    figures = {}
    for name, rows in pairs.items():
        if rows:
            first = likelihoods(model, tokenizer, [(prompt, a) for prompt, a, _ in rows])
            second = likelihoods(model, tokenizer, [(prompt, b) for prompt, _, b in rows])
            figures[f"{name}s"] = sum(x > y for x, y in zip(first, second, strict=True)) / len(rows)
            figures[f"{name}m"] = sum(x - y for x, y in zip(first, second, strict=True)) / len(rows)
    return figures


@torch.inference_mode()
def likelihoods(model: GPT, tokenizer: Tokenizer, rows: Sequence[tuple[str, str]]) -> list[float]:
    """exp(−mean NLL) of each continuation behind its prompt."""
    found = []
    for at in range(0, len(rows), 32):
        part = [(tokenizer.prompt(p), continuation(tokenizer, p, t)) for p, t in rows[at : at + 32]]
        tokens = batch([[*ids, *target[:-1]] for ids, target in part])
        hidden = model(tokens, causal_mask(tokens.shape[1]))
        for row, (ids, target) in enumerate(part):
            table = model.logits(hidden[row, len(ids) - 1 : len(ids) - 1 + len(target)]).log_softmax(-1)
            found.append(math.exp(float(table.gather(1, torch.tensor(target).unsqueeze(1)).mean())))
    return found


def _spoken(engine: Engine, seed: int) -> dict[str, float]:
    """Texts drawn at temperature 1: the share of repeated runs of four tokens, and (2/3)·H₂ + (4/3)·H₃ of their tokens in bits,
    the "fluency" of Zhang et al. (2018) that the editing papers report."""
    sampled = [
        engine.submit(
            engine.tokenizer.prompt(text),
            Sampling(temperature=1.0, max_tokens=SAMPLE, seed=seed * 1000 + n, ignore_end=True),
        )
        for n, text in enumerate(STARTS)
    ]
    while any(r.finish is None for r in sampled):
        engine.step()
    texts = [r.answer for r in sampled]
    return {
        "repetition": sum(repeated(t) for t in texts) / len(texts),
        "entropy": sum(2 / 3 * entropy(t, 2) + 4 / 3 * entropy(t, 3) for t in texts) / len(texts),
    }


def repeated(tokens: Sequence[int], size: int = 4) -> float:
    """Share of the runs of `size` tokens that were there before."""
    runs = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def entropy(tokens: Sequence[int], size: int) -> float:
    """Bits of the distribution of the runs of `size` tokens."""
    counts = Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0
