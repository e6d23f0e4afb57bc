"""Keys and values of the past, preallocated."""

from __future__ import annotations

import torch
from torch import Tensor

from jielong.config import ModelConfig


class KVCache:
    """(L, B, G, S, d) keys and values; `length` positions are filled in every row.

    Rows of different lengths are aligned to the right: the mask hides a row's empty beginning.
    """

    def __init__(self, config: ModelConfig, batch: int, size: int, dtype: torch.dtype = torch.float32):
        shape = (config.layers, batch, config.kv_heads, size, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, G, T, d) after the filled part; return everything up to and including them."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, count: int) -> None:
        """Call once after a forward pass over `count` positions."""
        self.length += count

    def keep(self, rows: Tensor) -> None:
        """Drop every row that is not in `rows`."""
        self.keys, self.values = self.keys[:, rows].contiguous(), self.values[:, rows].contiguous()
