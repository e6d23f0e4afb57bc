"""Tensors of a checkpoint in files: whole, or as the parts that several processes wrote.

`part-3.safetensors` holds the parts of process 3, and `part-3.json` says of each the shape of its whole and where it
lies in it, so that any number of processes, divided in any way, finds what it needs. No file is a pickle.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jielong.run import sha256_file, write_atomic
from jielong.train.layout import Part


def write_parts(folder: Path, number: int, parts: dict[str, Part]) -> None:
    """What process `number` holds, without what another one writes, too."""
    from safetensors.torch import save_file

    mine = {name: part for name, part in parts.items() if part.layout.first}
    save_file({name: part.tensor.contiguous() for name, part in mine.items()}, folder / f"part-{number}.safetensors")
    boxes = {n: {"shape": list(p.shape), "start": p.layout.box(p.shape)[0]} for n, p in mine.items()}
    index = {"sha256": sha256_file(folder / f"part-{number}.safetensors"), "parts": boxes}
    write_atomic(folder / f"part-{number}.json", json.dumps(index))


@dataclass
class Piece:
    """A box of a tensor, in a file."""

    file: Path
    name: str
    start: list[int]
    size: list[int]


class Stored:
    """The tensors of a checkpoint's folder: those of whole files by FILE/NAME, those of parts by the names they were given."""

    def __init__(self, folder: Path, whole: list[str], parts: int):
        """`whole` names files of whole tensors, `parts` is how many processes wrote parts. Raises OSError, ValueError or
        KeyError where a file is missing or makes no sense."""
        self.shapes: dict[str, list[int]] = {}
        self._pieces: dict[str, list[Piece]] = defaultdict(list)
        self._open: dict[Path, Any] = {}
        for kind in whole:
            file = folder / f"{kind}.safetensors"
            for name in self._file(file).keys():  # noqa: SIM118 (a file is no dict)
                shape = self._size(file, name)
                self._add(f"{kind}/{name}", shape, Piece(file, name, [0] * len(shape), shape))
        for number in range(parts):
            file = folder / f"part-{number}.safetensors"
            index = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            for name, box in index["parts"].items():
                self._add(name, box["shape"], Piece(file, name, box["start"], self._size(file, name)))

    def read(self, name: str, part: Part) -> None:
        """Fill a process's part of a tensor. Raises KeyError where the files do not have all of it."""
        start, size = part.layout.box(part.shape)
        if self.shapes.get(name) != list(part.shape):
            raise KeyError(f"{name} is {self.shapes.get(name)}, not {list(part.shape)}")
        found = 0
        for piece in self._pieces[name]:
            low = [max(pair) for pair in zip(start, piece.start, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(start, size, piece.start, piece.size, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                here = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
                there = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, piece.start, strict=True))
                part.tensor[here] = self._file(piece.file).get_slice(piece.name)[there].to(part.tensor.device)
                found += math.prod(b - a for a, b in zip(low, high, strict=True))
        if found != part.tensor.numel():
            raise KeyError(f"{name} is not complete")

    def _add(self, name: str, shape: list[int], piece: Piece) -> None:
        self.shapes[name] = shape
        self._pieces[name].append(piece)

    def _size(self, file: Path, name: str) -> list[int]:
        return list(self._file(file).get_slice(name).get_shape())

    def _file(self, path: Path) -> Any:
        """Opened once, and read as tensors are asked for."""
        from safetensors import SafetensorError, safe_open

        if path not in self._open:
            try:
                self._open[path] = safe_open(path, "pt")
            except SafetensorError as error:
                raise ValueError(str(error)) from error
        return self._open[path]
