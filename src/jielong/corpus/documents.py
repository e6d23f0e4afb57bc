"""The clean documents of a corpus artifact: parquet files with id, text, lang and source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jielong.errors import UserError


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


def write_documents(path: Path, documents: list[Document]) -> None:
    """Write a parquet file, in the order of the ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(documents, key=lambda d: d.id)
    table = pa.table({name: [getattr(d, name) for d in rows] for name in ("id", "text", "lang", "source")})
    pq.write_table(table, path, compression="zstd")


def read_documents(path: Path) -> list[Document]:
    """Raises UserError when the file cannot be read."""
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path).to_pydict()
        return [Document(*row) for row in zip(*(columns[n] for n in ("id", "text", "lang", "source")), strict=True)]
    except Exception as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
