"""The keyed pseudo-random function of the watermarks: integers only, so that every machine and device gets the same bits.

A seed is BLAKE2b of the context's token ids under the secret; the numbers of the vocabulary come from it by SplitMix64
(Steele et al. 2014), which tensors of int64 compute with the wrapping they have everywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

BITS = 52
"""Of a number: float64 holds them all, and half a step between them."""
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def seed_of(secret: bytes, context: Sequence[int], turn: int = 0) -> int:
    """64 bits of a context that a text has for the `turn`-th time, counted from 0."""
    told = [*context, turn] if turn else context
    data = struct.pack(f"<{len(told)}I", *told)
    return int.from_bytes(blake2b(data, key=secret, digest_size=8).digest(), "little")


def numbers(seed: int | list[int], tokens: Tensor) -> Tensor:
    """(N,) int64 in [0, 2⁵²): one pseudo-random number for each token id (N,) int64 and its seed, or the seed of all; for
    ids (V, 1) and N seeds (V, N)."""
    several = [_signed(s) for s in ([seed] if isinstance(seed, int) else seed)]
    seeds = torch.tensor(several, dtype=torch.int64, device=tokens.device)
    x = (tokens + 1) * _signed(_GOLDEN) + seeds
    x = (x ^ _shifted(x, 30)) * _signed(_MIX1)
    x = (x ^ _shifted(x, 27)) * _signed(_MIX2)
    return _shifted(x ^ _shifted(x, 31), 64 - BITS)


def uniform(k: Tensor) -> Tensor:
    """Numbers (N,) → float64 in (0, 1), neither end reached: (k + ½) / 2⁵²."""
    return (k.to(torch.float64) + 0.5) * 2.0**-BITS


def _signed(x: int) -> int:
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


def _shifted(x: Tensor, by: int) -> Tensor:
    """x >> by as of unsigned numbers."""
    return (x >> by) & ((1 << (64 - by)) - 1)
