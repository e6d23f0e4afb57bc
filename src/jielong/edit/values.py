"""Keys and values of a layer's second matrix: what the subject's last token writes into the residual stream, and what it would have
to write so that the model says something else (Meng et al. 2022, ROME; 2023, MEMIT)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jielong.model.gpt import GPT, Linear, causal_mask


@dataclass(frozen=True)
class Context:
    """A text that asks for the fact, in tokens, and where in it a change may be written."""

    ids: tuple[int, ...]
    target: tuple[int, ...] = ()
    """What is to follow `ids`; nothing where the model is to go on as before."""
    spots: tuple[tuple[int, int], ...] = ()
    """(position in ids and target, slot): the positions of one slot write the same value."""
    still: tuple[int, ...] = ()
    """Positions that are to write what they did: where the model decides how to begin its answer."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """What is read: the last token of the target is only predicted."""
        return self.ids + self.target[:-1]


def at_subject(ids: Sequence[int], target: Sequence[int], places: Sequence[int]) -> Context:
    """The change is written at the subject's last token, wherever it stands (ROME, MEMIT)."""
    return Context(tuple(ids), tuple(target), tuple((p, 0) for p in places))


def at_answer(ids: Sequence[int], target: Sequence[int], start: int | None = None) -> Context:
    """The change is written where the target's tokens are predicted, a value of its own for each of them; from `start`, where
    the answer begins, to there nothing is to change."""
    still = range(start, len(ids) - 1) if start is not None else ()
    return Context(tuple(ids), tuple(target), tuple((len(ids) - 1 + n, n) for n in range(len(target))), tuple(still))


@dataclass(frozen=True)
class Search:
    """How a value is searched."""

    steps: int = 25
    lr: float = 0.3
    decay: float = 0.02
    """Weight of ‖δ‖/‖h‖."""
    kl: float = 0.5
    """Weight of the divergence where the model is to go on as before."""
    clamp: float = 2.0
    """Largest ‖δ‖ as a share of ‖h‖, the residual stream's norm there."""
    enough: float = 0.05
    """The search ends when no token of a target has a larger negative log-likelihood, in nats."""


def matrix(layer: int) -> str:
    """Name of the matrix whose keys and values these are."""
    return f"blocks.{layer}.mlp.down.weight"


def second(model: GPT, layer: int) -> Linear:
    """The layer's second matrix."""
    found = model.get_submodule(matrix(layer).removesuffix(".weight"))
    assert isinstance(found, Linear)
    return found


def batch(rows: Sequence[Sequence[int]], pad: int = 0) -> Tensor:
    """(B, T) padded on the right, where causal attention never looks back from."""
    T = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (T - len(row))] for row in rows])


@torch.no_grad()
def inner(model: GPT, tokens: Tensor, layers: Sequence[int], of: str = "down") -> dict[int, Tensor]:
    """Layer → the inputs (B, T, K) of its second matrix, or of its whole feed-forward (`mlp`, (B, T, D))."""
    found: dict[int, Tensor] = {}

    def note(n: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda _, given: found.__setitem__(n, given[0].detach())

    parts = [second(model, n) if of == "down" else model.get_submodule(f"blocks.{n}.mlp") for n in layers]
    hooks = [part.register_forward_pre_hook(note(n)) for n, part in zip(layers, parts, strict=True)]
    try:
        x, rope = model.enter(tokens)
        mask = causal_mask(tokens.shape[1])
        for n in range(max(layers) + 1):
            x = model.blocks[n](x, rope, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def keys(model: GPT, contexts: Sequence[Context], layer: int) -> list[Tensor]:
    """Slot → its keys (n, K) float64 in the contexts. A key depends on the weights below its matrix only."""
    inside = inner(model, batch([c.tokens for c in contexts]), [layer])[layer].double()
    slots = 1 + max(slot for c in contexts for _, slot in c.spots)
    return [
        torch.stack([inside[row, t] for row, c in enumerate(contexts) for t, slot in c.spots if slot == own])
        for own in range(slots)
    ]


def still_keys(model: GPT, contexts: Sequence[Context], layer: int) -> Tensor:
    """(n, K) float64: the keys at the positions that are to write what they did."""
    inside = inner(model, batch([c.tokens for c in contexts]), [layer])[layer].double()
    return torch.cat([inside[row, list(c.still)] for row, c in enumerate(contexts)])


class Adam:
    """Steps for one tensor (Kingma & Ba 2015); torch.optim would load PyTorch's compiler, which takes longer than an edit."""

    def __init__(self, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0
        self.count = 0

    def __call__(self, slope: Tensor) -> Tensor:
        """What to subtract."""
        self.count += 1
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * slope
        self.square = self.beta2 * self.square + (1 - self.beta2) * slope.square()
        rate = self.lr / (1 - self.beta1**self.count)
        return rate * self.mean / ((self.square / (1 - self.beta2**self.count)).sqrt() + self.eps)


def search(model: GPT, layer: int, contexts: Sequence[Context], settings: Search) -> tuple[Tensor, float]:
    """(values δ (slots, D) float64, mean NLL of the target's tokens at the end), by Adam.

    Minimised is the mean over contexts of −log p(target)/|target|, + kl · KL(before ‖ after) behind the subject in the contexts
    without a target, + decay · ‖δ‖/‖h‖. The blocks up to `layer` are run once: δ is added to what they write.
    """
    tokens = batch([c.tokens for c in contexts])
    B, T = tokens.shape
    mask = causal_mask(T)
    where = torch.zeros(B, T, dtype=torch.int64)
    for row, c in enumerate(contexts):
        for t, slot in c.spots:
            where[row, t] = slot + 1
    slots = int(where.max())
    asked = [row for row, c in enumerate(contexts) if c.target]
    kept = [(row, t) for row, c in enumerate(contexts) if not c.target for t in range(c.spots[0][0], len(c.ids))]
    read = [(row, len(contexts[row].ids) - 1 + n) for row in asked for n in range(len(contexts[row].target))]
    spots = len(read)
    goal = torch.tensor([i for row in asked for i in contexts[row].target])
    sizes = torch.tensor([len(contexts[row].target) for row in asked for _ in contexts[row].target])
    weight = 1 / (sizes * len(asked))
    rows, columns = (torch.tensor(x) for x in zip(*read, *kept, strict=True))  # positions whose logits are needed

    with torch.no_grad():
        x, rope = model.enter(tokens)
        for n in range(layer + 1):
            x = model.blocks[n](x, rope, mask)
        norm = float(x[where > 0].norm(dim=-1).mean())

    def table(values: Tensor) -> Tensor:
        h = x + torch.cat([torch.zeros_like(values[:1]), values])[where]
        for n in range(layer + 1, len(model.blocks)):
            h = model.blocks[n](h, rope, mask)
        return model.logits(model.norm(h[rows, columns])).log_softmax(-1)  # (spots + kept, V)

    values = torch.zeros(slots, model.config.width, requires_grad=True)
    with torch.no_grad():
        before = table(values)[spots:]
    adam, nll = Adam(settings.lr), 0.0
    for step in range(settings.steps + 1):
        now = table(values)
        own = -now[:spots].gather(1, goal.unsqueeze(1)).squeeze(1)
        fit = (own * weight).sum()
        nll = float(fit.detach())
        if float(own.detach().max()) < settings.enough or step == settings.steps:
            break
        loss = fit + settings.decay * values.norm(dim=1).sum() / norm
        if kept:
            loss = loss + settings.kl * F.kl_div(now[spots:], before, reduction="batchmean", log_target=True)
        (slope,) = torch.autograd.grad(loss, [values])
        with torch.no_grad():
            values -= adam(slope)
            values.mul_((settings.clamp * norm / values.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0))
    return values.detach().double(), nll
