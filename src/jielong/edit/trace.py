"""Causal tracing (Meng et al. 2022): the subject's embeddings are blurred with noise, and one clean state at a time is put back. Where
that brings the answer back, the fact passes through."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from jielong.config import TraceConfig
from jielong.edit.facts import Fact, check, continuation, first_clause
from jielong.edit.state import talking
from jielong.errors import UserError
from jielong.generate.engine import Engine
from jielong.generate.memory import occurrences
from jielong.generate.sampling import Sampling
from jielong.model.gpt import GPT, causal_mask, load_model
from jielong.run import Run, write_atomic
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import use_threads


def run(config: TraceConfig, run: Run) -> Tensor:
    """The trace command; prints, and writes where it is told to, the table (tokens, layers). Raises UserError for a fact that
    cannot be meant, or an empty picture."""
    fact = check(Fact(config.prompt, config.subject, config.answer or "?"))
    if config.samples < 1 or config.noise <= 0:
        raise UserError("--samples must be at least 1 and --noise above 0.")
    if config.out is not None and not config.out.absolute().parent.is_dir():
        raise UserError(f"--out: there is no folder {config.out.absolute().parent}; make it, or name another file.")
    use_threads(config.threads)
    artifact = talking(run, config.model)
    model = load_model(artifact.path).requires_grad_(False).eval()
    tokenizer = Tokenizer.load(artifact.file("tokenizer.json"))
    ids = tokenizer.prompt(fact.prompt)
    answer = config.answer
    if not answer:
        engine = Engine(model, tokenizer, rows=1)
        answer = first_clause(engine.generate([ids], Sampling(temperature=0.0, max_tokens=16))[0].text)
        if not answer:
            raise UserError("The model continues the prompt with nothing that could be traced; name an --answer.")
    goal = continuation(tokenizer, fact.prompt, answer)[0]
    spots = subject_tokens(tokenizer, ids, fact.subject)
    clean, blurred, table = restore(model, ids, spots, goal, config.samples, config.noise, config.seed)
    words = [tokenizer.decode([i]).strip() or "·" for i in ids]
    print(
        f"p({tokenizer.decode([goal]).strip()!r}): {clean:.3f}; with the subject blurred {blurred:.3f}. One state put back:"
    )
    width = max(map(len, words)) + 1
    print(" " * width + "".join(f"{n:>7}" for n in range(table.shape[1])) + "  (layer)")
    for n, word in enumerate(words):
        mark = "*" if n in spots else " "
        print(f"{word:{width - 1}}{mark}" + "".join(f"{p:7.3f}" for p in table[n].tolist()))
    if config.out is not None:
        draw(table, words, f"{fact.prompt} → {answer}: {clean:.3f}, blurred {blurred:.3f}", config.out)
        print(config.out)
    return table


def subject_tokens(tokenizer: Tokenizer, ids: list[int], subject: str) -> list[int]:
    """Every token that holds a part of the subject's first occurrence."""
    spans, at = [], 0
    for i in ids:
        spans.append((at, at := at + len(tokenizer.token_bytes(i))))
    end = occurrences(b"".join(map(tokenizer.token_bytes, ids)), subject)[0]
    start = end - len(subject.encode())
    return [n for n, (a, b) in enumerate(spans) if a < end and b > start]


@torch.no_grad()
def restore(
    model: GPT, ids: list[int], spots: list[int], goal: int, samples: int, noise: float, seed: int
) -> tuple[float, float, Tensor]:
    """(p(goal) as it is, p with noise on the embeddings at `spots`, table (T, L) of p with the clean output of one block put back
    at one token), each averaged over the same draws of the noise."""
    tokens = torch.tensor([ids])
    T, L = len(ids), len(model.blocks)
    mask = causal_mask(T)
    x, rope = model.enter(tokens)
    states = [x]
    for block in model.blocks:
        states.append(block(states[-1], rope, mask))

    def chance(h: Tensor) -> float:
        return float(model.logits(model.norm(h[:, -1])).softmax(-1)[:, goal].mean())

    generator = torch.Generator().manual_seed(seed)
    noisy = x.repeat(samples, 1, 1)
    noisy[:, spots] += (
        noise * model.embedding.weight.std() * torch.randn(samples, len(spots), x.shape[-1], generator=generator)
    )
    ways = [noisy]
    for block in model.blocks:
        ways.append(block(ways[-1], rope, mask))
    table = torch.zeros(T, L)
    for layer in range(L):
        for t in range(T):
            h = ways[layer + 1].clone()
            h[:, t] = states[layer + 1][:, t]
            for block in list(model.blocks)[layer + 1 :]:
                h = block(h, rope, mask)
            table[t, layer] = chance(h)
    return chance(states[-1]), chance(ways[-1]), table


def draw(table: Tensor, words: list[str], title: str, out: Path) -> None:
    """A heat map in one HTML file."""
    import plotly.graph_objects as go

    labels = [f"{n} {word}" for n, word in enumerate(words)]
    figure = go.Figure(
        go.Heatmap(z=table.tolist(), x=[f"layer {n}" for n in range(table.shape[1])], y=labels, colorscale="Purples")
    )
    figure.update_layout(title=title, yaxis_autorange="reversed")
    write_atomic(out, str(figure.to_html(include_plotlyjs=True)))
