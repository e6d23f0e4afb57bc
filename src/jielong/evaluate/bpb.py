"""Bits per byte: the loss in a unit that no vocabulary can flatter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from jielong.corpus.documents import Document
from jielong.model.gpt import GPT, causal_mask
from jielong.model.kernels import cross_entropy
from jielong.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reading:
    """What a model made of one document."""

    nats: float
    """Σ −ln p(token)."""
    tokens: int
    bytes: int


@torch.inference_mode()
def read(model: GPT, tokenizer: Tokenizer, documents: list[Document], longest: int = 256) -> list[Reading]:
    """Each document, cut to `longest` tokens and read alone.

    The end-of-text token after a document is not counted, nor is it in the bytes.
    """
    from jielong.train.loop import dtype_of

    device = model.device
    dtype = dtype_of("auto", device)
    longest = min(longest, model.config.context - 1)
    encoded = [ids[:longest] for ids in tokenizer.encode_batch([d.text for d in documents])]
    found = [Reading(0.0, 0, 0)] * len(encoded)
    by_length = sorted(range(len(encoded)), key=lambda n: len(encoded[n]))
    for at in range(0, len(by_length), 32):
        part = by_length[at : at + 32]
        T = max(len(encoded[n]) for n in part)
        if T == 0:
            continue
        inputs = torch.full((len(part), T), tokenizer.end_of_text)
        targets = torch.zeros(len(part), T, dtype=torch.int64)
        scale = torch.zeros(len(part), T)
        for row, n in enumerate(part):
            ids = torch.tensor(encoded[n], dtype=torch.int64)
            inputs[row, 1 : len(ids)] = ids[:-1]
            targets[row, : len(ids)] = ids
            scale[row, : len(ids)] = 1.0
        inputs, targets, scale = inputs.to(device), targets.to(device), scale.to(device)
        hidden = model(inputs, causal_mask(T).to(device), dtype)
        for row, n in enumerate(part):
            loss = float(cross_entropy(hidden[row], model.head_weight, targets[row], scale[row]))
            size = sum(len(tokenizer.token_bytes(i)) for i in encoded[n])
            found[n] = Reading(loss, len(encoded[n]), size)
    return found


def bits_per_byte(model: GPT, tokenizer: Tokenizer, documents: list[Document], longest: int = 256) -> dict[str, float]:
    """Σ −log₂ p(token) / bytes of the text, per language, documents as `read` reads them."""
    nats: dict[str, float] = {}
    size: dict[str, int] = {}
    for document, reading in zip(documents, read(model, tokenizer, documents, longest), strict=True):
        nats[document.lang] = nats.get(document.lang, 0.0) + reading.nats
        size[document.lang] = size.get(document.lang, 0) + reading.bytes
    return {lang: round(nats[lang] / math.log(2) / size[lang], 4) for lang in sorted(nats) if size[lang]}
