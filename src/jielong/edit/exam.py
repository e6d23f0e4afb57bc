"""One exam before and after a change, with the same seeds. What is generated freely counts first: under teacher forcing the answer
and its length leak, and editing looks far better than it is (Yang et al. 2025, "The Mirage of Model Editing")."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from jielong.corpus.documents import Document
from jielong.edit.facts import Fact, continuation, fold, says
from jielong.edit.probes import Pair, Probe
from jielong.edit.values import batch
from jielong.evaluate.bpb import bits_per_byte
from jielong.generate.engine import Engine
from jielong.generate.memory import Memory
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
    pairs: Sequence[Pair],
    probes: Sequence[Probe],
    documents: Sequence[Document] = (),
    seed: int | None = None,
    memory: Memory | None = None,
) -> Sat:
    """The exam. Figures: for each group of probes the share that is answered right in free generation; es, ps, ns and their
    magnitudes under teacher forcing; bits_per_byte where there are documents; repetition and entropy of sampled texts where there is a seed."""
    engine = Engine(model, tokenizer, rows=128)
    engine.memory = memory or Memory()
    replies = answers(engine, [(p.prompt, p.chat) for p in probes])
    right = [correct(p, text) for p, text in zip(probes, replies, strict=True)]
    figures: dict[str, float] = {}
    for group in dict.fromkeys(p.group for p in probes):
        own = [ok for p, ok in zip(probes, right, strict=True) if p.group == group]
        figures[group] = sum(own) / len(own)
    figures |= forced(engine, model, pairs)
    if documents:
        bits = bits_per_byte(model, tokenizer, list(documents))
        figures["bits_per_byte"] = sum(bits.values()) / len(bits)
    if seed is not None:
        figures |= _spoken(engine, seed)
    return Sat(figures, right, replies)


def answers(engine: Engine, asked: Sequence[tuple[str, bool]]) -> list[str]:
    """What is said freely to each text, in a conversation where the flag says so, else behind it."""
    prompts = [
        engine.chat_ids([{"role": "user", "content": text}]) if chat else engine.tokenizer.prompt(text)
        for text, chat in asked
    ]
    return [r.text for r in engine.generate(prompts, Sampling(temperature=0.0, max_tokens=ANSWER))]


def correct(probe: Probe, reply: str) -> bool:
    # an old object that the question itself names (Micronesia lies in Micronesia) is no wrong answer
    return says(reply, probe.target, "" if fold(probe.old) in fold(probe.prompt) else probe.old)


def possible(engine: Engine, probes: Sequence[Probe]) -> list[Probe]:
    """The probes whose premise the model gets right before the change; those without one all stay."""
    asked = list(dict.fromkeys((p.premise[0], p.chat) for p in probes if p.premise))
    said = dict(zip(asked, answers(engine, asked), strict=True))
    return [p for p in probes if p.premise is None or says(said[p.premise[0], p.chat], p.premise[1])]


SENTENCE = re.compile(r"((?<=[.!?。！？])\s+|(?<=[。！？])|\n)")


def still_true(documents: Sequence[Document], facts: Sequence[Fact]) -> list[Document]:
    """The documents without the sentences that say what is no longer true: those with a fact's subject and its old object. A
    model that was corrected should find these unlikely."""
    gone = [(f.subject, f.old) for whole in facts for f in (whole, *whole.also) if f.old]
    left = []
    for document in documents:
        parts = SENTENCE.split(document.text)  # a sentence, what stands behind it, the next one, …
        parts = [(said, parts[2 * n + 1] if 2 * n + 1 < len(parts) else "") for n, said in enumerate(parts[::2])]
        text = "".join(a + b for a, b in parts if not any(s in a and o in a for s, o in gone))
        if text.strip():
            left.append(replace(document, text=text))
    return left


def kept(before: Sat, after: Sat, probes: Sequence[Probe], group: str) -> float | None:
    """Of the group's probes that were answered right before, the share that still is."""
    both = [(a, b) for p, a, b in zip(probes, before.right, after.right, strict=True) if p.group == group and a]
    return sum(b for _, b in both) / len(both) if both else None


def forced(engine: Engine, model: GPT, pairs: Sequence[Pair]) -> dict[str, float]:
    """CounterFact's scores (Meng et al. 2022) as its published code computes them: with P = exp(−mean NLL per token) the share
    with P(new) > P(old), and the mean difference, for the prompt (es, em), for its paraphrases (ps, pm), and with the true
    object in place of the new one for the neighbours (ns, nm)."""
    figures = {}
    for name in dict.fromkeys(p.group for p in pairs):
        own = [p for p in pairs if p.group == name]
        both = likelihoods(engine, model, [(p.question, p.prompt, x) for p in own for x in (p.more, p.less)])
        figures[f"{name}s"] = sum(x > y for x, y in zip(both[::2], both[1::2], strict=True)) / len(own)
        figures[f"{name}m"] = sum(x - y for x, y in zip(both[::2], both[1::2], strict=True)) / len(own)
    return figures


@torch.inference_mode()
def likelihoods(engine: Engine, model: GPT, rows: Sequence[tuple[str, str, str]]) -> list[float]:
    """exp(−mean NLL) of each (question, prompt, continuation): behind the prompt, which where there is a question begins the
    answer to it."""
    found, tokenizer = [], engine.tokenizer
    made = []
    for question, prompt, target in rows:
        head = engine.chat_ids([{"role": "user", "content": question}]) if question else []
        ids = head + tokenizer.encode(prompt) if question else tokenizer.prompt(prompt)
        made.append((ids, continuation(tokenizer, prompt, target)))
    for at in range(0, len(made), 32):
        part = made[at : at + 32]
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
