"""The clean documents of a corpus artifact: parquet files with id, text, lang and source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jielong.errors import UserError

COLUMNS = ("id", "text", "lang", "source")
GROUP = 32_000_000  # characters of text in a row group
GROUP_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """One record: `id` is the content hash of its raw source, which lineage and forgetting refer to."""

    id: str
    text: str
    lang: str
    source: str


def record_id(text: str) -> str:
    """Content hash of a raw document: 64 bits as 16 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


class DocumentWriter:
    """A parquet file, written in row groups of about `GROUP` characters, so that no more of it is in memory.

    Give the documents in the order of their ids. Used as a context manager.
    """

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        self.file = pq.ParquetWriter(path, self.schema, compression="zstd")
        self.rows: list[Document] = []
        self.characters = 0

    def add(self, document: Document) -> None:
        self.rows.append(document)
        self.characters += len(document.text)
        if self.characters >= GROUP or len(self.rows) >= GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        columns = {name: [getattr(d, name) for d in self.rows] for name in COLUMNS}
        self.file.write_table(pa.table(columns, schema=self.schema))
        self.rows, self.characters = [], 0

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self.file:
            if self.rows:
                self._write()


def write_documents(path: Path, documents: list[Document]) -> None:
    """Write a parquet file, in the order of the ids."""
    with DocumentWriter(path) as file:
        for document in sorted(documents, key=lambda d: d.id):
            file.add(document)


def read_documents(path: Path) -> list[Document]:
    """Raises UserError when the file cannot be read."""
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path).to_pydict()
        return [Document(*row) for row in zip(*(columns[n] for n in ("id", "text", "lang", "source")), strict=True)]
    except Exception as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
