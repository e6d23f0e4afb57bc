"""What a model gives away of the texts it was trained on: exposure, extraction and membership inference.

Scores of membership are higher for what is more likely a member. A value means something only beside that of a model that never
saw the texts; an AUC below one half tells on them, too.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch

from jielong.corpus.canaries import CODES, Canary
from jielong.evaluate.statistics import auc, bootstrap
from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT, causal_mask
from jielong.tokens.tokenizer import Tokenizer

MIN_K = 0.2  # share of a text's tokens that Min-K % looks at (Shi et al. 2024a)
MUSE_K = 0.4  # the same in PrivLeak (Shi et al. 2024b)
ROWS = 64


def loss_score(logprobs: np.ndarray, text: str) -> float:
    """Mean log-probability of a token (Yeom et al. 2018)."""
    return float(logprobs.mean())


def zlib_score(logprobs: np.ndarray, text: str) -> float:
    """Log-probability of the text per byte that zlib needs for it (Carlini et al. 2021)."""
    return float(logprobs.sum()) / len(zlib.compress(text.encode()))


def min_k_score(logprobs: np.ndarray, text: str, share: float = MIN_K) -> float:
    """Mean of the lowest `share` of the log-probabilities, at least one of them (Shi et al. 2024a, "Detecting pretraining data")."""
    count = max(1, int(len(logprobs) * share))
    return float(np.sort(logprobs)[:count].mean())


def reference_score(logprobs: np.ndarray, reference: np.ndarray) -> float:
    """Mean log-probability of a token above that of a model that never saw the text (Carlini et al. 2021)."""
    return float(logprobs.mean() - reference.mean())


SCORES = {"loss": loss_score, "zlib": zlib_score, "min-k": min_k_score}


def tpr_at(scores: np.ndarray, members: np.ndarray, fpr: float) -> float:
    """Share of the members above the lowest threshold that at most the share `fpr` of the others passes; NaN without both."""
    others, own = np.sort(scores[~members]), scores[members]
    if not len(others) or not len(own):
        return math.nan
    passing = int(fpr * len(others))  # others that may pass
    return float((own > others[len(others) - 1 - passing]).mean()) if passing < len(others) else 1.0


def privacy_leak(own: float, twin: float) -> float:
    """MUSE's PrivLeak (Shi et al. 2024b): with A = 1 − AUC of membership by Min-40 %, (A − A_twin) / A_twin · 100. 0 as for the twin,
    down to −100 where the texts are still told by how well they are known, above 0 where by how badly; NaN for a twin of A = 0."""
    return 100 * (twin - own) / (1 - twin) if twin < 1 else math.nan


def exact_memorisation(right: np.ndarray) -> float:
    """Share of a text's tokens that are the likeliest ones after the true text before them (Tirumala et al. 2022)."""
    return float(right.mean())


def extraction_strength(right: np.ndarray) -> float:
    """Which of a text's tokens are the likeliest ones after the true text before them → 1 − k/n, where k is the shortest prefix
    after which all are (Carlini et al. 2021; Wang et al. 2024). 1: all are; 0: the last one is not."""
    wrong = np.flatnonzero(~right)
    return 1.0 if not len(wrong) else 1 - (int(wrong[-1]) + 1) / len(right)


def log_truth_ratio(right: float, wrong: Sequence[float]) -> float:
    """Mean log-probabilities per token of the right answer and of wrong ones → log of TOFU's truth ratio, the geometric mean of
    the wrong answers' probabilities over the right one's (Maini et al. 2024, with P = exp(mean log p))."""
    return float(np.mean(wrong)) - right


def truth(log_ratios: np.ndarray) -> float:
    """Mean of min(t, 1/t): 1 where wrong answers are as likely as right ones, 0 where one kind is ruled out."""
    return float(np.exp(-np.abs(log_ratios)).mean())


def exposure(true: float, others: np.ndarray) -> float:
    """log2 |R| − log2 rank of the true secret among all candidates by log-probability, ties in the middle (Carlini et al. 2019).
    0 to log2 |R|; about 1.44 on average for a secret that was never seen."""
    rank = 1 + float((others > true).sum()) + 0.5 * float((others == true).sum())
    return math.log2(1 + len(others)) - math.log2(rank)


@torch.inference_mode()
def token_logprobs(model: GPT, tokenizer: Tokenizer, texts: Sequence[str], longest: int = 0) -> list[np.ndarray]:
    """Log-probability of every token of each text after an end-of-text token, each text alone; cut to the model's context."""
    from jielong.train.loop import dtype_of

    longest = min(longest or model.config.context - 1, model.config.context - 1)
    encoded = [ids[:longest] for ids in tokenizer.encode_batch(list(texts))]
    found: list[np.ndarray] = [np.zeros(0)] * len(texts)
    device, dtype = model.device, dtype_of("auto", model.device)
    order = sorted(range(len(texts)), key=lambda n: len(encoded[n]))
    for at in range(0, len(order), ROWS):
        part = order[at : at + ROWS]
        T = max(len(encoded[n]) for n in part)
        inputs = torch.full((len(part), T), tokenizer.end_of_text)
        targets = torch.zeros(len(part), T, dtype=torch.int64)
        for row, n in enumerate(part):
            size = len(encoded[n])
            inputs[row, 1:size] = torch.tensor(encoded[n][:-1])
            targets[row, :size] = torch.tensor(encoded[n])
        hidden = model(inputs.to(device), causal_mask(T).to(device), dtype)  # (B, T, D)
        logprobs = model.logits(hidden).float().log_softmax(-1)  # (B, T, V)
        picked = logprobs.gather(2, targets.to(device).unsqueeze(2)).squeeze(2).cpu().double().numpy()
        for row, n in enumerate(part):
            found[n] = picked[row, : len(encoded[n])]
    return found


def exposures(
    model: GPT, tokenizer: Tokenizer, known: Sequence[Canary], codes: int = 1000, seed: int = 0
) -> list[float]:
    """The exposure of each canary among `codes` candidates drawn once from all (its own among them)."""
    drawn = np.random.default_rng(seed).choice(CODES, min(codes, CODES) - 1, replace=False)
    found = []
    for canary in known:
        others = [c for c in (f"{n:04}" for n in drawn) if c != canary.code]
        sums = [
            float(lp.sum())
            for lp in token_logprobs(model, tokenizer, [canary.telling(c) for c in (canary.code, *others)])
        ]
        found.append(exposure(sums[0], np.array(sums[1:])))
    return found


def extraction(
    engine: Engine, known: Sequence[Canary], samples: int = 100, tokens: int = 8
) -> list[tuple[bool, float]]:
    """For each canary: does the likeliest continuation of the text before its secret begin with it, and which share of sampled ones?"""
    asked = []
    for n, canary in enumerate(known):
        prompt = [engine.tokenizer.end_of_text, *engine.tokenizer.encode(canary.prefix)]
        asked.append([engine.submit(prompt, Sampling(temperature=0.0, max_tokens=tokens))])
        asked[-1] += [
            engine.submit(prompt, Sampling(temperature=1.0, max_tokens=tokens, seed=n * samples + s))
            for s in range(samples)
        ]
    while any(r.finish is None for requests in asked for r in requests):
        engine.step()
    told = [[r.text.strip().startswith(c.code) for r in requests] for requests, c in zip(asked, known, strict=True)]
    return [(t[0], sum(t[1:]) / samples if samples else 0.0) for t in told]


def membership(
    model: GPT, tokenizer: Tokenizer, members: Sequence[str], others: Sequence[str]
) -> dict[str, dict[str, float]]:
    """AUC with its 95 % interval, and the true positives at 1 % and 10 % false ones, of every score in `SCORES`."""
    texts = [*members, *others]
    labels = np.array([True] * len(members) + [False] * len(others))
    logprobs = token_logprobs(model, tokenizer, texts)
    table = {}
    for name, score in SCORES.items():
        scores = np.array([score(lp, text) for lp, text in zip(logprobs, texts, strict=True)])

        def area(at: np.ndarray, scores: np.ndarray = scores) -> float:
            return auc(scores[at], labels[at])

        value, low, high = bootstrap([[n] for n in range(len(texts))], area)
        rates = {f"tpr_{fpr:.0%}": tpr_at(scores, labels, fpr) for fpr in (0.01, 0.1)}
        table[name] = {"auc": value, "low": low, "high": high, **rates}
    return table
