"""Huge files in parts, so that many workers share one; where a part begins depends on the file alone.

A part of text or jsonl holds the lines that begin in its bytes, one of parquet a range of rows, one of a packed WARC file
the members that begin in its bytes. Other packed files have no place in the middle where reading could begin.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from jielong.corpus.readers import HEAD, detect_encoding

if TYPE_CHECKING:
    from jielong.corpus.build.inputs import InputFile

BLOCK = 1 << 16


def parts_of(file: InputFile, size: int, fs: Any) -> list[InputFile]:
    """The file in parts of about `size` bytes, or whole; a file that cannot be looked into is left to its reader."""
    count = math.ceil(file.bytes / size)
    if count < 2:
        return [file]
    try:
        extent, encoding = _extent(file, fs)
    except Exception:  # stores, pyarrow and unpackers each have their own errors; reading will meet and count it
        return [file]
    step = math.ceil(extent / count)
    if not step:
        return [file]
    cuts = [*range(0, extent, step), extent]
    return [
        dataclasses.replace(file, bytes=file.bytes // (len(cuts) - 1), begin=a, end=b, encoding=encoding)
        for a, b in itertools.pairwise(cuts)
    ]


def _extent(file: InputFile, fs: Any) -> tuple[int, str]:
    """What ranges of the file are counted in, bytes or rows, and its encoding; 0 where it cannot be cut."""
    name = PurePosixPath(file.path).name.lower()
    path = fs._strip_protocol(file.path)
    if only_forward(fs, path):
        return 0, ""
    if file.kind == "warc":
        return (file.bytes, "") if name.endswith(".gz") else (0, "")
    if name.endswith((".gz", ".zst")):
        return 0, ""
    with fs.open(path, "rb") as stream:
        if file.kind == "parquet":
            import pyarrow.parquet as pq

            return pq.ParquetFile(stream).metadata.num_rows, ""
        if file.kind in ("plain", "jsonl"):
            encoding = detect_encoding(stream.read(HEAD), name)
            return (0 if encoding.startswith("utf-16") else file.bytes), encoding
    return 0, ""


def only_forward(fs: Any, path: str) -> bool:
    """Whether the file comes from a web server that sends nothing but the whole of it; one byte is asked for."""
    if "http" not in fs.protocol:
        return False
    try:
        with fs.open(path, "rb", cache_type="none") as stream:
            stream.seek(1)
            stream.read(1)
    except ValueError:
        return True
    return False


class LineRange:
    """The lines that begin in the bytes [begin, end) of a seekable file, as a stream."""

    def __init__(self, raw: Any, begin: int, end: int):
        self.raw = raw
        self.end = end
        self.held = b""
        self.at = begin  # of `held` in the file
        if begin:
            raw.seek(begin - 1)
            self.at -= 1
            self._skip_line()
        self.over = self.at >= end

    def _skip_line(self) -> None:
        while block := self.raw.read(BLOCK):
            found = block.find(b"\n") + 1
            self.at += found or len(block)
            if found:
                self.held = block[found:]
                return

    def read(self, size: int = -1) -> bytes:
        """At most about `size` bytes (-1: everything); b"" at the end."""
        parts = []
        while not self.over and (size < 0 or not parts):
            block = self.held or self.raw.read(size if size > 0 else BLOCK)
            self.held = b""
            last = block.find(b"\n", max(0, self.end - 1 - self.at)) + 1 if self.at + len(block) >= self.end else 0
            self.over = not block or last > 0
            parts.append(block[:last] if last else block)
            self.at += len(block)
        return b"".join(parts)
