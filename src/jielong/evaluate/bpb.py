"""Bits per byte: the loss in a unit that no vocabulary can flatter."""

from __future__ import annotations

import math

import torch

from jielong.corpus.documents import Document
from jielong.model.gpt import GPT, causal_mask
from jielong.model.kernels import cross_entropy
from jielong.tokens.tokenizer import Tokenizer


@torch.inference_mode()
def bits_per_byte(model: GPT, tokenizer: Tokenizer, documents: list[Document], longest: int = 256) -> dict[str, float]:
    """Σ −log₂ p(token) / bytes of the text, per language, each document cut to `longest` tokens and read alone.

    The end-of-text token after a document is not counted, nor is it in the bytes.
    """
    from jielong.train.loop import dtype_of

    device = model.embedding.weight.device
    dtype = dtype_of("auto", device)
    longest = min(longest, model.config.context - 1)
    nats: dict[str, float] = {}
    size: dict[str, int] = {}
    encoded = [
        (d.lang, ids[:longest])
        for d, ids in zip(documents, tokenizer.encode_batch([d.text for d in documents]), strict=True)
    ]
    encoded.sort(key=lambda pair: len(pair[1]))
    for at in range(0, len(encoded), 32):
        part = encoded[at : at + 32]
        T = max(len(ids) for _, ids in part)
        if T == 0:
            continue
        inputs = torch.full((len(part), T), tokenizer.end_of_text)
        targets = torch.zeros(len(part), T, dtype=torch.int64)
        scale = torch.zeros(len(part), T)
        for row, (_, ids) in enumerate(part):
            inputs[row, 1 : len(ids)] = torch.tensor(ids[:-1], dtype=torch.int64)
            targets[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            scale[row, : len(ids)] = 1.0
        inputs, targets, scale = inputs.to(device), targets.to(device), scale.to(device)
        hidden = model(inputs, causal_mask(T).to(device), dtype)
        for row, (lang, ids) in enumerate(part):
            loss = cross_entropy(hidden[row], model.head_weight, targets[row], scale[row])
            nats[lang] = nats.get(lang, 0.0) + float(loss)
            size[lang] = size.get(lang, 0) + sum(len(tokenizer.token_bytes(i)) for i in ids)
    return {lang: round(nats[lang] / math.log(2) / size[lang], 4) for lang in sorted(nats) if size[lang]}
