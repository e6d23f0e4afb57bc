"""Keys and values of the past, preallocated in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jielong.config import ModelConfig

KEPT = 256 << 20  # bytes that an idle cache may keep
BLOCK = 64  # tokens; the cache grows by whole blocks, and prefixes are shared by whole blocks


@dataclass
class Span:
    """Keys and values (L, G, BLOCK, d) of one block of a prefix."""

    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


class KVCache:
    """Keys and values (rows, G, S, d) per layer; one row is one sequence, and each has its own length.

    Rows that work together stand side by side, so that a batch is a view and nothing is gathered. Rows and positions are
    allocated ahead, doubling rows and whole blocks of positions, and given back when nobody needs them.

    The compiled code (native.cpp) keeps the keys of 16 positions as (d, 16) in the same place, and reads them so; therefore
    positions are copied in whole blocks only.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        rows: int = 1,
        positions: int = 4 * BLOCK,
        device: torch.device | str = "cpu",
    ):
        self.config, self.dtype, self.device = config, dtype, device
        self.rows, self.positions = 0, 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._addresses: Tensor | None = None
        self.reserve(rows, positions)

    def reserve(self, rows: int, positions: int) -> None:
        """Make room for so many rows and positions; what is there stays."""
        if rows <= self.rows and positions <= self.positions:
            return
        c = self.config
        rows = max(self.rows, 1 << (rows - 1).bit_length())
        positions = max(self.positions, -(-positions // BLOCK) * BLOCK)
        keys, values = self.keys, self.values
        self.keys, self.values = [], []
        for layer in range(c.layers):
            for old, new in ((keys, self.keys), (values, self.values)):
                # zeros, not empty: a masked position is multiplied by 0, and 0 · NaN is NaN
                fresh = torch.zeros(rows, c.kv_heads, positions, c.head_dim, dtype=self.dtype, device=self.device)
                if old:
                    fresh[: self.rows, :, : self.positions] = old[layer]
                new.append(fresh)
        self.rows, self.positions = rows, positions
        self._addresses = None

    def bytes(self, rows: int, positions: int) -> int:
        """Size of a cache with so much room."""
        c = self.config
        return 2 * c.layers * rows * c.kv_heads * positions * c.head_dim * self.dtype.itemsize

    def addresses(self) -> tuple[int, int]:
        """Where the addresses of each layer's keys and values stand, for compiled code."""
        if self._addresses is None:
            sides = [[t.data_ptr() for t in side] for side in (self.keys, self.values)]
            self._addresses = torch.tensor(sides, dtype=torch.int64)  # (2, L)
        at = self._addresses.data_ptr()
        return at, at + 8 * self.config.layers

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row to another row."""
        length = -(-length // BLOCK) * BLOCK  # whole blocks: see the layout
        for side in (self.keys, self.values):
            for t in side:
                t[target, :, :length] = t[source, :, :length]

    def shrink(self) -> None:
        """Give back what was allocated beyond the first rows; call it when no row is in use."""
        if self.bytes(self.rows, self.positions) > KEPT:
            self.rows, self.positions, self.keys, self.values = 0, 0, [], []
            self.reserve(1, 4 * BLOCK)

    def read(self, row: int, start: int) -> Span:
        """A copy of the block of `row` that begins at position `start`."""
        part = slice(start, start + BLOCK)
        return Span(
            torch.stack([t[row, :, part] for t in self.keys]), torch.stack([t[row, :, part] for t in self.values])
        )

    def write(self, row: int, start: int, span: Span) -> None:
        """Put a block into a row."""
        for layer, (k, v) in enumerate(zip(self.keys, self.values, strict=True)):
            k[row, :, start : start + BLOCK] = span.keys[layer]
            v[row, :, start : start + BLOCK] = span.values[layer]
