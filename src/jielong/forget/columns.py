"""The exam of a suppression: what a model still gives away of the texts, and what else it can do. One column for each model: before,
after, and twins that were trained without the texts.

A figure says something only beside the twins': a model that never saw a text is not at zero, and one that is pushed past it
gives the text away as well.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jielong.align.scoring import (
    Answered,
    answer_logprobs,
    answer_tokens,
    chosen,
    hidden_before,
    log_softmax,
    merged_copy,
    parts,
)
from jielong.config.feedback import adam
from jielong.corpus.canaries import Canary
from jielong.corpus.documents import Document
from jielong.corpus.world import load_world
from jielong.evaluate.bpb import bits_per_byte
from jielong.evaluate.leakage import (
    MUSE_K,
    SCORES,
    exact_memorisation,
    exposures,
    extraction_strength,
    log_truth_ratio,
    min_k_score,
    privacy_leak,
    reference_score,
    tpr_at,
    truth,
)
from jielong.evaluate.qa import examine
from jielong.evaluate.statistics import auc, kolmogorov_smirnov
from jielong.forget.items import Text
from jielong.forget.methods.method import lengths, nll
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT
from jielong.model.lora import add_lora
from jielong.run import write_atomic
from jielong.teacher import judge
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import dtype_of
from jielong.train.optim import Optimizer

SAID = 16  # tokens that must come out to count as extracted
RELEARN = (0, 1, 2, 4, 8, 16)  # steps of relearning, at which the other half is looked at
RELEARN_ROWS, RELEARN_LR = 8, 2e-4
QUESTIONS, TALKS = 60, 40  # per language and half; prompts
ASKED = 4 * QUESTIONS  # two languages, two halves
QUANTISED = ("q8_0", "q4_0")


@dataclass
class Material:
    """What every column is examined with."""

    forget: list[Text]
    others: list[Text]
    """Texts of the same kind that no model read; empty: no membership inference."""
    canaries: list[Canary] = field(default_factory=list)
    held_out: list[Document] = field(default_factory=list)
    world: bool = False
    """Ask the facts of the default corpus's world, and talk with the model about them."""
    seed: int = 1
    samples: int = 20
    relearn_lora: int = 0
    quick: bool = False
    """Likelihoods only."""


@dataclass
class Column:
    """A model's figures, and the values behind them that are compared with another model's."""

    figures: dict[str, float]
    log_ratios: list[float] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    """Of the texts' tokens: first those to be suppressed, then the others."""
    talks: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        write_atomic(path, json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Column:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def examine_model(model: GPT, tokenizer: Tokenizer, material: Material, chat: bool) -> Column:
    """One column. The model is left as it was."""
    model = merged_copy(model)
    column = likelihoods(model, tokenizer, material)
    if material.quick:
        return column
    device = model.device.type
    figures, engine = column.figures, Engine(model, tokenizer, chat=chat, rows=64, device=device)
    figures |= extracted(engine, material.forget, material.samples)
    if material.canaries:
        figures["exposure"] = float(np.mean(exposures(model, tokenizer, material.canaries)))
    for kind in QUANTISED:
        small = quantised(model, tokenizer, kind)
        told = likelihoods(small, tokenizer, material).figures
        told |= extracted(Engine(small, tokenizer, chat=chat, rows=64, device=device), material.forget, 0)
        figures |= {f"{name} {kind}": told[name] for name in ("nll", "extraction strength", "truth ratio", "greedy")}
        if material.canaries:
            figures[f"exposure {kind}"] = float(np.mean(exposures(small, tokenizer, material.canaries)))
    figures |= {f"relearnt {step}": value for step, value in relearning(model, material).items()}
    if material.held_out:
        bits = bits_per_byte(model, tokenizer, material.held_out)
        figures["bits per byte"] = sum(bits.values()) / len(bits)
    if material.world and chat:
        both = [examine(engine, material.seed, which, QUESTIONS) for which in ("taught", "unseen")]
        figures["knowledge"] = float(np.mean([half[lang]["accuracy"] for half in both for lang in ("en", "zh")]))
        column.talks = talk(engine, material.seed)
        figures["chat"] = float(np.mean(column.talks))
    return column


def likelihoods(model: GPT, tokenizer: Tokenizer, material: Material) -> Column:
    """What one reading of the texts tells: −log p per token, extraction strength, truth ratio, and membership inference."""
    texts = [*material.forget, *material.others]
    logprobs, right = read(model, [t.answers for t in texts])
    n = len(material.forget)
    figures = {
        "nll": -float(np.mean([lp.mean() for lp in logprobs[:n]])),
        "exact memorisation": float(np.mean([exact_memorisation(r) for r in right[:n]])),
        "extraction strength": float(np.mean([extraction_strength(r) for r in right[:n]])),
    }
    ratios = [log_ratio(model, t) for t in material.forget if t.probe.wrong]
    figures["truth ratio"] = truth(np.array(ratios)) if ratios else math.nan
    if material.others:
        figures |= membership(tokenizer, texts, logprobs, n)
    return Column(figures, ratios, [lp.tolist() for lp in logprobs])


def read(model: GPT, records: Sequence[Sequence[Answered]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each record the log-probabilities of its answers' tokens under teacher forcing, and which were the likeliest ones."""
    flat = [a for own in records for a in own]
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for group in parts([len(a) for a in flat]):
        logprobs, right = forced(model, [flat[i] for i in group])
        cuts = np.cumsum([len(flat[i].answer) for i in group])[:-1]
        found |= dict(zip(group, zip(np.split(logprobs, cuts), np.split(right, cuts), strict=True), strict=True))
    ends = np.cumsum([0, *map(len, records)])
    rows = [[found[i] for i in range(a, b)] for a, b in itertools.pairwise(ends.tolist())]
    return [np.concatenate([lp for lp, _ in row]) for row in rows], [
        np.concatenate([ok for _, ok in row]) for row in rows
    ]


@torch.inference_mode()
def forced(model: GPT, answers: Sequence[Answered]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) log-probabilities, and (N,) bool: was the token the likeliest."""
    table = log_softmax(model, hidden_before(model, answers, dtype_of("auto", model.device)))
    tokens = answer_tokens(answers)
    return chosen(table, tokens).double().cpu().numpy(), (table.argmax(-1).cpu() == tokens).numpy()


def log_ratio(model: GPT, text: Text) -> float:
    """Log of the truth ratio of a text's probe."""
    asked = [text.probe.right, *text.probe.wrong]
    flat = answer_logprobs(model, asked, dtype_of("auto", model.device)).double()
    means = [float(part.mean()) for part in flat.split([len(a.answer) for a in asked])]
    return log_truth_ratio(means[0], means[1:])


def membership(tokenizer: Tokenizer, texts: Sequence[Text], logprobs: Sequence[np.ndarray], members: int) -> dict[str, float]:  # fmt: skip
    """AUC and true positives at 1 % false ones of every score: the first `members` texts against the rest, and how many of each there
    are: with fewer than 100 others the 1 % allow not a single false one, and few texts tell little."""
    labels = np.arange(len(texts)) < members
    figures: dict[str, float] = {"AUC members": members, "AUC others": len(texts) - members}
    for name, score in SCORES.items():
        spelt = [tokenizer.decode([i for a in t.answers for i in a.answer]) for t in texts]
        scores = np.array([score(lp, text) for lp, text in zip(logprobs, spelt, strict=True)])
        figures |= {f"AUC {name}": auc(scores, labels), f"TPR 1% {name}": tpr_at(scores, labels, 0.01)}
    return figures


def extracted(engine: Engine, texts: Sequence[Text], samples: int) -> dict[str, float]:
    """Shares of the texts whose answer's first `SAID` tokens come out by greedy choice, and in at least one of `samples`."""
    rows = []
    for n, text in enumerate(texts):
        true = text.probe.true
        size = min(SAID, len(true.answer), engine.context - len(true.prompt))
        asked = [Sampling(temperature=0.0, max_tokens=size)]
        asked += [Sampling(temperature=1.0, max_tokens=size, seed=n * samples + s) for s in range(samples)]
        rows.append((tuple(true.answer[:size]), [engine.submit(list(true.prompt), s) for s in asked]))
    while any(r.finish is None for _, requests in rows for r in requests):
        engine.step()
    hits = [[begins(r.answer, true, engine.tokenizer) for r in requests] for true, requests in rows]
    figures = {"greedy": float(np.mean([h[0] for h in hits]))}
    return figures | ({"sampled": float(np.mean([any(h[1:]) for h in hits]))} if samples else {})


def begins(said: Sequence[int], true: tuple[int, ...], tokenizer: Tokenizer) -> bool:
    """Did the model say these tokens? An end of its answer, which the engine may not hand out, need not be said."""
    wanted = true[:-1] if true and not tokenizer.token_bytes(true[-1]) else true
    return tuple(said[: len(wanted)]) == wanted


def quantised(model: GPT, tokenizer: Tokenizer, kind: str) -> GPT:
    """The model after a round trip through a GGUF file whose matrices have 8 or 4 bits."""
    from jielong.model.gguf import GGUF, read_gguf, write_gguf
    from jielong.tokens.foreign import to_gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, model.config, model.state_dict(), kind, to_gguf(tokenizer, model.config.vocab_size), "exam")
        _, state = read_gguf(GGUF(path))
        small = GPT(model.config)
        small.load_state_dict(state)
    return small.to(model.device).requires_grad_(False).eval()


def relearning(model: GPT, material: Material) -> dict[int, float]:
    """Fine-tuning on every second text, and −log p per token of the others after so many steps: what was only hidden comes back
    sooner than what was never there."""
    if len(material.forget) < 2:
        return {}
    taught = [a for t in material.forget[::2] for a in t.answers]
    asked = [t.answers for t in material.forget[1::2]]
    learner = copy.deepcopy(model).requires_grad_(True)
    if material.relearn_lora:
        add_lora(learner, material.relearn_lora, 2.0 * material.relearn_lora, material.seed)
    dtype = dtype_of("auto", model.device)
    optimizer, found = Optimizer(learner, adam(RELEARN_LR), dtype), {}
    for step in range(RELEARN[-1] + 1):
        if step in RELEARN:
            found[step] = -float(np.mean([lp.mean() for lp in read(learner, asked)[0]]))
        rows = [taught[(step * RELEARN_ROWS + n) % len(taught)] for n in range(min(RELEARN_ROWS, len(taught)))]
        (nll(learner, rows, dtype) / lengths(rows)).mean().backward()
        optimizer.step(0.0)
    return found


def talk(engine: Engine, seed: int) -> list[float]:
    """What the noise-free simulated teacher thinks of the model's answers to held-out prompts."""
    world = load_world()
    asked = judge.prompts(world, seed, TALKS, held_out=True)
    prompts = [engine.chat_ids([{"role": "user", "content": a.prompt}]) for a in asked]
    replies = engine.generate(prompts, Sampling(temperature=0.0, max_tokens=48))
    return [judge.score(world, a, r.text) for a, r in zip(asked, replies, strict=True)]


# beside each other


def together(
    before: Column, after: Column | None, twins: Sequence[Column], members: int
) -> dict[str, dict[str, float]]:
    """Every column's figures with those that need two models: the truth ratios' distance from the first twin's (Kolmogorov and
    Smirnov), membership by reference to it and MUSE's PrivLeak, and how often the answers are liked more than before. `members` is the number of texts to be suppressed."""
    named = {
        "before": before,
        **({"after": after} if after else {}),
        **{f"twin {n}": t for n, t in enumerate(twins, 1)},
    }
    table = {name: dict(column.figures) for name, column in named.items()}
    for name, column in named.items():
        own = table[name]
        if column.talks and column is not before:
            pairs = list(zip(column.talks, before.talks, strict=True))
            own["chat win rate"] = float(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
        if not twins:
            continue
        # a twin is compared with another one
        other = twins[0] if column is not twins[0] else (twins[1] if len(twins) > 1 else None)
        if other is None:
            continue
        if column.log_ratios:
            own["KS D"], own["KS p"] = kolmogorov_smirnov(np.array(column.log_ratios), np.array(other.log_ratios))
            own["KS n"] = len(column.log_ratios)
        if len(column.logprobs) > members:
            labels = np.arange(len(column.logprobs)) < members
            own["PrivLeak"] = privacy_leak(*(auc(min_forty(c), labels) for c in (column, other)))
            scores = np.array([
                reference_score(np.array(a), np.array(b)) for a, b in zip(column.logprobs, other.logprobs, strict=True)
            ])  # fmt: skip
            own["AUC reference"], own["TPR 1% reference"] = auc(scores, labels), tpr_at(scores, labels, 0.01)
    return table


def min_forty(column: Column) -> np.ndarray:
    """Min-40 % of every text: (texts,)."""
    return np.array([min_k_score(np.array(lp), "", MUSE_K) for lp in column.logprobs])


def spread(columns: dict[str, dict[str, float]], name: str) -> tuple[float, float] | None:
    """Mean and standard deviation (NaN for a single one) of a figure over the twins that have it."""
    values = [c[name] for key, c in columns.items() if key.startswith("twin ") and name in c]
    if not values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def lines(columns: dict[str, dict[str, float]]) -> list[str]:
    """The table for people."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    head = f"{'':26} {'before':>10} {'after':>10}" + ("   twins (mean ± sd)" if "twin 1" in columns else "")
    rows = [head]
    for name in names:
        cells = [
            f"{columns[c][name]:10.4g}" if name in columns.get(c, {}) else f"{'':>10}" for c in ("before", "after")
        ]
        twin = spread(columns, name)
        tail = "" if twin is None else f"   {twin[0]:.4g}" + ("" if math.isnan(twin[1]) else f" ± {twin[1]:.2g}")
        rows.append(f"{name:26} {cells[0]} {cells[1]}{tail}")
    return rows


def plain_figures(columns: dict[str, dict[str, float]]) -> dict[str, Any]:
    """For JSON: numbers that are none become null."""
    return {c: {k: None if math.isnan(v) else round(v, 6) for k, v in own.items()} for c, own in columns.items()}
