"""Large corpora: reading of whole, damaged, remote and unreachable files."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import os
import random
import threading
from collections import Counter

import fsspec
import numpy as np
import pytest
from crawl import prose, record

from jielong.corpus import readers
from jielong.corpus.build import parts, warc
from jielong.corpus.build.funnel import Tally
from jielong.corpus.build.inputs import InputFile, list_inputs
from jielong.corpus.build.parts import parts_of
from jielong.corpus.build.read import folder_licence, read_file
from jielong.corpus.build.recipe import Recipe, Source
from jielong.corpus.build.warc import pages
from jielong.errors import UserError


def read_warc(data: bytes, packed: bool, largest: int = 10**6) -> tuple[list[str], list[str]]:
    faults: list[str] = []
    found = [p.text for p in pages(io.BytesIO(data), packed, largest, lambda place, why: faults.append(why))]
    return found, faults


@pytest.mark.parametrize("block", [50, 1 << 16])
def test_warc_whole_and_at_every_place_damaged(block, monkeypatch):
    monkeypatch.setattr(warc, "BLOCK", block)
    texts = [f"<p>page {n} {'x' * 300 * n}</p>" for n in range(12)]
    records = [record(t.encode()) for t in texts]
    members = [gzip.compress(r) for r in records]
    for data, packed in (
        (b"".join(records), False),
        (b"".join(members), True),
        (gzip.compress(b"".join(records)), True),
    ):
        assert read_warc(data, packed) == (texts, [])
    whole = b"".join(members)
    ends = np.cumsum([len(m) for m in members])
    for cut in range(3, len(whole), 37):  # truncated: every whole member before the cut is read, and nothing else
        sound = int((ends <= cut).sum())
        found, faults = read_warc(whole[:cut], True)
        assert found == texts[:sound] and len(faults) == (cut not in ends), cut
    rng = random.Random(1)
    for _ in range(150):  # damaged within: all records but the one that is hit
        at = rng.randrange(len(whole))
        damaged = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        hit = int((ends <= at).sum())
        found, faults = read_warc(damaged, True)
        expected = texts[:hit] + texts[hit + 1 :]
        assert (found == expected and faults) or found == texts, at  # a few header bytes do not matter


def test_warc_records_that_are_no_pages():
    odd = [
        record(b"<p>gone</p>", status="404 Not Found"), record(b"%PDF", "application/pdf"), record(b"<p>ok</p>"),
        record(b"<meta charset=big5><p>" + "河流與山谷".encode("big5")), record("<p>中文</p>".encode(), "text/html; charset=latin-1"),
        record(b"<p>" + bytes(range(256)) * 20), record(b"x" * 50_000), record(b"<p>last</p>"),
        b"WARC/1.0\r\nWARC-Type: response\r\n\r\nno length\r\n", record(b"<p>after</p>"),
    ]  # fmt: skip
    found, faults = read_warc(b"".join(odd), False, largest=20_000)
    assert found == ["<p>ok</p>", "<meta charset=big5><p>河流與山谷", "<p>中文</p>", "<p>last</p>", "<p>after</p>"]
    assert Counter(f.split()[0] for f in faults) == {"a": 3} and "binary" in faults[0] and "bytes" in faults[1]


def test_bad_lines_and_files_are_set_aside(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nno json\n{"other": 1}\n{"text": "two"}\n')
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": "three"}\n' + b'{"text": "' + os.urandom(9000).hex().encode() + b'"}\n')[:-3000]
    )
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "d.html").write_bytes(b"<p>" + b"x" * 5000)
    faults: list[str] = []

    def read(name: str, kind: str, largest: int = 10**6) -> list[str]:
        file = InputFile("s", str(tmp_path / name), kind, 0)
        return [d.text for d in read_file(file, largest, lambda place, why: faults.append(why))]

    assert read("a.jsonl", "jsonl") == ["one", "two"] and len(faults) == 2
    assert read("b.jsonl.gz", "jsonl") == ["three"] and len(faults) == 4  # the damage, and the line that it cut
    assert read("c.parquet", "parquet") == [] and len(faults) == 5
    assert read("d.html", "html", 4000) == [] and "larger" in faults[5]
    assert read("nothing.txt", "plain") == [] and "FileNotFoundError" in faults[6]


def test_records_that_cost_only_themselves(tmp_path, monkeypatch):
    """A line too long to hold, one nested too deep, a column of numbers, a file of zstd that was cut off."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    monkeypatch.setattr(readers, "LONGEST_LINE", 200_000)
    good = '{"text": "good"}\n'
    long = '{"text": "' + "x" * 500_000 + '"}\n'
    (tmp_path / "a.jsonl").write_text(good + long + good + "[" * 100_000 + "\n" + good + long.strip())
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": pa.array(["one", None, "one"]).dictionary_encode()}), tmp_path / "c.parquet")
    packed = b"".join(
        zstandard.compress(line.encode()) for line in (good, good, json.dumps({"text": os.urandom(400).hex()}))
    )
    (tmp_path / "d.jsonl.zst").write_bytes(packed)
    (tmp_path / "e.jsonl.zst").write_bytes(packed[:-50])
    faults: list[tuple[str, str]] = []

    def read(name: str, kind: str) -> int:
        file = InputFile("s", str(tmp_path / name), kind, 0)
        return len(list(read_file(file, 10**6, lambda place, why: faults.append((name, why)))))

    assert read("a.jsonl", "jsonl") == 3 and read("b.parquet", "parquet") == 0 and read("c.parquet", "parquet") == 2
    assert read("d.jsonl.zst", "jsonl") == 3 and read("e.jsonl.zst", "jsonl") <= 2
    assert [name for name, _ in faults] == ["a.jsonl"] * 3 + ["b.parquet", "e.jsonl.zst"]
    for (_, why), word in zip(
        faults, ["line 2 is longer", "line 4 is no JSON", "line 6 is longer", "int64", "runcated"], strict=True
    ):
        assert word in why


def test_unreachable_places_are_counted_and_missing_folders_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    inputs = list_inputs(
        Recipe(source=[Source("web", "http://127.0.0.1:9/crawl.warc.gz"), Source("own", str(tmp_path))])
    )
    assert [f.source for f in inputs.tasks[0]] == ["own"] and [b.source for b in inputs.bad] == ["web"]
    with pytest.raises(UserError, match="does not exist"):
        list_inputs(Recipe(source=[Source("own", str(tmp_path / "nothing"))]))
    (tmp_path / "b.txt").symlink_to("nowhere")
    inputs = list_inputs(Recipe(source=[Source("own", str(tmp_path))]))
    assert len(inputs.tasks[0]) == 1 and [b.path for b in inputs.bad] == [str(tmp_path / "b.txt")]
    (tmp_path / "empty").mkdir()
    inputs = list_inputs(Recipe(source=[Source("own", str(tmp_path)), Source("none", str(tmp_path / "*.none"))]))
    assert [b.source for b in inputs.bad] == ["own", "none"] and "there is no file" in inputs.bad[1].reason
    with pytest.raises(UserError, match="no file of a known kind"):
        list_inputs(Recipe(source=[Source("own", str(tmp_path / "empty"))]))


def test_faults_of_one_kind_count_together():
    tally = Tally("read")
    for n, path in enumerate(["s3://bucket/in/", "/data/in", "/data/a.jsonl"]):
        tally.unreadable("s", path, f"EndpointError: {path} gives nothing, line {n}")
        tally.unreadable("s", path, f"{path.strip('/').rpartition('/')[2]}, line {n} is no JSON (at {n})")
    assert tally.dropped == {"EndpointError: a file gives nothing, line N": 3, "line N is no JSON": 3}


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server that sends the bytes that are asked for; Python's own always sends everything."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(200, {"Accept-Ranges": "bytes"}, self.data(), False)

    def do_GET(self) -> None:
        data, wanted = self.data(), self.headers.get("Range")
        if not wanted:
            return self.answer(200, {"Accept-Ranges": "bytes"}, data, True)
        a, b = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
        part = data[a : b + 1]
        return self.answer(206, {"Content-Range": f"bytes {a}-{a + len(part) - 1}/{len(data)}"}, part, True)

    def data(self) -> bytes:
        with open(self.translate_path(self.path), "rb") as f:
            return f.read()

    def answer(self, code: int, headers: dict[str, str], body: bytes, send: bool) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Whole(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("kind", [Ranges, Whole])
def test_files_and_parts_are_read_over_http(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(3)
    texts = [f"<p>{n} {rng.randbytes(60_000).hex()}</p>" for n in range(50)]  # more than fsspec fetches at a time
    (tmp_path / "a.warc.gz").write_bytes(b"".join(gzip.compress(record(t.encode()), 1) for t in texts))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "c.parquet", row_group_size=9, compression="none")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("a.warc.gz", "b.jsonl", "c.parquet"):
            url = f"http://127.0.0.1:{server.server_port}/{name}"
            tasks = list_inputs(Recipe(source=[Source("web", url)], part=1_000_000)).tasks
            assert len(tasks) > 2 if kind is Ranges else len(tasks) == 1
            assert [d.text for (file,) in tasks for d in read_file(file, 10**6, pytest.fail)] == texts  # type: ignore[arg-type]
        server.shutdown()


def test_files_are_shared_out_by_size(tmp_path):
    for n in range(9):
        (tmp_path / f"{n}.txt").write_text("x" * (n * n + 1))
    tasks = list_inputs(Recipe(source=[Source("own", str(tmp_path))], tasks=3)).tasks
    sizes = [sum(f.bytes for f in task) for task in tasks]
    assert sum(map(len, tasks)) == 9 and max(sizes) <= 1.3 * sum(sizes) / 3
    assert all(task == sorted(task, key=lambda f: f.path) for task in tasks)


def test_folder_licence(tmp_path):
    (tmp_path / "LICENSE.txt").write_text(
        "Permission is hereby granted, free of charge, to any person obtaining a copy"
    )
    (tmp_path / "src" / "gpl").mkdir(parents=True)
    (tmp_path / "src" / "gpl" / "COPYING").write_text("GNU GENERAL PUBLIC LICENSE\nVersion 2")
    assert folder_licence(str(tmp_path / "src" / "a.py")) == "MIT"
    assert folder_licence(str(tmp_path / "src" / "gpl" / "b.py")) == "GPL-2.0"


def read_parts(path, kind: str, size: int) -> tuple[list[str], list[str], int]:
    """Texts and faults of a file in parts of `size` bytes, and how many parts had a document."""
    file = InputFile("s", str(path), kind, path.stat().st_size)
    faults: list[str] = []
    found = [
        [d.text for d in read_file(part, 10**6, lambda place, why: faults.append(why))]
        for part in parts_of(file, size, fsspec.filesystem("file"))
    ]
    return [t for part in found for t in part], faults, sum(map(bool, found))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "big5", "utf-16"])
def test_parts_of_lines_are_the_whole_file(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(parts, "BLOCK", 7)
    rng = random.Random(2)
    texts = [prose(rng, "zh", 1) * rng.randrange(1, 4) for _ in range(30)]
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    lines[3:3], lines[20:20] = ["no json", ""], ["x" * 400]
    for end in ("\n", "", "\r\n"):
        (tmp_path / "a.jsonl").write_bytes(("\n".join(lines) + end).encode(encoding))
        for size in (9, 50, 333, 10**6):
            found, faults, used = read_parts(tmp_path / "a.jsonl", "jsonl", size)
            assert found == texts and len(faults) == 2, (encoding, end, size)
            assert used == 1 if size == 10**6 or encoding == "utf-16" else used > 3
    (tmp_path / "a.txt").write_bytes("\n".join(texts).encode(encoding))
    whole = read_parts(tmp_path / "a.txt", "plain", 10**6)
    cut, faults, used = read_parts(tmp_path / "a.txt", "plain", 900)
    assert "".join(cut) == whole[0][0] and not faults and used == (1 if encoding == "utf-16" else len(cut))


def test_parts_of_parquet_are_the_whole_file(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(readers, "ROWS", 4)
    texts = [f"row {n} {'x' * n}" for n in range(101)]
    for group in (1, 10, 64, 1000):  # rows in a group
        pq.write_table(pa.table({"n": range(101), "text": texts}), tmp_path / "a.parquet", row_group_size=group)
        for size in (100, 700, 10**6):
            found, faults, used = read_parts(tmp_path / "a.parquet", "parquet", size)
            assert found == texts and not faults and (used > 2) == (size < 10**6)
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert read_parts(tmp_path / "b.parquet.gz", "parquet", 100)[:2] == (texts, [])


@pytest.mark.parametrize("block", [50, 1 << 16])
def test_parts_of_a_crawl_are_the_whole_file(tmp_path, block, monkeypatch):
    monkeypatch.setattr(warc, "BLOCK", block)
    rng = random.Random(4)
    texts = [f"<p>page {n} {rng.randbytes(40 * n).hex()}</p>" for n in range(25)]
    members = [gzip.compress(record(t.encode())) for t in texts]
    members[7] = gzip.compress(record(texts[7].encode()) + record(b"<p>two in one</p>"))
    whole = [*texts[:8], "<p>two in one</p>", *texts[8:]]
    half = record(texts[12].encode())
    members[12] = gzip.compress(half[:300]) + gzip.compress(half[300:])  # a record of two members
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(members))
    for size in (40, 500, 1700, 10**6):
        found, faults, used = read_parts(path, "warc", size)
        assert found == whole and not faults and (used > 5) == (size < 10**6), size
    path.write_bytes(gzip.compress(b"".join(map(gzip.decompress, members))))  # one member: nothing to begin at
    assert read_parts(path, "warc", 500) == (whole, [], 1)
    data = b"".join(members)
    ends = np.cumsum([len(m) for m in members])
    for _ in range(60):  # damaged: the same as read in one piece
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        found = read_parts(path, "warc", 10**6)[0]
        assert read_parts(path, "warc", 1700)[0] == found and len(found) > 22, (at, ends)


def test_parts_of_a_file_that_is_no_such_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" * 100)
    (tmp_path / "a.jsonl").write_bytes(bytes(range(256)) * 4)
    for name, kind in (("a.parquet", "parquet"), ("a.jsonl", "jsonl"), ("a.warc.gz", "warc")):
        if kind == "warc":
            (tmp_path / name).write_bytes(b"nothing packed" * 50)
        found, faults, _ = read_parts(tmp_path / name, kind, 100)
        assert not found and faults
