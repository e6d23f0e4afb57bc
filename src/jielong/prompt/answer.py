"""A model answers prompts: freely, or with one of a few labels, each of which gets a probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.request import Request
from jielong.generate.sampling import Sampling
from jielong.prompt.form import Prompt
from jielong.tokens.chat import chat_ids

NO_QUESTION = ("N/A", "[MASK]", "")  # the inputs without content of Zhao et al. 2021
TOGETHER = 8  # prompts whose labels are read side by side


@dataclass(frozen=True)
class Reply:
    """An answer; with labels, the probability of each."""

    text: str
    probabilities: tuple[float, ...] = ()


def prompt_ids(engine: Engine, prompt: Prompt, values: Mapping[str, str], text: str) -> list[int]:
    """Token ids of a prompt with one question. A model that does not chat reads a list of inputs and outputs instead."""
    if engine.chat:
        return chat_ids(engine.tokenizer, prompt.messages(values, text), True)
    first, *turns = [{"role": "system", "content": ""}, *prompt.messages(values, text)]
    if turns[0]["role"] == "system":
        first, *turns = turns
    lines = [f"{'Output' if m['role'] == 'assistant' else 'Input'}: {m['content']}" for m in turns]
    blocks = ["\n".join(lines[n : n + 2]) for n in range(0, len(lines), 2)]
    return engine.tokenizer.prompt("\n\n".join([*filter(None, [first["content"]]), *blocks]) + "\nOutput:")


def reply(
    engine: Engine,
    prompts: Sequence[Prompt],
    values: Sequence[Mapping[str, str]],
    texts: Sequence[str],
    sampling: Sampling,
) -> list[Reply]:
    """One answer for each prompt, its variables and its question; prompts of one call share labels and calibration. Greedy
    label: the most probable one. Raises UserError for a prompt that is too long, and for labels without tokens."""
    if not prompts:
        return []
    rows = [prompt_ids(engine, p, v, t) for p, v, t in zip(prompts, values, texts, strict=True)]
    labels = prompts[0].labels
    if not labels:
        return [Reply(r.text.strip()) for r in _generate(engine, rows, sampling)]
    empty: list[list[list[int]]] = [[] for _ in rows]
    if prompts[0].calibrated:
        empty = [[prompt_ids(engine, p, v, n) for n in NO_QUESTION] for p, v in zip(prompts, values, strict=True)]
    distinct = list({tuple(ids): None for own in (rows, *empty) for ids in own})
    known = dict(zip(distinct, probabilities(label_logprobs(engine, distinct, labels)), strict=True))
    found = np.stack([known[tuple(ids)] for ids in rows])
    if prompts[0].calibrated:
        found = calibrate(found, np.stack([np.mean([known[tuple(ids)] for ids in own], 0) for own in empty]))
    return [Reply(labels[int(p.argmax())], tuple(round(float(x), 6) for x in p)) for p in found]


def probabilities(logprobs: np.ndarray) -> np.ndarray:
    """(N, L) log-probabilities of labels → probabilities among them."""
    p = np.exp(logprobs - logprobs.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def calibrate(p: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Contextual calibration: p (N, L) divided by what the same prompts give without a question, `prior` (N, L), and normalised
    (Zhao et al. 2021, equation 1 with W = diag(prior)⁻¹ and b = 0)."""
    q = p / np.maximum(prior, 1e-9)
    return q / q.sum(1, keepdims=True)


def label_ids(engine: Engine, labels: Sequence[str]) -> list[list[int]]:
    """The labels' tokens; where one begins another, each with the token that ends an answer. Raises UserError for labels
    without tokens, or with the same."""
    space = "" if engine.chat else " "
    ids = [engine.tokenizer.encode(space + label) if label.strip() else [] for label in labels]
    for n, (label, own) in enumerate(zip(labels, ids, strict=True)):
        if not own:
            raise UserError(f"The label {label!r} has no tokens in this model's vocabulary; use another word.")
        if own in ids[:n]:
            raise UserError(f"The label {label!r} has the same tokens as another one; use another word.")
    if any(a != b and a == b[: len(a)] for a in ids for b in ids):
        end = [engine.tokenizer.im_end] if engine.chat else engine.tokenizer.encode("\n")
        ids = [[*own, *end] for own in ids]
    return ids


@torch.inference_mode()
def label_logprobs(engine: Engine, prompts: Sequence[Sequence[int]], labels: Sequence[str]) -> np.ndarray:
    """log p(label | prompt), summed over the label's tokens: (N, L). Not while another thread works the engine.

    What all prompts begin with is computed once, each prompt's rest once; labels of several tokens continue copies of it.
    """
    ids = label_ids(engine, labels)
    longest = max(map(len, ids))
    for prompt in prompts:
        if len(prompt) + longest > engine.context:
            raise UserError(
                f"The prompt has {len(prompt)} tokens; with a label this model reads at most {engine.context}. Show fewer examples."
            )
    runtime, cache = engine.runtime, engine.runtime.cache()
    common = _common(prompts)
    firsts, longer = [own[0] for own in ids], [k for k, own in enumerate(ids) if len(own) > 1]
    # rows of the cache: the common beginning, the prompts of a group, the longer labels of one prompt
    cache.reserve(1 + TOGETHER + len(longer), max(map(len, prompts)) + longest)
    if common:
        runtime.forward([prompts[0][:common]], [0], cache)
    table = np.zeros((len(prompts), len(ids)))
    for start in range(0, len(prompts), TOGETHER):
        group = prompts[start : start + TOGETHER]
        for b in range(len(group)):
            cache.move(0, 1 + b, common)
        hidden = runtime.forward([p[common:] for p in group], [common] * len(group), cache, 1)  # (N, D)
        ends = np.cumsum([len(p) - common for p in group]) - 1
        table[start : start + len(group)] = _logprobs(engine, hidden[torch.from_numpy(ends)])[:, firsts]
        for b, prompt in enumerate(group if longer else ()):
            for r in range(len(longer)):
                cache.move(1 + b, 1 + TOGETHER + r, len(prompt))
            parts = [ids[k][:-1] for k in longer]
            logprobs = _logprobs(engine, runtime.forward(parts, [len(prompt)] * len(parts), cache, 1 + TOGETHER))
            at = 0
            for k in longer:
                rest = ids[k][1:]
                table[start + b, k] += logprobs[np.arange(at, at + len(rest)), rest].sum()
                at += len(rest)
    return table


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; each keeps one for itself."""
    first, last = (
        min(map(tuple, prompts)),
        max(map(tuple, prompts)),
    )  # whatever these two share stands before all that is sorted between them
    limit = min(map(len, prompts)) - 1
    return next((n for n in range(limit) if first[n] != last[n]), limit)


def _logprobs(engine: Engine, hidden: Tensor) -> np.ndarray:
    """(N, D) → log-probabilities (N, V) in float64."""
    return torch.log_softmax(engine.runtime.logits(hidden).double(), -1).cpu().numpy()


def _generate(engine: Engine, rows: list[list[int]], sampling: Sampling) -> list[Request]:
    """Answers; the first prompt is read ahead, so that the others find their beginning in the prefix cache."""
    for ids in rows:
        engine.check(ids)
    first = [engine.submit(rows[0], sampling)]
    _until_done(engine, first)
    rest = [engine.submit(ids, sampling) for ids in rows[1:]]
    _until_done(engine, rest)
    return first + rest


def _until_done(engine: Engine, requests: list[Request]) -> None:
    try:
        while any(r.finish is None for r in requests):
            engine.step()
    finally:
        for request in requests:
            if request.finish is None:
                engine.cancel(request)
    for request in requests:
        if request.error:
            raise request.error
