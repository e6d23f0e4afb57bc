"""Files and folders → raw documents: txt, md, html, jsonl, parquet, and gz or zst of these, in any common encoding."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from jielong.errors import UserError

PLAIN, HTML, JSONL, PARQUET = {".txt", ".md", ".text"}, {".html", ".htm"}, {".jsonl", ".ndjson"}, {".parquet"}
PACKED = {".gz", ".zst"}
TEXT_FIELDS = ("text", "content", "body")
LONGEST = 500_000  # characters of one document; a longer text is cut at a line, sentence or word
LONGEST_LINE = 16_000_000  # characters; a text without a line break for longer is no text that a person wrote
HEAD = 1 << 16  # bytes that decide the encoding
ROWS = 4096  # of parquet, at one time


@dataclass(slots=True)
class Raw:
    """A document before cleaning. `label` says what the default corpus planted; empty for real text."""

    text: str
    source: str
    html: bool = False
    label: str = ""


def read_paths(paths: tuple[Path, ...], skipped: Counter[str]) -> Iterator[Raw]:
    """Every readable document under `paths`; what cannot be read is counted in `skipped`.

    Raises UserError for a missing path, and for a file named by the user that is binary or damaged.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; --text takes files or folders.")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            kind = kind_of(file)
            if kind is None:
                if not path.is_dir():
                    raise UserError(
                        f"{file} is of no known kind; use txt, md, html, jsonl, parquet, or .gz/.zst of these."
                    )
                skipped[f"unknown kind {file.suffix or '(none)'}"] += 1
                continue
            try:
                yield from _read_file(file, kind)
            except UserError as error:
                if not path.is_dir():
                    raise
                skipped[str(error)] += 1


def kind_of(path: PurePath) -> str | None:
    """plain, html, jsonl or parquet, by the suffix before .gz or .zst; None for another."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    for kind, known in (("plain", PLAIN), ("html", HTML), ("jsonl", JSONL), ("parquet", PARQUET)):
        if last in known:
            return kind
    return None


def _read_file(path: Path, kind: str) -> Iterator[Raw]:
    try:
        with open(path, "rb") as file, unpack(file, path.name) as stream:
            yield from read_stream(stream, path.name, kind)
    except UserError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(
            f"{path} is damaged or cannot be read ({str(error).splitlines()[0]}); replace or remove it."
        ) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("zstandard", "pyarrow"):
            raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); replace or remove it.") from error
        raise


def unpack(file: BinaryIO, name: str) -> Any:
    """The stream without its packing, which the name tells: .gz, .zst or none."""
    if name.lower().endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if name.lower().endswith(".zst"):
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")  # says so when the file is cut off
    return file


def read_stream(
    stream: BinaryIO,
    name: str,
    kind: str,
    bad: Callable[[str], None] | None = None,
    key: str = "",
    encoding: str = "",
    rows: tuple[int, int] | None = None,
) -> Iterator[Raw]:
    """Documents of one unpacked file of a kind (plain, html, jsonl, parquet).

    `bad` is told about each line that is no record, and reading goes on; without it UserError is raised. `key` names
    the field or column of the text; by default text, content or body. `encoding`: of plain text and jsonl, where the
    stream is not the file's beginning. `rows` [begin, end): those of parquet that are read.
    """
    if kind == "parquet":
        yield from _parquet(stream, name, key, rows)
    elif kind == "html":
        data = stream.read(2 * LONGEST_LINE)
        yield Raw(decode(data, name), name, html=True)
    elif kind == "jsonl":
        for number, line in enumerate(_lines(stream, name, encoding), 1):
            if line is None or line.strip():
                try:
                    text = _field(line, name, number, key)
                except UserError as error:
                    if bad is None:
                        raise
                    bad(str(error))
                    continue
                yield Raw(text, name)
    else:
        yield from (Raw(text, name) for text in _documents(stream, name, encoding) if text.strip())


def detect_encoding(head: bytes, name: str) -> str:
    """The encoding of a text by its first bytes. Raises UserError for binary data.

    UTF-8 and UTF-16 by their marks and by validity; of Big5 and GB18030, which overlap, the one whose decoding has
    more common characters of its own script.
    """
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = head[:HEAD]
    wide = _utf16(sample)
    if wide:
        return wide
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        if sample.count(0) == 0:
            return "utf-8"
    except UnicodeDecodeError:
        pass
    if sample.count(0) or sum(b < 9 or 13 < b < 32 for b in sample) > len(sample) / 100:
        raise UserError(f"{name} is binary, not text; remove it or convert it to text.")
    scores = {}
    for encoding in ("big5hkscs", "gb18030"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(sample)
        except UnicodeDecodeError:
            continue
        han = [c for c in text if "\u4e00" <= c <= "\u9fff"]
        odd = sum("\ue000" <= c <= "\uf8ff" or "\u3400" <= c <= "\u4dbf" or ord(c) > 0xFFFF for c in text)
        common = sum(c in COMMON for c in han)
        if han:
            scores[encoding] = (common - 5 * odd) / len(han)
    if scores and max(scores.values()) > 0.1:
        return max(scores, key=lambda e: scores[e])
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    # random bytes decode as some one-byte code page; real text has mostly letters and few odd signs
    if best is None or sum(c.isalpha() or c.isspace() for c in str(best)) < 0.7 * len(str(best)) or best.chaos > 0.2:
        raise UserError(f"The encoding of {name} is not known; convert it to UTF-8.")
    return best.encoding


def _utf16(sample: bytes) -> str | None:
    """UTF-16 without a mark: the byte order in which nearly all characters are common ones."""
    sample = sample[: len(sample) // 2 * 2]
    if len(sample) < 4:
        return None
    for encoding in ("utf-16-le", "utf-16-be"):
        try:
            text = sample.decode(encoding)
        except UnicodeDecodeError:
            continue
        plain = sum("\u4e00" <= c <= "\u9fff" or c in "，。、；：？！「」\r\n\t" or " " <= c <= "~" for c in text)
        known = sum(c in COMMON or " " <= c <= "~" for c in text)
        if plain > 0.9 * len(text) and known > 0.12 * len(text):
            return encoding
    return None


# the commonest characters of Chinese text in both scripts
COMMON = frozenset(
    "的一是不了在人有我他這这個个們们中來来上大為为和國国地到以說说時时要就出會会可也你對对生能而子那得于著着下自之年過过發发後后作裡里"
    "用道行所然家種种事成方多經经么去法學学如都同現现當当沒没動动面起看定天分還还進进好小部其些主樣样理心她本前開开但因只從从想實实"
)


def decode(data: bytes, name: str) -> str:
    """The text of bytes in any common encoding. Raises UserError for binary data."""
    encoding = detect_encoding(data[:HEAD], name)
    return data.decode(encoding, errors="replace")


def _chunks(stream: BinaryIO, name: str, encoding: str) -> Iterator[str]:
    """Decoded blocks; only a bounded part of the file is in memory."""
    head = stream.read(HEAD)
    if not head:
        return
    decoder = codecs.getincrementaldecoder(encoding or detect_encoding(head, name))(errors="replace")
    yield decoder.decode(head)
    while block := stream.read(1 << 20):
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _documents(stream: BinaryIO, name: str, encoding: str) -> Iterator[str]:
    """A plain file is one document; one longer than LONGEST is cut, so that a large file is never held whole.

    Raises UserError at a line of more than LONGEST_LINE characters, before it fills the memory.
    """
    held = ""
    line = 0  # characters since the last line break
    for chunk in _chunks(stream, name, encoding):
        held += chunk
        at = chunk.rfind("\n")
        line = line + len(chunk) if at < 0 else len(chunk) - at - 1
        if line > LONGEST_LINE:
            raise _too_long(f"A line of {name}", "break it into lines")
        while len(held) > LONGEST:
            at = max(held.rfind(mark, LONGEST // 2, LONGEST) for mark in ("\n", "。", ". ", " "))
            at = at + 1 if at > 0 else LONGEST
            yield held[:at]
            held = held[at:]
    if held:
        yield held


def _too_long(name: str, what_to_do: str) -> UserError:
    return UserError(f"{name} is longer than {LONGEST_LINE:,} characters; {what_to_do}.")


def _lines(stream: BinaryIO, name: str, encoding: str) -> Iterator[str | None]:
    """None in place of a line that is too long to hold."""
    held: list[str] = []
    size = 0
    for chunk in _chunks(stream, name, encoding):
        first, *rest = chunk.split("\n")
        held.append(first)
        size += len(first)
        if size > LONGEST_LINE:
            held = []
        for line in rest:
            yield "".join(held) if size <= LONGEST_LINE else None
            held, size = [line], len(line)
    yield "".join(held) if size <= LONGEST_LINE else None


def _field(line: str | None, name: str, number: int, wanted: str = "") -> str:
    if line is None:
        raise _too_long(f"{name}, line {number}", "one JSON record per line is needed")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}, line {number} is no JSON ({error}); each line must be one JSON object.") from error
    if isinstance(row, dict):
        for key in (wanted,) if wanted else TEXT_FIELDS:
            if isinstance(row.get(key), str):
                return row[key]
        if not wanted and isinstance(row.get("messages"), list):
            return "\n".join(str(m.get("content", "")) for m in row["messages"] if isinstance(m, dict))
    fields = f'"{wanted}"' if wanted else '"text", "content", "body" or "messages"'
    raise UserError(f"{name}, line {number} has no {fields}.")


def _parquet(stream: BinaryIO, name: str, key: str = "", rows: tuple[int, int] | None = None) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(_seekable(stream))
    wanted = (key,) if key else TEXT_FIELDS
    column = next((c for c in wanted if c in file.schema_arrow.names), None)
    if column is None:
        raise UserError(f"{name} has no column {' or '.join(wanted)}.")
    kind = file.schema_arrow.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"The column {column} of {name} holds {kind}, not text.")
    begin, end = rows or (0, file.metadata.num_rows)
    first = 0  # row of the group
    for group in range(file.num_row_groups):
        behind = first + file.metadata.row_group(group).num_rows
        if first < end and behind > begin:
            at = first
            for batch in file.iter_batches(ROWS, [group], [column]):
                for text in batch.column(0).slice(max(0, begin - at), max(0, end - max(at, begin))).to_pylist():
                    if isinstance(text, str) and text.strip():
                        yield Raw(text, name)
                at += len(batch)
        first = behind


def _seekable(stream: BinaryIO) -> BinaryIO:
    """The stream, or its content in memory where it is packed or comes over a line that only goes forward."""
    try:
        stream.seek(0, io.SEEK_END)
        stream.seek(0)
    except Exception:  # each kind of stream has its own
        return io.BytesIO(stream.read())
    return stream
