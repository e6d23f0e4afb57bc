"""Reading: every file of a task → documents; what cannot be read is set aside, and the rest goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from jielong.changes.forgotten import forgotten
from jielong.corpus.build.funnel import Tally
from jielong.corpus.build.inputs import Bad, InputFile
from jielong.corpus.build.parts import LineRange, only_forward
from jielong.corpus.build.warc import Damaged, Inflate, page_text, pages
from jielong.corpus.documents import record_id
from jielong.corpus.licences import declared_licence, is_licence_file, licence_of
from jielong.corpus.readers import read_stream, unpack
from jielong.errors import UserError
from jielong.run import Run


class Read(PipelineStep):
    """The first step: the files of this task → documents with source, language still empty, address and kind.

    Bad records and files go to quarantine/RANK.jsonl.
    """

    name = "read"
    type = "jielong"

    def __init__(self, shares: list[list[InputFile]], folder: str, largest: int, run: Path | None = None):
        """What the run in the folder `run` has forgotten is passed over, whatever the steps behind would make of it."""
        super().__init__()
        self.home = run
        self.shares = shares
        self.folder = get_datafolder(folder)
        self.largest = largest

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        tally = Tally(self.name)
        gone = forgotten(Run(self.home)) if self.home else lambda _: False
        with self.folder.open(f"quarantine/{rank:05d}.jsonl", "w", encoding="utf-8") as quarantine:
            for file in self.shares[rank]:

                def bad(place: int, reason: str, file: InputFile = file) -> None:
                    row = Bad(file.source, file.path, reason, place, file.begin)
                    quarantine.write(json.dumps(row.__dict__, ensure_ascii=False) + "\n")
                    tally.unreadable(file.source, file.path, reason)

                for document in read_file(file, self.largest, bad):
                    if gone(document.id):
                        continue
                    tally.enter(document)
                    tally.leave(document)
                    yield document
        tally.save(self.folder, rank)


def read_file(file: InputFile, largest: int, bad: Callable[[int, str], None]) -> Iterator[Document]:
    """Documents of one file; `bad(place, reason)` is told of everything that is none."""
    place = -1
    try:
        with _open(file.path) as stream:
            for place, (text, html, url, extra) in enumerate(_records(file, stream, largest, bad)):
                size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
                if size > largest:
                    bad(place, f"larger than {largest:,} bytes")
                    continue
                metadata = {"source": file.source, "lang": "", "url": url, "html": html, "path": file.path, **extra}
                yield Document(text, record_id(text), metadata=metadata)
    except UserError as error:
        bad(place + 1, str(error))
    except Exception as error:  # stores and unpackers each have their own errors; the next file may be sound
        bad(place + 1, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")


def _open(path: str) -> Any:
    from fsspec.core import url_to_fs

    fs, plain = url_to_fs(path)
    # by default fsspec asks for ranges of 5 MB
    return fs.open(plain, "rb", block_size=0) if only_forward(fs, plain) else fs.open(plain, "rb")


def _records(
    file: InputFile, stream: Any, largest: int, bad: Callable[[int, str], None]
) -> Iterator[tuple[str, bool, str, dict[str, str]]]:
    """(text, is HTML, address, more) of each record."""
    name = PurePosixPath(file.path).name
    packed = name.lower().endswith(".gz")
    if file.kind == "warc":
        raw = stream if packed else unpack(stream, name)
        for page in pages(raw, packed, largest, bad, file.begin, file.end):
            yield page.text, page.html, page.url, {}
        return
    # what can be unpacked of a truncated file is read
    unpacked: Any = _UntilDamage(Inflate(stream, whole=False), bad) if packed else unpack(stream, name)
    part = None if file.end is None else (file.begin, file.end)
    if part and file.kind != "parquet":
        unpacked = LineRange(stream, *part)
    if file.kind in ("html", "code"):
        data = unpacked.read(largest + 1)
        if len(data) > largest:
            raise UserError(f"larger than {largest:,} bytes")
        if file.kind == "html":
            yield page_text(data), True, "", {}
        else:
            code = data.decode("utf-8")
            yield code, False, "", {"licence": declared_licence(code) or folder_licence(file.path), "code": "yes"}
        return
    rows = part if file.kind == "parquet" else None
    for raw in read_stream(unpacked, name, file.kind, lambda why: bad(-1, why), file.text, file.encoding, rows):
        yield raw.text, raw.html, "", {}


class _UntilDamage:
    """A packed stream that ends where it is damaged, and says so."""

    def __init__(self, stream: Inflate, bad: Callable[[int, str], None]):
        self.stream = stream
        self.bad = bad
        self.over = False

    def read(self, size: int = -1) -> bytes:
        if self.over:
            return b""
        try:
            return self.stream.read(size)
        except Damaged as error:
            self.over = True
            self.bad(-1, str(error))
            return b""


@lru_cache(maxsize=4096)
def folder_licence(path: str) -> str:
    """SPDX name of the licence that stands in the file's folder or the nearest one above; empty without any."""
    from fsspec.core import url_to_fs

    fs, plain = url_to_fs(path)
    folder = plain.rpartition("/")[0]
    while folder:
        licence = _licence_in(fs, folder)
        if licence is not None:
            return licence
        folder = folder.rpartition("/")[0]
    return ""


def _licence_in(fs: Any, folder: str) -> str | None:
    try:
        names = sorted(fs.ls(folder, detail=False))
        for name in names:
            if is_licence_file(name.rpartition("/")[2]):
                return licence_of(fs.cat_file(name, 0, 40_000).decode("utf-8", "replace"))
    except OSError:
        pass  # a folder above the user's own may be closed
    return None


class Store(JsonlWriter):
    """datatrove's writer: documents between two stages, one file per task."""

    def __init__(self, folder: str):
        super().__init__(folder, output_filename="${rank}.jsonl", compression="zstd")


class Stored(JsonlReader):
    """datatrove's reader, of the file that the same task wrote; a task that kept nothing wrote none."""

    def __init__(self, folder: str):
        super().__init__(folder, compression="zstd", add_file_path=False)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        name = f"{rank:05d}.jsonl.zst"
        if self.data_folder.exists(name):
            yield from self.read_file(name)
