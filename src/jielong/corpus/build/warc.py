"""WARC files, also truncated and damaged ones: a damaged place costs the records that it touches, no others.

Common Crawl packs every record as a gzip member of its own (WARC 1.1, annex D), so that reading can go on at the next
member; an unpacked file is searched for the next record.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jielong.corpus.readers import decode
from jielong.errors import UserError

BLOCK = 1 << 16
GZIP = b"\x1f\x8b\x08"
START = b"WARC/1."
LONGEST_HELD = 1 << 25  # unpacked bytes of an unfinished member; a file that is one member is handed out as it comes
LONGEST_HEADER = 1 << 16
LONGEST_MEMBER = 1 << 22  # packed bytes that are kept to look for what was missed
PEEK = 1 << 12  # packed bytes that show how a member begins
CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_\-]{2,20})", re.I)


class Damaged(Exception):
    """A place in a packed file that cannot be unpacked; the next read goes on behind it."""


class Inflate:
    """gzip members, one after another. `read` raises Damaged once for every damaged place.

    `whole`: a member is handed out when it is finished and sound, for files of one record per member; otherwise what was
    unpacked of a damaged one comes before the error. `begin` and `end`: only what lies between the first member that
    begins at or behind byte `begin` with a WARC record, and the next such one at or behind `end`.
    """

    def __init__(self, raw: Any, whole: bool = True, begin: int = 0, end: int | None = None):
        self.raw = raw
        self.whole = whole
        self.end = end
        self.seeking = begin > 0  # the first member
        self.taken = begin  # bytes of the file before what `raw` gives next; `packed` are the last of them
        if begin:
            raw.seek(begin)
        self.packed = b""
        self.ready = bytearray()
        self.sound = 0  # bytes of `ready` that belong to finished members
        self.member: Any = None
        self.begun = b""  # packed bytes of this member that were used
        self.lost = False  # looking for the next member
        self.fault = ""

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes (-1: everything); b"" at the end."""
        while (size < 0 or self._sure() < size) and not self.fault and self._more():
            pass
        have = self._sure()
        if self.fault and not have:
            fault, self.fault = self.fault, ""
            raise Damaged(fault)
        size = have if size < 0 else min(size, have)
        data = bytes(self.ready[:size])
        del self.ready[:size]
        self.sound = max(0, self.sound - size)
        return data

    def _take(self) -> bytes:
        block = self.raw.read(BLOCK)
        self.taken += len(block)
        return block

    def _sure(self) -> int:
        """Bytes that may be handed out: those of finished members, whose checksums were right, unless one is enormous."""
        return self.sound if self.whole and len(self.ready) < LONGEST_HELD else len(self.ready)

    def _fail(self, why: str) -> None:
        self.fault = why
        self.member = None
        if self.whole:
            del self.ready[self.sound :]

    def _more(self) -> bool:
        """Unpack another block; False at the end."""
        if not self.packed:
            self.packed = self._take()
            if not self.packed:
                if self.member is None:
                    return False
                self._fail("the file ends within a gzip member")
                self.packed, self.lost = self.begun[1:], True  # a damaged one may have swallowed those behind it
                return True
        if self.member is None and not self._next_member():
            return bool(self.packed) or self.lost
        try:
            self.ready += self.member.decompress(self.packed, 16 * BLOCK)
        except zlib.error as error:
            # the fault is noticed late, often within the next members: look for those from where this one began
            self.packed = (self.begun + self.packed)[1:]
            self.lost = True
            self._fail(f"a damaged gzip member ({error})")
            return True
        rest = self.member.unconsumed_tail or self.member.unused_data
        used = self.packed[: len(self.packed) - len(rest)]
        self.begun = self.begun + used if len(self.begun) < LONGEST_MEMBER else b""
        self.packed = rest
        if self.member.eof:
            self.member = None
            self.sound = len(self.ready)
        return True

    def _next_member(self) -> bool:
        """Move to the start of a member; False where more must be read first, or nothing is left."""
        search = self.lost or self.seeking
        if not search:
            self.packed = self.packed.lstrip(b"\0")  # padding
        if len(self.packed) < len(GZIP):
            more = self._take()
            self.packed = self.packed + more if more else b""
            self.lost = self.lost and bool(more)
            return False
        at = self.packed.find(GZIP)
        if at != 0 and not search:  # something else stands between the members
            self.lost = True
            self._fail("bytes that are no gzip member")
            return False
        if at < 0:
            self.packed = self.packed[-2:]  # the next block may complete it
            return False
        self.packed, self.begun = self.packed[at:], b""
        behind = self.end is not None and self.taken - len(self.packed) >= self.end
        if self.seeking and behind:
            return self._stop()
        if self.seeking or behind:
            record = self._record()
            if behind and record:
                return self._stop()
            if self.seeking and not record:
                self.packed = self.packed[1:]
                return False
        self.seeking = False
        self.member, self.lost = zlib.decompressobj(31), False
        return True

    def _record(self) -> bool:
        """Whether the member that begins here begins with a WARC record."""
        while len(self.packed) < PEEK and (more := self._take()):
            self.packed += more
        try:
            return zlib.decompressobj(31).decompress(self.packed[:PEEK], len(START)) == START
        except zlib.error:
            return False

    def _stop(self) -> bool:
        """The rest of the file belongs to other parts."""
        self.raw, self.packed, self.lost = io.BytesIO(), b"", False
        return False


class _Plain:
    """The same for a stream that is not packed by gzip; what its own unpacker raises ends it."""

    def __init__(self, raw: Any):
        self.raw = raw
        self.over = False

    def read(self, size: int = -1) -> bytes:
        if self.over:
            return b""
        try:
            return self.raw.read(size)
        except Exception as error:  # zstandard's own
            self.over = True
            raise Damaged(f"damaged ({error})") from error


@dataclass(slots=True)
class Page:
    """One page of a crawl."""

    text: str
    url: str
    html: bool
    place: int
    """Number of the record in its file."""


def pages(
    raw: Any, packed: bool, largest: int, bad: Callable[[int, str], None], begin: int = 0, end: int | None = None
) -> Iterator[Page]:
    """Pages (response and conversion records) of an open WARC file; `bad(place, reason)` is told of the others' faults.

    `packed`: gzip; then only the members that begin in the bytes [begin, end). `largest`: bytes; a larger record is
    passed over without holding it.
    """
    stream = Inflate(raw, True, begin, end) if packed else _Plain(raw)
    held = b""
    place = -1
    while True:
        try:
            if not held.startswith(START):
                held = _to_start(stream, held)
                if not held:
                    return
            place += 1
            header, held = _header(stream, held)
            length = _length(header)
            if length is None:
                bad(place, "a record without a length")
                continue
            body, held = _body(stream, held, length, largest)
            if body is None:
                bad(place, f"a record of {length:,} bytes")
                continue
        except Damaged as error:
            bad(max(place, 0), str(error))
            held = b""
            continue
        try:
            page = _page(header + body, place)
        except UserError as error:
            bad(place, str(error))
            continue
        except Exception as error:  # whatever a stranger's server wrote
            bad(place, f"{type(error).__name__} in the record")
            continue
        if page is not None:
            yield page


def _to_start(stream: Any, held: bytes) -> bytes:
    """Pass over everything before the next record; b"" at the end."""
    while True:
        at = held.find(START)
        if at >= 0 and (at == 0 or held[at - 1 : at] == b"\n"):
            return held[at:]
        if at > 0:
            held = held[at + 1 :]
            continue
        more = stream.read(BLOCK)
        if not more:
            return b""
        held = held[-len(START) :] + more


def _header(stream: Any, held: bytes) -> tuple[bytes, bytes]:
    while (at := held.find(b"\r\n\r\n")) < 0:
        more = stream.read(BLOCK)
        if len(held) > LONGEST_HEADER or not more:
            raise Damaged("a record's header does not end")
        held += more
    return held[: at + 4], held[at + 4 :]


def _length(header: bytes) -> int | None:
    found = re.search(rb"\r\ncontent-length:\s*(\d{1,15})\s*\r\n", header, re.I)
    return int(found.group(1)) if found else None


def _body(stream: Any, held: bytes, length: int, largest: int) -> tuple[bytes | None, bytes]:
    """The record's content (None where it is too large) and what was read behind it."""
    parts, have = [held], len(held)
    while have < length:
        more = stream.read(min(16 * BLOCK, length - have))
        if not more:
            raise Damaged("the file ends within a record")
        have += len(more)
        if length <= largest:
            parts.append(more)
    if length > largest:
        return None, held[length:] if len(held) > length else b""
    data = b"".join(parts)
    return data[:length], data[length:]


def _page(record: bytes, place: int) -> Page | None:
    from warcio.archiveiterator import ArchiveIterator

    for found in ArchiveIterator(io.BytesIO(record)):
        if found.rec_type not in ("response", "conversion"):
            return None
        kind = found.rec_headers.get_header("WARC-Identified-Payload-Type") or found.content_type or ""
        declared = b""
        if found.http_headers is not None:
            kind_line = found.http_headers.get_header("Content-Type") or ""
            kind = found.rec_headers.get_header("WARC-Identified-Payload-Type") or kind_line
            declared = kind_line.encode("latin-1", "replace")
            if not str(found.http_headers.get_statuscode()).startswith("2"):
                return None
        if kind and not re.search(r"html|text/plain", kind):
            return None
        data = found.content_stream().read()
        if not data.strip():
            return None
        html = found.rec_type == "response" and "text/plain" not in kind
        return Page(page_text(data, declared), found.rec_headers.get_header("WARC-Target-URI") or "", html, place)
    return None


def page_text(data: bytes, declared: bytes = b"") -> str:
    """A page's characters: UTF-8 where it is valid, else as server or page declare, else as the bytes look.

    Raises UserError for what is no text.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    found = CHARSET.search(declared) or CHARSET.search(data[:4096])
    if found:
        name = found.group(1).decode("ascii").lower()
        # the names by which servers call what browsers read as a larger set (WHATWG Encoding Standard)
        name = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "iso-8859-1": "cp1252"}.get(name, name)
        try:
            if name != "utf-8":
                return data.decode(name)
        except (UnicodeDecodeError, LookupError):
            pass
    return decode(data, "a page")
