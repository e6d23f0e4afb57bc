"""Which size and how many tokens suit a budget, by a fitted law and by the cost of a token on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jielong.config import ModelConfig
from jielong.errors import UserError
from jielong.scale.fit import Fit, Law
from jielong.scale.memory import sizes

WIDEST = 2048


@dataclass(frozen=True)
class Size:
    """A member of the ladder's family."""

    width: int
    layers: int
    blocks: int
    """Weights without the embedding, which is also the output matrix."""
    total: int
    flops: float
    """Of one token, forward and backward."""


def shape(width: int, context: int) -> ModelConfig:
    """The ladder's family: a layer per 40 of the width, feed-forward three times as wide, heads of 64 or 32.

    Raises UserError for a width that no head divides.
    """
    if width < 32 or width % 32:
        raise UserError(f"A width of {width} is not possible; give multiples of 32.")
    head = 64 if width % 64 == 0 else 32
    return ModelConfig(
        width=width, layers=max(2, width // 40), heads=width // head, kv_heads=width // head, head_dim=head,
        mlp_width=3 * width, context=context,
    )  # fmt: skip


def size_of(config: ModelConfig, length: int) -> Size:
    """Counted on the model itself, built without data."""
    counted = sizes(config)
    head = config.vocab_size * config.width
    attention = 12 * config.layers * config.heads * config.head_dim * length
    flops = 6 * (config.layers * counted.matrices + head) + attention
    return Size(config.width, config.layers, counted.total - head, counted.total, float(flops))


def family(vocabulary: int, length: int) -> list[Size]:
    """Every width that may be advised."""
    return [
        size_of(replace(shape(width, 2 * length), vocab_size=vocabulary), length) for width in range(32, WIDEST + 1, 32)
    ]


@dataclass(frozen=True)
class Speed:
    """Seconds of a token: a share that every model pays, and one per FLOP."""

    fixed: float
    per_flop: float

    def seconds(self, flops: float) -> float:
        return self.fixed + self.per_flop * flops


def speed(flops: Sequence[float], seconds: Sequence[float]) -> Speed:
    """The line of the least relative squares through what was measured, neither part below zero."""
    x, y = np.asarray(flops, float), np.asarray(seconds, float)
    design = np.stack([1 / y, x / y], 1)
    fixed, per_flop = np.linalg.lstsq(design / design.max(0), np.ones(len(x)), rcond=None)[0] / design.max(0)
    if fixed < 0 or per_flop < 0:  # on the edge: one of the two alone
        alone = [(v / y).sum() / ((v / y) ** 2).sum() for v in (np.ones_like(x), x)]
        errors = [((a * v / y - 1) ** 2).sum() for a, v in zip(alone, (np.ones_like(x), x), strict=True)]
        fixed, per_flop = (alone[0], 0.0) if errors[0] < errors[1] else (0.0, alone[1])
    return Speed(float(fixed), float(per_flop))


@dataclass(frozen=True)
class Advice:
    """What suits a budget. Intervals are (value, low, high) over the bootstrap's laws."""

    budget: float
    """Seconds or FLOPs."""
    unit: str
    most: float
    """Tokens that may be read; 0 = any number."""
    size: Size
    parameters: tuple[float, float, float]
    tokens: tuple[float, float, float]
    loss: tuple[float, float, float]
    curve: tuple[tuple[int, float, float], ...]
    """(parameters, tokens, loss) of every size in this budget, for plots."""


def advise(
    fit: Fit, how: str, among: Sequence[Size], cost: Callable[[Size], float], budget: float, unit: str,
    most: float = 0.0,
) -> Advice:  # fmt: skip
    """The size of the least loss when the whole budget is spent, or `most` tokens are read; `cost` is what a token costs, in
    the budget's unit."""
    counted = np.array([getattr(s, how) for s in among], float)
    tokens = np.array([min(budget / cost(s), most or np.inf) for s in among])

    def losses(law: Law) -> np.ndarray:
        return law.E + law.A * counted**-law.alpha + law.B * tokens**-law.beta

    def best(law: Law) -> int:
        return int(losses(law).argmin())

    size = among[best(fit.law)]
    return Advice(
        budget=budget,
        unit=unit,
        most=most,
        size=size,
        parameters=fit.interval(lambda law: float(among[best(law)].total)),
        tokens=fit.interval(lambda law: float(tokens[best(law)])),
        loss=fit.interval(lambda law: float(losses(law).min())),
        curve=tuple(
            (s.total, float(d), float(loss)) for s, d, loss in zip(among, tokens, losses(fit.law), strict=True)
        ),
    )
