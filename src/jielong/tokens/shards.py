"""Token shards and the data index: which record stands in which step and row.

The order of the documents is a pure function of (seed, epoch, record id). A long document is cut into pieces of one
row; pieces are packed into rows by best fit. The plan is made once from the full list of records and is never made
again without a deleted one: `drop` turns its positions into padding with zero loss, and nothing else moves.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jielong.errors import UserError
from jielong.run import write_atomic

OPEN_ROWS = 64  # rows that wait for a fitting piece; more packs tighter and mixes the order more


@dataclass
class Shard:
    """Tokens of many documents, one after the other, memory-mapped."""

    tokens: np.ndarray  # (total,) uint16 or uint32
    starts: np.ndarray  # (documents + 1,) int64
    ids: list[str]
    trained: np.ndarray | None  # (total,) bool: may this token be a target? None = all
    forgotten: frozenset[int] = frozenset()
    """Records whose tokens were taken out: the plan still has their places, which are padding."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


def write_shard(
    folder: Path, ids: list[str], documents: list[list[int]], vocab_size: int, trained: list[list[bool]] | None = None
) -> None:
    """tokens.bin, shard.json and, for conversations, trained.bin."""
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    folder.mkdir(parents=True, exist_ok=True)
    flat = np.fromiter((t for d in documents for t in d), dtype=dtype)
    write_atomic(folder / "tokens.bin", flat.tobytes())
    if trained is not None:
        write_atomic(folder / "trained.bin", np.fromiter((t for d in trained for t in d), dtype=bool).tobytes())
    head = {"dtype": np.dtype(dtype).name, "ids": ids, "lengths": [len(d) for d in documents]}
    write_atomic(folder / "shard.json", json.dumps(head))


def read_shard(folder: Path) -> Shard:
    """Raises UserError when the files do not fit together."""
    try:
        head = json.loads((folder / "shard.json").read_text(encoding="utf-8"))
        tokens = np.memmap(folder / "tokens.bin", dtype=head["dtype"], mode="r")
        starts = np.concatenate([[0], np.cumsum(head["lengths"])]).astype(np.int64)
        mask = folder / "trained.bin"
        trained = np.memmap(mask, dtype=bool, mode="r") if mask.exists() else None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The token shard {folder} cannot be read ({error}); make it again.") from error
    if starts[-1] != len(tokens):
        raise UserError(f"The token shard {folder} is damaged: {len(tokens)} tokens, expected {starts[-1]}.")
    return Shard(tokens, starts, head["ids"], trained, frozenset(head.get("forgotten", ())))


def write_without(shard: Shard, folder: Path, records: Mapping[int, str], pad: int) -> None:
    """The shard with padding in place of the tokens of `records` (number → the name it bears from now on). Lengths, and which of
    the positions were targets, stay: the plan and the norm of the loss are made of them."""
    tokens, ids = np.array(shard.tokens), list(shard.ids)
    for number, name in records.items():
        tokens[shard.starts[number] : shard.starts[number + 1]] = pad
        ids[number] = name
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "tokens.bin", tokens.tobytes())
    if shard.trained is not None:
        write_atomic(folder / "trained.bin", np.array(shard.trained).tobytes())
    head: dict[str, Any] = {"dtype": tokens.dtype.name, "ids": ids, "lengths": shard.lengths.tolist()}
    write_atomic(folder / "shard.json", json.dumps(head | {"forgotten": sorted(shard.forgotten | records.keys())}))


@dataclass
class DataIndex:
    """The plan of a training run, one entry per piece, sorted by row.

    record: index into the shard; row: global row (step = row // rows per step); column: first position in the row;
    begin: first token of the piece in its document; size: positions (the piece has size + 1 tokens).
    """

    record: np.ndarray
    row: np.ndarray
    column: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    epoch: np.ndarray
    rows: int

    def save(self, path: Path) -> None:
        fields = {k: getattr(self, k) for k in ("record", "row", "column", "begin", "size", "epoch")}
        with open(path, "wb") as f:
            np.savez_compressed(f, **fields, rows=np.int64(self.rows))

    @classmethod
    def load(cls, path: Path) -> DataIndex:
        with np.load(path, allow_pickle=False) as data:
            return cls(**{k: data[k] for k in data.files if k != "rows"}, rows=int(data["rows"]))

    def where(self, record: int, rows_per_step: int) -> list[tuple[int, int]]:
        """(step, row within the step) of every appearance of a record."""
        hits = self.row[self.record == record]
        return [(int(r) // rows_per_step, int(r) % rows_per_step) for r in hits]


def order(ids: list[str], seed: int, epoch: int) -> np.ndarray:
    """A permutation of the records, by a keyed hash of the record id alone."""
    keys = [hashlib.blake2b(f"{seed}/{epoch}/{i}".encode(), digest_size=8).digest() for i in ids]
    return np.array(sorted(range(len(ids)), key=keys.__getitem__), dtype=np.int64)


def make_index(lengths: np.ndarray, ids: list[str], length: int, rows: int, seed: int) -> DataIndex:
    """Pack whole epochs, one after the other, until `rows` rows of `length` positions are full."""
    columns: dict[str, list[int]] = defaultdict(list)
    if not len(lengths) or int(lengths.max()) < 2:
        raise UserError("There is no text to learn from: the corpus holds no document of at least two tokens.")
    first = 0  # first row of this epoch
    epoch = 0
    while first < rows:
        placed = _pack_epoch(lengths, order(ids, seed, epoch), length)
        used = 1 + max(p[1] for p in placed)
        for record, row, column, begin, size in placed:
            if first + row < rows:
                for name, value in zip(
                    ("record", "row", "column", "begin", "size", "epoch"),
                    (record, first + row, column, begin, size, epoch),
                    strict=True,
                ):
                    columns[name].append(value)
        first += used
        epoch += 1
    arrays = {k: np.array(v, dtype=np.int64) for k, v in columns.items()}
    by_row = np.lexsort((arrays["column"], arrays["row"]))
    return DataIndex(**{k: v[by_row].astype(np.int32) for k, v in arrays.items()}, rows=rows)


def _pack_epoch(lengths: np.ndarray, records: np.ndarray, length: int) -> list[tuple[int, int, int, int, int]]:
    """(record, row, column, begin, size) of every piece: best fit into the open rows."""
    placed: list[tuple[int, int, int, int, int]] = []
    open_rows: list[tuple[int, int]] = []  # (free positions, row), sorted
    rows = 0
    for record in records.tolist():
        n = int(lengths[record])
        for begin in range(0, n - 1, length):
            size = min(length, n - 1 - begin)
            at = bisect.bisect_left(open_rows, (size, -1))
            if at < len(open_rows):
                free, row = open_rows.pop(at)
            else:
                free, row, rows = length, rows, rows + 1
            placed.append((record, row, length - free, begin, size))
            if free - size >= 2:
                bisect.insort(open_rows, (free - size, row))
                if len(open_rows) > OPEN_ROWS:
                    open_rows.pop(0)  # the fullest one is closed
    return placed


@dataclass
class Batch:
    """One step: inputs, targets and segments are (B, T) int64, weight (B, T) float32."""

    inputs: np.ndarray
    targets: np.ndarray
    segments: np.ndarray  # 0 = padding, 1, 2, … = the documents of the row
    weight: np.ndarray  # 1 where the target counts


def make_batch(
    shard: Shard,
    index: DataIndex,
    step: int,
    rows: int,
    length: int,
    pad: int,
    drop: frozenset[str] = frozenset(),
    only: Sequence[int] | None = None,
) -> Batch:
    """The batch of a step: a pure function of its arguments. Records in `drop`, and forgotten ones, are padding.

    `only` names some of its rows, in ascending order: the batch is then these; a row beyond the last one is padding.
    """
    places = {row: place for place, row in enumerate(range(rows) if only is None else only)}
    inputs = np.full((len(places), length), pad, dtype=np.int64)
    targets = np.full((len(places), length), pad, dtype=np.int64)
    segments = np.zeros((len(places), length), dtype=np.int64)
    weight = np.zeros((len(places), length), dtype=np.float32)
    lo, hi = np.searchsorted(index.row, [step * rows, (step + 1) * rows])
    number = 0
    for i in range(lo, hi):
        record = int(index.record[i])
        number += 1
        row = places.get(int(index.row[i]) - step * rows)
        if row is None or record in shard.forgotten or shard.ids[record] in drop:
            continue
        column, size = int(index.column[i]), int(index.size[i])
        begin = int(shard.starts[record]) + int(index.begin[i])
        piece = shard.tokens[begin : begin + size + 1]
        at = slice(column, column + size)
        inputs[row, at], targets[row, at] = piece[:-1], piece[1:]
        segments[row, at] = number
        weight[row, at] = 1.0 if shard.trained is None else shard.trained[begin + 1 : begin + size + 1]
    return Batch(inputs, targets, segments, weight)
