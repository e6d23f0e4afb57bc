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
from jielong.tokens.chat import encode_chat

NO_QUESTION = ("N/A", "[MASK]", "")  # the inputs without content of Zhao et al. 2021
TOGETHER = (
    16  # prompts whose labels are read side by side, so that the prefix cache still has them when labels continue
)


@dataclass(frozen=True)
class Reply:
    """An answer; with labels, the probability of each."""

    text: str
    probabilities: tuple[float, ...] = ()


def prompt_ids(engine: Engine, prompt: Prompt, values: Mapping[str, str], text: str) -> list[int]:
    """Token ids of a prompt with one question. A model that does not chat reads a list of inputs and outputs instead."""
    if engine.chat:
        return encode_chat(engine.tokenizer, prompt.messages(values, text), True)[0]
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
    found = probabilities(label_logprobs(engine, rows, labels))
    if prompts[0].calibrated:
        empty = [[prompt_ids(engine, p, v, n) for n in NO_QUESTION] for p, v in zip(prompts, values, strict=True)]
        distinct = list({tuple(ids): None for own in empty for ids in own})
        prior = dict(zip(distinct, probabilities(label_logprobs(engine, distinct, labels)), strict=True))
        found = calibrate(found, np.stack([np.mean([prior[tuple(ids)] for ids in own], 0) for own in empty]))
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


def label_logprobs(engine: Engine, prompts: Sequence[Sequence[int]], labels: Sequence[str]) -> np.ndarray:
    """log p(label | prompt), summed over the label's tokens: (N, L).

    Each prompt is read once, which gives the first tokens of all labels; a label with more of them is then forced, token by
    token, behind what the prefix cache has kept. The first prompt goes ahead, so that the others find their beginning there.
    """
    ids = label_ids(engine, labels)
    longest = max(map(len, ids))
    firsts = [own[0] for own in ids]
    table = np.zeros((len(prompts), len(ids)))
    for prompt in prompts:
        if len(prompt) + longest > engine.context:
            raise UserError(
                f"The prompt has {len(prompt)} tokens; with a label this model reads at most {engine.context}. Show fewer examples."
            )
    groups = [
        range(min(1, len(prompts))),
        *(range(a, min(a + TOGETHER, len(prompts))) for a in range(1, len(prompts), TOGETHER)),
    ]
    for group in groups:
        heads = [Heard([[i] for i in firsts]) for _ in group]
        _work(engine, [(list(prompts[n]), 1, head) for n, head in zip(group, heads, strict=True)])
        for n, head in zip(group, heads, strict=True):
            table[n] = head.sums
        rests = [(n, k, Heard([own[1:]])) for n in group for k, own in enumerate(ids) if len(own) > 1]
        _work(engine, [([*prompts[n], ids[k][0]], len(ids[k]) - 1, rest) for n, k, rest in rests])
        for n, k, rest in rests:
            table[n, k] += rest.sums[0]
    return table


class Heard:
    """A logits processor that adds up the log-probabilities of given continuations, and forces the first one of them."""

    def __init__(self, continuations: list[list[int]]):
        self.continuations = continuations
        self.sums = np.zeros(len(continuations))
        self._steps = 0

    def __call__(self, answer: Sequence[int], logits: Tensor) -> Tensor:
        logprobs = torch.log_softmax(logits.double(), -1)
        column = [c[self._steps] for c in self.continuations]
        self.sums += logprobs[torch.tensor(column)].numpy()
        self._steps += 1
        return torch.full_like(logits, float("-inf")).index_fill_(0, torch.tensor(column[:1]), 0.0)


def _work(engine: Engine, jobs: list[tuple[list[int], int, Heard]]) -> None:
    requests = [
        engine.submit(ids, Sampling(temperature=0.0, max_tokens=count, ignore_end=True, processors=(heard,)))
        for ids, count, heard in jobs
    ]
    _until_done(engine, requests)


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
